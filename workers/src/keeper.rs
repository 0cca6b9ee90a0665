//! The keeper: a small process that owns a node's jobs, so that the worker can come and go.
//!
//! One thread runs a loop around `poll` and does what the core ([`core`]) decides; a few more
//! ([`launch`]) start processes and clear up. No bus, no async runtime.
//!
//! Bounds: for each job two pipes, one descriptor of the process and at most 128 KiB of memory; for all
//! together [`output`]'s and [`ledger`]'s windows and a connection's buffer of [`MAX_UNSENT`] and a message.
//! What a job writes beyond that lies on the disk ([`tape`]), or stays in its pipe.
//!
//! Its folder: `keeper.lock` (held while it lives), `keeper.sock`, `keeper.json` (who it is; gone when it
//! has ended in order), `failed.json` (who of its predecessors has not), `pair` (the highest request),
//! `reports.log`, `scratch/`, `spool/`.

mod core;
mod launch;
mod ledger;
mod link;
mod output;
mod outputs;
mod scratch;
mod spawn;
mod tape;
mod tree;

use self::{
    core::{Action, Core, Event, Job, JobId, Settings},
    launch::{Done, Launched, Launcher, Task},
    ledger::Ledger,
    link::{Link, Listener},
    output::{Output, Stream},
    scratch::{Folder, Scratch},
    tree::Mark,
};
use crate::protocol::{self, Answer, FromKeeper, Hello, PROTOCOL, ToKeeper, Verb};
use bus::clock;
use rustix::{
    event::{PollFd, PollFlags, Timespec, poll},
    process::Signal,
};
use schemas::{
    codec,
    id::InstanceId,
    job::{Pair, ReadAnswer, ReadRequest},
    outcome::Ending,
    time::{Millis, Now, Stamp},
    token::NodeName,
};
use serde::{Deserialize, Serialize};
use std::{
    collections::{BTreeMap, BTreeSet, VecDeque},
    fs::{self, File, TryLockError},
    io::{self, Write},
    os::{
        fd::OwnedFd,
        unix::fs::{FileExt, OpenOptionsExt},
    },
    path::{Path, PathBuf},
    sync::Arc,
    time::Duration,
};

/// The connection takes nothing more from windows while so much is unsent.
const MAX_UNSENT: usize = 2 * 1024 * 1024;
/// Connections of workers that were turned away are held open, so many at most.
const TURNED_AWAY: usize = 4;
/// A worker hears how the keeper stands at most so often.
const STATE_MS: u64 = 20;
/// Where the system does not say when a process ends, it is asked so often.
const UNWATCHED_MS: u64 = 10;
/// What is left of an ended job is looked at so often, …
const SWEEP_MS: u64 = 3;
/// … for so long.
const SWEEP_AT_MOST_MS: u64 = 10_000;
/// Orphans of jobs that run are reaped so often.
const PATROL_MS: u64 = 1000;
/// A keeper without a worker looks so often whether its folder is still there.
const LOOK_MS: u64 = 1000;
/// A keeper without jobs and without a worker ends after so long.
const ALONE_MS: u64 = 30_000;
/// How long a predecessor's lock is waited for.
const LOCK_WAIT: Duration = Duration::from_secs(10);
/// Taken from a pipe when its job has ended: more than a pipe holds (unless root asked for a larger one).
const LAST_BYTES: usize = 2 * 1024 * 1024 - CHUNK;
/// Read from a pipe at once.
const CHUNK: usize = 64 * 1024;

/// Why a keeper could not begin or go on.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// Something about a file of its folder.
    #[error("{what} `{}`", path.display())]
    File {
        /// What was tried.
        what: &'static str,
        /// With which file.
        path: PathBuf,
        /// What the system said.
        #[source]
        source: io::Error,
    },
    /// Another one has the folder.
    #[error("another keeper has `{}`", .0.display())]
    Held(PathBuf),
    /// The system refused something that it needs.
    #[error("{0}")]
    System(&'static str, #[source] io::Error),
    /// The arguments are not as they should be.
    #[error("a keeper is started with the node's folder and nothing else")]
    Usage,
}

