//! Tables. On a narrow screen each row becomes a card, whose cells say their column.

use maud::{Markup, html};

/// A column.
#[derive(Debug, Clone, Copy)]
pub(super) struct Column {
    head: &'static str,
    /// Set if it has numbers, which stand below each other by their digits.
    is_number: bool,
}

/// Returns a column of words.
pub(super) const fn words(head: &'static str) -> Column {
    Column {
        head,
        is_number: false,
    }
}

/// Returns a column of numbers.
pub(super) const fn numbers(head: &'static str) -> Column {
    Column {
        head,
        is_number: true,
    }
}

/// Returns a table. The first cell of each row names it.
pub(super) fn table<const N: usize>(
    caption: &str,
    columns: [Column; N],
    rows: impl IntoIterator<Item = [Markup; N]>,
) -> Markup {
    html! {
        table {
            caption { (caption) }
            thead {
                tr {
                    @for column in &columns {
                        th scope="col" class=[column.is_number.then_some("number")] { (column.head) }
                    }
                }
            }
            tbody {
                @for row in rows {
                    tr { (cells(&columns, row)) }
                }
            }
        }
    }
}

fn cells<const N: usize>(columns: &[Column; N], row: [Markup; N]) -> Markup {
    html! {
        @for (n, (column, cell)) in columns.iter().zip(row).enumerate() {
            @let class = column.is_number.then_some("number");
            @match n {
                0 => { th scope="row" { (cell) } }
                _ => { td class=[class] data-label=(column.head) { (cell) } }
            }
        }
    }
}

/// Returns a cell of text.
pub(super) fn text(text: impl AsRef<str>) -> Markup {
    html! { (super::shown(text.as_ref())) }
}

/// Returns a cell whose content is not known.
pub(super) fn unknown() -> Markup {
    html! { "-" }
}
