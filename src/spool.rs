//! Keeps things on disk.
