//! The manager's shell: hears requests, the inbox and the journals, and does what the core says.
//! Nothing is decided here.

mod ears;

use ears::{hear_inbox, hear_requests, mark, tail, watch_connection};

use super::{
    Settings,
    core::{Action, Answer, Core, Event, Limits, Request, Ticket, Write, WriteError},
    follower::{self, To},
    hub::{Hub, ReadFact},
    ingress,
    results::Plan,
};
use crate::ear;
use bus::{
    Asked, Bus, StoreError,
    inbox::InboxMessage,
    log::Expect,
    streams::{Shares, journal},
};
use ractor::{Actor, ActorProcessingErr, ActorRef};
use schemas::{
    error::{Refusal, code},
    id::Seq,
    outcome::Summary,
    request::{Explain, Explained, Nodes, NodesReply, RunReply},
    subject,
    time::Stamp,
    token::{CallerName, OwnerName, PoolName},
};
use std::{collections::BTreeMap, sync::Arc, time::Duration};
use tokio::{
    sync::{OwnedSemaphorePermit, Semaphore, oneshot, watch},
    task::{JoinHandle, JoinSet},
};

/// Pages of results that are put together at a time.
const COLLECTING: usize = 64;
/// How often the core is told that time passes.
const TICK: Duration = Duration::from_millis(250);
/// How long a scheduler may take to say why a work waits.
const EXPLAIN: Duration = Duration::from_millis(400);
/// How long a scheduler may take to name its nodes.
const NODES: Duration = Duration::from_secs(2);
/// After so long a message of the inbox that could not be stored comes again.
const INBOX_AGAIN: Duration = Duration::from_secs(5);
/// How long a manager that stops waits for what is on its way.
const STOPPING_MS: u64 = 3000;

/// Why a manager could not start.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// The bus does not do what is needed.
    #[error("the manager cannot start")]
    Bus(#[from] bus::Error),
    /// It serves no pool.
    #[error("the manager is given no pool to serve")]
    NoPool,
    /// Its actor did not start, or has ended.
    #[error("the manager has ended: {0}")]
    Ended(String),
}

/// A manager that runs.
#[derive(Debug)]
pub struct Handle {
    actor: ActorRef<Msg>,
    join: JoinHandle<()>,
    ready: watch::Receiver<bool>,
}

impl Handle {
    /// Waits until it answers requests: everything that was stored before is folded.
    pub async fn ready(&self) -> Result<(), Error> {
        let mut ready = self.ready.clone();
        let waited = ready.wait_for(|ready| *ready).await;
        waited.map(|_| ()).map_err(|_| Error::Ended("before it was ready".to_owned()))
    }

    /// Waits until it has ended by itself, which it does only when something is badly wrong.
    pub async fn ended(&mut self) {
        let _ = (&mut self.join).await;
    }

    /// Takes nothing more, answers who is held, waits for what is on its way, and ends.
    pub async fn stop(mut self) {
        let (done, stopped) = oneshot::channel();
        if self.actor.cast(Msg::Stop(done)).is_ok() {
            let _ = stopped.await;
        }
        self.actor.stop(None);
        self.ended().await;
    }
}

/// Starts a manager: makes the streams of the house, folds the journals, then answers.
pub async fn start(bus: Bus, settings: Settings) -> Result<Handle, Error> {
    if settings.pools.is_empty() {
        return Err(Error::NoPool);
    }
    let mut shares = Shares::of(settings.store_mib.saturating_mul(1024 * 1024));
    if let Some(output_mib) = settings.output_mib {
        shares.output = output_mib.saturating_mul(1024 * 1024);
    }
    shares.output_max_age = Duration::from_secs(settings.output_days.saturating_mul(24 * 3600));
    bus.lay_streams(&settings.pools, shares).await?;
    let limits = Limits {
        max_body: bus::MAX_BODY,
        held_per_caller: settings.held_per_caller,
        follows_per_caller: settings.follows_per_caller,
        parts_waiting: 64,
    };
    let core = Core::new(&settings.pools, limits);
    let hub = Hub::new(bus, settings, core);
    let (is_ready, ready) = watch::channel(false);
    let (actor, join) = Actor::spawn(None, Manager, Arguments { hub, is_ready })
        .await
        .map_err(|error| Error::Ended(error.to_string()))?;
    Ok(Handle { actor, join, ready })
}

struct Manager;

struct Arguments {
    hub: Arc<Hub>,
    is_ready: watch::Sender<bool>,
}

/// A request with what was read of it.
type Read = (Asked, Result<(CallerName, Request), Refusal>, OwnedSemaphorePermit);

