//! Seeded worlds: schedulers, nodes and a journal over a network that loses, doubles, delays and
//! reorders. Each step is audited by the names of the rules; in the end everything must have ended.

use super::{
    Settings,
    core::{Action, Core, Event, NoAnswer, NodeAnswer, NodeRequest},
};
use crate::journal::Fold;
use schemas::{
    amount::{Cpus, Room},
    fact::{Accepted, Appended, CancelAsked, Closed, EpochFact, Fact, MoreItems, RetryAsked},
    id::{Epoch, InstanceId, RequestId, Seq, WorkId},
    indices::{Index, Indices},
    job::{
        Became, HeldAnswer, HeldJobs, JobRef, JobsAnswer, Pair, RefusedJobs, Report, ReportAnswer,
        ReportEntry, StopAnswer, StopWhy,
    },
    node::{Beat, Digest, Inventory},
    outcome::{Ending, IndexState},
    time::{Millis, Now, Seconds, Stamp},
    token::{CallerName, NodeName, OwnerName, PoolName, TaskName},
};
use std::{
    collections::{BTreeMap, BTreeSet},
    sync::Arc,
};
use uuid::Uuid;

const WALL: u64 = 1_800_000_000_000;
const CHAOS_MS: u64 = 8_000;
const PATIENCE_MS: u64 = 400_000;

type JobId = (WorkId, TaskName, Index);

#[derive(Clone, Debug)]
struct Stored {
    seq: Seq,
    at: Stamp,
    owner: Option<OwnerName>,
    fact: Arc<Fact>,
}

#[derive(Debug)]
enum Message {
    Tail { to: usize, life: u64, upto: usize },
    Write { from: usize, life: u64, id: u64, subject: String, fact: Arc<Fact>, fence: Seq },
    Ask { from: usize, life: u64, n: u64, node: NodeName, request: NodeRequest },
    Hear { to: usize, life: u64, event: Event },
    Report { keeper: usize, ids: Vec<u64>, failed: Vec<InstanceId>, report: Report },
    ReportAnswer { keeper: usize, instance: InstanceId, token: u64, answer: ReportAnswer },
    Epoch { to: usize, life: u64, expected: Seq },
    Run { keeper: usize, instance: InstanceId, job: JobId, attempt: u32, epoch: Epoch },
    Return { keeper: usize },
}

struct Scheduler {
    core: Core,
    life: u64,
    seen: usize,
    believes: bool,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum State {
    Queued,
    Running,
    Ended,
}

#[derive(Clone, Debug)]
struct Held {
    attempt: u32,
    epoch: Epoch,
    state: State,
    need: u64,
}

/// A keeper with its worker: one life of a node.
struct Keeper {
    node: NodeName,
    instance: InstanceId,
    since: u64,
    highest: Pair,
    alive: bool,
    cut_until: u64,
    cores: u64,
    jobs: BTreeMap<JobId, Held>,
    /// On its disk: what was not answered, also of earlier instances.
    reports: BTreeMap<u64, ReportEntry>,
    failed: BTreeSet<InstanceId>,
    leaving: bool,
    lender: bool,
}

struct World {
    seed: u64,
    random: fastrand::Rng,
    now: u64,
    order: u64,
    network: BTreeMap<(u64, u64), Message>,
    calm: bool,
    journal: Vec<Stored>,
    truth: Fold,
    epoch_seq: Seq,
    schedulers: Vec<Scheduler>,
    keepers: Vec<Keeper>,
    tokens: BTreeMap<u64, (usize, InstanceId, Vec<u64>, Vec<InstanceId>)>,
    next: u64,
    lease: usize,
    assigned: BTreeMap<(JobId, u32), InstanceId>,
    starts: BTreeMap<(JobId, u32), u32>,
    rounds: BTreeMap<(JobId, u32), u32>,
    works: Vec<WorkId>,
    parts: BTreeMap<WorkId, u32>,
    poison: Option<JobId>,
    told: bool,
}

fn settings() -> Settings {
    Settings {
        silent_after_s: Seconds::from_ms(700),
        lost_after_s: Seconds::from_ms(2000),
        lost_after_most_s: Seconds::from_ms(4000),
        lost_grace_s: Seconds::from_ms(300),
        retry_first_s: Seconds::from_ms(200),
        retry_most_s: Seconds::from_ms(2000),
        at_most_once_wait_s: Seconds::from_ms(150),
        ask_again_s: Seconds::from_ms(150),
        write_again_s: Seconds::from_ms(50),
        finished_every_s: Seconds::from_ms(100),
        summary_every_s: Seconds::from_ms(500),
        outstanding: 64,
        ..Settings::default()
    }
}

const SPECS: &[&str] = &[
    r#"{"tasks":[{"name":"a","run":{"echo":""}}]}"#,
    r#"{"tasks":[{"name":"a","run":{"process":{"argv":["x"]}},"retries":2,"array":{"count":7}}]}"#,
    r#"{"tasks":[{"name":"a","run":{"process":{"argv":["x"]}},"lost":"fail","array":{"count":3}}]}"#,
    r#"{"priority":5,"tasks":[{"name":"a","run":{"echo":""},"array":{"count":40}},
        {"name":"b","needs":["a"],"run":{"process":{"argv":["x"]}},"lost":"fail"},
        {"name":"c","needs":["a"],"run":{"process":{"argv":["x"]}},"resources":{"cpus":2}},
        {"name":"d","needs":["b","c"],"run":{"echo":""}}]}"#,
    r#"{"open":true,"tasks":[{"name":"a","run":{"process":{"argv":["{item}"]}},
        "array":{"items":["p","q"]},"retries":1},{"name":"b","needs":["a"],"run":{"echo":""}}]}"#,
];

