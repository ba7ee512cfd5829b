//! Keys of the parallel mode, with the sizes, limits and programs that they may have.

use std::collections::BTreeMap;
use std::num::{NonZeroU64, NonZeroUsize};
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};

use crate::config::declare::{TABLE, Value, table};

table! {
    /// Downloads whole layers, all layers of an image at once: by default those of images without an
    /// index.
    pub struct Parallel {
        /// `true` pulls every image this way instead of lazily. `false` leaves images without an index
        /// to containerd. If it is not set, images without an index are pulled this way.
        enable: Option<bool> = None;
        /// `true` pulls images without an index this way, even if `enable` is `false`.
        experimental_parallel_pull_as_fallback: bool = false;
        /// Downloads at the same time for all images. With 0 or a negative number, the daemon
        /// chooses.
        max_concurrent_downloads: i64 = -1;
        /// Downloads at the same time for one image. With 0, a negative number, or the default, the
        /// daemon chooses. More than `max_concurrent_downloads` is an error.
        max_concurrent_downloads_per_image: i64 = 3;
        /// Size of a chunk: a number, also with a fraction, and `b`, `kb`, `mb` or `gb`. If it is
        /// empty or zero, the daemon chooses; a larger chunk is split into requests of at most 4
        /// MiB. Another text is an error.
        concurrent_download_chunk_size: String = String::new();
        /// Layers to unpack at the same time for all images. With 0 or a negative number, the
        /// daemon chooses. More than the daemon's own limit has no effect. That limit bounds the
        /// memory: two more than there are cores, at least 4 and at most 7.
        max_concurrent_unpacks: i64 = -1;
        /// Layers to unpack at the same time for one image. With 0, a negative number, or the
        /// default, the daemon chooses. More than `max_concurrent_unpacks` is an error.
        max_concurrent_unpacks_per_image: i64 = 1;
        /// Does not keep the compressed layers. Otherwise they go to containerd's content store, if
        /// `[content_store] type` is `containerd`.
        discard_unpacked_layers: bool = false;
        /// Programs that decompress, by algorithm: `gzip` or `zstd`.
        decompress_streams: BTreeMap<String, Stream> = BTreeMap::new();
    }
}

table! {
    /// A program that decompresses from its standard input to its standard output.
    pub struct Stream {
        /// The program. It must exist and be executable, and its path must not contain any of
        /// `# % { } \ ; & $ < >` or a vertical bar.
        path: String = String::new();
        /// Its arguments.
        args: Vec<String> = Vec::new();
    }
}

/// The limits that published guides put into `[blob]`.
pub(in crate::config) const LIMITS: [&str; 6] = [
    "max_concurrent_downloads",
    "max_concurrent_downloads_per_image",
    "concurrent_download_chunk_size",
    "max_concurrent_unpacks",
    "max_concurrent_unpacks_per_image",
    "discard_unpacked_layers",
];
/// The algorithms that a program can decompress.
const ALGORITHMS: [&str; 2] = ["gzip", "zstd"];
/// Characters that a path of a program must not contain.
const FORBIDDEN: &[char] = &['#', '%', '{', '}', '\\', '|', ';', '&', '$', '<', '>'];
/// Units of sizes. Longer ones first, because all end with `b`.
const UNITS: [(&str, u32); 4] = [("kb", 10), ("mb", 20), ("gb", 30), ("b", 0)];

/// A value of the parallel mode that is not allowed.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum ParallelError {
    /// `concurrent_download_chunk_size` is no size.
    #[error("concurrent_download_chunk_size: invalid size format {0:?}")]
    Size(String),
    /// Limits of one image exceed those of all images. One sentence per pair.
    #[error("{0}")]
    Limits(String),
    /// The path of a program contains a forbidden character.
    #[error("decompress_streams: the path {0:?} contains one of # % {{ }} \\ | ; & $ < >")]
    Characters(String),
    /// The program does not exist, or it is no executable file.
    #[error("decompress_streams: {0:?} is not an executable file")]
    Program(String),
}

impl Parallel {
    /// The size of a chunk, or none for whole layers.
    pub fn chunk_size(&self) -> Result<Option<NonZeroU64>, ParallelError> {
        size(&self.concurrent_download_chunk_size)
            .ok_or_else(|| ParallelError::Size(self.concurrent_download_chunk_size.clone()))
            .map(NonZeroU64::new)
    }

    /// The program and arguments for an algorithm, with all links resolved.
    pub fn decompressor(
        &self,
        algorithm: &str,
    ) -> Result<Option<(PathBuf, &[String])>, ParallelError> {
        let stream = self.decompress_streams.get(algorithm);
        let found = stream.map(|stream| Ok((program(&stream.path)?, stream.args.as_slice())));
        found.transpose()
    }

    /// A limit, unless it is left to us. `of` selects one of the limits. The reference's default is
    /// left to us too, because a file may be a copy of all defaults.
    #[must_use]
    pub fn limit(&self, of: impl Fn(&Self) -> i64) -> Option<NonZeroUsize> {
        let value = of(self);
        let set = value != of(&Self::default());
        let limit = usize::try_from(value).ok().and_then(NonZeroUsize::new);
        limit.filter(|_| set)
    }

