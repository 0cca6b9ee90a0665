//! The keeper's decisions, one by one and in seeded worlds.

use super::*;
use schemas::{
    amount::Cpus,
    work::{OutputPolicy, Process},
};
use uuid::Uuid;

const GRACE_MS: u64 = 5000;

fn now(ms: u64) -> Now {
    Now { at: Millis(ms), wall: Stamp(1_000_000_000 + ms) }
}

fn settings(cpus: u64, cards: &[u64]) -> Settings {
    let cards: Vec<Card> = (0..)
        .zip(cards)
        .map(|(index, vram_mib)| Card { index, vram_mib: *vram_mib, ..Card::default() })
        .collect();
    Settings {
        node: NodeName::new("home").unwrap(),
        lend: Room {
            cpus: Cpus::new(cpus),
            memory_mib: 1000,
            gpus: cards.len() as u64,
            ..Room::default()
        },
        cards,
        grace_ms: GRACE_MS,
        lost_after_ms: 30_000,
        max_running: 1000,
    }
}

/// A core with what it did last.
struct Desk {
    core: Core,
    ms: u64,
    n: u64,
    started: Vec<Arc<Job>>,
    signals: Vec<(JobId, bool)>,
    cleaned: Vec<(JobId, Box<Ending>)>,
    reports: Vec<Numbered>,
    answers: Vec<Answer>,
}

impl Desk {
    fn new(cpus: u64, cards: &[u64]) -> Self {
        let settings = settings(cpus, cards);
        let instance = InstanceId(Uuid::from_u128(1));
        let core = Core::new(instance, Pair::default(), &[], 1, settings.clone(), now(0));
        let mut desk = Self {
            core,
            ms: 0,
            n: 0,
            started: Vec::new(),
            signals: Vec::new(),
            cleaned: Vec::new(),
            reports: Vec::new(),
            answers: Vec::new(),
        };
        desk.step(Event::Attached(Box::new(settings)));
        desk
    }

    fn step(&mut self, event: Event) {
        for action in self.core.step(now(self.ms), event) {
            match action {
                Action::Start(job) => self.started.push(job),
                Action::Signal(id, kill) => self.signals.push((id, kill)),
                Action::Clean(id, ending) => self.cleaned.push((id, ending)),
                Action::Report(reports) => self.reports.extend(reports),
                Action::Answer(_, answer) => self.answers.push(answer),
                Action::Forget(_) | Action::Drop(_) | Action::Repeat(_) | Action::Keep(_) => {}
            }
        }
        self.core.audit().unwrap();
    }

    fn ask(&mut self) -> Ask {
        self.n += 1;
        Ask { epoch: 1, n: self.n, instance: InstanceId(Uuid::from_u128(1)) }
    }

    fn jobs(&mut self, jobs: Vec<JobBatch>) {
        let ask = self.ask();
        self.step(Event::Jobs(0, JobsRequest { ask, jobs }));
    }

    fn stop(&mut self, jobs: Vec<JobRef>, why: StopWhy) {
        let ask = self.ask();
        self.step(Event::Stop(0, StopRequest { ask, jobs, why }));
    }

    /// Ends everything that was started, in order.
    fn finish(&mut self) {
        for job in std::mem::take(&mut self.started) {
            self.step(Event::Spawned(job.id));
            self.exit(job.id);
        }
    }

    fn exit(&mut self, id: JobId) {
        self.step(Event::Exited(id, Exit { code: Some(0), ..Exit::default() }));
        for (id, ending) in std::mem::take(&mut self.cleaned) {
            self.step(Event::Gone(id, ending));
        }
    }

    fn indices(&self) -> Vec<Index> {
        self.started.iter().map(|job| job.index).collect()
    }

    fn became(&self) -> Vec<&Became> {
        self.reports.iter().map(|report| &report.entry.became).collect()
    }
}

