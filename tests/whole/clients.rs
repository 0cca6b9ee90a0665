//! The public contract, held to by clients that nobody here wrote: the `nats` command, nats-py and
//! the Node client, each in its pinned version.

pub(crate) mod desk;
pub(crate) mod install;

use crate::house::{House, patiently};
use desk::{DOOR, Desk, printed};
use futures::StreamExt;
use serde_json::{Value, json};
use std::io::Write;

/// Says past the test harness, which swallows what is printed, that a test could not be run.
pub(crate) fn not_run(reason: &str) {
    let test = std::thread::current().name().unwrap_or("a test").to_owned();
    let line = format!("\n{test}: not run: {reason}\n");
    std::io::stderr().write_all(line.as_bytes()).unwrap();
}

/// Every line of JSON among what was printed.
fn lines(text: &str) -> Vec<Value> {
    text.lines().filter_map(|line| serde_json::from_str(line).ok()).collect()
}

async fn nats(desk: &Desk, arguments: &str) -> Vec<Value> {
    lines(&desk.says(&format!("{DOOR}\nnats {arguments}")).await)
}

#[tokio::test]
async fn the_nats_command_gets_in_by_the_exports_and_by_the_context_alike() {
    let nats = match install::nats() {
        Ok(nats) => nats,
        Err(reason) => return not_run(&reason),
    };
    let house = House::up(&[("home", "cpus=2")]).await;
    let desk = Desk::beside(&house).with_nats(&nats);
    let request = r#"req --raw --timeout 24h lh.work.run '{"argv":["uname","-s"]}'"#;

    let by_exports = desk.says(&format!("{DOOR}\nnats {request}")).await;
    let by_context =
        desk.says(&format!("nats --context \"$LONGHOUSE_DIR/nats.json\" {request}")).await;
    let by_url = desk
        .says(&format!("{DOOR}\nunset NATS_CONTEXT LONGHOUSE_DIR\nnats --no-context {request}"))
        .await;
    let without = desk.runs(&format!("nats --server {} {request}", house.url())).await;

    for said in [by_exports, by_context, by_url] {
        let said = lines(&said);
        assert_eq!(said[0]["state"], "finished", "{said:?}");
        assert_eq!(said[0]["stdout"], "Linux\n", "{said:?}");
    }
    assert!(!without.status.success(), "there is no door without a name");
}

