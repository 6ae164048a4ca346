//! Draws what the other benchmarks have measured: `cargo bench --bench plot`.
//!
//! Reads the JSON lines in `docs/performance.jsonl` and writes `docs/plots/*.svg`. It measures nothing;
//! `scripts/performance.sh` runs all benchmarks and then this.

use std::error::Error;
use std::ops::Range;
use std::path::Path;

use plotters::coord::Shift;
use plotters::prelude::*;
use serde_json::Value;

const FIGURES: &str = "docs/performance.jsonl";
const PLOTS: &str = "docs/plots";

const OURS: &str = "redis-locking-worker";

type Panel<'a> = DrawingArea<SVGBackend<'a>, Shift>;

/// A line of a plot: whose it is, and its points.
type Series = (String, Vec<(f64, f64)>);

fn main() -> Result<(), Box<dyn Error>> {
    let root = Path::new(concat!(env!("CARGO_MANIFEST_DIR"), "/.."));
    let text = std::fs::read_to_string(root.join(FIGURES))?;
    let rows: Vec<Value> = text
        .lines()
        .map(serde_json::from_str)
        .collect::<Result<_, _>>()?;
    let plots = root.join(PLOTS);
    std::fs::create_dir_all(&plots)?;
    cycle(&rows, &plots.join("cycle.svg"))?;
    handoff(&rows, &plots.join("handoff.svg"))?;
    memory(&rows, &plots.join("memory.svg"))?;
    println!("drawn from {FIGURES}: {PLOTS}/cycle.svg, handoff.svg, memory.svg");
    Ok(())
}

/// The rows of a benchmark with this unit.
fn of<'a>(rows: &'a [Value], bench: &str, unit: &str) -> Vec<&'a Value> {
    rows.iter()
        .filter(|row| row["bench"] == bench && row["unit"] == unit)
        .collect()
}

fn number(row: &Value, name: &str) -> f64 {
    row[name].as_f64().unwrap_or(f64::NAN)
}

/// Adds a point to the series of this name.
fn add(series: &mut Vec<Series>, name: &str, point: (f64, f64)) {
    match series.iter_mut().find(|(known, _)| known == name) {
        // Ours stands in the row of each peer.
        Some((_, points)) if points.last().is_some_and(|last| last.0 == point.0) => {}
        Some((_, points)) => points.push(point),
        None => series.push((name.to_owned(), vec![point])),
    }
}

fn cycle(rows: &[Value], path: &Path) -> Result<(), Box<dyn Error>> {
    let area = SVGBackend::new(path, (900, 380)).into_drawing_area();
    area.fill(&WHITE)?;
    let panels = area.split_evenly((1, 2));
    for (panel, flavour) in panels.iter().zip(["current-thread", "multi-thread"]) {
        let mut series = Vec::new();
        for row in of(rows, "cycle", "cycles/s") {
            let case = row["case"].as_str().unwrap_or_default();
            let Some(in_flight) = case.strip_suffix(&format!(" in flight, {flavour}")) else {
                continue;
            };
            let in_flight: f64 = in_flight.parse()?;
            let peer = row["peer"].as_str().unwrap_or_default();
            add(&mut series, OURS, (in_flight, number(row, "ours") / 1e3));
            add(&mut series, peer, (in_flight, number(row, "theirs") / 1e3));
        }
        let title = format!("Acquire and done, {flavour}");
        let axes = ("cycles in flight", "thousand cycles/s");
        let top = 1.1 * highest(&series);
        draw(
            panel,
            &title,
            axes,
            1.0..1_024.0,
            0.0..top,
            &series,
            SeriesLabelPosition::LowerRight,
        )?;
    }
    area.present()?;
    Ok(())
}

