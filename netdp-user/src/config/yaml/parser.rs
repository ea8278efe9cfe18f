//! YAML parser: builds the tree from events.
//!
//! A ready-made document type has already dropped duplicate keys, expanded aliases, and recursed to
//! whatever depth the input has.

use std::borrow::Cow;
use std::collections::HashMap;
use std::rc::Rc;

use saphyr_parser::{Event, Parser, ScalarStyle, Span, StrInput};

use super::node::{Node, Value};

/// Maximum depth of the tree. The configuration is two levels deep; the rest is room for unknown
/// keys, and a bound on the memory that a hostile file can consume.
const MAX_DEPTH: usize = 32;

/// Reason why a text can't be parsed.
#[derive(Debug, PartialEq)]
pub(in crate::config) struct SyntaxError {
    pub line: usize,
    pub message: String,
}

/// Parses with the YAML parser, whatever the text.
pub(super) fn parse(text: &str) -> Result<Vec<Rc<Node>>, SyntaxError> {
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
