//! `soci push`: sends version 1 indexes to the registry.

use anyhow::{Result, bail};

use crate::args::{Global, Push};

/// Runs the command.
pub(crate) async fn run(_global: &Global, _args: &Push) -> Result<()> {
    bail!("not there yet")
}
