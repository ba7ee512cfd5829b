//! `soci completion`: scripts for shells.

use anyhow::{Result, bail};

use crate::args::Completion;

/// Runs the command.
pub(crate) fn run(_args: &Completion) -> Result<()> {
    bail!("not there yet")
}
