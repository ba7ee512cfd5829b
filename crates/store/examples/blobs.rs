//! Lists the blobs of an OCI layout and verifies each of them.

#![allow(clippy::print_stdout, reason = "a program for the terminal")]

use std::error::Error;

use soci_oci::Descriptor;
use soci_store::ContentStore as _;
use soci_store::layout::Layout;

#[tokio::main]
async fn main() -> Result<(), Box<dyn Error>> {
    let folder = std::env::args().nth(1).ok_or("usage: blobs LAYOUT")?;
    let layout = Layout::at(folder);
    for (digest, size) in layout.list().await? {
        let blob = Descriptor::new("application/octet-stream", digest, size);
        let mut bytes = layout.open(&blob.digest).await?.verified(&blob)?;
        match std::io::copy(&mut bytes, &mut std::io::sink()) {
            Ok(_) => println!("{} {size} bytes", blob.digest),
            Err(error) => println!("{} {error}", blob.digest),
        }
    }
    Ok(())
}
