//! The thirteen tasks, as RULER's `synthetic.yaml` sets them up.

use crate::words::Kind;

/// What the needles lie in.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Hay {
    /// One line over and over.
    Repeat,
    /// Connected text.
    Essay,
    /// Further needles.
    Needles,
}

/// What is generated.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum What {
    /// Needles: what they lie in, keys, how many keys, values of each, and keys asked for.
    Needles { hay: Hay, key: Kind, value: Kind, keys: usize, values: usize, queries: usize },
    /// Variables that take their values from one another.
    Chain,
    /// Words of a list of which ten are common.
    Common,
    /// Coded words by Zipf's law.
    Frequent,
    /// Questions about a few of many documents, from SQuAD's or HotpotQA's file.
    Documents(Files),
}

/// Files that a user supplies, by the names they have there or in RULER's folder.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Files {
    Squad,
    Hotpot,
}

impl Files {
    /// Names the file may have.
    pub(crate) fn names(self) -> [&'static str; 2] {
        match self {
            Self::Squad => ["squad.json", "dev-v2.0.json"],
            Self::Hotpot => ["hotpotqa.json", "hotpot_dev_distractor_v1.json"],
        }
    }
}

/// One of the thirteen.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Subtask {
    /// RULER's name of it.
    pub(crate) name: &'static str,
    pub(crate) what: What,
    /// RULER's `tokens_to_generate`: kept free, and the longest answer.
    pub(crate) answer_tokens: u64,
}

const fn needles(name: &'static str, hay: Hay, key: Kind, value: Kind, counts: [usize; 3]) -> Subtask {
    let [keys, values, queries] = counts;
    Subtask { name, what: What::Needles { hay, key, value, keys, values, queries }, answer_tokens: 128 }
}

/// All of them, in RULER's order.
pub(crate) const SUBTASKS: [Subtask; 13] = [
    needles("niah_single_1", Hay::Repeat, Kind::Words, Kind::Numbers, [1, 1, 1]),
    needles("niah_single_2", Hay::Essay, Kind::Words, Kind::Numbers, [1, 1, 1]),
    needles("niah_single_3", Hay::Essay, Kind::Words, Kind::Uuids, [1, 1, 1]),
    needles("niah_multikey_1", Hay::Essay, Kind::Words, Kind::Numbers, [4, 1, 1]),
    needles("niah_multikey_2", Hay::Needles, Kind::Words, Kind::Numbers, [1, 1, 1]),
    needles("niah_multikey_3", Hay::Needles, Kind::Uuids, Kind::Uuids, [1, 1, 1]),
    needles("niah_multivalue", Hay::Essay, Kind::Words, Kind::Numbers, [1, 4, 1]),
    needles("niah_multiquery", Hay::Essay, Kind::Words, Kind::Numbers, [4, 1, 4]),
    Subtask { name: "vt", what: What::Chain, answer_tokens: 30 },
    Subtask { name: "cwe", what: What::Common, answer_tokens: 120 },
    Subtask { name: "fwe", what: What::Frequent, answer_tokens: 50 },
    Subtask { name: "qa_1", what: What::Documents(Files::Squad), answer_tokens: 32 },
    Subtask { name: "qa_2", what: What::Documents(Files::Hotpot), answer_tokens: 32 },
];

/// Those of the embedded sample.
pub(crate) const SAMPLE: [&str; 3] = ["niah_multiquery", "vt", "fwe"];

/// The task of a name.
pub(crate) fn subtask(name: &str) -> Option<Subtask> {
    SUBTASKS.into_iter().find(|s| s.name == name)
}
