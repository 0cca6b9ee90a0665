//! Parts of open works, one after another: each is written, and the next one's turn comes when the
//! fold shows it.

use super::{Action, Answer, Core, PATIENCE_MS, Purpose, Ticket, WriteError, write_refusal};
use crate::journal::Work;
use schemas::{
    error::{Refusal, code},
    fact::{Appended, Closed, Fact},
    id::{Seq, WorkId},
    request::{Append, AppendedReply, Close},
    subject,
    time::Millis,
    token::{CallerName, PoolName, TaskName},
    work::{MAX_INDICES, MAX_ITEMS, WorkSpec, check},
};
use std::collections::{BTreeMap, BTreeSet, VecDeque};

/// A work that is or was open.
#[derive(Debug)]
pub(super) struct Growing {
    pool: PoolName,
    items_bytes: usize,
    /// Which message holds which part; part 1 is the first.
    parts: Vec<Seq>,
    busy: Option<Busy>,
    queue: VecDeque<(Ticket, Step)>,
}

#[derive(Clone, Debug)]
enum Step {
    Append(Box<Append>),
    Close(u32),
}

/// A write that the fold does not show yet.
#[derive(Debug)]
struct Busy {
    ticket: Ticket,
    step: Step,
    stored: Option<Seq>,
    since: Millis,
}

impl Growing {
    pub(super) fn new(pool: PoolName, spec: &WorkSpec) -> Self {
        let items_bytes = spec.tasks.iter().map(|task| items_bytes(task)).sum();
        Self { pool, items_bytes, parts: Vec::new(), busy: None, queue: VecDeque::new() }
    }

    pub(super) fn grew(&mut self, seq: Seq, fact: &Appended) {
        self.parts.push(seq);
        self.items_bytes += fact.tasks.iter().map(|task| items_bytes(task)).sum::<usize>();
        let items = fact.items.iter().flat_map(|more| &more.items);
        self.items_bytes += items.map(|item| item.len()).sum::<usize>();
    }
}

fn items_bytes(task: &schemas::work::Task) -> usize {
    let items = task.array.as_ref().and_then(|array| array.items.as_ref());
    items.map_or(0, |items| items.iter().map(|item| item.len()).sum())
}

impl Core {
    pub(super) fn append(
        &mut self,
        ticket: Ticket,
        caller: &CallerName,
        append: &Append,
        caught_up: bool,
    ) -> Result<(), Refusal> {
        let work = self.resolve(caller, &append.work)?;
        if append.part == 0 {
            return Err(Refusal::new(code::INVALID, "`part` is 0")
                .field("part")
                .hint("parts count from 1"));
        }
        self.queue(ticket, work, Step::Append(Box::new(append.clone())), caught_up)
    }

    pub(super) fn close(
        &mut self,
        ticket: Ticket,
        caller: &CallerName,
        close: &Close,
        caught_up: bool,
    ) -> Result<(), Refusal> {
        let work = self.resolve(caller, &close.work)?;
        self.queue(ticket, work, Step::Close(close.parts), caught_up)
    }

    fn queue(
        &mut self,
        ticket: Ticket,
        work: WorkId,
        step: Step,
        caught_up: bool,
    ) -> Result<(), Refusal> {
        let most = self.limits.parts_waiting;
        let Some(growing) = self.growing.get_mut(&work) else {
            return Err(not_open(work));
        };
        if growing.busy.is_some() {
            if growing.queue.len() >= most {
                let message = format!("{most} parts of this work wait for their turn already");
                return Err(Refusal::new(code::BUSY, message)
                    .hint("send the next part when one is answered"));
            }
            growing.queue.push_back((ticket, step));
            return Ok(());
        }
        match self.take_step(ticket, work, step) {
            Err(refusal) if &*refusal.code == code::PART_MISSING && !caught_up => Err(refusal),
            Err(refusal) => {
                self.refuse(ticket, refusal);
                Ok(())
            }
            Ok(()) => Ok(()),
        }
    }

    /// Takes the steps whose turn has come.
    fn next_steps(&mut self, work: WorkId) {
        while let Some(growing) = self.growing.get_mut(&work)
            && growing.busy.is_none()
            && let Some((ticket, step)) = growing.queue.pop_front()
        {
            if let Err(refusal) = self.take_step(ticket, work, step) {
                self.refuse(ticket, refusal);
            }
        }
    }

