//! How fast a house is, beside the physical floor in the same run: `cargo bench --bench first_light`.
//!
//! `-- --save` also writes `benches/RESULTS.md`; `-- --quick` runs a tenth, to see that it runs.

#![expect(
    clippy::unwrap_used,
    clippy::print_stdout,
    clippy::disallowed_methods,
    reason = "a bench may panic, prints what it found, and needs a clock"
)]

mod bare;
#[path = "../../tests/whole/house.rs"]
#[expect(dead_code, reason = "shared with the tests, which need more of it")]
mod house;
mod table;

use bare::Bare;
use bus::Bus;
use house::House;
use schemas::codec::Encoding;
use serde_json::{Value, json};
use std::time::{Duration, Instant};
use table::{Row, Spread, Table};

const PATIENCE: Duration = Duration::from_secs(120);

fn main() {
    let has = |flag: &str| std::env::args().any(|argument| argument == flag);
    let scale = if has("--quick") { 10 } else { 1 };
    let runtime = tokio::runtime::Runtime::new().unwrap();
    let table = runtime.block_on(measure(scale));
    println!("{}", table.markdown());
    if has("--save") {
        let path = concat!(env!("CARGO_MANIFEST_DIR"), "/benches/RESULTS.md");
        std::fs::write(path, table.page()).unwrap();
    }
}

async fn measure(scale: usize) -> Table {
    let mut table = Table::new();
    table.push(start(5).await);
    let mut house = House::new("");
    house.start(&["up", "--port", "0"]).await;
    let bus = house.bus().await;
    let bare = Bare::lay(house.nats().await).await.unwrap();
    for row in single(&bus, &bare, 5, 1000 / scale).await {
        table.push(row);
    }
    for (count, text) in
        [(10_000, "same"), (100_000, "same"), (10_000, "index {index}"), (100_000, "index {index}")]
    {
        table.push(array(&bus, count / scale, text, 5).await);
    }
    for row in pipelined(&bus, &bare, 1000 / scale, 5).await {
        table.push(row);
    }
    table.push(output(&bus, 50 / scale).await);
    drop(house);
    for row in idle(Duration::from_secs(20 / scale as u64)).await {
        table.push(row);
    }
    table
}

/// From `longhouse up` to its `ready`, with the server at hand; each time in a fresh folder.
async fn start(rounds: usize) -> Row {
    house::nats_server();
    let mut took = Vec::new();
    for _ in 0..rounds {
        let mut house = House::new("");
        let before = Instant::now();
        house.start(&["up", "--port", "0"]).await;
        took.push(before.elapsed().as_secs_f64() * 1e3);
    }
    Row::new("`up` to ready, fresh folder", "ms", Spread::of(&took)).aim("≤ 1000")
}

async fn run(bus: &Bus, body: &Value) -> Value {
    let asked = bus.ask_raw("lh.work.run", Encoding::Json, body.to_string().into(), PATIENCE);
    let answer: Value = serde_json::from_slice(&asked.await.unwrap().payload).unwrap();
    assert_eq!(answer["state"], "finished", "{answer}");
    answer
}

/// One `echo` after the other, a house and the bare path in turn.
async fn single(bus: &Bus, bare: &Bare, rounds: usize, count: usize) -> Vec<Row> {
    let body = json!({"run": {"echo": "hello"}});
    for _ in 0..50 {
        run(bus, &body).await;
        bare.run().await.unwrap();
    }
    let (mut ours, mut floor) = (Vec::new(), Vec::new());
    for _ in 0..rounds {
        let (mut a, mut b) = (Vec::new(), Vec::new());
        for _ in 0..count {
            let before = Instant::now();
            run(bus, &body).await;
            a.push(before.elapsed().as_secs_f64() * 1e3);
            let before = Instant::now();
            bare.run().await.unwrap();
            b.push(before.elapsed().as_secs_f64() * 1e3);
        }
        ours.push(a);
        floor.push(b);
    }
    let mut rows = Vec::new();
    for (name, share, aim) in [("p50", 0.5, "≤ 2 × bare"), ("p99", 0.99, "")] {
        let of = |rounds: &[Vec<f64>]| -> Vec<f64> {
            rounds.iter().map(|round| table::quantile(round, share)).collect()
        };
        let (ours, floor) = (of(&ours), of(&floor));
        let ratios: Vec<f64> = ours.iter().zip(&floor).map(|(a, b)| a / b).collect();
        rows.push(
            Row::new(format!("submit → result of one `echo`, {name}"), "ms", Spread::of(&ours))
                .beside("bare path", Spread::of(&floor), Spread::of(&ratios))
                .aim(aim),
        );
    }
    rows
}

