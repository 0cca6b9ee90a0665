//! What a scheduler decides, case by case. The protocol itself is tried in seeded worlds.

use super::{
    Settings,
    core::{Action, ClientReply, ClientRequest, Core, Event, NodeAnswer, NodeRequest},
};
use schemas::{
    amount::{Cpus, Room},
    fact::{Accepted, EpochFact, Fact},
    id::{InstanceId, Seq, WorkId},
    indices::Indices,
    job::{Became, HeldAnswer, JobRef, JobsAnswer, JobsRequest, Pair, Report, ReportEntry},
    node::{Beat, Card, Digest, Inventory, NodeState},
    outcome::{Ending, IndexState, WorkState},
    request::{Explain, Explained, NodeChange},
    subject,
    time::{Millis, Now, Seconds, Stamp},
    token::{CallerName, NodeName, OwnerName, PoolName, TaskName},
};
use std::{collections::BTreeMap, sync::Arc};
use uuid::Uuid;

const WALL: u64 = 1_800_000_000_000;

/// A scheduler, a journal that stores at once, and nodes that take what they are asked.
struct Desk {
    core: Core,
    now: u64,
    seq: Seq,
    works: u128,
    facts: Vec<Fact>,
    asked: Vec<(NodeName, JobsRequest)>,
    replies: Vec<ClientReply>,
}

fn name(text: &str) -> NodeName {
    NodeName::new(text).unwrap()
}

fn room(cpus: u64, gpus: u64) -> Room {
    Room { cpus: Cpus::new(cpus), memory_mib: 8192, gpus, ..Room::default() }
}

impl Desk {
    fn new(nodes: &[(&str, Room)]) -> Self {
        let core = Core::new(PoolName::main(), Settings::default(), 1);
        let mut desk = Self {
            core,
            now: 1000,
            seq: 0,
            works: 0,
            facts: Vec::new(),
            asked: Vec::new(),
            replies: Vec::new(),
        };
        let seq = desk.store(None, Fact::Epoch(EpochFact { epoch: 7, by: "me".to_owned() }));
        desk.step(Event::Won { epoch: 7, seq });
        desk.step(Event::Tick);
        for (node, room) in nodes {
            desk.beat(node, room);
        }
        desk
    }

    fn instance(node: &NodeName) -> InstanceId {
        InstanceId(Uuid::from_u128(node.as_str().bytes().fold(0, |n, b| n << 8 | u128::from(b))))
    }

    fn beat(&mut self, node: &str, total: &Room) {
        self.beat_as(node, total, false);
    }

    fn beat_as(&mut self, node: &str, total: &Room, closing: bool) {
        let node = name(node);
        let card = Card { vram_mib: 8192, ..Card::default() };
        let cards = vec![card; total.gpus as usize];
        self.step(Event::Beat(Box::new(Beat {
            instance: Self::instance(&node),
            node,
            pool: PoolName::main(),
            site: None,
            at: Stamp(WALL + self.now),
            since: Stamp(WALL),
            total: total.clone(),
            used: Room::default(),
            inventory: Arc::new(Inventory { cards, ..Inventory::default() }),
            digest: Digest { running: 1, ..Digest::default() },
            highest: Pair::default(),
            closing,
            leaving: false,
            version: String::new(),
        })));
    }

    fn store(&mut self, owner: Option<OwnerName>, fact: Fact) -> Seq {
        self.seq += 1;
        let seq = self.seq;
        let at = Stamp(WALL + self.now);
        self.facts.push(fact.clone());
        self.step(Event::Fact { seq, at, owner, fact: Arc::new(fact) });
        seq
    }

    fn step(&mut self, event: Event) {
        let now = Now { at: Millis(self.now), wall: Stamp(WALL + self.now) };
        let actions = self.core.step(now, [event]);
        self.core.audit().unwrap();
        for action in actions {
            match action {
                Action::Append { subject, fact, .. } => {
                    let owner = subject::parse_fact(&subject).unwrap().owner;
                    self.store(owner, Fact::clone(&fact));
                }
                Action::Ask { n, node, request } => {
                    let answer = match request {
                        NodeRequest::Held(r) => NodeAnswer::Held(HeldAnswer {
                            instance: r.ask.instance,
                            jobs: Vec::new(),
                            highest: Pair::default(),
                        }),
                        NodeRequest::Stop(_) => NodeAnswer::Stop(Default::default()),
                        NodeRequest::Jobs(r) => {
                            self.asked.push((node, r));
                            NodeAnswer::Jobs(JobsAnswer::default())
                        }
                    };
                    self.step(Event::Answered { n, answer: Ok(answer) });
                }
                Action::Answer { reply, .. } => self.replies.push(reply),
                _ => {}
            }
        }
    }

