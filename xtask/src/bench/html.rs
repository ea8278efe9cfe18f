//! HTML report with plots.

use super::result::{Cell, Row};
use super::table::{number, ratio};
use super::variant;
use anyhow::{Result, anyhow};
use plotters::coord::Shift;
use plotters::prelude::*;
use std::fmt::Write as _;

/// A colour per variant, distinguishable with colour blindness (after Okabe and Ito).
const COLOURS: [RGBColor; 8] = [
    RGBColor(120, 120, 120),
    RGBColor(60, 60, 60),
    RGBColor(230, 159, 0),
    RGBColor(213, 94, 0),
    RGBColor(204, 121, 167),
    RGBColor(0, 114, 178),
    RGBColor(86, 180, 233),
    RGBColor(0, 158, 115),
];

const STYLE: &str = "body{font:15px/1.4 system-ui,sans-serif;max-width:1100px;margin:2em auto;\
color:#222}table{border-collapse:collapse;margin:1em 0}td,th{border:1px solid #ccc;\
padding:.2em .6em;text-align:right}td:first-child,th:first-child,td:nth-child(2):last-child{text-align:left}\
.plots{display:flex;flex-wrap:wrap;gap:8px}small{color:#666}";

/// Returns the complete page.
pub fn page(rows: &[Row], head: &[(String, String)]) -> Result<String> {
    let mut html = format!(
        "<!doctype html><meta charset=utf-8><title>netdp bench</title><style>{STYLE}</style>\
         <h1>cargo xtask bench</h1><table>"
    );
    for (key, value) in head {
        let _ = write!(html, "<tr><td>{}<td>{}", escaped(key), escaped(value));
    }
    html += "</table><h2>Compared</h2><table>";
    for variant in variant::ALL {
        let _ = write!(
            html,
            "<tr><td>{}<td>{}",
            variant.name,
            escaped(variant.what)
        );
    }
    html += "</table><h2>Curves</h2><div class=plots>";
    for name in curves(rows) {
        html += &curve(rows, &name)?;
    }
    html += "</div><h2>Bars</h2><div class=plots>";
    for row in rows.iter().filter(|row| row.curve.is_none()) {
        html += &bars(row)?;
    }
    html += "</div><h2>Figures</h2>";
    html += &figures(rows);
    Ok(html)
}

fn figures(rows: &[Row]) -> String {
    let mut html = String::from(
        "<p>Median, half the interquartile range, best round; ratio: the median over rounds of \
         the ratio to <i>plain</i>, with connection tracking to <i>plain+ct</i>.</p><table><tr>\
         <th><th>CIDRs<th>unit<th>variant<th>median<th>±<th>best<th>ratio",
    );
    for row in rows {
        for cell in &row.cells {
            let _ = write!(
                html,
                "<tr><td>{}<td>{}<td>{}<td>{}<td>{}<td>{:.1}%<td>{}<td>{}",
                escaped(&row.what),
                row.cidrs,
                row.unit,
                cell.variant,
                number(cell.median()),
                cell.spread() * 100.0,
                number(cell.best(row.higher_is_better)),
                ratio(row, cell)
            );
        }
    }
    html + "</table>"
}

fn curves(rows: &[Row]) -> Vec<String> {
    let mut names: Vec<String> = Vec::new();
    for (name, _) in rows.iter().filter_map(|row| row.curve.as_ref()) {
        if !names.contains(name) {
            names.push(name.clone());
        }
    }
    names
}

