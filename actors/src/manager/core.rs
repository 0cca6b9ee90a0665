//! What the manager decides: who may ask what, what becomes a fact, and when whom is answered.
//!
//! It folds the journals of its pools and answers from the fold. What changes something is written
//! first and answered when the own fold shows it: then it is stored, it has applied, and whoever is
//! answered finds it when he asks again.
//!
//! [`submit`] takes works, [`grow`] parts of open works, [`change`] cancels and retries, [`look`]
//! answers questions, [`find`] knows which work is meant.

mod change;
mod find;
mod grow;
mod look;
mod submit;

use super::results::Plan;
use crate::{journal::Fold, scheduler::place::Offer};
pub(crate) use look::{bad_cursor, unknown_task};
use schemas::{
    error::{Refusal, code},
    fact::Fact,
    id::{Attempt, RequestId, Seq, WorkId},
    indices::{Index, Indices},
    node::NodeView,
    outcome::{Outcome, Summary},
    request::{
        Append, AppendedReply, Change, Close, Follow, Get, List, Outcomes, Results, RunReply,
        Submitted, Wait, Works,
    },
    time::{Millis, Now, Stamp},
    token::{CallerName, NodeName, OwnerName, PoolName},
    work::{Submit, WorkSpec},
};
use serde::Serialize;
use std::{
    collections::{BTreeMap, BTreeSet},
    sync::Arc,
};
use uuid::Uuid;

/// One request (or message of the inbox) that waits for its answer.
pub(crate) type Ticket = u64;

/// One write that waits for what became of it.
pub(crate) type Write = u64;

/// A held answer is held no longer than this when nothing is said.
const HOLD_MS: u64 = 24 * 3600 * 1000;
/// What is not shown by the fold after so much time is answered as not stored.
const PATIENCE_MS: u64 = 15_000;
/// Nothing appended for so long: the summary says so.
const IDLE_OPEN_MS: u64 = 10 * 60 * 1000;
/// A summary names at most so many bytes of tasks.
const SUMMARY_BYTES: usize = 600 * 1024;

/// Bounds on what is held.
#[derive(Clone, Debug)]
pub(crate) struct Limits {
    /// Largest body of a fact or page.
    pub max_body: usize,
    /// Held answers (`run`, `wait`) of one caller.
    pub held_per_caller: usize,
    /// Followers of one caller.
    pub follows_per_caller: usize,
    /// Parts of one open work that wait for their turn.
    pub parts_waiting: usize,
}

/// What somebody asks.
#[derive(Clone, Debug)]
pub(crate) enum Request {
    /// `submit`
    Submit(Box<Submit>),
    /// `run`
    Run(Box<Submit>),
    /// `append`
    Append(Box<Append>),
    /// `close`
    Close(Close),
    /// `get`
    Get(Get),
    /// `list`
    List(List),
    /// `results`
    Results(Results),
    /// `cancel`
    Cancel(Change),
    /// `retry`
    Retry(Change),
    /// `wait`
    Wait(Wait),
    /// `follow`
    Follow(Follow),
}

