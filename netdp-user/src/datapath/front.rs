//! Placement of our programs ahead of third-party ones, and protection of a new interface from its
//! first moment on (docs/adr/0035).

use super::hook::{Device, Hook, Mechanism};
use super::links::{Links, Placement};
use super::object::{self, SHUT, STAND_IN};
use super::placed::Placed;
use super::{clsact, tcx::TcxLink};
use anyhow::{Context as _, Result};
use aya::Ebpf;
use std::os::fd::AsFd as _;

impl Links {
    /// Moves an uplink's program ahead of third-party ones that have been attached before it since.
    /// The new one is attached before the old one goes; both are there for a few microseconds only.
    ///
    /// # Errors
    /// Returns an error if no place is left ahead of them, or the kernel refuses; nothing has
    /// changed then.
    pub fn overtake(&mut self, object: &mut Ebpf, placed: &Placed) -> Result<()> {
        let Placed { ifindex, hook, .. } = *placed;
        let Some(place) = self.placements.get_mut(&(ifindex, hook)) else {
            return Ok(());
        };
        let name = place.placed.interface.clone();
        let device = Device {
            ifindex,
            name: &name,
        };
        let Some(old) = place.link.take() else {
            return clsact::overtake(object::loaded(object, hook.program())?, hook, device);
        };
        let moved = tcx_overtake(object, placed);
        let (link, program) = match moved {
            Ok(moved) => moved,
            Err(err) => {
                place.link = Some(old);
                return Err(err);
            }
        };
        // Fails if it is detached already.
        let _ = old.detach();
        self.repin(&link, (ifindex, hook));
        let placed = Placed {
            program,
            ..placed.clone()
        };
        let link = Some(link);
        self.placements
            .insert((ifindex, hook), Placement { placed, link });
        Ok(())
    }

    /// Creates the egress link of a new interface at once, with a program that drops forwarded
    /// packets: creating the ingress link takes the kernel a while. Returns `None` if there is no
    /// TCX, or something of ours is attached already.
    pub(super) fn shut(&self, object: &mut Ebpf, device: Device<'_>) -> Option<TcxLink> {
        let Device { ifindex, name } = device;
        let is_there = |hook: Hook| {
            self.placements.contains_key(&(ifindex, hook))
                || hook.pin(&self.bpffs, ifindex).exists()
                || clsact::is_there(name, hook)
        };
        if !self.started
            || self.mechanism == Mechanism::Clsact
            || Hook::UPLINK.into_iter().any(is_there)
        {
            return None;
        }
        let shut = object::loaded(object, SHUT).ok()?.fd().ok()?.as_fd();
        TcxLink::create(shut, ifindex, Hook::Egress).ok()
    }
}

/// Creates a link ahead of all others for the program of a place, whose own link stays.
///
/// The system call that creates a link returns milliseconds after the first packets meet it, once
/// no packet is under way that saw the old list (`tcx_entry_sync`, include/net/tcx.h, Linux 6.18).
/// So that the two programs do not both translate for that long, the new link starts with a program
/// without effect. A program can be on a hook only once: if ours is there, another copy is loaded.
fn tcx_overtake(object: &mut Ebpf, placed: &Placed) -> Result<(TcxLink, u32)> {
    let Placed { ifindex, hook, .. } = *placed;
    let stand_in = object::loaded(object, STAND_IN)?.fd()?.as_fd();
    let link = TcxLink::create(stand_in, ifindex, hook)
        .with_context(|| format!("adding the {} program by TCX", hook.name()))?;
    let update = |object: &mut Ebpf| {
        let mut program = object::loaded(object, hook.program())?;
        if program.info()?.id() == placed.program {
            program.unload()?;
            program = object::loaded(object, hook.program())?;
        }
        link.update(program.fd()?.as_fd())?;
        Ok::<_, anyhow::Error>(program.info()?.id())
    };
    let updated = update(object);
    match updated {
        Ok(program) => Ok((link, program)),
        Err(err) => {
            // Restore the previous state.
            let _ = link.detach();
            Err(err).with_context(|| format!("moving the {} program", hook.name()))
        }
    }
}
