//! Digests of blobs.
//!
//! A [`Digest`] is created only by parsing or hashing, so it is always well formed and safe to use
//! in a path or URL. [`Verifier`] hashes a stream and compares the result at its end. Use it to
//! read a blob by its digest.

use std::fmt;
use std::io::{self, Read, Write};
use std::str::FromStr;

use serde::{Deserialize, Deserializer, Serialize, Serializer};
use sha2::{Digest as _, Sha256, Sha384, Sha512};

/// Why a text is not a digest. The wording is that of the Go digest library because scripts see it
/// in the output of `soci index info` and other commands.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum DigestError {
    /// The text does not have the form `<algorithm>:<hex>`.
    #[error("invalid checksum digest format")]
    Format,
    /// The hash has the wrong length for its algorithm.
    #[error("invalid checksum digest length")]
    Length,
    /// The algorithm is not supported.
    #[error("unsupported digest algorithm")]
    Algorithm,
}

/// The algorithms of the OCI image specification that the Go library supports.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Algorithm {
    /// SHA-256, by far the most common.
    Sha256,
    /// SHA-384.
    Sha384,
    /// SHA-512.
    Sha512,
}

impl Algorithm {
    /// The name before the colon.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Self::Sha256 => "sha256",
            Self::Sha384 => "sha384",
            Self::Sha512 => "sha512",
        }
    }

    /// The length of the hash in bytes.
    #[must_use]
    pub fn size(self) -> usize {
        match self {
            Self::Sha256 => 32,
            Self::Sha384 => 48,
            Self::Sha512 => 64,
        }
    }

    fn from_name(name: &str) -> Option<Self> {
        [Self::Sha256, Self::Sha384, Self::Sha512]
            .into_iter()
            .find(|known| known.name() == name)
    }
}

/// A digest: algorithm and hash. It sorts like its text.
#[derive(Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Digest {
    algorithm: Algorithm,
    /// The hash, padded with zeros.
    bytes: [u8; 64],
}

impl Digest {
    fn from_slice(algorithm: Algorithm, hash: &[u8]) -> Self {
        let mut bytes = [0; 64];
        bytes[..algorithm.size()].copy_from_slice(hash);
        Self { algorithm, bytes }
    }

    /// Computes the SHA-256 digest of bytes.
    #[must_use]
    pub fn sha256(bytes: &[u8]) -> Self {
        Self::from_slice(Algorithm::Sha256, &Sha256::digest(bytes))
    }

    /// Creates a SHA-256 digest from a computed hash.
    #[must_use]
    pub fn from_sha256(hash: [u8; 32]) -> Self {
        Self::from_slice(Algorithm::Sha256, &hash)
    }

    /// The algorithm.
    #[must_use]
    pub fn algorithm(&self) -> Algorithm {
        self.algorithm
    }

    /// The raw hash, with the length of the algorithm.
    #[must_use]
    pub fn as_bytes(&self) -> &[u8] {
        &self.bytes[..self.algorithm.size()]
    }

    /// The hash in lower-case hexadecimal: the file name in a layout's `blobs/<algorithm>`
    /// directory.
    #[must_use]
    pub fn hex(&self) -> String {
        hex(self.as_bytes())
    }

    /// Whether the bytes have this digest.
    #[must_use]
    pub fn matches(&self, bytes: &[u8]) -> bool {
        let mut verifier = Verifier::new(*self);
        verifier.update(bytes);
        verifier.finish().is_ok()
    }
}

/// Formats bytes in lower-case hexadecimal.
pub(crate) fn hex(bytes: &[u8]) -> String {
    const DIGITS: &[u8; 16] = b"0123456789abcdef";
    let mut text = String::with_capacity(2 * bytes.len());
    for byte in bytes {
        text.push(char::from(DIGITS[usize::from(byte >> 4)]));
        text.push(char::from(DIGITS[usize::from(byte & 15)]));
    }
    text
}

impl FromStr for Digest {
    type Err = DigestError;

    fn from_str(text: &str) -> Result<Self, DigestError> {
        let (name, hex) = text.split_once(':').ok_or(DigestError::Format)?;
        if name.is_empty() || hex.is_empty() {
            return Err(DigestError::Format);
        }
        let Some(algorithm) = Algorithm::from_name(name) else {
            let known_form = is_algorithm_name(name) && hex.bytes().all(is_encoded_byte);
            return Err(if known_form {
                DigestError::Algorithm
            } else {
                DigestError::Format
            });
        };
        if hex.len() != 2 * algorithm.size() {
            return Err(DigestError::Length);
        }
        let mut bytes = [0; 64];
        for (byte, pair) in bytes.iter_mut().zip(hex.as_bytes().chunks_exact(2)) {
            *byte = (nibble(pair[0])? << 4) | nibble(pair[1])?;
        }
        Ok(Self { algorithm, bytes })
    }
}

/// `component ([+._-] component)*`, component `[A-Za-z0-9]+`.
fn is_algorithm_name(name: &str) -> bool {
    name.split(['+', '.', '_', '-'])
        .all(|part| !part.is_empty() && part.bytes().all(|byte| byte.is_ascii_alphanumeric()))
}

fn is_encoded_byte(byte: u8) -> bool {
    byte.is_ascii_alphanumeric() || matches!(byte, b'=' | b'_' | b'-')
}

fn nibble(byte: u8) -> Result<u8, DigestError> {
    match byte {
        b'0'..=b'9' => Ok(byte - b'0'),
        b'a'..=b'f' => Ok(byte - b'a' + 10),
        _ => Err(DigestError::Format),
    }
}

impl fmt::Display for Digest {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}:{}", self.algorithm.name(), self.hex())
    }
}

