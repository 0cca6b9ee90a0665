//! The scheduler as a pure machine: what it hears, what it does. Without a clock, without I/O.
//!
//! The rules are those of the protocol (ARCHITECTURE.md): it acts only once its own fold has
//! reached its own epoch, asks a node only for what its own fold shows as assigned, and a write
//! that was not answered stays in force until the fold shows it.

use super::{
    Settings,
    appends::{Appends, Batches},
    nodes::{Asking, Instance},
    queue::{Class, Key, Local},
};
use crate::journal::{Changes, Fold};
use schemas::{
    error::Refusal,
    fact::Fact,
    id::{Epoch, InstanceId, Seq, WorkId},
    job::{
        HeldAnswer, HeldRequest, JobsAnswer, JobsRequest, Report, ReportAnswer, StopAnswer,
        StopRequest,
    },
    node::Beat,
    outcome::Summary,
    request::{Done, Explain, Explained, NodeChange, NodesReply},
    time::{Millis, Now, Stamp},
    token::{CallerName, NodeName, OwnerName, PoolName},
};
use std::{
    collections::{BTreeMap, BTreeSet},
    sync::Arc,
};

/// What a scheduler hears.
#[derive(Clone, Debug)]
pub enum Event {
    /// The next message of the journal.
    Fact {
        /// Its place.
        seq: Seq,
        /// When the bus stored it.
        at: Stamp,
        /// Whose works it speaks of.
        owner: Option<OwnerName>,
        /// What it says.
        fact: Arc<Fact>,
    },
    /// The lease is won and the own epoch is stored.
    Won {
        /// Its number.
        epoch: Epoch,
        /// Where.
        seq: Seq,
    },
    /// The lease is over, or was given up.
    LeaseLost,
    /// The connection came or went.
    Connected(bool),
    /// A write was stored.
    Written {
        /// Which.
        id: u64,
        /// Where.
        seq: Seq,
    },
    /// A write was not answered, or refused for any reason but the fence.
    Unanswered {
        /// Which.
        id: u64,
    },
    /// A write was refused by the fence: another scheduler acts.
    Fenced,
    /// A node is alive.
    Beat(Box<Beat>),
    /// A node says what became of jobs.
    Report {
        /// For the answer.
        token: u64,
        /// Which node.
        node: NodeName,
        /// What it says.
        report: Box<Report>,
    },
    /// A node answered, or did not.
    Answered {
        /// Which question.
        n: u64,
        /// The answer.
        answer: Result<NodeAnswer, NoAnswer>,
    },
    /// A client asks.
    Client {
        /// For the answer.
        token: u64,
        /// Who.
        by: CallerName,
        /// What.
        request: ClientRequest,
    },
    /// Time has passed.
    Tick,
}

/// What a node answers.
#[derive(Clone, Debug)]
pub enum NodeAnswer {
    /// To `jobs`.
    Jobs(JobsAnswer),
    /// To `stop`.
    Stop(StopAnswer),
    /// To `held`.
    Held(HeldAnswer),
}

/// Why a question has no answer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum NoAnswer {
    /// Nobody listens, nothing came in time, or another instance listens.
    Silence,
    /// The node has heard a later question: this one was not looked at.
    Stale,
    /// It was refused in a way that asking again will not change soon.
    Refused,
}

/// What a client may ask of a scheduler.
#[derive(Clone, Debug)]
pub enum ClientRequest {
    /// Why is it so?
    Explain(Explain),
    /// Which nodes are there?
    Nodes,
    /// A node is to take nothing new.
    Drain(NodeChange),
    /// It may take jobs again.
    Undrain(NodeChange),
    /// Nothing is to be placed.
    Pause,
    /// It may go on.
    Resume,
}

