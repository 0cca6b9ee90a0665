//! The instances of nodes: whether they live, what they hold, what is still to be asked of them.

use super::{
    appends::Entry,
    core::{Action, Core, NoAnswer, NodeAnswer, NodeRequest},
    place::Offer,
    queue::Key,
};
use crate::journal::{Freed, Given, How, Live, Spans, TaskAt};
use schemas::{
    amount::Room,
    fact::{Fact, ReturnedEntry},
    id::{Attempt, Epoch, InstanceId, WorkId},
    indices::Indices,
    job::{
        Ask, HeldAnswer, HeldRequest, JobBatch, JobRef, JobsAnswer, JobsRequest, StopRequest,
        StopWhy,
    },
    node::{Beat, Digest, Inventory},
    time::{Millis, Seconds, Stamp},
    token::NodeName,
};
use std::{
    collections::{BTreeMap, BTreeSet},
    sync::Arc,
};

/// No request to a node grows beyond this.
const REQUEST_BYTES: usize = 600 * 1024;
/// A node that was not heard for so many leases and holds nothing is forgotten.
const FORGET_AFTER: u64 = 20;
/// So many beats in a row must contradict the journal before the node is asked again.
const CONTRADICTIONS: u32 = 3;

/// Names jobs of one task with one number, given by one scheduler.
pub(super) type JobKey = (WorkId, TaskAt, Attempt, Epoch);

/// Live attempts on an instance, by the fold, and what the instance is known to know of them.
///
/// What is in none of the sets was given by a predecessor: only `held` tells whether it is there.
#[derive(Debug)]
pub(super) struct Jobs {
    pub(super) live: Arc<Live>,
    pub(super) indices: Indices,
    /// To be asked (again).
    unasked: Indices,
    /// Certainly never started: never asked, or by its own word not there. What was asked in vain
    /// is not certain, as the question may have been heard.
    never: Indices,
    /// Asked; the answer is not there.
    asking: Indices,
    /// The instance said that it has them.
    taken: Indices,
    /// An end is being written, and by which write.
    pub(super) ending: Spans<u64>,
    not_before: Millis,
    stop_at: Option<Millis>,
}

/// What a task has on an instance.
#[derive(Debug, Default)]
pub(super) struct Share {
    /// Live and reserved.
    pub(super) count: u64,
    /// How many of them room was taken for; the others wait there.
    pub(super) in_room: u64,
    need: Room,
}

/// One life of a node's keeper.
#[derive(Debug)]
pub(super) struct Instance {
    pub(super) node: NodeName,
    pub(super) since: Stamp,
    pub(super) offer: Offer,
    pub(super) inventory: Arc<Inventory>,
    pub(super) version: String,
    /// Absent: only the journal speaks of it.
    pub(super) heard_at: Option<Millis>,
    pub(super) heard_wall: Stamp,
    pub(super) clock_ahead_ms: i64,
    pub(super) digest: Digest,
    /// It is about to leave and takes nothing new.
    pub(super) closing: bool,
    /// It said goodbye or was reported failed: final.
    pub(super) gone: Option<&'static str>,
    /// It has said what it holds.
    pub(super) is_known: bool,
    /// It is to be asked again what it holds.
    recheck: bool,
    /// Which `held` is on its way.
    held: Option<u64>,
    /// It holds what the journal does not know.
    pub(super) foreign: bool,
    ask_at: Millis,
    pub(super) avoid_until: Millis,
    pub(super) used: Room,
    pub(super) count: u64,
    pub(super) shares: BTreeMap<Key, Share>,
    pub(super) jobs: BTreeMap<JobKey, Jobs>,
    /// Jobs about which there is something to ask.
    restless: BTreeSet<JobKey>,
    contradictions: u32,
}

impl Instance {
    fn new(node: NodeName) -> Self {
        Self {
            node,
            since: Stamp(0),
            offer: Offer::default(),
            inventory: Arc::default(),
            version: String::new(),
            heard_at: None,
            heard_wall: Stamp(0),
            clock_ahead_ms: 0,
            digest: Digest::default(),
            closing: false,
            gone: None,
            is_known: false,
            recheck: false,
            held: None,
            foreign: false,
            ask_at: Millis(0),
            avoid_until: Millis(0),
            used: Room::default(),
            count: 0,
            shares: BTreeMap::new(),
            jobs: BTreeMap::new(),
            restless: BTreeSet::new(),
            contradictions: 0,
        }
    }

