//! The manager's promises, told to a core whose writes go into a small journal.

use super::*;
use schemas::{
    amount::{Cpus, Room},
    fact::{Accepted, Assigned, AssignedEntry, Ended, EndedEntry, LostEntry},
    id::InstanceId,
    node::{Inventory, NodeState},
    outcome::{Ending, IndexState, WorkState},
};

/// A core, the journal it writes to, and who was answered what.
struct World {
    core: Core,
    journal: Vec<(String, Arc<Fact>)>,
    answers: BTreeMap<Ticket, Answer>,
    acknowledged: Vec<Ticket>,
    later: Vec<Ticket>,
    explained: Vec<Ticket>,
    followed: Vec<WorkId>,
    now: Now,
    ticket: Ticket,
    /// Writes that get no answer, or none with success.
    broken: Option<WriteError>,
    /// What is written is stored, but not shown to the core yet.
    hidden: bool,
    shown: usize,
    nodes: Option<Vec<NodeView>>,
    nodes_asked: usize,
}

impl World {
    fn new() -> Self {
        let limits = Limits {
            max_body: MAX_BODY,
            held_per_caller: 3,
            follows_per_caller: 2,
            parts_waiting: 4,
        };
        Self {
            core: Core::new(&[PoolName::main()], limits),
            journal: Vec::new(),
            answers: BTreeMap::new(),
            acknowledged: Vec::new(),
            later: Vec::new(),
            explained: Vec::new(),
            followed: Vec::new(),
            now: Now { at: Millis(1_000_000), wall: Stamp(1_795_405_323_120) },
            ticket: 0,
            broken: None,
            hidden: false,
            shown: 0,
            nodes: None,
            nodes_asked: 0,
        }
    }

    fn step(&mut self, event: Event) {
        let actions = self.core.step(self.now, event);
        for action in actions {
            self.perform(action);
        }
    }

    fn perform(&mut self, action: Action) {
        match action {
            Action::Answer { ticket, answer } => {
                assert!(self.answers.insert(ticket, answer).is_none(), "answered twice");
            }
            Action::Write { write, subject, body, first } => {
                if let Some(error) = self.broken.clone() {
                    return self.step(Event::Written { write, result: Err(error) });
                }
                if first && self.journal.iter().any(|(at, _)| *at == subject) {
                    let result = Err(WriteError::Conflict);
                    return self.step(Event::Written { write, result });
                }
                let kind = subject.rsplit('.').next().unwrap();
                let fact = Fact::from_json(kind, &body).unwrap();
                self.journal.push((subject, Arc::new(fact)));
                // The acknowledgement comes before the fold shows it.
                let seq = self.journal.len() as Seq;
                self.step(Event::Written { write, result: Ok(seq) });
                self.show();
            }
            Action::Reach => {
                let ends = BTreeMap::from([(PoolName::main(), self.journal.len() as Seq)]);
                self.step(Event::Reach { ends });
            }
            Action::Read { ticket, seq, .. } => {
                let fact = self.journal.get(seq as usize - 1).map(|(_, fact)| fact.clone());
                self.step(Event::Read { ticket, fact });
            }
            Action::AskNodes { pool } => {
                self.nodes_asked += 1;
                let nodes = self.nodes.clone();
                self.step(Event::Nodes { pool, nodes });
            }
            Action::Explain { ticket, got, .. } => {
                self.explained.push(ticket);
                self.answers.insert(ticket, Answer::Got(got));
            }
            Action::Collect { ticket, mut plan, run, .. } => {
                while let Some(seq) = plan.needs() {
                    let fact = self.journal.get(seq as usize - 1).map(|(_, fact)| fact.clone());
                    plan.feed(seq, fact.as_deref());
                }
                let page = plan.page();
                let answer = match run {
                    None => Answer::Outcomes(page),
                    Some(summary) => {
                        let outcome = page.items.into_iter().next().map(Into::into);
                        Answer::Run(Box::new(RunReply { summary: *summary, outcome }))
                    }
                };
                self.answers.insert(ticket, answer);
            }
            Action::Follow { work, .. } => self.followed.push(work),
            Action::Acknowledge { ticket } => self.acknowledged.push(ticket),
            Action::Later { ticket } => self.later.push(ticket),
            Action::News { .. } => {}
        }
    }

