//! Daemon flags.
