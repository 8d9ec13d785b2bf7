//! Settings from flags, environment and file, in that order of precedence.

use crate::invoke::{Ended, arg, bench, command, finish, repository};
use crate::runs::{samples, text};
use std::path::Path;
use tempfile::tempdir;

fn with_file(folder: &Path, file: &str, more: &[&str]) -> Ended {
    let config = folder.join("run.toml");
    std::fs::write(&config, file).unwrap();
    bench(&[&["run", "--config", arg(&config)], more].concat())
}

#[test]
fn a_file_says_everything_and_flags_win_over_it() {
    let dir = tempdir().unwrap();
    let out = dir.path().join("run");
    let file = format!(
        "tasks = [\"quality\", \"niah\"]\nlimit = 3\nseed = 11\nout = {out:?}\n[backend]\nname = \"echo\"\n\
         [backend.options]\nmode = \"fixed\"\ntext = \"(C)\"\n[generation]\nmax_new_tokens = 5\n"
    );
    with_file(dir.path(), &file, &["-q", "--limit", "2"]).code(0);
    assert_eq!((samples(&out, "quality").len(), samples(&out, "niah").len()), (2, 2));
    assert_eq!(samples(&out, "quality")[0]["outcome"]["answered"]["prediction"]["text"], "C");
    let manifest = text(&out, "manifest.toml");
    assert!(manifest.contains("seed = 11") && manifest.contains("max_new_tokens = 5"), "{manifest}");
}

#[test]
fn mistakes_in_a_file_are_shown_where_they_are() {
    let dir = tempdir().unwrap();
    for (file, texts) in [
        (
            "tasks = \"quality\"\n[backend]\nname = \"echo\"\nmodle = \"x\"\n",
            &["unknown key `backend.modle`", "run.toml:4:1", "did you mean `model`?"][..],
        ),
        ("task_list = \"quality\"\n", &["unknown key `task_list`", "run.toml:1:1"]),
        ("tasks = \"quality\"\nseed = \"seven\"\n", &["run.toml:2:8", "invalid type"]),
        ("tasks = [\"quality\"\n[backend]\n", &["run.toml:", "configuration"]),
        ("tasks = \"quality\"\nbatch_size = 0\n[backend]\nname = \"echo\"\n", &["batch size `0`"]),
    ] {
        with_file(dir.path(), file, &[]).code(2).says(texts);
    }
    bench(&["run", "--config", "no/such.toml"]).code(2).says(&["cannot read configuration no/such.toml"]);
}

#[test]
fn the_shipped_file_is_good() {
    let config = repository("configs/runs/sample.toml");
    let args = ["run", "--config", arg(&config), "--backend", "echo", "--limit", "1", "--dry-run"];
    bench(&args).code(0).prints(&crate::runs::TASKS);
}

#[test]
fn the_environment_is_between_flags_and_file() {
    let dir = tempdir().unwrap();
    let out = dir.path().join("run");
    let run = |more: &[&str]| {
        let mut run = command(&["run"]);
        run.args(more).env("E2LLM_TASKS", "quality").env("E2LLM_BACKEND", "echo").env("E2LLM_LIMIT", "2");
        run.env("E2LLM_OUT", &out).env("E2LLM_QUIET", "true").env("E2LLM_SEED", "3");
        finish(run)
    };
    let config = dir.path().join("run.toml");
    std::fs::write(&config, "limit = 1\nseed = 4\nbootstrap = 50\n").unwrap();
    run(&["--config", arg(&config), "--seed", "5"]).code(0);
    assert_eq!(samples(&out, "quality").len(), 2);
    let manifest = text(&out, "manifest.toml");
    assert!(manifest.contains("seed = 5") && manifest.contains("bootstrap = 50"), "{manifest}");
}

#[test]
fn settings_that_mean_nothing_are_refused() {
    for (args, message) in [
        (&["--temperature=-1"][..], "temperature -1"),
        (&["--temperature", "NaN"], "temperature NaN"),
        (&["--top-p", "0"], "top-p 0"),
        (&["--batch-size", "many"], "batch size `many`"),
        (&["--device", "tpu"], "tpu"),
        (&["--backend-option", "mode"], "expected key=value"),
        (&["--task-option", "x=1"], "expected task.option=value"),
        (&["--task-option", "niah.no_such_option=1"], "unknown task option `no_such_option`"),
        (&["--task-option", "qmsum.x=1"], "names task `qmsum`, which is not run"),
        (&["--backend-option", "mode=loud"], "unknown mode `loud`"),
        (&["--limit", "three"], "invalid value 'three'"),
    ] {
        let dir = tempdir().unwrap();
        let out = dir.path().join("run");
        let base = ["run", "--tasks", "niah", "--backend", "echo", "--out", arg(&out)];
        bench(&[&base[..], args].concat()).code(2).says(&[message]);
    }
    bench(&["run", "--backend", "echo"]).code(2).says(&["no tasks", "--tasks"]);
    bench(&["run", "--tasks", "niah"]).code(2).says(&["no backend", "--backend"]);
}
