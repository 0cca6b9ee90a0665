//! The scheduler on a real bus: works that a manager would accept are told by hand, the node is a
//! model that answers and reports like a real one.
//!
//! A `main` of its own, because this program is also the shim of the server it starts.

#![expect(clippy::unwrap_used, reason = "a test may fail by panic")]

use actors::{
    journal::Fold,
    scheduler::{self, Handle},
};
use bus::{
    Bus, Message, Settings, clock,
    log::{Expect, Tail},
    server::{FolderLock, Holder, Paths, Say, Search, Server, shim_main, take_house},
    streams::{SUMMARIES, Shares, journal},
};
use futures::StreamExt;
use libtest_mimic::{Arguments, Trial};
use schemas::{
    amount::{Cpus, Room},
    codec::{self, Encoding},
    fact::{Accepted, CancelAsked, Fact},
    id::{InstanceId, RequestId, WorkId},
    job::{
        Became, HeldAnswer, HeldRequest, JobRef, JobsAnswer, JobsRequest, Pair, Report,
        ReportAnswer, ReportEntry, StopAnswer, StopRequest,
    },
    node::{Beat, Digest, Inventory},
    outcome::{Ending, IndexState, WorkState},
    request::{Done, Explain, Explained, NodeChange, NodesReply},
    subject,
    time::{Seconds, Stamp},
    token::{CallerName, NodeName, OwnerName, PoolName},
};
use std::{
    future::Future,
    path::Path,
    pin::Pin,
    process::ExitCode,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    time::Duration,
};
use tempfile::TempDir;
use tokio::task::JoinHandle;

/// No event takes this long; one that does not come at all must not hang the build.
const PATIENCE: Duration = Duration::from_secs(120);

fn main() -> ExitCode {
    let arguments: Vec<_> = std::env::args_os().skip(1).collect();
    if arguments.first().is_some_and(|first| first == "bus-shim") {
        std::process::exit(shim_main(&arguments[1..]));
    }
    libtest_mimic::run(&Arguments::from_args(), trials()).exit_code()
}

type Body = fn(House) -> Pin<Box<dyn Future<Output = ()>>>;

fn trials() -> Vec<Trial> {
    let trial = |name: &str, body: Body| {
        Trial::test(name, move || {
            let runtime = tokio::runtime::Runtime::new()?;
            let ended = runtime.block_on(async {
                tokio::time::timeout(PATIENCE, async { body(House::up().await).await }).await
            });
            runtime.shutdown_background();
            Ok(ended?)
        })
    };
    vec![
        trial("a_work_goes_from_accepted_to_finished", |h| Box::pin(finished(h))),
        trial("a_hundred_thousand_echoes_are_a_few_facts", |h| Box::pin(many(h))),
        trial("single_works_are_batched_over_works", |h| Box::pin(singles(h))),
        trial("nodes_are_shown_drained_and_explained", |h| Box::pin(drained(h))),
        trial("requests_that_make_no_sense_are_refused", |h| Box::pin(garbage(h))),
        trial("a_second_scheduler_takes_over_what_runs", |h| Box::pin(taken_over(h))),
        trial("a_scheduler_that_vanished_is_followed_when_its_lease_is_over", |h| {
            Box::pin(vanished(h))
        }),
        trial("a_lease_of_a_process_that_is_gone_is_taken_over_at_once", |h| Box::pin(buried(h))),
        trial("a_bus_that_was_away_is_scheduled_again", |h| Box::pin(away(h))),
        trial("a_journal_that_lost_its_end_is_folded_anew", |h| Box::pin(power_cut(h))),
        trial("a_cancelled_job_is_stopped_on_its_node", |h| Box::pin(cancelled(h))),
    ]
}

#[expect(clippy::disallowed_methods, reason = "a test hands in the environment it was given")]
fn search() -> Search {
    let cache = Path::new(env!("CARGO_TARGET_TMPDIR")).join("nats cache");
    Search { path: std::env::var_os("PATH"), cache, ..Search::default() }
}

struct House {
    bus: Bus,
    server: Option<Server>,
    paths: Paths,
    lock: FolderLock,
    tail: Tail,
    fold: Fold,
    facts: u64,
    next: u128,
    _dir: TempDir,
}

fn pool() -> PoolName {
    PoolName::main()
}

fn node() -> NodeName {
    NodeName::new("m4").unwrap()
}

