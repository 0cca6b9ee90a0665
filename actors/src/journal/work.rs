//! One work in the fold: its tasks, the states of their indices, and what follows from what.

use super::{Changes, Freed, Given, How, Spans};
use schemas::{
    fact::{Accepted, Appended, AssignedEntry, EndedEntry, LostEntry, ReturnedEntry},
    id::{Attempt, Epoch, InstanceId, RequestId, Seq, WorkId},
    indices::{Index, Indices},
    outcome::{
        Ending, FIRST_FAILURES, Failure, IndexState, Outcome, Summary, TaskSummary, WorkState,
        reason,
    },
    time::Stamp,
    token::{CallerName, NodeName, OwnerName, TaskName},
    work::{self, LostPolicy, MAX_INDICES, WorkSpec},
};
use std::{
    collections::{BTreeMap, BTreeSet},
    sync::Arc,
};

/// The place of a task within its work.
pub type TaskAt = usize;

/// A live attempt: given to an instance, and neither ended nor given up.
#[derive(Debug, PartialEq, Eq)]
pub struct Live {
    /// Its number.
    pub attempt: Attempt,
    /// By which scheduler.
    pub epoch: Epoch,
    /// Where.
    pub node: NodeName,
    /// Which life of the node's keeper.
    pub instance: InstanceId,
    /// When the bus stored the `assigned`.
    pub at: Stamp,
    /// Which message that was.
    pub seq: Seq,
}

/// The last attempt number that was used for an index, and for which node.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Last {
    /// The number.
    pub attempt: Attempt,
    /// The node it was meant for.
    pub node: NodeName,
}

/// How often an index was tried in vain in this round.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Tries {
    /// Attempts that failed and were followed by another.
    pub failed: u32,
    /// Attempts that were lost.
    pub lost: u32,
    /// Attempts that came back without having been started.
    pub returned: u32,
}

/// Whether the needs of a task are met.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Gate {
    /// Something it needs has not ended.
    Locked,
    /// It may run.
    Open,
    /// It will not run: something it needs did not finish, or the work was stopped. What it ends
    /// as is inside.
    Shut(IndexState),
}

/// A task in the fold.
#[derive(Debug)]
pub struct Task {
    /// As it was written.
    pub spec: Arc<work::Task>,
    /// How many indices it has by now.
    pub total: u32,
    /// Tasks that must finish first.
    pub needs: Vec<TaskAt>,
    /// Tasks that wait for this one.
    pub needed_by: Vec<TaskAt>,
    /// Indices that wait for a task.
    pub waiting: Indices,
    /// Indices that could start.
    pub ready: Indices,
    /// Indices that wait before their next attempt, and until when.
    pub delayed: Spans<Stamp>,
    /// Indices with a live attempt.
    pub live: Spans<Arc<Live>>,
    /// Indices that finished.
    pub finished: Indices,
    /// Indices that failed.
    pub failed: Indices,
    /// Indices that were cancelled.
    pub cancelled: Indices,
    /// Indices that were skipped.
    pub skipped: Indices,
    /// How many indices have a live attempt.
    pub running: u64,
    /// How many attempts were lost, over all rounds.
    pub lost: u64,
    /// When each index that has not ended became ready.
    pub queued_at: Spans<Stamp>,
    /// The last attempt number of each index.
    pub last: Spans<Last>,
    /// How often each index was tried in vain in this round; absent: not once.
    pub tries: Spans<Tries>,
    /// Which message holds the end of which index: an `ended`, or a `lost` without another try.
    /// What never ran (cancelled, skipped) has none, see [`Work::unrun`].
    pub ended_by: Spans<Seq>,
    /// The first few failures of this round.
    pub first_failures: Vec<Failure>,
    more_items: Vec<Arc<str>>,
    gate: Gate,
    /// Indices that have not ended.
    left: u64,
    needs_left: usize,
    doomed: bool,
    ended: bool,
}

