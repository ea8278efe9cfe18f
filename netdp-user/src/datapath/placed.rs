//! Where programs are to be, and whether they are.

use super::filter::{self, Filter};
use super::links::{Hook, Mechanism};
use super::{bpffs, clsact, tcx};
use anyhow::{Context as _, Result};
use serde::{Deserialize, Serialize};
use std::fmt;
use std::path::PathBuf;
use std::time::Instant;

/// A program that is to be on a hook.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Placed {
    /// The interface's index.
    pub ifindex: u32,
    /// Its name.
    pub interface: String,
    /// The hook.
    pub hook: Hook,
    /// `tcx` or `clsact`.
    pub mechanism: Mechanism,
    /// The program's id.
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

/// What a look at a hook shows.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Found {
    /// The program is there.
    There,
    /// It is there, and others' come before it on an uplink: what they return may keep packets
    /// from it.
    Behind(Ahead),
    /// It is not, or another one is in its place.
    Missing,
    /// The interface is gone.
    NoInterface,
}

/// What comes before a program of ours.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Ahead {
    /// Programs and filters, as people call them.
    pub who: Vec<String>,
    /// Whether ours can be put before them.
    pub can_move: bool,
}

impl Ahead {
    /// Who comes first, as the beginning of a sentence.
    pub fn subject(&self) -> String {
        let verb = if self.who.len() > 1 { "run" } else { "runs" };
        format!("{} {verb}", self.who.join(" and "))
    }
}

impl Placed {
    /// Says what comes before the program.
    pub fn behind(&self, ahead: &Ahead) -> String {
        let (interface, hook) = (&self.interface, self.hook.name());
        format!("{interface}: {} before the {hook} program", ahead.subject())
    }

    /// Asks the kernel.
    ///
    /// # Errors
    /// The kernel can't be asked.
    pub fn look(&self) -> Result<Found> {
        let found = match self.mechanism {
            Mechanism::Clsact => self.look_at_filters(),
            Mechanism::Auto | Mechanism::Tcx => self.look_at_tcx(),
        };
        match found {
            Ok(Some(ahead)) if ahead.who.is_empty() || self.hook == Hook::Pod => Ok(Found::There),
            Ok(Some(ahead)) => Ok(Found::Behind(ahead)),
            Ok(None) => Ok(Found::Missing),
            Err(err) if is_no_interface(&err) => Ok(Found::NoInterface),
            Err(err) => Err(err).with_context(|| {
                format!(
                    "asking what is attached to {} ({})",
                    self.interface,
                    self.hook.name()
                )
            }),
        }
    }

    /// What comes before the program, if it is there.
    fn look_at_tcx(&self) -> Result<Option<Ahead>> {
        let there = tcx::on_hook(self.ifindex, self.hook)?;
        let at = there.iter().position(|it| it.program == self.program);
        Ok(at.map(|at| Ahead {
            who: there.iter().take(at).map(tcx_name).collect(),
            can_move: true,
        }))
    }

    fn look_at_filters(&self) -> Result<Option<Ahead>> {
        let filters = filter::list(self.ifindex, self.hook)?;
        let is_this = |it: &Filter| it.is_ours() && it.program == Some(self.program);
        let Some(at) = filters.iter().position(is_this) else {
            return Ok(None);
        };
        // Kernels without TCX know of none. All that is there comes before any filter
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

/// Everything that is to be attached and pinned.
#[derive(Debug, Clone)]
pub struct Watched {
    pub(super) placed: Vec<Placed>,
    pub(super) bpffs: PathBuf,
    pub(super) pins: Vec<PathBuf>,
}

/// What of it is not.
#[derive(Debug)]
pub struct Findings {
    /// When the look began.
    pub at: Instant,
    /// What is not attached.
    pub missing: Vec<Placed>,
    /// Before what there are others, and who.
    pub behind: Vec<(Placed, Ahead)>,
    /// Whether a pin is missing.
    pub unpinned: bool,
    /// What could not be asked.
    pub problem: Option<String>,
}

impl Watched {
    /// Looks at all of it.
    pub fn look(&self) -> Findings {
        let mut findings = Findings {
            at: Instant::now(),
            missing: Vec::new(),
            behind: Vec::new(),
            unpinned: !bpffs::is_bpffs(&self.bpffs) || self.pins.iter().any(|pin| !pin.exists()),
            problem: None,
        };
        for placed in &self.placed {
            match placed.look() {
                Ok(Found::Missing) => findings.missing.push(placed.clone()),
                Ok(Found::Behind(ahead)) => findings.behind.push((placed.clone(), ahead)),
                Ok(Found::There | Found::NoInterface) => {}
                Err(err) => findings.problem = Some(format!("{err:#}")),
            }
        }
        findings
    }
}
