//! What a scheduler keeps in buckets: its lease, and the summary of each work.

use super::{
    actor::{Note, Shared},
    core::Event,
    lease::{self, Lease},
};
use bus::{Bus, StoreError, clock, kv::Kv, log::Expect, streams};
use futures::{StreamExt, stream};
use schemas::{
    fact::{EpochFact, Fact},
    id::{Epoch, Seq},
    outcome::Summary,
    subject,
};
use serde::{Deserialize, Serialize};
use std::{
    sync::{Arc, atomic::Ordering},
    time::Duration,
};
use tokio::sync::{mpsc, oneshot};

/// How often the keeper of the lease looks whether there is something to do.
const LOOK: Duration = Duration::from_millis(100);
/// Summaries that are written at a time.
const WRITING: usize = 64;

/// What the key of a lease says.
#[derive(Serialize, Deserialize)]
struct Holder {
    by: String,
    /// [`Process::mark`].
    #[serde(default, skip_serializing_if = "Option::is_none")]
    process: Option<String>,
}

/// The process in which a scheduler lives. Who finds the lease of a process that is certainly gone
/// takes it over at once, as if it had expired: by compare-and-set, and the epoch fences as ever.
#[derive(Clone)]
pub struct Process {
    /// What tells it from every other process that ever was, on any machine.
    pub mark: String,
    /// Whether the process with that mark is certainly gone. Of other machines nobody knows.
    pub is_gone: Arc<dyn Fn(&str) -> bool + Send + Sync>,
}

impl std::fmt::Debug for Process {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Process({})", self.mark)
    }
}

/// Takes the lease when it is free, keeps it, gives it back.
pub(super) async fn keep_lease(shared: Arc<Shared>, mut notes: mpsc::UnboundedReceiver<Note>) {
    let settings = &shared.settings;
    // The bus counts leases in whole seconds.
    let ttl = Duration::from_millis(settings.lease_s.ms.max(1000)).as_secs();
    let lease = Lease::new(shared.name.clone(), ttl * 1000, settings.lease_renew_s.ms);
    let mut keeper =
        Keeper { kv: shared.bus.kv(streams::LEASES), ttl: Duration::from_secs(ttl), lease, shared };
    let mut event = lease::Event::Tick;
    let mut stopping: Option<oneshot::Sender<()>> = None;
    loop {
        let told = keeper.shared.told.load(Ordering::Acquire);
        let action = keeper.lease.step(clock::now(), told, event);
        if action == lease::Action::Wait && stopping.is_some() {
            if let Some(done) = stopping.take() {
                let _ = done.send(());
            }
            return;
        }
        event = match action {
            lease::Action::Wait => {
                if keeper.lease.other().is_some() {
                    keeper
                        .shared
                        .is_ready
                        .send_if_modified(|ready| !std::mem::replace(ready, true));
                }
                match keeper.wait(&mut notes).await {
                    None => lease::Event::Tick,
                    Some(Note::GiveUp) => lease::Event::GiveUp,
                    Some(Note::Stop(done)) => {
                        stopping = Some(done);
                        lease::Event::GiveUp
                    }
                }
            }
            action => keeper.perform(action).await,
        };
    }
}

struct Keeper {
    kv: Kv,
    ttl: Duration,
    lease: Lease,
    shared: Arc<Shared>,
}

impl Keeper {
    /// Waits a moment, or until there is a note. Who has not folded everything does not compete.
    async fn wait(&self, notes: &mut mpsc::UnboundedReceiver<Note>) -> Option<Note> {
        let mut all = self.shared.is_caught_up.subscribe();
        let ready = async {
            tokio::time::sleep(LOOK).await;
            if !self.lease.is_held() {
                let _ = all.wait_for(|all| *all).await;
            }
        };
        tokio::select! {
            note = notes.recv() => note,
            () = ready => None,
        }
    }

    async fn perform(&self, action: lease::Action) -> lease::Event {
        let key = self.shared.pool.as_str();
        let turn = self.shared.now_turn();
        match action {
            lease::Action::Look => match self.kv.get(key).await {
                Ok(entry) => {
                    let holder = entry.value.and_then(|value| self.holder(&value));
                    lease::Event::Looked { revision: entry.revision, holder }
                }
                Err(_) => lease::Event::Unanswered,
            },
            lease::Action::ReadEpoch => self.read_epoch().await,
            lease::Action::Put { revision } => {
                let process = self.shared.process.as_ref().map(|process| process.mark.clone());
                let holder = Holder { by: self.lease.name().to_owned(), process };
                let body = serde_json::to_vec(&holder).expect("a name is a string").into();
                stored(self.kv.put(key, body, revision, Some(self.ttl)).await)
            }
            lease::Action::WriteEpoch { epoch, over } => {
                let fact = Fact::Epoch(EpochFact { epoch, by: self.lease.name().to_owned() });
                let at = subject::epoch(&self.shared.pool);
                let body = fact.to_json().into();
                stored(self.shared.log().append(&at, body, &Expect::Last(over)).await)
            }
            lease::Action::Remove { revision } => stored(self.kv.remove(key, revision).await),
            lease::Action::Won { epoch, seq } => {
                self.shared.queue.put_now(turn, Event::Won { epoch, seq });
                lease::Event::Tick
            }
            lease::Action::Lost => {
                self.shared.queue.put_now(turn, Event::LeaseLost);
                lease::Event::Tick
            }
            lease::Action::Wait => lease::Event::Tick,
        }
    }

