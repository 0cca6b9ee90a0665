//! What nodes report, checked against the journal, and what is tried again.

use super::{
    appends::{Entry, fit},
    core::{Action, Core},
    nodes::JobKey,
};
use crate::journal::{Task, Tries};
use schemas::{
    error::{Refusal, code},
    fact::{EndedEntry, LostEntry},
    id::{Epoch, InstanceId},
    indices::Indices,
    job::{Became, Report, ReportAnswer, ReportEntry},
    outcome::{Ending, IndexState},
    time::Seconds,
    token::NodeName,
    work::LostPolicy,
};
use std::collections::BTreeMap;

impl Core {
    pub(super) fn on_report(&mut self, token: u64, node: &NodeName, report: Report) {
        if self.acting.is_none() {
            let why = "this scheduler does not act";
            self.out.push(Action::Refuse { token, refusal: Refusal::new(code::NOT_ACTING, why) });
            return;
        }
        // Before a node's keeper has heard of this reign, it may still listen to an earlier one.
        let is_known = self.names.get(node).is_some_and(|all| {
            all.iter().any(|(_, id)| self.instances.get(id).is_some_and(|i| i.is_known))
        });
        if !is_known {
            let why = format!("{node} has not yet said what it holds");
            self.out.push(Action::Refuse { token, refusal: Refusal::new(code::NOT_READY, why) });
            return;
        }
        for entry in report.entries {
            self.on_entry(token, node, entry);
        }
        for failed in report.failed {
            self.on_failed(token, node, failed);
        }
        if !self.reports.contains_key(&token) {
            self.answer_report(token);
        }
    }

    fn answer_report(&mut self, token: u64) {
        let answer = ReportAnswer { epoch: self.epoch(), n: self.next_n() };
        self.out.push(Action::AnswerReport { token, answer });
    }

    /// One of the writes that a report waits for is folded.
    pub(super) fn report_resolved(&mut self, token: u64) {
        let Some(left) = self.reports.get_mut(&token) else { return };
        *left -= 1;
        if *left == 0 {
            self.reports.remove(&token);
            self.answer_report(token);
        }
    }

    /// What is not live (any more) is passed over: nobody waits for it.
    ///
    /// A keeper notes by whom a job was asked, which is who assigned it or a successor. Asked by a
    /// predecessor of who assigned it, it is another job whose number has come again.
    fn on_entry(&mut self, token: u64, node: &NodeName, entry: ReportEntry) {
        let Some(work) = self.fold.work(entry.jobs.work) else { return };
        let Some(at) = work.task_at(&entry.jobs.task) else { return };
        let mut hits: BTreeMap<Epoch, Indices> = BTreeMap::new();
        for &(a, b) in entry.jobs.indices.ranges() {
            for (a, b, live) in work.tasks[at].live.within(a, b) {
                if live.attempt == entry.jobs.attempt
                    && live.epoch <= entry.epoch
                    && live.instance == entry.instance
                    && live.node == *node
                {
                    hits.entry(live.epoch).or_default().insert_span(a, b);
                }
            }
        }
        for (epoch, hit) in hits {
            let key = (entry.jobs.work, at, entry.jobs.attempt, epoch);
            self.on_hit(token, key, hit, &entry);
        }
    }

    fn on_hit(&mut self, token: u64, key: JobKey, mut hit: Indices, entry: &ReportEntry) {
        let id = entry.instance;
        let Some(jobs) = self.instances.get(&id).and_then(|i| i.jobs.get(&key)) else { return };
        if !jobs.ending.is_empty() {
            let mut writes = Vec::new();
            let mut ending = Indices::new();
            for &(a, b) in hit.ranges() {
                for (a, b, write) in jobs.ending.within(a, b) {
                    ending.insert_span(a, b);
                    writes.push(*write);
                }
            }
            hit.remove_all(&ending);
            writes.dedup();
            for write in writes {
                self.wait_for(write, token);
            }
        }
        if hit.is_empty() {
            return;
        }
        match &entry.became {
            Became::Ended(ending) => {
                let ago_ms = entry.ago_s.ms;
                self.on_ended(id, key, hit, Ending::clone(ending), ago_ms, token);
            }
            Became::Returned { why } => {
                if let Some(instance) = self.instances.get_mut(&id) {
                    instance.avoid_until = self.now.at + self.settings.ask_again_s.ms;
                }
                self.give_back(id, key, hit, why, Some(token));
            }
            Became::Lost { why } => self.lose(id, key, hit, why, Some(token)),
        }
    }

