//! How it is carried: the only room in which the word NATS occurs.
//!
//! [`Bus`] is one connection of one process, acting as one caller: requests, plain messages, micro
//! services. [`log::Log`] is a stream that keeps what is said (the journal, output), [`kv::Kv`] a
//! bucket for leases and summaries, [`inbox::Inbox`] the queue of submits while no manager is up,
//! [`streams`] what streams a house has. [`server`] finds, starts and keeps the bus itself.
//! [`clock`] is the only clock.

pub mod clock;
mod connect;
pub mod error;
pub mod inbox;
pub mod kv;
pub mod log;
pub mod message;
pub mod server;
pub mod service;
pub mod streams;

pub use connect::{Bus, Connection, Settings};
pub use error::{Error, StoreError};
pub use message::{Hearing, Message};
pub use service::{Asked, Endpoint, Service, Serving};

/// What one message may hold, in bytes; the bus is configured for it.
pub const MAX_PAYLOAD: usize = 1024 * 1024;

/// Largest body that we put into one message, with room for headers and the envelope.
pub const MAX_BODY: usize = MAX_PAYLOAD - 16 * 1024;
