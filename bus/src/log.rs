//! Streams that keep what is said: the journal of a pool, the output of jobs.

use crate::{
    connect::{Bus, Connection},
    error::{Error, StoreError},
};
use async_nats::{
    HeaderMap, StatusCode,
    jetstream::{
        self, ErrorCode,
        consumer::{DeliverPolicy, push},
        context::{GetStreamErrorKind, PublishAckFuture, PublishError, PublishErrorKind},
        message::PublishMessage,
    },
};
use bytes::Bytes;
use futures::{FutureExt, StreamExt, future::BoxFuture};
use schemas::{id::Seq, time::Stamp};
use std::time::Duration;
use tokio::sync::watch;

/// How long the bus may take to make a consumer for a [`Tail`].
const OPENING: Duration = Duration::from_secs(2);
/// Before a tail that could not be opened is opened again.
const PAUSE: Duration = Duration::from_millis(20);
const LONGEST_PAUSE: Duration = Duration::from_secs(1);

/// What must hold for a write to be stored.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Expect {
    /// Nothing.
    Any,
    /// The last message on the same subject has this sequence; 0: there is none.
    Last(Seq),
    /// The last message on another subject has this sequence.
    Fence {
        /// Which subject.
        subject: String,
        /// Which sequence.
        seq: Seq,
    },
}

/// One stored message.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Stored {
    /// Its place.
    pub seq: Seq,
    /// When the bus stored it.
    pub at: Stamp,
    /// Where it was said.
    pub subject: String,
    /// Its bytes.
    pub payload: Bytes,
    /// It is not a message but the mark that a key was removed or has expired.
    pub removed: bool,
    /// How many more are stored behind it already (only from a [`Tail`]).
    pub pending: u64,
}

/// How a stream stands.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct State {
    /// The first message that is kept.
    pub first: Seq,
    /// The last message that was stored.
    pub last: Seq,
    /// How many are kept.
    pub messages: u64,
    /// How many bytes they have.
    pub bytes: u64,
    /// How many bytes it may have; 0: no limit of its own.
    pub max_bytes: u64,
}

/// A stream that keeps what is said on its subjects. Cheap to clone.
#[derive(Clone, Debug)]
pub struct Log {
    bus: Bus,
    name: String,
}

impl Bus {
    /// A stream of the house, by its name. Nothing is asked yet.
    pub fn log(&self, name: impl Into<String>) -> Log {
        Log { bus: self.clone(), name: name.into() }
    }
}

/// A write that is on its way.
#[derive(Debug)]
pub struct Sent(Result<PublishAckFuture, StoreError>);

impl Sent {
    /// Waits for the bus to say that it is stored, and where.
    pub async fn stored(self) -> Result<Seq, StoreError> {
        match self.0?.await {
            Ok(ack) => Ok(ack.sequence),
            Err(error) => Err(store_error(&error)),
        }
    }
}

impl Log {
    /// Its name.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// Sends a write. Writes of one connection are stored in the order of these calls; what became
    /// of one is told by [`Sent::stored`].
    pub async fn send(&self, subject: &str, body: Bytes, expect: &Expect) -> Sent {
        self.send_with(subject, body, expect, HeaderMap::new()).await
    }

    pub(crate) async fn send_with(
        &self,
        subject: &str,
        body: Bytes,
        expect: &Expect,
        mut headers: HeaderMap,
    ) -> Sent {
        if !self.bus.is_up() {
            return Sent(Err(StoreError::Unanswered("not connected".into())));
        }
        match expect {
            Expect::Any => {}
            Expect::Last(seq) => {
                headers.insert("Nats-Expected-Last-Subject-Sequence", seq.to_string().as_str());
            }
            Expect::Fence { subject, seq } => {
                headers.insert("Nats-Expected-Last-Subject-Sequence", seq.to_string().as_str());
                headers.insert("Nats-Expected-Last-Subject-Sequence-Subject", subject.as_str());
            }
        }
        let mut message = PublishMessage::build().payload(body);
        if !headers.is_empty() {
            message = message.headers(headers);
        }
        let sent = self.bus.jetstream().send_publish(subject.to_owned(), message).await;
        Sent(sent.map_err(|error| store_error(&error)))
    }

    /// Sends a write and waits until it is stored.
    pub async fn append(
        &self,
        subject: &str,
        body: Bytes,
        expect: &Expect,
    ) -> Result<Seq, StoreError> {
        self.send(subject, body, expect).await.stored().await
    }

