//! Pages of outcomes: which message of the journal holds which, and what the page becomes.
//!
//! A [`Plan`] is made from the fold, asks for one message after the other ([`Plan::needs`]) until
//! the page is full, and knows nothing of where they come from.

use super::core::{bad_cursor, unknown_task};
use crate::journal::{Spans, TaskAt, Work};
use schemas::{
    error::{Refusal, code},
    fact::{EndedEntry, Fact, LostEntry},
    id::{Seq, WorkId},
    indices::{Index, Indices},
    outcome::{Ending, IndexState, Outcome, reason},
    request::{Outcomes, Results},
    token::TaskName,
};
use std::{
    collections::{BTreeMap, VecDeque},
    sync::Arc,
};

const DEFAULT: u32 = 1000;
const MOST: u32 = 10_000;
/// So many messages are kept at hand, for neighbours whose outcomes lie in turn in each.
const AT_HAND: usize = 8;

/// One outcome that belongs on the page.
#[derive(Debug)]
struct Wanted {
    task: TaskAt,
    name: TaskName,
    index: Index,
    state: IndexState,
    /// Which message holds it.
    seq: Option<Seq>,
    /// It never ran: everything is known.
    unrun: Option<Outcome>,
}

/// A page of outcomes that is being put together.
#[derive(Debug)]
pub(crate) struct Plan {
    work: WorkId,
    wanted: Vec<Wanted>,
    at: usize,
    limit: usize,
    max_bytes: usize,
    bytes: usize,
    items: Vec<Outcome>,
    /// Of these messages: where each index of a task lies.
    at_hand: VecDeque<(Seq, Option<Arc<Found>>)>,
}

/// What one message says of a work.
#[derive(Debug, Default)]
struct Found {
    /// Task → which entry holds which index.
    entries: BTreeMap<TaskName, Spans<usize>>,
    facts: Vec<Said>,
}

#[derive(Debug)]
enum Said {
    Ended(Box<EndedEntry>),
    Lost(Box<LostEntry>),
}

/// What is asked for, as a plan; refuses cursors and tasks that there are not.
pub(crate) fn plan(work: &Work, asked: &Results, max_bytes: usize) -> Result<Plan, Refusal> {
    if let Some(state) = asked.only
        && !state.is_ended()
    {
        let message = format!("`only` is `{state}`, but there are outcomes of ended indices only");
        return Err(Refusal::new(code::INVALID, message)
            .field("only")
            .hint("`finished`, `failed`, `cancelled` or `skipped`"));
    }
    let (mut task, mut index) = match asked.from.as_deref() {
        None => (0, 0),
        Some(text) => read_cursor(text).ok_or_else(bad_cursor)?,
    };
    let only = match &asked.task {
        None => None,
        Some(name) => Some(
            work.task_at(name)
                .ok_or_else(|| unknown_task(name, work.tasks.iter().map(|task| &task.spec.name)))?,
        ),
    };
    let limit = asked.limit.unwrap_or(DEFAULT).clamp(1, MOST) as usize;
    let mut plan = Plan::new(work.id, limit, max_bytes);
    while task < work.tasks.len() && plan.wanted.len() <= limit {
        if only.is_none_or(|only| only == task) {
            plan.want(work, task, index, asked.only);
        }
        (task, index) = (task + 1, 0);
    }
    Ok(plan)
}

impl Plan {
    fn new(work: WorkId, limit: usize, max_bytes: usize) -> Self {
        Self {
            work,
            wanted: Vec::new(),
            at: 0,
            limit,
            max_bytes,
            bytes: 0,
            items: Vec::new(),
            at_hand: VecDeque::new(),
        }
    }

    /// The outcome of a single job.
    pub(crate) fn single(work: &Work) -> Self {
        let mut plan = Plan::new(work.id, 1, usize::MAX);
        plan.want(work, 0, 0, None);
        plan
    }

    fn want(&mut self, work: &Work, at: TaskAt, from: Index, only: Option<IndexState>) {
        let task = &work.tasks[at];
        let sets = [
            (IndexState::Finished, &task.finished),
            (IndexState::Failed, &task.failed),
            (IndexState::Cancelled, &task.cancelled),
            (IndexState::Skipped, &task.skipped),
        ];
        let mut ended = Indices::new();
        for (state, set) in sets {
            if only.is_none_or(|only| only == state) {
                if ended.is_empty() {
                    ended = set.clone();
                } else {
                    ended.insert_all(set);
                }
            }
        }
        if let Some(before) = from.checked_sub(1) {
            ended.remove_span(0, before);
        }
        // One more than fits, to know whether there is a next page.
        let room = self.limit + 1 - self.wanted.len();
        for index in ended.take(room as u64).iter() {
            let seq = task.ended_by.get(index).copied();
            self.wanted.push(Wanted {
                task: at,
                name: task.spec.name.clone(),
                index,
                state: task.state_of(index).unwrap_or(IndexState::Failed),
                seq,
                unrun: if seq.is_none() { work.unrun(at, index) } else { None },
            });
        }
    }