impl Task {
    fn new(spec: Arc<work::Task>, needs: Vec<TaskAt>) -> Self {
        let total = spec.count();
        Self {
            spec,
            total,
            needs_left: needs.len(),
            needs,
            needed_by: Vec::new(),
            waiting: Indices::first(total),
            ready: Indices::new(),
            delayed: Spans::default(),
            live: Spans::default(),
            finished: Indices::new(),
            failed: Indices::new(),
            cancelled: Indices::new(),
            skipped: Indices::new(),
            running: 0,
            lost: 0,
            queued_at: Spans::default(),
            last: Spans::default(),
            tries: Spans::default(),
            ended_by: Spans::default(),
            first_failures: Vec::new(),
            more_items: Vec::new(),
            gate: Gate::Locked,
            left: u64::from(total),
            doomed: false,
            ended: false,
        }
    }

    /// The item of an index; `None` for arrays without items.
    pub fn item(&self, index: Index) -> Option<&Arc<str>> {
        let first = self.spec.array.as_ref()?.items.as_ref()?;
        let index = index as usize;
        first.get(index).or_else(|| self.more_items.get(index.checked_sub(first.len())?))
    }

    /// Whether it is started at most once: no retry, and what is lost has failed.
    pub fn at_most_once(&self) -> bool {
        self.spec.retries == 0 && self.spec.lost == LostPolicy::Fail
    }

    /// Whether every index has ended and none can come.
    pub fn is_ended(&self) -> bool {
        self.ended
    }

    /// The state of an index.
    pub fn state_of(&self, index: Index) -> Option<IndexState> {
        Some(match index {
            i if i >= self.total => return None,
            i if self.live.get(i).is_some() => IndexState::Running,
            i if self.finished.contains(i) => IndexState::Finished,
            i if self.ready.contains(i) => IndexState::Ready,
            i if self.failed.contains(i) => IndexState::Failed,
            i if self.cancelled.contains(i) => IndexState::Cancelled,
            i if self.skipped.contains(i) => IndexState::Skipped,
            _ => IndexState::Waiting,
        })
    }

    /// The state of the task as a whole.
    pub fn state(&self) -> IndexState {
        if !self.ended {
            return if self.running > 0 {
                IndexState::Running
            } else if !self.ready.is_empty() {
                IndexState::Ready
            } else if !self.finished.is_empty() && self.delayed.is_empty() && self.left > 0 {
                IndexState::Running
            } else {
                IndexState::Waiting
            };
        }
        if !self.failed.is_empty() {
            IndexState::Failed
        } else if !self.cancelled.is_empty() {
            IndexState::Cancelled
        } else if !self.skipped.is_empty() {
            IndexState::Skipped
        } else {
            // An array that never got an item ends as its gate says.
            match self.gate {
                Gate::Shut(state) if self.total == 0 => state,
                _ => IndexState::Finished,
            }
        }
    }

    /// How it stands.
    pub fn summary(&self) -> TaskSummary {
        TaskSummary {
            task: self.spec.name.clone(),
            state: self.state(),
            total: u64::from(self.total),
            waiting: self.waiting.len() + self.delayed.len(),
            ready: self.ready.len(),
            running: self.running,
            finished: self.finished.len(),
            failed: self.failed.len(),
            cancelled: self.cancelled.len(),
            skipped: self.skipped.len(),
            lost: self.lost,
            first_failures: self.first_failures.clone(),
        }
    }

    fn takes_items(&self) -> bool {
        self.spec.array.as_ref().is_some_and(|array| array.items.is_some())
    }

    fn make_ready(&mut self, indices: &Indices, at: Stamp) {
        self.ready.insert_all(indices);
        self.queued_at.set_all(indices, &at);
    }

    fn delay(&mut self, indices: &Indices, at: Stamp, by_ms: u64) {
        let due = at.plus_ms(by_ms);
        if by_ms == 0 {
            self.ready.insert_all(indices);
        } else {
            self.delayed.set_all(indices, &due);
        }
        self.queued_at.set_all(indices, &due);
    }

    fn end(&mut self, indices: &Indices, state: IndexState) {
        let set = match state {
            IndexState::Finished => &mut self.finished,
            IndexState::Cancelled => &mut self.cancelled,
            IndexState::Skipped => &mut self.skipped,
            _ => &mut self.failed,
        };
        set.insert_all(indices);
        self.left -= indices.len();
        self.queued_at.remove_all(indices);
        self.tries.remove_all(indices);
    }

    /// Ends what is not live, as `state`.
    fn shut(&mut self, state: IndexState) {
        self.gate = Gate::Shut(state);
        let mut idle = std::mem::take(&mut self.waiting);
        idle.insert_all(&std::mem::take(&mut self.ready));
        idle.insert_all(&self.delayed.indices());
        self.delayed = Spans::default();
        self.end(&idle, state);
    }

