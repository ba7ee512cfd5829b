//! The one place locks come from.
