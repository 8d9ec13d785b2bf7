use super::*;
use crate::failure::shown;
use e2llm_plugin::{Example, OutputKind, Source};
use std::fs;

const GOOD: &str = r#"[task]
id = "mine"
version = "1"
description = "d"
metrics = ["f1_squad"]
slices = ["level"]

[source]
files = ["{split}.jsonl", "{split}.csv", "{split}.tsv"]

[fields]
id = "key"
context = "text"
references = ["answer", "more.answers"]
group = "more.document"
meta = { level = "more.level" }

[prompt]
instruction = """
Who is {{ who }}?
Answer shortly."""
max_new_tokens = 8
"#;

fn read(text: &str) -> Result<Declared> {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("t.toml");
    fs::write(&path, text).unwrap();
    Declared::read(&path)
}

/// The examples that a file makes of data.
fn examples(text: &str, file: &str, data: &str) -> e2llm_plugin::Result<Vec<Example>> {
    let dir = tempfile::tempdir().unwrap();
    fs::write(dir.path().join(file), data).unwrap();
    let client = read(text).unwrap().client().unwrap();
    let stream = client.open(&Source::folder(dir.path(), "test"))?;
    assert_eq!(stream.files, [dir.path().join(file)]);
    stream.collect()
}

#[test]
fn the_shipped_files_are_sound_and_the_schema_is_theirs() {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("../configs/tasks");
    let mut n = 0;
    for entry in fs::read_dir(&folder).unwrap() {
        let path = entry.unwrap().path();
        if path.extension().is_some_and(|e| e == "toml") {
            assert!(is_declared(&path), "{}", path.display());
            Declared::read(&path).unwrap().client().unwrap();
            n += 1;
        }
    }
    assert!(n >= 2);
    let schema = schemars::schema_for!(TaskSpec);
    let made = serde_json::to_string_pretty(&schema).unwrap() + "\n";
    let path = folder.join("task.schema.json");
    if std::env::var_os("E2LLM_UPDATE").is_some() {
        fs::write(&path, &made).unwrap();
    }
    let kept = fs::read_to_string(&path).unwrap_or_default();
    assert!(kept == made, "configs/tasks/task.schema.json is stale: run with E2LLM_UPDATE=1 and commit it");
}

#[test]
fn records_become_examples_and_prompts() {
    let data = r#"{"key": 7, "text": "Ann is a baker.", "answer": "a baker", "who": "Ann", "more": {"answers": ["baker"], "document": "d1", "level": "easy"}}"#;
    let all = examples(GOOD, "test.jsonl", &format!("{data}\n")).unwrap();
    let e = &all[0];
    assert_eq!((e.id.as_str(), e.context.as_str(), e.group.as_str()), ("7", "Ann is a baker.", "d1"));
    assert_eq!((e.instruction.as_str(), e.references.len()), ("Who is Ann?\nAnswer shortly.", 2));
    assert_eq!(e.meta["level"], "easy");
    let client = read(GOOD).unwrap().client().unwrap();
    let prompt = client.prompt(e).unwrap();
    assert_eq!(prompt.template, "{context}\n\n{instruction}");
    assert_eq!((prompt.style.as_str(), prompt.max_new_tokens, prompt.chat), ("declared", 8, true));
    assert_eq!(client.extract(e, "  a baker \n").unwrap().text, "a baker");
    let info = client.info().unwrap();
    assert_eq!((info.default_split.as_str(), info.primary_metric.as_str()), ("test", "f1_squad"));
    assert_eq!(info.output, OutputKind::Generate);
}

#[test]
fn columns_are_read_by_their_names() {
    let text = GOOD.replace("more.", "").replace(", \"answers\"", "").replace("slices = [\"level\"]\n", "");
    let csv = "\u{feff}key,text,answer,who,document\n1,\"One, and\ntwo\",b,Ann,d\n2,x,c,Bob,d\n";
    for (file, data) in
        [("test.csv", csv.to_owned()), ("test.tsv", csv.replace("One, and", "One; and").replace(',', "\t"))]
    {
        let all = examples(&text, file, &data).unwrap();
        assert_eq!(all.len(), 2);
        assert_eq!((all[0].id.as_str(), all[1].instruction.as_str()), ("1", "Who is Bob?\nAnswer shortly."));
        assert!(all[0].context.contains("and\ntwo"));
    }
    let error = examples(&text, "test.csv", "key,text,answer,who,document\n1,2\n").unwrap_err();
    assert!(error.message.contains("test.csv") && error.message.contains("line: 2"), "{error}");
}

