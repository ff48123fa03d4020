//! The result as one picture (SVG): what each model costs, who sends, and how that depends on what is uncertain.

use std::fmt::Write as _;

use common::config::show_bytes;

use crate::traffic::model::{Model, Outcome};
use crate::traffic::report::TrafficReport;
use crate::traffic::sweep::SweepPoint;

/// What is drawn of an outcome.
type Figure = fn(&Outcome) -> u64;

const WIDTH: f64 = 1120.0;
const PANEL_WIDTH: f64 = 500.0;
const LEFT: [f64; 2] = [40.0, 580.0];
const TOP: [f64; 2] = [130.0, 430.0];
const PANEL_HEIGHT: f64 = 250.0;
const TEXT: &str = "#24292f";
const FAINT: &str = "#6e7781";
const GRID: &str = "#e4e7eb";

fn colour(model: Model) -> &'static str {
    match model {
        Model::ClientServer => "#8c959f",
        Model::PeerToPeer => "#d9822b",
        Model::Sites => "#1f6feb",
    }
}

/// Draws the report; with a sweep two panels more.
pub fn svg(report: &TrafficReport) -> String {
    let height = if report.sweep.is_some() { 700.0 } else { 400.0 };
    let mut picture = Picture::new(height);
    let trace = &report.trace;
    picture.text(LEFT[0], 42.0, "What delivering costs the network", "start", 22.0, TEXT, "600");
    let subtitle = format!(
        "{} requests of {} clients for {} contents; {} sites; clients on {:.0} % of the time; Zipf alpha {}",
        grouped(trace.requests as u64),
        grouped(trace.clients as u64),
        grouped(trace.contents as u64),
        report.topology.sites.len(),
        trace.availability * 100.0,
        trace.zipf_alpha
    );
    picture.text(LEFT[0], 66.0, &subtitle, "start", 13.0, FAINT, "400");
    let mut x = LEFT[0];
    for model in Model::ALL {
        picture.rect(x, 82.0, 12.0, 12.0, colour(model));
        picture.text(x + 18.0, 92.5, model.as_str(), "start", 13.0, TEXT, "400");
        x += 130.0;
    }
    costs(&mut picture, report);
    senders(&mut picture, &report.models);
    if let Some(sweep) = &report.sweep {
        let percent = |value: f64| format!("{:.0} %", value * 100.0);
        let plain = |value: f64| format!("{value:.1}");
        lines(&mut picture, LEFT[0], "By the time that clients are on", &sweep.availability, percent);
        lines(&mut picture, LEFT[1], "By the slope of popularity (Zipf alpha)", &sweep.zipf_alpha, plain);
    }
    picture.end()
}

/// Bars: bytes x hops, and bytes from the origin.
fn costs(picture: &mut Picture, report: &TrafficReport) {
    let (x, y) = (LEFT[0], TOP[0]);
    picture.title(x, y, "Traffic");
    let figures: [(&str, Figure); 2] =
        [("bytes × hops", |o| o.byte_hops), ("bytes from the origin", |o| o.origin_bytes)];
    let server = report.model(Model::ClientServer);
    for (group, (name, figure)) in figures.into_iter().enumerate() {
        let top = y + 20.0 + group as f64 * 118.0;
        picture.text(x, top + 12.0, name, "start", 12.0, FAINT, "400");
        let whole = server.map_or(1.0, |outcome| figure(outcome) as f64).max(1.0);
        let most = report.models.iter().map(|outcome| figure(outcome) as f64).fold(whole, f64::max);
        for (i, outcome) in report.models.iter().enumerate() {
            let (value, top) = (figure(outcome) as f64, top + 20.0 + i as f64 * 28.0);
            let width = (value / most * (PANEL_WIDTH - 170.0)).max(1.0);
            picture.rect(x, top, width, 20.0, colour(outcome.model));
            let label = format!("{} ({:.0} %)", show_bytes(figure(outcome)), 100.0 * value / whole);
            picture.text(x + width + 8.0, top + 14.5, &label, "start", 13.0, TEXT, "400");
        }
    }
}

