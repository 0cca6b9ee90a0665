//! What a keeper decides: which job starts when, on which cards; when one is ended, and what is said of it.
//!
//! Pure: the shell ([`super`]) hands in what happened and the time, and does what comes back. Jobs start in
//! the order in which they came. One that does not fit yet keeps what it needs from those behind it, so that
//! a small job may pass a large one only over room that the large one has no use for.
//!
//! A job goes `queued → starting → running → (stopping →) cleaning → reported`; its room is taken from
//! `starting` until nothing of it is left.

use super::spawn::Exit;
use crate::protocol::{Answer, Numbered, State};
use schemas::{
    amount::Room,
    blob::Blob,
    error::{Refusal, code},
    id::{Attempt, Epoch, InstanceId, WorkId},
    indices::{Index, Indices},
    job::{
        Ask, Became, HeldAnswer, HeldJobs, HeldRequest, JobBatch, JobRef, JobSpec, JobsAnswer,
        JobsRequest, Pair, RefusedJobs, ReportEntry, StopAnswer, StopRequest, StopWhy,
    },
    node::{Card, Digest},
    outcome::{Ending, INLINE_BYTES, IndexState, reason},
    time::{Millis, Now, Seconds, Stamp},
    token::{NodeName, OwnerName, TaskName},
    work::{Run, fill},
};
use std::{
    collections::{BTreeMap, BTreeSet, VecDeque},
    sync::Arc,
};

/// Most jobs that wait here; whoever sends more hears which were not taken.
const MAX_QUEUED: u64 = 4_000_000;
/// So many batches that do not fit are looked past in search of one that does.
const MAX_PASSED: usize = 64;
/// A job's lease grows with its age up to this.
const LONGEST_LEASE_MS: u64 = 3_600_000;

/// A job within this keeper.
pub(crate) type JobId = u64;

/// What the worker settles when it attaches.
#[derive(Clone, Debug)]
pub(crate) struct Settings {
    /// The node's name.
    pub(crate) node: NodeName,
    /// What it lends.
    pub(crate) lend: Room,
    /// The cards it lends.
    pub(crate) cards: Vec<Card>,
    /// From TERM to KILL.
    pub(crate) grace_ms: u64,
    /// The shortest lease.
    pub(crate) lost_after_ms: u64,
    /// So many processes at once at most, whatever they need.
    pub(crate) max_running: usize,
}

/// What jobs of one batch share.
#[derive(Debug)]
pub(crate) struct Shared {
    /// A label.
    pub(crate) owner: OwnerName,
    /// A label.
    pub(crate) work: WorkId,
    /// A label.
    pub(crate) task: TaskName,
    /// Which attempt.
    pub(crate) attempt: Attempt,
    /// By which scheduler they were assigned.
    pub(crate) epoch: Epoch,
    /// What is run.
    pub(crate) spec: Arc<JobSpec>,
}

/// One job that starts.
#[derive(Debug)]
pub(crate) struct Job {
    /// Within this keeper.
    pub(crate) id: JobId,
    /// What it shares.
    pub(crate) shared: Arc<Shared>,
    /// Its index.
    pub(crate) index: Index,
    /// Its item.
    pub(crate) item: Option<Arc<str>>,
    /// Its cards, as in `CUDA_VISIBLE_DEVICES`.
    pub(crate) cards: Vec<u32>,
    /// Whether the node has cards at all, so that a job without any must be shown none.
    pub(crate) hide_cards: bool,
}

/// What happened.
#[derive(Debug)]
pub(crate) enum Event {
    /// A worker has come.
    Attached(Box<Settings>),
    /// It has gone.
    Detached,
    /// A request of the bus.
    Jobs(u64, JobsRequest),
    /// A request of the bus.
    Stop(u64, StopRequest),
    /// A request of the bus.
    Held(u64, HeldRequest),
    /// Reports were answered.
    Answered(Vec<u64>, Pair),
    /// The process runs.
    Spawned(JobId),
    /// It could not be started.
    NotSpawned(JobId, NotSpawned),
    /// Its main process ended.
    Exited(JobId, Exit),
    /// Nothing of it is left, and this is how it ended.
    Gone(JobId, Box<Ending>),
    /// No more jobs.
    Leave {
        /// End those that run.
        now: bool,
    },
    /// Time has passed.
    Tick,
}

/// Why a process was not started.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct NotSpawned {
    /// 126 or 127, as a shell says it; none where it is the node's fault.
    pub(crate) exit_code: Option<i32>,
    /// In one sentence.
    pub(crate) why: String,
}

