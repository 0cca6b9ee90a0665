//! Cancel and retry: they name the round they mean and are done once.

use super::{Core, PATIENCE_MS, Purpose, Ticket, WriteError, write_refusal};
use crate::journal::Work;
use schemas::{
    error::{Refusal, code},
    fact::{CancelAsked, Fact, RetryAsked},
    id::{RequestId, Seq, WorkId},
    request::Change,
    subject,
    time::Millis,
    token::{CallerName, PoolName},
};

/// A cancel or retry that the fold does not show yet.
#[derive(Clone, Debug)]
pub(super) struct Changing {
    ticket: Ticket,
    pool: PoolName,
    work: WorkId,
    request: RequestId,
    round: u32,
    retry: bool,
    since: Millis,
}

impl Core {
    pub(super) fn change(
        &mut self,
        ticket: Ticket,
        caller: &CallerName,
        change: &Change,
        retry: bool,
        fresh: RequestId,
    ) -> Result<(), Refusal> {
        let work = self.resolve(caller, &change.work)?;
        let (pool, known) = self.pool_of(work).ok_or_else(|| gone(work))?;
        let Some(folded) = known.fold.work(work) else {
            let message = "the work was refused when it came";
            return Err(Refusal::new(code::ENDED, message).hint("submit it again"));
        };
        let request = change.request.unwrap_or(fresh);
        let round = change.round.unwrap_or(folded.round);
        // Said again, or cancelled already: it holds, and is answered so.
        let holds = folded.knows(request)
            || (!retry
                && folded.is_stopping()
                && round == folded.round
                && !folded.state.is_ended());
        if holds {
            let summary = self.summary(work).ok_or_else(|| gone(work))?;
            self.got(ticket, summary);
            return Ok(());
        }
        may_change(folded, round, retry)?;
        let by = caller.clone();
        let fact = if retry {
            Fact::RetryAsked(RetryAsked { work, request, round, by })
        } else {
            Fact::CancelAsked(CancelAsked { work, request, round, by })
        };
        let subject = subject::fact(pool, &folded.owner, Some(work), fact.kind());
        let changing = Changing {
            ticket,
            pool: pool.clone(),
            work,
            request,
            round,
            retry,
            since: self.now.at,
        };
        self.write(Purpose::Change(changing), subject, fact.to_json(), false);
        Ok(())
    }

    pub(super) fn change_written(&mut self, changing: Changing, result: Result<Seq, WriteError>) {
        match result {
            Ok(seq) => {
                let pool = changing.pool.clone();
                self.changing.push((pool.clone(), seq, changing));
                self.changes_shown(&pool);
            }
            Err(error) => self.refuse(changing.ticket, write_refusal(&error)),
        }
    }

    /// The fold of a pool has come further: what it shows now is answered.
    pub(super) fn changes_shown(&mut self, pool: &PoolName) {
        let seen = self.seen(pool);
        while let Some(at) =
            self.changing.iter().position(|(of, seq, _)| of == pool && *seq <= seen)
        {
            let (_, _, changing) = self.changing.swap_remove(at);
            self.change_shown(&changing);
        }
    }

    fn change_shown(&mut self, changing: &Changing) {
        let Changing { ticket, work, request, round, retry, .. } = *changing;
        let folded = self.pools[&changing.pool].fold.work(work);
        let refusal = match folded {
            None => Some(gone(work)),
            Some(folded) if folded.knows(request) => None,
            // Something else came first; a second cancel finds what it wanted.
            Some(folded) if !retry && folded.is_stopping() && folded.round == round => None,
            Some(folded) => Some(may_change(folded, round, retry).err().unwrap_or_else(|| {
                Refusal::new(code::WRONG_ROUND, "something else was changed first")
                    .hint("ask again")
            })),
        };
        match (refusal, self.summary(work)) {
            (None, Some(summary)) => self.got(ticket, summary),
            (refusal, _) => self.refuse(ticket, refusal.unwrap_or_else(|| gone(work))),
        }
    }

    pub(super) fn changes_overdue(&mut self) {
        let now = self.now.at;
        let (late, rest) = std::mem::take(&mut self.changing)
            .into_iter()
            .partition(|(_, _, changing)| now.since(changing.since) >= PATIENCE_MS);
        self.changing = rest;
        let late: Vec<(PoolName, Seq, Changing)> = late;
        for (_, _, changing) in late {
            let error = WriteError::Unknown("the journal does not show it".to_owned());
            self.refuse(changing.ticket, write_refusal(&error));
        }
    }
}

fn may_change(work: &Work, round: u32, retry: bool) -> Result<(), Refusal> {
    if round != work.round {
        let message = format!("it means round {round}, but the work is in round {}", work.round);
        return Err(Refusal::new(code::WRONG_ROUND, message)
            .field("round")
            .hint("leave `round` out to mean the current one"));
    }
    if !retry {
        return if work.state.is_ended() {
            let message = format!("the work has ended already: {}", work.state);
            Err(Refusal::new(code::ENDED, message))
        } else {
            Ok(())
        };
    }
    if work.may_retry() {
        return Ok(());
    }
    let message = if !work.state.is_ended() {
        "the work has not ended yet, so nothing of it can be retried"
    } else if work.tasks.iter().all(|task| task.failed.is_empty())
        && work.state == schemas::outcome::WorkState::Finished
    {
        "nothing in the work has failed"
    } else {
        "the work was stopped while it was open, so nobody knows what is missing"
    };
    let refusal = Refusal::new(code::NOTHING_FAILED, message);
    Err(if work.state.is_ended() { refusal } else { refusal.hint("`wait` for its end first") })
}

fn gone(work: WorkId) -> Refusal {
    Refusal::new(code::UNKNOWN_WORK, format!("there is no work `{work}`")).field("work")
}
