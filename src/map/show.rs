//! Shows what each index wrote, whole and when it has ended, and how far all of them are.

use super::lock;
use crate::{
    spool::{Items, Spool, Waiting},
    streams::{News, Streams},
    terminal,
};
use indicatif::{ProgressBar, ProgressDrawTarget, ProgressStyle};
use schemas::{
    fact::EndedEntry,
    outcome::{Ending, INLINE_BYTES, Outcome},
    output::Output,
    token::{StreamName, TaskName},
};
use serde::Serialize;
use std::{
    collections::BTreeMap,
    io::Write,
    sync::{Arc, Mutex},
};

/// So much of what jobs have written waits in memory, more of it on disk.
const IN_MEMORY: usize = 32 * 1024 * 1024;

/// In which shape it is shown.
#[derive(Clone, Copy, Debug)]
pub(super) struct Shape {
    pub(super) tag: bool,
    pub(super) in_order: bool,
    pub(super) json: bool,
}

/// What is known of an index that was not shown yet.
#[derive(Debug, Default)]
struct Index {
    attempt: u32,
    stdout: Waiting,
    stderr: Waiting,
    /// So much was read of each, and of what was not kept.
    had: [u64; 2],
    missing: u64,
    ending: Option<Ending>,
}

impl Index {
    /// Whether it has ended and everything that it wrote is here.
    fn is_whole(&self) -> bool {
        self.ending.as_ref().is_some_and(|ending| {
            self.had[0] >= ending.stdout_bytes && self.had[1] >= ending.stderr_bytes
        })
    }
}

/// One index of `map --json`: its item, and the outcome as on the wire.
#[derive(Serialize)]
struct Line<'a> {
    item: &'a str,
    #[serde(flatten)]
    outcome: Outcome,
}

pub(super) struct Show {
    items: Arc<Mutex<Items>>,
    shape: Shape,
    streams: Streams,
    spool: Spool,
    /// Those that were not shown yet.
    indices: BTreeMap<u32, Index>,
    /// The index whose turn it is, in order.
    turn: u32,
    bar: ProgressBar,
}

impl Show {
    pub(super) fn new(items: Arc<Mutex<Items>>, shape: Shape) -> anyhow::Result<Self> {
        let bar = if terminal::stderr_is_terminal() {
            ProgressBar::with_draw_target(Some(0), ProgressDrawTarget::stderr())
        } else {
            ProgressBar::hidden()
        };
        let style = "{bar:30} {human_pos}/{human_len} {msg} {elapsed}, about {eta} left";
        bar.set_style(ProgressStyle::with_template(style)?);
        Ok(Self {
            items,
            shape,
            streams: Streams::default(),
            spool: Spool::new(IN_MEMORY)?,
            indices: BTreeMap::new(),
            turn: 0,
            bar,
        })
    }

    /// How far it is.
    pub(super) fn progress(&self, total: u64, done: u64, failed: u64) {
        self.bar.set_length(total);
        self.bar.set_position(done);
        if failed > 0 {
            self.bar.set_message(format!("({failed} failed)"));
        }
    }

    /// Takes the bar away.
    pub(super) fn clear(&self) {
        self.bar.finish_and_clear();
    }

    /// Whether an index was not shown yet, as far as anything is known of it.
    pub(super) fn awaits(&self, index: u32) -> bool {
        self.indices.contains_key(&index)
    }

    /// A job has written something.
    pub(super) fn output(&mut self, output: Output) -> anyhow::Result<()> {
        let Some(news) = self.streams.output(output) else { return Ok(()) };
        let index = news.source.index;
        if self.take_in(news)? { self.print_what_is_due(index) } else { Ok(()) }
    }

    /// Says whether it belongs to the attempt that counts.
    fn take_in(&mut self, news: News) -> anyhow::Result<bool> {
        let known = self.indices.entry(news.source.index).or_default();
        if news.source.attempt < known.attempt {
            return Ok(false);
        }
        if news.source.attempt > known.attempt {
            // What an earlier attempt wrote is not shown.
            let old = std::mem::take(known);
            known.attempt = news.source.attempt;
            drop_waiting(&mut self.spool, old)?;
        }
        let (place, to) = match news.source.stream.as_str() {
            "stdout" => (0, &mut known.stdout),
            "stderr" => (1, &mut known.stderr),
            _ => return Ok(false),
        };
        self.spool.add(to, news.bytes.as_ref())?;
        known.missing += news.missing;
        known.had[place] = self.streams.had(&news.source);
        Ok(true)
    }

    /// Attempts have ended; the last of their indices.
    pub(super) fn end(&mut self, index: u32, attempt: u32, ending: Ending) -> anyhow::Result<()> {
        for news in self.streams.ended(&TaskName::main(), index, attempt, &ending) {
            self.take_in(news)?;
        }
        let known = self.indices.entry(index).or_default();
        if known.attempt < attempt {
            let old = std::mem::take(known);
            known.attempt = attempt;
            drop_waiting(&mut self.spool, old)?;
        }
        known.ending = Some(ending);
        self.print_what_is_due(index)
    }

    /// An attempt that is tried again: what it wrote is not shown.
    pub(super) fn again(&mut self, entry: &EndedEntry) -> anyhow::Result<()> {
        for index in entry.indices.iter() {
            if let Some(old) = self.indices.remove(&index) {
                drop_waiting(&mut self.spool, old)?;
            }
        }
        Ok(())
    }