    /// How it stands.
    pub async fn state(&self) -> Result<State, Error> {
        let mut stream = self.stream().await?;
        let info = stream.info().await.map_err(|error| self.failed("asking", error))?;
        Ok(State {
            first: info.state.first_sequence,
            last: info.state.last_sequence,
            messages: info.state.messages,
            bytes: info.state.bytes,
            max_bytes: u64::try_from(info.config.max_bytes).unwrap_or(0),
        })
    }

    /// The message at a place; `None` when it is gone or was never there.
    pub async fn get(&self, seq: Seq) -> Result<Option<Stored>, Error> {
        self.direct(serde_json::json!({ "seq": seq })).await.map(|mut found| found.pop())
    }

    /// The last message on a subject.
    pub async fn last(&self, subject: &str) -> Result<Option<Stored>, Error> {
        self.direct(serde_json::json!({ "last_by_subj": subject }))
            .await
            .map(|mut found| found.pop())
    }

    /// Messages on subjects that fit `filter`, from a place on: at most `most`, at most about
    /// `max_bytes`. Without a consumer.
    pub async fn history(
        &self,
        filter: &str,
        from: Seq,
        most: u32,
        max_bytes: u32,
    ) -> Result<Vec<Stored>, Error> {
        self.direct(serde_json::json!({
            "seq": from.max(1),
            "next_by_subj": filter,
            "batch": most,
            "max_bytes": max_bytes,
        }))
        .await
    }

    /// How many messages there are on each subject that fits `filter`.
    pub async fn subjects(&self, filter: &str) -> Result<Vec<(String, u64)>, Error> {
        let stream = self.stream().await?;
        let found = stream.info_with_subjects(filter).await;
        let mut found = found.map_err(|error| self.failed("asking", error))?;
        let mut subjects = Vec::new();
        while let Some(next) = found.next().await {
            let (subject, count) = next.map_err(|error| self.failed("asking", error))?;
            subjects.push((subject, count as u64));
        }
        Ok(subjects)
    }

    /// Removes the messages on a subject, those before `before` only if given.
    pub async fn purge(&self, filter: &str, before: Option<Seq>) -> Result<(), Error> {
        let stream = self.stream().await?;
        let purge = stream.purge().filter(filter);
        let purged = match before {
            None => purge.await,
            Some(seq) => purge.sequence(seq).await,
        };
        purged.map(|_| ()).map_err(|error| self.failed("purging", error))
    }

    /// Everything on subjects that fit `filter`, from a place on, as it comes. It goes on by itself
    /// after a lost connection.
    pub async fn tail(&self, filter: &str, from: Seq) -> Result<Tail, Error> {
        let mut connection = self.bus.connection();
        let made = connection.borrow_and_update().made;
        let (messages, behind) = self.consume(filter, from).await?;
        Ok(Tail {
            log: self.clone(),
            filter: filter.to_owned(),
            next: from,
            behind,
            connection,
            source: Source::Open { messages: Box::new(messages), made },
        })
    }

    /// A push ordered consumer (a pull one stays blind for longer), and how much is stored for it.
    async fn consume(&self, filter: &str, from: Seq) -> Result<(push::Ordered, u64), Error> {
        let stream = self.stream().await?;
        let consumer = stream
            .create_consumer(push::OrderedConfig {
                deliver_subject: self.bus.client().new_inbox(),
                filter_subject: filter.to_owned(),
                deliver_policy: DeliverPolicy::ByStartSequence { start_sequence: from.max(1) },
                ..Default::default()
            })
            .await
            .map_err(|error| self.failed("tailing", error))?;
        let behind = consumer.cached_info().num_pending;
        let messages = consumer.messages().await.map_err(|error| self.failed("tailing", error))?;
        Ok((messages, behind))
    }

    async fn stream(&self) -> Result<jetstream::stream::Stream, Error> {
        if !self.bus.is_up() {
            return Err(self.bus.down());
        }
        self.bus.jetstream().get_stream(&self.name).await.map_err(|error| match error.kind() {
            GetStreamErrorKind::JetStream(why)
                if why.error_code() == ErrorCode::STREAM_NOT_FOUND =>
            {
                Error::NoStream { stream: self.name.clone() }
            }
            _ => self.failed("looking up", error),
        })
    }

    fn failed(&self, doing: &str, error: impl std::fmt::Display) -> Error {
        Error::other(format!("{doing} the stream `{}`", self.name), error)
    }