/// What must be done.
#[derive(Debug)]
pub(crate) enum Action {
    /// Answer a request.
    Answer(u64, Answer),
    /// Start a process, then say `Spawned` or `NotSpawned`.
    Start(Arc<Job>),
    /// TERM (`false`) or KILL (`true`) to everything of a job.
    Signal(JobId, bool),
    /// End what is left of a job, read its outputs if it finished, then say `Gone`.
    Clean(JobId, Box<Ending>),
    /// The job is over; its output ends here.
    Forget(JobId),
    /// Keep these until they are answered.
    Report(Vec<Numbered>),
    /// Drop these.
    Drop(Vec<u64>),
    /// These were answered by a scheduler that is over; say them again.
    Repeat(Vec<u64>),
    /// Write down the highest pair.
    Keep(Pair),
}

/// Why a job is being ended.
#[derive(Clone, Debug, PartialEq, Eq)]
enum Cause {
    Timeout,
    Cancelled,
    Stale,
    Lost(String),
}

#[derive(Debug, PartialEq, Eq)]
enum Phase {
    Starting,
    Running,
    Stopping { kill_at: Option<Millis> },
    Cleaning,
}

#[derive(Debug)]
struct Running {
    job: Arc<Job>,
    phase: Phase,
    started: Option<Now>,
    deadline: Option<Millis>,
    cause: Option<Cause>,
}

#[derive(Debug)]
struct Queued {
    shared: Arc<Shared>,
    indices: Indices,
    items: VecDeque<Arc<str>>,
}

impl Queued {
    fn pop(&mut self) -> Option<(Index, Option<Arc<str>>)> {
        let index = self.indices.take(1).min()?;
        Some((index, self.items.pop_front()))
    }

    /// Takes some out and says which were there.
    fn remove(&mut self, out: &Indices) -> Indices {
        let hit = self.indices.intersection(out);
        if !hit.is_empty() && !self.items.is_empty() {
            let kept = self.indices.iter().zip(self.items.drain(..));
            self.items = kept.filter(|(i, _)| !hit.contains(*i)).map(|(_, item)| item).collect();
        }
        self.indices.remove_all(&hit);
        hit
    }
}

type Key = (WorkId, TaskName, Attempt);

#[derive(Debug, Default)]
struct Known {
    queued: Indices,
    running: BTreeMap<Index, JobId>,
    ended: Indices,
    epoch: Epoch,
}

impl Known {
    fn all(&self) -> Indices {
        let mut all = self.queued.clone();
        all.insert_all(&self.ended);
        all.insert_all(&self.running.keys().copied().collect());
        all
    }

    fn is_empty(&self) -> bool {
        self.queued.is_empty() && self.running.is_empty() && self.ended.is_empty()
    }
}

/// See the head of this file.
#[derive(Debug)]
pub(crate) struct Core {
    instance: InstanceId,
    settings: Settings,
    highest: Pair,
    queue: VecDeque<Queued>,
    running: BTreeMap<JobId, Running>,
    known: BTreeMap<Key, Known>,
    unanswered: BTreeMap<u64, JobRef>,
    alarms: BTreeSet<(Millis, JobId)>,
    used: Room,
    cards_taken: BTreeSet<u32>,
    detached: Option<Millis>,
    leaving: bool,
    held_back: usize,
    next_job: JobId,
    next_report: u64,
}

impl Core {
    /// A keeper that begins, with the reports that others left.
    pub(crate) fn new(
        instance: InstanceId,
        highest: Pair,
        left: &[(u64, JobRef, Epoch)],
        next_report: u64,
        settings: Settings,
        now: Now,
    ) -> Self {
        let mut core = Self {
            instance,
            settings,
            highest,
            queue: VecDeque::new(),
            running: BTreeMap::new(),
            known: BTreeMap::new(),
            unanswered: BTreeMap::new(),
            alarms: BTreeSet::new(),
            used: Room::default(),
            cards_taken: BTreeSet::new(),
            detached: Some(now.at),
            leaving: false,
            held_back: 0,
            next_job: 1,
            next_report,
        };
        for (id, jobs, epoch) in left {
            core.remember_report(*id, jobs, *epoch);
        }
        core
    }

