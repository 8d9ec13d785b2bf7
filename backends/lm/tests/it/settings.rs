//! What a user can ask for and not get.

use e2llm_backend::{BackendError, ErrorKind};
use e2llm_lm::{EncoderFiles, LmError, Precision, open_device};
use std::path::Path;

#[test]
fn settings_that_cannot_be_had_are_bad_requests_that_name_what_can() {
    let error: BackendError = "fp16".parse::<Precision>().unwrap_err().into();
    assert_eq!(error.kind, ErrorKind::BadRequest);
    assert_eq!(error.message, "element type `fp16` is not known: f32, bf16, q (kept quantised)");
    if !candle_core::utils::cuda_is_available() {
        let error: BackendError = open_device("cuda:0".parse().unwrap()).unwrap_err().into();
        assert_eq!(error.kind, ErrorKind::BadRequest);
        assert!(error.message.ends_with("build with `--features e2llm-harness/cuda`"), "{error}");
    }
}

#[test]
fn a_missing_file_is_told_once() {
    let error: LmError = EncoderFiles::open(Path::new("no/such/folder")).err().unwrap();
    let error = BackendError::from(error);
    assert_eq!(error.message.matches("os error 2").count(), 1, "{error}");
}
