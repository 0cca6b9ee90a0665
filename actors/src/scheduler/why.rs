//! Why it waits, was placed there, or failed: the same sentence wherever somebody asks.

use super::{core::Core, nodes::Instance, place::nearest_miss, queue::Key};
use crate::journal::{Task, Work};
use schemas::{
    id::{InstanceId, WorkId},
    node::{NodeState, NodeView},
    outcome::{IndexState, Summary, WorkState},
    request::Explained,
    time::Millis,
    token::{NodeName, TaskName},
};

/// An open work without an `append` for so long says so.
const OPEN_SILENCE_MS: u64 = 10 * 60 * 1000;

impl Core {
    /// How a work stands, with the reason why it waits.
    pub fn summary(&self, id: WorkId) -> Option<Summary> {
        let mut summary = self.fold.summary(id)?;
        if summary.why.is_none()
            && let Some(work) = self.fold.work(id)
        {
            summary.why = self.why_not_done(work);
        }
        Some(summary)
    }

    /// Why a work has not ended, where there is more to say than that it runs.
    fn why_not_done(&self, work: &Work) -> Option<String> {
        if work.state.is_ended() {
            return None;
        }
        if work.is_stopping() {
            return Some("it is being stopped: jobs of it still run".to_owned());
        }
        let open_ms = self.now.wall.0.saturating_sub(work.appended_at.0);
        if work.open && open_ms > OPEN_SILENCE_MS {
            return Some(format!(
                "it is open and nothing was appended for {} min: close it, or it fails",
                open_ms / 60_000
            ));
        }
        if work.state == WorkState::Running && work.has_live() {
            return (0..work.tasks.len()).find_map(|at| self.silent_nodes((work.id, at)).pop());
        }
        let waits = work.tasks.iter().position(|task| !task.is_ended())?;
        // What can start says more than what waits for it.
        let at = work
            .tasks
            .iter()
            .position(|task| !task.ready.is_empty() || !task.delayed.is_empty())
            .unwrap_or(waits);
        self.why_waits(work, at)
    }

    /// Why a task does not run (further).
    fn why_waits(&self, work: &Work, at: usize) -> Option<String> {
        let task = &work.tasks[at];
        let name = &task.spec.name;
        if !task.waiting.is_empty() {
            let needed: Vec<&str> = task
                .needs
                .iter()
                .filter(|n| work.tasks[**n].state() != IndexState::Finished)
                .map(|n| work.tasks[*n].spec.name.as_str())
                .collect();
            return Some(format!("`{name}` needs `{}`", needed.join("`, `")));
        }
        if task.ready.is_empty() {
            if let Some((index, _, due)) = task.delayed.runs().min_by_key(|(_, _, due)| **due) {
                let left = due.0.saturating_sub(self.now.wall.0).div_ceil(1000);
                let what = match task.spec.array {
                    Some(_) => format!("`{name}` index {index}"),
                    None => format!("`{name}`"),
                };
                return Some(match left {
                    0 => self.why_no_room((work.id, at)),
                    _ => format!("{what} is tried again in {left} s"),
                });
            }
            if work.open && task.spec.array.is_some() {
                return Some(format!("`{name}` waits for more items, or for the close"));
            }
            return None;
        }
        Some(self.why_no_room((work.id, at)))
    }

    /// What is to be said of the nodes that have jobs of a task and are not heard.
    fn silent_nodes(&self, key: Key) -> Vec<String> {
        let mut said = Vec::new();
        for instance in self.instances.values() {
            let silence_ms = self.silence_ms(instance);
            if silence_ms < self.settings.silent_after_s.ms {
                continue;
            }
            let held =
                instance.jobs.range((key.0, key.1, 0, 0)..=(key.0, key.1, u32::MAX, u64::MAX));
            let leases = held.map(|(_, jobs)| self.lease_ms(key.0, &jobs.live, silence_ms));
            let Some(lease_ms) = leases.min() else { continue };
            let lost_ms = lease_ms + self.settings.lost_grace_s.ms;
            said.push(format!(
                "{} was not heard for {} s; its jobs are given up after {} s of silence",
                instance.node,
                silence_ms / 1000,
                lost_ms.div_ceil(1000)
            ));
        }
        said
    }