/// What happens to the manager.
#[derive(Debug)]
pub(crate) enum Event {
    /// Somebody asks.
    Asked {
        /// His.
        ticket: Ticket,
        /// Who.
        caller: CallerName,
        /// What.
        request: Request,
        /// An id for what needs one.
        fresh: Uuid,
    },
    /// A message of the inbox.
    Inbox {
        /// Its.
        ticket: Ticket,
        /// Who sent it.
        caller: CallerName,
        /// Its place.
        seq: Seq,
        /// What it says.
        submit: Result<Box<Submit>, Refusal>,
        /// The id it gets when it has none: always the same for the same message.
        derived: WorkId,
    },
    /// The journal of a pool goes on.
    Stored {
        /// Which pool.
        pool: PoolName,
        /// Its place.
        seq: Seq,
        /// When it was stored.
        at: Stamp,
        /// The owner's token of its subject.
        owner: Option<OwnerName>,
        /// What it says.
        fact: Arc<Fact>,
    },
    /// The journal goes on with something that cannot be read.
    Unreadable {
        /// Which pool.
        pool: PoolName,
        /// Its place.
        seq: Seq,
    },
    /// The journals reach so far now.
    Reach {
        /// Per pool the last place; pools that did not answer are missing.
        ends: BTreeMap<PoolName, Seq>,
    },
    /// What became of a write.
    Written {
        /// Which.
        write: Write,
        /// Its place, or why not.
        result: Result<Seq, WriteError>,
    },
    /// A message of the journal that was asked for.
    Read {
        /// For whom.
        ticket: Ticket,
        /// What it says, if it is still there.
        fact: Option<Arc<Fact>>,
    },
    /// What the scheduler of a pool says of its nodes; `None`: it does not answer.
    Nodes {
        /// Which pool.
        pool: PoolName,
        /// Its nodes.
        nodes: Option<Vec<NodeView>>,
    },
    /// A follower is gone.
    Unfollowed {
        /// Whose he was.
        caller: CallerName,
    },
    /// The journal of a pool is not what was folded: it is folded again from its start.
    Anew {
        /// Which pool.
        pool: PoolName,
    },
    /// Time passes.
    Tick,
    /// The manager stops: who is held is answered.
    Stopping,
}

/// Why a write was not stored, or may not have been.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum WriteError {
    /// It was to be the first on its subject, and is not.
    Conflict,
    /// No room.
    Full(String),
    /// No answer, no stream, or anything else: nobody knows.
    Unknown(String),
}

/// What must be done.
#[derive(Debug)]
pub(crate) enum Action {
    /// Answer a request.
    Answer {
        /// Which.
        ticket: Ticket,
        /// With what.
        answer: Answer,
    },
    /// Store a fact.
    Write {
        /// Its number.
        write: Write,
        /// Its subject.
        subject: String,
        /// Its body.
        body: Vec<u8>,
        /// Only as the first on its subject.
        first: bool,
    },
    /// Find out how far the journals reach ([`Event::Reach`]).
    Reach,
    /// Read one message of a journal ([`Event::Read`]).
    Read {
        /// For whom.
        ticket: Ticket,
        /// Which pool.
        pool: PoolName,
        /// Which message.
        seq: Seq,
    },
    /// Ask the scheduler for its nodes ([`Event::Nodes`]).
    AskNodes {
        /// Of which pool.
        pool: PoolName,
    },
    /// Ask the scheduler why a work waits, and answer with it.
    Explain {
        /// Whom.
        ticket: Ticket,
        /// Of which pool.
        pool: PoolName,
        /// The answer but for its `why`.
        got: Box<Got>,
    },
    /// Read outcomes and answer with them.
    Collect {
        /// Whom.
        ticket: Ticket,
        /// From which pool.
        pool: PoolName,
        /// Which.
        plan: Box<Plan>,
        /// For `run`: the summary beside which the outcome stands.
        run: Option<Box<Summary>>,
    },
    /// Serve a follower ([`Event::Unfollowed`] when he is gone).
    Follow {
        /// Who.
        ticket: Ticket,
        /// His name.
        caller: CallerName,
        /// Which pool.
        pool: PoolName,
        /// Which work.
        work: WorkId,
        /// What he asked.
        follow: Box<Follow>,
    },
    /// A message of the inbox is dealt with.
    Acknowledge {
        /// Which.
        ticket: Ticket,
    },
    /// A message of the inbox shall come again.
    Later {
        /// Which.
        ticket: Ticket,
    },
    /// Something of these works has changed.
    News {
        /// Which.
        works: Vec<WorkId>,
    },
}

/// What is answered.
#[derive(Debug, Serialize)]
#[serde(untagged)]
pub(crate) enum Answer {
    /// To `submit`.
    Submitted(Submitted),
    /// To `get`, `wait`, `close`, `cancel`, `retry`.
    Got(Box<Got>),
    /// To `run`.
    Run(Box<RunReply>),
    /// To `append`.
    Appended(AppendedReply),
    /// To `list`.
    Works(Works),
    /// To `results`.
    Outcomes(Outcomes),
    /// To anything.
    #[serde(skip)]
    Refused(Refusal),
}

