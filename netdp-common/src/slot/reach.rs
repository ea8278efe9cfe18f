//! An entry of `reach` in place.

use crate::layout::Reach;

/// A field of [`Reach`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ReachField {
    /// [`Reach::pod_new`].
    PodNew,
    /// [`Reach::pod_answered`].
    PodAnswered,
    /// [`Reach::node_new`].
    NodeNew,
    /// [`Reach::node_answered`].
    NodeAnswered,
}

/// A [`Reach`] in place, which CPUs write at the same time.
#[derive(Clone, Copy)]
pub struct ReachSlot(*mut Reach);

impl ReachSlot {
    /// # Safety
    /// `reach` must point to a `Reach` that stays readable and writable for as long as the slot is
    /// used.
    #[inline(always)]
    #[must_use]
    pub const unsafe fn new(reach: *mut Reach) -> Self {
        Self(reach)
    }

    /// Adds one to a field.
    #[inline(always)]
    pub fn add(self, field: ReachField) {
        // SAFETY: fields of the value, which is valid by the contract of `new`. Volatile, because
        // other CPUs write them too.
        unsafe {
            let field = match field {
                ReachField::PodNew => &raw mut (*self.0).pod_new,
                ReachField::PodAnswered => &raw mut (*self.0).pod_answered,
                ReachField::NodeNew => &raw mut (*self.0).node_new,
                ReachField::NodeAnswered => &raw mut (*self.0).node_answered,
            };
            field.write_volatile(field.read_volatile().wrapping_add(1));
        }
    }
}
