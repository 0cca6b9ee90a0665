//! The reports that nobody has answered yet: one append-only file, `reports.log`, that survives the keeper.
//!
//! A record is its length, then MessagePack. Reports are appended as they come and an answer appends which
//! are done; when all are, the file is emptied, and when most are, it is written anew. Nothing is synced: a
//! power cut ends the jobs, too. Memory: an index of 40 bytes for each unanswered report, and twice [`WINDOW`]
//! bytes: on their way to the worker, and just made.

use crate::protocol::Numbered;
use schemas::{
    id::{Epoch, InstanceId},
    job::JobRef,
    time::{Millis, Now, Seconds, Stamp},
};
use serde::{Deserialize, Serialize};
use std::{
    collections::{BTreeMap, BTreeSet},
    fs::{self, File},
    io,
    os::unix::fs::FileExt,
    path::{Path, PathBuf},
};

/// So many bytes of reports may be with the worker.
const WINDOW: u64 = 4 * 1024 * 1024;
/// A file smaller than this is not worth writing anew.
const SMALL: u64 = 4 * 1024 * 1024;
/// Longest record that is believed.
const MAX_RECORD: usize = 4 * 1024 * 1024;

/// [`Record`] as it is written.
#[derive(Serialize)]
#[serde(rename_all = "snake_case")]
enum RecordRef<'a> {
    Entry { at: Stamp, numbered: &'a Numbered },
    Done { ids: &'a [u64] },
}

#[derive(Deserialize)]
#[serde(rename_all = "snake_case")]
enum Record {
    Entry { at: Stamp, numbered: Numbered },
    Done { ids: Vec<u64> },
}

#[derive(Clone, Copy, Debug)]
struct Slot {
    offset: u64,
    len: u32,
    /// When it was made, if this keeper made it.
    at: Option<Millis>,
}

/// See the head of this file.
#[derive(Debug)]
pub(crate) struct Ledger {
    path: PathBuf,
    file: File,
    end: u64,
    live: u64,
    slots: BTreeMap<u64, Slot>,
    unsent: BTreeSet<u64>,
    /// Those just made, so that they need not be read again.
    fresh: BTreeMap<u64, Numbered>,
    fresh_bytes: u64,
    in_flight: u64,
    earlier: BTreeSet<u64>,
    next_id: u64,
}

/// What an earlier keeper left.
#[derive(Debug)]
pub(crate) struct Left {
    pub(crate) reports: Vec<(u64, JobRef, Epoch)>,
    pub(crate) instances: BTreeSet<InstanceId>,
}

impl Ledger {
    /// Opens it and reads what is left; a record that a crash cut off ends it.
    pub(crate) fn open(folder: &Path) -> io::Result<(Self, Left)> {
        let path = folder.join("reports.log");
        let file =
            File::options().create(true).truncate(false).read(true).write(true).open(&path)?;
        let bytes = fs::read(&path)?;
        let mut ledger = Self {
            path,
            file,
            end: 0,
            live: 0,
            slots: BTreeMap::new(),
            unsent: BTreeSet::new(),
            fresh: BTreeMap::new(),
            fresh_bytes: 0,
            in_flight: 0,
            earlier: BTreeSet::new(),
            next_id: 1,
        };
        let mut jobs = BTreeMap::new();
        while let Some((record, len)) = read_record(&bytes, ledger.end) {
            match record {
                Record::Entry { numbered, .. } => {
                    let id = numbered.id;
                    ledger.next_id = ledger.next_id.max(id + 1);
                    ledger.slots.insert(id, Slot { offset: ledger.end, len, at: None });
                    jobs.insert(id, numbered.entry);
                }
                Record::Done { ids } => {
                    for id in ids {
                        ledger.slots.remove(&id);
                        jobs.remove(&id);
                    }
                }
            }
            ledger.end += u64::from(len);
        }
        ledger.file.set_len(ledger.end)?;
        ledger.live = ledger.slots.values().map(|slot| u64::from(slot.len)).sum();
        ledger.unsent = ledger.slots.keys().copied().collect();
        ledger.earlier = ledger.unsent.clone();
        ledger.tidy()?;
        let left = Left {
            instances: jobs.values().map(|entry| entry.instance).collect(),
            reports: jobs.into_iter().map(|(id, e)| (id, e.jobs, e.epoch)).collect(),
        };
        Ok((ledger, left))
    }

    /// The number of the next report.
    pub(crate) fn next_id(&self) -> u64 {
        self.next_id
    }

    /// Whether reports of an earlier keeper are unanswered.
    pub(crate) fn has_earlier(&self) -> bool {
        !self.earlier.is_empty()
    }

    /// Writes reports down.
    pub(crate) fn append(&mut self, reports: Vec<Numbered>, now: Now) -> io::Result<()> {
        let mut bytes = Vec::new();
        for numbered in reports {
            let start = bytes.len();
            write_record(&mut bytes, &RecordRef::Entry { at: now.wall, numbered: &numbered });
            let len = u32::try_from(bytes.len() - start).expect("a report is far below 4 GiB");
            let offset = self.end + start as u64;
            self.slots.insert(numbered.id, Slot { offset, len, at: Some(now.at) });
            self.unsent.insert(numbered.id);
            self.live += u64::from(len);
            self.next_id = self.next_id.max(numbered.id + 1);
            if self.fresh_bytes + u64::from(len) <= WINDOW {
                self.fresh_bytes += u64::from(len);
                self.fresh.insert(numbered.id, numbered);
            }
        }
        self.write(&bytes)
    }

    fn take_fresh(&mut self, id: u64, len: u32) -> Option<Numbered> {
        let numbered = self.fresh.remove(&id)?;
        self.fresh_bytes -= u64::from(len);
        Some(numbered)
    }

    fn write(&mut self, bytes: &[u8]) -> io::Result<()> {
        self.file.write_all_at(bytes, self.end)?;
        self.end += bytes.len() as u64;
        Ok(())
    }

    /// These were answered.
    pub(crate) fn done(&mut self, ids: &[u64]) -> io::Result<()> {
        for id in ids {
            if let Some(slot) = self.slots.remove(id) {
                self.take_fresh(*id, slot.len);
                self.live -= u64::from(slot.len);
                if !self.unsent.remove(id) {
                    self.in_flight = self.in_flight.saturating_sub(u64::from(slot.len));
                }
            }
            self.earlier.remove(id);
        }
        if self.slots.is_empty() {
            self.end = 0;
            return self.file.set_len(0);
        }
        let mut bytes = Vec::new();
        write_record(&mut bytes, &RecordRef::Done { ids });
        self.write(&bytes)?;
        self.tidy()
    }

    /// These must be said again.
    pub(crate) fn repeat(&mut self, ids: &[u64]) {
        for id in ids {
            if let Some(slot) = self.slots.get(id)
                && self.unsent.insert(*id)
            {
                self.in_flight = self.in_flight.saturating_sub(u64::from(slot.len));
            }
        }
    }

    /// A new worker: everything must be said again.
    pub(crate) fn repeat_all(&mut self) {
        self.unsent = self.slots.keys().copied().collect();
        self.in_flight = 0;
    }

    /// The next reports to be said, oldest first; empty when the window is full.
    pub(crate) fn next(&mut self, now: Now) -> io::Result<Vec<Numbered>> {
        let (mut out, mut bytes) = (Vec::new(), 0);
        while bytes < 512 * 1024 && self.in_flight < WINDOW {
            let Some(id) = self.unsent.pop_first() else { break };
            let Some(&Slot { offset, len, at: made }) = self.slots.get(&id) else { continue };
            self.in_flight += u64::from(len);
            bytes += u64::from(len);
            let found = match self.take_fresh(id, len) {
                Some(numbered) => Some((now.wall, numbered)),
                None => self.read(offset, len)?,
            };
            if let Some((at, mut numbered)) = found {
                // Only of its own does it know how long ago that was whatever the world's clock did.
                let ago_ms =
                    made.map_or(now.wall.0.saturating_sub(at.0), |made| now.at.since(made));
                numbered.entry.ago_s = Seconds::from_ms(ago_ms.min(Seconds::MAX.ms));
                out.push(numbered);
            }
        }
        Ok(out)
    }

    fn read(&self, offset: u64, len: u32) -> io::Result<Option<(Stamp, Numbered)>> {
        let mut buffer = vec![0; len as usize];
        self.file.read_exact_at(&mut buffer, offset)?;
        Ok(match read_record(&buffer, 0) {
            Some((Record::Entry { at, numbered }, _)) => Some((at, numbered)),
            _ => None,
        })
    }

    /// Writes the file anew when most of it is done with.
    fn tidy(&mut self) -> io::Result<()> {
        if self.end < SMALL || self.live * 2 > self.end {
            return Ok(());
        }
        let new_path = self.path.with_extension("new");
        let new =
            File::options().create(true).truncate(true).read(true).write(true).open(&new_path)?;
        let mut end = 0;
        for slot in self.slots.values_mut() {
            let mut buffer = vec![0; slot.len as usize];
            self.file.read_exact_at(&mut buffer, slot.offset)?;
            new.write_all_at(&buffer, end)?;
            slot.offset = end;
            end += u64::from(slot.len);
        }
        fs::rename(&new_path, &self.path)?;
        (self.file, self.end) = (new, end);
        Ok(())
    }
}

fn write_record(out: &mut Vec<u8>, record: &RecordRef<'_>) {
    crate::protocol::put(out, record);
}

/// The record at an offset and its length with all.
fn read_record(bytes: &[u8], offset: u64) -> Option<(Record, u32)> {
    let rest = bytes.get(usize::try_from(offset).ok()?..)?;
    let (head, body) = rest.split_first_chunk::<4>()?;
    let len = u32::from_be_bytes(*head) as usize;
    if len > MAX_RECORD {
        return None;
    }
    let record = rmp_serde::from_slice(body.get(..len)?).ok()?;
    Some((record, u32::try_from(len + 4).ok()?))
}

#[cfg(test)]
mod tests {
    use super::*;
    use schemas::{
        indices::Indices,
        job::{Became, ReportEntry},
        token::{OwnerName, TaskName},
    };
    use std::io::Write;

    fn report(id: u64, why: &str) -> Numbered {
        let entry = ReportEntry {
            owner: OwnerName::owner(),
            jobs: JobRef {
                work: schemas::id::WorkId(uuid::Uuid::from_u128(1)),
                task: TaskName::main(),
                attempt: 1,
                indices: Indices::one(u32::try_from(id).unwrap()),
            },
            epoch: 3,
            instance: InstanceId(uuid::Uuid::from_u128(2)),
            became: Became::Lost { why: why.to_owned() },
            ago_s: Seconds::default(),
        };
        Numbered { id, entry }
    }

    fn now(ms: u64) -> Now {
        Now { at: Millis(ms), wall: Stamp(1_000_000 + ms) }
    }

    #[test]
    fn what_was_not_answered_is_there_for_the_next_keeper() {
        let dir = tempfile::tempdir().unwrap();
        let (mut ledger, left) = Ledger::open(dir.path()).unwrap();
        assert!(left.reports.is_empty());
        ledger.append(vec![report(1, "a"), report(2, "b"), report(3, "c")], now(0)).unwrap();
        assert_eq!(ledger.next(now(250)).unwrap()[0].entry.ago_s, Seconds::from_ms(250));
        ledger.done(&[2]).unwrap();
        drop(ledger);
        let mut file = File::options().append(true).open(dir.path().join("reports.log")).unwrap();
        file.write_all(&[0, 0, 9, 9, 1]).unwrap();

        let (mut ledger, left) = Ledger::open(dir.path()).unwrap();
        assert_eq!(left.reports.iter().map(|r| r.0).collect::<Vec<_>>(), [1, 3]);
        assert_eq!((ledger.next_id(), ledger.has_earlier()), (4, true));
        assert_eq!(ledger.next(now(0)).unwrap().len(), 2);
        assert!(ledger.next(now(0)).unwrap().is_empty());
        ledger.repeat(&[3]);
        assert_eq!(ledger.next(now(0)).unwrap()[0].id, 3);
        ledger.done(&[1, 3]).unwrap();
        assert_eq!(fs::metadata(dir.path().join("reports.log")).unwrap().len(), 0);
        assert!(!ledger.has_earlier());
    }

    #[test]
    fn a_long_file_is_written_anew_and_says_the_same() {
        let dir = tempfile::tempdir().unwrap();
        let (mut ledger, _) = Ledger::open(dir.path()).unwrap();
        let long = "x".repeat(100_000);
        for id in 1..=100 {
            ledger.append(vec![report(id, &long)], now(0)).unwrap();
        }
        ledger.done(&(1..=99).collect::<Vec<_>>()).unwrap();
        assert!(fs::metadata(dir.path().join("reports.log")).unwrap().len() < 200_000);
        ledger.append(vec![report(101, "last")], now(0)).unwrap();
        let left = ledger.next(now(0)).unwrap();
        assert_eq!(left, [report(100, &long), report(101, "last")]);
    }
}
