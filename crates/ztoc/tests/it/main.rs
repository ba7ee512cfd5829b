//! Tests of the package through its public face.

mod vectors;

use sha2::{Digest, Sha256};

/// SHA-256 of `bytes` in hex.
fn sha256(bytes: &[u8]) -> String {
    Sha256::digest(bytes)
        .iter()
        .map(|byte| format!("{byte:02x}"))
        .collect()
}
