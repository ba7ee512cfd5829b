//! Neighbours for tests: an in-process registry with a fault script, doubles of the traits, and suites that every
//! implementation of a trait must pass. Only with feature `testing`, never in a release.
//!
//! * [`TestRegistry`]: HTTP/1.1 (or TLS) on 127.0.0.1, speaks enough of the distribution protocol for our client,
//!   `crane`, `ctr` and docker to pull and push, and does wrong what its script says.
//! * [`MemoryBlob`], [`FaultyFetcher`]: [`crate::fetch::Fetcher`] without a network.
//! * [`conformance`]: what a `Fetcher` promises.

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

/// Bytes that look like nothing in particular and are the same at every call: byte `i` depends on `i` and `seed` only.
pub fn noise(seed: u64, len: usize) -> Vec<u8> {
    let mut state = seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) ^ 0x2545_f491_4f6c_dd1d;
    let mut out = Vec::with_capacity(len + 8);
    while out.len() < len {
        // SplitMix64: one step gives eight bytes.
        state = state.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = state;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        out.extend_from_slice(&(z ^ (z >> 31)).to_le_bytes());
    }
    out.truncate(len);
    out
}
