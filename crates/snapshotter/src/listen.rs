//! Listening: socket path, activation, readiness.
