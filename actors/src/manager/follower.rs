//! Serves one who follows a work: history, then what comes, at the speed at which he reads.
//!
//! Facts and output are merged by the time at which the bus stored them. Nothing is buffered for a
//! slow reader but one batch: the rest is read from the streams when its turn comes.

use super::{
    core::bad_cursor,
    follow::{Cursor, Following, Judged, Line, What, judge},
    hub::{Ack, Ears, Heard, Hub, ReadFact},
    pace::{Pace, Wait},
};
use bus::{Bus, log::Stored};
use bytes::Bytes;
use schemas::{
    codec::{self, Encoding},
    error::Refusal,
    id::{Attempt, Seq, WorkId},
    indices::Index,
    job::ReadRequest,
    output::{Frame, Frames},
    request::{Follow, Followed},
    subject,
    time::Millis,
    token::{CallerName, NodeName, OwnerName, PoolName, StreamName, TaskName},
    work::WhenFull,
};
use std::{
    collections::{BTreeMap, VecDeque},
    sync::{Arc, atomic::Ordering},
    time::Duration,
};
use tokio::sync::watch;

/// Messages and bytes of output that are read at a time.
const BATCH: u32 = 64;
const BATCH_BYTES: u32 = 256 * 1024;
/// Jobs that are told at the start that a reader is there.
const PACED_AT_ONCE: usize = 256;
/// What a node has to send again comes sooner than this.
const OLD_MS: u64 = 60_000;
/// After so many bytes that were read it is looked whether they should make room.
const LOOK_FOR_ROOM: u64 = 4 * 1024 * 1024;
/// Trimmed pieces of what is stored may lie so far below the half that is kept.
const HALF_SLACK: u64 = 1024 * 1024;

/// The other end: where replies go, and how.
#[derive(Debug)]
pub(crate) struct To {
    /// Where replies go.
    pub reply: String,
    /// As what they are written.
    pub accept: Encoding,
    /// Whose they are.
    pub caller: CallerName,
}

/// Why a follow ended before the work did.
enum Over {
    /// Nobody listens any more.
    Gone,
    /// The manager stops.
    Stopping,
    /// The connection was lost: he asks again, with his cursor.
    Broken,
}

async fn stopped(stopping: &mut watch::Receiver<bool>) {
    let _ = stopping.wait_for(|stopping| *stopping).await;
}

type StreamKey = (TaskName, Index, Attempt, StreamName);

/// What a paced reader was sent, until he acknowledges it.
struct Sent {
    n: u64,
    key: StreamKey,
    node: NodeName,
    /// Where in its stream it ends.
    end: u64,
    bytes: u64,
    /// In which message of output it stood.
    out: Seq,
}

struct Follower {
    hub: Arc<Hub>,
    bulk: Bus,
    ears: Ears,
    to: To,
    pool: PoolName,
    work: WorkId,
    owner: OwnerName,
    state: Following,
    pace: Pace,
    n: u64,
    /// Stored messages of output whose turn has not come.
    outs: VecDeque<Stored>,
    /// Where the stream of output is read on.
    out_from: Seq,
    /// Everything that was stored has been read: what comes is heard.
    caught_up: bool,
    /// A fact that was read but whose turn has not come.
    fact: Option<(Seq, ReadFact)>,
    /// He paces the jobs: which reply ended where.
    paces: bool,
    sent: VecDeque<Sent>,
    /// Whether everything that is written is read here.
    whole: bool,
    /// Bytes that were read since it was looked whether there is room.
    read_bytes: u64,
    reading: BTreeMap<StreamKey, (NodeName, u64)>,
    told_at: Millis,
    spoke_at: Millis,
    made: u64,
    stopping: watch::Receiver<bool>,
}

/// Reads what a follow resumes from.
pub(crate) fn cursor(follow: &Follow) -> Result<Cursor, Refusal> {
    match follow.from.as_deref() {
        None => Ok(Cursor::default()),
        Some(text) => text.parse().map_err(|()| bad_cursor()),
    }
}

