//! Drawing of a table in the room that there is.

use super::super::keys::Keys;
use ratatui::Frame;
use ratatui::layout::{Constraint, Rect};
use ratatui::style::{Modifier, Style};
use ratatui::text::Text;
use ratatui::widgets::{Paragraph, Row, Table};

/// Columns between those of a table.
const GAP: u16 = 2;

/// The narrowest name of a row that is worth showing.
const NAME: usize = 16;

/// A table: the heads of its columns, and its rows. The first column is the name.
pub(super) struct Content {
    pub heads: Vec<String>,
    pub rows: Vec<Vec<String>>,
    /// The columns besides the first that are no numbers.
    pub text_columns: &'static [usize],
    /// Said instead of rows, if there are none.
    pub none: &'static str,
}

/// Draws as many columns as fit, from the one that the user has scrolled to; the name always.
pub(super) fn draw(frame: &mut Frame<'_>, area: Rect, content: Content, keys: &mut Keys) {
    let Content {
        heads,
        mut rows,
        text_columns,
        none,
    } = content;
    let has_any = !rows.is_empty();
    rows.retain(|cells| {
        let wanted = keys.filter.as_str();
        wanted.is_empty() || cells.iter().any(|cell| cell.contains(wanted))
    });
    if rows.is_empty() {
        let text = if has_any {
            "no row has these words"
        } else {
            none
        };
        frame.render_widget(Paragraph::new(text), area);
        return;
    }
    let shown = usize::from(area.height.saturating_sub(1));
    keys.first_row = keys.first_row.min(rows.len().saturating_sub(shown));
    rows.drain(..keys.first_row);
    rows.truncate(shown);

    let width = |column: usize| {
        let cells = rows.iter().chain([&heads]);
        let widths = cells.filter_map(|row| row.get(column));
        widths.map(|cell| cell.chars().count()).max().unwrap_or(0)
    };
    let widths: Vec<usize> = (0..heads.len()).map(width).collect();
    let columns = fitting(&widths, usize::from(area.width), keys);
    let name = widths.first().copied().unwrap_or(NAME);
    let others: usize = (columns.iter().skip(1))
        .map(|column| widths.get(*column).copied().unwrap_or(0) + usize::from(GAP))
        .sum();
    let name = name.min(usize::from(area.width).saturating_sub(others));

    let constraint = |column: &usize| {
        let width = match column {
            0 => name,
            _ => widths.get(*column).copied().unwrap_or(0),
        };
        Constraint::Length(u16::try_from(width).unwrap_or(u16::MAX))
    };
    let cells = |row: &Vec<String>| {
        let cells = columns.iter().filter_map(|column| {
            let cell = Text::raw(row.get(*column)?.clone());
            let is_number = *column > 0 && !text_columns.contains(column);
            Some(if is_number {
                cell.right_aligned()
            } else {
                cell
            })
        });
        Row::new(cells.collect::<Vec<_>>())
    };
    let head = cells(&heads).style(Style::new().add_modifier(Modifier::BOLD));
    let table = Table::new(rows.iter().map(cells), columns.iter().map(constraint))
        .header(head)
        .column_spacing(GAP);
    frame.render_widget(table, area);
}

/// Returns the columns that fit: the name, at least [`NAME`] wide, and others from the one that the
/// user has scrolled to.
fn fitting(widths: &[usize], width: usize, keys: &mut Keys) -> Vec<usize> {
    let name = widths.first().copied().unwrap_or(0).min(NAME);
    let gap = usize::from(GAP);
    let fits = |first: usize| {
        let mut left = width.saturating_sub(name);
        let mut columns = vec![0];
        for (column, wide) in widths.iter().enumerate().skip(first) {
            let Some(rest) = left.checked_sub(wide + gap) else {
                break;
            };
            left = rest;
            columns.push(column);
        }
        columns
    };
    // As far as it brings columns into view.
    let last = (1..widths.len()).find(|first| fits(*first).last() == Some(&(widths.len() - 1)));
    keys.first_column = keys.first_column.min(last.map_or(0, |last| last - 1));
    fits(keys.first_column + 1)
}