fn file(what: &'static str, path: &Path) -> impl FnOnce(io::Error) -> Error {
    let path = path.to_owned();
    move |source| Error::File { what, path, source }
}

/// What `keeper.json` says.
#[derive(Debug, Serialize, Deserialize)]
struct Card {
    instance: InstanceId,
    pid: u32,
    since: Stamp,
}

/// The main function of the hidden subcommand: `args` is the node's folder. Returns the exit code.
pub fn keeper_main(args: &[std::ffi::OsString]) -> i32 {
    let result = match args {
        [folder] => Keeper::begin(Path::new(folder)).and_then(Keeper::run),
        _ => Err(Error::Usage),
    };
    match result {
        Ok(()) => 0,
        Err(error) => {
            let error = &error as &dyn std::error::Error;
            tracing::error!(error, "the keeper ends");
            1
        }
    }
}

struct Live {
    job: Arc<Job>,
    pid: i32,
    /// Readable when it has ended, where the system has such.
    pidfd: Option<OwnedFd>,
    pipes: [Option<OwnedFd>; 2],
    folder: Option<Folder>,
    mark: Mark,
    exited: bool,
    sweep: Option<Sweep>,
}

struct Sweep {
    ending: Box<Ending>,
    since: Millis,
}

struct Keeper {
    folder: PathBuf,
    _lock: File,
    card: Card,
    pair: File,
    listener: Listener,
    link: Option<Link>,
    /// The last few that were told that another is attached.
    turned_away: VecDeque<Link>,
    hello: Option<Arc<Hello>>,
    core: Core,
    ledger: Ledger,
    output: Output,
    launcher: Launcher,
    live: BTreeMap<JobId, Live>,
    failed: BTreeSet<InstanceId>,
    failed_said: bool,
    state_said: Option<(Millis, protocol::State)>,
    state_stale: bool,
    patrolled: Millis,
    alone_since: Option<Millis>,
    looked: Millis,
    ended: bool,
}

#[derive(Clone, Copy)]
enum Token {
    Wake,
    Listener,
    Link,
    Process(JobId),
    Pipe(JobId, Stream),
}

impl Keeper {
    fn begin(folder: &Path) -> Result<Self, Error> {
        // Not a leader yet: it was started into the worker's group a moment ago. If it is one, good.
        let _ = rustix::process::setsid();
        spawn::close_inherited_in_children();
        #[cfg(target_os = "linux")]
        rustix::process::set_child_subreaper(Some(rustix::process::getpid()))
            .map_err(|e| Error::System("it cannot be the reaper of its jobs", e.into()))?;
        let folder = folder.canonicalize().map_err(file("find", folder))?;
        let lock = take_lock(&folder)?;
        let (ledger, left) =
            Ledger::open(&folder).map_err(file("open", &folder.join("reports.log")))?;
        let failed = bury_predecessor(&folder, &left.instances)?;
        let scratch = folder.join("scratch");
        let scratch = Scratch::open(scratch.clone()).map_err(file("make", &scratch))?;
        let spool = folder.join("spool");
        fs::create_dir_all(&spool).map_err(file("make", &spool))?;
        let now = clock::now();
        let card = Card {
            instance: InstanceId(uuid::Uuid::new_v4()),
            pid: std::process::id(),
            since: now.wall,
        };
        write_json(&folder.join("keeper.json"), &card)?;
        let (pair, highest) = open_pair(&folder.join("pair"))?;
        let settings = Settings {
            node: NodeName::new("node").expect("a token"),
            lend: schemas::amount::Room::default(),
            cards: Vec::new(),
            grace_ms: 5000,
            lost_after_ms: 30_000,
            max_running: 0,
        };
        let core =
            Core::new(card.instance, highest, &left.reports, ledger.next_id(), settings, now);
        let threads = std::thread::available_parallelism().map_or(2, |n| n.get().clamp(2, 8));
        let launcher = Launcher::start(threads, scratch)
            .map_err(|e| Error::System("threads could not be started", e))?;
        let listener = Listener::bind(&folder).map_err(file("listen at", &folder))?;
        // The worker that started it waits for this line.
        let mut stdout = io::stdout();
        let _ = stdout.write_all(b"ready\n").and_then(|()| stdout.flush());
        if let Ok(null) = File::options().write(true).open("/dev/null") {
            let _ = rustix::stdio::dup2_stdout(null);
        }
        tracing::info!(instance = %card.instance, folder = %folder.display(), "keeper begins");
        Ok(Self {
            output: Output::new(&spool),
            folder,
            _lock: lock,
            card,
            pair,
            listener,
            link: None,
            turned_away: VecDeque::new(),
            hello: None,
            core,
            ledger,
            launcher,
            live: BTreeMap::new(),
            failed,
            failed_said: false,
            state_said: None,
            state_stale: false,
            patrolled: now.at,
            alone_since: Some(now.at),
            looked: now.at,
            ended: false,
        })
    }

