//! The datapath's environment and the kernel's packet, for tests: [`Fake`] runs the pipeline that
//! the programs run.

mod env;
mod half_map;
mod run;
mod skb;
mod state;
mod tables;

pub use run::{Frame, Run, Seen, Turned, becomes, tuple_of, turned};
pub use skb::Written;
pub use state::{Fake, Origin, addr};