    pub(super) fn free(&self) -> Room {
        self.offer.total.minus(&self.used)
    }

    pub(super) fn add_share(&mut self, key: Key, need: &Room, count: u64, in_room: u64) {
        let share = self
            .shares
            .entry(key)
            .or_insert_with(|| Share { need: need.clone(), ..Share::default() });
        share.count += count;
        share.in_room += in_room;
        self.used.add(need, in_room);
        self.count += count;
    }

    /// Room is given back only when nothing of the task waits for it on the node.
    pub(super) fn sub_share(&mut self, key: Key, count: u64) {
        let Some(share) = self.shares.get_mut(&key) else { return };
        share.count = share.count.saturating_sub(count);
        self.count = self.count.saturating_sub(count);
        let free = share.in_room.saturating_sub(share.count);
        share.in_room -= free;
        self.used.sub(&share.need, free);
        if share.count == 0 {
            self.shares.remove(&key);
        }
    }
}

/// A question that is on its way.
#[derive(Debug)]
pub(super) struct Asking {
    instance: InstanceId,
    what: What,
}

#[derive(Debug)]
enum What {
    Held,
    Jobs(Vec<(JobKey, Indices)>),
    Stop(Vec<JobKey>),
}

impl Core {
    pub(super) fn instance(&mut self, id: InstanceId, node: &NodeName) -> &mut Instance {
        if !self.instances.contains_key(&id) {
            self.names.entry(node.clone()).or_default().insert((Stamp(0), id));
            self.instances.insert(id, Instance::new(node.clone()));
        }
        self.instances.get_mut(&id).expect("it was just put there")
    }

    pub(super) fn on_beat(&mut self, beat: Beat) {
        self.highest_told = self.highest_told.max(beat.highest.epoch);
        if beat.pool != self.pool {
            return;
        }
        let now = self.now;
        let silent_ms = self.settings.silent_after_s.ms;
        let acting = self.acting.is_some();
        let id = beat.instance;
        let instance = self.instance(id, &beat.node);
        if instance.gone.is_some() || instance.node != beat.node {
            return;
        }
        let before = instance.since;
        let was_silent = instance.heard_at.is_none_or(|at| now.at.since(at) >= silent_ms);
        let offer = Offer::of(&beat);
        let changed = was_silent || offer != instance.offer;
        instance.since = beat.since;
        instance.offer = offer;
        instance.inventory = beat.inventory;
        instance.version = beat.version;
        instance.heard_at = Some(now.at);
        instance.heard_wall = now.wall;
        instance.clock_ahead_ms = beat.at.0 as i64 - now.wall.0 as i64;
        instance.digest = beat.digest;
        instance.closing = beat.closing;
        let d = beat.digest;
        let holds_nothing = d.running == 0 && d.queued == 0 && d.unanswered == 0;
        let should_hold =
            instance.jobs.values().any(|j| !j.taken.is_empty() && j.ending.is_empty());
        if acting && holds_nothing && should_hold {
            instance.contradictions += 1;
            if instance.contradictions >= CONTRADICTIONS {
                instance.contradictions = 0;
                instance.recheck = true;
            }
        } else {
            instance.contradictions = 0;
        }
        if before != beat.since {
            let all = self.names.entry(beat.node.clone()).or_default();
            all.remove(&(before, id));
            all.insert((beat.since, id));
        }
        if beat.leaving {
            self.instance_gone(id, "it has left");
        }
        if changed {
            self.must_place = true;
        }
        self.dirty.insert(id);
    }

    /// It will never take or run anything again. What it was never asked for comes back at once.
    pub(super) fn instance_gone(&mut self, id: InstanceId, why: &'static str) {
        let Some(instance) = self.instances.get_mut(&id) else { return };
        instance.gone = Some(why);
        self.must_place = true;
        if self.acting.is_none() {
            return;
        }
        let never: Vec<(JobKey, Indices)> = instance
            .jobs
            .iter()
            .map(|(key, jobs)| (*key, jobs.never.clone()))
            .filter(|(_, indices)| !indices.is_empty())
            .collect();
        for (key, indices) in never {
            self.give_back(id, key, indices, why, None);
        }
    }

