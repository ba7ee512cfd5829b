//! Small images, built by the test and converted by the program under test.

use std::fs;
use std::io::Write;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use anyhow::{Context, Result, anyhow, bail};
use serde_json::{Value, json};
use sha2::{Digest as _, Sha256};
use soci_ztoc::Ztoc;

use crate::process::{Program, binary, tool};
use crate::tar::{self, Entry};

/// The compression of a layer.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Compressor {
    None,
    Gzip,
    Pigz,
    Zstd,
}

/// A layer: its tar and the compressed blob.
#[derive(Debug, Clone)]
pub struct Layer {
    pub tar: Vec<u8>,
    pub blob: Vec<u8>,
    media_type: &'static str,
}

impl Layer {
    /// A gzip layer of these entries.
    pub fn of(entries: &[Entry]) -> Result<Self> {
        Self::compressed(tar::write(entries), Compressor::Gzip)
    }

    pub fn compressed(tar: Vec<u8>, compressor: Compressor) -> Result<Self> {
        let (blob, media_type) = match compressor {
            Compressor::None => (tar.clone(), "application/vnd.oci.image.layer.v1.tar"),
            Compressor::Gzip => (
                filter("gzip", &["-n", "-6"], &tar)?,
                "application/vnd.oci.image.layer.v1.tar+gzip",
            ),
            Compressor::Pigz => (
                filter("pigz", &["-n", "-p", "2"], &tar)?,
                "application/vnd.oci.image.layer.v1.tar+gzip",
            ),
            Compressor::Zstd => (zstd(&tar)?, "application/vnd.oci.image.layer.v1.tar+zstd"),
        };
        Ok(Self {
            tar,
            blob,
            media_type,
        })
    }

    /// Digest of the blob (`sha256:…`).
    pub fn digest(&self) -> String {
        digest(&self.blob)
    }

    /// Digest of the tar (`sha256:…`).
    pub fn diff_id(&self) -> String {
        digest(&self.tar)
    }
}

/// An image; its layers start with the lowest.
#[derive(Debug, Clone)]
pub struct Image {
    pub layers: Vec<Layer>,
    /// The default command of a container.
    pub command: Vec<String>,
    /// Diff-IDs in its configuration, if they differ from those of its layers.
    pub claims: Option<Vec<String>>,
}

impl Image {
    pub fn new(layers: Vec<Layer>) -> Self {
        let command = ["/bin/busybox", "sh"].map(str::to_owned).to_vec();
        Self {
            layers,
            command,
            claims: None,
        }
    }

    /// An image with a gzip layer for each list of entries.
    pub fn of(layers: &[&[Entry]]) -> Result<Self> {
        Ok(Self::new(
            layers
                .iter()
                .map(|entries| Layer::of(entries))
                .collect::<Result<_>>()?,
        ))
    }

    /// The same on top of a layer with a shell (busybox), so that containers can run.
    pub fn runnable(layers: &[&[Entry]]) -> Result<Self> {
        let mut all = vec![Layer::of(&shell()?)?];
        all.extend(Self::of(layers)?.layers);
        Ok(Self::new(all))
    }

    /// A sandbox image for pods, which sleeps.
    pub fn pause() -> Result<Self> {
        let mut image = Self::new(vec![Layer::of(&shell()?)?]);
        image.command = ["/bin/sleep", "86400"].map(str::to_owned).to_vec();
        Ok(image)
    }

    /// Writes the image as an OCI layout to `folder`, which is created.
    pub fn write_layout(&self, folder: &Path) -> Result<()> {
        let manifest = self.put(folder, "amd64")?;
        write_index(folder, &[manifest])
    }

    /// Adds its blobs to a layout. Returns the descriptor of its manifest.
    fn put(&self, layout: &Path, architecture: &str) -> Result<Value> {
        let own = || self.layers.iter().map(Layer::diff_id).collect();
        let diff_ids: Vec<String> = self.claims.clone().unwrap_or_else(own);
        let config = json!({
            "architecture": architecture,
            "os": "linux",
            "config": {"Env": ["PATH=/bin"], "Cmd": self.command},
            "rootfs": {"type": "layers", "diff_ids": diff_ids},
        });
        let config_type = "application/vnd.oci.image.config.v1+json";
        let config = put(layout, config_type, &serde_json::to_vec(&config)?)?;
        let layers = self
            .layers
            .iter()
            .map(|layer| put(layout, layer.media_type, &layer.blob))
            .collect::<Result<Vec<_>>>()?;
        let manifest_type = "application/vnd.oci.image.manifest.v1+json";
        let manifest = json!({"schemaVersion": 2, "mediaType": manifest_type, "config": config, "layers": layers});
        let mut manifest = put(layout, manifest_type, &serde_json::to_vec(&manifest)?)?;
        manifest["platform"] = json!({"architecture": architecture, "os": "linux"});
        Ok(manifest)
    }
}

