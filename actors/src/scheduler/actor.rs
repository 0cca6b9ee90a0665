//! The scheduler's shell: hears the journal, nodes, clients and the lease, and does what the machine
//! says. Nothing is decided here.
//!
//! Everything that is heard is put into one queue; the actor takes all that is there at once, so
//! that one step serves one event when little happens and thousands when much does.

use super::{
    Settings,
    core::{Action, ClientReply, ClientRequest, Core, Event, NoAnswer, NodeAnswer, NodeRequest},
    keep::{self, Process},
};
use crate::ear;
use bus::{
    Asked, Bus, Endpoint, Message, Service, Serving, StoreError, clock,
    log::{Expect, Log, Stored},
    streams::journal,
};
use ractor::{Actor, ActorProcessingErr, ActorRef};
use schemas::{
    catalog,
    codec::{self, Encoding},
    error::{Refusal, code},
    fact::{Fact, FactError},
    id::{Epoch, Seq},
    node::Beat,
    outcome::Summary,
    request::{Explain, NodeChange, Nodes, PoolChange},
    subject::{self, SCHED_VERBS},
    time::{Millis, Stamp},
    token::{CallerName, NodeName, PoolName},
    work::check::nearest,
};
use std::{
    collections::BTreeMap,
    sync::{
        Arc, Mutex, MutexGuard, PoisonError,
        atomic::{AtomicBool, AtomicU64, Ordering},
    },
    time::Duration,
};
use tokio::{
    sync::{Semaphore, mpsc, oneshot, watch},
    task::{JoinHandle, JoinSet},
};

/// Facts that are taken from the journal at a time.
const FACTS: usize = 1024;
/// Messages that are taken from a subscription at a time.
const MESSAGES: usize = 1024;
/// Heard things that may wait for the machine.
const WAITING: usize = 16 * 1024;
/// How often the machine is told that time passes.
const TICK: Duration = Duration::from_millis(100);
/// How long a scheduler that stops waits for what is on its way.
const STOPPING: Duration = Duration::from_secs(2);
/// After so long what could not be begun is begun again.
const AGAIN: Duration = Duration::from_millis(250);

/// Why a scheduler could not start.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// The bus does not do what is needed.
    #[error("the scheduler cannot start")]
    Bus(#[from] bus::Error),
    /// Its actor did not start, or has ended.
    #[error("the scheduler has ended: {0}")]
    Ended(String),
}

/// A scheduler that runs.
#[derive(Debug)]
pub struct Handle {
    actor: ActorRef<Msg>,
    join: JoinHandle<()>,
    ready: watch::Receiver<bool>,
}

impl Handle {
    /// Waits until it acts for the pool, or knows that another one does.
    pub async fn ready(&self) -> Result<(), Error> {
        let mut ready = self.ready.clone();
        let waited = ready.wait_for(|ready| *ready).await;
        waited.map(|_| ()).map_err(|_| Error::Ended("before it was ready".to_owned()))
    }

    /// Waits until it has ended by itself, which it does only when something is badly wrong.
    pub async fn ended(&mut self) {
        let _ = (&mut self.join).await;
    }

    /// Takes nothing more, waits for what is on its way, gives the lease back, and ends.
    pub async fn stop(mut self) {
        let (done, stopped) = oneshot::channel();
        if self.actor.cast(Msg::Stop(done)).is_ok() {
            let _ = stopped.await;
        }
        self.actor.stop(None);
        self.ended().await;
    }
}

/// Starts a scheduler of a pool: folds its journal, then acts as soon as nobody else does.
/// With `process` it need not wait for the lease of one that died on this machine.
pub async fn start(
    bus: Bus,
    pool: PoolName,
    settings: Settings,
    process: Option<Process>,
) -> Result<Handle, Error> {
    let life = uuid::Uuid::now_v7();
    let (is_ready, ready) = watch::channel(false);
    let arguments = Arguments { bus, pool, settings, process, life, is_ready };
    let (actor, join) = Actor::spawn(None, Scheduler, arguments)
        .await
        .map_err(|error| Error::Ended(error.to_string()))?;
    Ok(Handle { actor, join, ready })
}

