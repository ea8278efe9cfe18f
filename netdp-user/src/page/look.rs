//! Looks at maps and files. A look at very many mappings takes a while, so it serves all requests
//! for some time.

use super::Place;
use crate::datapath::{self, Destination, Usage};
use crate::forecast::{PortsPast, most_used};
use crate::pods::Names;
use crate::policy::View;
use crate::report::Status;
use anyhow::Result;
use std::collections::HashSet;
use std::net::IpAddr;
use std::sync::Arc;
use std::time::{Duration, Instant};

/// Destinations that are shown.
const DESTINATIONS: usize = 10;

/// The least time for which a look counts.
const LASTS: Duration = Duration::from_secs(1);

/// Multiple of its own duration for which a look counts: looks take 2 per cent of a core at most.
const PAUSE: u32 = 50;

/// One look.
#[derive(Debug)]
pub(super) struct Look {
    /// The time of the look.
    pub at: Instant,
    /// The status; an error if the state directory can't be read.
    pub status: Result<Status>,
    /// The policy with its counts; an error if there are no maps.
    pub policy: Result<View>,
    /// The ports; an error if there are no maps.
    pub ports: Result<Ports>,
}

/// Ports towards the destinations that use most.
#[derive(Debug)]
pub(super) struct Ports {
    /// Number of ports towards each.
    pub of: u64,
    /// Those that use most, the first most.
    pub used: Vec<Used>,
    /// Destinations that there are.
    pub destinations: usize,
}

/// Ports towards one destination.
#[derive(Debug)]
pub(super) struct Used {
    pub to: Destination,
    pub ports: u64,
    /// Pods that have them.
    pub pods: usize,
    /// The pod that has most, by name or address, and how many.
    pub biggest: Option<(String, u64)>,
    /// Seconds until all are used, if that can be told.
    pub full_in: Option<u64>,
}

/// The last look, and what goes on from look to look.
#[derive(Debug, Default)]
pub(super) struct Looks {
    last: Option<(Arc<Look>, Duration)>,
    past: PortsPast,
    /// The destinations that used most ports at the last look.
    watched: HashSet<Destination>,
}

impl Looks {
    /// Returns the last look, or a new one if that was too long ago.
    pub(super) fn get(&mut self, place: &Place) -> Arc<Look> {
        if let Some((last, took)) = &self.last
            && last.at.elapsed() < LASTS.max(*took * PAUSE)
        {
            return Arc::clone(last);
        }
        let at = Instant::now();
        let look = Arc::new(Look {
            at,
            status: Status::gather(&place.bpffs, &place.state_dir),
            policy: View::gather(&place.bpffs, &place.state_dir),
            ports: self.ports(at, place),
        });
        self.last = Some((Arc::clone(&look), at.elapsed()));
        look
    }

    fn ports(&mut self, at: Instant, place: &Place) -> Result<Ports> {
        let maps = datapath::open(&place.bpffs)?;
        let mut usage = maps.usage(None, &self.watched)?;
        let most = most_used(&usage, 0, DESTINATIONS);
        let wanted: HashSet<_> = most.iter().copied().collect();
        if !wanted.is_subset(&self.watched) {
            usage = maps.usage(None, &wanted)?;
        }
        self.past.add(at, &wanted, &usage);
        self.watched = wanted;
        let of = maps.ports_of_destination()?;
        let names = place.names();
        let used = most.into_iter().map(|to| self.used(&usage, to, of, &names));
        Ok(Ports {
            of,
            used: used.collect(),
            destinations: usage.destinations.len(),
        })
    }

    fn used(&self, usage: &Usage, to: Destination, of: u64, names: &Names) -> Used {
        let shares = usage.shares.iter().filter(|((_, of), _)| *of == to);
        let mut shares: Vec<(IpAddr, u64)> =
            shares.map(|((pod, _), ports)| (*pod, *ports)).collect();
        shares.sort_by_key(|(pod, ports)| (std::cmp::Reverse(*ports), *pod));
        let name = |pod: IpAddr| {
            let owner = names.owner_now(pod);
            owner.map_or_else(|| pod.to_string(), |owner| names.describe(owner))
        };
        Used {
            to,
            ports: shares.iter().map(|(_, ports)| ports).sum(),
            pods: shares.len(),
            biggest: shares.first().map(|(pod, ports)| (name(*pod), *ports)),
            full_in: self.past.full_in(&to, of),
        }
    }
}
