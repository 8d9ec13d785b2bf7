//! A task that panics in the call its option `panic_in` names, in the samples after the first where there are some.

use e2llm_plugin::{
    Example, Examples, Host, OptionInfo, Prediction, Prompt, Result, Source, Task, TaskInfo, TaskOptions,
};

/// The task.
#[derive(Debug, Default)]
pub struct Touchy {
    panic_in: String,
}

e2llm_plugin::export_task! { Touchy, id: "touchy", description: "Panics where it is told to" }

impl Touchy {
    fn touch(&self, place: &str) {
        assert!(self.panic_in != place, "touched in {place}");
    }
}

impl Task for Touchy {
    fn info(&self) -> TaskInfo {
        self.touch("info");
        TaskInfo {
            id: "touchy".into(),
            version: "1".into(),
            description: "Panics where it is told to".into(),
            licence: "none".into(),
            splits: vec!["test".into()],
            default_split: "test".into(),
            metrics: vec!["em_squad".into()],
            primary_metric: "em_squad".into(),
            max_new_tokens: 8,
            options: vec![OptionInfo { name: "panic_in".into(), ..OptionInfo::default() }],
            ..TaskInfo::default()
        }
    }

    fn configure(&mut self, options: &TaskOptions, _host: Host) -> Result<()> {
        self.panic_in = options.text("panic_in").unwrap_or_default();
        self.touch("create");
        Ok(())
    }

    fn open(&self, _source: &Source) -> Result<Examples> {
        self.touch("open");
        let panic_in = self.panic_in.clone();
        Ok(Box::new((1..=3).map(move |i| {
            assert!(!(panic_in == "next" && i == 2), "touched in next");
            Ok(Example {
                id: i.to_string(),
                context: format!("Stone {i} is warm."),
                instruction: "Which stone is warm?".into(),
                references: vec![i.to_string()],
                group: i.to_string(),
                ..Example::default()
            })
        })))
    }

    fn prompt(&self, example: &Example) -> Result<Prompt> {
        if example.id == "2" {
            self.touch("prompt");
        }
        Ok(Prompt::new(example, "{context}\n{instruction}", 8))
    }

    fn next_turn(&self, example: &Example, _response: &str, _turn: u32) -> Result<Option<Prompt>> {
        if example.id == "2" {
            self.touch("next_turn");
        }
        Ok(None)
    }

    fn extract(&self, example: &Example, response: &str) -> Prediction {
        if example.id == "2" {
            self.touch("extract");
        }
        Prediction { text: response.trim().to_owned(), rule: "trimmed".into() }
    }
}

impl Drop for Touchy {
    fn drop(&mut self) {
        self.touch("destroy");
    }
}
