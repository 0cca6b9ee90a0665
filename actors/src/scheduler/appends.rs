//! Writes of a scheduler: many entries in one message, repeated until the own fold shows them.

use super::core::{Action, Core};
use schemas::{
    fact::{
        Assigned, AssignedEntry, Ended, EndedEntry, Expired, Fact, Finished, FinishedEntry, Lost,
        LostEntry, Returned, ReturnedEntry,
    },
    id::{Attempt, Seq, WorkId},
    indices::{Index, Indices},
    outcome::{Ending, IndexState, reason},
    subject,
    time::Millis,
    token::OwnerName,
};
use std::{
    collections::{BTreeMap, BTreeSet},
    sync::Arc,
};

/// No message grows beyond this, as far as its size is known before it is written.
const MESSAGE_BYTES: usize = 600 * 1024;
/// What one entry may have at most.
const ENTRY_BYTES: usize = 900 * 1024;

/// By what the fold of an own write is recognised: no two writes on their way share it.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
struct FactKey(&'static str, WorkId, String, Index, Attempt);

#[derive(Debug)]
struct Append {
    subject: String,
    fact: Arc<Fact>,
    key: Option<FactKey>,
    /// Reports that wait for it.
    reports: Vec<u64>,
    /// Clients that wait for it, and what they are told.
    clients: Vec<(u64, String)>,
    seq: Option<Seq>,
}

/// Writes that the own fold does not show yet.
#[derive(Debug, Default)]
pub(super) struct Appends {
    waiting: BTreeMap<u64, Append>,
    by_key: BTreeMap<FactKey, u64>,
    by_seq: BTreeMap<Seq, u64>,
    again: BTreeSet<(Millis, u64)>,
    /// Counts over all reigns of this process: a late acknowledgement belongs to no later write.
    next: u64,
}

impl Appends {
    pub(super) fn forget(&mut self) {
        *self = Self { next: self.next, ..Self::default() };
    }

    #[cfg(test)]
    pub(super) fn are_done(&self) -> bool {
        self.waiting.is_empty()
    }
}

/// Which fact an entry belongs to.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Kind {
    Ended,
    Lost,
    Returned,
    Assigned,
    Finished,
}

#[derive(Debug)]
pub(super) enum Entry {
    Ended(Box<EndedEntry>),
    Lost(LostEntry),
    Returned(ReturnedEntry),
    Assigned(AssignedEntry),
    Finished(FinishedEntry),
}

impl Entry {
    fn kind(&self) -> Kind {
        match self {
            Entry::Ended(_) => Kind::Ended,
            Entry::Lost(_) => Kind::Lost,
            Entry::Returned(_) => Kind::Returned,
            Entry::Assigned(_) => Kind::Assigned,
            Entry::Finished(_) => Kind::Finished,
        }
    }

    fn bytes(&self) -> usize {
        let of = |indices: &Indices| 300 + indices.ranges().len() * 20;
        match self {
            Entry::Ended(e) => of(&e.indices) + ending_bytes(&e.ending),
            Entry::Lost(e) => of(&e.indices) + e.why.len() * 2,
            Entry::Returned(e) => of(&e.indices) + e.why.len() * 2,
            Entry::Assigned(e) => of(&e.indices),
            Entry::Finished(e) => 200 + e.why.as_ref().map_or(0, |why| why.len() * 2),
        }
    }
}

/// How much an ending has in JSON: cheaply where it is small, exactly where it matters.
fn ending_bytes(ending: &Ending) -> usize {
    let outputs: usize = ending.outputs.iter().map(|(name, blob)| name.len() + blob.len()).sum();
    let why = ending.why.as_ref().map_or(0, String::len);
    let rough = 700 + 6 * (ending.stdout.len() + ending.stderr.len() + outputs + why);
    if rough < 64 * 1024 {
        return rough;
    }
    serde_json::to_vec(ending).map_or(rough, |json| json.len())
}

/// Cuts an ending down to what fits into a message; says so.
pub(super) fn fit(mut ending: Ending) -> Ending {
    if ending_bytes(&ending) <= ENTRY_BYTES {
        return ending;
    }
    ending.outputs.clear();
    if ending.state == IndexState::Finished {
        ending.state = IndexState::Failed;
    }
    ending.reason = Some(reason::OUTPUT_TOO_LARGE.to_owned());
    ending.why = Some("its declared outputs do not fit into one message together".to_owned());
    if ending_bytes(&ending) > ENTRY_BYTES {
        ending.stdout = Default::default();
        ending.stderr = Default::default();
    }
    ending
}

#[derive(Debug, Default)]
struct Batch {
    id: u64,
    bytes: usize,
    entries: Vec<Entry>,
    reports: BTreeSet<u64>,
}

