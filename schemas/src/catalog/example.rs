//! One example of each message, for people who read its schema and for the tests: with every field
//! that may be said, as far as they go together.

use serde_json::{Value, json};

const WORK: &str = "0198f0c2-7b5e-7cc3-98c4-dc0c0c07398f";
const OTHER: &str = "0198f0c2-7b60-7d11-8a44-31bb0f6a2c9e";
const INSTANCE: &str = "5f0f3c1e-91a4-4a5c-9d55-6f4f2b7a9c10";
const REQUEST: &str = "c7a2f0d4-0b1e-4a6e-8a1d-2f9b7c5e4d3a";
const SUBMITTED: &str = "2026-11-23T03:42:03.123Z";
const STARTED: &str = "2026-11-23T03:42:03.127Z";
const ENDED: &str = "2026-11-23T03:42:03.131Z";

/// The example of a message; `None` when there is no message of that name.
pub(super) fn of(name: &str) -> Option<Value> {
    Some(match name {
        "error" => json!({ "error": {
            "code": "unknown_field",
            "message": "there is no field `prority`",
            "hint": "did you mean `priority`?",
            "field": "prority",
        } }),
        "work.submit" => submit(),
        "work.submit.reply" => json!({
            "work": WORK, "name": "thumbnails", "owner": "owner", "state": "waiting",
            "submitted_at": SUBMITTED,
        }),
        "work.run" => json!({
            "argv": ["sed", "s/a/b/"], "env": { "LC_ALL": "C" }, "stdin": "banana\n",
            "resources": { "cpus": 0.5, "memory_mib": 64 }, "timeout_s": 2.5, "hold_s": 30,
        }),
        "work.run.reply" => run_reply(),
        "work.append" => json!({
            "work": WORK, "part": 1, "tasks": [echo_task()],
            "items": { "task": "resize", "items": ["c.jpg", "d.jpg"] },
        }),
        "work.append.reply" => json!({ "work": WORK, "part": 1 }),
        "work.close" => json!({ "work": "@last", "parts": 1 }),
        "work.get" => json!({ "work": "thumbnails", "spec": true }),
        "work.list" => json!({
            "states": ["running", "failed"], "name": "thumb", "limit": 20, "from": "41",
        }),
        "work.list.reply" => json!({ "works": [summary()], "next": "61" }),
        "work.results" => json!({
            "work": WORK, "task": "resize", "from": "resize/100", "limit": 100, "only": "failed",
        }),
        "work.results.reply" => json!({ "items": [outcome()], "next": "resize/200" }),
        "work.cancel" | "work.retry" => json!({ "work": WORK, "round": 1, "request": REQUEST }),
        "work.wait" => json!({ "work": WORK, "hold_s": 30 }),
        "work.close.reply" | "work.get.reply" | "work.cancel.reply" | "work.retry.reply"
        | "work.wait.reply" => summary(),
        "work.follow" => json!({
            "work": WORK, "task": "resize", "index": 1, "from": "812.40", "pace": true,
        }),
        "work.follow.reply" => json!({
            "cursor": "812.41",
            "fact": { "kind": "ended", "at": ENDED, "body": { "work": WORK, "task": "main" } },
            "output": {
                "task": "resize", "index": 1, "attempt": 1, "stream": "stdout", "offset": 65536,
                "bytes": { "base64": "/9j/4A==" }, "gap": 10,
            },
            "summary": summary(),
        }),
        "inbox" => json!({ "name": "later", "argv": ["uname", "-a"] }),
        "sched.explain" => json!({ "work": WORK, "task": "resize", "node": "m4" }),
        "sched.explain.reply" => json!({
            "why": "it waits for 2 cpus; the nearest, m4, has 1",
            "more": ["office is drained"],
        }),
        "sched.nodes" | "sched.pause" | "sched.resume" | "node.stop.reply" => json!({}),
        "sched.nodes.reply" => json!({ "nodes": [node_view()], "paused": true }),
        "sched.drain" | "sched.undrain" => json!({ "node": "m4" }),
        "sched.drain.reply" => json!({ "message": "m4 finishes 3 jobs and takes no new ones" }),
        "sched.undrain.reply" => json!({ "message": "m4 takes jobs again" }),
        "sched.pause.reply" => json!({ "message": "nothing is placed in `main`" }),
        "sched.resume.reply" => json!({ "message": "`main` goes on" }),
        _ => return of_fact(name).or_else(|| of_node(name)),
    })
}

