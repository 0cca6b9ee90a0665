//! Messages as they arrive, and streams of them.

use crate::{connect::Bus, error::Error};
use async_nats::{HeaderMap, StatusCode};
use bytes::Bytes;
use futures::{FutureExt, Stream, StreamExt};
use schemas::{
    codec::{self, Encoding},
    error::{ErrorBody, Refusal, code},
};
use serde::{Serialize, de::DeserializeOwned};
use std::{
    pin::Pin,
    task::{Context, Poll},
};

/// One message.
#[derive(Clone, Debug)]
pub struct Message {
    /// Where it was said.
    pub subject: String,
    /// Its bytes.
    pub payload: Bytes,
    /// As what the payload is to be read.
    pub encoding: Encoding,
    /// As what an answer is wanted.
    pub accept: Encoding,
    /// Where an answer goes, if one is wanted.
    pub reply: Option<String>,
    /// It is no answer but word that nobody listens.
    pub nobody: bool,
    /// It is a refusal, by its headers.
    pub refused: bool,
}

impl Message {
    pub(crate) fn from_client(message: async_nats::Message) -> Self {
        let (encoding, accept, refused) = header_facts(message.headers.as_ref());
        Self {
            subject: message.subject.to_string(),
            payload: message.payload,
            encoding,
            accept,
            reply: message.reply.map(|reply| reply.to_string()),
            nobody: message.status == Some(StatusCode::NO_RESPONDERS),
            refused,
        }
    }

    /// Reads the payload, leniently.
    pub fn decode<T: DeserializeOwned>(&self) -> Result<T, Refusal> {
        codec::decode(self.encoding, &self.payload)
    }

    /// Reads it as an answer: a refusal becomes [`Error::Refused`].
    pub fn into_answer<T: DeserializeOwned>(self, asked: &str) -> Result<T, Error> {
        if self.nobody {
            return Err(Error::Nobody { subject: asked.to_owned() });
        }
        if self.refused {
            return Err(Error::Refused(self.refusal()));
        }
        self.decode()
            .map_err(|why| Error::Malformed { subject: asked.to_owned(), why: why.message })
    }

    /// Answers it, in the encoding that was asked for. Nothing happens where no answer is wanted.
    pub async fn answer(&self, bus: &Bus, answer: &impl Serialize) -> Result<(), Error> {
        let Some(reply) = &self.reply else { return Ok(()) };
        let body = codec::encode(self.accept, answer).into();
        bus.send(reply, None, self.accept, body).await
    }

    /// Refuses it: the error headers and a body that says why.
    pub async fn refuse(&self, bus: &Bus, refusal: &Refusal) -> Result<(), Error> {
        let Some(reply) = &self.reply else { return Ok(()) };
        let (body, headers) = refusal_parts(self.accept, refusal);
        let sent = bus.client().publish_with_headers(reply.clone(), headers, body.into()).await;
        sent.map_err(|_| bus.down())
    }

    /// Reads it as a refusal.
    pub fn refusal(&self) -> Refusal {
        self.decode::<ErrorBody>().map(|body| body.error).unwrap_or_else(|_| {
            Refusal::new(code::INTERNAL, String::from_utf8_lossy(&self.payload).into_owned())
        })
    }
}

pub(crate) fn header_facts(headers: Option<&HeaderMap>) -> (Encoding, Encoding, bool) {
    let Some(headers) = headers else { return (Encoding::Json, Encoding::Json, false) };
    let get = |name: &str| headers.get(name).map(|value| value.as_str());
    let encoding = Encoding::of(get("Content-Type"));
    let accept = get("Accept").map_or(encoding, |value| Encoding::of(Some(value)));
    (encoding, accept, get("Nats-Service-Error-Code").is_some())
}

pub(crate) fn headers_for(encoding: Encoding) -> Option<HeaderMap> {
    encoding.header().map(|value| {
        let mut headers = HeaderMap::new();
        headers.insert("Content-Type", value);
        headers
    })
}

/// The body and the headers of a refusal.
pub(crate) fn refusal_parts(accept: Encoding, refusal: &Refusal) -> (Vec<u8>, HeaderMap) {
    let mut headers = headers_for(accept).unwrap_or_default();
    headers.insert("Nats-Service-Error", header_text(&refusal.message).as_str());
    let status = code::status(&refusal.code).to_string();
    headers.insert("Nats-Service-Error-Code", status.as_str());
    (codec::encode(accept, &ErrorBody { error: refusal.clone() }), headers)
}

/// A header is one line of printable text.
fn header_text(message: &str) -> String {
    message.chars().map(|c| if c.is_control() { ' ' } else { c }).take(500).collect()
}

/// What is said on a subject, as it comes; ends when dropped.
pub struct Hearing {
    subscriber: async_nats::Subscriber,
}

impl std::fmt::Debug for Hearing {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Hearing")
    }
}

impl Hearing {
    pub(crate) fn new(subscriber: async_nats::Subscriber) -> Self {
        Self { subscriber }
    }

    /// Waits for a message, then takes what is there, at most `most`; empty when the connection is
    /// closed for good.
    pub async fn next_batch(&mut self, most: usize) -> Vec<Message> {
        let Some(first) = self.next().await else { return Vec::new() };
        let mut batch = vec![first];
        while batch.len() < most
            && let Some(Some(message)) = self.next().now_or_never()
        {
            batch.push(message);
        }
        batch
    }
}

impl Stream for Hearing {
    type Item = Message;

    fn poll_next(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Message>> {
        self.subscriber.poll_next_unpin(cx).map(|next| next.map(Message::from_client))
    }
}
