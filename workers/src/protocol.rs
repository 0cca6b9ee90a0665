//! What a worker and its keeper say to each other over the Unix socket of the node's folder: small,
//! versioned, so that an older or newer worker takes up a keeper's jobs.
//!
//! A message is its length (four bytes, big-endian) and MessagePack with named fields. The worker begins
//! with [`ToKeeper::Hello`]; the keeper answers [`FromKeeper::Welcome`] or [`FromKeeper::Refused`], and then
//! says again every report and every frame that was not acknowledged. A field may be added; whatever else
//! changes raises [`PROTOCOL`].

use schemas::{
    amount::Room,
    blob::Blob,
    codec::Encoding,
    error::Refusal,
    id::{InstanceId, WorkId},
    job::{HeldAnswer, JobsAnswer, Pair, ReadAnswer, ReportEntry, StopAnswer},
    node::{Card, Digest},
    time::{Seconds, Stamp},
    token::{NodeName, OwnerName, StreamName},
};
use serde::{Deserialize, Serialize, de::DeserializeOwned};
use std::{
    collections::BTreeMap,
    io::{self, Read, Write},
};

/// The version of all this.
pub const PROTOCOL: u32 = 1;

/// Longest message; a request of the bus has at most 1 MiB, a batch of reports stays below 2.
pub const MAX_MESSAGE: usize = 8 * 1024 * 1024;

/// What a worker says.
#[derive(Debug, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum ToKeeper {
    /// First words.
    Hello(Box<Hello>),
    /// A request of the bus, as it came; answered with [`FromKeeper::Answer`].
    Ask {
        /// Chosen by the worker, said again in the answer.
        id: u64,
        /// Which request.
        verb: Verb,
        /// Whether the payload is MessagePack (else JSON).
        msgpack: bool,
        /// The request.
        payload: Blob,
    },
    /// These reports were answered, with this pair; none of them is kept any longer.
    AckReports {
        /// Numbers of [`Numbered`].
        ids: Vec<u64>,
        /// From the answer.
        pair: Pair,
    },
    /// The predecessors' failures were said and answered.
    AckFailed {
        /// Which.
        instances: Vec<InstanceId>,
        /// From the answer.
        pair: Pair,
    },
    /// These frames are stored on the bus.
    AckFrames {
        /// Numbers of [`FromKeeper::Frames`].
        ids: Vec<u64>,
    },
    /// Take no more jobs, and end when none is left.
    Leave {
        /// End the jobs at once and report them lost.
        now: bool,
    },
    /// End now, with whatever is unanswered left on the disk for the next keeper. Only heard after `Leave`,
    /// and when no job runs.
    Exit,
}

/// The first words of a worker.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Hello {
    /// [`PROTOCOL`].
    pub protocol: u32,
    /// The worker's process, for messages.
    pub pid: u32,
    /// Its program's version, for messages.
    pub version: String,
    /// The node's name.
    pub node: NodeName,
    /// What the node lends.
    pub lend: Room,
    /// The cards it lends.
    #[serde(default)]
    pub cards: Vec<Card>,
    /// The environment of whoever started the worker: jobs get a few of it, and what their task names.
    #[serde(default)]
    pub env: BTreeMap<String, String>,
    /// How long after TERM a job is killed.
    pub grace: Seconds,
    /// After how long without a worker a job is ended, where its work says nothing; longer for jobs that
    /// have run ten times as long, up to an hour.
    pub lost_after: Seconds,
    /// How long `wait` waits for a reader.
    pub reader_after: Seconds,
}

/// Requests that a keeper answers.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Verb {
    /// Start these.
    Jobs,
    /// End these.
    Stop,
    /// What do you hold?
    Held,
    /// How far a reader has come.
    Read,
}

impl Verb {
    /// All of them.
    pub const ALL: [Verb; 4] = [Verb::Jobs, Verb::Stop, Verb::Held, Verb::Read];

    /// The last token of its subject.
    pub fn as_str(self) -> &'static str {
        match self {
            Verb::Jobs => "jobs",
            Verb::Stop => "stop",
            Verb::Held => "held",
            Verb::Read => "read",
        }
    }
}

/// What a keeper says.
#[derive(Debug, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum FromKeeper {
    /// The worker is attached.
    Welcome {
        /// [`PROTOCOL`].
        protocol: u32,
        /// This life of the keeper.
        instance: InstanceId,
        /// Its process.
        pid: u32,
        /// Since when.
        since: Stamp,
        /// Its program's version.
        version: String,
        /// How it stands.
        state: State,
    },
    /// The worker is not attached, and the connection is closed.
    Refused {
        /// Why, in one sentence.
        why: String,
    },
    /// The answer to [`ToKeeper::Ask`].
    Answer {
        /// As asked.
        id: u64,
        /// What.
        answer: Answer,
    },
    /// What became of jobs, to be reported and acknowledged.
    Reports(Vec<Numbered>),
    /// An earlier instance of this node is gone with everything it ran; to be reported and acknowledged.
    /// Said when none of its reports is left.
    Failed {
        /// Which.
        instances: Vec<InstanceId>,
    },
    /// Output, to be stored on the bus and acknowledged; or to be shown only.
    Frames {
        /// Counts up.
        id: u64,
        /// Beyond the stored half: to be shown, not acknowledged.
        live: bool,
        /// Whose work.
        owner: OwnerName,
        /// Which work.
        work: WorkId,
        /// Which stream.
        stream: StreamName,
        /// [`schemas::output::Frames`] in MessagePack.
        payload: Blob,
    },
    /// How it stands, when that has changed.
    State(State),
    /// It ends in order: no job is left, nothing is unanswered (but after [`ToKeeper::Exit`]).
    Left,
}

