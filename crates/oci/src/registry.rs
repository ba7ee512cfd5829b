//! The registry client.

pub mod retry;