/// What the actor is told. Events are not in it: they lie in the queue.
#[derive(Debug)]
pub(super) enum Msg {
    /// Something is in the queue.
    Wake,
    /// The journal is not what was folded.
    Anew(u64),
    /// The journal holds what only a newer version understands.
    TooNew(String),
    /// It is to end.
    Stop(oneshot::Sender<()>),
}

/// What the lease's keeper is told.
pub(super) enum Note {
    /// The scheduler does not act.
    GiveUp,
    /// The scheduler ends.
    Stop(oneshot::Sender<()>),
}

/// What was heard, and in which turn of folding: after a turn, what belongs to an earlier one is
/// dropped.
struct Heard {
    turn: u64,
    event: Event,
    permit: bool,
}

/// What waits for the machine.
pub(super) struct Queue {
    waiting: Mutex<Vec<Heard>>,
    room: Semaphore,
    is_woken: AtomicBool,
    actor: ActorRef<Msg>,
}

impl Queue {
    /// Puts in what comes from outside, as soon as there is room.
    async fn put(&self, turn: u64, events: Vec<Event>) {
        let count = u32::try_from(events.len().min(WAITING)).unwrap_or(1);
        let Ok(permits) = self.room.acquire_many(count).await else { return };
        permits.forget();
        let counted = count as usize;
        let heard = |(at, event)| Heard { turn, event, permit: at < counted };
        locked(&self.waiting).extend(events.into_iter().enumerate().map(heard));
        self.wake();
    }

    /// Puts in what answers to something that was done: there is never too much of it.
    pub(super) fn put_now(&self, turn: u64, event: Event) {
        locked(&self.waiting).push(Heard { turn, event, permit: false });
        self.wake();
    }

    fn wake(&self) {
        if !self.is_woken.swap(true, Ordering::AcqRel) {
            let _ = self.actor.cast(Msg::Wake);
        }
    }

    fn take(&self, turn: u64) -> Vec<Event> {
        self.is_woken.store(false, Ordering::Release);
        let all = std::mem::take(&mut *locked(&self.waiting));
        self.room.add_permits(all.iter().filter(|heard| heard.permit).count());
        all.into_iter().filter(|heard| heard.turn == turn).map(|heard| heard.event).collect()
    }
}

/// Of which kind a question was, so that its answer can be read, and until when it may come.
#[derive(Clone, Copy)]
enum Kind {
    Jobs,
    Stop,
    Held,
}

/// What the ears and the actor share.
pub(super) struct Shared {
    pub(super) bus: Bus,
    pub(super) pool: PoolName,
    pub(super) settings: Settings,
    /// Who this process is, for people and for the lease.
    pub(super) name: String,
    pub(super) process: Option<Process>,
    pub(super) queue: Queue,
    pub(super) turn: AtomicU64,
    /// Everything that was stored when folding began is folded.
    pub(super) is_caught_up: watch::Sender<bool>,
    /// The highest epoch that any node has told.
    pub(super) told: AtomicU64,
    pub(super) is_ready: watch::Sender<bool>,
    inbox: String,
    asks: Mutex<BTreeMap<u64, (Kind, Millis)>>,
    tokens: Mutex<BTreeMap<u64, Asked>>,
    next_token: AtomicU64,
    garbage: AtomicU64,
    /// The last message that was read of the journal.
    last: Mutex<Option<(Seq, Stamp)>>,
}

impl Shared {
    fn last_folded(&self) -> Option<(Seq, Stamp)> {
        *locked(&self.last)
    }

    pub(super) fn log(&self) -> Log {
        self.bus.log(journal(&self.pool))
    }

    pub(super) fn now_turn(&self) -> u64 {
        self.turn.load(Ordering::Acquire)
    }

    fn token_for(&self, asked: Asked) -> u64 {
        let token = self.next_token.fetch_add(1, Ordering::Relaxed);
        locked(&self.tokens).insert(token, asked);
        token
    }

    fn take_asked(&self, token: u64) -> Option<Asked> {
        locked(&self.tokens).remove(&token)
    }

    fn count_garbage(&self, subject: &str, why: &dyn std::fmt::Display) {
        let count = self.garbage.fetch_add(1, Ordering::Relaxed) + 1;
        // Each of many would only fill the disk.
        if count.is_power_of_two() {
            tracing::warn!(subject, %why, count, "a message makes no sense");
        }
    }
}