    fn run(mut self) -> Result<(), Error> {
        let mut buffer = vec![0; CHUNK];
        while !self.ended {
            let ready = self.wait()?;
            let now = clock::now();
            self.ask_unwatched(now, &mut buffer);
            for (token, flags) in ready {
                match token {
                    Token::Wake => {}
                    Token::Listener => self.accept(now),
                    Token::Link => self.hear(now, flags),
                    Token::Process(id) => self.exited(now, id, &mut buffer),
                    Token::Pipe(id, stream) => self.read(now, id, stream, &mut buffer),
                }
            }
            self.launched(now);
            self.core.hold_back(self.output.ended_jobs());
            self.step(now, Event::Tick);
            self.sweep(now);
            self.patrol(now);
            self.say(now);
            self.end_if_done(now);
        }
        Ok(())
    }

    fn wait(&mut self) -> Result<Vec<(Token, PollFlags)>, Error> {
        let now = clock::now().at;
        let timeout = self.timeout(now);
        let mut tokens = vec![Token::Wake];
        let mut fds = vec![self.launcher.wake()];
        if let Some(link) = &self.link {
            tokens.push(Token::Link);
            fds.push(PollFd::new(link, link.wants()));
        }
        for (id, live) in &self.live {
            // First the pipes: what was written comes before the end.
            for (pipe, stream) in live.pipes.iter().zip([Stream::Stdout, Stream::Stderr]) {
                if let Some(pipe) = pipe
                    && self.output.may_read((*id, stream), now)
                {
                    tokens.push(Token::Pipe(*id, stream));
                    fds.push(PollFd::new(pipe, PollFlags::IN));
                }
            }
            if let Some(pidfd) = live.pidfd.as_ref().filter(|_| !live.exited) {
                tokens.push(Token::Process(*id));
                fds.push(PollFd::new(pidfd, PollFlags::IN));
            }
        }
        // Last, since a worker that has gone makes way for the next.
        tokens.push(Token::Listener);
        fds.push(PollFd::new(&self.listener, PollFlags::IN));
        match poll(&mut fds, timeout.as_ref()) {
            Ok(_) | Err(rustix::io::Errno::INTR) => {}
            Err(error) => return Err(Error::System("it cannot wait for its jobs", error.into())),
        }
        let flags = fds.iter().map(|fd| fd.revents());
        Ok(tokens.into_iter().zip(flags).filter(|(_, flags)| !flags.is_empty()).collect())
    }

    fn timeout(&self, now: Millis) -> Option<Timespec> {
        let sweeping = self.live.values().any(|live| live.sweep.is_some());
        let attached = self.link.as_ref().is_some_and(Link::is_welcome);
        let flush = self.output.next_flush().filter(|_| attached && self.has_room());
        let state = self.state_said.as_ref().filter(|_| self.state_stale && attached);
        let unwatched = self.live.values().any(|live| live.pidfd.is_none() && !live.exited);
        let next = [
            unwatched.then(|| now + UNWATCHED_MS),
            self.core.next_wake(),
            self.output.patience_ends(),
            flush,
            state.map(|(at, _)| *at + STATE_MS),
            sweeping.then(|| now + SWEEP_MS),
            (!self.live.is_empty()).then(|| self.patrolled + PATROL_MS),
            self.alone_since.map(|since| (since + ALONE_MS).min(self.looked + LOOK_MS)),
        ];
        let ms = next.into_iter().flatten().min()?.since(now);
        // A millisecond more, since the clock is cut off at whole ones.
        let ms = i64::try_from(ms + u64::from(ms > 0)).unwrap_or(i64::MAX / 1000);
        Some(Timespec { tv_sec: ms / 1000, tv_nsec: (ms % 1000) * 1_000_000 })
    }

