//! Durations in Go's notation: `300ms`, `1m30s`, `1.5h`, `-2s`.

use std::fmt;

use super::diagnostic::quoted;

/// Nanoseconds of each unit. Of two names with a common beginning the longer one comes first.
const UNITS: [(&str, u128); 8] = [
    ("ns", 1),
    ("us", 1_000),
    ("\u{b5}s", 1_000),
    ("\u{3bc}s", 1_000),
    ("ms", 1_000_000),
    ("s", 1_000_000_000),
    ("m", 60_000_000_000),
    ("h", 3_600_000_000_000),
];

/// Number of exact digits of a fraction; further ones are less than a nanosecond of any unit.
const FRACTION_DIGITS: usize = 18;

/// Reason why a text is not a duration.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum DurationError {
    /// The text is empty, or has no digit where a number is expected.
    NoNumber,
    /// A number without a unit (`s`, `ms`, …).
    NoUnit,
    /// A unit that does not exist.
    UnknownUnit(String),
    /// The duration exceeds the range of an `i64`, about 292 years.
    TooLong,
}

impl fmt::Display for DurationError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::NoNumber => write!(f, "a number is missing"),
            Self::NoUnit => write!(f, "the unit is missing (ns, us, ms, s, m or h)"),
            Self::UnknownUnit(unit) => {
                write!(
                    f,
                    "{} is not a unit (use ns, us, ms, s, m or h)",
                    quoted(unit)
                )
            }
            Self::TooLong => write!(f, "it is too long"),
        }
    }
}

/// Parses a Go duration into nanoseconds, rounded towards zero. The range is that of an `i64`.
pub(super) fn parse(text: &str) -> Result<i64, DurationError> {
    let (negative, mut rest) = match text.as_bytes().first() {
        Some(b'-') => (true, &text[1..]),
        Some(b'+') => (false, &text[1..]),
        _ => (false, text),
    };
    if rest == "0" {
        return Ok(0);
    }
    if rest.is_empty() {
        return Err(DurationError::NoNumber);
    }
    let mut total: u128 = 0;
    while !rest.is_empty() {
        let (nanoseconds, remainder) = parse_term(rest)?;
        total = total
            .checked_add(nanoseconds)
            .ok_or(DurationError::TooLong)?;
        rest = remainder;
    }
    let total = i64::try_from(total).map_err(|_| DurationError::TooLong)?;
    Ok(if negative { -total } else { total })
}

/// Parses one number and its unit, and returns the rest of the text.
fn parse_term(text: &str) -> Result<(u128, &str), DurationError> {
    let (whole, rest) = take_while(text, |c| c.is_ascii_digit());
    let (fraction, rest) = match rest.strip_prefix('.') {
        Some(rest) => take_while(rest, |c| c.is_ascii_digit()),
        None => ("", rest),
    };
    if whole.is_empty() && fraction.is_empty() {
        return Err(DurationError::NoNumber);
    }
    let (unit, rest) = take_while(rest, |c| !c.is_ascii_digit() && c != '.');
    if unit.is_empty() {
        return Err(DurationError::NoUnit);
    }
    let (_, scale) = UNITS
        .into_iter()
        .find(|(name, _)| *name == unit)
        .ok_or_else(|| DurationError::UnknownUnit(unit.to_owned()))?;
    let nanoseconds = number(whole)?
        .checked_mul(scale)
        .and_then(|whole| whole.checked_add(fraction_of(fraction, scale)))
        .ok_or(DurationError::TooLong)?;
    Ok((nanoseconds, rest))
}

fn take_while(text: &str, belongs: impl Fn(char) -> bool) -> (&str, &str) {
    text.split_at(text.find(|c| !belongs(c)).unwrap_or(text.len()))
}

fn number(digits: &str) -> Result<u128, DurationError> {
    if digits.is_empty() {
        return Ok(0);
    }
    digits.parse().map_err(|_| DurationError::TooLong)
}

/// Returns `0.digits` of `scale`, rounded down.
fn fraction_of(digits: &str, scale: u128) -> u128 {
    let mut numerator: u128 = 0;
    let mut denominator: u128 = 1;
    for digit in digits.bytes().take(FRACTION_DIGITS) {
        numerator = numerator * 10 + u128::from(digit - b'0');
        denominator *= 10;
    }
    numerator * scale / denominator
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn durations_that_go_accepts() {
        let second = 1_000_000_000;
        for (text, nanoseconds) in [
            ("0", 0),
            ("+0", 0),
            ("-0", 0),
            ("0s", 0),
            ("5s", 5 * second),
            ("+5s", 5 * second),
            ("-5s", -5 * second),
            ("1m30s", 90 * second),
            ("30s1m", 90 * second),
            ("1.5h", 5400 * second),
            (".5s", second / 2),
            ("5.s", 5 * second),
            ("300ms", 300_000_000),
            ("10us", 10_000),
            ("10\u{b5}s", 10_000),
            ("10\u{3bc}s", 10_000),
            ("7ns", 7),
            ("1.9ns", 1),
            ("0.3333333333333333333h", 1_199_999_999_999),
            ("39h9m14.425s", 140_954_425_000_000),
            ("9223372036854775807ns", i64::MAX),
        ] {
            assert_eq!(parse(text), Ok(nanoseconds), "{text}");
        }
    }

    #[test]
    fn durations_that_go_refuses() {
        use DurationError::{NoNumber, NoUnit, TooLong, UnknownUnit};
        for (text, error) in [
            ("", NoNumber),
            ("-", NoNumber),
            ("s", NoNumber),
            (".", NoNumber),
            (".s", NoNumber),
            ("--5s", NoNumber),
            ("é", NoNumber),
            ("60", NoUnit),
            ("1m30", NoUnit),
            ("1.2.3s", NoUnit),
            ("5 s", UnknownUnit(" s".into())),
            ("5S", UnknownUnit("S".into())),
            ("1d", UnknownUnit("d".into())),
            ("1h-5m", UnknownUnit("h-".into())),
            ("9223372036854775808ns", TooLong),
            ("3000000h", TooLong),
            ("999999999999999999999999999999999999999999h", TooLong),
        ] {
            assert_eq!(parse(text), Err(error), "{text}");
        }
    }

    proptest! {
        #[test]
        fn never_panics(text in "[-+0-9.a-zµ]{0,60}") {
            let _ = parse(&text);
        }

        #[test]
        fn reads_back_whole_terms(h in 0i64..1000, m in 0i64..1000, ms in 0i64..100_000) {
            let expected = ((h * 60 + m) * 60_000 + ms) * 1_000_000;
            prop_assert_eq!(parse(&format!("{h}h{m}m{ms}ms")), Ok(expected));
            prop_assert_eq!(parse(&format!("-{h}h{m}m{ms}ms")), Ok(-expected));
        }
    }
}