fn locked<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

struct Scheduler;

struct Arguments {
    bus: Bus,
    pool: PoolName,
    settings: Settings,
    process: Option<Process>,
    life: uuid::Uuid,
    is_ready: watch::Sender<bool>,
}

struct State {
    core: Core,
    shared: Arc<Shared>,
    log: Log,
    seed: u64,
    ears: Vec<JoinHandle<()>>,
    tail: JoinHandle<()>,
    serving: Option<JoinHandle<()>>,
    writes: JoinSet<()>,
    notes: mpsc::UnboundedSender<Note>,
    summaries: mpsc::UnboundedSender<(Box<Summary>, Epoch, Seq)>,
    is_stopping: bool,
}

impl Actor for Scheduler {
    type Msg = Msg;
    type State = State;
    type Arguments = Arguments;

    async fn pre_start(
        &self,
        me: ActorRef<Msg>,
        arguments: Arguments,
    ) -> Result<State, ActorProcessingErr> {
        let Arguments { bus, pool, settings, process, life, is_ready } = arguments;
        let seed = life.as_u128() as u64;
        let inbox = bus.new_inbox();
        let queue = Queue {
            waiting: Mutex::new(Vec::new()),
            room: Semaphore::new(WAITING),
            is_woken: AtomicBool::new(false),
            actor: me.clone(),
        };
        let shared = Arc::new(Shared {
            name: format!("scheduler {life}"),
            process,
            queue,
            turn: AtomicU64::new(0),
            is_caught_up: watch::Sender::new(false),
            told: AtomicU64::new(0),
            is_ready,
            inbox,
            asks: Mutex::new(BTreeMap::new()),
            tokens: Mutex::new(BTreeMap::new()),
            next_token: AtomicU64::new(1),
            garbage: AtomicU64::new(0),
            last: Mutex::new(None),
            bus,
            pool,
            settings,
        });
        let beats = shared.bus.hear("lh.beat.*").await?;
        let answers = shared.bus.hear(&format!("{}.*", shared.inbox)).await?;
        let (notes, noted) = mpsc::unbounded_channel();
        let (summaries, written) = mpsc::unbounded_channel();
        let watch = watch_connection(shared.clone(), me.clone());
        let ears = vec![
            ear::open(&me, hear_beats(shared.clone(), beats)),
            ear::open(&me, hear_answers(shared.clone(), answers)),
            ear::open(&me, watch),
            ear::open(&me, tick(shared.clone())),
            ear::open(&me, keep::keep_lease(shared.clone(), noted)),
            ear::open(&me, keep::write_summaries(shared.bus.clone(), written)),
        ];
        let core = Core::new(shared.pool.clone(), shared.settings.clone(), seed);
        let tail = ear::open(&me, tail(shared.clone(), me.clone(), 0));
        Ok(State {
            core,
            log: shared.log(),
            shared,
            seed,
            ears,
            tail,
            serving: None,
            writes: JoinSet::new(),
            notes,
            summaries,
            is_stopping: false,
        })
    }

    async fn handle(
        &self,
        _: ActorRef<Msg>,
        message: Msg,
        state: &mut State,
    ) -> Result<(), ActorProcessingErr> {
        match message {
            Msg::Wake => state.wake().await,
            Msg::Anew(turn) => state.anew(turn).await,
            Msg::TooNew(why) => state.too_new(&why).await,
            Msg::Stop(done) => state.stop(done).await,
        }
        Ok(())
    }
}

// Not when the actor stops: one that fails must not keep the lease either.
impl Drop for State {
    fn drop(&mut self) {
        self.tail.abort();
        for ear in self.ears.iter().chain(&self.serving) {
            ear.abort();
        }
    }
}

impl State {
    async fn wake(&mut self) {
        let now = clock::now();
        let mut events = self.shared.queue.take(self.shared.now_turn());
        self.give_up_waiting(now.at, &mut events);
        let actions = self.core.step(now, events);
        self.shared.told.fetch_max(self.core.highest_told(), Ordering::AcqRel);
        for action in actions {
            self.perform(action).await;
        }
        while self.writes.try_join_next().is_some() {}
    }

