//! Numbers in few columns.

use crate::format;

/// Formats a quantity with a decimal prefix: `812 k`, `1.3 M`.
pub(crate) fn decimal(mut quantity: f64) -> String {
    const UNITS: [&str; 5] = ["", "k", "M", "G", "T"];
    let mut unit = 0;
    while quantity >= 999.5 && unit + 1 < UNITS.len() {
        quantity /= 1000.0;
        unit += 1;
    }
    let name = UNITS.get(unit).copied().unwrap_or_default();
    let decimals = usize::from(unit > 0 && quantity < 99.95);
    format!("{quantity:.decimals$} {name}")
        .trim_end()
        .to_owned()
}

/// Formats a rate of bytes: `41.0 MiB`.
#[expect(
    clippy::cast_possible_truncation,
    clippy::cast_sign_loss,
    reason = "positive, and far below 2^64"
)]
pub(crate) fn bytes(quantity: f64) -> String {
    format::bytes(quantity.round() as u64)
}

/// Formats seconds in their largest unit: `41m`.
pub(crate) fn duration(seconds: u64) -> String {
    match seconds {
        0..60 => format!("{seconds}s"),
        60..3600 => format!("{}m", seconds / 60),
        3600..86_400 => format!("{}h", seconds / 3600),
        _ => format!("{}d", seconds / 86_400),
    }
}

/// The characters of [`bars`], from none to all.
const BARS: [char; 8] = ['▁', '▂', '▃', '▄', '▅', '▆', '▇', '█'];

/// Draws the last `width` values as bars, of which the highest value has the highest.
#[expect(
    clippy::cast_possible_truncation,
    clippy::cast_sign_loss,
    reason = "between 0 and 7"
)]
pub(super) fn bars(values: &[f64], width: usize) -> String {
    let shown = values.get(values.len().saturating_sub(width)..);
    let shown = shown.unwrap_or_default();
    let highest = shown.iter().copied().fold(0.0, f64::max);
    let bar = |value: &f64| {
        let level = if highest > 0.0 {
            value / highest * 7.0
        } else {
            0.0
        };
        BARS.get(level.round() as usize).copied().unwrap_or(' ')
    };
    shown.iter().map(bar).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_take_few_columns() {
        for (quantity, text) in [
            (0.0, "0"),
            (999.0, "999"),
            (999.9, "1.0 k"),
            (1000.0, "1.0 k"),
            (812_400.0, "812 k"),
            (1_300_000.0, "1.3 M"),
            (9e15, "9000 T"),
        ] {
            assert_eq!(decimal(quantity), text, "{quantity}");
        }
        assert_eq!(bytes(1023.6), "1.0 KiB");
        assert_eq!(duration(2460), "41m");
        assert_eq!(duration(172_900), "2d");
    }

    #[test]
    fn bars_are_as_high_as_values() {
        assert_eq!(bars(&[0.0, 7.0], 8), "▁█");
        assert_eq!(bars(&[1.0, 2.0, 4.0], 2), "▅█");
        assert_eq!(bars(&[0.0, 0.0], 2), "▁▁");
        assert_eq!(bars(&[], 2), "");
    }
}
