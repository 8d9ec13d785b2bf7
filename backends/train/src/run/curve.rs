//! The loss curve as a picture.

use serde::Deserialize;
use std::fmt::Write;

const WIDTH: f64 = 720.0;
const HEIGHT: f64 = 400.0;
const LEFT: f64 = 56.0;
const RIGHT: f64 = 16.0;
const TOP: f64 = 40.0;
const BOTTOM: f64 = 44.0;
/// Most points of a line: more cannot be told apart.
const POINTS: usize = 600;

#[derive(Deserialize)]
struct Line {
    step: usize,
    reasoning: Option<f64>,
    reconstruction: Option<f64>,
    validation_reasoning: Option<f64>,
    validation_reconstruction: Option<f64>,
}

/// A series: its name, colour, whether its points are marked, and a line's value.
type Series = (&'static str, &'static str, bool, fn(&Line) -> Option<f64>);

const SERIES: [Series; 4] = [
    ("reasoning", "#1f6f8b", false, |l| l.reasoning),
    ("reconstruction", "#c26b2b", false, |l| l.reconstruction),
    ("validation reasoning", "#0b3c4d", true, |l| l.validation_reasoning),
    ("validation reconstruction", "#7a3e10", true, |l| l.validation_reconstruction),
];

/// An SVG picture of the losses in a `metrics.jsonl`: nats per token over steps. Long lines are means of several steps.
pub fn loss_curve(metrics: &str) -> String {
    let lines: Vec<Line> = metrics.lines().filter_map(|l| serde_json::from_str(l).ok()).collect();
    let last = lines.iter().map(|l| l.step).max().unwrap_or(1).max(1) as f64;
    let series: Vec<_> = SERIES.iter().map(|(_, _, _, of)| thinned(&lines, *of)).collect();
    let values = || series.iter().flatten().map(|(_, v)| *v);
    let high = values().fold(0.0, f64::max).max(1e-3) * 1.05;
    let x = |step: f64| LEFT + (WIDTH - LEFT - RIGHT) * step / last;
    let y = |value: f64| HEIGHT - BOTTOM - (HEIGHT - TOP - BOTTOM) * value / high;
    let mut out = format!(
        "<svg xmlns=\"http://www.w3.org/2000/svg\" viewBox=\"0 0 {WIDTH} {HEIGHT}\" font-family=\"sans-serif\" \
         font-size=\"12\">\n<rect width=\"100%\" height=\"100%\" fill=\"white\"/>\n"
    );
    // Writing to a String cannot fail.
    for (value, text) in ticks(high) {
        let y = y(value);
        let _ = writeln!(
            out,
            "<path d=\"M{LEFT} {y:.1}H{}\" stroke=\"#ddd\"/><text x=\"{}\" y=\"{:.1}\" text-anchor=\"end\">{text}</text>",
            WIDTH - RIGHT,
            LEFT - 6.0,
            y + 4.0
        );
    }
    for (step, text) in ticks(last) {
        let (x, y) = (x(step), HEIGHT - BOTTOM + 16.0);
        let _ = writeln!(out, "<text x=\"{x:.1}\" y=\"{y}\" text-anchor=\"middle\">{text}</text>");
    }
    let _ = writeln!(
        out,
        "<text x=\"{}\" y=\"{}\" text-anchor=\"middle\">step</text><text x=\"{LEFT}\" y=\"16\">nats per token</text>",
        (LEFT + WIDTH - RIGHT) / 2.0,
        HEIGHT - 8.0
    );
    let mut legend = LEFT + 110.0;
    for ((name, colour, marked, _), points) in SERIES.iter().zip(&series) {
        if points.is_empty() {
            continue;
        }
        let path: Vec<_> = points.iter().map(|(s, v)| format!("{:.1} {:.1}", x(*s), y(*v))).collect();
        let _ = writeln!(
            out,
            "<path d=\"M{}\" fill=\"none\" stroke=\"{colour}\" stroke-width=\"1.5\"/>",
            path.join("L")
        );
        for (s, v) in points.iter().filter(|_| *marked) {
            let _ =
                writeln!(out, "<circle cx=\"{:.1}\" cy=\"{:.1}\" r=\"3\" fill=\"{colour}\"/>", x(*s), y(*v));
        }
        let _ = writeln!(out, "<text x=\"{legend}\" y=\"16\" fill=\"{colour}\">{name}</text>");
        legend += 7.0 * name.len() as f64 + 16.0;
    }
    out + "</svg>\n"
}

/// A series' points, at most [`POINTS`]: means of as many neighbours each.
fn thinned(lines: &[Line], of: fn(&Line) -> Option<f64>) -> Vec<(f64, f64)> {
    let all: Vec<_> = lines.iter().filter_map(|l| Some((l.step as f64, of(l)?))).collect();
    let group = all.len().div_ceil(POINTS).max(1);
    let mean = |g: &[(f64, f64)]| {
        let n = g.len() as f64;
        (g.iter().map(|p| p.0).sum::<f64>() / n, g.iter().map(|p| p.1).sum::<f64>() / n)
    };
    all.chunks(group).map(mean).collect()
}

/// Four to nine round numbers from 0 to `high`.
fn ticks(high: f64) -> Vec<(f64, String)> {
    let power = 10f64.powf((high / 4.0).log10().floor());
    let step = [5.0, 2.0, 1.0].into_iter().map(|f| f * power).find(|s| high / s >= 4.0).unwrap_or(power);
    let digits = (-step.log10().floor()).max(0.0) as usize;
    (0..=(high / step) as usize).map(|i| (i as f64 * step, format!("{:.digits$}", i as f64 * step))).collect()
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

    #[test]
    fn ticks_are_round() {
        let texts = |high| ticks(high).into_iter().map(|t| t.1).collect::<Vec<_>>().join(" ");
        assert_eq!(texts(4.2), "0 1 2 3 4");
        assert_eq!(texts(0.9), "0.0 0.2 0.4 0.6 0.8");
        assert_eq!(texts(2000.0), "0 500 1000 1500 2000");
    }
}
