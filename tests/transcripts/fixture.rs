//! One containerd and one registry for all transcripts; a folder and a namespace for each.
//!
//! The images are of fixed bytes, so digests in transcripts are real ones.

use std::fs;
use std::os::unix::fs::PermissionsExt as _;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError, Weak};

use anyhow::{Context, Result};
use serde_json::{Value, json};
use soci_tests::image::{digest, filter};
use soci_tests::node::{Node, NodeOptions};
use soci_tests::process::{binary, repository, tool};
use soci_tests::transcript::Stage;
use soci_tests::{Program, TlsRegistry};
use tempfile::TempDir;

const MANIFEST: &str = "application/vnd.oci.image.manifest.v1+json";
const INDEX: &str = "application/vnd.oci.image.index.v1+json";
const CONFIG: &str = "application/vnd.oci.image.config.v1+json";
const LAYER: &str = "application/vnd.oci.image.layer.v1.tar";

/// What all transcripts share; it ends with the last of them.
#[derive(Debug)]
pub(crate) struct Machine {
    pub(crate) node: Node,
    pub(crate) registry: TlsRegistry,
    _folder: TempDir,
}

impl Machine {
    pub(crate) fn get() -> Result<Arc<Self>> {
        static SHARED: Mutex<Weak<Machine>> = Mutex::new(Weak::new());
        let mut shared = SHARED.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(machine) = shared.upgrade() {
            return Ok(machine);
        }
        let folder = tempfile::tempdir().context("a folder for the machine")?;
        let registry = TlsRegistry::start(&folder.path().join("registry"))?;
        let options = NodeOptions {
            authority: Some(registry.authority().to_path_buf()),
            oracle_only: true,
            ..NodeOptions::default()
        };
        let machine = Arc::new(Self {
            node: Node::start(&folder.path().join("node"), options)?,
            registry,
            _folder: folder,
        });
        *shared = Arc::downgrade(&machine);
        Ok(machine)
    }
}

/// What one transcript has to itself.
#[derive(Debug)]
pub(crate) struct Fixture {
    pub(crate) machine: Arc<Machine>,
    stage: Stage,
    _folder: TempDir,
}

impl Fixture {
    /// A folder with the images as layouts, `app`, `multi` and `odd`, and a namespace that has them as
    /// `$REG/$NAME/app:1` and so on, as the registry has.
    pub(crate) fn new(transcript: &str) -> Result<Self> {
        let name = &format!("play-{transcript}");
        let machine = Machine::get()?;
        let folder = tempfile::tempdir().context("a folder for the transcript")?;
        let place = |name: &str| folder.path().join(name);
        for name in ["bin", "home", "tmp"] {
            fs::create_dir(place(name))?;
        }
        wrapper(&place("bin/soci"), &place("root"))?;
        let socket = machine.node.containerd_socket();
        let registry = machine.registry.reference("");
        let text = |path: &Path| path.display().to_string();
        let stage = Stage {
            variables: vec![
                ("T", text(folder.path())),
                ("SOCK", text(&socket)),
                ("REG", registry.trim_end_matches('/').to_owned()),
                ("NAME", name.clone()),
            ],
            programs: vec![place("bin"), tools()?],
            environment: vec![
                ("HOME", text(&place("home"))),
                ("TMPDIR", text(&place("tmp"))),
                ("SSL_CERT_FILE", text(machine.registry.authority())),
                ("CONTAINERD_ADDRESS", text(&socket)),
                ("CONTAINERD_NAMESPACE", name.clone()),
                ("SOCI", text(&binary("soci")?)),
            ],
            folder: folder.path().to_owned(),
        };
        let fixture = Self {
            machine,
            stage,
            _folder: folder,
        };
        fixture.images(name)?;
        Ok(fixture)
    }

    pub(crate) fn stage(&self) -> &Stage {
        &self.stage
    }

    pub(crate) fn folder(&self) -> &Path {
        &self.stage.folder
    }

    fn images(&self, name: &str) -> Result<()> {
        let layer = |file: &str| fs::read(repository().join("tests/fixtures/layers").join(file));
        // Only its media type says that it is zstd; nobody gets to look.
        let zstd = b"(\xb5/\xfd".to_vec();
        let (big, small, other) = (layer("t-z6.gz")?, layer("v-a.tar.gz")?, layer("v-a.tar")?);
        let amd64 = Image::new("amd64", &[(&big, "+gzip"), (&small, "+gzip")])?;
        let arm64 = Image::new("arm64", &[(&other, "")])?;
        let odd = Image::new("amd64", &[(&small, "+gzip"), (&zstd, "+zstd")])?;
        let all = [
            ("app", &[&amd64][..]),
            ("multi", &[&amd64, &arm64]),
            ("odd", &[&odd]),
        ];
        for (image, members) in all {
            let layout = self.folder().join(image);
            let reference = self
                .machine
                .registry
                .reference(&format!("{name}/{image}:1"));
            write_layout(&layout, members, &reference)?;
            self.machine
                .registry
                .push(&layout, &format!("{name}/{image}:1"))?;
            self.import(&layout, name)?;
        }
        Ok(())
    }

