//! YAML or JSON text as a tree in which every node has its line number.
//!
//! Built from parser events rather than from a ready-made document type, because a document type
//! has already dropped duplicate keys, expanded aliases, and recursed to whatever depth the input
//! has.

use std::borrow::Cow;
use std::collections::HashMap;
use std::rc::Rc;

use saphyr_parser::{Event, Parser, ScalarStyle, Span, StrInput};

use super::diagnostic::quoted;
use super::plain;

/// Maximum depth of the tree. The configuration is two levels deep; the rest is room for unknown
/// keys, and a bound on the memory that a hostile file can consume.
const MAX_DEPTH: usize = 32;

/// A node and the line it begins on, counted from 1.
#[derive(Debug, PartialEq)]
pub(super) struct Node {
    pub line: usize,
    pub value: Value,
}

/// Value of a node. Scalars keep their text: the valid values depend on the key.
#[derive(Debug, PartialEq)]
pub(super) enum Value {
    /// An unquoted scalar, which may denote null, a boolean, a number or a string.
    Plain(String),
    /// A scalar that is a string whatever its text.
    Quoted(String),
    List(Vec<Rc<Node>>),
    Map(Vec<(Rc<Node>, Rc<Node>)>),
}

/// Reason why a text can't be parsed.
#[derive(Debug, PartialEq)]
pub(super) struct SyntaxError {
    pub line: usize,
    pub message: String,
}

impl Node {
    /// Reports whether this is null: empty, `~` or `null`.
    pub fn is_null(&self) -> bool {
        matches!(&self.value, Value::Plain(text) if matches!(text.as_str(), "" | "~" | "null" | "Null" | "NULL"))
    }

    /// Returns the boolean that a plain scalar denotes. The words of YAML 1.1 are accepted too, as
    /// by upstream's parser.
    pub fn as_bool(&self) -> Option<bool> {
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
    pub fn is_number(&self) -> bool {
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
    pub fn describe(&self) -> String {
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

/// Parses a text of any number of documents. Returns those that have content, in their order.
///
/// JSON is parsed as the subset of YAML that it is, except that tabs between its tokens are legal.
pub(super) fn parse(text: &str) -> Result<Vec<Rc<Node>>, SyntaxError> {
    let text = &*without_marks(text);
    plain::parse(text).map_or_else(|| parse_yaml(text), |root| Ok(vec![root]))
}

/// Parses with the YAML parser, whatever the text.
pub(super) fn parse_yaml(text: &str) -> Result<Vec<Rc<Node>>, SyntaxError> {
    let text = &*without_marks(text);
    let text = if text.trim_start().starts_with('{') {
        // A raw tab cannot be inside a JSON string, so only white space changes here.
        Cow::Owned(text.replace('\t', " "))
    } else {
        Cow::Borrowed(text)
    };
    let mut parser = Parser::<StrInput<'_>>::new_from_str(&text);
    let mut builder = Builder::default();
    while let Some(event) = parser.next_event() {
        let (event, span) = event.map_err(|error| SyntaxError {
            // Errors at the end of the text are reported one line after it.
            line: error.marker().line().min(text.lines().count().max(1)),
            message: format!("not valid YAML or JSON: {}", error.info()),
        })?;
        builder.take(event, span)?;
    }
    Ok(builder.roots)
}

/// Returns the text without byte order marks where documents may begin: at its beginning, and
/// before the contents of lines, as when files were concatenated, or one was put into a block of a
/// manifest.
fn without_marks(text: &str) -> Cow<'_, str> {
    const MARK: char = '\u{feff}';
    if !text.contains(MARK) {
        return Cow::Borrowed(text);
    }
    let lines = text.split_inclusive('\n').map(|line| {
        let bare = line.trim_start_matches([' ', MARK]);
        let start = line.get(..line.len() - bare.len()).unwrap_or_default();
        start.replace(MARK, "") + bare
    });
    Cow::Owned(lines.collect())
}

/// A list or mapping that is not complete yet.
struct Open {
    line: usize,
    anchor: usize,
    value: Value,
    /// The key whose value comes next.
    key: Option<Rc<Node>>,
}

#[derive(Default)]
struct Builder {
    open: Vec<Open>,
    anchors: HashMap<usize, Rc<Node>>,
    /// Root node of each document that has content.
    roots: Vec<Rc<Node>>,
}

impl Builder {
    fn take(&mut self, event: Event<'_>, span: Span) -> Result<(), SyntaxError> {
        let line = span.start.line();
        let fail = |message: &str| {
            Err(SyntaxError {
                line,
                message: message.to_owned(),
            })
        };
        match event {
            Event::Nothing | Event::StreamStart | Event::StreamEnd | Event::DocumentEnd => Ok(()),
            Event::DocumentStart(_) => {
                // Anchors are local to a document (YAML 1.2.2, section 3.2.2.2).
                self.anchors.clear();
                Ok(())
            }
            Event::Scalar(_, _, _, Some(_))
            | Event::SequenceStart(_, Some(_))
            | Event::MappingStart(_, Some(_)) => {
                fail("YAML tags (!…) are not supported; remove the tag")
            }
            Event::Scalar(text, style, anchor, None) => {
                let value = if style == ScalarStyle::Plain {
                    Value::Plain(text.into_owned())
                } else {
                    Value::Quoted(text.into_owned())
                };
                self.complete(Rc::new(Node { line, value }), anchor);
                Ok(())
            }
            Event::SequenceStart(anchor, None) => self.push(line, anchor, Value::List(Vec::new())),
            Event::MappingStart(anchor, None) => self.push(line, anchor, Value::Map(Vec::new())),
            Event::SequenceEnd | Event::MappingEnd => {
                if let Some(Open {
                    line,
                    anchor,
                    value,
                    ..
                }) = self.open.pop()
                {
                    self.complete(Rc::new(Node { line, value }), anchor);
                }
                Ok(())
            }
            Event::Alias(anchor) => match self.anchors.get(&anchor).map(Rc::clone) {
                Some(node) => {
                    self.complete(node, 0);
                    Ok(())
                }
                None => fail(
                    "an alias (*…) refers to the node that it is part of, or to another document",
                ),
            },
        }
    }

    fn push(&mut self, line: usize, anchor: usize, value: Value) -> Result<(), SyntaxError> {
        if self.open.len() >= MAX_DEPTH {
            let message = format!("nested more than {MAX_DEPTH} levels deep");
            return Err(SyntaxError { line, message });
        }
        self.open.push(Open {
            line,
            anchor,
            value,
            key: None,
        });
        Ok(())
    }

    /// Adds a complete node to its parent. Anchor 0 means none.
    fn complete(&mut self, node: Rc<Node>, anchor: usize) {
        if anchor != 0 {
            self.anchors.insert(anchor, Rc::clone(&node));
        }
        let Some(parent) = self.open.last_mut() else {
            if !node.is_null() {
                self.roots.push(node);
            }
            return;
        };
        match &mut parent.value {
            Value::List(items) => items.push(node),
            Value::Map(pairs) => match parent.key.take() {
                Some(key) => pairs.push((key, node)),
                None => parent.key = Some(node),
            },
            // Only lists and mappings are ever open.
            Value::Plain(_) | Value::Quoted(_) => {}
        }
    }
}
