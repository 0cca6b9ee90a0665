//! The fold over the facts of a pool: what they mean, for every reader alike.
//!
//! The scheduler, its standbys and every manager fold the same messages in the same order and so
//! know the same. A fact that does not apply changes nothing. Everything that follows from facts is
//! derived here: index ended → task ended → successors ready, or skipped → work ended.
//!
//! ```text
//! let changes = fold.apply(seq, stamp, owner, &fact);   // what has changed, for who acts on it
//! fold.work(id) → &Work { tasks: [Task { ready, live, finished, … }] }
//! fold.summary(id) → Summary
//! ```
//!
//! Sets of indices are ranges ([`schemas::indices::Indices`], [`Spans`]), so that a million alike
//! cost as much as one.

mod spans;
mod work;

pub use spans::Spans;
pub use work::{Last, Live, Task, TaskAt, Tries, Work};

use schemas::{
    fact::{Fact, Refused},
    id::{Epoch, Seq, WorkId},
    indices::Indices,
    outcome::{Summary, WorkState},
    time::{Seconds, Stamp},
    token::{CallerName, NodeName, OwnerName},
};
use std::{
    collections::{BTreeMap, BTreeSet},
    sync::Arc,
};

/// An open work that says nothing else fails after so much time without an `append`.
pub const OPEN_TIMEOUT: Seconds = Seconds::new(3600);

/// Attempts that became live.
#[derive(Clone, Debug)]
pub struct Given {
    /// Which work.
    pub work: WorkId,
    /// Which task of it.
    pub task: TaskAt,
    /// Which indices.
    pub indices: Indices,
    /// Which attempt, and where.
    pub live: Arc<Live>,
}

/// Attempts that are live no more.
#[derive(Clone, Debug)]
pub struct Freed {
    /// Which work.
    pub work: WorkId,
    /// Which task of it.
    pub task: TaskAt,
    /// Which indices.
    pub indices: Indices,
    /// Which attempt, and where it was.
    pub live: Arc<Live>,
    /// How.
    pub how: How,
}

/// How an attempt stopped to be live.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum How {
    /// It ended.
    Ended,
    /// It is given up.
    Lost,
    /// It was never started.
    Returned,
}

/// What one fact has changed. All lists are empty when it did not apply.
#[derive(Debug, Default)]
pub struct Changes {
    /// Whether it applied at all (an `assigned` also when it only used up numbers).
    pub applied: bool,
    /// Works of which something changed; a work of several entries may stand there several times.
    pub works: Vec<WorkId>,
    /// Tasks of which indices became ready or delayed.
    pub ready: Vec<(WorkId, TaskAt)>,
    /// Attempts that became live.
    pub given: Vec<Given>,
    /// Attempts that are live no more.
    pub freed: Vec<Freed>,
    /// Works that were cancelled or not closed in time, and still have live attempts.
    pub stopping: Vec<WorkId>,
    /// Works that ended.
    pub ended: Vec<WorkId>,
}

impl Changes {
    fn ready(&mut self, work: WorkId, task: TaskAt) {
        if self.ready.last() != Some(&(work, task)) {
            self.ready.push((work, task));
        }
    }
}

/// A message of the inbox that was not accepted.
#[derive(Clone, Debug)]
pub struct RefusedWork {
    /// What was said.
    pub fact: Refused,
    /// Whose it would have been.
    pub owner: OwnerName,
    /// When.
    pub at: Stamp,
    /// Which message.
    pub seq: Seq,
}

/// Everything that the facts of one pool say.
#[derive(Debug, Default)]
pub struct Fold {
    works: BTreeMap<WorkId, Work>,
    refused: BTreeMap<WorkId, RefusedWork>,
    by_seq: BTreeMap<Seq, WorkId>,
    by_owner: BTreeMap<OwnerName, Mine>,
    active: BTreeSet<WorkId>,
    open: BTreeSet<WorkId>,
    unrecorded: BTreeSet<WorkId>,
    drained: BTreeMap<NodeName, CallerName>,
    paused: Option<CallerName>,
    epoch: Epoch,
    epoch_seq: Seq,
    last: Seq,
}

#[derive(Debug, Default)]
struct Mine {
    by_seq: BTreeMap<Seq, WorkId>,
    by_name: BTreeMap<String, BTreeSet<(Seq, WorkId)>>,
}

