//! Follows a work: its facts and its output, as they come, across killed managers and lost
//! connections.
//!
//! A task of its own reads the bus and resumes by cursor; who uses it takes pieces from a short
//! queue and acknowledges each when it has been dealt with, so that a slow reader slows the sender
//! down.

use crate::client::{HOLD, House, Outage, passes};
use bus::{Bus, Hearing, Message, clock};
use futures::{FutureExt, StreamExt, future};
use schemas::{
    codec::{self, Encoding},
    error::{Refusal, code},
    outcome::Summary,
    request::{Follow, Followed},
    subject,
    time::Millis,
};
use std::time::Duration;
use tokio::{sync::mpsc, task::JoinHandle};

/// Pieces that are on their way inside this process.
const QUEUE: usize = 8;
/// At the latest after so much a piece is acknowledged; the sender stops at 256 KiB.
const ACK_AFTER_BYTES: usize = 64 * 1024;
/// After so much silence the follow is asked anew: its manager may have died without a word.
const SILENCE: Duration = Duration::from_secs(30);
/// After the end of the work is known, the rest must come within so much time.
const SILENCE_AFTER_END: Duration = Duration::from_secs(2);
/// So often it is asked anew for a rest that does not come.
const TRIES_AFTER_END: u32 = 3;
/// A manager may hear of a work a little later than the one that accepted it.
const UNKNOWN_AT_FIRST_MS: u64 = 3000;

/// One step of following.
#[derive(Debug)]
pub(crate) enum Step {
    /// A fact or a piece of output.
    Piece(Box<Followed>, Ack),
    /// The work has ended and everything there is has been said.
    Ended(Box<Summary>),
}

/// Where a piece is acknowledged, and how large it was.
#[derive(Debug)]
pub(crate) struct Ack {
    subject: Option<String>,
    bytes: usize,
}

/// A work that is followed; ends when dropped.
#[derive(Debug)]
pub(crate) struct Following {
    steps: mpsc::Receiver<anyhow::Result<Step>>,
    bus: Bus,
    task: JoinHandle<()>,
    unacknowledged_bytes: usize,
}

impl Following {
    /// Begins to follow.
    pub(crate) fn start(house: &House, request: Follow) -> Self {
        let (tell, steps) = mpsc::channel(QUEUE);
        let house = house.clone();
        let bus = house.bus.clone();
        let task = tokio::spawn(async move {
            let driver = Driver {
                house: &house,
                request,
                tell: tell.clone(),
                ended: None,
                tries_after_end: 0,
                since: clock::at(),
            };
            if let Err(error) = driver.drive().await {
                // Nobody is there to be told when the receiver has gone.
                let _ = tell.send(Err(error)).await;
            }
        });
        Self { steps, bus, task, unacknowledged_bytes: 0 }
    }

    /// The next step; `None` when there is nothing more to follow.
    pub(crate) async fn next(&mut self) -> anyhow::Result<Option<Step>> {
        self.steps.recv().await.transpose()
    }

    /// A piece has been dealt with, and all before it.
    pub(crate) async fn ack(&mut self, ack: Ack) {
        self.unacknowledged_bytes += ack.bytes;
        // An acknowledgement stands for all before it: when more is waiting here already, it can
        // wait, too.
        if self.steps.is_empty() || self.unacknowledged_bytes >= ACK_AFTER_BYTES {
            self.unacknowledged_bytes = 0;
            if let Some(subject) = ack.subject {
                // A lost one is made good by the next, or by following anew.
                let _ = self.bus.publish(&subject, Encoding::Json, Vec::new().into()).await;
            }
        }
    }
}

impl Drop for Following {
    fn drop(&mut self) {
        self.task.abort();
    }
}

struct Driver<'a> {
    house: &'a House,
    request: Follow,
    tell: mpsc::Sender<anyhow::Result<Step>>,
    ended: Option<Summary>,
    tries_after_end: u32,
    since: Millis,
}

/// Why one follow is over.
enum Over {
    /// Ask again, behind the last cursor.
    Anew,
    /// Ask again after a moment.
    Later,
    /// Everything has been said, or nobody listens to us any more.
    Done,
}

