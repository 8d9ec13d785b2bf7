//! The data sets of LongBench v1 in English and of code.

/// What a data set is about.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Kind {
    /// Questions with short answers.
    Question,
    /// One long summary.
    Summary,
    /// Few-shot: the text is a list of worked examples.
    FewShot,
    /// Paragraphs to count or to find.
    Synthetic,
    /// Code to go on with.
    Code,
}

/// A data set.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Dataset {
    /// Its name, that of its file.
    pub(crate) name: &'static str,
    pub(crate) kind: Kind,
    /// Longest answer: the official one.
    pub(crate) max_new_tokens: usize,
    /// What is asked, in our own words; `{input}` is the record's question.
    pub(crate) task: &'static str,
    /// What is reported besides the data set's own score.
    pub(crate) metrics: &'static [&'static str],
}

const ANSWER: &str =
    "Answer the question about the text with a few words, and nothing else.\n\nQuestion: {input}";

const F1: &[&str] = &["f1_squad", "em_squad"];
const CODE: &[&str] = &["code_sim_score", "code_sim_score@compat"];
const ROUGE: &[&str] = &["rouge_l_pltrdy", "rouge_gmean"];

const fn question(name: &'static str, max_new_tokens: usize, task: &'static str) -> Dataset {
    Dataset { name, kind: Kind::Question, max_new_tokens, task, metrics: F1 }
}

const fn summary(name: &'static str, task: &'static str) -> Dataset {
    Dataset { name, kind: Kind::Summary, max_new_tokens: 512, task, metrics: ROUGE }
}

const fn code(name: &'static str, task: &'static str) -> Dataset {
    Dataset { name, kind: Kind::Code, max_new_tokens: 64, task, metrics: CODE }
}

/// All of them, in LongBench's order.
pub(crate) const DATASETS: [Dataset; 16] = [
    question("narrativeqa", 128, ANSWER),
    question(
        "qasper",
        128,
        "Answer the question about the article with one phrase or sentence, with yes or no where that is asked, or \
         with the word unanswerable where the article does not say.\n\nQuestion: {input}",
    ),
    question("multifieldqa_en", 64, ANSWER),
    question("hotpotqa", 32, ANSWER),
    question("2wikimqa", 32, ANSWER),
    question("musique", 32, ANSWER),
    summary("gov_report", "Write a summary of the report, about one page long."),
    summary(
        "qmsum",
        "Answer the query from what was said in the meeting, in one coherent paragraph.\n\nQuery: {input}",
    ),
    summary("multi_news", "Write one summary of all these news stories, about one page long."),
    Dataset {
        name: "trec",
        kind: Kind::FewShot,
        max_new_tokens: 64,
        task: "The text lists questions with their types. Name the type of this one in the same words, and nothing \
               else.\n\n{input}",
        metrics: &["classification_score@compat", "classification_score"],
    },
    Dataset {
        name: "triviaqa",
        kind: Kind::FewShot,
        max_new_tokens: 32,
        task: "Answer the question about the last passage as briefly as in the examples, and write nothing \
               else.\n\n{input}",
        metrics: F1,
    },
    Dataset {
        name: "samsum",
        kind: Kind::FewShot,
        max_new_tokens: 128,
        task: "Summarise the last dialogue in a few short sentences, as in the examples.\n\n{input}",
        metrics: ROUGE,
    },
    Dataset {
        name: "passage_count",
        kind: Kind::Synthetic,
        max_new_tokens: 32,
        task: "Some of the paragraphs occur more than once. How many different ones are there? Reply with the number \
               and nothing else.",
        metrics: &["count_score"],
    },
    Dataset {
        name: "passage_retrieval_en",
        kind: Kind::Synthetic,
        max_new_tokens: 32,
        task: "Which of the paragraphs does this summary describe? Reply in the form \"Paragraph 1\", and write \
               nothing else.\n\nSummary: {input}",
        metrics: &["retrieval_score"],
    },
    code(
        "lcc",
        "The text is the beginning of a file of a program. Write the line of code that comes next, and nothing else.",
    ),
    code(
        "repobench-p",
        "The text is code from the files of a project; what follows here is the beginning of another of its files. \
         Write the line of code that comes next in it, and nothing else.\n\n{input}",
    ),
];

/// The data set of a name; records from other copies have a prefix before it, those of LongBench-E `_e` behind it.
pub(crate) fn dataset(name: &str) -> Option<&'static Dataset> {
    let bare = name.rsplit('/').next().unwrap_or(name);
    let bare = bare.strip_suffix("_e").unwrap_or(bare);
    DATASETS.iter().find(|d| d.name == bare)
}