impl fmt::Debug for Digest {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

impl Serialize for Digest {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

impl<'de> Deserialize<'de> for Digest {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let text = std::borrow::Cow::<str>::deserialize(deserializer)?;
        text.parse().map_err(serde::de::Error::custom)
    }
}

/// The received bytes do not match the expected digest.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("digest mismatch: expected {expected}, got {actual}")]
pub struct DigestMismatch {
    /// The expected digest.
    pub expected: Digest,
    /// The digest of the received bytes. Boxed to keep errors that contain this one small.
    pub actual: Box<Digest>,
}

#[derive(Debug, Clone)]
enum Hasher {
    Sha256(Sha256),
    Sha384(Sha384),
    Sha512(Sha512),
}

impl Hasher {
    fn new(algorithm: Algorithm) -> Self {
        match algorithm {
            Algorithm::Sha256 => Self::Sha256(Sha256::new()),
            Algorithm::Sha384 => Self::Sha384(Sha384::new()),
            Algorithm::Sha512 => Self::Sha512(Sha512::new()),
        }
    }

    fn update(&mut self, bytes: &[u8]) {
        match self {
            Self::Sha256(hasher) => hasher.update(bytes),
            Self::Sha384(hasher) => hasher.update(bytes),
            Self::Sha512(hasher) => hasher.update(bytes),
        }
    }

    fn finish(self) -> Digest {
        match self {
            Self::Sha256(hasher) => Digest::from_slice(Algorithm::Sha256, &hasher.finalize()),
            Self::Sha384(hasher) => Digest::from_slice(Algorithm::Sha384, &hasher.finalize()),
            Self::Sha512(hasher) => Digest::from_slice(Algorithm::Sha512, &hasher.finalize()),
        }
    }
}

/// Hashes a stream of any length and compares the result with a digest at the end.
#[derive(Debug, Clone)]
pub struct Verifier {
    expected: Digest,
    hasher: Hasher,
    length: u64,
}

impl Verifier {
    /// Creates a verifier that has not seen any bytes.
    #[must_use]
    pub fn new(expected: Digest) -> Self {
        Self {
            expected,
            hasher: Hasher::new(expected.algorithm),
            length: 0,
        }
    }

    /// Adds the next bytes of the stream.
    pub fn update(&mut self, bytes: &[u8]) {
        self.hasher.update(bytes);
        self.length += bytes.len() as u64;
    }

    /// Number of bytes added so far.
    #[must_use]
    pub fn length(&self) -> u64 {
        self.length
    }

    /// Ends the stream and compares its digest.
    pub fn finish(self) -> Result<(), DigestMismatch> {
        let actual = self.hasher.finish();
        if actual == self.expected {
            Ok(())
        } else {
            Err(DigestMismatch {
                expected: self.expected,
                actual: Box::new(actual),
            })
        }
    }
}

/// Writes to an inner writer and computes the SHA-256 digest of the bytes.
#[derive(Debug)]
pub struct Sha256Writer<W> {
    inner: W,
    hasher: Sha256,
    length: u64,
}

impl<W: Write> Sha256Writer<W> {
    /// Wraps a writer.
    pub fn new(inner: W) -> Self {
        Self {
            inner,
            hasher: Sha256::new(),
            length: 0,
        }
    }

    /// Returns the writer, the digest of the written bytes, and their number.
    pub fn finish(self) -> (W, Digest, u64) {
        let digest = Digest::from_slice(Algorithm::Sha256, &self.hasher.finalize());
        (self.inner, digest, self.length)
    }
}

impl<W: Write> Write for Sha256Writer<W> {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        let written = self.inner.write(bytes)?;
        self.hasher.update(&bytes[..written]);
        self.length += written as u64;
        Ok(written)
    }

    fn flush(&mut self) -> io::Result<()> {
        self.inner.flush()
    }
}

/// Reads a blob that must have exactly `size` bytes and match `digest`. The last bytes are returned
/// only after verification; on a mismatch the read fails instead.
#[derive(Debug)]
pub struct VerifyingReader<R> {
    inner: R,
    verifier: Option<Verifier>,
    size: u64,
}

impl<R: Read> VerifyingReader<R> {
    /// Wraps a reader of the blob with this digest and size in bytes.
    pub fn new(inner: R, digest: Digest, size: u64) -> Self {
        Self {
            inner,
            verifier: Some(Verifier::new(digest)),
            size,
        }
    }
}

impl<R: Read> Read for VerifyingReader<R> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let Some(verifier) = &mut self.verifier else {
            return Ok(0);
        };
        if buffer.is_empty() {
            return Ok(0);
        }
        let read = self.inner.read(buffer)?;
        verifier.update(&buffer[..read]);
        let is_all = verifier.length() == self.size;
        if is_all && read > 0 {
            verifier.update(&next(&mut self.inner)?);
        }
        if verifier.length() > self.size || (read == 0 && !is_all) {
            let message = format!(
                "blob {} has {} bytes{}, expected {}",
                verifier.expected,
                verifier.length(),
                if read == 0 { "" } else { " or more" },
                self.size
            );
            return Err(io::Error::new(io::ErrorKind::InvalidData, message));
        }
        if is_all && let Some(verifier) = self.verifier.take() {
            verifier
                .finish()
                .map_err(|mismatch| io::Error::new(io::ErrorKind::InvalidData, mismatch))?;
        }
        Ok(read)
    }
}

/// Reads the next byte; empty at the end. Retries after a signal so that no bytes are lost.
fn next(reader: &mut impl Read) -> io::Result<Vec<u8>> {
    let mut next = Vec::new();
    reader.take(1).read_to_end(&mut next)?;
    Ok(next)
}

#[cfg(test)]
mod tests;
