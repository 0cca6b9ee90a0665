//! A worker's side of the wire, for tests: starts a keeper, asks, and collects what comes.
#![expect(clippy::unwrap_used, reason = "a test that cannot go on should stop")]

use schemas::{
    amount::{Cpus, Room},
    blob::Blob,
    codec::{Encoding, encode},
    id::{InstanceId, WorkId},
    indices::Indices,
    job::{
        Ask, Became, HeldAnswer, HeldRequest, JobBatch, JobRef, JobSpec, JobsAnswer, JobsRequest,
        Pair, ReadRequest, StopRequest, StopWhy,
    },
    node::Card,
    outcome::Ending,
    output::Frames,
    time::Seconds,
    token::{NodeName, OwnerName, StreamName, TaskName},
    work::{OutputPolicy, Process, Run},
};
use serde::Serialize;
use std::{
    collections::BTreeMap,
    os::unix::net::UnixStream,
    path::{Path, PathBuf},
    process::{Child, Command, Stdio},
    sync::Arc,
    time::Duration,
};
use workers::protocol::{
    Answer, FromKeeper, Hello, Incoming, Numbered, PROTOCOL, State, ToKeeper, Verb, receive, send,
};

/// Nothing here takes nearly so long.
const PATIENCE: Duration = Duration::from_secs(60);

/// A keeper's process and its folder.
pub(crate) struct House {
    pub(crate) dir: tempfile::TempDir,
    pub(crate) keeper: Child,
    pub(crate) hello: Hello,
}

impl Drop for House {
    fn drop(&mut self) {
        let _ = self.keeper.kill();
        let _ = self.keeper.wait();
    }
}

/// More than a fork takes.
const ATTACH_TRIES: u32 = 100_000;

impl House {
    pub(crate) fn new() -> Self {
        Self::with(|_| {})
    }

    pub(crate) fn with(change: impl FnOnce(&mut Hello)) -> Self {
        let dir = tempfile::tempdir().unwrap();
        let folder = dir.path().join("nodes/home");
        std::fs::create_dir_all(&folder).unwrap();
        let env = [("PATH", "/usr/bin:/bin"), ("HOME", "/home/me"), ("USER", "me"), ("TZ", "UTC")];
        let mut env: BTreeMap<String, String> =
            env.map(|(k, v)| (k.to_owned(), v.to_owned())).into();
        env.insert("SECRET".to_owned(), "of the worker".to_owned());
        let mut hello = Hello {
            protocol: PROTOCOL,
            pid: std::process::id(),
            version: "test".to_owned(),
            node: NodeName::new("home").unwrap(),
            lend: Room { cpus: Cpus::new(4), memory_mib: 4096, ..Room::default() },
            cards: Vec::new(),
            env,
            grace: Seconds::from_ms(200),
            lost_after: Seconds::new(30),
            reader_after: Seconds::new(30),
        };
        change(&mut hello);
        let keeper = start(&folder);
        Self { dir, keeper, hello }
    }

    pub(crate) fn folder(&self) -> PathBuf {
        self.dir.path().join("nodes/home")
    }

    /// Ends the keeper at once and starts another in the same folder.
    pub(crate) fn replace_keeper(&mut self) {
        self.keeper.kill().unwrap();
        self.keeper.wait().unwrap();
        self.keeper = start(&self.folder());
    }

    /// As a node does: again while the keeper says that another is there. A worker that went a
    /// moment ago seems to be as long as a child that another test has just forked holds its socket.
    pub(crate) fn attach(&self) -> Desk {
        for _ in 0..ATTACH_TRIES {
            match self.try_attach() {
                Ok(desk) => return desk,
                Err(why) if why.contains("is attached") => std::thread::yield_now(),
                Err(why) => panic!("{why}"),
            }
        }
        panic!("another worker stays attached")
    }

    pub(crate) fn try_attach(&self) -> Result<Desk, String> {
        let stream = workers::connect(&self.folder()).map_err(|e| e.to_string())?;
        stream.set_read_timeout(Some(PATIENCE)).unwrap();
        let mut desk = Desk {
            stream,
            incoming: Incoming::default(),
            instance: InstanceId(uuid::Uuid::nil()),
            state: State::default(),
            pair: Pair { epoch: 1, n: 0 },
            next_id: 0,
            answers: BTreeMap::new(),
            reports: Vec::new(),
            failed: Vec::new(),
            frames: Vec::new(),
            ack_reports: true,
            ack_frames: true,
            left: false,
        };
        desk.say(&ToKeeper::Hello(Box::new(self.hello.clone())));
        match desk.receive() {
            FromKeeper::Welcome { instance, state, .. } => {
                desk.instance = instance;
                desk.pair.n = state.highest.n;
                desk.state = state;
                Ok(desk)
            }
            FromKeeper::Refused { why } => Err(why),
            other => panic!("{other:?} for a welcome"),
        }
    }
}

