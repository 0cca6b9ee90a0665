//! The output of all jobs on its way to the worker: pieces of many jobs of one work and stream in one
//! message, each message acknowledged, a window of bytes in flight.
//!
//! Memory: [`WINDOW`] bytes in flight (and as much again in the connection's buffer), and the heads of the
//! tapes ([`super::tape`]). When the window is full, output stays on the disk.

use super::{
    core::{Job, JobId},
    tape::Tape,
};
use crate::protocol::FromKeeper;
use schemas::{
    id::{Attempt, WorkId},
    indices::Index,
    job::ReadRequest,
    outcome::Ending,
    output::{Frame, Frames},
    time::Millis,
    token::{OwnerName, StreamName, TaskName},
};
use std::{
    collections::{BTreeMap, VecDeque},
    path::{Path, PathBuf},
    sync::Arc,
};

/// So many bytes may be in flight to the bus.
const WINDOW: usize = 1024 * 1024;
/// A message is sent when it is so large …
const MESSAGE: usize = 64 * 1024;
/// … or so old.
const FLUSH_MS: u64 = 20;

/// One of a job's streams.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Stream {
    Stdout,
    Stderr,
}

impl Stream {
    fn name(self) -> StreamName {
        match self {
            Stream::Stdout => StreamName::stdout(),
            Stream::Stderr => StreamName::stderr(),
        }
    }
}

type TapeKey = (JobId, Stream);
type GroupKey = (OwnerName, WorkId, Stream);

#[derive(Debug)]
struct Entry {
    job: Arc<Job>,
    tape: Tape,
    waits: bool,
}

#[derive(Debug)]
struct Group {
    since: Millis,
    tapes: VecDeque<TapeKey>,
}

#[derive(Debug)]
struct InFlight {
    bytes: usize,
    pieces: Vec<(TapeKey, u64)>,
}

/// See the head of this file.
#[derive(Debug)]
pub(crate) struct Output {
    folder: PathBuf,
    tapes: BTreeMap<TapeKey, Entry>,
    names: BTreeMap<(WorkId, TaskName, Attempt, Index), JobId>,
    groups: BTreeMap<GroupKey, Group>,
    in_flight: BTreeMap<u64, InFlight>,
    in_flight_bytes: usize,
    /// Tapes that have ended and are not done.
    ended: usize,
    next_id: u64,
}

impl Output {
    /// Keeps what does not fit into memory in unlinked files of `folder`.
    pub(crate) fn new(folder: &Path) -> Self {
        Self {
            folder: folder.to_owned(),
            tapes: BTreeMap::new(),
            names: BTreeMap::new(),
            groups: BTreeMap::new(),
            in_flight: BTreeMap::new(),
            in_flight_bytes: 0,
            ended: 0,
            next_id: 1,
        }
    }

    /// A job begins.
    pub(crate) fn begin(&mut self, job: &Arc<Job>, now: Millis, reader_after_ms: u64) {
        for stream in [Stream::Stdout, Stream::Stderr] {
            let tape = Tape::new(&job.shared.spec.output, now, reader_after_ms);
            self.tapes.insert((job.id, stream), Entry { job: job.clone(), tape, waits: false });
        }
        self.names.insert(name(job), job.id);
    }

    /// Whether the pipe of a job's stream may be read now.
    pub(crate) fn may_read(&mut self, key: TapeKey, now: Millis) -> bool {
        self.tapes.get_mut(&key).is_none_or(|entry| entry.tape.may_read(now))
    }

    /// Takes in what was read.
    pub(crate) fn take(&mut self, key: TapeKey, now: Millis, bytes: &[u8]) {
        if let Some(entry) = self.tapes.get_mut(&key) {
            entry.tape.take(&self.folder, bytes);
            self.wait(key, now);
        }
    }

    fn wait(&mut self, key: TapeKey, now: Millis) {
        let Some(entry) = self.tapes.get_mut(&key) else { return };
        if entry.waits || entry.tape.pending() == 0 {
            return;
        }
        entry.waits = true;
        let shared = &entry.job.shared;
        let group = (shared.owner.clone(), shared.work, key.1);
        let group = self
            .groups
            .entry(group)
            .or_insert_with(|| Group { since: now, tapes: VecDeque::new() });
        group.tapes.push_back(key);
    }

    /// Writes into an ending what a job wrote.
    pub(crate) fn fill(&self, id: JobId, ending: &mut Ending) {
        if let Some(Entry { tape, .. }) = self.tapes.get(&(id, Stream::Stdout)) {
            ending.stdout = tape.head().to_vec().into();
            ending.stdout_bytes = tape.written();
        }
        if let Some(Entry { tape, .. }) = self.tapes.get(&(id, Stream::Stderr)) {
            ending.stderr = tape.head().to_vec().into();
            ending.stderr_bytes = tape.written();
        }
    }

    /// A job has ended; its tapes stay until they are acknowledged.
    pub(crate) fn end(&mut self, id: JobId, now: Millis) {
        for key in [(id, Stream::Stdout), (id, Stream::Stderr)] {
            let Some(entry) = self.tapes.get_mut(&key) else { continue };
            entry.tape.end(&self.folder);
            if entry.tape.is_done() {
                self.remove(key);
            } else {
                self.ended += 1;
                self.wait(key, now);
            }
        }
    }

    /// About so many jobs have ended and are not wholly on the bus.
    pub(crate) fn ended_jobs(&self) -> usize {
        self.ended.div_ceil(2)
    }

    fn remove(&mut self, key: TapeKey) {
        let Some(Entry { job, .. }) = self.tapes.remove(&key) else { return };
        let other = match key.1 {
            Stream::Stdout => Stream::Stderr,
            Stream::Stderr => Stream::Stdout,
        };
        if !self.tapes.contains_key(&(key.0, other)) && self.names.get(&name(&job)) == Some(&key.0)
        {
            self.names.remove(&name(&job));
        }
    }

