//! `netdp who`: which pod had an address and port on the wire, now or at a time.
//!
//! [`read`] collects what the log and the maps know, [`find`](mod@find) decides what follows from it.

mod find;
mod read;

use crate::cli::output;
use crate::nat_log::{Saved, Target, text};
use crate::pods::Names;
use crate::state_dir::StateDir;
use crate::time::now_milliseconds as now;
use anyhow::{Context as _, Result, bail};
use find::{Answer, Candidate, End, Found, find};
use jiff::Timestamp;
use jiff::civil;
use jiff::tz::TimeZone;
use read::Known;
use serde_json::{Value, json};
use std::fmt::Write as _;
use std::net::{IpAddr, SocketAddr};
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::str::FromStr;

/// Version of the JSON output.
const SCHEMA: u32 = 1;

/// An address, and a port or ICMP identifier where one is given.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Place {
    address: IpAddr,
    port: Option<u16>,
}

impl FromStr for Place {
    type Err = anyhow::Error;

    fn from_str(text: &str) -> Result<Self> {
        if let Ok(both) = text.parse::<SocketAddr>() {
            return Ok(Self {
                address: both.ip(),
                port: Some(both.port()),
            });
        }
        let address = text.parse().with_context(|| {
            format!(
                "{text:?} is neither an address nor an address and a port, such as \
                 10.1.0.10:44216 or [2001:db8::7]:44216"
            )
        })?;
        Ok(Self {
            address,
            port: None,
        })
    }
}

impl Place {
    fn is(&self, endpoint: &str) -> bool {
        endpoint.parse::<SocketAddr>().is_ok_and(|endpoint| {
            endpoint.ip() == self.address && self.port.is_none_or(|port| port == endpoint.port())
        })
    }
}

impl Place {
    /// Returns what its endpoints begin with, as text.
    fn begin(&self) -> String {
        let text = SocketAddr::new(self.address, self.port.unwrap_or(0)).to_string();
        match (self.port, text.rsplit_once(':')) {
            (None, Some((address, _))) => format!("{address}:"),
            _ => text,
        }
    }
}

impl std::fmt::Display for Place {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self.port {
            Some(port) => SocketAddr::new(self.address, port).fmt(f),
            None => self.address.fmt(f),
        }
    }
}

/// A question about an address on the wire.
#[derive(Debug, Clone)]
pub(crate) struct Question {
    /// The address on the wire.
    pub place: Place,
    /// The destination, if it is known.
    pub to: Option<Place>,
    /// The protocol, by name or number, if it is known.
    pub proto: Option<String>,
    /// The time, in milliseconds since 1970; `None`: now.
    pub at: Option<u64>,
}

impl Question {
    /// Reports whether a mapping has the address, as far as it is known.
    fn is_about(&self, proto: &str, seen_as: &str, to: Option<&str>) -> bool {
        self.proto.as_deref().is_none_or(|wanted| wanted == proto)
            && self.place.is(seen_as)
            && match (&self.to, to) {
                (Some(wanted), Some(to)) => wanted.is(to),
                _ => true,
            }
    }

    /// Reports whether only one mapping at a time can be what is asked for.
    fn is_exact(&self) -> bool {
        self.place.port.is_some()
            && self.proto.is_some()
            && self.to.is_some_and(|to| to.port.is_some())
    }
}

/// Places in which the answer is looked for.
#[derive(Debug)]
pub(crate) struct Places<'a> {
    /// Pinned maps.
    pub bpffs: &'a Path,
    /// The agent's state.
    pub state_dir: &'a Path,
    /// libcni's cache of results.
    pub cni_dir: &'a Path,
    /// The log's file, if it is not the agent's.
    pub log: Option<&'a Path>,
}

/// Parses a time: by RFC 3339, or local without the zone, or of today without the date.
///
/// # Errors
/// Returns an error if it is none of these.
pub(crate) fn parse_time(text: &str) -> Result<u64> {
    let zone = TimeZone::system();
    let time = if let Ok(time) = text.parse::<Timestamp>() {
        time
    } else if let Ok(local) = text.parse::<civil::DateTime>() {
        local.to_zoned(zone)?.timestamp()
    } else if let Ok(time) = text.parse::<civil::Time>() {
        let today = Timestamp::now().to_zoned(zone.clone()).date();
        today.to_datetime(time).to_zoned(zone)?.timestamp()
    } else {
        bail!(
            "{text:?} is no time, such as 10:16, '2026-11-28 10:16:00' or 2026-11-28T10:16:00.5Z"
        );
    };
    u64::try_from(time.as_millisecond()).context("it is before 1970")
}

/// Prints the answer. Exit statuses: 0 one answer, 1 nobody, 2 it can't be told.
///
/// # Errors
/// Returns an error if the log or the maps can't be read.
pub(crate) fn print(places: &Places<'_>, question: &Question, json: bool) -> Result<ExitCode> {
    if let Some(at) = question.at
        && at > now()
    {
        bail!(
            "--at {} lies ahead; give the date, too, if it was on another day",
            text(at)
        );
    }
    let (found, notes) = ask(places, question)?;
    let shown = if json {
        format!("{:#}\n", as_json(question, &found, &notes))
    } else {
        as_text(question, &found, &notes)
    };
    output::write_out(&shown, json)?;
    Ok(match found.answer() {
        Answer::One => ExitCode::SUCCESS,
        Answer::Nobody => ExitCode::from(1),
        Answer::Unknown => ExitCode::from(2),
    })
}

