//! The `longhouse` command.
fn main() {}
