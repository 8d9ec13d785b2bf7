//! The task over its sample, over files in the official formats, and over broken ones.
#![expect(clippy::unwrap_used, reason = "all of this is tests")]

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};

use e2llm_plugin::{Example, Host, Result, Source, Task, TaskOptions};
use e2llm_task_longbench::{LongBenchV1, e2llm_plugin_entry};

/// A folder of real records beside the repository; where it is missing the test says so and passes.
fn shared(name: &str) -> Option<PathBuf> {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../../shared/data").join(name);
    if !path.exists() {
        eprintln!("SKIPPED: shared/data/{name} not found");
        return None;
    }
    Some(path)
}

/// The task with these options.
fn with(options: &[(&str, &str)]) -> Result<LongBenchV1> {
    let mut task = LongBenchV1::default();
    let options = options.iter().map(|(k, v)| ((*k).to_owned(), (*v).into())).collect();
    task.configure(&TaskOptions(options), Host::default()).map(|()| task)
}

fn read(task: &LongBenchV1, source: &Source) -> Result<Vec<Example>> {
    task.open(source)?.collect()
}

fn datasets(all: &[Example]) -> BTreeSet<&str> {
    all.iter().map(|e| e.meta["dataset"].as_str().unwrap()).collect()
}

#[test]
fn conforms() {
    e2llm_plugin::testing::assert_conforms(e2llm_plugin_entry);
}

#[test]
fn the_sample_is_of_several_data_sets() {
    let task = LongBenchV1::default();
    let all = read(&task, &Source::sample()).unwrap();
    assert_eq!(all.len(), 4);
    assert_eq!(
        datasets(&all).into_iter().collect::<Vec<_>>(),
        ["gov_report", "narrativeqa", "passage_retrieval_en", "qmsum"]
    );
    for e in &all {
        let words = e.context.split_whitespace().count();
        assert!((1200..3000).contains(&words), "{}: {words}", e.id);
        assert!(task.info().slices.iter().all(|s| e.meta.contains_key(s)));
    }
    let retrieval = with(&[("dataset", "passage_retrieval_en")]).unwrap();
    let one = read(&retrieval, &Source::sample()).unwrap();
    assert_eq!(
        (one.len(), retrieval.info().metrics),
        (1, vec!["longbench_score".to_owned(), "retrieval_score".into()])
    );
    let (gold, paragraphs) = (&one[0].references[0], one[0].context.matches("Paragraph ").count());
    assert!(one[0].context.contains(&format!("{gold}: ")) && paragraphs >= 8);
    assert!(task.prompt(&one[0]).unwrap().instruction.ends_with(&one[0].instruction));
}

#[test]
fn plain_records() {
    let Some(folder) = shared("longbench") else { return };
    let all = read(&LongBenchV1::default(), &Source::folder(&folder, "test")).unwrap();
    assert_eq!((all.len(), datasets(&all).len()), (249, 6));
    let some =
        read(&with(&[("dataset", "qasper,musique")]).unwrap(), &Source::folder(&folder, "test")).unwrap();
    assert_eq!((some.len(), datasets(&some).len()), (16, 2));
}

#[test]
fn official_files() {
    let Some(raw) = shared("longbench/raw/multi_news.head10.jsonl") else { return };
    let dir = tempfile::tempdir().unwrap();
    let line = |dataset: &str, input: &str, answer: &str, classes: &str| {
        format!(
            r#"{{"input":"{input}","context":"c","answers":["{answer}"],"length":5000,"dataset":"{dataset}","all_classes":{classes},"_id":"{dataset}-1"}}"#
        )
    };
    std::fs::create_dir(dir.path().join("data")).unwrap();
    std::fs::copy(&raw, dir.path().join("data/multi_news.jsonl")).unwrap();
    std::fs::write(
        dir.path().join("trec.jsonl"),
        line("trec", "Question: Who?\\nType:", "Person", "[\"Person\",\"City\"]"),
    )
    .unwrap();
    let source = Source::folder(dir.path(), "test");
    let all = read(&LongBenchV1::default(), &source).unwrap();
    assert_eq!((all.len(), source.opened_files().len()), (11, 2));
    assert_eq!((all[0].meta["length"].as_u64(), &all[0].meta["words"]), (Some(2099), &"0-4k".into()));
    let trec = &all[10];
    assert_eq!(
        (trec.meta["words"].as_str(), trec.meta["all_classes"].as_array().unwrap().len()),
        (Some("4-8k"), 2)
    );
    let task = LongBenchV1::default();
    assert_eq!(task.extract(trec, "\n\nPerson\nQuestion: What").text, "Person");
    assert_eq!(task.extract(&all[0], "One.\nTwo. ").text, "One.\nTwo.");
    let error = read(&with(&[("dataset", "trec,samsum")]).unwrap(), &source).unwrap_err();
    assert!(error.message.ends_with("has no samsum.jsonl"), "{error}");
    assert!(read(&LongBenchV1::default(), &Source::folder(dir.path(), "train")).is_err());
    for (text, what) in [
        (line("trec", "q", "Person", "null"), "`all_classes` is no list"),
        (line("lsht", "q", "x", "null"), "data set `lsht` is none of those known"),
        (line("trec", "", "Person", "[\"Person\"]"), "`input` is empty"),
        (line("trec", "q", "x", "[]").replace("[\"x\"]", "[]"), "`answers` is empty"),
        ("{\"input\":".into(), "trec.jsonl, line 1: not JSON"),
    ] {
        std::fs::write(dir.path().join("trec.jsonl"), text).unwrap();
        let error = read(&with(&[("dataset", "trec")]).unwrap(), &source).unwrap_err();
        assert!(error.message.contains(what), "{error}");
    }
    assert!(with(&[("dataset", "lsht")]).unwrap_err().help.contains("narrativeqa, qasper"));
}

