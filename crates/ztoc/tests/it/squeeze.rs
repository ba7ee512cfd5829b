//! Creates gzip streams with different compressors.

#![allow(unsafe_code, reason = "the deflate side of zlib-rs, for tests only")]

use std::ptr;

use libz_rs_sys::{
    Z_BLOCK, Z_DEFAULT_STRATEGY, Z_DEFLATED, Z_FINISH, Z_FULL_FLUSH, Z_NO_FLUSH, Z_OK,
    Z_PARTIAL_FLUSH, Z_STREAM_END, Z_SYNC_FLUSH, deflate, deflateEnd, deflateInit2_, z_stream,
    zlibVersion,
};

/// How one member is compressed.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Make {
    /// Stored blocks of 65535 bytes.
    Stored,
    /// zlib at a level, with a flush at regular intervals of input.
    Zlib {
        level: i32,
        flush: Flush,
        every: usize,
    },
    /// libdeflate, whose blocks have a different structure.
    Libdeflate { level: i32 },
}

/// Flush modes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Flush {
    None,
    Partial,
    Sync,
    Full,
    Block,
}

/// Optional header fields of a member.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(crate) struct Fields {
    pub(crate) extra: Option<Vec<u8>>,
    pub(crate) name: Option<Vec<u8>>,
    pub(crate) comment: Option<Vec<u8>>,
    pub(crate) checksum: bool,
}

/// One gzip member.
pub(crate) fn member(data: &[u8], make: &Make, fields: &Fields) -> Vec<u8> {
    let mut out = header(fields);
    match make {
        Make::Stored => stored(data, &mut out),
        Make::Zlib {
            level,
            flush,
            every,
        } => zlib(data, *level, *flush, *every, &mut out),
        Make::Libdeflate { level } => {
            let level = libdeflater::CompressionLvl::new(*level).unwrap();
            let mut compressor = libdeflater::Compressor::new(level);
            let mut body = vec![0; compressor.deflate_compress_bound(data.len())];
            let len = compressor.deflate_compress(data, &mut body).unwrap();
            out.extend(&body[..len]);
        }
    }
    out.extend(libdeflater::crc32(data).to_le_bytes());
    out.extend((data.len() as u32).to_le_bytes());
    out
}

/// A complete stream of one member without optional fields.
pub(crate) fn gzip(data: &[u8]) -> Vec<u8> {
    let make = Make::Zlib {
        level: 6,
        flush: Flush::None,
        every: usize::MAX,
    };
    member(data, &make, &Fields::default())
}

fn header(fields: &Fields) -> Vec<u8> {
    let flags = u8::from(fields.checksum) << 1
        | u8::from(fields.extra.is_some()) << 2
        | u8::from(fields.name.is_some()) << 3
        | u8::from(fields.comment.is_some()) << 4;
    let mut out = vec![0x1f, 0x8b, 8, flags, 0, 0, 0, 0, 0, 0xff];
    if let Some(extra) = &fields.extra {
        out.extend((extra.len() as u16).to_le_bytes());
        out.extend(extra);
    }
    for text in [&fields.name, &fields.comment].into_iter().flatten() {
        out.extend(text);
        out.push(0);
    }
    if fields.checksum {
        out.extend((libdeflater::crc32(&out) as u16).to_le_bytes());
    }
    out
}

fn stored(data: &[u8], out: &mut Vec<u8>) {
    let mut chunks = data.chunks(65_535).peekable();
    if data.is_empty() {
        out.extend([1, 0, 0, 0xff, 0xff]);
    }
    while let Some(chunk) = chunks.next() {
        out.push(u8::from(chunks.peek().is_none()));
        out.extend((chunk.len() as u16).to_le_bytes());
        out.extend((!(chunk.len() as u16)).to_le_bytes());
        out.extend(chunk);
    }
}

fn zlib(data: &[u8], level: i32, flush: Flush, every: usize, out: &mut Vec<u8>) {
    let flush = match flush {
        Flush::None => Z_NO_FLUSH,
        Flush::Partial => Z_PARTIAL_FLUSH,
        Flush::Sync => Z_SYNC_FLUSH,
        Flush::Full => Z_FULL_FLUSH,
        Flush::Block => Z_BLOCK,
    };
    let mut stream = z_stream {
        next_in: ptr::null(),
        avail_in: 0,
        total_in: 0,
        next_out: ptr::null_mut(),
        avail_out: 0,
        total_out: 0,
        msg: ptr::null_mut(),
        state: ptr::null_mut(),
        zalloc: None,
        zfree: None,
        opaque: ptr::null_mut(),
        data_type: 0,
        adler: 0,
        reserved: 0,
    };
    let size = size_of::<z_stream>() as i32;
    // SAFETY: the stream is new, uses default allocators, and names the library's own version.
    let code = unsafe {
        deflateInit2_(
            &raw mut stream,
            level,
            Z_DEFLATED,
            -15,
            8,
            Z_DEFAULT_STRATEGY,
            zlibVersion(),
            size,
        )
    };
    assert_eq!(code, Z_OK);
    let mut run = |input: &[u8], flush: i32| {
        stream.next_in = input.as_ptr();
        stream.avail_in = input.len() as u32;
        loop {
            let mut room = [0; 4096];
            stream.next_out = room.as_mut_ptr();
            stream.avail_out = room.len() as u32;
            // SAFETY: the stream is initialized; input and room are borrowed for the call.
            let code = unsafe { deflate(&raw mut stream, flush) };
            out.extend(&room[..room.len() - stream.avail_out as usize]);
            if code == Z_STREAM_END || (stream.avail_out > 0 && stream.avail_in == 0) {
                break;
            }
        }
    };
    for chunk in data.chunks(every.clamp(1, 1 << 30)) {
        run(chunk, flush);
    }
    run(&[], Z_FINISH);
    // SAFETY: the stream is initialized and not used again.
    unsafe { deflateEnd(&raw mut stream) };
}
