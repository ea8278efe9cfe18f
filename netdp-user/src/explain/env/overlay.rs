//! Map values that were read, with the writes of one decision: nothing reaches the map.

use std::cell::{RefCell, UnsafeCell};
use std::collections::HashMap;
use std::hash::Hash;
use std::rc::Rc;

/// Copies of the entries of one map. Values stay where they are for as long as the overlay lives,
/// removed ones too: a slot may point to them, as a program keeps a pointer into a map.
pub(super) struct Overlay<K, V> {
    /// `None` stands for an entry that does not exist.
    entries: RefCell<HashMap<K, Option<Rc<UnsafeCell<V>>>>>,
    removed: RefCell<Vec<Rc<UnsafeCell<V>>>>,
}

impl<K, V> Default for Overlay<K, V> {
    fn default() -> Self {
        Self {
            entries: RefCell::default(),
            removed: RefCell::default(),
        }
    }
}

impl<K: Copy + Eq + Hash, V: Copy> Overlay<K, V> {
    /// Returns a pointer to the value of `key`, which `read` looks up the first time. It is valid
    /// for as long as the overlay.
    pub(super) fn slot(&self, key: &K, read: impl FnOnce() -> Option<V>) -> Option<*mut V> {
        let mut entries = self.entries.borrow_mut();
        let entry = entries
            .entry(*key)
            .or_insert_with(|| read().map(|value| Rc::new(UnsafeCell::new(value))));
        entry.as_ref().map(|value| value.get())
    }

    /// Returns a copy of the value of `key`.
    pub(super) fn get(&self, key: &K, read: impl FnOnce() -> Option<V>) -> Option<V> {
        // SAFETY: one thread; slots write to the value only within a call.
        self.slot(key, read).map(|value| unsafe { *value })
    }

    /// Inserts a value, or replaces the one that is there.
    pub(super) fn set(&self, key: &K, value: V) {
        let value = Rc::new(UnsafeCell::new(value));
        let earlier = self.entries.borrow_mut().insert(*key, Some(value));
        self.removed.borrow_mut().extend(earlier.flatten());
    }

    /// Removes a value; returns `false` if there is none.
    pub(super) fn remove(&self, key: &K, read: impl FnOnce() -> Option<V>) -> bool {
        let found = self.slot(key, read).is_some();
        let earlier = self.entries.borrow_mut().insert(*key, None);
        self.removed.borrow_mut().extend(earlier.flatten());
        found
    }
}

#[cfg(test)]
mod tests {
    use super::Overlay;

    #[test]
    fn a_value_is_read_once_and_written_here() {
        let overlay = Overlay::<u32, u32>::default();
        let slot = overlay.slot(&1, || Some(10)).unwrap();
        // SAFETY: valid for as long as the overlay.
        unsafe { *slot = 11 };
        assert_eq!(overlay.get(&1, || unreachable!()), Some(11));
        assert_eq!(overlay.get(&2, || None), None);
        assert_eq!(overlay.get(&2, || unreachable!()), None);
    }

    #[test]
    fn a_slot_outlives_its_entry() {
        let overlay = Overlay::<u32, u32>::default();
        let slot = overlay.slot(&1, || Some(10)).unwrap();
        assert!(overlay.remove(&1, || unreachable!()));
        assert!(!overlay.remove(&1, || unreachable!()));
        overlay.set(&1, 12);
        // SAFETY: valid for as long as the overlay.
        unsafe { *slot = 11 };
        assert_eq!(overlay.get(&1, || unreachable!()), Some(12));
        assert!(!overlay.remove(&2, || None));
    }
}