impl World {
    fn new(seed: u64) -> Self {
        let random = fastrand::Rng::with_seed(seed);
        let mut world = Self {
            seed,
            random,
            now: 0,
            order: 0,
            network: BTreeMap::new(),
            calm: false,
            journal: Vec::new(),
            truth: Fold::default(),
            epoch_seq: 0,
            schedulers: Vec::new(),
            keepers: Vec::new(),
            tokens: BTreeMap::new(),
            next: 0,
            lease: 0,
            assigned: BTreeMap::new(),
            starts: BTreeMap::new(),
            rounds: BTreeMap::new(),
            works: Vec::new(),
            parts: BTreeMap::new(),
            poison: None,
            told: false,
        };
        for n in 0..2 {
            let core = Core::new(PoolName::main(), settings(), seed ^ n);
            world.schedulers.push(Scheduler { core, life: 0, seen: 0, believes: false });
        }
        for n in 0..world.random.u64(1..=3) {
            let name = NodeName::new(format!("n{n}")).unwrap();
            world.add_keeper(name);
        }
        world
    }

    fn number(&mut self) -> u64 {
        self.next += 1;
        self.next
    }

    #[expect(clippy::print_stderr, reason = "a world that failed is told step by step")]
    fn note(&self, text: impl FnOnce() -> String) {
        if self.told {
            eprintln!("{:>6} {}", self.now, text());
        }
    }

    fn chance(&mut self, percent: u32) -> bool {
        !self.calm && self.random.u32(0..100) < percent
    }

    fn time(&self) -> Now {
        Now { at: Millis(self.now), wall: Stamp(WALL + self.now) }
    }

    fn add_keeper(&mut self, node: NodeName) -> usize {
        let instance = InstanceId(Uuid::from_u128(u128::from(self.number())));
        let cores = self.random.u64(2..=3);
        self.keepers.push(Keeper {
            node,
            instance,
            since: self.now,
            highest: Pair::default(),
            alive: true,
            cut_until: 0,
            cores,
            jobs: BTreeMap::new(),
            reports: BTreeMap::new(),
            failed: BTreeSet::new(),
            leaving: false,
            lender: true,
        });
        self.keepers.len() - 1
    }

    /// Puts a message on its way; it may be lost, doubled or late.
    fn send(&mut self, message: impl Fn() -> Message, reliable: bool) {
        if !reliable && self.chance(8) {
            return;
        }
        let copies = if !reliable && self.chance(6) { 2 } else { 1 };
        for _ in 0..copies {
            let late = if self.chance(4) { 900 } else { 12 };
            let at = self.now + 1 + self.random.u64(0..late);
            self.post(at, message());
        }
    }

    fn post(&mut self, at: u64, message: Message) {
        self.order += 1;
        self.network.insert((at, self.order), message);
    }

    fn store(&mut self, owner: Option<OwnerName>, fact: Arc<Fact>) -> Seq {
        let seq = self.journal.len() as Seq + 1;
        let at = Stamp(WALL + self.now);
        self.note(|| format!("journal {seq}: {fact:?}"));
        if let Fact::Assigned(f) = &*fact {
            // An attempt is never given twice: the bus has fenced out everybody else.
            assert_eq!(f.epoch, self.truth.epoch(), "assigned in another's epoch");
        }
        for given in self.truth.apply(seq, at, owner.clone(), &fact).given {
            let work = self.truth.work(given.work).unwrap();
            let task = work.tasks[given.task].spec.name.clone();
            for index in given.indices.iter() {
                let job = ((given.work, task.clone(), index), given.live.attempt);
                let known = self.assigned.insert(job, given.live.instance);
                assert_eq!(known, None, "an attempt is given twice: {given:?}");
            }
        }
        if let Fact::Epoch(_) = &*fact {
            self.epoch_seq = seq;
        }
        self.journal.push(Stored { seq, at, owner, fact });
        let upto = self.journal.len();
        for to in 0..self.schedulers.len() {
            let life = self.schedulers[to].life;
            let at = self.now + 1 + if self.chance(5) { self.random.u64(0..600) } else { 2 };
            self.post(at, Message::Tail { to, life, upto });
        }
        seq
    }

