//! Metrics of the NAT log.

use super::table::{NAT_LOG_LAG, NAT_LOG_LOST, NAT_LOG_RECORDS};
use super::{Samples, Source};
use crate::nat_log::Counters;
use anyhow::Result;
use std::sync::atomic::Ordering;
use std::time::Duration;

impl Source for Counters {
    fn collect(&self, samples: &mut Samples) -> Result<()> {
        for (event, records) in self.records() {
            samples.count(NAT_LOG_RECORDS, &[event], records);
        }
        for (cause, lost) in self.lost() {
            samples.count(NAT_LOG_LOST, &[cause], lost);
        }
        let lag = Duration::from_millis(self.lag_ms.load(Ordering::Relaxed));
        samples.gauge(NAT_LOG_LAG, &[], lag.as_secs_f64());
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use crate::metrics::Metrics;
    use crate::nat_log::Counters;
    use std::sync::Arc;
    use std::sync::atomic::Ordering;

    #[test]
    fn records_losses_and_the_lag_are_there_from_the_start() {
        let metrics = Metrics::new();
        let counters = Arc::new(Counters::default());
        metrics.add(Arc::clone(&counters));
        let has = |line: &str| metrics.text().unwrap().lines().any(|it| it == line);
        assert!(has("netdp_nat_log_records_total{event=\"begin\"} 0"));
        assert!(has("netdp_nat_log_lost_total{cause=\"programs\"} 0"));
        counters.lag_ms.store(1_500, Ordering::Relaxed);
        assert!(
            has("netdp_nat_log_lag_seconds 1.5"),
            "{}",
            metrics.text().unwrap()
        );
    }
}
