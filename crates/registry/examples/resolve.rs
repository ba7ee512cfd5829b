//! Prints the digest of a reference and the size of its manifest.

#![allow(clippy::print_stdout, reason = "a program for the terminal")]

use std::error::Error;
use std::sync::Arc;

use soci_oci::reference::ImageRef;
use soci_registry::credentials::DockerConfig;
use soci_registry::{Options, Registry};

#[tokio::main]
async fn main() -> Result<(), Box<dyn Error>> {
    let name = std::env::args().nth(1).ok_or("usage: resolve IMAGE")?;
    let image = ImageRef::parse(&name)?;
    let credentials = Arc::new(DockerConfig::from_env());
    let registry = Registry::new(Options::default(), credentials)?;
    let found = registry.resolve(&image).await?;
    let manifest = registry.manifest(&image, &found.digest).await?;
    println!("{} {} bytes", manifest.digest, manifest.bytes.len());
    Ok(())
}