/// A message of a journal, read.
struct Folded {
    seq: Seq,
    at: Stamp,
    owner: Option<OwnerName>,
    bytes: usize,
    fact: Option<ReadFact>,
    mark: Mark,
}

/// By what a message is known again.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Mark {
    seq: Seq,
    hash: u64,
}

enum Msg {
    Asked(Vec<Read>),
    Inbox(Box<InboxMessage>),
    Facts {
        pool: PoolName,
        /// How often this journal was folded anew before.
        turn: u64,
        facts: Vec<Folded>,
        /// Nothing more was stored when these were sent.
        all: bool,
        _permit: OwnedSemaphorePermit,
    },
    /// A journal was empty when its tail began.
    Empty(PoolName),
    /// The first request would be heard.
    Serving,
    Event(Event),
    /// There is a connection again.
    Connected,
    /// A journal is not what was folded.
    Differs(PoolName, u64),
    Tick,
    Stop(oneshot::Sender<()>),
}

enum Open {
    /// The permit bounds what is open.
    Request(Box<Asked>, OwnedSemaphorePermit),
    Inbox(Box<InboxMessage>),
}

struct Journal {
    turn: u64,
    whole: bool,
    last: Option<Mark>,
    tail: Option<JoinHandle<()>>,
}

struct State {
    hub: Arc<Hub>,
    is_ready: watch::Sender<bool>,
    open: BTreeMap<Ticket, Open>,
    next_ticket: Ticket,
    journals: BTreeMap<PoolName, Journal>,
    /// Tasks that end with the manager.
    ears: Vec<JoinHandle<()>>,
    helpers: JoinSet<()>,
    collecting: Arc<Semaphore>,
    writing: usize,
    asked_nodes_at: u64,
    swept_at: u64,
    serving: bool,
    stop: Option<(oneshot::Sender<()>, u64)>,
}

impl Drop for State {
    fn drop(&mut self) {
        let tails = self.journals.values().filter_map(|journal| journal.tail.as_ref());
        for task in self.ears.iter().chain(tails) {
            task.abort();
        }
        self.hub.end();
    }
}

impl Actor for Manager {
    type Msg = Msg;
    type State = State;
    type Arguments = Arguments;

    async fn pre_start(
        &self,
        me: ActorRef<Msg>,
        Arguments { hub, is_ready }: Arguments,
    ) -> Result<State, ActorProcessingErr> {
        let mut journals = BTreeMap::new();
        for pool in &hub.settings.pools {
            let tail = ear::open(&me, tail(hub.bus.clone(), me.clone(), pool.clone(), 0));
            let tail = Some(tail);
            journals.insert(pool.clone(), Journal { turn: 0, whole: false, last: None, tail });
        }
        let ears = vec![ear::open(&me, watch_connection(hub.bus.clone(), me.clone()))];
        me.send_interval(TICK, || Msg::Tick);
        Ok(State {
            hub,
            is_ready,
            open: BTreeMap::new(),
            next_ticket: 0,
            journals,
            ears,
            helpers: JoinSet::new(),
            collecting: Arc::new(Semaphore::new(COLLECTING)),
            writing: 0,
            asked_nodes_at: 0,
            swept_at: bus::clock::at().0,
            serving: false,
            stop: None,
        })
    }

    async fn handle(
        &self,
        me: ActorRef<Msg>,
        message: Msg,
        state: &mut State,
    ) -> Result<(), ActorProcessingErr> {
        match message {
            Msg::Asked(batch) => state.asked(&me, batch).await,
            Msg::Inbox(message) => state.inbox(&me, message).await,
            Msg::Facts { pool, turn, facts, all, _permit } => {
                state.facts(&me, pool, turn, facts, all).await;
            }
            Msg::Empty(pool) => state.whole(&me, &pool),
            Msg::Serving => {
                state.is_ready.send_replace(true);
                tracing::info!(pools = ?state.hub.settings.pools, "the manager answers");
            }
            Msg::Event(event) => state.step(&me, event).await,
            Msg::Connected => state.compare(&me),
            Msg::Differs(pool, turn) => state.anew(&me, pool, turn).await,
            Msg::Tick => state.tick(&me).await,
            Msg::Stop(done) => state.begin_to_stop(&me, done).await,
        }
        state.stop_if_done(&me);
        Ok(())
    }
}

impl State {
    async fn step(&mut self, me: &ActorRef<Msg>, event: Event) {
        if matches!(event, Event::Written { .. }) {
            self.writing = self.writing.saturating_sub(1);
        }
        let actions = self.hub.core().step(bus::clock::now(), event);
        for action in actions {
            self.perform(me, action).await;
        }
    }

