//! What netdp's tasks, tests and demo share: [`testbed`], a small network of
//! namespaces with real programs in it; [`migration`], a live node that changes
//! hands; [`image`], the OCI image; [`shell`].

pub mod image;
pub mod migration;
pub mod shell;
pub mod testbed;