fn of_fact(name: &str) -> Option<Value> {
    Some(match name {
        "fact.accepted" => json!({ "work": WORK, "by": "owner", "spec": {
            "name": "thumbnails", "priority": 7, "pool": "gpu", "open": true,
            "open_timeout_s": 600, "lost_after_s": 45,
            "tasks": [resize_task(), echo_task()],
        } }),
        "fact.appended" => json!({
            "work": WORK, "part": 2, "tasks": [echo_task()],
            "items": { "task": "resize", "items": ["c.jpg"] },
        }),
        "fact.closed" => json!({ "work": WORK, "parts": 2 }),
        "fact.cancel-asked" | "fact.retry-asked" => json!({
            "work": WORK, "request": REQUEST, "round": 0, "by": "owner",
        }),
        "fact.refused" => json!({
            "work": WORK, "name": "later", "by": "owner", "inbox": 17,
            "error": { "code": "invalid", "message": "`argv` is empty", "field": "argv" },
        }),
        "fact.assigned" => json!({ "epoch": 4, "entries": [
            { "work": WORK, "task": "resize", "indices": [[0, 99], [101, 101]], "attempt": 1,
              "node": "m4", "instance": INSTANCE },
            { "work": OTHER, "task": "main", "indices": [[0, 0]], "attempt": 2,
              "node": "m4", "instance": INSTANCE },
        ] }),
        "fact.returned" => json!({ "epoch": 4, "entries": [
            { "work": WORK, "task": "resize", "indices": [[3, 5]], "attempt": 1, "node": "m4",
              "why": "m4 is leaving", "after_s": 1.5 },
        ] }),
        "fact.lost" => json!({ "epoch": 4, "entries": [
            { "work": WORK, "task": "resize", "indices": [[7, 7]], "attempt": 1, "node": "m4",
              "instance": INSTANCE, "why": "m4 has been silent for 35 s", "again_s": 1 },
        ] }),
        "fact.ended" => json!({ "epoch": 4, "entries": [
            { "work": WORK, "task": "resize", "indices": [[0, 1]], "attempt": 1,
              "ending": ending(), "again_s": 2 },
        ] }),
        "fact.finished" => json!({ "epoch": 4, "entries": [
            { "work": WORK, "round": 1, "state": "failed", "why": "1 of 2 indices failed",
              "ended_at": ENDED },
        ] }),
        "fact.expired" => json!({ "epoch": 4, "work": WORK }),
        "fact.epoch" => json!({ "epoch": 4, "by": "scheduler on hub, process 4711" }),
        "fact.drained" | "fact.undrained" => json!({ "epoch": 4, "node": "m4", "by": "owner" }),
        "fact.paused" | "fact.resumed" => json!({ "epoch": 4, "by": "owner" }),
        _ => return None,
    })
}

