//! Requests of the bus to the keeper and its answers back; the keeper's other words to whom they concern.
//! When the keeper is gone, another is started.

use super::{
    Keeper, Shared,
    keeper::{self, Found},
};
use crate::protocol::{Answer, FromKeeper, Hello, Incoming, Numbered, ToKeeper, Verb, put};
use bus::{Hearing, Message};
use schemas::{
    blob::Blob,
    codec::Encoding,
    error::code,
    id::{InstanceId, WorkId},
    subject,
    token::{OwnerName, StreamName},
};
use std::{
    collections::HashMap,
    sync::{Arc, atomic::Ordering},
    time::Duration,
};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::{
        UnixStream,
        unix::{OwnedReadHalf, OwnedWriteHalf},
    },
    sync::mpsc,
};

/// Two of one name both hear a request; who is not meant lets the other speak first.
const LET_THE_OTHER: Duration = Duration::from_millis(200);
/// Before another keeper is started.
const PAUSE: Duration = Duration::from_millis(200);
const LONGEST_PAUSE: Duration = Duration::from_secs(10);
/// Requests that were handed to the keeper and not answered yet.
const MOST_PENDING: usize = 10_000;

/// What is to be reported.
#[derive(Debug)]
pub(super) enum ToReport {
    /// Of jobs.
    Reports(Vec<Numbered>),
    /// Of instances.
    Failed(Vec<InstanceId>),
    /// Another keeper speaks from here on: what the last one said is forgotten.
    Reset,
}

/// What is to be stored or shown.
#[derive(Debug)]
pub(super) enum ToBus {
    /// One message.
    Frames {
        id: u64,
        live: bool,
        owner: OwnerName,
        work: WorkId,
        stream: StreamName,
        payload: Blob,
    },
    /// As above.
    Reset,
}

/// Where the keeper's words go.
pub(super) struct Words {
    pub(super) report: mpsc::UnboundedSender<ToReport>,
    pub(super) frame: mpsc::UnboundedSender<ToBus>,
}

/// Begins to listen; what comes waits until [`run`] runs.
pub(super) async fn listen(shared: &Shared) -> Result<Hearing, bus::Error> {
    shared.bus.hear(&subject::node(&shared.node, "*")).await
}

struct Desk {
    shared: Arc<Shared>,
    words: Words,
    pending: HashMap<u64, Message>,
    next_id: u64,
}

/// See the head of this file.
pub(super) async fn run(
    shared: Arc<Shared>,
    hello: Hello,
    found: Found,
    mut from_agent: mpsc::Receiver<ToKeeper>,
    mut hearing: Hearing,
    words: Words,
) {
    let mut desk = Desk { shared: shared.clone(), words, pending: HashMap::new(), next_id: 0 };
    let mut found = Some(found);
    let mut pause = PAUSE;
    loop {
        let this = match found.take() {
            Some(this) => this,
            None => match keeper::find_or_start(&shared.settings, &shared.folder, &hello).await {
                Ok(this) => this,
                Err(error) => {
                    tracing::error!(%error, "the keeper is gone");
                    tokio::time::sleep(pause).await;
                    pause = (pause * 2).min(LONGEST_PAUSE);
                    continue;
                }
            },
        };
        pause = PAUSE;
        if desk.with(this, &mut from_agent, &mut hearing).await {
            return;
        }
        tracing::warn!(node = %shared.node, "the keeper hung up");
        desk.pending.clear();
        let _ = desk.words.report.send(ToReport::Reset);
        let _ = desk.words.frame.send(ToBus::Reset);
        tokio::time::sleep(PAUSE).await;
    }
}

impl Desk {
    /// Works with one keeper until it is gone; says whether it has left in order.
    async fn with(
        &mut self,
        found: Found,
        from_agent: &mut mpsc::Receiver<ToKeeper>,
        hearing: &mut Hearing,
    ) -> bool {
        let Found { stream, mut incoming, keeper, .. } = found;
        let changed = self.shared.keeper.borrow().instance != keeper.instance;
        self.shared.keeper.send_replace(keeper);
        if changed {
            self.shared.ready.send_replace(false);
        }
        self.shared.beat_now.notify_one();
        let Ok(stream) = UnixStream::from_std(stream) else { return false };
        let (mut read, mut write) = stream.into_split();
        let mut out = Vec::new();
        loop {
            match self.take(&mut incoming).await {
                Ok(false) => {}
                Ok(true) => return true,
                Err(()) => return false,
            }
            tokio::select! {
                // What the keeper says first: it makes room for more requests.
                biased;
                read = more(&mut read, &mut incoming) => if !read { return false },
                Some(message) = from_agent.recv() => {
                    put(&mut out, &message);
                    while let Ok(message) = from_agent.try_recv() {
                        put(&mut out, &message);
                    }
                }
                batch = hearing.next_batch(256), if self.pending.len() < MOST_PENDING => {
                    if batch.is_empty() {
                        // The connection to the bus is closed for good.
                        std::future::pending::<()>().await;
                    }
                    for message in batch {
                        self.ask(message, &mut out);
                    }
                }
            }
            if !out.is_empty() && !tell(&mut write, &mut read, &mut incoming, &mut out).await {
                return false;
            }
        }
    }

