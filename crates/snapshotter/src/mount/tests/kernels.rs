//! What mount mode *loop* requires from a kernel, one requirement per test. `make kernels` runs
//! these tests on several kernels.
//!
//! A line `answer: …` on standard output is copied to the table of results. READs that a test holds
//! fail at the latest when its [`World`] is dropped, which ends the connection first: a READ that
//! is never answered would hang the machine.

use super::*;
use crate::places::{BLOCK, LEAD, TAIL};

mod attach;
mod moves;
mod overlays;
mod reads;

/// Prints an answer for the table of `make kernels`.
#[expect(clippy::print_stdout, reason = "read by scripts/kernels")]
fn answer(text: impl fmt::Display) {
    println!("answer: {text}");
}

fn ms(time: Duration) -> String {
    format!("{:.1} ms", time.as_secs_f64() * 1000.0)
}

/// A layer as the store lays it out, with head and tail of the device.
fn layer(files: &[(&'static str, u64)]) -> Layer {
    layer_with(files, |_, _, _| ())
}

/// As `layer`; `decorate` may change the inode of each file.
fn layer_with(
    files: &[(&'static str, u64)],
    mut decorate: impl FnMut(&mut Image, &str, NodeId),
) -> Layer {
    let blocks = |size: u64| size.div_ceil(BLOCK);
    let total: u64 = files.iter().map(|(_, size)| blocks(*size)).sum();
    let attributes = Attributes {
        mode: 0o755,
        ..Attributes::default()
    };
    let mut image = Image::new(total + (LEAD + TAIL) / BLOCK, attributes).unwrap();
    let mut data = vec![0; usize::try_from(LEAD).unwrap()];
    let mut places = BTreeMap::new();
    for &(name, size) in files {
        let start = data.len() as u64;
        let kind = Kind::Regular {
            size,
            data_block: start / BLOCK,
        };
        let inode = image.inode(&Inode { kind, attributes }).unwrap();
        decorate(&mut image, name, inode);
        image.link(NodeId::ROOT, name.as_bytes(), inode).unwrap();
        data.extend(bytes(start, u32::try_from(size).unwrap()));
        data.resize(usize::try_from(start + blocks(size) * BLOCK).unwrap(), 0);
        places.insert(name, (start, size));
    }
    data.resize(data.len() + usize::try_from(TAIL).unwrap(), 0);
    let mut meta = Vec::new();
    image.write(&mut meta).unwrap();
    Layer {
        meta,
        data: data.into(),
        files: places,
    }
}

/// Serves the head and tail of the device immediately, and every other READ with `behaviour`.
fn serve_edges(
    world: &World,
    behaviour: impl Fn(&Layer, u64, u32, ReadDone) + Send + Sync + 'static,
) {
    let end = world.layer.data.len() as u64 - TAIL;
    world.serve(move |layer, offset, len, done| {
        if offset + u64::from(len) <= LEAD || offset >= end {
            done(Ok(layer.slice(offset, len)));
        } else {
            behaviour(layer, offset, len, done);
        }
    });
}

/// Serves the head and tail of the device immediately. Every other READ waits for the test.
fn serve_edges_only(world: &World) -> Waiting {
    let waiting = Waiting::default();
    let park = Arc::clone(&waiting);
    serve_edges(world, move |_, offset, len, done| {
        park.lock().unwrap().push((offset, len, done));
    });
    waiting
}

/// The loop device for the data of the layer that is mounted at `at`.
fn data_loop(world: &World, at: &Path) -> PathBuf {
    let label = loops::label_of(world.loop_at(at)).unwrap();
    let root = label.split(':').nth(2).unwrap();
    let found = loops::attached(&format!("soci:data:{root}:"));
    let [device] = &found[..] else {
        panic!("expected one data device: {found:?}")
    };
    PathBuf::from(format!("/dev/loop{}", device.index))
}

/// A memory block that is aligned for `O_DIRECT`.
struct Aligned {
    memory: Vec<u8>,
    start: usize,
    len: usize,
}

impl Aligned {
    fn new(len: usize) -> Aligned {
        let memory = vec![0; len + 4096];
        let start = memory.as_ptr().align_offset(4096);
        Aligned { memory, start, len }
    }

    fn bytes(&mut self) -> &mut [u8] {
        &mut self.memory[self.start..self.start + self.len]
    }
}

fn open_direct(path: &Path) -> std::io::Result<File> {
    use std::os::unix::fs::OpenOptionsExt;
    std::fs::OpenOptions::new()
        .read(true)
        .custom_flags(libc::O_DIRECT)
        .open(path)
}