impl Driver<'_> {
    async fn drive(mut self) -> anyhow::Result<()> {
        let mut outage = Outage::new(self.house);
        loop {
            let cursor = self.request.from.clone();
            match self.once().await? {
                Over::Done => return Ok(()),
                Over::Anew => outage = Outage::new(self.house),
                Over::Later => {
                    if self.request.from != cursor {
                        outage.over();
                        outage = Outage::new(self.house);
                    }
                    outage.pause().await;
                }
            }
        }
    }

    /// One `follow`, from its request to its end.
    async fn once(&mut self) -> anyhow::Result<Over> {
        let bus = &self.house.bus;
        let mut connection = bus.connection();
        let made = connection.borrow_and_update().made;
        let mut hearing = match self.ask().await {
            Ok(hearing) => hearing,
            Err(error) if passes(&error) => return Ok(Over::Later),
            Err(error) => return Err(error.into()),
        };
        let house = self.house.clone();
        let work = self.request.work.clone();
        let mut waiting = house.wait_once(&work, HOLD).boxed();
        loop {
            let silence = if self.ended.is_some() { SILENCE_AFTER_END } else { SILENCE };
            tokio::select! {
                biased;
                message = hearing.next() => {
                    let Some(message) = message else { return Ok(Over::Later) };
                    if let Some(over) = self.message(message).await? {
                        return Ok(over);
                    }
                }
                waited = &mut waiting => {
                    match waited {
                        Ok(summary) if summary.state.is_ended() => {
                            self.ended = Some(summary);
                            waiting = future::pending().boxed();
                            continue;
                        }
                        Ok(_) => {}
                        Err(error) if passes(&error) => return Ok(Over::Later),
                        Err(bus::Error::Refused(refusal)) => return self.refused(refusal),
                        Err(error) => return Err(error.into()),
                    }
                    waiting = house.wait_once(&work, HOLD).boxed();
                }
                changed = connection.changed() => {
                    let now = *connection.borrow_and_update();
                    if changed.is_err() || !now.up {
                        return Ok(Over::Later);
                    }
                    if now.made != made {
                        return Ok(Over::Anew);
                    }
                }
                () = tokio::time::sleep(silence) => return self.silent().await,
            }
        }
    }

    async fn ask(&self) -> Result<Hearing, bus::Error> {
        let bus = &self.house.bus;
        let payload = codec::encode(Encoding::MsgPack, &self.request).into();
        let subject = subject::work("follow", bus.caller());
        bus.ask_many(&subject, Encoding::MsgPack, payload).await
    }

    async fn message(&mut self, message: Message) -> anyhow::Result<Option<Over>> {
        if message.nobody {
            return Ok(Some(Over::Later));
        }
        if message.refused {
            return self.refused(message.refusal()).map(Some);
        }
        if message.payload.is_empty() {
            return Ok(Some(match self.ended.take() {
                Some(summary) => self.done(summary).await,
                // Its manager stops; another one goes on.
                None => Over::Later,
            }));
        }
        let bytes = message.payload.len();
        let followed: Followed = message.decode().map_err(|refusal| {
            anyhow::Error::from(refusal).context("an answer of the manager cannot be read")
        })?;
        self.request.from = Some(followed.cursor.clone());
        self.tries_after_end = 0;
        if let Some(summary) = &followed.summary
            && summary.state.is_ended()
        {
            self.ended = Some(summary.clone());
        }
        let ack = Ack { subject: message.reply, bytes };
        let step = Step::Piece(Box::new(followed), ack);
        let told = self.tell.send(Ok(step)).await;
        Ok(told.is_err().then_some(Over::Done))
    }

    fn refused(&mut self, refusal: Refusal) -> anyhow::Result<Over> {
        match &*refusal.code {
            code::NOT_READY | code::BUSY | code::NOT_STORED => Ok(Over::Later),
            // Said anew from the beginning; who reads knows what he has had.
            code::BAD_CURSOR if self.request.from.take().is_some() => Ok(Over::Anew),
            code::UNKNOWN_WORK if clock::at().since(self.since) < UNKNOWN_AT_FIRST_MS => {
                Ok(Over::Later)
            }
            _ => Err(bus::Error::Refused(refusal).into()),
        }
    }

    async fn silent(&mut self) -> anyhow::Result<Over> {
        self.tries_after_end += u32::from(self.ended.is_some());
        match self.ended.take() {
            Some(summary) if self.tries_after_end >= TRIES_AFTER_END => {
                Ok(self.done(summary).await)
            }
            ended => {
                self.ended = ended;
                Ok(Over::Anew)
            }
        }
    }

    async fn done(&self, summary: Summary) -> Over {
        let _ = self.tell.send(Ok(Step::Ended(Box::new(summary)))).await;
        Over::Done
    }
}
