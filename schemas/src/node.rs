//! Nodes: what a machine is, what it lends, and that it is alive.

use crate::{
    amount::Room,
    id::InstanceId,
    job::Pair,
    time::Stamp,
    token::{NodeName, PoolName, SiteName},
};
use schemars::JsonSchema;
use serde::{Deserialize, Deserializer, Serialize, de::Error};
use std::sync::Arc;

/// `lh.beat.<node>`: every 2 s; alive, and what it has. A node that leaves says so in its last one.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct Beat {
    /// Its name.
    pub node: NodeName,
    /// Which life of its keeper.
    pub instance: InstanceId,
    /// Which pool it serves.
    pub pool: PoolName,
    /// Which LAN it is in.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub site: Option<SiteName>,
    /// What time it thinks it is.
    pub at: Stamp,
    /// Since when this instance lives, by the same clock.
    pub since: Stamp,
    /// What it lends.
    pub total: Room,
    /// What its jobs take of it.
    pub used: Room,
    /// What it is.
    #[serde(default)]
    pub inventory: Arc<Inventory>,
    /// What it holds, in short.
    pub digest: Digest,
    /// The highest pair its keeper has seen.
    pub highest: Pair,
    /// It finishes what it has and takes no new jobs, because it is about to leave.
    #[serde(default, skip_serializing_if = "crate::amount::is_zero")]
    pub closing: bool,
    /// Its last words: no job of it is left and none will be taken.
    #[serde(default, skip_serializing_if = "crate::amount::is_zero")]
    pub leaving: bool,
    /// Version of its program.
    pub version: String,
}

/// What a node holds, in short.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct Digest {
    /// Jobs that run.
    pub running: u64,
    /// Jobs that wait there for room.
    pub queued: u64,
    /// Jobs that have ended and whose report is unanswered.
    pub unanswered: u64,
}

/// What a machine is. Nothing in it is needed to run a job but the cards.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(default)]
pub struct Inventory {
    /// Its host name.
    pub host: String,
    /// `linux`, `macos` …, with its version.
    pub os: String,
    /// `x86_64`, `aarch64` …
    pub arch: String,
    /// The processor's name.
    pub cpu: String,
    /// All its logical cores, lent or not.
    pub cores: u64,
    /// All its memory.
    pub memory_mib: u64,
    /// Free space where scratch folders lie.
    pub disk_free_mib: u64,
    /// Its graphics cards, those that are lent.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub cards: Vec<Card>,
    /// Its addresses in its LAN.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub addresses: Vec<String>,
}

/// One graphics card.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(default)]
pub struct Card {
    /// Its number, as in `CUDA_VISIBLE_DEVICES`.
    pub index: u32,
    /// Its name.
    pub name: String,
    /// Its own id, where the driver gives one.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub uuid: Option<String>,
    /// Its memory.
    pub vram_mib: u64,
}

/// How a node stands, as `nodes` answers it.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct NodeView {
    /// Its name.
    pub node: NodeName,
    /// Which pool it serves.
    pub pool: PoolName,
    /// Which LAN it is in.
    #[serde(default)]
    pub site: Option<SiteName>,
    /// How it stands.
    pub state: NodeState,
    /// Why it is not ready, in one sentence.
    #[serde(default)]
    pub why: Option<String>,
    /// `cpu` or `tensor` (it has cards).
    pub kind: String,
    /// Which life of its keeper.
    pub instance: InstanceId,
    /// What it lends.
    pub total: Room,
    /// What is taken of it.
    pub used: Room,
    /// Jobs there, by the journal.
    pub jobs: u64,
    /// What it is.
    pub inventory: Arc<Inventory>,
    /// When it was last heard.
    pub heard_at: Stamp,
    /// How far its clock is ahead of the scheduler's, when it was last heard.
    #[serde(default, deserialize_with = "finite")]
    pub clock_ahead_s: f64,
    /// Version of its program.
    pub version: String,
}

/// MessagePack can say numbers that JSON cannot.
fn finite<'de, D: Deserializer<'de>>(d: D) -> Result<f64, D::Error> {
    let number = f64::deserialize(d)?;
    let refused = || D::Error::custom(format_args!("{number} is no number of seconds"));
    if number.is_finite() { Ok(number) } else { Err(refused()) }
}

/// How a node stands.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum NodeState {
    /// It takes jobs.
    Ready,
    /// Its scheduler does not know yet what it holds.
    Joining,
    /// It finishes what it has and takes nothing new.
    Drained,
    /// It has not been heard for a while; its jobs are not given up yet.
    Silent,
    /// Its lease is over.
    Lost,
    /// It said goodbye.
    Left,
}

impl NodeState {
    /// The word, as it is said everywhere.
    pub fn as_str(self) -> &'static str {
        match self {
            NodeState::Ready => "ready",
            NodeState::Joining => "joining",
            NodeState::Drained => "drained",
            NodeState::Silent => "silent",
            NodeState::Lost => "lost",
            NodeState::Left => "left",
        }
    }
}