fn settings() -> scheduler::Settings {
    scheduler::Settings {
        lease_s: Seconds::new(1),
        lease_renew_s: Seconds::from_ms(300),
        ..scheduler::Settings::default()
    }
}

impl House {
    async fn up() -> House {
        let dir = tempfile::tempdir().unwrap();
        let paths = Paths::open(dir.path()).unwrap();
        let holder = Holder::this_process("test", Stamp(0));
        let lock = take_house(&paths, &holder, &Say::nothing()).unwrap();
        let server = start_server(&paths, &lock).await;
        let bus = connect(&server.url(), &paths, "test").await;
        bus.lay_streams(&[pool()], Shares::of(1 << 30)).await.unwrap();
        let tail = bus.log(journal(&pool())).tail("lh.fact.main.>", 1).await.unwrap();
        House {
            bus,
            server: Some(server),
            paths,
            lock,
            tail,
            fold: Fold::default(),
            facts: 0,
            next: 0,
            _dir: dir,
        }
    }

    async fn connection(&self, name: &str) -> Bus {
        connect(&self.server.as_ref().unwrap().url(), &self.paths, name).await
    }

    /// Starts the bus that was stopped, and waits until it is heard again.
    async fn back(&mut self) {
        let mut connection = self.bus.connection();
        let made = connection.borrow().made;
        self.server = Some(start_server(&self.paths, &self.lock).await);
        connection.wait_for(|c| c.up && c.made > made).await.unwrap();
        // The store may have lost its end, and a tail goes on behind what it has seen.
        let from = self.fold.last_seq() + 1;
        self.tail = self.bus.log(journal(&pool())).tail("lh.fact.main.>", from).await.unwrap();
    }

    async fn scheduler(&self, name: &str) -> Handle {
        let bus = self.connection(name).await;
        scheduler::start(bus, pool(), settings(), None).await.unwrap()
    }

    async fn tell(&self, work: WorkId, fact: &Fact) {
        let at = subject::fact(&pool(), &OwnerName::owner(), Some(work), fact.kind());
        let log = self.bus.log(journal(&pool()));
        log.append(&at, fact.to_json().into(), &Expect::Any).await.unwrap();
    }

    fn accepted(&mut self, spec: &str) -> (WorkId, Fact) {
        self.next += 1;
        let work = WorkId(uuid::Uuid::from_u128(self.next));
        let spec = Arc::new(serde_json::from_str(spec).unwrap());
        (work, Fact::Accepted(Accepted { work, by: CallerName::owner(), spec }))
    }

    async fn accept(&mut self, spec: &str) -> WorkId {
        let (work, fact) = self.accepted(spec);
        self.tell(work, &fact).await;
        work
    }

    /// Folds what is stored until it is so.
    async fn until(&mut self, holds: impl Fn(&Fold) -> bool) {
        while !holds(&self.fold) {
            for stored in self.tail.next_batch(1000).await {
                let at = subject::parse_fact(&stored.subject).unwrap();
                let fact = Fact::from_json(at.kind, &stored.payload).unwrap();
                self.facts += 1;
                self.fold.apply(stored.seq, stored.at, at.owner, &fact);
            }
        }
    }

    async fn ended(&mut self, work: WorkId) -> WorkState {
        self.until(|fold| fold.work(work).is_some_and(|w| w.state.is_ended() && w.recorded)).await;
        self.fold.work(work).unwrap().state
    }

    async fn sched<A: serde::de::DeserializeOwned>(
        &self,
        verb: &str,
        request: &impl serde::Serialize,
    ) -> Result<A, bus::Error> {
        self.bus.ask(&format!("lh.sched.main.{verb}"), request, PATIENCE).await
    }

    /// How the only node stands, as soon as there is a scheduler that answers.
    async fn node_state(&self, wanted: &str) -> NodesReply {
        loop {
            if let Ok(known) = self.sched::<NodesReply>("nodes", &serde_json::json!({})).await
                && known.nodes.first().is_some_and(|n| n.state.as_str() == wanted)
            {
                return known;
            }
            tokio::task::yield_now().await;
        }
    }
}

async fn start_server(paths: &Paths, lock: &FolderLock) -> Server {
    let mut settings =
        bus::server::Settings::new(paths.clone(), search(), Stamp(0), Say::nothing());
    settings.port = Some(0);
    Server::start(settings, lock).await.unwrap()
}

