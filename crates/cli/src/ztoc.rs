//! `soci ztoc`: zTOCs, and files read with them.

use anyhow::{Result, bail};

use crate::args::{Global, ZtocGetFile, ZtocInfo, ZtocList};

/// Runs the command.
pub(crate) async fn list(_global: &Global, _args: &ZtocList) -> Result<()> {
    bail!("not there yet")
}

/// Runs the command.
pub(crate) async fn info(_global: &Global, _args: &ZtocInfo) -> Result<()> {
    bail!("not there yet")
}

/// Runs the command.
pub(crate) async fn get_file(_global: &Global, _args: &ZtocGetFile) -> Result<()> {
    bail!("not there yet")
}
