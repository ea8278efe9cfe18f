//! The refused and dropped packets that the agent remembers, for `netdp explain --event`.

use super::{Alike, Event, Headers, What};
use std::collections::HashMap;

/// The most that are remembered. Packets that are alike count as one.
const MOST: usize = 200;

#[derive(Debug)]
struct Entry {
    id: u16,
    /// The number of the last event that was alike.
    used: u64,
    event: Event,
}

/// The last packets of each sort.
#[derive(Debug, Default)]
pub(super) struct Memory {
    entries: HashMap<Alike, Entry>,
    last_id: u16,
    /// Events so far.
    events: u64,
}

impl Memory {
    /// Remembers an event, if it has a packet, and gives it the number of its like.
    pub(super) fn remember(&mut self, event: &mut Event) {
        let is_refusal = matches!(event.what, What::Refused(_));
        let (What::Refused(dropped) | What::Drop(dropped)) = &mut event.what else {
            return;
        };
        let alike = Alike::of(dropped, Headers::of(dropped).as_ref(), is_refusal);
        self.events += 1;
        let known = self.entries.get(&alike).map(|entry| entry.id);
        let id = known.unwrap_or_else(|| {
            self.make_room();
            self.last_id = self.last_id.wrapping_add(1);
            self.last_id
        });
        dropped.id = Some(id);
        let entry = Entry {
            id,
            used: self.events,
            event: event.clone(),
        };
        self.entries.insert(alike, entry);
    }

    /// Returns the last packet with a number.
    pub(super) fn recall(&self, id: u16) -> Option<&Event> {
        let found = self.entries.values().find(|entry| entry.id == id);
        found.map(|entry| &entry.event)
    }

    /// Forgets what was not seen for longest, if there is no room.
    fn make_room(&mut self) {
        if self.entries.len() < MOST {
            return;
        }
        let oldest = self.entries.iter().min_by_key(|(_, entry)| entry.used);
        if let Some(oldest) = oldest.map(|(alike, _)| *alike) {
            self.entries.remove(&oldest);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::super::Dropped;
    use super::*;

    fn event(reason: u32, ifindex: u32) -> Event {
        let dropped = Dropped {
            reason,
            ifindex,
            arriving: false,
            length: 0,
            l2_len: 14,
            packet: Vec::new(),
            id: None,
        };
        let what = What::Drop(dropped);
        Event { time: 1, what }
    }

    fn id(memory: &mut Memory, mut event: Event) -> u16 {
        memory.remember(&mut event);
        let What::Drop(Dropped { id, .. }) = event.what else {
            panic!("another event");
        };
        id.unwrap()
    }

    #[test]
    fn what_is_alike_has_one_number_and_the_oldest_is_forgotten() {
        let mut memory = Memory::default();
        let first = id(&mut memory, event(1, 0));
        let second = id(&mut memory, event(1, 1));
        assert_ne!(first, second);
        assert_eq!(id(&mut memory, event(1, 0)), first);
        for ifindex in 2..=200 {
            id(&mut memory, event(1, ifindex));
        }
        assert!(memory.recall(first).is_some());
        assert_eq!(memory.recall(second), None);
        assert_ne!(id(&mut memory, event(1, 1)), second);
    }
}
