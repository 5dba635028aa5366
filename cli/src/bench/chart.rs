//! The figures as an SVG chart: a bar a kind, and the roofline as a line through all of them.

use std::fmt::Write;

use super::kind::Kind;
use super::report::Report;
use crate::format::{bytes, figure};

const WIDTH: f64 = 760.0;
const LEFT: f64 = 200.0;
const RIGHT: f64 = 110.0;
const TOP: f64 = 70.0;
const ROW: f64 = 44.0;
const BAR: f64 = 24.0;

/// Draws it. Runs are dots on the bars, which are medians.
pub fn chart(report: &Report) -> String {
    let roofline = report.roofline().map(|roofline| 1.0 / roofline.seconds());
    let fastest = report.runs.keys().filter_map(|&kind| report.spread(kind)).map(|(_, high)| high);
    let top = fastest.chain(roofline).fold(0.0, f64::max).max(f64::MIN_POSITIVE);
    let place = |speed: f64| LEFT + speed / top * (WIDTH - LEFT - RIGHT);
    let bottom = TOP + ROW * report.runs.len() as f64;
    let height = bottom + if roofline.is_some() { 44.0 } else { 24.0 };
    let limit =
        report.limit_bytes.map_or("no memory limit".to_owned(), |limit| format!("memory limit {}", bytes(limit)));
    let mut svg = format!(
        "<svg xmlns=\"http://www.w3.org/2000/svg\" width=\"{WIDTH}\" height=\"{height}\" viewBox=\"0 0 {WIDTH} {height}\" \
         font-family=\"system-ui, sans-serif\" font-size=\"14\" role=\"img\">\n\
         <rect width=\"100%\" height=\"100%\" fill=\"#fff\"/>\n\
         <text x=\"20\" y=\"30\" font-size=\"17\" font-weight=\"600\" fill=\"#1c2733\">{}</text>\n\
         <text x=\"20\" y=\"50\" fill=\"#66788a\">tokens per second; {} of weights, {limit}</text>\n",
        escaped(&report.title),
        bytes(report.weight_bytes)
    );
    // Writing to a String cannot fail.
    for (row, (&kind, runs)) in report.runs.iter().enumerate() {
        let y = TOP + ROW * row as f64 + (ROW - BAR) / 2.0;
        let middle = y + BAR / 2.0;
        let colour = if kind == Kind::Streamed { "#2f7ed8" } else { "#9fb3c8" };
        let _ = writeln!(
            svg,
            "<text x=\"{}\" y=\"{}\" text-anchor=\"end\" fill=\"#1c2733\">{}</text>",
            LEFT - 12.0,
            middle + 5.0,
            escaped(kind.title())
        );
        let (text, end) = match report.speed(kind) {
            Some(speed) => {
                let width = place(speed) - LEFT;
                let _ = writeln!(
                    svg,
                    "<rect x=\"{LEFT}\" y=\"{y}\" width=\"{width:.1}\" height=\"{BAR}\" rx=\"3\" fill=\"{colour}\"/>"
                );
                (figure(speed), report.spread(kind).map_or(speed, |(_, high)| high))
            }
            None => ("no figure".to_owned(), 0.0),
        };
        for speed in runs.iter().filter_map(|run| run.tokens_per_second) {
            let _ = writeln!(svg, "<circle cx=\"{:.1}\" cy=\"{middle}\" r=\"3\" fill=\"#1c2733\"/>", place(speed));
        }
        let _ = writeln!(
            svg,
            "<text x=\"{:.1}\" y=\"{}\" font-weight=\"600\" fill=\"#1c2733\">{text}</text>",
            place(end) + 10.0,
            middle + 5.0
        );
    }
    if let Some(speed) = roofline {
        let x = place(speed);
        let _ = writeln!(
            svg,
            "<line x1=\"{x:.1}\" y1=\"{TOP}\" x2=\"{x:.1}\" y2=\"{bottom}\" stroke=\"#c8553d\" stroke-width=\"2\" \
             stroke-dasharray=\"5 4\"/>\n<text x=\"{x:.1}\" y=\"{}\" text-anchor=\"middle\" fill=\"#c8553d\">\
             roofline {}</text>",
            bottom + 20.0,
            figure(speed)
        );
    }
    svg.push_str("</svg>\n");
    svg
}

fn escaped(text: &str) -> String {
    text.replace('&', "&amp;").replace('<', "&lt;").replace('>', "&gt;").replace('"', "&quot;")
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::bench::report::tests::report;

    #[test]
    fn bars_are_in_proportion() {
        let svg = chart(&report());
        // 10 tokens per second fill the width: 450.
        for words in ["width=\"450.0\"", "width=\"135.0\"", "width=\"22.5\"", "roofline 4.00", "memory limit 4.00 GiB"]
        {
            assert!(svg.contains(words), "'{words}' is not in\n{svg}");
        }
        assert_eq!(svg.matches("<circle").count(), 6);
    }

    #[test]
    fn titles_cannot_break_it() {
        let mut odd = report();
        odd.title = "a<b>&\"c\"".to_owned();
        odd.runs.get_mut(&Kind::Mmap).unwrap().clear();
        let svg = chart(&odd);
        assert!(svg.contains("a&lt;b&gt;&amp;&quot;c&quot;") && svg.contains("no figure"), "{svg}");
        assert_eq!(svg.matches('<').count(), svg.matches('>').count());
    }
}