    /// Takes in one event and says what must be done about it.
    pub(crate) fn step(&mut self, now: Now, event: Event) -> Vec<Action> {
        let mut actions = Vec::new();
        match event {
            Event::Attached(settings) => {
                self.settings = *settings;
                self.detached = None;
            }
            Event::Detached => self.on_detached(now),
            Event::Jobs(id, request) => self.on_jobs(now, id, request, &mut actions),
            Event::Stop(id, request) => self.on_stop(now, id, request, &mut actions),
            Event::Held(id, request) => self.on_held(id, request, &mut actions),
            Event::Answered(ids, pair) => self.on_answered(ids, pair, &mut actions),
            Event::Spawned(id) => self.on_spawned(now, id, &mut actions),
            Event::NotSpawned(id, why) => self.on_not_spawned(now, id, why, &mut actions),
            Event::Exited(id, exit) => self.on_exited(now, id, exit, &mut actions),
            Event::Gone(id, ending) => self.on_gone(id, *ending, &mut actions),
            Event::Leave { now: at_once } => self.on_leave(now, at_once, &mut actions),
            Event::Tick => {}
        }
        self.on_alarms(now, &mut actions);
        self.start_what_fits(&mut actions);
        actions
    }

    /// So many jobs have ended whose output is still on its way: they count as running, so that a node whose
    /// output nobody takes comes to rest instead of filling up.
    pub(crate) fn hold_back(&mut self, jobs: usize) {
        self.held_back = jobs;
    }

    fn is_full(&self) -> bool {
        self.running.len() + self.held_back >= self.settings.max_running
    }

    /// When `Tick` must be said at the latest.
    pub(crate) fn next_wake(&self) -> Option<Millis> {
        self.alarms.first().map(|(at, _)| *at)
    }

    /// A job that starts or runs.
    pub(crate) fn job(&self, id: JobId) -> Option<Arc<Job>> {
        self.running.get(&id).map(|running| running.job.clone())
    }

    /// Whether nothing runs or waits here.
    pub(crate) fn is_idle(&self) -> bool {
        self.running.is_empty() && self.queue.is_empty()
    }

    /// Whether no report is unanswered.
    pub(crate) fn is_answered(&self) -> bool {
        self.unanswered.is_empty()
    }

    /// Whether it takes no more jobs.
    pub(crate) fn is_leaving(&self) -> bool {
        self.leaving
    }

    /// How it stands.
    pub(crate) fn state(&self, now: Now) -> State {
        let leases = || {
            let queued = self.queue.iter().map(|q| self.lease_of(&q.shared.spec, 0));
            let running = self.running.values().map(|r| {
                let ran = r.started.map_or(0, |started| now.at.since(started.at));
                self.lease_of(&r.job.shared.spec, ran)
            });
            running.chain(queued)
        };
        State {
            used: self.used.clone(),
            digest: Digest {
                running: self.running.len() as u64,
                queued: self.queue.iter().map(|q| q.indices.len()).sum(),
                unanswered: self.known.values().map(|k| k.ended.len()).sum(),
            },
            highest: self.highest,
            first_lost_after: leases().min().map(Seconds::from_ms),
            last_lost_after: leases().max().map(Seconds::from_ms),
            leaving: self.leaving,
        }
    }

    /// Checks the first words of a request; raises the highest pair if it is good.
    fn admit(&mut self, ask: &Ask, actions: &mut Vec<Action>) -> Result<(), Refusal> {
        if ask.instance != self.instance {
            return Err(Refusal::new(
                code::NOT_ME,
                format!("asked for instance {}, this is {}", ask.instance, self.instance),
            ));
        }
        if ask.pair() <= self.highest {
            let Pair { epoch, n } = self.highest;
            return Err(Refusal::new(
                code::STALE_REQUEST,
                format!(
                    "request {} of epoch {} is not above {n} of epoch {epoch}",
                    ask.n, ask.epoch
                ),
            ));
        }
        self.raise(ask.pair(), actions);
        Ok(())
    }

    fn raise(&mut self, pair: Pair, actions: &mut Vec<Action>) {
        if pair > self.highest {
            self.highest = pair;
            actions.push(Action::Keep(pair));
        }
    }

    fn on_jobs(&mut self, now: Now, id: u64, request: JobsRequest, actions: &mut Vec<Action>) {
        if let Err(refusal) = self.admit(&request.ask, actions) {
            actions.push(Action::Answer(id, Answer::Refused(refusal)));
            return;
        }
        let mut answer = JobsAnswer::default();
        let mut entries = Vec::new();
        let mut waiting: u64 = self.queue.iter().map(|q| q.indices.len()).sum();
        for batch in request.jobs {
            let asked = batch.indices.len();
            if let Some(refused) = self.take(now, request.ask.epoch, batch, waiting, &mut entries) {
                answer.refused.push(refused);
            }
            waiting += asked;
        }
        actions.push(Action::Answer(id, Answer::Jobs(answer)));
        self.report(entries, actions);
    }

