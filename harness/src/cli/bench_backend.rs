//! `bench backend`.

use super::args::BackendBenchArgs;
use super::output;
use crate::config::{Asked, RunArgs, RunSettings};
use crate::failure::{Exit, Failure, Result};
use crate::measure::{MeasureSettings, Point, measure, memory_of, points_csv, points_svg};
use crate::run::{all_methods, build, check, registry};
use e2llm_backend::CancelFlag;
use serde::Serialize;

/// Measures backends one after another, prints one line of JSON per length and writes table and pictures. A backend
/// that cannot be built or measured fails alone.
///
/// # Errors
/// Wrong usage; a folder that has something or cannot be written; an interrupt; at the end, the reasons of the backends
/// that failed, and those of all lengths where none could be measured.
pub(super) fn bench_backend(args: &BackendBenchArgs) -> Result<Exit> {
    let mut lengths = args.lengths.iter().map(|l| length(l)).collect::<Result<Vec<_>>>()?;
    // a length that fails ends a backend, so they grow
    lengths.sort_unstable();
    lengths.dedup();
    for (flag, number) in [("--repeats", args.repeats), ("--new-tokens", args.new_tokens)] {
        if number == 0 {
            return Err(Failure::usage(format!("{flag} 0: there is nothing to measure; it is at least 1")));
        }
    }
    let settings =
        MeasureSettings { lengths, new_tokens: args.new_tokens, repeats: args.repeats, seed: args.seed };
    let asked = Asked::new(&run_args(args), &all_methods(&registry()))?;
    asked.runs.iter().try_for_each(|run| check(run).map(drop))?;
    super::new_folder(&args.out)?;
    let cancel = super::run::cancel_on_ctrl_c()?;
    let (mut measured, mut failed) = (Vec::new(), Vec::new());
    for run in &asked.runs {
        match one(run, &settings, args.quiet, &cancel) {
            Ok(points) => measured.push((run.label.as_str(), points)),
            Err(e) if e.exit() == Exit::Interrupted => return Err(e),
            Err(e) => failed.push(format!("{}: {e}", run.label)),
        }
        // after each, so that an interrupt loses one backend's figures only
        write(args, &measured)?;
    }
    failed.extend(unmeasured(&measured));
    if failed.is_empty() { Ok(Exit::Done) } else { Err(Failure::failed(failed.join("\n"))) }
}

/// The backends' first errors, where no length of any could be measured.
fn unmeasured(measured: &[(&str, Vec<Point>)]) -> Vec<String> {
    if measured.iter().flat_map(|(_, points)| points).any(|p| p.error.is_none()) {
        return Vec::new();
    }
    let first = |(label, points): &(&str, Vec<Point>)| {
        let point = points.first()?;
        Some(format!("{label}: length {}: {}", point.length, point.error.as_deref()?))
    };
    measured.iter().filter_map(first).collect()
}

/// A line of the output.
#[derive(Serialize)]
struct Line<'a> {
    backend: &'a str,
    model: &'a str,
    device: &'a str,
    dtype: &'a str,
    #[serde(flatten)]
    point: &'a Point,
}

fn one(
    run: &RunSettings,
    settings: &MeasureSettings,
    quiet: bool,
    cancel: &CancelFlag,
) -> Result<Vec<Point>> {
    let mut backend = build(run, quiet, cancel, None)?;
    let info = backend.info().clone();
    let mut memory = memory_of(run.device)?;
    let mut printed = Ok(());
    let points = measure(backend.as_mut(), settings, memory.as_mut(), |point| {
        let (device, dtype) = (&info.device, &info.dtype);
        let line = Line { backend: &run.label, model: &info.model, device, dtype, point };
        if printed.is_ok() {
            printed = output::print_json(&line);
        }
    })?;
    printed.map(|()| points)
}

fn write(args: &BackendBenchArgs, measured: &[(&str, Vec<Point>)]) -> Result<()> {
    let all: Vec<(&str, &[Point])> = measured.iter().map(|(name, points)| (*name, &points[..])).collect();
    let mut files = vec![("points.csv", points_csv(&all)?)];
    files.extend(points_svg(&all));
    for (name, text) in files {
        let path = args.out.join(name);
        std::fs::write(&path, text).map_err(|e| Failure::io("write", &path, &e))?;
    }
    Ok(())
}

/// The flags of a run that says the same of backends; the tasks are not looked at.
fn run_args(args: &BackendBenchArgs) -> RunArgs {
    RunArgs {
        tasks: Some(vec!["all".into()]),
        backend: (!args.backend.is_empty()).then(|| args.backend.clone()),
        model: args.model.clone(),
        config: args.config.clone(),
        device: args.device.clone(),
        dtype: args.dtype.clone(),
        backend_option: args.backend_option.clone(),
        seed: Some(args.seed),
        models: args.models.clone(),
        ..RunArgs::default()
    }
}

/// A number of tokens: `4096`, `4k` or `1m`, in powers of two.
fn length(text: &str) -> Result<usize> {
    let lower = text.trim().to_lowercase();
    let (digits, unit) = match (lower.strip_suffix('k'), lower.strip_suffix('m')) {
        (Some(digits), _) => (digits, 1 << 10),
        (_, Some(digits)) => (digits, 1 << 20),
        _ => (lower.as_str(), 1),
    };
    let tokens = digits.parse::<usize>().ok().and_then(|n| n.checked_mul(unit)).filter(|n| *n > 0);
    tokens.ok_or_else(|| {
        Failure::usage(format!("--lengths {text}: not a number of tokens"))
            .help("lengths are written as 4096, 4k (4096) or 1m (1048576)")
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lengths_have_units() {
        let tokens = |text| length(text).ok();
        assert_eq!(tokens("300"), Some(300));
        assert_eq!(tokens(" 4k"), Some(4096));
        assert_eq!(tokens("1M"), Some(1 << 20));
        for wrong in ["", "k", "0", "4.5k", "-1", "4kk", "99999999999999999999m"] {
            assert_eq!(tokens(wrong), None, "{wrong}");
        }
    }
}
