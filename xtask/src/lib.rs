//! Code shared by netdp's tasks and the tests of its image: [`cluster`], a real cluster of one
//! node; [`image`], the OCI image; [`shell`], running commands.

#[cfg(feature = "full")]
pub mod cluster;
pub mod image;
pub mod shell;