    /// Why what could start has not been given to a node.
    fn why_no_room(&self, key: Key) -> String {
        if let Some(by) = self.fold.paused() {
            return format!("the pool is paused (by {by})");
        }
        if self.acting.is_none() {
            return "no scheduler acts for this pool".to_owned();
        }
        let alive: Vec<(&InstanceId, &Instance)> = self
            .instances
            .iter()
            .filter(|(_, i)| i.gone.is_none() && i.heard_at.is_some() && self.is_heard(i))
            .collect();
        if alive.is_empty() {
            return format!("no node of the pool {} is up", self.pool);
        }
        let Some(local) = self.locals.get(&key) else { return "it is about to start".to_owned() };
        let shape = &self.classes[&local.class].shape;
        let miss = nearest_miss(shape, alive.iter().map(|(_, i)| (&i.node, &i.offer)));
        if let Some((node, why)) = miss {
            return format!("no node that is up could run it; nearest: {node} {why}");
        }
        let fits: Vec<&(&InstanceId, &Instance)> =
            alive.iter().filter(|(_, i)| shape.fits(&i.node, &i.offer).is_ok()).collect();
        let drained = |i: &Instance| self.fold.drained().contains_key(&i.node);
        if fits.iter().all(|(_, i)| drained(i)) {
            let names: Vec<&str> = fits.iter().map(|(_, i)| i.node.as_str()).collect();
            return format!("every node that could run it is drained ({})", names.join(", "));
        }
        let closed = |i: &Instance| i.closing || drained(i);
        if let Some((_, one)) = fits.iter().find(|(_, i)| i.closing)
            && fits.iter().all(|(_, i)| closed(i))
        {
            return match fits.len() {
                1 => format!("{} is leaving", one.node),
                _ => format!("every node that could run it is drained or leaving, as {}", one.node),
            };
        }
        let takes: Vec<&Instance> =
            fits.iter().filter(|(id, i)| self.takes_jobs(**id, i)).map(|(_, i)| *i).collect();
        let Some(nearest) = takes.iter().min_by_key(|i| (i.free().distance(&shape.need), &i.node))
        else {
            return "the nodes that could run it are just joining, or refused it".to_owned();
        };
        let short = nearest.free().short_of(&shape.need);
        if short.is_empty() {
            "it is about to start, or something of higher order keeps a node free".to_owned()
        } else {
            format!("no node has room; nearest: {} lacks {short} now", nearest.node)
        }
    }

    /// Why a work, or one task of it, stands as it does.
    pub(super) fn explain_work(&self, work: &Work, only: Option<&TaskName>) -> Explained {
        let mut more = Vec::new();
        for (at, task) in work.tasks.iter().enumerate() {
            if only.is_some_and(|only| *only != task.spec.name) {
                continue;
            }
            let name = &task.spec.name;
            for silent in self.silent_nodes((work.id, at)) {
                if !more.contains(&silent) {
                    more.push(silent);
                }
            }
            if task.running > 0 {
                let mut nodes: Vec<(&NodeName, u64)> = Vec::new();
                for (a, b, live) in task.live.runs() {
                    let count = u64::from(b - a) + 1;
                    match nodes.iter_mut().find(|(node, _)| **node == live.node) {
                        Some((_, known)) => *known += count,
                        None => nodes.push((&live.node, count)),
                    }
                }
                for (node, count) in nodes {
                    more.push(format!("`{name}`: {count} on {node}{}", self.why_there(work, at)));
                }
            }
            for (_, _, tries) in task.tries.runs().take(1) {
                more.push(format!(
                    "`{name}`: tried in vain: {} failed, {} lost, {} returned by a node",
                    tries.failed, tries.lost, tries.returned
                ));
            }
            for failure in &task.first_failures {
                let on = failure.node.as_ref().map_or(String::new(), |node| format!(" on {node}"));
                let why = failure.why.as_deref().unwrap_or("no reason was given");
                more.push(format!("`{name}` index {} failed{on}: {why}", failure.index));
            }
            let waits = !task.is_ended() && task.running == 0;
            if let Some(why) = waits.then(|| self.why_waits(work, at)).flatten() {
                more.push(why);
            }
            // The same words as in `results`.
            let unrun = [&task.skipped, &task.cancelled].into_iter().find_map(|set| set.min());
            if let Some(why) = unrun.and_then(|index| work.unrun(at, index)?.why) {
                more.push(match only {
                    Some(_) => why,
                    None => format!("`{name}` did not run: {why}"),
                });
            }
            if task.state() == IndexState::Finished {
                let told = finished_where(&[task]);
                more.push(match only {
                    Some(_) => format!("it {told}"),
                    None => format!("`{name}` {told}"),
                });
            }
        }
        let why = match only {
            Some(_) => more.first().cloned(),
            None if work.state == WorkState::Finished => {
                let tasks: Vec<&Task> = work.tasks.iter().collect();
                if let [_] = tasks[..] {
                    more.clear();
                }
                let at = work.ended_at.map_or(String::new(), |at| format!(", at {at}"));
                Some(format!("it {}{at}", finished_where(&tasks)))
            }
            None => work.why.clone().or_else(|| self.why_not_done(work)),
        };
        let why = why.or_else(|| more.first().cloned()).unwrap_or_else(|| {
            let task = only.and_then(|name| work.task(name)).map(Task::state);
            match (task, work.state) {
                (Some(state), _) => format!("it is {state}"),
                (None, WorkState::Running) => "it runs".to_owned(),
                (None, state) => format!("it is {state}"),
            }
        });
        more.retain(|one| *one != why);
        Explained { why, more }
    }

