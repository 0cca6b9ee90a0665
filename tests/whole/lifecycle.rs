//! How a house begins and ends: locks, ports, signals, `down`, and jobs that outlive their worker.

use crate::house::{House, patiently};
use rustix::process::Signal;
use serde_json::Value;

/// A job that writes a line, waits for a file, writes another.
fn gated(house: &House, name: &str) -> (std::path::PathBuf, Vec<String>) {
    let gate = house.dir.join(format!("gate-{name}"));
    let script =
        format!("echo begun; until test -e '{}'; do sleep 0.01; done; echo done", gate.display());
    let args = ["run", "--detach", "--name", name, "--", "sh", "-c", &script];
    (gate, args.iter().map(|a| (*a).to_owned()).collect())
}

async fn begin(house: &House, name: &str) -> std::path::PathBuf {
    let (gate, args) = gated(house, name);
    house.says(&args.iter().map(String::as_str).collect::<Vec<_>>()).await;
    patiently("the job's first words", async {
        while !house.says(&["logs", name]).await.contains("begun") {}
    })
    .await;
    gate
}

#[tokio::test]
async fn up_says_ready_with_the_address_and_down_ends_everything() {
    let mut house = House::new("");
    house.start(&["up", "--port", "0", "--name", "home"]).await;
    assert_eq!(house.processes[0].ready, format!("ready {}", house.url()));
    assert_eq!(house.says(&["run", "--", "echo", "hello"]).await, "hello\n");

    let said = house.says(&["down"]).await;

    assert!(said.contains("bus") && said.contains("node home"), "{said}");
    let (status, stderr) = house.processes.remove(0).ended().await;
    assert!(status.success(), "{status} {stderr}");
    assert!(house.says(&["down"]).await.contains("nothing"));
}

#[tokio::test]
async fn a_second_up_in_one_folder_says_who_holds_it() {
    let mut house = House::new("");
    house.start(&["up", "--port", "0", "--only", "bus"]).await;
    let pid = house.processes[0].child.id().unwrap();

    let said = house.longhouse(&["up", "--port", "0"]).await;

    let stderr = String::from_utf8_lossy(&said.stderr);
    assert_eq!(said.status.code(), Some(120), "{stderr}");
    assert!(stderr.contains(&pid.to_string()) && stderr.contains("hint:"), "{stderr}");
}

#[tokio::test]
async fn a_house_comes_back_on_its_port_with_its_works_after_kill_9() {
    // The lease of the one that was killed holds longer than anybody waits here.
    let mut house = House::new("[scheduler]\nlease_s = 100000\n");
    house.start(&["up", "--port", "0", "--name", "home"]).await;
    house.says(&["run", "--name", "before", "--", "echo", "kept"]).await;
    let url = house.url();

    house.processes[0].signal(Signal::KILL);
    house.processes.remove(0).ended().await;
    house.start(&["up", "--name", "home"]).await;

    assert_eq!(house.url(), url);
    assert_eq!(house.says(&["logs", "before"]).await, "kept\n");
    assert_eq!(house.says(&["run", "--", "echo", "again"]).await, "again\n");
}

#[tokio::test]
async fn a_job_outlives_its_worker_and_the_next_one_takes_it_up() {
    let mut house = House::up(&[("home", "cpus=2")]).await;
    let gate = begin(&house, "long").await;

    house.processes[1].signal(Signal::TERM);
    let (status, stderr) = house.processes.remove(1).ended().await;
    assert!(status.success() && stderr.contains("1 job lives on"), "{status} {stderr}");
    house.start(&["worker", "--name", "home", "--lend", "cpus=2"]).await;
    std::fs::write(gate, "").unwrap();
    house.says(&["wait", "long"]).await;

    assert_eq!(house.says(&["logs", "long"]).await, "begun\ndone\n");
    let results = house.json(&["results", "long", "--json"]).await;
    assert_eq!(results["items"][0]["attempt"], 1, "{results}");
}

