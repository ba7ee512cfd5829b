//! Builds a zTOC in one pass over a compressed layer.
//!
//! The layer is read once, from any [`Read`]: inflated, scanned as a tar, and its spans hashed.
//! Memory holds a digest per span; entries and checkpoint windows go to unnamed temporary files.
//! Otherwise memory does not grow with the layer, except for a few bytes per entry. By default the
//! calling thread does all the work; [`pipeline`] and [`crew`] use more cores on request.

use std::io::{self, Read};
use std::num::NonZeroUsize;

use thiserror::Error;

use crate::checkpoint::Compression;
use crate::codec::MAX_ZTOC_SIZE;
use crate::gzip::GzipError;
use crate::tar::TarError;
use crate::zinfo::RECORD_SIZE;

mod built;
mod contents;
mod crew;
mod gzip_pass;
mod indexer;
mod pipeline;
mod plain_pass;
mod span_hash;

pub use built::BuiltZtoc;
use built::{Pass, Zinfo};
use contents::Receiver;
use gzip_pass::GzipBuild;
pub use indexer::LayerIndexer;
use plain_pass::PlainBuild;

/// The identifier that the reference's command line writes. It is part of the digest.
pub const TOOL: &str = "AWS SOCI CLI v0.2";

/// The reference's default span size in bytes.
pub const DEFAULT_SPAN_SIZE: u64 = 4 << 20;

/// Default memory for inflating ahead, in bytes. It allows members of up to 8 MiB.
pub const DEFAULT_AHEAD: usize = 32 << 20;

/// Bytes read from the layer at a time, few enough to be still in the cache when they are hashed.
const READ_SIZE: usize = 128 * 1024;

/// Checkpoint records kept in memory before a temporary file is created. Layers of up to 128 MiB at
/// the default span size need no file.
const SPOOL_SIZE: usize = 32 * RECORD_SIZE;

/// Options of a build.
#[derive(Debug, Clone, Copy)]
pub struct BuildOptions<'a> {
    /// Uncompressed bytes after which a checkpoint is due.
    pub span_size: u64,
    /// The tool identifier to write into the zTOC.
    pub tool: &'a str,
    /// Number of cores to use. With one, the calling thread does everything. With more, reading,
    /// inflating and hashing overlap, and several members of a multi-member layer are inflated in
    /// parallel. The zTOC does not depend on this.
    pub threads: NonZeroUsize,
    /// Bytes of memory for members that are inflated ahead. More memory allows larger members.
    pub ahead: usize,
    /// Whether to hash the spans. A zTOC without span digests is useful only for comparisons.
    pub hash_spans: bool,
}

impl Default for BuildOptions<'_> {
    fn default() -> Self {
        Self {
            span_size: DEFAULT_SPAN_SIZE,
            tool: TOOL,
            threads: NonZeroUsize::MIN,
            ahead: DEFAULT_AHEAD,
            hash_spans: true,
        }
    }
}

/// Why no zTOC can be built for a layer.
#[derive(Debug, Error)]
#[non_exhaustive]
pub enum BuildError {
    /// The layer could not be read.
    #[error("read layer")]
    Read(#[source] io::Error),
    /// Checkpoints or entries could not be written to a temporary file.
    #[error("write checkpoints and entries to a temporary file")]
    Spool(#[source] io::Error),
    /// The layer is not valid gzip.
    #[error("could not generate gzip zinfo. {0}")]
    Gzip(GzipError),
    /// The archive is not a valid tar for a layer.
    #[error(transparent)]
    Tar(#[from] TarError),
    /// The span size is zero for an uncompressed layer, or larger than 2^63.
    #[error("span size {0} is out of range")]
    SpanSize(u64),
    /// The layer has more checkpoints than a zTOC can hold.
    #[error("more than {MAX_CHECKPOINTS} checkpoints; use a larger span size")]
    TooManyCheckpoints,
}

impl From<GzipError> for BuildError {
    fn from(error: GzipError) -> Self {
        Self::Gzip(error)
    }
}

/// A problem with the layer that the user should know about: the zTOC is the one that the reference
/// makes, but the layer cannot be loaded lazily.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Warning {
    /// Name of the entry.
    pub name: Vec<u8>,
    /// What is wrong with it.
    pub kind: WarningKind,
}

/// What a [`Warning`] is about.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum WarningKind {
    /// The entry is not a regular file but states a size, so the headers after it cannot be found.
    SizeWithoutContent {
        /// The stated size.
        size: i64,
    },
    /// The entry is a sparse file, so its stored bytes are not its content.
    Sparse,
}

impl std::fmt::Display for Warning {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "entry {}: ", self.name.escape_ascii())?;
        match self.kind {
            WarningKind::SizeWithoutContent { size } => {
                write!(f, "is no regular file but states a size of {size} bytes")?;
            }
            WarningKind::Sparse => f.write_str("is a sparse file")?,
        }
        f.write_str("; the layer cannot be read lazily")
    }
}

