//! One stream of one job: what was read of it and has not been acknowledged yet.
//!
//! The first [`INLINE_BYTES`] are kept in memory (they go into the outcome), everything behind them in
//! unlinked files, so that a job costs at most 64 KiB of memory for each of its two streams while it runs,
//! however much it writes, and none when it has ended. On the disk a stream takes at most its `limit_mib` under `drop`, and [`AHEAD`] and a little
//! under `wait`; nothing is ever synced, since what a crash of the keeper would lose is lost with its jobs.
//!
//! Under `drop`, what lies before `stored_until` (half of the limit) is sent as it comes. What lies behind
//! goes round in a ring of the other half, is shown live, and is sent when the job has ended, behind a gap.
//! Under `wait`, everything is sent, and the pipe is read no further than [`AHEAD`] beyond the reader.

use schemas::{
    outcome::INLINE_BYTES,
    time::Millis,
    work::{OutputPolicy, WhenFull},
};
use std::{collections::BTreeMap, fs::File, io, os::unix::fs::FileExt, path::Path};

/// How far a `wait` job may be ahead of its reader.
pub(crate) const AHEAD: u64 = 8 * 1024 * 1024;
/// What may still be in the pipe when a job ends is taken in beyond [`AHEAD`]; the largest pipe that a job
/// may ask for has 1 MiB.
const SLACK: u64 = 2 * 1024 * 1024;
/// A job that wrote no more than this, and ended before it was sent, is told of in the outcome only.
const TOLD_BY_OUTCOME: u64 = 16 * 1024;
/// Live output that is older than this much is not shown any more.
const LIVE_BEHIND: u64 = 256 * 1024;

/// What to send next.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct Piece {
    pub(crate) offset: u64,
    pub(crate) bytes: Vec<u8>,
    pub(crate) gap: Option<u64>,
    pub(crate) live: bool,
}

impl Piece {
    /// The offset behind it.
    #[cfg(test)]
    pub(crate) fn end(&self) -> u64 {
        self.offset + self.gap.unwrap_or(self.bytes.len() as u64)
    }
}

#[derive(Debug)]
enum Pace {
    /// Nothing is waited for.
    Free,
    /// A reader sets the pace.
    Reader { read: u64, heard: Millis, blocked: Option<Millis>, patience_ms: u64 },
}

/// A file in which offsets go round.
#[derive(Debug)]
struct Ring {
    file: Option<File>,
    size: u64,
}

impl Ring {
    fn new(size: u64) -> Self {
        Self { file: None, size }
    }

    fn write(&mut self, folder: &Path, mut offset: u64, mut bytes: &[u8]) -> io::Result<()> {
        if self.file.is_none() {
            self.file = Some(tempfile::tempfile_in(folder)?);
        }
        let Some(file) = &self.file else { return Ok(()) };
        while !bytes.is_empty() {
            let at = offset % self.size;
            let n = usize::try_from(self.size - at).unwrap_or(usize::MAX).min(bytes.len());
            file.write_all_at(&bytes[..n], at)?;
            bytes = &bytes[n..];
            offset += n as u64;
        }
        Ok(())
    }

    fn read(&self, mut offset: u64, mut out: &mut [u8]) -> io::Result<()> {
        let file = self.file.as_ref().ok_or(io::ErrorKind::NotFound)?;
        while !out.is_empty() {
            let at = offset % self.size;
            let n = usize::try_from(self.size - at).unwrap_or(usize::MAX).min(out.len());
            let (now, later) = out.split_at_mut(n);
            file.read_exact_at(now, at)?;
            out = later;
            offset += n as u64;
        }
        Ok(())
    }
}

/// See the head of this file.
#[derive(Debug)]
pub(crate) struct Tape {
    head: Vec<u8>,
    first: Ring,
    last: Ring,
    /// Half of the limit: where `drop` begins to drop.
    half: u64,
    stored_until: u64,
    pace: Pace,
    written: u64,
    sent: u64,
    live: u64,
    outstanding: BTreeMap<u64, u64>,
    ended: bool,
    /// The disk failed: what was not kept becomes a gap.
    broken: bool,
}

