//! One of the two mapping tables: a map of mapping halves.

use netdp_common::env::InsertError;
use netdp_common::layout::{Mapping, Tuple};
use netdp_common::slot::Slot;
use std::cell::{Cell, RefCell, UnsafeCell};
use std::collections::HashMap;
use std::rc::Rc;

/// A hash map of mapping halves.
pub struct HalfMap {
    capacity: Cell<usize>,
    entries: RefCell<HashMap<Tuple, Rc<UnsafeCell<Mapping>>>>,
    /// Removed values: a program that looked one up may still write to it.
    grave: RefCell<Vec<Rc<UnsafeCell<Mapping>>>>,
}

impl HalfMap {
    pub fn new(capacity: usize) -> Self {
        Self {
            capacity: Cell::new(capacity),
            entries: RefCell::default(),
            grave: RefCell::default(),
        }
    }

    pub fn slot(&self, tuple: &Tuple) -> Option<Slot> {
        let entries = self.entries.borrow();
        let cell = entries.get(tuple)?;
        // SAFETY: the value lives as long as the fake, either here or in the grave.
        Some(unsafe { Slot::new(cell.get()) })
    }

    pub fn get(&self, tuple: &Tuple) -> Option<Mapping> {
        let entries = self.entries.borrow();
        // SAFETY: there is one thread, and slots access the value only within a call.
        entries.get(tuple).map(|cell| unsafe { *cell.get() })
    }

    pub fn insert(&self, tuple: &Tuple, mapping: &Mapping) -> Result<(), InsertError> {
        let mut entries = self.entries.borrow_mut();
        if entries.contains_key(tuple) {
            return Err(InsertError::Exists);
        }
        if entries.len() >= self.capacity.get() {
            return Err(InsertError::Full);
        }
        entries.insert(*tuple, Rc::new(UnsafeCell::new(*mapping)));
        Ok(())
    }

    /// Removes the entry and reports whether there was one.
    pub fn remove(&self, tuple: &Tuple) -> bool {
        let removed = self.entries.borrow_mut().remove(tuple);
        let found = removed.is_some();
        self.grave.borrow_mut().extend(removed);
        found
    }

    pub fn len(&self) -> usize {
        self.entries.borrow().len()
    }

    pub fn set_capacity(&self, capacity: usize) {
        self.capacity.set(capacity);
    }

    pub fn all(&self) -> Vec<(Tuple, Mapping)> {
        let entries = self.entries.borrow();
        // SAFETY: as in `get`.
        let pairs = entries.iter().map(|(k, v)| (*k, unsafe { *v.get() }));
        pairs.collect()
    }
}
