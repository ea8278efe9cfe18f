//! netdp development tasks.