    /// Gives containerd the image of a layout, in a namespace, without unpacking it.
    fn import(&self, layout: &Path, namespace: &str) -> Result<()> {
        let archive = layout.with_extension("import");
        Program::at(Path::new("tar"))
            .args([Path::new("-C"), layout, Path::new("-cf"), &archive])
            .args(["."])
            .succeed()?;
        let node = &self.machine.node;
        node.ctr([
            "--namespace",
            namespace,
            "images",
            "import",
            "--local",
            "--no-unpack",
            "--all-platforms",
        ])?
        .args([&archive])
        .succeed()?;
        Ok(fs::remove_file(archive)?)
    }
}

/// `soci` with a root folder of the transcript; `$SOCI` is the program itself.
fn wrapper(place: &Path, root: &Path) -> Result<()> {
    let script = format!(
        "#!/bin/sh\nexec \"{}\" --root \"{}\" \"$@\"\n",
        binary("soci")?.display(),
        root.display()
    );
    fs::write(place, script)?;
    Ok(fs::set_permissions(
        place,
        fs::Permissions::from_mode(0o755),
    )?)
}

fn tools() -> Result<PathBuf> {
    let ctr = tool("ctr")?;
    Ok(ctr.parent().unwrap_or(Path::new("/")).to_owned())
}

/// An image for one platform.
struct Image {
    architecture: &'static str,
    manifest: Vec<u8>,
    blobs: Vec<Vec<u8>>,
}

impl Image {
    fn new(architecture: &'static str, layers: &[(&[u8], &str)]) -> Result<Self> {
        let plain = |(bytes, suffix): &(&[u8], &str)| -> Result<String> {
            Ok(match *suffix {
                "+gzip" => digest(&filter("gzip", &["-dc"], bytes)?),
                _ => digest(bytes),
            })
        };
        let diff_ids = layers.iter().map(plain).collect::<Result<Vec<_>>>()?;
        let config = json!({
            "architecture": architecture, "os": "linux", "rootfs": {"type": "layers", "diff_ids": diff_ids},
        });
        let config = config.to_string().into_bytes();
        let mut blobs = vec![config.clone()];
        let described = |kind: &str, bytes: &[u8]| json!({"mediaType": kind, "digest": digest(bytes), "size": bytes.len()});
        let layers: Vec<Value> = layers
            .iter()
            .map(|(bytes, suffix)| {
                blobs.push(bytes.to_vec());
                described(&format!("{LAYER}{suffix}"), bytes)
            })
            .collect();
        let manifest = json!({
            "schemaVersion": 2, "mediaType": MANIFEST, "config": described(CONFIG, &config), "layers": layers,
        });
        Ok(Self {
            architecture,
            manifest: manifest.to_string().into_bytes(),
            blobs,
        })
    }

    fn descriptor(&self) -> Value {
        json!({
            "mediaType": MANIFEST, "digest": digest(&self.manifest), "size": self.manifest.len(),
            "platform": {"architecture": self.architecture, "os": "linux"},
        })
    }
}

/// A layout whose index names the image, or an index of several, as containerd's import reads it.
fn write_layout(layout: &Path, images: &[&Image], reference: &str) -> Result<()> {
    let blobs = layout.join("blobs/sha256");
    fs::create_dir_all(&blobs)?;
    let put = |bytes: &[u8]| fs::write(blobs.join(&digest(bytes)["sha256:".len()..]), bytes);
    for image in images {
        for blob in image.blobs.iter().chain([&image.manifest]) {
            put(blob)?;
        }
    }
    let mut root = match images {
        [image] => image.descriptor(),
        several => {
            let members: Vec<Value> = several.iter().map(|image| image.descriptor()).collect();
            let index =
                json!({"schemaVersion": 2, "mediaType": INDEX, "manifests": members}).to_string();
            put(index.as_bytes())?;
            json!({"mediaType": INDEX, "digest": digest(index.as_bytes()), "size": index.len()})
        }
    };
    root["annotations"] = json!({"io.containerd.image.name": reference});
    let index = json!({"schemaVersion": 2, "manifests": [root]});
    fs::write(layout.join("index.json"), index.to_string())?;
    fs::write(
        layout.join("oci-layout"),
        r#"{"imageLayoutVersion":"1.0.0"}"#,
    )?;
    Ok(())
}
