//! The right to act, as a pure machine: take the pool's lease, write an epoch, renew, give up.
//!
//! The epoch is written by compare-and-set over the epoch that was read *before* the lease was
//! taken: who stalls in between and wakes late is refused, instead of fencing out his successor.
//! One thing is done at a time: each step answers with what to do next, and hears what became of it.

use schemas::{
    id::{Epoch, Seq},
    time::{Millis, Now},
};

/// How it went, or that time has passed.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Event {
    /// Nothing is being done, and time has passed.
    Tick,
    /// The lease was looked at: its revision, and who holds it.
    Looked {
        /// For the next compare-and-set.
        revision: Seq,
        /// `None`: it is free.
        holder: Option<String>,
    },
    /// The last epoch of the journal was read; zeros: there is none.
    EpochRead {
        /// Its number.
        epoch: Epoch,
        /// Where it is stored.
        seq: Seq,
        /// Who wrote it.
        by: String,
    },
    /// A write was stored.
    Stored(Seq),
    /// A write was refused: somebody wrote in between.
    Refused,
    /// There was no answer.
    Unanswered,
    /// The scheduler does not act any more, or is to stop.
    GiveUp,
}

/// What to do.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Action {
    /// Look who has the lease.
    Look,
    /// Read the last epoch of the journal.
    ReadEpoch,
    /// Write the own name into the lease, over this revision.
    Put {
        /// What must be there.
        revision: Seq,
    },
    /// Write this epoch, over the one at this place.
    WriteEpoch {
        /// Its number.
        epoch: Epoch,
        /// Where the last one is.
        over: Seq,
    },
    /// Remove the lease, if it has this revision.
    Remove {
        /// What must be there.
        revision: Seq,
    },
    /// Tell the scheduler that it may act, once its fold has come there.
    Won {
        /// Its number.
        epoch: Epoch,
        /// Where it is stored.
        seq: Seq,
    },
    /// Tell the scheduler that it may act no more.
    Lost,
    /// Nothing for now.
    Wait,
}

#[derive(Clone, Debug, PartialEq, Eq)]
enum State {
    Idle { not_before: Millis },
    Looking,
    Reading { revision: Seq },
    Taking { over: Seq, last: Epoch, sent: Millis },
    Writing { revision: Seq, epoch: Epoch, over: Seq },
    Checking { revision: Seq, epoch: Epoch, over: Seq },
    Held { revision: Seq },
    Renewing { revision: Seq, sent: Millis },
    Doubting,
    Removing,
}

/// The lease of one pool, as one process sees it.
#[derive(Debug)]
pub struct Lease {
    name: String,
    lease_ms: u64,
    renew_ms: u64,
    pause_ms: u64,
    state: State,
    /// The lease holds until then, by the own clock.
    until: Millis,
    renewed: Millis,
    /// The scheduler was told that it won.
    told: bool,
    /// Another holds it.
    other: Option<String>,
}

impl Lease {
    /// `name` must be unique among all processes and their lives.
    pub fn new(name: String, lease_ms: u64, renew_ms: u64) -> Self {
        Self {
            name,
            lease_ms,
            renew_ms,
            pause_ms: (renew_ms / 4).max(20),
            state: State::Idle { not_before: Millis(0) },
            until: Millis(0),
            renewed: Millis(0),
            told: false,
            other: None,
        }
    }

    /// The name that is written.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// Whether it is held, or about to be.
    pub fn is_held(&self) -> bool {
        !matches!(self.state, State::Idle { .. })
    }

    /// Who else holds the lease, as far as was seen.
    pub fn other(&self) -> Option<&str> {
        self.other.as_deref()
    }

