//! What a follower is told: facts unfolded to one entry each, output cut free of what he has had.
//!
//! State of one follower, without any idea of where facts and frames come from. Facts come in the
//! journal's order, stored frames in the stream's; both orders are resumed by a [`Cursor`]. What lies
//! before a cursor is taken in again without being said, so that everything behind it is said
//! exactly as if there had been no break.

use super::core::wants;
use crate::journal::Work;
use bytes::Bytes;
use schemas::{
    blob::Blob,
    fact::{EndedEntry, Fact},
    id::{Attempt, Seq, WorkId},
    indices::{Index, Indices},
    output::{Frame, Output},
    request::FollowedFact,
    time::Stamp,
    token::{NodeName, StreamName, TaskName},
};
use serde_json::Value;
use std::{
    collections::{BTreeMap, VecDeque},
    fmt,
    str::FromStr,
    sync::Arc,
};

/// Output is said in pieces of at most so many bytes: as JSON each may become six.
const PIECE: usize = 128 * 1024;

/// How far somebody has followed.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Cursor {
    /// The last message of the journal that was begun.
    pub fact: Seq,
    /// So many things of it are said.
    pub slot: u64,
    /// The last message of output that was begun.
    pub out: Seq,
    /// So many frames of it are said.
    pub frame: u64,
    /// So many bytes of the next one, too.
    pub byte: u64,
}

impl fmt::Display for Cursor {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}.{}.{}.{}.{}", self.fact, self.slot, self.out, self.frame, self.byte)
    }
}

impl FromStr for Cursor {
    type Err = ();

    fn from_str(text: &str) -> Result<Self, ()> {
        let parts: Vec<u64> =
            text.split('.').map(str::parse).collect::<Result<_, _>>().map_err(|_| ())?;
        let [fact, slot, out, frame, byte] = parts.try_into().map_err(|_| ())?;
        Ok(Self { fact, slot, out, frame, byte })
    }
}

/// One reply.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct Line {
    /// Where it stands.
    pub cursor: Cursor,
    /// What it says.
    pub what: What,
}

/// What a reply says.
#[derive(Clone, Debug, PartialEq)]
pub(crate) enum What {
    /// A fact.
    Fact(FollowedFact),
    /// A piece of output, and the node that wrote it.
    Output(Output, NodeName),
}

/// Whether a node may speak for an attempt.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Judged {
    /// It was given to that node.
    Its,
    /// It was not.
    NotIts,
    /// The fold does not know of it (yet).
    Unknown,
}

/// Whether a node was given an attempt. `former` are attempts that are not their index's last.
pub(crate) fn judge(
    work: &Work,
    former: &[(usize, Attempt, NodeName, Indices)],
    frame: &Frame,
    node: &NodeName,
) -> Judged {
    let Some(at) = work.task_at(&frame.task) else { return Judged::Unknown };
    let Some(last) = work.tasks[at].last.get(frame.index) else { return Judged::Unknown };
    let its = if frame.attempt == last.attempt {
        last.node == *node
    } else if frame.attempt > last.attempt {
        return Judged::Unknown;
    } else {
        former.iter().any(|(task, attempt, of, indices)| {
            (*task, *attempt, of) == (at, frame.attempt, node) && indices.contains(frame.index)
        })
    };
    if its { Judged::Its } else { Judged::NotIts }
}

/// One stream of one attempt.
type Key = (TaskName, Attempt, Index, StreamName);

/// One follower.
#[derive(Debug)]
pub(crate) struct Following {
    work: WorkId,
    task: Option<TaskName>,
    index: Option<Index>,
    /// Nothing up to here is said.
    resume: Cursor,
    cursor: Cursor,
    unfolding: Option<Unfolding>,
    /// Up to where each stream has been said.
    said: BTreeMap<Key, u64>,
    /// Streams that ended and of which something is still to come: their lengths.
    due: BTreeMap<Key, u64>,
    /// Indices of an attempt of which everything was said.
    done: BTreeMap<(TaskName, Attempt), Indices>,
    /// The first message with frames behind a hole. A node sends what was not stored once more, in
    /// order, so a hole is filled by itself, unless what lay there has been removed.
    beyond_hole: Option<Seq>,
    /// Holes stay: what lies behind them is said.
    over_holes: bool,
}

/// A message of the journal that is being said entry by entry.
#[derive(Debug)]
struct Unfolding {
    at: Stamp,
    fact: Arc<Fact>,
    entry: usize,
    /// Inline output of an `ended` entry that is still to be said: from this index on.
    index: Option<(Index, bool)>,
    ready: VecDeque<Line>,
}