    fn has_room(&self) -> bool {
        self.link.as_ref().is_some_and(|link| link.unsent() < MAX_UNSENT)
    }

    fn accept(&mut self, now: Now) {
        while let Some(mut link) = self.listener.accept() {
            // One that went just before this one came may not have been seen to go.
            self.hear(now, PollFlags::IN);
            if self.link.is_some() {
                let pid = self.hello.as_ref().map_or(0, |hello| hello.pid);
                let why =
                    format!("another worker (process {pid}) is attached to this node's keeper");
                link.put(&FromKeeper::Refused { why });
                link.flush();
                // Closed at once, it would take with it what the other has not read yet.
                self.turned_away.truncate(TURNED_AWAY - 1);
                self.turned_away.push_front(link);
            } else {
                self.link = Some(link);
            }
        }
    }

    fn hear(&mut self, now: Now, flags: PollFlags) {
        let Some(link) = &mut self.link else { return };
        let mut open = true;
        if flags.intersects(PollFlags::IN | PollFlags::HUP | PollFlags::ERR) {
            open = link.read();
        }
        loop {
            let Some(link) = &mut self.link else { return };
            match link.pull() {
                Ok(Some(message)) => self.on_message(now, message),
                Ok(None) => break,
                Err(error) => {
                    tracing::warn!(%error, "a worker broke the protocol");
                    open = false;
                    break;
                }
            }
        }
        if !open {
            self.detach(now);
        }
    }

    fn detach(&mut self, now: Now) {
        if self.link.take().is_some_and(|link| link.is_welcome()) {
            tracing::info!("the worker has gone");
            self.step(now, Event::Detached);
        }
        self.state_said = None;
    }

    fn on_message(&mut self, now: Now, message: ToKeeper) {
        if let ToKeeper::Hello(hello) = message {
            self.on_hello(now, *hello);
            return;
        }
        if !self.link.as_ref().is_some_and(Link::is_welcome) {
            tracing::warn!("a worker did not say hello first");
            self.link = None;
            return;
        }
        match message {
            ToKeeper::Hello(_) => {}
            ToKeeper::Ask { id, verb, msgpack, payload } => {
                self.on_ask(now, id, verb, msgpack, &payload.0);
            }
            ToKeeper::AckReports { ids, pair } => self.step(now, Event::Answered(ids, pair)),
            ToKeeper::AckFailed { instances, pair } => {
                self.step(now, Event::Answered(Vec::new(), pair));
                for instance in &instances {
                    self.failed.remove(instance);
                }
                self.keep_failed();
            }
            ToKeeper::AckFrames { ids } => self.output.ack(&ids),
            ToKeeper::Leave { now: at_once } => self.step(now, Event::Leave { now: at_once }),
            ToKeeper::Exit => {
                if self.core.is_leaving() && self.core.is_idle() {
                    self.leave();
                }
            }
        }
    }

    fn on_hello(&mut self, now: Now, hello: Hello) {
        let Some(link) = &mut self.link else { return };
        if hello.protocol != PROTOCOL || link.is_welcome() {
            let why = format!(
                "the keeper (version {}) speaks protocol {PROTOCOL}, the worker (version {}) {}",
                env!("CARGO_PKG_VERSION"),
                hello.version,
                hello.protocol
            );
            link.put(&FromKeeper::Refused { why });
            link.flush();
            self.detach(now);
            return;
        }
        link.welcome();
        tracing::info!(worker = hello.pid, version = %hello.version, "a worker has come");
        let settings = Settings {
            node: hello.node.clone(),
            lend: hello.lend.clone(),
            cards: hello.cards.clone(),
            grace_ms: hello.grace.ms,
            lost_after_ms: hello.lost_after.ms,
            max_running: max_running(),
        };
        self.hello = Some(Arc::new(hello));
        self.ledger.repeat_all();
        self.output.rewind(now.at);
        self.failed_said = false;
        self.step(now, Event::Attached(Box::new(settings)));
        let state = self.core.state(now);
        let welcome = FromKeeper::Welcome {
            protocol: PROTOCOL,
            instance: self.card.instance,
            pid: self.card.pid,
            since: self.card.since,
            version: env!("CARGO_PKG_VERSION").to_owned(),
            state: state.clone(),
        };
        self.state_said = Some((now.at, state));
        self.put(&welcome);
    }

