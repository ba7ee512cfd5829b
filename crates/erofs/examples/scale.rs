//! Time and memory of writing an image of so many files: `cargo run --release --example scale 1000000`.

#![allow(clippy::print_stdout, reason = "the example's output")]

use std::error::Error;
use std::time::Instant;

use soci_erofs::{Attributes, Image, Inode, Kind, NodeId, Reader, Time};

fn main() -> Result<(), Box<dyn Error>> {
    let files: u64 = std::env::args()
        .nth(1)
        .as_deref()
        .unwrap_or("100000")
        .parse()?;
    let attributes = Attributes {
        mode: 0o755,
        uid: 0,
        gid: 0,
        mtime: Time { secs: 1, nanos: 0 },
    };
    let start = Instant::now();
    let mut image = Image::new(files, attributes)?;
    image.reserve(usize::try_from(files)?);
    let mut dir = NodeId::ROOT;
    for file in 0..files {
        if file % 20 == 0 {
            dir = image.inode(&Inode {
                kind: Kind::Directory,
                attributes,
            })?;
            image.link(
                NodeId::ROOT,
                format!("directory-{:08x}", scatter(file)).as_bytes(),
                dir,
            )?;
        }
        let kind = Kind::Regular {
            size: 1000,
            data_block: file,
        };
        let node = image.inode(&Inode { kind, attributes })?;
        image.link(
            dir,
            format!("module_{:06x}.py", scatter(file)).as_bytes(),
            node,
        )?;
    }
    let built = start.elapsed();
    let before = anonymous_kib()?;
    let mut bytes = std::io::BufWriter::with_capacity(1, tempfile::tempfile()?);
    let len = image.write(&mut bytes)?;
    let written = start.elapsed();
    println!(
        "{files} files: {built:?} to build, {:?} to write {len} bytes; {before} KiB with the tree, {} after",
        written - built,
        anonymous_kib()?,
    );

    let mut bytes = Vec::new();
    image.write(&mut bytes)?;
    let start = Instant::now();
    let reader = Reader::open(&bytes)?;
    let mut seen = 0;
    for dir in reader.read_dir(reader.root()) {
        seen += reader.read_dir(dir?.nid).count();
    }
    println!("{seen} names listed in {:?}", start.elapsed());
    Ok(())
}

/// A number in another order.
fn scatter(number: u64) -> u64 {
    number.wrapping_mul(0x9e37_79b1) & 0xffff_ffff
}

/// Anonymous memory of this process.
fn anonymous_kib() -> Result<u64, Box<dyn Error>> {
    let status = std::fs::read_to_string("/proc/self/status")?;
    let line = status
        .lines()
        .find_map(|line| line.strip_prefix("RssAnon:"));
    Ok(line
        .and_then(|line| line.split_whitespace().next())
        .unwrap_or("0")
        .parse()?)
}
