//! Output to the bus, over the connection for what is large: stored and acknowledged in order. When one
//! message is not stored, it and all behind it are sent again, so that a reader who passes over what he has
//! already sees everything in order.
//!
//! What was acknowledged a moment ago is kept in this process, at most [`KEPT`] bytes, and sent again when the
//! bus was away meanwhile: it may have lost its last moments with its power.

use super::{Shared, ears::ToBus};
use crate::protocol::ToKeeper;
use bus::{
    Bus, StoreError, clock,
    log::{Expect, Log},
    streams::OUTPUT,
};
use bytes::Bytes;
use futures::{StreamExt, stream::FuturesOrdered};
use schemas::{codec::Encoding, subject, time::Millis};
use std::{collections::VecDeque, future::Future, pin::Pin, sync::Arc, time::Duration};
use tokio::sync::mpsc;

/// Before what was not stored is sent again.
const PAUSE: Duration = Duration::from_millis(100);
const LONGEST_PAUSE: Duration = Duration::from_secs(5);
/// What is settled is let go of together, at most so often.
const LOOK_MS: u64 = 250;

/// Acknowledged output that is kept: with the default of 3 s all of what is written at up to 1.4 MB/s. Of what
/// comes faster the last of it is kept; what is older may be missing after a power cut, and shows as a hole.
const KEPT: usize = 4 * 1024 * 1024;

struct Outgoing {
    /// `None`: the keeper has been told already.
    id: Option<u64>,
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
    kept: Kept,
    /// In which connection `kept` was acknowledged.
    made: u64,
}

/// What was acknowledged and may still be forgotten by the bus, oldest first.
#[derive(Default)]
struct Kept {
    messages: VecDeque<(Millis, Outgoing)>,
    bytes: usize,
}

impl Kept {
    fn keep(&mut self, now: Millis, message: Outgoing) {
        self.bytes += message.payload.len();
        self.messages.push_back((now, message));
        while self.bytes > KEPT {
            self.drop_oldest();
        }
    }

    fn drop_oldest(&mut self) {
        if let Some((_, message)) = self.messages.pop_front() {
            self.bytes -= message.payload.len();
        }
    }

    /// The bus was heard: what was acknowledged no later than this is settled.
    fn settle(&mut self, until: Millis) {
        while self.messages.front().is_some_and(|(at, _)| *at <= until) {
            self.drop_oldest();
        }
    }

    fn take(&mut self) -> VecDeque<Outgoing> {
        self.bytes = 0;
        std::mem::take(&mut self.messages).into_iter().map(|(_, message)| message).collect()
    }
}

/// Sends for ever.
pub(super) async fn run(
    shared: Arc<Shared>,
    bulk: Bus,
    mut frames: mpsc::UnboundedReceiver<ToBus>,
) {
    let log = bulk.log(OUTPUT);
    let mut connection = bulk.connection();
    let made = connection.borrow_and_update().made;
    let after_ms = u64::try_from(shared.settings.settled_after.as_millis()).unwrap_or(u64::MAX);
    let mut sender = Sender {
        shared,
        bulk,
        log,
        queue: VecDeque::new(),
        sent: 0,
        answers: FuturesOrdered::new(),
        pause: PAUSE,
        kept: Kept::default(),
        made,
    };
    loop {
        sender.again();
        sender.send().await;
        let due = sender.kept.messages.front().map(|(at, _)| *at + after_ms);
        let due_ms = due.map_or(0, |due| due.since(clock::at()).max(LOOK_MS));
        tokio::select! {
            () = tokio::time::sleep(Duration::from_millis(due_ms)), if due.is_some() => {
                let now = clock::at();
                // A break that was not seen yet is seen before anything is let go.
                if sender.bulk.flush().await.is_ok() && !sender.again() {
                    sender.kept.settle(Millis(now.0.saturating_sub(after_ms)));
                }
            }
            Ok(()) = connection.changed() => {}
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
    /// Whether the bus was away; then what it may have forgotten is sent again before the rest.
    fn again(&mut self) -> bool {
        let made = self.bulk.connection().borrow().made;
        if made == self.made {
            return false;
        }
        self.made = made;
        let mut queue = self.kept.take();
        queue.append(&mut self.queue);
        self.queue = queue;
        self.answers.clear();
        self.sent = 0;
        true
    }

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
                self.queue.push_back(Outgoing { id: Some(id), subject, payload: payload.0 });
            }
            ToBus::Reset => {
                // The next keeper counts its messages anew.
                self.queue.retain(|message| message.id.is_none());
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
                    if let Some(id) = done.id {
                        self.shared.tell(ToKeeper::AckFrames { ids: vec![id] }).await;
                    }
                    self.kept.keep(clock::at(), Outgoing { id: None, ..done });
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

#[cfg(test)]
mod tests {
    use super::*;

    fn message(bytes: usize) -> Outgoing {
        Outgoing { id: None, subject: String::new(), payload: vec![0; bytes].into() }
    }

    #[test]
    fn what_was_acknowledged_is_kept_until_it_is_settled_and_never_too_much_of_it() {
        let mut kept = Kept::default();
        kept.keep(Millis(1), message(10));
        kept.keep(Millis(5), message(20));
        kept.settle(Millis(4));
        assert_eq!((kept.bytes, kept.messages.len()), (20, 1));
        for _ in 0..100 {
            kept.keep(Millis(6), message(100_000));
        }
        assert!(kept.bytes <= KEPT && kept.bytes > KEPT - 100_000);
        let again = kept.take();
        assert_eq!(again.iter().map(|m| m.payload.len()).sum::<usize>(), 41 * 100_000);
        assert_eq!((kept.bytes, kept.messages.len()), (0, 0));
    }
}