    fn put(&mut self, message: &FromKeeper) {
        if let Some(link) = self.link.as_mut().filter(|link| link.is_welcome()) {
            link.put(message);
        }
    }

    fn on_ask(&mut self, now: Now, id: u64, verb: Verb, msgpack: bool, payload: &[u8]) {
        let encoding = protocol::encoding(msgpack);
        let event = match verb {
            Verb::Jobs => codec::decode(encoding, payload).map(|r| Event::Jobs(id, r)),
            Verb::Stop => codec::decode(encoding, payload).map(|r| Event::Stop(id, r)),
            Verb::Held => codec::decode(encoding, payload).map(|r| Event::Held(id, r)),
            Verb::Read => match codec::decode::<ReadRequest>(encoding, payload) {
                Ok(request) => {
                    let known = self.output.read_to(request, now.at);
                    let answer = Answer::Read(ReadAnswer { known });
                    self.put(&FromKeeper::Answer { id, answer });
                    return;
                }
                Err(refusal) => Err(refusal),
            },
        };
        match event {
            Ok(event) => self.step(now, event),
            Err(refusal) => {
                self.put(&FromKeeper::Answer { id, answer: Answer::Refused(refusal) });
            }
        }
    }

    /// Lets the core decide and does it.
    fn step(&mut self, now: Now, event: Event) {
        let tick = matches!(event, Event::Tick);
        let mut actions = self.core.step(now, event);
        self.state_stale |= !tick || !actions.is_empty();
        while !actions.is_empty() {
            let mut later = Vec::new();
            for action in actions {
                if let Some(event) = self.perform(now, action) {
                    later.extend(self.core.step(now, event));
                }
            }
            actions = later;
        }
    }

    fn perform(&mut self, now: Now, action: Action) -> Option<Event> {
        match action {
            Action::Answer(id, answer) => self.put(&FromKeeper::Answer { id, answer }),
            Action::Start(job) => {
                if let Some(hello) = self.hello.clone() {
                    self.output.begin(&job, now.at, hello.reader_after.ms);
                    self.launcher.give(Task::Launch(job, hello));
                }
            }
            Action::Signal(id, kill) => {
                let signal = if kill { Signal::KILL } else { Signal::TERM };
                if let Some(live) = self.live.get_mut(&id).filter(|live| !live.exited) {
                    tree::signal_all(&mut live.mark, signal);
                }
            }
            Action::Clean(id, ending) => return self.clean(now, id, ending),
            Action::Forget(id) => {
                self.output.end(id, now.at);
                self.live.remove(&id);
            }
            Action::Report(reports) => {
                let written = self.ledger.append(reports, now);
                self.note(written);
            }
            Action::Drop(ids) => {
                let written = self.ledger.done(&ids);
                self.note(written);
            }
            Action::Repeat(ids) => self.ledger.repeat(&ids),
            Action::Keep(Pair { epoch, n }) => {
                let bytes = [epoch.to_be_bytes(), n.to_be_bytes()].concat();
                let written = self.pair.write_all_at(&bytes, 0);
                self.note(written);
            }
        }
        None
    }

    fn note(&self, written: io::Result<()>) {
        if let Err(error) = written {
            tracing::error!(%error, folder = %self.folder.display(), "the node's folder cannot be written");
        }
    }

    fn launched(&mut self, now: Now) {
        for done in self.launcher.done() {
            match done {
                Done::Launched(id, launched) => self.on_launched(now, id, launched),
                Done::NotLaunched(id, why) => self.step(now, Event::NotSpawned(id, why)),
                Done::Finished(id, ending) => self.step(now, Event::Gone(id, ending)),
            }
        }
    }