impl Following {
    /// A follower of a work, or of a part of its output.
    pub(crate) fn new(
        work: WorkId,
        task: Option<TaskName>,
        index: Option<Index>,
        resume: Cursor,
    ) -> Self {
        Self {
            work,
            task,
            index,
            resume,
            cursor: Cursor::default(),
            unfolding: None,
            said: BTreeMap::new(),
            due: BTreeMap::new(),
            done: BTreeMap::new(),
            beyond_hole: None,
            over_holes: false,
        }
    }

    /// Where he stands: never before what he resumed from.
    pub(crate) fn cursor(&self) -> Cursor {
        let (now, from) = (self.cursor, self.resume);
        let fact = (now.fact, now.slot).max((from.fact, from.slot));
        let out = (now.out, now.frame, now.byte).max((from.out, from.frame, from.byte));
        Cursor { fact: fact.0, slot: fact.1, out: out.0, frame: out.1, byte: out.2 }
    }

    /// The last message of the journal that was taken in.
    pub(crate) fn last_fact(&self) -> Seq {
        self.cursor.fact
    }

    /// Whether output that was written is still to come.
    pub(crate) fn lacks(&self) -> bool {
        !self.due.is_empty()
    }

    /// Gives up waiting for what is missing: from which message on the output is to be taken in
    /// again, to say what lies behind.
    pub(crate) fn step_over_holes(&mut self) -> Option<Seq> {
        self.over_holes = true;
        self.beyond_hole.take()
    }

    /// Whether output of an index is wanted.
    pub(crate) fn wants(&self, task: &TaskName, index: Index) -> bool {
        self.task.as_ref().is_none_or(|wanted| wanted == task) && wants(self.index, index)
    }

    /// Goes past a message of the journal that is gone.
    pub(crate) fn pass(&mut self, seq: Seq) {
        (self.cursor.fact, self.cursor.slot) = (seq, 0);
    }

    /// Takes in the next message of the journal; [`Following::next`] says it.
    pub(crate) fn fact(&mut self, seq: Seq, at: Stamp, fact: Arc<Fact>) {
        self.cursor.fact = seq;
        self.cursor.slot = 0;
        self.unfolding =
            Some(Unfolding { at, fact, entry: 0, index: None, ready: VecDeque::new() });
    }

    /// The next reply of the message that was taken in; `None` when all of it is said.
    pub(crate) fn next(&mut self) -> Option<Line> {
        loop {
            let mut unfolding = self.unfolding.take()?;
            if let Some(line) = unfolding.ready.pop_front() {
                self.unfolding = Some(unfolding);
                return Some(line);
            }
            if self.unfold(&mut unfolding) {
                self.unfolding = Some(unfolding);
            }
        }
    }

    /// Takes one step in a message; says whether there may be more.
    fn unfold(&mut self, unfolding: &mut Unfolding) -> bool {
        let fact = unfolding.fact.clone();
        let Some((work, body)) = entry(&fact, unfolding.entry) else { return false };
        if work != self.work {
            unfolding.entry += 1;
            return true;
        }
        let ended = match &*fact {
            Fact::Ended(f) => f.entries.get(unfolding.entry),
            _ => None,
        };
        match unfolding.index {
            None => {
                let kind = fact.kind().to_owned();
                let at = unfolding.at;
                self.slot(unfolding, |_| {
                    What::Fact(FollowedFact { kind, at, body: without_inline(body()) })
                });
                match ended.filter(|ended| self.task.as_ref().is_none_or(|t| *t == ended.task)) {
                    Some(ended) => unfolding.index = self.first_index(ended),
                    None => unfolding.entry += 1,
                }
                if unfolding.index.is_none() && ended.is_some() {
                    unfolding.entry += 1;
                }
            }
            Some((index, stderr)) => {
                let Some(ended) = ended else { return false };
                self.inline(unfolding, ended, index, stderr);
                unfolding.index = if stderr {
                    index.checked_add(1).and_then(|from| self.next_index(ended, from))
                } else {
                    Some((index, true))
                };
                if unfolding.index.is_none() {
                    unfolding.entry += 1;
                }
            }
        }
        true
    }

    fn first_index(&mut self, ended: &EndedEntry) -> Option<(Index, bool)> {
        if ended.ending.stdout_bytes == 0 && ended.ending.stderr_bytes == 0 {
            return None;
        }
        self.next_index(ended, 0)
    }

    fn next_index(&self, ended: &EndedEntry, from: Index) -> Option<(Index, bool)> {
        let from = match self.index {
            Some(only) if only < from => return None,
            Some(only) => only,
            None => from,
        };
        let ranges = ended.indices.ranges();
        let at = ranges.partition_point(|r| r.1 < from);
        let index = ranges.get(at)?.0.max(from);
        wants(self.index, index).then_some((index, false))
    }