/// Entries of this step, by kind and owner.
#[derive(Debug, Default)]
pub(super) struct Batches {
    open: BTreeMap<(Kind, OwnerName), Batch>,
    full: Vec<(Kind, OwnerName, Batch)>,
}

impl Core {
    /// Puts an entry into the next write of its kind and says which one that will be.
    pub(super) fn put(&mut self, owner: &OwnerName, entry: Entry, report: Option<u64>) -> u64 {
        let bytes = entry.bytes();
        let kind = entry.kind();
        let slot = (kind, owner.clone());
        let full =
            self.batches.open.get(&slot).is_some_and(|batch| batch.bytes + bytes > MESSAGE_BYTES);
        if full && let Some(batch) = self.batches.open.remove(&slot) {
            self.batches.full.push((kind, owner.clone(), batch));
        }
        let next = &mut self.appends.next;
        let batch = self.batches.open.entry(slot).or_insert_with(|| {
            *next += 1;
            Batch { id: *next, ..Batch::default() }
        });
        batch.bytes += bytes;
        batch.entries.push(entry);
        if let Some(token) = report
            && batch.reports.insert(token)
        {
            *self.reports.entry(token).or_default() += 1;
        }
        batch.id
    }

    /// Lets a report wait for a write that is on its way already.
    pub(super) fn wait_for(&mut self, id: u64, token: u64) {
        let waits = if let Some(append) = self.appends.waiting.get_mut(&id) {
            let news = !append.reports.contains(&token);
            if news {
                append.reports.push(token);
            }
            news
        } else {
            let open = self.batches.open.values_mut();
            let mut all = open.chain(self.batches.full.iter_mut().map(|(_, _, batch)| batch));
            all.find(|batch| batch.id == id).is_some_and(|batch| batch.reports.insert(token))
        };
        if waits {
            *self.reports.entry(token).or_default() += 1;
        }
    }

    pub(super) fn flush_batches(&mut self) {
        let mut all = std::mem::take(&mut self.batches.full);
        let open = std::mem::take(&mut self.batches.open);
        all.extend(open.into_iter().map(|((kind, owner), batch)| (kind, owner, batch)));
        for (kind, owner, batch) in all {
            let fact = self.fact_of(kind, batch.entries);
            let mut works = fact.works();
            works.dedup();
            let one = (works.len() == 1).then(|| works[0]);
            let subject = subject::fact(&self.pool, &owner, one, fact.kind());
            self.append(batch.id, subject, fact, batch.reports.into_iter().collect());
        }
    }

    fn fact_of(&self, kind: Kind, entries: Vec<Entry>) -> Fact {
        let epoch = self.epoch();
        macro_rules! fact {
            ($variant:ident, $entry:ident => $inner:expr) => {{
                let only = |entry| match entry {
                    Entry::$variant($entry) => Some($inner),
                    _ => None,
                };
                let entries = entries.into_iter().filter_map(only).collect();
                Fact::$variant($variant { epoch, entries })
            }};
        }
        match kind {
            Kind::Ended => fact!(Ended, entry => *entry),
            Kind::Lost => fact!(Lost, entry => entry),
            Kind::Returned => fact!(Returned, entry => entry),
            Kind::Assigned => fact!(Assigned, entry => entry),
            Kind::Finished => fact!(Finished, entry => entry),
        }
    }

    /// Writes the record that a work ended.
    pub(super) fn record(&mut self, id: WorkId) {
        let Some(work) = self.fold.work(id) else { return };
        if !work.state.is_ended() || work.recorded {
            return;
        }
        let entry = FinishedEntry {
            work: id,
            round: work.round,
            state: work.state,
            why: work.why.clone(),
            ended_at: work.ended_at.unwrap_or(work.at),
        };
        let owner = work.owner.clone();
        self.put(&owner, Entry::Finished(entry), None);
    }

    /// Writes that an open work was not closed in time.
    pub(super) fn expire(&mut self, id: WorkId) {
        let fact = Fact::Expired(Expired { epoch: self.epoch(), work: id });
        let known = key_of(&fact).is_some_and(|key| self.appends.by_key.contains_key(&key));
        let Some(work) = self.fold.work(id).filter(|_| !known) else { return };
        let subject = subject::fact(&self.pool, &work.owner, Some(id), fact.kind());
        self.append_new(subject, fact);
    }

    /// Writes something that a client waits for.
    pub(super) fn append_for(&mut self, subject: String, fact: Fact, token: u64, told: String) {
        let id = self.append_new(subject, fact);
        if let Some(append) = self.appends.waiting.get_mut(&id) {
            append.clients.push((token, told));
        }
    }

    fn append_new(&mut self, subject: String, fact: Fact) -> u64 {
        self.appends.next += 1;
        let id = self.appends.next;
        self.append(id, subject, fact, Vec::new());
        id
    }

