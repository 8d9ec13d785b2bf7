//! A process killed without warning.

use crate::support::{config, metrics, task, workshop};
use e2llm_backend::CancelFlag;
use e2llm_train::{End, Observer, RunOptions, StepReport, train};
use std::path::Path;
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

const ROOT: &str = "E2LLM_TRAIN_TEST_ROOT";
const STEPS: usize = 40;

fn options(root: &Path, name: &str) -> RunOptions {
    RunOptions { folder: root.join(name), resume: true, cancel: CancelFlag::default() }
}

/// Gives the parent time to kill between any two writes.
struct Slow;

impl Observer for Slow {
    fn step(&mut self, _: &StepReport) {
        std::thread::sleep(Duration::from_millis(20));
    }
}

/// Run by the test below in a process of its own.
#[test]
#[ignore = "the other process of `a_killed_training_goes_on_bit_for_bit`"]
fn child() {
    let Some(root) = std::env::var_os(ROOT) else { return };
    let root = Path::new(&root);
    let config = config(root, STEPS);
    train(&task(root, &config), &config, &options(root, "killed"), &mut Slow).unwrap();
}

#[test]
fn a_killed_training_goes_on_bit_for_bit() {
    let root = workshop(12);
    let config = config(root.path(), STEPS);
    let lines = || {
        let text = std::fs::read_to_string(root.path().join("killed/metrics.jsonl")).unwrap_or_default();
        text.lines().count()
    };
    // Killed at two moments that nobody chose to the millisecond.
    for enough in [5, 23] {
        let mut child = Command::new(std::env::current_exe().unwrap())
            .args(["kill::child", "--exact", "--ignored"])
            .env(ROOT, root.path())
            .stdout(Stdio::null())
            .spawn()
            .unwrap();
        let start = Instant::now();
        while lines() < enough && start.elapsed() < Duration::from_secs(120) {
            std::thread::sleep(Duration::from_millis(3));
        }
        child.kill().unwrap();
        assert!(!child.wait().unwrap().success(), "the training ended before it was killed");
    }
    let killed =
        train(&task(root.path(), &config), &config, &options(root.path(), "killed"), &mut ()).unwrap();
    assert_eq!((killed.end, killed.steps), (End::Finished, STEPS));
    train(&task(root.path(), &config), &config, &options(root.path(), "whole"), &mut ()).unwrap();
    assert_eq!(metrics(&root.path().join("killed")), metrics(&root.path().join("whole")));
}