    fn on_launched(&mut self, now: Now, id: JobId, launched: Launched) {
        let Some(job) = self.core.job(id) else { return };
        let variable = |name: &str, value: &dyn std::fmt::Display| {
            format!("LONGHOUSE_{name}={value}").into_bytes()
        };
        let variables = vec![
            variable("WORK", &job.shared.work),
            variable("TASK", &job.shared.task),
            variable("INDEX", &job.index),
            variable("ATTEMPT", &job.shared.attempt),
        ];
        let live = Live {
            job,
            pid: launched.pid,
            pidfd: launched.pidfd,
            pipes: [Some(launched.stdout), Some(launched.stderr)],
            folder: Some(launched.folder),
            mark: Mark { leader: launched.pid, variables, seen: BTreeSet::new() },
            exited: false,
            sweep: None,
        };
        self.live.insert(id, live);
        self.step(now, Event::Spawned(id));
    }

    fn read(&mut self, now: Now, id: JobId, stream: Stream, buffer: &mut [u8]) {
        let Some(live) = self.live.get_mut(&id) else { return };
        let slot = &mut live.pipes[stream as usize];
        let Some(pipe) = slot else { return };
        match rustix::io::read(&*pipe, &mut *buffer) {
            Ok(0) => *slot = None,
            Ok(n) => self.output.take((id, stream), now.at, &buffer[..n]),
            Err(rustix::io::Errno::AGAIN | rustix::io::Errno::INTR) => {}
            Err(_) => *slot = None,
        }
    }

    /// Where the system does not say when a process ends, each is asked.
    fn ask_unwatched(&mut self, now: Now, buffer: &mut [u8]) {
        let unwatched = |live: &Live| live.pidfd.is_none() && !live.exited;
        let ids: Vec<JobId> =
            self.live.iter().filter(|(_, live)| unwatched(live)).map(|(id, _)| *id).collect();
        for id in ids {
            self.exited(now, id, buffer);
        }
    }

    fn exited(&mut self, now: Now, id: JobId, buffer: &mut [u8]) {
        let Some(live) = self.live.get_mut(&id).filter(|live| !live.exited) else { return };
        if live.pidfd.is_some() {
            // Before it is reaped, since its id is nobody else's until then.
            tree::kill_group(live.pid, Signal::KILL);
        }
        let exit = match spawn::reap(live.pid) {
            Ok(Some(exit)) => exit,
            Ok(None) => return,
            Err(error) => {
                tracing::error!(%error, pid = live.pid, "the end of a job was taken by somebody else");
                spawn::Exit::default()
            }
        };
        if live.pidfd.is_none() {
            tree::kill_group(live.pid, Signal::KILL);
        }
        live.exited = true;
        // Whatever is in the pipes now, and no more: a process that escaped may hold them open for ever.
        for stream in [Stream::Stdout, Stream::Stderr] {
            let Some(pipe) = live.pipes[stream as usize].take() else { continue };
            let mut left = LAST_BYTES;
            while let Ok(n @ 1..) = rustix::io::read(&pipe, &mut *buffer) {
                self.output.take((id, stream), now.at, &buffer[..n]);
                if n >= left {
                    break;
                }
                left -= n;
            }
        }
        self.step(now, Event::Exited(id, exit));
    }

    fn clean(&mut self, now: Now, id: JobId, mut ending: Box<Ending>) -> Option<Event> {
        self.output.fill(id, &mut ending);
        let Some(live) = self.live.get_mut(&id) else {
            // It never ran.
            return Some(Event::Gone(id, ending));
        };
        if tree::kill_orphans(&live.mark) {
            live.sweep = Some(Sweep { ending, since: now.at });
            return None;
        }
        self.finish(id, ending)
    }

    fn finish(&mut self, id: JobId, ending: Box<Ending>) -> Option<Event> {
        let live = self.live.get_mut(&id)?;
        let folder = live.folder.take()?;
        let folder = if live.job.shared.spec.outputs.is_empty() {
            match self.launcher.take_back_if_empty(folder) {
                Ok(()) => return Some(Event::Gone(id, ending)),
                Err(folder) => folder,
            }
        } else {
            folder
        };
        self.launcher.give(Task::Finish(live.job.clone(), ending, folder));
        None
    }

