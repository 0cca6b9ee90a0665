//! What clients may ask, and the answers.

use crate::{
    amount::is_zero,
    id::{Attempt, RequestId, WorkId},
    indices::Index,
    node::NodeView,
    outcome::{Outcome, Summary, WorkState},
    output::Output,
    time::{Seconds, Stamp},
    token::{NodeName, OwnerName, TaskName},
    work::Task,
};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use std::sync::Arc;

/// The answer to `submit`: the first fields of the summary.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct Submitted {
    /// Its id.
    pub work: WorkId,
    /// Its name.
    #[serde(default)]
    pub name: String,
    /// Whose it is.
    pub owner: OwnerName,
    /// How it stands.
    pub state: WorkState,
    /// When it was accepted.
    #[serde(default)]
    pub submitted_at: Option<Stamp>,
}

/// Names a work: by its id, a unique beginning of its id, its name (the newest of several), or
/// `@last`.
pub type WorkRef = String;

/// `lh.work.append`: tasks or items join an open work.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct Append {
    /// Which work.
    pub work: WorkRef,
    /// Counts from 1.
    pub part: u32,
    /// New tasks.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub tasks: Vec<Arc<Task>>,
    /// Items that continue an array.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub items: Option<crate::fact::MoreItems>,
}

/// The answer to `append`.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct AppendedReply {
    /// Which work.
    pub work: WorkId,
    /// The last part that is stored.
    pub part: u32,
}

/// `lh.work.close`: nothing more will be appended. Answered with the summary.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct Close {
    /// Which work.
    pub work: WorkRef,
    /// How many parts were sent.
    pub parts: u32,
}

/// `lh.work.get`: how does it stand? Answered with the summary.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct Get {
    /// Which work.
    pub work: WorkRef,
    /// Also the spec as it was accepted.
    #[serde(default, skip_serializing_if = "is_zero")]
    pub spec: bool,
}

/// `lh.work.wait`: answered with the summary when the work has ended, or when `hold_s` is over.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct Wait {
    /// Which work.
    pub work: WorkRef,
    /// How long the answer may be held; by default a day.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub hold_s: Option<Seconds>,
}

/// `lh.work.list`: works, newest first.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(default)]
pub struct List {
    /// Only those in one of these states.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub states: Vec<WorkState>,
    /// Only those whose name contains this.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub name: Option<String>,
    /// At most so many, by default 50.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub limit: Option<u32>,
    /// Goes on where an earlier answer's `next` ended.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub from: Option<String>,
}

/// The answer to `list`.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct Works {
    /// The works; their tasks without `first_failures`.
    pub works: Vec<Summary>,
    /// For the next page; absent on the last.
    #[serde(default)]
    pub next: Option<String>,
}

/// `lh.work.results`: outcomes, by index.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct Results {
    /// Which work.
    pub work: WorkRef,
    /// Only this task; by default all, in their order.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub task: Option<TaskName>,
    /// Goes on where an earlier answer's `next` ended.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub from: Option<String>,
    /// At most so many; every page stays below what one message may hold.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub limit: Option<u32>,
    /// Only those in this state.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub only: Option<crate::outcome::IndexState>,
}

/// The answer to `results`.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct Outcomes {
    /// The outcomes of indices that have ended.
    pub items: Vec<Outcome>,
    /// For the next page; absent on the last.
    #[serde(default)]
    pub next: Option<String>,
}

/// `lh.work.cancel` and `lh.work.retry`. Answered with the summary.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct Change {
    /// Which work.
    pub work: WorkRef,
    /// Which round is meant (`round` of the summary); by default the current one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub round: Option<u32>,
    /// The same request is done once; by default a fresh one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub request: Option<RequestId>,
}

/// `lh.work.follow`: facts and output of a work, as they come; ends with an empty message.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct Follow {
    /// Which work.
    pub work: WorkRef,
    /// Only output of this task.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub task: Option<TaskName>,
    /// Only output of this index.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub index: Option<Index>,
    /// Goes on behind a cursor.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub from: Option<String>,
    /// The follower acknowledges, and jobs wait for him.
    #[serde(default, skip_serializing_if = "is_zero")]
    pub pace: bool,
}

