//! What became of one index, and of a whole work.

use crate::{
    amount::is_zero,
    blob::Blob,
    id::{Attempt, WorkId},
    indices::Index,
    time::{Seconds, Stamp},
    token::{NodeName, OwnerName, TaskName},
};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use std::{collections::BTreeMap, fmt};

/// The state of a work.
#[derive(
    Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize, JsonSchema,
)]
#[serde(rename_all = "snake_case")]
pub enum WorkState {
    /// Accepted; nothing of it has been started yet.
    Waiting,
    /// Something of it has been started.
    Running,
    /// Every index finished.
    Finished,
    /// Every index has ended, at least one failed; or it was never closed.
    Failed,
    /// Somebody cancelled it.
    Cancelled,
    /// Only from the inbox: it was not accepted.
    Refused,
}

impl WorkState {
    /// Whether nothing more will happen to it, but by `retry`.
    pub fn is_ended(self) -> bool {
        !matches!(self, WorkState::Waiting | WorkState::Running)
    }

    /// The word, as it is said everywhere.
    pub fn as_str(self) -> &'static str {
        match self {
            WorkState::Waiting => "waiting",
            WorkState::Running => "running",
            WorkState::Finished => "finished",
            WorkState::Failed => "failed",
            WorkState::Cancelled => "cancelled",
            WorkState::Refused => "refused",
        }
    }
}

impl fmt::Display for WorkState {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(self.as_str())
    }
}

/// The state of an index, and of a task as a whole.
#[derive(
    Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize, JsonSchema,
)]
#[serde(rename_all = "snake_case")]
pub enum IndexState {
    /// It needs a task that has not ended, or waits before its next attempt.
    Waiting,
    /// It could start if a node had room.
    Ready,
    /// An attempt at it is on a node.
    Running,
    /// Exit code 0.
    Finished,
    /// Ended in any other way, after all retries.
    Failed,
    /// Its work was cancelled before it ended.
    Cancelled,
    /// It needed a task that did not finish.
    Skipped,
}

impl IndexState {
    /// Whether it is one of the four ends.
    pub fn is_ended(self) -> bool {
        !matches!(self, IndexState::Waiting | IndexState::Ready | IndexState::Running)
    }

    /// The word, as it is said everywhere.
    pub fn as_str(self) -> &'static str {
        match self {
            IndexState::Waiting => "waiting",
            IndexState::Ready => "ready",
            IndexState::Running => "running",
            IndexState::Finished => "finished",
            IndexState::Failed => "failed",
            IndexState::Cancelled => "cancelled",
            IndexState::Skipped => "skipped",
        }
    }
}

impl fmt::Display for IndexState {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(self.as_str())
    }
}

/// Inline `stdout`, `stderr` and each declared output of an outcome hold at most this much.
pub const INLINE_BYTES: usize = 64 * 1024;

/// How one attempt ended: what the node measured, without saying of which index.
///
/// The inline `stdout` and `stderr` are the first [`INLINE_BYTES`] of the stream. What they hold
/// may be missing in the stream of output (a short job's few bytes are not said twice): a reader
/// takes what he has not had yet from here.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct Ending {
    /// Where it ran; absent when it never ran.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub node: Option<NodeName>,
    /// `finished`, `failed` or `cancelled`.
    pub state: IndexState,
    /// The process's exit code; absent when a signal ended it or it never started.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub exit_code: Option<i32>,
    /// The signal that ended it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub signal: Option<i32>,
    /// Why it did not finish, in one sentence.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub why: Option<String>,
    /// A stable word for `why`, where a program may care: one of [`reason`].
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub reason: Option<String>,
    /// When it became ready.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub queued_at: Option<Stamp>,
    /// When the node started it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub started_at: Option<Stamp>,
    /// When it ended.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub ended_at: Option<Stamp>,
    /// Wall-clock time from start to end, by the node's own clock.
    #[serde(default, skip_serializing_if = "is_zero")]
    pub ran_s: Seconds,
    /// Processor time of the whole tree, user and system.
    #[serde(default, skip_serializing_if = "is_zero")]
    pub cpu_s: Seconds,
    /// Largest resident memory of a process of it.
    #[serde(default, skip_serializing_if = "is_zero")]
    pub memory_peak_mib: u64,
    /// The beginning of what it wrote to its descriptor 1.
    #[serde(default, skip_serializing_if = "Blob::is_empty")]
    pub stdout: Blob,
    /// The beginning of what it wrote to its descriptor 2.
    #[serde(default, skip_serializing_if = "Blob::is_empty")]
    pub stderr: Blob,
    /// How much it wrote to its descriptor 1 in all.
    #[serde(default, skip_serializing_if = "is_zero")]
    pub stdout_bytes: u64,
    /// How much it wrote to its descriptor 2 in all.
    #[serde(default, skip_serializing_if = "is_zero")]
    pub stderr_bytes: u64,
    /// The declared outputs, by name.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub outputs: BTreeMap<String, Blob>,
}

