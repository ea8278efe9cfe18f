//! Keys whose value is a scalar.

use std::time::Duration;

use super::diagnostic::quoted;
use super::duration;
use super::key::Key;
use super::parse::{Reader, Setting};
use super::yaml::{Node, Value};
use super::{DEFAULT_CIDR_LIMIT, DEFAULT_RESYNC_INTERVAL, MIN_RESYNC_INTERVAL};

impl Reader<'_> {
    /// Reads a boolean. Returns `None` if the value is null, and after an error.
    pub(crate) fn boolean(&mut self, key: Key, line: usize, value: &Node) -> Option<Setting<bool>> {
        if value.is_null() {
            self.warn(
                line,
                format!("{} is null; the default, false, is used", key.name()),
            );
        } else if value.as_bool().is_none() {
            self.wrong_type(key, value.line, "true or false", value);
        }
        value.as_bool().map(|value| Setting { value, line })
    }

    pub(crate) fn interval(&mut self, value: &Node) -> Option<Duration> {
        let key = Key::ResyncInterval;
        let text = match &value.value {
            Value::Plain(text)
                if !value.is_null() && !value.is_number() && value.as_bool().is_none() =>
            {
                text
            }
            Value::Quoted(text) => text,
            _ => {
                self.wrong_type(key, value.line, "a duration such as \"60s\"", value);
                return None;
            }
        };
        let nanoseconds = duration::parse(text);
        let (name, text) = (key.name(), quoted(text));
        let nanoseconds = match nanoseconds {
            Ok(nanoseconds) => nanoseconds,
            Err(problem) => {
                let message =
                    format!("{name}: {text} is not a duration such as \"1m30s\": {problem}");
                self.error(value.line, message);
                return None;
            }
        };
        match u64::try_from(nanoseconds).map(Duration::from_nanos) {
            Ok(interval) if interval >= MIN_RESYNC_INTERVAL => Some(interval),
            Ok(interval) if !interval.is_zero() => {
                let least = MIN_RESYNC_INTERVAL;
                self.warn(
                    value.line,
                    format!("{name}: {text} is too short; {least:?} is used"),
                );
                Some(least)
            }
            _ => {
                let default = DEFAULT_RESYNC_INTERVAL;
                let message =
                    format!("{name}: {text} is not positive; the default, {default:?}, is used");
                self.warn(value.line, message);
                None
            }
        }
    }

    /// Reads a limit. Returns `None` after an error.
    pub(crate) fn limit(&mut self, line: usize, value: &Node) -> Option<usize> {
        let key = Key::CidrLimit;
        if value.is_null() {
            let name = key.name();
            self.warn(
                line,
                format!("{name} is null; the default, {DEFAULT_CIDR_LIMIT}, is used"),
            );
            return Some(DEFAULT_CIDR_LIMIT);
        }
        let limit = match &value.value {
            // Octal to some parsers, decimal to others.
            Value::Plain(text) if text.len() > 1 && text.starts_with('0') => None,
            Value::Plain(text) => text.parse().ok(),
            _ => None,
        };
        if limit.is_none() {
            self.wrong_type(
                key,
                value.line,
                "a whole number that is not negative",
                value,
            );
        }
        limit
    }
}
