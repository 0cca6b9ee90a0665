//! Puts together what jobs write: each byte once and in order, whether it comes as output or
//! inline in the fact that the job has ended.

use schemas::{
    blob::Blob,
    id::Attempt,
    indices::Index,
    outcome::Ending,
    output::Output,
    token::{StreamName, TaskName},
};
use std::collections::BTreeMap;

/// Which stream of which attempt.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct Source {
    pub(crate) task: TaskName,
    pub(crate) index: Index,
    pub(crate) attempt: Attempt,
    pub(crate) stream: StreamName,
}

/// What is new of a stream.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct News {
    /// Where it comes from.
    pub(crate) source: Source,
    /// So many bytes before it were written and are not to be had.
    pub(crate) missing: u64,
    /// The bytes.
    pub(crate) bytes: Blob,
}

/// How far each stream has been read.
#[derive(Debug, Default)]
pub(crate) struct Streams {
    had: BTreeMap<Source, u64>,
}

impl Streams {
    /// Takes in a piece of output; `None` when there is nothing new in it.
    pub(crate) fn output(&mut self, output: Output) -> Option<News> {
        let Output { task, index, attempt, stream, offset, bytes, gap } = output;
        let source = Source { task, index, attempt, stream };
        match gap {
            None => self.take(source, offset, bytes),
            Some(gap) => {
                let had = self.had.entry(source.clone()).or_default();
                let end = offset.saturating_add(gap);
                let missing = end.saturating_sub(*had);
                *had = (*had).max(end);
                (missing > 0).then(|| News { source, missing, bytes: Blob::default() })
            }
        }
    }

    /// Takes in the end of an attempt: what it holds inline and was not read yet.
    pub(crate) fn ended(
        &mut self,
        task: &TaskName,
        index: Index,
        attempt: Attempt,
        ending: &Ending,
    ) -> Vec<News> {
        let inline =
            [(StreamName::stdout(), &ending.stdout), (StreamName::stderr(), &ending.stderr)];
        let mut news = Vec::new();
        for (stream, bytes) in inline {
            let source = Source { task: task.clone(), index, attempt, stream };
            news.extend(self.take(source, 0, bytes.clone()));
        }
        news
    }

    fn take(&mut self, source: Source, offset: u64, bytes: Blob) -> Option<News> {
        let had = self.had.get(&source).copied().unwrap_or(0);
        let end = offset.saturating_add(bytes.len() as u64);
        if end <= had {
            return None;
        }
        let known = usize::try_from(had.saturating_sub(offset)).unwrap_or(usize::MAX);
        let bytes = Blob(bytes.0.slice(known.min(bytes.len())..));
        let missing = offset.saturating_sub(had);
        self.had.insert(source.clone(), end);
        Some(News { source, missing, bytes })
    }

    /// How far a stream has been read.
    pub(crate) fn had(&self, source: &Source) -> u64 {
        self.had.get(source).copied().unwrap_or(0)
    }

    /// Forgets an index that has ended and been read.
    pub(crate) fn forget(&mut self, task: &TaskName, index: Index) {
        self.had.retain(|source, _| source.index != index || source.task != *task);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use schemas::outcome::IndexState;

    fn output(offset: u64, bytes: &str) -> Output {
        Output {
            task: TaskName::main(),
            index: 0,
            attempt: 1,
            stream: StreamName::stdout(),
            offset,
            bytes: Blob::from(bytes.to_owned()),
            gap: None,
        }
    }

    fn text(news: Option<News>) -> String {
        news.map_or(String::new(), |news| news.bytes.to_text().into_owned())
    }

    #[test]
    fn what_is_said_twice_is_shown_once() {
        let mut streams = Streams::default();
        assert_eq!(text(streams.output(output(0, "hello "))), "hello ");
        assert_eq!(streams.output(output(0, "hello ")), None);
        assert_eq!(text(streams.output(output(3, "lo world"))), "world");
    }

    #[test]
    fn what_only_the_end_holds_is_shown_with_the_end_and_the_rest_after_it() {
        let mut streams = Streams::default();
        let ending = Ending {
            stdout: Blob::from("one two ".to_owned()),
            stderr: Blob::from("oh".to_owned()),
            ..Ending::new(IndexState::Finished)
        };
        assert_eq!(text(streams.output(output(0, "one "))), "one ");
        let news = streams.ended(&TaskName::main(), 0, 1, &ending);
        let shown: Vec<_> =
            news.iter().map(|n| (n.source.stream.as_str(), n.bytes.to_text())).collect();
        assert_eq!(shown, [("stdout", "two ".into()), ("stderr", "oh".into())]);
        assert_eq!(text(streams.output(output(4, "two three"))), "three");
    }

    #[test]
    fn a_gap_is_counted_once_and_what_follows_it_is_shown() {
        let mut streams = Streams::default();
        let gap = Output { gap: Some(10), ..output(2, "") };
        assert_eq!(text(streams.output(output(0, "ab"))), "ab");
        assert_eq!(streams.output(gap.clone()).unwrap().missing, 10);
        assert_eq!(streams.output(gap), None);
        let tail = streams.output(output(12, "z")).unwrap();
        assert_eq!((tail.missing, tail.bytes.to_text().as_ref()), (0, "z"));
    }

    #[test]
    fn another_attempt_begins_anew() {
        let mut streams = Streams::default();
        assert_eq!(text(streams.output(output(0, "first"))), "first");
        let second = Output { attempt: 2, ..output(0, "again") };
        assert_eq!(text(streams.output(second)), "again");
        streams.forget(&TaskName::main(), 0);
        assert_eq!(text(streams.output(output(0, "first"))), "first");
    }
}