    /// Questions whose answer has not come in time.
    fn give_up_waiting(&self, now: Millis, events: &mut Vec<Event>) {
        let mut asks = locked(&self.shared.asks);
        while let Some((&n, &(_, until))) = asks.first_key_value() {
            if until > now {
                return;
            }
            asks.remove(&n);
            events.push(Event::Answered { n, answer: Err(NoAnswer::Silence) });
        }
    }

    async fn perform(&mut self, action: Action) {
        match action {
            Action::Append { id, subject, fact, fence } => {
                self.append(id, &subject, &fact, fence).await;
            }
            Action::Ask { n, node, request } => self.ask(n, &node, &request).await,
            Action::AnswerReport { token, answer } => {
                if let Some(asked) = self.shared.take_asked(token) {
                    asked.answer(&answer).await;
                }
            }
            Action::Answer { token, reply } => {
                let Some(asked) = self.shared.take_asked(token) else { return };
                match reply {
                    ClientReply::Explained(reply) => asked.answer(&reply).await,
                    ClientReply::Nodes(reply) => asked.answer(&reply).await,
                    ClientReply::Done(reply) => asked.answer(&reply).await,
                }
            }
            Action::Refuse { token, refusal } => {
                if let Some(asked) = self.shared.take_asked(token) {
                    asked.refuse(&refusal).await;
                }
            }
            Action::Act => self.act().await,
            Action::StopActing { why } => self.stop_acting(why),
            Action::WriteSummary { summary, epoch, seq } => {
                let _ = self.summaries.send((summary, epoch, seq));
            }
        }
    }

    async fn append(&mut self, id: u64, subject: &str, fact: &Fact, fence: Seq) {
        let expect = Expect::Fence { subject: subject::epoch(&self.shared.pool), seq: fence };
        let sent = self.log.send(subject, fact.to_json().into(), &expect).await;
        let (shared, turn) = (self.shared.clone(), self.shared.now_turn());
        let subject = subject.to_owned();
        self.writes.spawn(async move {
            let event = match sent.stored().await {
                Ok(seq) => Event::Written { id, seq },
                Err(StoreError::Conflict) => Event::Fenced,
                Err(error) => {
                    tracing::warn!(subject, %error, "a fact could not be stored yet");
                    Event::Unanswered { id }
                }
            };
            shared.queue.put_now(turn, event);
        });
    }

    async fn ask(&mut self, n: u64, node: &NodeName, request: &NodeRequest) {
        let (kind, verb, payload) = match request {
            NodeRequest::Jobs(r) => (Kind::Jobs, "jobs", codec::encode(Encoding::MsgPack, r)),
            NodeRequest::Stop(r) => (Kind::Stop, "stop", codec::encode(Encoding::MsgPack, r)),
            NodeRequest::Held(r) => (Kind::Held, "held", codec::encode(Encoding::MsgPack, r)),
        };
        let until = clock::at() + self.shared.settings.ask_timeout_s.ms;
        locked(&self.shared.asks).insert(n, (kind, until));
        let reply = Some(format!("{}.{n}", self.shared.inbox));
        let at = subject::node(node, verb);
        let is_up = self.shared.bus.is_up();
        let sent = match is_up {
            true => self.shared.bus.send(&at, reply, Encoding::MsgPack, payload.into()).await,
            false => Ok(()),
        };
        if let Err(error) = sent {
            tracing::warn!(subject = at, %error, "a node could not be asked");
        }
    }

    /// Begins to answer: the requests of this pool, and what its nodes report.
    async fn act(&mut self) {
        match self.shared.bus.serve(service(&self.shared.pool)).await {
            Ok(serving) => {
                let shared = self.shared.clone();
                let actor = &self.shared.queue.actor;
                self.serving = Some(ear::open(actor, hear_requests(shared, serving)));
                self.shared.is_ready.send_replace(true);
                let epoch = self.core.acting();
                tracing::info!(pool = %self.shared.pool, epoch, "the scheduler acts");
            }
            Err(error) => {
                tracing::warn!(%error, "requests cannot be answered: the lease is given up");
                self.shared.queue.put_now(self.shared.now_turn(), Event::LeaseLost);
            }
        }
    }

