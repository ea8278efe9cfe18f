//! What netdp's tasks, tests and demo share: [`testbed`], a small network of
//! namespaces with real programs in it.

pub mod testbed;
