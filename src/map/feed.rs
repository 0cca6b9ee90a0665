//! Reads a list and sends it on, never holding more than a few pieces of it.

use super::lock;
use crate::{
    client::House,
    failure::Failure,
    send::{self, Part, item_len},
    spool::Items,
};
use schemas::{error::code, fact::MoreItems, id::WorkId, token::TaskName, work::MAX_ITEM};
use std::{
    io::{BufRead, BufReader, Read},
    sync::{Arc, Mutex},
    time::Duration,
};
use tokio::{sync::mpsc, task::JoinHandle};

/// A part of a long list is about so large.
const PART_BYTES: usize = 256 * 1024;
/// A list that comes slowly is sent on after so long.
const LINGER: Duration = Duration::from_millis(100);
/// Items that are read ahead, in pieces of what one read gives.
const AHEAD: usize = 8;

/// Some items of the list.
#[derive(Debug, Default)]
pub(super) struct Batch {
    pub(super) items: Vec<Arc<str>>,
    /// Whether nothing follows.
    pub(super) is_last: bool,
}

/// The list, as it comes.
pub(super) struct Batches {
    pieces: mpsc::Receiver<anyhow::Result<Vec<Arc<str>>>>,
    /// Read, but not given out yet.
    left: Vec<Arc<str>>,
    ended: bool,
}

impl Batches {
    /// Begins to read, on a thread of its own: reading cannot be given up.
    pub(super) fn read(list: impl Read + Send + 'static, end: u8) -> Self {
        let (tell, pieces) = mpsc::channel(AHEAD);
        std::thread::spawn(move || {
            let mut lines = Lines::new(list, end);
            loop {
                let piece = lines.next_piece();
                let over = !matches!(&piece, Ok(Some(_)));
                if let Some(piece) = piece.transpose()
                    && tell.blocking_send(piece).is_err()
                {
                    return;
                }
                if over {
                    return;
                }
            }
        });
        Self { pieces, left: Vec::new(), ended: false }
    }

    /// The next items: as many as make a part, all that are left, or what came in a while. `None`
    /// when there are no more.
    pub(super) async fn next(&mut self) -> anyhow::Result<Option<Batch>> {
        let mut items = std::mem::take(&mut self.left);
        let mut bytes: usize = items.iter().map(|item| item_len(item)).sum();
        while !self.ended && bytes < PART_BYTES {
            let next = self.pieces.recv();
            let piece = if items.is_empty() {
                next.await
            } else {
                match tokio::time::timeout(LINGER, next).await {
                    Ok(piece) => piece,
                    Err(_) => break,
                }
            };
            match piece {
                Some(piece) => {
                    let piece = piece?;
                    bytes += piece.iter().map(|item| item_len(item)).sum::<usize>();
                    items.extend(piece);
                }
                None => self.ended = true,
            }
        }
        let fits = send::chunks(&items, PART_BYTES).next().map_or(0, <[_]>::len);
        self.left = items.split_off(fits);
        let is_last = self.ended && self.left.is_empty();
        Ok((!items.is_empty()).then_some(Batch { items, is_last }))
    }
}

/// Splits what is read into items.
struct Lines<R> {
    input: BufReader<R>,
    end: u8,
    line: u64,
    begun: Vec<u8>,
}

impl<R: Read> Lines<R> {
    fn new(input: R, end: u8) -> Self {
        Self { input: BufReader::with_capacity(64 * 1024, input), end, line: 0, begun: Vec::new() }
    }

    /// The items in what one read gives; `None` at the end.
    fn next_piece(&mut self) -> anyhow::Result<Option<Vec<Arc<str>>>> {
        loop {
            let mut items = Vec::new();
            let block = self.input.fill_buf()?.to_vec();
            self.input.consume(block.len());
            if block.is_empty() {
                let last = std::mem::take(&mut self.begun);
                self.line += 1;
                items.extend(self.item(&last)?);
                return Ok((!items.is_empty()).then_some(items));
            }
            let mut rest = block.as_slice();
            while let Some(at) = rest.iter().position(|b| *b == self.end) {
                let mut item = std::mem::take(&mut self.begun);
                item.extend_from_slice(&rest[..at]);
                rest = &rest[at + 1..];
                self.line += 1;
                items.extend(self.item(&item)?);
            }
            self.begun.extend_from_slice(rest);
            if self.begun.len() > MAX_ITEM {
                self.line += 1;
                let _ = self.item(&self.begun)?;
            }
            if !items.is_empty() {
                return Ok(Some(items));
            }
        }
    }

    fn item(&self, bytes: &[u8]) -> Result<Option<Arc<str>>, Failure> {
        let line = self.line;
        if bytes.len() > MAX_ITEM {
            return Err(Failure::usage(format!(
                "item {line} of the list is longer than {} KiB",
                MAX_ITEM / 1024
            )));
        }
        let text = std::str::from_utf8(bytes).map_err(|_| {
            Failure::usage(format!("item {line} of the list is no UTF-8 text"))
                .hint("items are part of messages that must be text; name files by number, say")
        })?;
        if text.contains('\0') {
            return Err(Failure::usage(format!("item {line} of the list has a NUL in it"))
                .hint("`-0` reads items that end with a NUL"));
        }
        Ok((!text.is_empty()).then(|| text.into()))
    }
}

