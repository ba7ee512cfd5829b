//! Images as the kernel and as the reader see them.

#![allow(
    clippy::cast_possible_truncation,
    reason = "small numbers of the tests' own"
)]

mod kernel;
mod limits;
mod reader;
mod trees;