/// Writes images for several platforms as one OCI layout, with the name under which containerd
/// imports it.
pub fn write_platforms(folder: &Path, name: &str, images: &[(&str, &Image)]) -> Result<()> {
    let manifests = images
        .iter()
        .map(|(architecture, image)| image.put(folder, architecture))
        .collect::<Result<Vec<_>>>()?;
    let mut image = manifests[0].clone();
    if manifests.len() > 1 {
        let index_type = "application/vnd.oci.image.index.v1+json";
        let index = json!({"schemaVersion": 2, "mediaType": index_type, "manifests": manifests});
        image = put(folder, index_type, &serde_json::to_vec(&index)?)?;
    }
    image["annotations"] = json!({"io.containerd.image.name": name});
    write_index(folder, &[image])
}

/// Adds a blob to a layout. Returns its descriptor.
fn put(layout: &Path, kind: &str, data: &[u8]) -> Result<Value> {
    let blobs = layout.join("blobs/sha256");
    fs::create_dir_all(&blobs)?;
    let name = digest(data);
    fs::write(blobs.join(&name["sha256:".len()..]), data)?;
    Ok(json!({"mediaType": kind, "digest": name, "size": data.len()}))
}

fn write_index(folder: &Path, manifests: &[Value]) -> Result<()> {
    let index_type = "application/vnd.oci.image.index.v1+json";
    let index = json!({"schemaVersion": 2, "mediaType": index_type, "manifests": manifests});
    fs::write(folder.join("index.json"), serde_json::to_vec(&index)?)?;
    let marker = br#"{"imageLayoutVersion":"1.0.0"}"#;
    Ok(fs::write(folder.join("oci-layout"), marker)?)
}

/// Runs `soci convert --standalone` on a layout, with a small span size so that small layers have
/// many spans, and no minimum layer size unless `arguments` set one.
pub fn convert(from: &Path, to: &Path, arguments: &[&str]) -> Result<()> {
    let mut program =
        Program::at(&binary("soci")?).args(["convert", "--standalone", "--format", "oci-dir"]);
    if arguments.is_empty() {
        program = program.args(["--min-layer-size", "0", "--span-size", "65536"]);
    }
    program
        .args(arguments)
        .args([from, to])
        .succeed()
        .map(|_| ())
}

/// Changes the zTOCs of a converted layout and updates all digests up to `index.json`. `change`
/// must keep the length, and returns false for a zTOC that it does not change.
pub fn change_ztocs(layout: &Path, change: impl Fn(&mut Vec<u8>) -> bool) -> Result<()> {
    let blobs = layout.join("blobs/sha256");
    let path = |digest: &str| blobs.join(digest.trim_start_matches("sha256:"));
    let list = |value: &Value| -> Vec<String> {
        let items = value.as_array().into_iter().flatten();
        items
            .filter_map(|item| item["digest"].as_str().map(str::to_owned))
            .collect()
    };
    let parsed =
        |digest: &str| -> Result<Value> { Ok(serde_json::from_slice(&fs::read(path(digest))?)?) };
    // Old and new digest. Starting at the zTOCs, the new digests of each level replace the old ones
    // in the text of the next.
    let mut renamed: Vec<(String, String)> = Vec::new();
    let root = layout.join("index.json");
    for top in list(&serde_json::from_slice::<Value>(&fs::read(&root)?)?["manifests"]) {
        let (mut indexes, mut images) = (Vec::new(), Vec::new());
        for name in list(&parsed(&top)?["manifests"]) {
            let manifest = parsed(&name)?;
            if manifest["layers"][0]["mediaType"] != "application/octet-stream" {
                images.push(name);
                continue;
            }
            for ztoc in list(&manifest["layers"]) {
                let mut bytes = fs::read(path(&ztoc))?;
                if change(&mut bytes) {
                    fs::write(path(&digest(&bytes)), &bytes)?;
                    renamed.push((ztoc, digest(&bytes)));
                }
            }
            indexes.push(name);
        }
        for name in indexes.into_iter().chain(images).chain([top]) {
            let text = replaced(fs::read_to_string(path(&name))?, &renamed);
            fs::write(path(&digest(text.as_bytes())), &text)?;
            renamed.push((name, digest(text.as_bytes())));
        }
    }
    let text = replaced(fs::read_to_string(&root)?, &renamed);
    Ok(fs::write(root, text)?)
}

fn replaced(mut text: String, pairs: &[(String, String)]) -> String {
    for (old, new) in pairs {
        text = text.replace(old, new);
    }
    text
}

