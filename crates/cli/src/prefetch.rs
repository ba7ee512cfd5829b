//! `soci prefetch`: prefetch artifacts.

use anyhow::{Result, bail};

use crate::args::{Global, PrefetchInfo, PrefetchList};

/// Runs the command.
pub(crate) async fn list(_global: &Global, _args: &PrefetchList) -> Result<()> {
    bail!("not there yet")
}

/// Runs the command.
pub(crate) async fn info(_global: &Global, _args: &PrefetchInfo) -> Result<()> {
    bail!("not there yet")
}