    /// A reader has come so far; says whether there is such a job.
    pub(crate) fn read_to(&mut self, request: ReadRequest, now: Millis) -> bool {
        let ReadRequest { work, task, index, attempt, offset, stream } = request;
        let Some(&id) = self.names.get(&(work, task, attempt, index)) else { return false };
        let stream = match stream.as_str() {
            "stdout" => Stream::Stdout,
            "stderr" => Stream::Stderr,
            _ => return false,
        };
        let Some(entry) = self.tapes.get_mut(&(id, stream)) else { return false };
        entry.tape.read_to(now, offset);
        true
    }

    /// When [`Output::flush`] is worth calling though nothing has happened.
    pub(crate) fn next_flush(&self) -> Option<Millis> {
        if self.in_flight_bytes >= WINDOW {
            return None;
        }
        self.groups.values().map(|group| group.since + FLUSH_MS).min()
    }

    /// When a reader's patience ends.
    pub(crate) fn patience_ends(&self) -> Option<Millis> {
        self.tapes.values().filter_map(|entry| entry.tape.patience_ends()).min()
    }

    /// Makes messages of what is large or old enough.
    pub(crate) fn flush(&mut self, now: Millis) -> Vec<FromKeeper> {
        let mut messages = Vec::new();
        let ready: Vec<GroupKey> = self
            .groups
            .iter()
            .filter(|(_, group)| now >= group.since + FLUSH_MS || self.is_full(group))
            .map(|(key, _)| key.clone())
            .collect();
        // One message of each in turn, so that a chatty work does not hold up another.
        let mut turn: VecDeque<GroupKey> = ready.into();
        while let Some(key) = turn.pop_front() {
            if self.in_flight_bytes >= WINDOW {
                break;
            }
            if self.message(&key, &mut messages) {
                turn.push_back(key);
            } else {
                self.groups.remove(&key);
            }
        }
        messages
    }

    fn is_full(&self, group: &Group) -> bool {
        let mut bytes = 0;
        group.tapes.iter().any(|key| {
            bytes += self.tapes.get(key).map_or(0, |entry| entry.tape.pending());
            bytes >= MESSAGE as u64
        })
    }

    /// Makes one message of a group (or two: stored and live); says whether more is there.
    fn message(&mut self, key: &GroupKey, messages: &mut Vec<FromKeeper>) -> bool {
        let Some(group) = self.groups.get_mut(key) else { return false };
        let (mut stored, mut live) = (Frames::default(), Frames::default());
        let (mut bytes, mut pieces) = (0, Vec::new());
        while bytes < MESSAGE {
            let Some(tape_key) = group.tapes.pop_front() else { break };
            let Some(entry) = self.tapes.get_mut(&tape_key) else { continue };
            let Some(piece) = entry.tape.next(MESSAGE - bytes) else {
                entry.waits = false;
                continue;
            };
            // The names weigh as much as a few bytes of output.
            bytes += piece.bytes.len() + 64;
            group.tapes.push_front(tape_key);
            let frame = Frame {
                task: entry.job.shared.task.clone(),
                index: entry.job.index,
                attempt: entry.job.shared.attempt,
                offset: piece.offset,
                bytes: piece.bytes.into(),
                gap: piece.gap,
            };
            if piece.live {
                live.frames.push(frame);
            } else {
                pieces.push((tape_key, piece.offset));
                stored.frames.push(frame);
            }
        }
        // The next message begins with another job.
        group.tapes.rotate_left(usize::from(group.tapes.len() > 1));
        let more = !group.tapes.is_empty();
        for (frames, live) in [(stored, false), (live, true)] {
            if frames.frames.is_empty() {
                continue;
            }
            let id = self.next_id;
            self.next_id += 1;
            let payload = schemas::codec::encode(schemas::codec::Encoding::MsgPack, &frames);
            if !live {
                let pieces = std::mem::take(&mut pieces);
                self.in_flight_bytes += payload.len();
                self.in_flight.insert(id, InFlight { bytes: payload.len(), pieces });
            }
            messages.push(FromKeeper::Frames {
                id,
                live,
                owner: key.0.clone(),
                work: key.1,
                stream: key.2.name(),
                payload: payload.into(),
            });
        }
        more
    }

    /// These messages are stored on the bus.
    pub(crate) fn ack(&mut self, ids: &[u64]) {
        for id in ids {
            let Some(message) = self.in_flight.remove(id) else { continue };
            self.in_flight_bytes -= message.bytes;
            for (key, start) in message.pieces {
                let Some(entry) = self.tapes.get_mut(&key) else { continue };
                entry.tape.ack(start);
                if entry.tape.is_done() {
                    self.ended -= 1;
                    self.remove(key);
                }
            }
        }
    }

    /// A new worker: what was not acknowledged is sent again.
    pub(crate) fn rewind(&mut self, now: Millis) {
        self.in_flight.clear();
        self.in_flight_bytes = 0;
        let keys: Vec<TapeKey> = self.tapes.keys().copied().collect();
        for key in keys {
            if let Some(entry) = self.tapes.get_mut(&key) {
                entry.tape.rewind();
            }
            self.wait(key, now);
        }
    }

    /// Whether nothing is left to be sent or acknowledged.
    pub(crate) fn is_empty(&self) -> bool {
        self.tapes.is_empty()
    }
}

fn name(job: &Job) -> (WorkId, TaskName, Attempt, Index) {
    (job.shared.work, job.shared.task.clone(), job.shared.attempt, job.index)
}
