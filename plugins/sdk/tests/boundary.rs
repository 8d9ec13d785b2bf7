//! A task and a metric called through the C boundary, well-behaved and not.

use e2llm_plugin::client::{MetricClient, Plugin, TaskClient};
use e2llm_plugin::{
    Aggregate, Aggregation, ErrorCode, Example, Examples, Host, Metric, MetricInfo, Prediction, Prompt,
    Result, Row, Scored, Scores, Source, Task, TaskInfo, TaskOptions, Unit, ValueInfo,
};
use std::sync::{Mutex, PoisonError};

/// Panics where its option says so. Its prompts end at what the last opened source says.
#[derive(Default)]
struct Touchy {
    panic_in: String,
    split: Mutex<String>,
}

impl Touchy {
    fn touch(&self, place: &str) {
        assert!(self.panic_in != place, "touched in {place}");
    }
}

impl Task for Touchy {
    fn info(&self) -> TaskInfo {
        self.touch("info");
        TaskInfo { id: "touchy".into(), version: "1".into(), ..TaskInfo::default() }
    }

    fn configure(&mut self, options: &TaskOptions, _host: Host) -> Result<()> {
        self.panic_in = options.text("panic_in").unwrap_or_default();
        self.touch("create");
        Ok(())
    }

    fn open(&self, source: &Source) -> Result<Examples> {
        self.touch("open");
        self.split.lock().unwrap_or_else(PoisonError::into_inner).clone_from(&source.split);
        let poisoned = self.panic_in == "next";
        Ok(Box::new((0..100).map(move |i| {
            assert!(!(poisoned && i == 70), "touched in next");
            let text = format!("example {i}");
            Ok(Example {
                id: i.to_string(),
                context: text,
                references: vec!["x".into()],
                ..Example::default()
            })
        })))
    }

    fn prompt(&self, example: &Example) -> Result<Prompt> {
        self.touch("prompt");
        let stop = vec![self.split.lock().unwrap_or_else(PoisonError::into_inner).clone()];
        Ok(Prompt { stop, ..Prompt::new(example, "{context}{instruction}", 8) })
    }

    fn next_turn(&self, _: &Example, _: &str, _: u32) -> Result<Option<Prompt>> {
        self.touch("next_turn");
        Ok(None)
    }

    fn extract(&self, _: &Example, response: &str) -> Prediction {
        self.touch("extract");
        Prediction { text: response.into(), rule: "all".into() }
    }
}

impl Drop for Touchy {
    fn drop(&mut self) {
        self.touch("destroy");
    }
}

e2llm_plugin::export_task! { Touchy, id: "touchy", description: "for tests" }

fn plugin_and_options(panic_in: &str) -> Result<(Plugin, TaskOptions)> {
    // SAFETY: the static above.
    let plugin = unsafe { Plugin::from_raw(e2llm_plugin_entry()) }?;
    let mut options = TaskOptions::default();
    options.0.insert("panic_in".into(), panic_in.into());
    Ok((plugin, options))
}

fn touchy(panic_in: &str) -> Result<TaskClient> {
    let (plugin, options) = plugin_and_options(panic_in)?;
    TaskClient::create(&plugin, None, &options)
}

#[test]
fn everything_comes_through() {
    let task = touchy("").unwrap();
    assert_eq!(task.info().unwrap().id, "touchy");
    let all: Vec<_> = task.open(&Source::sample()).unwrap().map(|e| e.unwrap()).collect();
    assert_eq!(all.len(), 100);
    assert_eq!(all[99].context, "example 99");
    assert_eq!(task.prompt(&all[3]).unwrap().context, "example 3");
    assert_eq!(task.next_turn(&all[3], "r", 1).unwrap(), None);
    assert_eq!(task.extract(&all[3], "r").unwrap().text, "r");
}

#[test]
fn a_panic_in_any_call_is_an_error_and_the_next_call_meets_a_fresh_instance() {
    assert_eq!(touchy("create").unwrap_err().code, ErrorCode::Panicked);
    let example = Example::default();
    for place in ["info", "open", "next", "prompt", "next_turn", "extract"] {
        let task = touchy(place).unwrap();
        let error = match place {
            "info" => task.info().unwrap_err(),
            "open" => task.open(&Source::sample()).unwrap_err(),
            "next" => task.open(&Source::sample()).unwrap().find_map(|e| e.err()).unwrap(),
            "prompt" => task.prompt(&example).unwrap_err(),
            "next_turn" => task.next_turn(&example, "", 1).unwrap_err(),
            _ => task.extract(&example, "").unwrap_err(),
        };
        assert_eq!(error.code, ErrorCode::Panicked, "{place}");
        assert!(error.message.contains(&format!("touched in {place}")), "{error}");
        let again = task.prompt(&example);
        match place {
            "prompt" => assert!(again.unwrap_err().message.contains("touched in prompt")),
            _ => drop(again.unwrap()),
        }
    }
    drop(touchy("destroy").unwrap()); // swallowed
}

