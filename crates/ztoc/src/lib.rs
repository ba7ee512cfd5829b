//! soci-ztoc.
