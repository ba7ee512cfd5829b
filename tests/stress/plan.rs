//! Duration, intensity and setup of the test, from the environment (set by `scripts/soak`).

use std::path::PathBuf;
use std::sync::atomic::AtomicU64;
use std::time::Duration;

use anyhow::{Context as _, Result, bail, ensure};
use soci_tests::Program;
use soci_tests::process::{binary, repository};
use soci_tests::unit::Keeping;

use crate::slots;

/// Duration in `make test`.
const SHORT: Duration = Duration::from_secs(180);
/// A busy machine is slow by itself.
const SLOWEST_SHORT: Duration = Duration::from_secs(5);
const SLOWEST_LONG: Duration = Duration::from_secs(1);

/// One build of the daemon.
#[derive(Debug)]
pub(crate) struct Build {
    pub(crate) binary: PathBuf,
    /// The version it reports.
    pub(crate) version: String,
    /// Number of keepers that were started from it.
    pub(crate) started: AtomicU64,
}

impl Build {
    fn of(binary: PathBuf) -> Result<Self> {
        let said = Program::at(&binary).args(["--version"]).succeed()?;
        let version = said.trim_start_matches("soci-snapshotter-grpc version ");
        Ok(Self {
            version: version.trim().to_owned(),
            binary,
            started: AtomicU64::new(0),
        })
    }
}

/// The settings of one run.
#[derive(Debug)]
pub(crate) struct Plan {
    /// `SOCI_SOAK_SECONDS`.
    pub(crate) length: Duration,
    /// `SOCI_SOAK_SEED`: determines the images and the order of faults.
    pub(crate) seed: u64,
    /// `SOCI_SOAK_KEEPING`: alone, keeper or unit.
    pub(crate) keeping: Keeping,
    /// The daemon, and with `SOCI_SOAK_OTHER` another build that alternates with it.
    pub(crate) builds: Vec<Build>,
    /// `SOCI_SOAK_WITHOUT`: faults to omit; `direct` omits reads with O_DIRECT.
    without: Vec<String>,
    /// `SOCI_SOAK_IMAGES`.
    pub(crate) images: u64,
    /// Time limit for a read of present bytes.
    pub(crate) slowest: Duration,
    /// Directory of the reports.
    pub(crate) folder: PathBuf,
}

impl Plan {
    pub(crate) fn from_environment() -> Result<Self> {
        let seconds = number("SOCI_SOAK_SECONDS")?;
        let keeping = match variable("SOCI_SOAK_KEEPING").as_deref() {
            None | Some("unit") => Keeping::Unit,
            Some("keeper") => Keeping::Keeper,
            Some("alone") => Keeping::Alone,
            Some(other) => bail!("SOCI_SOAK_KEEPING is alone, keeper or unit, not {other}"),
        };
        let without = variable("SOCI_SOAK_WITHOUT").unwrap_or_default();
        Ok(Self {
            length: seconds.map_or(SHORT, Duration::from_secs),
            seed: number("SOCI_SOAK_SEED")?.unwrap_or_else(slots::now),
            keeping,
            builds: builds()?,
            without: without.split(',').map(str::to_owned).collect(),
            images: number("SOCI_SOAK_IMAGES")?.unwrap_or(4),
            slowest: seconds.map_or(SLOWEST_SHORT, |_| SLOWEST_LONG),
            folder: folder(),
        })
    }

    pub(crate) fn leaves_out(&self, name: &str) -> bool {
        self.without.iter().any(|without| without == name)
    }
}

fn builds() -> Result<Vec<Build>> {
    let other = variable("SOCI_SOAK_OTHER").map(PathBuf::from);
    let binaries = [Some(binary("soci-snapshotter-grpc")?), other];
    let builds: Vec<Build> = binaries
        .into_iter()
        .flatten()
        .map(Build::of)
        .collect::<Result<_>>()?;
    if let [one, other] = &builds[..] {
        ensure!(
            one.version != other.version,
            "{} and {} are the same version, {}: name another build in SOCI_SOAK_OTHER",
            one.binary.display(),
            other.binary.display(),
            one.version
        );
    }
    Ok(builds)
}

/// Directory of the reports.
pub(crate) fn folder() -> PathBuf {
    repository().join("target")
}

fn variable(name: &str) -> Option<String> {
    std::env::var(name).ok().filter(|value| !value.is_empty())
}

fn number(name: &str) -> Result<Option<u64>> {
    variable(name)
        .map(|text| {
            text.parse()
                .with_context(|| format!("{name} is a number, not {text}"))
        })
        .transpose()
}