    /// How long an instance has been silent, as far as this scheduler could have heard it.
    pub(super) fn silence_ms(&self, instance: &Instance) -> u64 {
        let heard = instance.heard_at.unwrap_or_default();
        self.now.at.since(heard.max(self.counting_since))
    }

    /// Whether it was heard just now.
    pub(super) fn is_heard(&self, instance: &Instance) -> bool {
        instance.heard_at.is_some_and(|at| self.now.at.since(at) < self.settings.silent_after_s.ms)
    }

    /// Whether an older instance of the same name may still be alive.
    pub(super) fn is_second(&self, id: InstanceId, instance: &Instance) -> bool {
        let Some(all) = self.names.get(&instance.node) else { return false };
        all.iter().take_while(|(since, other)| (*since, *other) < (instance.since, id)).any(
            |(_, other)| {
                self.instances.get(other).is_some_and(|older| {
                    older.gone.is_none() && self.silence_ms(older) < self.settings.lost_after_s.ms
                })
            },
        )
    }

    /// Whether new jobs may be placed there now.
    pub(super) fn takes_jobs(&self, id: InstanceId, instance: &Instance) -> bool {
        instance.gone.is_none()
            && instance.is_known
            && !instance.foreign
            && !instance.closing
            && instance.avoid_until <= self.now.at
            && self.is_heard(instance)
            && !self.fold.drained().contains_key(&instance.node)
            && !self.is_second(id, instance)
    }

    /// Takes over what the journal says is live on an instance, at the beginning of a reign.
    pub(super) fn take_up_live(&mut self, key: Key, need: &Room, pieces: &[(Arc<Live>, Indices)]) {
        let (work, task) = key;
        let stopping = self.fold.work(work).is_some_and(|w| w.is_stopping());
        for (live, indices) in pieces {
            let instance = self.instance(live.instance, &live.node);
            instance.add_share(key, need, indices.len(), indices.len());
            let job = (work, task, live.attempt, live.epoch);
            let jobs = instance.jobs.entry(job).or_insert_with(|| Jobs::new(live.clone()));
            jobs.indices.insert_all(indices);
            if stopping {
                jobs.stop_at = Some(Millis(0));
                instance.restless.insert(job);
            }
        }
    }

    /// The own fold shows an assignment: now it may be asked.
    pub(super) fn on_given(&mut self, given: &Given) {
        let now = self.now.at;
        let work = self.fold.work(given.work).expect("the fold has just given it");
        let wait_ms = match work.tasks[given.task].at_most_once() {
            true => self.settings.at_most_once_wait_s.ms,
            false => 0,
        };
        let live = &given.live;
        let key = (given.work, given.task, live.attempt, live.epoch);
        let instance = self.instance(live.instance, &live.node);
        let jobs = instance.jobs.entry(key).or_insert_with(|| Jobs::new(live.clone()));
        jobs.indices.insert_all(&given.indices);
        jobs.unasked.insert_all(&given.indices);
        jobs.never.insert_all(&given.indices);
        jobs.not_before = jobs.not_before.max(now + wait_ms);
        instance.restless.insert(key);
        let gone = instance.gone;
        self.dirty.insert(live.instance);
        if let Some(why) = gone {
            self.give_back(live.instance, key, given.indices.clone(), why, None);
        }
    }

    pub(super) fn on_freed(&mut self, freed: &Freed) {
        let id = freed.live.instance;
        let Some(instance) = self.instances.get_mut(&id) else { return };
        let key = (freed.work, freed.task, freed.live.attempt, freed.live.epoch);
        if let Some(jobs) = instance.jobs.get_mut(&key) {
            jobs.indices.remove_all(&freed.indices);
            jobs.unasked.remove_all(&freed.indices);
            jobs.never.remove_all(&freed.indices);
            jobs.asking.remove_all(&freed.indices);
            jobs.taken.remove_all(&freed.indices);
            jobs.ending.remove_all(&freed.indices);
            if jobs.indices.is_empty() {
                instance.jobs.remove(&key);
                instance.restless.remove(&key);
            }
        }
        instance.sub_share((freed.work, freed.task), freed.indices.len());
        if freed.how == How::Lost {
            // It may hold what it is no longer meant to.
            instance.is_known = false;
            self.dirty.insert(id);
        }
        self.must_place = true;
    }

