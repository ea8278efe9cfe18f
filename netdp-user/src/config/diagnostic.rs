//! Errors and warnings about a configuration, with their places.

use crate::codes::Code;
use std::fmt;

/// Maximum number of characters of a file's own text in a message.
const MAX_QUOTED: usize = 80;

/// A finding about one place of one file.
#[derive(Debug, Clone, PartialEq, Eq, serde::Serialize)]
pub struct Diagnostic {
    /// Name of the document, usually a path.
    pub file: String,
    /// Line, counted from 1; `None` if the finding is about the whole file.
    pub line: Option<usize>,
    /// The problem and its remedy, beginning with the entry's name.
    pub message: String,
    /// Code of findings of its kind, if it has one.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) code: Option<Code>,
}

impl Diagnostic {
    pub(crate) fn at(file: &str, line: usize, message: impl Into<String>) -> Self {
        Self {
            file: file.to_owned(),
            line: Some(line),
            message: message.into(),
            code: None,
        }
    }

    pub(crate) fn whole_file(file: &str, message: impl Into<String>) -> Self {
        Self {
            file: file.to_owned(),
            line: None,
            message: message.into(),
            code: None,
        }
    }

    /// Gives the finding a code.
    pub(crate) fn with_code(mut self, code: Code) -> Self {
        self.code = Some(code);
        self
    }

    /// Returns the place: the document, and the line if there is one.
    pub(crate) fn place(&self) -> String {
        match self.line {
            Some(line) => format!("{}:{line}", self.file),
            None => self.file.clone(),
        }
    }
}

impl fmt::Display for Diagnostic {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}: {}", self.place(), self.message)?;
        match self.code {
            Some(code) => write!(f, " {code}"),
            None => Ok(()),
        }
    }
}

/// Returns `text` in quotes, truncated if it is too long for a message.
pub(super) fn quoted(text: &str) -> String {
    match text.char_indices().nth(MAX_QUOTED) {
        Some((end, _)) => format!("{:?}…", &text[..end]),
        None => format!("{text:?}"),
    }
}

/// A configuration that must not come into force, with every error in the order of the files and
/// their lines.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Rejected {
    /// All errors; at least one.
    pub errors: Vec<Diagnostic>,
}

impl fmt::Display for Rejected {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (index, error) in self.errors.iter().enumerate() {
            let separator = if index == 0 { "" } else { "\n" };
            write!(f, "{separator}{error}")?;
        }
        Ok(())
    }
}

impl std::error::Error for Rejected {}