impl Fold {
    /// Takes in the next message of the journal. `owner` is the token of its subject (`None` for
    /// facts of the pool). A message that is not newer than the last one changes nothing.
    pub fn apply(&mut self, seq: Seq, at: Stamp, owner: Option<OwnerName>, fact: &Fact) -> Changes {
        let mut changes = Changes::default();
        if seq <= self.last {
            return changes;
        }
        self.last = seq;
        let c = &mut changes;
        match fact {
            Fact::Accepted(f) => {
                if let Some(owner) = owner
                    && !self.works.contains_key(&f.work)
                    && let Some(work) = Work::new(seq, at, owner, f, c)
                {
                    self.accept(seq, work);
                    self.note(seq, f.work, c);
                }
            }
            Fact::Appended(f) => self.one(seq, &owner, f.work, c, |w, c| w.appended(at, f, c)),
            Fact::Closed(f) => self.one(seq, &owner, f.work, c, |w, c| w.closed(at, f.parts, c)),
            Fact::Expired(f) => self.one(seq, &owner, f.work, c, |w, c| w.expire(at, c)),
            Fact::CancelAsked(f) => self
                .one(seq, &owner, f.work, c, |w, c| w.cancel(at, (f.request, f.round, &f.by), c)),
            Fact::RetryAsked(f) => {
                self.one(seq, &owner, f.work, c, |w, c| w.retry(at, (f.request, f.round), c));
            }
            Fact::Refused(f) => {
                if let Some(owner) = owner {
                    self.refuse(seq, at, owner, f, c);
                }
            }
            Fact::Assigned(f) => {
                for e in &f.entries {
                    self.one(seq, &owner, e.work, c, |w, c| w.assigned((seq, at), f.epoch, e, c));
                }
            }
            Fact::Returned(f) => {
                for e in &f.entries {
                    self.one(seq, &owner, e.work, c, |w, c| w.returned(at, e, c));
                }
            }
            Fact::Lost(f) => {
                for e in &f.entries {
                    self.one(seq, &owner, e.work, c, |w, c| w.lost((seq, at), e, c));
                }
            }
            Fact::Ended(f) => {
                for e in &f.entries {
                    self.one(seq, &owner, e.work, c, |w, c| w.ended((seq, at), e, c));
                }
            }
            Fact::Finished(f) => {
                for e in &f.entries {
                    self.one(seq, &owner, e.work, c, |w, _| {
                        let news = w.state.is_ended() && w.round == e.round && !w.recorded;
                        w.recorded |= news;
                        news
                    });
                }
            }
            Fact::Epoch(f) => {
                self.epoch = self.epoch.max(f.epoch);
                self.epoch_seq = seq;
                c.applied = true;
            }
            Fact::Drained(f) => {
                c.applied = self.drained.insert(f.node.clone(), f.by.clone()).is_none();
            }
            Fact::Undrained(f) => c.applied = self.drained.remove(&f.node).is_some(),
            Fact::Paused(f) => c.applied = self.paused.replace(f.by.clone()).is_none(),
            Fact::Resumed(_) => c.applied = self.paused.take().is_some(),
        }
        changes
    }

    /// A work by its id.
    pub fn work(&self, id: WorkId) -> Option<&Work> {
        self.works.get(&id)
    }

    /// A refused message of the inbox by the id it had or was given.
    pub fn refused(&self, id: WorkId) -> Option<&RefusedWork> {
        self.refused.get(&id)
    }

    /// How a work stands (also a refused one).
    pub fn summary(&self, id: WorkId) -> Option<Summary> {
        match self.works.get(&id) {
            Some(work) => Some(work.summary()),
            None => self.refused.get(&id).map(|refused| Summary {
                work: id,
                name: refused.fact.name.clone(),
                owner: refused.owner.clone(),
                state: WorkState::Refused,
                why: Some(refused.fact.error.message.clone()),
                submitted_at: refused.at,
                ended_at: Some(refused.at),
                round: 0,
                open: false,
                tasks: Vec::new(),
            }),
        }
    }

    /// All works and refused ones, in the order of acceptance.
    pub fn in_order(&self) -> impl DoubleEndedIterator<Item = (Seq, WorkId)> {
        self.by_seq.iter().map(|(seq, id)| (*seq, *id))
    }

