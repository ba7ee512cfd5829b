//! `soci rebuild-db`: records that agree with the content store.

use anyhow::{Result, bail};

use crate::args::Global;

/// Runs the command.
pub(crate) async fn run(_global: &Global) -> Result<()> {
    bail!("not there yet")
}