    /// A work was stopped: what was never asked comes back, the rest is told to stop.
    pub(super) fn on_stopping(&mut self, id: WorkId) {
        let Some(work) = self.fold.work(id) else { return };
        let mut live: BTreeMap<InstanceId, BTreeSet<JobKey>> = BTreeMap::new();
        for (at, task) in work.tasks.iter().enumerate().filter(|(_, task)| task.running > 0) {
            for (_, _, one) in task.live.runs() {
                live.entry(one.instance).or_default().insert((id, at, one.attempt, one.epoch));
            }
        }
        for (instance, keys) in live {
            for key in keys {
                self.stop_jobs(instance, key);
            }
        }
    }

    fn stop_jobs(&mut self, id: InstanceId, key: JobKey) {
        let Some(instance) = self.instances.get_mut(&id) else { return };
        let Some(jobs) = instance.jobs.get_mut(&key) else { return };
        let never = jobs.never.clone();
        jobs.stop_at = Some(self.now.at);
        instance.restless.insert(key);
        self.dirty.insert(id);
        self.give_back(id, key, never, "cancelled before it was started", None);
    }

    /// Writes that attempts which were never started come back.
    pub(super) fn give_back(
        &mut self,
        id: InstanceId,
        key: JobKey,
        mut indices: Indices,
        why: &str,
        report: Option<u64>,
    ) {
        let (work_id, task_at, attempt, _) = key;
        let Some(jobs) = self.instances.get(&id).and_then(|i| i.jobs.get(&key)) else { return };
        indices = indices.intersection(&jobs.indices);
        indices.remove_all(&jobs.ending.indices());
        let Some(work) = self.fold.work(work_id) else { return };
        let (owner, node) = (work.owner.clone(), jobs.live.node.clone());
        let task = &work.tasks[task_at];
        let name = task.spec.name.clone();
        let mut groups: BTreeMap<u32, Indices> = BTreeMap::new();
        for (indices, tries) in super::reports::by_tries(task, &indices) {
            groups.entry(tries.returned).or_default().insert_all(&indices);
        }
        for (returned, indices) in groups {
            // The first time another node may well take it at once.
            let after_s = match returned.checked_sub(1) {
                None => Seconds::default(),
                Some(times) => self.backoff(times),
            };
            let entry = ReturnedEntry {
                work: work_id,
                task: name.clone(),
                indices: indices.clone(),
                attempt,
                node: node.clone(),
                why: why.to_owned(),
                after_s,
            };
            let write = self.put(&owner, Entry::Returned(entry), report);
            self.mark_ending(id, key, &indices, write);
        }
    }

    pub(super) fn mark_ending(
        &mut self,
        id: InstanceId,
        key: JobKey,
        indices: &Indices,
        write: u64,
    ) {
        if let Some(jobs) = self.instances.get_mut(&id).and_then(|i| i.jobs.get_mut(&key)) {
            jobs.ending.set_all(indices, &write);
            jobs.unasked.remove_all(indices);
        }
    }

    /// A write is folded: what it did not end is not ending any more.
    pub(super) fn ending_resolved(&mut self, id: u64, fact: &Fact) {
        let jobs: Vec<(WorkId, &schemas::token::TaskName, &Indices)> = match fact {
            Fact::Ended(f) => f.entries.iter().map(|e| (e.work, &e.task, &e.indices)).collect(),
            Fact::Lost(f) => f.entries.iter().map(|e| (e.work, &e.task, &e.indices)).collect(),
            Fact::Returned(f) => f.entries.iter().map(|e| (e.work, &e.task, &e.indices)).collect(),
            _ => return,
        };
        for (work_id, name, indices) in jobs {
            let Some(work) = self.fold.work(work_id) else { continue };
            let Some(at) = work.task_at(name) else { continue };
            for &(a, b) in indices.ranges() {
                for (a, b, live) in work.tasks[at].live.within(a, b) {
                    let key = (work_id, at, live.attempt, live.epoch);
                    let instance = self.instances.get_mut(&live.instance);
                    if let Some(jobs) = instance.and_then(|i| i.jobs.get_mut(&key)) {
                        jobs.ending.remove_if(a, b, |write| *write == id);
                    }
                }
            }
        }
    }

