//! Platforms: parsing of command-line specifiers, and matching against the platforms of an index.
//!
//! The rules are containerd's strict rules: an architecture never matches a lesser one, but common
//! spellings of the same platform are equal (`aarch64` and `arm64/v8`, `amd64/v1` and `amd64`,
//! `arm` and `arm/v7`).

use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Serialize};

use crate::json::null_as_default;

/// A platform, with exactly the fields and field order of Go's JSON form.
#[derive(Debug, Clone, Default, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(default)]
pub struct Platform {
    /// Go's name for the processor architecture.
    #[serde(deserialize_with = "null_as_default")]
    pub architecture: String,
    /// Go's name for the operating system.
    #[serde(deserialize_with = "null_as_default")]
    pub os: String,
    /// Version of the operating system. Relevant for Windows.
    #[serde(rename = "os.version", skip_serializing_if = "String::is_empty")]
    #[serde(deserialize_with = "null_as_default")]
    pub os_version: String,
    /// Operating system features that the image requires.
    #[serde(rename = "os.features", skip_serializing_if = "Vec::is_empty")]
    #[serde(deserialize_with = "null_as_default")]
    pub os_features: Vec<String>,
    /// Variant of the architecture.
    #[serde(
        skip_serializing_if = "String::is_empty",
        deserialize_with = "null_as_default"
    )]
    pub variant: String,
}

/// Why a text is not a platform specifier, in containerd's wording.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum PlatformError {
    /// The text contains a wildcard.
    #[error("{0:?}: wildcards not yet supported: invalid argument")]
    Wildcard(String),
    /// The first component is not `os` or `os(version+feature)`.
    #[error(
        "{part:?} is an invalid OS component of {specifier:?}: OSAndVersion specifier component must match {OS_FORM:?}: invalid argument"
    )]
    Os {
        /// The component.
        part: String,
        /// The complete text.
        specifier: String,
    },
    /// Another component contains invalid characters.
    #[error(
        "{part:?} is an invalid component of {specifier:?}: platform specifier component must match {PART_FORM:?}: invalid argument"
    )]
    Part {
        /// The component.
        part: String,
        /// The complete text.
        specifier: String,
    },
    /// The only component is neither an operating system nor an architecture.
    #[error("{0:?}: unknown operating system or architecture: invalid argument")]
    Unknown(String),
    /// The text has too many components.
    #[error("{0:?}: cannot parse platform specifier: invalid argument")]
    Components(String),
}

const OS_FORM: &str = r"^([A-Za-z0-9_-]+)(?:\(([A-Za-z0-9_.-]*)((?:\+[A-Za-z0-9_.-]+)*)\))?$";
const PART_FORM: &str = r"^[A-Za-z0-9_.-]+$";

const KNOWN_OS: &[&str] = &[
    "aix",
    "android",
    "darwin",
    "dragonfly",
    "freebsd",
    "hurd",
    "illumos",
    "ios",
    "js",
    "linux",
    "nacl",
    "netbsd",
    "openbsd",
    "plan9",
    "solaris",
    "windows",
    "zos",
];
const KNOWN_ARCHITECTURES: &[&str] = &[
    "386",
    "amd64",
    "amd64p32",
    "arm",
    "armbe",
    "arm64",
    "arm64be",
    "ppc64",
    "ppc64le",
    "loong64",
    "mips",
    "mipsle",
    "mips64",
    "mips64le",
    "mips64p32",
    "mips64p32le",
    "ppc",
    "riscv",
    "riscv64",
    "s390",
    "s390x",
    "sparc",
    "sparc64",
    "wasm",
];

impl Platform {
    /// The platform of this machine, in containerd's naming.
    #[must_use]
    pub fn host() -> Self {
        let variant = match host_architecture() {
            "arm64" => "v8",
            "arm" => "v7",
            _ => "",
        };
        Self::new("linux", host_architecture(), variant)
    }

    fn new(os: &str, architecture: &str, variant: &str) -> Self {
        Self {
            architecture: architecture.to_owned(),
            os: os.to_owned(),
            variant: variant.to_owned(),
            ..Self::default()
        }
    }

    /// Returns the canonical form: lower case, aliases resolved, and default variants removed,
    /// except that `arm` keeps its default `v7`.
    #[must_use]
    pub fn normalised(&self) -> Self {
        let (architecture, variant) = normalise_architecture(&self.architecture, &self.variant);
        let mut os_features = self.os_features.clone();
        os_features.sort();
        os_features.dedup();
        Self {
            architecture,
            os: normalise_os(&self.os),
            os_version: self.os_version.clone(),
            os_features,
            variant,
        }
    }

    /// Whether an image for `other` can run on this platform: the canonical system, architecture
    /// and variant are equal, the Windows version is compatible, and this platform has all required
    /// features.
    #[must_use]
    pub fn matches(&self, other: &Self) -> bool {
        let (wanted, offered) = (self.normalised(), other.normalised());
        wanted.os == offered.os
            && wanted.architecture == offered.architecture
            && wanted.variant == offered.variant
            && (wanted.os != "windows" || windows_runs(&wanted.os_version, &offered.os_version))
            && offered
                .os_features
                .iter()
                .all(|feature| wanted.os_features.contains(feature))
    }

    /// Whether this is `unknown/unknown`, which buildkit uses for attestations.
    #[must_use]
    pub fn is_unknown(&self) -> bool {
        self.os == "unknown" || self.architecture == "unknown"
    }
}

/// Formats `os/architecture[/variant]`, as messages show it.
impl fmt::Display for Platform {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.os.is_empty() {
            return f.write_str("unknown");
        }
        f.write_str(&self.os)?;
        for part in [&self.architecture, &self.variant] {
            if !part.is_empty() {
                write!(f, "/{part}")?;
            }
        }
        Ok(())
    }
}