    fn take_step(&mut self, ticket: Ticket, work: WorkId, step: Step) -> Result<(), Refusal> {
        let growing = self.growing.get(&work).ok_or_else(|| not_open(work))?;
        let pool = growing.pool.clone();
        let folded = self.pools[&pool].fold.work(work).ok_or_else(|| not_open(work))?;
        let fact = match &step {
            Step::Append(append) => {
                if let Some(seq) = growing.parts.get(append.part as usize - 1).copied() {
                    // Known: answered as before if it is the same.
                    self.comparing.insert(ticket, append.clone());
                    self.out.push(Action::Read { ticket, pool, seq });
                    return Ok(());
                }
                may_append(folded, growing, append)?
            }
            Step::Close(parts) => {
                if !folded.open && !folded.is_stopping() && folded.parts == *parts {
                    // Closed before.
                    let summary = self.summary(work).ok_or_else(|| not_open(work))?;
                    self.got(ticket, summary);
                    return Ok(());
                }
                may_close(folded, *parts)?
            }
        };
        let subject = subject::fact(&pool, &folded.owner, Some(work), fact.kind());
        let body = fact.to_json();
        if body.len() > self.limits.max_body {
            let message = format!(
                "the part has {} bytes, more than the {} that one message may hold",
                body.len(),
                self.limits.max_body
            );
            return Err(Refusal::new(code::TOO_LARGE, message).hint("send smaller parts"));
        }
        let busy = Busy { ticket, step, stored: None, since: self.now.at };
        self.growing.get_mut(&work).expect("it was just looked up").busy = Some(busy);
        self.growing_now.insert(work);
        self.write(Purpose::Grow(work), subject, body, false);
        Ok(())
    }

    pub(super) fn growth_written(&mut self, work: WorkId, result: Result<Seq, WriteError>) {
        let Some(growing) = self.growing.get_mut(&work) else { return };
        match result {
            Ok(seq) => {
                if let Some(busy) = &mut growing.busy {
                    busy.stored = Some(seq);
                }
                let pool = growing.pool.clone();
                self.growth_shown(&pool);
            }
            Err(error) => {
                if let Some(busy) = growing.busy.take() {
                    self.growing_now.remove(&work);
                    self.refuse(busy.ticket, write_refusal(&error));
                }
                self.next_steps(work);
            }
        }
    }

    /// The fold of a pool has come further: what it shows now is answered.
    pub(super) fn growth_shown(&mut self, pool: &PoolName) {
        let seen = self.seen(pool);
        let is_shown = |work: &&WorkId| {
            let growing = self.growing.get(work).filter(|growing| growing.pool == *pool);
            let stored = growing.and_then(|growing| growing.busy.as_ref()?.stored);
            stored.is_some_and(|seq| seq <= seen)
        };
        let shown: Vec<WorkId> = self.growing_now.iter().filter(is_shown).copied().collect();
        for work in shown {
            let growing = self.growing.get_mut(&work).expect("it was just found");
            let Some(busy) = growing.busy.take() else { continue };
            self.growing_now.remove(&work);
            match busy.step {
                Step::Append(append) => self.part_shown(busy.ticket, work, append, busy.stored),
                Step::Close(parts) => {
                    let folded = self.pools[pool].fold.work(work);
                    let closed = folded.is_some_and(|f| !f.open && !f.expired && f.parts == parts);
                    match self.summary(work) {
                        Some(summary) if closed => self.got(busy.ticket, summary),
                        _ => self.refuse(busy.ticket, not_open(work)),
                    }
                }
            }
            self.next_steps(work);
        }
    }

    fn part_shown(
        &mut self,
        ticket: Ticket,
        work: WorkId,
        append: Box<Append>,
        stored: Option<Seq>,
    ) {
        let growing = &self.growing[&work];
        let holder = growing.parts.get(append.part as usize - 1).copied();
        let part = growing.parts.len() as u32;
        match holder {
            Some(seq) if Some(seq) == stored => {
                self.answer(ticket, Answer::Appended(AppendedReply { work, part }));
            }
            // Another manager was first with this part.
            Some(seq) => {
                let pool = growing.pool.clone();
                self.comparing.insert(ticket, append);
                self.out.push(Action::Read { ticket, pool, seq });
            }
            None => self.refuse(ticket, not_open(work)),
        }
    }

    /// The message of a part that was sent again.
    pub(super) fn on_read(&mut self, ticket: Ticket, fact: Option<&Fact>) {
        let Some(append) = self.comparing.remove(&ticket) else { return };
        let Some(Fact::Appended(known)) = fact else {
            let message = format!("part {} is known, but can no longer be compared", append.part);
            return self.refuse(ticket, Refusal::new(code::PART_TAKEN, message).field("part"));
        };
        let same =
            known.part == append.part && known.tasks == append.tasks && known.items == append.items;
        if !same {
            let message = format!("part {} is known with another content", append.part);
            return self.refuse(
                ticket,
                Refusal::new(code::PART_TAKEN, message)
                    .field("part")
                    .hint("each part has its own number"),
            );
        }
        let work = known.work;
        let part = self.growing.get(&work).map_or(known.part, |g| g.parts.len() as u32);
        self.answer(ticket, Answer::Appended(AppendedReply { work, part }));
    }