async fn connect(url: &str, paths: &Paths, name: &str) -> Bus {
    Bus::connect(Settings {
        url: url.to_owned(),
        creds: Some(paths.creds()),
        name: name.into(),
        caller: CallerName::owner(),
        inbox_prefix: None,
    })
    .await
    .unwrap()
}

/// A node with four cores: an `echo` ends at once, a process when it is told to.
struct Model {
    bus: Bus,
    instance: InstanceId,
    highest: Pair,
    held: Vec<(JobRef, u64)>,
    is_patient: Arc<AtomicBool>,
}

impl Model {
    fn start(bus: Bus, is_patient: Arc<AtomicBool>) -> JoinHandle<()> {
        let instance = InstanceId(uuid::Uuid::from_u128(0xabc));
        let model = Model { bus, instance, highest: Pair::default(), held: Vec::new(), is_patient };
        tokio::spawn(model.live())
    }

    async fn live(mut self) {
        let mut asked = self.bus.hear("lh.node.m4.*").await.unwrap();
        let mut interval = tokio::time::interval(Duration::from_millis(100));
        loop {
            tokio::select! {
                message = asked.next() => match message {
                    Some(message) => self.hear(message).await,
                    None => return,
                },
                _ = interval.tick() => self.beat().await,
            }
        }
    }

    async fn beat(&self) {
        let total = Room { cpus: Cpus::new(4), memory_mib: 4096, ..Room::default() };
        let beat = Beat {
            node: node(),
            instance: self.instance,
            pool: pool(),
            site: None,
            at: clock::wall(),
            since: Stamp(1),
            total,
            used: Room::default(),
            inventory: Arc::new(Inventory::default()),
            digest: Digest { running: self.held.len() as u64, ..Digest::default() },
            highest: self.highest,
            closing: false,
            leaving: false,
            version: "0.1.0".to_owned(),
        };
        let body = serde_json::to_vec(&beat).unwrap();
        let _ = self.bus.publish("lh.beat.m4", Encoding::Json, body.into()).await;
    }

    async fn say(&self, to: &Message, answer: &impl serde::Serialize) {
        let body = codec::encode(Encoding::MsgPack, answer);
        let reply = to.reply.as_deref().unwrap();
        let _ = self.bus.send(reply, None, Encoding::MsgPack, body.into()).await;
    }

    async fn hear(&mut self, message: Message) {
        match message.subject.rsplit('.').next().unwrap() {
            "held" => {
                let request: HeldRequest = message.decode().unwrap();
                let before = std::mem::replace(&mut self.highest, request.ask.pair());
                let jobs = self.held.iter().map(|(jobs, epoch)| schemas::job::HeldJobs {
                    jobs: jobs.clone(),
                    epoch: *epoch,
                    ended: false,
                });
                let (instance, jobs) = (self.instance, jobs.collect());
                self.say(&message, &HeldAnswer { instance, jobs, highest: before }).await;
            }
            "jobs" => self.take(message).await,
            "stop" => {
                let request: StopRequest = message.decode().unwrap();
                self.highest = request.ask.pair();
                self.say(&message, &StopAnswer {}).await;
                for jobs in request.jobs {
                    let at = self.held.iter().position(|(held, _)| *held == jobs).unwrap();
                    let (jobs, epoch) = self.held.remove(at);
                    self.report(vec![(jobs, epoch, IndexState::Cancelled)]);
                }
            }
            other => panic!("{other}"),
        }
    }

    async fn take(&mut self, message: Message) {
        let request: JobsRequest = message.decode().unwrap();
        assert!(request.ask.pair() > self.highest, "asks are heard in their order");
        self.highest = request.ask.pair();
        self.say(&message, &JobsAnswer::default()).await;
        let mut ended = Vec::new();
        for batch in request.jobs {
            let jobs = JobRef {
                work: batch.work,
                task: batch.task,
                attempt: batch.attempt,
                indices: batch.indices,
            };
            if self.is_patient.load(Ordering::Acquire) {
                self.held.push((jobs, request.ask.epoch));
            } else {
                ended.push((jobs, request.ask.epoch, IndexState::Finished));
            }
        }
        if !ended.is_empty() {
            self.report(ended);
        }
    }