/// Returns what is found, and what stood in the way.
fn ask(places: &Places<'_>, question: &Question) -> Result<(Found, Vec<String>)> {
    let state_dir = StateDir::at(places.state_dir);
    let names = Names::load(places.cni_dir, &state_dir);
    let saved = Saved::read(&state_dir);
    let mut known = Known::default();
    let mut notes = Vec::new();
    let Some(at) = question.at else {
        known.read_maps(places.bpffs, saved.as_ref(), &names, question)?;
        let (living, _) = known.into_parts();
        return Ok((find(living, &[], now(), question.is_exact()), notes));
    };
    let own = saved.as_ref().and_then(log_of);
    let path = places.log.map(Path::to_owned).or_else(|| own.clone());
    // A copy of the log, or another one, has no state.
    let is_own = path == own;
    match &path {
        Some(path) => {
            let saved = saved.as_ref().filter(|_| is_own);
            known.read_log(path, saved, question)?;
        }
        None => {
            notes.push("there is no log: start the agent with --nat-log".into());
            known.gaps.push(find::Gap {
                from: 0,
                until: u64::MAX,
                why: "no log".into(),
            });
        }
    }
    if let Err(err) = known.read_maps(places.bpffs, saved.as_ref(), &names, question) {
        notes.push(format!("live mappings are not known: {err:#}"));
    }
    let (all, gaps) = known.into_parts();
    let found = find(all, &gaps, at, question.is_exact());
    let has_shared_ports = question.to.is_none() || found.sure.iter().any(|it| it.to.is_none());
    if has_shared_ports && found.sure.len() > 1 {
        notes.push(
            "mappings to different destinations may share a port: give --to, which needs a log \
             with --nat-log-destinations"
                .into(),
        );
    }
    Ok((found, notes))
}

/// Returns the file of the agent's log, if it is one.
fn log_of(saved: &Saved) -> Option<PathBuf> {
    let target: Target = saved.target.parse().ok()?;
    target.file().map(Path::to_owned)
}

fn as_text(question: &Question, found: &Found, notes: &[String]) -> String {
    let place = question.place;
    let when = question
        .at
        .map_or_else(|| "now".into(), |at| format!("at {}", local(at)));
    let mut shown = String::new();
    let first = match found.answer() {
        Answer::One => None,
        Answer::Nobody if question.at.is_none() => Some(format!("nobody has {place} now")),
        Answer::Nobody => Some(format!("nobody had {place} {when}")),
        Answer::Unknown => {
            let why = match &found.gap {
                Some(gap) => format!("the log lacks that time ({})", gap.why),
                None if found.possible.is_empty() => "several pods had it".into(),
                None => "it may have ended before".into(),
            };
            Some(format!("can't tell who had {place} {when}: {why}"))
        }
    };
    if let Some(line) = first {
        let _ = writeln!(shown, "{line}");
    }
    for candidate in &found.sure {
        let _ = writeln!(shown, "{}", line(candidate));
    }
    for candidate in &found.possible {
        let _ = writeln!(shown, "possible: {}", line(candidate));
    }
    for note in notes {
        let _ = writeln!(shown, "note: {note}");
    }
    shown
}

fn line(candidate: &Candidate) -> String {
    let pod = &candidate.pod;
    let mut shown = match (&candidate.name, &candidate.uid) {
        (Some(name), Some(uid)) => format!("{name} ({pod}, uid {uid})"),
        (Some(name), None) => format!("{name} ({pod})"),
        (None, _) => pod.clone(),
    };
    let _ = write!(shown, ", {}", candidate.proto);
    if let Some(to) = &candidate.to {
        let _ = write!(shown, " to {to}");
    }
    let _ = match candidate.end {
        End::At(end) => write!(shown, ", {} to {}", local(candidate.begin), local(end)),
        End::Lives => write!(shown, ", since {}", local(candidate.begin)),
        End::Unknown(_) => write!(
            shown,
            ", since {}, its end is not in the log",
            local(candidate.begin)
        ),
    };
    if let Some(seq) = candidate.seq {
        let _ = write!(shown, ", log {seq}");
    }
    shown
}

/// Formats a time: without the date if it is of today.
fn local(time: u64) -> String {
    let zone = TimeZone::system();
    let time = i64::try_from(time)
        .ok()
        .and_then(|time| Timestamp::from_millisecond(time).ok());
    let Some(time) = time.map(|time| time.to_zoned(zone.clone())) else {
        return "-".into();
    };
    let is_today = time.date() == Timestamp::now().to_zoned(zone).date();
    let format = if is_today {
        "%H:%M:%S"
    } else {
        "%Y-%m-%d %H:%M:%S"
    };
    time.strftime(format).to_string()
}

fn as_json(question: &Question, found: &Found, notes: &[String]) -> Value {
    let candidate = |it: &Candidate, is_sure: bool| {
        json!({
            "sure": is_sure,
            "protocol": it.proto,
            "pod": it.pod,
            "name": it.name,
            "uid": it.uid,
            "seen_as": it.seen_as,
            "to": it.to,
            "began_at": text(it.begin),
            "ended_at": match it.end {
                End::At(end) => Some(text(end)),
                End::Lives | End::Unknown(_) => None,
            },
            "lives": it.end == End::Lives,
            "record": it.seq,
        })
    };
    let sure = found.sure.iter().map(|it| candidate(it, true));
    let possible = found.possible.iter().map(|it| candidate(it, false));
    json!({
        "schema": SCHEMA,
        "asked": {
            "seen_as": question.place.to_string(),
            "to": question.to.map(|to| to.to_string()),
            "protocol": question.proto,
            "at": question.at.map(text),
        },
        "answer": match found.answer() {
            Answer::One => "one",
            Answer::Nobody => "nobody",
            Answer::Unknown => "unknown",
        },
        "gap": found.gap.as_ref().map(|gap| gap.why.clone()),
        "candidates": sure.chain(possible).collect::<Vec<_>>(),
        "notes": notes,
    })
}
