//! Programs before those of others, and none but ours from an interface's first moment on
//! (docs/adr/0035).

use super::links::{Device, Hook, Links, Mechanism, Place};
use super::object::{self, SHUT, STAND_IN};
use super::placed::Placed;
use super::{clsact, tcx::TcxLink};
use anyhow::{Context as _, Result};
use aya::Ebpf;
use std::os::fd::AsFd as _;

impl Links {
    /// Puts an uplink's program before those of others that have come before it since. The new one
    /// is there before the old one goes, and for a few microseconds only are both.
    ///
    /// # Errors
    /// There is no place before theirs, or the kernel refused: all is as before.
    pub fn overtake(&mut self, object: &mut Ebpf, placed: &Placed) -> Result<()> {
        let Placed { ifindex, hook, .. } = *placed;
        let Some(place) = self.places.get_mut(&(ifindex, hook)) else {
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
        // Fails where it is detached already.
        let _ = old.detach();
        self.pin_anew(&link, (ifindex, hook));
        let placed = Placed {
            program,
            ..placed.clone()
        };
        let link = Some(link);
        self.places.insert((ifindex, hook), Place { placed, link });
        Ok(())
    }

    /// Makes the egress link of a new interface at once, with a program that lets nothing through that
    /// is forwarded: the kernel takes its time for the ingress link. `None` where there is no TCX, or
    /// anything of ours.
    pub(super) fn shut(&self, object: &mut Ebpf, device: Device<'_>) -> Option<TcxLink> {
        let Device { ifindex, name } = device;
        let is_there = |hook: Hook| {
            self.places.contains_key(&(ifindex, hook))
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

/// Makes a link before all others for the program of a place, which its own link goes on to hold.
///
/// What makes a link returns milliseconds after packets meet it, once none is under way by the list
/// as it was (`tcx_entry_sync`, include/net/tcx.h, Linux 6.18). Lest both programs translate for so
/// long, the new link begins with a program that does nothing. A program is on a hook once only:
/// where ours is there, another copy is loaded.
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
            // As it was.
            let _ = link.detach();
            Err(err).with_context(|| format!("moving the {} program", hook.name()))
        }
    }
}
