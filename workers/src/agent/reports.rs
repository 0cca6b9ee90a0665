//! Reports to the acting scheduler: batched, one message at a time (the next grows meanwhile), said again
//! until they are answered by a scheduler that is not over. What was answered stays with the keeper until it
//! is settled: until the bus was heard so long after the answer that it cannot have forgotten it.

use super::{Shared, ears::ToReport};
use crate::protocol::{Numbered, ToKeeper};
use bus::{Connection, clock};
use schemas::{
    id::InstanceId,
    job::{Became, Pair, Report, ReportAnswer},
    subject,
    time::{Millis, Seconds},
};
use std::{collections::VecDeque, sync::Arc, time::Duration};
use tokio::sync::{mpsc, watch};

/// Largest message, by a cautious estimate.
const MESSAGE: usize = 700 * 1024;
/// How long an answer is waited for.
const PATIENCE: Duration = Duration::from_secs(10);
/// Before it is said again.
const PAUSE: Duration = Duration::from_millis(50);
const LONGEST_PAUSE: Duration = Duration::from_secs(2);
/// What is settled is let go of together, at most so often.
const LOOK_MS: u64 = 250;

/// Answered reports that are not settled, by the same estimate: with single jobs some 2,000 a second.
/// Half of the keeper's window, so that the other half is free for what comes. Beyond it the oldest
/// are let go early.
const UNSETTLED: usize = 2 * 1024 * 1024;

#[derive(Default)]
struct Queue {
    reports: VecDeque<(Millis, Numbered)>,
    failed: Vec<InstanceId>,
    /// Answered, and still with the keeper, which counts them as ended when it is asked what it
    /// holds: a scheduler that has lost the answer's facts asks for none of these jobs again.
    unsettled: VecDeque<Unsettled>,
    unsettled_bytes: usize,
}

struct Unsettled {
    answered: Millis,
    since: Millis,
    report: Numbered,
}

impl Queue {
    fn take(&mut self, now: Millis, words: ToReport) {
        match words {
            ToReport::Reports(reports) => {
                self.reports.extend(reports.into_iter().map(|report| (now, report)));
            }
            ToReport::Failed(instances) => self.failed.extend(instances),
            ToReport::Reset => *self = Self::default(),
        }
    }

    fn is_empty(&self) -> bool {
        self.reports.is_empty() && self.failed.is_empty()
    }

    /// The first `count` were answered.
    fn answered(&mut self, now: Millis, count: usize) {
        for (since, report) in self.reports.drain(..count) {
            self.unsettled_bytes += weight(&report);
            self.unsettled.push_back(Unsettled { answered: now, since, report });
        }
    }

    /// When the oldest may be settled.
    fn due(&self, after_ms: u64) -> Option<Millis> {
        self.unsettled.front().map(|oldest| oldest.answered + after_ms)
    }

    /// Lets go of those that were answered no later than `until`, and of what is too much.
    fn settled(&mut self, until: Option<Millis>) -> Vec<u64> {
        let mut ids = Vec::new();
        while let Some(oldest) = self.unsettled.front()
            && (until.is_some_and(|until| oldest.answered <= until)
                || self.unsettled_bytes > UNSETTLED)
        {
            self.unsettled_bytes -= weight(&oldest.report);
            ids.extend(self.unsettled.pop_front().map(|oldest| oldest.report.id));
        }
        ids
    }

    /// The bus was away and may have forgotten: what is not settled is said again, before the rest.
    fn again(&mut self) {
        self.unsettled_bytes = 0;
        for Unsettled { since, report, .. } in self.unsettled.drain(..).rev() {
            self.reports.push_front((since, report));
        }
    }

    /// The next message: what fits, oldest first, and how many of the queue that is.
    fn message(&self, now: Millis) -> (Report, usize) {
        let (mut entries, mut bytes) = (Vec::new(), 0);
        for (since, report) in &self.reports {
            bytes += weight(report);
            if bytes > MESSAGE && !entries.is_empty() {
                break;
            }
            let mut entry = report.entry.clone();
            entry.ago_s = Seconds::from_ms(entry.ago_s.ms + now.since(*since));
            entries.push(entry);
        }
        let count = entries.len();
        // Only behind all of a failed instance's reports.
        let failed = if count == self.reports.len() { self.failed.clone() } else { Vec::new() };
        (Report { entries, failed }, count)
    }
}

