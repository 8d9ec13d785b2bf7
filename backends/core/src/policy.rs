//! Which tokens of a prompt that is too long are kept. Pure arithmetic, no model.

use std::fmt;
use std::ops::Range;
use std::str::FromStr;

/// How a prompt is shortened.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Policy {
    /// LongBench v1 (`pred.py`): `max / 2` tokens of each end, the two decoded apart. One token less than v2
    /// where `max` is odd.
    MiddleLongbenchV1,
    /// LongBench v2 (`pred.py`): `max / 2` tokens of the beginning, the rest of `max` of the end, decoded as one.
    MiddleLongbenchV2,
    /// The beginning is cut: the last `max` tokens stay (`truncation_side = "left"`).
    Left,
    /// The end is cut, a question there included: the first `max` tokens stay (`truncation_side = "right"`).
    Right,
    /// HELMET: only the context is cut, at its end; everything else stays.
    ContextTail,
}

impl Policy {
    /// Every policy, in the order of the documentation.
    pub const ALL: [Self; 5] =
        [Self::MiddleLongbenchV1, Self::MiddleLongbenchV2, Self::Left, Self::Right, Self::ContextTail];

    /// The name used in options, manifests and task ids.
    pub fn name(self) -> &'static str {
        match self {
            Self::MiddleLongbenchV1 => "middle-longbench-v1",
            Self::MiddleLongbenchV2 => "middle-longbench-v2",
            Self::Left => "left",
            Self::Right => "right",
            Self::ContextTail => "context-tail",
        }
    }

    /// The positions kept of `n` tokens when at most `max` may stay, in order; they are all `n` where these
    /// fit. Each range is decoded by itself and the texts are joined.
    ///
    /// The two `middle` policies follow the official scripts token for token, Python's slices included: there
    /// `ids[-0:]` is everything, so a `max` of 0, and for v1 of 1, keeps all tokens. A caller with so small a
    /// budget has to refuse beforehand. [`Policy::ContextTail`] is given the context's tokens only.
    pub fn kept(self, n: usize, max: usize) -> Kept {
        if n <= max {
            return Kept::all(n);
        }
        let (head, tail) = match self {
            Self::MiddleLongbenchV1 => (max / 2, max / 2),
            Self::MiddleLongbenchV2 => (max / 2, max.div_ceil(2)),
            Self::Left => (0, max),
            Self::Right | Self::ContextTail => (max, 0),
        };
        let is_middle = matches!(self, Self::MiddleLongbenchV1 | Self::MiddleLongbenchV2);
        if is_middle && tail == 0 {
            return Kept::all(n);
        }
        Kept { head: 0..head, tail: n - tail..n, joined: self == Self::MiddleLongbenchV2 }
    }
}

impl fmt::Display for Policy {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

impl FromStr for Policy {
    type Err = String;

    /// `middle` is LongBench v2's.
    fn from_str(s: &str) -> Result<Self, String> {
        let name = if s == "middle" { "middle-longbench-v2" } else { s };
        Self::ALL.into_iter().find(|p| p.name() == name).ok_or_else(|| {
            let known: Vec<_> = Self::ALL.iter().map(|p| p.name()).collect();
            format!("unknown truncation policy `{s}`: known are middle, {}", known.join(", "))
        })
    }
}

/// What stays of a sequence of tokens.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Kept {
    /// Positions at the beginning.
    pub head: Range<usize>,
    /// Positions at the end.
    pub tail: Range<usize>,
    /// Whether both are decoded as one sequence; else each by itself, and the texts are put together.
    pub joined: bool,
}

impl Kept {
    fn all(n: usize) -> Self {
        Self { head: 0..n, tail: n..n, joined: true }
    }

    /// The sequences of ids to decode, one after another.
    pub fn pieces(&self, ids: &[u32]) -> Vec<Vec<u32>> {
        let (head, tail) = (ids[self.head.clone()].to_vec(), ids[self.tail.clone()].to_vec());
        let pieces = if self.joined { vec![[head, tail].concat()] } else { vec![head, tail] };
        pieces.into_iter().filter(|p| !p.is_empty()).collect()
    }

    /// How many positions of `range` are not kept.
    pub fn dropped_of(&self, range: Range<usize>) -> usize {
        let start = range.start.max(self.head.end);
        let end = range.end.min(self.tail.start);
        end.saturating_sub(start)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn kept(policy: Policy, n: usize, max: usize) -> Vec<u32> {
        let ids: Vec<u32> = (0..n as u32).collect();
        policy.kept(n, max).pieces(&ids).concat()
    }

    #[test]
    fn names_and_parsing() {
        for policy in Policy::ALL {
            assert_eq!(policy.to_string().parse(), Ok(policy));
        }
        assert_eq!("middle".parse(), Ok(Policy::MiddleLongbenchV2));
        let error = "centre".parse::<Policy>().unwrap_err();
        assert!(error.contains("`centre`") && error.contains("context-tail"), "{error}");
    }

    #[test]
    fn one_sided_policies() {
        assert_eq!(kept(Policy::Left, 5, 2), [3, 4]);
        assert_eq!(kept(Policy::Right, 5, 2), [0, 1]);
        assert_eq!(kept(Policy::ContextTail, 5, 2), [0, 1]);
        assert_eq!(kept(Policy::ContextTail, 5, 0), [0; 0]);
        for policy in Policy::ALL {
            assert_eq!(kept(policy, 5, 5), [0, 1, 2, 3, 4]);
            assert_eq!(kept(policy, 0, 5), [0; 0]);
        }
    }

    #[test]
    fn v1_decodes_its_halves_apart_and_v2_together() {
        let ids: Vec<u32> = (0..9).collect();
        assert_eq!(Policy::MiddleLongbenchV1.kept(9, 4).pieces(&ids), [[0, 1], [7, 8]]);
        assert_eq!(Policy::MiddleLongbenchV2.kept(9, 4).pieces(&ids), [[0, 1, 7, 8]]);
    }

    #[test]
    fn dropped_positions_are_counted_within_the_context_only() {
        let middle = Policy::MiddleLongbenchV2.kept(20, 10);
        assert_eq!(middle.dropped_of(0..20), 10);
        assert_eq!(middle.dropped_of(0..7), 2);
        assert_eq!(middle.dropped_of(8..20), 7);
        assert_eq!(middle.dropped_of(16..20), 0);
        assert_eq!(Policy::Left.kept(20, 10).dropped_of(5..20), 5);
        assert_eq!(Policy::Right.kept(20, 10).dropped_of(5..20), 10);
        assert_eq!(Policy::Left.kept(20, 30).dropped_of(5..20), 0);
    }
}