    /// Shows the core everything that is stored.
    fn show(&mut self) {
        if self.hidden {
            return;
        }
        while self.shown < self.journal.len() {
            let (subject, fact) = self.journal[self.shown].clone();
            self.shown += 1;
            let owner = schemas::subject::parse_fact(&subject).unwrap().owner;
            self.step(Event::Stored {
                pool: PoolName::main(),
                seq: self.shown as Seq,
                at: self.now.wall,
                owner,
                fact,
            });
        }
    }

    /// Somebody else writes.
    fn tell(&mut self, work: Option<WorkId>, fact: Fact) {
        let subject =
            schemas::subject::fact(&PoolName::main(), &OwnerName::owner(), work, fact.kind());
        self.journal.push((subject, Arc::new(fact)));
        self.show();
    }

    fn ask_as(&mut self, caller: &str, verb: &str, json: &str) -> Ticket {
        self.ticket += 1;
        let encoding = schemas::codec::Encoding::Json;
        let request = crate::manager::ingress::request(verb, encoding, json.as_bytes()).unwrap();
        self.step(Event::Asked {
            ticket: self.ticket,
            caller: CallerName::new(caller).unwrap(),
            request,
            fresh: Uuid::from_u128(
                0x0198_f0c2_7b5e_7000_8000_0000_0000_0000 | u128::from(self.ticket),
            ),
        });
        self.ticket
    }

    fn ask(&mut self, verb: &str, json: &str) -> Ticket {
        self.ask_as("owner", verb, json)
    }

    fn json(&self, ticket: Ticket) -> serde_json::Value {
        match &self.answers[&ticket] {
            Answer::Refused(refusal) => panic!("refused: {refusal:?}"),
            answer => serde_json::to_value(answer).unwrap(),
        }
    }

    fn asked(&mut self, verb: &str, json: &str) -> serde_json::Value {
        let ticket = self.ask(verb, json);
        self.json(ticket)
    }

    fn refusal(&self, ticket: Ticket) -> &Refusal {
        match &self.answers[&ticket] {
            Answer::Refused(refusal) => refusal,
            answer => panic!("not refused: {answer:?}"),
        }
    }

    fn refused(&mut self, verb: &str, json: &str) -> Refusal {
        let ticket = self.ask(verb, json);
        self.refusal(ticket).clone()
    }

    fn submit(&mut self, json: &str) -> WorkId {
        let answer = self.asked("submit", json);
        answer["work"].as_str().unwrap().parse().unwrap()
    }

    fn assign(&mut self, work: WorkId, task: &str, indices: Indices, attempt: u32) {
        let fact = Fact::Assigned(Assigned {
            epoch: 1,
            entries: vec![AssignedEntry {
                work,
                task: task.parse().unwrap(),
                indices,
                attempt,
                node: "m4".parse().unwrap(),
                instance: InstanceId(Uuid::from_u128(9)),
            }],
        });
        self.tell(None, fact);
    }

    fn end(&mut self, work: WorkId, task: &str, indices: Indices, ending: Ending) {
        let entry = EndedEntry {
            work,
            task: task.parse().unwrap(),
            indices,
            attempt: 1,
            ending,
            again_s: None,
        };
        self.tell(None, Fact::Ended(Ended { epoch: 1, entries: vec![entry] }));
    }

    fn run_to(&mut self, work: WorkId, state: IndexState) {
        self.assign(work, "main", Indices::one(0), 1);
        let mut ending = Ending::new(state);
        ending.stdout = "hi\n".into();
        ending.stdout_bytes = 3;
        ending.exit_code = Some(i32::from(state != IndexState::Finished));
        self.end(work, "main", Indices::one(0), ending);
    }

    fn pass(&mut self, ms: u64) {
        self.now.at = self.now.at + ms;
        self.now.wall = self.now.wall.plus_ms(ms);
        self.step(Event::Tick);
    }
}

/// What one message may hold.
const MAX_BODY: usize = 1008 * 1024;
const ECHO: &str = r#"{"run":{"echo":"hi"}}"#;
const ID: &str = "0198f0c2-7b5e-7cc3-98c4-dc0c0c07398f";

