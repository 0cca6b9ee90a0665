//! Reads works from files.