impl Tape {
    /// A stream that begins.
    pub(crate) fn new(policy: &OutputPolicy, now: Millis, reader_after_ms: u64) -> Self {
        let half = (policy.limit_mib.max(1) << 20) / 2;
        let (first, stored_until, pace) = match policy.full {
            WhenFull::Drop => (half, half, Pace::Free),
            WhenFull::Wait => {
                let patience_ms = reader_after_ms;
                let pace = Pace::Reader { read: 0, heard: now, blocked: None, patience_ms };
                (AHEAD + SLACK, u64::MAX, pace)
            }
        };
        Self {
            head: Vec::new(),
            first: Ring::new(first),
            last: Ring::new(half),
            half,
            stored_until,
            pace,
            written: 0,
            sent: 0,
            live: 0,
            outstanding: BTreeMap::new(),
            ended: false,
            broken: false,
        }
    }

    /// How much has been read of it.
    pub(crate) fn written(&self) -> u64 {
        self.written
    }

    /// Its beginning.
    pub(crate) fn head(&self) -> &[u8] {
        &self.head
    }

    /// Everything before this is stored on the bus.
    fn acked(&self) -> u64 {
        self.outstanding.first_key_value().map_or(self.sent, |(start, _)| *start)
    }

    /// Whether its pipe may be read now.
    pub(crate) fn may_read(&mut self, now: Millis) -> bool {
        let acked = self.acked();
        let Pace::Reader { read, heard, blocked, patience_ms } = &mut self.pace else {
            return true;
        };
        if self.written < (*read).min(acked) + AHEAD {
            *blocked = None;
            return true;
        }
        let since = *blocked.get_or_insert(now);
        if now < since.max(*heard) + *patience_ms {
            return false;
        }
        // Nobody sets the pace any more: from here on the job goes on under `drop`.
        self.pace = Pace::Free;
        self.stored_until = self.written.max(self.half.min(acked + AHEAD));
        self.live = self.written;
        true
    }

    /// When [`Tape::may_read`] must be asked again, though nothing has happened.
    pub(crate) fn patience_ends(&self) -> Option<Millis> {
        match self.pace {
            Pace::Reader { heard, blocked: Some(since), patience_ms, .. } => {
                Some(since.max(heard) + patience_ms)
            }
            _ => None,
        }
    }

    /// A reader has come so far.
    pub(crate) fn read_to(&mut self, now: Millis, offset: u64) {
        if let Pace::Reader { read, heard, .. } = &mut self.pace {
            *read = (*read).max(offset.min(self.written));
            *heard = now;
        }
    }

    /// Takes in what was read of the pipe.
    pub(crate) fn take(&mut self, folder: &Path, bytes: &[u8]) {
        let start = self.written;
        self.written += bytes.len() as u64;
        let in_head = (INLINE_BYTES - self.head.len()).min(bytes.len());
        self.head.extend_from_slice(&bytes[..in_head]);
        let (mut at, mut rest) = (start + in_head as u64, &bytes[in_head..]);
        if at < self.stored_until && !rest.is_empty() {
            let n = usize::try_from(self.stored_until - at).unwrap_or(usize::MAX).min(rest.len());
            let stored = self.first.write(folder, at, &rest[..n]);
            self.note(stored);
            (at, rest) = (at + n as u64, &rest[n..]);
        }
        if !rest.is_empty() {
            // More than the ring holds would only overwrite itself.
            let skip = rest.len().saturating_sub(usize::try_from(self.half).unwrap_or(usize::MAX));
            let stored = self.last.write(folder, at + skip as u64, &rest[skip..]);
            self.note(stored);
        }
    }

    fn note(&mut self, stored: io::Result<()>) {
        if let Err(error) = stored
            && !self.broken
        {
            tracing::warn!(%error, "output could not be kept on the disk");
            self.broken = true;
        }
    }

    /// No more will come. A few bytes that were never sent are left to the outcome; otherwise the beginning
    /// goes to the disk, too, since nobody knows how long it must be kept.
    pub(crate) fn end(&mut self, folder: &Path) {
        self.ended = true;
        self.pace = Pace::Free;
        if self.sent == 0 && self.written <= TOLD_BY_OUTCOME {
            self.sent = self.written;
        }
        let acked = usize::try_from(self.acked()).unwrap_or(usize::MAX);
        let head = std::mem::take(&mut self.head);
        if acked < head.len() {
            let stored = self.first.write(folder, acked as u64, &head[acked..]);
            self.note(stored);
        }
    }

