//! `longhouse logs`: what jobs wrote, from the start, for who comes late too.

use crate::{
    app::App,
    client::House,
    failure::{Failure, exit},
    follow::{Following, Step},
    outcome::is_single,
    parse::Place,
    report::Report,
    run::ended_entry,
    streams::{News, Source, Streams},
    terminal,
};
use owo_colors::OwoColorize;
use schemas::{
    fact::EndedEntry,
    outcome::Summary,
    output::Output,
    request::Follow,
    token::{StreamName, TaskName},
};
use std::{collections::BTreeMap, io::Write, time::Duration};

/// Without `-f`, of a work that runs: what does not come within this time is yet to be written.
const HAD_ALL: Duration = Duration::from_millis(700);

/// Show what jobs wrote, from the start
///
/// Of a single job byte for byte, stdout to stdout and stderr to stderr; of many each line begins
/// with its task and index.
#[derive(Debug, clap::Args)]
pub(crate) struct Logs {
    /// WORK, WORK/task or WORK/task/index
    #[arg(default_value = "@last", value_name = "WORK[/task[/index]]", add = crate::completion::works())]
    place: Place,
    /// Go on until it has ended
    #[arg(short, long)]
    follow: bool,
    /// Only this stream: stdout, stderr, or one that a job has named
    #[arg(long, value_name = "STREAM")]
    stream: Option<StreamName>,
}

impl Logs {
    pub(crate) async fn run(self, app: &App) -> anyhow::Result<Report> {
        let house = app.house().await?;
        let Place { work, task, index } = self.place;
        let (summary, task) = match house.summary(&work).await {
            Ok(summary) => (summary, task),
            // Names of works may hold slashes: the last word may belong to the name.
            Err(error) => match (&task, index) {
                (Some(task), None) => match house.summary(&format!("{work}/{task}")).await {
                    Ok(summary) => (summary, None),
                    Err(_) => return Err(no_index(&house, &work, task, error).await),
                },
                _ => return Err(error.into()),
            },
        };
        if let (Some(task), Some(index)) = (&task, index) {
            has_index(&summary, task, index)?;
        }
        let goes_on = self.follow || summary.state.is_ended();
        let one = is_single(&summary) || index.is_some();
        let request = Follow {
            work: summary.work.to_string(),
            task: task.clone(),
            index,
            from: None,
            pace: false,
        };
        let mut following = Following::start(&house, request);
        let mut streams = Streams::default();
        let mut ended = BTreeMap::new();
        let mut shown = Shown { one, json: app.json, begun: BTreeMap::new() };
        let wanted = |source: &Source| {
            task.as_ref().is_none_or(|task| *task == source.task)
                && index.is_none_or(|index| index == source.index)
                && self.stream.as_ref().is_none_or(|stream| *stream == source.stream)
        };
        loop {
            let next = following.next();
            let step = if goes_on {
                next.await?
            } else {
                match tokio::time::timeout(HAD_ALL, next).await {
                    Ok(step) => step?,
                    Err(_) => break,
                }
            };
            let Some(Step::Piece(piece, ack)) = step else { break };
            if let Some(output) = piece.output {
                let place = (output.task.clone(), output.index);
                if let Some(news) = streams.output(output)
                    && wanted(&news.source)
                {
                    shown.show(news)?;
                }
                if let Some(lens) = ended.get(&place)
                    && are_read(&streams, &place, *lens)
                {
                    shown.end(&place.0, place.1)?;
                    streams.forget(&place.0, place.1);
                    ended.remove(&place);
                }
            }
            if let Some(entry) = piece.fact.as_ref().and_then(ended_entry) {
                let EndedEntry { task, attempt, ending, .. } = &entry;
                for index in entry.indices.iter() {
                    let late = streams.ended(task, index, *attempt, ending);
                    for news in late.into_iter().filter(|news| wanted(&news.source)) {
                        shown.show(news)?;
                    }
                    let lens = (*attempt, [ending.stdout_bytes, ending.stderr_bytes]);
                    let place = (task.clone(), index);
                    if are_read(&streams, &place, lens) {
                        shown.end(task, index)?;
                        streams.forget(task, index);
                    } else {
                        // The rest follows.
                        ended.insert(place, lens);
                    }
                }
            }
            following.ack(ack).await;
        }
        shown.end_all()?;
        Ok(Report::nothing())
    }
}

/// The failure of `WORK/task/x`: where the rest is right, it is `x` that is wrong.
async fn no_index(house: &House, front: &str, last: &TaskName, error: bus::Error) -> anyhow::Error {
    if let Some((work, task)) = front.rsplit_once('/')
        && let Ok(summary) = house.summary(work).await
        && summary.tasks.iter().any(|known| known.task.as_str() == task)
    {
        return Failure::usage(format!("`{last}` is no index"))
            .hint(format!("indices are numbers from 0: `{front}/0`"))
            .into();
    }
    error.into()
}