    /// Goes on as far as it can; says which message it needs next, `None` when the page is done.
    pub(crate) fn needs(&mut self) -> Option<Seq> {
        while self.at < self.wanted.len() && self.items.len() < self.limit {
            let wanted = &self.wanted[self.at];
            let outcome = match wanted.seq {
                None => wanted.unrun.clone().unwrap_or_else(|| forgotten(wanted)),
                Some(seq) => match self.at_hand.iter().find(|(at, _)| *at == seq) {
                    None => return Some(seq),
                    Some((_, found)) => found
                        .as_ref()
                        .and_then(|found| found.outcome(wanted))
                        .unwrap_or_else(|| forgotten(wanted)),
                },
            };
            let bytes = serde_json::to_vec(&outcome).map_or(0, |json| json.len() + 1);
            if !self.items.is_empty() && self.bytes + bytes + 256 > self.max_bytes {
                return None;
            }
            self.bytes += bytes;
            self.items.push(outcome);
            self.at += 1;
        }
        None
    }

    /// The message that was needed; `None` when it is gone.
    pub(crate) fn feed(&mut self, seq: Seq, fact: Option<&Fact>) {
        let found = fact.map(|fact| Arc::new(Found::new(self.work, fact)));
        if self.at_hand.len() == AT_HAND {
            self.at_hand.pop_front();
        }
        self.at_hand.push_back((seq, found));
    }

    /// The page, when nothing more is needed.
    pub(crate) fn page(self) -> Outcomes {
        let next = self.wanted.get(self.at).map(|next| format!("{}.{}", next.task, next.index));
        Outcomes { items: self.items, next }
    }

    /// The first outcome, if a message holds it.
    pub(crate) fn of_fact(&self, fact: &Fact) -> Option<Outcome> {
        Found::new(self.work, fact).outcome(self.wanted.first()?)
    }
}

impl Found {
    fn new(work: WorkId, fact: &Fact) -> Self {
        let mut found = Found::default();
        match fact {
            Fact::Ended(f) => {
                for entry in f.entries.iter().filter(|entry| entry.work == work) {
                    found.add(&entry.task, &entry.indices);
                    found.facts.push(Said::Ended(Box::new(entry.clone())));
                }
            }
            Fact::Lost(f) => {
                for entry in f.entries.iter().filter(|entry| entry.work == work) {
                    found.add(&entry.task, &entry.indices);
                    found.facts.push(Said::Lost(Box::new(entry.clone())));
                }
            }
            _ => {}
        }
        found
    }

    fn add(&mut self, task: &TaskName, indices: &Indices) {
        let at = self.facts.len();
        let entries = self.entries.entry(task.clone()).or_default();
        entries.set_all(indices, &at);
    }

    fn outcome(&self, wanted: &Wanted) -> Option<Outcome> {
        let at = self.entries.get(&wanted.name)?.get(wanted.index)?;
        let mut outcome = match &self.facts[*at] {
            Said::Ended(entry) => {
                let ending = entry.ending.clone();
                Outcome::new(wanted.name.clone(), wanted.index, entry.attempt, ending)
            }
            Said::Lost(entry) => {
                let mut ending =
                    Ending::because(IndexState::Failed, reason::LOST, entry.why.clone());
                ending.node = Some(entry.node.clone());
                Outcome::new(wanted.name.clone(), wanted.index, entry.attempt, ending)
            }
        };
        outcome.state = wanted.state;
        Some(outcome)
    }
}

/// What is said of an index whose message is gone.
fn forgotten(wanted: &Wanted) -> Outcome {
    let mut ending = Ending::new(wanted.state);
    ending.why = Some("its outcome is not in the journal any more".to_owned());
    Outcome::new(wanted.name.clone(), wanted.index, 0, ending)
}

fn read_cursor(text: &str) -> Option<(TaskAt, Index)> {
    let (task, index) = text.split_once('.')?;
    Some((task.parse().ok()?, index.parse().ok()?))
}