    fn sweep(&mut self, now: Now) {
        let sweeping: Vec<JobId> =
            self.live.iter().filter(|(_, l)| l.sweep.is_some()).map(|(id, _)| *id).collect();
        for id in sweeping {
            let Some(live) = self.live.get_mut(&id) else { continue };
            let since = live.sweep.as_ref().map_or(now.at, |sweep| sweep.since);
            if tree::kill_orphans(&live.mark) && now.at.since(since) < SWEEP_AT_MOST_MS {
                continue;
            }
            let Some(sweep) = live.sweep.take() else { continue };
            if let Some(event) = self.finish(id, sweep.ending) {
                self.step(now, event);
            }
        }
    }

    /// Reaps the orphans of jobs that run; ends those that nobody owns when no job runs.
    fn patrol(&mut self, now: Now) {
        if self.live.is_empty() {
            if self.patrolled != Millis(0) && self.core.is_idle() {
                tree::kill_all_orphans();
                self.patrolled = Millis(0);
            }
        } else if now.at.since(self.patrolled) >= PATROL_MS {
            self.patrolled = now.at;
            tree::reaped_orphans();
        }
    }

    /// Says what there is to say, as far as there is room.
    fn say(&mut self, now: Now) {
        if !self.link.as_ref().is_some_and(Link::is_welcome) {
            return;
        }
        while self.has_room() {
            match self.ledger.next(now) {
                Ok(reports) if reports.is_empty() => break,
                Ok(reports) => self.put(&FromKeeper::Reports(reports)),
                Err(error) => {
                    self.note(Err(error));
                    break;
                }
            }
        }
        if !self.failed_said && !self.failed.is_empty() && !self.ledger.has_earlier() {
            self.failed_said = true;
            let instances = self.failed.iter().copied().collect();
            self.put(&FromKeeper::Failed { instances });
        }
        if self.has_room() {
            for message in self.output.flush(now.at) {
                self.put(&message);
            }
        }
        let due = self.state_said.as_ref().is_none_or(|(at, _)| now.at >= *at + STATE_MS);
        if self.state_stale && due {
            let state = self.core.state(now);
            self.state_stale = false;
            if self.state_said.as_ref().is_none_or(|(_, said)| *said != state) {
                self.put(&FromKeeper::State(state.clone()));
            }
            self.state_said = Some((now.at, state));
        }
        if let Some(link) = &mut self.link
            && !link.flush()
        {
            self.detach(now);
        }
    }

    fn end_if_done(&mut self, now: Now) {
        let idle = self.core.is_idle() && self.live.is_empty();
        if idle
            && self.core.is_leaving()
            && self.core.is_answered()
            && self.output.is_empty()
            && self.failed.is_empty()
        {
            self.leave();
            return;
        }
        if self.link.is_some() {
            self.alone_since = None;
            return;
        }
        let since = *self.alone_since.get_or_insert(now.at);
        let lost = now.at >= self.looked + LOOK_MS && self.is_out_of_reach(now);
        if lost && !idle && !self.core.is_leaving() {
            tracing::warn!("the node's folder is gone, and no worker can come back");
            self.step(now, Event::Leave { now: true });
        }
        if idle && (lost || now.at.since(since) >= ALONE_MS) {
            // Without a goodbye: the next keeper says that this one is gone.
            tracing::info!("no worker has come and no job is left");
            tree::kill_all_orphans();
            self.ended = true;
        }
    }

    /// Whether somebody has removed the folder, so that nobody finds the way here.
    fn is_out_of_reach(&mut self, now: Now) -> bool {
        self.looked = now.at;
        !self.folder.join("keeper.json").exists()
    }

    fn leave(&mut self) {
        tracing::info!("keeper ends in order");
        tree::kill_all_orphans();
        let _ = fs::remove_file(self.folder.join("keeper.json"));
        self.put(&FromKeeper::State(self.core.state(clock::now())));
        self.put(&FromKeeper::Left);
        if let Some(link) = &mut self.link {
            link.flush_wholly();
        }
        self.ended = true;
    }