    fn stop_acting(&mut self, why: &str) {
        if let Some(serving) = self.serving.take() {
            serving.abort();
        }
        // Who waits asks again, and is answered by who acts then.
        locked(&self.shared.tokens).clear();
        locked(&self.shared.asks).clear();
        let _ = self.notes.send(Note::GiveUp);
        if !self.is_stopping {
            tracing::warn!(pool = %self.shared.pool, why, "the scheduler acts no more");
        }
    }

    /// Forgets everything and folds the journal from its start; acts again under a new epoch.
    async fn anew(&mut self, turn: u64) {
        if turn != self.shared.now_turn() || self.is_stopping {
            return;
        }
        tracing::warn!(pool = %self.shared.pool, "the journal is not what was folded");
        self.tail.abort();
        self.shared.is_caught_up.send_replace(false);
        self.stop_acting("the journal is folded again");
        self.shared.turn.store(turn + 1, Ordering::Release);
        *locked(&self.shared.last) = None;
        self.seed = self.seed.wrapping_add(1);
        let (pool, settings) = (self.shared.pool.clone(), self.shared.settings.clone());
        self.core = Core::new(pool, settings, self.seed);
        let actor = self.shared.queue.actor.clone();
        self.tail = ear::open(&actor, tail(self.shared.clone(), actor.clone(), turn + 1));
    }

    /// What a newer version has written must not be judged by this one.
    async fn too_new(&mut self, why: &str) {
        tracing::error!(pool = %self.shared.pool, why, "this version cannot act for the pool");
        self.shared.is_caught_up.send_replace(false);
        let now = clock::now();
        for action in self.core.step(now, [Event::LeaseLost]) {
            self.perform(action).await;
        }
        let _ = self.notes.send(Note::GiveUp);
    }

    async fn stop(&mut self, done: oneshot::Sender<()>) {
        self.is_stopping = true;
        if let Some(serving) = self.serving.take() {
            serving.abort();
        }
        let stored = async { while self.writes.join_next().await.is_some() {} };
        let _ = tokio::time::timeout(STOPPING, stored).await;
        let (gave_up, given_up) = oneshot::channel();
        if self.notes.send(Note::Stop(gave_up)).is_ok() {
            let _ = tokio::time::timeout(STOPPING, given_up).await;
        }
        let _ = done.send(());
    }
}

fn service(pool: &PoolName) -> Service {
    let endpoint = |name: String, subject: String, entry: Option<&catalog::Entry>| Endpoint {
        name,
        subject,
        metadata: entry.map(catalog::Entry::metadata).unwrap_or_default(),
    };
    let verbs = SCHED_VERBS.iter().flat_map(|verb| {
        let (at, entry) = (format!("lh.sched.{pool}.{verb}"), catalog::sched(verb));
        [
            endpoint((*verb).to_owned(), at.clone(), entry),
            endpoint(format!("{verb}-caller"), format!("{at}.*"), entry),
        ]
    });
    let report = format!("lh.report.{pool}.*");
    let entry = catalog::find("report");
    Service {
        name: format!("scheduler-{pool}"),
        version: env!("CARGO_PKG_VERSION").to_owned(),
        description: format!("Decides where the works of the pool {pool} run"),
        queue: format!("scheduler-{pool}"),
        endpoints: verbs.chain([endpoint("report".to_owned(), report, entry)]).collect(),
        rest: vec![format!("lh.sched.{pool}.*"), format!("lh.sched.{pool}.*.*")],
    }
}

async fn tick(shared: Arc<Shared>) {
    let mut interval = tokio::time::interval(TICK);
    interval.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
    loop {
        interval.tick().await;
        shared.queue.put_now(shared.now_turn(), Event::Tick);
    }
}

