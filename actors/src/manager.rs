//! The manager: takes works, answers questions about them, shows what they write.
//!
//! It keeps nothing of its own: everything it knows is a fold over the journals of its pools, so any
//! number of managers may serve a house. What is decided lies in [`core`]; [`actor`] hears, writes
//! and answers; [`follower`] serves one who follows, [`hub`] feeds all of them from one tail.

mod actor;
mod core;
mod follow;
mod follower;
mod hub;
mod ingress;
mod pace;
mod results;
mod sweep;

pub use actor::{Error, Handle, start};

use schemas::{time::Seconds, token::PoolName};
use serde::{Deserialize, Serialize};

/// How a manager is set up.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Settings {
    /// The pools it serves; refused messages of the inbox are recorded in the first by name.
    pub pools: Vec<PoolName>,
    /// How much the bus may store in all; the streams get their shares of it.
    pub store_mib: u64,
    /// How much the stream of output may hold; by default its share.
    pub output_mib: Option<u64>,
    /// How long output is kept.
    pub output_days: u64,
    /// Answers that may be held for one caller.
    pub held_per_caller: usize,
    /// Works that one caller may follow at a time.
    pub follows_per_caller: usize,
    /// Requests that may be open in all.
    pub open_requests: usize,
    /// How often the scheduler is asked for its nodes.
    pub nodes_every_s: Seconds,
    /// How often it is looked whether the stream of output is nearly full.
    pub sweep_every_s: Seconds,
    /// Output of a work that ended more recently than this stays, however full it is.
    pub output_stays_s: Seconds,
    /// How long output may come after its work has ended, before a follower is told that this was
    /// all.
    pub output_grace_s: Seconds,
    /// A follower who is silent is spoken to so often, to find out whether he is still there.
    pub probe_s: Seconds,
    /// How often a node is told that its reader is still there.
    pub read_every_s: Seconds,
}

impl Default for Settings {
    fn default() -> Self {
        Self {
            pools: vec![PoolName::main()],
            store_mib: 10 * 1024,
            output_mib: None,
            output_days: 7,
            held_per_caller: 10_000,
            follows_per_caller: 256,
            open_requests: 16_384,
            nodes_every_s: Seconds::new(10),
            sweep_every_s: Seconds::new(5),
            output_stays_s: Seconds::new(120),
            output_grace_s: Seconds::new(10),
            probe_s: Seconds::new(60),
            read_every_s: Seconds::new(5),
        }
    }
}
