//! A work, as a user writes it: a named graph of tasks. Its check lies in [`check`].

pub mod check;

use crate::{
    amount::{Cpus, Room, is_zero},
    blob::Blob,
    id::WorkId,
    indices::Index,
    time::Seconds,
    token::{NodeName, OwnerName, PoolName, SiteName, TaskName},
};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use std::{borrow::Cow, collections::BTreeMap, sync::Arc};

/// Largest number of indices of one array.
pub const MAX_INDICES: u64 = 10_000_000;
/// Longest item, in bytes.
pub const MAX_ITEM: usize = 64 * 1024;
/// All items of one work together, in bytes.
pub const MAX_ITEMS: usize = 256 * 1024 * 1024;
/// Most tasks of one work.
pub const MAX_TASKS: usize = 100_000;
/// Longest `name` of a work, in characters.
pub const MAX_NAME: usize = 200;

/// A work with everything decided that can be decided before it is accepted; what `accepted` holds.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct WorkSpec {
    /// Free text for people, at most 200 characters.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub name: String,
    /// Higher goes first, −100 to 100.
    #[serde(default, skip_serializing_if = "is_zero")]
    pub priority: i32,
    /// Which nodes may run it.
    #[serde(default = "PoolName::main", skip_serializing_if = "is_main_pool")]
    pub pool: PoolName,
    /// Whether tasks and items may still be appended.
    #[serde(default, skip_serializing_if = "is_zero")]
    pub open: bool,
    /// An open work without an `append` for so long is closed and fails; by default an hour.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub open_timeout_s: Option<Seconds>,
    /// After how much silence of its node a job is lost; by default 30 s or a tenth of the time it
    /// has run, up to an hour.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub lost_after_s: Option<Seconds>,
    /// What is to be done.
    #[serde(default)]
    pub tasks: Vec<Arc<Task>>,
}

fn is_main_pool(pool: &PoolName) -> bool {
    *pool == PoolName::main()
}

/// One vertex of a work: what to run, what it needs. With `array` it stands for many alike.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct Task {
    /// Its name within the work.
    pub name: TaskName,
    /// Tasks that must finish first.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub needs: Vec<TaskName>,
    /// What is run.
    pub run: Run,
    /// Makes it many: told apart by `{index}` and `{item}`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub array: Option<Array>,
    /// Objects to be put into the scratch folder. Not built yet: must be empty.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub inputs: Vec<serde_json::Value>,
    /// Files that come back in the outcome.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub outputs: Vec<OutputFile>,
    /// What one job of it takes of a node.
    #[serde(default, skip_serializing_if = "is_zero")]
    pub resources: Resources,
    /// Where it may run.
    #[serde(default, rename = "where", skip_serializing_if = "is_zero")]
    pub place: Where,
    /// How often a failed attempt is tried again, after 1 s, doubling to 5 min, ± 20 %.
    #[serde(default, skip_serializing_if = "is_zero")]
    pub retries: u32,
    /// What happens when its node goes silent past its lease.
    #[serde(default, skip_serializing_if = "is_zero")]
    pub lost: LostPolicy,
    /// How long an attempt may run.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub timeout_s: Option<Seconds>,
    /// Names of environment variables that are taken from the worker's own environment.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub env_from_node: Vec<String>,
    /// How long it lasts.
    #[serde(default, skip_serializing_if = "is_zero")]
    pub lifetime: Lifetime,
    /// How much of its output is kept.
    #[serde(default, skip_serializing_if = "is_zero")]
    pub output: OutputPolicy,
}

impl Task {
    /// How many indices it has at first.
    pub fn count(&self) -> u32 {
        match &self.array {
            None => 1,
            Some(array) => array.len().try_into().unwrap_or(u32::MAX),
        }
    }

    /// What one job of it takes of a node. A process takes a core if nothing is said; an `echo`
    /// takes nothing.
    pub fn room(&self) -> Room {
        let r = &self.resources;
        let cpus = r.cpus.unwrap_or(match self.run {
            Run::Process(_) => Cpus::new(1),
            Run::Echo(_) => Cpus::default(),
        });
        Room {
            cpus,
            memory_mib: r.memory_mib,
            gpus: r.gpus,
            disk_mib: r.disk_mib,
            custom: r.custom.clone(),
        }
    }
}