    /// Sends what is due to the instances that something has happened to.
    pub(super) fn ask_nodes(&mut self) {
        if !self.connected {
            return;
        }
        for id in std::mem::take(&mut self.dirty) {
            self.ask_node(id);
        }
    }

    fn ask_node(&mut self, id: InstanceId) {
        let Some(instance) = self.instances.get(&id) else { return };
        if instance.gone.is_some() || !self.is_heard(instance) {
            return;
        }
        let must_hold = !instance.is_known || instance.foreign || instance.recheck;
        if must_hold && instance.held.is_none() && instance.ask_at <= self.now.at {
            let node = instance.node.clone();
            let ask = self.ask(id, What::Held);
            if let Some(instance) = self.instances.get_mut(&id) {
                instance.held = Some(ask.n);
                instance.recheck = false;
                instance.ask_at = self.now.at + self.settings.ask_again_s.ms;
            }
            let request = NodeRequest::Held(HeldRequest { ask });
            self.out.push(Action::Ask { n: ask.n, node, request });
            return;
        }
        if must_hold || instance.held.is_some() {
            return;
        }
        self.ask_stop(id);
        self.ask_jobs(id);
    }

    fn ask(&mut self, instance: InstanceId, what: What) -> Ask {
        let n = self.next_n();
        self.asks.insert(n, Asking { instance, what });
        Ask { epoch: self.epoch(), n, instance }
    }

    fn ask_stop(&mut self, id: InstanceId) {
        let now = self.now.at;
        let again = now + 5 * self.settings.ask_again_s.ms;
        let Some(instance) = self.instances.get_mut(&id) else { return };
        let node = instance.node.clone();
        let (mut refs, mut keys) = (Vec::new(), Vec::new());
        for key in &instance.restless {
            let Some(jobs) = instance.jobs.get_mut(key) else { continue };
            if jobs.stop_at.is_none_or(|at| at > now) {
                continue;
            }
            jobs.stop_at = Some(again);
            let mut indices = jobs.indices.difference(&jobs.never);
            indices.remove_all(&jobs.ending.indices());
            if indices.is_empty() {
                continue;
            }
            let Some(work) = self.fold.work(key.0) else { continue };
            let task = work.tasks[key.1].spec.name.clone();
            refs.push(JobRef { work: key.0, task, attempt: key.2, indices });
            keys.push(*key);
        }
        if refs.is_empty() {
            return;
        }
        let ask = self.ask(id, What::Stop(keys));
        let request = NodeRequest::Stop(StopRequest { ask, jobs: refs, why: StopWhy::Cancelled });
        self.out.push(Action::Ask { n: ask.n, node, request });
    }

    fn ask_jobs(&mut self, id: InstanceId) {
        let now = self.now.at;
        let Some(instance) = self.instances.get(&id) else { return };
        let node = instance.node.clone();
        let due: Vec<(JobKey, Indices)> = instance
            .restless
            .iter()
            .filter_map(|key| instance.jobs.get(key).map(|jobs| (*key, jobs)))
            .filter(|(_, jobs)| jobs.not_before <= now && jobs.stop_at.is_none())
            .map(|(key, jobs)| (key, jobs.unasked.clone()))
            .filter(|(_, indices)| !indices.is_empty())
            .collect();
        let mut bytes = 0;
        let mut batches: Vec<JobBatch> = Vec::new();
        let mut asked: Vec<(JobKey, Indices)> = Vec::new();
        for (key, mut indices) in due {
            while !indices.is_empty() {
                let Some((batch, size)) = self.job_batch(key, &mut indices) else { break };
                if bytes + size > REQUEST_BYTES && !batches.is_empty() {
                    self.send_jobs(id, &node, &mut batches, &mut asked);
                    bytes = 0;
                }
                bytes += size;
                asked.push((key, batch.indices.clone()));
                batches.push(batch);
            }
        }
        self.send_jobs(id, &node, &mut batches, &mut asked);
        if let Some(instance) = self.instances.get_mut(&id) {
            let jobs = &instance.jobs;
            instance.restless.retain(|key| {
                jobs.get(key).is_some_and(|j| !j.unasked.is_empty() || j.stop_at.is_some())
            });
        }
    }

