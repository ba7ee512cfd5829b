//! Builds the zTOC of a gzip layer, and reads one file with only the spans that contain it.

#![allow(clippy::print_stderr, reason = "a program for the terminal")]

use std::error::Error;
use std::fs::File;
use std::io::{self, Write as _};
use std::os::unix::fs::FileExt as _;

use soci_ztoc::{BuildOptions, Builder, Compression, Decoder, Ztoc, read_archive};

fn main() -> Result<(), Box<dyn Error>> {
    let mut arguments = std::env::args().skip(1);
    let (Some(layer), Some(name)) = (arguments.next(), arguments.next()) else {
        return Err("usage: one_file LAYER.tar.gz NAME".into());
    };
    let layer = File::open(layer)?;
    let mut bytes = Vec::new();
    Builder::new(BuildOptions::default())
        .build(&layer, Compression::Gzip)?
        .encode(&mut bytes)?;
    let ztoc = Ztoc::parse(&bytes)?;
    eprintln!(
        "a zTOC of {} bytes: {} entries, {} spans",
        bytes.len(),
        ztoc.entry_count(),
        ztoc.spans().len()
    );
    let entry = ztoc.entries().find(|entry| entry.name == name.as_bytes());
    let content = entry.ok_or("no entry has this name")?.content();
    let fetch = |range: std::ops::Range<u64>| {
        eprintln!("bytes {range:?} of the layer");
        let mut span = vec![0; usize::try_from(range.end - range.start).unwrap_or_default()];
        layer.read_exact_at(&mut span, range.start)?;
        Ok::<_, io::Error>(span)
    };
    let mut written = Ok(());
    let mut decoder = Decoder::new();
    read_archive(&ztoc, content, &mut decoder, fetch, |bytes| {
        if written.is_ok() {
            written = io::stdout().write_all(bytes);
        }
    })?;
    Ok(written?)
}