/// Serves a follower until the work has ended or he is gone.
pub(crate) async fn serve(
    hub: Arc<Hub>,
    to: To,
    pool: PoolName,
    work: WorkId,
    follow: Follow,
    from: Cursor,
) -> Result<(), bus::Error> {
    let bulk = hub.bulk().await?;
    let ears = hub.sit(work).await?;
    let owner = {
        let core = hub.core();
        let fold = core.fold(&pool);
        let of_work = fold.and_then(|fold| fold.work(work)).map(|work| work.owner.clone());
        of_work.or_else(|| fold?.refused(work).map(|refused| refused.owner.clone()))
    };
    let Some(owner) = owner else { return Ok(()) };
    let made = bulk.connection().borrow().made;
    let stopping = hub.stopping.subscribe();
    let whole = follow.task.is_none() && follow.index.is_none();
    let mut follower = Follower {
        state: Following::new(work, follow.task, follow.index, from),
        bulk,
        ears,
        to,
        pool,
        work,
        owner,
        pace: Pace::default(),
        n: 0,
        outs: VecDeque::new(),
        out_from: 1,
        caught_up: false,
        fact: None,
        paces: follow.pace,
        sent: VecDeque::new(),
        whole,
        read_bytes: 0,
        reading: BTreeMap::new(),
        told_at: Millis(0),
        spoke_at: bus::clock::at(),
        made,
        stopping,
        hub,
    };
    let over = follower.run().await.unwrap_or_else(|error| {
        tracing::warn!(%work, %error, "a follow broke off");
        Err(Over::Broken)
    });
    match over {
        Ok(()) | Err(Over::Stopping) => {
            follower.farewell().await;
            follower.end().await;
        }
        Err(Over::Broken) => {
            let mut connection = follower.bulk.connection();
            let _ = connection.wait_for(|connection| connection.up).await;
            follower.end().await;
        }
        Err(Over::Gone) => {}
    }
    Ok(())
}

impl Follower {
    async fn run(&mut self) -> Result<Result<(), Over>, bus::Error> {
        self.tell_readers_here();
        loop {
            while let Some(line) = self.state.next() {
                if let Err(over) = self.say(line).await {
                    return Ok(Err(over));
                }
            }
            self.read_output().await?;
            self.read_fact().await?;
            let output_first = match (self.outs.front(), &self.fact) {
                (Some(out), Some((_, fact))) => out.at <= fact.at,
                (out, _) => out.is_some(),
            };
            if output_first {
                let Some(lines) = self.take_output().await? else {
                    continue;
                };
                for line in lines {
                    if let Err(over) = self.say(line).await {
                        return Ok(Err(over));
                    }
                }
            } else if let Some((seq, read)) = self.fact.take() {
                self.state.fact(seq, read.at, read.fact);
                self.tell_readers_here();
            } else if !self.caught_up {
                continue;
            } else {
                match self.wait().await {
                    Ok(true) => return Ok(Ok(())),
                    Ok(false) => {}
                    Err(over) => return Ok(Err(over)),
                }
            }
        }
    }

    /// Reads on in the stream of output, if what was read is used up.
    async fn read_output(&mut self) -> Result<(), bus::Error> {
        if !self.outs.is_empty() || self.caught_up {
            return Ok(());
        }
        let filter = format!("lh.out.{}.{}.>", self.owner, self.work);
        let log = self.bulk.log(bus::streams::OUTPUT);
        let batch = log.history(&filter, self.out_from, BATCH, BATCH_BYTES).await?;
        match batch.last() {
            None => self.caught_up = true,
            Some(last) => self.out_from = last.seq + 1,
        }
        self.outs.extend(batch);
        Ok(())
    }