pub(crate) fn start(folder: &Path) -> Child {
    let mut keeper = Command::new(std::env::current_exe().unwrap())
        .arg("keeper")
        .arg(folder)
        .env_clear()
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .stderr(Stdio::inherit())
        .spawn()
        .unwrap();
    let mut line = String::new();
    let stdout = keeper.stdout.take().unwrap();
    std::io::BufRead::read_line(&mut std::io::BufReader::new(stdout), &mut line).unwrap();
    assert_eq!(line, "ready\n");
    keeper
}

/// A frame as it came.
#[derive(Debug, Clone)]
pub(crate) struct Seen {
    pub(crate) stream: String,
    pub(crate) offset: u64,
    pub(crate) bytes: Vec<u8>,
    pub(crate) gap: Option<u64>,
    pub(crate) live: bool,
}

/// An attached worker.
pub(crate) struct Desk {
    stream: UnixStream,
    incoming: Incoming,
    pub(crate) instance: InstanceId,
    pub(crate) state: State,
    pub(crate) pair: Pair,
    next_id: u64,
    answers: BTreeMap<u64, Answer>,
    pub(crate) reports: Vec<Numbered>,
    pub(crate) failed: Vec<InstanceId>,
    pub(crate) frames: Vec<Seen>,
    pub(crate) ack_reports: bool,
    pub(crate) ack_frames: bool,
    pub(crate) left: bool,
}

impl Desk {
    pub(crate) fn say(&mut self, message: &ToKeeper) {
        send(&mut self.stream, message).unwrap();
    }

    fn receive(&mut self) -> FromKeeper {
        receive(&mut self.stream, &mut self.incoming).unwrap().expect("the keeper hung up")
    }

    /// Takes in one message.
    pub(crate) fn step(&mut self) {
        match self.receive() {
            FromKeeper::Answer { id, answer } => {
                self.answers.insert(id, answer);
            }
            FromKeeper::Reports(reports) => {
                let ids = reports.iter().map(|r| r.id).collect();
                self.reports.extend(reports);
                if self.ack_reports {
                    let pair = self.pair;
                    self.say(&ToKeeper::AckReports { ids, pair });
                }
            }
            FromKeeper::Failed { instances } => self.failed.extend(instances),
            FromKeeper::Frames { id, live, stream, payload, .. } => {
                let frames: Frames = schemas::codec::decode(Encoding::MsgPack, &payload.0).unwrap();
                self.frames.extend(frames.frames.into_iter().map(|f| Seen {
                    stream: stream.to_string(),
                    offset: f.offset,
                    bytes: f.bytes.0.to_vec(),
                    gap: f.gap,
                    live,
                }));
                if self.ack_frames && !live {
                    self.say(&ToKeeper::AckFrames { ids: vec![id] });
                }
            }
            FromKeeper::State(state) => self.state = state,
            FromKeeper::Left => self.left = true,
            other => panic!("{other:?} in the middle"),
        }
    }

    pub(crate) fn until(&mut self, mut done: impl FnMut(&Self) -> bool) {
        while !done(self) {
            self.step();
        }
    }

    pub(crate) fn next_ask(&mut self) -> Ask {
        self.pair.n += 1;
        Ask { epoch: self.pair.epoch, n: self.pair.n, instance: self.instance }
    }

    pub(crate) fn ask(
        &mut self,
        verb: Verb,
        encoding: Encoding,
        request: &impl Serialize,
    ) -> Answer {
        self.ask_bytes(verb, encoding, encode(encoding, request))
    }

    pub(crate) fn ask_bytes(&mut self, verb: Verb, encoding: Encoding, payload: Vec<u8>) -> Answer {
        self.next_id += 1;
        let id = self.next_id;
        let msgpack = encoding == Encoding::MsgPack;
        self.say(&ToKeeper::Ask { id, verb, msgpack, payload: Blob::from(payload) });
        self.until(|desk| desk.answers.contains_key(&id));
        self.answers.remove(&id).unwrap()
    }

    pub(crate) fn jobs(&mut self, jobs: Vec<JobBatch>) -> JobsAnswer {
        let ask = self.next_ask();
        match self.ask(Verb::Jobs, Encoding::MsgPack, &JobsRequest { ask, jobs }) {
            Answer::Jobs(answer) => answer,
            other => panic!("{other:?}"),
        }
    }

    pub(crate) fn start(&mut self, batch: JobBatch) {
        assert_eq!(self.jobs(vec![batch]).refused, []);
    }