#[tokio::test]
async fn a_killed_worker_hurts_no_job() {
    let mut house = House::up(&[("home", "cpus=2")]).await;
    let gate = begin(&house, "long").await;

    house.processes[1].signal(Signal::KILL);
    house.processes.remove(1).ended().await;
    std::fs::write(gate, "").unwrap();
    house.start(&["worker", "--name", "home", "--lend", "cpus=2"]).await;
    house.says(&["wait", "long"]).await;

    assert_eq!(house.says(&["logs", "long"]).await, "begun\ndone\n");
}

#[tokio::test]
async fn a_run_that_waits_gets_its_answer_over_a_killed_manager_and_scheduler() {
    let mut house = House::new("");
    house.start(&["up", "--port", "0", "--only", "bus"]).await;
    house.start(&["up", "--only", "manager,scheduler"]).await;
    house.start(&["worker", "--name", "home"]).await;
    let gate = house.dir.join("gate");
    let script =
        format!("echo begun; until test -e '{}'; do sleep 0.01; done; echo done", gate.display());
    let mut child = house.command(&["run", "--", "sh", "-c", &script]).spawn().unwrap();
    let mut stdout = child.stdout.take().unwrap();
    let mut first = [0; 6];
    patiently(
        "the job's first words",
        tokio::io::AsyncReadExt::read_exact(&mut stdout, &mut first),
    )
    .await
    .unwrap();

    house.processes[1].signal(Signal::KILL);
    house.processes.remove(1).ended().await;
    std::fs::write(gate, "").unwrap();
    house.start(&["up", "--only", "manager,scheduler"]).await;

    let mut rest = String::new();
    patiently("the rest", tokio::io::AsyncReadExt::read_to_string(&mut stdout, &mut rest))
        .await
        .unwrap();
    assert_eq!((&first, rest.as_str()), (b"begun\n", "done\n"));
    assert!(child.wait().await.unwrap().success());
}

#[tokio::test]
async fn the_first_ctrl_c_waits_for_the_jobs_and_the_second_ends_them() {
    let mut house = House::new("");
    house.start(&["up", "--port", "0", "--name", "home"]).await;
    begin(&house, "endless").await;

    house.processes[0].signal(Signal::INT);
    house.processes[0].says("waiting for 1 job").await;
    let work: Value = house.json(&["show", "endless", "--json"]).await;
    assert_eq!(work["state"], "running", "{work}");
    house.processes[0].signal(Signal::INT);
    let (status, stderr) = house.processes.remove(0).ended().await;

    assert!(status.success(), "{status} {stderr}");
    assert!(stderr.contains("ending"), "{stderr}");
}

#[tokio::test]
async fn down_waits_for_jobs_and_down_now_ends_them() {
    let mut house = House::new("");
    house.start(&["up", "--port", "0", "--name", "home"]).await;
    let gate = begin(&house, "short").await;
    let down = house.command(&["down"]).spawn().unwrap();
    std::fs::write(gate, "").unwrap();
    let down = patiently("the end of `down`", down.wait_with_output()).await.unwrap();
    assert!(down.status.success(), "{down:?}");
    house.processes.remove(0).ended().await;

    house.start(&["up", "--name", "home"]).await;
    assert_eq!(house.says(&["logs", "short"]).await, "begun\ndone\n");
    begin(&house, "endless").await;
    house.says(&["down", "--now"]).await;
    house.processes.remove(0).ended().await;
}

#[tokio::test]
async fn down_detach_leaves_jobs_to_their_keeper_and_a_later_down_finds_it() {
    let mut house = House::new("");
    house.start(&["up", "--port", "0", "--name", "home"]).await;
    begin(&house, "endless").await;

    house.says(&["down", "--detach"]).await;
    house.processes.remove(0).ended().await;
    let said = house.says(&["down", "--now"]).await;

    assert!(said.contains("keeper of home"), "{said}");
}

