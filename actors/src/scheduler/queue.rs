//! What waits for a node, in order, and its way onto one.
//!
//! Tasks that need the same stand in one class: when the first of a class finds no room, the rest
//! of it is not looked at. So a step costs what has changed, not what waits.

use super::{
    appends::Entry,
    core::Core,
    place::{Shape, snugness},
};
use crate::journal::{Changes, Live, Task, TaskAt};
use schemas::{
    amount::Room,
    fact::{Assigned, AssignedEntry},
    id::{Attempt, InstanceId, Seq, WorkId},
    indices::Indices,
    job::JobSpec,
    time::Millis,
    work::Run,
};
use std::{
    cmp::Reverse,
    collections::{BTreeMap, BTreeSet},
    sync::Arc,
};

/// Names a task.
pub(super) type Key = (WorkId, TaskAt);

/// Who comes first: the higher priority, then who was accepted first, then as written.
pub(super) type Order = (Reverse<i32>, Seq, TaskAt, WorkId);

/// What a scheduler notes about a task beside the fold.
#[derive(Debug)]
pub(super) struct Local {
    pub(super) class: u32,
    /// Indices whose `assigned` is on its way.
    reserved: Indices,
    /// Indices whose pause before the next attempt is over.
    due: Indices,
    /// Moving average of how long it runs.
    pub(super) average_ms: Option<f64>,
    spec: Option<(Arc<JobSpec>, usize)>,
}

/// Tasks that need the same.
#[derive(Debug)]
pub(super) struct Class {
    pub(super) shape: Shape,
    text: String,
    tasks: usize,
    pub(super) waiting: BTreeSet<Order>,
    /// Who stands first and since when he finds no room.
    blocked: Option<(Order, Millis)>,
}

/// A node that is kept free for a task that finds no room.
#[derive(Clone, Copy)]
struct Withheld {
    priority: i32,
    always: bool,
}

impl Core {
    /// Takes up a work at the beginning of a reign.
    pub(super) fn take_up(&mut self, id: WorkId) {
        let Some(work) = self.fold.work(id) else { return };
        let mut queued = Vec::new();
        let mut live = Vec::new();
        for (at, task) in work.tasks.iter().enumerate() {
            if !task.ready.is_empty() || !task.delayed.is_empty() {
                queued.push(at);
            }
            let mut pieces: Vec<(Arc<Live>, Indices)> = Vec::new();
            for (a, b, one) in task.live.runs() {
                match pieces.last_mut() {
                    Some((same, indices)) if Arc::ptr_eq(same, one) => indices.insert_span(a, b),
                    _ => pieces.push((one.clone(), Indices::span(a, b))),
                }
            }
            if !pieces.is_empty() {
                live.push(((id, at), task.spec.room(), pieces));
            }
        }
        for (key, need, pieces) in live {
            self.take_up_live(key, &need, &pieces);
        }
        for at in queued {
            self.enqueue(id, at);
        }
    }

    /// Some indices of a task became ready, or wait before their next attempt.
    pub(super) fn enqueue(&mut self, work: WorkId, task: TaskAt) {
        self.local((work, task));
        self.note_due((work, task));
        self.refresh((work, task));
    }

    fn local(&mut self, key: Key) -> Option<&mut Local> {
        if !self.locals.contains_key(&key) {
            let task = &self.fold.work(key.0)?.tasks[key.1];
            let shape = Shape::of(&task.spec);
            let class = self.class_of(shape);
            let local = Local {
                class,
                reserved: Indices::new(),
                due: Indices::new(),
                average_ms: None,
                spec: None,
            };
            self.locals.insert(key, local);
        }
        self.locals.get_mut(&key)
    }

    fn class_of(&mut self, shape: Shape) -> u32 {
        let text = serde_json::to_string(&(&shape.need, shape.vram_mib, &shape.place))
            .expect("shapes have string keys only");
        let id = *self.class_ids.entry(text.clone()).or_insert_with(|| {
            self.next_class += 1;
            self.next_class
        });
        let class = self.classes.entry(id).or_insert_with(|| Class {
            shape,
            text,
            tasks: 0,
            waiting: BTreeSet::new(),
            blocked: None,
        });
        class.tasks += 1;
        id
    }