/// A summary, and where it was asked for the spec.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub(crate) struct Got {
    /// How it stands.
    #[serde(flatten)]
    pub summary: Summary,
    /// As it was accepted.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub spec: Option<Arc<WorkSpec>>,
}

/// Who ran what before: attempts that are not the last of their index any more.
pub(crate) type Former = Vec<(usize, Attempt, NodeName, Indices)>;

#[derive(Default)]
struct Pool {
    fold: Fold,
    seen: Seq,
    nodes: Vec<(NodeName, Offer)>,
    asking_nodes: bool,
    /// Submits that no node that is known could run, until the scheduler has been asked again.
    unsure: Vec<submit::Submitting>,
}

/// A request that is looked at again when the fold has reached what the journals held.
struct Behind {
    ticket: Ticket,
    caller: CallerName,
    request: Request,
    fresh: Uuid,
    since: Millis,
    ends: Option<BTreeMap<PoolName, Seq>>,
}

/// A held answer.
struct Held {
    work: WorkId,
    caller: CallerName,
    run: bool,
    until: Millis,
}

/// What a write is for.
enum Purpose {
    Submit(WorkId),
    Grow(WorkId),
    Change(change::Changing),
    /// A `refused` of the inbox.
    Refused(Ticket),
}

/// The manager's decisions.
pub(crate) struct Core {
    limits: Limits,
    pools: BTreeMap<PoolName, Pool>,
    next: u64,
    writes: BTreeMap<Write, Purpose>,
    submits: BTreeMap<WorkId, Vec<submit::Submitting>>,
    growing: BTreeMap<WorkId, grow::Growing>,
    /// Those of them with a write that the fold does not show yet.
    growing_now: BTreeSet<WorkId>,
    changing: Vec<(PoolName, Seq, change::Changing)>,
    behind: BTreeMap<u64, Behind>,
    /// Which of them the outstanding question how far the journals reach is for, and the next one.
    reaching: Vec<u64>,
    reach_next: Vec<u64>,
    held: BTreeMap<Ticket, Held>,
    held_by_work: BTreeMap<WorkId, BTreeSet<Ticket>>,
    due: BTreeSet<(Millis, Ticket)>,
    held_by_caller: BTreeMap<CallerName, usize>,
    follows_by_caller: BTreeMap<CallerName, usize>,
    former: BTreeMap<WorkId, Former>,
    comparing: BTreeMap<Ticket, Box<Append>>,
    stopping: bool,
    out: Vec<Action>,
    now: Now,
}

impl Core {
    /// A manager of these pools that has folded nothing yet.
    pub(crate) fn new(pools: &[PoolName], limits: Limits) -> Self {
        Self {
            limits,
            pools: pools.iter().map(|pool| (pool.clone(), Pool::default())).collect(),
            next: 1,
            writes: BTreeMap::new(),
            submits: BTreeMap::new(),
            growing: BTreeMap::new(),
            growing_now: BTreeSet::new(),
            changing: Vec::new(),
            behind: BTreeMap::new(),
            reaching: Vec::new(),
            reach_next: Vec::new(),
            held: BTreeMap::new(),
            held_by_work: BTreeMap::new(),
            due: BTreeSet::new(),
            held_by_caller: BTreeMap::new(),
            follows_by_caller: BTreeMap::new(),
            former: BTreeMap::new(),
            comparing: BTreeMap::new(),
            stopping: false,
            out: Vec::new(),
            now: Now::default(),
        }
    }

