//! Facts: immutable records in the journal of what has happened. Everything that counts is a fold
//! over them (see `actors::journal`).
//!
//! One message holds many entries, each naming its work: a million tasks are not a million
//! messages. The kind is the last token of the subject, the body is always JSON.

use crate::{
    amount::is_zero,
    error::Refusal,
    id::{Attempt, Epoch, InstanceId, RequestId, Seq, WorkId},
    indices::Indices,
    outcome::{Ending, WorkState},
    time::{Seconds, Stamp},
    token::{CallerName, NodeName, TaskName},
    work::{Task, WorkSpec},
};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use std::sync::Arc;

/// A fact, with its body.
#[derive(Clone, Debug, PartialEq)]
pub enum Fact {
    /// Manager: a work was accepted.
    Accepted(Accepted),
    /// Manager: tasks or items joined an open work.
    Appended(Appended),
    /// Manager: an open work is complete.
    Closed(Closed),
    /// Manager: somebody wants a work to end.
    CancelAsked(CancelAsked),
    /// Manager: somebody wants what failed to be tried again; begins a round.
    RetryAsked(RetryAsked),
    /// Manager: a message of the inbox was not accepted.
    Refused(Refused),
    /// Scheduler: attempts were given to an instance of a node.
    Assigned(Assigned),
    /// Scheduler: attempts that were never started came back.
    Returned(Returned),
    /// Scheduler: attempts are given up.
    Lost(Lost),
    /// Scheduler: attempts ended.
    Ended(Ended),
    /// Scheduler: works ended. The fold knows it already; this is the record of when and how.
    Finished(Finished),
    /// Scheduler: an open work was not closed in time.
    Expired(Expired),
    /// Scheduler: it has taken the pool. Every later write of its own is fenced by this one.
    Epoch(EpochFact),
    /// Scheduler: a node takes no new jobs.
    Drained(NodeFact),
    /// Scheduler: a node takes jobs again.
    Undrained(NodeFact),
    /// Scheduler: nothing is placed in the pool.
    Paused(PoolFact),
    /// Scheduler: the pool goes on.
    Resumed(PoolFact),
}

macro_rules! kinds {
    ($($variant:ident($body:ty) = $kind:literal),* $(,)?) => {
        impl Fact {
            /// Every kind this version knows, in the order in which a reader should meet them.
            pub const KINDS: &'static [&'static str] = &[$($kind),*];

            /// The last token of its subject.
            pub fn kind(&self) -> &'static str {
                match self { $(Fact::$variant(_) => $kind),* }
            }

            /// The body as JSON.
            pub fn to_json(&self) -> Vec<u8> {
                match self {
                    $(Fact::$variant(body) => {
                        serde_json::to_vec(body).expect("a fact has string keys only")
                    })*
                }
            }

            /// Reads a body by its kind.
            pub fn from_json(kind: &str, body: &[u8]) -> Result<Fact, FactError> {
                let malformed = |error: serde_json::Error| FactError::Malformed {
                    kind: kind.chars().take(40).collect(),
                    error: error.to_string().chars().take(300).collect(),
                };
                match kind {
                    $($kind => serde_json::from_slice::<$body>(body)
                        .map(Fact::$variant)
                        .map_err(malformed),)*
                    _ => Err(FactError::UnknownKind(kind.chars().take(40).collect())),
                }
            }
        }
    };
}

kinds! {
    Accepted(Accepted) = "accepted",
    Appended(Appended) = "appended",
    Closed(Closed) = "closed",
    CancelAsked(CancelAsked) = "cancel-asked",
    RetryAsked(RetryAsked) = "retry-asked",
    Refused(Refused) = "refused",
    Assigned(Assigned) = "assigned",
    Returned(Returned) = "returned",
    Lost(Lost) = "lost",
    Ended(Ended) = "ended",
    Finished(Finished) = "finished",
    Expired(Expired) = "expired",
    Epoch(EpochFact) = "epoch",
    Drained(NodeFact) = "drained",
    Undrained(NodeFact) = "undrained",
    Paused(PoolFact) = "paused",
    Resumed(PoolFact) = "resumed",
}

