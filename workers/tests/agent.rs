//! A node on a real bus, asked as a scheduler asks. This binary is the keeper and the bus's shim, too.
#![expect(clippy::unwrap_used, reason = "a test that cannot go on should stop")]

use bus::{
    Bus, Error, Hearing,
    server::{FolderLock, Holder, Paths, Say, Search, Server, shim_main, take_house},
    streams::Shares,
};
use futures::StreamExt;
use libtest_mimic::{Failed, Trial};
use schemas::{
    amount::{Cpus, Room},
    codec::{Encoding, encode},
    error::code,
    id::{InstanceId, WorkId},
    indices::Indices,
    job::{
        Ask, Became, HeldAnswer, HeldRequest, JobBatch, JobSpec, JobsAnswer, JobsRequest, Report,
        ReportAnswer, ReportEntry,
    },
    node::Beat,
    outcome::IndexState,
    output::Frames,
    token::{CallerName, NodeName, OwnerName, PoolName, TaskName},
    work::{OutputPolicy, Process, Run},
};
use std::{
    collections::BTreeMap, ffi::OsString, future::Future, path::Path, process::ExitCode, sync::Arc,
    time::Duration,
};
use workers::{Agent, Settings};

/// Nothing here takes nearly so long.
const PATIENCE: Duration = Duration::from_secs(120);

fn main() -> ExitCode {
    let args: Vec<OsString> = std::env::args_os().skip(1).collect();
    match args.first().and_then(|first| first.to_str()) {
        Some("keeper") => {
            return ExitCode::from(u8::try_from(workers::keeper_main(&args[1..])).unwrap_or(1));
        }
        Some("bus-shim") => std::process::exit(shim_main(&args[1..])),
        _ => {}
    }
    macro_rules! trials {
        ($($name:ident),* $(,)?) => {
            vec![$(Trial::test(stringify!($name), || patiently($name()))),*]
        };
    }
    let trials = trials![
        a_node_beats_runs_reports_and_streams,
        requests_meant_for_another_late_or_malformed_are_refused,
        an_unanswered_report_is_said_again,
        what_was_answered_just_before_the_bus_went_is_held_and_said_again,
        a_worker_detaches_and_the_next_takes_up_the_same_jobs,
        a_killed_keeper_is_replaced_and_named,
        a_node_that_leaves_says_goodbye_last,
        a_second_node_in_one_folder_gets_another_name,
        the_bus_goes_and_comes_back_and_nothing_is_missing,
    ];
    libtest_mimic::run(&libtest_mimic::Arguments::from_args(), trials).exit_code()
}

fn patiently(test: impl Future<Output = ()>) -> Result<(), Failed> {
    let runtime = tokio::runtime::Runtime::new()?;
    let ended = runtime.block_on(async { tokio::time::timeout(PATIENCE, test).await });
    runtime.shutdown_background();
    Ok(ended?)
}

/// A bus, and a scheduler's ears on it.
struct House {
    dir: tempfile::TempDir,
    server: Server,
    lock: FolderLock,
    bus: Bus,
    beats: Hearing,
    reports: Hearing,
    entries: Vec<ReportEntry>,
    failed: Vec<InstanceId>,
    n: u64,
}

#[expect(clippy::disallowed_methods, reason = "a test hands in the environment it was given")]
fn path() -> Option<OsString> {
    std::env::var_os("PATH")
}

impl House {
    async fn up() -> Self {
        let dir = tempfile::tempdir().unwrap();
        let paths = Paths::open(dir.path()).unwrap();
        let now = bus::clock::wall();
        let lock = take_house(&paths, &Holder::this_process("test", now), &Say::nothing()).unwrap();
        let server = serve(&paths, &lock).await;
        let door = paths.door().unwrap().unwrap();
        let bus = connect(&door.url, &door.creds).await;
        bus.lay_streams(&[PoolName::main()], Shares::of(64 << 20)).await.unwrap();
        let beats = bus.hear("lh.beat.*").await.unwrap();
        let reports = bus.hear("lh.report.main.*").await.unwrap();
        bus.flush().await.unwrap();
        let (entries, failed) = (Vec::new(), Vec::new());
        Self { dir, server, lock, bus, beats, reports, entries, failed, n: 0 }
    }

    fn settings(&self) -> Settings {
        let keeper = std::env::current_exe().unwrap();
        let mut settings = Settings::new(self.dir.path().to_owned(), "My-Host.lan".into(), keeper);
        settings.lend = "cpus=2,memory=1GiB".parse().unwrap();
        settings.env.insert("PATH".to_owned(), "/usr/bin:/bin".to_owned());
        settings.beat = Duration::from_millis(100);
        settings.grace = Duration::from_millis(200);
        settings
    }