    /// Takes in one event and says what must be done about it.
    pub(crate) fn step(&mut self, now: Now, event: Event) -> Vec<Action> {
        self.now = now;
        match event {
            Event::Asked { ticket, caller, request, fresh } => {
                self.on_asked(ticket, caller, request, fresh);
            }
            Event::Inbox { ticket, caller, seq, submit, derived } => {
                self.on_inbox(ticket, caller, seq, submit, derived);
            }
            Event::Stored { pool, seq, at, owner, fact } => {
                self.on_stored(&pool, seq, at, owner, &fact);
            }
            Event::Unreadable { pool, seq } => self.on_seen(&pool, seq),
            Event::Reach { ends } => self.on_reach(&ends),
            Event::Written { write, result } => self.on_written(write, result),
            Event::Read { ticket, fact } => self.on_read(ticket, fact.as_deref()),
            Event::Nodes { pool, nodes } => self.on_nodes(&pool, nodes),
            Event::Unfollowed { caller } => less(&mut self.follows_by_caller, &caller),
            Event::Anew { pool } => self.on_anew(&pool),
            Event::Tick => self.on_tick(),
            Event::Stopping => self.on_stopping(),
        }
        std::mem::take(&mut self.out)
    }

    /// The last place of a pool's journal that was taken in.
    pub(crate) fn seen(&self, pool: &PoolName) -> Seq {
        self.pools.get(pool).map_or(0, |pool| pool.seen)
    }

    /// The fold of a pool.
    pub(crate) fn fold(&self, pool: &PoolName) -> Option<&Fold> {
        self.pools.get(pool).map(|pool| &pool.fold)
    }

    /// Attempts of a work that are not the last of their index any more.
    pub(crate) fn former(&self, work: WorkId) -> &[(usize, Attempt, NodeName, Indices)] {
        self.former.get(&work).map_or(&[], Vec::as_slice)
    }

    /// When a work ended: `None` while it runs, the beginning of time when nobody knows it any more.
    pub(crate) fn ended_at(&self, work: WorkId) -> Option<Stamp> {
        let found = self.pools.values().find_map(|pool| pool.fold.work(work));
        found.map_or(Some(Stamp(0)), |work| work.ended_at)
    }

    /// How a work stands at a moment.
    pub(crate) fn summary_now(&mut self, now: Now, work: WorkId) -> Option<Summary> {
        self.now = now;
        self.summary(work)
    }

    fn on_asked(&mut self, ticket: Ticket, caller: CallerName, request: Request, fresh: Uuid) {
        if self.stopping {
            return self.refuse(ticket, not_ready("the manager is stopping"));
        }
        let behind = Behind { ticket, caller, request, fresh, since: self.now.at, ends: None };
        self.look_at(behind, false);
    }

    /// Decides on a request; one that seems to miss something is looked at again when the fold has
    /// reached what the journals hold, for another manager may have written it.
    fn look_at(&mut self, asked: Behind, caught_up: bool) {
        let Behind { ticket, caller, fresh, .. } = &asked;
        let (ticket, fresh) = (*ticket, *fresh);
        let decided = match &asked.request {
            Request::Submit(submit) => {
                self.submit(submit::From::Submit(ticket), caller, submit, WorkId(fresh))
            }
            Request::Run(submit) => {
                self.submit(submit::From::Run(ticket), caller, submit, WorkId(fresh))
            }
            Request::Append(append) => self.append(ticket, caller, append, caught_up),
            Request::Close(close) => self.close(ticket, caller, close, caught_up),
            Request::Get(get) => self.get(ticket, caller, get),
            Request::List(list) => self.list(ticket, caller, list),
            Request::Results(results) => self.results(ticket, caller, results),
            Request::Cancel(change) => self.change(ticket, caller, change, false, RequestId(fresh)),
            Request::Retry(change) => self.change(ticket, caller, change, true, RequestId(fresh)),
            Request::Wait(wait) => self.wait(ticket, caller, wait),
            Request::Follow(follow) => self.follow(ticket, caller, follow),
        };
        let Err(refusal) = decided else { return };
        let may_come = matches!(
            &*refusal.code,
            code::UNKNOWN_WORK | code::PART_MISSING | code::NOTHING_FAILED | code::WRONG_ROUND
        );
        if caught_up || !may_come {
            return self.refuse(ticket, refusal);
        }
        self.look_later(asked);
    }

    /// Finds out how far the journals reach; who comes meanwhile shares the next such question.
    fn look_later(&mut self, behind: Behind) {
        let check = self.number();
        self.behind.insert(check, behind);
        self.reach_next.push(check);
        if self.reaching.is_empty() {
            self.ask_reach();
        }
    }