    fn try_again(&mut self, indices: &Indices, count: impl Fn(&mut Tries)) {
        for &(a, b) in indices.ranges() {
            let known: Vec<_> = self.tries.within(a, b).map(|(a, b, t)| (a, b, *t)).collect();
            let mut fresh = Tries::default();
            count(&mut fresh);
            self.tries.set(a, b, fresh);
            for (a, b, mut tries) in known {
                count(&mut tries);
                self.tries.set(a, b, tries);
            }
        }
    }

    /// Takes attempts out of the live ones; what was not live with that number stays as it is.
    fn free(
        &mut self,
        indices: &Indices,
        fits: impl Fn(&Live) -> bool,
    ) -> Vec<(Arc<Live>, Indices)> {
        let mut out: Vec<(Arc<Live>, Indices)> = Vec::new();
        for &(a, b) in indices.ranges() {
            for (a, b, live) in self.live.remove_if(a, b, |live| fits(live)) {
                self.running -= u64::from(b - a) + 1;
                match out.last_mut() {
                    Some((same, indices)) if Arc::ptr_eq(same, &live) => indices.insert_span(a, b),
                    _ => out.push((live, Indices::span(a, b))),
                }
            }
        }
        out
    }

    fn remember_failure(&mut self, indices: &Indices, failure: impl Fn(Index) -> Failure) {
        let room = FIRST_FAILURES.saturating_sub(self.first_failures.len());
        self.first_failures.extend(indices.iter().take(room).map(failure));
    }
}

/// A work in the fold.
#[derive(Debug)]
pub struct Work {
    /// Its id.
    pub id: WorkId,
    /// Whose it is.
    pub owner: OwnerName,
    /// Who submitted it.
    pub by: CallerName,
    /// As it was accepted.
    pub spec: Arc<WorkSpec>,
    /// The message that accepted it: the order of acceptance.
    pub seq: Seq,
    /// When the bus stored that.
    pub at: Stamp,
    /// How often it was retried.
    pub round: u32,
    /// How it stands.
    pub state: WorkState,
    /// Why it did not finish.
    pub why: Option<String>,
    /// When its last index ended.
    pub ended_at: Option<Stamp>,
    /// Whether a `finished` of this round is stored.
    pub recorded: bool,
    /// Whether tasks and items may still be appended.
    pub open: bool,
    /// How many parts were appended.
    pub parts: u32,
    /// When the last of them was (at first: when it was accepted).
    pub appended_at: Stamp,
    /// Who cancelled it in this round.
    pub cancelled_by: Option<CallerName>,
    /// It was not closed in time.
    pub expired: bool,
    /// Its tasks, in the order in which they were written.
    pub tasks: Vec<Task>,
    /// Every message that changed something of it, ascending.
    pub facts: Vec<Seq>,
    names: BTreeMap<TaskName, TaskAt>,
    requests: BTreeSet<RequestId>,
    /// It was stopped while open, so nobody knows what is missing: it cannot be retried.
    torn: bool,
    tasks_left: usize,
}

impl Work {
    /// `None` when it makes no sense (managers check before they accept).
    pub(super) fn new(
        seq: Seq,
        at: Stamp,
        owner: OwnerName,
        fact: &Accepted,
        changes: &mut Changes,
    ) -> Option<Self> {
        let mut work = Self {
            id: fact.work,
            owner,
            by: fact.by.clone(),
            spec: fact.spec.clone(),
            seq,
            at,
            round: 0,
            state: WorkState::Waiting,
            why: None,
            ended_at: None,
            recorded: false,
            open: fact.spec.open,
            parts: 0,
            appended_at: at,
            cancelled_by: None,
            expired: false,
            tasks: Vec::with_capacity(fact.spec.tasks.len()),
            facts: Vec::new(),
            names: BTreeMap::new(),
            requests: BTreeSet::new(),
            torn: false,
            tasks_left: 0,
        };
        if !work.may_join(&fact.spec.tasks) {
            return None;
        }
        let fresh = work.join(&fact.spec.tasks);
        work.settle(at, fresh, changes);
        Some(work)
    }

