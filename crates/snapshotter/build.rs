//! Generates containerd's snapshots service (server and client) from `proto/` without protoc.

use std::error::Error;

fn main() -> Result<(), Box<dyn Error>> {
    println!("cargo::rerun-if-changed=proto");
    let files = protox::compile(["snapshots.proto"], ["proto"])?;
    tonic_prost_build::configure()
        .btree_map(".")
        .include_file("containerd.rs")
        .compile_fds(files)?;
    Ok(())
}
