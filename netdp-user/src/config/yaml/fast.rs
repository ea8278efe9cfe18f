//! Fast path for the common subset of YAML: keys, and block lists with one CIDR per line. A YAML
//! parser takes most of the time of reading 100,000 of them.
//!
//! It supports a small part of YAML and returns `None` for everything else, so that the parser
//! alone decides what is valid, and reports errors.

use std::rc::Rc;

use super::node::{Node, Value};

/// A key with its value, as in [`Value::Map`].
type Pair = (Rc<Node>, Rc<Node>);

/// Maximum length of a key in bytes; longer keys are left to the parser: YAML limits them.
const MAX_KEY: usize = 64;

/// Returns the tree that the YAML parser would return for `text`; `None` if the parser has to
/// decide.
pub(super) fn parse(text: &str) -> Option<Rc<Node>> {
    let mut pairs: Vec<Pair> = Vec::new();
    let mut list: Option<List> = None;
    for (line, content) in (1..).zip(text.split('\n')) {
        let content = without_comment(content)?;
        if content.is_empty() {
            continue;
        }
        if let Some((indent, item)) = item(content) {
            list.as_mut()?.push(line, indent, item)?;
            continue;
        }
        if let Some(list) = list.take() {
            pairs.push(list.finish()?);
        }
        let (key, value) = content.split_once(':')?;
        if key.is_empty() || key.len() > MAX_KEY || !key.bytes().all(|b| b.is_ascii_alphabetic()) {
            return None;
        }
        let key = scalar(line, key);
        match value.strip_prefix(' ') {
            None if value.is_empty() => list = Some(List::new(key)),
            Some(value) if is_word(value) => pairs.push((key, scalar(line, value))),
            _ => return None,
        }
    }
    if let Some(list) = list {
        pairs.push(list.finish()?);
    }
    let line = pairs.first()?.0.line;
    let value = Value::Map(pairs);
    Some(Rc::new(Node { line, value }))
}

/// A list that may continue.
struct List {
    key: Rc<Node>,
    /// Number of spaces before each dash, which is the same for all items.
    indent: Option<usize>,
    items: Vec<Rc<Node>>,
}

impl List {
    const fn new(key: Rc<Node>) -> Self {
        Self {
            key,
            indent: None,
            items: Vec::new(),
        }
    }

    fn push(&mut self, line: usize, indent: usize, item: &str) -> Option<()> {
        if *self.indent.get_or_insert(indent) != indent || !is_cidr(item) {
            return None;
        }
        self.items.push(scalar(line, item));
        Some(())
    }

    /// Returns the key with its list. A key without a list is null, whose line only the parser
    /// determines.
    fn finish(self) -> Option<Pair> {
        let line = self.items.first()?.line;
        let value = Value::List(self.items);
        Some((self.key, Rc::new(Node { line, value })))
    }
}

fn scalar(line: usize, text: &str) -> Rc<Node> {
    let value = Value::Plain(text.to_owned());
    Rc::new(Node { line, value })
}

/// Returns the number of spaces before a dash, and the text after it.
fn item(content: &str) -> Option<(usize, &str)> {
    let dash = content.trim_start_matches(' ');
    let item = dash.strip_prefix("- ")?;
    Some((content.len() - dash.len(), item))
}

/// Returns `line` without a comment and the spaces around it; `None` if it has anything but
/// printable ASCII, or a comment without a space before it.
fn without_comment(line: &str) -> Option<&str> {
    if !line.bytes().all(|byte| matches!(byte, b' '..=b'~')) {
        return None;
    }
    let content = match line.split_once('#') {
        Some((before, _)) if before.is_empty() || before.ends_with(' ') => before,
        Some(_) => return None,
        None => line,
    };
    Some(content.trim_end_matches(' '))
}

fn is_word(text: &str) -> bool {
    !text.is_empty() && text.bytes().all(|b| b.is_ascii_alphanumeric() || b == b'.')
}

