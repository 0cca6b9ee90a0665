//! Reports to the acting scheduler: batched, one message at a time (the next grows meanwhile), said again
//! until they are answered by a scheduler that is not over.

use super::{Shared, ears::ToReport};
use crate::protocol::{Numbered, ToKeeper};
use bus::clock;
use schemas::{
    id::InstanceId,
    job::{Became, Report, ReportAnswer},
    subject,
    time::{Millis, Seconds},
};
use std::{collections::VecDeque, sync::Arc, time::Duration};
use tokio::sync::mpsc;

/// Largest message, by a cautious estimate.
const MESSAGE: usize = 700 * 1024;
/// How long an answer is waited for.
const PATIENCE: Duration = Duration::from_secs(10);
/// Before it is said again.
const PAUSE: Duration = Duration::from_millis(50);
const LONGEST_PAUSE: Duration = Duration::from_secs(2);

#[derive(Default)]
struct Queue {
    reports: VecDeque<(Millis, Numbered)>,
    failed: Vec<InstanceId>,
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

/// Reports for ever.
pub(super) async fn run(shared: Arc<Shared>, mut words: mpsc::UnboundedReceiver<ToReport>) {
    let subject = subject::report(&shared.settings.pool, &shared.node);
    let mut queue = Queue::default();
    let mut pause = PAUSE;
    loop {
        if queue.is_empty() {
            let Some(first) = words.recv().await else { return };
            queue.take(clock::at(), first);
        }
        while let Ok(more) = words.try_recv() {
            queue.take(clock::at(), more);
        }
        let (report, count) = queue.message(clock::at());
        if report.entries.is_empty() && report.failed.is_empty() {
            continue;
        }
        match shared.bus.ask::<ReportAnswer>(&subject, &report, PATIENCE).await {
            Ok(answer) if answer.epoch < shared.keeper.borrow().state.highest.epoch => {
                tracing::warn!(
                    epoch = answer.epoch,
                    "a report was answered by a scheduler that is over"
                );
                tokio::time::sleep(pause).await;
            }
            Ok(ReportAnswer { epoch, n }) => {
                let pair = schemas::job::Pair { epoch, n };
                answered(&shared, &mut queue, &mut words, &report, count, pair).await;
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

async fn answered(
    shared: &Shared,
    queue: &mut Queue,
    words: &mut mpsc::UnboundedReceiver<ToReport>,
    report: &Report,
    count: usize,
    pair: schemas::job::Pair,
) {
    // The keeper may have gone and come meanwhile; then these numbers mean nothing any more.
    while let Ok(more) = words.try_recv() {
        let reset = matches!(more, ToReport::Reset);
        queue.take(clock::at(), more);
        if reset {
            return;
        }
    }
    let ids: Vec<u64> = queue.reports.drain(..count).map(|(_, report)| report.id).collect();
    if !ids.is_empty() {
        shared.tell(ToKeeper::AckReports { ids, pair }).await;
    }
    if !report.failed.is_empty() {
        queue.failed.clear();
        let instances = report.failed.clone();
        shared.tell(ToKeeper::AckFailed { instances, pair }).await;
    }
}
