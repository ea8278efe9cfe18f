//! A log message as a JSON object.

use crate::codes::Code;
use crate::terminal;
use jiff::Timestamp;
use log::kv::{Error, Key, Value, VisitSource};
use log::{Level, Record};
use serde::Serialize;
use std::borrow::Cow;

/// The fields of a message, in their order.
#[derive(Debug, Serialize)]
pub(super) struct Fields<'a> {
    time: String,
    level: &'static str,
    msg: Cow<'a, str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    code: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    object: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    uplink: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pod: Option<String>,
}

impl Fields<'_> {
    /// Returns the fields of a message that is written now. A code at its end or its beginning counts
    /// as its code.
    pub(super) fn new(level: Level, text: &str) -> Fields<'_> {
        Fields {
            time: format!("{:.3}", Timestamp::now()),
            level: match level {
                Level::Error => "error",
                Level::Warn => "warn",
                Level::Info => "info",
                Level::Debug => "debug",
                Level::Trace => "trace",
            },
            msg: terminal::line(text),
            code: Code::in_text(text).map(|code| code.to_string()),
            object: None,
            uplink: None,
            pod: None,
        }
    }

    /// Returns the fields of a record.
    pub(super) fn of(record: &Record<'_>) -> Fields<'static> {
        let text = record.args().to_string();
        let fields = Fields::new(record.level(), &text);
        let mut fields = Fields {
            msg: Cow::Owned(fields.msg.into_owned()),
            ..fields
        };
        // No value of ours fails to be shown.
        let _ = record.key_values().visit(&mut fields);
        fields
    }

    /// Returns the line, with its end.
    pub(super) fn line(&self) -> String {
        // Strings alone can't fail to be represented.
        serde_json::to_string(self).unwrap_or_default() + "\n"
    }
}

impl<'kvs> VisitSource<'kvs> for Fields<'_> {
    fn visit_pair(&mut self, key: Key<'kvs>, value: Value<'kvs>) -> Result<(), Error> {
        let shown = terminal::line(&value.to_string()).into_owned();
        match key.as_str() {
            "code" => self.code = Some(shown),
            "object" => self.object = Some(shown),
            "uplink" => self.uplink = Some(shown),
            "pod" => self.pod = Some(shown),
            _ => {}
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::Fields;
    use log::{Level, Record};
    use serde_json::{Value, json};

    fn parsed(line: &str) -> Value {
        assert!(
            line.ends_with('\n') && line.matches('\n').count() == 1,
            "{line}"
        );
        let mut value: Value = serde_json::from_str(line).unwrap();
        let time = value.as_object_mut().unwrap().remove("time").unwrap();
        let time = time.as_str().unwrap();
        assert!(time.ends_with('Z') && time.parse::<jiff::Timestamp>().is_ok());
        value
    }

    #[test]
    fn a_message_is_one_object_on_one_line() {
        let line = Fields::new(Level::Warn, "it \"stops\"\n\u{1b}[2J NDP401").line();
        assert_eq!(
            parsed(&line),
            json!({"level": "warn", "msg": "it \"stops\"\\u{a}\\u{1b}[2J NDP401", "code": "NDP401"})
        );
        let line = Fields::new(Level::Info, "no code in NDP999 or NDP1011").line();
        assert_eq!(parsed(&line).get("code"), None);
    }

    #[test]
    fn what_a_message_is_about_has_fields_of_its_own() {
        let pairs = [
            ("uplink", "eth0"),
            ("object", "kube-system/a/config:3"),
            ("pod", "172.16.0.2"),
            ("code", "NDP502"),
            ("other", "unknown"),
        ];
        let mut record = Record::builder();
        record.level(Level::Error).key_values(&pairs);
        let line = Fields::of(&record.args(format_args!("x")).build()).line();
        assert_eq!(
            parsed(&line),
            json!({
                "level": "error", "msg": "x", "code": "NDP502",
                "object": "kube-system/a/config:3", "uplink": "eth0", "pod": "172.16.0.2",
            })
        );
    }
}
