//! The manager on a real bus: works come in by requests and by the inbox, are answered, followed,
//! and survive what happens to the bus. What a scheduler and a node would say is said by hand.
//!
//! A `main` of its own, because this program is also the shim of the server it starts.

#![expect(clippy::unwrap_used, reason = "a test may fail by panic")]

#[path = "manager/echo.rs"]
mod echo;

use actors::{
    manager::{self, Handle},
    scheduler,
};
use bus::{
    Bus, Hearing, Message, Settings, StoreError,
    log::Expect,
    server::{FolderLock, Holder, Paths, Say, Search, Server, shim_main, take_house},
    streams::{OUTPUT, journal},
};
use futures::StreamExt;
use libtest_mimic::{Arguments, Trial};
use schemas::{
    blob::Blob,
    codec::{self, Encoding},
    fact::{Assigned, AssignedEntry, Ended, EndedEntry, Fact},
    id::{InstanceId, Seq, WorkId},
    indices::Indices,
    job::ReadRequest,
    outcome::{Ending, IndexState},
    output::{Frame, Frames},
    request::{Followed, RunReply},
    subject,
    time::{Seconds, Stamp},
    token::{CallerName, NodeName, OwnerName, PoolName, StreamName, TaskName},
};
use serde_json::{Value, json};
use std::{future::Future, path::Path, pin::Pin, process::ExitCode, time::Duration};
use tempfile::TempDir;

/// No event takes this long; one that does not come at all must not hang the build.
const PATIENCE: Duration = Duration::from_secs(120);
const ID: &str = "0198f0c2-7b5e-7cc3-98c4-dc0c0c07398f";

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
        trial("a_run_is_answered_with_its_outcome", |h| Box::pin(run(h))),
        trial("every_verb_is_listed_twice_with_its_schema", |h| Box::pin(listed(h))),
        trial("garbage_is_refused_with_a_code_and_a_hint", |h| Box::pin(garbage(h))),
        trial("cancel_ends_what_waits_and_answers_who_waits", |h| Box::pin(cancel(h))),
        trial("parts_join_an_open_work_until_it_is_closed", |h| Box::pin(parts(h))),
        trial("results_are_read_from_the_journal", |h| Box::pin(results(h))),
        trial("a_follower_sees_everything_live_and_late_alike", |h| Box::pin(follow(h))),
        trial("a_follower_resumes_where_he_stopped", |h| Box::pin(resume(h))),
        trial("another_nodes_frames_are_not_shown", |h| Box::pin(forged(h))),
        trial("four_mebibytes_come_whole_to_who_acknowledges", |h| Box::pin(acknowledged(h))),
        trial("a_paced_reader_makes_room_for_what_comes", |h| Box::pin(paced(h))),
        trial("old_output_makes_room_when_the_stream_is_nearly_full", |h| Box::pin(swept(h))),
        trial("a_follow_ends_when_nobody_listens_any_more", |h| Box::pin(dead(h))),
        trial("what_was_put_into_the_inbox_runs_when_a_manager_is_up", |h| Box::pin(inbox(h))),
        trial("a_manager_that_stops_answers_who_is_held", |h| Box::pin(stopping(h))),
        trial("a_second_manager_knows_what_the_first_took", |h| Box::pin(second(h))),
        trial("a_bus_that_was_away_is_served_again", |h| Box::pin(away(h))),
        trial("a_journal_that_lost_its_end_is_folded_anew", |h| Box::pin(power_cut(h))),
        trial("output_that_lost_its_end_is_heard_from_there_on", |h| Box::pin(output_cut(h))),
        trial("with_a_scheduler_and_a_node_works_run_and_are_explained", |h| Box::pin(whole(h))),
        trial("a_thousand_submits_at_once_are_all_taken", |h| Box::pin(thousand(h))),
    ]
}

#[expect(clippy::disallowed_methods, reason = "a test hands in the environment it was given")]
fn search() -> Search {
    let cache = Path::new(env!("CARGO_TARGET_TMPDIR")).join("nats cache");
    Search { path: std::env::var_os("PATH"), cache, ..Search::default() }
}

struct House {
    bus: Bus,
    manager: Option<Handle>,
    server: Option<Server>,
    paths: Paths,
    lock: FolderLock,
    _dir: TempDir,
}

impl House {
    async fn up() -> House {
        let dir = tempfile::tempdir().unwrap();
        let paths = Paths::open(dir.path()).unwrap();
        let holder = Holder::this_process("test", Stamp(0));
        let lock = take_house(&paths, &holder, &Say::nothing()).unwrap();
        let server = start_server(&paths, &lock).await;
        let bus = connect(&server.url(), &paths, "test").await;
        let mut house = House { bus, manager: None, server: Some(server), paths, lock, _dir: dir };
        house.manager = Some(house.start_manager().await);
        house
    }