fn memory(rows: &[Value], path: &Path) -> Result<(), Box<dyn Error>> {
    let area = SVGBackend::new(path, (560, 380)).into_drawing_area();
    area.fill(&WHITE)?;
    let mut series = Vec::new();
    for row in of(rows, "scale", "bytes a stream") {
        let case = row["case"].as_str().unwrap_or_default();
        let (streams, which) = case.split_once(" streams ").unwrap_or_default();
        add(&mut series, which, (streams.parse()?, number(row, "ours")));
    }
    let axes = ("waiting streams", "bytes of resident memory a stream");
    let top = 1.1 * highest(&series);
    draw(
        &area,
        "Memory of a waiting stream",
        axes,
        1_000.0..100_000.0,
        0.0..top,
        &series,
        SeriesLabelPosition::UpperRight,
    )?;
    area.present()?;
    Ok(())
}

fn handoff(rows: &[Value], path: &Path) -> Result<(), Box<dyn Error>> {
    let area = SVGBackend::new(path, (900, 380)).into_drawing_area();
    area.fill(&WHITE)?;
    let panels = area.split_evenly((1, 2));
    for (panel, waiters) in panels.iter().zip([1, 100]) {
        let mut series = Vec::new();
        let wanted = format!("drop, {waiters} waiting, current-thread");
        for (unit, part) in [
            ("us, p10", 10.0),
            ("us, p50", 50.0),
            ("us, p90", 90.0),
            ("us, p99", 99.0),
            ("us, max", 100.0),
        ] {
            for row in of(rows, "handoff", unit) {
                if row["case"] == wanted.as_str() {
                    let peer = row["peer"].as_str().unwrap_or_default();
                    by_part(&mut series, OURS, part, number(row, "ours"));
                    by_part(&mut series, peer, part, number(row, "theirs"));
                }
            }
        }
        let times = series.iter().flat_map(|(_, points)| points);
        let right = times.map(|point| point.0).fold(0.0, f64::max);
        let title = format!("From drop to the next Acquired, {waiters} waiting");
        let axes = ("µs", "% of hand-offs within");
        draw(
            panel,
            &title,
            axes,
            10.0..2.0 * right,
            0.0..100.0,
            &series,
            SeriesLabelPosition::LowerRight,
        )?;
    }
    area.present()?;
    Ok(())
}

/// A point of a distribution: so many % within that time.
fn by_part(series: &mut Vec<Series>, name: &str, part: f64, time: f64) {
    match series.iter_mut().find(|(known, _)| known == name) {
        Some((_, points)) if points.last().is_some_and(|last| last.1 == part) => {}
        Some((_, points)) => points.push((time, part)),
        None => series.push((name.to_owned(), vec![(time, part)])),
    }
}

const COLOURS: [RGBColor; 4] = [
    RGBColor(200, 40, 40),
    RGBColor(40, 90, 170),
    RGBColor(60, 140, 70),
    RGBColor(120, 120, 120),
];

/// Lines over a logarithmic axis.
fn draw(
    panel: &Panel<'_>,
    title: &str,
    (x_axis, y_axis): (&str, &str),
    x: Range<f64>,
    y: Range<f64>,
    series: &[Series],
    legend: SeriesLabelPosition,
) -> Result<(), Box<dyn Error>> {
    let mut chart = ChartBuilder::on(panel)
        .caption(title, ("sans-serif", 17))
        .margin(12)
        .margin_right(28)
        .x_label_area_size(42)
        .y_label_area_size(62)
        .build_cartesian_2d(x.log_scale(), y)?;
    chart
        .configure_mesh()
        .x_desc(x_axis)
        .y_desc(y_axis)
        .light_line_style(WHITE)
        .x_label_formatter(&|x| format!("{x:.0}"))
        .draw()?;
    for ((name, points), colour) in series.iter().zip(COLOURS) {
        let line = LineSeries::new(points.iter().copied(), colour.stroke_width(2)).point_size(3);
        chart
            .draw_series(line)?
            .label(name)
            .legend(move |(x, y)| PathElement::new([(x, y), (x + 18, y)], colour.stroke_width(2)));
    }
    chart
        .configure_series_labels()
        .position(legend)
        .background_style(WHITE.mix(0.8))
        .border_style(BLACK.mix(0.3))
        .draw()?;
    Ok(())
}

fn highest(series: &[Series]) -> f64 {
    let points = series.iter().flat_map(|(_, points)| points);
    points.map(|point| point.1).fold(0.0, f64::max)
}