/// One array of many `echo`s, from asking to the answer.
async fn array(bus: &Bus, count: usize, text: &str, rounds: usize) -> Row {
    let body = json!({"run": {"echo": text}, "array": {"count": count}});
    let mut rates = Vec::new();
    for round in 0..=rounds {
        let before = Instant::now();
        let answer = run(bus, &body).await;
        assert_eq!(answer["tasks"][0]["finished"], count, "{answer}");
        if round > 0 {
            rates.push(count as f64 / before.elapsed().as_secs_f64());
        }
    }
    let what = if text.contains('{') { "each its own text" } else { "all the same text" };
    Row::new(format!("`echo` in one array of {count}, {what}"), "tasks/s", Spread::of(&rates))
        .aim("≥ 100000")
}

/// Many single works at once, each submitted and waited for, a house and the bare path in turn.
async fn pipelined(bus: &Bus, bare: &Bare, count: usize, rounds: usize) -> Vec<Row> {
    let body = json!({"run": {"echo": "hello"}});
    let (mut ours, mut floor) = (Vec::new(), Vec::new());
    for round in 0..=rounds {
        let before = Instant::now();
        futures::future::join_all((0..count).map(|_| run(bus, &body))).await;
        let a = count as f64 / before.elapsed().as_secs_f64();
        let before = Instant::now();
        let all = futures::future::join_all((0..count).map(|_| bare.run())).await;
        assert!(all.iter().all(Result::is_ok));
        let b = count as f64 / before.elapsed().as_secs_f64();
        if round > 0 {
            ours.push(a);
            floor.push(b);
        }
    }
    let ratios: Vec<f64> = ours.iter().zip(&floor).map(|(a, b)| a / b).collect();
    vec![
        Row::new(
            format!("`echo` as {count} single works, pipelined"),
            "works/s",
            Spread::of(&ours),
        )
        .beside("bare path", Spread::of(&floor), Spread::of(&ratios))
        .aim("≥ 10000"),
    ]
}

/// From the moment at which a running job writes a line to the moment at which a follower has it:
/// the line is the time.
async fn output(bus: &Bus, lines: usize) -> Row {
    let script = format!("for i in $(seq {lines}); do date +%s%N; sleep 0.05; done");
    let body = json!({"name": "clock", "argv": ["sh", "-c", script]}).to_string();
    bus.ask_raw("lh.work.submit", Encoding::Json, body.into(), PATIENCE).await.unwrap();
    let follow = r#"{"work":"clock"}"#;
    let mut replies = bus.ask_many("lh.work.follow", Encoding::Json, follow.into()).await.unwrap();
    let mut late = Vec::new();
    loop {
        let reply = replies.next_batch(1).await.remove(0);
        let now = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).unwrap();
        if reply.payload.is_empty() {
            break;
        }
        let reply: Value = serde_json::from_slice(&reply.payload).unwrap();
        let Some(text) = reply["output"]["bytes"].as_str() else { continue };
        for written in text.lines().filter_map(|line| line.parse::<u64>().ok()) {
            late.push((now.as_nanos() as f64 - written as f64) / 1e6);
        }
    }
    assert_eq!(late.len(), lines);
    Row::new("a line written by a job → read by a follower", "ms", Spread::of(&late)).aim("≤ 100")
}

/// Memory and processor time of each process while nothing happens.
async fn idle(over: Duration) -> Vec<Row> {
    let mut house = House::new("");
    let up = house.start(&["up", "--port", "0", "--only", "bus,manager,scheduler"]).await;
    let worker = house.start(&["worker", "--name", "home"]).await;
    house.says(&["run", "--", "true"]).await;
    let mut seen = Vec::new();
    let root = |n: usize| house.processes[n].pid().as_raw_nonzero().get();
    for (what, pid) in [("bus + manager + scheduler", root(up)), ("worker + keeper", root(worker))]
    {
        let family = table::family(pid);
        seen.push((what, family.clone(), table::usage(&family)));
    }
    tokio::time::sleep(over).await;
    let mut rows = Vec::new();
    for (what, family, before) in seen {
        let after = table::usage(&family);
        for (pid, name) in &family {
            rows.push(Row::new(
                format!("idle memory of {name} (PSS)"),
                "MB",
                Spread::of(&[after[pid].memory_mb]),
            ));
        }
        let memory: f64 = family.keys().map(|pid| after[pid].memory_mb).sum();
        let cpu: f64 = family.keys().map(|pid| after[pid].cpu_s - before[pid].cpu_s).sum();
        let aim = if what.starts_with("bus") { "≤ 120" } else { "≤ 20" };
        rows.push(Row::new(format!("idle memory of {what}"), "MB", Spread::of(&[memory])).aim(aim));
        let percent = cpu / over.as_secs_f64() * 100.0;
        rows.push(
            Row::new(
                format!("idle processor time of {what}"),
                "% of a core",
                Spread::of(&[percent]),
            )
            .aim("< 1 together"),
        );
    }
    rows
}
