//! Training, on models of a few thousand parameters and on the reference's cases.

#![allow(clippy::unwrap_used, reason = "a test ends where what it needs cannot be made")]

#[path = "../../../e2llm/tests/golden/case.rs"]
#[expect(dead_code, reason = "the model's own tests look at the rest of a case")]
mod case;
mod data;
mod golden;
mod kill;
mod methods;
mod overfit;
mod resume;
mod stops;
mod support;
#[path = "../../../e2llm/tests/tiny/mod.rs"]
mod tiny;
mod tuned;
