//! What jobs are promised: their environment, their end, their output, their place in the queue.
#![expect(clippy::unwrap_used, reason = "a test that cannot go on should stop")]

use crate::desk::{Change, Desk, House, card, job, sh};
use libtest_mimic::Trial;
use schemas::{
    amount::{Cpus, Room},
    codec::Encoding,
    error::code,
    id::InstanceId,
    indices::Indices,
    job::{Ask, Became, HeldRequest, JobBatch, StopWhy},
    outcome::{Ending, IndexState, reason},
    time::Seconds,
    work::{OutputFile, OutputPolicy, Run, WhenFull},
};
use std::{collections::BTreeMap, path::Path};
use workers::protocol::{Answer, Verb};

/// Every test of this file.
pub(crate) fn all() -> Vec<Trial> {
    macro_rules! trials {
        ($($name:ident),* $(,)?) => {
            vec![$(Trial::test(stringify!($name), || { $name(); Ok(()) })),*]
        };
    }
    trials![
        a_job_runs_and_is_reported_with_what_it_wrote,
        the_environment_of_a_job_is_clean,
        an_array_job_knows_its_index_and_its_item,
        a_job_that_signals_itself_says_by_which,
        a_program_that_is_not_there_is_127_and_one_that_cannot_run_126,
        input_small_and_large_is_read_whole,
        a_timeout_ends_the_whole_tree_also_what_left_the_session,
        what_hides_from_its_job_is_ended_with_it,
        who_ignores_term_is_killed,
        a_job_ends_with_its_main_process_and_takes_the_rest_along,
        cancel_says_so_and_a_stale_job_says_nothing,
        binary_output_comes_byte_for_byte_and_partial_lines_come_at_once,
        a_chatty_job_grows_no_process,
        a_reader_sets_the_pace_and_gets_every_byte,
        each_job_sees_only_its_cards,
        what_does_not_fit_waits_and_starts_in_order,
        what_could_never_run_is_refused,
        late_doubled_misdirected_and_malformed_requests_are_refused,
        an_attempt_that_is_held_is_not_started_again,
        a_million_echoes_are_one_report,
        echoes_with_an_index_are_each_their_own,
        declared_outputs_come_back,
        outputs_that_are_missing_too_large_or_links_fail_the_job,
        scratch_folders_start_empty,
    ]
}

pub(crate) fn is_alive(pid: &str) -> bool {
    let stat = std::fs::read_to_string(format!("/proc/{}/stat", pid.trim())).unwrap_or_default();
    stat.rsplit(')').next().is_some_and(|rest| !rest.trim().is_empty() && !rest.starts_with(" Z"))
}

fn text(bytes: &schemas::blob::Blob) -> String {
    bytes.to_text().into_owned()
}

/// Waits for the output to hold so many lines, and gives them.
pub(crate) fn lines(desk: &mut Desk, n: usize) -> Vec<String> {
    let heard = |desk: &Desk| String::from_utf8_lossy(&desk.heard("stdout").0).into_owned();
    desk.until(|desk| heard(desk).matches('\n').count() >= n);
    heard(desk).lines().map(str::to_owned).collect()
}

fn a_job_runs_and_is_reported_with_what_it_wrote() {
    let house = House::new();
    let mut desk = house.attach();

    let ending = desk.run(sh("printf 'out\\0put'; echo err >&2; exit 3"));

    assert_eq!(ending.state, IndexState::Failed);
    assert_eq!((ending.exit_code, ending.reason.as_deref()), (Some(3), Some(reason::EXIT_CODE)));
    assert_eq!(&ending.stdout.0[..], b"out\0put");
    assert_eq!((&ending.stderr.0[..], ending.stderr_bytes), (&b"err\n"[..], 4));
    assert_eq!(ending.node.unwrap().as_str(), "home");
    assert!(ending.started_at <= ending.ended_at);
    let ending = desk.run(job(&["true"]));
    assert_eq!((ending.state, ending.exit_code), (IndexState::Finished, Some(0)));
    assert!(ending.memory_peak_mib > 0);
    assert!(desk.frames.is_empty(), "few bytes are told by the outcome");
}

