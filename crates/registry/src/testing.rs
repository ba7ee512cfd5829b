//! Test doubles: an in-process registry with a fault script, implementations of the traits, and
//! conformance suites for implementations of a trait. Requires the feature `testing`; never part of
//! a release.
//!
//! * [`TestRegistry`] serves HTTP/1.1 or TLS on 127.0.0.1. It implements enough of the distribution
//!   protocol for this crate's client, `crane`, `ctr` and docker to pull and push, and fails as its
//!   script says.
//! * [`MemoryBlob`] and [`FaultyFetcher`] implement [`crate::fetch::Fetcher`] without a network.
//! * [`conformance`] tests the contract of a `Fetcher`.

mod access;
mod blobs;
pub mod conformance;
mod fault;
mod fetchers;
mod push;
mod referrers;
mod registry;
mod serve;
mod setup;
mod state;
mod target;

pub use access::Access;
pub use fault::{Fault, On, Wrong};
pub use fetchers::{FaultyFetcher, FetchFault, MemoryBlob};
pub use registry::TestRegistry;
pub use setup::{Expired, Redirect, Referrers, Setup};
pub use state::Seen;

/// Deterministic pseudorandom bytes. Byte `i` depends only on `i` and `seed`.
pub fn noise(seed: u64, len: usize) -> Vec<u8> {
    let mut state = seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) ^ 0x2545_f491_4f6c_dd1d;
    let mut out = Vec::with_capacity(len + 8);
    while out.len() < len {
        // SplitMix64: each step produces eight bytes.
        state = state.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = state;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        out.extend_from_slice(&(z ^ (z >> 31)).to_le_bytes());
    }
    out.truncate(len);
    out
}
