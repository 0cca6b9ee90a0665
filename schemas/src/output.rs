//! What jobs write while they run: frames of many jobs in one message.

use crate::{
    blob::Blob,
    id::Attempt,
    indices::Index,
    token::{StreamName, TaskName},
};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

/// One message on `lh.out.<owner>.<work>.<stream>.<node>`: frames of one work, one stream, one
/// node. Always MessagePack with named fields.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct Frames {
    /// The frames, in the order in which they were read.
    pub frames: Vec<Frame>,
}

/// A piece of what one attempt wrote.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct Frame {
    /// Which task.
    pub task: TaskName,
    /// Which index of it.
    pub index: Index,
    /// Which attempt.
    pub attempt: Attempt,
    /// Where in the stream the first byte (or the gap) lies, from 0.
    pub offset: u64,
    /// The bytes; empty when `gap` is given.
    #[serde(default, skip_serializing_if = "Blob::is_empty")]
    pub bytes: Blob,
    /// So many bytes were written here and not kept.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub gap: Option<u64>,
}

impl Frame {
    /// The offset just behind it.
    pub fn end(&self) -> u64 {
        self.offset.saturating_add(self.gap.unwrap_or(self.bytes.len() as u64))
    }
}

/// A frame as `follow` says it: with the name of its stream.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct Output {
    /// Which task.
    pub task: TaskName,
    /// Which index of it.
    pub index: Index,
    /// Which attempt.
    pub attempt: Attempt,
    /// `stdout`, `stderr` or any other.
    pub stream: StreamName,
    /// Where in the stream it lies.
    pub offset: u64,
    /// The bytes; empty when `gap` is given.
    #[serde(default, skip_serializing_if = "Blob::is_empty")]
    pub bytes: Blob,
    /// So many bytes were written here and not kept.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub gap: Option<u64>,
}