    async fn start_manager(&self) -> Handle {
        self.start_manager_with(settings()).await
    }

    async fn start_manager_with(&self, settings: manager::Settings) -> Handle {
        let url = self.server.as_ref().unwrap().url();
        let bus = connect(&url, &self.paths, "manager").await;
        let handle = manager::start(bus, settings).await.unwrap();
        handle.ready().await.unwrap();
        handle
    }

    async fn answer(&self, verb: &str, request: &str) -> Message {
        let at = format!("lh.work.{verb}");
        let body = request.to_owned().into();
        self.bus.ask_raw(&at, Encoding::Json, body, PATIENCE).await.unwrap()
    }

    async fn ask(&self, verb: &str, request: Value) -> Value {
        let answer = self.answer(verb, &request.to_string()).await;
        let value: Value = serde_json::from_slice(&answer.payload).unwrap();
        assert!(!answer.refused, "{verb} {request}: {value}");
        value
    }

    async fn refused(&self, verb: &str, request: &str) -> (String, Value) {
        let answer = self.answer(verb, request).await;
        let value: Value = serde_json::from_slice(&answer.payload).unwrap();
        assert!(answer.refused, "{verb}: {value}");
        (value["error"]["code"].as_str().unwrap().to_owned(), value["error"].clone())
    }

    async fn submit(&self, request: Value) -> WorkId {
        let answer = self.ask("submit", request).await;
        answer["work"].as_str().unwrap().parse().unwrap()
    }

    async fn tell(&self, fact: &Fact) -> Seq {
        let at = subject::fact(&PoolName::main(), &OwnerName::owner(), None, fact.kind());
        let log = self.bus.log(journal(&PoolName::main()));
        log.append(&at, fact.to_json().into(), &Expect::Any).await.unwrap()
    }

    async fn assign(&self, work: WorkId, indices: Indices) {
        self.tell(&Fact::Assigned(Assigned {
            epoch: 1,
            entries: vec![AssignedEntry {
                work,
                task: TaskName::main(),
                indices,
                attempt: 1,
                node: node(),
                instance: InstanceId(uuid::Uuid::from_u128(9)),
            }],
        }))
        .await;
    }

    async fn end(&self, work: WorkId, indices: Indices, text: &[u8], length: u64) {
        let mut ending = Ending::new(IndexState::Finished);
        ending.node = Some(node());
        ending.exit_code = Some(0);
        ending.stdout = Blob::from(text.to_vec());
        ending.stdout_bytes = length;
        let task = TaskName::main();
        let entry = EndedEntry { work, task, indices, attempt: 1, ending, again_s: None };
        self.tell(&Fact::Ended(Ended { epoch: 1, entries: vec![entry] })).await;
    }

    async fn write(&self, work: WorkId, by: &NodeName, frames: Vec<Frame>) {
        let at = subject::out(&OwnerName::owner(), work, &StreamName::stdout(), by);
        let body = codec::encode(Encoding::MsgPack, &Frames { frames });
        self.bus.log(OUTPUT).append(&at, body.into(), &Expect::Any).await.unwrap();
    }

    async fn follow(&self, request: Value) -> Following {
        let body = request.to_string().into();
        let hearing = self.bus.ask_many("lh.work.follow", Encoding::Json, body).await.unwrap();
        Following { hearing, bus: self.bus.clone(), acknowledges: false }
    }
}

