//! The house as a client sees it: requests to the manager and the scheduler, with patience where
//! it is wanted.

use crate::{failure::Failure, terminal};
use bus::{Bus, clock};
use schemas::{
    error::code,
    outcome::Summary,
    request::{Get, Wait},
    subject,
    time::Seconds,
    token::PoolName,
};
use serde::{Serialize, de::DeserializeOwned};
use std::{
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    time::Duration,
};

/// How long an answer that is given at once may take.
pub(crate) const ANSWER: Duration = Duration::from_secs(10);
/// How long the answer to `wait` is held. Short, because nothing else tells that the manager who
/// holds it has died.
pub(crate) const HOLD: Seconds = Seconds::new(3);
/// A held answer that is later than this will not come.
const LATE: Duration = Duration::from_secs(2);
/// How long one try of a patient request takes at most.
const TRY: Duration = Duration::from_secs(5);
/// The pause between tries.
const PAUSE: Duration = Duration::from_millis(250);
/// An outage shorter than this is not worth a sentence.
const WORTH_SAYING_MS: u64 = 1500;

/// A connection to the house, as a client.
#[derive(Clone, Debug)]
pub(crate) struct House {
    pub(crate) bus: Bus,
    pub(crate) pool: PoolName,
    outage_was_said: Arc<AtomicBool>,
}

impl House {
    pub(crate) fn new(bus: Bus, pool: PoolName) -> Self {
        Self { bus, pool, outage_was_said: Arc::default() }
    }

    /// Asks a manager: `lh.work.<verb>`.
    pub(crate) async fn work<A: DeserializeOwned>(
        &self,
        verb: &str,
        request: &impl Serialize,
    ) -> Result<A, bus::Error> {
        self.bus.ask(&subject::work(verb, self.bus.caller()), request, ANSWER).await
    }

    /// Asks the acting scheduler: `lh.sched.<pool>.<verb>`.
    pub(crate) async fn sched<A: DeserializeOwned>(
        &self,
        verb: &str,
        request: &impl Serialize,
    ) -> Result<A, bus::Error> {
        self.bus.ask(&subject::sched(&self.pool, verb, self.bus.caller()), request, ANSWER).await
    }

    /// Asks a manager until one answers, or for so long. The request must be one that may be said
    /// twice.
    pub(crate) async fn patiently<A: DeserializeOwned>(
        &self,
        verb: &str,
        request: &impl Serialize,
        patience: Option<Duration>,
    ) -> Result<A, bus::Error> {
        let subject = subject::work(verb, self.bus.caller());
        let mut outage = Outage::new(self);
        loop {
            let error = match self.bus.ask(&subject, request, TRY).await {
                Ok(answer) => {
                    outage.over();
                    return Ok(answer);
                }
                Err(error) if passes(&error) => error,
                Err(error) => return Err(error),
            };
            if patience.is_some_and(|patience| outage.lasted() >= patience) {
                return Err(error);
            }
            outage.pause().await;
        }
    }

    /// How a work stands.
    pub(crate) async fn summary(&self, work: &str) -> Result<Summary, bus::Error> {
        self.work("get", &Get { work: work.to_owned(), spec: false }).await
    }

    /// One held `wait`: the summary when the work has ended or the time is over.
    pub(crate) async fn wait_once(&self, work: &str, hold: Seconds) -> Result<Summary, bus::Error> {
        let request = Wait { work: work.to_owned(), hold_s: Some(hold) };
        let within = Duration::from_millis(hold.ms) + LATE;
        self.bus.ask(&subject::work("wait", self.bus.caller()), &request, within).await
    }

    /// Waits until a work has ended, whatever happens to managers and bus meanwhile.
    pub(crate) async fn wait(&self, work: &str) -> Result<Summary, bus::Error> {
        let mut outage = Outage::new(self);
        loop {
            match self.wait_once(work, HOLD).await {
                Ok(summary) if summary.state.is_ended() => return Ok(summary),
                Ok(_) => outage = Outage::new(self),
                Err(error) if passes(&error) => outage.pause().await,
                Err(error) => return Err(error),
            }
        }
    }
}

/// Whether asking again may help.
pub(crate) fn passes(error: &bus::Error) -> bool {
    match error {
        bus::Error::Nobody { .. } | bus::Error::Silence { .. } | bus::Error::Down { .. } => true,
        bus::Error::Refused(refusal) => {
            matches!(&*refusal.code, code::NOT_READY | code::NOT_STORED | code::BUSY)
        }
        _ => false,
    }
}

/// A time without answers.
pub(crate) struct Outage<'a> {
    house: &'a House,
    since: schemas::time::Millis,
}

impl<'a> Outage<'a> {
    pub(crate) fn new(house: &'a House) -> Self {
        Self { house, since: clock::at() }
    }

    fn lasted_ms(&self) -> u64 {
        clock::at().since(self.since)
    }

    pub(crate) fn lasted(&self) -> Duration {
        Duration::from_millis(self.lasted_ms())
    }

    /// Waits a moment; says once that it waits.
    pub(crate) async fn pause(&mut self) {
        let house = self.house;
        if self.lasted_ms() > WORTH_SAYING_MS
            && !house.outage_was_said.swap(true, Ordering::Relaxed)
        {
            let what = if house.bus.is_up() { "a manager" } else { "the bus" };
            terminal::say(&format!("waiting for {what}…"));
        }
        tokio::time::sleep(PAUSE).await;
    }

    /// Somebody has answered: the next outage is said again.
    pub(crate) fn over(&self) {
        self.house.outage_was_said.store(false, Ordering::Relaxed);
    }
}

/// The failure of a request after which nobody knows whether it was done.
pub(crate) fn perhaps_done(error: bus::Error, work: schemas::id::WorkId) -> anyhow::Error {
    if matches!(error, bus::Error::Silence { .. } | bus::Error::Down { .. }) {
        let known = Failure::of(&error.into());
        let hint = format!("it may have been accepted all the same: `longhouse show {work}` says");
        return Failure::new(known.code, format!("could not submit the work: {}", known.message))
            .hint(hint)
            .into();
    }
    anyhow::Error::new(error).context("could not submit the work")
}
