//! Composition root: configuration, parts, serve, drain.