/// What a scheduler does.
#[derive(Clone, Debug)]
pub enum Action {
    /// Write a fact, fenced by the own epoch.
    Append {
        /// For [`Event::Written`].
        id: u64,
        /// Where.
        subject: String,
        /// What.
        fact: Arc<Fact>,
        /// The place of the own epoch.
        fence: Seq,
    },
    /// Ask a node.
    Ask {
        /// For [`Event::Answered`].
        n: u64,
        /// Which.
        node: NodeName,
        /// What.
        request: NodeRequest,
    },
    /// Answer a report: the node may forget it.
    AnswerReport {
        /// Which.
        token: u64,
        /// The answer.
        answer: ReportAnswer,
    },
    /// Answer a client.
    Answer {
        /// Which.
        token: u64,
        /// The answer.
        reply: ClientReply,
    },
    /// Refuse a client or a report.
    Refuse {
        /// Which.
        token: u64,
        /// Why.
        refusal: Refusal,
    },
    /// From now on it acts.
    Act,
    /// It acts no more: answers of all kinds are dropped, the lease is given up.
    StopActing {
        /// Why, in one sentence.
        why: &'static str,
    },
    /// Write how a work stands into the bucket of summaries.
    WriteSummary {
        /// How it stands.
        summary: Box<Summary>,
        /// The own epoch.
        epoch: Epoch,
        /// The last fact it covers.
        seq: Seq,
    },
}

/// What is asked of a node.
#[derive(Clone, Debug)]
pub enum NodeRequest {
    /// Start these.
    Jobs(JobsRequest),
    /// End these.
    Stop(StopRequest),
    /// What do you hold?
    Held(HeldRequest),
}

/// What a client is answered.
#[derive(Clone, Debug, PartialEq)]
pub enum ClientReply {
    /// To `explain`.
    Explained(Explained),
    /// To `nodes`.
    Nodes(Box<NodesReply>),
    /// To everything that changes something.
    Done(Done),
}

/// As which it acts.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Acting {
    pub(super) epoch: Epoch,
    pub(super) fence: Seq,
}

/// The scheduler of one pool.
#[derive(Debug)]
pub struct Core {
    pub(super) pool: PoolName,
    pub(super) settings: Settings,
    pub(super) random: fastrand::Rng,
    pub(super) fold: Fold,
    pub(super) now: Now,
    pub(super) out: Vec<Action>,
    pub(super) acting: Option<Acting>,
    won: Option<Acting>,
    pub(super) connected: bool,
    /// Silence of nodes counts from here on.
    pub(super) counting_since: Millis,
    /// Counts requests to nodes and answers to reports, over all reigns of this process: a late
    /// answer belongs to no later question.
    n: u64,
    pub(super) appends: Appends,
    pub(super) batches: Batches,
    pub(super) instances: BTreeMap<InstanceId, Instance>,
    pub(super) names: BTreeMap<NodeName, BTreeSet<(Stamp, InstanceId)>>,
    pub(super) asks: BTreeMap<u64, Asking>,
    pub(super) dirty: BTreeSet<InstanceId>,
    pub(super) highest_told: Epoch,
    pub(super) locals: BTreeMap<Key, Local>,
    pub(super) classes: BTreeMap<u32, Class>,
    pub(super) class_ids: BTreeMap<String, u32>,
    pub(super) next_class: u32,
    pub(super) due: BTreeSet<(Millis, WorkId, usize)>,
    pub(super) must_place: bool,
    /// Reports that wait for so many writes.
    pub(super) reports: BTreeMap<u64, usize>,
    unrecorded: Vec<WorkId>,
    record_at: Option<Millis>,
    /// When the summary of a work is to be written, both ways round.
    summary_due: BTreeMap<WorkId, Millis>,
    summary_queue: BTreeSet<(Millis, WorkId)>,
    /// When the summary of a work that has not ended was written last.
    summary_at: BTreeMap<WorkId, Millis>,
    summary_budget: u64,
    looked_at: Millis,
}

impl Core {
    /// A scheduler that knows nothing yet and does not act. Everything random comes from `seed`.
    pub fn new(pool: PoolName, settings: Settings, seed: u64) -> Self {
        Self {
            pool,
            settings,
            random: fastrand::Rng::with_seed(seed),
            fold: Fold::default(),
            now: Now::default(),
            out: Vec::new(),
            acting: None,
            won: None,
            connected: true,
            counting_since: Millis::default(),
            n: 0,
            appends: Appends::default(),
            batches: Batches::default(),
            instances: BTreeMap::new(),
            names: BTreeMap::new(),
            asks: BTreeMap::new(),
            dirty: BTreeSet::new(),
            highest_told: 0,
            locals: BTreeMap::new(),
            classes: BTreeMap::new(),
            class_ids: BTreeMap::new(),
            next_class: 0,
            due: BTreeSet::new(),
            must_place: false,
            reports: BTreeMap::new(),
            unrecorded: Vec::new(),
            record_at: None,
            summary_due: BTreeMap::new(),
            summary_queue: BTreeSet::new(),
            summary_at: BTreeMap::new(),
            summary_budget: 0,
            looked_at: Millis::default(),
        }
    }

