//! One process's connection to the bus.

use crate::{
    error::Error,
    message::{Hearing, Message, headers_for},
};
use async_nats::{
    Client, ConnectErrorKind, ConnectOptions, Event, RequestErrorKind, ServerError,
    client::PublishErrorKind, connection::State, jetstream,
};
use bytes::Bytes;
use schemas::{
    codec::{self, Encoding},
    token::CallerName,
};
use serde::{Serialize, de::DeserializeOwned};
use std::{path::PathBuf, sync::Arc, time::Duration};
use tokio::sync::{OnceCell, watch};

/// How long the bus may take to say that it stored something.
const ACK_TIMEOUT: Duration = Duration::from_secs(5);
/// How long a first connection may take.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(5);
/// Messages that wait in this process for one subscription.
const SUBSCRIPTION_CAPACITY: usize = 64 * 1024;
/// Writes whose answer is outstanding.
const MAX_IN_FLIGHT: usize = 4096;

/// How to connect.
#[derive(Clone, Debug)]
pub struct Settings {
    /// The bus's address, such as `nats://127.0.0.1:4222`.
    pub url: String,
    /// The file with the identity.
    pub creds: Option<PathBuf>,
    /// What the connection is called in the bus's own lists.
    pub name: String,
    /// As whom it speaks.
    pub caller: CallerName,
    /// Where answers arrive, when not below `_INBOX`.
    pub inbox_prefix: Option<String>,
}

/// Whether there is a connection now.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Connection {
    /// Whether it stands.
    pub up: bool,
    /// Counts how often it was made: another number means that messages may have been missed.
    pub made: u64,
}

/// One process's connection to the bus, acting as one caller. Cheap to clone.
#[derive(Clone)]
pub struct Bus(Arc<Inner>);

struct Inner {
    client: Client,
    jetstream: jetstream::Context,
    settings: Settings,
    connection: watch::Receiver<Connection>,
    bulk: OnceCell<Bus>,
}

impl std::fmt::Debug for Bus {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Bus({} as {})", self.0.settings.url, self.0.settings.caller)
    }
}

impl Bus {
    /// Connects, or says why not. A connection that was made once is made again for ever.
    pub async fn connect(settings: Settings) -> Result<Self, Error> {
        let (changed, connection) = watch::channel(Connection { up: false, made: 0 });
        let url = settings.url.clone();
        let mut options = ConnectOptions::new()
            .name(&settings.name)
            .connection_timeout(CONNECT_TIMEOUT)
            .ping_interval(Duration::from_secs(10))
            .subscription_capacity(SUBSCRIPTION_CAPACITY)
            .request_timeout(None)
            .ignore_discovered_servers()
            .reconnect_delay_callback(|attempt| {
                Duration::from_millis((50 * (1 << attempt.min(6))).min(2000))
            })
            .event_callback(move |event| {
                notice(&url, &changed, &event);
                async {}
            });
        if let Some(prefix) = &settings.inbox_prefix {
            options = options.custom_inbox_prefix(prefix);
        }
        if let Some(path) = &settings.creds {
            options = options.credentials_file(path).await.map_err(|error| Error::File {
                what: format!("the credentials in {}", path.display()),
                why: error.to_string(),
            })?;
        }
        let client = options
            .connect(&settings.url)
            .await
            .map_err(|error| refused_connection(&settings.url, &error))?;
        // The event comes a moment later; until then everybody would take it for a new connection.
        let mut made = connection.clone();
        let _ = tokio::time::timeout(CONNECT_TIMEOUT, made.wait_for(|now| now.up)).await;
        let jetstream = jetstream::context::ContextBuilder::new()
            .ack_timeout(ACK_TIMEOUT)
            .timeout(ACK_TIMEOUT)
            .max_ack_inflight(MAX_IN_FLIGHT)
            .build(client.clone());
        Ok(Self(Arc::new(Inner { client, jetstream, settings, connection, bulk: OnceCell::new() })))
    }