    fn ask(&mut self, message: Message, out: &mut Vec<u8>) {
        let last = message.subject.rsplit('.').next().unwrap_or_default();
        let Some(verb) = Verb::ALL.into_iter().find(|verb| verb.as_str() == last) else { return };
        self.next_id += 1;
        let ask = ToKeeper::Ask {
            id: self.next_id,
            verb,
            msgpack: message.encoding == Encoding::MsgPack,
            payload: Blob(message.payload.clone()),
        };
        put(out, &ask);
        self.pending.insert(self.next_id, message);
    }

    /// Takes in every whole message; says whether it was the last.
    async fn take(&mut self, incoming: &mut Incoming) -> Result<bool, ()> {
        loop {
            let message = match incoming.pull::<FromKeeper>() {
                Ok(Some(message)) => message,
                Ok(None) => return Ok(false),
                Err(error) => {
                    tracing::error!(%error, "the keeper cannot be understood");
                    return Err(());
                }
            };
            match message {
                FromKeeper::Answer { id, answer } => {
                    if let Some(asked) = self.pending.remove(&id) {
                        self.answer(asked, answer).await;
                    }
                }
                FromKeeper::Reports(reports) => {
                    let _ = self.words.report.send(ToReport::Reports(reports));
                }
                FromKeeper::Failed { instances } => {
                    let _ = self.words.report.send(ToReport::Failed(instances));
                }
                FromKeeper::Frames { id, live, owner, work, stream, payload } => {
                    let frames = ToBus::Frames { id, live, owner, work, stream, payload };
                    let _ = self.words.frame.send(frames);
                }
                FromKeeper::State(state) => {
                    let closes = state.leaving && !self.shared.keeper.borrow().state.leaving;
                    self.shared.keeper.send_modify(|keeper: &mut Keeper| keeper.state = state);
                    if closes {
                        // The sooner it is known, the fewer jobs come in vain.
                        self.shared.beat_now.notify_one();
                    }
                }
                FromKeeper::Left => {
                    self.shared.keeper.send_modify(|keeper: &mut Keeper| keeper.left = true);
                    return Ok(true);
                }
                FromKeeper::Welcome { .. } | FromKeeper::Refused { .. } => return Err(()),
            }
        }
    }

    async fn answer(&mut self, asked: Message, answer: Answer) {
        let bus = &self.shared.bus;
        let sent = match &answer {
            Answer::Jobs(answer) => asked.answer(bus, answer).await,
            Answer::Stop(answer) => asked.answer(bus, answer).await,
            Answer::Held(answer) => asked.answer(bus, answer).await,
            Answer::Read(answer) => asked.answer(bus, answer).await,
            Answer::Refused(refusal) => {
                self.shared.refused.fetch_add(1, Ordering::Relaxed);
                tracing::warn!(subject = asked.subject, %refusal, "request refused");
                if refusal.code == code::NOT_ME {
                    let (bus, refusal) = (bus.clone(), refusal.clone());
                    tokio::spawn(async move {
                        tokio::time::sleep(LET_THE_OTHER).await;
                        let _ = asked.refuse(&bus, &refusal).await;
                    });
                    return;
                }
                asked.refuse(bus, refusal).await
            }
        };
        if let Err(error) = sent {
            tracing::debug!(%error, "an answer could not be sent");
        }
        if matches!(answer, Answer::Jobs(_) | Answer::Held(_)) {
            self.shared.report_now.notify_one();
            self.shared.ready.send_if_modified(|ready| !std::mem::replace(ready, true));
        }
    }
}

/// Writes, and reads meanwhile: two that only write would wait for each other for ever.
async fn tell(
    write: &mut OwnedWriteHalf,
    read: &mut OwnedReadHalf,
    incoming: &mut Incoming,
    out: &mut Vec<u8>,
) -> bool {
    let mut written = 0;
    while written < out.len() {
        tokio::select! {
            n = write.write(&out[written..]) => match n {
                Ok(n @ 1..) => written += n,
                _ => return false,
            },
            read = more(read, incoming) => if !read { return false },
        }
    }
    out.clear();
    out.shrink_to(256 * 1024);
    true
}

/// Reads what there is; says whether the other side is still there.
async fn more(read: &mut OwnedReadHalf, incoming: &mut Incoming) -> bool {
    let mut buffer = [0; 64 * 1024];
    match read.read(&mut buffer).await {
        Ok(n @ 1..) => {
            incoming.push(&buffer[..n]);
            true
        }
        _ => false,
    }
}