    fn send_jobs(
        &mut self,
        id: InstanceId,
        node: &NodeName,
        batches: &mut Vec<JobBatch>,
        asked: &mut Vec<(JobKey, Indices)>,
    ) {
        if batches.is_empty() {
            return;
        }
        let asked = std::mem::take(asked);
        if let Some(instance) = self.instances.get_mut(&id) {
            for (key, indices) in &asked {
                let Some(jobs) = instance.jobs.get_mut(key) else { continue };
                jobs.unasked.remove_all(indices);
                jobs.never.remove_all(indices);
                jobs.asking.insert_all(indices);
            }
        }
        let ask = self.ask(id, What::Jobs(asked));
        let request = NodeRequest::Jobs(JobsRequest { ask, jobs: std::mem::take(batches) });
        self.out.push(Action::Ask { n: ask.n, node: node.clone(), request });
    }

    /// Takes as many indices as one message may hold.
    fn job_batch(&mut self, key: JobKey, indices: &mut Indices) -> Option<(JobBatch, usize)> {
        let (spec, mut bytes) = self.job_spec((key.0, key.1))?;
        let work = self.fold.work(key.0)?;
        let task = &work.tasks[key.1];
        bytes += 200 + 10 * indices.ranges().len();
        let mut items = Vec::new();
        if task.item(0).is_some() {
            for index in indices.iter() {
                let item = task.item(index)?;
                if bytes + item.len() + 5 > REQUEST_BYTES && !items.is_empty() {
                    break;
                }
                bytes += item.len() + 5;
                items.push(item.clone());
            }
        }
        let taken = match items.len() as u64 {
            0 => std::mem::take(indices),
            count => indices.take(count),
        };
        let batch = JobBatch {
            owner: work.owner.clone(),
            work: key.0,
            task: task.spec.name.clone(),
            attempt: key.2,
            indices: taken,
            items,
            spec,
        };
        Some((batch, bytes))
    }

    pub(super) fn on_answered(&mut self, n: u64, answer: Result<NodeAnswer, NoAnswer>) {
        let Some(asking) = self.asks.remove(&n) else { return };
        let id = asking.instance;
        self.dirty.insert(id);
        match (asking.what, answer) {
            (What::Held, Ok(NodeAnswer::Held(held))) if held.instance == id => {
                self.highest_told = self.highest_told.max(held.highest.epoch);
                self.on_held(id, n, held);
            }
            (What::Held, _) => {
                if let Some(instance) = self.instances.get_mut(&id)
                    && instance.held == Some(n)
                {
                    instance.held = None;
                    instance.recheck = true;
                }
            }
            (What::Jobs(asked), Ok(NodeAnswer::Jobs(answer))) => self.on_taken(id, asked, answer),
            (What::Jobs(asked), other) => {
                let wait_ms = match other {
                    Err(NoAnswer::Stale) => 0,
                    _ => self.settings.ask_again_s.ms,
                };
                self.ask_again(id, asked, wait_ms);
            }
            (What::Stop(keys), Ok(_)) => self.on_stop_heard(id, &keys),
            (What::Stop(keys), Err(_)) => {
                let at = self.now.at + self.settings.ask_again_s.ms;
                let Some(instance) = self.instances.get_mut(&id) else { return };
                for key in keys {
                    if let Some(jobs) = instance.jobs.get_mut(&key) {
                        jobs.stop_at = Some(at);
                        instance.restless.insert(key);
                    }
                }
            }
        }
    }

    fn on_taken(&mut self, id: InstanceId, asked: Vec<(JobKey, Indices)>, answer: JobsAnswer) {
        let Some(instance) = self.instances.get_mut(&id) else { return };
        for (key, indices) in &asked {
            let Some(jobs) = instance.jobs.get_mut(key) else { continue };
            let there = jobs.asking.intersection(indices);
            jobs.asking.remove_all(&there);
            jobs.taken.insert_all(&there);
        }
        for refused in answer.refused {
            let Some(work) = self.fold.work(refused.jobs.work) else { continue };
            let Some(at) = work.task_at(&refused.jobs.task) else { continue };
            let mut key = (refused.jobs.work, at, refused.jobs.attempt, 0);
            let Some((asked_key, indices)) =
                asked.iter().find(|(k, _)| (k.0, k.1, k.2) == (key.0, key.1, key.2))
            else {
                continue;
            };
            key.3 = asked_key.3;
            let indices = indices.intersection(&refused.jobs.indices);
            if let Some(instance) = self.instances.get_mut(&id) {
                instance.avoid_until = self.now.at + self.settings.ask_again_s.ms;
                if let Some(jobs) = instance.jobs.get_mut(&key) {
                    jobs.taken.remove_all(&indices);
                }
            }
            self.give_back(id, key, indices, &refused.why, None);
        }
    }