    /// The work has ended: nothing of it waits.
    pub(super) fn drop_locals(&mut self, work: WorkId) {
        let keys: Vec<Key> =
            self.locals.range((work, 0)..=(work, TaskAt::MAX)).map(|(key, _)| *key).collect();
        for key in keys {
            self.leave_queue(key);
            let Some(local) = self.locals.remove(&key) else { continue };
            let Some(class) = self.classes.get_mut(&local.class) else { continue };
            class.tasks -= 1;
            if class.tasks == 0 {
                self.class_ids.remove(&class.text);
                self.classes.remove(&local.class);
            }
        }
    }

    fn order(&self, key: Key) -> Option<Order> {
        let work = self.fold.work(key.0)?;
        Some((Reverse(work.spec.priority), work.seq, key.1, key.0))
    }

    fn leave_queue(&mut self, key: Key) {
        let Some(order) = self.order(key) else { return };
        if let Some(local) = self.locals.get(&key)
            && let Some(class) = self.classes.get_mut(&local.class)
        {
            class.waiting.remove(&order);
        }
    }

    /// Puts a task into the queue or takes it out, by whether anything of it could be placed.
    fn refresh(&mut self, key: Key) {
        let Some(order) = self.order(key) else { return };
        let waits = !self.pick(key, 1).is_empty();
        let Some(local) = self.locals.get(&key) else { return };
        let Some(class) = self.classes.get_mut(&local.class) else { return };
        if waits {
            class.waiting.insert(order);
            self.must_place = true;
        } else {
            class.waiting.remove(&order);
        }
    }

    /// Notes which pauses are over and when the next one will be.
    fn note_due(&mut self, key: Key) {
        let Some(work) = self.fold.work(key.0) else { return };
        let wall = self.now.wall;
        let mut next = None;
        let mut over = Indices::new();
        for (a, b, due) in work.tasks[key.1].delayed.runs() {
            if *due <= wall {
                over.insert_span(a, b);
            } else {
                next = Some(next.map_or(*due, |known: schemas::time::Stamp| known.min(*due)));
            }
        }
        if let Some(next) = next {
            self.due.insert((self.now.at + (next.0 - wall.0), key.0, key.1));
        }
        if let Some(local) = self.locals.get_mut(&key) {
            local.due = over;
        }
    }

    pub(super) fn wake_due(&mut self) {
        while let Some(&(at, work, task)) = self.due.first() {
            if at > self.now.at {
                return;
            }
            self.due.pop_first();
            if self.locals.contains_key(&(work, task)) {
                self.note_due((work, task));
                self.refresh((work, task));
            }
        }
    }

    /// At most so many indices that could be placed.
    fn pick(&self, key: Key, most: u64) -> Indices {
        let (Some(work), Some(local)) = (self.fold.work(key.0), self.locals.get(&key)) else {
            return Indices::new();
        };
        let task = &work.tasks[key.1];
        let mut out = pick_from(&task.ready, &local.reserved, most);
        if out.len() < most && !local.due.is_empty() {
            out.insert_all(&pick_from(&local.due, &local.reserved, most - out.len()));
        }
        out
    }

    fn waiting_count(&self, key: Key) -> u64 {
        let (Some(work), Some(local)) = (self.fold.work(key.0), self.locals.get(&key)) else {
            return 0;
        };
        (work.tasks[key.1].ready.len() + local.due.len()).saturating_sub(local.reserved.len())
    }

    /// An own `assigned` is folded: what it gave is no longer reserved but live, what it did not
    /// give is free.
    pub(super) fn settle_reservations(&mut self, fact: &Assigned, changes: &Changes) {
        let mut given: BTreeMap<(Key, Attempt, InstanceId), Indices> = BTreeMap::new();
        for one in &changes.given {
            let slot = ((one.work, one.task), one.live.attempt, one.live.instance);
            given.entry(slot).or_default().insert_all(&one.indices);
        }
        for entry in &fact.entries {
            let Some(at) = self.fold.work(entry.work).and_then(|w| w.task_at(&entry.task)) else {
                continue;
            };
            let key = (entry.work, at);
            let mut vain = entry.indices.clone();
            if let Some(given) = given.get(&(key, entry.attempt, entry.instance)) {
                vain.remove_all(given);
            }
            if !vain.is_empty()
                && let Some(instance) = self.instances.get_mut(&entry.instance)
            {
                instance.sub_share(key, vain.len());
                self.must_place = true;
            }
            if let Some(local) = self.locals.get_mut(&key) {
                local.reserved.remove_all(&entry.indices);
                local.due.remove_all(&entry.indices);
                if !vain.is_empty() {
                    self.note_due(key);
                    self.refresh(key);
                }
            }
        }
    }