    fn step(&mut self, to: usize, events: Vec<Event>) {
        let now = self.time();
        let actions = self.schedulers[to].core.step(now, events);
        if let Err(error) = self.schedulers[to].core.audit() {
            panic!("{error}");
        }
        let life = self.schedulers[to].life;
        for action in actions {
            self.perform(to, life, action);
        }
    }

    fn perform(&mut self, from: usize, life: u64, action: Action) {
        match action {
            Action::Append { id, subject, fact, fence } => {
                self.send(
                    || {
                        let (subject, fact) = (subject.clone(), fact.clone());
                        Message::Write { from, life, id, subject, fact, fence }
                    },
                    false,
                );
                // The client library gives up in the end.
                let at = self.now + 400;
                let event = Event::Unanswered { id };
                self.post(at, Message::Hear { to: from, life, event });
            }
            Action::Ask { n, node, request } => {
                self.note(|| format!("s{from} asks {node} #{n}: {request:?}"));
                self.send(
                    || Message::Ask { from, life, n, node: node.clone(), request: request.clone() },
                    false,
                );
                let at = self.now + 500;
                let event = Event::Answered { n, answer: Err(NoAnswer::Silence) };
                self.post(at, Message::Hear { to: from, life, event });
            }
            Action::AnswerReport { token, answer } => {
                self.note(|| format!("s{from} answers report {token}: {answer:?}"));
                let Some((keeper, instance, ..)) = self.tokens.get(&token).cloned() else {
                    return;
                };
                self.send(|| Message::ReportAnswer { keeper, instance, token, answer }, false);
            }
            Action::Refuse { token, .. } => {
                self.tokens.remove(&token);
            }
            Action::StopActing { .. } => {
                self.note(|| format!("s{from} stops"));
                self.schedulers[from].believes = false;
                if self.lease == from {
                    self.take_lease(from);
                }
            }
            Action::Act => {
                self.note(|| format!("s{from} acts"));
                self.schedulers[from].believes = true;
            }
            Action::Answer { .. } | Action::WriteSummary { .. } => {}
        }
    }

    /// What a keeper forgets is stored, or nobody waits for it.
    fn audit_answer(&self, keeper: usize, ids: &[u64]) {
        for id in ids {
            let Some(entry) = self.keepers[keeper].reports.get(id) else { continue };
            let task = self.truth.work(entry.jobs.work).unwrap().task(&entry.jobs.task).unwrap();
            for index in entry.jobs.indices.iter() {
                let live = task.live.get(index).is_some_and(|live| {
                    live.attempt == entry.jobs.attempt && live.instance == entry.instance
                });
                assert!(!live, "answered before it was stored: {entry:?}");
            }
        }
    }