/// How a job is executed: exactly one of the runners.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case", try_from = "Runners")]
pub enum Run {
    /// A program with arguments; never handed to a shell.
    Process(Process),
    /// Answers its argument as its stdout, without a process.
    Echo(Blob),
}

/// [`Run`] as it is read: as fields, so that a refusal can name the way to what is wrong.
#[derive(Deserialize, JsonSchema)]
struct Runners {
    /// A program with arguments; never handed to a shell.
    process: Option<Process>,
    /// Answers its argument as its stdout, without a process.
    echo: Option<Blob>,
}

impl TryFrom<Runners> for Run {
    type Error = &'static str;

    fn try_from(runners: Runners) -> Result<Self, Self::Error> {
        match (runners.process, runners.echo) {
            (Some(process), None) => Ok(Run::Process(process)),
            (None, Some(echo)) => Ok(Run::Echo(echo)),
            _ => Err("`run` has exactly one runner: `process` or `echo`"),
        }
    }
}

/// A program to run.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct Process {
    /// The program (looked up in the PATH of the job) and its arguments.
    pub argv: Vec<String>,
    /// Environment variables beside those that every job has.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub env: BTreeMap<String, String>,
    /// What it reads from its descriptor 0; nothing when absent.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub stdin: Option<Blob>,
}

/// What makes a task many: exactly one of the two.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct Array {
    /// So many, with the indices 0 to `count` − 1.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub count: Option<u64>,
    /// One for each item.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub items: Option<Vec<Arc<str>>>,
}

impl Array {
    /// How many indices.
    pub fn len(&self) -> u64 {
        self.count.unwrap_or_else(|| self.items.as_ref().map_or(0, |items| items.len() as u64))
    }

    /// Whether there are none.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }
}

/// A file of the scratch folder that comes back in the outcome.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct OutputFile {
    /// Its key in `outputs`.
    pub name: String,
    /// Its path below the scratch folder.
    pub path: String,
}

/// What one job takes of a node.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct Resources {
    /// Cores; by default 1 for a process and 0 for an `echo`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub cpus: Option<Cpus>,
    /// Memory.
    #[serde(default, skip_serializing_if = "is_zero")]
    pub memory_mib: u64,
    /// Whole graphics cards; the job sees only its own.
    #[serde(default, skip_serializing_if = "is_zero")]
    pub gpus: u64,
    /// Memory that each of its cards must have.
    #[serde(default, skip_serializing_if = "is_zero")]
    pub vram_mib: u64,
    /// Scratch space.
    #[serde(default, skip_serializing_if = "is_zero")]
    pub disk_mib: u64,
    /// Anything else that nodes lend by name.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub custom: BTreeMap<String, u64>,
}

/// Where a task may run; empty means anywhere in the pool.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct Where {
    /// On one of these nodes.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub node: Option<OneOrMany<NodeName>>,
    /// At one of these sites.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub site: Option<OneOrMany<SiteName>>,
}

/// A name, or a list of names.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(untagged, expecting = "expected a name or a list of names")]
pub enum OneOrMany<T> {
    /// One.
    One(T),
    /// Any of these.
    Many(Vec<T>),
}

impl<T: PartialEq> OneOrMany<T> {
    /// As a slice.
    pub fn as_slice(&self) -> &[T] {
        match self {
            OneOrMany::One(one) => std::slice::from_ref(one),
            OneOrMany::Many(many) => many,
        }
    }
}

/// What happens to a job whose node went silent past its lease.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum LostPolicy {
    /// It is tried again elsewhere, at most three times, not counted in `retries`.
    #[default]
    Retry,
    /// It fails. With `retries: 0` the task is started at most once.
    Fail,
}

/// How long a task lasts.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum Lifetime {
    /// It ends by itself.
    #[default]
    Once,
}

/// How much of a task's output is kept, and what happens beyond it.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct OutputPolicy {
    /// How much of each stream is kept.
    #[serde(default = "default_limit_mib")]
    pub limit_mib: u64,
    /// What happens beyond it.
    #[serde(default)]
    pub full: WhenFull,
}

const fn default_limit_mib() -> u64 {
    16
}

impl Default for OutputPolicy {
    fn default() -> Self {
        Self { limit_mib: default_limit_mib(), full: WhenFull::Drop }
    }
}

/// What happens to output beyond the limit.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum WhenFull {
    /// The first half and the last half are kept.
    #[default]
    Drop,
    /// The job waits for a reader that paces it; without one for 30 s it goes on under `drop`.
    Wait,
}