#[test]
fn code_keeps_its_indentation_and_longbench_e_has_files_of_its_own() {
    let dir = tempfile::tempdir().unwrap();
    let line = |dataset: &str, input: &str, words: u32| {
        format!(
            r#"{{"input":"{input}","context":"def f():\n","answers":["    return 1"],"length":{words},"dataset":"{dataset}","all_classes":null,"_id":"{words}"}}"#
        )
    };
    let write = |name: &str, text: String| std::fs::write(dir.path().join(name), text).unwrap();
    write("lcc.jsonl", line("lcc", "", 1000));
    write(
        "lcc_e.jsonl",
        [line("lcc_e", "", 3999), line("lcc_e", "", 4000), line("lcc_e", "", 8000)].join("\n"),
    );
    write("repobench-p_e.jsonl", line("repobench-p", "import f\\n", 9));
    let task = LongBenchV1::default();
    let even = read(&task, &Source::folder(dir.path(), "e")).unwrap();
    let words: Vec<_> = even.iter().map(|e| e.meta["words"].as_str().unwrap()).collect();
    assert_eq!((words, datasets(&even).len()), (vec!["0-4k", "4-8k", "8k+", "0-4k"], 2));
    let all = read(&task, &Source::folder(dir.path(), "test")).unwrap();
    assert_eq!((all.len(), all[0].instruction.as_str()), (1, "Write the next line."));
    let (text, rule) = ("\n    return 1\n}", "whole");
    let found = task.extract(&all[0], text);
    assert_eq!((found.text.as_str(), found.rule.as_str()), (text, rule));
    assert_eq!(task.extract(&all[0], " \n").rule, "");
    assert!(task.prompt(&all[0]).unwrap().instruction.ends_with("nothing else."));
    assert!(task.prompt(&even[3]).unwrap().instruction.ends_with("import f\n"));
    assert_eq!(
        with(&[("dataset", "lcc")]).unwrap().info().metrics,
        ["longbench_score", "code_sim_score", "code_sim_score@compat"]
    );
    let error =
        read(&with(&[("dataset", "lcc,qasper")]).unwrap(), &Source::folder(dir.path(), "e")).unwrap_err();
    assert!(error.message.ends_with("has no qasper_e.jsonl"), "{error}");
    write("repobench-p.jsonl", line("repobench-p", "", 9));
    let error = read(&with(&[("dataset", "repobench-p")]).unwrap(), &Source::folder(dir.path(), "test"));
    assert!(error.unwrap_err().message.contains("`input` is empty"));
}

#[test]
fn official_prompts() {
    let Some(folder) = shared("longbench") else { return };
    let templates: serde_json::Map<String, serde_json::Value> =
        serde_json::from_reader(std::fs::File::open(folder.join("raw/dataset2prompt.json")).unwrap())
            .unwrap();
    let task = with(&[("prompt", "official")]).unwrap();
    let all = read(&task, &Source::folder(&folder, "test")).unwrap();
    let mut few_shot = all[0].clone();
    for e in &all {
        let name = e.meta["dataset"].as_str().unwrap();
        let text = templates[name].as_str().unwrap();
        let expected = text.replace("{input}", &e.instruction).replace("{context}", &e.context);
        let prompt = task.prompt(e).unwrap();
        assert!(prompt.render() == expected, "{}", e.id);
        assert_eq!((prompt.style.as_str(), prompt.chat), ("official", true));
    }
    few_shot.instruction = "Dialogue: {context}\nSummary: ".into();
    for (name, chat, stop, tokens) in [
        ("samsum", false, 1, 128),
        ("trec", false, 0, 64),
        ("triviaqa", false, 0, 32),
        ("passage_count", true, 0, 32),
        ("lcc", false, 0, 64),
        ("repobench-p", false, 0, 64),
    ] {
        few_shot.meta.insert("dataset".into(), name.into());
        let prompt = task.prompt(&few_shot).unwrap();
        assert_eq!((prompt.chat, prompt.stop.len(), prompt.max_new_tokens), (chat, stop, tokens), "{name}");
        let ends = match name {
            "passage_count" => "answer is: ",
            "lcc" => "Next line of code:\n",
            "repobench-p" => "{context}\nSummary: Next line of code:\n",
            _ => "{context}\nSummary: ",
        };
        assert!(prompt.render().ends_with(ends), "{name}");
    }
}