/// A message of the journal that this version cannot read.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum FactError {
    /// A kind that a newer version writes: who meets it does not take the lease.
    #[error("the journal holds a fact `{0}`, which needs a newer version")]
    UnknownKind(String),
    /// It is not what its kind says.
    #[error("a fact `{kind}` cannot be read: {error}")]
    Malformed {
        /// Its kind.
        kind: String,
        /// What is wrong with it.
        error: String,
    },
}

/// A work was accepted: `lh.fact.<pool>.<owner>.<work>.accepted`, the first on its subject.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct Accepted {
    /// Its id.
    pub work: WorkId,
    /// Who submitted it.
    pub by: CallerName,
    /// What is to be done.
    pub spec: Arc<WorkSpec>,
}

/// Tasks or items joined an open work.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct Appended {
    /// Which work.
    pub work: WorkId,
    /// Counts from 1, without gaps; a part that is known changes nothing.
    pub part: u32,
    /// New tasks.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub tasks: Vec<Arc<Task>>,
    /// Items that continue an array.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub items: Option<MoreItems>,
}

/// Items that continue the array of a task.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct MoreItems {
    /// Which task.
    pub task: TaskName,
    /// The items; the first gets the index behind the last.
    pub items: Vec<Arc<str>>,
}

/// An open work is complete.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct Closed {
    /// Which work.
    pub work: WorkId,
    /// How many parts it has.
    pub parts: u32,
}

/// Somebody wants a work to end. Every index without a live attempt ends with this fact.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct CancelAsked {
    /// Which work.
    pub work: WorkId,
    /// The same request is done once.
    pub request: RequestId,
    /// Which round he means.
    pub round: u32,
    /// Who.
    pub by: CallerName,
}

/// Somebody wants what did not finish to be tried again.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct RetryAsked {
    /// Which work.
    pub work: WorkId,
    /// The same request is done once.
    pub request: RequestId,
    /// The round that is over; the next one begins.
    pub round: u32,
    /// Who.
    pub by: CallerName,
}

/// A message of the inbox was not accepted.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct Refused {
    /// The id it had, or was given.
    pub work: WorkId,
    /// The name it had.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub name: String,
    /// Who sent it.
    pub by: CallerName,
    /// Its place in the inbox.
    pub inbox: Seq,
    /// Why.
    pub error: Refusal,
}

/// Attempts were given to an instance of a node. They are asked of it when this is stored and seen.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct Assigned {
    /// By which scheduler.
    pub epoch: Epoch,
    /// Which.
    pub entries: Vec<AssignedEntry>,
}

/// Indices of one task, given to one instance with one attempt number.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct AssignedEntry {
    /// Which work.
    pub work: WorkId,
    /// Which task.
    pub task: TaskName,
    /// Which indices.
    pub indices: Indices,
    /// Which attempt: above every earlier one of these indices.
    pub attempt: Attempt,
    /// To which node.
    pub node: NodeName,
    /// To which life of its keeper.
    pub instance: InstanceId,
}

/// Attempts that were never started came back; costs no retry.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct Returned {
    /// By which scheduler.
    pub epoch: Epoch,
    /// Which.
    pub entries: Vec<ReturnedEntry>,
}

/// Indices whose attempt was never started.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct ReturnedEntry {
    /// Which work.
    pub work: WorkId,
    /// Which task.
    pub task: TaskName,
    /// Which indices.
    pub indices: Indices,
    /// Which attempt.
    pub attempt: Attempt,
    /// Which node refused.
    pub node: NodeName,
    /// Why, in one sentence.
    pub why: String,
    /// Not tried again before so much time has passed.
    #[serde(default, skip_serializing_if = "is_zero")]
    pub after_s: Seconds,
}

