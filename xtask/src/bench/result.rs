//! Samples and their statistics.

use super::variant::{BASE, BASE_TRACKED, MONITORED, NETDP, SEEN, Variant};
use serde::Serialize;

/// Samples of one variant, one per round.
#[derive(Debug, Clone, Serialize)]
pub struct Cell {
    pub variant: &'static str,
    pub tracked: bool,
    pub samples: Vec<f64>,
}

/// One measured quantity for all variants.
#[derive(Debug, Clone, Serialize)]
pub struct Row {
    /// Name, such as `packets, 4096 flows`.
    pub what: String,
    pub unit: &'static str,
    pub cidrs: u32,
    /// Name of the curve and x value, if the row is a point of a curve.
    pub curve: Option<(String, f64)>,
    pub higher_is_better: bool,
    pub cells: Vec<Cell>,
}

impl Cell {
    pub fn new(variant: &'static Variant) -> Self {
        Self {
            variant: variant.name,
            tracked: variant.conntrack,
            samples: Vec::new(),
        }
    }

    pub fn median(&self) -> f64 {
        quantile(&self.samples, 0.5)
    }

    /// Returns half the interquartile range, relative to the median.
    pub fn spread(&self) -> f64 {
        let range = quantile(&self.samples, 0.75) - quantile(&self.samples, 0.25);
        range / 2.0 / self.median()
    }

    /// Returns the median of the ratios per round: what slows a round down affects all variants in
    /// it.
    pub fn ratio_to(&self, base: &Self) -> f64 {
        let ratios: Vec<f64> = self
            .samples
            .iter()
            .zip(&base.samples)
            .map(|(own, base)| own / base)
            .collect();
        quantile(&ratios, 0.5)
    }

    /// Returns the best sample of all rounds: the one least affected by other load on the machine.
    pub fn best(&self, higher_is_better: bool) -> f64 {
        let better = if higher_is_better { f64::max } else { f64::min };
        self.samples
            .iter()
            .copied()
            .reduce(better)
            .unwrap_or(f64::NAN)
    }
}

impl Row {
    pub fn cell(&self, variant: &str) -> Option<&Cell> {
        self.cells.iter().find(|cell| cell.variant == variant)
    }

    /// Returns the cell that `cell` is compared with.
    pub fn base(&self, cell: &Cell) -> Option<&Cell> {
        self.cell(match cell.variant {
            MONITORED | SEEN => NETDP,
            _ if cell.tracked => BASE_TRACKED,
            _ => BASE,
        })
    }
}

/// Returns the quantile `part` of the samples, with linear interpolation.
fn quantile(samples: &[f64], part: f64) -> f64 {
    let mut sorted = samples.to_vec();
    sorted.sort_by(f64::total_cmp);
    let Some(last) = sorted.len().checked_sub(1) else {
        return f64::NAN;
    };
    let at = part * last as f64;
    let (low, high) = (at.floor(), at.ceil());
    let value = |index: f64| {
        // In range: between 0 and `last`.
        #[expect(
            clippy::cast_possible_truncation,
            clippy::cast_sign_loss,
            reason = "a small index"
        )]
        let index = index as usize;
        sorted[index]
    };
    value(low) + (value(high) - value(low)) * (at - low)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn cell(samples: &[f64]) -> Cell {
        Cell {
            variant: "netdp",
            tracked: false,
            samples: samples.to_vec(),
        }
    }

    #[test]
    fn medians_lie_in_the_middle() {
        assert!((cell(&[3.0, 1.0, 2.0]).median() - 2.0).abs() < 1e-9);
        assert!((cell(&[4.0, 1.0, 2.0, 3.0]).median() - 2.5).abs() < 1e-9);
        assert!(cell(&[]).median().is_nan());
    }

    #[test]
    fn ratios_are_taken_round_by_round() {
        // Each round is half as fast as the one before, for both variants.
        let base = cell(&[8.0, 4.0, 2.0]);
        let own = cell(&[4.0, 2.0, 1.0]);
        assert!((own.ratio_to(&base) - 0.5).abs() < 1e-9);
    }
}