#[tokio::test]
async fn a_node_whose_name_is_taken_gets_another_and_says_so() {
    let mut house = House::up(&[]).await;
    let first = house.start(&["worker"]).await;
    let second = house.start(&["worker"]).await;

    let (first, second) = (&house.processes[first].ready, &house.processes[second].ready);
    let name = |ready: &str| ready.split(' ').nth(1).unwrap().to_owned();
    assert_eq!(name(second), format!("{}-2", name(first)));
    let named = house.longhouse(&["worker", "--name", &name(first)]).await;
    assert!(!named.status.success());
    assert!(String::from_utf8_lossy(&named.stderr).contains("in use"), "{named:?}");
}

#[tokio::test]
async fn what_others_need_to_get_in_is_printed_and_nobody_else_gets_in() {
    let house = House::up(&[]).await;

    let env = house.json(&["env", "--json"]).await;
    let anonymous = async_nats::connect(house.url()).await;

    assert_eq!(env["NATS_URL"], house.url(), "{env}");
    for name in ["NATS_CREDS", "NATS_CONTEXT"] {
        let path = env[name].as_str().unwrap();
        let mode = std::os::unix::fs::PermissionsExt::mode(
            &std::fs::metadata(path).unwrap().permissions(),
        );
        assert_eq!(mode & 0o077, 0, "{path} is open to others");
    }
    assert!(anonymous.is_err());
}

#[tokio::test]
async fn an_up_with_an_address_uses_the_bus_that_runs_there() {
    let mut house = House::new("");
    house.start(&["up", "--port", "0", "--only", "bus"]).await;
    let (url, creds) = (house.url(), house.creds());
    let mut other = House::new("");
    let args = ["up", "--url", &url, "--creds", creds.to_str().unwrap(), "--name", "elsewhere"];
    other.start(&args).await;

    let said = house.says(&["run", "--", "printenv", "LONGHOUSE_NODE"]).await;

    assert_eq!(said, "elsewhere\n");
    assert!(!other.dir.join("bus/nats.conf").exists());
}

#[tokio::test]
async fn the_way_in_is_saved_among_the_users_contexts_only_when_asked_and_never_over_anothers() {
    let mut house = House::new("");
    let contexts = house.dir.parent().unwrap().join(".config/nats/context");
    house.start(&["up", "--port", "0", "--only", "bus"]).await;
    assert!(!contexts.exists());
    house.says(&["down"]).await;
    house.processes.remove(0).ended().await;

    house.start(&["up", "--only", "bus", "--save-context"]).await;
    let saved = std::fs::read_to_string(contexts.join("longhouse.json")).unwrap();
    assert!(saved.contains(&house.url()), "{saved}");
    house.says(&["down"]).await;
    house.processes.remove(0).ended().await;

    std::fs::write(contexts.join("longhouse.json"), "{\"url\":\"nats://elsewhere\"}").unwrap();
    let refused = house.spawn(&["up", "--only", "bus", "--save-context"]).await.err().unwrap();
    assert!(refused.contains("not written by this house"), "{refused}");
    let kept = std::fs::read_to_string(contexts.join("longhouse.json")).unwrap();
    assert_eq!(kept, "{\"url\":\"nats://elsewhere\"}");
}

#[tokio::test]
async fn every_part_leaves_a_log_in_the_folder() {
    let mut house = House::new("");
    house.start(&["up", "--port", "0", "--only", "bus"]).await;
    house.start(&["up", "--only", "manager,scheduler"]).await;
    house.start(&["worker", "--name", "home"]).await;

    for log in ["bus.log", "manager-scheduler.log", "worker-home.log"] {
        let path = house.dir.join("logs").join(log);
        assert!(path.is_file(), "{} is not there", path.display());
    }
    assert!(house.dir.join("nodes/home/keeper.log").is_file());
}