    async fn another_connection(&self) -> Bus {
        let door = Paths::open(self.dir.path()).unwrap().door().unwrap().unwrap();
        connect(&door.url, &door.creds).await
    }

    async fn node(&self) -> Agent {
        let bus = self.another_connection().await;
        workers::start(bus, self.settings()).await.unwrap()
    }

    async fn beat(&mut self, wanted: impl Fn(&Beat) -> bool) -> Beat {
        loop {
            let beat: Beat = self.beats.next().await.unwrap().decode().unwrap();
            if wanted(&beat) {
                return beat;
            }
        }
    }

    /// Answers one report.
    async fn report(&mut self) {
        let message = self.reports.next().await.unwrap();
        let report: Report = message.decode().unwrap();
        self.entries.extend(report.entries);
        self.failed.extend(report.failed);
        self.n += 1;
        message.answer(&self.bus, &ReportAnswer { epoch: 3, n: self.n }).await.unwrap();
    }

    async fn entry(&mut self) -> ReportEntry {
        while self.entries.is_empty() {
            self.report().await;
        }
        self.entries.remove(0)
    }

    fn ask(&mut self, instance: InstanceId) -> Ask {
        self.n += 1;
        Ask { epoch: 3, n: self.n, instance }
    }

    async fn held(&mut self, instance: InstanceId) -> HeldAnswer {
        let ask = self.ask(instance);
        self.bus.ask("lh.node.my-host.held", &HeldRequest { ask }, PATIENCE).await.unwrap()
    }

    async fn jobs(&mut self, instance: InstanceId, jobs: Vec<JobBatch>) {
        let request = JobsRequest { ask: self.ask(instance), jobs };
        let answer: JobsAnswer =
            self.bus.ask("lh.node.my-host.jobs", &request, PATIENCE).await.unwrap();
        assert_eq!(answer.refused, []);
    }

    /// What is stored of a stream of one job, read as a reader does who passes over what he has already.
    async fn output(&self, subject: &str, len: usize) -> Vec<u8> {
        let mut heard = Vec::new();
        let mut tail = self.bus.log(bus::streams::OUTPUT).tail(subject, 1).await.unwrap();
        while heard.len() < len {
            for stored in tail.next_batch(100).await {
                let frames: Frames =
                    schemas::codec::decode(Encoding::MsgPack, &stored.payload).unwrap();
                for frame in frames.frames {
                    if frame.offset == heard.len() as u64 {
                        heard.extend_from_slice(&frame.bytes.0);
                    }
                }
            }
        }
        heard
    }

    async fn down(self) {
        self.server.stop().await.unwrap();
    }
}

async fn serve(paths: &Paths, lock: &FolderLock) -> Server {
    let cache = Path::new(env!("CARGO_TARGET_TMPDIR")).join("nats cache");
    let search = Search { path: path(), cache, ..Search::default() };
    let now = bus::clock::wall();
    let mut settings = bus::server::Settings::new(paths.clone(), search, now, Say::nothing());
    settings.port = Some(0);
    Server::start(settings, lock).await.unwrap()
}

async fn connect(url: &str, creds: &Path) -> Bus {
    let settings = bus::Settings {
        url: url.to_owned(),
        creds: Some(creds.to_owned()),
        name: "test".to_owned(),
        caller: CallerName::owner(),
        inbox_prefix: None,
    };
    Bus::connect(settings).await.unwrap()
}