    /// Whether it has ended and everything is stored on the bus.
    pub(crate) fn is_done(&self) -> bool {
        self.ended && self.sent == self.written && self.outstanding.is_empty()
    }

    /// How much could be sent now.
    pub(crate) fn pending(&self) -> u64 {
        if self.ended {
            return self.written - self.sent;
        }
        let stored = self.written.min(self.stored_until).saturating_sub(self.sent);
        let live = self.written.saturating_sub(self.live.max(self.stored_until));
        stored + live.min(LIVE_BEHIND)
    }

    /// The next piece to be sent, of at most `most` bytes.
    pub(crate) fn next(&mut self, most: usize) -> Option<Piece> {
        let stored = self.written.min(self.stored_until);
        if self.sent < stored {
            return Some(self.piece(self.sent, stored, most, false));
        }
        if self.ended {
            let tail = self.stored_until.max(self.written.saturating_sub(self.half));
            if self.sent < tail && tail < self.written {
                return Some(self.gap(tail - self.sent));
            }
            return (self.sent < self.written)
                .then(|| self.piece(self.sent, self.written, most, false));
        }
        let oldest = self.written.saturating_sub(LIVE_BEHIND.min(self.half));
        let from = self.live.max(self.stored_until).max(oldest);
        (from < self.written).then(|| self.piece(from, self.written, most, true))
    }

    fn piece(&mut self, from: u64, to: u64, most: usize, live: bool) -> Piece {
        let len = usize::try_from(to - from).unwrap_or(usize::MAX).min(most);
        let mut bytes = vec![0; len];
        if self.load(from, &mut bytes).is_err() {
            // What the disk did not keep is said to be missing, not made up.
            if live {
                self.live = to;
                return Piece { offset: from, bytes: Vec::new(), gap: Some(to - from), live };
            }
            return self.gap(to - from);
        }
        let end = from + len as u64;
        if live {
            self.live = end;
        } else {
            self.sent = end;
            self.outstanding.insert(from, end);
        }
        Piece { offset: from, bytes, gap: None, live }
    }

    fn gap(&mut self, len: u64) -> Piece {
        let offset = self.sent;
        self.sent += len;
        self.outstanding.insert(offset, self.sent);
        Piece { offset, bytes: Vec::new(), gap: Some(len), live: false }
    }

    fn load(&self, from: u64, out: &mut [u8]) -> io::Result<()> {
        let mut at = from;
        let mut rest = out;
        let head = self.head.len() as u64;
        if at < head {
            let start = usize::try_from(at).expect("within the head");
            let n = (self.head.len() - start).min(rest.len());
            rest[..n].copy_from_slice(&self.head[start..start + n]);
            (at, rest) = (at + n as u64, &mut rest[n..]);
        }
        if rest.is_empty() {
            return Ok(());
        }
        if self.broken {
            return Err(io::Error::other("not kept"));
        }
        // A piece lies before `stored_until` or behind it, never across.
        if at < self.stored_until { self.first.read(at, rest) } else { self.last.read(at, rest) }
    }

    /// The piece from here on to there is stored on the bus.
    pub(crate) fn ack(&mut self, start: u64) {
        self.outstanding.remove(&start);
    }