fn variables(ending: &Ending) -> BTreeMap<String, String> {
    let all = text(&ending.stdout);
    all.lines().filter_map(|l| l.split_once('=')).map(|(k, v)| (k.into(), v.into())).collect()
}

fn the_environment_of_a_job_is_clean() {
    let house = House::new();
    let mut desk = house.attach();
    let batch = job(&["env"])
        .process(|process| {
            process.env.insert("MINE".to_owned(), "yes {index}".to_owned());
            process.env.insert("LONGHOUSE_NODE".to_owned(), "forged".to_owned());
        })
        .spec(|spec| spec.env_from_node = vec!["SECRET".to_owned(), "NOT_THERE".to_owned()]);
    let work = batch.work.to_string();

    let env = variables(&desk.run(batch));

    let scratch = env["TMPDIR"].clone();
    assert!(scratch.starts_with(house.folder().canonicalize().unwrap().to_str().unwrap()));
    let expected: BTreeMap<String, String> = [
        ("PATH", "/usr/bin:/bin"),
        ("HOME", "/home/me"),
        ("USER", "me"),
        ("TZ", "UTC"),
        ("TMPDIR", &scratch),
        ("LONGHOUSE_INDEX", "0"),
        ("LONGHOUSE_WORK", &work),
        ("LONGHOUSE_TASK", "main"),
        ("LONGHOUSE_NODE", "home"),
        ("LONGHOUSE_ATTEMPT", "1"),
        ("MINE", "yes {index}"),
        ("SECRET", "of the worker"),
    ]
    .map(|(k, v)| (k.to_owned(), v.to_owned()))
    .into();
    assert_eq!(env, expected);
    let ending = desk
        .run(sh("pwd; ls /proc/self/fd | tr '\\n' ' '; ps -o sid= -p $$ | tr -d ' '; \
                              echo $$; grep -E 'Sig(Blk|Ign)' /proc/self/status | cut -f2"));
    let said = text(&ending.stdout);
    let mut said = said.lines();
    assert_eq!(said.next(), Some(&*scratch));
    let rest = said.next().unwrap();
    assert!(rest.starts_with("0 1 2 3 "), "only ls's own fourth descriptor: {rest}");
    let session = rest.rsplit(' ').next().unwrap();
    assert_eq!(Some(session), said.next(), "it leads its own session");
    for set in said {
        // Signals 32 and 33 are the C library's own; it ignores them in whatever it spawns.
        let set = u64::from_str_radix(set, 16).unwrap() & !(3 << 31);
        assert_eq!(set, 0, "no signal is blocked or ignored");
    }
}

fn an_array_job_knows_its_index_and_its_item() {
    let house = House::new();
    let mut desk = house.attach();
    let mut batch = job(&["sh", "-c", "echo {index} {item} $V $LONGHOUSE_INDEX $LONGHOUSE_ITEM"])
        .spec(|spec| spec.array = true)
        .process(|process| {
            process.env.insert("V".to_owned(), "v{index}{item}{other}".to_owned());
        });
    batch.indices = Indices::span(7, 8);
    batch.items = vec!["a".into(), "b".into()];

    desk.start(batch);
    let mut said = [text(&desk.ending().stdout), text(&desk.ending().stdout)];

    said.sort();
    assert_eq!(said, ["7 a v7a{other} 7 a\n", "8 b v8b{other} 8 b\n"]);
}

fn a_job_that_signals_itself_says_by_which() {
    let house = House::new();
    let ending = house.attach().run(sh("kill -SEGV $$"));
    assert_eq!((ending.exit_code, ending.signal), (None, Some(11)));
    assert_eq!(ending.reason.as_deref(), Some(reason::SIGNAL));
}

