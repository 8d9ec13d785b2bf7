//! `prepare`.

use super::args::PrepareArgs;
use super::output;
use crate::failure::{Exit, Failure, Result};
use crate::run::fetcher;
use crate::training::{Records, base, failure, inputs};
use e2llm_backend::Chunker;
use e2llm_lm::{DecoderFiles, EncoderFiles, LmError};
use e2llm_train::data::{PrepareSettings, Report, SplitInfo};
use indicatif::{ProgressBar, ProgressStyle};
use std::time::Instant;

/// Makes training data of records.
///
/// # Errors
/// Files that are missing; too many unusable records; a folder that is not empty.
pub(super) fn prepare(args: &PrepareArgs) -> Result<Exit> {
    let inputs = inputs(args)?;
    for (name, value, most) in [
        ("validation", args.validation, 0.5),
        ("max-bad", args.max_bad, 1.0),
        ("chunk-overlap", args.chunk_overlap, 0.5),
    ] {
        if !(0.0..=most).contains(&value) {
            return Err(Failure::usage(format!("--{name} {value} is not between 0 and {most}")));
        }
    }
    let chunker =
        Chunker::new(args.chunk_chars, args.chunk_overlap).map_err(|e| Failure::usage(e.to_string()))?;
    let cancel = super::run::cancel_on_ctrl_c()?;
    let fetcher = fetcher(args.models.models_file.as_deref(), args.models.offline, args.quiet, &cancel)?;
    let encoder = base(&fetcher, &args.encoder, "encoder", |f| f.encoder)?;
    let decoder = base(&fetcher, &args.decoder, "decoder", |f| f.decoder)?;
    let wrong = |e: LmError| Failure::failed(e.to_string());
    let encoder = EncoderFiles::open(&encoder.path).map_err(wrong)?;
    let decoder = DecoderFiles::open(&decoder.path).map_err(wrong)?;
    let (Some(encoder_tokenizer), Some(decoder_tokenizer)) = (&encoder.tokenizer, &decoder.tokenizer) else {
        return Err(Failure::usage("both models need a tokenizer.json"));
    };
    let settings = PrepareSettings {
        chunker,
        chunk_chars: args.chunk_chars,
        chunk_overlap: args.chunk_overlap,
        encoder: encoder_tokenizer,
        encoder_window: encoder.config.window(),
        decoder: decoder_tokenizer,
        validation: args.validation,
        seed: args.seed,
        max_bad: args.max_bad,
    };
    let bar = if args.quiet { ProgressBar::hidden() } else { ProgressBar::new_spinner() };
    let style = ProgressStyle::with_template("{spinner} {pos} records, {per_sec} {elapsed_precise}");
    bar.set_style(style.unwrap_or_else(|_| ProgressStyle::default_spinner()));
    let start = Instant::now();
    let mut records = Records::new(inputs);
    let prepared = e2llm_train::data::prepare(&mut records, &args.out, &settings, &mut |n| {
        bar.set_position(n);
        !cancel.is_cancelled()
    });
    bar.finish_and_clear();
    if cancel.is_cancelled() {
        return Err(Failure::interrupted("preparing was interrupted: nothing was kept"));
    }
    // A file that cannot be read explains why there was nothing more.
    records.finish()?;
    let report = prepared.map_err(failure)?;
    if args.json {
        output::print_json(&report.manifest)?;
    } else if !args.quiet {
        show(&report, start.elapsed().as_secs_f64())?;
        output::note(&format!("written to {}", args.out.display()));
    }
    Ok(Exit::Done)
}

fn show(report: &Report, seconds: f64) -> Result<()> {
    let m = &report.manifest;
    let head =
        ["split", "documents", "questions", "chunks", "encoder tokens", "decoder tokens", "answer tokens"];
    let mut rows = vec![head.map(str::to_owned).to_vec()];
    for (name, s) in [("train", &m.train), ("validation", &m.validation)] {
        let SplitInfo { documents, questions, chunks, encoder_tokens, decoder_tokens, answer_tokens, .. } = s;
        let numbers = [documents, questions, chunks, encoder_tokens, decoder_tokens, answer_tokens];
        rows.push(std::iter::once(name.to_owned()).chain(numbers.map(u64::to_string)).collect());
    }
    output::print(&output::table(&rows))?;
    for bad in &report.bad {
        output::note(&format!("left out: {}: {}", bad.place, bad.reason));
    }
    if m.bad_records as usize > report.bad.len() {
        output::note(&format!("left out in all: {} records", m.bad_records));
    }
    if m.crossing_records > 0 {
        output::note(&format!(
            "left out of training: {} records about documents that are validated on",
            m.crossing_records
        ));
    }
    if m.validation.questions == 0 {
        output::note(
            "nothing to validate on: no document fell into the validation split (see --validation and --validation-input)",
        );
    }
    let tokens = m.train.encoder_tokens + m.validation.encoder_tokens;
    output::note(&format!("{seconds:.1} s, {:.0} encoder tokens/s", tokens as f64 / seconds.max(1e-9)));
    Ok(())
}
