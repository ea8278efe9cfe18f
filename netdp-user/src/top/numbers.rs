//! Numbers in few columns.

/// Formats a number with thousands separators.
pub(crate) fn grouped(number: u64) -> String {
    let digits = number.to_string();
    let mut text = String::with_capacity(digits.len() * 4 / 3);
    for (at, digit) in digits.chars().enumerate() {
        if at > 0 && (digits.len() - at).is_multiple_of(3) {
            text.push(',');
        }
        text.push(digit);
    }
    text
}

/// Formats a quantity with a decimal prefix: `812 k`, `1.3 M`.
pub(super) fn decimal(quantity: f64) -> String {
    scaled(quantity, 1000.0, &["", "k", "M", "G", "T"])
}

/// Formats bytes with a binary prefix: `41.0 MiB`.
pub(crate) fn bytes(quantity: f64) -> String {
    scaled(quantity, 1024.0, &["B", "KiB", "MiB", "GiB", "TiB"])
}

fn scaled(mut quantity: f64, step: f64, units: &[&str]) -> String {
    let mut unit = 0;
    while quantity >= step - 0.5 && unit + 1 < units.len() {
        quantity /= step;
        unit += 1;
    }
    let name = units.get(unit).copied().unwrap_or_default();
    let decimals = usize::from(unit > 0 && quantity < 99.95);
    format!("{quantity:.decimals$} {name}")
        .trim_end()
        .to_owned()
}

/// Formats seconds in their largest unit: `41m`.
pub(super) fn duration(seconds: u64) -> String {
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
        for (number, text) in [
            (0, "0"),
            (999, "999"),
            (1000, "1,000"),
            (1_234_567, "1,234,567"),
        ] {
            assert_eq!(grouped(number), text);
        }
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
        for (quantity, text) in [
            (0.0, "0 B"),
            (1023.0, "1023 B"),
            (1024.0, "1.0 KiB"),
            (43.0 * 1_048_576.0, "43.0 MiB"),
        ] {
            assert_eq!(bytes(quantity), text, "{quantity}");
        }
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