fn of_node(name: &str) -> Option<Value> {
    let ask = || json!({ "epoch": 4, "n": 12, "instance": INSTANCE });
    let jobs = || json!({ "work": WORK, "task": "resize", "attempt": 1, "indices": [[0, 1]] });
    let frames = || {
        json!({ "frames": [
            { "task": "resize", "index": 0, "attempt": 1, "offset": 0, "bytes": "read a.jpg\n" },
            { "task": "resize", "index": 1, "attempt": 1, "offset": 11,
              "bytes": { "base64": "/9j/4A==" } },
            { "task": "resize", "index": 1, "attempt": 1, "offset": 15, "gap": 4096 },
        ] })
    };
    Some(match name {
        "node.jobs" => json!({ "ask": ask(), "jobs": [{
            "owner": "owner", "work": WORK, "task": "resize", "attempt": 1,
            "indices": [[0, 1]], "items": ["a.jpg", "b.jpg"],
            "spec": {
                "run": process(), "array": true,
                "room": { "cpus": 1, "memory_mib": 512, "gpus": 1, "disk_mib": 100,
                          "custom": { "camera": 1 } },
                "vram_mib": 8192, "timeout_s": 600,
                "outputs": [{ "name": "thumb", "path": "out.jpg" }],
                "env_from_node": ["CUDA_HOME"],
                "output": { "limit_mib": 16, "full": "drop" }, "lost_after_s": 45,
            },
        }] }),
        "node.jobs.reply" => json!({ "refused": [{ "jobs": jobs(), "why": "m4 is leaving" }] }),
        "node.stop" => json!({ "ask": ask(), "jobs": [jobs()], "why": "cancelled" }),
        "node.held" => json!({ "ask": ask() }),
        "node.held.reply" => json!({
            "instance": INSTANCE,
            "jobs": [{ "jobs": jobs(), "epoch": 4, "ended": true }],
            "highest": { "epoch": 4, "n": 11 },
        }),
        "node.read" => json!({
            "work": WORK, "task": "main", "index": 0, "attempt": 1, "offset": 1_048_576,
            "stream": "stdout",
        }),
        "node.read.reply" => json!({ "known": true }),
        "report" => json!({
            "entries": [
                { "owner": "owner", "jobs": jobs(), "epoch": 4, "instance": INSTANCE,
                  "became": { "ended": ending() }, "ago_s": 0.25 },
                { "owner": "owner", "jobs": jobs(), "epoch": 4, "instance": INSTANCE,
                  "became": { "returned": { "why": "m4 is leaving" } }, "ago_s": 0 },
                { "owner": "owner", "jobs": jobs(), "epoch": 4, "instance": INSTANCE,
                  "became": { "lost": { "why": "no worker came back" } }, "ago_s": 3 },
            ],
            "failed": [INSTANCE],
        }),
        "report.reply" => json!({ "epoch": 4, "n": 13 }),
        "beat" => json!({
            "node": "m4", "instance": INSTANCE, "pool": "main", "site": "home",
            "at": STARTED, "since": SUBMITTED,
            "total": { "cpus": 8, "memory_mib": 16384, "gpus": 1 },
            "used": { "cpus": 2.5, "memory_mib": 512 },
            "inventory": inventory(),
            "digest": { "running": 3, "queued": 1, "unanswered": 0 },
            "highest": { "epoch": 4, "n": 12 },
            "closing": true, "leaving": true, "version": "0.1.0",
        }),
        "out" | "live" => frames(),
        _ => return None,
    })
}

fn submit() -> Value {
    json!({
        "work": WORK, "name": "thumbnails", "owner": "owner", "pool": "gpu", "priority": 7,
        "open": true, "open_timeout_s": 600, "lost_after_s": 45,
        "tasks": [
            resize_task(),
            { "name": "sheet", "needs": ["resize"],
              "run": { "process": { "argv": ["montage", "sheet.jpg"] } } },
        ],
    })
}

fn process() -> Value {
    json!({ "process": {
        "argv": ["convert", "{item}", "-resize", "200", "out.jpg"],
        "env": { "OMP_NUM_THREADS": "1" },
        "stdin": { "base64": "/wA=" },
    } })
}