    /// Whom a lease names, unless he is gone.
    fn holder(&self, value: &[u8]) -> Option<String> {
        let Ok(Holder { by, process }) = serde_json::from_slice(value) else {
            return Some("somebody".to_owned());
        };
        let is_gone = match (&process, &self.shared.process) {
            (Some(mark), Some(own)) => by != self.lease.name() && (own.is_gone)(mark),
            _ => false,
        };
        if is_gone {
            tracing::info!(by, "the lease is held by a process that is gone");
        }
        (!is_gone).then_some(by)
    }

    async fn read_epoch(&self) -> lease::Event {
        match self.shared.log().last(&subject::epoch(&self.shared.pool)).await {
            Ok(None) => lease::Event::EpochRead { epoch: 0, seq: 0, by: String::new() },
            Ok(Some(stored)) => match serde_json::from_slice::<EpochFact>(&stored.payload) {
                Ok(fact) => {
                    lease::Event::EpochRead { epoch: fact.epoch, seq: stored.seq, by: fact.by }
                }
                // Whoever wrote it does not act. The next one is written over it, or nobody would
                // ever act again; its number is above all earlier ones by the clock and by what
                // nodes have told.
                Err(error) => {
                    tracing::error!(seq = stored.seq, %error, "the epoch cannot be read");
                    lease::Event::EpochRead { epoch: 0, seq: stored.seq, by: String::new() }
                }
            },
            Err(_) => lease::Event::Unanswered,
        }
    }
}

fn stored(result: Result<Seq, StoreError>) -> lease::Event {
    match result {
        Ok(seq) => lease::Event::Stored(seq),
        Err(StoreError::Conflict) => lease::Event::Refused,
        Err(error) => {
            tracing::debug!(%error, "the lease was not answered");
            lease::Event::Unanswered
        }
    }
}

/// A summary as it is kept, with the pair that says which one is later.
#[derive(Serialize)]
struct Kept<'a> {
    #[serde(flatten)]
    summary: &'a Summary,
    epoch: Epoch,
    seq: Seq,
}

/// The pair alone, as it is read.
#[derive(Deserialize)]
struct Pair {
    epoch: Epoch,
    seq: Seq,
}

/// Writes summaries, the later over the earlier, never the other way round.
pub(super) async fn write_summaries(
    bus: Bus,
    mut summaries: mpsc::UnboundedReceiver<(Box<Summary>, Epoch, Seq)>,
) {
    let kv = bus.kv(streams::SUMMARIES);
    let mut batch = Vec::new();
    while summaries.recv_many(&mut batch, WRITING).await > 0 {
        stream::iter(batch.drain(..))
            .for_each_concurrent(WRITING, |(summary, epoch, seq)| {
                let kv = &kv;
                async move { write_summary(kv, &summary, epoch, seq).await }
            })
            .await;
    }
}

async fn write_summary(kv: &Kv, summary: &Summary, epoch: Epoch, seq: Seq) {
    let key = format!("{}.{}", summary.owner, summary.work);
    let kept = Kept { summary, epoch, seq };
    let body = bytes::Bytes::from(serde_json::to_vec(&kept).expect("it has string keys only"));
    if body.len() > bus::MAX_BODY {
        return;
    }
    // Most works are written once, at their end.
    let mut expected = 0;
    for _ in 0..4 {
        match kv.put(&key, body.clone(), expected, None).await {
            Ok(_) => return,
            Err(StoreError::Conflict) => {}
            Err(error) => {
                tracing::debug!(key, %error, "a summary could not be written");
                return;
            }
        }
        let Ok(entry) = kv.get(&key).await else { return };
        let known = entry.value.and_then(|v| serde_json::from_slice::<Pair>(&v).ok());
        if known.is_some_and(|known| (known.epoch, known.seq) >= (epoch, seq)) {
            return;
        }
        expected = entry.revision;
    }
}