    /// The server answers a batch as single messages and an empty one with status 204.
    async fn direct(&self, request: serde_json::Value) -> Result<Vec<Stored>, Error> {
        let many = request.get("batch").is_some();
        let subject = format!("$JS.API.DIRECT.GET.{}", self.name);
        if !self.bus.is_up() {
            return Err(self.bus.down());
        }
        let client = self.bus.client();
        let inbox = client.new_inbox();
        let mut answers =
            client.subscribe(inbox.clone()).await.map_err(|error| self.failed("reading", error))?;
        client
            .publish_with_reply(subject.clone(), inbox, request.to_string().into())
            .await
            .map_err(|error| self.failed("reading", error))?;
        let mut found = Vec::new();
        loop {
            let next = tokio::time::timeout(Duration::from_secs(5), answers.next()).await;
            let Ok(Some(message)) = next else {
                return Err(Error::Silence { subject, within_s: 5.0 });
            };
            match message.status {
                None => {}
                Some(StatusCode::NOT_FOUND) | Some(StatusCode::OK) => return Ok(found),
                Some(status) if status.as_u16() == 204 => return Ok(found),
                Some(StatusCode::NO_RESPONDERS) => return Err(Error::Nobody { subject }),
                Some(status) => {
                    let why = message.description.as_deref().unwrap_or_default().to_owned();
                    return Err(self.failed("reading", format_args!("{status} {why}")));
                }
            }
            found.push(direct_answer(message).ok_or_else(|| {
                self.failed("reading", "an answer without sequence, subject or time")
            })?);
            if !many {
                return Ok(found);
            }
        }
    }
}

fn direct_answer(message: async_nats::Message) -> Option<Stored> {
    let headers = message.headers.as_ref()?;
    let get = |name: &str| headers.get(name).map(|value| value.as_str().to_owned());
    let time: jiff::Timestamp = get("Nats-Time-Stamp")?.parse().ok()?;
    Some(Stored {
        seq: get("Nats-Sequence")?.parse().ok()?,
        at: Stamp(u64::try_from(time.as_millisecond()).unwrap_or(0)),
        subject: get("Nats-Subject")?,
        removed: is_mark(headers),
        payload: message.payload,
        pending: 0,
    })
}

/// Whether the message only says that a key is gone.
fn is_mark(headers: &HeaderMap) -> bool {
    headers.get("Nats-Marker-Reason").is_some() || headers.get("KV-Operation").is_some()
}

fn store_error(error: &PublishError) -> StoreError {
    match error.kind() {
        PublishErrorKind::WrongLastSequence | PublishErrorKind::WrongLastMessageId => {
            StoreError::Conflict
        }
        PublishErrorKind::StreamNotFound => StoreError::NoStream,
        PublishErrorKind::MaxPayloadExceeded => StoreError::TooLarge,
        PublishErrorKind::TimedOut
        | PublishErrorKind::BrokenPipe
        | PublishErrorKind::MaxAckPending => StoreError::Unanswered(error.to_string()),
        PublishErrorKind::Other => {
            let source = std::error::Error::source(error)
                .and_then(|source| source.downcast_ref::<jetstream::Error>());
            let Some(source) = source else { return StoreError::Unanswered(error.to_string()) };
            let text = source.to_string();
            match source.error_code() {
                ErrorCode::INSUFFICIENT_RESOURCES
                | ErrorCode::STORAGE_RESOURCES_EXCEEDED
                | ErrorCode::STREAM_STORE_FAILED => StoreError::Full(text),
                ErrorCode::STREAM_MESSAGE_EXCEEDS_MAXIMUM => StoreError::TooLarge,
                _ if text.contains("no space left") => StoreError::Full(text),
                _ => StoreError::Unanswered(text),
            }
        }
    }
}

/// What a stream holds and what comes, in order and each once.
///
/// The library would make a consumer that died with its bus again by itself, but it waits for the
/// answers to requests that were lost with the connection, so that it stays blind for ten seconds,
/// and it may not be polled behind its end. So a consumer is used for one connection only: when
/// that ends, or anything else is wrong with it, another begins behind what was seen.
pub struct Tail {
    log: Log,
    filter: String,
    next: Seq,
    behind: u64,
    connection: watch::Receiver<Connection>,
    source: Source,
}

