//! What may be said in a house: messages, subjects, ids, amounts. No I/O, no clock, no opinion on
//! how any of it is carried.
//!
//! Read in this order: [`token`] and [`id`] (names), [`amount`], [`time`] and [`blob`] (values),
//! [`work`] (what a user asks for), [`fact`] (what counts), [`job`] and [`node`] (what scheduler
//! and nodes say to each other), [`outcome`] (what comes back), [`request`] (what clients may ask),
//! [`subject`] (where each is said), [`codec`] (as which bytes) and [`catalog`] (every message).

pub mod amount;
pub mod blob;
pub mod catalog;
pub mod codec;
pub mod error;
pub mod fact;
pub mod id;
pub mod indices;
pub mod job;
pub mod node;
pub mod outcome;
pub mod output;
pub mod request;
pub mod subject;
pub mod time;
pub mod token;
pub mod work;

/// The number that stored data carry; a reader of `n` also reads `n - 1`.
pub const SCHEMA: u32 = 1;