    fn deliver(&mut self, message: Message) {
        match message {
            Message::Tail { to, life, upto } => {
                let s = &mut self.schedulers[to];
                if s.life != life || s.seen >= upto {
                    return;
                }
                let events = self.journal[s.seen..upto]
                    .iter()
                    .map(|stored| Event::Fact {
                        seq: stored.seq,
                        at: stored.at,
                        owner: stored.owner.clone(),
                        fact: stored.fact.clone(),
                    })
                    .collect();
                s.seen = upto;
                self.step(to, events);
            }
            Message::Write { from, life, id, subject, fact, fence } => {
                let event = if fence != self.epoch_seq {
                    Event::Fenced
                } else if self.chance(3) {
                    Event::Unanswered { id }
                } else {
                    let owner = schemas::subject::parse_fact(&subject).unwrap().owner;
                    Event::Written { id, seq: self.store(owner, fact) }
                };
                self.send(|| Message::Hear { to: from, life, event: event.clone() }, false);
            }
            Message::Hear { to, life, event } => {
                if self.schedulers[to].life == life {
                    self.step(to, vec![event]);
                }
            }
            Message::Ask { from, life, n, node, request } => {
                self.ask(from, life, n, &node, request)
            }
            Message::Report { keeper, ids, failed, report } => {
                let k = &self.keepers[keeper];
                let (node, instance) = (k.node.clone(), k.instance);
                let acting: Vec<usize> =
                    (0..self.schedulers.len()).filter(|s| self.schedulers[*s].believes).collect();
                if acting.is_empty() {
                    return;
                }
                let to = acting[self.random.usize(0..acting.len())];
                let token = self.number();
                self.note(|| {
                    let all = report.entries.iter().map(|e| (&e.jobs, e.epoch, e.instance));
                    let all: Vec<_> = all.collect();
                    format!("s{to} hears report {token} of {node} {instance}: {all:?}")
                });
                self.tokens.insert(token, (keeper, instance, ids, failed));
                let report = Box::new(report);
                self.step(to, vec![Event::Report { token, node, report }]);
            }
            Message::ReportAnswer { keeper, instance, token, answer } => {
                let Some((_, _, ids, failed)) = self.tokens.get(&token).cloned() else { return };
                let k = &mut self.keepers[keeper];
                let pair = Pair { epoch: answer.epoch, n: answer.n };
                if !k.alive || k.instance != instance || pair.epoch < k.highest.epoch {
                    return;
                }
                k.highest = k.highest.max(pair);
                self.audit_answer(keeper, &ids);
                let k = &mut self.keepers[keeper];
                for id in ids {
                    if let Some(entry) = k.reports.remove(&id) {
                        for index in entry.jobs.indices.iter() {
                            let job = (entry.jobs.work, entry.jobs.task.clone(), index);
                            let same = |held: &Held| {
                                held.state == State::Ended
                                    && held.attempt == entry.jobs.attempt
                                    && held.epoch == entry.epoch
                            };
                            if k.jobs.get(&job).is_some_and(same) {
                                k.jobs.remove(&job);
                            }
                        }
                    }
                }
                for id in failed {
                    k.failed.remove(&id);
                }
            }
            Message::Epoch { to, life, expected } => {
                if self.schedulers[to].life != life || self.lease != to {
                    return;
                }
                if self.epoch_seq != expected {
                    self.take_lease(to);
                    return;
                }
                let told = self.schedulers[to].core.highest_told();
                let epoch = self.truth.epoch().max(told).max(WALL + self.now) + 1;
                let fact = Fact::Epoch(EpochFact { epoch, by: format!("s{to}") });
                let seq = self.store(None, Arc::new(fact));
                let event = Event::Won { epoch, seq };
                self.send(|| Message::Hear { to, life, event: event.clone() }, true);
            }
            Message::Run { keeper, instance, job, attempt, epoch } => {
                self.job_ends(keeper, instance, job, attempt, epoch);
            }
            Message::Return { keeper } => {
                let old = &self.keepers[keeper];
                let (node, reports) = (old.node.clone(), old.reports.clone());
                let mut failed = old.failed.clone();
                failed.insert(old.instance);
                let fresh = self.add_keeper(node);
                self.keepers[fresh].reports = reports;
                self.keepers[fresh].failed = failed;
                self.note(|| format!("keeper {keeper} is followed by {fresh}"));
            }
        }
    }

    fn ask(&mut self, from: usize, life: u64, n: u64, node: &NodeName, request: NodeRequest) {
        let ask = match &request {
            NodeRequest::Jobs(r) => r.ask,
            NodeRequest::Stop(r) => r.ask,
            NodeRequest::Held(r) => r.ask,
        };
        let now = self.now;
        let Some(at) = self.keepers.iter().position(|k| {
            k.alive && k.node == *node && k.instance == ask.instance && k.cut_until <= now
        }) else {
            return;
        };
        let answer = if ask.pair() <= self.keepers[at].highest {
            Err(NoAnswer::Stale)
        } else {
            let before = self.keepers[at].highest;
            self.keepers[at].highest = ask.pair();
            Ok(match request {
                NodeRequest::Held(_) => NodeAnswer::Held(self.held(at, before)),
                NodeRequest::Stop(r) => {
                    for jobs in r.jobs {
                        self.stop(at, &jobs, r.why);
                    }
                    NodeAnswer::Stop(StopAnswer {})
                }
                NodeRequest::Jobs(r) => {
                    let mut refused = Vec::new();
                    for batch in r.jobs {
                        assert!(
                            batch.items.is_empty()
                                || batch.items.len() as u64 == batch.indices.len(),
                            "an item for each index"
                        );
                        let need = batch.spec.room.cpus.milli;
                        for index in batch.indices.iter() {
                            let job = (batch.work, batch.task.clone(), index);
                            // What it has already it never refuses.
                            let has = self.keepers[at]
                                .jobs
                                .get(&job)
                                .is_some_and(|held| held.attempt >= batch.attempt);
                            if !has && (self.keepers[at].leaving || self.chance(3)) {
                                refused.push(RefusedJobs {
                                    jobs: JobRef {
                                        work: batch.work,
                                        task: batch.task.clone(),
                                        attempt: batch.attempt,
                                        indices: Indices::one(index),
                                    },
                                    why: "not now".to_owned(),
                                });
                                continue;
                            }
                            self.take(at, job, batch.attempt, r.ask.epoch, need);
                        }
                    }
                    NodeAnswer::Jobs(JobsAnswer { refused })
                }
            })
        };
        let event = Event::Answered { n, answer };
        self.send(|| Message::Hear { to: from, life, event: event.clone() }, false);
    }

