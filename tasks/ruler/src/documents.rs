//! `qa_1` and `qa_2`: a question's own documents among others, from SQuAD's or HotpotQA's file.

use crate::made::Made;
use crate::subtasks::Files;
use e2llm_plugin::haystack::Rng;
use e2llm_plugin::record::Record;
use e2llm_plugin::{Error, Result, Source};
use std::collections::BTreeMap;

/// A question with the numbers of its documents.
#[derive(Debug)]
struct Question {
    text: String,
    answers: Vec<String>,
    own: Vec<usize>,
    /// Others of the same article.
    near: Vec<usize>,
}

/// All questions and documents of a file.
#[derive(Debug, Default)]
pub(crate) struct Documents {
    texts: Vec<String>,
    numbers: BTreeMap<String, usize>,
    questions: Vec<Question>,
}

impl Documents {
    /// Reads the file from the data folder.
    ///
    /// # Errors
    /// A file that is missing, named with where it belongs; one of another format.
    pub(crate) fn read(files: Files, subtask: &str, source: &Source) -> Result<Self> {
        let [name, other] = files.names();
        let missing = |place: String| {
            Err(Error::io(format!("{subtask} needs {name} (or {other}), which is not {place}")).with_help(
                format!("put it into the task's data folder: --data ruler=FOLDER with FOLDER/{name}"),
            ))
        };
        let Some(folder) = &source.folder else { return missing("part of the program".into()) };
        let Ok(path) = source.locate(&[name, other]) else {
            return missing(format!("in {}", folder.display()));
        };
        let record = Record::open(&path)?;
        let mut all = Self::default();
        match files {
            Files::Squad => all.squad(&record)?,
            Files::Hotpot => all.hotpot(&record)?,
        }
        if all.questions.is_empty() {
            return Err(record.error("has no question with an answer"));
        }
        Ok(all)
    }

    /// How many questions there are.
    pub(crate) fn questions(&self) -> usize {
        self.questions.len()
    }

    /// Documents that question `i` must have, and those there are.
    pub(crate) fn range(&self, i: usize) -> (usize, usize) {
        (self.questions[i].own.len(), self.texts.len())
    }

    fn number(&mut self, text: String) -> usize {
        let next = self.texts.len();
        *self.numbers.entry(text.clone()).or_insert_with(|| {
            self.texts.push(text);
            next
        })
    }

    /// `{"data":[{"paragraphs":[{"context","qas":[{"question","answers":[{"text"}],"is_impossible"}]}]}]}`.
    fn squad(&mut self, record: &Record) -> Result<()> {
        for (a, article) in record.list("data")?.iter().enumerate() {
            let article = record.part(format_args!("data[{a}]"), article);
            let mut near = Vec::new();
            let first = self.questions.len();
            for (p, paragraph) in article.list("paragraphs")?.iter().enumerate() {
                let paragraph = article.part(format_args!("paragraphs[{p}]"), paragraph);
                let own = self.number(paragraph.text("context")?.to_owned());
                near.push(own);
                for (q, qa) in paragraph.list("qas")?.iter().enumerate() {
                    let qa = paragraph.part(format_args!("qas[{q}]"), qa);
                    let mut answers = Vec::new();
                    for (n, answer) in qa.list("answers")?.iter().enumerate() {
                        answers.push(qa.part(format_args!("answers[{n}]"), answer).text("text")?.to_owned());
                    }
                    // of SQuAD 2.0: questions that the text does not answer
                    if !answers.is_empty() {
                        let text = qa.text("question")?.trim().to_owned();
                        self.questions.push(Question { text, answers, own: vec![own], near: Vec::new() });
                    }
                }
            }
            for question in &mut self.questions[first..] {
                question.near = near.iter().copied().filter(|d| !question.own.contains(d)).collect();
            }
        }
        Ok(())
    }

    /// `[{"question","answer","context":[[title,[sentence,...]],...]}]`.
    fn hotpot(&mut self, record: &Record) -> Result<()> {
        let Some(items) = record.value.as_array() else {
            return Err(record.error("is no list of questions"));
        };
        for (i, item) in items.iter().enumerate() {
            let item = record.part(format_args!("[{i}]"), item);
            let mut own = Vec::new();
            for (n, document) in item.list("context")?.iter().enumerate() {
                let wrong = || item.error(format!("context[{n}] is no pair of title and sentences"));
                let (title, sentences) =
                    (document.get(0).and_then(|t| t.as_str()), document.get(1).and_then(|s| s.as_array()));
                let (Some(title), Some(sentences)) = (title, sentences) else { return Err(wrong()) };
                let text: Option<String> = sentences.iter().map(|s| s.as_str()).collect();
                let number = self.number(format!("{title}\n{}", text.ok_or_else(wrong)?));
                own.push(number);
            }
            let (text, answers) =
                (item.text("question")?.trim().to_owned(), vec![item.text("answer")?.to_owned()]);
            self.questions.push(Question { text, answers, own, near: Vec::new() });
        }
        Ok(())
    }

    /// Question `i` with `n` documents: its own, then those of the same article, then any.
    pub(crate) fn make(&self, i: usize, n: usize, mut rng: Rng) -> Made {
        let question = &self.questions[i];
        let mut near = question.near.clone();
        rng.shuffle(&mut near);
        let known = [question.own.as_slice(), &near].concat();
        let mut others: Vec<_> = (0..self.texts.len()).filter(|d| !known.contains(d)).collect();
        rng.shuffle(&mut others);
        let mut chosen = [known, others].concat();
        chosen.truncate(n);
        rng.shuffle(&mut chosen);
        let documents: Vec<_> = chosen
            .iter()
            .enumerate()
            .map(|(n, d)| format!("Document {}:\n{}", n + 1, self.texts[*d]))
            .collect();
        Made {
            context: documents.join("\n\n"),
            instruction: format!(
                "Answer the question from the documents with a few words, and nothing else.\n\nQuestion: {}",
                question.text
            ),
            answer_prefix: "Answer:".into(),
            references: question.answers.clone(),
            evidence: question.own.iter().map(|d| self.texts[*d].clone()).collect(),
        }
    }
}