    fn ask_reach(&mut self) {
        self.reaching = std::mem::take(&mut self.reach_next);
        if !self.reaching.is_empty() {
            self.out.push(Action::Reach);
        }
    }

    fn on_reach(&mut self, ends: &BTreeMap<PoolName, Seq>) {
        for check in std::mem::take(&mut self.reaching) {
            if let Some(behind) = self.behind.get_mut(&check) {
                behind.ends = Some(ends.clone());
            }
        }
        self.ask_reach();
        self.look_again();
    }

    /// Looks again at what has waited for the fold.
    fn look_again(&mut self) {
        if self.behind.is_empty() {
            return;
        }
        let reached: Vec<u64> = self
            .behind
            .iter()
            .filter(|(_, behind)| {
                let late = self.now.at.since(behind.since) >= PATIENCE_MS;
                late || behind
                    .ends
                    .as_ref()
                    .is_some_and(|ends| ends.iter().all(|(pool, end)| self.seen(pool) >= *end))
            })
            .map(|(check, _)| *check)
            .collect();
        for check in reached {
            if let Some(behind) = self.behind.remove(&check) {
                match &behind.request {
                    // A submit waits here only after a conflict.
                    Request::Submit(submit) if submit.work.is_some() => self.taken(&behind),
                    _ => self.look_at(behind, true),
                }
            }
        }
    }

    fn on_stored(
        &mut self,
        pool: &PoolName,
        seq: Seq,
        at: Stamp,
        owner: Option<OwnerName>,
        fact: &Fact,
    ) {
        self.note_former(pool, fact);
        let Some(known) = self.pools.get_mut(pool) else { return };
        let changes = known.fold.apply(seq, at, owner, fact);
        match fact {
            Fact::Accepted(f) => {
                if changes.applied && f.spec.open {
                    self.growing.insert(f.work, grow::Growing::new(pool.clone(), &f.spec));
                }
                self.shown(pool, f.work);
            }
            Fact::Appended(f) if changes.applied => {
                if let Some(growing) = self.growing.get_mut(&f.work) {
                    growing.grew(seq, f);
                }
            }
            _ => {}
        }
        for work in &changes.ended {
            self.answer_held(pool, *work, Some(fact));
        }
        if !changes.works.is_empty() {
            self.out.push(Action::News { works: changes.works });
        }
        self.on_seen(pool, seq);
    }

    /// The fold has come one message further.
    fn on_seen(&mut self, pool: &PoolName, seq: Seq) {
        if let Some(pool) = self.pools.get_mut(pool) {
            pool.seen = pool.seen.max(seq);
        }
        self.changes_shown(pool);
        self.growth_shown(pool);
        self.look_again();
    }

    fn on_written(&mut self, write: Write, result: Result<Seq, WriteError>) {
        match self.writes.remove(&write) {
            None => {}
            Some(Purpose::Submit(work)) => self.submit_written(work, result),
            Some(Purpose::Grow(work)) => self.growth_written(work, result),
            Some(Purpose::Change(changing)) => self.change_written(changing, result),
            Some(Purpose::Refused(ticket)) => self.out.push(match result {
                // A conflict: it was recorded before, and only the acknowledgement got lost.
                Ok(_) | Err(WriteError::Conflict) => Action::Acknowledge { ticket },
                Err(_) => Action::Later { ticket },
            }),
        }
    }

    fn on_anew(&mut self, pool: &PoolName) {
        let Some(known) = self.pools.get_mut(pool) else { return };
        let old: Vec<WorkId> = known.fold.in_order().map(|(_, work)| work).collect();
        known.fold = Fold::default();
        known.seen = 0;
        for work in old {
            self.former.remove(&work);
        }
        self.stop_growing(pool);
    }

    fn on_tick(&mut self) {
        while let Some(&(until, ticket)) = self.due.first() {
            if until > self.now.at {
                break;
            }
            self.answer_one_held(ticket);
        }
        self.look_again();
        self.submits_overdue();
        self.growth_overdue();
        self.changes_overdue();
    }