impl FromStr for Platform {
    type Err = PlatformError;

    fn from_str(specifier: &str) -> Result<Self, PlatformError> {
        if specifier.contains('*') {
            return Err(PlatformError::Wildcard(specifier.to_owned()));
        }
        let parts: Vec<&str> = specifier.splitn(4, '/').collect();
        let bad_os = || PlatformError::Os {
            part: parts[0].to_owned(),
            specifier: specifier.to_owned(),
        };
        let mut platform = parse_os(parts[0]).ok_or_else(bad_os)?;
        if let Some(part) = parts[1..].iter().find(|part| !is_plain(part, false)) {
            let (part, specifier) = ((*part).to_owned(), specifier.to_owned());
            return Err(PlatformError::Part { part, specifier });
        }
        match parts.as_slice() {
            [_] if KNOWN_OS.contains(&platform.os.as_str()) => {
                platform.architecture = host_architecture().to_owned();
            }
            [architecture] => {
                platform.set_architecture(architecture);
                if !KNOWN_ARCHITECTURES.contains(&platform.architecture.as_str()) {
                    return Err(PlatformError::Unknown(specifier.to_owned()));
                }
                "linux".clone_into(&mut platform.os);
            }
            [_, architecture] => platform.set_architecture(architecture),
            [_, architecture, variant] => {
                (platform.architecture, platform.variant) =
                    normalise_architecture(architecture, variant);
                if platform.architecture == "arm64" && platform.variant.is_empty() {
                    "v8".clone_into(&mut platform.variant);
                }
            }
            _ => return Err(PlatformError::Components(specifier.to_owned())),
        }
        Ok(platform)
    }
}

impl Platform {
    fn set_architecture(&mut self, architecture: &str) {
        (self.architecture, self.variant) = normalise_architecture(architecture, "");
        if self.architecture == "arm" && self.variant == "v7" {
            self.variant.clear();
        }
    }
}

/// Parses `os` or `os(version+feature+feature)`.
fn parse_os(part: &str) -> Option<Platform> {
    let (os, options) = match part.split_once('(') {
        Some((os, options)) => (os, options.strip_suffix(')')?),
        None => (part, ""),
    };
    let mut options = options.split('+');
    let version = options.next().unwrap_or_default();
    let features: Vec<String> = options.map(str::to_owned).collect();
    let good = is_plain(os, true)
        && (version.is_empty() || is_plain(version, false))
        && features.iter().all(|feature| is_plain(feature, false));
    good.then(|| Platform {
        os: normalise_os(os),
        os_version: version.to_owned(),
        os_features: features,
        ..Platform::default()
    })
}

fn is_plain(part: &str, os: bool) -> bool {
    let fits = |byte: u8| {
        byte.is_ascii_alphanumeric() || matches!(byte, b'_' | b'-') || (byte == b'.' && !os)
    };
    !part.is_empty() && part.bytes().all(fits)
}

/// Go's name for the architecture that this program was built for.
fn host_architecture() -> &'static str {
    match std::env::consts::ARCH {
        "x86_64" => "amd64",
        "x86" => "386",
        "aarch64" => "arm64",
        "powerpc64" if cfg!(target_endian = "little") => "ppc64le",
        "loongarch64" => "loong64",
        other => other,
    }
}

fn normalise_os(os: &str) -> String {
    match os.to_lowercase().as_str() {
        "" => "linux".to_owned(),
        "macos" => "darwin".to_owned(),
        other => other.to_owned(),
    }
}

fn normalise_architecture(architecture: &str, variant: &str) -> (String, String) {
    let (architecture, variant) = (architecture.to_lowercase(), variant.to_lowercase());
    let (architecture, variant) = match (architecture.as_str(), variant.as_str()) {
        ("i386", _) => ("386", ""),
        ("x86_64" | "x86-64" | "amd64", "v1") => ("amd64", ""),
        ("x86_64" | "x86-64" | "amd64", variant) => ("amd64", variant),
        ("aarch64" | "arm64", "8" | "v8") => ("arm64", ""),
        ("aarch64" | "arm64", variant) => ("arm64", variant),
        ("armhf", _) | ("arm", "" | "7") => ("arm", "v7"),
        ("armel", _) | ("arm", "6") => ("arm", "v6"),
        ("arm", "5") => ("arm", "v5"),
        ("arm", "8") => ("arm", "v8"),
        other => other,
    };
    (architecture.to_owned(), variant.to_owned())
}

/// Whether Windows version `host` can run an image of version `image`. A missing or invalid host
/// version and a missing image version match everything. Otherwise major and minor must be equal. A
/// host since Server 2022 runs builds from 2022 up to its own; older hosts only their own build.
fn windows_runs(host: &str, image: &str) -> bool {
    /// Build number of Windows Server 2022, the first release with a stable container interface.
    const STABLE_SINCE: u16 = 20348;
    let (host, offered) = (windows_version(host), windows_version(image));
    if host == (0, 0, 0) || image.is_empty() {
        return true;
    }
    let same_release = (host.0, host.1) == (offered.0, offered.1);
    same_release
        && if host.2 < STABLE_SINCE {
            host.2 == offered.2
        } else {
            (STABLE_SINCE..=host.2).contains(&offered.2)
        }
}

fn windows_version(text: &str) -> (u8, u8, u16) {
    let mut parts = text.split('.');
    let mut next = || parts.next();
    let version = (|| {
        Some((
            next()?.parse().ok()?,
            next()?.parse().ok()?,
            next()?.parse().ok()?,
        ))
    })();
    version.unwrap_or_default()
}

#[cfg(test)]
mod tests;
