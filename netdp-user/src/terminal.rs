//! Sanitized output: names chosen by others can neither control the user's terminal nor imitate our
//! own lines.

use std::borrow::Cow;
use std::fmt::Write as _;

/// Returns a text as one line in which characters that control a terminal are escaped. Idempotent.
pub fn line(text: &str) -> Cow<'_, str> {
    escape(text, is_control_char)
}

/// Returns a text of several lines with the same characters escaped.
pub fn lines(text: &str) -> Cow<'_, str> {
    escape(text, |c| c != '\n' && is_control_char(c))
}

fn escape(text: &str, must_escape: impl Fn(char) -> bool) -> Cow<'_, str> {
    if !text.contains(&must_escape) {
        return Cow::Borrowed(text);
    }
    let mut escaped = String::with_capacity(text.len() + 8);
    for c in text.chars() {
        if must_escape(c) {
            // Writing to a String cannot fail.
            let _ = write!(escaped, "{}", c.escape_unicode());
        } else {
            escaped.push(c);
        }
    }
    Cow::Owned(escaped)
}

/// Reports control characters, line separators and characters that change the text direction.
fn is_control_char(c: char) -> bool {
    c.is_control()
        || matches!(
            c,
            '\u{61c}' | '\u{200e}' | '\u{200f}' | '\u{2028}'..='\u{202e}' | '\u{2066}'..='\u{2069}'
        )
}

/// Applies [`line()`] to every string in a value.
///
/// # Errors
/// Returns an error if the value cannot be represented in JSON.
pub fn sanitize<T>(value: &T) -> serde_json::Result<T>
where
    T: serde::Serialize + serde::de::DeserializeOwned,
{
    let mut value = serde_json::to_value(value)?;
    sanitize_value(&mut value);
    serde_json::from_value(value)
}

fn sanitize_value(value: &mut serde_json::Value) {
    use serde_json::Value::{Array, Object, String};
    match value {
        String(text) => {
            if let Cow::Owned(escaped) = line(text) {
                *text = escaped;
            }
        }
        Array(values) => values.iter_mut().for_each(sanitize_value),
        Object(fields) => fields.values_mut().for_each(sanitize_value),
        _ => {}
    }
}

#[cfg(test)]
mod tests {
    use super::{line, lines, sanitize};

    #[test]
    fn what_steers_is_written_out_and_the_rest_stays() {
        assert_eq!(line("eth0 – ü 中"), "eth0 – ü 中");
        assert_eq!(line("a\x1b[2Jb\nc\r"), "a\\u{1b}[2Jb\\u{a}c\\u{d}");
        assert_eq!(line("\u{9b}31m\u{202e}x"), "\\u{9b}31m\\u{202e}x");
        assert_eq!(lines("a\nb\t"), "a\nb\\u{9}");
        assert_eq!(line(&line("\n")), line("\n"));
        let names = vec!["a\n".to_owned(), "b".to_owned()];
        assert_eq!(sanitize(&names).unwrap(), ["a\\u{a}", "b"]);
    }
}
