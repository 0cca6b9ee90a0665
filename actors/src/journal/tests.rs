//! What facts mean, case by case.

use super::*;
use schemas::{
    fact::{
        Accepted, Appended, Assigned, AssignedEntry, CancelAsked, Closed, Ended, EndedEntry,
        Expired, Finished, FinishedEntry, Lost, LostEntry, MoreItems, RetryAsked, Returned,
        ReturnedEntry,
    },
    id::{InstanceId, RequestId},
    outcome::{Ending, IndexState},
    token::TaskName,
};
use uuid::Uuid;

struct Teller {
    fold: Fold,
    seq: Seq,
    request: u128,
}

fn id(n: u128) -> WorkId {
    WorkId(Uuid::from_u128(n))
}

fn name(text: &str) -> TaskName {
    TaskName::new(text).unwrap()
}

fn node() -> NodeName {
    NodeName::new("m4").unwrap()
}

impl Teller {
    fn new() -> Self {
        Self { fold: Fold::default(), seq: 0, request: 0 }
    }

    fn tell(&mut self, fact: Fact) -> Changes {
        self.seq += 1;
        self.fold.apply(self.seq, Stamp(self.seq * 1000), Some(OwnerName::owner()), &fact)
    }

    fn accept(&mut self, work: u128, spec: &str) -> Changes {
        let spec = Arc::new(serde_json::from_str(spec).unwrap());
        self.tell(Fact::Accepted(Accepted { work: id(work), by: CallerName::owner(), spec }))
    }

    fn assign(&mut self, task: &str, indices: Indices, attempt: u32) -> Changes {
        self.tell(Fact::Assigned(Assigned {
            epoch: 1,
            entries: vec![AssignedEntry {
                work: id(1),
                task: name(task),
                indices,
                attempt,
                node: node(),
                instance: InstanceId(Uuid::from_u128(9)),
            }],
        }))
    }

    fn end(&mut self, task: &str, indices: Indices, attempt: u32, state: IndexState) -> Changes {
        self.end_again(task, indices, attempt, state, None)
    }

    fn end_again(
        &mut self,
        task: &str,
        indices: Indices,
        attempt: u32,
        state: IndexState,
        again_s: Option<Seconds>,
    ) -> Changes {
        let ending = Ending::new(state);
        self.tell(Fact::Ended(Ended {
            epoch: 1,
            entries: vec![EndedEntry {
                work: id(1),
                task: name(task),
                indices,
                attempt,
                ending,
                again_s,
            }],
        }))
    }

    fn run(&mut self, task: &str, attempt: u32, state: IndexState) {
        assert_eq!(self.assign(task, Indices::one(0), attempt).given.len(), 1, "{task}");
        assert_eq!(self.end(task, Indices::one(0), attempt, state).freed.len(), 1, "{task}");
    }

    fn cancel(&mut self, round: u32) -> Changes {
        self.request += 1;
        let request = RequestId(Uuid::from_u128(self.request));
        let by = CallerName::owner();
        self.tell(Fact::CancelAsked(CancelAsked { work: id(1), request, round, by }))
    }

    fn retry(&mut self, round: u32) -> Changes {
        self.request += 1;
        let request = RequestId(Uuid::from_u128(self.request));
        let by = CallerName::owner();
        self.tell(Fact::RetryAsked(RetryAsked { work: id(1), request, round, by }))
    }

    fn work(&self) -> &Work {
        self.fold.work(id(1)).unwrap()
    }

    fn states(&self) -> Vec<IndexState> {
        self.work().tasks.iter().map(Task::state).collect()
    }
}

const DIAMOND: &str = r#"{"tasks":[
    {"name":"a","run":{"echo":""}},
    {"name":"b","needs":["a"],"run":{"echo":""}},
    {"name":"c","needs":["a"],"run":{"echo":""}},
    {"name":"d","needs":["b","c"],"run":{"echo":""}}]}"#;

use IndexState::{Cancelled, Failed, Finished as Done, Ready, Skipped, Waiting};

#[test]
fn successors_become_ready_when_all_they_need_has_finished() {
    let mut t = Teller::new();
    assert_eq!(t.accept(1, DIAMOND).ready, [(id(1), 0)]);
    assert_eq!(t.states(), [Ready, Waiting, Waiting, Waiting]);
    assert!(t.assign("b", Indices::one(0), 1).given.is_empty(), "it is not ready");
    t.run("a", 1, Done);
    assert_eq!(t.states(), [Done, Ready, Ready, Waiting]);
    t.run("c", 1, Done);
    assert_eq!(t.states(), [Done, Ready, Done, Waiting]);
    t.run("b", 2, Done);
    t.run("d", 1, Done);
    assert_eq!(t.work().state, WorkState::Finished);
    assert_eq!(t.fold.unrecorded().len(), 1);
    let recorded = Fact::Finished(Finished {
        epoch: 1,
        entries: vec![FinishedEntry {
            work: id(1),
            round: 0,
            state: WorkState::Finished,
            why: None,
            ended_at: Stamp(0),
        }],
    });
    assert!(t.tell(recorded.clone()).applied);
    assert!(!t.tell(recorded).applied);
    assert!(t.fold.unrecorded().is_empty() && t.fold.active().is_empty());
}