/// About how many bytes a report takes.
fn weight(report: &Numbered) -> usize {
    let entry = &report.entry;
    let became = match &entry.became {
        Became::Ended(ending) => {
            let outputs = ending.outputs.iter().map(|(name, blob)| name.len() + blob.len() + 16);
            ending.stdout.len()
                + ending.stderr.len()
                + outputs.sum::<usize>()
                + 300
                + ending.why.as_ref().map_or(0, String::len)
        }
        Became::Returned { why } | Became::Lost { why } => why.len() + 16,
    };
    became + 11 * entry.jobs.indices.ranges().len() + 320
}

struct Reporter {
    shared: Arc<Shared>,
    queue: Queue,
    words: mpsc::UnboundedReceiver<ToReport>,
    connection: watch::Receiver<Connection>,
    /// In which connection all of `unsettled` was answered.
    made: u64,
    /// Of the last answer.
    pair: Pair,
}

/// Reports for ever.
pub(super) async fn run(shared: Arc<Shared>, words: mpsc::UnboundedReceiver<ToReport>) {
    let connection = shared.bus.connection();
    let made = connection.borrow().made;
    let queue = Queue::default();
    let pair = Pair::default();
    let mut reporter = Reporter { shared, queue, words, connection, made, pair };
    let subject = subject::report(&reporter.shared.settings.pool, &reporter.shared.node);
    let mut pause = PAUSE;
    while reporter.has_something().await {
        let (report, count) = reporter.queue.message(clock::at());
        if report.entries.is_empty() && report.failed.is_empty() {
            continue;
        }
        let shared = &reporter.shared;
        match shared.bus.ask::<ReportAnswer>(&subject, &report, PATIENCE).await {
            Ok(answer) if answer.epoch < shared.keeper.borrow().state.highest.epoch => {
                tracing::warn!(
                    epoch = answer.epoch,
                    "a report was answered by a scheduler that is over"
                );
                tokio::time::sleep(pause).await;
            }
            Ok(ReportAnswer { epoch, n }) => {
                reporter.answered(&report, count, Pair { epoch, n }).await;
                pause = PAUSE;
                continue;
            }
            Err(error) => {
                tracing::debug!(%error, "a report is not answered");
                // A connection or a scheduler that comes back is reason enough to try at once.
                let mut connection = shared.bus.connection();
                connection.mark_unchanged();
                tokio::select! {
                    () = tokio::time::sleep(pause) => {}
                    _ = connection.changed() => {}
                    () = shared.report_now.notified() => {}
                }
            }
        }
        pause = (pause * 2).min(LONGEST_PAUSE).mul_f64(0.8 + 0.4 * fastrand::f64());
    }
}

impl Reporter {
    /// Waits until there is something to report, and settles what is due; says whether there will
    /// ever be anything.
    async fn has_something(&mut self) -> bool {
        loop {
            while let Ok(more) = self.words.try_recv() {
                self.queue.take(clock::at(), more);
            }
            let now = *self.connection.borrow_and_update();
            if now.made != self.made {
                self.made = now.made;
                self.queue.again();
            }
            self.settle().await;
            if !self.queue.is_empty() {
                return true;
            }
            let due = self.queue.due(self.settled_after_ms());
            let is_kept = due.is_some();
            let due_ms = due.map_or(0, |due| due.since(clock::at()).max(LOOK_MS));
            let mut keeper = self.shared.keeper.subscribe();
            tokio::select! {
                next = self.words.recv() => match next {
                    Some(next) => self.queue.take(clock::at(), next),
                    None => return false,
                },
                Ok(()) = self.connection.changed(), if is_kept => {}
                () = tokio::time::sleep(Duration::from_millis(due_ms)), if is_kept => {}
                _ = keeper.wait_for(|keeper| keeper.state.leaving), if is_kept => {}
            }
        }
    }

    fn settled_after_ms(&self) -> u64 {
        u64::try_from(self.shared.settings.settled_after.as_millis()).unwrap_or(u64::MAX)
    }

