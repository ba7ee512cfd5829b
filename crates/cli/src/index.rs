//! `soci index`: what is recorded of indexes.

use anyhow::{Result, bail};

use crate::args::{Global, IndexInfo, IndexList, IndexRemove};

/// Runs the command.
pub(crate) async fn list(_global: &Global, _args: &IndexList) -> Result<()> {
    bail!("not there yet")
}

/// Runs the command.
pub(crate) async fn info(_global: &Global, _args: &IndexInfo) -> Result<()> {
    bail!("not there yet")
}

/// Runs the command.
pub(crate) async fn remove(_global: &Global, _args: &IndexRemove) -> Result<()> {
    bail!("not there yet")
}
