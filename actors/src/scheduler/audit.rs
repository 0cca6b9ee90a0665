//! What must hold of a scheduler's books after every step.

use super::core::Core;
use schemas::{amount::Room, indices::Indices};

impl Core {
    /// Nothing is on its way and nothing is held.
    pub(super) fn is_idle(&self) -> bool {
        self.acting.is_some()
            && self.appends.are_done()
            && self.reports.is_empty()
            && self.locals.is_empty()
            && self.instances.values().all(|i| i.jobs.is_empty() && i.count == 0)
    }

    /// Checks the books against the fold.
    pub(super) fn audit(&self) -> Result<(), String> {
        if self.acting.is_none() {
            return Ok(());
        }
        for (id, i) in &self.instances {
            let mut used = Room::default();
            let mut count = 0;
            for share in i.shares.values() {
                count += share.count;
                if share.in_room > share.count {
                    return Err(format!("{id}: more in room than there is: {share:?}"));
                }
            }
            for (key, share) in &i.shares {
                let need = self.fold.work(key.0).map(|w| w.tasks[key.1].spec.room());
                used.add(&need.unwrap_or_default(), share.in_room);
            }
            if used.cpus != i.used.cpus || count != i.count {
                return Err(format!("{id}: used {used} is noted as {}", i.used));
            }
            for (key, jobs) in &i.jobs {
                let task = &self.fold.work(key.0).ok_or("a job of no work")?.tasks[key.1];
                let mut live = Indices::new();
                for (a, b, one) in task.live.runs() {
                    if one.instance == *id && (one.attempt, one.epoch) == (key.2, key.3) {
                        live.insert_span(a, b);
                    }
                }
                if live != jobs.indices {
                    return Err(format!("{id}: {key:?} {:?} but live {live:?}", jobs.indices));
                }
                let share = i.shares.get(&(key.0, key.1)).map_or(0, |share| share.count);
                if share < live.len() {
                    return Err(format!("{id}: {key:?} has {share} of {}", live.len()));
                }
            }
        }
        for id in self.fold.active() {
            let Some(work) = self.fold.work(*id) else { continue };
            for (at, task) in work.tasks.iter().enumerate() {
                for (a, b, one) in task.live.runs() {
                    let known = self
                        .instances
                        .get(&one.instance)
                        .and_then(|i| i.jobs.get(&(*id, at, one.attempt, one.epoch)))
                        .is_some_and(|jobs| jobs.indices.contains_all(&Indices::span(a, b)));
                    if !known {
                        return Err(format!("{id} {at} {a}-{b} is live but on no node's books"));
                    }
                }
            }
        }
        Ok(())
    }
}