    fn on_stopping(&mut self) {
        self.stopping = true;
        let held: Vec<Ticket> = self.held.keys().copied().collect();
        for ticket in held {
            self.answer_one_held(ticket);
        }
        for (_, behind) in std::mem::take(&mut self.behind) {
            self.refuse(behind.ticket, not_ready("the manager is stopping"));
        }
    }

    /// Holds the answer to `wait` or `run` until the work has ended.
    fn hold(
        &mut self,
        ticket: Ticket,
        caller: &CallerName,
        work: WorkId,
        run: bool,
        hold_s: Option<schemas::time::Seconds>,
    ) {
        let until = self.now.at + hold_s.map_or(HOLD_MS, |hold| hold.ms.min(HOLD_MS));
        *self.held_by_caller.entry(caller.clone()).or_default() += 1;
        self.held.insert(ticket, Held { work, caller: caller.clone(), run, until });
        self.held_by_work.entry(work).or_default().insert(ticket);
        self.due.insert((until, ticket));
        if self.stopping || until <= self.now.at {
            self.answer_one_held(ticket);
        }
    }

    fn may_hold(&self, caller: &CallerName) -> Result<(), Refusal> {
        let held = self.held_by_caller.get(caller).copied().unwrap_or(0);
        if held < self.limits.held_per_caller {
            return Ok(());
        }
        Err(Refusal::new(code::BUSY, format!("{held} answers are held for {caller} already"))
            .hint("use `submit`, and `wait` for fewer at once"))
    }

    fn unhold(&mut self, ticket: Ticket) -> Option<Held> {
        let held = self.held.remove(&ticket)?;
        self.due.remove(&(held.until, ticket));
        if let Some(tickets) = self.held_by_work.get_mut(&held.work) {
            tickets.remove(&ticket);
            if tickets.is_empty() {
                self.held_by_work.remove(&held.work);
            }
        }
        less(&mut self.held_by_caller, &held.caller);
        Some(held)
    }

    /// A work has ended: everybody who waits for it is answered. `fact` is the message with which
    /// it ended.
    fn answer_held(&mut self, pool: &PoolName, work: WorkId, fact: Option<&Fact>) {
        let tickets = self.held_by_work.get(&work).cloned().unwrap_or_default();
        for ticket in tickets {
            let Some(held) = self.unhold(ticket) else { continue };
            if held.run {
                self.answer_run(ticket, pool, work, fact);
            } else if let Some(summary) = self.summary(work) {
                self.got(ticket, summary);
            }
        }
    }

    /// The time to hold an answer is over: it is the summary as it stands.
    fn answer_one_held(&mut self, ticket: Ticket) {
        let Some(held) = self.unhold(ticket) else { return };
        let Some(summary) = self.summary(held.work) else {
            return self.refuse(ticket, not_ready("the work is not in the journal (any more)"));
        };
        if held.run {
            let answer = RunReply { summary, outcome: None };
            self.answer(ticket, Answer::Run(Box::new(answer)));
        } else {
            self.got(ticket, summary);
        }
    }

    /// Answers `run` of a work that has ended.
    fn answer_run(&mut self, ticket: Ticket, pool: &PoolName, work: WorkId, fact: Option<&Fact>) {
        let Some(summary) = self.summary(work) else { return };
        let found = self.pools[pool].fold.work(work).filter(|work| work.is_single());
        let Some(single) = found else {
            let answer = RunReply { summary, outcome: None };
            return self.answer(ticket, Answer::Run(Box::new(answer)));
        };
        let plan = Plan::single(single);
        let outcome: Option<Outcome> = match fact {
            Some(fact) => plan.of_fact(fact),
            None => None,
        };
        match outcome.or_else(|| single.unrun(0, 0)) {
            Some(outcome) => {
                let answer = RunReply { summary, outcome: Some(outcome.into()) };
                self.answer(ticket, Answer::Run(Box::new(answer)));
            }
            None => self.out.push(Action::Collect {
                ticket,
                pool: pool.clone(),
                plan: Box::new(plan),
                run: Some(Box::new(summary)),
            }),
        }
    }