    /// Gives what waits to nodes that have room, in order.
    pub(super) fn place(&mut self) {
        if !self.must_place || self.fold.paused().is_some() || !self.connected {
            return;
        }
        self.must_place = false;
        let takers: Vec<InstanceId> = self
            .instances
            .iter()
            .filter(|(id, instance)| self.takes_jobs(**id, instance))
            .map(|(id, _)| *id)
            .collect();
        if takers.is_empty() {
            return;
        }
        let mut withheld: BTreeMap<InstanceId, Withheld> = BTreeMap::new();
        let mut fitting: BTreeMap<u32, Vec<InstanceId>> = BTreeMap::new();
        let mut heads: BTreeSet<(Order, u32)> = self
            .classes
            .iter()
            .filter_map(|(id, class)| Some((*class.waiting.first()?, *id)))
            .collect();
        while let Some((order, class_id)) = heads.pop_first() {
            let key = (order.3, order.2);
            let class = &self.classes[&class_id];
            let nodes = fitting.entry(class_id).or_insert_with(|| {
                let fits = |id: &&InstanceId| {
                    let instance = &self.instances[*id];
                    class.shape.fits(&instance.node, &instance.offer).is_ok()
                };
                takers.iter().filter(fits).copied().collect()
            });
            let need = class.shape.need.clone();
            let done = self.place_task(key, &need, nodes, &withheld, order.0.0);
            let class = self.classes.get_mut(&class_id).expect("it was just looked at");
            if done {
                class.waiting.remove(&order);
                class.blocked = None;
                if let Some(next) = class.waiting.first() {
                    heads.insert((*next, class_id));
                }
                continue;
            }
            let since = match class.blocked {
                Some((same, since)) if same == order => since,
                _ => self.now.at,
            };
            class.blocked = Some((order, since));
            let waited = self.now.at.since(since) >= self.settings.reserve_after_s.ms;
            if need != Room::default() {
                self.withhold(nodes, &need, order.0.0, waited, &mut withheld);
            }
        }
    }

    /// Keeps the node that comes nearest to having room free from what comes later.
    fn withhold(
        &self,
        nodes: &[InstanceId],
        need: &Room,
        priority: i32,
        always: bool,
        withheld: &mut BTreeMap<InstanceId, Withheld>,
    ) {
        let free = nodes.iter().filter(|id| !withheld.contains_key(id));
        let nearest = free.min_by_key(|id| {
            let instance = &self.instances[*id];
            let free = instance.free();
            (
                need.cpus.milli.saturating_sub(free.cpus.milli),
                need.memory_mib.saturating_sub(free.memory_mib),
                need.gpus.saturating_sub(free.gpus),
                instance.node.clone(),
            )
        });
        if let Some(id) = nearest {
            withheld.insert(*id, Withheld { priority, always });
        }
    }

    /// Says whether everything of the task that waits was placed.
    fn place_task(
        &mut self,
        key: Key,
        need: &Room,
        nodes: &[InstanceId],
        withheld: &BTreeMap<InstanceId, Withheld>,
        priority: i32,
    ) -> bool {
        let needs_room = *need != Room::default();
        let open: Vec<InstanceId> = nodes
            .iter()
            .filter(|id| {
                let kept = withheld.get(id).is_some_and(|w| w.always || w.priority > priority);
                !needs_room || !kept
            })
            .copied()
            .collect();
        let mut waiting = self.waiting_count(key);
        while waiting > 0 {
            let Some((id, count, in_room)) = self.choose(key, need, &open, waiting) else {
                return false;
            };
            let picked = self.pick(key, count);
            if picked.is_empty() {
                return true;
            }
            let count = picked.len();
            waiting -= count.min(waiting);
            self.assign(key, need, id, picked, in_room.min(count));
        }
        self.pick(key, 1).is_empty()
    }

