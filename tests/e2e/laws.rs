//! What must hold of every task with every metric it reports: a right answer gets the maximum, an empty one nothing,
//! and neither the order of samples nor the number of threads matters.

use crate::invoke::{arg, bench};
use crate::runs::{TASKS, echo, repeatable, results, samples};
use serde_json::{Value, json};
use std::io::Write;
use std::path::Path;
use tempfile::tempdir;

/// Replaces the stored answers of a task, and scores the run again.
fn answer(run: &Path, task: &str, with: impl Fn(&Value) -> String) {
    let mut file = std::fs::File::create(run.join(format!("samples/{task}.jsonl.new"))).unwrap();
    for mut sample in samples(run, task) {
        let answer = with(&sample);
        // a letter as the official forms of multiple choice want it, anything else as it is
        let letter = answer.len() == 1 && sample["meta"]["options"].is_array();
        let response = if letter { format!("The correct answer is ({answer})") } else { answer.clone() };
        let response = match sample["meta"]["choice_protocol"].as_str() {
            Some("quality") if letter => format!("({answer})"),
            _ => response,
        };
        let answered = &mut sample["outcome"]["answered"];
        answered["response"] = response.into();
        answered["prediction"] = json!({"text": answer, "rule": "law"});
        writeln!(file, "{sample}").unwrap();
    }
    let name = |end: &str| run.join(format!("samples/{task}{end}"));
    std::fs::rename(name(".jsonl.new"), name(".jsonl")).unwrap();
}

/// The values of the slice `all`: id, unit, value.
fn values(run: &Path, task: &str) -> Vec<(String, String, f64)> {
    let results = results(run);
    let tasks = results["tasks"].as_array().unwrap();
    let task = tasks.iter().find(|t| t["meta"]["task"] == task).unwrap();
    let metrics = task["slices"][0]["metrics"].as_array().unwrap();
    let text = |m: &Value, key: &str| m[key].as_str().unwrap().to_owned();
    metrics.iter().map(|m| (text(m, "id"), text(m, "unit"), m["value"].as_f64().unwrap())).collect()
}

#[test]
fn gold_is_the_maximum_and_nothing_is_nothing() {
    let dir = tempdir().unwrap();
    let run = dir.path().join("run");
    echo(&run, "all", &["-q"]).code(0);
    for task in TASKS {
        // RULER wants all of its references, the others any of theirs
        let wanted = if task == "ruler" { usize::MAX } else { 1 };
        answer(&run, task, |sample| {
            let references = sample["references"].as_array().unwrap().iter().take(wanted);
            references.map(|r| r.as_str().unwrap()).collect::<Vec<_>>().join(", ")
        });
    }
    bench(&["score", arg(&run), "-q"]).code(0);
    for task in TASKS {
        // these want more than the answer: the option's text, the whole needle
        let others = ["em@scrolls", "needle_rouge"];
        for (id, unit, value) in values(&run, task).into_iter().filter(|(id, ..)| !others.contains(&&**id)) {
            match unit.as_str() {
                "%" => assert!((value - 100.0).abs() < 1e-6, "{task}: {id} of the references is {value}"),
                _ => assert_eq!(value, 0.0, "{task}: {id}"),
            }
        }
        answer(&run, task, |_| String::new());
    }
    bench(&["score", arg(&run), "-q"]).code(0);
    for task in TASKS {
        for (id, unit, value) in values(&run, task) {
            match (id.as_str(), unit.as_str()) {
                ("accuracy@compensated", _) => {
                    assert_eq!(value, 25.0, "{task}: a null answer counts a quarter")
                }
                (_, "%") => assert_eq!(value, 0.0, "{task}: {id} of empty answers"),
                _ => assert!(value > 0.0, "{task}: {id} counts the empty answers"),
            }
        }
    }
}

#[test]
fn the_order_of_samples_does_not_matter() {
    let dir = tempdir().unwrap();
    let run = dir.path().join("run");
    echo(&run, "all", &["-q"]).code(0);
    let before = repeatable(&run);
    for task in TASKS {
        let path = run.join(format!("samples/{task}.jsonl"));
        let text = std::fs::read_to_string(&path).unwrap();
        let backwards: Vec<_> = text.lines().rev().collect();
        std::fs::write(&path, backwards.join("\n") + "\n").unwrap();
    }
    bench(&["score", arg(&run), "-q"]).code(0);
    assert_eq!(repeatable(&run), before);
}

#[test]
fn threads_do_not_matter() {
    let dir = tempdir().unwrap();
    let run = dir.path().join("run");
    echo(&run, "qmsum,triviaqa", &["-q"]).code(0);
    let pairs = dir.path().join("pairs.jsonl");
    let mut file = std::fs::File::create(&pairs).unwrap();
    for sample in ["qmsum", "triviaqa"].iter().flat_map(|task| samples(&run, task)) {
        let prediction = &sample["outcome"]["answered"]["response"];
        writeln!(file, "{}", json!({"prediction": prediction, "references": sample["references"]})).unwrap();
    }
    for metric in ["rouge", "qa", "needle", "rouge1+stem,f1_squad"] {
        for aggregate in [&[][..], &["--aggregate"]] {
            let scored = |threads: &str| {
                let args = ["metric", metric, "--input", arg(&pairs), "--threads", threads];
                bench(&[&args[..], aggregate].concat()).code(0).stdout()
            };
            assert_eq!(scored("1"), scored("4"), "{metric}");
        }
    }
}