fn a_program_that_is_not_there_is_127_and_one_that_cannot_run_126() {
    let house = House::new();
    let mut desk = house.attach();
    for (argv, exit_code, why) in [
        (&["no-such-program"][..], 127, "there is no program `no-such-program`"),
        (&["/no/such/program"], 127, "there is no program `/no/such/program`"),
        (&["/etc/passwd"], 126, "`/etc/passwd` is not executable"),
        (&["/etc"], 126, "`/etc` is not executable"),
        (&["echo", "a\0b"], 126, "an argument or a variable has a NUL byte in it"),
    ] {
        let ending = desk.run(job(argv));
        assert_eq!(ending.state, IndexState::Failed);
        assert_eq!(ending.reason.as_deref(), Some(reason::NOT_STARTED));
        assert_eq!((ending.exit_code, ending.why.as_deref()), (Some(exit_code), Some(why)));
    }
    let long = "x".repeat(200_000);
    assert_eq!(desk.run(job(&["echo", &long])).exit_code, Some(126));
    assert_eq!(desk.run(job(&["true"])).state, IndexState::Finished);
}

fn input_small_and_large_is_read_whole() {
    let house = House::new();
    let mut desk = house.attach();
    for size in [0, 5, 4096, 4097, 500_000] {
        let input: Vec<u8> = (0..size).map(|n| (n % 251) as u8).collect();
        let batch = job(&["cat"]).process(|process| process.stdin = Some(input.clone().into()));
        let ending = desk.run(batch);
        assert_eq!(ending.stdout_bytes, size as u64);
        assert!(input.starts_with(&ending.stdout.0));
    }
    assert_eq!(desk.run(job(&["cat"])).stdout_bytes, 0);
}

fn a_timeout_ends_the_whole_tree_also_what_left_the_session() {
    let house = House::new();
    let mut desk = house.attach();
    let script = "sleep 1000 & echo $!; setsid sleep 1000 & echo $!; \
                  setsid sh -c 'setsid sleep 1000 & echo $!; exit'; \
                  setsid sh -c 'trap \"\" TERM; echo $$; while :; do sleep 1; done' & wait";
    desk.start(sh(script).spec(|spec| spec.timeout_s = Some(Seconds::from_ms(600))));
    let pids = lines(&mut desk, 4);

    let ending = desk.ending();

    assert_eq!(ending.reason.as_deref(), Some(reason::TIMEOUT));
    assert_eq!(ending.state, IndexState::Failed);
    assert_eq!(ending.why.as_deref(), Some("it ran longer than its timeout of 0.6 s"));
    for pid in pids {
        assert!(!is_alive(&pid), "process {pid} lives");
    }
}

fn what_hides_from_its_job_is_ended_with_it() {
    let house = House::new();
    let mut desk = house.attach();
    // No variable, no session, no group of the job, and its parent is gone.
    desk.start(sh("env -i PATH=$PATH setsid sh -c 'cd /; env -i setsid sleep 1000 & echo $!'"));
    let ending = desk.ending();
    let pid = text(&ending.stdout);
    // It holds nobody up, and is ended when no job runs any more; the next job says when that was.
    assert_eq!(ending.state, IndexState::Finished);
    for _ in 0..100 {
        if !is_alive(&pid) {
            break;
        }
        desk.run(job(&["true"]));
    }
    assert!(!is_alive(&pid));
}

fn who_ignores_term_is_killed() {
    let house = House::new();
    let mut desk = house.attach();
    let batch = sh("trap '' TERM; echo up; while :; do sleep 1; done");
    desk.start(batch.clone());
    lines(&mut desk, 1);
    desk.stop(batch.all(), StopWhy::Cancelled);
    let ending = desk.ending();
    assert_eq!((ending.state, ending.signal), (IndexState::Cancelled, Some(9)));

    // However slow this machine is, there is time enough for last words.
    let house = House::with(|hello| hello.grace = Seconds::new(100));
    let mut desk = house.attach();
    let batch = sh("trap 'echo bye; exit 5' TERM; echo up; while :; do sleep 0.05; done");
    desk.frames.clear();
    desk.start(batch.clone());
    lines(&mut desk, 1);
    desk.stop(batch.all(), StopWhy::Cancelled);
    let ending = desk.ending();
    assert_eq!((ending.state, ending.exit_code), (IndexState::Cancelled, Some(5)));
    assert_eq!(text(&ending.stdout), "up\nbye\n");
}