    /// Which node, how many indices, and for how many of them there is room now.
    fn choose(
        &self,
        key: Key,
        need: &Room,
        nodes: &[InstanceId],
        waiting: u64,
    ) -> Option<(InstanceId, u64, u64)> {
        let most = |id: &InstanceId| {
            self.settings.outstanding.saturating_sub(self.instances[id].count).min(waiting)
        };
        if *need == Room::default() {
            // Nothing is scarce: an even share for each, on the emptiest node first.
            let takers = nodes.iter().filter(|id| most(id) > 0);
            let id = takers.min_by_key(|id| {
                let i = &self.instances[*id];
                (i.offer.total.gpus > 0, i.count, &i.node)
            })?;
            let fair = waiting.div_ceil(nodes.len() as u64).max(64);
            let count = fair.min(most(id));
            return Some((*id, count, count));
        }
        let roomy = nodes
            .iter()
            .map(|id| (id, self.instances[id].free()))
            .filter(|(id, free)| most(id) > 0 && free.holds(need))
            .min_by(|(a, free_a), (b, free_b)| {
                let (a, b) = (&self.instances[*a], &self.instances[*b]);
                let snug = |i: &super::nodes::Instance, free: &Room| {
                    let (cards, gpus, cpus, memory, _) =
                        snugness(need, &i.offer.total, free, &i.node);
                    (cards, gpus, cpus, memory)
                };
                snug(a, free_a).cmp(&snug(b, free_b)).then_with(|| a.node.cmp(&b.node))
            });
        if let Some((id, free)) = roomy {
            let count = free.times(need, most(id));
            return Some((*id, count, count));
        }
        self.choose_ahead(key, nodes, waiting, most)
    }

    /// Short jobs may wait on the node, so that it has the next one when one ends: as many as it
    /// runs in [`super::Settings::ahead_s`].
    fn choose_ahead(
        &self,
        key: Key,
        nodes: &[InstanceId],
        waiting: u64,
        most: impl Fn(&InstanceId) -> u64,
    ) -> Option<(InstanceId, u64, u64)> {
        let ahead_ms = self.settings.ahead_s.ms as f64;
        let average_ms = self.locals.get(&key)?.average_ms.filter(|ms| *ms <= ahead_ms)?;
        let (id, allowed) = nodes
            .iter()
            .filter_map(|id| {
                let share = self.instances[id].shares.get(&key)?;
                let total = share.in_room as f64 * (1.0 + ahead_ms / average_ms);
                let allowed = (total as u64).saturating_sub(share.count).min(most(id));
                (allowed > 0).then_some((id, allowed))
            })
            .max_by_key(|(id, allowed)| (*allowed, Reverse(&self.instances[*id].node)))?;
        // Not all on one node while another might be done sooner.
        let fair = waiting.div_ceil(2 * nodes.len() as u64).max(1);
        Some((*id, allowed.min(fair), 0))
    }

    fn assign(&mut self, key: Key, need: &Room, id: InstanceId, picked: Indices, in_room: u64) {
        let instance = self.instances.get_mut(&id).expect("it was just chosen");
        instance.add_share(key, need, picked.len(), in_room);
        let node = instance.node.clone();
        let Some(work) = self.fold.work(key.0) else { return };
        let owner = work.owner.clone();
        let task = &work.tasks[key.1];
        let name = task.spec.name.clone();
        let groups = by_last_attempt(task, &picked);
        if let Some(local) = self.locals.get_mut(&key) {
            local.reserved.insert_all(&picked);
        }
        for (last, indices) in groups {
            let entry = AssignedEntry {
                work: key.0,
                task: name.clone(),
                indices,
                attempt: last + 1,
                node: node.clone(),
                instance: id,
            };
            self.put(&owner, Entry::Assigned(entry), None);
        }
    }