impl Ending {
    /// An ending with a state and nothing measured.
    pub fn new(state: IndexState) -> Self {
        Self {
            node: None,
            state,
            exit_code: None,
            signal: None,
            why: None,
            reason: None,
            queued_at: None,
            started_at: None,
            ended_at: None,
            ran_s: Seconds::default(),
            cpu_s: Seconds::default(),
            memory_peak_mib: 0,
            stdout: Blob::default(),
            stderr: Blob::default(),
            stdout_bytes: 0,
            stderr_bytes: 0,
            outputs: BTreeMap::new(),
        }
    }

    /// An ending that is somebody's decision, with its stable word and its sentence.
    pub fn because(state: IndexState, reason: &str, why: impl Into<String>) -> Self {
        let mut ending = Self::new(state);
        ending.reason = Some(reason.to_owned());
        ending.why = Some(why.into());
        ending
    }
}

/// Stable words of [`Ending::reason`].
pub mod reason {
    /// It exited with another code than 0.
    pub const EXIT_CODE: &str = "exit_code";
    /// A signal that was not ours ended it.
    pub const SIGNAL: &str = "signal";
    /// It ran longer than its `timeout_s`.
    pub const TIMEOUT: &str = "timeout";
    /// Somebody cancelled it.
    pub const CANCELLED: &str = "cancelled";
    /// The program could not be started (not found: exit code 127; not executable: 126).
    pub const NOT_STARTED: &str = "not_started";
    /// A declared output is larger than fits into an outcome.
    pub const OUTPUT_TOO_LARGE: &str = "output_too_large";
    /// A declared output is not there.
    pub const OUTPUT_MISSING: &str = "output_missing";
    /// Its node went silent past its lease, as often as is allowed.
    pub const LOST: &str = "lost";
    /// A task that it needs did not finish.
    pub const NEEDS: &str = "needs";
    /// An open work was not closed in time.
    pub const NOT_CLOSED: &str = "not_closed";
    /// The node ended it because no worker came back, or because the node was shut down.
    pub const NODE_LEFT: &str = "node_left";
}

/// How one index ended (or how it stands), as `results` and `run` answer it.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct Outcome {
    /// Which task.
    pub task: TaskName,
    /// Which index of it.
    pub index: Index,
    /// Which attempt; 0 when none was made.
    #[serde(default)]
    pub attempt: Attempt,
    /// Where it ran.
    pub node: Option<NodeName>,
    /// How it stands.
    pub state: IndexState,
    /// The process's exit code.
    pub exit_code: Option<i32>,
    /// The signal that ended it.
    pub signal: Option<i32>,
    /// Why it did not finish, in one sentence.
    pub why: Option<String>,
    /// A stable word for `why`: one of [`reason`].
    #[serde(default)]
    pub reason: Option<String>,
    /// When it became ready.
    pub queued_at: Option<Stamp>,
    /// When the node started it.
    pub started_at: Option<Stamp>,
    /// When it ended.
    pub ended_at: Option<Stamp>,
    /// Wall-clock time from start to end, by the node's own clock.
    #[serde(default)]
    pub ran_s: Seconds,
    /// Processor time of the whole tree.
    #[serde(default)]
    pub cpu_s: Seconds,
    /// Largest resident memory.
    #[serde(default)]
    pub memory_peak_mib: u64,
    /// The beginning of its stdout, at most [`INLINE_BYTES`].
    #[serde(default)]
    pub stdout: Blob,
    /// The beginning of its stderr, at most [`INLINE_BYTES`].
    #[serde(default)]
    pub stderr: Blob,
    /// Length of its whole stdout.
    #[serde(default)]
    pub stdout_bytes: u64,
    /// Length of its whole stderr.
    #[serde(default)]
    pub stderr_bytes: u64,
    /// The declared outputs, by name.
    #[serde(default)]
    pub outputs: BTreeMap<String, Blob>,
}