    /// A second connection for what is large (output, later chunks and tunnels), so that control
    /// never stands behind it; made at its first use.
    pub async fn bulk(&self) -> Result<Bus, Error> {
        let make = || async {
            let mut settings = self.0.settings.clone();
            settings.name.push_str(" (bulk)");
            Box::pin(Bus::connect(settings)).await
        };
        self.0.bulk.get_or_try_init(make).await.cloned()
    }

    /// As whom this connection speaks.
    pub fn caller(&self) -> &CallerName {
        &self.0.settings.caller
    }

    /// The bus's address.
    pub fn url(&self) -> &str {
        &self.0.settings.url
    }

    /// The bus's own name and version.
    pub fn server_version(&self) -> String {
        self.0.client.server_info().version
    }

    /// How long a message to the bus and back takes now.
    pub async fn round_trip(&self) -> Result<Duration, Error> {
        let before = tokio::time::Instant::now();
        self.flush().await?;
        Ok(before.elapsed())
    }

    /// Whether there is a connection, and word of each change.
    pub fn connection(&self) -> watch::Receiver<Connection> {
        self.0.connection.clone()
    }

    /// Whether there is a connection now.
    pub fn is_up(&self) -> bool {
        self.0.client.connection_state() == State::Connected
    }

    pub(crate) fn client(&self) -> &Client {
        &self.0.client
    }

    pub(crate) fn jetstream(&self) -> &jetstream::Context {
        &self.0.jetstream
    }

    pub(crate) fn down(&self) -> Error {
        Error::Down { url: self.0.settings.url.clone() }
    }

    /// Asks, and reads the answer; MessagePack both ways.
    pub async fn ask<A: DeserializeOwned>(
        &self,
        subject: &str,
        request: &impl Serialize,
        within: Duration,
    ) -> Result<A, Error> {
        let payload = codec::encode(Encoding::MsgPack, request).into();
        self.ask_raw(subject, Encoding::MsgPack, payload, within).await?.into_answer(subject)
    }

    /// Asks with bytes, and returns the answer as it came.
    pub async fn ask_raw(
        &self,
        subject: &str,
        encoding: Encoding,
        payload: Bytes,
        within: Duration,
    ) -> Result<Message, Error> {
        if !self.is_up() {
            return Err(self.down());
        }
        let mut request = async_nats::Request::new().payload(payload).timeout(None);
        if let Some(headers) = headers_for(encoding) {
            request = request.headers(headers);
        }
        let silence =
            || Error::Silence { subject: subject.to_owned(), within_s: within.as_secs_f64() };
        // The library's own timeout does not cover a full send queue.
        let asked = self.0.client.send_request(subject.to_owned(), request);
        match tokio::time::timeout(within, asked).await {
            Err(_) => Err(silence()),
            Ok(Ok(message)) => Ok(Message::from_client(message)),
            Ok(Err(error)) => Err(match error.kind() {
                RequestErrorKind::NoResponders => Error::Nobody { subject: subject.to_owned() },
                RequestErrorKind::TimedOut => silence(),
                RequestErrorKind::MaxPayloadExceeded => {
                    Error::TooLarge { bytes: 0, limit: self.0.client.max_payload() }
                }
                RequestErrorKind::InvalidSubject => {
                    Error::other(format!("asking on `{subject}`"), "no valid subject")
                }
                RequestErrorKind::Other => self.down(),
            }),
        }
    }

    /// Asks, and returns all answers as they come.
    pub async fn ask_many(
        &self,
        subject: &str,
        encoding: Encoding,
        payload: Bytes,
    ) -> Result<Hearing, Error> {
        if !self.is_up() {
            return Err(self.down());
        }
        let inbox = self.0.client.new_inbox();
        let hearing = self.hear(&inbox).await?;
        self.send(subject, Some(inbox), encoding, payload).await?;
        Ok(hearing)
    }

