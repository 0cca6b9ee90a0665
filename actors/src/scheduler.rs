//! The scheduler of a pool: it decides which node runs what, and what is tried again.
//!
//! It is a fold over the journal ([`crate::journal`]) with a pure machine on top ([`core`]), that
//! acts only while it holds the pool's lease ([`lease`]). Its shell performs what the
//! machine says: writes into the journal, questions to nodes, answers.

pub mod core;
pub mod lease;
pub mod place;

mod actor;
mod appends;
mod clients;
mod keep;
mod nodes;
mod queue;
mod reports;
mod why;

#[cfg(test)]
mod audit;
#[cfg(test)]
mod sim;
#[cfg(test)]
mod tests;

pub use actor::{Error, Handle, start};
pub use keep::Process;

use schemas::time::Seconds;
use serde::{Deserialize, Serialize};

/// Every interval and limit of a scheduler.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Settings {
    /// A node that was not heard for so long gets nothing new.
    pub silent_after_s: Seconds,
    /// The shortest lease of a job, and that of a node without jobs.
    pub lost_after_s: Seconds,
    /// The longest lease that a job earns by having run.
    pub lost_after_most_s: Seconds,
    /// So much longer than the node does the scheduler wait before it calls a job lost.
    pub lost_grace_s: Seconds,
    /// How often an index may be lost and tried again.
    pub lost_most: u32,
    /// Pause before the first retry; it doubles with each.
    pub retry_first_s: Seconds,
    /// Longest pause before a retry.
    pub retry_most_s: Seconds,
    /// Jobs that may be started at most once are asked so long after their `assigned` was stored.
    pub at_most_once_wait_s: Seconds,
    /// Work for so much time may wait on a node beyond what it has room for.
    pub ahead_s: Seconds,
    /// Most indices that one node may have at a time.
    pub outstanding: u64,
    /// How long a node may take to answer.
    pub ask_timeout_s: Seconds,
    /// What was not answered is asked again after so long.
    pub ask_again_s: Seconds,
    /// A write that was not answered is repeated after so long.
    pub write_again_s: Seconds,
    /// Ends of works are recorded together, at most so late.
    pub finished_every_s: Seconds,
    /// A work's summary is written at most so often.
    pub summary_every_s: Seconds,
    /// Most summaries written per second, over all works.
    pub summaries_per_s: u64,
    /// A task that finds no room for so long has a node kept free for it.
    pub reserve_after_s: Seconds,
    /// How long the lease holds without being renewed.
    pub lease_s: Seconds,
    /// How often it is renewed.
    pub lease_renew_s: Seconds,
}

impl Default for Settings {
    fn default() -> Self {
        Self {
            silent_after_s: Seconds::new(7),
            lost_after_s: Seconds::new(30),
            lost_after_most_s: Seconds::new(3600),
            lost_grace_s: Seconds::new(5),
            lost_most: 3,
            retry_first_s: Seconds::new(1),
            retry_most_s: Seconds::new(300),
            at_most_once_wait_s: Seconds::from_ms(1500),
            ahead_s: Seconds::from_ms(200),
            outstanding: 16_384,
            ask_timeout_s: Seconds::new(5),
            ask_again_s: Seconds::new(1),
            write_again_s: Seconds::from_ms(200),
            finished_every_s: Seconds::from_ms(250),
            summary_every_s: Seconds::new(1),
            summaries_per_s: 2000,
            reserve_after_s: Seconds::new(30),
            lease_s: Seconds::new(5),
            lease_renew_s: Seconds::from_ms(1600),
        }
    }
}