fn batch(name: &str, count: u32, change: impl FnOnce(&mut JobSpec)) -> JobBatch {
    let mut spec = JobSpec {
        run: Run::Process(Process {
            argv: vec!["x".to_owned()],
            env: BTreeMap::new(),
            stdin: None,
        }),
        array: true,
        room: Room { cpus: Cpus::new(1), ..Room::default() },
        vram_mib: 0,
        timeout_s: None,
        outputs: Vec::new(),
        env_from_node: Vec::new(),
        output: OutputPolicy::default(),
        lost_after_s: None,
    };
    change(&mut spec);
    JobBatch {
        owner: OwnerName::owner(),
        work: WorkId(Uuid::from_u128(9)),
        task: TaskName::new(name).unwrap(),
        attempt: 1,
        indices: Indices::first(count),
        items: Vec::new(),
        spec: Arc::new(spec),
    }
}

fn all(batch: &JobBatch) -> JobRef {
    JobRef {
        work: batch.work,
        task: batch.task.clone(),
        attempt: batch.attempt,
        indices: batch.indices.clone(),
    }
}

#[test]
fn a_large_job_is_not_starved_by_small_ones_behind_it() {
    let mut desk = Desk::new(4, &[]);
    let large = |spec: &mut JobSpec| spec.room.cpus = Cpus::new(4);
    let no_cpu = |spec: &mut JobSpec| spec.room.cpus = Cpus::default();
    desk.jobs(vec![batch("first", 1, |_| {})]);
    let behind =
        vec![batch("large", 1, large), batch("small", 5, |_| {}), batch("none", 2, no_cpu)];
    desk.jobs(behind);
    let names: Vec<&str> = desk.started.iter().map(|job| job.shared.task.as_str()).collect();
    assert_eq!(names, ["first", "none", "none"]);
    desk.finish();
    assert_eq!(desk.started.last().unwrap().shared.task.as_str(), "large");
    desk.finish();
    assert_eq!(desk.indices(), [0, 1, 2, 3]);
}

#[test]
fn a_job_gets_the_smallest_cards_that_will_do() {
    let mut desk = Desk::new(4, &[24, 8, 8]);
    let cards =
        |n: u64, vram: u64| move |spec: &mut JobSpec| (spec.room.gpus, spec.vram_mib) = (n, vram);
    desk.jobs(vec![
        batch("one", 1, cards(1, 0)),
        batch("large", 1, cards(1, 20)),
        batch("second-large", 1, cards(1, 20)),
        batch("never", 1, cards(2, 20)),
    ]);
    let got: Vec<_> = desk.started.iter().map(|job| job.cards.clone()).collect();
    assert_eq!(got, [vec![1], vec![0]]);
    let Answer::Jobs(answer) = &desk.answers[0] else { panic!() };
    assert_eq!(answer.refused[0].why, "the node has 1 cards with 20 MiB, 2 are needed");
    desk.finish();
    assert_eq!(desk.started[0].cards, [0]);
}

#[test]
fn items_stay_with_their_indices_when_some_are_held_or_stopped() {
    let mut desk = Desk::new(1, &[]);
    let mut all_of_it = batch("a", 6, |_| {});
    all_of_it.items = (0..6).map(|n| format!("item {n}").into()).collect();
    let mut part = all_of_it.clone();
    part.indices = Indices::span(1, 2);
    part.items = part.items[1..3].to_vec();
    desk.jobs(vec![part.clone()]);
    desk.jobs(vec![all_of_it.clone()]);
    let mut stopped = all(&all_of_it);
    stopped.indices = Indices::span(3, 4);
    desk.stop(vec![stopped], StopWhy::Cancelled);
    let mut seen = Vec::new();
    while let Some(job) = desk.started.first() {
        seen.push((job.index, job.item.clone().unwrap().to_string()));
        desk.finish();
    }
    let expected = [1, 2, 0, 5].map(|n| (n, format!("item {n}")));
    assert_eq!(seen, expected);
}

#[test]
fn a_timeout_says_term_then_kill() {
    let mut desk = Desk::new(1, &[]);
    desk.jobs(vec![batch("a", 1, |spec| spec.timeout_s = Some(Seconds::new(10)))]);
    let id = desk.started[0].id;
    desk.ms = 500;
    desk.step(Event::Spawned(id));
    assert_eq!(desk.core.next_wake(), Some(Millis(10_500)));
    desk.ms = 10_500;
    desk.step(Event::Tick);
    assert_eq!(desk.signals, [(id, false)]);
    desk.ms += GRACE_MS;
    desk.step(Event::Tick);
    desk.step(Event::Tick);
    assert_eq!(desk.signals, [(id, false), (id, true)]);
    desk.exit(id);
    let Became::Ended(ending) = desk.became()[0] else { panic!() };
    assert_eq!(ending.reason.as_deref(), Some(reason::TIMEOUT));
    assert_eq!(ending.ran_s, Seconds::from_ms(15_000));
}