    fn take(&mut self, at: usize, job: JobId, attempt: u32, epoch: Epoch, need: u64) {
        if self.keepers[at].jobs.get(&job).is_some_and(|h| h.attempt >= attempt) {
            return;
        }
        if let Some(older) = self.keepers[at].jobs.get(&job) {
            assert_eq!(older.state, State::Ended, "asked beside a running attempt: {job:?}");
        }
        // See, then ask.
        let instance = self.keepers[at].instance;
        let assigned = self.assigned.get(&(job.clone(), attempt)) == Some(&instance);
        assert!(assigned, "asked without being assigned: {job:?} {attempt}");
        let held = Held { attempt, epoch, state: State::Queued, need };
        self.keepers[at].jobs.insert(job, held);
        self.start_what_fits(at);
    }

    fn start_what_fits(&mut self, at: usize) {
        loop {
            let k = &self.keepers[at];
            let used: u64 =
                k.jobs.values().filter(|h| h.state == State::Running).map(|h| h.need).sum();
            let free = (k.cores * 1000).saturating_sub(used);
            let next = k.jobs.iter().find(|(_, h)| h.state == State::Queued && h.need <= free);
            let Some((job, held)) = next.map(|(job, held)| (job.clone(), held.clone())) else {
                return;
            };
            let instance = k.instance;
            if let Some(held) = self.keepers[at].jobs.get_mut(&job) {
                held.state = State::Running;
            }
            self.note(|| format!("keeper {at} starts {job:?} {}", held.attempt));
            let count = self.starts.entry((job.clone(), held.attempt)).or_default();
            *count += 1;
            assert_eq!(*count, 1, "an attempt is started twice: {job:?} {}", held.attempt);
            let work = self.truth.work(job.0).unwrap();
            let count = self.rounds.entry((job.clone(), work.round)).or_default();
            *count += 1;
            if work.task(&job.1).unwrap().at_most_once() {
                assert_eq!(*count, 1, "an at-most-once index is started twice: {job:?}");
            }
            let long = if self.chance(10) { 3000 } else { 60 };
            let ends = self.now + self.random.u64(0..long);
            let (attempt, epoch) = (held.attempt, held.epoch);
            self.post(ends, Message::Run { keeper: at, instance, job, attempt, epoch });
        }
    }

    fn job_ends(
        &mut self,
        at: usize,
        instance: InstanceId,
        job: JobId,
        attempt: u32,
        epoch: Epoch,
    ) {
        let k = &self.keepers[at];
        let runs = |h: &Held| h.attempt == attempt && h.epoch == epoch && h.state == State::Running;
        if !k.alive || k.instance != instance || !k.jobs.get(&job).is_some_and(runs) {
            return;
        }
        if self.poison.as_ref() == Some(&job) {
            self.die(at);
            return;
        }
        let state = if self.chance(20) { IndexState::Failed } else { IndexState::Finished };
        let mut ending = Ending::new(state);
        ending.ran_s = Seconds::from_ms(2);
        self.report(at, &job, Became::Ended(Box::new(ending)));
        self.start_what_fits(at);
    }

    fn report(&mut self, at: usize, job: &JobId, became: Became) {
        let id = self.number();
        let k = &mut self.keepers[at];
        let held = k.jobs.get_mut(job).unwrap();
        held.state = State::Ended;
        let entry = ReportEntry {
            owner: OwnerName::owner(),
            jobs: JobRef {
                work: job.0,
                task: job.1.clone(),
                attempt: held.attempt,
                indices: Indices::one(job.2),
            },
            epoch: held.epoch,
            instance: k.instance,
            became,
            ago_s: Seconds::default(),
        };
        k.reports.insert(id, entry);
        self.send_report(at);
    }