    /// The journal of a pool is folded anew: whether what is on its way holds is not known.
    pub(super) fn stop_growing(&mut self, pool: &PoolName) {
        let (gone, rest) = std::mem::take(&mut self.growing)
            .into_iter()
            .partition(|(_, growing)| growing.pool == *pool);
        self.growing = rest;
        let gone: BTreeMap<WorkId, Growing> = gone;
        for (work, growing) in gone {
            self.growing_now.remove(&work);
            let waiting = growing.queue.into_iter().map(|(ticket, _)| ticket);
            for ticket in growing.busy.map(|busy| busy.ticket).into_iter().chain(waiting) {
                let error = WriteError::Unknown("the journal is read again".to_owned());
                self.refuse(ticket, write_refusal(&error));
            }
        }
    }

    pub(super) fn growth_overdue(&mut self) {
        let now = self.now.at;
        let is_late = |work: &&WorkId| {
            let busy = self.growing.get(work).and_then(|growing| growing.busy.as_ref());
            busy.is_some_and(|busy| now.since(busy.since) >= PATIENCE_MS)
        };
        let late: Vec<WorkId> = self.growing_now.iter().filter(is_late).copied().collect();
        for work in late {
            let error = WriteError::Unknown("the journal does not show it".to_owned());
            self.growth_written(work, Err(error));
        }
    }
}

fn may_append(work: &Work, growing: &Growing, append: &Append) -> Result<Fact, Refusal> {
    if !work.open {
        return Err(not_open(work.id));
    }
    let next = work.parts.saturating_add(1);
    if append.part != next {
        let message = format!("part {} came, but part {next} is the next", append.part);
        return Err(Refusal::new(code::PART_MISSING, message)
            .field("part")
            .hint(format!("send part {next} first")));
    }
    let known: BTreeSet<TaskName> = work.tasks.iter().map(|t| t.spec.name.clone()).collect();
    let mut bytes = check::check_tasks(&append.tasks, &known)?;
    if let Some(more) = &append.items {
        bytes += check::check_items(&more.items, "items.items")?;
        let Some(task) = work.task(&more.task) else {
            let names = known.iter().map(TaskName::as_str);
            let near = check::nearest(more.task.as_str(), names);
            let refusal = Refusal::new(
                code::UNKNOWN_TASK,
                format!("there is no task `{}` in this work", more.task),
            )
            .field("items.task");
            return Err(match near {
                Some(near) => refusal.hint(format!("did you mean `{near}`?")),
                None => refusal,
            });
        };
        if task.spec.array.as_ref().is_none_or(|array| array.items.is_none()) {
            let message = format!("`{}` has no array of items", more.task);
            return Err(Refusal::new(code::INVALID, message)
                .field("items.task")
                .hint("only an array that was submitted with `items` takes more"));
        }
        let count = u64::from(task.total) + more.items.len() as u64;
        if count > MAX_INDICES {
            let message = format!("an array of {count} is larger than {MAX_INDICES}");
            return Err(Refusal::new(code::TOO_LARGE, message).field("items.items"));
        }
    }
    if growing.items_bytes + bytes > MAX_ITEMS {
        return Err(check::too_many_items(growing.items_bytes + bytes));
    }

    Ok(Fact::Appended(Appended {
        work: work.id,
        part: append.part,
        tasks: append.tasks.clone(),
        items: append.items.clone(),
    }))
}

fn may_close(work: &Work, parts: u32) -> Result<Fact, Refusal> {
    if !work.open {
        return Err(not_open(work.id));
    }
    if parts > work.parts {
        let message = format!("the work has {} parts, not {parts}", work.parts);
        return Err(Refusal::new(code::PART_MISSING, message)
            .field("parts")
            .hint(format!("send part {} first", work.parts + 1)));
    }
    if parts < work.parts {
        let message = format!("the work has {} parts, not {parts}", work.parts);
        return Err(Refusal::new(code::INVALID, message).field("parts"));
    }
    Ok(Fact::Closed(Closed { work: work.id, parts }))
}

fn not_open(work: WorkId) -> Refusal {
    Refusal::new(code::NOT_OPEN, format!("the work {work} is not open (any more)"))
        .field("work")
        .hint("a work takes parts when it is submitted with `\"open\": true`, until `close`")
}
