//! Expected places of programs, and their check.

use super::filter::{self, Filter};
use super::hook::{Hook, Mechanism, name_of};
use super::{bpffs, clsact, tcx};
use anyhow::{Context as _, Result};
use serde::{Deserialize, Serialize};
use std::fmt;
use std::path::PathBuf;
use std::time::Instant;

/// A program that should be on a hook.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Placed {
    /// Index of the interface in this network namespace.
    pub ifindex: u32,
    /// Name of the interface, for messages.
    pub interface: String,
    /// Hook of the program.
    pub hook: Hook,
    /// Mechanism of the attachment: `tcx` or `clsact`, never `auto`.
    pub mechanism: Mechanism,
    /// Id of the program in the kernel.
    pub program: u32,
}

impl fmt::Display for Placed {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mechanism = match self.mechanism {
            Mechanism::Clsact => "clsact",
            Mechanism::Auto | Mechanism::Tcx => "tcx",
        };
        write!(
            f,
            "the {} program is not attached to {} ({mechanism})",
            self.hook.name(),
            self.interface
        )
    }
}

/// Result of checking a hook.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum HookState {
    /// The program is attached.
    Attached,
    /// The program is attached, and third-party ones precede it on an uplink: their return codes
    /// may keep packets from it.
    Preceded(Ahead),
    /// The program is missing, or another one is in its place.
    Missing,
    /// The interface is gone.
    NoInterface,
}

/// Programs and filters that precede ours.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Ahead {
    /// Programs and filters, as they are named in messages.
    pub who: Vec<String>,
    /// True if ours can be moved ahead of them.
    pub can_move: bool,
}

impl Ahead {
    /// Returns who comes first, as the beginning of a sentence.
    pub fn subject(&self) -> String {
        let verb = if self.who.len() > 1 { "run" } else { "runs" };
        format!("{} {verb}", self.who.join(" and "))
    }
}

impl Placed {
    /// Describes what precedes the program.
    pub fn behind(&self, ahead: &Ahead) -> String {
        let (interface, hook) = (&self.interface, self.hook.name());
        format!("{interface}: {} before the {hook} program", ahead.subject())
    }

    /// Queries the hook's state from the kernel.
    ///
    /// # Errors
    /// Returns an error if the kernel can't be queried.
    pub fn check(&self) -> Result<HookState> {
        let found = match self.mechanism {
            Mechanism::Clsact => self.check_filters(),
            Mechanism::Auto | Mechanism::Tcx => self.check_tcx(),
        };
        match found {
            Ok(Some(ahead)) if ahead.who.is_empty() || self.hook == Hook::Pod => {
                Ok(HookState::Attached)
            }
            Ok(Some(ahead)) => Ok(HookState::Preceded(ahead)),
            Ok(None) => Ok(HookState::Missing),
            Err(err) if is_no_interface(&err) => Ok(HookState::NoInterface),
            Err(err) => Err(err).with_context(|| {
                format!(
                    "querying what is attached to {} ({})",
                    self.interface,
                    self.hook.name()
                )
            }),
        }
    }

    /// Returns what precedes the program, if it is attached.
    fn check_tcx(&self) -> Result<Option<Ahead>> {
        let there = tcx::on_hook(self.ifindex, self.hook)?;
        let at = there.iter().position(|it| it.program == self.program);
        Ok(at.map(|at| Ahead {
            who: there.iter().take(at).map(tcx_name).collect(),
            can_move: true,
        }))
    }

    fn check_filters(&self) -> Result<Option<Ahead>> {
        let filters = filter::list(self.ifindex, self.hook)?;
        let is_this = |it: &Filter| it.is_ours() && it.program == Some(self.program);
        let Some(at) = filters.iter().position(is_this) else {
            return Ok(None);
        };
        // On kernels without TCX the list is empty. TCX programs run before any filter
        // (`sch_handle_egress`, net/core/dev.c, Linux 6.18).
        let tcx = tcx::on_hook(self.ifindex, self.hook).unwrap_or_default();
        let before = filters.iter().take(at);
        let before = before.filter(|it| !it.is_ours()).map(ToString::to_string);
        let mut who: Vec<_> = tcx.iter().map(tcx_name).collect();
        let can_move = who.is_empty() && clsact::can_overtake(&filters);
        who.extend(before);
        Ok(Some(Ahead { who, can_move }))
    }
}

fn tcx_name(it: &tcx::OnHook) -> String {
    match tcx::name(it.program) {
        Some(name) if !name.is_empty() => format!("the TCX program {} ({name})", it.program),
        _ => format!("the TCX program {}", it.program),
    }
}

fn is_no_interface(err: &anyhow::Error) -> bool {
    err.chain().any(|cause| {
        cause
            .downcast_ref::<std::io::Error>()
            .and_then(std::io::Error::raw_os_error)
            == Some(libc::ENODEV)
    })
}

/// Everything that should be attached and pinned.
#[derive(Debug, Clone)]
pub struct Expected {
    pub(super) placed: Vec<Placed>,
    pub(super) bpffs: PathBuf,
    pub(super) pins: Vec<PathBuf>,
}

/// Result of the check.
#[derive(Debug)]
pub struct HookCheck {
    /// Start of the check.
    pub at: Instant,
    /// Programs that are not attached.
    pub missing: Vec<Placed>,
    /// Programs that others precede, with those others.
    pub behind: Vec<(Placed, Ahead)>,
    /// True if a pin is missing.
    pub unpinned: bool,
    /// Error of a query that failed.
    pub problem: Option<String>,
}

impl Expected {
    /// Checks all of it.
    pub fn check(&self) -> HookCheck {
        let mut check = HookCheck {
            at: Instant::now(),
            missing: Vec::new(),
            behind: Vec::new(),
            unpinned: !bpffs::is_bpffs(&self.bpffs) || self.pins.iter().any(|pin| !pin.exists()),
            problem: None,
        };
        for placed in &self.placed {
            match placed.check() {
                Ok(HookState::Missing) => check.missing.push(placed.clone()),
                Ok(HookState::Preceded(ahead)) => check.behind.push((placed.clone(), ahead)),
                Ok(HookState::Attached | HookState::NoInterface) => {}
                Err(err) => check.problem = Some(format!("{err:#}")),
            }
        }
        check
    }
}

/// Removes the filters among these, whether or not maps are pinned. Returns what was removed, a
/// line each.
pub fn remove_filters(placed: &[Placed]) -> Vec<String> {
    let ours = placed
        .iter()
        .filter(|placed| name_of(placed.ifindex).as_deref() == Some(&placed.interface))
        .filter(|placed| clsact::remove(&placed.interface, placed.hook));
    ours.map(|placed| {
        let (hook, name) = (placed.hook, &placed.interface);
        format!("clsact {hook:?} filter on {name}")
    })
    .collect()
}
