//! Jobs as a machine's owner would want them: their room, their environment, their end.

use crate::house::{House, patiently};
use serde_json::{Value, json};
use std::collections::BTreeSet;

/// Runs one work to its end.
async fn run(house: &House, work: Value) -> Value {
    house.ask("lh.work.run", &work.to_string()).await
}

/// A shell command as a work.
fn sh(script: &str) -> Value {
    json!({"argv": ["sh", "-c", script]})
}

fn with(mut work: Value, more: Value) -> Value {
    let more = more.as_object().unwrap().clone();
    work.as_object_mut().unwrap().extend(more);
    work
}

/// Whether any process has this text in its environment.
fn anybody_with(mark: &str) -> bool {
    let processes = std::fs::read_dir("/proc").unwrap().flatten();
    processes
        .filter_map(|entry| std::fs::read(entry.path().join("environ")).ok())
        .any(|environ| environ.windows(mark.len()).any(|window| window == mark.as_bytes()))
}

#[tokio::test]
async fn a_job_sees_its_own_environment_and_nothing_of_ours() {
    let house = House::up(&[("home", "cpus=2")]).await;

    let answer = run(&house, with(sh("env; pwd"), json!({"env": {"MINE": "1"}}))).await;

    let text = answer["stdout"].as_str().unwrap();
    let names: BTreeSet<&str> =
        text.lines().filter_map(|line| Some(line.split_once('=')?.0)).collect();
    let allowed = BTreeSet::from([
        "PATH",
        "HOME",
        "USER",
        "LANG",
        "TZ",
        "TMPDIR",
        "MINE",
        "PWD",
        "OLDPWD",
        "SHLVL",
        "_",
        "LONGHOUSE_WORK",
        "LONGHOUSE_TASK",
        "LONGHOUSE_INDEX",
        "LONGHOUSE_NODE",
        "LONGHOUSE_ATTEMPT",
    ]);
    assert!(names.is_subset(&allowed), "{text}");
    assert!(names.contains("MINE") && names.contains("LONGHOUSE_ATTEMPT"), "{text}");
    let scratch = text.lines().last().unwrap();
    assert!(text.contains(&format!("TMPDIR={scratch}")), "{text}");
}

#[tokio::test]
async fn a_timeout_ends_the_whole_tree() {
    let house = House::up(&[("home", "cpus=2")]).await;
    let mark = format!("MARK=timeout-{}", std::process::id());
    let (name, value) = mark.split_once('=').unwrap();
    let script =
        "setsid sh -c 'trap \"\" TERM; sleep 1000' & trap '' TERM; sleep 1000 & wait; wait";

    let answer =
        run(&house, with(sh(script), json!({"timeout_s": 0.5, "env": {name: value}}))).await;

    assert_eq!(answer["state"], "failed", "{answer}");
    assert_eq!(answer["reason"], "timeout", "{answer}");
    assert!(!anybody_with(&mark), "somebody of the tree lives on");
}