/// Most checkpoints that fit into a zTOC. A build stops here, because a larger table cannot be
/// written.
#[expect(
    clippy::cast_possible_truncation,
    reason = "a 1 GiB limit divided by 32 KiB"
)]
const MAX_CHECKPOINTS: usize = MAX_ZTOC_SIZE as usize / RECORD_SIZE;

/// Most warnings to keep for a layer; more would repeat the same.
const MAX_WARNINGS: usize = 16;

/// Builds zTOCs.
///
/// ```
/// use soci_ztoc::{BuildOptions, Builder, Compression, Ztoc};
///
/// let layer = [0u8; 1024]; // an archive without entries, not compressed
/// let mut built = Builder::new(BuildOptions::default()).build(&layer[..], Compression::Plain)?;
/// let mut bytes = Vec::new();
/// built.encode(&mut bytes)?;
/// let ztoc = Ztoc::parse(&bytes)?;
/// assert_eq!((ztoc.entry_count(), ztoc.spans().len()), (0, 1));
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
#[derive(Debug, Clone, Copy, Default)]
pub struct Builder<'a> {
    options: BuildOptions<'a>,
}

impl<'a> Builder<'a> {
    /// Creates a builder with these options.
    #[must_use]
    pub fn new(options: BuildOptions<'a>) -> Self {
        Self { options }
    }

    /// Reads a layer to its end and builds its zTOC.
    ///
    /// # Errors
    /// [`BuildError`] if the layer cannot be read or the reference would reject it.
    pub fn build(
        &self,
        layer: impl Read,
        compression: Compression,
    ) -> Result<BuiltZtoc, BuildError> {
        self.build_with(layer, compression, |_| {})
    }

    /// Like [`Self::build`]. Also passes the bytes of the archive to `archive`, in order and in
    /// pieces of any size, on a thread of the build.
    ///
    /// # Errors
    /// As for [`Self::build`]. The archive is then incomplete.
    pub fn build_with(
        &self,
        mut layer: impl Read,
        compression: Compression,
        mut archive: impl FnMut(&[u8]) + Send,
    ) -> Result<BuiltZtoc, BuildError> {
        let span_size = self.options.span_size;
        let signed = i64::try_from(span_size).map_err(|_| BuildError::SpanSize(span_size))?;
        let (pass, zinfo) = match compression {
            Compression::Gzip => self.gzip(&mut layer, &mut archive)?.finish(signed)?,
            Compression::Plain if span_size == 0 => return Err(BuildError::SpanSize(0)),
            Compression::Plain => self.plain(&mut layer, &mut archive)?.finish()?,
        };
        Ok(BuiltZtoc {
            tool: self.options.tool.to_owned(),
            compression,
            pass,
            zinfo,
        })
    }
}

impl Builder<'_> {
    fn gzip<'a>(
        &self,
        layer: &mut impl Read,
        archive: Receiver<'a>,
    ) -> Result<GzipBuild<Receiver<'a>>, BuildError> {
        let mut build = GzipBuild::new(&self.options, archive)?;
        let BuildOptions { threads, ahead, .. } = self.options;
        let threads = threads.get();
        if threads == 1 || !pipeline::gzip(&mut build, layer, threads, ahead)? {
            let mut input = vec![0; READ_SIZE];
            while let Some(bytes) = read(layer, &mut input)? {
                build.push(bytes)?;
            }
        }
        Ok(build)
    }

    fn plain<'a>(
        &self,
        layer: &mut impl Read,
        archive: Receiver<'a>,
    ) -> Result<PlainBuild<'a>, BuildError> {
        let mut build = PlainBuild::new(&self.options, archive);
        if self.options.threads.get() == 1 || !pipeline::plain(&mut build, layer)? {
            let mut input = vec![0; READ_SIZE];
            while let Some(bytes) = read(layer, &mut input)? {
                build.push(bytes);
            }
        }
        Ok(build)
    }
}

/// Reads the next bytes of the layer; `None` at its end.
fn read<'b>(layer: &mut impl Read, into: &'b mut [u8]) -> Result<Option<&'b [u8]>, BuildError> {
    loop {
        match layer.read(into) {
            Ok(0) => return Ok(None),
            Ok(len) => return Ok(into.get(..len)),
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(error) => return Err(BuildError::Read(error)),
        }
    }
}