    fn why_there(&self, work: &Work, at: usize) -> String {
        let task = &work.tasks[at].spec;
        let place = &task.place;
        if place.node.is_some() {
            return ", because the task names it".to_owned();
        }
        let need = task.room();
        let mut why = format!(", the node with room for {need} that it fits most snugly");
        if place.site.is_some() {
            why.push_str(" at the site that the task names");
        }
        why
    }

    /// Why a node stands as it does.
    pub(super) fn explain_node(&self, node: &NodeName) -> Option<Explained> {
        let view = self.view(node)?;
        let state = view.state.as_str();
        let why = match &view.why {
            Some(why) => format!("{node} is {state}: {why}"),
            None => format!("{node} is {state}"),
        };
        let more = vec![
            format!("it lends {}", view.total),
            format!("{} jobs there take {}", view.jobs, view.used),
        ];
        Some(Explained { why, more })
    }

    /// Every node that is known, by name.
    pub(super) fn views(&self) -> Vec<NodeView> {
        self.names.keys().filter_map(|node| self.view(node)).collect()
    }

    fn view(&self, node: &NodeName) -> Option<NodeView> {
        let all = self.names.get(node)?;
        let instances = || all.iter().filter_map(|(_, id)| Some((*id, self.instances.get(id)?)));
        let heard = |i: &Instance| i.heard_at.is_some();
        // The one that gets the jobs stands for the name, else the newest.
        let (id, instance) = instances()
            .find(|(id, i)| self.takes_jobs(*id, i))
            .or_else(|| {
                instances().rfind(|(_, i)| heard(i) && i.gone.is_none() && self.is_heard(i))
            })
            .or_else(|| instances().rfind(|(_, i)| heard(i)))?;
        let (state, why) = self.node_state(id, instance);
        Some(NodeView {
            node: node.clone(),
            pool: self.pool.clone(),
            site: instance.offer.site.clone(),
            state,
            why,
            kind: if instance.offer.total.gpus > 0 { "tensor" } else { "cpu" }.to_owned(),
            instance: id,
            total: instance.offer.total.clone(),
            used: instance.used.clone(),
            jobs: instances()
                .flat_map(|(_, i)| i.jobs.values())
                .map(|jobs| jobs.indices.len())
                .sum(),
            inventory: instance.inventory.clone(),
            heard_at: instance.heard_wall,
            clock_ahead_s: instance.clock_ahead_ms as f64 / 1000.0,
            version: instance.version.clone(),
        })
    }

    fn node_state(&self, id: InstanceId, i: &Instance) -> (NodeState, Option<String>) {
        if let Some(why) = i.gone {
            let state = if why == "it has left" { NodeState::Left } else { NodeState::Lost };
            return (state, Some(why.to_owned()));
        }
        let silence_ms = self.now.at.since(i.heard_at.unwrap_or(Millis(0)));
        if !self.is_heard(i) {
            let why = Some(format!("it was not heard for {} s", silence_ms / 1000));
            let over = silence_ms >= self.settings.lost_after_s.ms + self.settings.lost_grace_s.ms;
            return (if over { NodeState::Lost } else { NodeState::Silent }, why);
        }
        if let Some(by) = self.fold.drained().get(&i.node) {
            return (NodeState::Drained, Some(format!("{by} drained it")));
        }
        if i.closing {
            return (NodeState::Drained, Some(format!("{} is leaving", i.node)));
        }
        if self.acting.is_none() {
            return (NodeState::Joining, Some("no scheduler acts for this pool".to_owned()));
        }
        if self.is_second(id, i) {
            let why = "another machine with this name is, or may still be, alive";
            return (NodeState::Joining, Some(why.to_owned()));
        }
        if i.foreign {
            let why = "it still runs jobs that were given up; they are being stopped";
            return (NodeState::Joining, Some(why.to_owned()));
        }
        if !i.is_known {
            return (NodeState::Joining, Some("it has not yet said what it holds".to_owned()));
        }
        if i.clock_ahead_ms.abs() > 5000 {
            let off = i.clock_ahead_ms / 1000;
            return (NodeState::Ready, Some(format!("its clock is {off} s ahead of the bus's")));
        }
        (NodeState::Ready, None)
    }
}

/// Where tasks finished: `finished on vm`, `finished: 30 on vm, 33 on second`.
fn finished_where(tasks: &[&Task]) -> String {
    let mut nodes: Vec<(&NodeName, u64)> = Vec::new();
    for (a, b, last) in tasks.iter().flat_map(|task| task.last.runs()) {
        let count = u64::from(b - a) + 1;
        match nodes.iter_mut().find(|(node, _)| **node == last.node) {
            Some((_, known)) => *known += count,
            None => nodes.push((&last.node, count)),
        }
    }
    match &nodes[..] {
        [] => "finished".to_owned(),
        [(node, _)] => format!("finished on {node}"),
        several => {
            let each: Vec<String> =
                several.iter().map(|(node, count)| format!("{count} on {node}")).collect();
            format!("finished: {}", each.join(", "))
        }
    }
}