#[test]
fn a_fresh_instance_knows_the_source_and_an_open_stream_goes_on() {
    let task = touchy("extract").unwrap();
    let mut stream = task.open(&Source::sample()).unwrap();
    let before = task.prompt(&Example::default()).unwrap();
    assert_eq!(before.stop, ["sample"]);
    let mut ids = Vec::new();
    for i in 0..100 {
        let example = stream.next().unwrap().unwrap();
        if i % 30 == 5 {
            assert_eq!(task.extract(&example, "").unwrap_err().code, ErrorCode::Panicked);
            assert_eq!(task.prompt(&Example::default()).unwrap(), before);
        }
        ids.push(example.id);
    }
    assert!(stream.next().is_none());
    assert_eq!(ids, (0..100).map(|i| i.to_string()).collect::<Vec<_>>());
}

#[test]
fn an_instance_that_panicked_is_not_called_again() {
    let (plugin, options) = plugin_and_options("info").unwrap();
    let instance = plugin.create(None, &options).unwrap();
    let call = || instance.call::<_, TaskInfo>("info", &()).unwrap_err();
    assert!(call().message.contains("touched in info"));
    assert!(call().message.contains("panicked before"));
}

/// Length of the prediction, and whether it equals the reference.
#[derive(Default)]
struct Equal;

impl Metric for Equal {
    fn info(&self) -> MetricInfo {
        let value = |id: &str, unit, aggregation| ValueInfo {
            id: id.into(),
            description: id.into(),
            unit,
            aggregation,
            higher_is_better: true,
            ..ValueInfo::default()
        };
        MetricInfo {
            id: "equal".into(),
            version: "1".into(),
            description: "equality".into(),
            values: vec![
                value("equal", Unit::Proportion, Aggregation::Mean),
                value("length", Unit::Count, Aggregation::Sum),
            ],
            as_declared: true,
            gold: Scored { prediction: "a".into(), references: vec!["a".into()], ..Scored::default() },
        }
    }

    fn score(&self, sample: &Scored) -> Result<Scores> {
        if sample.references.is_empty() {
            return Err(e2llm_plugin::Error::bad_request("no reference"));
        }
        let equal = sample.references.contains(&sample.prediction);
        let length = sample.prediction.len() as f64;
        Ok([("equal".to_owned(), f64::from(equal)), ("length".to_owned(), length)].into_iter().collect())
    }
}

/// Says that it aggregates as declared, but a mean is the largest value.
#[derive(Default)]
struct Liar;

impl Metric for Liar {
    fn info(&self) -> MetricInfo {
        Equal.info()
    }

    fn score(&self, sample: &Scored) -> Result<Scores> {
        Equal.score(sample)
    }

    fn aggregate(&self, rows: &mut dyn Iterator<Item = Row>) -> Result<Aggregate> {
        let rows: Vec<Row> = rows.collect();
        let best = rows.iter().filter_map(|row| row.scores.get("equal").copied()).fold(0.0, f64::max);
        let mut all = e2llm_plugin::aggregate_values(&self.info().values, rows);
        all.insert("equal".into(), best);
        Ok(all)
    }
}

/// A second plugin needs a module of its own: each exports under the same names.
mod equal {
    use e2llm_plugin::__private::abi;

    pub(crate) extern "C" fn entry() -> *const abi::E2Plugin {
        &PLUGIN
    }

    pub(crate) extern "C" fn liar() -> *const abi::E2Plugin {
        &LIAR
    }

    static PLUGIN: abi::E2Plugin = EQUAL;
    static LIAR: abi::E2Plugin =
        abi::E2Plugin { create: Some(e2llm_plugin::serve::create_metric::<super::Liar>), ..EQUAL };

    const EQUAL: abi::E2Plugin = abi::E2Plugin {
        magic: abi::E2_MAGIC,
        struct_size: size_of::<abi::E2Plugin>() as u32,
        abi_major: abi::E2_ABI_MAJOR,
        abi_minor: abi::E2_ABI_MINOR,
        kind: abi::E2_KIND_METRIC,
        flags: 0, // not reentrant: calls are serialised
        id: abi::E2Str::new("equal"),
        version: abi::E2Str::new("1"),
        description: abi::E2Str::new("equality"),
        sdk: abi::E2Str::new("test"),
        target: abi::E2Str::new("test"),
        create: Some(e2llm_plugin::serve::create_metric::<super::Equal>),
        call: Some(e2llm_plugin::serve::call),
        destroy: Some(e2llm_plugin::serve::destroy),
    };
}

#[test]
fn a_metric_conforms() {
    e2llm_plugin::testing::assert_conforms(equal::entry);
    // SAFETY: the static above.
    let plugin = unsafe { Plugin::from_raw(equal::entry()) }.unwrap();
    let metric = MetricClient::create(&plugin, None).unwrap();
    let rows = vec![Row { scores: metric.score(&metric.info().unwrap().gold).unwrap() }, Row::default()];
    assert_eq!(metric.aggregate(rows).unwrap()["equal"], 0.5);
}

#[test]
fn a_metric_that_aggregates_otherwise_than_it_says_does_not_conform() {
    // SAFETY: the static above.
    let plugin = unsafe { Plugin::from_raw(equal::liar()) }.unwrap();
    let report = e2llm_plugin::testing::verify(&plugin);
    let failed: Vec<_> = report.checks.iter().filter(|c| c.failure.is_some()).map(|c| c.name).collect();
    assert_eq!(failed, ["what is aggregated as declared is what is declared"], "{report}");
}