    async fn asked(&mut self, me: &ActorRef<Msg>, batch: Vec<Read>) {
        for (asked, read, permit) in batch {
            match read {
                Err(refusal) => asked.refuse(&refusal).await,
                Ok((caller, request)) => {
                    self.next_ticket += 1;
                    let ticket = self.next_ticket;
                    self.open.insert(ticket, Open::Request(Box::new(asked), permit));
                    let fresh = uuid::Uuid::now_v7();
                    self.step(me, Event::Asked { ticket, caller, request, fresh }).await;
                }
            }
        }
    }

    async fn inbox(&mut self, me: &ActorRef<Msg>, message: Box<InboxMessage>) {
        let Some(caller) = subject::last::<CallerName>(&message.subject) else {
            tracing::warn!(subject = message.subject, "a message of the inbox from nobody");
            return message.acknowledge().await;
        };
        let submit = ingress::strict(message.encoding, &message.payload);
        if let Err(refusal) = &submit {
            tracing::warn!(%caller, seq = message.seq, why = refusal.message, "the inbox holds no work");
        }
        let derived = ingress::derived_id(bus::inbox::STREAM, message.seq, message.at);
        self.next_ticket += 1;
        let (ticket, seq) = (self.next_ticket, message.seq);
        self.open.insert(ticket, Open::Inbox(message));
        let submit = submit.map(Box::new);
        self.step(me, Event::Inbox { ticket, caller, seq, submit, derived }).await;
    }

    async fn facts(
        &mut self,
        me: &ActorRef<Msg>,
        pool: PoolName,
        turn: u64,
        facts: Vec<Folded>,
        all: bool,
    ) {
        let Some(journal) = self.journals.get_mut(&pool) else { return };
        if journal.turn != turn {
            return;
        }
        if let Some(last) = facts.last() {
            journal.last = Some(last.mark);
        }
        for Folded { seq, at, owner, bytes, fact, .. } in facts {
            let event = match fact {
                Some(read) => {
                    let fact = read.fact.clone();
                    self.hub.keep(&pool, seq, bytes, read);
                    Event::Stored { pool: pool.clone(), seq, at, owner, fact }
                }
                None => Event::Unreadable { pool: pool.clone(), seq },
            };
            self.step(me, event).await;
        }
        self.hub.progress.send_modify(|progress| *progress += 1);
        if all {
            self.whole(me, &pool);
        }
    }

    /// A journal is folded to its end; when all are, requests are answered.
    fn whole(&mut self, me: &ActorRef<Msg>, pool: &PoolName) {
        if let Some(journal) = self.journals.get_mut(pool) {
            journal.whole = true;
        }
        if self.serving || !self.journals.values().all(|journal| journal.whole) {
            return;
        }
        self.serving = true;
        let open = Arc::new(Semaphore::new(self.hub.settings.open_requests));
        let bus = self.hub.bus.clone();
        self.ears.push(ear::open(me, hear_requests(bus.clone(), me.clone(), open)));
        self.ears.push(ear::open(me, hear_inbox(bus, me.clone())));
        for pool in self.hub.settings.pools.clone() {
            self.ask_nodes(me, pool);
        }
    }

    /// After a lost connection: is what was folded last still what is stored there?
    fn compare(&mut self, me: &ActorRef<Msg>) {
        for (pool, folded) in &self.journals {
            let Some(last) = folded.last else { continue };
            let (log, me) = (self.hub.bus.log(journal(pool)), me.clone());
            let (pool, turn) = (pool.clone(), folded.turn);
            self.helpers.spawn(async move {
                let same = match log.get(last.seq).await {
                    Ok(Some(stored)) => mark(&stored) == last,
                    // Gone: by compaction, or because the stream is not as long any more.
                    Ok(None) => match log.state().await {
                        Ok(state) => state.last >= last.seq,
                        Err(_) => return,
                    },
                    Err(_) => return,
                };
                if !same {
                    let _ = me.cast(Msg::Differs(pool, turn));
                }
            });
        }
    }

    async fn anew(&mut self, me: &ActorRef<Msg>, pool: PoolName, turn: u64) {
        let Some(journal) = self.journals.get_mut(&pool) else { return };
        if journal.turn != turn {
            return;
        }
        tracing::warn!(%pool, "the journal is not what was folded: it is folded again");
        journal.turn += 1;
        journal.last = None;
        if let Some(tail) = journal.tail.take() {
            tail.abort();
        }
        let turn = journal.turn;
        self.hub.forget_recent();
        self.step(me, Event::Anew { pool: pool.clone() }).await;
        let tail = tail(self.hub.bus.clone(), me.clone(), pool.clone(), turn);
        let tail = ear::open(me, tail);
        if let Some(journal) = self.journals.get_mut(&pool) {
            journal.tail = Some(tail);
        }
    }