    /// The algorithms in the file that no program is used for.
    pub(in crate::config) fn unsupported(&self) -> impl Iterator<Item = &str> {
        let names = self.decompress_streams.keys().map(String::as_str);
        names.filter(|name| !ALGORITHMS.contains(name))
    }

    /// Whether the file turns the mode on, for all images or for those without an index. It is on for
    /// the latter by default, too.
    pub fn is_on(&self) -> bool {
        self.enable == Some(true) || self.experimental_parallel_pull_as_fallback
    }

    /// Checks the size always, and limits and programs if the mode is on.
    pub(in crate::config) fn check(&self) -> Result<(), ParallelError> {
        self.chunk_size()?;
        if !self.is_on() {
            return Ok(());
        }
        let pairs = [
            (
                "max_concurrent_downloads",
                self.max_concurrent_downloads,
                self.max_concurrent_downloads_per_image,
            ),
            (
                "max_concurrent_unpacks",
                self.max_concurrent_unpacks,
                self.max_concurrent_unpacks_per_image,
            ),
        ];
        let wrong = pairs.iter().filter(|(_, all, one)| *all > 0 && one > all);
        let wrong: Vec<String> = wrong
            .map(|(name, all, one)| format!("{name}_per_image = {one} exceeds {name} = {all}"))
            .collect();
        if !wrong.is_empty() {
            return Err(ParallelError::Limits(wrong.join("; ")));
        }
        for algorithm in ALGORITHMS {
            self.decompressor(algorithm)?;
        }
        Ok(())
    }
}

/// The number of bytes of a size such as `1.5 MB`. Zero for an empty text.
fn size(text: &str) -> Option<u64> {
    let text = text.trim().to_ascii_lowercase();
    if text.is_empty() {
        return Some(0);
    }
    let unit = UNITS.iter().find(|(unit, _)| text.ends_with(unit));
    let (unit, shift) = unit.copied().unwrap_or_default();
    let number = text.strip_suffix(unit)?.trim_end();
    let (whole, fraction) = number.split_once('.').unwrap_or((number, "0"));
    let digits = |text: &str| !text.is_empty() && text.bytes().all(|byte| byte.is_ascii_digit());
    // More digits of a fraction change nothing.
    let fraction = fraction
        .get(..fraction.len().min(18))
        .filter(|text| digits(text))?;
    let scale = u32::try_from(fraction.len())
        .ok()
        .map(|len| 10_u128.pow(len))?;
    if !digits(whole) || !digits(number.rsplit('.').next()?) {
        return None;
    }
    let (whole, fraction): (u64, u64) = (whole.parse().ok()?, fraction.parse().ok()?);
    let whole = u128::from(whole) << shift;
    let part = (u128::from(fraction) << shift) / scale;
    u64::try_from(whole + part).ok()
}

/// The file of a program, if it may be used.
fn program(path: &str) -> Result<PathBuf, ParallelError> {
    if path.contains(FORBIDDEN) {
        return Err(ParallelError::Characters(path.to_owned()));
    }
    let found = Path::new(path).canonicalize().ok().filter(|found| {
        let executable =
            |found: std::fs::Metadata| found.is_file() && found.permissions().mode() & 0o111 != 0;
        found.metadata().is_ok_and(executable)
    });
    found.ok_or_else(|| ParallelError::Program(path.to_owned()))
}

impl Value for BTreeMap<String, Stream> {
    const KIND: &'static str = TABLE;

    fn toml(&self) -> String {
        String::new()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sizes_have_a_number_and_a_unit() {
        for (text, wanted) in [
            ("", Some(0)),
            ("0", Some(0)),
            ("0.0mb", Some(0)),
            ("16mb", Some(16 << 20)),
            (" 16MB ", Some(16 << 20)),
            ("1.5kb", Some(1536)),
            ("0.3b", Some(0)),
            ("1.999b", Some(1)),
            ("2Gb", Some(2 << 30)),
            ("7b", Some(7)),
            ("7", Some(7)),
            ("0.1000000000000000000000000000001kb", Some(102)),
            ("-1", None),
            ("+1", None),
            ("1m", None),
            ("1mib", None),
            ("1.", None),
            (".5kb", None),
            ("1.2.3", None),
            ("1.+5", None),
            ("mb", None),
            ("unlimited", None),
            ("99999999999999999999", None),
            ("18446744073709551615gb", None),
        ] {
            assert_eq!(size(text), wanted, "{text:?}");
        }
    }

    #[test]
    fn a_program_is_an_executable_file_behind_any_links() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("program");
        let at = |path: &Path| program(path.to_str().unwrap());
        assert!(matches!(at(&path), Err(ParallelError::Program(_))));
        std::fs::write(&path, b"").unwrap();
        let mode = |mode| std::fs::set_permissions(&path, PermissionsExt::from_mode(mode)).unwrap();
        mode(0o644);
        assert!(matches!(at(&path), Err(ParallelError::Program(_))));
        mode(0o755);
        let link = folder.path().join("link");
        std::os::unix::fs::symlink(&path, &link).unwrap();
        assert_eq!(at(&link), Ok(path.canonicalize().unwrap()));
        assert!(matches!(at(folder.path()), Err(ParallelError::Program(_))));
        for name in ["a;b", "a|b", "a$b", "a\\b", "a{b"] {
            assert!(matches!(program(name), Err(ParallelError::Characters(_))));
        }
    }
}