/// What a client says to `submit` and `run`: a work, or one task in the short form (`argv` or `run`
/// with a task's other fields beside it), which becomes a work with the one task `main`.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(default)]
pub struct Submit {
    /// The work's id, a UUIDv7 that the client chose; made by the manager when absent. The same id
    /// with the same spec is the same work.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub work: Option<WorkId>,
    /// Free text for people.
    #[serde(skip_serializing_if = "String::is_empty")]
    pub name: String,
    /// Whose it shall be: the caller (when absent), or a project he belongs to.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub owner: Option<OwnerName>,
    /// Which nodes may run it.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub pool: Option<PoolName>,
    /// Higher goes first, −100 to 100.
    #[serde(skip_serializing_if = "is_zero")]
    pub priority: i32,
    /// Whether tasks and items will be appended.
    #[serde(skip_serializing_if = "is_zero")]
    pub open: bool,
    /// An open work without an `append` for so long fails.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub open_timeout_s: Option<Seconds>,
    /// After how much silence of its node a job is lost.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub lost_after_s: Option<Seconds>,
    /// The tasks.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub tasks: Option<Vec<Arc<Task>>>,
    /// Only for `run`: how long the answer may be held.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub hold_s: Option<Seconds>,
    /// Short form: a program and its arguments.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub argv: Option<Vec<String>>,
    /// Short form: with `argv`, environment variables.
    #[serde(skip_serializing_if = "BTreeMap::is_empty")]
    pub env: BTreeMap<String, String>,
    /// Short form: with `argv`, what it reads.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub stdin: Option<Blob>,
    /// Short form: what is run.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub run: Option<Run>,
    /// Short form: as in a task.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub array: Option<Array>,
    /// Short form: as in a task.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub inputs: Option<Vec<serde_json::Value>>,
    /// Short form: as in a task.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub outputs: Option<Vec<OutputFile>>,
    /// Short form: as in a task.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub resources: Option<Resources>,
    /// Short form: as in a task.
    #[serde(rename = "where", skip_serializing_if = "Option::is_none")]
    pub place: Option<Where>,
    /// Short form: as in a task.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub retries: Option<u32>,
    /// Short form: as in a task.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub lost: Option<LostPolicy>,
    /// Short form: as in a task.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub timeout_s: Option<Seconds>,
    /// Short form: as in a task.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub env_from_node: Option<Vec<String>>,
    /// Short form: as in a task.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub lifetime: Option<Lifetime>,
    /// Short form: as in a task.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub output: Option<OutputPolicy>,
}

/// Puts index and item in the place of `{index}` and `{item}`; other braces stay as they are.
pub fn fill<'a>(text: &'a str, index: Index, item: Option<&str>) -> Cow<'a, str> {
    if !text.contains('{') {
        return Cow::Borrowed(text);
    }
    let mut out = String::with_capacity(text.len() + 16);
    let mut rest = text;
    while let Some(at) = rest.find('{') {
        out.push_str(&rest[..at]);
        rest = &rest[at..];
        if let Some(after) = rest.strip_prefix("{index}") {
            out.push_str(&index.to_string());
            rest = after;
        } else if let (Some(after), Some(item)) = (rest.strip_prefix("{item}"), item) {
            out.push_str(item);
            rest = after;
        } else {
            out.push('{');
            rest = &rest[1..];
        }
    }
    out.push_str(rest);
    Cow::Owned(out)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_these_exact_words_are_replaced_and_only_once() {
        assert_eq!(fill("{index}:{item}", 7, Some("{index}")), "7:{index}");
        assert_eq!(fill("awk '{print $1}' {item", 7, Some("x")), "awk '{print $1}' {item");
        assert_eq!(fill("{{item}}", 0, Some("x")), "{x}");
        assert_eq!(fill("{item}", 0, None), "{item}");
    }

    #[test]
    fn what_is_not_said_is_not_written() {
        let task: Task =
            serde_json::from_str(r#"{"name":"a","run":{"process":{"argv":["true"]}}}"#).unwrap();
        assert_eq!(
            serde_json::to_string(&task).unwrap(),
            r#"{"name":"a","run":{"process":{"argv":["true"]}}}"#
        );
        assert_eq!(task.room().cpus, Cpus::new(1));
    }
}
