//! Tests the crate through its public API.
#![allow(
    clippy::cast_possible_truncation,
    clippy::cast_sign_loss,
    clippy::cast_possible_wrap,
    reason = "tests choose numbers that fit"
)]

mod archive;
mod arriving;
mod blocks;
mod dialects;
mod finding;
mod fuzz;
mod golden;
mod hostile;
mod indexer;
mod layer;
mod parallel;
mod round_trip;
mod squeeze;
mod vectors;

use sha2::{Digest, Sha256};
use soci_ztoc::{BuildOptions, Builder, BuiltZtoc, Compression};

/// SHA-256 of `bytes` in hexadecimal.
fn sha256(bytes: &[u8]) -> String {
    Sha256::digest(bytes)
        .iter()
        .map(|byte| format!("{byte:02x}"))
        .collect()
}

/// Builds the zTOC of a layer in memory.
fn build(layer: &[u8], compression: Compression, span_size: u64) -> BuiltZtoc {
    let options = BuildOptions {
        span_size,
        ..BuildOptions::default()
    };
    Builder::new(options).build(layer, compression).unwrap()
}

/// Builds the zTOC of a layer and encodes it.
fn ztoc(layer: &[u8], compression: Compression, span_size: u64) -> Vec<u8> {
    let mut bytes = Vec::new();
    let size = build(layer, compression, span_size)
        .encode(&mut bytes)
        .unwrap();
    assert_eq!(size, bytes.len() as u64);
    bytes
}