    /// Reads the next fact, if there is one.
    async fn read_fact(&mut self) -> Result<(), bus::Error> {
        while self.fact.is_none() {
            let (next, _) = self.next_fact();
            let Some(seq) = next else { return Ok(()) };
            match self.hub.fact(&self.pool, seq).await? {
                Some(read) => self.fact = Some((seq, read)),
                // Compacted: there is nothing to say, but it is behind us.
                None => self.state.pass(seq),
            }
        }
        Ok(())
    }

    /// Takes in the next message of output; `None` when something else must come first.
    async fn take_output(&mut self) -> Result<Option<VecDeque<Line>>, bus::Error> {
        let Some(stored) = self.outs.pop_front() else { return Ok(None) };
        let Some(out) = subject::parse_out(&stored.subject) else { return Ok(None) };
        let frames = match codec::decode::<Frames>(Encoding::MsgPack, &stored.payload) {
            Ok(frames) => frames.frames,
            Err(refusal) => {
                self.hub.count_garbage(&stored.subject, &refusal.message);
                Vec::new()
            }
        };
        let mut judged = self.judge_all(&frames, &out.node);
        if judged.contains(&Judged::Unknown) {
            self.fold_everything().await?;
            judged = self.judge_all(&frames, &out.node);
        }
        if judged.iter().any(|judged| *judged != Judged::Its) {
            self.hub.count_garbage(&stored.subject, "that node was not given this attempt");
        }
        let mut judged = judged.into_iter();
        let frames: Vec<(Frame, bool)> =
            frames.into_iter().map(|frame| (frame, judged.next() == Some(Judged::Its))).collect();
        let old = bus::clock::wall().0.saturating_sub(stored.at.0) >= OLD_MS;
        Ok(Some(self.state.frames(stored.seq, (&out.stream, &out.node), frames, old)))
    }

    fn judge_all(&self, frames: &[Frame], node: &NodeName) -> Vec<Judged> {
        let core = self.hub.core();
        let work = core.fold(&self.pool).and_then(|fold| fold.work(self.work));
        let Some(work) = work else { return vec![Judged::NotIts; frames.len()] };
        frames.iter().map(|frame| judge(work, core.former(self.work), frame, node)).collect()
    }

    fn judge(&self, frame: &Frame, node: &NodeName) -> Judged {
        let core = self.hub.core();
        let work = core.fold(&self.pool).and_then(|fold| fold.work(self.work));
        work.map_or(Judged::NotIts, |work| judge(work, core.former(self.work), frame, node))
    }

    /// Waits until the fold has taken in everything that is stored now: a frame may overtake the
    /// fact that says whose it is.
    async fn fold_everything(&mut self) -> Result<(), bus::Error> {
        let end = self.hub.end_of(&self.pool).await?;
        let mut progress = self.hub.progress.subscribe();
        let reached = async {
            while self.hub.core().seen(&self.pool) < end {
                if progress.changed().await.is_err() {
                    break;
                }
            }
        };
        // It may be removed before it is seen.
        let _ = tokio::time::timeout(Duration::from_secs(2), reached).await;
        Ok(())
    }

