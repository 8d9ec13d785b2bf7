//! ROUGE, as the two Python packages define it whose numbers are published.
//!
//! - google's `rouge_score` 0.1.2: [`Variant::Rouge1`] to [`Variant::RougeLsum`], with and without Porter's stemmer;
//! - pltrdy's `rouge` 1.0.1: [`Variant::Pltrdy`], which LongBench calls "rouge-l".
//!
//! Values equal those of the packages to rounding. A [`Scorer`] holds the memory that scoring needs, linear in the
//! texts, and a bounded cache of stems; a thread uses its own.
//!
//! ```
//! use e2llm_rouge::{Scorer, Selection, Variant};
//!
//! let mut scorer = Scorer::default();
//! let scores = scorer.score("the cat sat", &["the cat stood"], Selection::all());
//! assert_eq!(scores[Variant::Rouge2 as usize].f, 0.5);
//! ```

mod lcs;
mod pltrdy;
mod rouge_l;
mod rouge_n;
mod score;
mod scorer;
mod sentences;
mod stem;
mod tokenize;
mod variant;
mod vocabulary;

pub use score::Score;
pub use scorer::Scorer;
pub use stem::stem;
pub use variant::{Selection, Variant};