/// Reads the journal from its start and goes on with what comes.
async fn tail(shared: Arc<Shared>, actor: ActorRef<Msg>, turn: u64) {
    let mut tail = loop {
        match shared.log().tail(&format!("lh.fact.{}.>", shared.pool), 1).await {
            Ok(tail) => break tail,
            Err(error) => {
                tracing::debug!(pool = %shared.pool, %error, "the journal cannot be read yet");
                tokio::time::sleep(AGAIN).await;
            }
        }
    };
    if tail.behind() == 0 {
        caught_up(&shared, turn);
    }
    loop {
        let batch = tail.next_batch(FACTS).await;
        let Some(last) = batch.last() else {
            tracing::error!(pool = %shared.pool, "the journal is gone: the scheduler ends");
            actor.stop(Some("its journal is gone".to_owned()));
            return;
        };
        let all = last.pending == 0;
        *locked(&shared.last) = Some((last.seq, last.at));
        if let Err(error) = put_facts(&shared, turn, &batch).await {
            let _ = actor.cast(Msg::TooNew(error.to_string()));
            return;
        }
        if all {
            caught_up(&shared, turn);
        }
    }
}

fn caught_up(shared: &Shared, turn: u64) {
    if turn == shared.now_turn() {
        shared.is_caught_up.send_if_modified(|all| !std::mem::replace(all, true));
    }
}

/// Fails when the journal holds what only a newer version understands.
async fn put_facts(shared: &Shared, turn: u64, batch: &[Stored]) -> Result<(), FactError> {
    let mut events = Vec::with_capacity(batch.len());
    for stored in batch {
        match read_fact(stored) {
            Ok(Some(event)) => events.push(event),
            Ok(None) => {}
            Err(error @ FactError::Malformed { .. }) => {
                shared.count_garbage(&stored.subject, &error);
            }
            Err(error @ FactError::UnknownKind(_)) => return Err(error),
        }
    }
    shared.queue.put(turn, events).await;
    Ok(())
}

fn read_fact(stored: &Stored) -> Result<Option<Event>, FactError> {
    let Some(at) = subject::parse_fact(&stored.subject) else { return Ok(None) };
    let fact = Arc::new(Fact::from_json(at.kind, &stored.payload)?);
    Ok(Some(Event::Fact { seq: stored.seq, at: stored.at, owner: at.owner, fact }))
}

async fn hear_beats(shared: Arc<Shared>, mut beats: bus::Hearing) {
    loop {
        let batch = beats.next_batch(MESSAGES).await;
        if batch.is_empty() {
            return;
        }
        let mut events = Vec::with_capacity(batch.len());
        for message in batch {
            let by = subject::last::<NodeName>(&message.subject);
            match message.decode::<Beat>() {
                Ok(beat) if Some(&beat.node) == by.as_ref() => {
                    events.push(Event::Beat(Box::new(beat)));
                }
                Ok(beat) => shared.count_garbage(&message.subject, &beat.node),
                Err(error) => shared.count_garbage(&message.subject, &error),
            }
        }
        shared.queue.put(shared.now_turn(), events).await;
    }
}

async fn hear_answers(shared: Arc<Shared>, mut answers: bus::Hearing) {
    loop {
        let batch = answers.next_batch(MESSAGES).await;
        if batch.is_empty() {
            return;
        }
        for message in batch {
            let n = message.subject.rsplit('.').next().and_then(|n| n.parse::<u64>().ok());
            let Some(n) = n else { continue };
            let Some((kind, _)) = locked(&shared.asks).remove(&n) else { continue };
            let answer = read_answer(&shared, kind, &message);
            shared.queue.put_now(shared.now_turn(), Event::Answered { n, answer });
        }
    }
}

fn read_answer(shared: &Shared, kind: Kind, message: &Message) -> Result<NodeAnswer, NoAnswer> {
    if message.nobody {
        return Err(NoAnswer::Silence);
    }
    if message.refused {
        let refusal = message.refusal();
        return Err(match &*refusal.code {
            code::STALE_REQUEST => NoAnswer::Stale,
            code::NOT_ME => NoAnswer::Silence,
            _ => {
                tracing::warn!(%refusal, "a node refused a request");
                NoAnswer::Refused
            }
        });
    }
    let read = match kind {
        Kind::Jobs => message.decode().map(NodeAnswer::Jobs),
        Kind::Stop => message.decode().map(NodeAnswer::Stop),
        Kind::Held => message.decode().map(NodeAnswer::Held),
    };
    read.map_err(|error| {
        shared.count_garbage(&message.subject, &error);
        NoAnswer::Refused
    })
}