fn echo_with(fields: &str) -> String {
    format!(r#"{{"run":{{"echo":"hi"}},{fields}}}"#)
}

#[test]
fn a_submit_is_answered_when_it_is_stored_and_seen() {
    let mut world = World::new();
    world.hidden = true;
    let ticket = world.ask("submit", ECHO);
    assert!(!world.answers.contains_key(&ticket), "stored, but the own fold does not show it");
    world.hidden = false;
    world.show();
    let answer = world.json(ticket);
    assert_eq!(answer["state"], "waiting");
    assert_eq!(answer["owner"], "owner");
    assert!(answer["submitted_at"].is_string());
}

#[test]
fn the_same_submit_twice_is_one_work() {
    let mut world = World::new();
    let spec = echo_with(&format!(r#""work":"{ID}""#));
    let first = world.submit(&spec);
    assert_eq!(world.submit(&spec), first);
    assert_eq!(world.journal.len(), 1);
    let other = echo_with(&format!(r#""work":"{ID}","priority":3"#));
    let refusal = world.refused("submit", &other);
    assert_eq!((&*refusal.code, refusal.field.as_deref()), (code::ID_TAKEN, Some("work")));
}

#[test]
fn two_managers_given_one_id_agree_on_who_was_first() {
    let mut world = World::new();
    world.hidden = true;
    // Another manager has stored it, and this one's fold is behind.
    let spec = |priority: i32| {
        let submit: Submit =
            serde_json::from_str(&echo_with(&format!(r#""priority":{priority}"#))).unwrap();
        Arc::new(schemas::work::check::normalise(submit).unwrap())
    };
    let work: WorkId = ID.parse().unwrap();
    let by = CallerName::owner();
    let fact = Fact::Accepted(Accepted { work, by, spec: spec(1) });
    world.tell(Some(work), fact);
    let same = world.ask("submit", &echo_with(&format!(r#""work":"{ID}","priority":1"#)));
    let other = world.ask("submit", &echo_with(&format!(r#""work":"{ID}","priority":2"#)));
    assert!(world.answers.is_empty());
    world.hidden = false;
    world.show();
    assert_eq!(world.json(same)["work"], ID);
    assert_eq!(&*world.refusal(other).code, code::ID_TAKEN);
}

#[test]
fn what_cannot_be_stored_is_said_and_nothing_is_known_of_it() {
    for (error, expected) in [
        (WriteError::Full("store".to_owned()), code::DISK_FULL),
        (WriteError::Unknown("silence".to_owned()), code::NOT_STORED),
    ] {
        let mut world = World::new();
        world.broken = Some(error);
        let refusal = world.refused("submit", ECHO);
        assert_eq!(&*refusal.code, expected);
        assert!(refusal.hint.is_some());
        world.broken = None;
        assert_eq!(world.asked("list", "")["works"], serde_json::json!([]));
    }
}

#[test]
fn a_write_that_the_fold_never_shows_is_not_waited_for_for_ever() {
    let mut world = World::new();
    world.hidden = true;
    let ticket = world.ask("submit", ECHO);
    world.pass(PATIENCE_MS);
    assert_eq!(&*world.refusal(ticket).code, code::NOT_STORED);
}

#[test]
fn a_work_larger_than_a_message_is_told_to_come_in_parts() {
    let mut world = World::new();
    let items: Vec<String> = (0..300).map(|n| format!("\"{n}{}\"", "x".repeat(4000))).collect();
    let spec = echo_with(&format!(r#""array":{{"items":[{}]}}"#, items.join(",")));
    let refusal = world.refused("submit", &spec);
    assert_eq!(&*refusal.code, code::TOO_LARGE);
    assert!(refusal.hint.as_ref().unwrap().contains("\"open\": true"), "{refusal:?}");
    assert!(world.journal.is_empty());
}

#[test]
fn run_is_held_until_the_end_and_brings_the_outcome() {
    let mut world = World::new();
    let ticket = world.ask("run", ECHO);
    assert!(!world.answers.contains_key(&ticket));
    let (_, fact) = world.journal[0].clone();
    world.run_to(fact.works()[0], IndexState::Failed);
    let answer = world.json(ticket);
    assert_eq!(answer["state"], "failed");
    assert_eq!(answer["stdout"], "hi\n");
    assert_eq!(answer["exit_code"], 1);
    assert_eq!(answer["attempt"], 1);
}

#[test]
fn run_of_a_work_that_has_ended_reads_the_outcome_again() {
    let mut world = World::new();
    let spec = echo_with(&format!(r#""work":"{ID}""#));
    let work = world.submit(&spec);
    world.run_to(work, IndexState::Finished);
    let answer = world.asked("run", &spec);
    assert_eq!((&answer["state"], &answer["stdout"]), (&"finished".into(), &"hi\n".into()));
}

#[test]
fn run_of_a_job_that_was_cancelled_before_it_started_says_so() {
    let mut world = World::new();
    let ticket = world.ask("run", &echo_with(r#""name":"x""#));
    world.asked("cancel", r#"{"work":"x"}"#);
    let answer = world.json(ticket);
    assert_eq!(answer["state"], "cancelled");
    assert_eq!(answer["reason"], "cancelled");
    assert_eq!(answer["attempt"], 0);
}

#[test]
fn a_held_answer_that_runs_out_is_the_summary_as_it_stands() {
    let mut world = World::new();
    let work = world.submit(ECHO);
    let ticket = world.ask("wait", &format!(r#"{{"work":"{work}","hold_s":2}}"#));
    world.pass(1999);
    assert!(!world.answers.contains_key(&ticket));
    world.pass(1);
    assert_eq!(world.json(ticket)["state"], "waiting");
}

#[test]
fn a_manager_that_stops_answers_who_is_held_and_takes_nothing_more() {
    let mut world = World::new();
    let work = world.submit(ECHO);
    let wait = world.ask("wait", &format!(r#"{{"work":"{work}"}}"#));
    let run = world.ask("run", ECHO);
    world.step(Event::Stopping);
    assert_eq!(world.json(wait)["state"], "waiting");
    assert_eq!(world.json(run)["state"], "waiting");
    assert_eq!(&*world.refused("submit", ECHO).code, code::NOT_READY);
}

#[test]
fn who_holds_too_much_is_refused_and_others_are_not() {
    let mut world = World::new();
    let work = world.submit(ECHO);
    let wait = format!(r#"{{"work":"{work}"}}"#);
    for _ in 0..3 {
        world.ask("wait", &wait);
    }
    assert_eq!(&*world.refused("wait", &wait).code, code::BUSY);
    let other = world.ask_as("anna", "run", ECHO);
    assert!(!world.answers.contains_key(&other), "held");
    world.run_to(work, IndexState::Finished);
    world.ask("run", ECHO);
}

#[test]
fn a_work_is_found_by_id_beginning_name_and_last() {
    let mut world = World::new();
    let first = world.submit(&echo_with(&format!(r#""name":"thumbs","work":"{ID}""#)));
    let second = world.submit(&echo_with(r#""name":"thumbs","priority":1"#));
    for (text, expected) in [(ID, first), (&ID[..20], first), ("thumbs", second), ("@last", second)]
    {
        let answer = world.asked("get", &format!(r#"{{"work":"{text}"}}"#));
        assert_eq!(answer["work"], expected.to_string(), "{text}");
    }
    let refusal = world.refused("get", r#"{"work":"0198"}"#);
    assert_eq!(&*refusal.code, code::AMBIGUOUS_WORK);
    let refusal = world.refused("get", r#"{"work":"thumsb"}"#);
    assert_eq!(&*refusal.code, code::UNKNOWN_WORK);
    assert_eq!(refusal.hint.as_deref(), Some("did you mean `thumbs`?"));
    let hint = world.refused("get", r#"{"work":"019"}"#).hint.unwrap_or_default();
    assert!(hint.starts_with("give at least 4 characters of an id"), "{hint}");
}

#[test]
fn a_caller_sees_his_own_works_only_and_the_owner_all() {
    let mut world = World::new();
    let ticket = world.ask_as("anna", "submit", ECHO);
    let work = world.json(ticket)["work"].as_str().unwrap().to_owned();
    let get = format!(r#"{{"work":"{work}"}}"#);
    let other = world.ask_as("bob", "get", &get);
    assert_eq!(&*world.refusal(other).code, code::UNKNOWN_WORK);
    let cancel = world.ask_as("bob", "cancel", &get);
    assert_eq!(&*world.refusal(cancel).code, code::UNKNOWN_WORK);
    let list = world.ask_as("bob", "list", "");
    assert_eq!(world.json(list)["works"].as_array().unwrap().len(), 0);
    assert_eq!(world.asked("get", &get)["owner"], "anna");
    assert_eq!(world.asked("list", "")["works"].as_array().unwrap().len(), 1);
    let forged = world.ask_as("bob", "submit", &echo_with(r#""owner":"anna""#));
    assert_eq!(&*world.refusal(forged).code, code::FORBIDDEN);
}

#[test]
fn names_of_the_house_own_nothing() {
    let mut world = World::new();
    for name in ["scheduler", "manager", "epoch", "all"] {
        let refusal = world.refused("submit", &echo_with(&format!(r#""owner":"{name}""#)));
        assert_eq!(refusal.field.as_deref(), Some("owner"), "{name}");
        let ticket = world.ask_as(name, "submit", ECHO);
        assert_eq!(&*world.refusal(ticket).code, code::INVALID, "{name}");
    }
    assert!(world.journal.is_empty());
}

#[test]
fn who_holds_for_no_time_is_answered_at_once() {
    let mut world = World::new();
    let work = world.submit(ECHO);
    assert_eq!(
        world.asked("wait", &format!(r#"{{"work":"{work}","hold_s":0}}"#))["state"],
        "waiting"
    );
}

#[test]
fn what_waits_is_explained_and_what_has_ended_is_not() {
    let mut world = World::new();
    let work = world.submit(ECHO);
    let get = format!(r#"{{"work":"{work}","spec":true}}"#);
    let ticket = world.ask("get", &get);
    assert_eq!(world.explained, [ticket]);
    assert_eq!(world.json(ticket)["spec"]["tasks"][0]["run"]["echo"], "hi");
    world.run_to(work, IndexState::Finished);
    world.asked("get", &get);
    assert_eq!(world.explained.len(), 1);
}

#[test]
fn the_list_is_newest_first_filtered_and_paged() {
    let mut world = World::new();
    let works: Vec<WorkId> =
        (0..5).map(|n| world.submit(&echo_with(&format!(r#""name":"w{n}""#)))).collect();
    world.run_to(works[1], IndexState::Finished);
    let mut names = Vec::new();
    let mut from = String::new();
    loop {
        let page = world.asked("list", &format!(r#"{{"limit":2{from}}}"#));
        let page_works = page["works"].as_array().unwrap();
        names.extend(page_works.iter().map(|w| w["name"].as_str().unwrap().to_owned()));
        let Some(next) = page["next"].as_str() else { break };
        from = format!(r#","from":"{next}""#);
    }
    assert_eq!(names, ["w4", "w3", "w2", "w1", "w0"]);
    let page = world.asked("list", r#"{"states":["finished"]}"#);
    assert_eq!(page["works"][0]["name"], "w1");
    assert_eq!(page["works"].as_array().unwrap().len(), 1);
    let page = world.asked("list", r#"{"name":"3"}"#);
    assert_eq!(page["works"][0]["name"], "w3");
    assert_eq!(&*world.refused("list", r#"{"from":"x"}"#).code, code::BAD_CURSOR);
}

#[test]
fn cancel_and_retry_name_a_round_and_are_done_once() {
    let mut world = World::new();
    let work = world.submit(ECHO);
    let cancel = format!(r#"{{"work":"{work}","request":"0198f0c2-7b5e-7cc3-98c4-000000000001"}}"#);
    assert_eq!(world.asked("cancel", &cancel)["state"], "cancelled");
    let facts = world.journal.len();
    assert_eq!(world.asked("cancel", &cancel)["state"], "cancelled", "said again");
    assert_eq!(world.journal.len(), facts);
    let plain = format!(r#"{{"work":"{work}"}}"#);
    assert_eq!(&*world.refused("cancel", &plain).code, code::ENDED);
    assert_eq!(world.asked("retry", &plain)["round"], 1);
    let old = format!(r#"{{"work":"{work}","round":0}}"#);
    assert_eq!(&*world.refused("cancel", &old).code, code::WRONG_ROUND);
    assert_eq!(&*world.refused("retry", &plain).code, code::NOTHING_FAILED);
    world.run_to(work, IndexState::Finished);
    assert_eq!(&*world.refused("retry", &plain).code, code::NOTHING_FAILED);
}

#[test]
fn a_cancel_that_comes_too_late_is_told_so() {
    let mut world = World::new();
    let work = world.submit(ECHO);
    world.assign(work, "main", Indices::one(0), 1);
    world.hidden = true;
    let ending = Ending::new(IndexState::Finished);
    world.end(work, "main", Indices::one(0), ending);
    let ticket = world.ask("cancel", &format!(r#"{{"work":"{work}"}}"#));
    world.hidden = false;
    world.show();
    assert_eq!(&*world.refusal(ticket).code, code::ENDED);
}

fn open(world: &mut World) -> WorkId {
    world.submit(r#"{"open":true,"run":{"echo":"{item}"},"array":{"items":["a"]}}"#)
}

#[test]
fn parts_are_numbered_and_the_same_part_again_changes_nothing() {
    let mut world = World::new();
    let work = open(&mut world);
    let part = |n: u32, item: &str| {
        format!(r#"{{"work":"{work}","part":{n},"items":{{"task":"main","items":["{item}"]}}}}"#)
    };
    assert_eq!(world.asked("append", &part(1, "b"))["part"], 1);
    assert_eq!(world.asked("append", &part(2, "c"))["part"], 2);
    let facts = world.journal.len();
    assert_eq!(world.asked("append", &part(1, "b"))["part"], 2, "said again");
    assert_eq!(world.journal.len(), facts);
    assert_eq!(&*world.refused("append", &part(1, "x")).code, code::PART_TAKEN);
    assert_eq!(&*world.refused("append", &part(4, "d")).code, code::PART_MISSING);
    assert_eq!(&*world.refused("append", &part(0, "d")).code, code::INVALID);
    let close = |parts: u32| format!(r#"{{"work":"{work}","parts":{parts}}}"#);
    assert_eq!(&*world.refused("close", &close(3)).code, code::PART_MISSING);
    let summary = world.asked("close", &close(2));
    assert_eq!(summary["tasks"][0]["total"], 3);
    assert!(summary.get("open").is_none());
    assert_eq!(world.asked("close", &close(2))["work"], work.to_string(), "said again");
    assert_eq!(&*world.refused("append", &part(3, "d")).code, code::NOT_OPEN);
    assert_eq!(world.asked("append", &part(2, "c"))["part"], 2, "still known");
}

#[test]
fn parts_that_are_sent_at_once_go_one_after_another() {
    let mut world = World::new();
    let work = open(&mut world);
    world.hidden = true;
    let tickets: Vec<Ticket> = (1..=4)
        .map(|n| {
            let json = format!(
                r#"{{"work":"{work}","part":{n},"items":{{"task":"main","items":["i{n}"]}}}}"#
            );
            world.ask("append", &json)
        })
        .collect();
    assert!(tickets.iter().all(|ticket| !world.answers.contains_key(ticket)));
    world.hidden = false;
    world.show();
    let parts: Vec<_> = tickets.iter().map(|ticket| world.json(*ticket)["part"].clone()).collect();
    assert_eq!(parts, [1, 2, 3, 4]);
}

#[test]
fn parts_are_held_to_the_limits_of_the_whole_work() {
    let mut world = World::new();
    let work = open(&mut world);
    let append = |rest: &str| format!(r#"{{"work":"{work}","part":1,{rest}}}"#);
    let refusal =
        world.refused("append", &append(r#""tasks":[{"name":"main","run":{"echo":""}}]"#));
    assert_eq!(refusal.field.as_deref(), Some("tasks[0].name"));
    let refusal = world.refused("append", &append(r#""items":{"task":"mian","items":[]}"#));
    assert_eq!(&*refusal.code, code::UNKNOWN_TASK);
    assert_eq!(refusal.hint.as_deref(), Some("did you mean `main`?"));
    let plain = world.submit(ECHO);
    let refusal = world.refused("append", &format!(r#"{{"work":"{plain}","part":1}}"#));
    assert_eq!(&*refusal.code, code::NOT_OPEN);
}

#[test]
fn an_open_work_that_stands_still_says_so() {
    let mut world = World::new();
    let work = open(&mut world);
    world.pass(11 * 60 * 1000);
    let summary = world.asked("get", &format!(r#"{{"work":"{work}"}}"#));
    assert!(summary["why"].as_str().unwrap().contains("nothing was appended for 11 minutes"));
}

#[test]
fn results_come_by_index_in_pages_whatever_ended_them() {
    let mut world = World::new();
    let work = world.submit(
        r#"{"tasks":[{"name":"a","run":{"echo":"{index}"},"array":{"count":6}},
            {"name":"b","needs":["a"],"run":{"echo":""}}]}"#,
    );
    world.assign(work, "a", Indices::first(6), 1);
    let mut ending = Ending::new(IndexState::Finished);
    ending.stdout = "even".into();
    world.end(work, "a", [0, 2, 4].into_iter().collect(), ending);
    let ending = Ending::because(IndexState::Failed, "exit_code", "it exited with 3");
    world.end(work, "a", [1, 3].into_iter().collect(), ending);
    let lost = LostEntry {
        work,
        task: "a".parse().unwrap(),
        indices: Indices::one(5),
        attempt: 1,
        node: "m4".parse().unwrap(),
        instance: InstanceId(Uuid::from_u128(9)),
        why: "m4 went silent".to_owned(),
        again_s: None,
    };
    world.tell(None, Fact::Lost(schemas::fact::Lost { epoch: 1, entries: vec![lost] }));
    let mut items = Vec::new();
    let mut from = String::new();
    loop {
        let page = world.asked("results", &format!(r#"{{"work":"{work}","limit":2{from}}}"#));
        assert!(page["items"].as_array().unwrap().len() <= 2);
        items.extend(page["items"].as_array().unwrap().clone());
        let Some(next) = page["next"].as_str() else { break };
        from = format!(r#","from":"{next}""#);
    }
    let short: Vec<String> = items
        .iter()
        .map(|o| {
            format!(
                "{}{} {}",
                o["task"].as_str().unwrap(),
                o["index"],
                o["state"].as_str().unwrap()
            )
        })
        .collect();
    assert_eq!(
        short,
        [
            "a0 finished",
            "a1 failed",
            "a2 finished",
            "a3 failed",
            "a4 finished",
            "a5 failed",
            "b0 skipped"
        ]
    );
    assert_eq!(items[0]["stdout"], "even");
    assert_eq!((&items[5]["reason"], &items[5]["why"]), (&"lost".into(), &"m4 went silent".into()));
    assert_eq!(items[6]["reason"], "needs");
    let failed = world.asked("results", &format!(r#"{{"work":"{work}","only":"failed"}}"#));
    assert_eq!(failed["items"].as_array().unwrap().len(), 3);
    let one = world.asked("results", &format!(r#"{{"work":"{work}","task":"b"}}"#));
    assert_eq!(one["items"].as_array().unwrap().len(), 1);
    let bad = format!(r#"{{"work":"{work}","only":"running"}}"#);
    assert_eq!(&*world.refused("results", &bad).code, code::INVALID);
    let bad = format!(r#"{{"work":"{work}","task":"c"}}"#);
    assert_eq!(&*world.refused("results", &bad).code, code::UNKNOWN_TASK);
    let bad = format!(r#"{{"work":"{work}","from":"9"}}"#);
    assert_eq!(&*world.refused("results", &bad).code, code::BAD_CURSOR);
}

#[test]
fn a_page_of_large_outcomes_stays_below_one_message() {
    let mut world = World::new();
    let work = world.submit(&echo_with(r#""array":{"count":40}"#));
    world.assign(work, "main", Indices::first(40), 1);
    for index in 0..40 {
        let mut ending = Ending::new(IndexState::Finished);
        ending.stdout = vec![b'x'; 64 * 1024].into();
        world.end(work, "main", Indices::one(index), ending);
    }
    let (mut seen, mut from) = (0, String::new());
    loop {
        let page = world.asked("results", &format!(r#"{{"work":"{work}"{from}}}"#));
        assert!(serde_json::to_vec(&page).unwrap().len() <= MAX_BODY);
        seen += page["items"].as_array().unwrap().len();
        let Some(next) = page["next"].as_str() else { break };
        from = format!(r#","from":"{next}""#);
    }
    assert_eq!(seen, 40);
}

fn node(cpus: u64) -> NodeView {
    NodeView {
        node: "m4".parse().unwrap(),
        pool: PoolName::main(),
        site: None,
        state: NodeState::Ready,
        why: None,
        kind: "cpu".to_owned(),
        instance: InstanceId(Uuid::from_u128(9)),
        total: Room { cpus: Cpus::new(cpus), memory_mib: 1024, ..Room::default() },
        used: Room::default(),
        jobs: 0,
        inventory: Arc::new(Inventory::default()),
        heard_at: Stamp(0),
        clock_ahead_s: 0.0,
        version: String::new(),
    }
}

#[test]
fn what_no_node_could_ever_run_is_refused_after_asking_once_more() {
    let mut world = World::new();
    let big = r#"{"argv":["x"],"resources":{"cpus":16}}"#;
    world.submit(big);
    assert_eq!(world.nodes_asked, 1, "with no node known it is asked for once, and then taken");
    world.nodes = Some(vec![node(4)]);
    let nodes = world.nodes.clone();
    world.step(Event::Nodes { pool: PoolName::main(), nodes });
    let refusal = world.refused("submit", big);
    assert_eq!(&*refusal.code, code::UNSATISFIABLE);
    assert!(refusal.message.contains("m4"), "{refusal}");
    assert_eq!(world.nodes_asked, 2);
    world.nodes = Some(vec![node(4), NodeView { node: "big".parse().unwrap(), ..node(32) }]);
    world.submit(big);
    world.submit(big);
    assert_eq!(world.nodes_asked, 3, "the new node is known from now on");
}

#[test]
fn a_scheduler_that_does_not_answer_refuses_nobody() {
    let mut world = World::new();
    let nodes = Some(vec![node(4)]);
    world.step(Event::Nodes { pool: PoolName::main(), nodes });
    world.submit(r#"{"argv":["x"],"resources":{"cpus":16}}"#);
}

fn inbox(world: &mut World, ticket: Ticket, json: &str) -> WorkId {
    let derived: WorkId = ID.parse().unwrap();
    let submit =
        schemas::codec::decode_strict::<Submit>(schemas::codec::Encoding::Json, json.as_bytes());
    world.step(Event::Inbox {
        ticket,
        caller: CallerName::owner(),
        seq: 7,
        submit: submit.map(Box::new),
        derived,
    });
    derived
}

#[test]
fn a_message_of_the_inbox_becomes_one_work_however_often_it_comes() {
    let mut world = World::new();
    let work = inbox(&mut world, 1, ECHO);
    inbox(&mut world, 2, ECHO);
    assert_eq!(world.acknowledged, [1, 2]);
    assert_eq!(world.journal.len(), 1);
    assert_eq!(world.asked("get", r#"{"work":"@last"}"#)["work"], work.to_string());
}

#[test]
fn a_refused_message_of_the_inbox_is_recorded_and_listed() {
    let mut world = World::new();
    inbox(&mut world, 1, r#"{"argv":[],"name":"empty"}"#);
    inbox(&mut world, 2, r#"{"argv":[],"name":"empty"}"#);
    assert_eq!(world.acknowledged, [1, 2]);
    let page = world.asked("list", r#"{"states":["refused"]}"#);
    assert_eq!(page["works"].as_array().unwrap().len(), 1);
    assert_eq!(page["works"][0]["name"], "empty");
    assert_eq!(page["works"][0]["why"], "`argv` is empty");
    let refusal = world.refused("retry", r#"{"work":"empty"}"#);
    assert_eq!(&*refusal.code, code::ENDED);
    assert_eq!(world.asked("wait", r#"{"work":"empty"}"#)["state"], "refused");
}

#[test]
fn a_message_of_the_inbox_that_cannot_be_stored_comes_again() {
    let mut world = World::new();
    world.broken = Some(WriteError::Full("store".to_owned()));
    inbox(&mut world, 1, ECHO);
    inbox(&mut world, 2, "[garbage");
    assert_eq!((world.later.as_slice(), world.acknowledged.len()), (&[1, 2][..], 0));
}

#[test]
fn a_work_of_another_manager_is_found_when_the_fold_has_caught_up() {
    let mut world = World::new();
    world.hidden = true;
    let ticket = world.ask("submit", &echo_with(&format!(r#""work":"{ID}""#)));
    let get = world.ask("get", &format!(r#"{{"work":"{ID}"}}"#));
    assert!(!world.answers.contains_key(&get), "the journal holds more than the fold");
    world.hidden = false;
    world.show();
    assert_eq!(world.json(get)["work"], ID);
    assert_eq!(world.json(ticket)["work"], ID);
}

#[test]
fn followers_are_counted_per_caller() {
    let mut world = World::new();
    let work = world.submit(ECHO);
    let follow = format!(r#"{{"work":"{work}"}}"#);
    world.ask("follow", &follow);
    world.ask("follow", &follow);
    assert_eq!(&*world.refused("follow", &follow).code, code::BUSY);
    world.step(Event::Unfollowed { caller: CallerName::owner() });
    world.ask("follow", &follow);
    assert_eq!(world.followed.len(), 3);
}

#[test]
fn a_journal_that_is_folded_anew_answers_who_is_still_held() {
    let mut world = World::new();
    let work = world.submit(ECHO);
    let wait = world.ask("wait", &format!(r#"{{"work":"{work}","hold_s":60}}"#));
    world.step(Event::Anew { pool: PoolName::main() });
    world.shown = 0;
    world.show();
    world.run_to(work, IndexState::Finished);
    assert_eq!(world.json(wait)["state"], "finished");
    assert_eq!(world.core.summary_now(world.now, work).unwrap().state, WorkState::Finished);
}
