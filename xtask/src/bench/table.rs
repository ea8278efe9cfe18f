//! Tables of results on the terminal.

use super::result::{Cell, Row};
use comfy_table::{CellAlignment, Table, presets::UTF8_FULL_CONDENSED};

/// Prints a row as soon as it is measured.
pub fn print_row(row: &Row) {
    let mut table = Table::new();
    table.load_style(UTF8_FULL_CONDENSED).set_header([
        &format!("{} ({}), {} CIDRs", row.what, row.unit, row.cidrs),
        "median",
        "spread",
        "best",
        "ratio to its base",
    ]);
    for cell in &row.cells {
        table.add_row([
            cell.variant.to_owned(),
            number(cell.median()),
            format!("±{:.1}%", cell.spread() * 100.0),
            number(cell.best(row.higher_is_better)),
            ratio(row, cell),
        ]);
    }
    for column in 1..5 {
        if let Some(column) = table.column_mut(column) {
            column.set_cell_alignment(CellAlignment::Right);
        }
    }
    println!("{table}");
}

/// Prints all rows as one table of medians and ratios.
pub fn print_summary(rows: &[Row], variants: &[&'static str]) {
    let mut table = Table::new();
    let mut header = vec!["".to_owned(), "CIDRs".into(), "unit".into()];
    header.extend(variants.iter().map(|name| (*name).to_owned()));
    table.load_style(UTF8_FULL_CONDENSED).set_header(header);
    for row in rows {
        let mut cells = vec![row.what.clone(), row.cidrs.to_string(), row.unit.to_owned()];
        for variant in variants {
            cells.push(row.cell(variant).map_or_else(String::new, |cell| {
                format!("{} {}", number(cell.median()), ratio(row, cell))
            }));
        }
        table.add_row(cells);
    }
    println!("{table}");
}

/// Returns the ratio of a cell to its base, and the name of the base.
pub fn ratio(row: &Row, cell: &Cell) -> String {
    match row.base(cell) {
        Some(base) if base.variant != cell.variant => format!("{:.2}", cell.ratio_to(base)),
        _ => String::new(),
    }
}

/// Formats a number with three significant digits.
pub fn number(value: f64) -> String {
    match value.abs() {
        size if size >= 1e6 => format!("{:.3} M", value / 1e6),
        size if size >= 1e4 => format!("{:.1} k", value / 1e3),
        size if size >= 100.0 => format!("{value:.0}"),
        size if size >= 1.0 => format!("{value:.2}"),
        _ => format!("{value:.3}"),
    }
}
