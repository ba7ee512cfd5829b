//! Writes an EROFS image with one file, `all`, whose content is a whole device.

#![allow(clippy::print_stdout, reason = "a program for the terminal")]

use std::error::Error;
use std::fs::File;

use soci_erofs::{Attributes, Image, Inode, Kind, NodeId, Reader};

/// Size of a block of the device in bytes.
const BLOCK: u64 = 4096;

fn main() -> Result<(), Box<dyn Error>> {
    let mut arguments = std::env::args().skip(1);
    let (Some(device), Some(path)) = (arguments.next(), arguments.next()) else {
        return Err("usage: map_device DEVICE IMAGE".into());
    };
    let size = File::open(device)?.metadata()?.len();
    let mode = |mode| Attributes {
        mode,
        ..Attributes::default()
    };
    let mut image = Image::new(size.div_ceil(BLOCK), mode(0o755))?;
    let kind = Kind::Regular {
        size,
        data_block: 0,
    };
    let attributes = mode(0o444);
    let all = image.inode(&Inode { kind, attributes })?;
    image.link(NodeId::ROOT, b"all", all)?;
    let bytes = image.write(File::create(&path)?)?;
    println!("an image of {bytes} bytes");
    let image = std::fs::read(path)?;
    let reader = Reader::open(&image)?;
    let found = reader.lookup(reader.root(), b"all")?;
    let stat = reader.stat(found.ok_or("the file is not in the image")?)?;
    println!("all: {} bytes", stat.size);
    Ok(())
}