/// Sends the rest of a long list, and closes the work behind it.
pub(super) struct Feeder {
    task: JoinHandle<anyhow::Result<()>>,
    stopped: bool,
}

impl Feeder {
    pub(super) fn start(
        house: &House,
        work: WorkId,
        batches: Batches,
        items: Arc<Mutex<Items>>,
    ) -> Self {
        let task = tokio::spawn(feed(house.clone(), work, batches, items));
        Self { task, stopped: false }
    }

    /// Sends no more.
    pub(super) fn stop(&mut self) {
        self.stopped = true;
        self.task.abort();
    }

    /// Waits until everything was sent; for ever where there is nothing (more) to send.
    pub(super) async fn ended(feeder: &mut Option<Feeder>) -> anyhow::Result<()> {
        let Some(this) = feeder else { return std::future::pending().await };
        let result = (&mut this.task).await;
        let stopped = this.stopped;
        *feeder = None;
        match result {
            Ok(result) => result,
            Err(_) if stopped => Ok(()),
            Err(error) => Err(error.into()),
        }
    }
}

async fn feed(
    house: House,
    work: WorkId,
    mut batches: Batches,
    all: Arc<Mutex<Items>>,
) -> anyhow::Result<()> {
    let mut part = 0;
    while let Some(Batch { items, .. }) = batches.next().await? {
        part += 1;
        // Known here before anybody can say that it has ended.
        lock(&all).push_all(&items)?;
        let more = MoreItems { task: TaskName::main(), items };
        let content = Part { tasks: Vec::new(), items: Some(more) };
        match send::append(&house, work, part, content).await {
            Ok(()) => {}
            // Somebody else has cancelled it; what there is to say comes with its end.
            Err(bus::Error::Refused(refusal))
                if matches!(&*refusal.code, code::ENDED | code::NOT_OPEN) =>
            {
                return Ok(());
            }
            Err(error) => return Err(error.into()),
        }
    }
    match send::close(&house, work, part).await {
        Err(bus::Error::Refused(refusal))
            if matches!(&*refusal.code, code::ENDED | code::NOT_OPEN) =>
        {
            Ok(())
        }
        closed => Ok(closed?),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    async fn all(list: &'static [u8], end: u8) -> anyhow::Result<Vec<Batch>> {
        let mut batches = Batches::read(list, end);
        let mut out = Vec::new();
        while let Some(batch) = batches.next().await? {
            out.push(batch);
        }
        Ok(out)
    }

    fn texts(batches: &[Batch]) -> Vec<&str> {
        batches.iter().flat_map(|batch| &batch.items).map(|item| &**item).collect()
    }

    #[tokio::test]
    async fn one_item_a_line_and_empty_lines_are_passed_over() {
        let batches = all(b"one\n\ntwo words\n\nlast", b'\n').await.unwrap();
        assert_eq!(texts(&batches), ["one", "two words", "last"]);
        assert_eq!(batches.len(), 1);
        assert!(batches[0].is_last);
        assert!(all(b"", b'\n').await.unwrap().is_empty());
        assert!(all(b"\n\n", b'\n').await.unwrap().is_empty());
    }

    #[tokio::test]
    async fn items_that_end_with_a_nul_may_hold_lines() {
        let batches = all(b"a\nb\0c\0\0", 0).await.unwrap();
        assert_eq!(texts(&batches), ["a\nb", "c"]);
    }

    #[tokio::test]
    async fn what_is_no_text_is_refused_with_its_place() {
        let error = all(b"fine\n\xff\n", b'\n').await.unwrap_err().to_string();
        assert!(error.contains("item 2"), "{error}");
        let error = all(b"a\0b\n", b'\n').await.unwrap_err();
        assert!(Failure::of(&error).hint.unwrap().contains("-0"));
    }

    #[tokio::test]
    async fn a_long_list_comes_in_parts_that_fit_into_a_message() {
        let list: Vec<u8> = (0..200_000).flat_map(|n| format!("{n}\n").into_bytes()).collect();
        let mut batches = Batches::read(std::io::Cursor::new(list), b'\n');
        let (mut next, mut parts) = (0, 0);
        let mut last = false;
        while let Some(batch) = batches.next().await.unwrap() {
            let bytes: usize = batch.items.iter().map(|item| item_len(item)).sum();
            assert!(bytes <= PART_BYTES, "{bytes}");
            for item in &batch.items {
                assert_eq!(item.parse(), Ok(next));
                next += 1;
            }
            parts += 1;
            assert!(!last);
            last = batch.is_last;
        }
        assert_eq!(next, 200_000);
        assert!(parts > 3, "{parts}");
    }

    #[tokio::test]
    async fn an_item_that_never_ends_is_refused_before_it_fills_the_memory() {
        let endless = std::io::repeat(b'x');
        let error = Batches::read(endless, b'\n').next().await.unwrap_err().to_string();
        assert!(error.contains("item 1") && error.contains("64 KiB"), "{error}");
    }
}