    fn stop(&mut self, at: usize, jobs: &JobRef, why: StopWhy) {
        for index in jobs.indices.iter() {
            let job = (jobs.work, jobs.task.clone(), index);
            let Some(held) = self.keepers[at].jobs.get(&job) else { continue };
            if held.attempt != jobs.attempt || held.state == State::Ended {
                continue;
            }
            match (why, held.state) {
                (StopWhy::Stale, _) => {
                    self.keepers[at].jobs.remove(&job);
                }
                (StopWhy::Cancelled, State::Queued) => {
                    self.report(at, &job, Became::Returned { why: "cancelled".to_owned() });
                }
                (StopWhy::Cancelled, _) => {
                    let ending = Ending::new(IndexState::Cancelled);
                    self.report(at, &job, Became::Ended(Box::new(ending)));
                }
            }
        }
        self.start_what_fits(at);
    }

    fn held(&self, at: usize, highest: Pair) -> HeldAnswer {
        let k = &self.keepers[at];
        let jobs = k.jobs.iter().map(|(job, held)| HeldJobs {
            jobs: JobRef {
                work: job.0,
                task: job.1.clone(),
                attempt: held.attempt,
                indices: Indices::one(job.2),
            },
            epoch: held.epoch,
            ended: held.state == State::Ended,
        });
        HeldAnswer { instance: k.instance, jobs: jobs.collect(), highest }
    }

    fn send_report(&mut self, at: usize) {
        let k = &self.keepers[at];
        if !k.alive || k.cut_until > self.now || (k.reports.is_empty() && k.failed.is_empty()) {
            return;
        }
        let ids: Vec<u64> = k.reports.keys().copied().collect();
        let entries: Vec<ReportEntry> = k.reports.values().cloned().collect();
        // Only when no finished report of it is left.
        let failed: Vec<InstanceId> = k
            .failed
            .iter()
            .filter(|id| !entries.iter().any(|entry| entry.instance == **id))
            .copied()
            .collect();
        let report = Report { entries, failed: failed.clone() };
        self.send(
            || {
                let (ids, failed, report) = (ids.clone(), failed.clone(), report.clone());
                Message::Report { keeper: at, ids, failed, report }
            },
            false,
        );
    }

    fn beat(&mut self, at: usize, leaving: bool) {
        let k = &self.keepers[at];
        if !k.alive || k.cut_until > self.now {
            return;
        }
        let count = |state| k.jobs.values().filter(|h| h.state == state).count() as u64;
        let beat = Beat {
            node: k.node.clone(),
            instance: k.instance,
            pool: PoolName::main(),
            site: None,
            at: Stamp(WALL + self.now),
            since: Stamp(WALL + k.since),
            total: Room { cpus: Cpus::new(k.cores), memory_mib: 1000, ..Room::default() },
            used: Room::default(),
            inventory: Arc::new(Inventory::default()),
            digest: Digest {
                running: count(State::Running),
                queued: count(State::Queued),
                unanswered: count(State::Ended),
            },
            highest: k.highest,
            closing: k.leaving,
            leaving,
            version: String::new(),
        };
        for to in 0..self.schedulers.len() {
            let life = self.schedulers[to].life;
            let event = Event::Beat(Box::new(beat.clone()));
            self.send(|| Message::Hear { to, life, event: event.clone() }, false);
        }
    }

    fn die(&mut self, at: usize) {
        self.note(|| format!("keeper {at} dies"));
        self.keepers[at].alive = false;
        self.keepers[at].jobs.clear();
        let back = self.now + self.random.u64(100..3000);
        self.post(back, Message::Return { keeper: at });
    }

    fn leave(&mut self, at: usize) {
        self.note(|| format!("keeper {at} leaves"));
        self.keepers[at].leaving = true;
        let jobs: Vec<(JobId, State)> =
            self.keepers[at].jobs.iter().map(|(job, h)| (job.clone(), h.state)).collect();
        for (job, state) in jobs {
            match state {
                State::Queued => {
                    self.report(at, &job, Became::Returned { why: "leaving".to_owned() });
                }
                State::Running => {
                    self.report(at, &job, Became::Lost { why: "leaving".to_owned() });
                }
                State::Ended => {}
            }
        }
    }