    fn print_what_is_due(&mut self, index: u32) -> anyhow::Result<()> {
        let is_whole =
            |index: &u32, all: &BTreeMap<u32, Index>| all.get(index).is_some_and(Index::is_whole);
        if !self.shape.in_order {
            return if is_whole(&index, &self.indices) { self.print(index) } else { Ok(()) };
        }
        if is_whole(&index, &self.indices) {
            self.streams.forget(&TaskName::main(), index);
        }
        while is_whole(&self.turn, &self.indices) {
            self.print(self.turn)?;
            self.turn += 1;
        }
        Ok(())
    }

    /// Shows what still waits, although some of it will not come any more.
    pub(super) fn rest(&mut self) -> anyhow::Result<()> {
        while let Some((index, known)) = self.indices.pop_first() {
            if known.ending.is_some() {
                self.indices.insert(index, known);
                self.print(index)?;
            }
        }
        Ok(())
    }

    fn print(&mut self, index: u32) -> anyhow::Result<()> {
        let Some(Index { attempt, stdout, stderr, had, mut missing, ending }) =
            self.indices.remove(&index)
        else {
            return Ok(());
        };
        self.streams.forget(&TaskName::main(), index);
        let Some(mut ending) = ending else { return Ok(()) };
        missing += ending.stdout_bytes.saturating_sub(had[0]);
        missing += ending.stderr_bytes.saturating_sub(had[1]);
        if self.shape.json {
            ending.stdout = head(&mut self.spool, stdout)?.into();
            ending.stderr = head(&mut self.spool, stderr)?.into();
            let item = lock(&self.items).get(index)?;
            let outcome = Outcome::new(TaskName::main(), index, attempt, ending);
            let mut line = serde_json::to_vec(&Line { item: &item, outcome })?;
            line.push(b'\n');
            return write(&self.bar, &StreamName::stdout(), &line);
        }
        let tag = match self.shape.tag {
            true => format!("{}\t", lock(&self.items).get(index)?),
            false => String::new(),
        };
        for (stream, waiting) in [(StreamName::stdout(), stdout), (StreamName::stderr(), stderr)] {
            let mut tagger = Tagger::new(&tag);
            let bar = &self.bar;
            self.spool.take(waiting, |bytes| write(bar, &stream, &tagger.take(bytes)))?;
            write(bar, &stream, tagger.end())?;
        }
        if missing > 0 {
            let sentence = format!("{missing} bytes that index {index} wrote were not kept");
            self.bar.suspend(|| terminal::say(&sentence));
        }
        Ok(())
    }
}

fn drop_waiting(spool: &mut Spool, old: Index) -> anyhow::Result<()> {
    spool.take(old.stdout, |_| anyhow::Ok(()))?;
    spool.take(old.stderr, |_| anyhow::Ok(()))
}

/// As much as an outcome holds.
fn head(spool: &mut Spool, waiting: Waiting) -> anyhow::Result<Vec<u8>> {
    let mut out = Vec::new();
    spool.take(waiting, |bytes| {
        out.extend_from_slice(&bytes[..bytes.len().min(INLINE_BYTES - out.len())]);
        anyhow::Ok(())
    })?;
    Ok(out)
}

/// Blocks while the reader is slow; whoever sends to us is then slowed down, too.
fn write(bar: &ProgressBar, stream: &StreamName, bytes: &[u8]) -> anyhow::Result<()> {
    if bytes.is_empty() {
        return Ok(());
    }
    let write = || match stream.as_str() {
        "stdout" => {
            let mut out = std::io::stdout().lock();
            out.write_all(bytes).and_then(|()| out.flush())
        }
        _ => std::io::stderr().lock().write_all(bytes),
    };
    let written =
        tokio::task::block_in_place(|| if bar.is_hidden() { write() } else { bar.suspend(write) });
    terminal::written(written)
}

/// Begins each line with the item.
struct Tagger {
    tag: Vec<u8>,
    at_start: bool,
}

impl Tagger {
    fn new(tag: &str) -> Self {
        Self { tag: tag.as_bytes().to_vec(), at_start: true }
    }

    fn take<'a>(&mut self, bytes: &'a [u8]) -> std::borrow::Cow<'a, [u8]> {
        if self.tag.is_empty() {
            return bytes.into();
        }
        let mut out = Vec::with_capacity(bytes.len() + self.tag.len());
        for line in bytes.split_inclusive(|b| *b == b'\n') {
            if self.at_start {
                out.extend_from_slice(&self.tag);
            }
            out.extend_from_slice(line);
            self.at_start = line.ends_with(b"\n");
        }
        out.into()
    }

    /// The end of a last line that has none, so that the next item does not stand behind it.
    fn end(&mut self) -> &'static [u8] {
        if self.tag.is_empty() || self.at_start { b"" } else { b"\n" }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_line_begins_with_the_item_however_it_is_cut() {
        let mut tagger = Tagger::new("a.txt\t");
        let mut out = tagger.take(b"one\ntw").into_owned();
        out.extend_from_slice(&tagger.take(b"o\nthree"));
        out.extend_from_slice(tagger.end());
        assert_eq!(String::from_utf8_lossy(&out), "a.txt\tone\na.txt\ttwo\na.txt\tthree\n");
    }

    #[test]
    fn without_a_tag_bytes_pass_as_they_are() {
        let mut tagger = Tagger::new("");
        assert_eq!(&*tagger.take(b"no end"), b"no end");
        assert_eq!(tagger.end(), b"");
    }
}
