//! A few pictures for those who read no tables.

use std::error::Error;
use std::path::Path;

use plotters::prelude::*;
use plotters::style::text_anchor::{HPos, Pos, VPos};

use super::results::{Figure, Results, Slice, spread};

/// In pixels.
const WIDTH: u32 = 900;
const ROW: i32 = 20;
const BAR: i32 = 14;
const LABELS: i32 = 130;
const FIGURES: i32 = 170;
const TITLE: i32 = 40;
const LEGEND: i32 = 26;

/// Of the parts of a bar, readable on white and on dark pages alike.
const COLOURS: [RGBColor; 2] = [RGBColor(38, 110, 176), RGBColor(242, 169, 59)];
const INK: RGBColor = RGBColor(36, 41, 47);

/// Another scale than all the others.
const LEFT_OUT: &str = "find-1MB";

/// Bars under a heading.
struct Group {
    heading: String,
    bars: Vec<Bar>,
}

struct Bar {
    label: String,
    parts: Vec<f64>,
    figure: String,
}

/// Writes all charts into a directory.
pub fn write(results: &Results, directory: &Path) -> Result<(), Box<dyn Error>> {
    std::fs::create_dir_all(directory)?;
    let cases = results.cases().into_iter().filter(|case| !case.starts_with(LEFT_OUT));
    let cpu: Vec<Group> = cases.map(|case| cpu_group(results, &results.of_case(case))).collect();
    draw(
        &directory.join("cpu-per-command.svg"),
        "CPU per command, microseconds (medians)",
        &["proxy", "mongod"],
        &cpu,
    )?;
    let turns = results.cases().into_iter().filter(|case| case.ends_with("@turn"));
    let p99: Vec<Group> = turns.map(|case| p99_group(results, &results.of_case(case))).collect();
    draw(&directory.join("p99-in-turn.svg"), "99th percentile of latency, milliseconds (medians)", &[], &p99)?;
    let bars = results.memory.iter().filter_map(|memory| {
        let kib = memory.kib_per_client()?;
        let label = memory.target.clone();
        Some(Bar { label, parts: vec![kib], figure: format!("{kib:.1} with {} clients", memory.clients) })
    });
    let memory = Group { heading: "resident, beyond a bare start".to_owned(), bars: bars.collect() };
    draw(&directory.join("memory-per-idle-client.svg"), "Memory of the proxy per idle client, KiB", &[], &[memory])
}

fn cpu_group(results: &Results, slices: &[&Slice]) -> Group {
    let median = |target: &str, figure: Figure<Slice>| spread(slices, target, figure).map(|spread| spread.median);
    group(results, slices, |target| {
        let (proxy, server) = (median(target, |it| it.proxy_us), median(target, |it| Some(it.server_us))?);
        let figure = match proxy {
            Some(proxy) => format!("{proxy:.0} + {server:.0} = {:.0}", proxy + server),
            None => format!("{server:.0}"),
        };
        Some((vec![proxy.unwrap_or(0.0), server], figure))
    })
}

fn p99_group(results: &Results, slices: &[&Slice]) -> Group {
    group(results, slices, |target| {
        let p99 = spread(slices, target, |it| Some(it.p99_ms))?.median;
        Some((vec![p99], format!("{p99:.1}")))
    })
}

fn group(results: &Results, slices: &[&Slice], bar: impl Fn(&str) -> Option<(Vec<f64>, String)>) -> Group {
    let bars = results.targets.iter().filter_map(|target| {
        let (parts, figure) = bar(target)?;
        Some(Bar { label: target.clone(), parts, figure })
    });
    Group { heading: slices.first().map(|slice| slice.title.clone()).unwrap_or_default(), bars: bars.collect() }
}

/// Horizontal bars, all to one scale.
fn draw(file: &Path, title: &str, legend: &[&str], groups: &[Group]) -> Result<(), Box<dyn Error>> {
    let top = TITLE + if legend.is_empty() { 0 } else { LEGEND };
    let rows: usize = groups.iter().map(|group| group.bars.len() + 2).sum();
    let height = top + ROW * i32::try_from(rows)?;
    let area = SVGBackend::new(file, (WIDTH, height.unsigned_abs())).into_drawing_area();
    area.fill(&WHITE)?;
    let text = |size: i32, horizontal| {
        TextStyle::from(("sans-serif", size).into_font()).color(&INK).pos(Pos::new(horizontal, VPos::Center))
    };
    area.draw_text(title, &text(17, HPos::Left), (10, 20))?;
    for (index, (name, colour)) in (0..).zip(legend.iter().zip(COLOURS)) {
        let left = LABELS + 90 * index;
        area.draw(&Rectangle::new([(left, TITLE), (left + BAR, TITLE + BAR)], colour.filled()))?;
        area.draw_text(name, &text(13, HPos::Left), (left + BAR + 6, TITLE + BAR / 2))?;
    }
    let longest = groups.iter().flat_map(|group| &group.bars).map(|bar| bar.parts.iter().sum()).fold(0.0, f64::max);
    let scale = f64::from(WIDTH.cast_signed() - LABELS - FIGURES) / longest;
    let mut y = top;
    for group in groups {
        area.draw_text(&group.heading, &text(14, HPos::Left), (10, y + ROW / 2))?;
        y += ROW;
        for bar in &group.bars {
            let middle = y + ROW / 2;
            area.draw_text(&bar.label, &text(13, HPos::Right), (LABELS - 8, middle))?;
            let mut left = LABELS;
            for (part, colour) in bar.parts.iter().zip(COLOURS) {
                let right = left + (part * scale).round() as i32;
                let corners = [(left, middle - BAR / 2), (right, middle + BAR / 2)];
                area.draw(&Rectangle::new(corners, colour.filled()))?;
                left = right;
            }
            area.draw_text(&bar.figure, &text(13, HPos::Left), (left + 6, middle))?;
            y += ROW;
        }
        y += ROW;
    }
    Ok(area.present()?)
}
