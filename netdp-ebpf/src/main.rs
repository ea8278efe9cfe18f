//! programs
fn main() {}