    fn ask_again(&mut self, id: InstanceId, asked: Vec<(JobKey, Indices)>, wait_ms: u64) {
        let at = self.now.at + wait_ms;
        let Some(instance) = self.instances.get_mut(&id) else { return };
        for (key, indices) in asked {
            let Some(jobs) = instance.jobs.get_mut(&key) else { continue };
            let mut again = jobs.asking.intersection(&indices);
            jobs.asking.remove_all(&again);
            again.remove_all(&jobs.ending.indices());
            if jobs.stop_at.is_some() {
                // Whether it came to be started, only `held` can tell.
                instance.recheck = true;
            } else {
                jobs.unasked.insert_all(&again);
                jobs.not_before = jobs.not_before.max(at);
                instance.restless.insert(key);
            }
        }
    }

    /// The node has been told. What it never said to have may not be there: `held` tells.
    fn on_stop_heard(&mut self, id: InstanceId, keys: &[JobKey]) {
        let Some(instance) = self.instances.get_mut(&id) else { return };
        let unsure = keys.iter().filter_map(|key| instance.jobs.get(key)).any(|jobs| {
            !jobs.indices.difference(&jobs.ending.indices()).difference(&jobs.taken).is_empty()
        });
        instance.recheck |= unsure;
    }

    fn on_held(&mut self, id: InstanceId, n: u64, answer: HeldAnswer) {
        // Its answer speaks about every question before this one.
        let earlier =
            |asking: &Asking| asking.instance == id && matches!(asking.what, What::Jobs(_));
        self.asks.retain(|other, asking| *other > n || !earlier(asking));
        let (held, foreign) = self.sort_held(id, answer);
        let Some(instance) = self.instances.get_mut(&id) else { return };
        if instance.held != Some(n) {
            return;
        }
        instance.held = None;
        instance.is_known = true;
        instance.foreign = !foreign.is_empty();
        let mut never = Vec::new();
        for (key, jobs) in &mut instance.jobs {
            let held = held.get(key).cloned().unwrap_or_default();
            jobs.taken = held.intersection(&jobs.indices);
            jobs.asking = Indices::new();
            let mut rest = jobs.indices.difference(&jobs.taken);
            rest.remove_all(&jobs.ending.indices());
            let stopping = self.fold.work(key.0).is_some_and(|work| work.is_stopping());
            if stopping {
                jobs.stop_at = Some(jobs.stop_at.unwrap_or(self.now.at));
                never.push((*key, rest));
            } else {
                jobs.unasked = rest.clone();
                jobs.never = rest;
            }
            instance.restless.insert(*key);
        }
        self.must_place = true;
        for (key, indices) in never {
            self.give_back(id, key, indices, "cancelled before it was started", None);
        }
        if !foreign.is_empty() {
            self.stop_foreign(id, foreign);
        }
    }

    /// What is held: what the journal knows as live there, and what it does not.
    fn sort_held(
        &self,
        id: InstanceId,
        answer: HeldAnswer,
    ) -> (BTreeMap<JobKey, Indices>, Vec<JobRef>) {
        let mut known: BTreeMap<JobKey, Indices> = BTreeMap::new();
        let mut foreign = Vec::new();
        for held in answer.jobs {
            let mut unknown = held.jobs.indices.clone();
            let place = self
                .fold
                .work(held.jobs.work)
                .and_then(|work| Some((work, work.task_at(&held.jobs.task)?)));
            if let Some((work, at)) = place {
                for &(a, b) in held.jobs.indices.ranges() {
                    for (a, b, live) in work.tasks[at].live.within(a, b) {
                        if live.instance == id
                            && live.attempt == held.jobs.attempt
                            && live.epoch <= held.epoch
                        {
                            let key = (held.jobs.work, at, live.attempt, live.epoch);
                            known.entry(key).or_default().insert_span(a, b);
                            unknown.remove_span(a, b);
                        }
                    }
                }
            }
            if !unknown.is_empty() && !held.ended {
                foreign.push(JobRef { indices: unknown, ..held.jobs });
            }
        }
        (known, foreign)
    }