fn a_job_ends_with_its_main_process_and_takes_the_rest_along() {
    let house = House::new();
    let mut desk = house.attach();
    // All of them hold the job's pipes open.
    let ending = desk.run(sh("sleep 1000 & echo $!; setsid sleep 1000 & echo $!; exit 0"));
    assert_eq!(ending.state, IndexState::Finished);
    let said = text(&ending.stdout);
    assert_eq!(said.lines().count(), 2);
    for pid in said.lines() {
        assert!(!is_alive(pid), "process {pid} lives");
    }
}

fn cancel_says_so_and_a_stale_job_says_nothing() {
    let house = House::with(|hello| hello.lend.cpus = Cpus::new(1));
    let mut desk = house.attach();
    let (stale, waits) = (sh("echo up; sleep 1000"), sh("sleep 1000"));
    desk.start(stale.clone());
    desk.start(waits.clone());
    lines(&mut desk, 1);

    desk.stop(waits.all(), StopWhy::Cancelled);
    let ending = desk.ending();
    assert_eq!(ending.state, IndexState::Cancelled);
    assert_eq!(ending.why.as_deref(), Some("cancelled before it started"));

    desk.stop(stale.all(), StopWhy::Stale);
    // Its room is free again, and the next report is another's.
    assert_eq!(desk.run(job(&["true"])).state, IndexState::Finished);
    assert!(desk.held().jobs.is_empty());
}

fn binary_output_comes_byte_for_byte_and_partial_lines_come_at_once() {
    let house = House::new();
    let mut desk = house.attach();
    let batch = sh("printf partial; read line; \
                    awk 'BEGIN { for (n = 0; n < 300000; n++) printf \"%c\", n % 256 }'")
    .process(|process| {
        process.env.insert("LC_ALL".to_owned(), "C".to_owned());
    });
    let fifo = house.dir.path().join("fifo");
    assert!(std::process::Command::new("mkfifo").arg(&fifo).status().unwrap().success());
    let batch = batch.process(|process| {
        process.argv[2] =
            process.argv[2].replace("read line", &format!("cat '{}'", fifo.display()));
    });
    desk.start(batch);
    // It does not go on before its partial line was seen.
    desk.until(|desk| desk.heard("stdout").0 == b"partial");
    std::fs::write(&fifo, "").unwrap();

    let ending = desk.ending();

    desk.until(|desk| desk.heard("stdout").0.len() as u64 == ending.stdout_bytes);
    let (heard, twice) = desk.heard("stdout");
    let mut expected = b"partial".to_vec();
    expected.extend((0..300_000).map(|n| (n % 256) as u8));
    assert!(heard == expected && !twice);
    assert!(expected.starts_with(&ending.stdout.0) && ending.stdout.len() == 64 * 1024);
}

fn peak_mib(pid: u32) -> u64 {
    let status = std::fs::read_to_string(format!("/proc/{pid}/status")).unwrap();
    let line = status.lines().find(|line| line.starts_with("VmHWM:")).unwrap();
    line.split_whitespace().nth(1).unwrap().parse::<u64>().unwrap() / 1024
}

fn a_chatty_job_grows_no_process() {
    let house = House::new();
    let mut desk = house.attach();
    let before = peak_mib(house.keeper.id());
    let (head, tail) = ("head-of-it", "tail-of-it");
    let script = format!("printf {head}; yes | head -c 200000000; printf {tail}");

    let ending = desk.run(sh(&script).spec(|spec| {
        spec.output = OutputPolicy { limit_mib: 4, full: WhenFull::Drop };
    }));

    assert_eq!(ending.stdout_bytes, 200_000_020);
    let last = |desk: &Desk| {
        let stored = desk.frames.iter().filter(|f| !f.live);
        stored.map(|f| f.offset + f.gap.unwrap_or(f.bytes.len() as u64)).max()
    };
    desk.until(|desk| last(desk) == Some(200_000_020));
    let stored: Vec<_> = desk.frames.iter().filter(|f| !f.live).collect();
    let kept: usize = stored.iter().map(|f| f.bytes.len()).sum();
    assert_eq!(kept, 4 << 20);
    let gaps: Vec<_> = stored.iter().filter_map(|f| Some((f.offset, f.gap?))).collect();
    assert_eq!(gaps, [(2 << 20, 200_000_020 - (4 << 20))]);
    assert!(stored[0].bytes.starts_with(head.as_bytes()));
    assert!(stored.last().unwrap().bytes.ends_with(tail.as_bytes()));
    assert!(desk.frames.iter().any(|f| f.live), "the middle was shown while it came");
    let after = peak_mib(house.keeper.id());
    assert!(after < before + 24, "the keeper grew from {before} to {after} MiB");
}

