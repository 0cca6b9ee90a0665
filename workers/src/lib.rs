//! Who does: the node agent, and the keeper that owns the processes of its jobs.
//!
//! The agent ([`start`]) speaks with the house over the bus and with the keeper over a Unix socket
//! ([`protocol`]); the keeper ([`keeper_main`]) is a process of its own that outlives it. Works, owners and
//! tasks are opaque labels to both.

mod agent;
mod keeper;
mod orphans;
pub mod protocol;
mod socket;

pub use agent::{Agent, Error, Held, Lend, LendError, Settings, look, start};
pub use keeper::{Error as KeeperError, keeper_main};
pub use orphans::end_keepers;
pub use socket::{connect, dial, listen};