    fn take(
        &mut self,
        now: Now,
        epoch: Epoch,
        batch: JobBatch,
        waiting: u64,
        entries: &mut Vec<ReportEntry>,
    ) -> Option<RefusedJobs> {
        let key = (batch.work, batch.task.clone(), batch.attempt);
        let held = self.known.get(&key).map(Known::all).unwrap_or_default();
        let mut queued = Queued {
            shared: Arc::new(Shared {
                owner: batch.owner,
                work: batch.work,
                task: batch.task,
                attempt: batch.attempt,
                epoch,
                spec: batch.spec,
            }),
            indices: batch.indices,
            items: batch.items.into(),
        };
        let unequal = !queued.items.is_empty() && queued.items.len() as u64 != queued.indices.len();
        let refused =
            if unequal { Some("there is not one item for each index".to_owned()) } else { None };
        // What is held already was asked before by somebody whose request nobody remembers: it is taken.
        if !unequal {
            queued.remove(&held);
        }
        if queued.indices.is_empty() {
            return None;
        }
        if let Some(why) = refused.or_else(|| self.why_never(&queued, waiting)) {
            let jobs = job_ref(&queued.shared, queued.indices);
            return Some(RefusedJobs { jobs, why });
        }
        if let Run::Echo(text) = &queued.shared.spec.run {
            let text = text.clone();
            self.echo(now, &text, queued, entries);
            return None;
        }
        let known = self.known.entry(key).or_default();
        known.epoch = epoch;
        known.queued.insert_all(&queued.indices);
        self.queue.push_back(queued);
        self.set_queue_alarm();
        None
    }

    /// Why these could never start here.
    fn why_never(&self, queued: &Queued, waiting: u64) -> Option<String> {
        if self.leaving {
            return Some("the node is leaving".to_owned());
        }
        let spec = &queued.shared.spec;
        let short = self.settings.lend.short_of(&spec.room);
        if !short.is_empty() {
            return Some(format!("the node lends too little: it lacks {short}"));
        }
        let fit = self.settings.cards.iter().filter(|card| card.vram_mib >= spec.vram_mib).count();
        if spec.room.gpus > 0 && (fit as u64) < spec.room.gpus {
            return Some(format!(
                "the node has {fit} cards with {} MiB, {} are needed",
                spec.vram_mib, spec.room.gpus
            ));
        }
        (waiting.saturating_add(queued.indices.len()) > MAX_QUEUED)
            .then(|| format!("more than {MAX_QUEUED} jobs wait here"))
    }

    /// An echo takes no time and no room: it has ended by the time it is asked for.
    fn echo(&mut self, now: Now, text: &Blob, mut queued: Queued, entries: &mut Vec<ReportEntry>) {
        let template = std::str::from_utf8(&text.0).ok().filter(|template| {
            let items = !queued.items.is_empty();
            queued.shared.spec.array
                && (template.contains("{index}") || items && template.contains("{item}"))
        });
        let node = self.settings.node.clone();
        let ending = |stdout: Blob| {
            let mut ending = match stdout.len() {
                0..=INLINE_BYTES => Ending::new(IndexState::Finished),
                len => Ending::because(
                    IndexState::Failed,
                    reason::OUTPUT_TOO_LARGE,
                    format!("an echo of {len} bytes is longer than {INLINE_BYTES}"),
                ),
            };
            ending.node = Some(node.clone());
            ending.exit_code = (ending.state == IndexState::Finished).then_some(0);
            ending.started_at = Some(now.wall);
            ending.ended_at = Some(now.wall);
            ending.stdout_bytes = stdout.len() as u64;
            if stdout.len() <= INLINE_BYTES {
                ending.stdout = stdout;
            }
            Became::Ended(Box::new(ending))
        };
        let shared = queued.shared.clone();
        let Some(template) = template else {
            let indices = std::mem::take(&mut queued.indices);
            entries.push(self.entry(&shared, indices, ending(text.clone())));
            return;
        };
        while let Some((index, item)) = queued.pop() {
            let stdout = fill(template, index, item.as_deref()).into_owned().into();
            entries.push(self.entry(&shared, Indices::one(index), ending(stdout)));
        }
    }