async fn hear_requests(shared: Arc<Shared>, mut serving: Serving) {
    let reports = format!("lh.report.{}.", shared.pool);
    loop {
        let batch = serving.next_batch(MESSAGES).await;
        if batch.is_empty() {
            return;
        }
        let mut events = Vec::with_capacity(batch.len());
        for asked in batch {
            let read = match asked.subject.strip_prefix(&reports) {
                Some(node) => read_report(node, &asked),
                None => read_request(&shared.pool, &asked),
            };
            match read {
                Ok(make) => events.push(make(shared.token_for(asked))),
                Err(refusal) => {
                    shared.count_garbage(&asked.subject, &refusal);
                    asked.refuse(&refusal).await;
                }
            }
        }
        shared.queue.put(shared.now_turn(), events).await;
    }
}

/// An event that waits for its token.
type Make = Box<dyn FnOnce(u64) -> Event + Send>;

fn read_report(node: &str, asked: &Asked) -> Result<Make, Refusal> {
    let node = NodeName::new(node)
        .map_err(|error| Refusal::new(code::INVALID, error.to_string()).field("subject"))?;
    let report = Box::new(codec::decode(asked.encoding, &asked.payload)?);
    Ok(Box::new(move |token| Event::Report { token, node, report }))
}

fn read_request(pool: &PoolName, asked: &Asked) -> Result<Make, Refusal> {
    let rest = asked.subject.strip_prefix(&format!("lh.sched.{pool}.")).unwrap_or_default();
    let (verb, by) = match rest.split_once('.') {
        None => (rest, CallerName::owner()),
        Some((verb, by)) => {
            let by = CallerName::new(by)
                .map_err(|error| Refusal::new(code::INVALID, error.to_string()).field("subject"))?;
            (verb, by)
        }
    };
    let (encoding, body) = (asked.encoding, &asked.payload);
    let request = match verb {
        "explain" => ClientRequest::Explain(codec::decode_strict::<Explain>(encoding, body)?),
        "nodes" => {
            codec::decode_strict::<Nodes>(encoding, body)?;
            ClientRequest::Nodes
        }
        "drain" => ClientRequest::Drain(codec::decode_strict::<NodeChange>(encoding, body)?),
        "undrain" => ClientRequest::Undrain(codec::decode_strict::<NodeChange>(encoding, body)?),
        "pause" => {
            codec::decode_strict::<PoolChange>(encoding, body)?;
            ClientRequest::Pause
        }
        "resume" => {
            codec::decode_strict::<PoolChange>(encoding, body)?;
            ClientRequest::Resume
        }
        _ => {
            let shown: String = verb.chars().take(40).collect();
            let why = format!("a scheduler has no request `{shown}`");
            let refusal = Refusal::new(code::UNKNOWN_VERB, why);
            return Err(match nearest(verb, SCHED_VERBS.iter().copied()) {
                Some(near) => refusal.hint(format!("did you mean `{near}`?")),
                None => refusal.hint(format!("there are: {}", SCHED_VERBS.join(", "))),
            });
        }
    };
    Ok(Box::new(move |token| Event::Client { token, by, request }))
}

/// Tells the machine when the connection comes and goes; after each gap compares the journal.
async fn watch_connection(shared: Arc<Shared>, actor: ActorRef<Msg>) {
    let mut connection = shared.bus.connection();
    let mut made = connection.borrow().made;
    while connection.changed().await.is_ok() {
        let now = *connection.borrow_and_update();
        shared.queue.put_now(shared.now_turn(), Event::Connected(now.up));
        if !now.up || now.made == made {
            continue;
        }
        made = now.made;
        let turn = shared.now_turn();
        if !is_same(&shared).await && actor.cast(Msg::Anew(turn)).is_err() {
            return;
        }
    }
}

/// Whether the journal still holds what was folded last. (A bus that lost its power may have lost
/// its last moments, and have stored others in their place.)
async fn is_same(shared: &Shared) -> bool {
    let Some((seq, at)) = shared.last_folded() else { return true };
    match shared.log().get(seq).await {
        Ok(Some(stored)) => stored.at == at,
        Ok(None) => shared.log().state().await.is_ok_and(|state| state.last >= seq),
        // The next connection asks again.
        Err(_) => true,
    }
}
