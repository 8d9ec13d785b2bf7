//! The `middle` policies against what the official LongBench code keeps.

use e2llm_baselines::Policy;
use serde::Deserialize;
use std::path::Path;

#[derive(Deserialize)]
struct Golden {
    middle_truncation: Vec<Case>,
}

#[derive(Deserialize)]
struct Case {
    n: usize,
    max: usize,
    longbench_v1: Vec<u32>,
    longbench_v2: Vec<u32>,
}

#[test]
fn golden_middle_truncation() {
    let path =
        Path::new(env!("CARGO_MANIFEST_DIR")).join("../../../shared/golden/metrics/golden_metrics.json");
    let Ok(text) = std::fs::read_to_string(&path) else {
        eprintln!("SKIPPED: golden_middle_truncation: {} not found", path.display());
        return;
    };
    let golden: Golden = serde_json::from_str(&text).unwrap();
    assert!(!golden.middle_truncation.is_empty());
    for case in golden.middle_truncation {
        let ids: Vec<u32> = (0..case.n as u32).collect();
        let kept = |policy: Policy| policy.kept(case.n, case.max).pieces(&ids).concat();
        assert_eq!(kept(Policy::MiddleLongbenchV1), case.longbench_v1, "v1, {} of {}", case.max, case.n);
        assert_eq!(kept(Policy::MiddleLongbenchV2), case.longbench_v2, "v2, {} of {}", case.max, case.n);
    }
}