    /// Remembers for which node an attempt was, before the next one takes its place.
    fn note_former(&mut self, pool: &PoolName, fact: &Fact) {
        let Fact::Assigned(assigned) = fact else { return };
        let Some(known) = self.pools.get(pool) else { return };
        for entry in &assigned.entries {
            let Some(work) = known.fold.work(entry.work) else { continue };
            let Some(at) = work.task_at(&entry.task) else { continue };
            for &(a, b) in entry.indices.ranges() {
                for (a, b, last) in work.tasks[at].last.within(a, b) {
                    let former = self.former.entry(entry.work).or_default();
                    let known = former
                        .iter_mut()
                        .find(|(t, n, node, _)| (*t, *n, node) == (at, last.attempt, &last.node));
                    match known {
                        Some((_, _, _, indices)) => indices.insert_span(a, b),
                        None => {
                            former.push((at, last.attempt, last.node.clone(), Indices::span(a, b)))
                        }
                    }
                }
            }
        }
    }

    /// How a work stands, as it is answered.
    fn summary(&self, work: WorkId) -> Option<Summary> {
        let (_, pool) = self.pool_of(work)?;
        let mut summary = pool.fold.summary(work)?;
        if let Some(open) = pool.fold.work(work).filter(|work| work.open) {
            let idle = self.now.wall.0.saturating_sub(open.appended_at.0);
            if idle >= IDLE_OPEN_MS && summary.why.is_none() {
                let limit = open.spec.open_timeout_s.unwrap_or(crate::journal::OPEN_TIMEOUT);
                summary.why = Some(format!(
                    "it is open and nothing was appended for {} minutes; it fails after {limit}",
                    idle / 60_000
                ));
            }
        }
        let mut bytes = 0;
        let fits = summary.tasks.iter().take_while(|task| {
            bytes += serde_json::to_vec(task).map_or(0, |json| json.len() + 1);
            bytes <= SUMMARY_BYTES
        });
        let fits = fits.count();
        summary.tasks.truncate(fits);
        Some(summary)
    }

    fn got(&mut self, ticket: Ticket, summary: Summary) {
        self.answer(ticket, Answer::Got(Box::new(Got { summary, spec: None })));
    }

    fn answer(&mut self, ticket: Ticket, answer: Answer) {
        self.out.push(Action::Answer { ticket, answer });
    }

    fn refuse(&mut self, ticket: Ticket, refusal: Refusal) {
        self.answer(ticket, Answer::Refused(refusal));
    }

    fn number(&mut self) -> u64 {
        self.next += 1;
        self.next
    }

    fn write(&mut self, purpose: Purpose, subject: String, body: Vec<u8>, first: bool) {
        let write = self.number();
        self.writes.insert(write, purpose);
        self.out.push(Action::Write { write, subject, body, first });
    }
}

fn less(counts: &mut BTreeMap<CallerName, usize>, caller: &CallerName) {
    if let Some(count) = counts.get_mut(caller) {
        *count = count.saturating_sub(1);
        if *count == 0 {
            counts.remove(caller);
        }
    }
}

fn not_ready(message: &str) -> Refusal {
    Refusal::new(code::NOT_READY, message).hint("ask again in a moment")
}

/// What a write that failed is answered with.
fn write_refusal(error: &WriteError) -> Refusal {
    match error {
        WriteError::Full(why) => {
            Refusal::new(code::DISK_FULL, format!("there is no room to store it: {why}"))
                .hint("nothing was changed; remove old works, or give the house's store more room")
        }
        WriteError::Conflict => {
            Refusal::new(code::NOT_STORED, "something else was stored first").hint("ask again")
        }
        WriteError::Unknown(why) => {
            Refusal::new(code::NOT_STORED, format!("nobody said that it is stored: {why}"))
                .hint("it may be stored; ask again with the same id, which does it at most once")
        }
    }
}

/// Whether an index of a position is one that a filter wants.
pub(crate) fn wants(filter: Option<Index>, index: Index) -> bool {
    filter.is_none_or(|wanted| wanted == index)
}

#[cfg(test)]
mod tests;
