//! soci-index.
