//! Lines of the past as inline SVG.

use super::past::float;
use maud::{Markup, html};
use std::fmt::Write as _;

/// Size of the drawing, in its own units; the page stretches it.
const WIDTH: f64 = 360.0;
const HEIGHT: f64 = 56.0;

/// Room above the highest value, so that the line is not cut.
const ROOM: f64 = 3.0;

/// Draws values as a line above an area. `label` says in words what it shows.
pub(super) fn line(values: &[f64], label: &str) -> Markup {
    let path = path(values);
    html! {
        svg role="img" aria-label=(label) viewBox={ "0 0 " (WIDTH) " " (HEIGHT) } preserveAspectRatio="none" {
            @if let Some(path) = path {
                path class="area" d={ (path) "V" (HEIGHT) "H0Z" } {}
                path class="line" d=(path) {}
            }
        }
    }
}

/// Draws a part of a whole as a bar. `label` says it in words.
pub(super) fn bar(part: u64, whole: u64, label: &str) -> Markup {
    let share = float(part.min(whole)) / float(whole.max(1)) * 100.0;
    html! {
        svg.bar role="img" aria-label=(label) viewBox="0 0 100 8" preserveAspectRatio="none" {
            rect class="whole" width="100" height="8" {}
            rect class="part" width=(format!("{share:.1}")) height="8" {}
        }
    }
}

/// Returns the line through all values, the last one at the right; `None` without any.
fn path(values: &[f64]) -> Option<String> {
    let highest = values.iter().copied().fold(0.0, f64::max);
    let place = |value: f64| match highest {
        0.0 => HEIGHT - 1.0,
        _ => HEIGHT - 1.0 - value / highest * (HEIGHT - 1.0 - ROOM),
    };
    let steps = values.len().saturating_sub(1).max(1);
    let step = WIDTH / float(steps as u64);
    let (first, rest) = values.split_first()?;
    let mut path = format!("M0 {:.1}", place(*first));
    if rest.is_empty() {
        // A single value is a level.
        let _ = write!(path, "H{WIDTH}");
    }
    for (n, value) in (1_u64..).zip(rest) {
        // Writing to a String cannot fail.
        let _ = write!(path, "L{:.1} {:.1}", float(n) * step, place(*value));
    }
    Some(path)
}

#[cfg(test)]
mod tests {
    use super::{bar, line, path};

    #[test]
    fn the_line_reaches_from_edge_to_edge() {
        assert_eq!(path(&[]), None);
        assert_eq!(path(&[4.0]).unwrap(), "M0 3.0H360");
        assert_eq!(
            path(&[0.0, 2.0, 1.0]).unwrap(),
            "M0 55.0L180.0 3.0L360.0 29.0"
        );
        assert_eq!(path(&[0.0, 0.0]).unwrap(), "M0 55.0L360.0 55.0");
    }

    #[test]
    fn drawings_say_in_words_what_they_show() {
        let drawn = line(&[1.0, 2.0], "packets \"per\" second").into_string();
        assert!(drawn.contains("role=\"img\" aria-label=\"packets &quot;per&quot; second\""));
        let half = bar(5, 10, "5 of 10").into_string();
        assert!(half.contains("width=\"50.0\""), "{half}");
        assert!(bar(0, 0, "").into_string().contains("width=\"0.0\""));
    }
}
