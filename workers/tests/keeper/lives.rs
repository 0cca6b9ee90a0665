//! Workers that come and go, keepers that die or leave.
#![expect(clippy::unwrap_used, reason = "a test that cannot go on should stop")]

use crate::{
    desk::{Change, House, job, sh},
    jobs::{is_alive, lines},
};
use libtest_mimic::Trial;
use schemas::{
    amount::Cpus,
    job::{Became, Pair},
    outcome::IndexState,
    time::Seconds,
    work::{OutputPolicy, WhenFull},
};
use workers::protocol::ToKeeper;

/// Every test of this file.
pub(crate) fn all() -> Vec<Trial> {
    macro_rules! trials {
        ($($name:ident),* $(,)?) => {
            vec![$(Trial::test(stringify!($name), || { $name(); Ok(()) })),*]
        };
    }
    trials![
        a_worker_goes_and_the_next_one_misses_no_byte,
        reports_are_said_until_they_are_answered_by_who_counts,
        a_second_worker_is_told_that_there_is_one,
        an_older_protocol_is_refused_with_both_versions,
        without_a_worker_jobs_are_ended_when_their_lease_is_over,
        without_a_reader_a_job_goes_on_under_drop,
        a_killed_keeper_is_named_when_nothing_of_it_is_left,
        a_keeper_that_leaves_waits_for_its_jobs,
        a_keeper_that_leaves_at_once_reports_them_lost,
        a_keeper_ends_with_reports_left_for_the_next,
        a_keeper_whose_folder_is_removed_ends_with_its_jobs,
    ]
}

fn a_worker_goes_and_the_next_one_misses_no_byte() {
    let house = House::new();
    let mut first = house.attach();
    first.ack_frames = false;
    let go = house.dir.path().join("go");
    let batch = sh(&format!(
        "seq 1 20000; while [ ! -e '{}' ]; do sleep 0.02; done; seq 20001 40000",
        go.display()
    ))
    .spec(|spec| spec.output = OutputPolicy { limit_mib: 16, full: WhenFull::Drop });
    first.start(batch.clone());
    first.until(|desk| desk.heard("stdout").0.ends_with(b"\n20000\n"));
    let instance = first.instance;
    drop(first);
    std::fs::write(&go, "").unwrap();

    let mut second = house.attach();

    assert_eq!(second.instance, instance);
    let ending = second.ending();
    assert_eq!(ending.state, IndexState::Finished);
    second.until(|desk| desk.heard("stdout").0.len() as u64 == ending.stdout_bytes);
    let (heard, twice) = second.heard("stdout");
    let expected: String = (1..=40_000).map(|n| format!("{n}\n")).collect();
    assert!(!twice && heard == expected.as_bytes());
    assert!(second.held().jobs.is_empty());
}

fn reports_are_said_until_they_are_answered_by_who_counts() {
    let house = House::new();
    let mut desk = house.attach();
    desk.ack_reports = false;
    desk.pair.epoch = 4;
    desk.start(job(&["true"]));
    desk.until(|desk| desk.reports.len() == 1);
    let id = desk.reports[0].id;
    // A scheduler that is over may answer what it likes.
    desk.say(&ToKeeper::AckReports { ids: vec![id], pair: Pair { epoch: 3, n: 900 } });
    desk.until(|desk| desk.reports.len() == 2);
    assert_eq!(desk.reports[1].id, id);
    drop(desk);

    let mut desk = house.attach();
    desk.ack_reports = false;
    desk.until(|desk| desk.reports.len() == 1);
    desk.say(&ToKeeper::AckReports { ids: vec![id], pair: Pair { epoch: 5, n: 2 } });
    desk.until(|desk| desk.state.digest.unanswered == 0);
    // Its pair counts from here on.
    assert_eq!(desk.state.highest, Pair { epoch: 5, n: 2 });
    drop(desk);
    assert!(house.attach().reports.is_empty());
}