    /// What it knows.
    pub fn fold(&self) -> &Fold {
        &self.fold
    }

    /// As which epoch it acts; `None` when it only folds.
    pub fn acting(&self) -> Option<Epoch> {
        self.acting.map(|acting| acting.epoch)
    }

    /// The highest epoch that any node has told: the next one must be above.
    pub fn highest_told(&self) -> Epoch {
        self.highest_told
    }

    /// Takes in what has happened since the last step, in this order, and says what to do.
    pub fn step(&mut self, now: Now, events: impl IntoIterator<Item = Event>) -> Vec<Action> {
        self.now = now;
        for event in events {
            self.on(event);
        }
        if self.acting.is_some() {
            self.conclude();
        }
        std::mem::take(&mut self.out)
    }

    fn on(&mut self, event: Event) {
        match event {
            Event::Fact { seq, at, owner, fact } => self.on_fact(seq, at, owner, &fact),
            Event::Won { epoch, seq } => self.on_won(Acting { epoch, fence: seq }),
            Event::LeaseLost => self.stop_acting("the lease is over"),
            Event::Connected(up) => self.on_connected(up),
            Event::Written { id, seq } => self.on_written(id, seq),
            Event::Unanswered { id } => self.on_unanswered(id),
            Event::Fenced => self.stop_acting("another scheduler acts"),
            Event::Beat(beat) => self.on_beat(*beat),
            Event::Report { token, node, report } => self.on_report(token, &node, *report),
            Event::Answered { n, answer } => self.on_answered(n, answer),
            Event::Client { token, by, request } => self.on_client(token, by, request),
            Event::Tick => self.on_tick(),
        }
    }

    fn on_fact(&mut self, seq: Seq, at: Stamp, owner: Option<OwnerName>, fact: &Fact) {
        let changes = self.fold.apply(seq, at, owner, fact);
        if let Fact::Epoch(_) = fact {
            if self.acting.is_some_and(|acting| acting.fence < seq) {
                self.stop_acting("a later scheduler has taken the pool");
            }
            self.begin_if_won();
            return;
        }
        if self.acting.is_none() {
            return;
        }
        self.take_in(fact, changes);
        self.resolve_by_fact(fact);
        self.resolve_up_to(seq);
    }

    /// Draws the conclusions from what a fact has changed.
    fn take_in(&mut self, fact: &Fact, changes: Changes) {
        if let Fact::Assigned(assigned) = fact
            && self.is_awaited(fact)
        {
            self.settle_reservations(assigned, &changes);
        }
        for given in &changes.given {
            self.on_given(given);
        }
        for freed in &changes.freed {
            self.on_freed(freed);
        }
        for &(work, task) in &changes.ready {
            self.enqueue(work, task);
        }
        for &work in &changes.stopping {
            self.on_stopping(work);
        }
        for &work in &changes.ended {
            self.drop_locals(work);
            self.must_record(work);
        }
        // That an end is recorded changes nothing that a summary says.
        if !matches!(fact, Fact::Finished(_)) {
            for work in changes.works {
                self.must_summarise(work);
            }
        }
        if changes.applied
            && matches!(fact, Fact::Undrained(_) | Fact::Drained(_) | Fact::Resumed(_))
        {
            self.must_place = true;
        }
    }

    fn on_won(&mut self, won: Acting) {
        self.won = Some(won);
        self.begin_if_won();
    }

    fn begin_if_won(&mut self) {
        let Some(won) = self.won else { return };
        if self.fold.epoch_seq() > won.fence {
            self.won = None;
            self.out.push(Action::StopActing { why: "a later scheduler has taken the pool" });
        } else if self.fold.epoch_seq() == won.fence {
            self.won = None;
            self.begin(won);
        }
    }

    /// Takes up what the journal says. Nothing is asked of an instance before it has said what it
    /// holds.
    fn begin(&mut self, acting: Acting) {
        self.acting = Some(acting);
        self.counting_since = self.now.at;
        self.out.push(Action::Act);
        let works: Vec<WorkId> = self.fold.active().iter().copied().collect();
        for work in works {
            self.take_up(work);
            self.must_summarise(work);
        }
        let ended: Vec<WorkId> = self.fold.unrecorded().iter().copied().collect();
        for work in ended {
            self.must_record(work);
            self.must_summarise(work);
        }
        self.dirty.extend(self.instances.keys());
        self.must_place = true;
    }

