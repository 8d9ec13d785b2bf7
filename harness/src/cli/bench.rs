//! `bench`.

use super::args::{BenchArgs, BenchCommand};
use super::output;
use crate::failure::{Exit, Failure, Result};
use crate::training::failure;
use e2llm_backend::BackendError;
use e2llm_lm::open_device;
use e2llm_train::bench::{Bench, BenchSettings, Shape};

/// Prints one line of JSON per measurement.
///
/// # Errors
/// A device that cannot be used; any failure of the model but exhausted memory, which is a line too.
pub(super) fn bench(args: &BenchArgs) -> Result<Exit> {
    if let Some(BenchCommand::Backend(args)) = &args.command {
        return super::bench_backend::bench_backend(args);
    }
    let shortest = Bench::SHORTEST_CONTEXT;
    if args.max_context < shortest && args.benches.iter().any(|b| b == Bench::Context.name()) {
        let message =
            format!("--max-context {}: the shortest context has {shortest} tokens", args.max_context);
        return Err(Failure::usage(message).help("give at least that, or leave out `context`"));
    }
    let device: e2llm_backend::Device = args.device.parse().map_err(Failure::usage)?;
    let shape =
        Shape::named(&args.shape).ok_or_else(|| Failure::usage(format!("no shape `{}`", args.shape)))?;
    let settings = BenchSettings {
        shape,
        device: open_device(device).map_err(BackendError::from)?,
        device_name: args.device.clone(),
        precision: args.dtype.parse().map_err(|e: e2llm_lm::LmError| Failure::usage(e.to_string()))?,
        repeats: args.repeats,
        max_context: args.max_context,
        batch: args.batch,
        merge_lora: args.merge_lora,
        checkpointing: args.checkpointing,
        profile: args.profile,
        seed: args.seed,
    };
    let benches = if args.benches.iter().any(|b| b == "all") {
        Bench::ALL.to_vec()
    } else {
        args.benches.iter().map(|b| b.parse()).collect::<std::result::Result<Vec<_>, _>>().map_err(failure)?
    };
    let mut printed = Ok(());
    e2llm_train::bench::bench(&settings, &benches, &mut |row| {
        if printed.is_ok() {
            printed = output::print_json(&row);
        }
    })
    .map_err(failure)?;
    printed.map(|()| Exit::Done)
}