    /// One of the things that happen to people.
    fn happen(&mut self) {
        let owner = Some(OwnerName::owner());
        let by = CallerName::owner();
        match self.random.u32(0..100) {
            0..30 if self.works.len() < 6 => {
                let id = WorkId(Uuid::from_u128(0x1000 + u128::from(self.number())));
                let spec = SPECS[self.random.usize(0..SPECS.len())];
                let spec = Arc::new(serde_json::from_str(spec).unwrap());
                self.works.push(id);
                self.store(owner, Arc::new(Fact::Accepted(Accepted { work: id, by, spec })));
                if self.chance(10) {
                    self.poison = Some((id, TaskName::new("a").unwrap(), 0));
                }
            }
            30..40 if !self.works.is_empty() => {
                let work = self.works[self.random.usize(0..self.works.len())];
                let request = RequestId(Uuid::from_u128(u128::from(self.number())));
                let round = self.truth.work(work).map_or(0, |w| w.round);
                let fact = match self.random.bool() {
                    true => Fact::CancelAsked(CancelAsked { work, request, round, by }),
                    false => Fact::RetryAsked(RetryAsked { work, request, round, by }),
                };
                let fact = Arc::new(fact);
                self.store(owner.clone(), fact.clone());
                if self.chance(30) {
                    self.store(owner, fact);
                }
            }
            40..50 => self.append_or_close(),
            50..58 => {
                let at = self.random.usize(0..self.keepers.len());
                self.keepers[at].cut_until = self.now + self.random.u64(100..4000);
                self.note(|| format!("keeper {at} is cut off"));
            }
            58..64 => {
                let at = self.random.usize(0..self.keepers.len());
                if self.keepers[at].alive && !self.keepers[at].leaving {
                    self.die(at);
                }
            }
            64..68 => {
                let at = self.random.usize(0..self.keepers.len());
                if self.keepers[at].alive && !self.keepers[at].leaving {
                    self.leave(at);
                }
            }
            68..71 if self.keepers.len() < 6 => {
                let at = self.random.usize(0..self.keepers.len());
                let node = self.keepers[at].node.clone();
                self.note(|| format!("keeper {at} is cloned"));
                self.add_keeper(node);
            }
            71..80 => {
                let at = self.random.usize(0..self.schedulers.len());
                self.restart(at);
            }
            80..90 => self.pass_lease(),
            _ => {}
        }
    }

    fn append_or_close(&mut self) {
        let open: Vec<WorkId> = self.truth.open().iter().copied().collect();
        let Some(&work) = open.first() else { return };
        let part = self.parts.entry(work).or_default();
        let close = *part >= 2 || self.calm;
        if !close {
            *part += 1;
        }
        let part = *part;
        let fact = if close {
            Fact::Closed(Closed { work, parts: part })
        } else {
            let items = vec![Arc::from("x"), Arc::from("y")];
            let items = Some(MoreItems { task: TaskName::new("a").unwrap(), items });
            Fact::Appended(Appended { work, part, tasks: Vec::new(), items })
        };
        self.store(Some(OwnerName::owner()), Arc::new(fact));
    }

    fn restart(&mut self, at: usize) {
        self.note(|| format!("s{at} restarts"));
        let life = self.schedulers[at].life + 1;
        let seed = self.seed ^ life;
        let core = Core::new(PoolName::main(), settings(), seed);
        self.schedulers[at] = Scheduler { core, life, seen: 0, believes: false };
        let upto = self.journal.len();
        self.post(self.now + 5, Message::Tail { to: at, life, upto });
        if self.lease == at {
            self.take_lease(at);
        }
    }

    fn pass_lease(&mut self) {
        let old = self.lease;
        let life = self.schedulers[old].life;
        // The old one may never hear of it, or late.
        if self.random.bool() {
            let at = self.now + self.random.u64(0..2000);
            self.post(at, Message::Hear { to: old, life, event: Event::LeaseLost });
        }
        self.lease = (old + 1) % self.schedulers.len();
        self.take_lease(self.lease);
    }

    /// Reads the epoch, takes the lease, and (after a stall) writes the next epoch.
    fn take_lease(&mut self, to: usize) {
        let life = self.schedulers[to].life;
        let expected = self.epoch_seq;
        let stall = if self.chance(20) { 1500 } else { 20 };
        let at = self.now + self.random.u64(1..stall);
        self.post(at, Message::Epoch { to, life, expected });
    }

    fn run(mut self) {
        self.take_lease(0);
        let mut beat_at = 0;
        let mut tick_at = 0;
        let mut happen_at = 0;
        let mut settled = None;
        while self.now < CHAOS_MS + PATIENCE_MS {
            let next = self.network.first_key_value().map_or(u64::MAX, |((at, _), _)| *at);
            let next = next.min(beat_at).min(tick_at).min(happen_at);
            self.now = self.now.max(next);
            if !self.calm && self.now >= CHAOS_MS {
                self.calm = true;
                self.settle_world();
                happen_at = u64::MAX;
            }
            if happen_at <= self.now {
                happen_at = self.now + self.random.u64(20..400);
                self.happen();
            } else if beat_at <= self.now {
                beat_at = self.now + 200;
                for at in 0..self.keepers.len() {
                    self.beat_or_leave(at);
                }
                if self.calm {
                    self.append_or_close();
                }
            } else if tick_at <= self.now {
                tick_at = self.now + 100;
                for to in 0..self.schedulers.len() {
                    self.step(to, vec![Event::Tick]);
                }
                if self.calm && self.is_done() {
                    settled = Some(settled.unwrap_or(0) + 1);
                    if settled > Some(30) {
                        self.audit_end();
                        return;
                    }
                }
            } else if let Some((_, message)) = self.network.pop_first() {
                self.deliver(message);
            }
        }
        panic!("not everything ended: {}", self.what_is_left());
    }