    /// Hears what has happened and says what to do next. `told` is the highest epoch that any node
    /// has told.
    pub fn step(&mut self, now: Now, told: Epoch, event: Event) -> Action {
        let at = now.at;
        if self.told && at >= self.until {
            return self.lose(at);
        }
        match (self.state.clone(), event) {
            (_, Event::GiveUp) => self.give_up(at),
            (State::Idle { not_before }, Event::Tick) if at >= not_before => {
                self.state = State::Looking;
                Action::Look
            }
            (State::Held { revision }, Event::Tick) if at.since(self.renewed) >= self.renew_ms => {
                self.state = State::Renewing { revision, sent: at };
                Action::Put { revision }
            }
            (State::Looking, Event::Looked { revision, holder }) => match holder {
                // An own write that was not answered: the time it holds is not known, so it is
                // taken once more.
                Some(holder) if holder != self.name => {
                    self.other = Some(holder);
                    self.rest(at)
                }
                _ => {
                    self.other = None;
                    self.state = State::Reading { revision };
                    Action::ReadEpoch
                }
            },
            (State::Reading { revision }, Event::EpochRead { epoch, seq, .. }) => {
                self.state = State::Taking { over: seq, last: epoch, sent: at };
                Action::Put { revision }
            }
            (State::Taking { over, last, sent }, Event::Stored(revision)) => {
                self.until = sent + self.lease_ms;
                self.renewed = sent;
                let epoch = now.wall.0.max(last + 1).max(told + 1);
                self.state = State::Writing { revision, epoch, over };
                Action::WriteEpoch { epoch, over }
            }
            (State::Writing { revision, epoch, .. }, Event::Stored(seq)) => {
                self.win(revision, epoch, seq)
            }
            (State::Writing { revision, epoch, over }, Event::Unanswered | Event::Refused) => {
                // It may be stored all the same.
                self.state = State::Checking { revision, epoch, over };
                Action::ReadEpoch
            }
            (
                State::Checking { revision, epoch, over },
                Event::EpochRead { epoch: read, seq, by },
            ) => {
                if read == epoch && by == self.name {
                    self.win(revision, epoch, seq)
                } else if seq == over && at < self.until {
                    self.state = State::Writing { revision, epoch, over };
                    Action::WriteEpoch { epoch, over }
                } else {
                    self.state = State::Removing;
                    Action::Remove { revision }
                }
            }
            (State::Checking { .. }, Event::Unanswered) if at < self.until => Action::ReadEpoch,
            (State::Renewing { sent, .. }, Event::Stored(revision)) => {
                self.until = sent + self.lease_ms;
                self.renewed = sent;
                self.state = State::Held { revision };
                Action::Wait
            }
            (State::Renewing { .. }, Event::Refused | Event::Unanswered) => {
                self.state = State::Doubting;
                Action::Look
            }
            (State::Doubting, Event::Looked { revision, holder }) => {
                if holder.is_some_and(|holder| holder != self.name) {
                    return self.lose(at);
                }
                self.state = State::Renewing { revision, sent: at };
                Action::Put { revision }
            }
            (State::Doubting, Event::Tick) => Action::Look,
            (State::Doubting, Event::Unanswered) => Action::Wait,
            (State::Idle { .. } | State::Held { .. }, _) => Action::Wait,
            (State::Removing, Event::Tick) => Action::Wait,
            _ => self.rest(at),
        }
    }

    fn win(&mut self, revision: Seq, epoch: Epoch, seq: Seq) -> Action {
        self.state = State::Held { revision };
        self.told = true;
        Action::Won { epoch, seq }
    }

    fn rest(&mut self, at: Millis) -> Action {
        self.state = State::Idle { not_before: at + self.pause_ms };
        Action::Wait
    }

    fn lose(&mut self, at: Millis) -> Action {
        self.told = false;
        self.rest(at);
        Action::Lost
    }