fn settings() -> manager::Settings {
    manager::Settings {
        store_mib: 1024,
        output_mib: Some(8),
        nodes_every_s: Seconds::from_ms(250),
        read_every_s: Seconds::from_ms(200),
        follows_per_caller: 3,
        output_grace_s: Seconds::from_ms(500),
        ..manager::Settings::default()
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

fn node() -> NodeName {
    NodeName::new("m4").unwrap()
}

fn frame(index: u32, offset: u64, bytes: &[u8]) -> Frame {
    let bytes = Blob::from(bytes.to_vec());
    Frame { task: TaskName::main(), index, attempt: 1, offset, bytes, gap: None }
}

struct Following {
    hearing: Hearing,
    bus: Bus,
    acknowledges: bool,
}

impl Following {
    /// The next reply; `None` after the empty message that ends it.
    async fn next(&mut self) -> Option<Followed> {
        let message = self.hearing.next().await.unwrap();
        if message.payload.is_empty() {
            return None;
        }
        assert!(!message.refused, "{:?}", message.refusal());
        let reply = message.reply.clone().unwrap();
        assert!(reply.starts_with("lh.ack."), "{reply}");
        if self.acknowledges {
            self.bus.publish(&reply, Encoding::Json, Vec::new().into()).await.unwrap();
        }
        Some(message.decode().unwrap())
    }

    async fn rest(&mut self) -> Vec<Followed> {
        let mut all = Vec::new();
        while let Some(followed) = self.next().await {
            all.push(followed);
        }
        all
    }
}

/// Facts by their kinds, output by its text, the last by its state.
fn show(followed: &Followed) -> String {
    match (&followed.fact, &followed.output, &followed.summary) {
        (Some(fact), None, None) => fact.kind.clone(),
        (None, Some(output), None) => {
            format!("{}:{}={}", output.index, output.offset, output.bytes.to_text())
        }
        (None, None, Some(summary)) => format!("[{}]", summary.state),
        other => panic!("{other:?}"),
    }
}

fn shown(all: &[Followed]) -> Vec<String> {
    all.iter().map(show).collect()
}

fn bytes_of(all: &[Followed]) -> Vec<u8> {
    all.iter().filter_map(|f| f.output.as_ref()).flat_map(|o| o.bytes.0.to_vec()).collect()
}

async fn run(house: House) {
    let work: WorkId = ID.parse().unwrap();
    let request = json!({"work": ID, "run": {"echo": "hi"}, "hold_s": 60});
    let bus = house.bus.clone();
    let body = request.to_string();
    let held = tokio::spawn(async move {
        bus.ask_raw("lh.work.run", Encoding::Json, body.into(), PATIENCE).await.unwrap()
    });
    let mut follow = loop {
        // The work is there when it can be followed.
        let mut follow = house.follow(json!({"work": ID})).await;
        let first = follow.hearing.next().await.unwrap();
        if !first.refused {
            break follow;
        }
    };
    house.assign(work, Indices::one(0)).await;
    house.end(work, Indices::one(0), b"hi\n", 3).await;
    follow.rest().await;
    let answer: Value = serde_json::from_slice(&held.await.unwrap().payload).unwrap();
    assert_eq!((&answer["state"], &answer["stdout"]), (&json!("finished"), &json!("hi\n")));
    assert_eq!((&answer["exit_code"], &answer["node"]), (&json!(0), &json!("m4")));
    // The same again, by a client that lost the answer.
    assert_eq!(house.ask("run", request).await["stdout"], "hi\n");
}

async fn listed(house: House) {
    let bus = &house.bus;
    let info = bus.ask_raw("$SRV.INFO.manager", Encoding::Json, Vec::new().into(), PATIENCE);
    let info: Value = serde_json::from_slice(&info.await.unwrap().payload).unwrap();
    let endpoints = info["endpoints"].as_array().unwrap();
    for verb in subject::WORK_VERBS {
        for (name, at) in [
            ((*verb).to_owned(), format!("lh.work.{verb}")),
            (format!("{verb}-caller"), format!("lh.work.{verb}.*")),
        ] {
            let endpoint = endpoints.iter().find(|e| e["name"] == *name).unwrap();
            assert_eq!(endpoint["subject"], *at);
            assert!(endpoint["metadata"]["request_schema"].is_string(), "{name}: {endpoint}");
        }
    }
}

async fn garbage(house: House) {
    for (verb, body, code) in [
        ("submit", "", "invalid"),
        ("submit", "{", "malformed"),
        ("submit", "[]", "malformed"),
        ("submit", r#"{"argv":["a"],"prority":1}"#, "unknown_field"),
        ("submit", r#"{"argv":["a"],"pool":"other"}"#, "invalid"),
        ("submit", r#"{"argv":["a"],"work":"00000000-0000-4000-8000-000000000000"}"#, "invalid"),
        ("get", "{}", "malformed"),
        ("get", r#"{"work":"nothing"}"#, "unknown_work"),
        ("get", r#"{"work":""}"#, "invalid"),
        ("list", r#"{"from":"?"}"#, "bad_cursor"),
        ("follow", r#"{"work":"@last"}"#, "unknown_work"),
        ("wait.A", r#"{"work":"@last"}"#, "invalid"),
    ] {
        let (was, error) = house.refused(verb, body).await;
        assert_eq!(was, code, "{verb} {body}: {error}");
    }
    let work = house.submit(json!({"run": {"echo": ""}})).await;
    let (code, _) =
        house.refused("follow", &json!({"work": work, "from": "1.2"}).to_string()).await;
    assert_eq!(code, "bad_cursor");
    let at = "lh.work.submit";
    let body = vec![0x91_u8; 900_000].into();
    let answer = house.bus.ask_raw(at, Encoding::MsgPack, body, PATIENCE).await.unwrap();
    assert!(answer.refused && answer.encoding == Encoding::MsgPack);
    assert_eq!(house.ask("list", json!({})).await["works"].as_array().unwrap().len(), 1);
}

async fn cancel(house: House) {
    let work = house.submit(json!({"name": "slow", "argv": ["sleep", "60"]})).await;
    let bus = house.bus.clone();
    let waiting = tokio::spawn(async move {
        let body = json!({"work": work}).to_string().into();
        bus.ask_raw("lh.work.wait", Encoding::Json, body, PATIENCE).await.unwrap()
    });
    let summary = house.ask("get", json!({"work": "slow"})).await;
    assert_eq!(summary["state"], "waiting");
    assert!(summary["why"].as_str().unwrap().contains("no scheduler answers"), "{summary}");
    assert_eq!(house.ask("cancel", json!({"work": "slow"})).await["state"], "cancelled");
    let waited: Value = serde_json::from_slice(&waiting.await.unwrap().payload).unwrap();
    assert_eq!(waited["state"], "cancelled");
    let (code, _) = house.refused("cancel", r#"{"work":"slow"}"#).await;
    assert_eq!(code, "ended");
    assert_eq!(house.ask("retry", json!({"work": "slow"})).await["round"], 1);
}

async fn parts(house: House) {
    let open = json!({"open": true, "run": {"echo": "{item}"}, "array": {"items": []}});
    let work = house.submit(open).await;
    let part = |n: u32| {
        let items: Vec<String> = (0..1000).map(|i| format!("{n}-{i}")).collect();
        json!({"work": work, "part": n, "items": {"task": "main", "items": items}})
    };
    let all = (1..=20).map(|n| house.ask("append", part(n)));
    let answers = futures::future::join_all(all).await;
    assert_eq!(answers[19]["part"], 20);
    assert_eq!(house.ask("append", part(7)).await["part"], 20, "sent again");
    let (code, _) = house.refused("append", &part(22).to_string()).await;
    assert_eq!(code, "part_missing");
    let mut other = part(7);
    other["items"]["items"][0] = json!("x");
    let (code, _) = house.refused("append", &other.to_string()).await;
    assert_eq!(code, "part_taken");
    let summary = house.ask("close", json!({"work": work, "parts": 20})).await;
    assert_eq!(summary["tasks"][0]["total"], 20_000);
}

async fn results(house: House) {
    let work = house.submit(json!({"run": {"echo": "{index}"}, "array": {"count": 100}})).await;
    house.assign(work, Indices::first(100)).await;
    for n in 0..10 {
        house.end(work, Indices::span(n * 10, n * 10 + 9), format!("{n}").as_bytes(), 1).await;
    }
    let wait = house.ask("wait", json!({"work": work})).await;
    assert_eq!(wait["state"], "finished");
    let (mut seen, mut from) = (Vec::new(), Value::Null);
    loop {
        let mut request = json!({"work": work, "limit": 7});
        if from.is_string() {
            request["from"] = from;
        }
        let page = house.ask("results", request).await;
        seen.extend(page["items"].as_array().unwrap().clone());
        from = page["next"].clone();
        if from.is_null() {
            break;
        }
    }
    assert_eq!(seen.len(), 100);
    for (n, outcome) in seen.iter().enumerate() {
        assert_eq!(outcome["index"], n);
        assert_eq!(outcome["stdout"], (n / 10).to_string());
    }
}

async fn follow(house: House) {
    let work = house.submit(json!({"argv": ["x"]})).await;
    let mut live = house.follow(json!({"work": work})).await;
    assert_eq!(show(&live.next().await.unwrap()), "accepted");
    house.assign(work, Indices::one(0)).await;
    assert_eq!(show(&live.next().await.unwrap()), "assigned");
    house.write(work, &node(), vec![frame(0, 0, b"one ")]).await;
    assert_eq!(show(&live.next().await.unwrap()), "0:0=one ");
    house.write(work, &node(), vec![frame(0, 4, b"two ")]).await;
    assert_eq!(show(&live.next().await.unwrap()), "0:4=two ");
    house.end(work, Indices::one(0), b"one two end", 11).await;
    let rest = live.rest().await;
    assert_eq!(shown(&rest), ["ended", "0:8=end", "[finished]"]);
    assert!(rest[0].fact.as_ref().unwrap().body["ending"].get("stdout").is_none());
    let mut late = house.follow(json!({"work": work})).await;
    let late = late.rest().await;
    let expected =
        ["accepted", "assigned", "0:0=one ", "0:4=two ", "ended", "0:8=end", "[finished]"];
    assert_eq!(shown(&late), expected);
    let mut none = house.follow(json!({"work": work, "index": 1})).await;
    let none = none.rest().await;
    assert_eq!(shown(&none), ["accepted", "assigned", "ended", "[finished]"]);
}

async fn resume(house: House) {
    let work = house.submit(json!({"argv": ["x"]})).await;
    house.assign(work, Indices::one(0)).await;
    for n in 0..5 {
        house.write(work, &node(), vec![frame(0, n, &[b'a' + n as u8])]).await;
    }
    house.end(work, Indices::one(0), b"abcde", 8).await;
    house.write(work, &node(), vec![frame(0, 5, b"fgh")]).await;
    let mut follow = house.follow(json!({"work": work})).await;
    let all = follow.rest().await;
    assert_eq!(bytes_of(&all), b"abcdefgh");
    for n in 0..all.len() - 1 {
        let from = &all[n].cursor;
        let mut again = house.follow(json!({"work": work, "from": from})).await;
        let again = again.rest().await;
        assert_eq!(shown(&again), shown(&all[n + 1..]), "from {from}");
    }
}

async fn forged(house: House) {
    let work = house.submit(json!({"argv": ["x"]})).await;
    house.assign(work, Indices::one(0)).await;
    let other = NodeName::new("zombie").unwrap();
    house.write(work, &other, vec![frame(0, 0, b"lies")]).await;
    let mut unknown = frame(0, 0, b"later");
    unknown.attempt = 7;
    house.write(work, &node(), vec![unknown, frame(9, 0, b"no such index")]).await;
    house
        .bus
        .log(OUTPUT)
        .append(
            &subject::out(&OwnerName::owner(), work, &StreamName::stdout(), &node()),
            b"garbage".to_vec().into(),
            &Expect::Any,
        )
        .await
        .unwrap();
    house.write(work, &node(), vec![frame(0, 0, b"true")]).await;
    house.end(work, Indices::one(0), b"true", 4).await;
    let mut follow = house.follow(json!({"work": work})).await;
    assert_eq!(bytes_of(&follow.rest().await), b"true");
}

async fn acknowledged(house: House) {
    let work = house.submit(json!({"argv": ["x"]})).await;
    house.assign(work, Indices::one(0)).await;
    let mut follow = house.follow(json!({"work": work})).await;
    follow.acknowledges = true;
    let mut seed = fastrand::Rng::with_seed(11);
    let mut whole: Vec<u8> = Vec::new();
    for _ in 0..32 {
        let piece: Vec<u8> = std::iter::repeat_with(|| seed.u8(..)).take(128 * 1024).collect();
        house.write(work, &node(), vec![frame(0, whole.len() as u64, &piece)]).await;
        whole.extend(piece);
    }
    let length = whole.len() as u64;
    house.end(work, Indices::one(0), &[], length).await;
    let all = follow.rest().await;
    assert!(bytes_of(&all) == whole, "what was read is not what was written");
    let summary = all.last().unwrap().summary.as_ref().unwrap();
    assert_eq!(summary.state.as_str(), "finished");
}

/// A stream of output of 8 MiB, a job that writes 24: what was read makes room, and the node is told
/// how far the reader is.
async fn paced(house: House) {
    let kept = house.submit(json!({"argv": ["y"]})).await;
    house.assign(kept, Indices::one(0)).await;
    house.write(kept, &node(), vec![frame(0, 0, b"kept")]).await;
    house.end(kept, Indices::one(0), &[], 4).await;
    let work = house.submit(json!({"argv": ["x"], "output": {"full": "wait"}})).await;
    house.assign(work, Indices::one(0)).await;
    let mut told = house.bus.hear("lh.node.m4.read").await.unwrap();
    let mut follow = house.follow(json!({"work": work, "pace": true})).await;
    follow.acknowledges = true;
    let reading = tokio::spawn(async move { bytes_of(&follow.rest().await) });
    let first: ReadRequest = told.next().await.unwrap().decode().unwrap();
    assert_eq!((first.work, first.index, first.attempt, first.offset), (work, 0, 1, 0));
    let mut seed = fastrand::Rng::with_seed(12);
    let mut whole: Vec<u8> = Vec::new();
    let at = subject::out(&OwnerName::owner(), work, &StreamName::stdout(), &node());
    while whole.len() < 24 << 20 {
        let piece: Vec<u8> = std::iter::repeat_with(|| seed.u8(..)).take(256 * 1024).collect();
        let frames = Frames { frames: vec![frame(0, whole.len() as u64, &piece)] };
        let body = bytes::Bytes::from(codec::encode(Encoding::MsgPack, &frames));
        loop {
            match house.bus.log(OUTPUT).append(&at, body.clone(), &Expect::Any).await {
                Ok(_) => break,
                // As a node does: it goes on when the reader has come further.
                Err(StoreError::Full(_)) => told.next().await.unwrap(),
                Err(error) => panic!("{error}"),
            };
        }
        whole.extend(piece);
    }
    house.end(work, Indices::one(0), &[], whole.len() as u64).await;
    assert!(reading.await.unwrap() == whole, "what was read is not what was written");
    let mut other = house.follow(json!({"work": kept})).await;
    assert_eq!(bytes_of(&other.rest().await), b"kept");
}

/// Eight works that end one after another, each with 1 MiB of output, in a stream of 8 MiB.
async fn swept(mut house: House) {
    house.manager.take().unwrap().stop().await;
    let settings = manager::Settings {
        sweep_every_s: Seconds::from_ms(100),
        output_stays_s: Seconds::from_ms(0),
        ..settings()
    };
    let _manager = house.start_manager_with(settings).await;
    let mut works = Vec::new();
    for n in 0..8 {
        let work = house.submit(json!({"name": format!("w{n}"), "argv": ["x"]})).await;
        house.assign(work, Indices::one(0)).await;
        house.end(work, Indices::one(0), &[], 1 << 20).await;
        works.push(work);
    }
    for work in &works {
        for part in 0..4 {
            let piece = vec![b'a' + part; 256 * 1024];
            let frames = vec![frame(0, u64::from(part) * 256 * 1024, &piece)];
            let at = subject::out(&OwnerName::owner(), *work, &StreamName::stdout(), &node());
            let body: bytes::Bytes = codec::encode(Encoding::MsgPack, &Frames { frames }).into();
            while let Err(error) =
                house.bus.log(OUTPUT).append(&at, body.clone(), &Expect::Any).await
            {
                assert!(matches!(error, StoreError::Full(_)), "{error}");
            }
        }
    }
    let last = bytes_of(&house.follow(json!({"work": "w7"})).await.rest().await);
    assert_eq!(last.len(), 1 << 20, "the last of them is whole");
    let log = house.bus.log(OUTPUT);
    let of = async |work: WorkId| log.subjects(&format!("lh.out.owner.{work}.>")).await;
    while !of(works[0]).await.unwrap().is_empty() {
        tokio::task::yield_now().await;
    }
    assert!(!of(works[7]).await.unwrap_or_default().is_empty());
}

async fn dead(house: House) {
    let work = house.submit(json!({"argv": ["x"]})).await;
    house.assign(work, Indices::one(0)).await;
    for _ in 0..3 {
        let mut follow = house.follow(json!({"work": work})).await;
        follow.next().await.unwrap();
    }
    // All three that one caller may have are taken by who does not listen any more; they end as
    // soon as something is said to them.
    let mut n = 0;
    loop {
        house.write(work, &node(), vec![frame(0, n, b"x")]).await;
        n += 1;
        let mut follow = house.follow(json!({"work": work})).await;
        let first = follow.hearing.next().await.unwrap();
        if !first.refused {
            break;
        }
        assert_eq!(&*first.refusal().code, "busy");
    }
}

async fn inbox(mut house: House) {
    house.manager.take().unwrap().stop().await;
    let put = |body: &str| {
        let (log, body) = (house.bus.log(bus::inbox::STREAM), body.to_owned());
        async move { log.append("lh.inbox.owner", body.into(), &Expect::Any).await.unwrap() }
    };
    put(r#"{"name":"good","run":{"echo":"hi"}}"#).await;
    put(r#"{"name":"bad","argv":[]}"#).await;
    put("no work at all").await;
    let manager = house.start_manager().await;
    let mut names = Vec::new();
    while names.len() < 3 {
        let list = house.ask("list", json!({})).await;
        let works = list["works"].as_array().unwrap();
        names = works
            .iter()
            .map(|w| format!("{} {}", w["name"].as_str().unwrap(), w["state"].as_str().unwrap()))
            .collect();
    }
    names.sort();
    assert_eq!(names, [" refused", "bad refused", "good waiting"]);
    manager.stop().await;
}

async fn stopping(mut house: House) {
    let work = house.submit(json!({"argv": ["x"]})).await;
    let mut follow = house.follow(json!({"work": work})).await;
    follow.next().await.unwrap();
    let bus = house.bus.clone();
    let waiting = tokio::spawn(async move {
        let body = json!({"work": work}).to_string().into();
        bus.ask_raw("lh.work.wait", Encoding::Json, body, PATIENCE).await.unwrap()
    });
    // Its turn has come when one that was asked later is answered.
    tokio::task::yield_now().await;
    house.ask("get", json!({"work": work})).await;
    house.manager.take().unwrap().stop().await;
    let waited: Value = serde_json::from_slice(&waiting.await.unwrap().payload).unwrap();
    assert_eq!(waited["state"], "waiting");
    assert_eq!(shown(&follow.rest().await), ["[waiting]"]);
    let body = b"{}".to_vec().into();
    let nobody = house.bus.ask_raw("lh.work.list", Encoding::Json, body, PATIENCE).await;
    assert!(matches!(nobody, Err(bus::Error::Nobody { .. })), "{nobody:?}");
}

async fn second(mut house: House) {
    let work = house.submit(json!({"name": "kept", "argv": ["x"]})).await;
    let other = house.start_manager().await;
    // Whichever of the two is asked, it knows what the other has just taken.
    for n in 0..200 {
        let work = house.submit(json!({"name": format!("w{n}"), "run": {"echo": ""}})).await;
        assert_eq!(house.ask("get", json!({"work": work})).await["work"], work.to_string());
    }
    house.manager.take().unwrap().stop().await;
    assert_eq!(house.ask("get", json!({"work": "kept"})).await["work"], work.to_string());
    other.stop().await;
}

async fn away(mut house: House) {
    let work = house.submit(json!({"name": "kept", "argv": ["x"]})).await;
    house.server.take().unwrap().stop().await.unwrap();
    house.server = Some(start_server(&house.paths, &house.lock).await);
    again(&house).await;
    assert_eq!(house.ask("get", json!({"work": "kept"})).await["work"], work.to_string());
    house.submit(json!({"name": "new", "argv": ["x"]})).await;
    house.assign(work, Indices::one(0)).await;
    house.end(work, Indices::one(0), b"", 0).await;
    assert_eq!(house.ask("wait", json!({"work": "kept"})).await["state"], "finished");
}

/// Waits until the manager answers again.
async fn again(house: &House) {
    loop {
        let body = b"{}".to_vec().into();
        let within = Duration::from_secs(1);
        match house.bus.ask_raw("lh.work.list", Encoding::Json, body, within).await {
            Ok(_) => return,
            Err(_) => tokio::task::yield_now().await,
        }
    }
}

fn copy(from: &Path, to: &Path) {
    std::fs::create_dir_all(to).unwrap();
    for entry in std::fs::read_dir(from).unwrap() {
        let entry = entry.unwrap();
        let to = to.join(entry.file_name());
        if entry.file_type().unwrap().is_dir() {
            copy(&entry.path(), &to);
        } else {
            std::fs::copy(entry.path(), to).unwrap();
        }
    }
}

/// As after a power cut: the bus comes back with a journal that lacks what was stored last, and
/// other facts take the place of those.
async fn power_cut(mut house: House) {
    house.submit(json!({"name": "kept", "argv": ["x"]})).await;
    house.server.take().unwrap().stop().await.unwrap();
    let saved = tempfile::tempdir().unwrap();
    copy(&house.paths.jetstream(), saved.path());
    house.server = Some(start_server(&house.paths, &house.lock).await);
    again(&house).await;
    house.submit(json!({"name": "vanishes", "argv": ["x"]})).await;
    house.submit(json!({"name": "vanishes too", "argv": ["x"]})).await;
    house.server.take().unwrap().stop().await.unwrap();
    std::fs::remove_dir_all(house.paths.jetstream()).unwrap();
    copy(saved.path(), &house.paths.jetstream());
    house.server = Some(start_server(&house.paths, &house.lock).await);
    again(&house).await;
    loop {
        let answer = house.answer("get", r#"{"work":"vanishes"}"#).await;
        if answer.refused {
            break;
        }
    }
    house.submit(json!({"name": "new", "argv": ["x"]})).await;
    let list = house.ask("list", json!({})).await;
    let names: Vec<_> = list["works"].as_array().unwrap().iter().map(|w| &w["name"]).collect();
    assert_eq!(names, ["new", "kept"]);
}

/// The same for output: what the node says again stands where other output was, and is heard.
async fn output_cut(mut house: House) {
    let work = house.submit(json!({"argv": ["x"]})).await;
    house.assign(work, Indices::one(0)).await;
    house.server.take().unwrap().stop().await.unwrap();
    let saved = tempfile::tempdir().unwrap();
    copy(&house.paths.jetstream(), saved.path());
    house.server = Some(start_server(&house.paths, &house.lock).await);
    again(&house).await;
    let mut follow = house.follow(json!({"work": work})).await;
    for (offset, text) in [(0, "one "), (4, "two "), (8, "three ")] {
        house.write(work, &node(), vec![frame(0, offset, text.as_bytes())]).await;
    }
    while show(&follow.next().await.unwrap()) != "0:8=three " {}

    house.server.take().unwrap().stop().await.unwrap();
    std::fs::remove_dir_all(house.paths.jetstream()).unwrap();
    copy(saved.path(), &house.paths.jetstream());
    house.server = Some(start_server(&house.paths, &house.lock).await);
    again(&house).await;
    // Who follows is told that the connection was lost, and follows again.
    let mut follow = house.follow(json!({"work": work})).await;
    for expected in ["accepted", "assigned"] {
        assert_eq!(show(&follow.next().await.unwrap()), expected);
    }
    house.write(work, &node(), vec![frame(0, 0, b"one "), frame(0, 4, b"two ")]).await;
    assert_eq!(show(&follow.next().await.unwrap()), "0:0=one ");
    assert_eq!(show(&follow.next().await.unwrap()), "0:4=two ");
    house.end(work, Indices::one(0), b"", 8).await;
    assert_eq!(shown(&follow.rest().await), ["ended", "[finished]"]);
}

/// With the real scheduler and a node that echoes.
async fn whole(house: House) {
    let url = house.server.as_ref().unwrap().url();
    let own = connect(&url, &house.paths, "scheduler").await;
    let scheduler = scheduler::start(own, PoolName::main(), scheduler::Settings::default(), None);
    let scheduler = scheduler.await.unwrap();
    scheduler.ready().await.unwrap();
    let waits = house.submit(json!({"name": "waits", "argv": ["x"]})).await;
    let summary = house.ask("get", json!({"work": "waits"})).await;
    assert!(summary["why"].as_str().is_some_and(|why| !why.is_empty()), "{summary}");
    house.ask("cancel", json!({"work": waits})).await;

    let node = echo::start(connect(&url, &house.paths, "node").await, node());
    let answer = house.ask("run", json!({"run": {"echo": "hi"}})).await;
    assert_eq!((&answer["state"], &answer["stdout"]), (&json!("finished"), &json!("hi")));
    assert_eq!(answer["node"], "m4");

    let array = json!({"name": "many", "run": {"echo": "{index}"}, "array": {"count": 5000}});
    assert_eq!(house.ask("run", array).await["state"], "finished");
    let page = house.ask("results", json!({"work": "many", "from": "0.4990"})).await;
    let texts: Vec<&str> =
        page["items"].as_array().unwrap().iter().map(|o| o["stdout"].as_str().unwrap()).collect();
    assert_eq!(texts.first(), Some(&"4990"));
    assert_eq!((texts.len(), &page["next"]), (10, &Value::Null));
    let only = json!({"work": "many", "task": "main", "index": 77});
    let mut follow = house.follow(only).await;
    assert_eq!(bytes_of(&follow.rest().await), b"77");

    // The scheduler names its node by now, so that what it could never run is refused.
    let big = json!({"argv": ["x"], "resources": {"cpus": 64}}).to_string();
    loop {
        let answer = house.answer("submit", &big).await;
        if answer.refused {
            assert_eq!(&*answer.refusal().code, "unsatisfiable");
            break;
        }
    }
    let body = codec::encode(Encoding::MsgPack, &json!({"run": {"echo": "hi"}}));
    let before = bus::clock::at();
    let all = (0..1000).map(|_| {
        house.bus.ask_raw("lh.work.run", Encoding::MsgPack, body.clone().into(), PATIENCE)
    });
    for answer in futures::future::join_all(all).await {
        let answer: RunReply = answer.unwrap().decode().unwrap();
        assert_eq!(answer.summary.state.as_str(), "finished");
        assert_eq!(answer.outcome.unwrap().stdout, Blob::from("hi"));
    }
    tracing::info!(took_ms = bus::clock::at().since(before), "a thousand runs");
    node.abort();
    scheduler.stop().await;
}

async fn thousand(house: House) {
    let at = "lh.work.submit";
    let body = codec::encode(Encoding::MsgPack, &json!({"run": {"echo": "hi"}}));
    let before = bus::clock::at();
    let all =
        (0..1000).map(|_| house.bus.ask_raw(at, Encoding::MsgPack, body.clone().into(), PATIENCE));
    let answers = futures::future::join_all(all).await;
    assert!(answers.into_iter().all(|answer| !answer.unwrap().refused));
    let took = bus::clock::at().since(before);
    tracing::info!(took, "a thousand submits");
    let list = house.ask("list", json!({"limit": 1000})).await;
    let mut seen = list["works"].as_array().unwrap().len();
    let mut next = list["next"].clone();
    while next.is_string() {
        let page = house.ask("list", json!({"limit": 1000, "from": next})).await;
        seen += page["works"].as_array().unwrap().len();
        next = page["next"].clone();
    }
    assert_eq!(seen, 1000);
}