fn a_reader_sets_the_pace_and_gets_every_byte() {
    let house = House::new();
    let mut desk = house.attach();
    let batch = sh("yes 0123456789 | head -c 40000000").spec(|spec| {
        spec.output = OutputPolicy { limit_mib: 1, full: WhenFull::Wait };
    });
    desk.start(batch.clone());
    let (mut read, mut most) = (0, 0);
    while read < 40_000_000 {
        desk.step();
        let heard = desk.frames.iter().map(|f| f.offset + f.bytes.len() as u64).max().unwrap_or(0);
        most = most.max(heard - read);
        // He reads in large steps, so that the job runs into him.
        if heard >= read + 7_000_000 || heard == 40_000_000 {
            read = heard;
            desk.read_to(&batch, read);
        }
    }
    assert!(most <= 8 * 1024 * 1024 + 64 * 1024, "{most} bytes ahead");
    let (heard, twice) = desk.heard("stdout");
    assert!(!twice && heard.len() == 40_000_000);
    assert!(heard.chunks(11).all(|line| b"0123456789\n".starts_with(line)));
    assert_eq!(desk.ending().stdout_bytes, 40_000_000);
}

fn each_job_sees_only_its_cards() {
    let house = House::with(|hello| {
        hello.lend.gpus = 3;
        hello.cards = vec![card(0, 8_000), card(1, 24_000), card(2, 8_000)];
    });
    let mut desk = house.attach();
    let cards = |n: u64, vram_mib: u64| {
        sh("echo \"<$CUDA_VISIBLE_DEVICES>\"; while [ ! -e go ]; do sleep 0.02; done").spec(
            |spec| {
                (spec.room.gpus, spec.vram_mib) = (n, vram_mib);
            },
        )
    };
    let without = desk.run(sh("echo ${CUDA_VISIBLE_DEVICES-unset}"));
    assert_eq!(text(&without.stdout), "\n");
    let (large, two) = (cards(1, 16_000), cards(2, 0));
    desk.start(large.clone());
    desk.start(two.clone());
    desk.until(|desk| desk.frames.len() == 2);
    let mut seen: Vec<_> = desk.frames.iter().map(|frame| frame.bytes.clone()).collect();
    seen.sort();
    assert_eq!(seen, [&b"<0,2>\n"[..], b"<1>\n"]);
    desk.stop(large.all(), StopWhy::Cancelled);
    desk.stop(two.all(), StopWhy::Cancelled);
    desk.until(|desk| desk.reports.len() == 2);

    let plain = House::new();
    let ending = plain.attach().run(sh("echo ${CUDA_VISIBLE_DEVICES-unset}"));
    assert_eq!(text(&ending.stdout), "unset\n");
}

fn what_does_not_fit_waits_and_starts_in_order() {
    let house = House::with(|hello| hello.lend.cpus = Cpus::new(2));
    let mut desk = house.attach();
    let log = house.dir.path().join("log");
    let append = format!("echo {{index}} >> '{}'", log.display());
    let mut many = sh(&append).spec(|spec| (spec.array, spec.room.cpus) = (true, Cpus::new(2)));
    many.indices = Indices::first(20);
    let mut last = sh(&append).spec(|spec| (spec.array, spec.room.cpus) = (true, Cpus::new(1)));
    last.indices = Indices::span(20, 23);

    assert!(desk.jobs(vec![many, last]).refused.is_empty());
    desk.until(|desk| desk.reports.len() == 24);

    let order: Vec<u32> = read(&log).lines().map(|line| line.parse().unwrap()).collect();
    assert_eq!(order[..20], (0..20).collect::<Vec<_>>());
    assert_eq!(order.len(), 24);
    desk.until(|desk| desk.state.digest.running == 0);
    assert_eq!(desk.state.used, Room::default());
}