fn a_second_worker_is_told_that_there_is_one() {
    let house = House::new();
    let mut first = house.attach();
    let refused = house.try_attach().err().unwrap();
    let pid = std::process::id();
    assert_eq!(
        refused,
        format!("another worker (process {pid}) is attached to this node's keeper")
    );
    assert_eq!(first.run(job(&["true"])).state, IndexState::Finished);
    drop(first);
    house.attach();
}

fn an_older_protocol_is_refused_with_both_versions() {
    let house = House::with(|hello| hello.protocol = 0);
    let refused = house.try_attach().err().unwrap();
    assert!(refused.ends_with("speaks protocol 1, the worker (version test) 0"), "{refused}");
}

fn without_a_worker_jobs_are_ended_when_their_lease_is_over() {
    let house = House::with(|hello| {
        hello.lost_after = Seconds::from_ms(100);
        hello.lend.cpus = Cpus::new(1);
    });
    let mut desk = house.attach();
    let long = Some(Seconds::new(3600));
    let (runs, waits) = (sh("echo $$; setsid sleep 1000"), sh("sleep 1000"));
    let keeps = sh("echo $$; sleep 1000").spec(|spec| {
        (spec.lost_after_s, spec.room.cpus) = (long, Cpus::default());
    });
    desk.start(keeps.clone());
    let kept = lines(&mut desk, 1).remove(0);
    desk.frames.clear();
    desk.start(runs.clone());
    desk.start(waits.clone());
    let pid = lines(&mut desk, 1).remove(0);
    drop(desk);
    while is_alive(&pid) {
        std::thread::yield_now();
    }

    let mut desk = house.attach();
    desk.until(|desk| desk.reports.len() == 2);
    for report in &desk.reports {
        match &report.entry.became {
            Became::Lost { why } => {
                assert_eq!(report.entry.jobs, runs.all());
                assert_eq!(why, "no worker came back within 0.1 s");
            }
            Became::Returned { why } => {
                assert_eq!(report.entry.jobs, waits.all());
                assert_eq!(why, "no worker came back in time");
            }
            Became::Ended(ending) => panic!("{ending:?}"),
        }
    }
    assert!(is_alive(&kept), "its work gave it an hour");
    assert_eq!(desk.held().jobs.len(), 1);
}

fn without_a_reader_a_job_goes_on_under_drop() {
    let house = House::with(|hello| hello.reader_after = Seconds::from_ms(50));
    let mut desk = house.attach();
    let ending = desk.run(sh("yes | head -c 60000000").spec(|spec| {
        spec.output = OutputPolicy { limit_mib: 2, full: WhenFull::Wait };
    }));
    assert_eq!((ending.state, ending.stdout_bytes), (IndexState::Finished, 60_000_000));
    let end = |f: &crate::desk::Seen| f.offset + f.gap.unwrap_or(f.bytes.len() as u64);
    desk.until(|desk| desk.frames.iter().filter(|f| !f.live).map(end).max() == Some(60_000_000));
    let gaps = desk.frames.iter().filter(|f| f.gap.is_some() && !f.live).count();
    assert_eq!(gaps, 1);
}