    pub(crate) fn stop(&mut self, jobs: JobRef, why: StopWhy) {
        let ask = self.next_ask();
        let answer =
            self.ask(Verb::Stop, Encoding::Json, &StopRequest { ask, jobs: vec![jobs], why });
        assert!(matches!(answer, Answer::Stop(_)), "{answer:?}");
    }

    pub(crate) fn held(&mut self) -> HeldAnswer {
        let ask = self.next_ask();
        match self.ask(Verb::Held, Encoding::Json, &HeldRequest { ask }) {
            Answer::Held(answer) => answer,
            other => panic!("{other:?}"),
        }
    }

    pub(crate) fn read_to(&mut self, batch: &JobBatch, offset: u64) -> bool {
        let request = ReadRequest {
            work: batch.work,
            task: batch.task.clone(),
            index: 0,
            attempt: batch.attempt,
            offset,
            stream: StreamName::stdout(),
        };
        match self.ask(Verb::Read, Encoding::MsgPack, &request) {
            Answer::Read(answer) => answer.known,
            other => panic!("{other:?}"),
        }
    }

    /// Waits for one report and gives the ending in it.
    pub(crate) fn ending(&mut self) -> Ending {
        self.until(|desk| !desk.reports.is_empty());
        match self.reports.remove(0).entry.became {
            Became::Ended(ending) => *ending,
            other => panic!("{other:?}"),
        }
    }

    /// Waits for the end of a job that is the only one.
    pub(crate) fn run(&mut self, batch: JobBatch) -> Ending {
        self.start(batch);
        self.ending()
    }

    /// As [`Desk::run`], where other reports may come before it.
    pub(crate) fn run_after(&mut self, batch: JobBatch) -> Ending {
        let jobs = batch.all();
        self.start(batch);
        self.until(|desk| desk.reports.iter().any(|r| r.entry.jobs == jobs));
        let at = self.reports.iter().position(|r| r.entry.jobs == jobs).unwrap();
        match self.reports.remove(at).entry.became {
            Became::Ended(ending) => *ending,
            other => panic!("{other:?}"),
        }
    }

    /// What has come of a stream, put together; whether a byte came twice.
    pub(crate) fn heard(&self, stream: &str) -> (Vec<u8>, bool) {
        let (mut all, mut twice) = (Vec::new(), false);
        for frame in self.frames.iter().filter(|f| f.stream == stream && !f.live) {
            let at = usize::try_from(frame.offset).unwrap();
            assert!(at <= all.len(), "bytes are missing before {at}");
            twice |= at < all.len();
            all.truncate(at);
            all.extend_from_slice(&frame.bytes);
        }
        (all, twice)
    }
}

/// A batch of one job.
pub(crate) fn job(argv: &[&str]) -> JobBatch {
    JobBatch {
        owner: OwnerName::owner(),
        work: WorkId(uuid::Uuid::now_v7()),
        task: TaskName::main(),
        attempt: 1,
        indices: Indices::one(0),
        items: Vec::new(),
        spec: Arc::new(JobSpec {
            run: Run::Process(Process {
                argv: argv.iter().map(|a| (*a).to_owned()).collect(),
                env: BTreeMap::new(),
                stdin: None,
            }),
            array: false,
            room: Room { cpus: Cpus::new(1), ..Room::default() },
            vram_mib: 0,
            timeout_s: None,
            outputs: Vec::new(),
            env_from_node: Vec::new(),
            output: OutputPolicy::default(),
            lost_after_s: None,
        }),
    }
}

/// A batch of one shell script.
pub(crate) fn sh(script: &str) -> JobBatch {
    job(&["sh", "-c", script])
}

/// Changes what a batch is made of.
pub(crate) trait Change: Sized {
    fn spec(self, change: impl FnOnce(&mut JobSpec)) -> Self;
    fn process(self, change: impl FnOnce(&mut Process)) -> Self;
    fn all(&self) -> JobRef;
}

impl Change for JobBatch {
    fn spec(mut self, change: impl FnOnce(&mut JobSpec)) -> Self {
        change(Arc::make_mut(&mut self.spec));
        self
    }

    fn process(self, change: impl FnOnce(&mut Process)) -> Self {
        self.spec(|spec| match &mut spec.run {
            Run::Process(process) => change(process),
            Run::Echo(_) => panic!("an echo"),
        })
    }

    fn all(&self) -> JobRef {
        JobRef {
            work: self.work,
            task: self.task.clone(),
            attempt: self.attempt,
            indices: self.indices.clone(),
        }
    }
}

/// A card without a name.
pub(crate) fn card(index: u32, vram_mib: u64) -> Card {
    Card { index, vram_mib, ..Card::default() }
}