    /// Nothing is there to be said: waits for what comes. `true`: everything was said.
    async fn wait(&mut self) -> Result<bool, Over> {
        if self.ears.seat.lagged.swap(false, Ordering::AcqRel) {
            while self.ears.output.try_recv().is_ok() {}
            self.caught_up = false;
            return Ok(false);
        }
        let (next, ended_at) = self.next_fact();
        if next.is_some() {
            return Ok(false);
        }
        let mut until_ms = self.hub.settings.probe_s.ms;
        if let Some(ended_at) = ended_at {
            let grace = self.hub.settings.output_grace_s.ms;
            let waited = bus::clock::wall().0.saturating_sub(ended_at);
            let give_up = waited >= grace;
            if give_up
                && self.state.lacks()
                && let Some(from) = self.state.step_over_holes()
            {
                (self.out_from, self.caught_up) = (from, false);
                self.outs.clear();
                return Ok(false);
            }
            if !self.state.lacks() || give_up {
                // What is stored by now is everything there is.
                if self.ears.output.is_empty() && !self.ears.seat.lagged.load(Ordering::Acquire) {
                    return Ok(true);
                }
            }
            until_ms = until_ms.min(grace.saturating_sub(waited).max(1));
        }
        if self.paces {
            until_ms = until_ms.min(self.hub.settings.read_every_s.ms);
        }
        let mut connection = self.bulk.connection();
        let mut stopping = self.stopping.clone();
        let seat = self.ears.seat.clone();
        tokio::select! {
            heard = self.ears.output.recv() => {
                if let Some(heard) = heard {
                    return self.hear(&heard).await.map(|()| false);
                }
            }
            () = seat.news.notified() => {}
            ack = self.ears.acks.recv() => self.take_ack(ack)?,
            _ = connection.changed() => self.check_connection()?,
            () = stopped(&mut stopping) => return Err(Over::Stopping),
            () = tokio::time::sleep(Duration::from_millis(until_ms.max(1))) => {}
        }
        self.tell_readers_again();
        self.probe().await?;
        Ok(false)
    }

    async fn hear(&mut self, heard: &Heard) -> Result<(), Over> {
        match heard {
            Heard::Stored(stored) if stored.seq >= self.out_from => {
                self.out_from = stored.seq + 1;
                self.outs.push_back(stored.clone());
            }
            Heard::Stored(_) => {}
            // Who paces loses nothing, so nothing is said beside the stream.
            Heard::Live { .. } if self.paces => {}
            Heard::Live { subject: at, frames } => {
                let Some(out) = subject::parse_out(at) else { return Ok(()) };
                for frame in &frames.frames {
                    if self.judge(frame, &out.node) != Judged::Its {
                        continue;
                    }
                    let from = self.kept_half(&frame.task);
                    let place = (&out.stream, &out.node);
                    for line in self.state.live(place, frame.clone(), from) {
                        self.say(line).await?;
                    }
                }
            }
        }
        Ok(())
    }

    /// How much of a stream is stored before what comes is said beside it.
    fn kept_half(&self, task: &TaskName) -> u64 {
        let core = self.hub.core();
        let work = core.fold(&self.pool).and_then(|fold| fold.work(self.work));
        let limit_mib =
            work.and_then(|work| work.task(task)).map_or(0, |t| t.spec.output.limit_mib);
        let half = limit_mib.saturating_mul(1024 * 1024) / 2;
        half.saturating_sub(HALF_SLACK.min(half / 2))
    }

    /// The next message of the journal about the work, and when it ended: seen at one moment, or
    /// an end might be believed of which nothing was said.
    fn next_fact(&self) -> (Option<Seq>, Option<u64>) {
        let last = self.state.last_fact();
        let core = self.hub.core();
        let Some(fold) = core.fold(&self.pool) else { return (None, Some(0)) };
        if let Some(work) = fold.work(self.work) {
            let at = work.facts.partition_point(|seq| *seq <= last);
            let ended = work.state.is_ended().then(|| work.ended_at.map_or(0, |at| at.0));
            return (work.facts.get(at).copied(), ended);
        }
        // A refused one; or one that is gone.
        let refused = fold.refused(self.work).map(|refused| refused.seq);
        (refused.filter(|seq| *seq > last), Some(0))
    }

    /// Says one thing, when he has read enough of what came before.
    async fn say(&mut self, line: Line) -> Result<(), Over> {
        let out = line.cursor.out;
        let cursor = line.cursor.to_string();
        let mut followed = Followed { cursor, fact: None, output: None, summary: None };
        let mut ends = None;
        match line.what {
            What::Fact(fact) => followed.fact = Some(fact),
            What::Output(output, node) => {
                if self.paces {
                    let length = output.gap.unwrap_or(output.bytes.len() as u64);
                    let key =
                        (output.task.clone(), output.index, output.attempt, output.stream.clone());
                    let bytes = output.bytes.len() as u64;
                    ends = Some(Sent { n: 0, key, node, end: output.offset + length, bytes, out });
                }
                followed.output = Some(output);
            }
        }
        self.send(&followed).await?;
        if let Some(ends) = ends {
            self.sent.push_back(Sent { n: self.n, ..ends });
        }
        Ok(())
    }

