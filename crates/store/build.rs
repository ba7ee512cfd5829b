//! Generates clients of containerd's content, images and leases services from `proto/`, without
//! protoc.

use std::error::Error;

fn main() -> Result<(), Box<dyn Error>> {
    println!("cargo::rerun-if-changed=proto");
    let services = [
        "containerd/content.proto",
        "containerd/images.proto",
        "containerd/leases.proto",
    ];
    let files = protox::compile(services, ["proto"])?;
    tonic_prost_build::configure()
        .btree_map(".")
        .bytes(".containerd.services.content.v1")
        .build_server(false)
        .include_file("containerd.rs")
        .compile_fds(files)?;
    Ok(())
}