/// One reply of `follow`.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct Followed {
    /// Resumes behind this reply.
    pub cursor: String,
    /// A fact.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub fact: Option<FollowedFact>,
    /// A piece of output.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub output: Option<Output>,
    /// The summary, in the last reply before the empty one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub summary: Option<Summary>,
}

/// A fact of the followed work, unfolded from its message.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct FollowedFact {
    /// Its kind: the last token of its subject.
    pub kind: String,
    /// When the bus stored it.
    pub at: Stamp,
    /// Its body: for kinds with entries one entry, else the whole.
    pub body: serde_json::Value,
}

/// The answer to `run`, and to `get` with `spec`: the summary, for a single job with the outcome's
/// fields beside it.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct RunReply {
    /// The summary.
    #[serde(flatten)]
    pub summary: Summary,
    /// The outcome of a single job.
    #[serde(flatten)]
    pub outcome: Option<SingleOutcome>,
}

/// An outcome without the fields that the summary has too.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct SingleOutcome {
    /// Which attempt.
    pub attempt: Attempt,
    /// Where it ran.
    pub node: Option<NodeName>,
    /// Its exit code.
    pub exit_code: Option<i32>,
    /// The signal that ended it.
    pub signal: Option<i32>,
    /// A stable word for why it did not finish.
    #[serde(default)]
    pub reason: Option<String>,
    /// When it became ready.
    pub queued_at: Option<Stamp>,
    /// When it was started.
    pub started_at: Option<Stamp>,
    /// Wall-clock time.
    #[serde(default)]
    pub ran_s: Seconds,
    /// Processor time.
    #[serde(default)]
    pub cpu_s: Seconds,
    /// Largest resident memory.
    #[serde(default)]
    pub memory_peak_mib: u64,
    /// The beginning of its stdout.
    pub stdout: crate::blob::Blob,
    /// The beginning of its stderr.
    pub stderr: crate::blob::Blob,
    /// Length of its whole stdout.
    pub stdout_bytes: u64,
    /// Length of its whole stderr.
    pub stderr_bytes: u64,
    /// The declared outputs.
    pub outputs: std::collections::BTreeMap<String, crate::blob::Blob>,
}

impl From<Outcome> for SingleOutcome {
    fn from(o: Outcome) -> Self {
        Self {
            attempt: o.attempt,
            node: o.node,
            exit_code: o.exit_code,
            signal: o.signal,
            reason: o.reason,
            queued_at: o.queued_at,
            started_at: o.started_at,
            ran_s: o.ran_s,
            cpu_s: o.cpu_s,
            memory_peak_mib: o.memory_peak_mib,
            stdout: o.stdout,
            stderr: o.stderr,
            stdout_bytes: o.stdout_bytes,
            stderr_bytes: o.stderr_bytes,
            outputs: o.outputs,
        }
    }
}

/// `lh.sched.<pool>.explain`: why does it wait, run there, or fail? One of the two is given.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(default)]
pub struct Explain {
    /// Which work: its whole id (a manager resolves names).
    #[serde(skip_serializing_if = "Option::is_none")]
    pub work: Option<WorkId>,
    /// Only this task.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub task: Option<TaskName>,
    /// Which node.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub node: Option<NodeName>,
}

/// The answer to `explain`.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct Explained {
    /// One sentence.
    pub why: String,
    /// More, a sentence each.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub more: Vec<String>,
}

/// `lh.sched.<pool>.nodes`: nothing is asked but that.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(default)]
pub struct Nodes {}

/// The answer to `nodes`.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct NodesReply {
    /// By name.
    pub nodes: Vec<NodeView>,
    /// Whether the pool is paused.
    #[serde(default)]
    pub paused: bool,
}

/// `lh.sched.<pool>.drain` and `undrain`.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct NodeChange {
    /// Which node.
    pub node: NodeName,
}

/// `lh.sched.<pool>.pause` and `resume`.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(default)]
pub struct PoolChange {}

/// The answer to `drain`, `undrain`, `pause`, `resume`: it is stored.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct Done {
    /// What holds now, in one sentence.
    pub message: String,
}