    fn later(&mut self, ms: u64) {
        self.now += ms;
        self.step(Event::Tick);
    }

    fn accept(&mut self, spec: &str) -> WorkId {
        self.works += 1;
        let work = WorkId(Uuid::from_u128(self.works));
        let spec = Arc::new(serde_json::from_str(spec).unwrap());
        let by = CallerName::owner();
        self.store(Some(OwnerName::owner()), Fact::Accepted(Accepted { work, by, spec }));
        work
    }

    /// How many indices each node was asked to run since the last time.
    fn asked(&mut self) -> BTreeMap<String, u64> {
        let mut out = BTreeMap::new();
        for (node, request) in std::mem::take(&mut self.asked) {
            for batch in request.jobs {
                *out.entry(node.to_string()).or_default() += batch.indices.len();
            }
        }
        out
    }

    fn report(&mut self, node: &str, work: WorkId, indices: Indices, ran_ms: u64, fails: bool) {
        let node = name(node);
        let known = self.core.fold().work(work).unwrap();
        let attempt = known.tasks[0].last.get(indices.min().unwrap()).unwrap().attempt;
        let task = known.tasks[0].spec.name.clone();
        let mut ending = Ending::new(if fails { IndexState::Failed } else { IndexState::Finished });
        ending.ran_s = Seconds::from_ms(ran_ms);
        let entry = ReportEntry {
            owner: OwnerName::owner(),
            jobs: JobRef { work, task, attempt, indices },
            epoch: 7,
            instance: Self::instance(&node),
            became: Became::Ended(Box::new(ending)),
            ago_s: Seconds::default(),
        };
        let report = Box::new(Report { entries: vec![entry], failed: Vec::new() });
        self.step(Event::Report { token: 1, node, report });
    }

    fn why(&self, work: WorkId) -> String {
        self.core.summary(work).unwrap().why.unwrap_or_default()
    }

    fn explain(&mut self, work: WorkId, task: Option<&str>) -> Explained {
        let task = task.map(|task| TaskName::new(task).unwrap());
        self.client(ClientRequest::Explain(Explain { work: Some(work), task, node: None }));
        match self.replies.pop() {
            Some(ClientReply::Explained(explained)) => explained,
            other => panic!("{other:?}"),
        }
    }

    fn client(&mut self, request: ClientRequest) {
        self.step(Event::Client { token: 9, by: CallerName::owner(), request });
    }
}

fn process(count: u32, more: &str) -> String {
    format!(
        r#"{{"tasks":[{{"name":"a","run":{{"process":{{"argv":["x"]}}}},"array":{{"count":{count}}}{more}}}]}}"#
    )
}

fn asked(all: &[(&str, u64)]) -> BTreeMap<String, u64> {
    all.iter().map(|(node, count)| ((*node).to_owned(), *count)).collect()
}

#[test]
fn a_node_gets_what_it_has_room_for_and_the_rest_waits_and_says_so() {
    let mut desk = Desk::new(&[("big", room(4, 0)), ("small", room(2, 0))]);
    let work = desk.accept(&process(10, ""));
    assert_eq!(desk.asked(), asked(&[("big", 4), ("small", 2)]));
    let second = desk.accept(&process(1, ""));
    assert_eq!(desk.why(second), "no node has room; nearest: big lacks 1 cpu now");
    desk.report("small", work, Indices::span(0, 1), 60_000, false);
    assert_eq!(desk.asked(), asked(&[("small", 2)]), "who came first goes first");
}