fn read(path: &Path) -> String {
    std::fs::read_to_string(path).unwrap()
}

fn what_could_never_run_is_refused() {
    let house = House::new();
    let mut desk = house.attach();
    let large = sh("true").spec(|spec| spec.room.cpus = Cpus::new(5));
    let camera = sh("true").spec(|spec| {
        spec.room.custom.insert("camera".to_owned(), 1);
    });
    let refused = desk.jobs(vec![large.clone(), camera, sh("true")]).refused;
    let why: Vec<&str> = refused.iter().map(|r| r.why.as_str()).collect();
    assert_eq!(
        why,
        [
            "the node lends too little: it lacks 1 cpu",
            "the node lends too little: it lacks 1 camera",
        ]
    );
    assert_eq!(refused[0].jobs, large.all());
    assert_eq!(desk.ending().state, IndexState::Finished);
}

fn late_doubled_misdirected_and_malformed_requests_are_refused() {
    let house = House::new();
    let mut desk = house.attach();
    desk.pair.n = 5;
    desk.held();
    let code_of = |answer: Answer| match answer {
        Answer::Refused(refusal) => refusal.code.into_owned(),
        other => panic!("{other:?}"),
    };
    let instance = desk.instance;
    let mut held = |epoch, n, instance| {
        let ask = Ask { epoch, n, instance };
        desk.ask(Verb::Held, Encoding::MsgPack, &HeldRequest { ask })
    };
    assert_eq!(code_of(held(1, 6, instance)), code::STALE_REQUEST);
    assert_eq!(code_of(held(0, 999, instance)), code::STALE_REQUEST);
    let other = InstanceId(uuid::Uuid::from_u128(7));
    assert_eq!(code_of(held(1, 7, other)), code::NOT_ME);
    assert!(matches!(held(2, 1, instance), Answer::Held(_)));
    assert_eq!(code_of(held(1, 1000, instance)), code::STALE_REQUEST);
    for (encoding, payload) in [
        (Encoding::Json, &b""[..]),
        (Encoding::Json, b"{\"ask\":1}"),
        (Encoding::MsgPack, b"\xc1\xff"),
        (Encoding::Json, &[b'['; 100_000]),
    ] {
        for verb in Verb::ALL {
            let answer = desk.ask_bytes(verb, encoding, payload.to_vec());
            assert_eq!(code_of(answer), code::MALFORMED);
        }
    }
}

fn an_attempt_that_is_held_is_not_started_again() {
    let house = House::new();
    let mut desk = house.attach();
    desk.ack_reports = false;
    let log = house.dir.path().join("log");
    let batch = sh(&format!("echo started >> '{}'", log.display()));
    desk.start(batch.clone());
    desk.start(batch.clone());
    desk.until(|desk| !desk.reports.is_empty());
    // Ended, but nobody has answered the report.
    desk.start(batch.clone());
    let held = desk.held();
    assert_eq!((held.jobs.len(), held.jobs[0].ended), (1, true));
    assert_eq!(held.jobs[0].jobs, batch.all());
    assert_eq!(desk.run_after(job(&["true"])).state, IndexState::Finished);
    assert_eq!(read(&log), "started\n");
}

fn echo(text: &str, count: u32, array: bool) -> JobBatch {
    let mut batch = job(&["x"]).spec(|spec| {
        spec.run = Run::Echo(text.to_owned().into());
        spec.array = array;
        spec.room = Room::default();
    });
    batch.indices = Indices::first(count);
    batch
}

