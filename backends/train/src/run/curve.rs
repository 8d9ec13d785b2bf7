//! The loss curve as a picture.

use super::plot::{Plot, Series};
use serde::Deserialize;

#[derive(Deserialize)]
struct Line {
    step: usize,
    reasoning: Option<f64>,
    reconstruction: Option<f64>,
    validation_reasoning: Option<f64>,
    validation_reconstruction: Option<f64>,
}

/// A kind of loss: its name, colour, whether its points are marked, and a line's value.
type Loss = (&'static str, &'static str, bool, fn(&Line) -> Option<f64>);

const LOSSES: [Loss; 4] = [
    ("reasoning", "#1f6f8b", false, |l| l.reasoning),
    ("reconstruction", "#c26b2b", false, |l| l.reconstruction),
    ("validation reasoning", "#0b3c4d", true, |l| l.validation_reasoning),
    ("validation reconstruction", "#7a3e10", true, |l| l.validation_reconstruction),
];

/// An SVG picture of the losses in a `metrics.jsonl`: nats per token over steps. Long lines are means of several steps.
pub fn loss_curve(metrics: &str) -> String {
    let lines: Vec<Line> = metrics.lines().filter_map(|l| serde_json::from_str(l).ok()).collect();
    let series = LOSSES.iter().map(|(name, colour, marked, of)| Series {
        name,
        colour,
        marked: *marked,
        points: lines.iter().filter_map(|l| Some((l.step as f64, of(l)?))).collect(),
    });
    Plot { x: "step", y: "nats per token", series: series.collect() }.svg()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_curve_has_its_series_and_few_points() {
        let mut text: String =
            (1..=5000).map(|i| format!("{{\"step\":{i},\"reconstruction\":{}}}\n", 4.0 / i as f64)).collect();
        text += "{\"step\":5000,\"validation_reconstruction\":1.5,\"best\":true}\n{cut";
        let svg = loss_curve(&text);
        assert!(svg.contains(">reconstruction</text>") && svg.contains("<circle"));
        assert!(!svg.contains(">reasoning</text>") && !svg.contains("NaN"));
        assert!(svg.len() < 30_000);
        assert!(loss_curve("").starts_with("<svg"));
    }
}
