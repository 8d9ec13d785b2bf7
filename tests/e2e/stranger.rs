//! A benchmark by somebody else: a crate outside the workspace that depends on the SDK.

use crate::invoke::{arg, bench, command, finish};
use crate::libraries::{cargo, folder};
use serde_json::Value;

const FILE: &str = "libhaiku.so";

fn haiku() -> tempfile::TempDir {
    let dir = folder();
    std::fs::copy(cargo(&["build"], "haiku").join(FILE), dir.path().join(FILE)).unwrap();
    dir
}

#[test]
fn its_own_tests_pass() {
    cargo(&["test"], "haiku");
}

#[test]
fn it_is_found_verified_described_and_run() {
    let dir = haiku();
    let plugins = arg(dir.path());
    let verified =
        bench(&["plugin", "verify", arg(&dir.path().join(FILE))]).code(0).prints(&["task haiku@0.2.0"]);
    assert!(!verified.stdout().contains("FAILED"));
    bench(&["list", "tasks", "--plugin-dir", plugins])
        .code(0)
        .prints(&["haiku 0.2.0 One-word questions about verse", "qmsum"]);
    bench(&["describe", "haiku", "--plugin-dir", plugins]).code(0).prints(&["task haiku@1", "em_squad"]);
    bench(&["describe", "haiku"]).code(2).says(&["there is no task, metric or backend `haiku`"]);

    let out = dir.path().join("run");
    let options =
        ["--backend", "echo", "--backend-option", "mode=fixed", "--backend-option", "text=The fox."];
    let mut run = command(&["run", "--tasks", "haiku", "-q", "--out", arg(&out)]);
    run.args(options).env("E2LLM_PLUGIN_PATH", plugins);
    finish(run).code(0);
    let results: Value = serde_json::from_slice(&std::fs::read(out.join("results.json")).unwrap()).unwrap();
    let slices = results["tasks"][0]["slices"].as_array().unwrap();
    let value = |slice: &str| {
        let slice = slices.iter().find(|s| s["slice"] == slice).unwrap();
        assert_eq!(slice["metrics"][0]["id"], "em_squad");
        slice["metrics"][0]["value"].as_f64().unwrap()
    };
    assert_eq!((value("all"), value("season=autumn"), value("season=spring")), (25.0, 50.0, 0.0));
}

#[test]
fn it_reads_files_like_the_others() {
    let dir = haiku();
    let data = dir.path().join("data/haiku");
    std::fs::create_dir_all(&data).unwrap();
    let line = r#"{"id":"1","context":"An old pond.","prompt":"What is old?","answers":["pond"],"meta":{}}"#;
    std::fs::write(data.join("test.jsonl"), format!("{line}\n")).unwrap();
    let info = ["data", "info", "haiku", "--json", "--plugin-dir", arg(dir.path()), "--data"];
    for folder in [data.parent().unwrap(), &data] {
        let rows = bench(&[&info[..], &[arg(folder)]].concat()).code(0).json_lines();
        assert_eq!((&rows[0]["samples"], &rows[0]["split"]), (&1.into(), &"test".into()));
    }
}