const CHOICE: &str = r#"[task]
id = "c"
version = "1"
description = "d"
metrics = ["accuracy@official"]

[source]
files = ["q.json"]
each = "questions"

[fields]
context = "text"
references = ["item.gold"]
options = "item.options"
gold = "number_from1"

[prompt]
instruction = "{{ item.question }}\n{{ lettered_options }}"
max_new_tokens = 4

[answer]
extract = "letter"
"#;

#[test]
fn items_of_a_record_are_samples_and_options_get_letters() {
    let data = r#"[{"text": "t", "questions": [
        {"question": "Q1?", "options": ["A. x", "B. y"], "gold": 2},
        {"question": "Q2?", "options": ["x", "B. y"], "gold": 1}]}]"#;
    let all = examples(CHOICE, "q.json", data).unwrap();
    assert_eq!(all[0].instruction, "Q1?\n(A) x\n(B) y");
    assert_eq!(all[1].instruction, "Q2?\n(A) x\n(B) B. y", "letters are taken off where all have theirs");
    assert_eq!(
        (all[0].references.as_slice(), all[1].references.as_slice()),
        (&["B".into()][..], &["A".into()][..])
    );
    assert_eq!(all[0].group, all[1].group);
    let client = read(CHOICE).unwrap().client().unwrap();
    let found = client.extract(&all[0], "(B) y").unwrap();
    assert_eq!((found.text.as_str(), found.rule.as_str()), ("B", "leading"));
    assert!(client.prompt(&all[0]).unwrap().choices.is_empty());
    let choose = CHOICE.replace("[answer]", "[answer]\nchoose = true");
    let client = read(&choose).unwrap().client().unwrap();
    assert_eq!(client.prompt(&all[0]).unwrap().choices, ["A", "B"]);
    let error = examples(CHOICE, "q.json", &data.replace("\"gold\": 2", "\"gold\": 3")).unwrap_err();
    assert!(error.message.contains("item 1: the answer `3` is no number"), "{error}");
    let error = examples(CHOICE, "q.json", r#"[{"text": "t"}]"#).unwrap_err();
    assert!(error.message.contains("`questions` (source.each) is no list"), "{error}");
}

#[test]
fn answers_are_read_as_declared() {
    let answer = |answer: &str, response: &str| {
        let client = read(&format!("{GOOD}\n[answer]\n{answer}\n")).unwrap().client().unwrap();
        let found = client.extract(&Example::default(), response).unwrap();
        (found.text, found.rule)
    };
    let pair = |a: &str, b: &str| (a.to_owned(), b.to_owned());
    assert_eq!(answer("extract = \"first_line\"", "\n\n yes \nno"), pair("yes", "first-line"));
    let regex = "extract = \"regex\"\npattern = 'answer is (\\w+)'";
    assert_eq!(answer(regex, "So the answer is blue."), pair("blue", "regex"));
    assert_eq!(answer(regex, "I do not know"), pair("", ""));
    assert_eq!(answer("extract = \"regex\"\npattern = '[0-9]+'", "it is 42."), pair("42", "regex"));
}