#[test]
fn what_needs_a_failure_is_skipped_and_retry_begins_only_what_did_not_finish() {
    let mut t = Teller::new();
    t.accept(1, DIAMOND);
    t.run("a", 1, Done);
    t.run("b", 1, Done);
    t.run("c", 1, Failed);
    assert_eq!(t.states(), [Done, Done, Failed, Skipped]);
    assert_eq!(t.work().state, WorkState::Failed);
    assert_eq!(t.work().why.as_deref(), Some("`c` failed"));
    let skipped = t.work().unrun(3, 0).unwrap();
    assert_eq!(skipped.why.as_deref(), Some("it needs `c`, which did not finish"));
    assert!(!t.retry(1).applied, "another round is meant");
    assert!(t.retry(0).applied);
    assert!(!t.retry(0).applied, "that round is over");
    assert_eq!(t.states(), [Done, Done, Ready, Waiting]);
    assert!(t.assign("c", Indices::one(0), 1).given.is_empty(), "the number was used");
    t.run("c", 2, Done);
    t.run("d", 1, Done);
    assert_eq!((t.work().state, t.work().round), (WorkState::Finished, 1));
    assert!(!t.retry(1).applied, "nothing failed");
}

#[test]
fn a_fact_about_an_attempt_that_is_not_live_changes_nothing() {
    let mut t = Teller::new();
    t.accept(1, r#"{"tasks":[{"name":"m","run":{"echo":""},"array":{"count":10}}]}"#);
    t.assign("m", Indices::span(0, 4), 3);
    assert!(t.assign("m", Indices::span(0, 9), 3).given[0].indices == Indices::span(5, 9));
    assert!(!t.assign("m", Indices::span(0, 9), 2).applied);
    assert!(t.assign("m", Indices::span(0, 9), 4).given.is_empty(), "all are live");
    assert!(!t.end("m", Indices::one(0), 4, Done).applied, "4 was used up but never live");
    assert!(t.end("m", Indices::span(0, 5), 3, Done).applied);
    assert!(!t.end("m", Indices::span(0, 5), 3, Failed).applied, "an index ends once");
    let lost = |instance, again_s| {
        Fact::Lost(Lost {
            epoch: 1,
            entries: vec![LostEntry {
                work: id(1),
                task: name("m"),
                indices: Indices::span(6, 7),
                attempt: 3,
                node: node(),
                instance: InstanceId(Uuid::from_u128(instance)),
                why: "silent".to_owned(),
                again_s,
            }],
        })
    };
    assert!(!t.tell(lost(8, None)).applied, "another instance");
    assert!(t.tell(lost(9, Some(Seconds::new(1)))).applied);
    let task = &t.work().tasks[0];
    assert_eq!((task.lost, task.tries.get(6).unwrap().lost), (2, 1));
    assert_eq!(task.state_of(6), Some(Waiting));
    assert_eq!(t.assign("m", Indices::span(6, 7), 5).given.len(), 1, "after the delay");
    let returned = Fact::Returned(Returned {
        epoch: 1,
        entries: vec![ReturnedEntry {
            work: id(1),
            task: name("m"),
            indices: Indices::span(6, 9),
            attempt: 5,
            node: node(),
            why: "full".to_owned(),
            after_s: Seconds::default(),
        }],
    });
    assert_eq!(t.tell(returned).freed[0].indices, Indices::span(6, 7));
    assert_eq!(t.work().tasks[0].ready, Indices::span(6, 7));
}

#[test]
fn cancel_ends_at_once_what_is_not_live_and_the_rest_when_it_ends() {
    let mut t = Teller::new();
    t.accept(
        1,
        r#"{"tasks":[{"name":"m","run":{"echo":""},"array":{"count":10}},
            {"name":"n","needs":["m"],"run":{"echo":""}}]}"#,
    );
    t.assign("m", Indices::span(0, 2), 1);
    assert!(!t.cancel(1).applied);
    let changes = t.cancel(0);
    assert_eq!(changes.stopping, [id(1)]);
    assert!(!t.cancel(0).applied, "once is enough");
    assert_eq!(t.work().tasks[0].cancelled, Indices::span(3, 9));
    assert_eq!(t.states()[1], Cancelled);
    assert!(t.assign("m", Indices::one(4), 1).given.is_empty());
    t.end("m", Indices::one(0), 1, Done);
    t.end_again("m", Indices::one(1), 1, Failed, Some(Seconds::new(1)));
    assert_eq!(t.work().state, WorkState::Running);
    let ended = t.end("m", Indices::one(2), 1, Cancelled).ended;
    assert_eq!(ended, [id(1)]);
    assert_eq!(t.work().state, WorkState::Cancelled);
    let s = t.work().summary();
    assert_eq!((s.tasks[0].finished, s.tasks[0].cancelled, s.tasks[0].failed), (1, 9, 0));
    assert!(t.retry(0).applied);
    assert_eq!(t.work().tasks[0].ready, Indices::span(1, 9));
    assert_eq!(t.states(), [Ready, Waiting]);
}