    /// Finds a task by its name.
    pub fn task_at(&self, name: &TaskName) -> Option<TaskAt> {
        self.names.get(name).copied()
    }

    /// Finds a task by its name.
    pub fn task(&self, name: &TaskName) -> Option<&Task> {
        Some(&self.tasks[self.task_at(name)?])
    }

    /// Whether nothing more of it will be started in this round.
    pub fn is_stopping(&self) -> bool {
        self.cancelled_by.is_some() || self.expired
    }

    /// Whether `retry` would do something: it has ended, something did not finish, and all its parts
    /// are known.
    pub fn may_retry(&self) -> bool {
        self.state.is_ended()
            && !self.torn
            && self.tasks.iter().any(|t| t.state() != IndexState::Finished)
    }

    /// Whether a cancel or retry with this id was done.
    pub fn knows(&self, request: RequestId) -> bool {
        self.requests.contains(&request)
    }

    /// Whether anything of it is on a node.
    pub fn has_live(&self) -> bool {
        self.tasks.iter().any(|t| t.running > 0)
    }

    /// The single index of a work that has just one, which is not an array.
    pub fn is_single(&self) -> bool {
        self.tasks.len() == 1 && !self.open && self.tasks[0].spec.array.is_none()
    }

    /// The outcome of an index that ended without having run (in this round): cancelled or skipped.
    /// `None` where a message holds it ([`Task::ended_by`]), or where it has not ended.
    pub fn unrun(&self, task: TaskAt, index: Index) -> Option<Outcome> {
        let t = self.tasks.get(task)?;
        if t.ended_by.get(index).is_some() {
            return None;
        }
        let state = t.state_of(index).filter(|state| state.is_ended())?;
        let ending = match state {
            IndexState::Skipped => {
                let needed = t.needs.iter().find(|n| {
                    let n = &self.tasks[**n];
                    n.ended && n.state() != IndexState::Finished
                });
                let why = match needed {
                    Some(n) => {
                        format!("it needs `{}`, which did not finish", self.tasks[*n].spec.name)
                    }
                    None => "a task that it needs did not finish".to_owned(),
                };
                Ending::because(state, reason::NEEDS, why)
            }
            _ if self.expired => {
                Ending::because(state, reason::NOT_CLOSED, "the work was not closed in time")
            }
            _ => {
                let why = match &self.cancelled_by {
                    Some(by) => format!("cancelled by {by} before it was started"),
                    None => "cancelled before it was started".to_owned(),
                };
                Ending::because(state, reason::CANCELLED, why)
            }
        };
        let attempt = t.last.get(index).map_or(0, |last| last.attempt);
        let mut outcome = Outcome::new(t.spec.name.clone(), index, attempt, ending);
        outcome.ended_at = self.ended_at;
        Some(outcome)
    }

    /// How it stands, with `why` only where the journal alone knows it.
    pub fn summary(&self) -> Summary {
        Summary {
            work: self.id,
            name: self.spec.name.clone(),
            owner: self.owner.clone(),
            state: self.state,
            why: self.why.clone(),
            submitted_at: self.at,
            ended_at: self.ended_at,
            round: self.round,
            open: self.open,
            tasks: self.tasks.iter().map(Task::summary).collect(),
        }
    }

    fn may_join(&self, tasks: &[Arc<work::Task>]) -> bool {
        let mut fresh = BTreeSet::new();
        let unique =
            tasks.iter().all(|t| !self.names.contains_key(&t.name) && fresh.insert(&t.name));
        unique
            && tasks.iter().all(|t| {
                t.array.as_ref().is_none_or(|array| array.len() <= MAX_INDICES)
                    && t.needs.iter().all(|n| self.names.contains_key(n) || fresh.contains(n))
            })
    }

    fn join(&mut self, tasks: &[Arc<work::Task>]) -> Vec<TaskAt> {
        let first = self.tasks.len();
        for (n, spec) in tasks.iter().enumerate() {
            self.names.insert(spec.name.clone(), first + n);
        }
        for spec in tasks {
            let mut needs: Vec<TaskAt> = spec.needs.iter().map(|n| self.names[n]).collect();
            needs.sort_unstable();
            needs.dedup();
            self.tasks.push(Task::new(spec.clone(), needs));
        }
        self.tasks_left += tasks.len();
        for at in first..self.tasks.len() {
            for n in self.tasks[at].needs.clone() {
                self.tasks[n].needed_by.push(at);
                if self.tasks[n].ended {
                    self.need_ended(at, n);
                }
            }
        }
        (first..self.tasks.len()).collect()
    }