#[tokio::test]
async fn a_manager_and_a_scheduler_that_have_ended_by_themselves_are_started_again() {
    let mut house = House::new("");
    house.start(&["up", "--port", "0", "--name", "home"]).await;
    house.says(&["run", "--", "true"]).await;

    let jetstream = async_nats::jetstream::new(house.nats().await);
    jetstream.delete_stream("lh-fact-main").await.unwrap();

    for part in ["manager", "scheduler"] {
        house.processes[0].says(&format!("the {part} has ended by itself")).await;
        house.processes[0].says(&format!("the {part} is up again")).await;
    }
    assert_eq!(house.says(&["run", "--", "echo", "again"]).await, "again\n");
    house.says(&["down"]).await;
    let (status, stderr) = house.processes.remove(0).ended().await;
    assert!(status.success(), "{status} {stderr}");
}

#[tokio::test]
async fn a_node_whose_keeper_was_told_to_leave_before_a_crash_is_a_node_again() {
    let mut house = House::new("");
    house.start(&["up", "--port", "0", "--name", "home"]).await;
    let gate = begin(&house, "last").await;
    house.processes[0].signal(Signal::INT);
    house.processes[0].says("waiting for 1 job").await;
    let nodes = patiently("the node's word that it leaves", async {
        loop {
            let nodes = house.json(&["nodes", "--json"]).await;
            if nodes["nodes"][0]["state"] == "drained" {
                return nodes;
            }
        }
    });
    assert_eq!(nodes.await["nodes"][0]["why"], "home is leaving");
    house.processes[0].signal(Signal::KILL);
    house.processes.remove(0).ended().await;

    house.start(&["up", "--name", "home"]).await;
    std::fs::write(gate, "").unwrap();
    house.says(&["wait", "last"]).await;

    house.processes[0].says("the node is up again").await;
    assert_eq!(house.says(&["run", "--", "echo", "again"]).await, "again\n");
}

#[tokio::test]
async fn a_down_that_waits_is_hurried_by_another() {
    let mut house = House::new("");
    house.start(&["up", "--port", "0", "--name", "home"]).await;
    begin(&house, "endless").await;
    let mut patient = house.command(&["down"]).spawn().unwrap();
    let mut said = tokio::io::BufReader::new(patient.stderr.take().unwrap());
    let mut line = String::new();
    patiently("its word", tokio::io::AsyncBufReadExt::read_line(&mut said, &mut line))
        .await
        .unwrap();
    assert!(line.contains("waiting for 1 job") && line.contains("down --now"), "{line}");

    house.says(&["down", "--now"]).await;
    let status = patiently("the end of the first", patient.wait()).await.unwrap();

    assert!(status.success(), "{status}");
    house.processes.remove(0).ended().await;
}

#[tokio::test]
async fn a_manager_in_a_process_of_its_own_shares_out_what_the_bus_of_its_folder_may_store() {
    let mut house = House::new("");
    std::fs::create_dir(house.dir.join("bus")).unwrap();
    std::fs::write(house.dir.join("bus/max_file_store"), "1073741824\n").unwrap();
    house.start(&["up", "--port", "0", "--only", "bus"]).await;

    house.start(&["up", "--only", "manager,scheduler"]).await;
    // Of a bus elsewhere nobody knows how much that is, unless it is said.
    let url = house.url();
    let args = ["up", "--only", "manager", "--url", &url];
    let other = house.start(&args).await;
    house.processes[other].says("are shared out").await;
    let mut larger = house.command(&args);
    larger.env("LONGHOUSE_MANAGER__STORE_MIB", "100000");
    let larger = patiently("its end", larger.output()).await.unwrap();

    let stderr = String::from_utf8_lossy(&larger.stderr);
    assert_eq!(larger.status.code(), Some(121), "{stderr}");
    assert!(stderr.contains("manager.store_mib"), "{stderr}");
}