    fn on_stop(&mut self, now: Now, id: u64, request: StopRequest, actions: &mut Vec<Action>) {
        if let Err(refusal) = self.admit(&request.ask, actions) {
            actions.push(Action::Answer(id, Answer::Refused(refusal)));
            return;
        }
        actions.push(Action::Answer(id, Answer::Stop(StopAnswer {})));
        let mut entries = Vec::new();
        for jobs in &request.jobs {
            for queued in self.unqueue(|shared| {
                (shared.work == jobs.work
                    && shared.task == jobs.task
                    && shared.attempt == jobs.attempt)
                    .then_some(&jobs.indices)
            }) {
                if request.why == StopWhy::Cancelled {
                    let mut ending = Ending::because(
                        IndexState::Cancelled,
                        reason::CANCELLED,
                        "cancelled before it started",
                    );
                    ending.node = Some(self.settings.node.clone());
                    let became = Became::Ended(Box::new(ending));
                    entries.push(self.entry(&queued.shared, queued.indices, became));
                }
            }
            let key = (jobs.work, jobs.task.clone(), jobs.attempt);
            let hit: Vec<JobId> = self.known.get(&key).map_or_else(Vec::new, |known| {
                let running = known.running.iter();
                running.filter(|(i, _)| jobs.indices.contains(**i)).map(|(_, id)| *id).collect()
            });
            let cause = match request.why {
                StopWhy::Cancelled => Cause::Cancelled,
                StopWhy::Stale => Cause::Stale,
            };
            for id in hit {
                self.end(now, id, cause.clone(), actions);
            }
        }
        self.report(entries, actions);
    }

