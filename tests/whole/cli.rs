//! The commands on a house that stands: lists, files, signals, the demo.

use crate::house::{House, patiently};
use rustix::process::{Pid, Signal, kill_process};
use std::process::{Output, Stdio};
use tokio::io::{AsyncBufReadExt, AsyncReadExt, BufReader};

fn text(bytes: &[u8]) -> String {
    String::from_utf8_lossy(bytes).into_owned()
}

async fn map(house: &House, args: &[&str], list: &str) -> Output {
    let args: Vec<&str> = ["map"].iter().chain(args).copied().collect();
    house.longhouse_with(&args, list.as_bytes()).await
}

#[tokio::test]
async fn map_prints_each_item_whole_and_in_order_where_that_is_asked() {
    let house = House::up(&[("a", "cpus=4"), ("b", "cpus=4")]).await;
    let list: String = (0..200).map(|n| format!("item {n}\n\n")).collect();

    let script = "echo 1 {item}; echo err >&2; echo 2 {index}";
    let said = map(&house, &["--in-order", "--tag", "--", "sh", "-c", script], &list).await;

    let expected: String =
        (0..200).map(|n| format!("item {n}\t1 item {n}\nitem {n}\t2 {n}\n")).collect();
    assert_eq!(text(&said.stdout), expected);
    assert_eq!(text(&said.stderr).lines().filter(|line| line.ends_with("\terr")).count(), 200);
    assert_eq!(said.status.code(), Some(0));
}

#[tokio::test]
async fn map_lists_what_failed_and_ends_with_1() {
    let house = House::up(&[("home", "cpus=2")]).await;

    let said = map(&house, &["-0", "--", "sh", "-c", "test {item} != b"], "a\0b\0c\0").await;

    assert_eq!(said.status.code(), Some(1));
    let stderr = text(&said.stderr);
    assert!(stderr.contains("failed: b (index 1): exit code 1 (on home)"), "{stderr}");
    assert!(stderr.contains("1 of 3 items did not finish"), "{stderr}");
}

#[tokio::test]
async fn output_that_is_larger_than_an_outcome_holds_comes_whole_from_map() {
    let house = House::up(&[("home", "cpus=2")]).await;

    let script = "seq 1 40000; echo {item}";
    let said = map(&house, &["--in-order", "--", "sh", "-c", script], "x\ny\n").await;

    let numbers: String = (1..=40000).map(|n| format!("{n}\n")).collect();
    assert!(text(&said.stdout) == format!("{numbers}x\n{numbers}y\n"), "{}", said.stdout.len());
}

#[tokio::test]
async fn a_list_that_fits_into_no_message_goes_in_parts() {
    let house = House::up(&[("home", "cpus=4")]).await;
    let list: String = (0..40).map(|n| format!("{n}:{}\n", "x".repeat(60_000))).collect();

    let args = ["--in-order", "--", "sh", "-c", "printf %s \"$1\" | wc -c", "sh", "{item}"];
    let said = map(&house, &args, &list).await;

    let expected: String = (0..40).map(|n| format!("{}\n", 60_001 + n.to_string().len())).collect();
    assert_eq!(text(&said.stdout).replace(' ', ""), expected, "{}", text(&said.stderr));
    let shown = house.json(&["show", "@last", "--json"]).await;
    assert_eq!(shown["state"], "finished", "{shown}");
}

#[tokio::test]
async fn a_file_that_fits_into_no_message_goes_in_parts_needs_first() {
    let house = House::up(&[("home", "cpus=4")]).await;
    let pad = "x".repeat(100_000);
    let mut tasks = vec![serde_json::json!({
        "name": "last", "needs": ["t0", "t19"], "run": {"process": {"argv": ["true"]}},
    })];
    for n in 0..20 {
        tasks.push(serde_json::json!({
            "name": format!("t{n}"),
            "run": {"process": {"argv": ["sh", "-c", "echo ${#PAD}"], "env": {"PAD": pad}}},
        }));
    }
    let file = house.dir.join("work.json");
    let work = serde_json::json!({"name": "large", "tasks": tasks});
    std::fs::write(&file, work.to_string()).unwrap();

    let summary = house.json(&["submit", file.to_str().unwrap(), "--wait", "--json"]).await;

    assert_eq!(summary["state"], "finished", "{summary}");
    let csv = house.says(&["results", "large", "--csv"]).await;
    assert_eq!(csv.matches("\"100000\n\"").count(), 20, "{csv}");
}

