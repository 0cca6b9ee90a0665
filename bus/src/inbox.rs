//! The inbox: submits that were published while no manager was up.

use crate::{connect::Bus, error::Error, message::header_facts};
use async_nats::jetstream::{
    self, AckKind,
    consumer::{AckPolicy, pull},
};
use bytes::Bytes;
use futures::StreamExt;
use schemas::{codec::Encoding, id::Seq, time::Stamp};
use std::time::Duration;

/// The name of the inbox's stream, and of the one consumer that all managers share.
pub const STREAM: &str = "lh-inbox";
const CONSUMER: &str = "manager";

/// What was published to `lh.inbox.<caller>`, each message to one manager.
pub struct Inbox {
    messages: pull::Stream,
}

impl std::fmt::Debug for Inbox {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Inbox")
    }
}

/// One message of the inbox. It comes again, to any manager, until it is acknowledged.
#[derive(Debug)]
pub struct InboxMessage {
    /// Its place in the inbox: with the stream's name it makes the id of a work that has none.
    pub seq: Seq,
    /// When it was stored.
    pub at: Stamp,
    /// `lh.inbox.<caller>`
    pub subject: String,
    /// Its bytes.
    pub payload: Bytes,
    /// As what they are to be read.
    pub encoding: Encoding,
    message: jetstream::Message,
}

impl InboxMessage {
    /// It is dealt with.
    pub async fn acknowledge(&self) {
        if let Err(error) = self.message.ack().await {
            tracing::warn!(seq = self.seq, %error, "a message of the inbox was not acknowledged");
        }
    }

    /// Not now: it comes again after a while.
    pub async fn later(&self, after: Duration) {
        if let Err(error) = self.message.ack_with(AckKind::Nak(Some(after))).await {
            tracing::warn!(seq = self.seq, %error, "a message of the inbox was not put back");
        }
    }
}

impl Bus {
    /// Begins to read the inbox.
    pub async fn inbox(&self) -> Result<Inbox, Error> {
        let failed = |error: &dyn std::fmt::Display| Error::other("reading the inbox", error);
        let stream = self.jetstream().get_stream(STREAM).await.map_err(|e| failed(&e))?;
        let consumer = stream
            .get_or_create_consumer(
                CONSUMER,
                pull::Config {
                    durable_name: Some(CONSUMER.to_owned()),
                    ack_policy: AckPolicy::Explicit,
                    ack_wait: Duration::from_secs(30),
                    max_ack_pending: 256,
                    ..Default::default()
                },
            )
            .await
            .map_err(|e| failed(&e))?;
        let messages = consumer.messages().await.map_err(|e| failed(&e))?;
        Ok(Inbox { messages })
    }
}

impl Inbox {
    /// The next message; `None` when the connection is closed for good.
    pub async fn next(&mut self) -> Option<InboxMessage> {
        loop {
            match self.messages.next().await? {
                Ok(message) => {
                    let Some((seq, at)) = message.info().ok().map(|info| {
                        let at = info.published.unix_timestamp_nanos() / 1_000_000;
                        (info.stream_sequence, Stamp(u64::try_from(at).unwrap_or(0)))
                    }) else {
                        continue;
                    };
                    return Some(InboxMessage {
                        seq,
                        at,
                        subject: message.subject.to_string(),
                        payload: message.payload.clone(),
                        encoding: header_facts(message.headers.as_ref()).0,
                        message,
                    });
                }
                Err(error) => {
                    tracing::warn!(%error, "the inbox stumbled");
                    tokio::time::sleep(Duration::from_millis(500)).await;
                }
            }
        }
    }
}