    fn append(&mut self, id: u64, subject: String, fact: Fact, reports: Vec<u64>) {
        let Some(acting) = self.acting else { return };
        let fact = Arc::new(fact);
        let key = key_of(&fact);
        if let Some(key) = &key {
            self.appends.by_key.insert(key.clone(), id);
        }
        let append = Append {
            subject: subject.clone(),
            fact: fact.clone(),
            key,
            reports,
            clients: Vec::new(),
            seq: None,
        };
        self.appends.waiting.insert(id, append);
        self.out.push(Action::Append { id, subject, fact, fence: acting.fence });
    }

    pub(super) fn on_written(&mut self, id: u64, seq: Seq) {
        let Some(append) = self.appends.waiting.get_mut(&id) else { return };
        append.seq = Some(seq);
        if seq <= self.fold.last_seq() {
            self.resolve(id);
        } else {
            self.appends.by_seq.insert(seq, id);
        }
    }

    pub(super) fn on_unanswered(&mut self, id: u64) {
        if self.appends.waiting.get(&id).is_some_and(|append| append.seq.is_none()) {
            let at = self.now.at + self.settings.write_again_s.ms;
            self.appends.again.insert((at, id));
        }
    }

    /// Repeats unchanged what was not answered.
    pub(super) fn write_again(&mut self) {
        let Some(acting) = self.acting.filter(|_| self.connected) else { return };
        while let Some(&(at, id)) = self.appends.again.first() {
            if at > self.now.at {
                return;
            }
            self.appends.again.pop_first();
            if let Some(append) = self.appends.waiting.get(&id) {
                let (subject, fact) = (append.subject.clone(), append.fact.clone());
                self.out.push(Action::Append { id, subject, fact, fence: acting.fence });
            }
        }
    }

    pub(super) fn write_again_now(&mut self) {
        let again = std::mem::take(&mut self.appends.again);
        self.appends.again = again.into_iter().map(|(_, id)| (Millis(0), id)).collect();
    }

    /// Whether a fact is an own write whose doing is still to be noted (it may be stored twice).
    pub(super) fn is_awaited(&self, fact: &Fact) -> bool {
        key_of(fact).is_some_and(|key| self.appends.by_key.contains_key(&key))
    }

    /// The own fold shows a fact: if it is an own one, it is done.
    pub(super) fn resolve_by_fact(&mut self, fact: &Fact) {
        if self.appends.by_key.is_empty() {
            return;
        }
        if let Some(id) = key_of(fact).and_then(|key| self.appends.by_key.get(&key).copied()) {
            self.resolve(id);
        }
    }

    pub(super) fn resolve_up_to(&mut self, seq: Seq) {
        while let Some((&at, &id)) = self.appends.by_seq.first_key_value() {
            if at > seq {
                return;
            }
            self.appends.by_seq.pop_first();
            self.resolve(id);
        }
    }

    fn resolve(&mut self, id: u64) {
        let Some(append) = self.appends.waiting.remove(&id) else { return };
        if let Some(key) = append.key
            && self.appends.by_key.get(&key) == Some(&id)
        {
            self.appends.by_key.remove(&key);
        }
        if let Some(seq) = append.seq {
            self.appends.by_seq.remove(&seq);
        }
        for token in append.reports {
            self.report_resolved(token);
        }
        for (token, told) in append.clients {
            self.tell_done(token, told);
        }
        self.ending_resolved(id, &append.fact);
    }
}

fn key_of(fact: &Fact) -> Option<FactKey> {
    let kind = fact.kind();
    let job = |work, task: &str, indices: &Indices, attempt| {
        Some(FactKey(kind, work, task.to_owned(), indices.min().unwrap_or(0), attempt))
    };
    match fact {
        Fact::Assigned(f) => {
            f.entries.first().and_then(|e| job(e.work, e.task.as_str(), &e.indices, e.attempt))
        }
        Fact::Ended(f) => {
            f.entries.first().and_then(|e| job(e.work, e.task.as_str(), &e.indices, e.attempt))
        }
        Fact::Lost(f) => {
            f.entries.first().and_then(|e| job(e.work, e.task.as_str(), &e.indices, e.attempt))
        }
        Fact::Returned(f) => {
            f.entries.first().and_then(|e| job(e.work, e.task.as_str(), &e.indices, e.attempt))
        }
        Fact::Finished(f) => {
            f.entries.first().map(|e| FactKey(kind, e.work, String::new(), 0, e.round))
        }
        Fact::Expired(f) => Some(FactKey(kind, f.work, String::new(), 0, 0)),
        // What clients wait for is recognised by its place alone.
        _ => None,
    }
}
