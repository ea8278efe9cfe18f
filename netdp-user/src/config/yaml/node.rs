//! Tree of a YAML or JSON text in which every node has its line number.

use std::rc::Rc;

use super::super::diagnostic::quoted;

/// A node and the line it begins on, counted from 1.
#[derive(Debug, PartialEq)]
pub(in crate::config) struct Node {
    pub line: usize,
    pub value: Value,
}

/// Value of a node. Scalars keep their text: the valid values depend on the key.
#[derive(Debug, PartialEq)]
pub(in crate::config) enum Value {
    /// An unquoted scalar, which may denote null, a boolean, a number or a string.
    Plain(String),
    /// A scalar that is a string whatever its text.
    Quoted(String),
    List(Vec<Rc<Node>>),
    Map(Vec<(Rc<Node>, Rc<Node>)>),
}

impl Node {
    /// Reports whether this is null: empty, `~` or `null`.
    pub(crate) fn is_null(&self) -> bool {
        matches!(&self.value, Value::Plain(text) if matches!(text.as_str(), "" | "~" | "null" | "Null" | "NULL"))
    }

    /// Returns the boolean that a plain scalar denotes. The words of YAML 1.1 are accepted too, as
    /// by upstream's parser.
    pub(crate) fn as_bool(&self) -> Option<bool> {
        let Value::Plain(text) = &self.value else {
            return None;
        };
        let is = |words: &[&str]| words.iter().any(|word| text.eq_ignore_ascii_case(word));
        if is(&["true", "yes", "on", "y"]) {
            Some(true)
        } else if is(&["false", "no", "off", "n"]) {
            Some(false)
        } else {
            None
        }
    }

    /// Reports whether a plain scalar denotes a number.
    pub(crate) fn is_number(&self) -> bool {
        let Value::Plain(text) = &self.value else {
            return false;
        };
        let unsigned = text.trim_start_matches(['+', '-']);
        // Rust's float parser also accepts words such as "nan".
        unsigned.starts_with(|c: char| c.is_ascii_digit() || c == '.')
            && (unsigned.parse::<f64>().is_ok()
                || unsigned.starts_with("0x")
                || unsigned.starts_with("0o"))
    }

    /// Describes the node, for "found …".
    pub(crate) fn describe(&self) -> String {
        match &self.value {
            Value::List(_) => "a list".to_owned(),
            Value::Map(_) => "a mapping".to_owned(),
            Value::Quoted(text) => format!("the string {}", quoted(text)),
            Value::Plain(_) if self.is_null() => "null".to_owned(),
            Value::Plain(text) if self.as_bool().is_some() => format!("the boolean {text}"),
            Value::Plain(text) if self.is_number() && text.len() < 32 => {
                format!("the number {text}")
            }
            Value::Plain(_) if self.is_number() => "a long number".to_owned(),
            Value::Plain(text) => format!("the string {}", quoted(text)),
        }
    }
}