    fn need_ended(&mut self, at: TaskAt, need: TaskAt) {
        if self.tasks[need].state() == IndexState::Finished {
            self.tasks[at].needs_left -= 1;
        } else {
            self.tasks[at].doomed = true;
        }
    }

    /// Draws every conclusion: tasks that may start, must be skipped, have ended; at last the work.
    fn settle(&mut self, at: Stamp, mut todo: Vec<TaskAt>, changes: &mut Changes) {
        todo.reverse();
        while let Some(n) = todo.pop() {
            let task = &mut self.tasks[n];
            if task.gate == Gate::Locked {
                if task.doomed {
                    task.shut(IndexState::Skipped);
                } else if task.needs_left == 0 {
                    task.gate = Gate::Open;
                    let indices = std::mem::take(&mut task.waiting);
                    if !indices.is_empty() {
                        task.make_ready(&indices, at);
                        changes.ready(self.id, n);
                    }
                }
            }
            let may_grow = self.open && task.takes_items();
            let done = task.left == 0 && !may_grow && task.gate != Gate::Locked;
            if done && !task.ended {
                task.ended = true;
                self.tasks_left -= 1;
                for after in task.needed_by.clone() {
                    self.need_ended(after, n);
                    todo.push(after);
                }
            }
        }
        if self.tasks_left == 0 && !self.open && !self.state.is_ended() {
            self.end(at, changes);
        }
    }

    fn end(&mut self, at: Stamp, changes: &mut Changes) {
        let finished = self.tasks.iter().all(|t| t.state() == IndexState::Finished);
        (self.state, self.why) = if self.expired {
            let limit = self.spec.open_timeout_s.unwrap_or(super::OPEN_TIMEOUT);
            (
                WorkState::Failed,
                Some(format!("it was not closed: nothing was appended for {limit}")),
            )
        } else if let Some(by) = self.cancelled_by.as_ref().filter(|_| self.torn || !finished) {
            (WorkState::Cancelled, Some(format!("cancelled by {by}")))
        } else if finished {
            (WorkState::Finished, None)
        } else {
            (WorkState::Failed, Some(self.why_failed()))
        };
        self.ended_at = Some(at);
        self.recorded = false;
        changes.ended.push(self.id);
    }

    fn why_failed(&self) -> String {
        let Some(task) = self.tasks.iter().find(|t| !t.failed.is_empty()) else {
            return match self.tasks.iter().find(|t| !t.cancelled.is_empty()) {
                Some(task) => format!("`{}` was cancelled on its node", task.spec.name),
                None => "not every task finished".to_owned(),
            };
        };
        let name = &task.spec.name;
        let of = match task.spec.array {
            Some(_) => {
                format!("{} of {} indices of `{name}` failed", task.failed.len(), task.total)
            }
            None => format!("`{name}` failed"),
        };
        match task.first_failures.first().and_then(|f| f.why.as_ref().map(|why| (f, why))) {
            Some((first, why)) if task.spec.array.is_some() => {
                format!("{of}; index {}: {why}", first.index)
            }
            Some((_, why)) => format!("{of}: {why}"),
            None => of,
        }
    }

    /// Ends what is not live.
    fn stop(&mut self, at: Stamp, changes: &mut Changes) {
        self.torn |= self.open;
        self.open = false;
        for task in self.tasks.iter_mut().filter(|t| !t.ended) {
            task.shut(IndexState::Cancelled);
        }
        if self.has_live() {
            changes.stopping.push(self.id);
        }
        let all = (0..self.tasks.len()).collect();
        self.settle(at, all, changes);
    }

