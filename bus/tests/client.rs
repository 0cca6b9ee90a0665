//! What travels over a real bus: requests, refusals, streams, fences, leases, the inbox.
//!
//! A `main` of its own, because this program is also the shim of the server it starts.

#![expect(clippy::unwrap_used, reason = "a test may fail by panic")]

use bus::{
    Bus, Endpoint, Error, Service, Settings, StoreError,
    log::Expect,
    server::{Holder, Paths, Say, Search, Server, shim_main, take_house},
    streams::{self, Shares},
};
use futures::StreamExt;
use libtest_mimic::{Arguments, Trial};
use schemas::{
    blob::Blob,
    codec::Encoding,
    error::{Refusal, code},
    token::{CallerName, PoolName},
};
use serde::{Deserialize, Serialize};
use std::{
    future::Future,
    path::Path,
    pin::Pin,
    process::ExitCode,
    sync::{Arc, Mutex},
    time::Duration,
};
use tempfile::TempDir;

const PATIENCE: Duration = Duration::from_secs(300);
const SECOND: Duration = Duration::from_secs(1);

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
            runtime.block_on(async {
                tokio::time::timeout(PATIENCE, async { body(House::up().await).await }).await
            })?;
            Ok(())
        })
    };
    vec![
        trial("a_request_is_answered_in_its_own_encoding", |h| Box::pin(answered(h))),
        trial("a_refusal_has_headers_and_a_body_and_nobody_is_said", |h| Box::pin(refused(h))),
        trial("many_answers_end_with_an_empty_one", |h| Box::pin(many(h))),
        trial("a_fenced_write_is_refused_once_the_fence_moved", |h| Box::pin(fenced(h))),
        trial("a_tail_knows_when_it_has_caught_up_and_history_pages", |h| Box::pin(tailed(h))),
        trial("a_tail_goes_on_at_once_each_time_the_bus_is_killed_and_ends_with_it", |h| {
            Box::pin(outlived(h))
        }),
        trial("a_tail_ends_when_its_stream_is_gone", |h| Box::pin(gone(h))),
        trial("a_lease_expires_and_is_taken_again_with_its_ttl", |h| Box::pin(leased(h))),
        trial("what_was_said_to_the_inbox_waits_until_it_is_acknowledged", |h| {
            Box::pin(inboxed(h))
        }),
        trial("a_full_stream_says_so", |h| Box::pin(full(h))),
    ]
}

struct House {
    bus: Bus,
    server: Arc<Mutex<Option<Server>>>,
    _dir: TempDir,
    _lock: bus::server::FolderLock,
}

#[expect(clippy::disallowed_methods, reason = "a test hands in the environment it was given")]
fn search() -> Search {
    let cache = Path::new(env!("CARGO_TARGET_TMPDIR")).join("nats cache");
    Search { path: std::env::var_os("PATH"), cache, ..Search::default() }
}

impl House {
    async fn up() -> House {
        let dir = tempfile::tempdir().unwrap();
        let paths = Paths::open(dir.path()).unwrap();
        let holder = Holder::this_process("test", schemas::time::Stamp(0));
        let lock = take_house(&paths, &holder, &Say::nothing()).unwrap();
        let mut settings = bus::server::Settings::new(
            paths.clone(),
            search(),
            schemas::time::Stamp(0),
            Say::nothing(),
        );
        settings.port = Some(0);
        let server = Server::start(settings, &lock).await.unwrap();
        let bus = Bus::connect(Settings {
            url: server.url(),
            creds: Some(paths.creds()),
            name: "test".into(),
            caller: CallerName::owner(),
            inbox_prefix: None,
        })
        .await
        .unwrap();
        let shares = Shares { facts: 1 << 20, ..Shares::of(1 << 30) };
        bus.lay_streams(&[PoolName::main()], shares).await.unwrap();
        // Twice is once.
        bus.lay_streams(&[PoolName::main()], shares).await.unwrap();
        House { bus, server: Arc::new(Mutex::new(Some(server))), _dir: dir, _lock: lock }
    }
}

#[derive(Debug, PartialEq, Serialize, Deserialize)]
struct Said {
    text: Blob,
}