fn has_index(summary: &Summary, task: &TaskName, index: u32) -> Result<(), Failure> {
    let Some(known) = summary.tasks.iter().find(|known| known.task == *task) else {
        return Ok(());
    };
    if u64::from(index) < known.total {
        return Ok(());
    }
    let has = match known.total {
        0 => "it has none yet".to_owned(),
        1 => "its only one is 0".to_owned(),
        total => format!("they go from 0 to {}", total - 1),
    };
    Err(Failure::new(exit::FAILED, format!("`{task}` has no index {index}: {has}")))
}

/// Whether everything that an attempt wrote was read.
fn are_read(
    streams: &Streams,
    (task, index): &(TaskName, u32),
    (attempt, [stdout, stderr]): (u32, [u64; 2]),
) -> bool {
    let all = [(StreamName::stdout(), stdout), (StreamName::stderr(), stderr)];
    all.into_iter().all(|(stream, bytes)| {
        let source = Source { task: task.clone(), index: *index, attempt, stream };
        streams.had(&source) >= bytes
    })
}

/// How it is shown.
struct Shown {
    /// A single job: its bytes as they are.
    one: bool,
    json: bool,
    /// Lines that are not whole yet, when there are many jobs.
    begun: BTreeMap<Source, Vec<u8>>,
}

/// A line that does not end is cut here.
const LONGEST_LINE: usize = 64 * 1024;

impl Shown {
    fn show(&mut self, news: News) -> anyhow::Result<()> {
        if self.json {
            return show_json(news);
        }
        if news.missing > 0 {
            let Source { task, index, stream, .. } = &news.source;
            terminal::say(&format!(
                "{} bytes of {task}/{index} {stream} were not kept",
                news.missing
            ));
        }
        if self.one {
            return put(&news.source.stream, news.bytes.as_ref());
        }
        let mut rest = news.bytes.as_ref();
        let begun = self.begun.entry(news.source.clone()).or_default();
        while let Some(at) = rest.iter().position(|b| *b == b'\n') {
            begun.extend_from_slice(&rest[..=at]);
            rest = &rest[at + 1..];
            put_line(&news.source, &std::mem::take(begun))?;
        }
        begun.extend_from_slice(rest);
        if begun.len() > LONGEST_LINE {
            put_line(&news.source, &std::mem::take(begun))?;
        }
        Ok(())
    }

    /// An index has ended: its last lines, also those that have no end.
    fn end(&mut self, task: &TaskName, index: u32) -> anyhow::Result<()> {
        let is_its = |source: &Source| source.index == index && source.task == *task;
        let ended: Vec<_> = self.begun.keys().filter(|s| is_its(s)).cloned().collect();
        ended.into_iter().try_for_each(|source| {
            let line = self.begun.remove(&source).unwrap_or_default();
            if line.is_empty() { Ok(()) } else { put_line(&source, &line) }
        })
    }

    fn end_all(&mut self) -> anyhow::Result<()> {
        for (source, line) in std::mem::take(&mut self.begun) {
            if !line.is_empty() {
                put_line(&source, &line)?;
            }
        }
        Ok(())
    }
}

fn show_json(news: News) -> anyhow::Result<()> {
    let Source { task, index, attempt, stream } = news.source;
    let gap = (news.missing > 0).then_some(news.missing);
    let output = serde_json::json!({
        "task": task, "index": index, "attempt": attempt, "stream": stream,
        "bytes": news.bytes, "gap": gap,
    });
    terminal::print(&format!("{output}\n"))
}

fn put_line(source: &Source, line: &[u8]) -> anyhow::Result<()> {
    let mut out = prefix(source, terminal::stdout_is_terminal()).into_bytes();
    out.extend_from_slice(line);
    if !line.ends_with(b"\n") {
        out.push(b'\n');
    }
    put(&source.stream, &out)
}

/// `resize/3 | `, with the stream where it is not stdout.
fn prefix(source: &Source, colored: bool) -> String {
    let Source { task, index, stream, .. } = source;
    let text = match stream.as_str() {
        "stdout" | "stderr" => format!("{task}/{index} |"),
        other => format!("{task}/{index} {other} |"),
    };
    if colored { format!("{} ", text.dimmed()) } else { format!("{text} ") }
}

fn put(stream: &StreamName, bytes: &[u8]) -> anyhow::Result<()> {
    terminal::written(match stream.as_str() {
        "stderr" => std::io::stderr().lock().write_all(bytes),
        _ => {
            let mut out = std::io::stdout().lock();
            out.write_all(bytes).and_then(|()| out.flush())
        }
    })
}

/// A piece of output, for who only wants to see the last lines.
pub(crate) fn text_of(output: &Output) -> String {
    output.bytes.to_text().into_owned()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_line_of_many_jobs_says_whose_it_is() {
        let source = |stream: &str| Source {
            task: TaskName::new("resize").unwrap(),
            index: 3,
            attempt: 1,
            stream: StreamName::new(stream).unwrap(),
        };
        assert_eq!(prefix(&source("stdout"), false), "resize/3 | ");
        assert_eq!(prefix(&source("metrics"), false), "resize/3 metrics | ");
    }
}