    /// What a node must know of a task, and about how many bytes that is.
    pub(super) fn job_spec(&mut self, key: Key) -> Option<(Arc<JobSpec>, usize)> {
        if let Some(known) = self.locals.get(&key).and_then(|local| local.spec.clone()) {
            return Some(known);
        }
        let work = self.fold.work(key.0)?;
        let task = &work.tasks[key.1].spec;
        let spec = JobSpec {
            run: task.run.clone(),
            array: task.array.is_some(),
            room: task.room(),
            vram_mib: task.resources.vram_mib,
            timeout_s: task.timeout_s,
            outputs: task.outputs.clone(),
            env_from_node: task.env_from_node.clone(),
            output: task.output.clone(),
            lost_after_s: work.spec.lost_after_s,
        };
        let text = |texts: &mut dyn Iterator<Item = &String>| -> usize {
            texts.map(|text| text.len() + 5).sum()
        };
        let bytes = 500
            + text(&mut spec.env_from_node.iter())
            + text(&mut spec.outputs.iter().flat_map(|o| [&o.name, &o.path]))
            + match &spec.run {
                Run::Echo(blob) => blob.len(),
                Run::Process(p) => {
                    text(&mut p.argv.iter())
                        + text(&mut p.env.iter().flat_map(|(a, b)| [a, b]))
                        + p.stdin.as_ref().map_or(0, |stdin| stdin.len())
                }
            };
        let made = (Arc::new(spec), bytes);
        if let Some(local) = self.local(key) {
            local.spec = Some(made.clone());
        }
        Some(made)
    }

    /// Learns how long a task runs.
    pub(super) fn learn(&mut self, key: Key, ran_ms: u64) {
        if let Some(local) = self.locals.get_mut(&key) {
            let ran_ms = (ran_ms as f64).max(0.5);
            let average = local.average_ms.map_or(ran_ms, |known| known * 0.8 + ran_ms * 0.2);
            local.average_ms = Some(average);
        }
    }
}

/// The first `most` of a set that are not reserved.
fn pick_from(all: &Indices, reserved: &Indices, most: u64) -> Indices {
    let mut out = Indices::new();
    let mut left = most;
    let taken = reserved.ranges();
    let mut next = 0;
    for &(a, b) in all.ranges() {
        let mut from = a;
        while left > 0 && from <= b {
            while next < taken.len() && taken[next].1 < from {
                next += 1;
            }
            let (gap_end, resume) = match taken.get(next) {
                Some(&(x, y)) if x <= from => {
                    match y.checked_add(1) {
                        Some(after) => from = after,
                        None => return out,
                    }
                    continue;
                }
                Some(&(x, _)) if x <= b => (x - 1, x),
                _ => (b, b.saturating_add(1)),
            };
            let size = u64::from(gap_end - from) + 1;
            let take = size.min(left);
            out.insert_span(from, from + (take - 1) as u32);
            left -= take;
            if resume <= from {
                break;
            }
            from = resume;
        }
        if left == 0 {
            break;
        }
    }
    out
}

/// Attempt numbers only grow, for each index by itself.
fn by_last_attempt(task: &Task, picked: &Indices) -> BTreeMap<Attempt, Indices> {
    let mut groups: BTreeMap<Attempt, Indices> = BTreeMap::new();
    let mut fresh = picked.clone();
    for &(a, b) in picked.ranges() {
        for (a, b, last) in task.last.within(a, b) {
            groups.entry(last.attempt).or_default().insert_span(a, b);
            fresh.remove_span(a, b);
        }
    }
    if !fresh.is_empty() {
        groups.entry(0).or_default().insert_all(&fresh);
    }
    groups
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_reserved_is_passed_over() {
        let mut random = fastrand::Rng::with_seed(3);
        for _ in 0..2000 {
            let set = |random: &mut fastrand::Rng| {
                (0..random.u32(0..5)).fold(Indices::new(), |mut all, _| {
                    let a = random.u32(0..30);
                    all.insert_span(a, a + random.u32(0..6));
                    all
                })
            };
            let (all, reserved) = (set(&mut random), set(&mut random));
            let most = random.u64(0..20);
            let expected = all.difference(&reserved).take(most);
            assert_eq!(pick_from(&all, &reserved, most), expected, "{all:?} {reserved:?} {most}");
        }
    }
}