    fn stop_foreign(&mut self, id: InstanceId, jobs: Vec<JobRef>) {
        let Some(node) = self.instances.get(&id).map(|instance| instance.node.clone()) else {
            return;
        };
        let ask = self.ask(id, What::Stop(Vec::new()));
        let request = NodeRequest::Stop(StopRequest { ask, jobs, why: StopWhy::Stale });
        self.out.push(Action::Ask { n: ask.n, node, request });
    }

    /// Whether there is something to ask, and whether somebody has been silent for too long.
    pub(super) fn look_at_nodes(&mut self) {
        let restless = self
            .instances
            .iter()
            .filter(|(_, i)| !i.restless.is_empty() || !i.is_known || i.foreign || i.recheck);
        self.dirty.extend(restless.map(|(id, _)| *id));
        // A node that was avoided or second may take jobs now; nobody says so but the clock.
        self.must_place |= self.classes.values().any(|class| !class.waiting.is_empty());
        let grace = self.settings.lost_grace_s.ms;
        let mut lost = Vec::new();
        for (id, instance) in &self.instances {
            let silence = self.silence_ms(instance);
            if instance.jobs.is_empty() || silence < grace {
                continue;
            }
            for (key, jobs) in &instance.jobs {
                if silence >= self.lease_ms(key.0, &jobs.live, silence) + grace {
                    lost.push((*id, *key, silence));
                }
            }
        }
        for (id, key, silence) in lost {
            let Some(jobs) = self.instances.get(&id).and_then(|i| i.jobs.get(&key)) else {
                continue;
            };
            let why = format!("{} was silent for {} s", jobs.live.node, silence / 1000);
            let indices = jobs.indices.clone();
            self.lose(id, key, indices, &why, None);
        }
    }

    /// How long an attempt may stay silent: what the work says, else a tenth of what it had run
    /// when the silence began, within limits.
    pub(super) fn lease_ms(&self, work: WorkId, live: &Live, silence_ms: u64) -> u64 {
        let said = self.fold.work(work).and_then(|work| work.spec.lost_after_s);
        said.map_or_else(
            || {
                let ran = self.now.wall.minus_ms(silence_ms).0.saturating_sub(live.at.0);
                let least = self.settings.lost_after_s.ms;
                (ran / 10).clamp(least, self.settings.lost_after_most_s.ms.max(least))
            },
            |said| said.ms,
        )
    }

    /// Forgets everything about jobs; the nodes themselves stay known.
    pub(super) fn forget_jobs(&mut self) {
        self.names.clear();
        self.instances.retain(|_, instance| instance.heard_at.is_some());
        for (id, instance) in &mut self.instances {
            self.names.entry(instance.node.clone()).or_default().insert((instance.since, *id));
            instance.is_known = false;
            instance.recheck = false;
            instance.held = None;
            instance.foreign = false;
            instance.ask_at = Millis(0);
            instance.used = Room::default();
            instance.count = 0;
            instance.shares.clear();
            instance.jobs.clear();
            instance.restless.clear();
            instance.contradictions = 0;
        }
    }

    pub(super) fn forget_old_nodes(&mut self) {
        let limit = self.settings.lost_after_s.ms * FORGET_AFTER;
        let old: Vec<InstanceId> = self
            .instances
            .iter()
            .filter(|(_, i)| i.jobs.is_empty() && i.count == 0 && self.silence_ms(i) > limit)
            .map(|(id, _)| *id)
            .collect();
        for id in old {
            let Some(instance) = self.instances.remove(&id) else { continue };
            if let Some(all) = self.names.get_mut(&instance.node) {
                all.remove(&(instance.since, id));
                if all.is_empty() {
                    self.names.remove(&instance.node);
                }
            }
        }
    }
}

impl Jobs {
    fn new(live: Arc<Live>) -> Self {
        Self {
            live,
            indices: Indices::new(),
            unasked: Indices::new(),
            never: Indices::new(),
            asking: Indices::new(),
            taken: Indices::new(),
            ending: Spans::default(),
            not_before: Millis(0),
            stop_at: None,
        }
    }
}