#[test]
fn what_needs_no_cards_stays_off_the_node_that_has_some_while_others_have_room() {
    let mut desk = Desk::new(&[("cards", room(4, 1)), ("plain", room(4, 0))]);
    desk.accept(&process(4, ""));
    assert_eq!(desk.asked(), asked(&[("plain", 4)]));
    desk.accept(&process(1, r#","resources":{"gpus":1,"vram_mib":8000}"#));
    assert_eq!(desk.asked(), asked(&[("cards", 1)]));
    desk.accept(&process(1, ""));
    assert_eq!(desk.asked(), asked(&[("cards", 1)]), "there is no other");
}

#[test]
fn short_jobs_may_wait_on_the_node_once_it_is_known_that_they_are_short() {
    let mut desk = Desk::new(&[("one", room(2, 0))]);
    let work = desk.accept(&process(1000, ""));
    assert_eq!(desk.asked(), asked(&[("one", 2)]));
    desk.report("one", work, Indices::one(0), 10, false);
    let ahead = desk.asked()["one"];
    assert!((20..=60).contains(&ahead), "200 ms of 10 ms on two cores: {ahead}");
    let mut slow = Desk::new(&[("one", room(2, 0))]);
    let work = slow.accept(&process(1000, ""));
    slow.asked();
    slow.report("one", work, Indices::one(0), 5_000, false);
    assert_eq!(slow.asked(), asked(&[("one", 1)]), "long ones do not");
}

#[test]
fn echoes_are_bounded_by_how_many_a_node_may_have() {
    let mut desk = Desk::new(&[("a", room(1, 0)), ("b", room(1, 0))]);
    let spec = r#"{"tasks":[{"name":"a","run":{"echo":""},"array":{"count":100000}}]}"#;
    let work = desk.accept(spec);
    assert_eq!(desk.asked(), asked(&[("a", 16384), ("b", 16384)]));
    let live = desk.core.fold().work(work).unwrap().tasks[0].live.clone();
    let mine = |node: &str| {
        let id = Desk::instance(&name(node));
        live.runs().filter(|r| r.2.instance == id).fold(Indices::new(), |mut all, (a, b, _)| {
            all.insert_span(a, b);
            all
        })
    };
    desk.report("a", work, mine("a"), 0, false);
    assert_eq!(desk.asked(), asked(&[("a", 16384)]));
}

#[test]
fn the_higher_priority_goes_first_and_is_not_starved_by_small_ones() {
    let mut desk = Desk::new(&[("one", room(4, 0))]);
    let small = desk.accept(&process(100, ""));
    assert_eq!(desk.asked(), asked(&[("one", 4)]));
    let spec = process(1, r#","resources":{"cpus":4}"#);
    let large = desk.accept(&spec.replacen('{', r#"{"priority":5,"#, 1));
    for index in 0..3 {
        desk.report("one", small, Indices::one(index), 5000, false);
        assert_eq!(desk.asked(), asked(&[]), "the node is kept free");
    }
    desk.report("one", small, Indices::one(3), 5000, false);
    assert_eq!(desk.asked(), asked(&[("one", 1)]));
    assert!(desk.core.fold().work(large).unwrap().has_live());
}

#[test]
fn a_failure_is_tried_again_after_a_pause_that_doubles_and_then_it_has_failed() {
    let mut desk = Desk::new(&[("one", room(4, 0))]);
    let work = desk.accept(&process(1, r#","retries":2"#));
    for (least, most) in [(800, 1200), (1600, 2400)] {
        desk.report("one", work, Indices::one(0), 1, true);
        let Some(Fact::Ended(ended)) = desk.facts.last() else { panic!("{:?}", desk.facts) };
        let pause = ended.entries[0].again_s.unwrap().ms;
        assert!((least..=most).contains(&pause), "{pause}");
        desk.asked();
        assert!(desk.why(work).contains("is tried again in"), "{}", desk.why(work));
        desk.later(pause - 1);
        desk.beat("one", &room(4, 0));
        assert!(desk.asked().is_empty());
        desk.later(100);
        assert_eq!(desk.asked(), asked(&[("one", 1)]));
    }
    desk.report("one", work, Indices::one(0), 1, true);
    assert_eq!(desk.core.fold().work(work).unwrap().state, WorkState::Failed);
}

#[test]
fn a_silent_node_loses_its_jobs_only_after_the_lease() {
    let mut desk = Desk::new(&[("one", room(4, 0))]);
    let work = desk.accept(&process(1, ""));
    for _ in 0..34 {
        desk.later(1000);
    }
    assert_eq!(desk.core.fold().work(work).unwrap().tasks[0].lost, 0);
    desk.later(1000);
    assert_eq!(desk.core.fold().work(work).unwrap().tasks[0].lost, 1);
}

#[test]
fn a_scheduler_that_slept_gives_every_node_a_whole_lease() {
    let mut desk = Desk::new(&[("one", room(4, 0))]);
    let work = desk.accept(&process(1, ""));
    desk.later(3_600_000);
    assert_eq!(desk.core.fold().work(work).unwrap().tasks[0].lost, 0);
}

#[test]
fn one_sentence_says_why_in_every_case() {
    let mut desk = Desk::new(&[]);
    let spec = r#"{"tasks":[{"name":"a","run":{"process":{"argv":["x"]}}},
        {"name":"b","needs":["a"],"run":{"echo":""}}]}"#;
    let work = desk.accept(spec);
    assert_eq!(desk.why(work), "no node of the pool main is up");
    desk.client(ClientRequest::Pause);
    assert_eq!(desk.why(work), "the pool is paused (by owner)");
    desk.beat("one", &room(4, 0));
    assert!(desk.asked().is_empty(), "paused");
    desk.client(ClientRequest::Drain(NodeChange { node: name("one") }));
    desk.client(ClientRequest::Resume);
    assert_eq!(desk.why(work), "every node that could run it is drained (one)");
    desk.client(ClientRequest::Undrain(NodeChange { node: name("one") }));
    assert_eq!(desk.asked(), asked(&[("one", 1)]));
    desk.replies.clear();
    let explain = Explain { work: Some(work), ..Explain::default() };
    desk.client(ClientRequest::Explain(explain));
    let [ClientReply::Explained(explained)] = &desk.replies[..] else {
        panic!("{:?}", desk.replies)
    };
    assert_eq!(
        explained.why,
        "`a`: 1 on one, the node with room for 1 cpu that it fits most snugly"
    );
    assert_eq!(explained.more, ["`b` needs `a`"]);
}

#[test]
fn what_has_ended_says_where_and_what_was_skipped_says_for_what() {
    let mut desk = Desk::new(&[("one", room(1, 0)), ("two", room(2, 0))]);
    let work = desk.accept(&process(3, ""));
    desk.report("one", work, Indices::one(0), 10, false);
    desk.report("two", work, Indices::span(1, 2), 10, false);
    let at = Stamp(WALL + desk.now);
    let explained = desk.explain(work, None);
    assert_eq!(explained.why, format!("it finished: 1 on one, 2 on two, at {at}"));
    assert!(explained.more.is_empty(), "{explained:?}");
    assert_eq!(desk.explain(work, Some("a")).why, "it finished: 1 on one, 2 on two");

    let spec = r#"{"tasks":[{"name":"a","run":{"process":{"argv":["x"]}}},
        {"name":"b","needs":["a"],"run":{"echo":""}}]}"#;
    let work = desk.accept(spec);
    desk.report("one", work, Indices::one(0), 10, true);
    let skipped = desk.explain(work, Some("b"));
    assert_eq!(skipped.why, "it needs `a`, which did not finish");
    assert!(skipped.more.is_empty(), "{skipped:?}");
    let all = desk.explain(work, None).more;
    let line = "`b` did not run: it needs `a`, which did not finish";
    assert!(all.iter().any(|one| one == line), "{all:?}");
}

#[test]
fn what_runs_on_a_silent_node_says_how_long_it_is_waited_for() {
    let mut desk = Desk::new(&[("second", room(4, 0))]);
    let work = desk.accept(&process(1, ""));
    assert_eq!(desk.why(work), "");
    for _ in 0..11 {
        desk.later(1000);
    }
    let said = "second was not heard for 11 s; its jobs are given up after 35 s of silence";
    assert_eq!(desk.why(work), said);
    assert_eq!(desk.explain(work, None).why, said);
    assert_eq!(desk.explain(work, Some("a")).why, said);
    desk.beat("second", &room(4, 0));
    assert_eq!(desk.why(work), "");
}

#[test]
fn a_node_that_is_about_to_leave_gets_nothing_new() {
    let mut desk = Desk::new(&[("one", room(4, 0))]);
    desk.beat_as("one", &room(4, 0), true);
    let work = desk.accept(&process(1, ""));
    assert!(desk.asked().is_empty());
    assert_eq!(desk.why(work), "one is leaving");
    desk.client(ClientRequest::Nodes);
    let Some(ClientReply::Nodes(reply)) = desk.replies.pop() else { panic!() };
    let shown = (reply.nodes[0].state, reply.nodes[0].why.as_deref());
    assert_eq!(shown, (NodeState::Drained, Some("one is leaving")));
    desk.beat("two", &room(4, 0));
    assert_eq!(desk.asked(), asked(&[("two", 1)]));
}

#[test]
fn many_single_works_are_one_write_and_one_question() {
    let mut desk = Desk::new(&[("one", room(4, 0))]);
    desk.client(ClientRequest::Pause);
    for _ in 0..500 {
        desk.accept(r#"{"tasks":[{"name":"a","run":{"echo":"x"}}]}"#);
    }
    let before = desk.facts.len();
    desk.client(ClientRequest::Resume);
    assert_eq!(desk.asked.len(), 1);
    assert_eq!(desk.asked(), asked(&[("one", 500)]));
    let written: Vec<&str> = desk.facts[before..].iter().map(Fact::kind).collect();
    assert_eq!(written, ["resumed", "assigned"]);
}
