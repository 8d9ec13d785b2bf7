//! Which scores there are.

/// A score's definition.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Variant {
    /// Common words.
    Rouge1,
    /// Common pairs of neighbouring words.
    Rouge2,
    /// Longest common subsequence of the whole texts.
    RougeL,
    /// Union of the longest common subsequences of lines.
    RougeLsum,
    /// [`Rouge1`](Self::Rouge1) of stems.
    Rouge1Stem,
    /// [`Rouge2`](Self::Rouge2) of stems.
    Rouge2Stem,
    /// [`RougeL`](Self::RougeL) of stems.
    RougeLStem,
    /// [`RougeLsum`](Self::RougeLsum) of stems.
    RougeLsumStem,
    /// [`RougeLsum`](Self::RougeLsum) of sentences by Unicode's rules (UAX 29).
    RougeLsumSentences,
    /// pltrdy's "rouge-l".
    Pltrdy,
    /// The same, but 0 where the Python package raises `RecursionError`.
    PltrdyCompat,
}

impl Variant {
    /// All of them, in the order of their numbers.
    pub const ALL: [Self; 11] = [
        Self::Rouge1,
        Self::Rouge2,
        Self::RougeL,
        Self::RougeLsum,
        Self::Rouge1Stem,
        Self::Rouge2Stem,
        Self::RougeLStem,
        Self::RougeLsumStem,
        Self::RougeLsumSentences,
        Self::Pltrdy,
        Self::PltrdyCompat,
    ];

    /// Its name in tables and files.
    pub const fn id(self) -> &'static str {
        match self {
            Self::Rouge1 => "rouge1",
            Self::Rouge2 => "rouge2",
            Self::RougeL => "rougeL",
            Self::RougeLsum => "rougeLsum",
            Self::Rouge1Stem => "rouge1+stem",
            Self::Rouge2Stem => "rouge2+stem",
            Self::RougeLStem => "rougeL+stem",
            Self::RougeLsumStem => "rougeLsum+stem",
            Self::RougeLsumSentences => "rougeLsum@sentences",
            Self::Pltrdy => "rouge_l_pltrdy",
            Self::PltrdyCompat => "rouge_l_pltrdy@compat",
        }
    }
}

/// A set of variants.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Selection(u16);

impl Selection {
    /// Every variant.
    pub const fn all() -> Self {
        Self((1 << Variant::ALL.len()) - 1)
    }

    /// The given ones.
    pub fn of(variants: &[Variant]) -> Self {
        Self(variants.iter().fold(0, |set, &variant| set | 1 << variant as u16))
    }

    /// Whether `variant` is among them.
    pub const fn has(self, variant: Variant) -> bool {
        self.0 >> variant as u16 & 1 == 1
    }

    pub(crate) fn has_any(self, variants: &[Variant]) -> bool {
        self.0 & Self::of(variants).0 != 0
    }
}