/// Plots the medians of each variant over a logarithmic x axis.
fn curve(rows: &[Row], name: &str) -> Result<String> {
    let points: Vec<(f64, &Row)> = rows
        .iter()
        .filter_map(|row| {
            let (of, x) = row.curve.as_ref()?;
            (of == name).then_some((*x, row))
        })
        .collect();
    let xs = points.iter().map(|(x, _)| *x);
    let (low, high) = (xs.clone().fold(f64::MAX, f64::min), xs.fold(0.0, f64::max));
    let top = points
        .iter()
        .flat_map(|(_, row)| row.cells.iter().map(Cell::median))
        .fold(0.0, f64::max);
    let unit = points.first().map_or("", |(_, row)| row.unit);
    let mut svg = String::new();
    {
        let area = SVGBackend::with_string(&mut svg, (540, 360)).into_drawing_area();
        area.fill(&WHITE).map_err(failed)?;
        let mut chart = ChartBuilder::on(&area)
            .caption(format!("{name} [{unit}]"), ("sans-serif", 15))
            .margin(10)
            .x_label_area_size(30)
            .y_label_area_size(60)
            .build_cartesian_2d((low..high.max(low * 1.01)).log_scale(), 0.0..top * 1.1)
            .map_err(failed)?;
        chart
            .configure_mesh()
            .light_line_style(WHITE)
            .x_label_formatter(&|x| number(*x))
            .y_label_formatter(&|y| number(*y))
            .draw()
            .map_err(failed)?;
        for (index, variant) in variant::ALL.iter().enumerate() {
            let line: Vec<(f64, f64)> = points
                .iter()
                .filter_map(|(x, row)| Some((*x, row.cell(variant.name)?.median())))
                .collect();
            if line.is_empty() {
                continue;
            }
            let colour = COLOURS[index % COLOURS.len()];
            chart
                .draw_series(LineSeries::new(line, colour.stroke_width(2)).point_size(3))
                .map_err(failed)?
                .label(variant.name)
                .legend(move |(x, y)| {
                    PathElement::new([(x, y), (x + 16, y)], colour.stroke_width(2))
                });
        }
        chart
            .configure_series_labels()
            .background_style(WHITE.mix(0.8))
            .border_style(BLACK.mix(0.2))
            .position(SeriesLabelPosition::LowerLeft)
            .draw()
            .map_err(failed)?;
        area.present().map_err(failed)?;
    }
    Ok(svg)
}

/// Plots a bar per variant: its median, with the range of its samples.
fn bars(row: &Row) -> Result<String> {
    let (left, right, height) = (90, 90, 18);
    let count = i32::try_from(row.cells.len())?;
    let size = (540, u32::try_from(40 + count * (height + 6))?);
    let top = row
        .cells
        .iter()
        .flat_map(|cell| cell.samples.iter().copied())
        .fold(f64::MIN_POSITIVE, f64::max);
    let mut svg = String::new();
    {
        let area = SVGBackend::with_string(&mut svg, size).into_drawing_area();
        area.fill(&WHITE).map_err(failed)?;
        write_at(&area, &format!("{} [{}]", row.what, row.unit), (8, 8), 15)?;
        let width = f64::from(540 - left - right);
        #[expect(clippy::cast_possible_truncation, reason = "pixels")]
        let at = |value: f64| left + (value / top * width) as i32;
        for (y, cell) in (30..).step_by(24).zip(&row.cells) {
            let index = variant::ALL
                .iter()
                .position(|variant| variant.name == cell.variant);
            let colour = COLOURS[index.unwrap_or(0) % COLOURS.len()];
            let median = at(cell.median());
            let bar = Rectangle::new([(left, y), (median, y + height)], colour.filled());
            area.draw(&bar).map_err(failed)?;
            let (low, high) = (cell.best(false), cell.best(true));
            let middle = y + height / 2;
            let range = PathElement::new([(at(low), middle), (at(high), middle)], BLACK);
            area.draw(&range).map_err(failed)?;
            write_at(&area, cell.variant, (4, y + 3), 12)?;
            let text = format!("{} {}", number(cell.median()), ratio(row, cell));
            write_at(&area, &text, (at(high).max(median) + 5, y + 3), 12)?;
        }
        area.present().map_err(failed)?;
    }
    Ok(svg)
}

type Area<'a> = DrawingArea<SVGBackend<'a>, Shift>;

fn write_at(area: &Area<'_>, text: &str, at: (i32, i32), size: u32) -> Result<()> {
    let style = TextStyle::from(("sans-serif", size)).color(&BLACK);
    area.draw_text(text, &style, at).map_err(failed)
}

fn failed(error: impl std::fmt::Display) -> anyhow::Error {
    anyhow!("drawing: {error}")
}

fn escaped(text: &str) -> String {
    text.replace('&', "&amp;").replace('<', "&lt;")
}
