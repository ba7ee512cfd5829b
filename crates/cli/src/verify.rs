//! `soci verify`: an image and its index against each other.

use anyhow::{Result, bail};

use crate::args::{Global, Verify};

/// Runs the command.
pub(crate) async fn run(_global: &Global, _args: &Verify) -> Result<()> {
    bail!("not there yet")
}
