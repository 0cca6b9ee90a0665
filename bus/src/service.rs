//! Request endpoints as NATS micro services (ADR-32), with our encodings and refusals.

use crate::{
    connect::Bus,
    error::Error,
    message::{header_facts, headers_for, refusal_parts},
};
use async_nats::{
    HeaderMap,
    service::{self, ServiceExt, endpoint},
};
use bytes::Bytes;
use futures::{FutureExt, StreamExt, stream::SelectAll};
use schemas::{
    codec::{self, Encoding},
    error::Refusal,
};
use serde::Serialize;
use std::{
    collections::HashMap,
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
};

/// What a service is called, and what may be asked of it.
#[derive(Clone, Debug)]
pub struct Service {
    /// Letters, digits, `-` and `_`.
    pub name: String,
    /// Semantic version.
    pub version: String,
    /// One sentence.
    pub description: String,
    /// Processes of one queue share the requests.
    pub queue: String,
    /// What may be asked.
    pub endpoints: Vec<Endpoint>,
}

/// One subject on which a service answers.
#[derive(Clone, Debug)]
pub struct Endpoint {
    /// Letters, digits, `-` and `_`; unique within the service.
    pub name: String,
    /// The subject; may hold `*`.
    pub subject: String,
    /// More about it (`request_schema`, `response_schema`, `description`).
    pub metadata: Vec<(String, String)>,
}

/// Requests as they arrive. Dropping it stops the service.
pub struct Serving {
    requests: SelectAll<endpoint::Endpoint>,
    bus: Bus,
    refusals: Arc<AtomicU64>,
    _service: service::Service,
}

impl std::fmt::Debug for Serving {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Serving")
    }
}

impl Bus {
    /// Begins to answer requests.
    pub async fn serve(&self, service: Service) -> Result<Serving, Error> {
        let doing = || format!("serving `{}`", service.name);
        let refusals = Arc::new(AtomicU64::new(0));
        let counted = refusals.clone();
        let started = self
            .client()
            .service_builder()
            .description(&service.description)
            .queue_group(&service.queue)
            .stats_handler(
                move |_, _| serde_json::json!({ "refused": counted.load(Ordering::Relaxed) }),
            )
            .start(&service.name, &service.version)
            .await
            .map_err(|error| Error::other(doing(), error))?;
        let mut requests = SelectAll::new();
        for endpoint in &service.endpoints {
            let metadata: HashMap<String, String> = endpoint.metadata.iter().cloned().collect();
            let added = started
                .endpoint_builder()
                .name(&endpoint.name)
                .metadata(metadata)
                .add(&endpoint.subject)
                .await
                .map_err(|error| Error::other(doing(), error))?;
            requests.push(added);
        }
        self.flush().await?;
        Ok(Serving { requests, bus: self.clone(), refusals, _service: started })
    }
}

impl Serving {
    /// Waits for a request, then takes what is there, at most `most`; empty when the connection is
    /// closed for good.
    pub async fn next_batch(&mut self, most: usize) -> Vec<Asked> {
        let Some(first) = self.requests.next().await else { return Vec::new() };
        let mut batch = vec![self.asked(first)];
        while batch.len() < most
            && let Some(Some(request)) = self.requests.next().now_or_never()
        {
            batch.push(self.asked(request));
        }
        batch
    }

    fn asked(&self, request: service::Request) -> Asked {
        let (encoding, accept, _) = header_facts(request.message.headers.as_ref());
        Asked {
            subject: request.message.subject.to_string(),
            payload: request.message.payload.clone(),
            encoding,
            accept,
            reply: request.message.reply.as_ref().map(ToString::to_string),
            request,
            bus: self.bus.clone(),
            refusals: self.refusals.clone(),
        }
    }
}

/// One request that waits for its answer.
pub struct Asked {
    /// Where it was asked.
    pub subject: String,
    /// Its bytes.
    pub payload: Bytes,
    /// As what they are to be read.
    pub encoding: Encoding,
    /// As what the answer is wanted.
    pub accept: Encoding,
    /// Where answers go; `None` when none is wanted.
    pub reply: Option<String>,
    request: service::Request,
    bus: Bus,
    refusals: Arc<AtomicU64>,
}

impl std::fmt::Debug for Asked {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Asked({}, {} bytes)", self.subject, self.payload.len())
    }
}

impl Asked {
    /// Answers.
    pub async fn answer(&self, answer: &impl Serialize) {
        let headers = headers_for(self.accept).unwrap_or_default();
        self.respond(codec::encode(self.accept, answer), headers).await;
    }

    /// Refuses: the error headers and a body that says why.
    pub async fn refuse(&self, refusal: &Refusal) {
        self.refusals.fetch_add(1, Ordering::Relaxed);
        let (body, headers) = refusal_parts(self.accept, refusal);
        self.respond(body, headers).await;
    }

    /// One of many answers; `reply` is where its reader may acknowledge it.
    pub async fn say(&self, payload: Bytes, reply: Option<String>) -> Result<(), Error> {
        let Some(to) = &self.reply else { return Ok(()) };
        self.bus.send(to, reply, self.accept, payload).await
    }

    /// The empty message that ends many answers.
    pub async fn end(&self) {
        self.respond(Vec::new(), HeaderMap::new()).await;
    }

    async fn respond(&self, payload: Vec<u8>, headers: HeaderMap) {
        if self.reply.is_none() {
            return;
        }
        let sent = self.request.respond_with_headers(Ok(payload.into()), headers).await;
        if let Err(error) = sent {
            tracing::warn!(subject = %self.subject, %error, "an answer could not be sent");
        }
    }
}