#[tokio::test]
async fn the_nats_command_submits_gets_lists_waits_and_cancels() {
    let nats_command = match install::nats() {
        Ok(nats) => nats,
        Err(reason) => return not_run(&reason),
    };
    let house = House::up(&[("home", "cpus=2")]).await;
    let desk = Desk::beside(&house).with_nats(&nats_command);

    let submitted = nats(
        &desk,
        r#"req --raw lh.work.submit '{"name":"pair","array":{"items":["a","b"]},
           "argv":["sh","-c","echo {item}; test {item} = a"]}'"#,
    )
    .await;
    let waited = nats(&desk, r#"req --raw --timeout 24h lh.work.wait '{"work":"pair"}'"#).await;
    let got = nats(&desk, r#"req --raw lh.work.get '{"work":"@last"}'"#).await;
    let results = nats(&desk, r#"req --raw lh.work.results '{"work":"pair"}'"#).await;
    let templates = nats(
        &desk,
        r#"req --raw --no-templates --timeout 24h lh.work.run '{"argv":["echo","{{Count}}"]}'"#,
    )
    .await;
    nats(&desk, r#"req --raw lh.work.submit '{"name":"nap","argv":["sleep","1000"]}'"#).await;
    nats(&desk, r#"req --raw lh.work.cancel '{"work":"nap"}'"#).await;
    let cancelled = nats(&desk, r#"req --raw --timeout 24h lh.work.wait '{"work":"nap"}'"#).await;
    let listed = nats(&desk, r"req --raw lh.work.list '{}'").await;
    // The subject with the caller in it is the same one.
    let named = nats(&desk, r#"req --raw lh.work.list.owner '{}'"#).await;
    let refused =
        desk.says(&format!("{DOOR}\nnats req lh.work.get '{{\"work\":\"nobody\"}}' 2>&1")).await;

    assert_eq!(submitted[0]["name"], "pair", "{submitted:?}");
    assert_eq!(waited[0]["state"], "failed", "{waited:?}");
    assert_eq!(waited, got);
    let items = results[0]["items"].as_array().unwrap();
    let ends: Vec<_> = items.iter().map(|item| (&item["exit_code"], &item["stdout"])).collect();
    assert_eq!(json!(ends), json!([[0, "a\n"], [1, "b\n"]]));
    assert_eq!(templates[0]["stdout"], "{{Count}}\n", "{templates:?}");
    assert_eq!(cancelled[0]["state"], "cancelled", "{cancelled:?}");
    let names: Vec<_> =
        listed[0]["works"].as_array().unwrap().iter().map(|work| &work["name"]).collect();
    assert_eq!(json!(names), json!(["nap", "", "pair"]));
    assert_eq!(listed, named);
    assert!(refused.contains("Nats-Service-Error-Code: 404"), "{refused}");
    assert!(refused.contains("unknown_work"), "{refused}");
}

#[tokio::test]
async fn the_nats_command_follows_a_work_to_its_end_through_long_silence() {
    let nats_command = match install::nats() {
        Ok(nats) => nats,
        Err(reason) => return not_run(&reason),
    };
    let house = House::up(&[("home", "cpus=2")]).await;
    let desk = Desk::beside(&house).with_nats(&nats_command);

    nats(
        &desk,
        r#"req --raw lh.work.submit '{"name":"slow","argv":["sh","-c","echo a; sleep 2; echo b"]}'"#,
    )
    .await;
    let live = nats(
        &desk,
        r#"req --raw --wait-for-empty --timeout 24h --reply-timeout 24h lh.work.follow '{"work":"slow"}'"#,
    )
    .await;

    let output: String = live.iter().filter_map(|one| one["output"]["bytes"].as_str()).collect();
    assert_eq!(output, "a\nb\n", "{live:?}");
    assert_eq!(live[0]["fact"]["kind"], "accepted", "{live:?}");
    assert_eq!(live.last().unwrap()["summary"]["state"], "finished", "{live:?}");
}

#[tokio::test]
async fn the_nats_command_sees_who_answers_and_what_may_be_asked() {
    let nats_command = match install::nats() {
        Ok(nats) => nats,
        Err(reason) => return not_run(&reason),
    };
    let house = House::up(&[("home", "cpus=2")]).await;
    let desk = Desk::beside(&house).with_nats(&nats_command);

    house.ask("lh.work.list", "{}").await;
    house.ask("lh.work.get", r#"{"work":"nobody"}"#).await;
    let listed = desk.says(&format!("{DOOR}\nnats micro ls")).await;
    let info = desk.says(&format!("{DOOR}\nnats micro info manager --json")).await;
    let stats = desk.says(&format!("{DOOR}\nnats micro stats manager --json")).await;

    assert!(listed.contains("manager") && listed.contains("scheduler"), "{listed}");
    for subject in ["lh.work.submit", "lh.work.run", "lh.work.follow"] {
        assert!(info.contains(subject), "{subject}: {info}");
    }
    assert!(info.contains("request_schema") && info.contains("response_schema"), "{info}");
    let stats: Value = serde_json::from_str(&stats).unwrap();
    assert!(stats.to_string().contains("\"refused\":1"), "{stats}");
}

#[tokio::test]
async fn what_lies_in_the_inbox_runs_when_a_manager_comes() {
    let nats_command = match install::nats() {
        Ok(nats) => nats,
        Err(reason) => return not_run(&reason),
    };
    let mut house = House::new("");
    house.start(&["up", "--port", "0", "--only", "bus"]).await;
    let deciders = ["up", "--only", "manager", "--only", "scheduler"];
    house.start(&deciders).await;
    house.start(&["worker", "--name", "home", "--lend", "cpus=2"]).await;
    let manager = house.processes.remove(1);
    manager.signal(rustix::process::Signal::TERM);
    let (status, said) = manager.ended().await;
    assert!(status.success(), "{status}: {said}");

    let desk = Desk::beside(&house).with_nats(&nats_command);
    let nobody = desk.says(&format!("{DOOR}\nnats req lh.work.list '{{}}' 2>&1")).await;
    for body in [
        r#"{"name":"good","argv":["echo","from the inbox"]}"#,
        r#"{"name":"bad","agrv":["true"]}"#,
        r#"{"name":"empty","argv":[]}"#,
        "no JSON",
    ] {
        desk.says(&format!("{DOOR}\nnats pub -J lh.inbox.owner '{body}'")).await;
    }
    // Said twice with one id, it is one work.
    let id = "0198f0c2-7b5e-7cc3-98c4-dc0c0c07398f";
    for _ in 0..2 {
        let body = format!(r#"{{"work":"{id}","name":"twice","argv":["true"]}}"#);
        desk.says(&format!("{DOOR}\nnats pub -J lh.inbox.owner '{body}'")).await;
    }
    let client = house.nats().await;
    let mut facts = client.subscribe("lh.fact.main.owner.*.*").await.unwrap();
    client.flush().await.unwrap();
    house.start(&deciders).await;
    let mut taken = 0;
    while taken < 5 {
        let fact = patiently("the inbox", facts.next()).await.unwrap();
        let kind = fact.subject.rsplit('.').next().unwrap();
        taken += u32::from(matches!(kind, "accepted" | "refused"));
    }
    for name in ["good", "twice"] {
        house.ask("lh.work.wait", &json!({"work": name}).to_string()).await;
    }
    let works = house.ask("lh.work.list", "{}").await["works"].as_array().unwrap().clone();
    let output = house.ask("lh.work.results", r#"{"work":"good"}"#).await;

    assert!(nobody.contains("No responders"), "{nobody}");
    assert_eq!(output["items"][0]["stdout"], "from the inbox\n", "{output}");
    let states = |state: &str| -> Vec<&str> {
        let fit = works.iter().filter(|work| work["state"] == state);
        let mut names: Vec<_> = fit.map(|work| work["name"].as_str().unwrap()).collect();
        names.sort_unstable();
        names
    };
    assert_eq!(states("finished"), ["good", "twice"], "{works:?}");
    let refused: Vec<_> = works.iter().filter(|work| work["state"] == "refused").collect();
    assert_eq!(refused.len(), 3, "{works:?}");
    let why = |name: &str| {
        let of = refused.iter().find(|work| work["name"] == name);
        of.and_then(|work| work["why"].as_str()).unwrap_or_default()
    };
    assert!(why("empty").contains("`argv` is empty"), "{refused:?}");
    assert!(refused.iter().any(|work| work["why"].to_string().contains("agrv")), "{refused:?}");
}

#[tokio::test]
async fn nats_py_works_in_json_and_in_messagepack() {
    install::python();
    let house = House::up(&[("home", "cpus=2")]).await;

    let output = Desk::beside(&house).python(include_str!("clients/wire.py")).await;

    let said = printed("wire.py", &output);
    let mut expected = String::new();
    for wire in ["json", "msgpack"] {
        for line in [
            "run answers with output and exit code",
            "a signal is a signal",
            "any bytes go in and come out",
            "a declared output comes back",
            "the same id is the same work, however often it is asked for",
            "the same id with another spec is refused",
            "wait and get tell how it stands",
            "list finds it",
            "results come in pages",
            "retry tries again what failed, once a request",
            "cancel ends it",
            "an open work grows in parts",
            "the scheduler tells its nodes",
        ] {
            expected.push_str(&format!("{wire}: {line}\n"));
        }
    }
    expected.push_str("either encoding is answered in either\n");
    assert_eq!(said, expected);
}

#[tokio::test]
async fn nats_py_follows_acknowledges_and_goes_on_behind_a_cursor() {
    install::python();
    let house = House::up(&[("home", "cpus=2")]).await;

    let output = Desk::beside(&house).python(include_str!("clients/follow.py")).await;

    assert_eq!(
        printed("follow.py", &output),
        "facts, any bytes and the summary come in both encodings, live and later\n\
         who acknowledges is sent everything, in order\n\
         a cursor goes on exactly where it was taken\n\
         who never acknowledges is sent it, too\n\
         one task and one index can be followed alone\n"
    );
}

#[tokio::test]
async fn the_node_client_runs_and_follows() {
    install::node();
    let house = House::up(&[("home", "cpus=2")]).await;

    let output = Desk::beside(&house).with_node().node(include_str!("clients/wire.mjs")).await;

    assert_eq!(
        printed("wire.mjs", &output),
        "run answers with output and exit code\n\
         any bytes go in and come out\n\
         follow brings facts, output and the summary\n\
         a cursor goes on where it was taken\n\
         a refusal has headers and a body\n"
    );
}
