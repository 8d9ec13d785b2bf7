//! Measurements as a table and as pictures.

use super::Point;
use crate::failure::{Failure, Result};
use e2llm_train::{Plot, Series};
use serde::Serialize;

/// Colours of the lines, one for each backend in turn.
const COLOURS: [&str; 14] = [
    "#1f6f8b", "#c26b2b", "#4c8c4a", "#8e44ad", "#b03a2e", "#7d6608", "#2c3e50", "#c2185b", "#00a3a3",
    "#e0a800", "#7f8c8d", "#5d4037", "#9acd32", "#ff6f61",
];
const MIB: f64 = (1 << 20) as f64;

/// The columns, in order.
#[derive(Serialize)]
struct Line<'a> {
    backend: &'a str,
    length: usize,
    context_tokens: Option<u64>,
    prompt_tokens: Option<u64>,
    /// Seconds to the first token.
    ttft_s: String,
    decode_tokens_per_s: String,
    peak_memory_mib: String,
    error: &'a str,
}

/// The text of a table of the points of several backends.
///
/// # Errors
/// None in practice: everything here can be written.
pub fn points_csv(backends: &[(&str, &[Point])]) -> Result<String> {
    let failed =
        |e: &dyn std::fmt::Display| Failure::failed(format!("measurements cannot be written as CSV: {e}"));
    let mut writer = csv::WriterBuilder::new().terminator(csv::Terminator::CRLF).from_writer(Vec::new());
    for (backend, points) in backends {
        for p in *points {
            let line = Line {
                backend,
                length: p.length,
                context_tokens: p.context_tokens,
                prompt_tokens: p.prompt_tokens,
                ttft_s: p.time_to_first_token.map_or_else(String::new, |s| format!("{s:.4}")),
                decode_tokens_per_s: p
                    .seconds_per_token
                    .map_or_else(String::new, |s| format!("{:.2}", 1.0 / s)),
                peak_memory_mib: p.peak_memory.map_or_else(String::new, |b| format!("{:.1}", b as f64 / MIB)),
                error: p.error.as_deref().unwrap_or_default(),
            };
            writer.serialize(line).map_err(|e| failed(&e))?;
        }
    }
    let bytes = writer.into_inner().map_err(|e| failed(&e))?;
    String::from_utf8(bytes).map_err(|e| failed(&e))
}

/// Pictures over the context's length, by file name: `ttft.svg`, `decode.svg`, `memory.svg`.
pub fn points_svg(backends: &[(&str, &[Point])]) -> Vec<(&'static str, String)> {
    let names: Vec<String> = backends.iter().map(|(name, points)| legend(name, points)).collect();
    let plot = |y: &str, of: &dyn Fn(&Point) -> Option<f64>| {
        let series = backends.iter().zip(&names).enumerate().map(|(i, ((_, points), name))| Series {
            name,
            colour: COLOURS[i % COLOURS.len()],
            marked: true,
            points: points
                .iter()
                .filter(|p| p.error.is_none())
                .filter_map(|p| Some((p.length as f64, of(p)?)))
                .collect(),
        });
        Plot { x: "tokens of context", y, series: series.collect() }.svg()
    };
    vec![
        ("ttft.svg", plot("seconds to the first token", &|p| p.time_to_first_token)),
        ("decode.svg", plot("seconds per token", &|p| p.seconds_per_token)),
        ("memory.svg", plot("peak memory, MiB", &|p| p.peak_memory.map(|b| b as f64 / MIB))),
    ]
}

/// A backend's name, with the length it ends at where longer ones failed.
fn legend(name: &str, points: &[Point]) -> String {
    let last = points.iter().filter(|p| p.error.is_none()).map(|p| p.length).max();
    match last {
        Some(last) if points.iter().any(|p| p.error.is_some()) => format!("{name} (ends at {last})"),
        _ => name.to_owned(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn tables_and_pictures_have_every_backend() {
        let point = |length| Point {
            length,
            context_tokens: Some(length as u64),
            prompt_tokens: Some(7),
            time_to_first_token: Some(0.5),
            seconds_per_token: Some(0.02),
            peak_memory: Some(3 << 20),
            error: None,
        };
        let failed = Point { length: 4000, error: Some("window, too short".into()), ..Point::default() };
        let (a, b) = ([point(1000), point(2000)], [point(1000), failed]);
        let all: [(&str, &[Point]); 2] = [("full", &a), ("e2llm", &b)];
        let csv = points_csv(&all).unwrap();
        let lines: Vec<_> = csv.lines().collect();
        assert_eq!(
            lines[0],
            "backend,length,context_tokens,prompt_tokens,ttft_s,decode_tokens_per_s,peak_memory_mib,error"
        );
        assert_eq!(lines[1], "full,1000,1000,7,0.5000,50.00,3.0,");
        assert_eq!(lines[4], "e2llm,4000,,,,,,\"window, too short\"");
        let pictures = points_svg(&all);
        assert_eq!(
            pictures.iter().map(|p| p.0).collect::<Vec<_>>(),
            ["ttft.svg", "decode.svg", "memory.svg"]
        );
        for (name, svg) in pictures {
            assert!(svg.contains(">full</text>") && svg.contains(">e2llm (ends at 1000)</text>"), "{name}");
            assert_eq!(svg.matches("<circle").count(), 3, "{name}: a failed length has no point");
        }
    }
}
