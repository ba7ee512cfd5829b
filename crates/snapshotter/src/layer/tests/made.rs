//! Small generated layers: a tar of files of various sizes, compressed in several forms, with its
//! zTOC.

use soci_oci::{Descriptor, Digest};
use soci_registry::testing::noise;
use soci_ztoc::{BuildOptions, Builder, Compression, Ztoc};

use crate::{
    layer::Expected,
    places::{BLOCK, LEAD, TAIL},
};

/// How the tar is compressed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Form {
    Gzip,
    /// Several gzip members. Spans that cross a member boundary are decoded in streaming mode.
    Members,
    Plain,
}

impl Form {
    pub(super) fn compression(self) -> Compression {
        if self == Form::Plain {
            Compression::Plain
        } else {
            Compression::Gzip
        }
    }
}

#[derive(Clone, Debug)]
pub(super) struct Made {
    pub(super) form: Form,
    pub(super) tar: Vec<u8>,
    pub(super) layer: Vec<u8>,
    pub(super) ztoc: Vec<u8>,
    /// Names and contents of nonempty regular files.
    pub(super) files: Vec<(String, Vec<u8>)>,
}

fn octal(field: &mut [u8], value: u64) {
    let width = field.len() - 1;
    field[..width].copy_from_slice(format!("{value:0width$o}").as_bytes());
}

pub(super) fn header(name: &str, kind: u8, size: u64) -> [u8; 512] {
    let mut block = [0; 512];
    block[..name.len()].copy_from_slice(name.as_bytes());
    octal(&mut block[100..108], 0o644);
    octal(&mut block[108..116], 1000);
    octal(&mut block[116..124], 1000);
    octal(&mut block[124..136], size);
    octal(&mut block[136..148], 1_600_000_000);
    block[156] = kind;
    block[257..265].copy_from_slice(b"ustar\x0000");
    block[148..156].fill(b' ');
    let sum: u64 = block.iter().map(|byte| u64::from(*byte)).sum();
    octal(&mut block[148..155], sum);
    block
}

/// Compresses bytes into one gzip member.
fn gzip(bytes: &[u8]) -> Vec<u8> {
    let level = libdeflater::CompressionLvl::new(1).expect("a level");
    let mut compressor = libdeflater::Compressor::new(level);
    let mut out = vec![0; compressor.gzip_compress_bound(bytes.len())];
    let length = compressor.gzip_compress(bytes, &mut out).expect("room");
    out.truncate(length);
    out
}

impl Made {
    pub(super) fn new(form: Form, count: usize, span_size: u64) -> Made {
        let (mut tar, mut files) = (Vec::new(), Vec::new());
        for i in 0..count {
            if i % 5 == 0 {
                tar.extend_from_slice(&header(&format!("dir-{i}/"), b'5', 0));
            }
            // Sizes around the block size, empty files, and some larger ones.
            let size = [0, 1, 511, 512, 4095, 4096, 4097, 9000, 70_000][i * 7 % 9];
            let name = format!("file-{i}-name");
            let mut content = noise(i as u64, size);
            for (at, byte) in content.iter_mut().enumerate() {
                // Half of the content is compressible.
                if at / 3000 % 2 == 0 {
                    *byte = b'a' + *byte % 4;
                }
            }
            tar.extend_from_slice(&header(&name, b'0', size as u64));
            tar.extend_from_slice(&content);
            // Padding need not be zero.
            tar.resize(tar.len().next_multiple_of(512), 0xee);
            if size > 0 {
                files.push((name, content));
            }
        }
        tar.resize(tar.len() + 1024, 0);
        let mut made = Made {
            form,
            tar,
            layer: Vec::new(),
            ztoc: Vec::new(),
            files,
        };
        made.compress();
        made.build(span_size);
        made
    }

    /// Builds the zTOC of the current layer.
    pub(super) fn build(&mut self, span_size: u64) {
        let options = BuildOptions {
            span_size,
            ..BuildOptions::default()
        };
        let built = Builder::new(options).build(&self.layer[..], self.form.compression());
        self.ztoc.clear();
        built
            .expect("a zTOC")
            .encode(&mut self.ztoc)
            .expect("encoded");
    }

    pub(super) fn with_span_size(&self, span_size: u64) -> Made {
        let mut made = self.clone();
        made.build(span_size);
        made
    }

    /// Changes the last letter of a name in the zTOC and nothing else.
    pub(super) fn lie_about(&mut self, name: &str) {
        let name = name.as_bytes();
        let at = self
            .ztoc
            .windows(name.len())
            .position(|window| window == name);
        self.ztoc[at.expect("the name") + name.len() - 1] ^= 1;
    }

    /// Removes the last entry of the tar from the zTOC and changes nothing else.
    pub(super) fn leave_out_the_last(&mut self) {
        let count = |ztoc: &[u8]| Ztoc::parse(ztoc).ok().map(|ztoc| ztoc.entry_count());
        let entries = count(&self.ztoc).expect("a zTOC");
        let length = |count: usize| u32::try_from(count).expect("few").to_le_bytes();
        let found = (0..self.ztoc.len() - 4).step_by(4).find_map(|at| {
            let mut ztoc = self.ztoc.clone();
            let place = ztoc.get_mut(at..at + 4)?;
            let is_length = *place == length(entries);
            place.copy_from_slice(&length(entries - 1));
            (is_length && count(&ztoc) == Some(entries - 1)).then_some(ztoc)
        });
        self.ztoc = found.expect("the length of the list of entries");
    }

    /// The same files, in a stream that continues after the archive.
    pub(super) fn with_behind(&self, behind: &[u8], span_size: u64) -> Made {
        let mut made = self.clone();
        made.tar.extend_from_slice(behind);
        made.compress();
        made.build(span_size);
        made
    }

    pub(super) fn compress(&mut self) {
        self.layer = match self.form {
            Form::Plain => self.tar.clone(),
            Form::Gzip => gzip(&self.tar),
            Form::Members => self.tar.chunks(50_000).flat_map(gzip).collect(),
        };
    }

    pub(super) fn file_index(&self, prefix: &str) -> usize {
        self.files
            .iter()
            .position(|(name, _)| name.starts_with(prefix))
            .expect("the file")
    }

    /// The expected content of `data`.
    pub(super) fn data(&self) -> Vec<u8> {
        let mut data = vec![0; LEAD as usize];
        for (_, content) in &self.files {
            data.extend_from_slice(content);
            data.resize(data.len().next_multiple_of(BLOCK as usize), 0);
        }
        data.resize(data.len() + TAIL as usize, 0);
        data
    }

    pub(super) fn spans(&self) -> usize {
        Ztoc::parse(&self.ztoc).expect("a zTOC").spans().len()
    }

    /// The expectation from the image configuration.
    pub(super) fn expected(&self) -> Expected {
        Expected::DiffId(Digest::sha256(&self.tar))
    }

    pub(super) fn descriptor(&self) -> Descriptor {
        Descriptor::of("application/vnd.oci.image.layer.v1.tar+gzip", &self.layer)
    }

    pub(super) fn ztoc_descriptor(&self) -> Descriptor {
        Descriptor::of("application/octet-stream", &self.ztoc)
    }
}