async fn serve(bus: &Bus) -> bus::Serving {
    let endpoint = |name: &str, subject: &str| Endpoint {
        name: name.into(),
        subject: subject.into(),
        metadata: vec![("request_schema".into(), "{}".into())],
    };
    bus.serve(Service {
        name: "echo".into(),
        version: "1.0.0".into(),
        description: "says it again".into(),
        queue: "echo".into(),
        endpoints: vec![
            endpoint("say", "lh.svc.echo.say"),
            endpoint("say-caller", "lh.svc.echo.say.*"),
        ],
        rest: vec!["lh.svc.echo.*".into()],
    })
    .await
    .unwrap()
}

async fn answered(house: House) {
    let bus = house.bus.clone();
    let mut serving = serve(&bus).await;
    tokio::spawn(async move {
        loop {
            for asked in serving.next_batch(16).await {
                let said: Said = schemas::codec::decode(asked.encoding, &asked.payload).unwrap();
                asked.answer(&said).await;
            }
        }
    });
    let said = Said { text: vec![0_u8, 255, 10].into() };
    let again: Said = house.bus.ask("lh.svc.echo.say.owner", &said, SECOND * 5).await.unwrap();
    assert_eq!(again, said);
    // Nor is it silent where it has no endpoint.
    let again: Said = house.bus.ask("lh.svc.echo.sya", &said, SECOND * 5).await.unwrap();
    assert_eq!(again, said);
    let json = house
        .bus
        .ask_raw("lh.svc.echo.say", Encoding::Json, r#"{"text":"hi"}"#.into(), SECOND * 5)
        .await
        .unwrap();
    assert_eq!((&*json.payload, json.encoding), (&br#"{"text":"hi"}"#[..], Encoding::Json));
    let info = house.bus.ask_raw("$SRV.INFO.echo", Encoding::Json, "".into(), SECOND * 5).await;
    let info: serde_json::Value = serde_json::from_slice(&info.unwrap().payload).unwrap();
    assert_eq!(info["endpoints"].as_array().unwrap().len(), 2, "{info}");
}

async fn refused(house: House) {
    let bus = house.bus.clone();
    let mut serving = serve(&bus).await;
    tokio::spawn(async move {
        for asked in serving.next_batch(16).await {
            asked.refuse(&Refusal::new(code::UNKNOWN_WORK, "no\nsuch work")).await;
        }
        std::future::pending::<()>().await;
    });
    match house.bus.ask::<Said>("lh.svc.echo.say", &(), SECOND * 5).await {
        Err(Error::Refused(refusal)) => {
            assert_eq!((&*refusal.code, &*refusal.message), (code::UNKNOWN_WORK, "no\nsuch work"));
        }
        other => panic!("{other:?}"),
    }
    match house.bus.ask::<Said>("lh.nobody", &(), SECOND * 5).await {
        Err(Error::Nobody { subject }) => assert_eq!(subject, "lh.nobody"),
        other => panic!("{other:?}"),
    }
}

async fn many(house: House) {
    let bus = house.bus.clone();
    let mut serving = serve(&bus).await;
    tokio::spawn(async move {
        for asked in serving.next_batch(16).await {
            for n in 0..3 {
                asked.say(format!("{n}").into(), Some("lh.ack.x.owner".into())).await.unwrap();
            }
            asked.end().await;
        }
        std::future::pending::<()>().await;
    });
    let mut answers =
        house.bus.ask_many("lh.svc.echo.say", Encoding::Json, "{}".into()).await.unwrap();
    for n in 0..3 {
        let answer = answers.next().await.unwrap();
        assert_eq!(answer.payload, format!("{n}"));
        assert_eq!(answer.reply.as_deref(), Some("lh.ack.x.owner"));
    }
    assert!(answers.next().await.unwrap().payload.is_empty());
}

async fn fenced(house: House) {
    let journal = house.bus.log(streams::journal(&PoolName::main()));
    let epoch = "lh.fact.main.epoch";
    let first = journal.append(epoch, "1".into(), &Expect::Last(0)).await.unwrap();
    let fence = |seq| Expect::Fence { subject: epoch.into(), seq };
    let write = "lh.fact.main.owner.w.ended";
    journal.append(write, "a".into(), &fence(first)).await.unwrap();
    let second = journal.append(epoch, "2".into(), &Expect::Last(first)).await.unwrap();
    let late = journal.append(write, "b".into(), &fence(first)).await;
    assert_eq!(late, Err(StoreError::Conflict));
    journal.append(write, "c".into(), &fence(second)).await.unwrap();
    assert_eq!(
        journal.append(epoch, "x".into(), &Expect::Last(first)).await,
        Err(StoreError::Conflict)
    );
    assert_eq!(journal.last(epoch).await.unwrap().unwrap().payload, "2");
    assert_eq!(journal.get(99).await.unwrap(), None);
}

async fn tailed(house: House) {
    let journal = house.bus.log(streams::journal(&PoolName::main()));
    let mut empty = journal.tail("lh.fact.main.>", 1).await.unwrap();
    assert_eq!(empty.behind(), 0);
    for n in 0..10 {
        let subject = format!("lh.fact.main.owner.w{}.ended", n % 2);
        journal.append(&subject, format!("{n}").into(), &Expect::Any).await.unwrap();
    }
    let mut live = Vec::new();
    while live.len() < 10 {
        live.extend(empty.next_batch(100).await);
    }
    assert!(live.iter().map(|s| s.seq).eq(1..=10));
    let mut tail = journal.tail("lh.fact.main.>", 4).await.unwrap();
    assert_eq!(tail.behind(), 7);
    let mut seen = Vec::new();
    while seen.last().is_none_or(|s: &bus::log::Stored| s.pending > 0) {
        seen.extend(tail.next_batch(3).await);
    }
    assert!(seen.iter().map(|s| s.seq).eq(4..=10));
    let page = journal.history("lh.fact.main.owner.w1.>", 1, 3, 1 << 20).await.unwrap();
    assert_eq!(page.iter().map(|s| s.seq).collect::<Vec<_>>(), [2, 4, 6]);
    let page = journal.history("lh.fact.main.owner.w1.>", 7, 100, 1 << 20).await.unwrap();
    assert_eq!(page.iter().map(|s| s.seq).collect::<Vec<_>>(), [8, 10]);
    assert_eq!(journal.history("lh.fact.main.owner.w1.>", 11, 9, 1 << 20).await.unwrap(), []);
    assert!(page[0].at.0 > 1_700_000_000_000);
    journal.purge("lh.fact.main.owner.w1.>", None).await.unwrap();
    assert_eq!(journal.state().await.unwrap().messages, 5);
}

async fn outlived(house: House) {
    let journal = house.bus.log(streams::journal(&PoolName::main()));
    // One is read all the time; from the other nobody takes anything while the bus is away.
    let mut slow = journal.tail("lh.fact.main.>", 1).await.unwrap();
    let mut tail = journal.tail("lh.fact.main.>", 1).await.unwrap();
    let (hand, mut seen) = tokio::sync::mpsc::unbounded_channel();
    let reader = tokio::spawn(async move {
        loop {
            let batch = tail.next_batch(9).await;
            if batch.is_empty() {
                return tail;
            }
            batch.into_iter().for_each(|stored| hand.send(stored).unwrap());
        }
    });
    let subject = "lh.fact.main.owner.w.ended";
    journal.append(subject, "0".into(), &Expect::Any).await.unwrap();
    assert_eq!(seen.recv().await.unwrap().seq, 1);
    assert_eq!(slow.next_batch(9).await[0].seq, 1);
    let mut connection = house.bus.connection();
    let mut state = house.server.lock().unwrap().as_ref().unwrap().state();
    for round in 1..=4 {
        let bus::server::State::Ready { pid, .. } = *state.borrow() else { panic!("not ready") };
        let made = connection.borrow().made;
        let pid = rustix::process::Pid::from_raw(pid.try_into().unwrap()).unwrap();
        rustix::process::kill_process(pid, rustix::process::Signal::KILL).unwrap();
        let again = |s: &bus::server::State| matches!(s, bus::server::State::Ready { restarts, .. } if *restarts >= round);
        state.wait_for(again).await.unwrap();
        connection.wait_for(|c| c.up && c.made > made).await.unwrap();
        // Two, so that nothing is said twice either.
        for _ in 0..2 {
            journal.append(subject, "more".into(), &Expect::Any).await.unwrap();
        }
        // Prompt is: before the bus has answered so many questions, one after the other.
        let asked = async {
            for _ in 0..2000 {
                house.bus.flush().await.unwrap();
            }
        };
        let both = async {
            let mut late = Vec::new();
            while late.len() < 2 {
                late.extend(slow.next_batch(9).await.into_iter().map(|stored| stored.seq));
            }
            (vec![seen.recv().await.unwrap().seq, seen.recv().await.unwrap().seq], late)
        };
        let next = tokio::select! {
            next = both => next,
            () = asked => panic!("nothing came in round {round}"),
        };
        let two = vec![2 * u64::from(round), 2 * u64::from(round) + 1];
        assert_eq!(next, (two.clone(), two));
    }
    house.bus.close().await;
    let mut tail = reader.await.unwrap();
    assert!(seen.try_recv().is_err());
    assert_eq!(tail.next_batch(9).await, []);
    assert_eq!(slow.next_batch(9).await, []);
}

async fn gone(house: House) {
    let journal = house.bus.log(streams::journal(&PoolName::main()));
    let mut tail = journal.tail("lh.fact.main.>", 1).await.unwrap();
    journal.append("lh.fact.main.owner.w.ended", "a".into(), &Expect::Any).await.unwrap();
    assert_eq!(tail.next_batch(9).await.len(), 1);
    let delete = format!("$JS.API.STREAM.DELETE.{}", journal.name());
    house.bus.ask_raw(&delete, Encoding::Json, "".into(), SECOND * 5).await.unwrap();
    assert_eq!(tail.next_batch(9).await, []);
    assert_eq!(tail.next_batch(9).await, []);
    assert!(matches!(journal.state().await, Err(Error::NoStream { .. })));
}

async fn leased(house: House) {
    let leases = house.bus.kv(streams::LEASES);
    assert_eq!(leases.get("main").await.unwrap().revision, 0);
    for _ in 0..2 {
        let before = leases.get("main").await.unwrap();
        assert_eq!(before.value, None);
        let mut watch = leases.watch("main").await.unwrap();
        let mine = leases.put("main", "me".into(), before.revision, Some(SECOND)).await.unwrap();
        let taken = leases.put("main", "you".into(), before.revision, Some(SECOND)).await;
        assert_eq!(taken, Err(StoreError::Conflict));
        let renewed = leases.put("main", "me".into(), mine, Some(SECOND)).await.unwrap();
        assert_eq!(leases.get("main").await.unwrap().value.unwrap(), "me");
        let gone = loop {
            let batch = watch.next_batch(9).await;
            if let Some(mark) = batch.iter().find(|s| s.removed && s.seq > renewed) {
                break mark.seq;
            }
        };
        assert_eq!(leases.get("main").await.unwrap().revision, gone);
    }
}

async fn inboxed(house: House) {
    let inbox_log = house.bus.log(bus::inbox::STREAM);
    inbox_log.append("lh.inbox.owner", "{}".into(), &Expect::Any).await.unwrap();
    let mut inbox = house.bus.inbox().await.unwrap();
    let first = inbox.next().await.unwrap();
    assert_eq!((first.seq, &*first.subject), (1, "lh.inbox.owner"));
    first.later(Duration::from_millis(10)).await;
    let again = inbox.next().await.unwrap();
    assert_eq!(again.seq, 1);
    again.acknowledge().await;
    inbox_log.append("lh.inbox.owner", "2".into(), &Expect::Any).await.unwrap();
    let second = inbox.next().await.unwrap();
    assert_eq!(second.payload, "2");
}

async fn full(house: House) {
    let journal = house.bus.log(streams::journal(&PoolName::main()));
    let body = vec![b'x'; 400_000];
    let mut stored = 0;
    let error = loop {
        match journal.append("lh.fact.main.owner.w.ended", body.clone().into(), &Expect::Any).await
        {
            Ok(_) => stored += 1,
            Err(error) => break error,
        }
        assert!(stored < 10);
    };
    assert!(matches!(error, StoreError::Full(_)), "{error:?}");
    let nowhere = journal.append("lh.nowhere", "".into(), &Expect::Any).await;
    assert_eq!(nowhere, Err(StoreError::NoStream));
    let large =
        journal.append("lh.fact.main.owner.w.ended", vec![0; 2 << 20].into(), &Expect::Any).await;
    assert_eq!(large, Err(StoreError::TooLarge));
}