enum Source {
    /// The consumer, and in which connection it was made.
    Open { messages: Box<push::Ordered>, made: u64 },
    /// Another is being made. Kept here, so that who stops waiting for a batch does not undo it.
    Opening(BoxFuture<'static, Option<(push::Ordered, u64)>>),
    /// The connection is closed for good, or the stream is gone.
    Ended,
}

impl std::fmt::Debug for Tail {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Tail({})", self.log.name)
    }
}

impl Tail {
    /// How many messages were stored already when it began.
    pub fn behind(&self) -> u64 {
        self.behind
    }

    /// Waits for a message, then takes what is there, at most `most`; empty, and from then on
    /// always, when the connection is closed for good or the stream is gone. Nothing is lost when
    /// the caller stops waiting.
    pub async fn next_batch(&mut self, most: usize) -> Vec<Stored> {
        loop {
            match &mut self.source {
                Source::Ended => return Vec::new(),
                Source::Opening(opening) => {
                    self.source = match opening.await {
                        Some((messages, made)) => Source::Open { messages: messages.into(), made },
                        None => Source::Ended,
                    };
                }
                Source::Open { messages, made } => {
                    let made = *made;
                    let first = tokio::select! {
                        // What has arrived counts, also over a connection that is gone.
                        biased;
                        next = messages.next() => next,
                        _ = self.connection.wait_for(|now| !now.up || now.made != made) => None,
                    };
                    let batch = self.batch(first, most);
                    if !batch.is_empty() {
                        return batch;
                    }
                }
            }
        }
    }

    /// What is there beginning with `first`; where it stumbles, another consumer is made.
    fn batch(
        &mut self,
        first: Option<Result<jetstream::Message, push::OrderedError>>,
        most: usize,
    ) -> Vec<Stored> {
        let mut batch = Vec::new();
        let mut next = Some(first);
        let Source::Open { messages, .. } = &mut self.source else { return batch };
        while let Some(now) = next {
            match now {
                Some(Ok(message)) => {
                    // The library repeats nothing within a consumer, but it may begin one anew.
                    if let Some(stored) = tailed(&message).filter(|stored| stored.seq >= self.next)
                    {
                        self.next = stored.seq + 1;
                        batch.push(stored);
                    }
                    if batch.len() >= most {
                        return batch;
                    }
                }
                Some(Err(error)) => {
                    tracing::warn!(stream = self.log.name, %error, "the tail stumbled");
                    self.open();
                    return batch;
                }
                None => {
                    self.open();
                    return batch;
                }
            }
            next = messages.next().now_or_never();
        }
        batch
    }

    fn open(&mut self) {
        let (log, filter, next) = (self.log.clone(), self.filter.clone(), self.next);
        self.source = Source::Opening(open(log, filter, next).boxed());
    }
}

/// Makes a consumer as soon as there is a connection, and says in which; `None` when there will
/// never be one, or no stream.
async fn open(log: Log, filter: String, next: Seq) -> Option<(push::Ordered, u64)> {
    let mut connection = log.bus.connection();
    let mut pause = PAUSE;
    loop {
        let made = connection.wait_for(|now| now.up).await.ok()?.made;
        let opened = tokio::select! {
            opened = tokio::time::timeout(OPENING, log.consume(&filter, next)) => opened,
            // What was asked over the lost connection is never answered.
            _ = connection.wait_for(|now| !now.up || now.made != made) => continue,
        };
        match opened {
            Ok(Ok((messages, _))) => return Some((messages, made)),
            Ok(Err(error @ Error::NoStream { .. })) => {
                tracing::error!(stream = log.name, %error, "the tail ends");
                return None;
            }
            Ok(Err(error)) => {
                tracing::debug!(stream = log.name, %error, "the tail cannot go on yet");
            }
            Err(_) => tracing::debug!(stream = log.name, "the tail is not answered yet"),
        }
        tokio::time::sleep(pause).await;
        pause = (pause * 2).min(LONGEST_PAUSE);
    }
}

fn tailed(message: &jetstream::Message) -> Option<Stored> {
    let info = message.info().ok()?;
    let at = info.published.unix_timestamp_nanos() / 1_000_000;
    Some(Stored {
        seq: info.stream_sequence,
        at: Stamp(u64::try_from(at).unwrap_or(0)),
        subject: message.subject.to_string(),
        payload: message.payload.clone(),
        removed: message.headers.as_ref().is_some_and(is_mark),
        pending: info.pending,
    })
}
