//! Parameters of a request.

use crate::http::Request;
use std::fmt::Display;
use std::str::FromStr;

/// Times after which a page may be loaded anew, in seconds.
const REFRESH: std::ops::RangeInclusive<u32> = 2..=3_600;

/// The parameters of a request, each known and given once at most.
#[derive(Debug)]
pub(super) struct Query(Vec<(String, String)>);

impl Query {
    /// Reads the parameters of a request that a path knows.
    ///
    /// # Errors
    /// Returns an error that names the parameter, for people.
    pub(super) fn of(request: &Request, known: &[&str]) -> Result<Self, String> {
        Self::parse(request.head.uri.query().unwrap_or_default(), known)
    }

    fn parse(query: &str, known: &[&str]) -> Result<Self, String> {
        let mut given: Vec<(String, String)> = Vec::new();
        for (name, value) in form_urlencoded::parse(query.as_bytes()) {
            if !known.contains(&name.as_ref()) {
                let known = match known {
                    [] => "there are none".to_owned(),
                    _ => format!("there are {}", known.join(", ")),
                };
                return Err(format!("no parameter {name:?}: {known}"));
            }
            if given.iter().any(|(other, _)| *other == name) {
                return Err(format!("the parameter {name} is given twice"));
            }
            given.push((name.into_owned(), value.trim().to_owned()));
        }
        Ok(Self(given))
    }

    /// Returns a parameter that is not empty.
    pub(super) fn get(&self, name: &str) -> Option<&str> {
        let given = self.0.iter().find(|(given, _)| given == name);
        let value = given.map(|(_, value)| value.as_str());
        value.filter(|value| !value.is_empty())
    }

    /// Reports whether a parameter is given, even without a value.
    pub(super) fn has(&self, name: &str) -> bool {
        self.0.iter().any(|(given, _)| given == name)
    }

    /// Returns a parameter as a value of a type.
    ///
    /// # Errors
    /// Returns an error that names the parameter, for people.
    pub(super) fn parsed<T: FromStr>(&self, name: &str) -> Result<Option<T>, String>
    where
        T::Err: Display,
    {
        self.parsed_by(name, T::from_str)
    }

    /// Returns a parameter as a function reads it.
    ///
    /// # Errors
    /// Returns an error that names the parameter, for people.
    pub(super) fn parsed_by<T, E: Display>(
        &self,
        name: &str,
        read: impl Fn(&str) -> Result<T, E>,
    ) -> Result<Option<T>, String> {
        let value = self.get(name);
        let parsed = value.map(|value| {
            let wrong = |err: E| format!("the parameter {name}={value}: {err}");
            read(value).map_err(wrong)
        });
        parsed.transpose()
    }

    /// Returns after how many seconds the page is to be loaded anew.
    ///
    /// # Errors
    /// Returns an error, for people, if it is no such number.
    pub(super) fn refresh(&self) -> Result<Option<u32>, String> {
        let every = self.parsed::<u32>("every")?;
        match every {
            Some(seconds) if !REFRESH.contains(&seconds) => Err(format!(
                "the parameter every={seconds}: give from {} to {} seconds",
                REFRESH.start(),
                REFRESH.end()
            )),
            every => Ok(every),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::Query;

    #[test]
    fn values_are_decoded_and_blank_ones_are_not_given() {
        let query = Query::parse("to=%5B%3A%3A1%5D%3A80&from=+&n=3", &["from", "to", "n"]).unwrap();
        assert_eq!(query.get("to"), Some("[::1]:80"));
        assert_eq!((query.get("from"), query.has("from")), (None, true));
        assert_eq!(query.parsed::<u16>("n"), Ok(Some(3)));
        let wrong = query.parsed::<u16>("to").unwrap_err();
        assert!(wrong.starts_with("the parameter to=[::1]:80: "), "{wrong}");
    }

    #[test]
    fn what_is_unknown_or_given_twice_is_named() {
        let unknown = Query::parse("a=1&%3Cb%3E=2", &["a"]).unwrap_err();
        assert_eq!(unknown, "no parameter \"<b>\": there are a");
        let twice = Query::parse("a=1&a=2", &["a"]).unwrap_err();
        assert_eq!(twice, "the parameter a is given twice");
    }

    #[test]
    fn a_refresh_has_limits() {
        let every = |text: &str| Query::parse(text, &["every"]).unwrap().refresh();
        assert_eq!(every("every=5"), Ok(Some(5)));
        assert_eq!(every(""), Ok(None));
        for wrong in ["every=1", "every=0", "every=x", "every=9999"] {
            assert!(every(wrong).is_err(), "{wrong}");
        }
    }
}