/// A job that says that it has begun, and what becomes of who waits for it when a signal comes.
async fn signalled(house: &House, signal: Signal) -> (Option<i32>, String) {
    let script = "trap 'echo ended; exit 9' TERM; echo begun; sleep 3 & wait; echo finished";
    let mut child = house
        .command(&["run", "--name", "signalled", "--", "sh", "-c", script])
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    let mut stdout = BufReader::new(child.stdout.take().unwrap());
    let mut said = String::new();
    patiently("the begin", stdout.read_line(&mut said)).await.unwrap();
    let pid = i32::try_from(child.id().unwrap()).unwrap();
    kill_process(Pid::from_raw(pid).unwrap(), signal).unwrap();
    patiently("the rest", stdout.read_to_string(&mut said)).await.unwrap();
    let status = patiently("the end", child.wait()).await.unwrap();
    (status.code(), said)
}

#[tokio::test]
async fn without_a_terminal_signals_cancel_and_hanging_up_detaches() {
    let house = House::up(&[("home", "cpus=2")]).await;

    for signal in [Signal::INT, Signal::TERM] {
        let ended = signalled(&house, signal).await;
        assert_eq!(ended, (Some(9), "begun\nended\n".to_owned()));
    }
    assert_eq!(signalled(&house, Signal::HUP).await, (Some(0), "begun\n".to_owned()));
    let waited = house.longhouse(&["wait", "signalled"]).await;
    assert_eq!(waited.status.code(), Some(0), "{}", text(&waited.stdout));
    assert_eq!(house.says(&["logs", "signalled"]).await, "begun\nfinished\n");
}

#[tokio::test]
async fn wait_ends_as_the_job_did_and_works_are_named_in_four_ways() {
    let house = House::up(&[("home", "cpus=2")]).await;

    let id = house.says(&["run", "-d", "--name", "seven", "--", "sh", "-c", "exit 7"]).await;
    let id = id.trim();

    for name in [id, &id[..18], "seven", "@last"] {
        let waited = house.longhouse(&["wait", name]).await;
        assert_eq!(waited.status.code(), Some(7), "{name}: {}", text(&waited.stderr));
    }
    let unknown = house.longhouse(&["show", "eight"]).await;
    assert_eq!(unknown.status.code(), Some(121), "{}", text(&unknown.stderr));
    let nowhere = house.longhouse(&["run", "--gpus", "1", "--", "true"]).await;
    assert_eq!(nowhere.status.code(), Some(121), "{}", text(&nowhere.stderr));
    let late = house.longhouse(&["run", "--timeout", "200ms", "--", "sleep", "60"]).await;
    assert_eq!(late.status.code(), Some(124), "{}", text(&late.stderr));
}

#[tokio::test]
async fn the_doctor_finds_nothing_to_mend_in_a_house_that_stands() {
    let house = House::up(&[("home", "cpus=2")]).await;

    let said = house.longhouse(&["doctor", "--json"]).await;

    let checks: serde_json::Value = serde_json::from_slice(&said.stdout).unwrap();
    let about: Vec<&str> = checks["checks"]
        .as_array()
        .unwrap()
        .iter()
        // How full this machine's disk is, is not the house's affair.
        .filter(|check| check["what"] != "disk")
        .map(|check| {
            assert_ne!(check["verdict"], "bad", "{check}");
            check["what"].as_str().unwrap()
        })
        .collect();
    for wanted in ["folder", "credentials", "nats-server", "bus", "manager", "scheduler", "nodes"] {
        assert!(about.contains(&wanted), "{wanted} in {about:?}");
    }
}

#[tokio::test]
async fn the_demo_audits_every_folder_and_leaves_nothing_behind() {
    let house = House::new("");
    let code = house.dir.join("code");
    for n in 0..12 {
        let folder = code.join(format!("crate-{n}"));
        std::fs::create_dir_all(&folder).unwrap();
        let unsafe_line = "    unsafe { b() }\n".repeat(n);
        std::fs::write(folder.join("a.rs"), format!("// a\nfn a() {{\n{unsafe_line}}}\n")).unwrap();
    }
    let temp = house.dir.join("temp");
    std::fs::create_dir(&temp).unwrap();

    let mut demo = house.command(&["demo", code.to_str().unwrap(), "--json"]);
    let said = patiently("the demo", demo.env("TMPDIR", &temp).output()).await.unwrap();

    assert!(said.status.success(), "{}", text(&said.stderr));
    let told: serde_json::Value = serde_json::from_slice(&said.stdout).unwrap();
    assert_eq!(told["summary"]["state"], "finished", "{told}");
    let totals = &told["report"]["totals"];
    assert_eq!((&totals["folders"], &totals["unsafe"]), (&12.into(), &66.into()), "{told}");
    let worst = &told["report"]["most_unsafe"][0];
    assert_eq!((&worst["name"], &worst["unsafe"]), (&"crate-11".into(), &11.into()), "{told}");
    let jobs = told["jobs_by_node"].as_object().unwrap();
    assert_eq!(jobs.values().map(|n| n.as_u64().unwrap()).sum::<u64>(), 13, "{told}");
    assert_eq!(std::fs::read_dir(&temp).unwrap().count(), 0);
}

