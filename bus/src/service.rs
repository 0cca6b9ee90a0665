//! Request endpoints as NATS micro services (ADR-32), with our encodings and refusals.

use crate::{
    connect::Bus,
    error::Error,
    message::{header_facts, headers_for, refusal_parts},
};
use async_nats::{
    HeaderMap,
    service::{self, ServiceExt},
};
use bytes::Bytes;
use futures::{
    FutureExt, StreamExt,
    stream::{BoxStream, SelectAll},
};
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
    /// Subjects (with `*`) on which somebody may ask for what there is not: what no endpoint
    /// answers there arrives, too, so that it can be refused with a hint instead of by silence.
    pub rest: Vec<String>,
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
    requests: SelectAll<BoxStream<'static, Arrived>>,
    bus: Bus,
    refusals: Arc<AtomicU64>,
    _service: service::Service,
}

/// A request at an endpoint, or one for which there is none.
enum Arrived {
    At(service::Request),
    Beside(async_nats::Message),
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
            requests.push(added.map(Arrived::At).boxed());
        }
        // A queue of its own: in the same one, the bus would hand a request to either at random.
        let queue = format!("{}-rest", service.queue);
        let subjects: Arc<[String]> = service.endpoints.into_iter().map(|at| at.subject).collect();
        for rest in service.rest {
            let heard = self.client().queue_subscribe(rest, queue.clone()).await;
            let subjects = subjects.clone();
            let beside = heard
                .map_err(|error| Error::other(doing(), error))?
                .filter(move |message| {
                    let answered = subjects.iter().any(|subject| fits(subject, &message.subject));
                    std::future::ready(!answered)
                })
                .map(Arrived::Beside);
            requests.push(beside.boxed());
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

    fn asked(&self, arrived: Arrived) -> Asked {
        let (message, request) = match arrived {
            Arrived::At(request) => (request.message.clone(), Some(request)),
            Arrived::Beside(message) => (message, None),
        };
        let (encoding, accept, _) = header_facts(message.headers.as_ref());
        Asked {
            subject: message.subject.to_string(),
            payload: message.payload,
            encoding,
            accept,
            reply: message.reply.as_ref().map(ToString::to_string),
            request,
            bus: self.bus.clone(),
            refusals: self.refusals.clone(),
        }
    }
}

/// Whether a subject is one of a pattern's; `*` is any one token.
fn fits(pattern: &str, subject: &str) -> bool {
    let mut tokens = subject.split('.');
    pattern.split('.').all(|part| tokens.next().is_some_and(|token| part == "*" || part == token))
        && tokens.next().is_none()
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
    /// `None`: it was asked where there is no endpoint.
    request: Option<service::Request>,
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
        let Some(reply) = &self.reply else { return };
        let payload = Bytes::from(payload);
        let sent = match &self.request {
            Some(request) => {
                let sent = request.respond_with_headers(Ok(payload), headers).await;
                sent.map_err(|error| error.to_string())
            }
            None => {
                let client = self.bus.client();
                let sent = client.publish_with_headers(reply.clone(), headers, payload).await;
                sent.map_err(|error| error.to_string())
            }
        };
        if let Err(error) = sent {
            tracing::warn!(subject = %self.subject, %error, "an answer could not be sent");
        }
    }
}

#[cfg(test)]
mod tests {
    use super::fits;

    #[test]
    fn a_star_is_one_token() {
        assert!(fits("lh.work.get", "lh.work.get"));
        assert!(fits("lh.work.get.*", "lh.work.get.anna"));
        for other in ["lh.work", "lh.work.gte", "lh.work.get.anna", "lh.work.get."] {
            assert!(!fits("lh.work.get", other), "{other}");
        }
        assert!(!fits("lh.work.get.*", "lh.work.get"));
    }
}