#[test]
fn broken_records_are_named_with_file_line_and_field() {
    for (data, what) in [
        (
            r#"{"key": 1, "answer": "a", "who": "x", "more": {"document": "d"}}"#,
            "line 1: field `text` (fields.context) is missing",
        ),
        (r#"{"key": 1, "text": null, "answer": "a"}"#, "field `text` (fields.context) is null"),
        (
            r#"{"key": 1, "text": "t", "who": "x"}"#,
            "no reference: `answer`, `more.answers` (fields.references)",
        ),
        (
            r#"{"key": 1, "text": "t", "answer": "a"}"#,
            "prompt.instruction cannot be rendered: undefined value",
        ),
        (
            r#"{"key": 1, "text": "t", "answer": {}, "who": "x"}"#,
            "field `answer` (fields.references) is no text",
        ),
        ("{", "test.jsonl"),
    ] {
        let error = examples(GOOD, "test.jsonl", &format!("{data}\n")).unwrap_err();
        assert!(error.message.contains(what), "{} lacks {what}", error.message);
    }
    assert!(examples(GOOD, "test.jsonl", "").unwrap_err().message.contains("is empty"));
}

#[test]
fn mistakes_are_shown_where_they_are() {
    let changed = |from: &str, to: &str| {
        assert!(GOOD.contains(from));
        GOOD.replace(from, to)
    };
    for (text, what, place) in [
        (changed("version = ", "verson = "), "did you mean `version`?", "t.toml:3:1"),
        (changed("id = \"mine\"", "id = \"My Task\""), "`My Task` cannot be a task's id", "t.toml:2:6"),
        (changed("metrics = [\"f1_squad\"]", "metrics = []"), "task.metrics is empty", "t.toml:2:6"),
        (changed("slices = [\"level\"]", "slices = [\"levle\"]"), "did you mean `level`?", "t.toml:6:11"),
        (changed("= 8", "= \"x\""), "invalid type", "t.toml:22:18"),
        (changed("= 8", "= 0"), "max_new_tokens must be at least 1", "t.toml:22:18"),
        (changed("Answer shortly.", "{% if %}"), "prompt.instruction:", "t.toml:21:1"),
        (
            changed("max_new", "template = \"{{ instruction }}\"\nmax_new"),
            "{{ context }} 0 times",
            "t.toml:22:12",
        ),
        (
            changed("max_new", "template = \"{{ contxt }}\"\nmax_new"),
            "`context` and `instruction` only",
            "t.toml:22:12",
        ),
        (GOOD.to_owned() + "\n[answer]\nextract = \"regexp\"\n", "did you mean `regex`?", "t.toml:25:11"),
        (GOOD.to_owned() + "\n[answer]\nextract = \"regex\"\n", "needs a `pattern`", "t.toml:25:11"),
        (
            GOOD.to_owned() + "\n[answer]\nextract = \"regex\"\npattern = \"(\"\n",
            "unclosed group",
            "t.toml:26:11",
        ),
        (GOOD.to_owned() + "\n[answer]\npattern = \"x\"\n", "with extract = \"regex\" only", "t.toml:25:11"),
        (changed("context = \"text\"\n", ""), "missing field `context`", "t.toml:11:1"),
        (
            GOOD.replace("slices", "primary_metric = \"f1_squat\"\nslices"),
            "did you mean `f1_squad`?",
            "t.toml:6:18",
        ),
    ] {
        let shown = shown(&read(&text).unwrap_err());
        assert!(shown.contains(what), "lacks {what}: {shown}");
        assert!(shown.contains(place), "lacks {place}: {shown}");
    }
}

/// A Parquet file of two row groups: text columns, a list of texts, a number and a struct.
fn parquet_file(path: &Path) -> ::parquet::file::metadata::ParquetMetaData {
    use ::parquet::data_type::{ByteArray, ByteArrayType, Int64Type};
    let schema = "message records {
        REQUIRED BYTE_ARRAY text (UTF8);
        OPTIONAL BYTE_ARRAY who;
        OPTIONAL group answer (LIST) { REPEATED group list { OPTIONAL BYTE_ARRAY element (UTF8); } }
        OPTIONAL group more { OPTIONAL INT64 level; }
    }";
    let schema = ::parquet::schema::parser::parse_message_type(schema).unwrap();
    let properties = ::parquet::file::properties::WriterProperties::builder()
        .set_compression(::parquet::basic::Compression::SNAPPY)
        .set_dictionary_enabled(false);
    let file = fs::File::create(path).unwrap();
    let mut writer = ::parquet::file::writer::SerializedFileWriter::new(
        file,
        Arc::new(schema),
        Arc::new(properties.build()),
    )
    .unwrap();
    let texts = |all: &[&str]| all.iter().map(|t| ByteArray::from(*t)).collect::<Vec<_>>();
    for (text, who, answers, level) in [
        (["Ann bakes.", "Ben sings."], "Ann", ["a baker", "baker", "a singer"], 1),
        (["x", "y"], "Zoë", ["a", "b", "c"], 2),
    ] {
        let mut group = writer.next_row_group().unwrap();
        let mut column = group.next_column().unwrap().unwrap();
        column.typed::<ByteArrayType>().write_batch(&texts(&text), None, None).unwrap();
        column.close().unwrap();
        let mut column = group.next_column().unwrap().unwrap();
        column.typed::<ByteArrayType>().write_batch(&texts(&[who, who]), Some(&[1, 1]), None).unwrap();
        column.close().unwrap();
        let mut column = group.next_column().unwrap().unwrap();
        let (levels, repeats) = (Some(&[3, 3, 3][..]), Some(&[0, 1, 0][..]));
        column.typed::<ByteArrayType>().write_batch(&texts(&answers), levels, repeats).unwrap();
        column.close().unwrap();
        let mut column = group.next_column().unwrap().unwrap();
        column.typed::<Int64Type>().write_batch(&[level], Some(&[2, 0]), None).unwrap();
        column.close().unwrap();
        group.close().unwrap();
    }
    writer.close().unwrap()
}

