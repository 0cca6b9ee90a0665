//! What jobs write: live, byte for byte, bounded, and still there afterwards.

use crate::house::{House, patiently};
use sha2::{Digest, Sha256};
use std::process::Stdio;
use tokio::io::AsyncReadExt;

#[tokio::test]
async fn partial_lines_come_while_the_job_runs() {
    let house = House::up(&[("home", "cpus=2")]).await;
    let gate = house.dir.join("gate");
    let script = format!(
        "printf 'half a line'; until test -e '{}'; do sleep 0.01; done; echo ' and the rest'",
        gate.display()
    );
    let mut child = house.command(&["run", "--", "sh", "-c", &script]).spawn().unwrap();
    let mut stdout = child.stdout.take().unwrap();

    let mut first = vec![0; "half a line".len()];
    patiently("half a line", stdout.read_exact(&mut first)).await.unwrap();
    std::fs::write(&gate, "").unwrap();
    let mut rest = String::new();
    patiently("the rest", stdout.read_to_string(&mut rest)).await.unwrap();

    assert_eq!((&*first, rest.as_str()), (&b"half a line"[..], " and the rest\n"));
    assert!(child.wait().await.unwrap().success());
}

#[tokio::test]
async fn any_bytes_come_back_the_same_live_and_late() {
    let house = House::up(&[("home", "cpus=2")]).await;
    let copy = house.dir.join("copy");
    let script = format!("head -c 3000000 /dev/urandom | tee '{}'", copy.display());

    let live = house.longhouse(&["run", "--name", "bytes", "--", "sh", "-c", &script]).await;
    let late = house.longhouse(&["logs", "bytes"]).await;

    let written = std::fs::read(&copy).unwrap();
    assert!(live.status.success(), "{live:?}");
    assert!(live.stdout == written, "{} of {} bytes", live.stdout.len(), written.len());
    assert!(late.stdout == written, "{} of {} bytes", late.stdout.len(), written.len());
}

#[tokio::test]
async fn a_follower_who_comes_late_reads_from_the_start() {
    let house = House::up(&[("home", "cpus=2")]).await;
    let gate = house.dir.join("gate");
    let script = format!(
        "seq 1 5000; until test -e '{}'; do sleep 0.01; done; seq 5001 10000",
        gate.display()
    );
    house.says(&["run", "--detach", "--name", "late", "--", "sh", "-c", &script]).await;

    let mut child = house.command(&["logs", "-f", "late"]).spawn().unwrap();
    let mut stdout = child.stdout.take().unwrap();
    let half: String = (1..=5000).map(|n| format!("{n}\n")).collect();
    let mut first = vec![0; half.len()];
    patiently("the first half", stdout.read_exact(&mut first)).await.unwrap();
    std::fs::write(&gate, "").unwrap();
    let mut rest = String::new();
    patiently("the second half", stdout.read_to_string(&mut rest)).await.unwrap();

    assert_eq!(String::from_utf8(first).unwrap(), half);
    assert_eq!(rest, (5001..=10000).map(|n| format!("{n}\n")).collect::<String>());
    assert!(child.wait().await.unwrap().success());
}

/// 300 MB through a stream of 64 MiB into a reader of about 5 MB/s, with another work's output
/// beside it: the pipe is held back, nothing is lost, nobody grows.
#[tokio::test]
async fn a_slow_reader_slows_the_job_down_and_loses_nothing() {
    let mut house = House::new("[manager]\noutput_mib = 64\n");
    house.start(&["up", "--port", "0", "--only", "bus,manager,scheduler"]).await;
    house.start(&["worker", "--name", "home", "--lend", "cpus=2"]).await;
    house.says(&["run", "--name", "other", "--", "sh", "-c", "seq 1 20000"]).await;
    const BYTES: usize = 300 << 20;
    let script = format!("yes | head -c {BYTES}");
    let mut child = house.command(&["run", "--", "sh", "-c", &script]).spawn().unwrap();
    let mut stdout = child.stdout.take().unwrap();

    let (mut hash, mut total) = (Sha256::new(), 0);
    let mut buffer = vec![0; 64 << 10];
    let mut pace = tokio::time::interval(std::time::Duration::from_millis(10));
    loop {
        let read = patiently("more output", stdout.read(&mut buffer)).await.unwrap();
        if read == 0 {
            break;
        }
        hash.update(&buffer[..read]);
        total += read;
        pace.tick().await;
    }
    let other = house.says(&["logs", "other"]).await;

    let mut expected = Sha256::new();
    for _ in 0..BYTES / 2 {
        expected.update(b"y\n");
    }
    assert_eq!(total, BYTES);
    assert_eq!(hash.finalize(), expected.finalize());
    assert!(child.wait().await.unwrap().success());
    assert_eq!(other.lines().count(), 20000);
}

#[tokio::test]
async fn beyond_its_limit_the_first_and_the_last_half_are_kept_and_the_gap_is_said() {
    let house = House::up(&[("home", "cpus=2")]).await;
    let work = r#"{"name":"chatty","argv":["sh","-c","seq 1 1000000"],"output":{"limit_mib":1}}"#;

    let answer = house.ask("lh.work.run", work).await;
    let kept = house.longhouse(&["logs", "chatty"]).await;

    let all: String = (1..=1_000_000).map(|n| format!("{n}\n")).collect();
    assert_eq!(answer["stdout_bytes"], all.len(), "{answer}");
    let text = String::from_utf8_lossy(&kept.stdout);
    assert!(text.starts_with(&all[..500_000]), "the first half is not whole");
    assert!(text.ends_with(&all[all.len() - 500_000..]), "the last half is not whole");
    assert!(kept.stdout.len() < 3 << 20, "{} bytes were kept", kept.stdout.len());
    assert!(String::from_utf8_lossy(&kept.stderr).contains("not kept"), "{kept:?}");
}

#[tokio::test]
async fn what_is_typed_before_the_run_is_read_whole_and_too_much_is_refused() {
    let house = House::up(&[("home", "cpus=2")]).await;

    let small = house.longhouse_with(&["run", "-i", "--", "cat"], b"\xff\x00line\n").await;
    let large = house.longhouse_with(&["run", "-i", "--", "cat"], &vec![b'x'; 600_000]).await;

    assert_eq!(small.stdout, b"\xff\x00line\n");
    assert_eq!(large.status.code(), Some(2), "{large:?}");
    assert!(String::from_utf8_lossy(&large.stderr).contains("512"), "{large:?}");
}

#[tokio::test]
async fn a_reader_that_goes_away_ends_the_client_and_not_the_house() {
    let house = House::up(&[("home", "cpus=2")]).await;
    let mut child =
        house.command(&["run", "--", "sh", "-c", "yes"]).stdout(Stdio::piped()).spawn().unwrap();
    let mut stdout = child.stdout.take().unwrap();
    let mut some = vec![0; 1000];
    patiently("some output", stdout.read_exact(&mut some)).await.unwrap();
    drop(stdout);

    let status = patiently("the end of the client", child.wait()).await.unwrap();

    assert_ne!(status.code(), Some(0));
    assert_eq!(house.says(&["run", "--", "echo", "still here"]).await, "still here\n");
}
