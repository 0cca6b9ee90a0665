//! Sends works.
