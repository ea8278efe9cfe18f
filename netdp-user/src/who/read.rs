//! Records of the log and entries of the maps that are about an address on the wire.

use super::Question;
use super::find::{Candidate, End, Gap};
use crate::datapath::{self, Identity, protocol_name};
use crate::machine;
use crate::nat_log::{Clock, Kind, Record, Saved, UNSAVED, number, reader, rotated, time};
use crate::pods::Names;
use crate::time::now_milliseconds;
use anyhow::{Context as _, Result};
use netdp_common::layout::Addr;
use std::collections::HashMap;
use std::io::BufRead as _;
use std::net::{IpAddr, SocketAddr};
use std::path::Path;

/// Beginning of a field that every record about a mapping has.
const SEEN_AS: &str = "\"seen_as\":\"";

/// A mapping by its records: boot and id.
type Key = (String, String);

/// The mappings and gaps that are known.
#[derive(Debug, Default)]
pub(super) struct Known {
    mappings: HashMap<Key, Candidate>,
    /// Times in which records are missing.
    pub gaps: Vec<Gap>,
}

impl Known {
    /// Returns all mappings.
    pub(super) fn into_parts(self) -> (Vec<Candidate>, Vec<Gap>) {
        let mut mappings: Vec<_> = self.mappings.into_values().collect();
        mappings.sort_by_key(|it| it.begin);
        (mappings, self.gaps)
    }

    /// Reads the records of a log that are about the address. What is before its first record, and after
    /// the time up to which it is complete, is a gap.
    ///
    /// # Errors
    /// Returns an error that names the file that can't be read.
    pub(super) fn read_log(
        &mut self,
        path: &Path,
        saved: Option<&Saved>,
        question: &Question,
    ) -> Result<()> {
        let mut files = rotated(path).with_context(|| format!("listing {}", path.display()))?;
        files.push(path.to_owned());
        let (mut first, mut last, mut complete) = (None, 0, 0);
        let wanted = format!("{SEEN_AS}{}", question.place.begin());
        for file in &files {
            let lines = reader(file).with_context(|| format!("reading {}", file.display()))?;
            let mut skipped = None;
            for (at, line) in lines.lines().enumerate() {
                let line = line.with_context(|| format!("reading {}", file.display()))?;
                // Parsing takes much longer than searching.
                let is_other = line.contains(SEEN_AS) && !line.contains(&wanted);
                if is_other && first.is_some() {
                    skipped = Some(line);
                    continue;
                }
                let Ok(record) = serde_json::from_str::<Record<'_>>(&line) else {
                    log::debug!("{}:{}: no record", file.display(), at + 1);
                    continue;
                };
                if let Some(time) = record.latest() {
                    first.get_or_insert(time);
                    last = last.max(time);
                }
                complete = complete.max(record.complete.as_deref().and_then(time).unwrap_or(0));
                self.add(&record, question);
            }
            // How far the file goes.
            let skipped = skipped.and_then(|line| {
                let record: Record<'_> = serde_json::from_str(&line).ok()?;
                record.latest()
            });
            last = last.max(skipped.unwrap_or(0));
        }
        // Without the state nobody knows how far the last pass has come.
        let until = saved.map_or(
            complete.max(last.saturating_sub(UNSAVED)),
            Saved::known_until,
        );
        self.gaps.push(Gap {
            from: 0,
            until: first.unwrap_or(u64::MAX).saturating_sub(1),
            why: "before the log".into(),
        });
        self.gaps.push(Gap {
            from: until.saturating_add(1),
            until: u64::MAX,
            why: "after what is in the log".into(),
        });
        Ok(())
    }

    fn add(&mut self, record: &Record<'_>, question: &Question) {
        if record.event == Kind::Gap {
            let times = record.from.as_deref().and_then(time);
            if let Some((from, until)) = times.zip(record.until.as_deref().and_then(time)) {
                let why = record.why.as_deref().unwrap_or_default().to_owned();
                self.gaps.push(Gap { from, until, why });
            }
            return;
        }
        let (Some(id), Some(begin)) = (&record.id, record.begin.as_deref().and_then(time)) else {
            return;
        };
        let (Some(proto), Some(pod), Some(seen_as)) = (&record.proto, &record.pod, &record.seen_as)
        else {
            return;
        };
        if !question.is_about(proto, seen_as, record.to.as_deref()) {
            return;
        }
        let name = record.ns.as_ref().zip(record.name.as_ref());
        let key = (record.boot.clone().into_owned(), id.clone());
        let candidate = self.mappings.entry(key).or_insert_with(|| Candidate {
            proto: proto.clone(),
            pod: pod.clone(),
            name: None,
            uid: None,
            seen_as: seen_as.clone(),
            to: record.to.clone(),
            begin,
            end: End::Unknown(begin),
            seq: None,
        });
        // The first record has the name that was known best.
        if candidate.name.is_none() {
            candidate.name = name.map(|(ns, name)| format!("{ns}/{name}"));
            candidate.uid = record.uid.as_deref().map(str::to_owned);
        }
        candidate.seq = Some(record.seq);
        let seen = match record.event {
            Kind::End => record.end.as_deref().and_then(time).map(End::At),
            Kind::Alive => record.at.as_deref().and_then(time).map(End::Unknown),
            _ => None,
        };
        if let Some(seen) = seen
            && !matches!(candidate.end, End::At(_))
        {
            candidate.end = seen;
        }
    }

    /// Adds the mappings that live, with their names.
    ///
    /// # Errors
    /// Returns an error if the maps can't be read.
    pub(super) fn read_maps(
        &mut self,
        bpffs: &Path,
        saved: Option<&Saved>,
        names: &Names,
        question: &Question,
    ) -> Result<()> {
        let maps = datapath::open(bpffs)?;
        let (ticks, now) = (maps.ticks()?, now_milliseconds());
        let clock = saved.map_or(Clock::at(ticks, now), |saved| saved.clock.or_at(ticks, now));
        let secret = maps.limits()?.secret;
        let boot = machine::boot_id()?;
        maps.for_each_identity(|mapping| {
            let candidate = living(mapping, &clock, names);
            let Candidate { proto, seen_as, .. } = &candidate;
            if !question.is_about(proto, seen_as, candidate.to.as_deref()) {
                return;
            }
            let id = format!("{:016x}", number(secret, mapping));
            let known = self
                .mappings
                .entry((boot.clone(), id))
                .or_insert(candidate.clone());
            known.end = End::Lives;
            known.to = candidate.to;
        })
    }
}

fn living(mapping: &Identity, clock: &Clock, names: &Names) -> Candidate {
    let begin = clock.time(mapping.created);
    let owner = names.owner(mapping.tuple.src.into(), begin);
    Candidate {
        proto: protocol_name(mapping.tuple.proto),
        pod: endpoint(mapping.tuple.src, mapping.tuple.src_id),
        name: owner.map(|it| format!("{}/{}", it.claim.namespace, it.claim.name)),
        uid: owner.and_then(|it| it.claim.uid.clone()),
        seen_as: endpoint(mapping.addr, mapping.id),
        to: Some(endpoint(mapping.tuple.dst, mapping.tuple.dst_id)),
        begin,
        end: End::Lives,
        seq: None,
    }
}

fn endpoint(address: Addr, id: u16) -> String {
    SocketAddr::new(IpAddr::from(address), id).to_string()
}