    fn beat_or_leave(&mut self, at: usize) {
        self.send_report(at);
        let k = &self.keepers[at];
        if k.leaving && k.alive && k.jobs.is_empty() && k.reports.is_empty() {
            self.beat(at, true);
            let k = &mut self.keepers[at];
            k.alive = false;
            if k.lender {
                k.lender = false;
                let node = k.node.clone();
                let fresh = self.add_keeper(node);
                self.note(|| format!("keeper {at} has left, {fresh} comes"));
            }
            return;
        }
        self.beat(at, false);
    }

    /// Nothing goes wrong any more: the acting scheduler is one of the living, nodes are reachable.
    fn settle_world(&mut self) {
        self.note(|| "calm".to_owned());
        self.poison = None;
        for keeper in &mut self.keepers {
            keeper.cut_until = 0;
        }
        let lease = self.lease;
        self.take_lease(lease);
        let life = self.schedulers[1 - lease].life;
        self.post(self.now + 50, Message::Hear { to: 1 - lease, life, event: Event::LeaseLost });
    }

    fn is_done(&self) -> bool {
        self.truth.active().is_empty()
            && self.truth.unrecorded().is_empty()
            && self.keepers.iter().all(|k| !k.alive || k.jobs.is_empty() && k.reports.is_empty())
            && self.schedulers.iter().any(|s| s.core.is_idle())
    }

    fn what_is_left(&self) -> String {
        let works: Vec<_> =
            self.truth.active().iter().filter_map(|id| self.truth.summary(*id)).collect();
        let mut out = String::new();
        for work in works {
            out.push_str(&format!("{} {:?} {:?}\n", work.work, work.state, work.why));
            for t in work.tasks.iter().filter(|t| !t.state.is_ended()) {
                out.push_str(&format!("  {t:?}\n"));
            }
            for s in &self.schedulers {
                let why = s.core.summary(work.work).and_then(|summary| summary.why);
                out.push_str(&format!("  {:?} says {why:?}\n", s.core.acting()));
            }
        }
        for (n, k) in self.keepers.iter().enumerate().filter(|(_, k)| k.alive) {
            out.push_str(&format!("keeper {n} {} {} {:?}\n", k.node, k.instance, k.highest));
            out.push_str(&format!("  {:?}\n  {:?}\n", k.jobs, k.reports));
        }
        for s in self.schedulers.iter().filter(|s| s.core.acting().is_some()) {
            for (id, i) in &s.core.instances {
                out.push_str(&format!("books of {id}: {i:?}\n"));
            }
            out.push_str(&format!("{:?}\n{:?}\n", s.core.appends, s.core.asks));
        }
        out
    }

    fn audit_end(&self) {
        for s in &self.schedulers {
            if s.seen < self.journal.len() {
                continue;
            }
            for id in &self.works {
                assert_eq!(
                    s.core.fold().summary(*id),
                    self.truth.summary(*id),
                    "readers of one journal know the same"
                );
            }
        }
    }
}

fn worlds(seeds: std::ops::Range<u64>) {
    for seed in seeds {
        let result = std::panic::catch_unwind(|| World::new(seed).run());
        if let Err(cause) = result {
            let text = cause
                .downcast_ref::<String>()
                .cloned()
                .or_else(|| cause.downcast_ref::<&str>().map(|text| (*text).to_owned()))
                .unwrap_or_default();
            panic!("world {seed}: {text}");
        }
    }
}

#[test]
fn every_world_keeps_the_rules_and_comes_to_its_end() {
    worlds(0..250);
}

/// `cargo test -p actors many_worlds -- --ignored`
#[test]
#[ignore = "takes minutes"]
fn many_worlds_keep_the_rules_and_come_to_their_end() {
    worlds(1_000_000..1_020_000);
}

/// For a seed that failed: `cargo test -p actors one_world -- --ignored --nocapture`.
#[test]
#[ignore = "tells one world step by step"]
fn one_world_is_told_step_by_step() {
    let mut world = World::new(0);
    world.told = true;
    world.run();
}