    /// All works and refused ones of an owner, in the order of acceptance.
    pub fn of_owner<'a>(
        &'a self,
        owner: &OwnerName,
    ) -> impl DoubleEndedIterator<Item = (Seq, WorkId)> + use<'a> {
        self.by_owner.get(owner).into_iter().flat_map(|mine| &mine.by_seq).map(|(s, w)| (*s, *w))
    }

    /// Everybody who has or had a work here.
    pub fn owners(&self) -> impl Iterator<Item = &OwnerName> {
        self.by_owner.keys()
    }

    /// The works of an owner with exactly this name, in the order of acceptance.
    pub fn named(&self, owner: &OwnerName, name: &str) -> impl DoubleEndedIterator<Item = WorkId> {
        let mine = self.by_owner.get(owner).and_then(|mine| mine.by_name.get(name));
        mine.into_iter().flatten().map(|(_, id)| *id)
    }

    /// Works whose id lies between the two, both included: a beginning of an id is such a span.
    pub fn ids(&self, first: WorkId, last: WorkId) -> impl Iterator<Item = WorkId> {
        let span = if first <= last { first..=last } else { last..=last };
        self.works.range(span).map(|(id, _)| *id)
    }

    /// Works that have not ended.
    pub fn active(&self) -> &BTreeSet<WorkId> {
        &self.active
    }

    /// Works that may still be appended to.
    pub fn open(&self) -> &BTreeSet<WorkId> {
        &self.open
    }

    /// Works that have ended and of which no `finished` is stored yet.
    pub fn unrecorded(&self) -> &BTreeSet<WorkId> {
        &self.unrecorded
    }

    /// Nodes that take no new jobs, and who asked for it.
    pub fn drained(&self) -> &BTreeMap<NodeName, CallerName> {
        &self.drained
    }

    /// Who paused the pool.
    pub fn paused(&self) -> Option<&CallerName> {
        self.paused.as_ref()
    }

    /// The highest epoch; 0 before the first.
    pub fn epoch(&self) -> Epoch {
        self.epoch
    }

    /// The last message that began an epoch; 0 before the first.
    pub fn epoch_seq(&self) -> Seq {
        self.epoch_seq
    }

    /// The last message that was folded.
    pub fn last_seq(&self) -> Seq {
        self.last
    }

    /// How many works there are.
    pub fn len(&self) -> usize {
        self.works.len()
    }

    /// Whether there is none.
    pub fn is_empty(&self) -> bool {
        self.works.is_empty()
    }

    /// Forgets an ended work, when its facts are removed from the journal.
    pub fn forget(&mut self, id: WorkId) {
        if self.active.contains(&id) {
            return;
        }
        let found = match (self.works.remove(&id), self.refused.remove(&id)) {
            (Some(work), _) => Some((work.seq, work.owner, work.spec.name.clone())),
            (None, Some(refused)) => Some((refused.seq, refused.owner, refused.fact.name)),
            (None, None) => None,
        };
        self.unrecorded.remove(&id);
        let Some((seq, owner, name)) = found else { return };
        self.by_seq.remove(&seq);
        if let Some(mine) = self.by_owner.get_mut(&owner) {
            mine.by_seq.remove(&seq);
            if let Some(named) = mine.by_name.get_mut(&name) {
                named.remove(&(seq, id));
                if named.is_empty() {
                    mine.by_name.remove(&name);
                }
            }
        }
    }

    fn accept(&mut self, seq: Seq, work: Work) {
        // A refused id that is accepted later was refused as another message.
        if self.refused.contains_key(&work.id) {
            self.forget(work.id);
        }
        self.index(seq, work.id, &work.owner, &work.spec.name);
        self.works.insert(work.id, work);
    }

    fn refuse(&mut self, seq: Seq, at: Stamp, owner: OwnerName, f: &Refused, c: &mut Changes) {
        if self.works.contains_key(&f.work) || self.refused.contains_key(&f.work) {
            return;
        }
        self.index(seq, f.work, &owner, &f.name);
        self.refused.insert(f.work, RefusedWork { fact: f.clone(), owner, at, seq });
        c.applied = true;
        c.works.push(f.work);
    }

    fn index(&mut self, seq: Seq, id: WorkId, owner: &OwnerName, name: &str) {
        self.by_seq.insert(seq, id);
        if !self.by_owner.contains_key(owner) {
            self.by_owner.insert(owner.clone(), Mine::default());
        }
        let mine = self.by_owner.get_mut(owner).expect("it was just put there");
        mine.by_seq.insert(seq, id);
        if !name.is_empty() {
            mine.by_name.entry(name.to_owned()).or_default().insert((seq, id));
        }
    }

    /// Lets a fact act on one work, if it is there and its owner's.
    fn one(
        &mut self,
        seq: Seq,
        owner: &Option<OwnerName>,
        id: WorkId,
        changes: &mut Changes,
        act: impl FnOnce(&mut Work, &mut Changes) -> bool,
    ) {
        let Some(work) = self.works.get_mut(&id) else { return };
        if owner.as_ref() == Some(&work.owner) && act(work, changes) {
            self.note(seq, id, changes);
        }
    }

    fn note(&mut self, seq: Seq, id: WorkId, changes: &mut Changes) {
        let work = self.works.get_mut(&id).expect("it has just changed");
        changes.applied = true;
        if changes.works.last() != Some(&id) {
            changes.works.push(id);
        }
        if work.facts.last() != Some(&seq) {
            work.facts.push(seq);
        }
        let set = |set: &mut BTreeSet<WorkId>, holds: bool| {
            if holds {
                set.insert(id)
            } else {
                set.remove(&id)
            };
        };
        set(&mut self.active, !work.state.is_ended());
        set(&mut self.open, work.open);
        set(&mut self.unrecorded, work.state.is_ended() && !work.recorded);
    }
}

#[cfg(test)]
mod tests;
