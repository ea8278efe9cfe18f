//! What people read: names that others have chosen can't steer their terminal, nor look like lines
//! of ours.

use std::borrow::Cow;
use std::fmt::Write as _;

/// A text as one line, in which whatever steers a terminal is written out. Doing so twice is no
/// different.
pub fn line(text: &str) -> Cow<'_, str> {
    escape(text, is_steering)
}

/// The same for a text of several lines.
pub fn lines(text: &str) -> Cow<'_, str> {
    escape(text, |c| c != '\n' && is_steering(c))
}

fn escape(text: &str, is_meant: impl Fn(char) -> bool) -> Cow<'_, str> {
    if !text.contains(&is_meant) {
        return Cow::Borrowed(text);
    }
    let mut escaped = String::with_capacity(text.len() + 8);
    for c in text.chars() {
        if is_meant(c) {
            // A String takes everything.
            let _ = write!(escaped, "{}", c.escape_unicode());
        } else {
            escaped.push(c);
        }
    }
    Cow::Owned(escaped)
}

/// Controls, line separators, and what turns the direction of text.
fn is_steering(c: char) -> bool {
    c.is_control()
        || matches!(
            c,
            '\u{61c}' | '\u{200e}' | '\u{200f}' | '\u{2028}'..='\u{202e}' | '\u{2066}'..='\u{2069}'
        )
}

/// Every text in a value, as [`line()`].
///
/// # Errors
/// The value is none that JSON can hold.
pub fn each<T>(value: &T) -> serde_json::Result<T>
where
    T: serde::Serialize + serde::de::DeserializeOwned,
{
    let mut value = serde_json::to_value(value)?;
    clean(&mut value);
    serde_json::from_value(value)
}

fn clean(value: &mut serde_json::Value) {
    use serde_json::Value::{Array, Object, String};
    match value {
        String(text) => {
            if let Cow::Owned(escaped) = line(text) {
                *text = escaped;
            }
        }
        Array(values) => values.iter_mut().for_each(clean),
        Object(fields) => fields.values_mut().for_each(clean),
        _ => {}
    }
}

#[cfg(test)]
mod tests {
    use super::{each, line, lines};

    #[test]
    fn what_steers_is_written_out_and_the_rest_stays() {
        assert_eq!(line("eth0 – ü 中"), "eth0 – ü 中");
        assert_eq!(line("a\x1b[2Jb\nc\r"), "a\\u{1b}[2Jb\\u{a}c\\u{d}");
        assert_eq!(line("\u{9b}31m\u{202e}x"), "\\u{9b}31m\\u{202e}x");
        assert_eq!(lines("a\nb\t"), "a\nb\\u{9}");
        assert_eq!(line(&line("\n")), line("\n"));
        let names = vec!["a\n".to_owned(), "b".to_owned()];
        assert_eq!(each(&names).unwrap(), ["a\\u{a}", "b"]);
    }
}