fn a_million_echoes_are_one_report() {
    let house = House::new();
    let mut desk = house.attach();
    desk.start(echo("hello {other}", 1_000_000, true));
    desk.until(|desk| !desk.reports.is_empty());
    assert_eq!(desk.reports.len(), 1);
    assert_eq!(desk.reports[0].entry.jobs.indices, Indices::first(1_000_000));
    let ending = desk.ending();
    assert_eq!((text(&ending.stdout).as_str(), ending.exit_code), ("hello {other}", Some(0)));
    let ending = desk.run(echo(&"x".repeat(70_000), 3, true));
    assert_eq!(ending.reason.as_deref(), Some(reason::OUTPUT_TOO_LARGE));
}

fn echoes_with_an_index_are_each_their_own() {
    let house = House::new();
    let mut desk = house.attach();
    let mut batch = echo("{index}={item}", 1000, true);
    batch.items = (0..1000).map(|n| format!("item {n}").into()).collect();
    desk.start(batch);
    desk.until(|desk| desk.reports.len() == 1000);
    for report in &desk.reports {
        let index = report.entry.jobs.indices.min().unwrap();
        let Became::Ended(ending) = &report.entry.became else { panic!() };
        assert_eq!(text(&ending.stdout), format!("{index}=item {index}"));
    }
    desk.reports.clear();
    assert_eq!(text(&desk.run(echo("{index}", 1, false)).stdout), "{index}");
}

fn outputs(paths: &[(&str, &str)]) -> Vec<OutputFile> {
    paths.iter().map(|(n, p)| OutputFile { name: (*n).into(), path: (*p).into() }).collect()
}

fn declared_outputs_come_back() {
    let house = House::new();
    let mut desk = house.attach();
    let batch = sh("mkdir -p sub; printf '\\377\\0' > sub/0.bin; head -c 65536 /dev/zero > big")
        .spec(|spec| {
            spec.array = true;
            spec.outputs = outputs(&[("bin", "sub/{index}.bin"), ("big", "./big")]);
        });
    let ending = desk.run(batch);
    assert_eq!(ending.state, IndexState::Finished, "{ending:?}");
    assert_eq!(&ending.outputs["bin"].0[..], b"\xff\0");
    assert_eq!(ending.outputs["big"].len(), 65_536);
    let ending = desk.run(sh("echo x > a; exit 4").spec(|spec| {
        spec.outputs = outputs(&[("a", "a"), ("b", "b")]);
    }));
    assert_eq!((ending.exit_code, ending.reason.as_deref()), (Some(4), Some(reason::EXIT_CODE)));
    assert_eq!(text(&ending.outputs["a"]), "x\n");
}

fn outputs_that_are_missing_too_large_or_links_fail_the_job() {
    let house = House::new();
    let mut desk = house.attach();
    for (script, word) in [
        ("true", reason::OUTPUT_MISSING),
        ("head -c 65537 /dev/zero > out", reason::OUTPUT_TOO_LARGE),
        ("ln -s /etc/passwd out", reason::OUTPUT_MISSING),
        ("mkfifo out", reason::OUTPUT_MISSING),
        ("mkdir out", reason::OUTPUT_MISSING),
    ] {
        let ending = desk.run(sh(script).spec(|spec| spec.outputs = outputs(&[("o", "out")])));
        assert_eq!(ending.reason.as_deref(), Some(word), "{script}");
        assert_eq!((ending.state, ending.exit_code), (IndexState::Failed, Some(0)), "{script}");
        assert!(ending.outputs.is_empty(), "{script}");
    }
    for path in ["../out", "/etc/passwd", "link/passwd"] {
        let batch = sh("ln -s /etc link").spec(|spec| spec.outputs = outputs(&[("o", path)]));
        assert_eq!(desk.run(batch).reason.as_deref(), Some(reason::OUTPUT_MISSING), "{path}");
    }
}

fn scratch_folders_start_empty() {
    let house = House::with(|hello| hello.lend.cpus = Cpus::new(1));
    let mut desk = house.attach();
    for script in ["touch left .behind", "mkdir -p a/b; touch a/b/c; chmod 0 a", "chmod 755 ."] {
        assert_eq!(desk.run(sh(script)).state, IndexState::Finished);
        let ending = desk.run(sh("ls -A; stat -c %a ."));
        assert_eq!(text(&ending.stdout), "700\n");
    }
}
