//! What a scheduler asks of a node, and what the node reports.
//!
//! Every request carries [`Ask`]: (epoch, n) counts up, and the instance says which life of the
//! node's keeper is meant. Owner and work are opaque labels to the node.

use crate::{
    amount::Room,
    id::{Attempt, Epoch, InstanceId, WorkId},
    indices::Indices,
    outcome::Ending,
    time::Seconds,
    token::{OwnerName, TaskName},
    work::{OutputFile, OutputPolicy, Run},
};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use std::sync::Arc;

/// The place of a request in everything that schedulers ever ask: later is larger.
#[derive(
    Clone,
    Copy,
    Debug,
    Default,
    PartialEq,
    Eq,
    PartialOrd,
    Ord,
    Hash,
    Serialize,
    Deserialize,
    JsonSchema,
)]
pub struct Pair {
    /// Which scheduler.
    pub epoch: Epoch,
    /// Its how manieth request to anybody.
    pub n: u64,
}

/// What every request of a scheduler to a node begins with.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct Ask {
    /// Which scheduler.
    pub epoch: Epoch,
    /// Its how manieth request.
    pub n: u64,
    /// Meant for this life of the node's keeper; any other answers `not_me`.
    pub instance: InstanceId,
}

impl Ask {
    /// The pair that is compared.
    pub fn pair(&self) -> Pair {
        Pair { epoch: self.epoch, n: self.n }
    }
}

/// `lh.node.<node>.jobs`: start these. The answer says which were not taken.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct JobsRequest {
    /// Who asks whom.
    pub ask: Ask,
    /// What.
    pub jobs: Vec<JobBatch>,
}

/// Jobs of one task with one attempt number.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct JobBatch {
    /// A label.
    pub owner: OwnerName,
    /// A label.
    pub work: WorkId,
    /// A label.
    pub task: TaskName,
    /// Which attempt.
    pub attempt: Attempt,
    /// Which indices.
    pub indices: Indices,
    /// The item of each index, in the same order; empty for arrays without items.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub items: Vec<Arc<str>>,
    /// What is run.
    pub spec: Arc<JobSpec>,
}

/// What a node must know of a task to run it.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct JobSpec {
    /// What is run.
    pub run: Run,
    /// Whether `{index}` (and `{item}`, where there are items) are replaced.
    pub array: bool,
    /// What each takes.
    pub room: Room,
    /// Memory that each of its cards must have.
    #[serde(default)]
    pub vram_mib: u64,
    /// How long each may run.
    #[serde(default)]
    pub timeout_s: Option<Seconds>,
    /// Files that come back.
    #[serde(default)]
    pub outputs: Vec<OutputFile>,
    /// Names of variables that are taken from the worker's environment.
    #[serde(default)]
    pub env_from_node: Vec<String>,
    /// How much of the output is kept.
    #[serde(default)]
    pub output: OutputPolicy,
    /// After how much time without a worker the keeper ends it, if the work says so itself.
    #[serde(default)]
    pub lost_after_s: Option<Seconds>,
}

/// The answer to [`JobsRequest`]: everything that is not named here was taken.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct JobsAnswer {
    /// What was not taken, and was not started.
    #[serde(default)]
    pub refused: Vec<RefusedJobs>,
}

/// Jobs that a node does not take.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct RefusedJobs {
    /// Which.
    pub jobs: JobRef,
    /// Why, in one sentence.
    pub why: String,
}

/// Names jobs.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct JobRef {
    /// A label.
    pub work: WorkId,
    /// A label.
    pub task: TaskName,
    /// Which attempt.
    pub attempt: Attempt,
    /// Which indices.
    pub indices: Indices,
}

/// `lh.node.<node>.stop`: end these. Answered at once with [`StopAnswer`]; what became of them is
/// reported. Jobs that are not there are passed over.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct StopRequest {
    /// Who asks whom.
    pub ask: Ask,
    /// Which.
    pub jobs: Vec<JobRef>,
    /// Why.
    pub why: StopWhy,
}

/// Why a job is stopped.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum StopWhy {
    /// Somebody cancelled the work: the end is reported as `cancelled`.
    Cancelled,
    /// The journal does not know the attempt (any more): nobody waits for its report.
    Stale,
}

/// The answer to [`StopRequest`].
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct StopAnswer {}

/// `lh.node.<node>.held`: what do you hold? Asked first of every instance.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct HeldRequest {
    /// Who asks whom.
    pub ask: Ask,
}

/// What a node holds: what runs or waits there, and what has ended but is unanswered.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct HeldAnswer {
    /// Which instance speaks.
    pub instance: InstanceId,
    /// What it holds.
    pub jobs: Vec<HeldJobs>,
    /// The highest pair it had seen before this request.
    pub highest: Pair,
}

/// Jobs that a node holds.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct HeldJobs {
    /// Which.
    pub jobs: JobRef,
    /// By which scheduler they were assigned.
    pub epoch: Epoch,
    /// Whether they have ended and only the report is unanswered.
    #[serde(default)]
    pub ended: bool,
}

/// `lh.node.<node>.read`: how far the reader who paces a job has come. From managers, without
/// [`Ask`]: it cannot change what becomes of a job.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct ReadRequest {
    /// Which work.
    pub work: WorkId,
    /// Which task.
    pub task: TaskName,
    /// Which index.
    pub index: u32,
    /// Which attempt.
    pub attempt: Attempt,
    /// Everything before this offset of the stream has been read.
    pub offset: u64,
    /// Which stream.
    pub stream: crate::token::StreamName,
}

/// The answer to [`ReadRequest`].
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct ReadAnswer {
    /// Whether the job is (still) there.
    pub known: bool,
}

/// `lh.report.<pool>.<node>`: what became of jobs. Kept by the node until it is answered, and said
/// again when it is not; each entry names the instance that ran it, whoever sends it.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct Report {
    /// What became of which jobs.
    pub entries: Vec<ReportEntry>,
    /// Instances of this node that are gone with everything they ran.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub failed: Vec<InstanceId>,
}

/// What became of jobs of one task with one attempt number.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct ReportEntry {
    /// A label.
    pub owner: OwnerName,
    /// Which.
    pub jobs: JobRef,
    /// By which scheduler they were assigned.
    pub epoch: Epoch,
    /// Which instance held them.
    pub instance: InstanceId,
    /// What became of them.
    pub became: Became,
    /// How long ago, when this message was sent.
    #[serde(default)]
    pub ago_s: Seconds,
}

/// What became of a job.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum Became {
    /// It ended.
    Ended(Box<Ending>),
    /// It was never started.
    Returned {
        /// Why, in one sentence.
        why: String,
    },
    /// The node itself ended it, leaving or for want of a worker.
    Lost {
        /// Why, in one sentence.
        why: String,
    },
}

/// The answer to [`Report`]: it is stored, or nobody waits for it. The node may forget it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct ReportAnswer {
    /// Which scheduler answers.
    pub epoch: Epoch,
    /// Counts with its requests.
    pub n: u64,
}
