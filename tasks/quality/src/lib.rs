//! QuALITY: four-choice questions about stories and essays of some 5,000 words (Pang et al., NAACL 2022).

mod html;
mod official;

use e2llm_plugin::choice;
use e2llm_plugin::official::{SCROLLS, Wording, ZEROSCROLLS, ZeroScrolls, scrolls};
use e2llm_plugin::source::{PLAIN, examples};
use e2llm_plugin::{
    Error, Example, Examples, FileFormat, Host, OptionInfo, OutputKind, Prediction, Prompt, Result, Source,
    Task, TaskInfo, TaskOptions,
};

const SAMPLE: &str = include_str!("../sample/sample.jsonl");

/// The plain format, and the official files as they are unpacked. Of a release, the HTML-stripped form is the one
/// that published numbers are about.
const FILES: [&str; 4] = [
    PLAIN,
    "QuALITY.v1.0.1.htmlstripped.{split}",
    "QuALITY.v1.0.htmlstripped.{split}",
    "QuALITY.v0.9.htmlstripped.{split}",
];

const TEMPLATE: &str = "Read this text; a question about it follows.\n\n{context}\n\n{instruction}";

const MAX_NEW_TOKENS: usize = 32;

/// Of an answer in ZeroSCROLLS' style.
const ZEROSCROLLS_TOKENS: usize = 10;

const STYLES: [&str; 2] = [SCROLLS, ZEROSCROLLS];

/// By which a metric knows how to read a response: strictly, or as the letter of the option chosen by likelihood.
const PROTOCOLS: [&str; 2] = ["quality", "letter"];

/// The task.
#[derive(Debug, Default)]
pub struct Quality {
    wording: Wording,
    /// By likelihood of the options' texts.
    output: OutputKind,
}

e2llm_plugin::export_task! {
    Quality, id: "quality", description: "Answers four-choice questions about stories"
}

impl Task for Quality {
    fn info(&self) -> TaskInfo {
        TaskInfo {
            id: "quality".into(),
            version: "1".into(),
            description:
                "Answers four-choice questions about stories and essays that were written to need a \
                          reading of the whole text"
                    .into(),
            licence: "none named for the questions; the texts as their records' field `license` says".into(),
            citation: "Pang et al., QuALITY: Question Answering with Long Input Texts, Yes!, NAACL 2022, \
                       https://arxiv.org/abs/2112.08608"
                .into(),
            splits: ["train", "validation", "test"].map(Into::into).into(),
            default_split: "validation".into(),
            metrics: [
                "accuracy@official",
                "accuracy@lenient",
                "accuracy@compensated",
                "em@scrolls",
                "n_null",
            ]
            .map(Into::into)
            .into(),
            primary_metric: "accuracy@official".into(),
            max_new_tokens: MAX_NEW_TOKENS,
            formats: FILES[1..]
                .iter()
                .map(|pattern| FileFormat {
                    pattern: (*pattern).into(),
                    description: "the official file, one article a line; its test split has no answers"
                        .into(),
                })
                .collect(),
            output: self.output,
            options: vec![
                Wording::option(&STYLES),
                OptionInfo {
                    name: "output".into(),
                    default: "generate".into(),
                    help: "`generate` an answer, or `choose` the option whose text is most likely, or most likely for \
                           its length: `choose-normalised`"
                        .into(),
                },
            ],
            slices: vec!["difficult".into()],
        }
    }

    fn configure(&mut self, options: &TaskOptions, _: Host) -> Result<()> {
        options.only(&self.info().options)?;
        self.wording = Wording::read(options, &STYLES)?;
        self.output = match options.text("output").as_deref() {
            None | Some("generate") => OutputKind::Generate,
            Some("choose") => OutputKind::Choose,
            Some("choose-normalised") => OutputKind::ChooseNormalised,
            Some(other) => {
                return Err(Error::option("output", format!("no output `{other}`"))
                    .with_help("it is `generate`, `choose` or `choose-normalised`"));
            }
        };
        Ok(())
    }

    fn open(&self, source: &Source) -> Result<Examples> {
        let protocol = PROTOCOLS[usize::from(self.output.is_choice())];
        Ok(examples(source.records(&FILES, SAMPLE)?, move |record| {
            let found = if official::is_article(record) {
                official::article(record)?
            } else if official::is_columns(record) {
                official::columns(record)?
            } else if ZeroScrolls::is_record(record) {
                vec![official::zeroscrolls(record)?]
            } else {
                vec![record.plain(&["article_id"])?]
            };
            found.into_iter().map(|example| choice::complete(record, example, protocol)).collect()
        }))
    }

    fn prompt(&self, example: &Example) -> Result<Prompt> {
        let mut prompt = Prompt::new(example, TEMPLATE, MAX_NEW_TOKENS);
        if self.wording.is(SCROLLS) {
            prompt = scrolls(example, MAX_NEW_TOKENS);
        } else if self.wording.is(ZEROSCROLLS) {
            prompt = ZeroScrolls::prompt(example, ZEROSCROLLS_TOKENS)?;
        } else {
            let reply = match self.output {
                OutputKind::Generate => "the letter of your choice in parentheses",
                OutputKind::Choose | OutputKind::ChooseNormalised => "the text of your choice",
            };
            prompt.instruction = format!(
                "Choose the right answer to a question about the text.\n\n{}\n\nReply with {reply} and nothing else.",
                example.instruction
            );
        }
        if self.output.is_choice() {
            prompt.choices = choice::options(example);
        }
        Ok(prompt)
    }

    /// A leading letter, then `answer is (X)`, then the exact text of an option; of a chosen option, its letter.
    fn extract(&self, example: &Example, response: &str) -> Prediction {
        let options = choice::options(example);
        if self.output.is_choice() {
            let chosen = ('A'..).zip(&options).find(|(_, option)| *option == response);
            return chosen.map_or_else(Prediction::default, |(letter, _)| Prediction {
                text: letter.into(),
                rule: "likelihood".into(),
            });
        }
        choice::strict(response, &options).into()
    }
}
