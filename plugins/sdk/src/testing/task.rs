//! Checks of a task.

use super::{Report, check_unknown_method, ensure, odd_responses};
use crate::client::{Plugin, TaskClient};
use crate::{Example, Prompt, Source, TaskInfo, TaskOptions};
use std::collections::BTreeSet;

type Outcome = Result<(), String>;

fn text(e: crate::Error) -> String {
    e.to_string()
}

fn client(plugin: &Plugin) -> Result<TaskClient, String> {
    TaskClient::create(plugin, None, &TaskOptions::default()).map_err(text)
}

/// The sample's source: embedded records, or what the task generates without a data folder.
fn sample(info: &TaskInfo) -> Source {
    let mut source = Source::sample();
    if info.default_split == "generated" {
        source.split = info.default_split.clone();
    }
    source
}

fn read(task: &TaskClient) -> Result<Vec<(Example, Prompt)>, String> {
    let info = task.info().map_err(text)?;
    task.open(&sample(&info))
        .map_err(text)?
        .map(|e| {
            let e = e.map_err(text)?;
            let p = task.prompt(&e).map_err(text)?;
            Ok((e, p))
        })
        .collect()
}

pub(super) fn verify(plugin: &Plugin) -> Report {
    let mut report = Report::default();
    report.check("info is complete and the same twice", || check_info(plugin));
    report.check("unknown options are refused", || check_options(plugin));
    report.check("sample examples are complete", || check_examples(&read(&client(plugin)?)?));
    report.check("prompts are complete", || check_prompts(&read(&client(plugin)?)?));
    report.check("two passes and four threads see the same", || check_repeats(plugin));
    report.check("a prompt depends on its example alone", || check_alone(plugin));
    report.check("any response can be extracted", || check_extract(plugin));
    report.check("a right answer is read out of a response", || check_gold(plugin));
    report.check("missing, empty, truncated and corrupt files are errors", || check_files(plugin));
    report.check("unknown methods and requests are errors", || check_unknown_method(plugin));
    report
}

fn check_info(plugin: &Plugin) -> Outcome {
    let (a, b) = (client(plugin)?.info().map_err(text)?, client(plugin)?.info().map_err(text)?);
    ensure(a == b, || "two instances say different things".into())?;
    ensure(a.id == plugin.id(), || format!("its id is `{}`, exported as `{}`", a.id, plugin.id()))?;
    for (name, value) in [("version", &a.version), ("description", &a.description), ("licence", &a.licence)] {
        ensure(!value.is_empty(), || format!("`{name}` is empty"))?;
    }
    ensure(a.max_new_tokens > 0, || "`max_new_tokens` is 0".into())?;
    ensure(a.metrics.contains(&a.primary_metric), || "`primary_metric` is not among `metrics`".into())?;
    ensure(a.splits.contains(&a.default_split), || "`default_split` is not among `splits`".into())
}

fn check_options(plugin: &Plugin) -> Outcome {
    let mut options = TaskOptions::default();
    options.0.insert("no-such-option".into(), "1".into());
    let made = TaskClient::create(plugin, None, &options);
    ensure(made.is_err(), || "an option that does not exist was accepted".into())
}

fn check_examples(all: &[(Example, Prompt)]) -> Outcome {
    ensure(!all.is_empty(), || "there is no sample example".into())?;
    let mut ids = BTreeSet::new();
    for (e, _) in all {
        ensure(ids.insert(&e.id), || format!("id `{}` occurs twice", e.id))?;
        ensure(!e.context.trim().is_empty(), || format!("`{}` has no context", e.id))?;
        ensure(!e.instruction.trim().is_empty(), || format!("`{}` has no instruction", e.id))?;
        ensure(!e.group.is_empty(), || format!("`{}` has no group", e.id))?;
        ensure(!e.references.is_empty(), || format!("`{}` has no reference", e.id))?;
        ensure(e.references.iter().all(|r| !r.trim().is_empty()), || {
            format!("`{}` has an empty reference", e.id)
        })?;
    }
    Ok(())
}

fn check_prompts(all: &[(Example, Prompt)]) -> Outcome {
    for (e, p) in all {
        let times = |what: &str| p.template.matches(what).count();
        let expected = usize::from(!p.context.is_empty());
        ensure(times("{context}") == expected, || format!("`{}`: the template's {{context}}", e.id))?;
        ensure(times("{instruction}") == 1, || format!("`{}`: the template's {{instruction}}", e.id))?;
        ensure(!p.instruction.trim().is_empty(), || format!("`{}` asks nothing", e.id))?;
        ensure(!p.style.is_empty(), || format!("`{}` does not name its style", e.id))?;
        ensure(p.max_new_tokens > 0, || format!("`{}` allows no answer", e.id))?;
    }
    Ok(())
}