fn a_killed_keeper_is_named_when_nothing_of_it_is_left() {
    let mut house = House::new();
    let mut desk = house.attach();
    let first = desk.instance;
    desk.ack_reports = false;
    desk.start(job(&["echo", "unanswered"]));
    desk.until(|desk| desk.reports.len() == 1);
    desk.start(sh("echo $$; setsid sh -c 'echo $$; exec sleep 1000' & sleep 1000"));
    let pids = lines(&mut desk, 2);
    drop(desk);

    house.replace_keeper();

    for pid in &pids {
        assert!(!is_alive(pid), "process {pid} lives");
    }
    let mut desk = house.attach();
    assert_ne!(desk.instance, first);
    desk.ack_reports = false;
    desk.until(|desk| desk.reports.len() == 1);
    let report = desk.reports.remove(0);
    assert_eq!(report.entry.instance, first);
    assert!(desk.held().jobs[0].ended);
    assert!(desk.failed.is_empty(), "it is named behind its reports");
    let pair = desk.pair;
    desk.say(&ToKeeper::AckReports { ids: vec![report.id], pair });
    desk.until(|desk| desk.failed == [first]);
    drop(desk);
    // Said until it is answered, also by the next keeper, which names both.
    let second = {
        let mut desk = house.attach();
        desk.until(|desk| desk.failed == [first]);
        desk.instance
    };
    house.replace_keeper();
    let mut desk = house.attach();
    let mut both = vec![first, second];
    both.sort();
    desk.until(|desk| desk.failed == both);
    let pair = desk.pair;
    desk.say(&ToKeeper::AckFailed { instances: both, pair });
    assert!(desk.held().jobs.is_empty());
    drop(desk);
    let mut desk = house.attach();
    desk.run(job(&["true"]));
    assert!(desk.failed.is_empty());
}

fn a_keeper_that_leaves_waits_for_its_jobs() {
    let mut house = House::with(|hello| hello.lend.cpus = Cpus::new(1));
    let mut desk = house.attach();
    let go = house.dir.path().join("go");
    let runs = sh(&format!("echo up; while [ ! -e '{}' ]; do sleep 0.02; done", go.display()));
    desk.start(runs.clone());
    desk.start(job(&["true"]));
    lines(&mut desk, 1);
    desk.say(&ToKeeper::Leave { now: false });
    desk.until(|desk| desk.reports.len() == 1);
    let returned = desk.reports.remove(0).entry.became;
    assert!(matches!(returned, Became::Returned { .. }), "{returned:?}");
    let refused = desk.jobs(vec![job(&["true"])]).refused;
    assert_eq!(refused[0].why, "the node is leaving");
    std::fs::write(&go, "").unwrap();

    assert_eq!(desk.ending().state, IndexState::Finished);

    desk.until(|desk| desk.left);
    assert_eq!(house.keeper.wait().unwrap().code(), Some(0));
    assert!(!house.folder().join("keeper.json").exists());
}

fn a_keeper_that_leaves_at_once_reports_them_lost() {
    let mut house = House::new();
    let mut desk = house.attach();
    desk.start(sh("echo $$; sleep 1000"));
    let pid = lines(&mut desk, 1).remove(0);
    desk.say(&ToKeeper::Leave { now: true });
    desk.until(|desk| desk.left);
    assert!(!is_alive(&pid));
    let became = &desk.reports[0].entry.became;
    assert_eq!(became, &Became::Lost { why: "the node was shut down".to_owned() });
    assert!(house.keeper.wait().unwrap().success());
}

fn a_keeper_ends_with_reports_left_for_the_next() {
    let mut house = House::new();
    let mut desk = house.attach();
    let first = desk.instance;
    desk.ack_reports = false;
    desk.start(job(&["true"]));
    desk.until(|desk| desk.reports.len() == 1);
    desk.say(&ToKeeper::Leave { now: false });
    desk.until(|desk| desk.state.leaving);
    desk.say(&ToKeeper::Exit);
    desk.until(|desk| desk.left);
    assert!(house.keeper.wait().unwrap().success());
    house.keeper = crate::desk::start(&house.folder());
    let mut desk = house.attach();
    desk.until(|desk| desk.reports.len() == 1);
    assert_eq!(desk.reports[0].entry.instance, first);
    desk.run_after(job(&["true"]));
    assert!(desk.failed.is_empty(), "it ended in order");
}

fn a_keeper_whose_folder_is_removed_ends_with_its_jobs() {
    let mut house = House::new();
    let mut desk = house.attach();
    desk.start(sh("echo $$; setsid sleep 1000"));
    let pid = lines(&mut desk, 1).remove(0);
    drop(desk);
    std::fs::remove_dir_all(house.folder()).unwrap();
    house.keeper.wait().unwrap();
    assert!(!is_alive(&pid));
}