    async fn tick(&mut self, me: &ActorRef<Msg>) {
        self.step(me, Event::Tick).await;
        while self.helpers.try_join_next().is_some() {}
        let now = bus::clock::at();
        if self.serving && now.0.saturating_sub(self.swept_at) >= self.hub.settings.sweep_every_s.ms
        {
            self.swept_at = now.0;
            let hub = self.hub.clone();
            self.helpers.spawn(async move {
                if let Err(error) = hub.sweep(bus::clock::wall()).await {
                    tracing::warn!(%error, "no room was made for output");
                }
            });
        }
        let every = self.hub.settings.nodes_every_s.ms.max(TICK.as_millis() as u64);
        if self.serving && now.0.saturating_sub(self.asked_nodes_at) >= every {
            self.asked_nodes_at = now.0;
            for pool in self.hub.settings.pools.clone() {
                self.ask_nodes(me, pool);
            }
        }
    }

    async fn begin_to_stop(&mut self, me: &ActorRef<Msg>, done: oneshot::Sender<()>) {
        for ear in self.ears.drain(..) {
            ear.abort();
        }
        self.stop = Some((done, bus::clock::at().0 + STOPPING_MS));
        self.hub.stopping.send_replace(true);
        self.step(me, Event::Stopping).await;
    }

    fn stop_if_done(&mut self, me: &ActorRef<Msg>) {
        let Some((_, until)) = &self.stop else { return };
        while self.helpers.try_join_next().is_some() {}
        let idle = self.open.is_empty() && self.writing == 0 && self.helpers.is_empty();
        if (idle || bus::clock::at().0 >= *until)
            && let Some((done, _)) = self.stop.take()
        {
            let bus = self.hub.bus.clone();
            tokio::spawn(async move {
                let _ = bus.flush().await;
                let _ = done.send(());
            });
            me.stop(None);
        }
    }

    async fn perform(&mut self, me: &ActorRef<Msg>, action: Action) {
        match action {
            Action::Answer { ticket, answer } => {
                if let Some(Open::Request(asked, _)) = self.open.remove(&ticket) {
                    reply(&asked, &answer).await;
                }
            }
            Action::Write { write, subject, body, first } => {
                self.write(me, write, &subject, body, first).await;
            }
            Action::Reach => self.reach(me),
            Action::Read { ticket, pool, seq } => {
                let (hub, me) = (self.hub.clone(), me.clone());
                self.helpers.spawn(async move {
                    let fact = hub.fact(&pool, seq).await.ok().flatten().map(|read| read.fact);
                    let _ = me.cast(Msg::Event(Event::Read { ticket, fact }));
                });
            }
            Action::AskNodes { pool } => self.ask_nodes(me, pool),
            Action::Explain { ticket, pool, mut got } => {
                let Some(Open::Request(asked, permit)) = self.open.remove(&ticket) else { return };
                let bus = self.hub.bus.clone();
                self.helpers.spawn(async move {
                    got.summary.why = explain(&bus, &pool, &got.summary).await;
                    reply(&asked, &Answer::Got(got)).await;
                    drop(permit);
                });
            }
            Action::Collect { ticket, pool, plan, run } => {
                self.collect(ticket, pool, plan, run).await
            }
            Action::Follow { ticket, caller, pool, work, follow } => {
                let Some(Open::Request(asked, permit)) = self.open.remove(&ticket) else { return };
                let (hub, me) = (self.hub.clone(), me.clone());
                let gone = Msg::Event(Event::Unfollowed { caller: caller.clone() });
                let from = match follower::cursor(&follow) {
                    Ok(from) => from,
                    Err(refusal) => {
                        asked.refuse(&refusal).await;
                        let _ = me.cast(gone);
                        return;
                    }
                };
                self.helpers.spawn(async move {
                    // A follow is bounded by itself; it must not use up the room of requests.
                    drop(permit);
                    if let Some(reply) = asked.reply.clone() {
                        let to = To { reply, accept: asked.accept, caller };
                        let served = follower::serve(hub, to, pool, work, *follow, from).await;
                        if let Err(error) = served {
                            tracing::warn!(%work, %error, "a follow could not be served");
                            asked.refuse(&not_ready(&error)).await;
                            asked.end().await;
                        }
                    }
                    let _ = me.cast(gone);
                });
            }
            Action::Acknowledge { ticket } => {
                if let Some(Open::Inbox(message)) = self.open.remove(&ticket) {
                    message.acknowledge().await;
                }
            }
            Action::Later { ticket } => {
                if let Some(Open::Inbox(message)) = self.open.remove(&ticket) {
                    message.later(INBOX_AGAIN).await;
                }
            }
            Action::News { works } => self.hub.news(&works),
        }
    }