#[test]
fn a_job_that_is_cancelled_while_it_starts_is_ended_once_it_runs() {
    let mut desk = Desk::new(1, &[]);
    let job = batch("a", 1, |_| {});
    desk.jobs(vec![job.clone()]);
    let id = desk.started[0].id;
    desk.stop(vec![all(&job)], StopWhy::Cancelled);
    assert!(desk.signals.is_empty());
    desk.step(Event::Spawned(id));
    assert_eq!(desk.signals, [(id, false)]);
    // Somebody cancelled it before it was seen to be stale: nobody waits for it.
    desk.stop(vec![all(&job)], StopWhy::Stale);
    desk.exit(id);
    assert!(desk.reports.is_empty());
}

#[test]
fn a_lease_grows_with_the_job_and_stands_still_while_nobody_is_there() {
    let mut desk = Desk::new(3, &[]);
    desk.jobs(vec![
        batch("old", 1, |_| {}),
        batch("own", 1, |spec| spec.lost_after_s = Some(Seconds::new(7))),
    ]);
    for id in [1, 2] {
        desk.step(Event::Spawned(id));
    }
    desk.ms = 1_000_000;
    desk.jobs(vec![batch("young", 1, |_| {})]);
    desk.step(Event::Spawned(3));
    let state = desk.core.state(now(desk.ms));
    assert_eq!(state.first_lost_after, Some(Seconds::new(7)));
    assert_eq!(state.last_lost_after, Some(Seconds::new(100)));
    desk.step(Event::Detached);
    let mut at = |ms: u64| {
        desk.ms = 1_000_000 + ms;
        desk.step(Event::Tick);
        desk.signals.iter().filter(|s| !s.1).map(|s| s.0).collect::<Vec<_>>()
    };
    assert_eq!(at(6_999), [] as [JobId; 0]);
    assert_eq!(at(7_000), [2]);
    assert_eq!(at(29_999), [2]);
    assert_eq!(at(30_000), [2, 3]);
    assert_eq!(at(99_999), [2, 3]);
    assert_eq!(at(100_000), [2, 3, 1]);
}

#[test]
fn a_worker_that_comes_back_in_time_stops_the_clock() {
    let mut desk = Desk::new(1, &[]);
    desk.jobs(vec![batch("a", 2, |_| {})]);
    desk.step(Event::Spawned(1));
    desk.step(Event::Detached);
    desk.ms = 29_000;
    desk.step(Event::Attached(Box::new(settings(1, &[]))));
    desk.ms = 40_000;
    desk.step(Event::Tick);
    assert!(desk.signals.is_empty() && desk.reports.is_empty());
    desk.step(Event::Detached);
    desk.ms = 69_000;
    desk.step(Event::Tick);
    assert!(desk.signals.is_empty());
    desk.ms = 70_000;
    desk.step(Event::Tick);
    assert_eq!(desk.signals, [(1, false)]);
    assert!(matches!(desk.became()[..], [Became::Returned { .. }]));
}

#[test]
fn an_answer_of_a_scheduler_that_is_over_changes_nothing() {
    let mut desk = Desk::new(1, &[]);
    desk.jobs(vec![batch("a", 1, |_| {})]);
    desk.finish();
    let ids = vec![desk.reports[0].id];
    let old = desk.core.step(now(0), Event::Answered(ids.clone(), Pair { epoch: 0, n: 99 }));
    assert!(matches!(&old[..], [Action::Repeat(again)] if *again == ids), "{old:?}");
    assert!(!desk.core.is_answered());
    let new = desk.core.step(now(0), Event::Answered(ids.clone(), Pair { epoch: 2, n: 1 }));
    assert!(matches!(&new[..], [Action::Keep(_), Action::Drop(done)] if *done == ids), "{new:?}");
    assert!(desk.core.is_answered());
    // The pair counts for requests, too.
    desk.jobs(vec![batch("b", 1, |_| {})]);
    assert!(
        matches!(desk.answers.last(), Some(Answer::Refused(r)) if r.code == code::STALE_REQUEST)
    );
}