/// Reports whether these are the characters of a CIDR, in an order that YAML parses as a plain
/// scalar.
fn is_cidr(text: &str) -> bool {
    let allowed = |b: u8| b.is_ascii_hexdigit() || matches!(b, b'.' | b':' | b'/');
    text.bytes().all(allowed)
        && text.contains('/')
        && text.starts_with(|c: char| c.is_ascii_hexdigit())
        && !text.ends_with(':')
}

#[cfg(test)]
mod tests {
    use super::super::parser;
    use super::parse;
    use proptest::prelude::*;

    #[test]
    fn common_texts_take_the_fast_path() {
        for text in [
            "nonMasqueradeCIDRs:\n- 10.0.0.0/8\n- fd00::/8\n",
            "# ours\nnonMasqueradeCIDRs:\n  - 10.0.0.0/8 # office\n\n  # more\n  - 192.168.0.0/16\nmasqLinkLocal: false\nresyncInterval: 60s",
            "cidrLimit: 40000\nmasqueradeCIDRs:\n- 10.0.0.0/8\nnonMasqueradeCIDRs:\n- 20.0.0.0/8\n",
        ] {
            let fast = parse(text);
            assert!(fast.is_some(), "{text}");
            assert_eq!(
                fast.into_iter().collect::<Vec<_>>(),
                parser::parse(text).unwrap(),
                "{text}"
            );
        }
    }

    #[test]
    fn other_texts_are_the_parsers() {
        for text in [
            "",
            "a:",
            "a:\nb: 1\n",
            "- 10.0.0.0/8\n",
            "a: 1\n- 10.0.0.0/8\n",
            "a:\n- 10.0.0.0/8\n - 10.0.0.0/8\n",
            "a:\n- 10.0.0.0/8\n  10.0.0.0/8\n",
            "a:\n- fd00::\n",
            "a:\n- ::/0\n",
            "a:\n- '10.0.0.0/8'\n",
            "a:\n- 10.0.0.0/8#x\n",
            "a:\n-\t10.0.0.0/8\n",
            "a:\r\n- 10.0.0.0/8\r\n",
            "a: &x 1\n",
            "---\na: 1\n",
            "{\"a\": 1}",
        ] {
            assert_eq!(parse(text), None, "{text:?}");
        }
    }

    /// Lines that the fast path accepts, and similar ones that it does not.
    const LINES: &[&str] = &[
        "a:",
        "b:",
        "a: 1",
        "b: 1h.x",
        "a: # x",
        "a : 1",
        "a:  1",
        "a:1",
        "a: -",
        "a: 1 2",
        "",
        " ",
        "#",
        "# x: - y",
        "  # x",
        "- 10.0.0.0/8",
        "- 10.0.0.0/8 ",
        "  - 10.0.0.0/8",
        "    - fd00::/8 # x",
        "- fd00::/8",
        "- fd00::",
        "- 1/2:",
        "- a:b/",
        "-  1.0.0.0/8",
        "-",
        "- ",
        "- - 1/2",
        "  1/2",
        "---",
        "...",
        "- 1/2#",
        "1/2:",
        "true: 1/2",
        "- a/ b",
        "%x",
        "- :/",
        "a/b",
        "- 0x1/",
        "- 1e5/",
        "? a",
        "- #",
        "- # 1/2",
        "a: #",
        "\u{e9}: 1",
    ];

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(4096))]
        #[test]
        fn the_fast_path_leads_to_the_same_tree(
            lines in prop::collection::vec(prop::sample::select(LINES), 0..8),
            end in any::<bool>(),
        ) {
            let text = lines.join("\n") + if end { "\n" } else { "" };
            if let Some(tree) = parse(&text) {
                prop_assert_eq!(Ok(vec![tree]), parser::parse(&text), "{:?}", text);
            }
        }
    }
}