    fn keep_failed(&self) {
        let path = self.folder.join("failed.json");
        if self.failed.is_empty() {
            let _ = fs::remove_file(path);
        } else if let Err(error) = write_json(&path, &self.failed) {
            tracing::error!(%error, "the failed instances could not be written down");
        }
    }
}

/// Descriptors are what bounds the number of processes that need no room.
fn max_running() -> usize {
    let limit = rustix::process::getrlimit(rustix::process::Resource::Nofile).current;
    let limit = usize::try_from(limit.unwrap_or(u64::MAX)).unwrap_or(usize::MAX);
    // Two pipes, the process, a spool each, and some that a thread needs while it starts one.
    (limit.saturating_sub(64) / 8).clamp(1, 2000)
}

fn take_lock(folder: &Path) -> Result<File, Error> {
    let path = folder.join("keeper.lock");
    let lock = File::options()
        .create(true)
        .truncate(false)
        .write(true)
        .open(&path)
        .map_err(file("open", &path))?;
    let until = clock::now().at + u64::try_from(LOCK_WAIT.as_millis()).unwrap_or(u64::MAX);
    loop {
        match lock.try_lock() {
            Ok(()) => return Ok(lock),
            Err(TryLockError::WouldBlock) if clock::now().at < until => {
                std::thread::sleep(Duration::from_millis(10));
            }
            Err(TryLockError::WouldBlock) => return Err(Error::Held(folder.to_owned())),
            Err(TryLockError::Error(error)) => return Err(file("lock", &path)(error)),
        }
    }
}

/// Ends what a keeper left behind that did not end in order, and says which instances are to be called
/// failed.
fn bury_predecessor(
    folder: &Path,
    reported: &BTreeSet<InstanceId>,
) -> Result<BTreeSet<InstanceId>, Error> {
    let mut failed: BTreeSet<InstanceId> =
        read_json(&folder.join("failed.json")).unwrap_or_default();
    let card_path = folder.join("keeper.json");
    let Some(card) = read_json::<Card>(&card_path) else { return Ok(failed) };
    tracing::warn!(instance = %card.instance, "an earlier keeper did not end in order");
    let scratch = folder.join("scratch");
    let node = folder.file_name().unwrap_or_default().as_encoded_bytes();
    let variable = [b"LONGHOUSE_NODE=", node].concat();
    let mut round = 0;
    while tree::kill_left_behind(&scratch, &variable) > 0 {
        round += 1;
        if round > 500 {
            // It is not said to be gone; its lease will tell.
            tracing::error!(instance = %card.instance, "its processes cannot be ended");
            return Ok(failed);
        }
        std::thread::sleep(Duration::from_millis(10));
    }
    failed.insert(card.instance);
    tracing::info!(reports = reported.len(), "its reports are sent first");
    write_json(&folder.join("failed.json"), &failed)?;
    fs::remove_file(&card_path).map_err(file("remove", &card_path))?;
    Ok(failed)
}

fn open_pair(path: &Path) -> Result<(File, Pair), Error> {
    let pair = File::options()
        .create(true)
        .truncate(false)
        .read(true)
        .write(true)
        .mode(0o600)
        .open(path)
        .map_err(file("open", path))?;
    let mut bytes = [0; 16];
    let highest = match pair.read_exact_at(&mut bytes, 0) {
        Ok(()) => {
            let [epoch, n] = [&bytes[..8], &bytes[8..]]
                .map(|half| u64::from_be_bytes(half.try_into().expect("eight bytes")));
            Pair { epoch, n }
        }
        Err(_) => Pair::default(),
    };
    Ok((pair, highest))
}

fn read_json<T: serde::de::DeserializeOwned>(path: &Path) -> Option<T> {
    serde_json::from_slice(&fs::read(path).ok()?).ok()
}

fn write_json<T: Serialize>(path: &Path, value: &T) -> Result<(), Error> {
    let bytes = serde_json::to_vec(value).expect("plain data always becomes JSON");
    let new = path.with_extension("new");
    fs::write(&new, bytes).map_err(file("write", &new))?;
    fs::rename(&new, path).map_err(file("write", path))
}
