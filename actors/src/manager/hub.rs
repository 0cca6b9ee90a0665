//! What all followers share: one tail of the output, one ear for what is not stored, one for
//! acknowledgements; and the latest facts, so that each is read from the bus once.
//!
//! A follower who cannot keep up costs nobody anything: what does not fit into his queue is dropped
//! and marked, and he reads it again from the stream.

use super::{
    Settings,
    core::Core,
    sweep::{self, Kept},
};
use bus::{
    Bus, Connection, Error, Hearing,
    log::{Stored, Tail},
};
use futures::{FutureExt, StreamExt};
use schemas::{
    fact::Fact,
    id::{Seq, WorkId},
    output::Frames,
    subject,
    time::Stamp,
    token::PoolName,
};
use std::{
    collections::{BTreeMap, VecDeque},
    panic::AssertUnwindSafe,
    sync::{
        Arc, Mutex, MutexGuard, PoisonError,
        atomic::{AtomicBool, AtomicU64, Ordering},
    },
    time::Duration,
};
use tokio::{
    sync::{Notify, OnceCell, mpsc, watch},
    task::AbortHandle,
};

/// Messages of output that wait for one follower.
const QUEUE: usize = 32;
/// Acknowledgements that wait for one follower.
const ACKS: usize = 1024;
/// What does not work now is tried again after so long.
const AGAIN: Duration = Duration::from_millis(100);
/// Bytes of facts that are kept for followers.
const RECENT_BYTES: usize = 4 * 1024 * 1024;

/// A fact of the journal, read once.
#[derive(Clone, Debug)]
pub(crate) struct ReadFact {
    /// When it was stored.
    pub at: Stamp,
    /// What it says.
    pub fact: Arc<Fact>,
}

/// A message of output, for all who follow its work.
#[derive(Debug)]
pub(crate) enum Heard {
    /// It is stored.
    Stored(Stored),
    /// It is not.
    Live {
        /// Where it was said.
        subject: String,
        /// What it says.
        frames: Frames,
    },
}

/// Word from who follows.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Ack {
    /// He has read everything up to this reply.
    Read(u64),
    /// Nobody listens there any more.
    Nobody,
}

/// What all followers hear through, over one connection.
struct OutputEars {
    tail: Tail,
    live: Hearing,
    connection: watch::Receiver<Connection>,
    made: u64,
}

/// How the common tail stands.
enum Tailing {
    GoesOn,
    NobodyFollows,
    Broken,
}

/// One follower, as those who feed him see him.
pub(crate) struct Seat {
    /// Which work he follows.
    pub work: WorkId,
    output: mpsc::Sender<Arc<Heard>>,
    acks: mpsc::Sender<Ack>,
    /// Something did not fit into his queue.
    pub lagged: AtomicBool,
    /// Something has changed for him.
    pub news: Notify,
}

/// What a follower is fed through.
pub(crate) struct Ears {
    /// Output as it comes.
    pub output: mpsc::Receiver<Arc<Heard>>,
    /// Acknowledgements.
    pub acks: mpsc::Receiver<Ack>,
    /// His seat.
    pub seat: Arc<Seat>,
    /// His session: the first part of the token in his reply subjects.
    pub session: String,
    hub: Arc<Hub>,
}

#[derive(Default)]
struct Seats {
    by_work: BTreeMap<WorkId, Vec<Arc<Seat>>>,
    by_session: BTreeMap<String, Arc<Seat>>,
    tailing: bool,
}

#[derive(Default)]
struct Recent {
    facts: BTreeMap<(PoolName, Seq), ReadFact>,
    order: VecDeque<(PoolName, Seq, usize)>,
    bytes: usize,
}

/// What all followers share.
pub(crate) struct Hub {
    /// The control connection.
    pub bus: Bus,
    /// How the manager is set up.
    pub settings: Settings,
    /// What is known.
    core: Mutex<Core>,
    /// Counts with every batch of facts that was taken in.
    pub progress: watch::Sender<u64>,
    /// Set when the manager stops.
    pub stopping: watch::Sender<bool>,
    /// Frames that could not be read, or were said by a node that may not.
    pub garbage: AtomicU64,
    bulk: OnceCell<Bus>,
    beginning: tokio::sync::Mutex<()>,
    seats: Mutex<Seats>,
    recent: Mutex<Recent>,
    tasks: Mutex<Vec<AbortHandle>>,
}

