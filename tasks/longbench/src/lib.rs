//! LongBench v1's data sets in English and of code: questions, summaries, few-shot, synthetic and code tasks (Bai et
//! al., ACL 2024). The split `e` is LongBench-E, where lengths are spread evenly.

mod datasets;
mod records;

use e2llm_plugin::official::{Loaded, LongBench, OFFICIAL, Wording};
use e2llm_plugin::source::examples;
use e2llm_plugin::{
    Error, Example, Examples, FileFormat, Host, OptionInfo, Prediction, Prompt, Result, Source, Task,
    TaskInfo, TaskOptions,
};

use datasets::{DATASETS, Dataset, Kind, dataset};

const TEMPLATE: &str = "Read this text; a task follows it.\n\n{context}\n\n{instruction}";

/// The score that LongBench reports for a sample's data set.
const SCORE: &str = "longbench_score";

/// The task.
#[derive(Debug, Default)]
pub struct LongBenchV1 {
    /// Those asked for; none for all that are there.
    chosen: Vec<&'static Dataset>,
    wording: Wording,
    official: Loaded<LongBench>,
}

e2llm_plugin::export_task! {
    LongBenchV1, id: "longbench", description: "LongBench v1 in English: questions, summaries, few-shot, synthetic, code"
}

impl Task for LongBenchV1 {
    fn info(&self) -> TaskInfo {
        let names = DATASETS.map(|d| d.name).join(", ");
        let mut metrics = vec![SCORE.to_owned()];
        if let [only] = self.chosen[..] {
            metrics.extend(only.metrics.iter().map(|m| (*m).to_owned()));
        }
        TaskInfo {
            id: "longbench".into(),
            version: "1".into(),
            description: "Questions, summaries, few-shot, synthetic and code tasks about texts of some 5,000 to 15,000 \
                          words; LongBench's own average is the mean of its data sets, which are slices here"
                .into(),
            licence: "MIT; the texts as their data sets say".into(),
            citation: "Bai et al., LongBench: A Bilingual, Multitask Benchmark for Long Context Understanding, ACL \
                       2024, https://arxiv.org/abs/2308.14508"
                .into(),
            splits: ["test", records::EVEN].map(Into::into).into(),
            default_split: "test".into(),
            metrics,
            primary_metric: SCORE.into(),
            max_new_tokens: DATASETS.iter().map(|d| d.max_new_tokens).max().unwrap_or(0),
            formats: [
                ("{dataset}.jsonl", "the official files, also in a folder data/ (split `test`)"),
                ("{dataset}_e.jsonl", "those of LongBench-E (split `e`)"),
                ("dataset2prompt.json", "the official prompts, for --prompt official"),
                ("dataset2maxlen.json", "their longest answers"),
            ]
            .map(|(pattern, about)| FileFormat { pattern: pattern.into(), description: about.into() })
            .into(),
            options: vec![
                OptionInfo {
                    name: "dataset".into(),
                    default: "all that are there".into(),
                    help: format!("data sets, separated by commas: {names}"),
                },
                Wording::option(&[OFFICIAL]),
                Wording::templates_option(),
            ],
            slices: ["dataset", "words"].map(Into::into).into(),
            ..TaskInfo::default()
        }
    }

    fn configure(&mut self, options: &TaskOptions, _: Host) -> Result<()> {
        options.only(&self.info().options)?;
        self.wording = Wording::read(options, &[OFFICIAL])?;
        for name in options.list::<String>("dataset")?.unwrap_or_default() {
            let known = dataset(&name).filter(|d| d.name == name).ok_or_else(|| {
                Error::option("dataset", format!("no data set `{name}`"))
                    .with_help(format!("they are: {}", DATASETS.map(|d| d.name).join(", ")))
            })?;
            if !self.chosen.iter().any(|d| d.name == name) {
                self.chosen.push(known);
            }
        }
        Ok(())
    }

    fn open(&self, source: &Source) -> Result<Examples> {
        if self.wording.is(OFFICIAL) {
            self.official.set(LongBench::read(&self.wording, source)?);
        }
        let records = match &source.folder {
            None => records::sample(),
            Some(_) => records::of_files(source, &self.chosen)?,
        };
        let chosen: Vec<_> = self.chosen.iter().map(|d| d.name).collect();
        Ok(examples(records, move |record| {
            let (example, dataset) = records::example(record)?;
            let wanted = chosen.is_empty() || chosen.contains(&dataset.name);
            Ok(wanted.then_some(example).into_iter().collect())
        }))
    }

    fn prompt(&self, example: &Example) -> Result<Prompt> {
        let dataset = dataset_of(example)?;
        if self.wording.is(OFFICIAL) {
            return self.official.get()?.prompt(dataset.name, &example.context, &example.instruction);
        }
        let mut prompt = Prompt::new(example, TEMPLATE, dataset.max_new_tokens);
        prompt.instruction = dataset.task.replacen("{input}", &example.instruction, 1);
        Ok(prompt)
    }

    /// The first line of an answer to a few-shot prompt, as LongBench cuts it: models go on with further examples. Code
    /// stays as it is, with its indentation.
    fn extract(&self, example: &Example, response: &str) -> Prediction {
        let (text, rule) = match dataset_of(example).map(|d| d.kind) {
            Ok(Kind::FewShot) => {
                let line = response.trim_start_matches('\n').split('\n').next().unwrap_or_default();
                (line.trim(), "first-line")
            }
            Ok(Kind::Code) if !response.trim().is_empty() => (response, "whole"),
            _ => (response.trim(), "trimmed"),
        };
        Prediction { text: text.to_owned(), rule: if text.is_empty() { "" } else { rule }.into() }
    }
}

fn dataset_of(example: &Example) -> Result<&'static Dataset> {
    let name = example.meta.get("dataset").and_then(|d| d.as_str()).unwrap_or_default();
    dataset(name).ok_or_else(|| Error::bad_request(format!("sample `{}`: no data set `{name}`", example.id)))
}