    async fn send(&mut self, followed: &Followed) -> Result<(), Over> {
        let payload: Bytes = codec::encode(self.to.accept, followed).into();
        loop {
            while let Ok(ack) = self.ears.acks.try_recv() {
                self.take_ack(Some(ack))?;
            }
            self.check_connection()?;
            let now = bus::clock::at();
            let Err(wait) = self.pace.may_send(now, payload.len()) else { break };
            let probe_ms = self.hub.settings.probe_s.ms.min(self.hub.settings.read_every_s.ms);
            let ms = match wait {
                Wait::Ms(ms) => ms,
                Wait::Acknowledgement => probe_ms,
            };
            let mut connection = self.bulk.connection();
            let mut stopping = self.stopping.clone();
            tokio::select! {
                ack = self.ears.acks.recv() => self.take_ack(ack)?,
                _ = connection.changed() => self.check_connection()?,
                () = stopped(&mut stopping) => return Err(Over::Stopping),
                () = tokio::time::sleep(Duration::from_millis(ms.max(1))) => {}
            }
            self.tell_readers_again();
            self.probe().await?;
        }
        self.n += 1;
        self.pace.sent(bus::clock::at(), self.n, payload.len());
        self.spoke_at = bus::clock::at();
        let reply = self.reply(self.n);
        let sent = self.bulk.send(&self.to.reply, Some(reply), self.to.accept, payload).await;
        sent.map_err(|_| Over::Broken)
    }

    fn reply(&self, n: u64) -> String {
        subject::ack(&format!("{}-{n}", self.ears.session), &self.to.caller)
    }

    fn take_ack(&mut self, ack: Option<Ack>) -> Result<(), Over> {
        match ack {
            Some(Ack::Read(n)) => {
                if self.pace.acknowledged(n) {
                    self.tell_read(n);
                }
                Ok(())
            }
            None | Some(Ack::Nobody) => Err(Over::Gone),
        }
    }

    fn check_connection(&self) -> Result<(), Over> {
        let connection = *self.bulk.connection().borrow();
        if connection.up && connection.made == self.made { Ok(()) } else { Err(Over::Broken) }
    }

    /// Speaks to who has been silent for long, to be told when nobody is there any more.
    async fn probe(&mut self) -> Result<(), Over> {
        let now = bus::clock::at();
        if now.since(self.spoke_at) < self.hub.settings.probe_s.ms {
            return Ok(());
        }
        self.spoke_at = now;
        let cursor = self.state.cursor().to_string();
        let still = Followed { cursor, fact: None, output: None, summary: None };
        let payload = codec::encode(self.to.accept, &still).into();
        // Not counted: it acknowledges nothing.
        let reply = self.reply(0);
        let sent = self.bulk.send(&self.to.reply, Some(reply), self.to.accept, payload).await;
        sent.map_err(|_| Over::Broken)
    }

    /// Passes on to the nodes how far he has read.
    fn tell_read(&mut self, n: u64) {
        let mut changed: BTreeMap<StreamKey, (NodeName, u64)> = BTreeMap::new();
        let mut read_to = None;
        while let Some(first) = self.sent.front()
            && first.n <= n
        {
            let Some(sent) = self.sent.pop_front() else { break };
            self.read_bytes += sent.bytes;
            read_to = Some(sent.out);
            changed.insert(sent.key, (sent.node, sent.end));
        }
        if let Some(read_to) = read_to
            && self.read_bytes >= LOOK_FOR_ROOM
            && self.whole
        {
            self.read_bytes = 0;
            self.make_room(read_to);
        }
        for (key, (node, offset)) in changed {
            self.tell(&key, &node, offset);
            if let Some(known) = self.reading.get_mut(&key) {
                known.1 = known.1.max(offset);
            }
        }
    }

