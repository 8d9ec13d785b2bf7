//! Precision, recall and F.

/// A score and its parts, each between 0 and 1.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct Score {
    /// Share of the prediction that is in the reference.
    pub precision: f64,
    /// Share of the reference that is in the prediction.
    pub recall: f64,
    /// Their harmonic mean; 0 where both are 0.
    pub f: f64,
}

impl Score {
    /// The score of `common` units out of those of each text. A text without units has a share of 0.
    pub(crate) fn of(common: usize, prediction: usize, reference: usize) -> Self {
        let precision = common as f64 / prediction.max(1) as f64;
        let recall = common as f64 / reference.max(1) as f64;
        let f = if common == 0 { 0.0 } else { 2.0 * precision * recall / (precision + recall) };
        Self { precision, recall, f }
    }

    /// pltrdy's score, whose F has 1e-8 added to its denominator: equal texts get 0.999999995.
    pub(crate) fn pltrdy(common: usize, prediction: usize, reference: usize) -> Self {
        let Self { precision, recall, .. } = Self::of(common, prediction, reference);
        Self { precision, recall, f: 2.0 * (precision * recall / (precision + recall + 1e-8)) }
    }
}
