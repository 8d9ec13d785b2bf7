//! One prediction against its references, in every variant asked for.

use crate::lcs::Lcs;
use crate::pltrdy::Pltrdy;
use crate::rouge_l::{Union, rouge_l};
use crate::rouge_n::Ngrams;
use crate::score::Score;
use crate::tokenize::{Sentences, Text, Wanted};
use crate::variant::{Selection, Variant};
use crate::vocabulary::Vocabulary;

type Scores = [Score; Variant::ALL.len()];

/// Scores pairs of texts, reusing memory and remembering stems from call to call.
///
/// What it remembers has no influence on the scores.
#[derive(Debug, Default)]
pub struct Scorer {
    vocabulary: Vocabulary,
    prediction: Text,
    reference: Text,
    predicted_sentences: Sentences,
    reference_sentences: Sentences,
    methods: Methods,
}

#[derive(Debug, Default)]
struct Methods {
    lcs: Lcs,
    ngrams: Ngrams,
    union: Union,
    pltrdy: Pltrdy,
}

/// The words of both texts and where their lines end.
struct Pair<'a> {
    prediction: (&'a [u32], &'a [usize]),
    reference: (&'a [u32], &'a [usize]),
}

impl Scorer {
    /// The scores of `prediction` by variant number (`Variant as usize`), 0 for those not selected; of several
    /// references, for each variant the score with the greatest F.
    pub fn score(
        &mut self,
        prediction: &str,
        references: &[impl AsRef<str>],
        selection: Selection,
    ) -> Scores {
        use Variant::{
            Pltrdy, PltrdyCompat, Rouge1Stem, Rouge2Stem, RougeLStem, RougeLsumSentences, RougeLsumStem,
        };
        let wanted = Wanted {
            stems: selection.has_any(&[Rouge1Stem, Rouge2Stem, RougeLStem, RougeLsumStem]),
            sentences: selection.has(RougeLsumSentences),
        };
        let pltrdy = selection.has_any(&[Pltrdy, PltrdyCompat]);
        self.vocabulary.limit();
        self.prediction.read(prediction, wanted, &mut self.vocabulary);
        if pltrdy {
            self.predicted_sentences.read(prediction, &mut self.vocabulary);
        }
        let mut best = Scores::default();
        for reference in references {
            self.reference.read(reference.as_ref(), wanted, &mut self.vocabulary);
            if pltrdy {
                self.reference_sentences.read(reference.as_ref(), &mut self.vocabulary);
            }
            for (best, score) in best.iter_mut().zip(self.score_read(selection)) {
                if score.f > best.f {
                    *best = score;
                }
            }
        }
        best
    }

    /// Scores the texts that were read last.
    fn score_read(&mut self, selection: Selection) -> Scores {
        use Variant::{Pltrdy, PltrdyCompat, Rouge1, Rouge1Stem, RougeLsumSentences};
        let Self { vocabulary, prediction, reference, methods, .. } = self;
        methods.reserve(vocabulary.len());
        let mut scores = Scores::default();
        let words = Pair {
            prediction: (&prediction.words, &prediction.lines),
            reference: (&reference.words, &reference.lines),
        };
        methods.four(&words, Rouge1, selection, &mut scores);
        let stems = Pair {
            prediction: (&prediction.stems, &prediction.lines),
            reference: (&reference.stems, &reference.lines),
        };
        methods.four(&stems, Rouge1Stem, selection, &mut scores);
        if selection.has(RougeLsumSentences) {
            scores[RougeLsumSentences as usize] = methods.union.rouge_l_sum(
                &mut methods.lcs,
                (&prediction.words, &prediction.sentences),
                (&reference.words, &reference.sentences),
            );
        }
        if selection.has_any(&[Pltrdy, PltrdyCompat]) {
            let (score, too_deep) = methods.pltrdy.rouge_l(
                &mut methods.lcs,
                &self.predicted_sentences,
                &self.reference_sentences,
            );
            scores[Pltrdy as usize] = score;
            scores[PltrdyCompat as usize] = if too_deep { Score::default() } else { score };
        }
        scores
    }
}

impl Methods {
    fn reserve(&mut self, words: usize) {
        self.lcs.reserve(words);
        self.ngrams.reserve(words);
        self.union.reserve(words);
        self.pltrdy.reserve(words);
    }

    /// rouge1, rouge2, rougeL and rougeLsum: the four variants from `first` on.
    fn four(&mut self, pair: &Pair<'_>, first: Variant, selection: Selection, scores: &mut Scores) {
        let first = first as usize;
        let wanted = |offset: usize| selection.has(Variant::ALL[first + offset]);
        let ((prediction, lines), (reference, reference_lines)) = (pair.prediction, pair.reference);
        if wanted(0) {
            scores[first] = self.ngrams.rouge_1(prediction, reference);
        }
        if wanted(1) {
            scores[first + 1] = self.ngrams.rouge_2(prediction, reference);
        }
        // Of one line each, rougeLsum is rougeL, which needs no path.
        let one_line_each = lines.len() <= 1 && reference_lines.len() <= 1;
        if wanted(2) || (wanted(3) && one_line_each) {
            scores[first + 2] = rouge_l(&mut self.lcs, prediction, reference);
        }
        if wanted(3) {
            scores[first + 3] = if one_line_each {
                scores[first + 2]
            } else {
                self.union.rouge_l_sum(&mut self.lcs, pair.prediction, pair.reference)
            };
        }
        if !wanted(2) {
            scores[first + 2] = Score::default();
        }
    }
}