    /// Takes what `which` names out of the queue.
    fn unqueue<'a>(&mut self, which: impl Fn(&Shared) -> Option<&'a Indices>) -> Vec<Queued> {
        let mut out = Vec::new();
        for queued in &mut self.queue {
            let Some(named) = which(&queued.shared) else { continue };
            let hit = queued.remove(named);
            if !hit.is_empty() {
                let key = (queued.shared.work, queued.shared.task.clone(), queued.shared.attempt);
                if let Some(known) = self.known.get_mut(&key) {
                    known.queued.remove_all(&hit);
                }
                let shared = queued.shared.clone();
                out.push(Queued { shared, indices: hit, items: VecDeque::new() });
            }
        }
        self.queue.retain(|queued| !queued.indices.is_empty());
        self.known.retain(|_, known| !known.is_empty());
        out
    }

    fn on_held(&mut self, id: u64, request: HeldRequest, actions: &mut Vec<Action>) {
        let before = self.highest;
        if let Err(refusal) = self.admit(&request.ask, actions) {
            actions.push(Action::Answer(id, Answer::Refused(refusal)));
            return;
        }
        let mut jobs = Vec::new();
        for ((work, task, attempt), known) in &self.known {
            let mut live = known.queued.clone();
            live.insert_all(&known.running.keys().copied().collect());
            for (indices, ended) in [(live, false), (known.ended.clone(), true)] {
                if !indices.is_empty() {
                    let jobs_ref =
                        JobRef { work: *work, task: task.clone(), attempt: *attempt, indices };
                    jobs.push(HeldJobs { jobs: jobs_ref, epoch: known.epoch, ended });
                }
            }
        }
        let answer = HeldAnswer { instance: self.instance, jobs, highest: before };
        actions.push(Action::Answer(id, Answer::Held(answer)));
    }

    fn on_answered(&mut self, ids: Vec<u64>, pair: Pair, actions: &mut Vec<Action>) {
        if pair.epoch < self.highest.epoch {
            actions.push(Action::Repeat(ids));
            return;
        }
        self.raise(pair, actions);
        for id in &ids {
            let Some(jobs) = self.unanswered.remove(id) else { continue };
            let key = (jobs.work, jobs.task, jobs.attempt);
            if let Some(known) = self.known.get_mut(&key) {
                known.ended.remove_all(&jobs.indices);
                if known.is_empty() {
                    self.known.remove(&key);
                }
            }
        }
        actions.push(Action::Drop(ids));
    }

    fn on_spawned(&mut self, now: Now, id: JobId, actions: &mut Vec<Action>) {
        let Some(running) = self.running.get_mut(&id) else { return };
        running.started = Some(now);
        if let Some(timeout) = running.job.shared.spec.timeout_s {
            let deadline = now.at + timeout.ms;
            running.deadline = Some(deadline);
            self.alarms.insert((deadline, id));
        }
        running.phase = Phase::Running;
        // It was to be ended while it was being started.
        if running.cause.is_some() {
            self.signal(now, id, actions);
        }
        self.set_lease_alarm(id);
    }

    fn on_not_spawned(&mut self, now: Now, id: JobId, why: NotSpawned, actions: &mut Vec<Action>) {
        let Some(running) = self.running.get_mut(&id) else { return };
        running.phase = Phase::Cleaning;
        let mut ending = Ending::because(IndexState::Failed, reason::NOT_STARTED, why.why);
        ending.exit_code = why.exit_code;
        ending.node = Some(self.settings.node.clone());
        ending.started_at = Some(now.wall);
        ending.ended_at = Some(now.wall);
        if running.cause == Some(Cause::Cancelled) {
            ending.state = IndexState::Cancelled;
            ending.reason = Some(reason::CANCELLED.to_owned());
        }
        actions.push(Action::Clean(id, Box::new(ending)));
    }

    fn on_exited(&mut self, now: Now, id: JobId, exit: Exit, actions: &mut Vec<Action>) {
        let Some(running) = self.running.get_mut(&id) else { return };
        running.phase = Phase::Cleaning;
        let mut ending = verdict(running.cause.as_ref(), &exit, &running.job.shared.spec);
        ending.node = Some(self.settings.node.clone());
        ending.exit_code = exit.code;
        ending.signal = exit.signal;
        ending.ended_at = Some(now.wall);
        if let Some(started) = running.started {
            let ran_ms = now.at.since(started.at);
            ending.ran_s = Seconds::from_ms(ran_ms);
            // The world's clock may be set meanwhile; the two must not contradict each other.
            ending.started_at = Some(Stamp::minus_ms(now.wall, ran_ms));
        }
        ending.cpu_s = Seconds::from_ms(exit.cpu_ms);
        ending.memory_peak_mib = exit.memory_peak_mib;
        actions.push(Action::Clean(id, Box::new(ending)));
    }

    fn on_gone(&mut self, id: JobId, ending: Ending, actions: &mut Vec<Action>) {
        let Some(Running { job, cause, .. }) = self.running.remove(&id) else { return };
        self.used.sub(&job.shared.spec.room, 1);
        for card in &job.cards {
            self.cards_taken.remove(card);
        }
        let key = (job.shared.work, job.shared.task.clone(), job.shared.attempt);
        if let Some(known) = self.known.get_mut(&key) {
            known.running.remove(&job.index);
            if known.is_empty() {
                self.known.remove(&key);
            }
        }
        actions.push(Action::Forget(id));
        let became = match cause {
            Some(Cause::Stale) => return,
            Some(Cause::Lost(why)) => Became::Lost { why },
            _ => Became::Ended(Box::new(ending)),
        };
        let entry = self.entry(&job.shared, Indices::one(job.index), became);
        self.report(vec![entry], actions);
    }

    fn on_leave(&mut self, now: Now, at_once: bool, actions: &mut Vec<Action>) {
        self.leaving = true;
        self.return_queue("the node is leaving", |_| true, actions);
        if at_once {
            self.end_all(now, "the node was shut down", actions);
        }
    }

    fn return_queue(
        &mut self,
        why: &str,
        which: impl Fn(&Shared) -> bool,
        actions: &mut Vec<Action>,
    ) {
        let all = Indices::span(0, Index::MAX);
        let returned = self.unqueue(|shared| which(shared).then_some(&all));
        let entries: Vec<ReportEntry> = returned
            .into_iter()
            .map(|q| self.entry(&q.shared, q.indices, Became::Returned { why: why.to_owned() }))
            .collect();
        self.report(entries, actions);
    }

    fn end_all(&mut self, now: Now, why: &str, actions: &mut Vec<Action>) {
        let ids: Vec<JobId> = self.running.keys().copied().collect();
        for id in ids {
            self.end(now, id, Cause::Lost(why.to_owned()), actions);
        }
    }

    /// Begins to end a job, unless that has begun. A job that nobody waits for stays so.
    fn end(&mut self, now: Now, id: JobId, cause: Cause, actions: &mut Vec<Action>) {
        let Some(running) = self.running.get_mut(&id) else { return };
        match &running.cause {
            None => running.cause = Some(cause),
            Some(Cause::Stale) => {}
            Some(_) if cause == Cause::Stale => running.cause = Some(cause),
            Some(_) => {}
        }
        if running.phase == Phase::Running {
            self.signal(now, id, actions);
        }
    }

    fn signal(&mut self, now: Now, id: JobId, actions: &mut Vec<Action>) {
        let Some(running) = self.running.get_mut(&id) else { return };
        let kill_at = now.at + self.settings.grace_ms;
        running.phase = Phase::Stopping { kill_at: Some(kill_at) };
        self.alarms.insert((kill_at, id));
        actions.push(Action::Signal(id, false));
    }

    fn on_detached(&mut self, now: Now) {
        self.detached = Some(now.at);
        let ids: Vec<JobId> = self.running.keys().copied().collect();
        for id in ids {
            self.set_lease_alarm(id);
        }
        self.set_queue_alarm();
    }

    fn lease_of(&self, spec: &JobSpec, ran_ms: u64) -> u64 {
        match spec.lost_after_s {
            Some(own) => own.ms,
            None => self.settings.lost_after_ms.max((ran_ms / 10).min(LONGEST_LEASE_MS)),
        }
    }

    /// When a job is ended for want of a worker; the time it has run is taken when that want begins.
    fn lost_at(&self, running: &Running) -> Option<Millis> {
        let detached = self.detached?;
        let ran = running.started.map_or(0, |started| detached.since(started.at));
        Some(detached + self.lease_of(&running.job.shared.spec, ran))
    }

    fn set_lease_alarm(&mut self, id: JobId) {
        if let Some(at) = self.running.get(&id).and_then(|running| self.lost_at(running)) {
            self.alarms.insert((at, id));
        }
    }

    fn set_queue_alarm(&mut self) {
        let Some(detached) = self.detached else { return };
        let leases = self.queue.iter().map(|q| self.lease_of(&q.shared.spec, 0));
        if let Some(first) = leases.min() {
            self.alarms.insert((detached + first, 0));
        }
    }

    fn on_alarms(&mut self, now: Now, actions: &mut Vec<Action>) {
        while let Some(&(at, id)) = self.alarms.first().filter(|(at, _)| *at <= now.at) {
            self.alarms.remove(&(at, id));
            if id == 0 {
                self.on_queue_alarm(now, actions);
            } else {
                self.on_alarm(now, id, actions);
            }
        }
    }

    fn on_queue_alarm(&mut self, now: Now, actions: &mut Vec<Action>) {
        let Some(detached) = self.detached else { return };
        let lease = self.settings.lost_after_ms;
        let over = |shared: &Shared| {
            now.at >= detached + shared.spec.lost_after_s.map_or(lease, |own| own.ms)
        };
        self.return_queue("no worker came back in time", over, actions);
        if self.queue.iter().any(|q| !over(&q.shared)) {
            self.set_queue_alarm();
        }
    }

    fn on_alarm(&mut self, now: Now, id: JobId, actions: &mut Vec<Action>) {
        let Some(running) = self.running.get_mut(&id) else { return };
        if let Phase::Stopping { kill_at } = &mut running.phase
            && kill_at.is_some_and(|at| at <= now.at)
        {
            *kill_at = None;
            actions.push(Action::Signal(id, true));
            return;
        }
        if running.phase == Phase::Running && running.deadline.is_some_and(|at| at <= now.at) {
            self.end(now, id, Cause::Timeout, actions);
            return;
        }
        let Some(running) = self.running.get(&id) else { return };
        if let Some(at) = self.lost_at(running).filter(|at| *at <= now.at) {
            let detached = self.detached.unwrap_or(at);
            let why =
                format!("no worker came back within {}", Seconds::from_ms(at.since(detached)));
            self.end(now, id, Cause::Lost(why), actions);
        }
    }

    fn start_what_fits(&mut self, actions: &mut Vec<Action>) {
        if self.queue.is_empty() || self.is_full() {
            return;
        }
        let mut free = self.settings.lend.minus(&self.used);
        let mut queue = std::mem::take(&mut self.queue);
        let mut passed = 0;
        for queued in &mut queue {
            let spec = queued.shared.spec.clone();
            while !self.is_full() && free.holds(&spec.room) {
                let Some(cards) = self.free_cards(&spec) else { break };
                let Some((index, item)) = queued.pop() else { break };
                free.sub(&spec.room, 1);
                actions.push(self.start(&queued.shared, index, item, cards));
            }
            if !queued.indices.is_empty() {
                free.sub(&spec.room, 1);
                passed += 1;
            }
            if passed >= MAX_PASSED || self.is_full() {
                break;
            }
        }
        while queue.front().is_some_and(|queued| queued.indices.is_empty()) {
            queue.pop_front();
        }
        // Only those looked at can have become empty; a long queue is not gone through for each job.
        if queue.iter().take(MAX_PASSED + 1).any(|queued| queued.indices.is_empty()) {
            queue.retain(|queued| !queued.indices.is_empty());
        }
        self.queue = queue;
    }

    fn free_cards(&self, spec: &JobSpec) -> Option<Vec<u32>> {
        let count = usize::try_from(spec.room.gpus).ok()?;
        let mut free: Vec<&Card> = self
            .settings
            .cards
            .iter()
            .filter(|c| c.vram_mib >= spec.vram_mib && !self.cards_taken.contains(&c.index))
            .collect();
        // The smallest that will do, so that the large ones are there for whoever needs them.
        free.sort_by_key(|card| (card.vram_mib, card.index));
        (free.len() >= count).then(|| {
            let mut cards: Vec<u32> = free.iter().take(count).map(|card| card.index).collect();
            cards.sort_unstable();
            cards
        })
    }

    fn start(
        &mut self,
        shared: &Arc<Shared>,
        index: Index,
        item: Option<Arc<str>>,
        cards: Vec<u32>,
    ) -> Action {
        let id = self.next_job;
        self.next_job += 1;
        self.used.add(&shared.spec.room, 1);
        self.cards_taken.extend(&cards);
        let known =
            self.known.entry((shared.work, shared.task.clone(), shared.attempt)).or_default();
        known.queued.remove(index);
        known.running.insert(index, id);
        let hide_cards = !self.settings.cards.is_empty();
        let job = Arc::new(Job { id, shared: shared.clone(), index, item, cards, hide_cards });
        let running = Running {
            job: job.clone(),
            phase: Phase::Starting,
            started: None,
            deadline: None,
            cause: None,
        };
        self.running.insert(id, running);
        Action::Start(job)
    }

    fn entry(&self, shared: &Shared, indices: Indices, became: Became) -> ReportEntry {
        ReportEntry {
            owner: shared.owner.clone(),
            jobs: job_ref(shared, indices),
            epoch: shared.epoch,
            instance: self.instance,
            became,
            ago_s: Seconds::default(),
        }
    }

    fn report(&mut self, entries: Vec<ReportEntry>, actions: &mut Vec<Action>) {
        if entries.is_empty() {
            return;
        }
        let mut numbered = Vec::with_capacity(entries.len());
        for entry in entries {
            let id = self.next_report;
            self.next_report += 1;
            self.remember_report(id, &entry.jobs, entry.epoch);
            numbered.push(Numbered { id, entry });
        }
        actions.push(Action::Report(numbered));
    }

    fn remember_report(&mut self, id: u64, jobs: &JobRef, epoch: Epoch) {
        let known = self.known.entry((jobs.work, jobs.task.clone(), jobs.attempt)).or_default();
        known.ended.insert_all(&jobs.indices);
        known.epoch = epoch;
        self.unanswered.insert(id, jobs.clone());
    }

    /// Whether the books agree with each other.
    #[cfg(test)]
    pub(crate) fn audit(&self) -> Result<(), String> {
        let mut used = Room::default();
        let mut cards = BTreeSet::new();
        for running in self.running.values() {
            used.add(&running.job.shared.spec.room, 1);
            for card in &running.job.cards {
                if !cards.insert(*card) {
                    return Err(format!("card {card} has two jobs"));
                }
            }
        }
        if used.minus(&self.used) != Room::default().minus(&self.used)
            && (used.cpus != self.used.cpus || used.gpus != self.used.gpus)
        {
            return Err(format!("{used} is used, {} is written down", self.used));
        }
        if !self.settings.lend.holds(&used) {
            return Err(format!("{used} is more than {}", self.settings.lend));
        }
        let queued: u64 = self.queue.iter().map(|q| q.indices.len()).sum();
        let known: u64 = self.known.values().map(|k| k.queued.len()).sum();
        if queued != known {
            return Err(format!("{queued} wait, {known} are written down"));
        }
        if cards != self.cards_taken {
            return Err("cards taken".to_owned());
        }
        Ok(())
    }
}