fn resize_task() -> Value {
    json!({
        "name": "resize", "needs": ["greet"], "run": process(),
        "array": { "items": ["a.jpg", "b.jpg"] },
        "outputs": [{ "name": "thumb", "path": "out.jpg" }],
        "resources": { "cpus": 1, "memory_mib": 512, "gpus": 1, "vram_mib": 8192,
                       "disk_mib": 100, "custom": { "camera": 1 } },
        "where": { "node": ["m4", "m5"], "site": "home" },
        "retries": 2, "lost": "fail", "timeout_s": 600, "env_from_node": ["CUDA_HOME"],
        "output": { "limit_mib": 64, "full": "wait" },
    })
}

fn echo_task() -> Value {
    json!({ "name": "greet", "run": { "echo": "hello" }, "array": { "count": 3 } })
}

fn summary() -> Value {
    json!({
        "work": WORK, "name": "thumbnails", "owner": "owner", "state": "failed",
        "why": "1 of 2 indices failed", "submitted_at": SUBMITTED, "ended_at": ENDED,
        "round": 1, "open": true,
        "tasks": [{
            "task": "resize", "state": "failed", "total": 2, "waiting": 0, "ready": 0,
            "running": 0, "finished": 1, "failed": 1, "cancelled": 0, "skipped": 0, "lost": 1,
            "first_failures": [{
                "index": 1, "node": "m4", "exit_code": 1, "signal": null,
                "why": "it exited with code 1",
            }],
        }],
    })
}

fn ending() -> Value {
    json!({
        "node": "m4", "state": "failed", "exit_code": 1, "signal": 9,
        "why": "it exited with code 1", "reason": "exit_code",
        "queued_at": SUBMITTED, "started_at": STARTED, "ended_at": ENDED,
        "ran_s": 0.004, "cpu_s": 0.003, "memory_peak_mib": 3,
        "stdout": "read b.jpg\n", "stderr": { "base64": "/wA=" },
        "stdout_bytes": 11, "stderr_bytes": 2, "outputs": { "thumb": "…" },
    })
}

fn outcome() -> Value {
    let mut outcome = ending();
    outcome["task"] = "resize".into();
    outcome["index"] = 1.into();
    outcome["attempt"] = 1.into();
    outcome
}

fn run_reply() -> Value {
    json!({
        "work": WORK, "name": "", "owner": "owner", "state": "finished", "why": null,
        "submitted_at": SUBMITTED, "ended_at": ENDED,
        "tasks": [{
            "task": "main", "state": "finished", "total": 1, "waiting": 0, "ready": 0,
            "running": 0, "finished": 1, "failed": 0, "cancelled": 0, "skipped": 0, "lost": 0,
            "first_failures": [],
        }],
        "attempt": 1, "node": "m4", "exit_code": 0, "signal": null, "reason": null,
        "queued_at": SUBMITTED, "started_at": STARTED, "ran_s": 0.004, "cpu_s": 0.003,
        "memory_peak_mib": 3, "stdout": "bbnbnb\n", "stderr": "", "stdout_bytes": 7,
        "stderr_bytes": 0, "outputs": {},
    })
}

fn inventory() -> Value {
    json!({
        "host": "m4.lan", "os": "linux 6.1", "arch": "x86_64", "cpu": "Ryzen 7", "cores": 16,
        "memory_mib": 32768, "disk_free_mib": 409_600,
        "cards": [{ "index": 0, "name": "RTX 3060", "uuid": "GPU-1", "vram_mib": 12288 }],
        "addresses": ["192.168.1.4"],
    })
}

fn node_view() -> Value {
    json!({
        "node": "m4", "pool": "main", "site": "home", "state": "drained",
        "why": "drained by owner", "kind": "tensor", "instance": INSTANCE,
        "total": { "cpus": 8, "memory_mib": 16384, "gpus": 1 },
        "used": { "cpus": 2.5, "memory_mib": 512 },
        "jobs": 3, "inventory": inventory(), "heard_at": ENDED, "clock_ahead_s": 0.012,
        "version": "0.1.0",
    })
}