    /// Says something to whoever listens.
    pub async fn publish(
        &self,
        subject: &str,
        encoding: Encoding,
        payload: Bytes,
    ) -> Result<(), Error> {
        if !self.is_up() {
            return Err(self.down());
        }
        self.send(subject, None, encoding, payload).await
    }

    /// Says something, with a subject where an answer may go.
    pub async fn send(
        &self,
        subject: &str,
        reply: Option<String>,
        encoding: Encoding,
        payload: Bytes,
    ) -> Result<(), Error> {
        let client = &self.0.client;
        let bytes = payload.len();
        let subject = subject.to_owned();
        let sent = match (headers_for(encoding), reply) {
            (None, None) => client.publish(subject, payload).await,
            (Some(headers), None) => client.publish_with_headers(subject, headers, payload).await,
            (None, Some(reply)) => client.publish_with_reply(subject, reply, payload).await,
            (Some(headers), Some(reply)) => {
                client.publish_with_reply_and_headers(subject, reply, headers, payload).await
            }
        };
        sent.map_err(|error| match error.kind() {
            PublishErrorKind::MaxPayloadExceeded => {
                Error::TooLarge { bytes, limit: client.max_payload() }
            }
            PublishErrorKind::InvalidSubject => {
                Error::other("saying something", "no valid subject")
            }
            PublishErrorKind::Send => self.down(),
        })
    }

    /// Listens on a subject, which may hold `*` and `>`.
    pub async fn hear(&self, subject: &str) -> Result<Hearing, Error> {
        let subscribed = self.0.client.subscribe(subject.to_owned()).await;
        subscribed
            .map(Hearing::new)
            .map_err(|error| Error::other(format!("listening on `{subject}`"), error))
    }

    /// A fresh subject below which answers to this connection arrive.
    pub fn new_inbox(&self) -> String {
        self.0.client.new_inbox()
    }

    /// Waits until the bus has taken everything that was said and asked before, subscriptions
    /// included. (The library's own `flush` only hands it to the system.)
    pub async fn flush(&self) -> Result<(), Error> {
        // Nobody listens there, and the bus says so in its turn.
        let nowhere = self.new_inbox();
        match self.ask_raw(&nowhere, Encoding::Json, Bytes::new(), ACK_TIMEOUT).await {
            Ok(_) | Err(Error::Nobody { .. }) => Ok(()),
            Err(_) => Err(self.down()),
        }
    }

    /// Says what is still to be said and closes the connection.
    pub async fn close(&self) {
        if let Some(bulk) = self.0.bulk.get() {
            let _ = tokio::time::timeout(ACK_TIMEOUT, bulk.0.client.drain()).await;
        }
        let _ = tokio::time::timeout(ACK_TIMEOUT, self.0.client.drain()).await;
    }
}

fn refused_connection(url: &str, error: &async_nats::ConnectError) -> Error {
    let url = url.to_owned();
    match error.kind() {
        ConnectErrorKind::Authentication | ConnectErrorKind::AuthorizationViolation => {
            Error::Denied { url }
        }
        ConnectErrorKind::ServerParse => Error::Address { url },
        _ => Error::Down { url },
    }
}

fn notice(url: &str, changed: &watch::Sender<Connection>, event: &Event) {
    match event {
        Event::Connected => {
            changed.send_modify(|c| *c = Connection { up: true, made: c.made + 1 });
            tracing::debug!(url, "connected to the bus");
        }
        Event::Disconnected => {
            changed.send_modify(|c| c.up = false);
            tracing::warn!(url, "connection to the bus lost");
        }
        Event::Closed => changed.send_modify(|c| c.up = false),
        Event::ServerError(ServerError::Other(text)) => {
            tracing::error!(url, error = text, "the bus refused something");
        }
        Event::SlowConsumer(id) => {
            tracing::warn!(url, subscription = id, "messages were dropped: this process is slow");
        }
        other => tracing::warn!(url, event = %other, "the bus says"),
    }
}