    fn give_up(&mut self, at: Millis) -> Action {
        self.told = false;
        match self.state {
            State::Held { revision } | State::Renewing { revision, .. } => {
                self.state = State::Removing;
                Action::Remove { revision }
            }
            _ => self.rest(at),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use schemas::time::Stamp;

    fn now(ms: u64) -> Now {
        Now { at: Millis(ms), wall: Stamp(1000 + ms) }
    }

    fn looked(revision: Seq, holder: Option<&str>) -> Event {
        Event::Looked { revision, holder: holder.map(str::to_owned) }
    }

    fn read(epoch: Epoch, seq: Seq, by: &str) -> Event {
        Event::EpochRead { epoch, seq, by: by.to_owned() }
    }

    fn won() -> Lease {
        let mut lease = Lease::new("me".to_owned(), 5000, 1600);
        assert_eq!(lease.step(now(0), 0, Event::Tick), Action::Look);
        assert_eq!(lease.step(now(0), 0, looked(7, None)), Action::ReadEpoch);
        assert_eq!(lease.step(now(0), 0, read(40, 3, "x")), Action::Put { revision: 7 });
        let write = Action::WriteEpoch { epoch: 1001, over: 3 };
        assert_eq!(lease.step(now(1), 90, Event::Stored(8)), write);
        assert_eq!(lease.step(now(2), 90, Event::Stored(55)), Action::Won { epoch: 1001, seq: 55 });
        lease
    }

    #[test]
    fn the_epoch_is_above_everything_that_anybody_has_seen() {
        let mut lease = Lease::new("me".to_owned(), 5000, 1600);
        lease.step(now(0), 0, Event::Tick);
        lease.step(now(0), 0, looked(0, None));
        lease.step(now(0), 0, read(5000, 3, "x"));
        let write = Action::WriteEpoch { epoch: 9001, over: 3 };
        assert_eq!(lease.step(now(0), 9000, Event::Stored(1)), write);
    }

    #[test]
    fn who_stalls_between_lease_and_epoch_is_refused_and_gives_up() {
        let mut lease = Lease::new("me".to_owned(), 5000, 1600);
        lease.step(now(0), 0, Event::Tick);
        lease.step(now(0), 0, looked(0, None));
        lease.step(now(0), 0, read(40, 3, "x"));
        lease.step(now(0), 0, Event::Stored(8));
        assert_eq!(lease.step(now(9000), 0, Event::Refused), Action::ReadEpoch);
        let other = read(9999, 60, "other");
        assert_eq!(lease.step(now(9000), 0, other), Action::Remove { revision: 8 });
    }

    #[test]
    fn an_epoch_that_was_stored_without_an_answer_counts() {
        let mut lease = Lease::new("me".to_owned(), 5000, 1600);
        lease.step(now(0), 0, Event::Tick);
        lease.step(now(0), 0, looked(0, None));
        lease.step(now(0), 0, read(40, 3, "x"));
        lease.step(now(0), 0, Event::Stored(8));
        assert_eq!(lease.step(now(10), 0, Event::Unanswered), Action::ReadEpoch);
        assert_eq!(
            lease.step(now(20), 0, read(1000, 77, "me")),
            Action::Won { epoch: 1000, seq: 77 }
        );
    }

    #[test]
    fn it_is_renewed_in_time_and_lost_when_it_cannot_be() {
        let mut lease = won();
        assert_eq!(lease.step(now(1000), 0, Event::Tick), Action::Wait);
        assert_eq!(lease.step(now(1600), 0, Event::Tick), Action::Put { revision: 8 });
        assert_eq!(lease.step(now(1601), 0, Event::Stored(9)), Action::Wait);
        assert_eq!(lease.step(now(3200), 0, Event::Tick), Action::Put { revision: 9 });
        assert_eq!(lease.step(now(5200), 0, Event::Unanswered), Action::Look);
        assert_eq!(lease.step(now(5300), 0, Event::Unanswered), Action::Wait);
        assert_eq!(lease.step(now(6600), 0, Event::Tick), Action::Lost, "5 s after the last");
        assert_eq!(lease.step(now(7200), 0, Event::Tick), Action::Look, "and again from the start");
    }

    #[test]
    fn another_holder_is_waited_for() {
        let mut lease = Lease::new("me".to_owned(), 5000, 1600);
        lease.step(now(0), 0, Event::Tick);
        assert_eq!(lease.step(now(0), 0, looked(7, Some("other"))), Action::Wait);
        assert_eq!(lease.other(), Some("other"));
        assert_eq!(lease.step(now(10), 0, Event::Tick), Action::Wait);
        assert_eq!(lease.step(now(400), 0, Event::Tick), Action::Look);
    }

    #[test]
    fn who_stops_removes_it() {
        let mut lease = won();
        assert_eq!(lease.step(now(100), 0, Event::GiveUp), Action::Remove { revision: 8 });
        assert_eq!(lease.step(now(101), 0, Event::Stored(9)), Action::Wait);
        assert_eq!(lease.step(now(600), 0, Event::Tick), Action::Look);
    }
}
