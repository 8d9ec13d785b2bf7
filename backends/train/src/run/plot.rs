//! Lines over a number, as an SVG picture.

use std::fmt::Write;

const WIDTH: f64 = 720.0;
const HEIGHT: f64 = 400.0;
const LEFT: f64 = 56.0;
const RIGHT: f64 = 16.0;
const TOP: f64 = 40.0;
const BOTTOM: f64 = 44.0;
/// Most points of a line: more cannot be told apart.
const POINTS: usize = 600;
/// Height of a row of the legend.
const LINE: f64 = 16.0;
/// Width of a letter, for placing the legend.
const LETTER: f64 = 7.0;

/// A line.
#[derive(Debug, Clone, PartialEq)]
pub struct Series<'a> {
    /// Its name in the legend.
    pub name: &'a str,
    /// Its colour, as SVG has it.
    pub colour: &'a str,
    /// Whether its points are marked.
    pub marked: bool,
    /// Its points, from left to right; a line without points is left out.
    pub points: Vec<(f64, f64)>,
}

/// Lines over one axis; both axes begin at 0.
#[derive(Debug, Clone, PartialEq)]
pub struct Plot<'a> {
    /// What is to the right, with its unit.
    pub x: &'a str,
    /// What is up, with its unit.
    pub y: &'a str,
    /// The lines.
    pub series: Vec<Series<'a>>,
}

impl Plot<'_> {
    /// The picture. Long lines are means of neighbouring points.
    pub fn svg(&self) -> String {
        let legend = self.legend();
        // the picture grows by the rows of the legend
        let rows = LINE * legend.last().map_or(0.0, |(_, row)| *row as f64);
        let (top, height) = (TOP + rows, HEIGHT + rows);
        let lines: Vec<_> = self.series.iter().map(|s| thinned(&s.points)).collect();
        let points = || self.series.iter().flat_map(|s| &s.points);
        let last = points().map(|p| p.0).fold(0.0, f64::max);
        let last = if last > 0.0 { last } else { 1.0 };
        let high = lines.iter().flatten().map(|p| p.1).fold(0.0, f64::max).max(1e-3) * 1.05;
        let x = |at: f64| LEFT + (WIDTH - LEFT - RIGHT) * at / last;
        let y = |value: f64| height - BOTTOM - (height - top - BOTTOM) * value / high;
        let mut out = format!(
            "<svg xmlns=\"http://www.w3.org/2000/svg\" viewBox=\"0 0 {WIDTH} {height}\" font-family=\"sans-serif\" \
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
        for (at, text) in ticks(last) {
            let (x, y) = (x(at), height - BOTTOM + 16.0);
            let _ = writeln!(out, "<text x=\"{x:.1}\" y=\"{y}\" text-anchor=\"middle\">{text}</text>");
        }
        let _ = writeln!(
            out,
            "<text x=\"{}\" y=\"{}\" text-anchor=\"middle\">{}</text><text x=\"{LEFT}\" y=\"16\">{}</text>",
            (LEFT + WIDTH - RIGHT) / 2.0,
            height - 8.0,
            escaped(self.x),
            escaped(self.y)
        );
        for ((Series { name, colour, marked, .. }, points), (left, row)) in
            self.series.iter().zip(&lines).zip(legend)
        {
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
                let (x, y) = (x(*s), y(*v));
                let _ = writeln!(out, "<circle cx=\"{x:.1}\" cy=\"{y:.1}\" r=\"3\" fill=\"{colour}\"/>");
            }
            let y = LINE * (row + 1) as f64;
            let _ = writeln!(out, "<text x=\"{left}\" y=\"{y}\" fill=\"{colour}\">{}</text>", escaped(name));
        }
        out + "</svg>\n"
    }

    /// Where each line's name begins, and in which row of the legend; those left out take no place.
    fn legend(&self) -> Vec<(f64, usize)> {
        let start = LEFT + LETTER * self.y.len() as f64 + 12.0;
        let (mut left, mut row) = (start, 0);
        let place = |line: &Series<'_>| {
            let width = LETTER * line.name.len() as f64;
            let shown = !line.points.is_empty();
            if shown && left + width > WIDTH - RIGHT && left > start {
                (left, row) = (start, row + 1);
            }
            let at = (left, row);
            left += if shown { width + 16.0 } else { 0.0 };
            at
        };
        self.series.iter().map(place).collect()
    }
}

fn escaped(text: &str) -> String {
    text.replace('&', "&amp;").replace('<', "&lt;").replace('>', "&gt;")
}

/// A line's points, at most [`POINTS`]: means of as many neighbours each.
fn thinned(points: &[(f64, f64)]) -> Vec<(f64, f64)> {
    let group = points.len().div_ceil(POINTS).max(1);
    let mean = |g: &[(f64, f64)]| {
        let n = g.len() as f64;
        (g.iter().map(|p| p.0).sum::<f64>() / n, g.iter().map(|p| p.1).sum::<f64>() / n)
    };
    points.chunks(group).map(mean).collect()
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
    fn ticks_are_round() {
        let texts = |high| ticks(high).into_iter().map(|t| t.1).collect::<Vec<_>>().join(" ");
        assert_eq!(texts(4.2), "0 1 2 3 4");
        assert_eq!(texts(0.9), "0.0 0.2 0.4 0.6 0.8");
        assert_eq!(texts(2000.0), "0 500 1000 1500 2000");
    }

    #[test]
    fn lines_are_drawn_where_they_belong_and_empty_ones_left_out() {
        let line = |name, points| Series { name, colour: "red", marked: true, points };
        let series = vec![line("a<b", vec![(0.0, 0.0), (10.0, 100.0)]), line("empty", Vec::new())];
        let svg = Plot { x: "length", y: "seconds", series }.svg();
        assert!(svg.contains("a&lt;b") && !svg.contains("empty"), "{svg}");
        assert!(svg.contains("M56.0 356.0L704.0 "), "{svg}");
        assert_eq!(svg.matches("<circle").count(), 2);
        assert!(!Plot { x: "", y: "", series: Vec::new() }.svg().contains("NaN"));
    }

    #[test]
    fn a_long_legend_has_rows() {
        let line = |name| Series { name, colour: "red", marked: false, points: vec![(1.0, 1.0)] };
        let series = vec![line("a name that takes a third of a row"); 4];
        let svg = Plot { x: "length", y: "seconds", series }.svg();
        assert!(svg.contains("viewBox=\"0 0 720 416\""), "{svg}");
        let rows = |y: u32| svg.matches(&format!("y=\"{y}\" fill=\"red\"")).count();
        assert_eq!((rows(16), rows(32)), (2, 2), "{svg}");
    }
}