    /// Sends a write: in the order in which the core asks, without waiting for the one before.
    async fn write(
        &mut self,
        me: &ActorRef<Msg>,
        write: Write,
        subject: &str,
        body: Vec<u8>,
        first: bool,
    ) {
        let expect = if first { Expect::Last(0) } else { Expect::Any };
        let log = self.hub.bus.log(String::new());
        let sent = log.send(subject, body.into(), &expect).await;
        self.writing += 1;
        let me = me.clone();
        tokio::spawn(async move {
            let result = sent.stored().await.map_err(|error| match error {
                StoreError::Conflict => WriteError::Conflict,
                StoreError::Full(why) => WriteError::Full(why),
                other => WriteError::Unknown(other.to_string()),
            });
            let _ = me.cast(Msg::Event(Event::Written { write, result }));
        });
    }

    fn reach(&mut self, me: &ActorRef<Msg>) {
        let (hub, me) = (self.hub.clone(), me.clone());
        self.helpers.spawn(async move {
            let mut ends = BTreeMap::new();
            for pool in &hub.settings.pools {
                if let Ok(end) = hub.end_of(pool).await {
                    ends.insert(pool.clone(), end);
                }
            }
            let _ = me.cast(Msg::Event(Event::Reach { ends }));
        });
    }

    fn ask_nodes(&mut self, me: &ActorRef<Msg>, pool: PoolName) {
        let (bus, me) = (self.hub.bus.clone(), me.clone());
        self.helpers.spawn(async move {
            let at = subject::sched(&pool, "nodes", bus.caller());
            let nodes = match bus.ask::<NodesReply>(&at, &Nodes {}, NODES).await {
                Ok(reply) => Some(reply.nodes),
                Err(error) => {
                    tracing::debug!(%pool, %error, "the scheduler names no nodes");
                    None
                }
            };
            let _ = me.cast(Msg::Event(Event::Nodes { pool, nodes }));
        });
    }

    async fn collect(
        &mut self,
        ticket: Ticket,
        pool: PoolName,
        plan: Box<Plan>,
        run: Option<Box<Summary>>,
    ) {
        let Some(Open::Request(asked, permit)) = self.open.remove(&ticket) else { return };
        let Ok(turn) = self.collecting.clone().try_acquire_owned() else {
            let message = format!("{COLLECTING} pages are being put together already");
            return asked
                .refuse(&Refusal::new(code::BUSY, message).hint("ask again in a moment"))
                .await;
        };
        let hub = self.hub.clone();
        self.helpers.spawn(async move {
            match gather(&hub, &pool, plan).await {
                Ok(page) => match run {
                    None => asked.answer(&page).await,
                    Some(summary) => {
                        let outcome = page.items.into_iter().next().map(Into::into);
                        asked.answer(&RunReply { summary: *summary, outcome }).await;
                    }
                },
                Err(error) => asked.refuse(&not_ready(&error)).await,
            }
            drop((turn, permit));
        });
    }
}

async fn gather(
    hub: &Hub,
    pool: &PoolName,
    mut plan: Box<Plan>,
) -> Result<schemas::request::Outcomes, bus::Error> {
    while let Some(seq) = plan.needs() {
        let read = hub.fact(pool, seq).await?;
        plan.feed(seq, read.as_ref().map(|read| &*read.fact));
    }
    Ok(plan.page())
}

async fn reply(asked: &Asked, answer: &Answer) {
    match answer {
        Answer::Refused(refusal) => asked.refuse(refusal).await,
        answer => asked.answer(answer).await,
    }
}

/// Asks the scheduler why a work waits.
async fn explain(bus: &Bus, pool: &PoolName, summary: &Summary) -> Option<String> {
    let at = subject::sched(pool, "explain", bus.caller());
    let asked = Explain { work: Some(summary.work), ..Explain::default() };
    match bus.ask::<Explained>(&at, &asked, EXPLAIN).await {
        Ok(explained) => Some(explained.why),
        Err(bus::Error::Nobody { .. }) => {
            Some(format!("no scheduler answers in the pool {pool}: start one"))
        }
        Err(_) => None,
    }
}

fn not_ready(error: &bus::Error) -> Refusal {
    Refusal::new(code::NOT_READY, error.to_string()).hint("ask again in a moment")
}