    pub(super) fn stop_acting(&mut self, why: &'static str) {
        let was = self.acting.take().is_some() || self.won.take().is_some();
        self.won = None;
        self.appends.forget();
        self.batches = Batches::default();
        self.asks.clear();
        self.dirty.clear();
        self.locals.clear();
        self.classes.clear();
        self.class_ids.clear();
        self.due.clear();
        self.reports.clear();
        self.unrecorded.clear();
        self.record_at = None;
        self.summary_due.clear();
        self.summary_queue.clear();
        self.summary_at.clear();
        self.forget_jobs();
        if was {
            self.out.push(Action::StopActing { why });
        }
    }

    fn on_connected(&mut self, up: bool) {
        if up && !self.connected {
            self.counting_since = self.now.at;
            self.dirty.extend(self.instances.keys());
            self.write_again_now();
        }
        self.connected = up;
    }

    fn on_tick(&mut self) {
        // A tick that comes much too late means that this process slept: nodes could not be heard.
        if self.now.at.since(self.looked_at) > self.settings.lost_after_s.ms.min(10_000) {
            self.counting_since = self.now.at;
        }
        self.looked_at = self.now.at;
        self.summary_budget = (self.summary_budget + self.settings.summaries_per_s / 10)
            .min(self.settings.summaries_per_s);
        self.forget_old_nodes();
        if self.acting.is_none() {
            return;
        }
        self.wake_due();
        self.look_at_nodes();
        self.expire_open_works();
    }

    fn conclude(&mut self) {
        self.place();
        self.flush_records();
        self.flush_batches();
        self.write_again();
        self.ask_nodes();
        self.flush_summaries();
    }

    /// The next number for a request to a node or an answer to a report.
    pub(super) fn next_n(&mut self) -> u64 {
        self.n += 1;
        self.n
    }

    pub(super) fn epoch(&self) -> Epoch {
        self.acting.map_or(0, |acting| acting.epoch)
    }

    fn must_record(&mut self, work: WorkId) {
        self.unrecorded.push(work);
        if self.record_at.is_none() {
            self.record_at = Some(self.now.at + self.settings.finished_every_s.ms);
        }
    }

    fn flush_records(&mut self) {
        if self.record_at.is_none_or(|at| at > self.now.at) {
            return;
        }
        self.record_at = None;
        for work in std::mem::take(&mut self.unrecorded) {
            self.record(work);
        }
    }

    fn expire_open_works(&mut self) {
        let late: Vec<WorkId> = self
            .fold
            .open()
            .iter()
            .filter_map(|id| self.fold.work(*id))
            .filter(|work| {
                let limit = work.spec.open_timeout_s.unwrap_or(crate::journal::OPEN_TIMEOUT);
                work.appended_at.plus_ms(limit.ms) <= self.now.wall
            })
            .map(|work| work.id)
            .collect();
        for work in late {
            self.expire(work);
        }
    }

    /// An end is written at once; else at most so often, and not before anybody could have looked.
    fn must_summarise(&mut self, id: WorkId) {
        let Some(work) = self.fold.work(id) else { return };
        let now = self.now.at;
        let at = match (work.state.is_ended(), self.summary_at.get(&id)) {
            (true, _) => now,
            (false, None) => now + self.settings.summary_every_s.ms,
            (false, Some(last)) => now.max(*last + self.settings.summary_every_s.ms),
        };
        if let Some(&known) = self.summary_due.get(&id) {
            if known <= at {
                return;
            }
            self.summary_queue.remove(&(known, id));
        }
        self.summary_due.insert(id, at);
        self.summary_queue.insert((at, id));
    }

    fn flush_summaries(&mut self) {
        let Some(acting) = self.acting else { return };
        while let Some(&(at, id)) = self.summary_queue.first()
            && at <= self.now.at
            && self.summary_budget > 0
        {
            self.summary_queue.pop_first();
            self.summary_due.remove(&id);
            let Some(summary) = self.summary(id) else { continue };
            self.summary_budget -= 1;
            if summary.state.is_ended() {
                self.summary_at.remove(&id);
            } else {
                self.summary_at.insert(id, self.now.at);
            }
            let seq = self.fold.last_seq();
            let summary = Box::new(summary);
            self.out.push(Action::WriteSummary { summary, epoch: acting.epoch, seq });
        }
    }
}
