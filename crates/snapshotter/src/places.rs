//! Tar offsets and places in data or heads.