    /// Tells the keeper of what the bus will not forget any more. A node that leaves does not wait
    /// for that.
    async fn settle(&mut self) {
        let now = clock::at();
        let is_leaving = self.shared.keeper.borrow().state.leaving;
        let until = match self.queue.due(self.settled_after_ms()) {
            None => return,
            Some(_) if is_leaving => Some(now),
            // Only what is heard now is known to be there.
            Some(due) if due <= now && self.shared.bus.flush().await.is_ok() => {
                let same = self.connection.borrow().made == self.made;
                same.then(|| Millis(now.0.saturating_sub(self.settled_after_ms())))
            }
            Some(_) => None,
        };
        let ids = self.queue.settled(until);
        if !ids.is_empty() {
            self.shared.tell(ToKeeper::AckReports { ids, pair: self.pair }).await;
        }
    }

    async fn answered(&mut self, report: &Report, count: usize, pair: Pair) {
        // The keeper may have gone and come meanwhile; then these numbers mean nothing any more.
        while let Ok(more) = self.words.try_recv() {
            let reset = matches!(more, ToReport::Reset);
            self.queue.take(clock::at(), more);
            if reset {
                return;
            }
        }
        self.pair = pair;
        if count > 0 {
            self.queue.answered(clock::at(), count);
            // The pair counts from now on.
            self.shared.tell(ToKeeper::AckReports { ids: Vec::new(), pair }).await;
        }
        if !report.failed.is_empty() {
            self.queue.failed.clear();
            let instances = report.failed.clone();
            self.shared.tell(ToKeeper::AckFailed { instances, pair }).await;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use schemas::{
        indices::Indices,
        job::{JobRef, ReportEntry},
        token::{OwnerName, TaskName},
    };

    fn report(id: u64, why: &str) -> Numbered {
        let jobs = JobRef {
            work: schemas::id::WorkId(uuid::Uuid::from_u128(1)),
            task: TaskName::main(),
            attempt: 1,
            indices: Indices::one(u32::try_from(id).unwrap()),
        };
        let entry = ReportEntry {
            owner: OwnerName::owner(),
            jobs,
            epoch: 3,
            instance: InstanceId(uuid::Uuid::from_u128(2)),
            became: Became::Lost { why: why.to_owned() },
            ago_s: Seconds::default(),
        };
        Numbered { id, entry }
    }

    fn said(queue: &Queue) -> Vec<u64> {
        queue.reports.iter().map(|(_, report)| report.id).collect()
    }

    #[test]
    fn what_was_answered_shortly_before_a_break_is_said_again_first() {
        let mut queue = Queue::default();
        let reports = (1..=4).map(|id| report(id, "")).collect();
        queue.take(Millis(0), ToReport::Reports(reports));
        queue.answered(Millis(100), 1);
        queue.answered(Millis(2000), 2);
        assert_eq!(queue.due(3000), Some(Millis(3100)));
        assert_eq!(queue.settled(Some(Millis(100))), [1]);
        assert_eq!(queue.settled(Some(Millis(1999))), [0; 0]);
        queue.again();
        assert_eq!(said(&queue), [2, 3, 4]);
        assert_eq!((queue.due(3000), queue.unsettled_bytes), (None, 0));
        let (message, _) = queue.message(Millis(500));
        assert_eq!(message.entries[0].ago_s, Seconds::from_ms(500));
        queue.answered(Millis(9000), 3);
        assert_eq!(queue.settled(Some(Millis(9000))), [2, 3, 4]);
    }

    #[test]
    fn what_is_kept_is_bounded_and_the_oldest_goes_first() {
        let mut queue = Queue::default();
        let long = "x".repeat(100_000);
        queue.take(Millis(0), ToReport::Reports((0..50).map(|id| report(id, &long)).collect()));
        queue.answered(Millis(1), 50);
        let early = queue.settled(None);
        assert!(queue.unsettled_bytes <= UNSETTLED && queue.unsettled.len() > 15);
        assert_eq!(early, (0..50 - queue.unsettled.len() as u64).collect::<Vec<_>>());
        queue.take(Millis(2), ToReport::Reset);
        assert_eq!((queue.due(1), queue.unsettled_bytes), (None, 0));
    }
}
