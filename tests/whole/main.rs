//! Whole houses through their front door: a real bus, the real binary, real processes.

#![expect(
    clippy::unwrap_used,
    clippy::disallowed_methods,
    reason = "tests may panic and look around"
)]

mod bad_input;
mod cli;
mod clients;
mod first_light;
mod house;
mod jobs;
mod lifecycle;
mod output;
mod recipes;
mod terminal;
