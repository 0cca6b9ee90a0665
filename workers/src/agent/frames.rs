//! Output to the bus, over the connection for what is large: stored and acknowledged in order. When one
//! message is not stored, it and all behind it are sent again, so that a reader who passes over what he has
//! already sees everything in order.

use super::{Shared, ears::ToBus};
use crate::protocol::ToKeeper;
use bus::{
    Bus, StoreError,
    log::{Expect, Log},
    streams::OUTPUT,
};
use bytes::Bytes;
use futures::{StreamExt, stream::FuturesOrdered};
use schemas::{codec::Encoding, subject};
use std::{collections::VecDeque, future::Future, pin::Pin, sync::Arc, time::Duration};
use tokio::sync::mpsc;

/// Before what was not stored is sent again.
const PAUSE: Duration = Duration::from_millis(100);
const LONGEST_PAUSE: Duration = Duration::from_secs(5);

struct Outgoing {
    id: u64,
    subject: String,
    payload: Bytes,
}

type Stored = Pin<Box<dyn Future<Output = Result<u64, StoreError>> + Send>>;

struct Sender {
    shared: Arc<Shared>,
    bulk: Bus,
    log: Log,
    /// Sent or to be sent, oldest first.
    queue: VecDeque<Outgoing>,
    /// So many of them are on their way.
    sent: usize,
    answers: FuturesOrdered<Stored>,
    pause: Duration,
}

/// Sends for ever.
pub(super) async fn run(
    shared: Arc<Shared>,
    bulk: Bus,
    mut frames: mpsc::UnboundedReceiver<ToBus>,
) {
    let log = bulk.log(OUTPUT);
    let mut sender = Sender {
        shared,
        bulk,
        log,
        queue: VecDeque::new(),
        sent: 0,
        answers: FuturesOrdered::new(),
        pause: PAUSE,
    };
    loop {
        sender.send().await;
        tokio::select! {
            next = frames.recv() => match next {
                Some(next) => sender.take(next).await,
                None => return,
            },
            Some(answer) = sender.answers.next(), if !sender.answers.is_empty() => {
                sender.answered(answer).await;
            }
        }
    }
}

impl Sender {
    async fn take(&mut self, words: ToBus) {
        let node = &self.shared.node;
        match words {
            ToBus::Frames { live: true, owner, work, stream, payload, .. } => {
                let subject = subject::live(&owner, work, &stream, node);
                // May be lost; what counts is sent behind the gap when the job ends.
                let _ = self.bulk.publish(&subject, Encoding::MsgPack, payload.0).await;
            }
            ToBus::Frames { id, owner, work, stream, payload, .. } => {
                let subject = subject::out(&owner, work, &stream, node);
                self.queue.push_back(Outgoing { id, subject, payload: payload.0 });
            }
            ToBus::Reset => {
                self.queue.clear();
                self.answers.clear();
                self.sent = 0;
            }
        }
    }

    async fn send(&mut self) {
        while let Some(next) = self.queue.get(self.sent) {
            let sent = self.log.send(&next.subject, next.payload.clone(), &Expect::Any).await;
            self.answers.push_back(Box::pin(sent.stored()));
            self.sent += 1;
        }
    }

    async fn answered(&mut self, answer: Result<u64, StoreError>) {
        match answer {
            Ok(_) => {
                self.pause = PAUSE;
                self.sent -= 1;
                if let Some(done) = self.queue.pop_front() {
                    self.shared.tell(ToKeeper::AckFrames { ids: vec![done.id] }).await;
                }
            }
            Err(error) => {
                tracing::warn!(%error, "output is not stored; it is kept and sent again");
                self.answers.clear();
                self.sent = 0;
                let mut connection = self.bulk.connection();
                connection.mark_unchanged();
                let _ = tokio::time::timeout(self.pause, connection.changed()).await;
                self.pause = (self.pause * 2).min(LONGEST_PAUSE);
            }
        }
    }
}