    /// What a paced reader has read leaves the stream early, when it is more than half full: nobody
    /// else's output shall go for it.
    fn make_room(&self, read_to: Seq) {
        let log = self.bulk.log(bus::streams::OUTPUT);
        let filter = format!("lh.out.{}.{}.>", self.owner, self.work);
        tokio::spawn(async move {
            let made = async {
                let state = log.state().await?;
                if state.max_bytes > 0 && state.bytes > state.max_bytes / 2 {
                    log.purge(&filter, Some(read_to)).await?;
                }
                Ok::<(), bus::Error>(())
            };
            if let Err(error) = made.await {
                tracing::warn!(%error, "no room was made for output");
            }
        });
    }

    /// Tells the nodes of all jobs that wait for a reader that one is here, and how far he is.
    fn tell_readers_here(&mut self) {
        if !self.paces {
            return;
        }
        let mut live: BTreeMap<StreamKey, NodeName> = BTreeMap::new();
        {
            let core = self.hub.core();
            let Some(work) = core.fold(&self.pool).and_then(|fold| fold.work(self.work)) else {
                return;
            };
            for task in work.tasks.iter().filter(|t| t.spec.output.full == WhenFull::Wait) {
                let spans = task.live.runs();
                let jobs = spans.flat_map(|(a, b, live)| (a..=b).map(move |index| (index, live)));
                for (index, at) in jobs.take(PACED_AT_ONCE) {
                    if !self.state.wants(&task.spec.name, index) {
                        continue;
                    }
                    for stream in [StreamName::stdout(), StreamName::stderr()] {
                        let key = (task.spec.name.clone(), index, at.attempt, stream);
                        live.insert(key, at.node.clone());
                    }
                }
            }
        }
        self.reading.retain(|key, _| live.contains_key(key));
        for (key, node) in live {
            if !self.reading.contains_key(&key) {
                self.tell(&key, &node, 0);
                self.reading.insert(key, (node, 0));
            }
        }
        self.told_at = bus::clock::at();
    }

    /// Says it again from time to time: a node takes silence for a reader who has left.
    fn tell_readers_again(&mut self) {
        let now = bus::clock::at();
        if !self.paces || now.since(self.told_at) < self.hub.settings.read_every_s.ms {
            return;
        }
        self.told_at = now;
        for (key, (node, offset)) in &self.reading {
            self.tell(key, node, *offset);
        }
    }

    fn tell(&self, key: &StreamKey, node: &NodeName, offset: u64) {
        let (task, index, attempt, stream) = key.clone();
        let request = ReadRequest { work: self.work, task, index, attempt, offset, stream };
        let payload = codec::encode(Encoding::MsgPack, &request).into();
        let (bus, subject) = (self.hub.bus.clone(), subject::node(node, "read"));
        tokio::spawn(async move {
            if let Err(error) = bus.publish(&subject, Encoding::MsgPack, payload).await {
                tracing::debug!(subject, %error, "a node was not told what was read");
            }
        });
    }

    /// The last reply: how the work stands.
    async fn farewell(&mut self) {
        let summary = self.hub.core().summary_now(bus::clock::now(), self.work);
        let cursor = self.state.cursor().to_string();
        let followed = Followed { cursor, fact: None, output: None, summary };
        let payload = codec::encode(self.to.accept, &followed).into();
        self.n += 1;
        let reply = self.reply(self.n);
        let _ = self.bulk.send(&self.to.reply, Some(reply), self.to.accept, payload).await;
    }

    /// The empty message that ends it.
    async fn end(&mut self) {
        let sent = self.bulk.send(&self.to.reply, None, Encoding::Json, Bytes::new()).await;
        if let Err(error) = sent {
            tracing::debug!(work = %self.work, %error, "a follow ended without a word");
        }
    }
}