/// Attempts are given up: their node is silent, or says that it lost them.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct Lost {
    /// By which scheduler.
    pub epoch: Epoch,
    /// Which.
    pub entries: Vec<LostEntry>,
}

/// Indices whose attempt is given up.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct LostEntry {
    /// Which work.
    pub work: WorkId,
    /// Which task.
    pub task: TaskName,
    /// Which indices.
    pub indices: Indices,
    /// Which attempt.
    pub attempt: Attempt,
    /// Where.
    pub node: NodeName,
    /// With which life of its keeper.
    pub instance: InstanceId,
    /// Why, in one sentence.
    pub why: String,
    /// Tried again after so much time; absent: the index has failed.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub again_s: Option<Seconds>,
}

/// Attempts ended.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct Ended {
    /// By which scheduler.
    pub epoch: Epoch,
    /// Which.
    pub entries: Vec<EndedEntry>,
}

/// Indices of one task whose attempts ended alike (to the last measured digit).
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct EndedEntry {
    /// Which work.
    pub work: WorkId,
    /// Which task.
    pub task: TaskName,
    /// Which indices.
    pub indices: Indices,
    /// Which attempt.
    pub attempt: Attempt,
    /// How.
    pub ending: Ending,
    /// A retry follows after so much time; absent: the index has ended.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub again_s: Option<Seconds>,
}

/// Works ended.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct Finished {
    /// By which scheduler.
    pub epoch: Epoch,
    /// Which.
    pub entries: Vec<FinishedEntry>,
}

/// One work that ended.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct FinishedEntry {
    /// Which work.
    pub work: WorkId,
    /// In which round.
    #[serde(default, skip_serializing_if = "is_zero")]
    pub round: u32,
    /// How.
    pub state: WorkState,
    /// Why it did not finish.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub why: Option<String>,
    /// When its last index ended.
    pub ended_at: Stamp,
}

/// An open work was not closed in time: it is closed now, and fails.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct Expired {
    /// By which scheduler.
    pub epoch: Epoch,
    /// Which work.
    pub work: WorkId,
}

/// A scheduler has taken the pool: `lh.fact.<pool>.epoch`.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct EpochFact {
    /// Its number, above every earlier one.
    pub epoch: Epoch,
    /// Which process, for people.
    pub by: String,
}

/// Something about a node: `lh.fact.<pool>.scheduler.<node>.<kind>`.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct NodeFact {
    /// By which scheduler.
    pub epoch: Epoch,
    /// Which node.
    pub node: NodeName,
    /// Who asked for it.
    pub by: CallerName,
}

/// Something about the pool: `lh.fact.<pool>.scheduler.all.<kind>`.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct PoolFact {
    /// By which scheduler.
    pub epoch: Epoch,
    /// Who asked for it.
    pub by: CallerName,
}

impl Fact {
    /// The works it speaks of, in its own order.
    pub fn works(&self) -> Vec<WorkId> {
        let mut works: Vec<WorkId> = match self {
            Fact::Accepted(f) => vec![f.work],
            Fact::Appended(f) => vec![f.work],
            Fact::Closed(f) => vec![f.work],
            Fact::CancelAsked(f) => vec![f.work],
            Fact::RetryAsked(f) => vec![f.work],
            Fact::Refused(f) => vec![f.work],
            Fact::Expired(f) => vec![f.work],
            Fact::Assigned(f) => f.entries.iter().map(|e| e.work).collect(),
            Fact::Returned(f) => f.entries.iter().map(|e| e.work).collect(),
            Fact::Lost(f) => f.entries.iter().map(|e| e.work).collect(),
            Fact::Ended(f) => f.entries.iter().map(|e| e.work).collect(),
            Fact::Finished(f) => f.entries.iter().map(|e| e.work).collect(),
            Fact::Epoch(_)
            | Fact::Drained(_)
            | Fact::Undrained(_)
            | Fact::Paused(_)
            | Fact::Resumed(_) => Vec::new(),
        };
        works.dedup();
        works
    }
}