    /// Says what an attempt wrote and what the stream of output has not brought yet.
    fn inline(
        &mut self,
        unfolding: &mut Unfolding,
        ended: &EndedEntry,
        index: Index,
        stderr: bool,
    ) {
        let (stream, bytes, length) = if stderr {
            (StreamName::stderr(), &ended.ending.stderr, ended.ending.stderr_bytes)
        } else {
            (StreamName::stdout(), &ended.ending.stdout, ended.ending.stdout_bytes)
        };
        let key = (ended.task.clone(), ended.attempt, index, stream);
        let said = self.said.get(&key).copied().unwrap_or(0);
        let rest = usize::try_from(said).ok().and_then(|said| bytes.0.get(said..));
        if let Some(rest) = rest.filter(|rest| !rest.is_empty()) {
            let piece = bytes.0.slice_ref(rest);
            let node = ended.ending.node.clone();
            let output = self.output(&key, said, Blob(piece), None);
            // Who ran it is in the journal; a name is needed only to tell the node of what was read.
            let node = node.unwrap_or_else(|| NodeName::new("none").expect("it is a name"));
            self.slot(unfolding, |_| What::Output(output, node));
            self.said.insert(key.clone(), bytes.len() as u64);
        }
        if self.said.get(&key).copied().unwrap_or(0) < length {
            self.due.insert(key.clone(), length);
        } else {
            self.said.insert(key.clone(), length);
        }
        // Only now both streams have been looked at.
        if stderr {
            self.finish(&key);
        }
    }

    /// One thing of a message of the journal: said, unless it lies before the cursor.
    fn slot(&mut self, unfolding: &mut Unfolding, what: impl FnOnce(&Self) -> What) {
        let had = (self.cursor.fact, self.cursor.slot) < (self.resume.fact, self.resume.slot);
        self.cursor.slot += 1;
        if !had {
            let what = what(self);
            unfolding.ready.push_back(Line { cursor: self.cursor(), what });
        }
    }

    /// Forgets the details of an attempt when both its streams are said to their ends.
    fn finish(&mut self, key: &Key) {
        let (task, attempt, index, _) = key;
        let streams = [StreamName::stdout(), StreamName::stderr()];
        let keys = streams.map(|stream| (task.clone(), *attempt, *index, stream));
        if keys.iter().any(|key| self.due.contains_key(key)) {
            return;
        }
        for key in &keys {
            self.said.remove(key);
        }
        self.done.entry((task.clone(), *attempt)).or_default().insert(*index);
    }

    /// Takes in a stored message of output and says what is new in it; beside each frame stands
    /// whether its node may speak for it. `old`: it was stored so long ago that what is missing
    /// before it has been removed.
    pub(crate) fn frames(
        &mut self,
        seq: Seq,
        (stream, node): (&StreamName, &NodeName),
        frames: Vec<(Frame, bool)>,
        old: bool,
    ) -> VecDeque<Line> {
        let mut lines = VecDeque::new();
        let over_unknown = old || self.over_holes || self.resume.out > 0;
        (self.cursor.out, self.cursor.frame, self.cursor.byte) = (seq, 0, 0);
        for (n, (frame, its)) in frames.into_iter().enumerate() {
            let n = n as u64;
            let had = (seq, n) < (self.resume.out, self.resume.frame);
            if its && self.wants(&frame.task, frame.index) {
                let key = (frame.task.clone(), frame.attempt, frame.index, stream.clone());
                if had {
                    self.reach(&key, frame.end());
                } else {
                    if (seq, n) == (self.resume.out, self.resume.frame) && self.resume.byte > 0 {
                        self.reach(&key, frame.offset + self.resume.byte);
                    }
                    let over = match self.said.get(&key) {
                        None => over_unknown,
                        Some(_) => self.over_holes,
                    };
                    if frame.offset > self.said.get(&key).copied().unwrap_or(0) && !over {
                        self.beyond_hole.get_or_insert(seq);
                    } else {
                        self.frame(&key, node, frame, Some(n), &mut lines);
                    }
                }
            }
            (self.cursor.frame, self.cursor.byte) = (n + 1, 0);
        }
        lines
    }

    /// Takes in frames that are not stored, of an attempt of which at least `from` bytes are, and
    /// says them.
    pub(crate) fn live(
        &mut self,
        (stream, node): (&StreamName, &NodeName),
        frame: Frame,
        from: u64,
    ) -> VecDeque<Line> {
        let mut lines = VecDeque::new();
        let key = (frame.task.clone(), frame.attempt, frame.index, stream.clone());
        let said = self.said.get(&key).copied().unwrap_or(0);
        // What is stored comes by the stream, in order; only beyond it may something be left out.
        if self.wants(&frame.task, frame.index) && (frame.offset <= said || said >= from) {
            self.frame(&key, node, frame, None, &mut lines);
        }
        lines
    }

