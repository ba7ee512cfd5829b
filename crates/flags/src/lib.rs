//! soci-flags.
