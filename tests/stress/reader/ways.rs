//! Ways to access the bytes of a file: random reads, sequential reads, a memory map, direct I/O and
//! execution. Each first drops the cached pages of the file.

use std::fs::File;
use std::io;
use std::num::NonZeroU64;
use std::os::unix::fs::{FileExt, OpenOptionsExt};
use std::path::Path;
use std::process::{Command, Stdio};

use rustix::fs::{Advice, OFlags, fadvise};
use soci_tests::image::digest;

use crate::truth::{Dice, Kind};
use crate::{BLOCK, Measured, Operation, Range};

/// One operation.
pub(crate) type Way = fn(&mut Operation<'_>, &mut Dice);

/// Each runs on its own thread.
pub(crate) const ALL: &[Way] = &[here_and_there, in_order, by_map, uncached, executed];

const PAGE: u64 = 4096;

fn any_file(operation: &Operation<'_>, dice: &mut Dice) -> usize {
    let count = operation.reader.files.len() as u64;
    usize::try_from(dice.throw(0, count)).expect("an address")
}

/// A block of a file, or part of one.
fn any_range(operation: &Operation<'_>, dice: &mut Dice) -> Range {
    let file = any_file(operation, dice);
    let size = operation.reader.files[file].size;
    let offset = dice.throw(0, size.div_ceil(BLOCK)) * BLOCK;
    let length = BLOCK.min(size - offset);
    let whole = Range {
        file,
        offset,
        length,
    };
    if dice.throw(0, 3) < 2 {
        return whole;
    }
    let skip = dice.throw(0, length);
    Range {
        offset: offset + skip,
        length: dice.throw(0, length - skip) + 1,
        ..whole
    }
}

/// Drops the cached pages of a range (length 0: to the end), except those that are mapped.
fn forget(file: &File, offset: u64, length: u64) -> io::Result<()> {
    fadvise(file, offset, NonZeroU64::new(length), Advice::DontNeed)?;
    Ok(())
}

fn buffer(range: Range) -> Vec<u8> {
    vec![0; usize::try_from(range.length).expect("an address")]
}

fn here_and_there(operation: &mut Operation<'_>, dice: &mut Dice) {
    let range = any_range(operation, dice);
    let path = operation.reader.files[range.file].path.clone();
    let mut found = buffer(range);
    // A program's pages are also read ahead by those that execute it, and for longer than they run.
    let measured = match operation.reader.files[range.file].kind {
        Kind::Program => Measured::No,
        Kind::Noise | Kind::Text => Measured::Cached,
    };
    let done = operation.run(range, measured, || {
        let file = File::open(&path)?;
        // No readahead. Otherwise a read of present bytes would wait for missing ones.
        fadvise(&file, 0, None, Advice::Random)?;
        forget(&file, range.offset / PAGE * PAGE, range.length + PAGE)?;
        file.read_exact_at(&mut found, range.offset)
    });
    if done.is_some() {
        operation.compare(range, &found);
    }
}

fn in_order(operation: &mut Operation<'_>, dice: &mut Dice) {
    let file = any_file(operation, dice);
    let reader = operation.reader;
    let _reads = reader.readahead[file].begin();
    let size = reader.files[file].size;
    let mut opened = None;
    let mut offset = 0;
    while offset < size {
        let range = Range {
            file,
            offset,
            length: (2 * BLOCK).min(size - offset),
        };
        let mut found = buffer(range);
        let path = operation.reader.files[file].path.clone();
        let done = operation.run(range, Measured::No, || {
            let handle = match opened.take() {
                Some(handle) => handle,
                None => {
                    let handle = File::open(&path)?;
                    forget(&handle, 0, 0)?;
                    handle
                }
            };
            handle.read_exact_at(&mut found, range.offset)?;
            opened = Some(handle);
            Ok(())
        });
        if done.is_none() {
            return;
        }
        operation.compare(range, &found);
        offset += range.length;
    }
}

/// A page fault that fails kills this process, so this is omitted where interruptions are expected.
fn by_map(operation: &mut Operation<'_>, dice: &mut Dice) {
    if operation.reader.again {
        return;
    }
    let file = any_file(operation, dice);
    let reader = operation.reader;
    let _reads = reader.readahead[file].begin();
    let range = Range {
        file,
        offset: 0,
        length: reader.files[file].size,
    };
    let path = operation.reader.files[file].path.clone();
    let length = usize::try_from(range.length).expect("an address");
    let found = operation.run(range, Measured::No, || {
        forget(&File::open(&path)?, 0, 0)?;
        soci_tests::mapped::read(Path::new(&path), length).map_err(io::Error::other)
    });
    if let Some(found) = found {
        operation.compare(range, &found);
    }
}

/// O_DIRECT through overlayfs to the block device.
fn uncached(operation: &mut Operation<'_>, dice: &mut Dice) {
    if operation.reader.buffered {
        return;
    }
    let file = any_file(operation, dice);
    let size = operation.reader.files[file].size;
    let offset = dice.throw(0, size.div_ceil(BLOCK)) * BLOCK;
    let range = Range {
        file,
        offset,
        length: BLOCK.min(size - offset),
    };
    let path = operation.reader.files[file].path.clone();
    let wanted = usize::try_from(range.length).expect("an address");
    let room = wanted.next_multiple_of(4096);
    let mut memory = vec![0_u8; room + 4096];
    let start = memory.as_ptr().align_offset(4096);
    let done = operation.run(range, Measured::Alone, || {
        let flags = i32::try_from(OFlags::DIRECT.bits()).expect("a flag");
        let file = File::options().read(true).custom_flags(flags).open(&path)?;
        // At the end of the file, fewer bytes than the block are read.
        match file.read_at(&mut memory[start..start + room], offset)? {
            count if count >= wanted => Ok(()),
            count => Err(io::Error::other(format!("{count} of {wanted} bytes"))),
        }
    });
    if done.is_some() {
        let found = memory[start..start + wanted].to_vec();
        operation.compare(range, &found);
    }
}

/// Runs a program of the image that hashes a file of the image.
fn executed(operation: &mut Operation<'_>, dice: &mut Dice) {
    let files = &operation.reader.files;
    let programs: Vec<usize> = (0..files.len())
        .filter(|&n| files[n].kind == Kind::Program)
        .collect();
    let count = programs.len() as u64;
    if count == 0 {
        return;
    }
    let program = programs[usize::try_from(dice.throw(0, count)).expect("an address")];
    let hashed = any_file(operation, dice);
    let _reads = operation.reader.readahead[hashed].begin();
    let range = Range {
        file: program,
        offset: 0,
        length: files[program].size,
    };
    let said = operation.run(range, Measured::No, || {
        forget(&File::open(&files[program].path)?, 0, 0)?;
        let output = Command::new(&files[program].path)
            .args(["sha256sum", &files[hashed].path])
            .stdin(Stdio::null())
            .output()?;
        if output.status.success() {
            Ok(String::from_utf8_lossy(&output.stdout).into_owned())
        } else {
            let stderr = String::from_utf8_lossy(&output.stderr);
            Err(io::Error::other(format!("{} {stderr}", output.status)))
        }
    });
    operation.slot.programs += 1;
    let Some(said) = said else { return };
    let file = &operation.reader.files[hashed];
    let truth = digest(&file.bytes(&operation.reader.shell));
    let found = said.split(' ').next().unwrap_or_default();
    if truth.strip_prefix("sha256:") != Some(found) {
        let range = Range {
            file: hashed,
            offset: 0,
            length: file.size,
        };
        operation.wrong(range, &format!("hashed to {found} for {truth}"));
    }
}