    fn frame(
        &mut self,
        key: &Key,
        node: &NodeName,
        frame: Frame,
        n: Option<u64>,
        lines: &mut VecDeque<Line>,
    ) {
        let done = self.done.get(&(key.0.clone(), key.1));
        if done.is_some_and(|done| done.contains(key.2)) {
            return;
        }
        let said = self.said.get(key).copied().unwrap_or(0);
        let end = frame.end();
        if end <= said {
            return;
        }
        let offset = frame.offset.max(said);
        if frame.gap.is_some() {
            if let Some(n) = n {
                (self.cursor.frame, self.cursor.byte) = (n + 1, 0);
            }
            let output = self.output(key, offset, Blob::default(), Some(end - offset));
            lines.push_back(Line {
                cursor: self.cursor(),
                what: What::Output(output, node.clone()),
            });
        } else {
            let skip = usize::try_from(offset - frame.offset).unwrap_or(usize::MAX);
            let mut rest = frame.bytes.0.slice(skip.min(frame.bytes.len())..);
            let mut at = offset;
            while !rest.is_empty() {
                let piece = rest.split_to(cut(&rest));
                if let Some(n) = n {
                    let byte = at + piece.len() as u64 - frame.offset;
                    (self.cursor.frame, self.cursor.byte) =
                        if rest.is_empty() { (n + 1, 0) } else { (n, byte) };
                }
                let length = piece.len() as u64;
                let output = self.output(key, at, Blob(piece), None);
                lines.push_back(Line {
                    cursor: self.cursor(),
                    what: What::Output(output, node.clone()),
                });
                at += length;
            }
        }
        self.reach(key, end);
    }

    /// A stream has been said up to here.
    fn reach(&mut self, key: &Key, end: u64) {
        let said = self.said.entry(key.clone()).or_default();
        *said = (*said).max(end);
        let said = *said;
        if self.due.get(key).is_some_and(|length| said >= *length) {
            self.due.remove(key);
            self.finish(key);
        }
    }

    fn output(&self, key: &Key, offset: u64, bytes: Blob, gap: Option<u64>) -> Output {
        let (task, attempt, index, stream) = key.clone();
        Output { task, index, attempt, stream, offset, bytes, gap }
    }
}

/// One entry of a fact: whose it is, and its body. Facts without entries are one.
fn entry(fact: &Fact, n: usize) -> Option<(WorkId, Box<dyn FnOnce() -> Value + '_>)> {
    fn of<T: serde::Serialize>(
        work: WorkId,
        body: &T,
    ) -> (WorkId, Box<dyn FnOnce() -> Value + '_>) {
        (work, Box::new(move || serde_json::to_value(body).unwrap_or(Value::Null)))
    }
    macro_rules! whole {
        ($f:expr) => {
            (n == 0).then(|| of($f.work, $f))
        };
    }
    macro_rules! entries {
        ($f:expr) => {
            $f.entries.get(n).map(|entry| of(entry.work, entry))
        };
    }
    match fact {
        Fact::Accepted(f) => whole!(f),
        Fact::Appended(f) => whole!(f),
        Fact::Closed(f) => whole!(f),
        Fact::CancelAsked(f) => whole!(f),
        Fact::RetryAsked(f) => whole!(f),
        Fact::Refused(f) => whole!(f),
        Fact::Expired(f) => whole!(f),
        Fact::Assigned(f) => entries!(f),
        Fact::Returned(f) => entries!(f),
        Fact::Lost(f) => entries!(f),
        Fact::Ended(f) => entries!(f),
        Fact::Finished(f) => entries!(f),
        Fact::Epoch(_)
        | Fact::Drained(_)
        | Fact::Undrained(_)
        | Fact::Paused(_)
        | Fact::Resumed(_) => None,
    }
}

/// What was written is said as output, not twice.
fn without_inline(mut body: Value) -> Value {
    if let Some(ending) = body.get_mut("ending").and_then(Value::as_object_mut) {
        ending.remove("stdout");
        ending.remove("stderr");
    }
    body
}

/// How much of it goes into one piece: not through the middle of a character, where it is text.
fn cut(bytes: &Bytes) -> usize {
    if bytes.len() <= PIECE {
        return bytes.len();
    }
    match std::str::from_utf8(&bytes[..PIECE]) {
        Err(error) if error.error_len().is_none() && error.valid_up_to() > 0 => error.valid_up_to(),
        _ => PIECE,
    }
}

#[cfg(test)]
mod tests;