/// Jobs come, run, fail, are stopped, time out; workers come and go. The books stay true, every job is
/// started at most once, and each has one report at the end but those that nobody waits for.
#[test]
fn whatever_happens_the_books_agree() {
    for seed in 0..300_u64 {
        let mut random = fastrand::Rng::with_seed(seed);
        let mut desk = Desk::new(4, &[8, 8, 24]);
        let mut alive: Vec<JobId> = Vec::new();
        let mut started = BTreeSet::new();
        let mut asked: Vec<JobBatch> = Vec::new();
        let (mut expected, mut stale) = (0, false);
        for step in 0..200 {
            desk.ms += random.u64(0..4000);
            match random.u32(0..10) {
                0..3 => {
                    let count = random.u32(1..6);
                    let job = batch(&format!("t{step}"), count, |spec| {
                        spec.room.cpus = Cpus { milli: random.u64(0..3) * 500 };
                        spec.room.gpus = random.u64(0..3);
                        spec.vram_mib = random.u64(0..2) * 20 * u64::from(spec.room.gpus == 1);
                        spec.timeout_s = random.bool().then(|| Seconds::new(random.u64(1..20)));
                    });
                    expected += u64::from(count);
                    asked.push(job.clone());
                    // Said twice by a scheduler that had no answer.
                    desk.jobs(vec![job.clone(), job]);
                }
                3 if !asked.is_empty() => {
                    let why = if random.bool() { StopWhy::Stale } else { StopWhy::Cancelled };
                    stale |= why == StopWhy::Stale;
                    let job = all(&asked[random.usize(0..asked.len())]);
                    desk.stop(vec![job], why);
                }
                4 => desk.step(Event::Detached),
                5 => desk.step(Event::Attached(Box::new(settings(4, &[8, 8, 24])))),
                6..9 if !alive.is_empty() => {
                    let id = alive.swap_remove(random.usize(0..alive.len()));
                    if random.u32(0..5) == 0 && desk.core.running[&id].phase == Phase::Starting {
                        let why = NotSpawned { exit_code: Some(127), why: "no".to_owned() };
                        desk.step(Event::NotSpawned(id, why));
                    } else {
                        desk.step(Event::Spawned(id));
                        let exit = Exit { code: Some(random.i32(0..2)), ..Exit::default() };
                        desk.step(Event::Exited(id, exit));
                    }
                }
                _ => desk.step(Event::Tick),
            }
            if random.bool() {
                for (id, ending) in std::mem::take(&mut desk.cleaned) {
                    desk.step(Event::Gone(id, ending));
                }
            }
            for job in std::mem::take(&mut desk.started) {
                let name = (job.shared.task.clone(), job.index);
                assert!(started.insert(name), "started twice, seed {seed}");
                alive.push(job.id);
            }
        }
        desk.step(Event::Attached(Box::new(settings(4, &[8, 8, 24]))));
        while !desk.core.is_idle() {
            for (id, ending) in std::mem::take(&mut desk.cleaned) {
                desk.step(Event::Gone(id, ending));
            }
            alive.extend(std::mem::take(&mut desk.started).iter().map(|job| job.id));
            for id in std::mem::take(&mut alive) {
                desk.step(Event::Spawned(id));
                desk.step(Event::Exited(id, Exit { code: Some(0), ..Exit::default() }));
            }
        }
        let mut reported = BTreeMap::new();
        for report in &desk.reports {
            for index in report.entry.jobs.indices.iter() {
                *reported.entry((report.entry.jobs.task.clone(), index)).or_insert(0) += 1;
            }
        }
        assert!(reported.values().all(|n| *n == 1), "reported twice, seed {seed}");
        if !stale {
            assert_eq!(reported.len() as u64, expected, "seed {seed}");
        }
        assert_eq!(desk.core.used, Room::default(), "seed {seed}");
    }
}