impl Outcome {
    /// Joins what is known of the index with how its attempt ended.
    pub fn new(task: TaskName, index: Index, attempt: Attempt, ending: Ending) -> Self {
        Self {
            task,
            index,
            attempt,
            node: ending.node,
            state: ending.state,
            exit_code: ending.exit_code,
            signal: ending.signal,
            why: ending.why,
            reason: ending.reason,
            queued_at: ending.queued_at,
            started_at: ending.started_at,
            ended_at: ending.ended_at,
            ran_s: ending.ran_s,
            cpu_s: ending.cpu_s,
            memory_peak_mib: ending.memory_peak_mib,
            stdout: ending.stdout,
            stderr: ending.stderr,
            stdout_bytes: ending.stdout_bytes,
            stderr_bytes: ending.stderr_bytes,
            outputs: ending.outputs,
        }
    }
}

/// How a work stands, as `get`, `wait`, `list` and the key in `lh-work` say it.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct Summary {
    /// Its id.
    pub work: WorkId,
    /// Its name, for people.
    #[serde(default)]
    pub name: String,
    /// Whose it is.
    pub owner: OwnerName,
    /// How it stands.
    pub state: WorkState,
    /// Why it waits or did not finish, in one sentence.
    #[serde(default)]
    pub why: Option<String>,
    /// When it was accepted.
    pub submitted_at: Stamp,
    /// When its last index ended.
    #[serde(default)]
    pub ended_at: Option<Stamp>,
    /// How often it was retried.
    #[serde(default, skip_serializing_if = "is_zero")]
    pub round: u32,
    /// Whether tasks and items may still be appended.
    #[serde(default, skip_serializing_if = "is_zero")]
    pub open: bool,
    /// Its tasks, in the order in which they were written.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub tasks: Vec<TaskSummary>,
}

/// How a task stands: how many of its indices are in which state.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct TaskSummary {
    /// Its name.
    pub task: TaskName,
    /// `waiting`, `ready`, `running`, or how it ended as a whole.
    pub state: IndexState,
    /// How many indices it has.
    pub total: u64,
    /// How many wait.
    pub waiting: u64,
    /// How many could start if a node had room.
    pub ready: u64,
    /// How many are on a node.
    pub running: u64,
    /// How many finished.
    pub finished: u64,
    /// How many failed.
    pub failed: u64,
    /// How many were cancelled.
    pub cancelled: u64,
    /// How many were skipped.
    pub skipped: u64,
    /// How many attempts were lost.
    pub lost: u64,
    /// The first few failures.
    pub first_failures: Vec<Failure>,
}

/// One failure, in short.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct Failure {
    /// Which index.
    pub index: Index,
    /// Where it ran.
    #[serde(default)]
    pub node: Option<NodeName>,
    /// Its exit code.
    #[serde(default)]
    pub exit_code: Option<i32>,
    /// The signal that ended it.
    #[serde(default)]
    pub signal: Option<i32>,
    /// Why, in one sentence.
    #[serde(default)]
    pub why: Option<String>,
}

/// A summary names at most so many failures a task.
pub const FIRST_FAILURES: usize = 3;