/// Stacked bars: who had what was asked for.
fn senders(picture: &mut Picture, models: &[Outcome]) {
    let (x, y) = (LEFT[1], TOP[0]);
    picture.title(x, y, "Who sends, by requests");
    let kinds: [(&str, f64, Figure); 4] = [
        ("nobody else: it is there", 1.0, |o| o.local),
        ("another client or site", 0.6, |o| o.from_peer),
        ("the origin", 0.3, |o| o.from_origin - o.no_running_holder),
        ("the origin, for no holder runs", 0.0, |o| o.no_running_holder),
    ];
    for (i, outcome) in models.iter().enumerate() {
        let top = y + 40.0 + i as f64 * 46.0;
        picture.text(x, top - 6.0, outcome.model.as_str(), "start", 12.0, FAINT, "400");
        let mut left = x;
        for (_, strength, count) in kinds {
            let share = count(outcome) as f64 / (outcome.requests as f64).max(1.0);
            let width = share * PANEL_WIDTH;
            picture.shade(left, top, width, 22.0, colour(outcome.model), strength);
            if width > 40.0 {
                let ink = if strength > 0.9 { "#ffffff" } else { TEXT };
                let label = format!("{:.0} %", share * 100.0);
                picture.text(left + width / 2.0, top + 15.5, &label, "middle", 12.0, ink, "400");
            }
            left += width;
        }
    }
    for (i, (name, strength, _)) in kinds.into_iter().enumerate() {
        let (left, top) = (x + (i % 2) as f64 * 230.0, y + 190.0 + (i / 2) as f64 * 24.0);
        picture.shade(left, top, 14.0, 14.0, "#57606a", strength);
        picture.text(left + 21.0, top + 11.5, name, "start", 12.0, TEXT, "400");
    }
}

/// Lines: bytes x hops as a share of the server's, over a parameter.
fn lines(picture: &mut Picture, x: f64, by: &str, points: &[SweepPoint], show: impl Fn(f64) -> String) {
    let y = TOP[1];
    picture.title(x, y, by);
    picture.text(x, y + 18.0, "bytes × hops, relative to client-server", "start", 12.0, FAINT, "400");
    let (left, width) = (x + 46.0, PANEL_WIDTH - 60.0);
    let (top, height) = (y + 38.0, PANEL_HEIGHT - 62.0);
    let values = points.iter().flat_map(|point| Model::ALL.map(|model| point.relative(model)));
    let most = (values.fold(1.0, f64::max) * 4.0).ceil() / 4.0;
    let at_y = |value: f64| top + height * (1.0 - value / most);
    for step in 0..=(most * 4.0).round() as u32 {
        let value = f64::from(step) / 4.0;
        picture.line(left, at_y(value), left + width, at_y(value), GRID);
        let label = format!("{:.0} %", value * 100.0);
        picture.text(left - 8.0, at_y(value) + 4.0, &label, "end", 11.0, FAINT, "400");
    }
    let (Some(first), Some(last)) = (points.first(), points.last()) else { return };
    let span = (last.value - first.value).max(f64::EPSILON);
    let at_x = |value: f64| left + width * (value - first.value) / span;
    for point in points {
        picture.text(
            at_x(point.value),
            top + height + 18.0,
            &show(point.value),
            "middle",
            11.0,
            FAINT,
            "400",
        );
    }
    for model in Model::ALL {
        let path: Vec<(f64, f64)> =
            points.iter().map(|point| (at_x(point.value), at_y(point.relative(model)))).collect();
        picture.path(&path, colour(model));
    }
}

/// SVG as it grows. Writing to a String cannot fail.
struct Picture {
    text: String,
}

impl Picture {
    fn new(height: f64) -> Self {
        let text = format!(
            "<svg xmlns=\"http://www.w3.org/2000/svg\" width=\"{WIDTH}\" height=\"{height}\" \
             viewBox=\"0 0 {WIDTH} {height}\" font-family=\"system-ui, 'DejaVu Sans', sans-serif\">\n\
             <rect width=\"{WIDTH}\" height=\"{height}\" fill=\"#ffffff\"/>\n"
        );
        Self { text }
    }

    fn title(&mut self, x: f64, y: f64, text: &str) {
        self.text(x, y, text, "start", 15.0, TEXT, "600");
    }

