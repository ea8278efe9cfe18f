//! Markdown report for docs/benchmarks.md.

use super::result::Row;
use super::table::{number, ratio};
use std::fmt::Write as _;

/// Returns the conditions of the run and a table of all rows: medians, half the interquartile
/// range, ratios.
pub fn page(rows: &[Row], variants: &[&str], head: &[(String, String)]) -> String {
    let mut text = String::new();
    for (key, value) in head {
        let _ = writeln!(text, "- {key}: `{value}`");
    }
    text.push('\n');
    let _ = writeln!(text, "| | CIDRs | {} |", variants.join(" | "));
    let _ = writeln!(text, "|---|---|{}", "---|".repeat(variants.len()));
    for row in rows {
        let _ = write!(text, "| {}, {} | {} |", row.what, row.unit, row.cidrs);
        for variant in variants {
            let _ = match row.cell(variant) {
                Some(cell) => write!(
                    text,
                    " {} ±{:.0}% {} |",
                    number(cell.median()),
                    cell.spread() * 100.0,
                    bold(&ratio(row, cell))
                ),
                None => write!(text, " |"),
            };
        }
        text.push('\n');
    }
    text
}

fn bold(ratio: &str) -> String {
    if ratio.is_empty() {
        String::new()
    } else {
        format!("**{ratio}**")
    }
}

#[cfg(test)]
mod tests {
    use super::page;
    use crate::bench::result::{Cell, Row};

    #[test]
    fn a_row_has_a_cell_for_each_variant() {
        let cell = |variant, samples: &[f64]| Cell {
            variant,
            tracked: false,
            samples: samples.to_vec(),
        };
        let row = Row {
            what: "packets".into(),
            unit: "packets/s",
            cidrs: 12,
            curve: None,
            higher_is_better: true,
            cells: vec![cell("plain", &[200.0]), cell("netdp", &[150.0])],
        };
        let head = [("machine".to_owned(), "2 CPUs".to_owned())];
        assert_eq!(
            page(&[row], &["plain", "nft-set", "netdp"], &head),
            "- machine: `2 CPUs`\n\n\
             | | CIDRs | plain | nft-set | netdp |\n|---|---|---|---|---|\n\
             | packets, packets/s | 12 | 200 ±0%  | | 150 ±0% **0.75** |\n"
        );
    }
}
