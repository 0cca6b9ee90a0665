//! Who decides and who serves: the manager and the scheduler, and the fold over facts they share.

mod ear;
pub mod journal;
pub mod manager;
pub mod scheduler;
