//! Where programs are to be, and whether they are.

use super::links::{Hook, Mechanism};
use super::{bpffs, filter, tcx};
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
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Found {
    /// The program is there.
    There,
    /// It is not, or another one is in its place.
    Missing,
    /// The interface is gone.
    NoInterface,
}

impl Placed {
    /// Asks the kernel.
    ///
    /// # Errors
    /// The kernel can't be asked.
    pub fn look(&self) -> Result<Found> {
        let programs = match self.mechanism {
            Mechanism::Clsact => {
                filter::program(self.ifindex, self.hook).map(|id| id.into_iter().collect())
            }
            Mechanism::Auto | Mechanism::Tcx => {
                tcx::programs(self.ifindex, self.hook).map_err(Into::into)
            }
        };
        match programs {
            Ok(programs) if programs.contains(&self.program) => Ok(Found::There),
            Ok(_) => Ok(Found::Missing),
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
            unpinned: !bpffs::is_bpffs(&self.bpffs) || self.pins.iter().any(|pin| !pin.exists()),
            problem: None,
        };
        for placed in &self.placed {
            match placed.look() {
                Ok(Found::Missing) => findings.missing.push(placed.clone()),
                Ok(Found::There | Found::NoInterface) => {}
                Err(err) => findings.problem = Some(format!("{err:#}")),
            }
        }
        findings
    }
}
