//! `soci create`: a version 1 index beside an image.

use anyhow::{Result, bail};

use crate::args::{Create, Global};

/// Runs the command.
pub(crate) async fn run(_global: &Global, _args: &Create) -> Result<()> {
    bail!("not there yet")
}
