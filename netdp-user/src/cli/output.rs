//! Output of results.

use crate::terminal;
use anyhow::{Context as _, Result};
use comfy_table::{Table, presets};
use std::fmt;
use std::io::{BufWriter, ErrorKind, Stdout, Write as _};
use std::process::ExitCode;

/// Creates a table in the style of all commands.
pub(crate) fn table(header: &[&str]) -> Rows {
    let mut table = Table::new();
    table
        .load_style(presets::NOTHING)
        .set_header(header.to_vec());
    Rows(table)
}

/// A table whose cells are sanitised by [`terminal::line`].
pub(crate) struct Rows(Table);

impl Rows {
    pub(crate) fn add_row<T: AsRef<str>>(&mut self, cells: impl IntoIterator<Item = T>) {
        let shown = |cell: T| terminal::line(cell.as_ref()).into_owned();
        self.0.add_row(cells.into_iter().map(shown));
    }
}

impl fmt::Display for Rows {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

/// Returns standard output for results that are written piece by piece. Their strings from outside
/// have to be sanitised by [`terminal::line`].
pub(crate) fn stream() -> BufWriter<Stdout> {
    BufWriter::with_capacity(64 * 1024, std::io::stdout())
}

/// Reports whether an error says that nobody reads the output any more.
pub(crate) fn is_closed_pipe(err: &anyhow::Error) -> bool {
    let error = err.root_cause().downcast_ref::<std::io::Error>();
    error.is_some_and(|error| error.kind() == ErrorKind::BrokenPipe)
}

/// Writes a result to standard output, as text sanitised by [`terminal::lines`] or as JSON. A
/// closed pipe (`| head`) is not an error.
pub(crate) fn write_out(text: &str, json: bool) -> Result<()> {
    let shown = if json {
        text.into()
    } else {
        terminal::lines(text)
    };
    match std::io::stdout().write_all(shown.as_bytes()) {
        Err(err) if err.kind() == ErrorKind::BrokenPipe => Ok(()),
        other => other.context("writing to standard output"),
    }
}

/// Returns a command's exit status; on an error, after a message, 2, as that of `diff`.
pub(crate) fn or_trouble(result: Result<ExitCode>) -> ExitCode {
    result.unwrap_or_else(|err| {
        let message = format!("{err:#}");
        eprintln!("netdp: error: {}", terminal::lines(&message));
        ExitCode::from(2)
    })
}
