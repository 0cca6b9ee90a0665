//! Questions: `get`, `wait`, `list`, `results`, and who may `follow`.

use super::{Action, Answer, Core, Got, Ticket};
use crate::manager::results::{self, Plan};
use schemas::{
    error::{Refusal, code},
    id::{Seq, WorkId},
    outcome::{Summary, WorkState},
    request::{Follow, Get, List, Results, Wait, Works},
    time::Stamp,
    token::{CallerName, OwnerName, PoolName, TaskName},
    work::check::nearest,
};
use std::collections::BTreeMap;

const LIST_DEFAULT: u32 = 50;
const LIST_MOST: u32 = 1000;

impl Core {
    pub(super) fn get(
        &mut self,
        ticket: Ticket,
        caller: &CallerName,
        get: &Get,
    ) -> Result<(), Refusal> {
        let work = self.resolve(caller, &get.work)?;
        let summary = self.summary(work).ok_or_else(|| unknown(work))?;
        let (pool, known) = self.pool_of(work).ok_or_else(|| unknown(work))?;
        let folded = known.fold.work(work);
        let spec = folded.filter(|_| get.spec).map(|folded| folded.spec.clone());
        let waits = folded.is_some_and(|f| !f.state.is_ended() && !f.has_live());
        let got = Box::new(Got { summary, spec });
        if get.spec {
            let bytes = serde_json::to_vec(&got).map_or(0, |json| json.len());
            if bytes > self.limits.max_body {
                let message =
                    format!("summary and spec have {bytes} bytes, more than one answer may");
                return Err(Refusal::new(code::TOO_LARGE, message)
                    .field("spec")
                    .hint("`follow` it: its first fact holds the spec"));
            }
        }
        if waits && got.summary.why.is_none() {
            let pool = pool.clone();
            self.out.push(Action::Explain { ticket, pool, got });
        } else {
            self.answer(ticket, Answer::Got(got));
        }
        Ok(())
    }

    pub(super) fn wait(
        &mut self,
        ticket: Ticket,
        caller: &CallerName,
        wait: &Wait,
    ) -> Result<(), Refusal> {
        let work = self.resolve(caller, &wait.work)?;
        let summary = self.summary(work).ok_or_else(|| unknown(work))?;
        if summary.state.is_ended() {
            self.got(ticket, summary);
            return Ok(());
        }
        self.may_hold(caller)?;
        self.hold(ticket, caller, work, false, wait.hold_s);
        Ok(())
    }

    pub(super) fn list(
        &mut self,
        ticket: Ticket,
        caller: &CallerName,
        list: &List,
    ) -> Result<(), Refusal> {
        let mut below = read_cursor(list.from.as_deref())?;
        let limit = list.limit.unwrap_or(LIST_DEFAULT).clamp(1, LIST_MOST) as usize;
        let mut works: Vec<Summary> = Vec::new();
        let mut bytes = 0;
        let mut next = None;
        let mut heads: Vec<Head<'_>> = self
            .pools
            .iter()
            .map(|(name, pool)| {
                let end = below.get(name).copied().unwrap_or(Seq::MAX);
                Head { name, ids: self.newest(caller, pool, end), at: None }
            })
            .collect();
        loop {
            for head in &mut heads {
                if head.at.is_none() {
                    head.at = head
                        .ids
                        .next()
                        .and_then(|(seq, work)| Some((self.stamp_of(head.name, work)?, seq, work)));
                }
            }
            let newest = heads.iter_mut().filter(|head| head.at.is_some()).max_by_key(|h| h.at);
            let Some(head) = newest else { break };
            let Some((_, seq, work)) = head.at else { break };
            let name = head.name;
            if self.listed(work, list) {
                let Some(mut summary) = self.summary(work) else { break };
                for task in &mut summary.tasks {
                    task.first_failures.clear();
                }
                let size = serde_json::to_vec(&summary).map_or(0, |json| json.len() + 1);
                let full = bytes + size + 1024 > self.limits.max_body;
                if works.len() == limit || (full && !works.is_empty()) {
                    next = Some(write_cursor(&below));
                    break;
                }
                bytes += size;
                works.push(summary);
            }
            below.insert(name.clone(), seq);
            head.at = None;
        }
        drop(heads);
        self.answer(ticket, Answer::Works(Works { works, next }));
        Ok(())
    }

