//! The model against values of the PyTorch reference, computed in float64 (`make_golden.py`).
//!
//! Cases come from the folder `E2LLM_GOLDEN`, else from `shared/golden/e2llm` beside the workspace; they run on the
//! device `E2LLM_TEST_DEVICE` (`cuda:0`), else on the CPU. The bars are those of the model's specification: they are
//! relative and norm-wise.

#![expect(clippy::unwrap_used, reason = "what fails in a helper fails its test")]

mod bf16;
mod case;
mod forward;
mod training;