fn check_repeats(plugin: &Plugin) -> Outcome {
    let task = client(plugin)?;
    let first = read(&task)?;
    ensure(read(&task)? == first, || "a second pass differs".into())?;
    std::thread::scope(|scope| {
        let threads: Vec<_> = (0..4).map(|_| scope.spawn(|| read(&task))).collect();
        for thread in threads {
            let seen = thread.join().map_err(|_| "a thread panicked".to_owned())??;
            ensure(seen == first, || "a thread saw something else".into())?;
        }
        Ok(())
    })
}

fn check_extract(plugin: &Plugin) -> Outcome {
    let task = client(plugin)?;
    for (example, _) in read(&task)? {
        for response in odd_responses() {
            let first = task.extract(&example, &response).map_err(text)?;
            let again = task.extract(&example, &response).map_err(text)?;
            ensure(first == again, || format!("`{}`: extraction is not repeatable", example.id))?;
            task.next_turn(&example, &response, 1).map_err(text)?;
        }
        let empty = task.extract(&example, "").map_err(text)?;
        ensure(empty.text.is_empty(), || format!("an empty response became `{}`", empty.text))?;
    }
    Ok(())
}

/// Prompts are the same in another order, and from an instance that has read nothing: a run may be resumed anywhere.
fn check_alone(plugin: &Plugin) -> Outcome {
    let all = read(&client(plugin)?)?;
    let fresh = client(plugin)?;
    for (example, prompt) in all.iter().rev() {
        let again = fresh.prompt(example).map_err(text)?;
        ensure(again == *prompt, || format!("`{}`: another prompt than before", example.id))?;
    }
    Ok(())
}

/// With an answer that is right, a task must not stand in the way of the maximum: the reference, or (of multiple
/// choice) its letter in one of the usual forms, comes out as it is; of several lines the first may be taken.
fn check_gold(plugin: &Plugin) -> Outcome {
    let task = client(plugin)?;
    for (example, _) in read(&task)? {
        for right in &example.references {
            let forms = [right.clone(), format!("({right})"), format!("The correct answer is ({right})")];
            let mut found = Vec::new();
            for form in &forms {
                found.push(task.extract(&example, form).map_err(text)?.text.trim().to_owned());
            }
            let whole =
                |f: &String| !f.is_empty() && (f == right.trim() || right.trim().lines().next() == Some(f));
            ensure(found.iter().any(whole), || format!("`{}`: `{right}` became `{}`", example.id, found[0]))?;
        }
    }
    Ok(())
}

/// A folder that removes itself.
struct Folder(std::path::PathBuf);

impl Folder {
    fn new() -> std::io::Result<Self> {
        use std::sync::atomic::{AtomicU64, Ordering};
        static N: AtomicU64 = AtomicU64::new(0);
        let n = N.fetch_add(1, Ordering::Relaxed);
        let path = std::env::temp_dir().join(format!("e2llm-conformance-{}-{n}", std::process::id()));
        std::fs::create_dir_all(&path)?;
        Ok(Self(path))
    }
}

impl Drop for Folder {
    fn drop(&mut self) {
        let _ = std::fs::remove_dir_all(&self.0);
    }
}

fn check_files(plugin: &Plugin) -> Outcome {
    let task = client(plugin)?;
    let folder = Folder::new().map_err(|e| e.to_string())?;
    let good = r#"{"id":"1","context":"A text.","prompt":"What?","answers":["That"],"meta":{}}"#;
    let contents: [(&str, Option<Vec<u8>>); 5] = [
        ("missing", None),
        ("empty", Some(Vec::new())),
        ("truncated", Some(good.as_bytes()[..good.len() / 2].to_vec())),
        ("corrupt", Some(vec![0xff, 0xfe, b'\n', 0, 1])),
        ("without fields", Some(b"{\"id\":\"1\"}\n".to_vec())),
    ];
    for (what, bytes) in contents {
        let file = folder.0.join("test.jsonl");
        match bytes {
            Some(bytes) => std::fs::write(&file, bytes).map_err(|e| e.to_string())?,
            None => drop(std::fs::remove_file(&file)),
        }
        let source = Source::folder(&folder.0, "test");
        let failed = match task.open(&source) {
            Err(_) => true,
            Ok(mut examples) => examples.any(|e| e.is_err()),
        };
        ensure(failed, || format!("a {what} file was read without an error"))?;
    }
    task.info().map(drop).map_err(text)
}