fn sh(script: &str) -> JobBatch {
    JobBatch {
        owner: OwnerName::owner(),
        work: WorkId(uuid::Uuid::now_v7()),
        task: TaskName::main(),
        attempt: 1,
        indices: Indices::one(0),
        items: Vec::new(),
        spec: Arc::new(JobSpec {
            run: Run::Process(Process {
                argv: ["sh", "-c", script].map(str::to_owned).into(),
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

async fn a_node_beats_runs_reports_and_streams() {
    let mut house = House::up().await;
    let agent = house.node().await;
    assert_eq!((agent.node().as_str(), agent.note()), ("my-host", None));
    let beat = house.beat(|_| true).await;
    assert_eq!(beat.instance, agent.instance());
    assert_eq!(beat.total.cpus, Cpus::new(2));
    assert_eq!(beat.inventory.host, "My-Host.lan");

    house.held(beat.instance).await;
    agent.ready().await;
    let batch = sh("seq 1 50000");
    let subject = format!("lh.out.owner.{}.stdout.my-host", batch.work);
    house.jobs(beat.instance, vec![batch]).await;

    let Became::Ended(ending) = house.entry().await.became else { panic!() };
    assert_eq!(ending.state, IndexState::Finished);
    let expected: String = (1..=50_000).map(|n| format!("{n}\n")).collect();
    let heard = house.output(&subject, expected.len()).await;
    assert!(heard == expected.as_bytes() && ending.stdout_bytes == expected.len() as u64);
    let beat = house.beat(|beat| beat.highest.n >= 3 && beat.digest.unanswered == 0).await;
    assert_eq!(beat.used, Room::default());
    agent.leave(true).await;
    house.down().await;
}

async fn requests_meant_for_another_late_or_malformed_are_refused() {
    let mut house = House::up().await;
    let agent = house.node().await;
    let instance = agent.instance();
    let held = house.held(instance).await;
    assert_eq!((held.instance, held.jobs.len()), (instance, 0));
    let refused = |result: Result<HeldAnswer, Error>| match result {
        Err(Error::Refused(refusal)) => refusal.code.into_owned(),
        other => panic!("{other:?}"),
    };
    let subject = "lh.node.my-host.held";
    let late = HeldRequest { ask: Ask { epoch: 3, n: 1, instance } };
    assert_eq!(refused(house.bus.ask(subject, &late, PATIENCE).await), code::STALE_REQUEST);
    let other = InstanceId(uuid::Uuid::from_u128(1));
    let other = HeldRequest { ask: house.ask(other) };
    assert_eq!(refused(house.bus.ask(subject, &other, PATIENCE).await), code::NOT_ME);
    for (encoding, bytes) in [(Encoding::Json, &b"{"[..]), (Encoding::MsgPack, b"\xc1")] {
        let message = house.bus.ask_raw(subject, encoding, bytes.into(), PATIENCE).await.unwrap();
        assert_eq!(message.encoding, encoding, "answered as it was asked");
        assert_eq!(refused(message.into_answer(subject)), code::MALFORMED);
    }
    assert_eq!(agent.refused(), 4);
    let json = encode(Encoding::Json, &HeldRequest { ask: house.ask(instance) });
    let message = house.bus.ask_raw(subject, Encoding::Json, json.into(), PATIENCE).await.unwrap();
    assert_eq!(message.encoding, Encoding::Json);
    agent.leave(true).await;
    house.down().await;
}

async fn an_unanswered_report_is_said_again() {
    let mut house = House::up().await;
    let agent = house.node().await;
    let instance = agent.instance();
    house.held(instance).await;
    house.jobs(instance, vec![sh("true")]).await;
    let first: Report = {
        let message = house.reports.next().await.unwrap();
        // A scheduler that is over does not count.
        message.answer(&house.bus, &ReportAnswer { epoch: 2, n: 99 }).await.unwrap();
        message.decode().unwrap()
    };
    assert_eq!(first.entries.len(), 1);
    let again = house.entry().await;
    assert_eq!(again.jobs, first.entries[0].jobs);
    assert_eq!(again.epoch, 3);
    house.beat(|beat| beat.digest.unanswered == 0).await;
    agent.leave(false).await;
    house.down().await;
}

async fn a_worker_detaches_and_the_next_takes_up_the_same_jobs() {
    let mut house = House::up().await;
    let agent = house.node().await;
    let instance = agent.instance();
    house.held(instance).await;
    let go = house.dir.path().join("go");
    let script = format!("while [ ! -e '{}' ]; do sleep 0.02; done; echo done", go.display());
    house.jobs(instance, vec![sh(&script)]).await;
    house.beat(|beat| beat.digest.running == 1).await;
    let held = agent.detach().await;
    assert_eq!(held.running, 1);
    assert_eq!(held.first_lost_after, Some(schemas::time::Seconds::new(30)));

    let agent = house.node().await;

    assert_eq!(agent.instance(), instance);
    agent.ready().await;
    assert_eq!(house.held(instance).await.jobs.len(), 1);
    std::fs::write(&go, "").unwrap();
    let Became::Ended(ending) = house.entry().await.became else { panic!() };
    assert_eq!(&ending.stdout.0[..], b"done\n");
    agent.leave(true).await;
    house.down().await;
}

async fn a_killed_keeper_is_replaced_and_named() {
    let mut house = House::up().await;
    let agent = house.node().await;
    let first = agent.instance();
    house.held(first).await;
    house.jobs(first, vec![sh("sleep 1000")]).await;
    house.beat(|beat| beat.digest.running == 1).await;
    let card = house.dir.path().join("nodes/my-host/keeper.json");
    let card: serde_json::Value = serde_json::from_slice(&std::fs::read(card).unwrap()).unwrap();
    let pid = i32::try_from(card["pid"].as_i64().unwrap()).unwrap();
    let pid = rustix::process::Pid::from_raw(pid).unwrap();
    rustix::process::kill_process(pid, rustix::process::Signal::KILL).unwrap();

    let beat = house.beat(|beat| beat.instance != first).await;

    while house.failed.is_empty() {
        house.report().await;
    }
    assert_eq!(house.failed, [first]);
    assert!(house.held(beat.instance).await.jobs.is_empty());
    house.jobs(beat.instance, vec![sh("echo again")]).await;
    let entry = house.entry().await;
    assert_eq!(entry.instance, beat.instance);
    agent.leave(true).await;
    house.down().await;
}

async fn a_node_that_leaves_says_goodbye_last() {
    let mut house = House::up().await;
    let agent = house.node().await;
    let instance = agent.instance();
    house.held(instance).await;
    house.jobs(instance, vec![sh("sleep 1000")]).await;
    house.beat(|beat| beat.digest.running == 1).await;

    let hurry = agent.hurry();
    let leaving = tokio::spawn(agent.leave(false));
    let waits = house.beat(|beat| beat.closing).await;
    assert_eq!((waits.leaving, waits.digest.running), (false, 1));
    hurry.await;
    let entry = house.entry().await;
    assert!(matches!(entry.became, Became::Lost { .. }), "{entry:?}");
    leaving.await.unwrap();
    let last = house.beat(|beat| beat.leaving).await;
    assert_eq!((last.instance, last.digest.running), (instance, 0));
    assert!(!house.dir.path().join("nodes/my-host/keeper.json").exists());
    house.down().await;
}

async fn a_second_node_in_one_folder_gets_another_name() {
    let house = House::up().await;
    let first = house.node().await;
    let second = house.node().await;
    assert_eq!(second.node().as_str(), "my-host-2");
    let note = "`my-host` is in use in this folder, so this node is `my-host-2`";
    assert_eq!(second.note(), Some(note));
    let mut settings = house.settings();
    settings.name = Some(NodeName::new("my-host").unwrap());
    let refused = workers::start(house.bus.clone(), settings).await.unwrap_err();
    assert!(refused.to_string().contains("is in use by `longhouse worker`"), "{refused}");
    second.leave(true).await;
    first.leave(true).await;
    house.down().await;
}

async fn what_was_answered_just_before_the_bus_went_is_held_and_said_again() {
    let mut house = House::up().await;
    let mut settings = house.settings();
    // However slow this machine is, the bus goes before that.
    settings.settled_after = Duration::from_secs(3600);
    let bus = house.another_connection().await;
    let agent = workers::start(bus, settings).await.unwrap();
    let instance = agent.instance();
    house.held(instance).await;
    house.jobs(instance, vec![sh("echo x")]).await;
    let first = house.entry().await;
    let held = house.held(instance).await;
    assert!(held.jobs.len() == 1 && held.jobs[0].ended, "{held:?}");

    let paths = Paths::open(house.dir.path()).unwrap();
    house.server.stop().await.unwrap();
    house.server = serve(&paths, &house.lock).await;

    let again = house.entry().await;
    assert_eq!((again.jobs, again.became), (first.jobs, first.became));
    // Who leaves does not wait for it.
    agent.leave(false).await;
    house.beat(|beat| beat.leaving && beat.digest.unanswered == 0).await;
    house.down().await;
}

async fn the_bus_goes_and_comes_back_and_nothing_is_missing() {
    let mut house = House::up().await;
    let agent = house.node().await;
    let instance = agent.instance();
    house.held(instance).await;
    let (go, done) = (house.dir.path().join("go"), house.dir.path().join("done"));
    let batch = sh(&format!(
        "seq 1 100000; while [ ! -e '{}' ]; do sleep 0.02; done; seq 100001 400000; touch '{}'",
        go.display(),
        done.display()
    ));
    let subject = format!("lh.out.owner.{}.stdout.my-host", batch.work);
    house.jobs(instance, vec![batch]).await;
    house.output(&subject, 400_000).await;
    let paths = Paths::open(house.dir.path()).unwrap();
    house.server.stop().await.unwrap();
    std::fs::write(&go, "").unwrap();
    // It does not wait for the bus, but for nobody.
    while !done.exists() {
        tokio::task::yield_now().await;
    }

    house.server = serve(&paths, &house.lock).await;

    let Became::Ended(ending) = house.entry().await.became else { panic!() };
    assert_eq!(ending.state, IndexState::Finished);
    let expected: String = (1..=400_000).map(|n| format!("{n}\n")).collect();
    assert_eq!(ending.stdout_bytes, expected.len() as u64);
    assert!(house.output(&subject, expected.len()).await == expected.as_bytes());
    agent.leave(true).await;
    house.down().await;
}