    /// Everything that was not acknowledged is to be sent again.
    pub(crate) fn rewind(&mut self) {
        self.sent = self.acked();
        self.outstanding.clear();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn bytes(n: usize) -> Vec<u8> {
        (0..n).map(|i| u8::try_from(i * 31 % 251).unwrap()).collect()
    }

    fn policy(limit_mib: u64, full: WhenFull) -> OutputPolicy {
        OutputPolicy { limit_mib, full }
    }

    /// Sends all that can be sent and acknowledges it; gaps are left as zeros.
    fn drain(tape: &mut Tape, into: &mut Vec<u8>) -> Vec<(u64, u64)> {
        let mut gaps = Vec::new();
        while let Some(piece) = tape.next(10_000) {
            if piece.live {
                continue;
            }
            let end = usize::try_from(piece.end()).unwrap();
            into.resize(into.len().max(end), 0);
            match piece.gap {
                Some(gap) => gaps.push((piece.offset, gap)),
                None => {
                    into[usize::try_from(piece.offset).unwrap()..end].copy_from_slice(&piece.bytes)
                }
            }
            tape.ack(piece.offset);
        }
        gaps
    }

    #[test]
    fn a_few_bytes_of_a_short_job_are_left_to_the_outcome() {
        let dir = tempfile::tempdir().unwrap();
        let mut tape = Tape::new(&policy(16, WhenFull::Drop), Millis(0), 0);
        tape.take(dir.path(), b"hello");
        assert_eq!(tape.head(), b"hello");
        tape.end(dir.path());
        assert!(tape.is_done());
    }

    #[test]
    fn everything_is_sent_once_and_again_after_a_rewind() {
        let dir = tempfile::tempdir().unwrap();
        let all = bytes(300_000);
        let mut tape = Tape::new(&policy(16, WhenFull::Drop), Millis(0), 0);
        tape.take(dir.path(), &all);
        let lost = tape.next(70_000).unwrap();
        let acked = tape.next(70_000).unwrap();
        tape.ack(acked.offset);
        tape.rewind();
        assert_eq!(tape.next(70_000).unwrap().offset, lost.offset);
        tape.rewind();
        tape.end(dir.path());
        let mut seen = Vec::new();
        assert_eq!(drain(&mut tape, &mut seen), []);
        assert_eq!(seen, all);
        assert!(tape.is_done());
    }

    #[test]
    fn beyond_the_limit_the_middle_is_a_gap() {
        let dir = tempfile::tempdir().unwrap();
        let all = bytes(5 << 20);
        let mut tape = Tape::new(&policy(1, WhenFull::Drop), Millis(0), 0);
        let mut seen = Vec::new();
        for chunk in all.chunks(65_000) {
            tape.take(dir.path(), chunk);
            assert_eq!(drain(&mut tape, &mut seen), []);
        }
        tape.end(dir.path());
        let half = 1 << 19;
        let gap = (half, all.len() as u64 - 2 * half);
        assert_eq!(drain(&mut tape, &mut seen), [gap]);
        let (first, last) = (1 << 19, all.len() - (1 << 19));
        assert!(seen[..first] == all[..first] && seen[last..] == all[last..]);
        assert_eq!(seen.len(), all.len());
        assert!(tape.is_done());
    }

    #[test]
    fn beyond_the_half_but_within_the_limit_nothing_is_missing() {
        let dir = tempfile::tempdir().unwrap();
        let all = bytes((1 << 20) - 7);
        let mut tape = Tape::new(&policy(1, WhenFull::Drop), Millis(0), 0);
        tape.take(dir.path(), &all);
        tape.end(dir.path());
        let mut seen = Vec::new();
        assert_eq!(drain(&mut tape, &mut seen), []);
        assert!(seen == all);
    }

    #[test]
    fn a_reader_sets_the_pace_until_he_is_gone() {
        let dir = tempfile::tempdir().unwrap();
        let mut tape = Tape::new(&policy(64, WhenFull::Wait), Millis(0), 1000);
        let all = bytes(30 << 20);
        let (mut seen, mut written) = (Vec::new(), 0);
        let mut step = |tape: &mut Tape, now: u64| {
            let mut n = 0;
            while tape.may_read(Millis(now)) && written < all.len() {
                tape.take(dir.path(), &all[written..written + 65_536]);
                written += 65_536;
                n += 1;
                assert_eq!(drain(tape, &mut seen), []);
            }
            (n, seen == all[..written])
        };
        assert_eq!(step(&mut tape, 10), (128, true));
        assert_eq!(step(&mut tape, 900), (0, true));
        tape.read_to(Millis(1000), 1 << 20);
        assert_eq!(step(&mut tape, 1000), (16, true));
        assert_eq!(tape.patience_ends(), Some(Millis(2000)));
        assert_eq!(step(&mut tape, 1999), (0, true));
        let (n, _) = step(&mut tape, 2000);
        assert_eq!(n, (30 << 4) - 144);
        tape.end(dir.path());
        let mut rest = Vec::new();
        let gaps = drain(&mut tape, &mut rest);
        assert_eq!(gaps, [], "30 MiB are less than 17 MiB and a ring of 32");
    }
}
