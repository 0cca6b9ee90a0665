//! The manager's ears: requests, the inbox, the journals and the connection, each heard by a task of
//! its own that reads what came and hands it to the actor.

use super::{Folded, Mark, Msg};
use crate::manager::{
    hub::{ReadFact, read_fact},
    ingress,
};
use bus::{Bus, Endpoint, Service, log::Stored, streams::journal};
use ractor::ActorRef;
use schemas::{
    catalog,
    error::{Refusal, code},
    subject::{self, WORK_VERBS},
    token::PoolName,
};
use std::{
    hash::{DefaultHasher, Hash, Hasher},
    sync::Arc,
    time::Duration,
};
use tokio::sync::Semaphore;

/// Requests that are taken at a time.
const REQUESTS: usize = 256;
/// Facts that are taken at a time, and how many such batches may wait.
const FACTS: usize = 512;
const BATCHES: usize = 8;
/// What does not work now is tried again after so long.
const AGAIN: Duration = Duration::from_millis(500);

/// The service as it is listed: each verb with and without a caller.
fn service() -> Service {
    let endpoint = |verb: &str, name: String, subject: String| Endpoint {
        name,
        subject,
        metadata: catalog::work(verb).map(catalog::Entry::metadata).unwrap_or_default(),
    };
    let endpoints = WORK_VERBS.iter().flat_map(|verb| {
        [
            endpoint(verb, (*verb).to_owned(), format!("lh.work.{verb}")),
            endpoint(verb, format!("{verb}-caller"), format!("lh.work.{verb}.*")),
        ]
    });
    Service {
        name: "manager".to_owned(),
        version: env!("CARGO_PKG_VERSION").to_owned(),
        description: "Takes works, says how they stand and what they write".to_owned(),
        queue: "manager".to_owned(),
        endpoints: endpoints.collect(),
        rest: vec!["lh.work.*".to_owned(), "lh.work.*.*".to_owned()],
    }
}

/// Hears requests and reads them, so that the actor only decides.
pub(super) async fn hear_requests(bus: Bus, me: ActorRef<Msg>, open: Arc<Semaphore>) {
    let mut serving = loop {
        match bus.serve(service()).await {
            Ok(serving) => break serving,
            Err(error) => tracing::warn!(%error, "requests cannot be heard yet"),
        }
        tokio::time::sleep(AGAIN).await;
    };
    if me.cast(Msg::Serving).is_err() {
        return;
    }
    loop {
        let batch = serving.next_batch(REQUESTS).await;
        if batch.is_empty() {
            return;
        }
        let mut read = Vec::with_capacity(batch.len());
        for asked in batch {
            let Ok(permit) = open.clone().try_acquire_owned() else {
                let busy = Refusal::new(code::BUSY, "too many requests are open")
                    .hint("ask again in a moment, or ask for fewer at once");
                asked.refuse(&busy).await;
                continue;
            };
            let request = ingress::address(&asked.subject).and_then(|(verb, caller)| {
                Ok((caller, ingress::request(verb, asked.encoding, &asked.payload)?))
            });
            read.push((asked, request, permit));
        }
        if me.cast(Msg::Asked(read)).is_err() {
            return;
        }
    }
}

/// Hears the inbox.
pub(super) async fn hear_inbox(bus: Bus, me: ActorRef<Msg>) {
    let mut inbox = loop {
        match bus.inbox().await {
            Ok(inbox) => break inbox,
            Err(error) => tracing::warn!(%error, "the inbox cannot be read yet"),
        }
        tokio::time::sleep(AGAIN).await;
    };
    while let Some(message) = inbox.next().await {
        if me.cast(Msg::Inbox(Box::new(message))).is_err() {
            return;
        }
    }
}

/// Reads a journal from its start and goes on with what comes.
pub(super) async fn tail(bus: Bus, me: ActorRef<Msg>, pool: PoolName, turn: u64) {
    let log = bus.log(journal(&pool));
    let permits = Arc::new(Semaphore::new(BATCHES));
    let mut tail = loop {
        match log.tail(&format!("lh.fact.{pool}.>"), 1).await {
            Ok(tail) => break tail,
            Err(error) => {
                tracing::warn!(%pool, %error, "the journal cannot be read yet");
                tokio::time::sleep(AGAIN).await;
            }
        }
    };
    if tail.behind() == 0 && me.cast(Msg::Empty(pool.clone())).is_err() {
        return;
    }
    loop {
        let batch = tail.next_batch(FACTS).await;
        if batch.is_empty() {
            tracing::error!(%pool, "the journal is gone: the manager ends");
            me.stop(Some("a journal is gone".to_owned()));
            return;
        }
        let Ok(permit) = permits.clone().acquire_owned().await else { return };
        let all = batch.last().is_some_and(|last| last.pending == 0);
        let facts = batch.iter().map(fold).collect();
        let message = Msg::Facts { pool: pool.clone(), turn, facts, all, _permit: permit };
        if me.cast(message).is_err() {
            return;
        }
    }
}

fn fold(stored: &Stored) -> Folded {
    let fact = read_fact(stored).map(|fact| ReadFact { at: stored.at, fact: Arc::new(fact) });
    Folded {
        seq: stored.seq,
        at: stored.at,
        owner: subject::parse_fact(&stored.subject).and_then(|at| at.owner),
        bytes: stored.payload.len(),
        fact,
        mark: mark(stored),
    }
}

/// Says when there is a connection again.
pub(super) async fn watch_connection(bus: Bus, me: ActorRef<Msg>) {
    let mut connection = bus.connection();
    let mut made = connection.borrow().made;
    while connection.changed().await.is_ok() {
        let now = *connection.borrow_and_update();
        if now.up && now.made != made {
            made = now.made;
            if me.cast(Msg::Connected).is_err() {
                return;
            }
        }
    }
}

/// By what a message is known again.
pub(super) fn mark(stored: &Stored) -> Mark {
    let mut hasher = DefaultHasher::new();
    (&stored.subject, &stored.payload[..]).hash(&mut hasher);
    Mark { seq: stored.seq, hash: hasher.finish() }
}