#[test]
fn parts_come_in_order_and_an_open_array_is_not_complete_before_close() {
    let mut t = Teller::new();
    t.accept(
        1,
        r#"{"open":true,"tasks":[{"name":"m","run":{"echo":"{item}"},"array":{"items":["a"]}},
            {"name":"n","needs":["m"],"run":{"echo":""}}]}"#,
    );
    let part = |part, items: &[&str]| {
        Fact::Appended(Appended {
            work: id(1),
            part,
            tasks: Vec::new(),
            items: Some(MoreItems {
                task: name("m"),
                items: items.iter().map(|i| Arc::from(*i)).collect(),
            }),
        })
    };
    t.run("m", 1, Done);
    assert_eq!(t.states()[1], Waiting);
    assert!(!t.tell(part(2, &["x"])).applied, "a gap");
    assert!(t.tell(part(1, &["b", "c"])).applied);
    assert!(!t.tell(part(1, &["b", "c"])).applied, "known");
    assert_eq!(t.work().tasks[0].item(2).map(|i| &**i), Some("c"));
    assert_eq!(t.work().tasks[0].ready, Indices::span(1, 2));
    t.assign("m", Indices::span(1, 2), 1);
    t.end("m", Indices::span(1, 2), 1, Done);
    let close = |parts| Fact::Closed(Closed { work: id(1), parts });
    assert!(!t.tell(close(2)).applied);
    assert!(t.tell(close(1)).applied);
    assert!(!t.tell(part(2, &["x"])).applied, "closed");
    assert_eq!(t.states(), [Done, Ready]);
    t.run("n", 1, Done);
    assert_eq!(t.work().state, WorkState::Finished);
}

#[test]
fn an_open_work_that_expires_fails_and_cannot_be_retried() {
    let mut t = Teller::new();
    t.accept(1, r#"{"open":true,"tasks":[{"name":"m","run":{"echo":""}}]}"#);
    assert_eq!(t.fold.open().len(), 1);
    assert!(t.tell(Fact::Expired(Expired { epoch: 1, work: id(1) })).applied);
    assert_eq!(t.work().state, WorkState::Failed);
    assert_eq!(t.work().unrun(0, 0).unwrap().reason.as_deref(), Some("not_closed"));
    assert!(!t.retry(0).applied);
    assert!(t.fold.open().is_empty());
}

#[test]
fn what_makes_no_sense_is_not_accepted_and_another_owner_changes_nothing() {
    let mut t = Teller::new();
    assert!(!t.accept(1, r#"{"tasks":[{"name":"a","needs":["z"],"run":{"echo":""}}]}"#).applied);
    assert!(
        !t.accept(
            1,
            r#"{"tasks":[{"name":"a","run":{"echo":""}},{"name":"a","run":{"echo":""}}]}"#
        )
        .applied
    );
    assert!(t.accept(1, DIAMOND).applied);
    assert!(!t.accept(1, DIAMOND).applied, "the id is taken");
    let other = OwnerName::new("other").unwrap();
    let cancel = Fact::CancelAsked(CancelAsked {
        work: id(1),
        request: RequestId(Uuid::nil()),
        round: 0,
        by: CallerName::owner(),
    });
    t.seq += 1;
    assert!(!t.fold.apply(t.seq, Stamp(0), Some(other), &cancel).applied);
    assert!(!t.fold.apply(t.seq, Stamp(0), Some(OwnerName::owner()), &cancel).applied, "old");
}

#[test]
fn a_million_indices_in_batches_stay_a_handful_of_ranges() {
    let mut t = Teller::new();
    t.accept(1, r#"{"tasks":[{"name":"m","run":{"echo":""},"array":{"count":1000000}}]}"#);
    for first in (0..1_000_000).step_by(10_000) {
        let indices = Indices::span(first, first + 9_999);
        t.assign("m", indices.clone(), 1);
        t.end("m", indices, 1, Done);
    }
    let task = &t.work().tasks[0];
    assert_eq!(t.work().state, WorkState::Finished);
    assert_eq!(task.finished.ranges().len(), 1);
    assert_eq!(task.last.runs().count(), 1);
    assert_eq!(task.ended_by.runs().count(), 100);
    assert!(task.queued_at.is_empty() && task.live.is_empty());
}

#[test]
fn works_are_found_by_owner_name_and_beginning() {
    let mut t = Teller::new();
    t.accept(0x10, r#"{"name":"x","tasks":[]}"#);
    t.accept(0x11, r#"{"name":"x","tasks":[]}"#);
    t.accept(0x20, r#"{"tasks":[]}"#);
    let owner = OwnerName::owner();
    assert_eq!(t.fold.named(&owner, "x").next_back(), Some(id(0x11)));
    assert_eq!(t.fold.of_owner(&owner).count(), 3);
    assert_eq!(t.fold.ids(id(0x10), id(0x1f)).count(), 2);
    t.fold.forget(id(0x11));
    assert_eq!(t.fold.named(&owner, "x").next_back(), Some(id(0x10)));
    assert_eq!(t.fold.in_order().count(), 2);
}