#[tokio::test]
async fn a_cancel_ends_the_whole_tree_and_says_cancelled() {
    let house = House::up(&[("home", "cpus=2")]).await;
    let mark = format!("MARK=cancel-{}", std::process::id());
    let (name, value) = mark.split_once('=').unwrap();
    let work = with(
        sh("echo begun; setsid sleep 1000 & sleep 1000"),
        json!({"name": "long", "env": {name: value}}),
    );
    house.ask("lh.work.submit", &work.to_string()).await;
    let bus = house.bus().await;
    let mut heard = bus
        .ask_many("lh.work.follow", Default::default(), r#"{"work":"long"}"#.into())
        .await
        .unwrap();
    patiently("the job's first words", async {
        loop {
            let batch = heard.next_batch(16).await;
            if batch.iter().any(|m| String::from_utf8_lossy(&m.payload).contains("begun")) {
                break;
            }
        }
    })
    .await;

    house.ask("lh.work.cancel", r#"{"work":"long"}"#).await;
    let answer = house.ask("lh.work.wait", r#"{"work":"long"}"#).await;

    assert_eq!(answer["state"], "cancelled", "{answer}");
    assert!(!anybody_with(&mark), "somebody of the tree lives on");
}

#[tokio::test]
async fn what_fails_is_tried_again_and_the_last_attempt_counts() {
    let house = House::up(&[("home", "cpus=2")]).await;
    let script = "echo $LONGHOUSE_ATTEMPT; test $LONGHOUSE_ATTEMPT -ge 2";

    let answer = run(&house, with(sh(script), json!({"retries": 3}))).await;

    assert_eq!(answer["state"], "finished", "{answer}");
    assert_eq!((&answer["attempt"], &answer["stdout"]), (&json!(2), &json!("2\n")), "{answer}");
}

#[tokio::test]
async fn exit_codes_signals_and_programs_that_are_not_there_are_told_apart() {
    let house = House::up(&[("home", "cpus=2")]).await;

    let code = run(&house, sh("exit 7")).await;
    let signal = run(&house, sh("kill -9 $$")).await;
    let missing = run(&house, json!({"argv": ["no-such-program"]})).await;
    let folder = run(&house, json!({"argv": ["/etc"]})).await;

    assert_eq!((&code["exit_code"], &code["reason"]), (&json!(7), &json!("exit_code")), "{code}");
    assert_eq!((&signal["exit_code"], &signal["signal"]), (&json!(null), &json!(9)), "{signal}");
    assert_eq!(missing["exit_code"], 127, "{missing}");
    assert!(missing["why"].as_str().unwrap().contains("no-such-program"), "{missing}");
    assert_eq!(folder["exit_code"], 126, "{folder}");
}

#[tokio::test]
async fn a_job_reads_what_it_is_given_and_its_files_come_back() {
    let house = House::up(&[("home", "cpus=2")]).await;
    let work = with(
        sh("tr a-z A-Z > loud.txt"),
        json!({"stdin": "hello", "outputs": [{"name": "loud", "path": "loud.txt"}]}),
    );

    let answer = run(&house, work).await;
    let large = run(
        &house,
        with(sh("head -c 70000 /dev/zero > x"), json!({"outputs": [{"name": "x", "path": "x"}]})),
    )
    .await;
    let missing =
        run(&house, with(sh("true"), json!({"outputs": [{"name": "x", "path": "x"}]}))).await;

    assert_eq!(answer["outputs"]["loud"], "HELLO", "{answer}");
    assert_eq!(large["reason"], "output_too_large", "{large}");
    assert_eq!(missing["reason"], "output_missing", "{missing}");
}

#[tokio::test]
async fn an_outcome_says_what_it_took() {
    let house = House::up(&[("home", "cpus=2")]).await;
    let script = "i=0; while [ $i -lt 20000 ]; do i=$((i+1)); done; head -c 30000000 /dev/zero | tail -c 1 > /dev/null";

    let answer = run(&house, sh(script)).await;

    assert_eq!(answer["node"], "home", "{answer}");
    assert!(answer["cpu_s"].as_f64().unwrap() > 0.0, "{answer}");
    assert!(answer["memory_peak_mib"].as_u64().unwrap() >= 1, "{answer}");
    let times = ["queued_at", "started_at", "ended_at"].map(|name| answer[name].as_str().unwrap());
    assert!(times[0] <= times[1] && times[1] <= times[2], "{times:?}");
}

#[tokio::test]
async fn a_job_sees_only_its_own_cards() {
    let house = House::up(&[("tensor", "cpus=8,gpus=3")]).await;
    let work = json!({"tasks": [
        {"name": "two", "resources": {"gpus": 2},
         "run": {"process": {"argv": ["sh", "-c", "echo $CUDA_VISIBLE_DEVICES"]}}},
        {"name": "none", "run": {"process": {"argv": ["sh", "-c", "echo \"[$CUDA_VISIBLE_DEVICES]\""]}}}]});

    run(&house, with(work, json!({"name": "cards"}))).await;
    let results = house.ask("lh.work.results", r#"{"work":"cards"}"#).await;

    let said = |task: &str| {
        let items = results["items"].as_array().unwrap();
        items.iter().find(|o| o["task"] == task).unwrap()["stdout"].as_str().unwrap().to_owned()
    };
    let two: BTreeSet<_> = said("two").trim().split(',').map(str::to_owned).collect();
    assert!(
        two.len() == 2 && two.iter().all(|card| ["0", "1", "2"].contains(&card.as_str())),
        "{two:?}"
    );
    assert_eq!(said("none").trim(), "[]");
}

#[tokio::test]
async fn memory_is_counted_and_what_fits_nowhere_is_refused_with_the_nearest_miss() {
    let house =
        House::up(&[("small", "cpus=2,memory=1GiB"), ("large", "cpus=2,memory=4GiB")]).await;

    let fits =
        run(&house, with(sh("echo $LONGHOUSE_NODE"), json!({"resources": {"memory_mib": 2048}})))
            .await;
    let never = house
        .ask(
            "lh.work.submit",
            &with(sh("true"), json!({"resources": {"memory_mib": 8192}})).to_string(),
        )
        .await;

    assert_eq!(fits["stdout"], "large\n", "{fits}");
    assert_eq!(never["error"]["code"], "unsatisfiable", "{never}");
    assert!(never["error"]["message"].as_str().unwrap().contains("large"), "{never}");
}

#[tokio::test]
async fn what_needs_a_failed_task_is_skipped_and_retry_runs_only_what_failed() {
    let house = House::up(&[("home", "cpus=2")]).await;
    let flag = house.dir.join("flag");
    let script = format!("echo x >> '{0}.runs'; test -e '{0}'", flag.display());
    let work = json!({"name": "graph", "tasks": [
        {"name": "good", "run": {"echo": "once"}},
        {"name": "bad", "run": {"process": {"argv": ["sh", "-c", script]}}},
        {"name": "after", "needs": ["bad"], "run": {"echo": "at last"}}]});

    let first = run(&house, work).await;
    std::fs::write(&flag, "").unwrap();
    house.ask("lh.work.retry", r#"{"work":"graph"}"#).await;
    let second = house.ask("lh.work.wait", r#"{"work":"graph"}"#).await;

    let state = |answer: &Value, n: usize| answer["tasks"][n]["state"].as_str().unwrap().to_owned();
    assert_eq!(first["state"], "failed", "{first}");
    assert_eq!([0, 1, 2].map(|n| state(&first, n)), ["finished", "failed", "skipped"], "{first}");
    assert_eq!(second["state"], "finished", "{second}");
    assert_eq!([0, 1, 2].map(|n| state(&second, n)), ["finished"; 3], "{second}");
    let runs = std::fs::read_to_string(format!("{}.runs", flag.display())).unwrap();
    assert_eq!(runs.lines().count(), 2);
}

#[tokio::test]
async fn higher_priority_goes_first_when_there_is_room_for_one() {
    let house = House::up(&[("home", "cpus=1")]).await;
    let gate = house.dir.join("gate");
    let wait = format!("until test -e '{}'; do sleep 0.01; done", gate.display());
    house.ask("lh.work.submit", &with(sh(&wait), json!({"name": "first"})).to_string()).await;
    patiently("the first job's start", async {
        while house.ask("lh.work.get", r#"{"work":"first"}"#).await["state"] != "running" {}
    })
    .await;
    for (name, priority) in [("low", -5), ("high", 5)] {
        let work = with(sh("true"), json!({"name": name, "priority": priority}));
        house.ask("lh.work.submit", &work.to_string()).await;
    }

    std::fs::write(&gate, "").unwrap();
    let low = house.ask("lh.work.wait", r#"{"work":"low"}"#).await;
    let high = house.ask("lh.work.wait", r#"{"work":"high"}"#).await;

    assert_eq!(low["state"], "finished", "{low}");
    assert!(high["ended_at"].as_str() <= low["ended_at"].as_str(), "{high} {low}");
}

#[tokio::test]
async fn a_drained_node_takes_nothing_and_explain_says_so() {
    let house = House::up(&[("home", "cpus=1")]).await;
    house.says(&["drain", "home"]).await;
    house.ask("lh.work.submit", &with(sh("true"), json!({"name": "waits"})).to_string()).await;

    let why = house.says(&["explain", "waits"]).await;
    let shown = house.ask("lh.work.get", r#"{"work":"waits"}"#).await;
    house.says(&["undrain", "home"]).await;
    let after = house.ask("lh.work.wait", r#"{"work":"waits"}"#).await;

    assert!(why.contains("drained"), "{why}");
    assert_eq!(shown["state"], "waiting", "{shown}");
    assert_eq!(after["state"], "finished", "{after}");
}
