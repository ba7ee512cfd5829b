//! Prints the platforms of an image index that is read from standard input.

#![allow(clippy::print_stdout, reason = "a program for the terminal")]

use std::error::Error;
use std::io::Read as _;

use soci_oci::{ImageIndex, manifest, media_type};

/// The maximum size of an index in bytes.
const MAX: u64 = 4 << 20;

fn main() -> Result<(), Box<dyn Error>> {
    let mut bytes = Vec::new();
    std::io::stdin().take(MAX).read_to_end(&mut bytes)?;
    let index: ImageIndex = manifest::parse(&bytes, media_type::OCI_INDEX)?;
    for image in index.manifests.iter().flatten() {
        match &image.platform {
            Some(platform) => println!("{platform} {}", image.digest),
            None => println!("(no platform) {}", image.digest),
        }
    }
    Ok(())
}
