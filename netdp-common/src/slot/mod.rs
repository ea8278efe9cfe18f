//! Map values in place: shared with other CPUs and the agent, and therefore read and written field
//! by field, never through references.

mod inbound;
mod mapping;
mod pair;
pub mod port_map;
mod reach;
pub mod share;

pub use inbound::{AskedSlot, LiveSlot};
pub use mapping::{Place, Slot};
pub use pair::PairSlot;
pub use port_map::PortMapSlot;
pub use reach::{ReachField, ReachSlot};
pub use share::{Key, Role, ShareSlot, bucket_of_mapping};