    pub(super) fn appended(&mut self, at: Stamp, fact: &Appended, changes: &mut Changes) -> bool {
        if !self.open || Some(fact.part) != self.parts.checked_add(1) || !self.may_join(&fact.tasks)
        {
            return false;
        }
        let target = match &fact.items {
            None => None,
            Some(more) => {
                let Some(n) = self.task_at(&more.task) else { return false };
                let count = self.tasks[n].total as usize + more.items.len();
                if !self.tasks[n].takes_items() || count as u64 > MAX_INDICES {
                    return false;
                }
                Some((n, more))
            }
        };
        let mut touched = self.join(&fact.tasks);
        if let Some((n, more)) = target {
            let task = &mut self.tasks[n];
            let fresh =
                Indices::span(task.total, (task.total + more.items.len() as u32).wrapping_sub(1));
            if !more.items.is_empty() {
                task.total += more.items.len() as u32;
                task.left += fresh.len();
                task.more_items.extend(more.items.iter().cloned());
                match task.gate {
                    Gate::Locked => task.waiting.insert_all(&fresh),
                    Gate::Open => {
                        task.make_ready(&fresh, at);
                        changes.ready(self.id, n);
                    }
                    Gate::Shut(state) => task.end(&fresh, state),
                }
            }
            touched.push(n);
        }
        self.parts += 1;
        self.appended_at = at;
        self.settle(at, touched, changes);
        true
    }

    pub(super) fn closed(&mut self, at: Stamp, parts: u32, changes: &mut Changes) -> bool {
        if !self.open || parts != self.parts {
            return false;
        }
        self.open = false;
        let all = (0..self.tasks.len()).collect();
        self.settle(at, all, changes);
        true
    }

    pub(super) fn expire(&mut self, at: Stamp, changes: &mut Changes) -> bool {
        if !self.open {
            return false;
        }
        self.expired = true;
        self.stop(at, changes);
        true
    }

    pub(super) fn cancel(
        &mut self,
        at: Stamp,
        (request, round, by): (RequestId, u32, &CallerName),
        changes: &mut Changes,
    ) -> bool {
        if self.state.is_ended() || round != self.round || self.knows(request) || self.is_stopping()
        {
            return false;
        }
        self.requests.insert(request);
        self.cancelled_by = Some(by.clone());
        self.stop(at, changes);
        true
    }

    pub(super) fn retry(
        &mut self,
        at: Stamp,
        (request, round): (RequestId, u32),
        changes: &mut Changes,
    ) -> bool {
        if !self.may_retry() || round != self.round || self.knows(request) {
            return false;
        }
        self.requests.insert(request);
        self.round += 1;
        self.state = WorkState::Running;
        (self.why, self.ended_at, self.cancelled_by) = (None, None, None);
        self.recorded = false;
        for task in &mut self.tasks {
            let mut again = std::mem::take(&mut task.failed);
            again.insert_all(&std::mem::take(&mut task.cancelled));
            again.insert_all(&std::mem::take(&mut task.skipped));
            task.ended_by.remove_all(&again);
            task.first_failures.clear();
            task.left = again.len();
            task.doomed = false;
            // One that never got an item ended as what it was shut with.
            if task.left > 0 || task.total == 0 {
                task.gate = Gate::Locked;
                task.ended = false;
            }
            task.waiting = again;
        }
        let done: Vec<bool> = self.tasks.iter().map(|t| t.ended).collect();
        for task in &mut self.tasks {
            task.needs_left = task.needs.iter().filter(|n| !done[**n]).count();
        }
        self.tasks_left = done.iter().filter(|done| !**done).count();
        let todo = (0..self.tasks.len()).filter(|n| !done[*n]).collect();
        self.settle(at, todo, changes);
        true
    }

    pub(super) fn assigned(
        &mut self,
        (seq, at): (Seq, Stamp),
        epoch: Epoch,
        entry: &AssignedEntry,
        changes: &mut Changes,
    ) -> bool {
        let Some(n) = self.task_at(&entry.task) else { return false };
        let task = &mut self.tasks[n];
        let mut fresh = entry.indices.clone();
        fresh.remove_span(task.total, Index::MAX);
        for &(a, b) in entry.indices.ranges() {
            for (a, b, last) in task.last.within(a, b) {
                if last.attempt >= entry.attempt {
                    fresh.remove_span(a, b);
                }
            }
        }
        // The number is used up, whether the rest applies or not.
        let last = Last { attempt: entry.attempt, node: entry.node.clone() };
        task.last.set_all(&fresh, &last);
        let mut taken = fresh.intersection(&task.ready);
        task.ready.remove_all(&taken);
        if !task.delayed.is_empty() {
            for &(a, b) in fresh.ranges() {
                for (a, b, _) in task.delayed.remove(a, b) {
                    taken.insert_span(a, b);
                }
            }
        }
        if taken.is_empty() {
            return !fresh.is_empty();
        }
        let live = Arc::new(Live {
            attempt: entry.attempt,
            epoch,
            node: entry.node.clone(),
            instance: entry.instance,
            at,
            seq,
        });
        task.live.set_all(&taken, &live);
        task.running += taken.len();
        self.state = WorkState::Running;
        changes.given.push(Given { work: self.id, task: n, indices: taken, live });
        true
    }