    #[expect(clippy::too_many_arguments, reason = "a text has as many properties")]
    fn text(&mut self, x: f64, y: f64, text: &str, anchor: &str, size: f64, fill: &str, weight: &str) {
        let text = text.replace('&', "&amp;").replace('<', "&lt;");
        let _always_ok = writeln!(
            self.text,
            "<text x=\"{x:.1}\" y=\"{y:.1}\" text-anchor=\"{anchor}\" font-size=\"{size}\" fill=\"{fill}\" \
             font-weight=\"{weight}\">{text}</text>"
        );
    }

    fn rect(&mut self, x: f64, y: f64, width: f64, height: f64, fill: &str) {
        self.shade(x, y, width, height, fill, 1.0);
    }

    /// A rectangle in a strength of a colour, with its outline; at strength 0 the outline alone.
    fn shade(&mut self, x: f64, y: f64, width: f64, height: f64, fill: &str, strength: f64) {
        if width <= 0.0 {
            return;
        }
        let _always_ok = writeln!(
            self.text,
            "<rect x=\"{x:.1}\" y=\"{y:.1}\" width=\"{width:.1}\" height=\"{height:.1}\" fill=\"{fill}\" \
             fill-opacity=\"{strength}\" stroke=\"{fill}\" stroke-width=\"1\"/>"
        );
    }

    fn line(&mut self, x1: f64, y1: f64, x2: f64, y2: f64, stroke: &str) {
        let _always_ok = writeln!(
            self.text,
            "<line x1=\"{x1:.1}\" y1=\"{y1:.1}\" x2=\"{x2:.1}\" y2=\"{y2:.1}\" stroke=\"{stroke}\"/>"
        );
    }

    fn path(&mut self, points: &[(f64, f64)], stroke: &str) {
        let place: Vec<String> = points.iter().map(|(x, y)| format!("{x:.1},{y:.1}")).collect();
        let _always_ok = writeln!(
            self.text,
            "<polyline points=\"{}\" fill=\"none\" stroke=\"{stroke}\" stroke-width=\"2.5\" \
             stroke-linejoin=\"round\"/>",
            place.join(" ")
        );
        for (x, y) in points {
            let _always_ok =
                writeln!(self.text, "<circle cx=\"{x:.1}\" cy=\"{y:.1}\" r=\"3.5\" fill=\"{stroke}\"/>");
        }
    }

    fn end(mut self) -> String {
        self.text.push_str("</svg>\n");
        self.text
    }
}

/// Thousands apart.
fn grouped(number: u64) -> String {
    let digits = number.to_string();
    let mut text = String::new();
    for (i, digit) in digits.chars().enumerate() {
        if i > 0 && (digits.len() - i).is_multiple_of(3) {
            text.push(' ');
        }
        text.push(digit);
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::traffic::model::Rules;
    use crate::traffic::sweep::sweep;
    use crate::traffic::topology::Topology;
    use crate::traffic::trace::TraceParameters;

    #[test]
    fn the_picture_is_well_formed_and_shows_every_model() {
        let topology = Topology::tree(2, 2).unwrap();
        let parameters =
            TraceParameters { clients: 20, contents: 30, requests: 300, ..TraceParameters::default() };
        let trace = parameters.generate(&topology).unwrap();
        let sweep = sweep(&parameters, Rules::default(), &topology).unwrap();
        for sweep in [None, Some(sweep)] {
            let is_swept = sweep.is_some();
            let picture = svg(&TrafficReport::of(&trace, Rules::default(), &topology, sweep));
            assert_eq!(picture.matches("<text").count(), picture.matches("</text>").count());
            assert_eq!(picture.matches("<polyline").count(), if is_swept { 6 } else { 0 });
            assert!(Model::ALL.iter().all(|model| picture.contains(model.as_str())));
            assert!(!picture.contains("NaN") && !picture.contains("inf"), "{picture}");
        }
    }

    #[test]
    fn thousands_stand_apart() {
        assert_eq!(["0", "999", "1 000", "1 234 567"], [0, 999, 1000, 1_234_567].map(grouped));
    }
}