    fn newest<'a>(
        &'a self,
        caller: &CallerName,
        pool: &'a super::Pool,
        below: Seq,
    ) -> Box<dyn Iterator<Item = (Seq, WorkId)> + 'a> {
        let before = move |(seq, _): &(Seq, WorkId)| *seq < below;
        if *caller == CallerName::owner() {
            return Box::new(pool.fold.in_order().rev().filter(before));
        }
        Box::new(pool.fold.of_owner(&OwnerName::of(caller)).rev().filter(before))
    }

    fn stamp_of(&self, pool: &PoolName, work: WorkId) -> Option<Stamp> {
        let fold = &self.pools.get(pool)?.fold;
        match fold.work(work) {
            Some(work) => Some(work.at),
            None => fold.refused(work).map(|refused| refused.at),
        }
    }

    fn listed(&self, work: WorkId, list: &List) -> bool {
        let Some((_, pool)) = self.pool_of(work) else { return false };
        let (state, name) = match (pool.fold.work(work), pool.fold.refused(work)) {
            (Some(work), _) => (work.state, &work.spec.name),
            (None, Some(refused)) => (WorkState::Refused, &refused.fact.name),
            (None, None) => return false,
        };
        (list.states.is_empty() || list.states.contains(&state))
            && list.name.as_ref().is_none_or(|part| name.contains(part.as_str()))
    }

    pub(super) fn results(
        &mut self,
        ticket: Ticket,
        caller: &CallerName,
        asked: &Results,
    ) -> Result<(), Refusal> {
        let work = self.resolve(caller, &asked.work)?;
        let (pool, known) = self.pool_of(work).ok_or_else(|| unknown(work))?;
        let Some(folded) = known.fold.work(work) else {
            let none = schemas::request::Outcomes { items: Vec::new(), next: None };
            self.answer(ticket, Answer::Outcomes(none));
            return Ok(());
        };
        let plan = results::plan(folded, asked, self.limits.max_body)?;
        let pool = pool.clone();
        self.collect(ticket, pool, plan);
        Ok(())
    }

    fn collect(&mut self, ticket: Ticket, pool: PoolName, mut plan: Plan) {
        if plan.needs().is_none() {
            return self.answer(ticket, Answer::Outcomes(plan.page()));
        }
        self.out.push(Action::Collect { ticket, pool, plan: Box::new(plan), run: None });
    }

    pub(super) fn follow(
        &mut self,
        ticket: Ticket,
        caller: &CallerName,
        follow: &Follow,
    ) -> Result<(), Refusal> {
        let work = self.resolve(caller, &follow.work)?;
        let (pool, known) = self.pool_of(work).ok_or_else(|| unknown(work))?;
        if let (Some(folded), Some(task)) = (known.fold.work(work), &follow.task)
            && folded.task_at(task).is_none()
            && !folded.open
        {
            let names = folded.tasks.iter().map(|t| &t.spec.name);
            return Err(unknown_task(task, names));
        }
        let count = self.follows_by_caller.get(caller).copied().unwrap_or(0);
        if count >= self.limits.follows_per_caller {
            let message = format!("{caller} follows {count} works already");
            return Err(Refusal::new(code::BUSY, message).hint("end one of them first"));
        }
        let pool = pool.clone();
        *self.follows_by_caller.entry(caller.clone()).or_default() += 1;
        self.out.push(Action::Follow {
            ticket,
            caller: caller.clone(),
            pool,
            work,
            follow: Box::new(follow.clone()),
        });
        Ok(())
    }
}

/// The next work of a pool, newest first.
struct Head<'a> {
    name: &'a PoolName,
    ids: Box<dyn Iterator<Item = (Seq, WorkId)> + 'a>,
    at: Option<(Stamp, Seq, WorkId)>,
}

/// `main:17,gpu:4`: of each pool only what was accepted before.
fn write_cursor(below: &BTreeMap<PoolName, Seq>) -> String {
    let parts: Vec<String> = below.iter().map(|(pool, seq)| format!("{pool}:{seq}")).collect();
    parts.join(",")
}

fn read_cursor(text: Option<&str>) -> Result<BTreeMap<PoolName, Seq>, Refusal> {
    let Some(text) = text else { return Ok(BTreeMap::new()) };
    let part = |part: &str| {
        let (pool, seq) = part.split_once(':')?;
        Some((PoolName::new(pool).ok()?, seq.parse().ok()?))
    };
    text.split(',').map(part).collect::<Option<_>>().ok_or_else(bad_cursor)
}

/// The refusal of a cursor that was never given out.
pub(crate) fn bad_cursor() -> Refusal {
    Refusal::new(code::BAD_CURSOR, "`from` is no cursor that was given out")
        .field("from")
        .hint("leave it out to begin at the start")
}

/// The refusal of a task that is not in the work.
pub(crate) fn unknown_task<'a>(
    task: &TaskName,
    names: impl Iterator<Item = &'a TaskName>,
) -> Refusal {
    let refusal =
        Refusal::new(code::UNKNOWN_TASK, format!("there is no task `{task}` in this work"))
            .field("task");
    match nearest(task.as_str(), names.map(TaskName::as_str)) {
        Some(near) => refusal.hint(format!("did you mean `{near}`?")),
        None => refusal,
    }
}

fn unknown(work: WorkId) -> Refusal {
    Refusal::new(code::UNKNOWN_WORK, format!("there is no work `{work}`")).field("work")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_cursor_of_the_list_comes_back_the_same() {
        let below = BTreeMap::from([(PoolName::main(), 17)]);
        assert_eq!(read_cursor(Some(&write_cursor(&below))).unwrap(), below);
        for bad in ["", "main", "main:x", "A:1", "main:1,"] {
            assert_eq!(&*read_cursor(Some(bad)).unwrap_err().code, code::BAD_CURSOR, "{bad}");
        }
    }
}