/// A report with its number.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Numbered {
    /// Counts up over all lives of the folder.
    pub id: u64,
    /// What became of which jobs; `ago_s` is as of this message.
    pub entry: ReportEntry,
}

/// How a keeper stands.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct State {
    /// What its jobs take.
    pub used: Room,
    /// What it holds.
    pub digest: Digest,
    /// The highest pair it has seen.
    pub highest: Pair,
    /// When the first job would be ended if the worker went away now, as a duration from now; absent
    /// without jobs.
    #[serde(default)]
    pub first_lost_after: Option<Seconds>,
    /// And the last one.
    #[serde(default)]
    pub last_lost_after: Option<Seconds>,
    /// It takes no more jobs.
    #[serde(default)]
    pub leaving: bool,
}

/// An answer of the keeper.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Answer {
    /// To `jobs`.
    Jobs(JobsAnswer),
    /// To `stop`.
    Stop(StopAnswer),
    /// To `held`.
    Held(HeldAnswer),
    /// To `read`.
    Read(ReadAnswer),
    /// To any.
    Refused(Refusal),
}

/// The other side broke the rules.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// A length beyond the bound.
    #[error("a message of {0} bytes is longer than {MAX_MESSAGE}")]
    TooLong(usize),
    /// Bytes that are no such message.
    #[error("a message could not be read")]
    Malformed(#[source] rmp_serde::decode::Error),
    /// The connection.
    #[error("the connection between worker and keeper")]
    Io(#[from] io::Error),
}

/// The encoding that a request was said in.
pub(crate) fn encoding(msgpack: bool) -> Encoding {
    if msgpack { Encoding::MsgPack } else { Encoding::Json }
}

/// Appends a message with its length.
pub fn put<T: Serialize>(out: &mut Vec<u8>, message: &T) {
    let start = out.len();
    out.extend_from_slice(&[0; 4]);
    rmp_serde::encode::write_named(out, message).expect("messages hold nothing MessagePack lacks");
    let len = u32::try_from(out.len() - start - 4).expect("a message is far below 4 GiB");
    out[start..start + 4].copy_from_slice(&len.to_be_bytes());
}

/// Puts bytes as they come together into messages.
#[derive(Debug, Default)]
pub struct Incoming {
    bytes: Vec<u8>,
    start: usize,
}

impl Incoming {
    /// Takes in what was read.
    pub fn push(&mut self, bytes: &[u8]) {
        if self.start > 0 && self.start >= self.bytes.len() / 2 {
            self.bytes.drain(..self.start);
            self.start = 0;
        }
        self.bytes.extend_from_slice(bytes);
    }

    /// The next whole message.
    pub fn pull<T: DeserializeOwned>(&mut self) -> Result<Option<T>, Error> {
        let rest = &self.bytes[self.start..];
        let Some((head, body)) = rest.split_first_chunk::<4>() else { return Ok(None) };
        let len = u32::from_be_bytes(*head) as usize;
        if len > MAX_MESSAGE {
            return Err(Error::TooLong(len));
        }
        let Some(body) = body.get(..len) else { return Ok(None) };
        let message = rmp_serde::from_slice(body).map_err(Error::Malformed)?;
        self.start += 4 + len;
        if self.start == self.bytes.len() {
            self.bytes.clear();
            self.start = 0;
            // One large message is no reason to keep its room for ever.
            self.bytes.shrink_to(256 * 1024);
        }
        Ok(Some(message))
    }
}

/// Writes one message to a stream that blocks.
pub fn send<T: Serialize>(stream: &mut impl Write, message: &T) -> Result<(), Error> {
    let mut bytes = Vec::new();
    put(&mut bytes, message);
    Ok(stream.write_all(&bytes)?)
}

/// Reads one message from a stream that blocks; `None` at its end.
pub fn receive<T: DeserializeOwned>(
    stream: &mut impl Read,
    incoming: &mut Incoming,
) -> Result<Option<T>, Error> {
    let mut buffer = vec![0; 64 * 1024];
    loop {
        if let Some(message) = incoming.pull()? {
            return Ok(Some(message));
        }
        match stream.read(&mut buffer)? {
            0 => return Ok(None),
            n => incoming.push(&buffer[..n]),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn messages_come_out_as_they_went_in_however_they_are_cut() {
        let messages = [
            ToKeeper::Leave { now: true },
            ToKeeper::AckFrames { ids: vec![1, 2, 70_000] },
            ToKeeper::Ask {
                id: 9,
                verb: Verb::Jobs,
                msgpack: true,
                payload: vec![0xff; 999].into(),
            },
        ];
        let mut bytes = Vec::new();
        for message in &messages {
            put(&mut bytes, message);
        }
        for step in [1, 3, 7, 1000, 5000] {
            let (mut incoming, mut seen) = (Incoming::default(), Vec::new());
            for chunk in bytes.chunks(step) {
                incoming.push(chunk);
                while let Some(message) = incoming.pull::<ToKeeper>().unwrap() {
                    seen.push(format!("{message:?}"));
                }
            }
            assert_eq!(seen, messages.iter().map(|m| format!("{m:?}")).collect::<Vec<_>>());
        }
    }

    #[test]
    fn a_length_beyond_the_bound_and_garbage_are_errors() {
        let mut incoming = Incoming::default();
        incoming.push(b"GET / HTTP/1.1\r\n");
        assert!(matches!(incoming.pull::<ToKeeper>(), Err(Error::TooLong(_))));
        let mut incoming = Incoming::default();
        incoming.push(&[0, 0, 0, 1, 0xc1]);
        assert!(matches!(incoming.pull::<ToKeeper>(), Err(Error::Malformed(_))));
    }
}
