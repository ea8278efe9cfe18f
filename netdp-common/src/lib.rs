//! The decisions of the datapath.
#![no_std]
