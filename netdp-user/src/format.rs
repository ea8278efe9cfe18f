//! Numbers and times for people and for JSON.

use jiff::Timestamp;
use jiff::tz::TimeZone;

/// Formats a number with separators of thousands.
pub(crate) fn grouped(number: u64) -> String {
    let digits = number.to_string();
    let mut grouped = String::with_capacity(digits.len() + digits.len() / 3);
    for (at, digit) in digits.chars().enumerate() {
        if at > 0 && (digits.len() - at).is_multiple_of(3) {
            grouped.push(',');
        }
        grouped.push(digit);
    }
    grouped
}

/// Formats a number of bytes in the largest binary unit of which there is at least one, rounded to one
/// decimal.
pub(crate) fn bytes(number: u64) -> String {
    const UNITS: [&str; 6] = ["KiB", "MiB", "GiB", "TiB", "PiB", "EiB"];
    if number < 1024 {
        return format!("{number} B");
    }
    let mut shown = String::new();
    for (power, unit) in (1u32..).zip(UNITS) {
        let half = 1u128 << (10 * power - 1);
        let tenths = (u128::from(number) * 10 + half) >> (10 * power);
        shown = format!("{}.{} {unit}", tenths / 10, tenths % 10);
        if tenths < 10_240 {
            break;
        }
    }
    shown
}

/// Returns seconds since 1970 as a time; `None` beyond year 9999.
fn timestamp(seconds: u64) -> Option<Timestamp> {
    Timestamp::from_second(i64::try_from(seconds).ok()?).ok()
}

/// Formats seconds since 1970 as local time, with seconds; `-` beyond year 9999.
pub(crate) fn local_time(seconds: u64) -> String {
    let local = timestamp(seconds).map(|at| at.to_zoned(TimeZone::system()));
    local.map_or_else(
        || "-".into(),
        |at| at.strftime("%Y-%m-%d %H:%M:%S").to_string(),
    )
}

/// Formats seconds since 1970 by RFC 3339 in UTC; `None` beyond year 9999.
pub(crate) fn utc_time(seconds: u64) -> Option<String> {
    timestamp(seconds).map(|at| at.to_string())
}

#[cfg(test)]
mod tests {
    use super::{bytes, grouped, utc_time};

    #[test]
    fn thousands_are_separated() {
        for (number, expected) in [
            (0, "0"),
            (999, "999"),
            (1_000, "1,000"),
            (91_204_113_009, "91,204,113,009"),
        ] {
            assert_eq!(grouped(number), expected);
        }
    }

    #[test]
    fn bytes_have_binary_units() {
        for (number, expected) in [
            (0, "0 B"),
            (1023, "1023 B"),
            (1024, "1.0 KiB"),
            (1_258_291, "1.2 MiB"),
            (1_048_524, "1023.9 KiB"),
            (1_048_525, "1.0 MiB"),
            (u64::MAX, "16.0 EiB"),
        ] {
            assert_eq!(bytes(number), expected);
        }
    }

    #[test]
    fn times_are_rfc_3339() {
        assert_eq!(utc_time(0).as_deref(), Some("1970-01-01T00:00:00Z"));
        assert_eq!(utc_time(u64::MAX), None);
    }
}