/// Removes the last entry of a zTOC. Returns false if the entry has another name.
pub fn leave_out_last_entry(ztoc: &mut [u8], name: &str) -> bool {
    let entries = |ztoc: &[u8]| {
        let parsed = Ztoc::parse(ztoc).ok()?;
        let last = parsed.entries().last()?.name.to_vec();
        Some((parsed.entry_count(), last))
    };
    let Some((count, last)) = entries(ztoc) else {
        return false;
    };
    if last != name.as_bytes() {
        return false;
    }
    let length = |count: usize| u32::try_from(count).unwrap_or(u32::MAX).to_le_bytes();
    for at in (0..ztoc.len() - 4).step_by(4) {
        if ztoc[at..at + 4] != length(count) {
            continue;
        }
        ztoc[at..at + 4].copy_from_slice(&length(count - 1));
        if entries(ztoc).is_some_and(|(left, _)| left == count - 1) {
            return true;
        }
        ztoc[at..at + 4].copy_from_slice(&length(count));
    }
    false
}

/// Renames an entry of a zTOC to a name of the same length. Returns false if there is no such
/// entry. The windows of checkpoints contain the name too; the entry's own string follows its
/// length.
pub fn rename_entry(ztoc: &mut [u8], old: &str, new: &str) -> bool {
    let length = u32::try_from(old.len())
        .expect("the name is short")
        .to_le_bytes();
    let string = [&length[..], old.as_bytes()].concat();
    match ztoc
        .windows(string.len())
        .position(|window| window == string)
    {
        Some(at) if old.len() == new.len() => {
            ztoc[at + length.len()..at + string.len()].copy_from_slice(new.as_bytes());
            true
        }
        _ => false,
    }
}

/// Writes the image's layout and its converted layout to directories under `folder`.
pub fn layouts(image: &Image, folder: &Path, arguments: &[&str]) -> Result<(PathBuf, PathBuf)> {
    let (plain, converted) = (folder.join("plain"), folder.join("converted"));
    image.write_layout(&plain)?;
    convert(&plain, &converted, arguments)?;
    Ok((plain, converted))
}

/// `/bin/busybox` with its usual links, and the directories that a runtime mounts on.
pub fn shell() -> Result<Vec<Entry>> {
    let busybox = fs::read(tool("busybox")?).context("read busybox")?;
    let mut entries = vec![
        tar::directory("bin"),
        tar::file("bin/busybox", busybox).mode(0o755),
    ];
    for name in [
        "sh", "cat", "ls", "sleep", "true", "echo", "dd", "md5sum", "touch", "rm", "id", "stat",
    ] {
        entries.push(tar::hardlink(format!("bin/{name}"), "bin/busybox").mode(0o755));
    }
    entries.extend(["proc", "sys", "dev", "run", "etc"].map(tar::directory));
    entries.push(tar::directory("tmp").mode(0o1777));
    Ok(entries)
}

/// Digest of some bytes (`sha256:…`).
pub fn digest(bytes: &[u8]) -> String {
    use std::fmt::Write as _;
    let mut text = String::from("sha256:");
    for byte in Sha256::digest(bytes) {
        write!(text, "{byte:02x}").expect("writing to a String cannot fail");
    }
    text
}

/// Incompressible bytes, the same for the same seed.
pub fn noise(seed: u64, length: usize) -> Vec<u8> {
    let mut state = seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1;
    let mut out = Vec::with_capacity(length + 8);
    while out.len() < length {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        out.extend_from_slice(&state.to_le_bytes());
    }
    out.truncate(length);
    out
}

/// One frame of zstd with a checksum.
fn zstd(bytes: &[u8]) -> Result<Vec<u8>> {
    let failed = |code| anyhow!("zstd: {}", zstd_safe::get_error_name(code));
    let mut context = zstd_safe::CCtx::create();
    let checked = zstd_safe::CParameter::ChecksumFlag(true);
    context.set_parameter(checked).map_err(failed)?;
    let mut out = vec![0; zstd_safe::compress_bound(bytes.len())];
    let written = context.compress2(&mut out[..], bytes).map_err(failed)?;
    out.truncate(written);
    Ok(out)
}

/// Output of a program for the given standard input.
pub fn filter(program: &str, arguments: &[&str], input: &[u8]) -> Result<Vec<u8>> {
    let mut child = Command::new(program)
        .args(arguments)
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .spawn()
        .with_context(|| format!("start {program}"))?;
    let mut stdin = child.stdin.take().context("its input")?;
    std::thread::scope(|scope| {
        // Another thread writes, because a filter produces output while it reads.
        let feeder = scope.spawn(move || stdin.write_all(input));
        let output = child.wait_with_output()?;
        if feeder.join().is_err() || !output.status.success() {
            bail!("{program} did not compress");
        }
        Ok(output.stdout)
    })
}