#[test]
fn parquet_rows_become_examples_and_mistakes_name_row_and_column() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("test.parquet");
    let metadata = parquet_file(&path);
    let spec = GOOD
        .replace("{split}.tsv", "{split}.parquet")
        .replace("id = \"key\"\n", "")
        .replace("group = \"more.document\"\n", "");
    let read_all = |spec: &str| -> e2llm_plugin::Result<Vec<Example>> {
        read(spec).unwrap().client().unwrap().open(&Source::folder(dir.path(), "test"))?.collect()
    };
    let all = read_all(&spec).unwrap();
    let contexts: Vec<_> = all.iter().map(|e| e.context.as_str()).collect();
    assert_eq!(contexts, ["Ann bakes.", "Ben sings.", "x", "y"]);
    assert_eq!(
        (all[0].references.as_slice(), all[0].id.as_str()),
        (&["a baker".to_owned(), "baker".into()][..], "1")
    );
    assert_eq!(
        (all[3].instruction.as_str(), &all[3].references[0]),
        ("Who is Zoë?\nAnswer shortly.", &"c".to_owned())
    );
    assert_eq!((&all[0].meta["level"], all[1].meta.get("level")), (&1.into(), None));

    for (from, to, message) in [
        ("context = \"text\"", "context = \"texts\"", "has no column `texts` (fields.context)"),
        ("[\"answer\", \"more.answers\"]", "[\"gold\"]", "has no column `gold` (fields.references)"),
        ("{{ who }}", "{{ whom }}", "row 1: prompt.instruction cannot be rendered"),
        ("context = \"text\"", "context = \"answer\"", "row 1: field `answer` (fields.context) is no text"),
    ] {
        let error = read_all(&spec.replace(from, to)).unwrap_err();
        assert!(error.message.contains(message), "{error}");
        assert!(error.message.contains("test.parquet"), "{error}");
    }
    let error = read_all(&spec.replace("context = \"text\"", "context = \"texts\"")).unwrap_err();
    assert_eq!(error.help, "did you mean `text`? its columns are: text, who, answer, more");

    // damage in a column of the second row group
    let mut bytes = fs::read(&path).unwrap();
    let at = usize::try_from(metadata.row_group(1).column(2).data_page_offset()).unwrap();
    bytes[at..at + 12].fill(0xff);
    fs::write(&path, &bytes).unwrap();
    let error = read_all(&spec).unwrap_err();
    assert!(error.message.contains("test.parquet, row 3: column `answer`: "), "{error}");
    fs::write(&path, "no Parquet").unwrap();
    assert!(read_all(&spec).unwrap_err().message.contains("test.parquet: "));
    fs::rename(&path, dir.path().join("test.parquet.gz")).unwrap();
    assert!(read_all(&spec).unwrap_err().help.starts_with("unpack it"));
}
