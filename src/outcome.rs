//! How jobs ended: in words, and as exit codes.

use crate::failure::exit;
use schemas::{
    outcome::{Ending, IndexState, Outcome, Summary, WorkState, reason},
    request::{Outcomes, Results},
};

/// What the exit code of a job is made of.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct End {
    pub(crate) state: IndexState,
    pub(crate) exit_code: Option<i32>,
    pub(crate) signal: Option<i32>,
    pub(crate) reason: Option<String>,
    pub(crate) started: bool,
}

impl From<&Ending> for End {
    fn from(e: &Ending) -> Self {
        Self {
            state: e.state,
            exit_code: e.exit_code,
            signal: e.signal,
            reason: e.reason.clone(),
            started: e.started_at.is_some(),
        }
    }
}

impl From<&Outcome> for End {
    fn from(o: &Outcome) -> Self {
        Self {
            state: o.state,
            exit_code: o.exit_code,
            signal: o.signal,
            reason: o.reason.clone(),
            started: o.started_at.is_some(),
        }
    }
}

impl End {
    /// The exit code that stands for it, as a shell would have it.
    pub(crate) fn code(&self) -> u8 {
        match self.reason.as_deref() {
            Some(reason::TIMEOUT) => return exit::TIMED_OUT,
            Some(reason::LOST | reason::NODE_LEFT) => return exit::LOST,
            _ => {}
        }
        if self.state == IndexState::Finished {
            return 0;
        }
        if self.state == IndexState::Cancelled && !self.started {
            return exit::CANCELLED;
        }
        match (self.exit_code, self.signal) {
            (Some(code), _) if code & 0xff != 0 => (code & 0xff) as u8,
            (_, Some(signal)) => 128_u8.saturating_add(signal.clamp(1, 127) as u8),
            _ if self.state == IndexState::Cancelled => exit::CANCELLED,
            _ if self.reason.as_deref() == Some(reason::NOT_STARTED) => 127,
            _ => exit::FAILED,
        }
    }
}

/// The exit code of a work with many jobs, or with none that ended.
pub(crate) fn work_code(state: WorkState) -> u8 {
    match state {
        WorkState::Finished => 0,
        WorkState::Refused => exit::REFUSED,
        _ => exit::FAILED,
    }
}

/// Whether a work consists of a single job.
pub(crate) fn is_single(summary: &Summary) -> bool {
    matches!(summary.tasks.as_slice(), [task] if task.total == 1)
}

/// The exit code of a work that has ended: that of its single job, or one for many.
pub(crate) async fn ended_code(
    house: &crate::client::House,
    summary: &Summary,
) -> anyhow::Result<u8> {
    if !is_single(summary) || !summary.state.is_ended() {
        return Ok(work_code(summary.state));
    }
    Ok(match single_outcome(house, summary).await? {
        Some(outcome) => End::from(&outcome).code(),
        None if summary.state == WorkState::Cancelled => exit::CANCELLED,
        None => work_code(summary.state),
    })
}

/// The outcome of a work's single job; `None` where there is none, or more than one job.
pub(crate) async fn single_outcome(
    house: &crate::client::House,
    summary: &Summary,
) -> anyhow::Result<Option<Outcome>> {
    if !is_single(summary) {
        return Ok(None);
    }
    let request = Results {
        work: summary.work.to_string(),
        task: None,
        from: None,
        limit: Some(1),
        only: None,
    };
    let page: Outcomes = house.patiently("results", &request, None).await?;
    Ok(page.items.into_iter().next())
}

/// Why something did not finish, from what is known of it.
pub(crate) fn said_why(
    why: Option<&str>,
    exit_code: Option<i32>,
    signal: Option<i32>,
) -> Option<String> {
    match (why, exit_code, signal) {
        (Some(why), ..) => Some(why.to_owned()),
        (None, Some(code), _) if code != 0 => Some(format!("exit code {code}")),
        (None, _, Some(signal)) => Some(format!("signal {signal}")),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn end(state: IndexState) -> End {
        End { state, exit_code: None, signal: None, reason: None, started: true }
    }

    fn because(state: IndexState, reason: &str) -> End {
        End { reason: Some(reason.to_owned()), ..end(state) }
    }

    #[test]
    fn a_job_ends_with_its_own_code_and_a_signal_with_128_more() {
        assert_eq!(end(IndexState::Finished).code(), 0);
        assert_eq!(End { exit_code: Some(3), ..end(IndexState::Failed) }.code(), 3);
        assert_eq!(End { exit_code: Some(127), ..end(IndexState::Failed) }.code(), 127);
        assert_eq!(End { signal: Some(9), ..end(IndexState::Failed) }.code(), 137);
        assert_eq!(End { signal: Some(15), ..end(IndexState::Cancelled) }.code(), 143);
    }

    #[test]
    fn a_failed_job_never_ends_with_zero() {
        assert_eq!(End { exit_code: Some(0), ..end(IndexState::Failed) }.code(), 1);
        assert_eq!(End { exit_code: Some(256), ..end(IndexState::Failed) }.code(), 1);
        assert_eq!(end(IndexState::Skipped).code(), 1);
    }

    #[test]
    fn what_the_house_did_has_codes_of_its_own() {
        let failed = IndexState::Failed;
        assert_eq!(End { signal: Some(9), ..because(failed, reason::TIMEOUT) }.code(), 124);
        assert_eq!(because(failed, reason::LOST).code(), 122);
        assert_eq!(because(failed, reason::NODE_LEFT).code(), 122);
        assert_eq!(because(failed, reason::NOT_STARTED).code(), 127);
        let missing = End { exit_code: Some(126), ..because(failed, reason::NOT_STARTED) };
        assert_eq!(missing.code(), 126);
        let early = End { started: false, ..because(IndexState::Cancelled, reason::CANCELLED) };
        assert_eq!(early.code(), 130);
    }

    #[test]
    fn of_many_it_is_zero_or_one() {
        assert_eq!(work_code(WorkState::Finished), 0);
        assert_eq!(work_code(WorkState::Failed), 1);
        assert_eq!(work_code(WorkState::Cancelled), 1);
        assert_eq!(work_code(WorkState::Refused), 121);
    }
}
