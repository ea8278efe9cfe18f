//! netdp
fn main() {}