fn locked<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    // A panic elsewhere ends the actor; what is read here is still whole.
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Hub {
    pub(crate) fn new(bus: Bus, settings: Settings, core: Core) -> Arc<Self> {
        Arc::new(Self {
            bus,
            settings,
            core: Mutex::new(core),
            progress: watch::Sender::new(0),
            stopping: watch::Sender::new(false),
            garbage: AtomicU64::new(0),
            bulk: OnceCell::new(),
            beginning: tokio::sync::Mutex::default(),
            seats: Mutex::default(),
            recent: Mutex::default(),
            tasks: Mutex::default(),
        })
    }

    /// What is known; held for a moment only.
    pub(crate) fn core(&self) -> MutexGuard<'_, Core> {
        locked(&self.core)
    }

    /// The connection for output, with an ear for acknowledgements.
    pub(crate) async fn bulk(self: &Arc<Self>) -> Result<Bus, Error> {
        let hub = self.clone();
        let open = || async move {
            let bulk = hub.bus.bulk().await?;
            let mut acks = bulk.hear("lh.ack.*.*").await?;
            bulk.flush().await?;
            let ear = hub.clone();
            let ear = tokio::spawn(async move {
                while let Some(message) = acks.next().await {
                    ear.acknowledged(&message.subject, message.nobody);
                }
            });
            locked(&hub.tasks).push(ear.abort_handle());
            Ok(bulk)
        };
        self.bulk.get_or_try_init(open).await.cloned()
    }

    fn acknowledged(&self, subject: &str, nobody: bool) {
        let token = subject.split('.').nth(2).unwrap_or_default();
        let Some((session, n)) = token.split_once('-') else { return };
        let Ok(n) = n.parse() else { return };
        let seat = locked(&self.seats).by_session.get(session).cloned();
        if let Some(seat) = seat {
            let ack = if nobody { Ack::Nobody } else { Ack::Read(n) };
            // One that does not fit is covered by the next.
            let _ = seat.acks.try_send(ack);
        }
    }

    /// Takes a seat: from now on everything about the work's output is heard.
    pub(crate) async fn sit(self: &Arc<Self>, work: WorkId) -> Result<Ears, Error> {
        let (output_tx, output) = mpsc::channel(QUEUE);
        let (acks_tx, acks) = mpsc::channel(ACKS);
        let seat = Arc::new(Seat {
            work,
            output: output_tx,
            acks: acks_tx,
            lagged: AtomicBool::new(false),
            news: Notify::new(),
        });
        let session = std::iter::repeat_with(fastrand::alphanumeric)
            .map(|c| c.to_ascii_lowercase())
            .take(20)
            .collect::<String>();
        // Who sits down while the tail begins must wait for it, or he would miss what comes between.
        let _begun = self.beginning.lock().await;
        let start = {
            let mut seats = locked(&self.seats);
            seats.by_work.entry(work).or_default().push(seat.clone());
            seats.by_session.insert(session.clone(), seat.clone());
            !std::mem::replace(&mut seats.tailing, true)
        };
        let ears = Ears { output, acks, seat, session, hub: self.clone() };
        if start && let Err(error) = self.start_tail().await {
            locked(&self.seats).tailing = false;
            return Err(error);
        }
        Ok(ears)
    }

    async fn start_tail(self: &Arc<Self>) -> Result<(), Error> {
        let mut ears = self.open_ears().await?;
        let hub = self.clone();
        let tail = tokio::spawn(async move {
            loop {
                // One message that this cannot bear must not cost all followers their output.
                let handed = AssertUnwindSafe(hub.hand_on(&mut ears)).catch_unwind().await;
                match handed.unwrap_or(Tailing::Broken) {
                    Tailing::GoesOn => {}
                    Tailing::NobodyFollows => return,
                    Tailing::Broken => {
                        ears = loop {
                            match hub.open_ears().await {
                                Ok(opened) => break opened,
                                Err(error) => tracing::debug!(%error, "output cannot be heard"),
                            }
                            tokio::time::sleep(AGAIN).await;
                        };
                        hub.all_lag();
                    }
                }
            }
        });
        let mut tasks = locked(&self.tasks);
        tasks.retain(|task| !task.is_finished());
        tasks.push(tail.abort_handle());
        Ok(())
    }

    /// Hears nothing more.
    pub(crate) fn end(&self) {
        locked(&self.tasks).drain(..).for_each(|task| task.abort());
    }

    async fn open_ears(self: &Arc<Self>) -> Result<OutputEars, Error> {
        let bulk = self.bulk().await?;
        let mut connection = bulk.connection();
        let made = connection.borrow_and_update().made;
        let log = bulk.log(bus::streams::OUTPUT);
        let from = log.state().await?.last + 1;
        let (tail, live) = (log.tail("lh.out.>", from).await?, bulk.hear("lh.live.>").await?);
        bulk.flush().await?;
        Ok(OutputEars { tail, live, connection, made })
    }

    async fn hand_on(&self, ears: &mut OutputEars) -> Tailing {
        let OutputEars { tail, live, connection, made } = ears;
        tokio::select! {
            // The bus may have lost its last moments: what comes then has numbers that were there
            // before.
            _ = connection.wait_for(|now| now.made != *made) => return Tailing::Broken,
            stored = tail.next_batch(64) => {
                if stored.is_empty() {
                    return Tailing::Broken;
                }
                for message in stored {
                    if let Some(out) = subject::parse_out(&message.subject) {
                        self.hand_out(out.work, Heard::Stored(message));
                    }
                }
            }
            said = live.next_batch(64) => {
                if said.is_empty() {
                    return Tailing::Broken;
                }
                for message in said {
                    self.hear_live(message);
                }
            }
        }
        if self.nobody_follows() { Tailing::NobodyFollows } else { Tailing::GoesOn }
    }

    /// Nobody has heard everything: all read again from the stream.
    fn all_lag(&self) {
        for seat in locked(&self.seats).by_session.values() {
            seat.lagged.store(true, Ordering::Release);
            seat.news.notify_one();
        }
    }

    fn nobody_follows(&self) -> bool {
        let mut seats = locked(&self.seats);
        if seats.by_session.is_empty() {
            seats.tailing = false;
        }
        !seats.tailing
    }

    fn hear_live(&self, message: bus::Message) {
        let Some(out) = subject::parse_out(&message.subject) else { return };
        if !locked(&self.seats).by_work.contains_key(&out.work) {
            return;
        }
        match message.decode::<Frames>() {
            Ok(frames) => {
                self.hand_out(out.work, Heard::Live { subject: message.subject, frames });
            }
            Err(error) => self.count_garbage(&message.subject, &error.message),
        }
    }

    /// Something was said that makes no sense.
    pub(crate) fn count_garbage(&self, subject: &str, why: &str) {
        let count = self.garbage.fetch_add(1, Ordering::Relaxed) + 1;
        tracing::warn!(subject, why, count, "output that is not shown");
    }

    fn hand_out(&self, work: WorkId, heard: Heard) {
        let seats = locked(&self.seats).by_work.get(&work).cloned();
        let stored = matches!(heard, Heard::Stored(_));
        let heard = Arc::new(heard);
        for seat in seats.into_iter().flatten() {
            if seat.output.try_send(heard.clone()).is_err() && stored {
                seat.lagged.store(true, Ordering::Release);
                seat.news.notify_one();
            }
        }
    }

    /// Something of these works has changed.
    pub(crate) fn news(&self, works: &[WorkId]) {
        let seats = locked(&self.seats);
        if seats.by_session.is_empty() {
            return;
        }
        for seat in works.iter().filter_map(|work| seats.by_work.get(work)).flatten() {
            seat.news.notify_one();
        }
    }

    /// Keeps a fact for followers, for a while.
    pub(crate) fn keep(&self, pool: &PoolName, seq: Seq, bytes: usize, read: ReadFact) {
        if locked(&self.seats).by_session.is_empty() {
            return;
        }
        let mut recent = locked(&self.recent);
        if recent.facts.insert((pool.clone(), seq), read).is_none() {
            recent.order.push_back((pool.clone(), seq, bytes));
            recent.bytes += bytes;
        }
        while recent.bytes > RECENT_BYTES
            && let Some((pool, seq, bytes)) = recent.order.pop_front()
        {
            recent.bytes -= bytes;
            recent.facts.remove(&(pool, seq));
        }
    }

    /// Forgets what was kept of a journal that turned out to be another.
    pub(crate) fn forget_recent(&self) {
        *locked(&self.recent) = Recent::default();
    }

    /// The place of the last message of a journal that is still there.
    pub(crate) async fn end_of(&self, pool: &PoolName) -> Result<Seq, Error> {
        let log = self.bus.log(bus::streams::journal(pool));
        let last = log.last(&format!("lh.fact.{pool}.>")).await?;
        Ok(last.map_or(0, |stored| stored.seq))
    }

    /// Makes room in the stream of output, when it is nearly full.
    pub(crate) async fn sweep(&self, now: Stamp) -> Result<(), Error> {
        let log = self.bus.log(bus::streams::OUTPUT);
        let state = log.state().await?;
        if !sweep::is_full(state.bytes, state.max_bytes) {
            return Ok(());
        }
        let mut kept: BTreeMap<WorkId, Kept> = BTreeMap::new();
        for (at, messages) in log.subjects("lh.out.>").await? {
            let Some(out) = subject::parse_out(&at) else { continue };
            let entry = kept.entry(out.work).or_insert_with(|| Kept {
                owner: out.owner,
                work: out.work,
                messages: 0,
                ended_at: self.core().ended_at(out.work),
            });
            entry.messages += messages;
        }
        let kept: Vec<Kept> = kept.into_values().collect();
        let until = now.minus_ms(self.settings.output_stays_s.ms);
        for (owner, work) in sweep::choose(&kept, until) {
            tracing::info!(%owner, %work, "output makes room");
            log.purge(&format!("lh.out.{owner}.{work}.>"), None).await?;
        }
        Ok(())
    }

    /// A message of a journal; `None` when it is gone or makes no sense.
    pub(crate) async fn fact(&self, pool: &PoolName, seq: Seq) -> Result<Option<ReadFact>, Error> {
        if let Some(read) = locked(&self.recent).facts.get(&(pool.clone(), seq)) {
            return Ok(Some(read.clone()));
        }
        let stored = self.bus.log(bus::streams::journal(pool)).get(seq).await?;
        Ok(stored.and_then(|stored| {
            let fact = read_fact(&stored)?;
            Some(ReadFact { at: stored.at, fact: Arc::new(fact) })
        }))
    }
}

/// Reads a message of a journal; what makes no sense is logged.
pub(crate) fn read_fact(stored: &Stored) -> Option<Fact> {
    let Some(at) = subject::parse_fact(&stored.subject) else {
        tracing::warn!(subject = stored.subject, seq = stored.seq, "no subject of a fact");
        return None;
    };
    match Fact::from_json(at.kind, &stored.payload) {
        Ok(fact) => Some(fact),
        Err(error) => {
            tracing::warn!(subject = stored.subject, seq = stored.seq, %error, "no fact");
            None
        }
    }
}

impl Drop for Ears {
    fn drop(&mut self) {
        let mut seats = locked(&self.hub.seats);
        seats.by_session.remove(&self.session);
        if let Some(at) = seats.by_work.get_mut(&self.seat.work) {
            at.retain(|seat| !Arc::ptr_eq(seat, &self.seat));
            if at.is_empty() {
                seats.by_work.remove(&self.seat.work);
            }
        }
    }
}