fn job_ref(shared: &Shared, indices: Indices) -> JobRef {
    JobRef { work: shared.work, task: shared.task.clone(), attempt: shared.attempt, indices }
}

/// What an exit means.
fn verdict(cause: Option<&Cause>, exit: &Exit, spec: &JobSpec) -> Ending {
    match (cause, exit.code, exit.signal) {
        (Some(Cause::Timeout), ..) => Ending::because(
            IndexState::Failed,
            reason::TIMEOUT,
            format!("it ran longer than its timeout of {}", spec.timeout_s.unwrap_or_default()),
        ),
        (Some(Cause::Cancelled), ..) => {
            Ending::because(IndexState::Cancelled, reason::CANCELLED, "cancelled")
        }
        (Some(Cause::Stale), ..) => {
            Ending::because(IndexState::Cancelled, reason::CANCELLED, "nobody waits for it")
        }
        (Some(Cause::Lost(why)), ..) => {
            Ending::because(IndexState::Failed, reason::NODE_LEFT, why.clone())
        }
        (None, Some(0), _) => Ending::new(IndexState::Finished),
        (None, Some(exit), _) => {
            Ending::because(IndexState::Failed, reason::EXIT_CODE, format!("exit code {exit}"))
        }
        (None, None, signal) => Ending::because(
            IndexState::Failed,
            reason::SIGNAL,
            format!("ended by signal {}", signal.unwrap_or(0)),
        ),
    }
}

#[cfg(test)]
mod tests;