    fn report(&self, ended: Vec<(JobRef, u64, IndexState)>) {
        let entries = ended.into_iter().map(|(jobs, epoch, state)| {
            let mut ending = Ending::new(state);
            ending.exit_code = Some(0);
            ReportEntry {
                owner: OwnerName::owner(),
                jobs,
                epoch,
                instance: self.instance,
                became: Became::Ended(Box::new(ending)),
                ago_s: Seconds::default(),
            }
        });
        let report = Report { entries: entries.collect(), failed: Vec::new() };
        let bus = self.bus.clone();
        tokio::spawn(async move {
            loop {
                let within = Duration::from_secs(2);
                let answer: Result<ReportAnswer, _> =
                    bus.ask("lh.report.main.m4", &report, within).await;
                if answer.is_ok() {
                    return;
                }
                tokio::task::yield_now().await;
            }
        });
    }
}

fn quick() -> Arc<AtomicBool> {
    Arc::new(AtomicBool::new(false))
}

fn patient() -> Arc<AtomicBool> {
    Arc::new(AtomicBool::new(true))
}

async fn finished(mut house: House) {
    let scheduler = house.scheduler("one").await;
    let _node = Model::start(house.connection("node").await, quick());
    scheduler.ready().await.unwrap();
    let spec = r#"{"name":"x","tasks":[{"name":"a","run":{"echo":""},"array":{"count":3}},
        {"name":"b","needs":["a"],"run":{"process":{"argv":["x"]}}}]}"#;
    let work = house.accept(spec).await;
    assert_eq!(house.ended(work).await, WorkState::Finished);
    let known = house.fold.work(work).unwrap();
    assert_eq!(known.tasks[0].finished.len(), 3);
    let key = format!("owner.{work}");
    let kv = house.bus.kv(SUMMARIES);
    let mut watched = kv.watch(&key).await.unwrap();
    let stored = watched.next_batch(1).await.remove(0);
    let value: serde_json::Value = serde_json::from_slice(&stored.payload).unwrap();
    assert_eq!(value["state"], "finished", "{value}");
    assert!(value["epoch"].as_u64().is_some() && value["seq"].as_u64().is_some(), "{value}");
    scheduler.stop().await;
    let lease = house.bus.kv("lh-lease").get("main").await.unwrap();
    assert_eq!(lease.value, None, "who stops gives the lease back");
}

async fn many(mut house: House) {
    let scheduler = house.scheduler("one").await;
    let _node = Model::start(house.connection("node").await, quick());
    scheduler.ready().await.unwrap();
    house.node_state("ready").await;
    let spec = r#"{"tasks":[{"name":"a","run":{"echo":""},"array":{"count":100000}}]}"#;
    let before = clock::at();
    let work = house.accept(spec).await;
    house.until(|fold| fold.work(work).is_some_and(|w| w.state.is_ended())).await;
    let ms = clock::at().since(before);
    tracing::info!(ms, "a hundred thousand echoes");
    assert_eq!(house.fold.work(work).unwrap().tasks[0].finished.len(), 100_000);
    assert!(house.facts < 100, "{} facts", house.facts);
    scheduler.stop().await;
}