    fn on_ended(
        &mut self,
        id: InstanceId,
        key: JobKey,
        hit: Indices,
        ending: Ending,
        ago_ms: u64,
        token: u64,
    ) {
        let (work_id, at, attempt, _) = key;
        let mut ending = fit(ending);
        if ending.state == IndexState::Finished {
            self.learn((work_id, at), ending.ran_s.ms);
        }
        let Some(work) = self.fold.work(work_id) else { return };
        let (owner, stopping) = (work.owner.clone(), work.is_stopping());
        let task = &work.tasks[at];
        let name = task.spec.name.clone();
        // Shown times are the bus's; how long it took is the node's own measure.
        let ended_at = self.now.wall.minus_ms(ago_ms);
        ending.ended_at = Some(ended_at);
        ending.started_at = Some(ended_at.minus_ms(ending.ran_s.ms));
        ending.queued_at = hit.min().and_then(|first| task.queued_at.get(first).copied());
        ending.node = self.instances.get(&id).map(|instance| instance.node.clone());
        if !matches!(ending.state, IndexState::Finished | IndexState::Cancelled) {
            ending.state = IndexState::Failed;
        }
        let retries = task.spec.retries;
        let mut groups: BTreeMap<Option<u32>, Indices> = BTreeMap::new();
        if ending.state == IndexState::Failed && retries > 0 && !stopping {
            for (indices, tries) in by_tries(task, &hit) {
                let again = (tries.failed < retries).then_some(tries.failed);
                groups.entry(again).or_default().insert_all(&indices);
            }
        } else {
            groups.insert(None, hit);
        }
        for (times, indices) in groups {
            let again_s = times.map(|times| self.backoff(times));
            let entry = EndedEntry {
                work: work_id,
                task: name.clone(),
                indices: indices.clone(),
                attempt,
                ending: ending.clone(),
                again_s,
            };
            let write = self.put(&owner, Entry::Ended(Box::new(entry)), Some(token));
            self.mark_ending(id, key, &indices, write);
        }
    }

    /// A node says that an instance of it is gone with everything it ran.
    fn on_failed(&mut self, token: u64, node: &NodeName, id: InstanceId) {
        let Some(instance) = self.instances.get(&id).filter(|i| i.node == *node) else { return };
        let jobs: Vec<(JobKey, Indices)> =
            instance.jobs.iter().map(|(key, jobs)| (*key, jobs.indices.clone())).collect();
        self.instance_gone(id, "its keeper died");
        let why = format!("the keeper of {node} died, and its jobs with it");
        for (key, indices) in jobs {
            if let Some(jobs) = self.instances.get(&id).and_then(|i| i.jobs.get(&key)) {
                let mut writes: Vec<u64> = jobs.ending.runs().map(|(_, _, w)| *w).collect();
                writes.dedup();
                for write in writes {
                    self.wait_for(write, token);
                }
            }
            self.lose(id, key, indices, &why, Some(token));
        }
    }

    /// Writes that attempts are given up.
    pub(super) fn lose(
        &mut self,
        id: InstanceId,
        key: JobKey,
        mut indices: Indices,
        why: &str,
        report: Option<u64>,
    ) {
        let (work_id, at, attempt, _) = key;
        let Some(jobs) = self.instances.get(&id).and_then(|i| i.jobs.get(&key)) else { return };
        indices.remove_all(&jobs.ending.indices());
        let node = jobs.live.node.clone();
        let Some(work) = self.fold.work(work_id) else { return };
        let owner = work.owner.clone();
        let task = &work.tasks[at];
        let name = task.spec.name.clone();
        let mut groups: BTreeMap<Option<u32>, Indices> = BTreeMap::new();
        for (indices, tries) in by_tries(task, &indices) {
            let again = task.spec.lost == LostPolicy::Retry && tries.lost < self.settings.lost_most;
            groups.entry(again.then_some(tries.lost)).or_default().insert_all(&indices);
        }
        for (times, indices) in groups {
            let again_s = times.map(|times| self.backoff(times));
            let entry = LostEntry {
                work: work_id,
                task: name.clone(),
                indices: indices.clone(),
                attempt,
                node: node.clone(),
                instance: id,
                why: why.to_owned(),
                again_s,
            };
            let write = self.put(&owner, Entry::Lost(entry), report);
            self.mark_ending(id, key, &indices, write);
        }
    }

    /// The pause before the next try: doubling, within limits, ± 20 % so that many do not come back
    /// at once.
    pub(super) fn backoff(&mut self, times: u32) -> Seconds {
        let first = self.settings.retry_first_s.ms;
        let most = self.settings.retry_most_s.ms;
        let base = first.saturating_mul(1 << times.min(20)).min(most);
        let spread = base * 2 / 5;
        Seconds::from_ms(base - spread / 2 + self.random.u64(0..=spread))
    }
}

/// Takes a set apart by how often its indices were tried in vain.
pub(super) fn by_tries(task: &Task, indices: &Indices) -> Vec<(Indices, Tries)> {
    if indices.is_empty() {
        return Vec::new();
    }
    let mut out = Vec::new();
    let mut fresh = indices.clone();
    for &(a, b) in indices.ranges() {
        for (a, b, tries) in task.tries.within(a, b) {
            out.push((Indices::span(a, b), *tries));
            fresh.remove_span(a, b);
        }
    }
    if !fresh.is_empty() {
        out.push((fresh, Tries::default()));
    }
    out
}
