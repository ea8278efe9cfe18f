//! The environment of the decisions in the datapath: the maps and helpers for one packet.

mod config;
mod mappings;
mod policy;
mod ports;

use crate::maps::{SETTINGS, UPLINKS};
use crate::per_cpu::{self, Last, Side, per_cpu};
use aya_ebpf::programs::TcContext;
use netdp_common::layout::Settings;
use netdp_common::nat::scratch::Scratch;
use netdp_common::packet::ETHERNET;

/// The maps and helpers for one packet.
pub struct TcEnv<'a> {
    ctx: &'a TcContext,
    settings: &'a Settings,
    /// Holds the uplink, and the epoch as it was before any lookup.
    last: *mut Last,
}

impl<'a> TcEnv<'a> {
    /// Returns the environment and the scratch, at an uplink. `None` if the agent has not set up
    /// the interface: then there is nothing to decide.
    ///
    /// # Safety
    /// At most one environment in a run of a program.
    #[inline(always)]
    pub unsafe fn at_uplink<'w>(ctx: &'a TcContext) -> Option<(Self, &'w mut Scratch)> {
        let settings = SETTINGS.get(0)?;
        let epoch = epoch(settings);
        // SAFETY: by the contract.
        let (last, scratch) = unsafe { per_cpu(Side::Uplink) }?;
        // SAFETY: a TC program's context is readable for the program's run.
        let ifindex = unsafe { (*ctx.skb.skb).ifindex };
        // SAFETY: entries are replaced, not freed under a running program
        // (the map's memory is reclaimed after a grace period only); fields
        // change all together by replacement.
        unsafe { per_cpu::refresh_uplink(last, epoch, ifindex, || UPLINKS.get(ifindex)) }?;
        let env = Self {
            ctx,
            settings,
            last,
        };
        Some((env, scratch))
    }

    /// Returns the environment and the scratch, at an interface towards pods.
    ///
    /// # Safety
    /// As for [`Self::at_uplink`].
    #[inline(always)]
    pub unsafe fn at_pods<'w>(ctx: &'a TcContext) -> Option<(Self, &'w mut Scratch)> {
        let settings = SETTINGS.get(0)?;
        // SAFETY: by the contract.
        let (last, scratch) = unsafe { per_cpu(Side::Pods) }?;
        // SAFETY: this CPU's own. Interfaces towards pods have an Ethernet header, and no number.
        unsafe { (*last).l2_len = ETHERNET };
        let env = Self {
            ctx,
            settings,
            last,
        };
        Some((env, scratch))
    }
}

/// Reads the epoch, before any other lookup.
#[inline(always)]
fn epoch(settings: &Settings) -> u32 {
    // SAFETY: a reference. Volatile, so that the read is not deferred.
    unsafe { (&raw const settings.epoch).read_volatile() }
}
