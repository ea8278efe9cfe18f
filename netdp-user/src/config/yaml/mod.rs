//! YAML or JSON text as a tree in which every node has its line number.

mod fast;
mod node;
mod parser;

use std::borrow::Cow;
use std::rc::Rc;

pub(super) use node::{Node, Value};
pub(super) use parser::SyntaxError;

/// Parses a text of any number of documents. Returns those that have content, in their order.
///
/// JSON is parsed as the subset of YAML that it is, except that tabs between its tokens are legal.
pub(super) fn parse(text: &str) -> Result<Vec<Rc<Node>>, SyntaxError> {
    let text = &*without_byte_order_marks(text);
    fast::parse(text).map_or_else(|| parser::parse(text), |root| Ok(vec![root]))
}

/// Returns the text without byte order marks where documents may begin: at its beginning, and
/// before the contents of lines, as when files were concatenated, or one was put into a block of a
/// manifest.
fn without_byte_order_marks(text: &str) -> Cow<'_, str> {
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