async fn singles(mut house: House) {
    let scheduler = house.scheduler("one").await;
    let _node = Model::start(house.connection("node").await, quick());
    scheduler.ready().await.unwrap();
    house.node_state("ready").await;
    let mut sent = Vec::new();
    let log = house.bus.log(journal(&pool()));
    for _ in 0..1000 {
        let (work, fact) = house.accepted(r#"{"tasks":[{"name":"a","run":{"echo":"x"}}]}"#);
        let at = subject::fact(&pool(), &OwnerName::owner(), Some(work), fact.kind());
        sent.push(log.send(&at, fact.to_json().into(), &Expect::Any).await);
    }
    for one in sent {
        one.stored().await.unwrap();
    }
    house.until(|fold| fold.len() == 1000 && fold.active().is_empty()).await;
    assert!(house.facts < 3000, "{} facts for a thousand works", house.facts);
    house.until(|fold| fold.unrecorded().is_empty()).await;
    scheduler.stop().await;
}

async fn drained(mut house: House) {
    let scheduler = house.scheduler("one").await;
    let _node = Model::start(house.connection("node").await, quick());
    scheduler.ready().await.unwrap();
    let known = house.node_state("ready").await;
    assert_eq!((known.nodes[0].kind.as_str(), known.nodes[0].total.cpus), ("cpu", Cpus::new(4)));
    let change = NodeChange { node: node() };
    let done: Done = house.sched("drain.ann", &change).await.unwrap();
    assert_eq!(done.message, "m4 finishes what it has and takes nothing new");
    let known = house.node_state("drained").await;
    assert_eq!(known.nodes[0].why.as_deref(), Some("ann drained it"));
    let work = house.accept(r#"{"tasks":[{"name":"a","run":{"echo":""}}]}"#).await;
    let explain = Explain { work: Some(work), ..Explain::default() };
    let explained = loop {
        // The scheduler reads the journal at its own pace.
        match house.sched::<Explained>("explain", &explain).await {
            Ok(explained) => break explained,
            Err(bus::Error::Refused(refusal)) => assert_eq!(&*refusal.code, "unknown_work"),
            Err(error) => panic!("{error}"),
        }
    };
    assert_eq!(explained.why, "every node that could run it is drained (m4)");
    let _: Done = house.sched("undrain", &change).await.unwrap();
    assert_eq!(house.ended(work).await, WorkState::Finished);
    let _: Done = house.sched("pause", &serde_json::json!({})).await.unwrap();
    assert!(house.node_state("ready").await.paused);
    let _: Done = house.sched("resume", &serde_json::json!({})).await.unwrap();
    scheduler.stop().await;
}

async fn garbage(house: House) {
    let scheduler = house.scheduler("one").await;
    scheduler.ready().await.unwrap();
    for (at, body, wanted) in [
        ("lh.sched.main.drain", r#"{"nod":"m4"}"#, "unknown_field"),
        ("lh.sched.main.drain", r#"{"node":"nobody"}"#, "unknown_node"),
        ("lh.sched.main.explain", "[1", "malformed"),
        ("lh.sched.main.explain", "{}", "invalid"),
        ("lh.report.main.m4", "x", "malformed"),
        ("lh.report.main.m4", r#"{"entries":[]}"#, "not_ready"),
    ] {
        let body = body.to_owned().into_bytes().into();
        let answer = house.bus.ask_raw(at, Encoding::Json, body, PATIENCE).await.unwrap();
        assert!(answer.refused, "{at}");
        assert_eq!(&*answer.refusal().code, wanted, "{at}");
    }
    for at in ["lh.beat.m4", "lh.fact.main.owner.x.nonsense.x", "lh.fact.main.owner.x.ended"] {
        house.bus.publish(at, Encoding::Json, "{\"x\":".into()).await.unwrap();
    }
    let known: NodesReply = house.sched("nodes", &serde_json::json!({})).await.unwrap();
    assert!(known.nodes.is_empty());
    scheduler.stop().await;
}

async fn taken_over(mut house: House) {
    let first = house.scheduler("one").await;
    first.ready().await.unwrap();
    let second = house.scheduler("two").await;
    let is_patient = patient();
    let _node = Model::start(house.connection("node").await, is_patient.clone());
    let spec = r#"{"tasks":[{"name":"a","run":{"process":{"argv":["x"]}},"array":{"count":6}}]}"#;
    let work = house.accept(spec).await;
    house.until(|fold| fold.work(work).is_some_and(|w| w.tasks[0].running == 4)).await;
    let epoch = house.fold.epoch();
    first.stop().await;
    house.until(|fold| fold.epoch() > epoch).await;
    second.ready().await.unwrap();
    let known = house.node_state("ready").await;
    assert_eq!(known.nodes[0].jobs, 4, "what runs was taken over");
    assert_eq!(house.fold.work(work).unwrap().tasks[0].lost, 0);
    let (request, round) = (RequestId(uuid::Uuid::nil()), 0);
    let by = CallerName::owner();
    house.tell(work, &Fact::CancelAsked(CancelAsked { work, request, round, by })).await;
    assert_eq!(house.ended(work).await, WorkState::Cancelled);
    second.stop().await;
}

async fn vanished(mut house: House) {
    let bus = house.connection("one").await;
    let first = scheduler::start(bus.clone(), pool(), settings(), None).await.unwrap();
    first.ready().await.unwrap();
    house.until(|fold| fold.epoch() > 0).await;
    let epoch = house.fold.epoch();
    // Without a word: the lease stays behind.
    bus.close().await;
    let second = house.scheduler("two").await;
    house.until(|fold| fold.epoch() > epoch).await;
    let _node = Model::start(house.connection("node").await, quick());
    let work = house.accept(r#"{"tasks":[{"name":"a","run":{"echo":""}}]}"#).await;
    assert_eq!(house.ended(work).await, WorkState::Finished);
    second.stop().await;
}

/// With a lease that nobody would wait for.
async fn buried(mut house: House) {
    let bus = house.connection("one").await;
    let long = scheduler::Settings { lease_s: Seconds::new(100_000), ..settings() };
    let process = |mark: &str, gone: &'static str| {
        let is_gone = Arc::new(move |mark: &str| mark == gone);
        Some(scheduler::Process { mark: mark.to_owned(), is_gone })
    };
    let of_first = process("a", "");
    let first = scheduler::start(bus.clone(), pool(), long.clone(), of_first).await.unwrap();
    first.ready().await.unwrap();
    house.until(|fold| fold.epoch() > 0).await;
    let epoch = house.fold.epoch();
    bus.close().await;
    let bus = house.connection("two").await;
    let of_second = process("b", "somebody else");
    let second = scheduler::start(bus, pool(), long.clone(), of_second).await.unwrap();
    // It has seen the lease, and waits.
    second.ready().await.unwrap();
    assert_eq!(house.fold.epoch(), epoch);
    second.stop().await;
    let bus = house.connection("three").await;
    let third = scheduler::start(bus, pool(), long, process("c", "a")).await.unwrap();
    house.until(|fold| fold.epoch() > epoch).await;
    third.stop().await;
}

async fn away(mut house: House) {
    let scheduler = house.scheduler("one").await;
    let _node = Model::start(house.connection("node").await, quick());
    scheduler.ready().await.unwrap();
    let work = house.accept(r#"{"tasks":[{"name":"a","run":{"echo":""}}]}"#).await;
    assert_eq!(house.ended(work).await, WorkState::Finished);
    house.server.take().unwrap().stop().await.unwrap();
    house.back().await;
    let work = house.accept(r#"{"tasks":[{"name":"a","run":{"echo":""}}]}"#).await;
    assert_eq!(house.ended(work).await, WorkState::Finished);
    scheduler.stop().await;
}

/// What the bus had not yet on its disk when the power went is not there any more, as when its
/// store is put back.
async fn power_cut(mut house: House) {
    let scheduler = house.scheduler("one").await;
    scheduler.ready().await.unwrap();
    let is_patient = patient();
    let _node = Model::start(house.connection("node").await, is_patient.clone());
    house.node_state("ready").await;
    house.server.take().unwrap().stop().await.unwrap();
    let saved = tempfile::tempdir().unwrap();
    copy(&house.paths.jetstream(), saved.path());
    house.back().await;
    house.node_state("ready").await;
    let vanishes = house.accept(r#"{"tasks":[{"name":"a","run":{"echo":""}}]}"#).await;
    house.until(|fold| fold.work(vanishes).is_some_and(|w| w.has_live())).await;
    let epoch = house.fold.epoch();
    house.server.take().unwrap().stop().await.unwrap();
    std::fs::remove_dir_all(house.paths.jetstream()).unwrap();
    copy(saved.path(), &house.paths.jetstream());
    is_patient.store(false, Ordering::Release);
    house.fold = Fold::default();
    house.back().await;
    let work = house.accept(r#"{"tasks":[{"name":"a","run":{"echo":""}}]}"#).await;
    assert_eq!(house.ended(work).await, WorkState::Finished);
    assert!(house.fold.epoch() > epoch, "what was given before counts no more");
    assert!(house.fold.work(vanishes).is_none());
    assert_eq!(house.node_state("ready").await.nodes[0].jobs, 0);
    scheduler.stop().await;
}

fn copy(from: &Path, to: &Path) {
    std::fs::create_dir_all(to).unwrap();
    for entry in std::fs::read_dir(from).unwrap() {
        let entry = entry.unwrap();
        let target = to.join(entry.file_name());
        if entry.file_type().unwrap().is_dir() {
            copy(&entry.path(), &target);
        } else {
            std::fs::copy(entry.path(), target).unwrap();
        }
    }
}

async fn cancelled(mut house: House) {
    let scheduler = house.scheduler("one").await;
    scheduler.ready().await.unwrap();
    let _node = Model::start(house.connection("node").await, patient());
    let spec = r#"{"tasks":[{"name":"a","run":{"process":{"argv":["x"]}}}]}"#;
    let work = house.accept(spec).await;
    house.until(|fold| fold.work(work).is_some_and(|w| w.has_live())).await;
    let request = RequestId(uuid::Uuid::nil());
    let by = CallerName::owner();
    house.tell(work, &Fact::CancelAsked(CancelAsked { work, request, round: 0, by })).await;
    assert_eq!(house.ended(work).await, WorkState::Cancelled);
    scheduler.stop().await;
}