    pub(super) fn ended(
        &mut self,
        (seq, at): (Seq, Stamp),
        entry: &EndedEntry,
        changes: &mut Changes,
    ) -> bool {
        let stopping = self.is_stopping();
        let Some(n) = self.task_at(&entry.task) else { return false };
        let task = &mut self.tasks[n];
        let freed = task.free(&entry.indices, |live| live.attempt == entry.attempt);
        if freed.is_empty() {
            return false;
        }
        let mut ended = false;
        for (live, indices) in freed {
            let ending = &entry.ending;
            match entry.again_s {
                Some(after) if !stopping => {
                    task.try_again(&indices, |tries| tries.failed += 1);
                    task.delay(&indices, at, after.ms);
                    changes.ready(self.id, n);
                }
                again => {
                    let state = match (again, ending.state) {
                        (_, IndexState::Finished) => IndexState::Finished,
                        (Some(_), _) | (_, IndexState::Cancelled) => IndexState::Cancelled,
                        _ => IndexState::Failed,
                    };
                    ended = true;
                    task.ended_by.set_all(&indices, &seq);
                    task.end(&indices, state);
                    if state == IndexState::Failed {
                        task.remember_failure(&indices, |index| Failure {
                            index,
                            node: Some(live.node.clone()),
                            exit_code: ending.exit_code,
                            signal: ending.signal,
                            why: ending.why.clone(),
                        });
                    }
                }
            }
            changes.freed.push(Freed { work: self.id, task: n, indices, live, how: How::Ended });
        }
        if ended {
            self.settle(at, vec![n], changes);
        }
        true
    }

    pub(super) fn lost(
        &mut self,
        (seq, at): (Seq, Stamp),
        entry: &LostEntry,
        changes: &mut Changes,
    ) -> bool {
        let stopping = self.is_stopping();
        let Some(n) = self.task_at(&entry.task) else { return false };
        let task = &mut self.tasks[n];
        let freed = task.free(&entry.indices, |live| {
            live.attempt == entry.attempt && live.instance == entry.instance
        });
        if freed.is_empty() {
            return false;
        }
        for (live, indices) in freed {
            task.lost += indices.len();
            match entry.again_s {
                Some(after) if !stopping => {
                    task.try_again(&indices, |tries| tries.lost += 1);
                    task.delay(&indices, at, after.ms);
                    changes.ready(self.id, n);
                }
                Some(_) => task.end(&indices, IndexState::Cancelled),
                None => {
                    task.ended_by.set_all(&indices, &seq);
                    task.end(&indices, IndexState::Failed);
                    task.remember_failure(&indices, |index| Failure {
                        index,
                        node: Some(live.node.clone()),
                        exit_code: None,
                        signal: None,
                        why: Some(entry.why.clone()),
                    });
                }
            }
            changes.freed.push(Freed { work: self.id, task: n, indices, live, how: How::Lost });
        }
        self.settle(at, vec![n], changes);
        true
    }

    pub(super) fn returned(
        &mut self,
        at: Stamp,
        entry: &ReturnedEntry,
        changes: &mut Changes,
    ) -> bool {
        let stopping = self.is_stopping();
        let Some(n) = self.task_at(&entry.task) else { return false };
        let task = &mut self.tasks[n];
        let freed = task
            .free(&entry.indices, |live| live.attempt == entry.attempt && live.node == entry.node);
        if freed.is_empty() {
            return false;
        }
        for (live, indices) in freed {
            if stopping {
                task.end(&indices, IndexState::Cancelled);
            } else {
                task.try_again(&indices, |tries| tries.returned += 1);
                task.delay(&indices, at, entry.after_s.ms);
                changes.ready(self.id, n);
            }
            changes.freed.push(Freed { work: self.id, task: n, indices, live, how: How::Returned });
        }
        self.settle(at, vec![n], changes);
        true
    }
}
