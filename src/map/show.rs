//! Shows what each index wrote, whole and when it has ended, and how far all of them are.

use super::lock;
use crate::{
    client::House,
    follow::{Following, Step},
    spool::{Items, Shelf},
    streams::Streams,
    terminal,
};
use indicatif::{ProgressBar, ProgressDrawTarget, ProgressStyle};
use schemas::{
    blob::Blob,
    id::WorkId,
    outcome::{Ending, Outcome},
    request::Follow,
    token::{StreamName, TaskName},
};
use serde::{Deserialize, Serialize};
use std::{
    io::Write,
    sync::{Arc, Mutex},
    time::Duration,
};

/// Output that does not come within this time is not there any more.
const PATIENCE: Duration = Duration::from_secs(10);

/// In which shape it is shown.
#[derive(Clone, Copy, Debug)]
pub(super) struct Shape {
    pub(super) tag: bool,
    pub(super) in_order: bool,
    pub(super) json: bool,
}

/// The end of one index, as it waits for its turn.
#[derive(Serialize, Deserialize)]
struct End {
    attempt: u32,
    ending: Ending,
}

/// One index of `map --json`: its item, and the outcome as on the wire.
#[derive(Serialize)]
struct Line<'a> {
    item: &'a str,
    #[serde(flatten)]
    outcome: Outcome,
}

pub(super) struct Show {
    house: House,
    work: WorkId,
    items: Arc<Mutex<Items>>,
    shape: Shape,
    shelf: Shelf,
    /// The index whose turn it is, in order.
    turn: u32,
    bar: ProgressBar,
}

impl Show {
    pub(super) fn new(
        house: House,
        work: WorkId,
        items: Arc<Mutex<Items>>,
        shape: Shape,
    ) -> anyhow::Result<Self> {
        let bar = if terminal::stderr_is_terminal() {
            ProgressBar::with_draw_target(Some(0), ProgressDrawTarget::stderr())
        } else {
            ProgressBar::hidden()
        };
        let style = "{bar:30} {human_pos}/{human_len} {msg} {elapsed} (still {eta})";
        bar.set_style(ProgressStyle::with_template(style)?);
        Ok(Self { house, work, items, shape, shelf: Shelf::new()?, turn: 0, bar })
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

    /// An index has ended.
    pub(super) async fn end(
        &mut self,
        index: u32,
        attempt: u32,
        ending: Ending,
    ) -> anyhow::Result<()> {
        if !self.shape.in_order {
            return self.print(index, End { attempt, ending }).await;
        }
        if index != self.turn {
            self.shelf.put(index, &serde_json::to_vec(&End { attempt, ending })?)?;
            return Ok(());
        }
        self.print(index, End { attempt, ending }).await?;
        self.turn += 1;
        while let Some(bytes) = self.shelf.take(self.turn)? {
            self.print(self.turn, serde_json::from_slice(&bytes)?).await?;
            self.turn += 1;
        }
        Ok(())
    }

    /// Shows what still waits for its turn: those before it never ran.
    pub(super) async fn rest(&mut self) -> anyhow::Result<()> {
        while let Some(index) = self.shelf.first() {
            if let Some(bytes) = self.shelf.take(index)? {
                self.print(index, serde_json::from_slice(&bytes)?).await?;
            }
        }
        Ok(())
    }

    async fn print(&mut self, index: u32, end: End) -> anyhow::Result<()> {
        let End { attempt, ending } = end;
        if self.shape.json {
            let item = lock(&self.items).get(index)?;
            let outcome = Outcome::new(TaskName::main(), index, attempt, ending);
            let mut line = serde_json::to_vec(&Line { item: &item, outcome })?;
            line.push(b'\n');
            return self.write(&StreamName::stdout(), &line);
        }
        let tag = match self.shape.tag {
            true => format!("{}\t", lock(&self.items).get(index)?),
            false => String::new(),
        };
        let streams = [
            (StreamName::stdout(), &ending.stdout, ending.stdout_bytes),
            (StreamName::stderr(), &ending.stderr, ending.stderr_bytes),
        ];
        for (stream, inline, bytes) in streams {
            let mut tagger = Tagger::new(&tag);
            if bytes <= inline.len() as u64 {
                self.write(&stream, &tagger.take(inline.as_ref()))?;
            } else {
                self.print_long(index, attempt, &stream, inline, bytes, &mut tagger).await?;
            }
            self.write(&stream, tagger.end())?;
        }
        Ok(())
    }

    /// A stream that does not fit into the fact that it has ended: by following that index alone.
    async fn print_long(
        &mut self,
        index: u32,
        attempt: u32,
        stream: &StreamName,
        inline: &Blob,
        bytes: u64,
        tagger: &mut Tagger,
    ) -> anyhow::Result<()> {
        let request = Follow {
            work: self.work.to_string(),
            task: Some(TaskName::main()),
            index: Some(index),
            from: None,
            pace: false,
        };
        let mut following = Following::start(&self.house, request);
        let mut streams = Streams::default();
        let mut had = 0;
        while had < bytes {
            let step = match tokio::time::timeout(PATIENCE, following.next()).await {
                Ok(step) => step?,
                Err(_) => None,
            };
            let Some(Step::Piece(piece, ack)) = step else { break };
            if let Some(output) = piece.output
                && output.attempt == attempt
                && output.stream == *stream
                && let Some(news) = streams.output(output)
            {
                self.missing(index, stream, news.missing);
                self.write(stream, &tagger.take(news.bytes.as_ref()))?;
                had = streams.had(&news.source);
            }
            following.ack(ack).await;
        }
        if had == 0 {
            self.write(stream, &tagger.take(inline.as_ref()))?;
            had = inline.len() as u64;
        }
        self.missing(index, stream, bytes.saturating_sub(had));
        Ok(())
    }

    fn missing(&self, index: u32, stream: &StreamName, bytes: u64) {
        if bytes > 0 {
            let sentence = format!("{bytes} bytes of the {stream} of index {index} were not kept");
            self.bar.suspend(|| terminal::say(&sentence));
        }
    }

    /// Blocks while the reader is slow; whoever sends to us is then slowed down, too.
    fn write(&self, stream: &StreamName, bytes: &[u8]) -> anyhow::Result<()> {
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
        let written = tokio::task::block_in_place(|| {
            if self.bar.is_hidden() { write() } else { self.bar.suspend(write) }
        });
        terminal::written(written)
    }
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
