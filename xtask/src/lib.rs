//! What netdp's tasks and the tests of its image share: [`cluster`], a real cluster of one node;
//! [`image`], the OCI image; [`shell`].

#[cfg(feature = "full")]
pub mod cluster;
pub mod image;
pub mod shell;
