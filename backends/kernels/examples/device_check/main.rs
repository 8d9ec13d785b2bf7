//! Compares every operation on a GPU, forward and backward, with the float32 form on the CPU, and times the GPU forms.
//!
//! Run with `cargo run --release -p e2llm-kernels --features cuda --example device_check [-- name]`, where `time` names the
//! times. Prints one line per check and exits non-zero if one fails. Inputs are fresh random numbers, sizes are odd as well as round, and
//! device memory is filled with NaN before each call, so that an output that is not written shows.

mod cached;
mod checker;
mod graphs;
mod layers;
mod operations;
mod rolling;
mod shifted;
mod steps;
mod timings;

use std::process::ExitCode;

use candle_core::{Device, Result};

fn main() -> Result<ExitCode> {
    let gpu = match Device::new_cuda(0) {
        Ok(gpu) => gpu,
        Err(e) => {
            eprintln!("no gpu to check: {e}");
            return Ok(ExitCode::from(2));
        }
    };
    let mut c = checker::Checker {
        gpu,
        filter: std::env::args().nth(1),
        floor: 0.,
        rounding: 2e-2,
        largest: 0.,
        weights: None,
        failed: 0,
        ran: 0,
    };
    operations::rows(&mut c)?;
    operations::embeddings(&mut c)?;
    operations::scores(&mut c)?;
    operations::rotary(&mut c)?;
    operations::losses(&mut c)?;
    // A query that sees one key has no gradient: what is left there is rounding.
    c.floor = 0.3;
    operations::attentions(&mut c)?;
    operations::reproducible(&mut c)?;
    operations::side_by_side(&mut c)?;
    c.floor = 0.;
    operations::training(&mut c)?;
    cached::cached(&mut c)?;
    steps::steps(&mut c)?;
    rolling::rolling(&mut c)?;
    layers::layers(&mut c)?;
    shifted::shifted(&mut c)?;
    // Their inputs take longer to make than a single check.
    if c.filter.as_ref().is_none_or(|filter| filter.starts_with("time")) {
        timings::timings(&c)?;
        timings::layer_timings(&c)?;
    }
    println!("{} checks, {} failed", c.ran, c.failed);
    Ok(if c.failed == 0 && c.ran > 0 { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}