#[tokio::test]
async fn run_says_that_an_attempt_is_a_new_one_and_with_json_prints_data_only() {
    let house = House::up(&[("home", "cpus=2")]).await;

    let again =
        house.longhouse(&["run", "--retries", "1", "--", "sh", "-c", "echo x; exit 3"]).await;
    assert_eq!((again.status.code(), text(&again.stdout)), (Some(3), "x\nx\n".to_owned()));
    let said = "longhouse: attempt 1 failed (exit code 3); started again as attempt 2, its output \
                begins anew\n";
    assert_eq!(text(&again.stderr).matches(said).count(), 1, "{}", text(&again.stderr));

    let data =
        house.longhouse(&["run", "--json", "--", "sh", "-c", "echo x; echo y >&2; exit 3"]).await;
    assert_eq!((data.status.code(), text(&data.stderr)), (Some(3), String::new()));
    assert_eq!(text(&data.stdout).lines().count(), 1);
    let reply: serde_json::Value = serde_json::from_slice(&data.stdout).unwrap();
    assert_eq!((&reply["state"], &reply["exit_code"]), (&"failed".into(), &3.into()), "{reply}");
    assert_eq!((&reply["stdout"], &reply["node"]), (&"x\n".into(), &"home".into()), "{reply}");

    let unknown = house.longhouse(&["show", "nothing", "--json"]).await;
    let error: serde_json::Value = serde_json::from_slice(&unknown.stderr).unwrap();
    assert_eq!(error["error"]["code"], "unknown_work", "{error}");
}

#[tokio::test]
async fn what_is_asked_for_wrongly_is_said_in_the_words_of_the_command_line() {
    let house = House::up(&[("home", "cpus=2")]).await;
    house.says(&["run", "--name", "one", "--", "sh", "-c", "exit 0"]).await;

    let shown = house.says(&["show", "one"]).await;
    assert!(shown.contains("on home, exit code 0, ran "), "{shown}");
    for (args, code, words) in [
        (&["logs", "one/main/x"][..], 2, "`x` is no index"),
        (&["logs", "one/main/7"], 1, "`main` has no index 7: its only one is 0"),
        (&["show", "zzzzzzzzzz"], 121, "hint: `longhouse ls` shows the works"),
        (&["explain", "zzzzzzzzzz"], 121, "neither a work nor a node is called `zzzzzzzzzz`"),
    ] {
        let said = house.longhouse(args).await;
        assert_eq!(said.status.code(), Some(code), "{args:?}: {}", text(&said.stderr));
        assert!(text(&said.stderr).contains(words), "{args:?}: {}", text(&said.stderr));
    }
    let call = house.longhouse(&["call", "lh.work.list", "3"]).await;
    assert!(!text(&call.stderr).contains("header"), "{}", text(&call.stderr));
    let same = map(&house, &["--", "true"], "a\nb\n").await;
    assert!(text(&same.stderr).contains("every job is the same"), "{}", text(&same.stderr));

    let script = "echo begun; exec sleep 1000";
    let mut child = house
        .command(&["run", "--name", "long", "--", "sh", "-c", script])
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    let mut line = String::new();
    let mut stdout = BufReader::new(child.stdout.take().unwrap());
    patiently("the begin", stdout.read_line(&mut line)).await.unwrap();
    house.says(&["run", "-d", "--name", "queued", "--cpus", "2", "--", "true"]).await;
    assert_eq!(house.says(&["cancel", "queued"]).await, "cancelled\n");
    let said = house.says(&["cancel", "long"]).await;
    assert!(said.starts_with("cancelling: 1 job is being ended (TERM"), "{said}");
    patiently("the end", child.wait()).await.unwrap();
}

#[tokio::test]
async fn who_waits_for_an_open_work_is_told_so() {
    let house = House::up(&[("home", "cpus=2")]).await;
    let file = house.dir.join("open.toml");
    std::fs::write(&file, "name = 'open'\nopen = true\nargv = ['true']\n").unwrap();
    let mut child = house
        .command(&["submit", file.to_str().unwrap(), "--wait"])
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    let mut line = String::new();
    let mut stderr = BufReader::new(child.stderr.take().unwrap());
    patiently("the sentence", stderr.read_line(&mut line)).await.unwrap();
    assert!(line.contains("is open: it waits for more"), "{line}");
    house.says(&["call", "lh.work.close", r#"{"work": "open", "parts": 0}"#]).await;
    assert!(patiently("the end", child.wait()).await.unwrap().success());
}
