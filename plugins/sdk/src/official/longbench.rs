//! LongBench v1's prompts: `dataset2prompt.json` and `dataset2maxlen.json`.

use super::{OFFICIAL, Template, Wording};
use crate::{Error, Prompt, Result, Source};
use std::collections::BTreeMap;

const PROMPTS: &str = "dataset2prompt.json";
const LENGTHS: &str = "dataset2maxlen.json";

/// Few-shot and code prompts, which the official script does not put into a chat template.
const RAW: [&str; 6] = ["trec", "triviaqa", "samsum", "lsht", "lcc", "repobench-p"];

/// The official prompts of LongBench's data sets.
#[derive(Debug, Clone)]
pub struct LongBench {
    templates: BTreeMap<String, String>,
    lengths: BTreeMap<String, usize>,
}

impl LongBench {
    /// Reads the two files.
    ///
    /// # Errors
    /// A file that is missing or no table of texts and numbers.
    pub fn read(wording: &Wording, source: &Source) -> Result<Self> {
        Ok(Self { templates: table(wording, source, PROMPTS)?, lengths: table(wording, source, LENGTHS)? })
    }

    /// The prompt of a record of `dataset`. The answer to a dialogue (`samsum`) ends with its first line.
    ///
    /// # Errors
    /// A data set that the files do not have.
    pub fn prompt(&self, dataset: &str, context: &str, input: &str) -> Result<Prompt> {
        let missing = |file| Error::bad_request(format!("{file} has no data set `{dataset}`"));
        let text = self.templates.get(dataset).ok_or_else(|| missing(PROMPTS))?;
        let length = *self.lengths.get(dataset).ok_or_else(|| missing(LENGTHS))?;
        let template = Template::new(text, "{context}", &["{input}"])
            .map_err(|e| e.at(format_args!("{PROMPTS}, {dataset}")))?;
        let mut prompt = template.prompt(OFFICIAL, context, &[("{input}", input)], length);
        prompt.chat = !RAW.contains(&dataset);
        if dataset == "samsum" {
            prompt.stop = vec!["\n".into()];
        }
        Ok(prompt)
    }
}

fn table<T: serde::de::DeserializeOwned>(
    wording: &Wording,
    source: &Source,
    name: &str,
) -> Result<BTreeMap<String, T>> {
    let (text, path) = wording.file(source, name)?;
    serde_json::from_str(&text).map_err(|e| Error::io(format!("{}: {e}", path.display())))
}
