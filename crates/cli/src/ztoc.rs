//! `soci ztoc`: lists and prints zTOCs, and reads files with them.

mod get_file;

use std::collections::BTreeSet;
use std::sync::Arc;

use anyhow::{Context as _, Result, bail};
use bytes::Bytes;
use serde::Serialize;
use soci_index::SociIndex;
use soci_index::artifacts::{Artifacts, Entry, Kind};
use soci_index::image::{self, ImageError};
use soci_oci::Digest;
use soci_oci::manifest::MAX_DOCUMENT_BYTES;
use soci_store::{ContentStore, StoreError};
use soci_ztoc::{Compression, Entry as File, MAX_ZTOC_SIZE, Ztoc};

pub(crate) use get_file::get_file;

use crate::args::{Global, ZtocInfo, ZtocList};
use crate::output::stream::{Stream, show};
use crate::output::table::Table;
use crate::output::{Versioned, document};
use crate::state::State;

/// Runs `ztoc list`.
pub(crate) async fn list(global: &Global, args: &ZtocList) -> Result<()> {
    let state = State::new(global);
    let mut entries = if args.image.is_empty() {
        let mut all = state.artifacts().all()?;
        all.retain(|entry| entry.kind == Kind::Layer);
        all
    } else {
        of_image(&state, &args.image).await?
    };
    if !args.digest.is_empty() {
        entries.retain(|entry| entry.digest.to_string() == args.digest);
        if entries.is_empty() && !args.image.is_empty() {
            bail!("the specified ztoc doesn't exist or is not associated with the specified image");
        }
    }
    show(&listing(&entries, args))
}

fn listing(entries: &[Entry], args: &ZtocList) -> String {
    if args.quiet {
        let digests = entries.iter().map(|entry| format!("{}\n", entry.digest));
        return digests.collect();
    }
    if args.json {
        let ztocs = entries.iter().map(Listed::of).collect();
        return document::pretty(&Versioned::new(List { ztocs }));
    }
    let mut table = Table::new(["DIGEST", "SIZE", "LAYER DIGEST"]);
    for entry in entries {
        let (digest, size) = (entry.digest.to_string(), entry.size.to_string());
        table.row([digest, size, entry.oci_digest.clone()]);
    }
    table.to_string()
}

/// All listed zTOCs in JSON.
#[derive(Serialize)]
struct List<'a> {
    ztocs: Vec<Listed<'a>>,
}

/// A zTOC in JSON.
#[derive(Serialize)]
struct Listed<'a> {
    digest: String,
    size: u64,
    layer_digest: &'a str,
    span_size: u64,
    created_at: Option<String>,
}

impl<'a> Listed<'a> {
    fn of(entry: &'a Entry) -> Self {
        Self {
            digest: entry.digest.to_string(),
            size: entry.size,
            layer_digest: &entry.oci_digest,
            span_size: entry.span_size,
            created_at: entry.created_at.map(|time| time.to_rfc3339()),
        }
    }
}

/// The zTOCs of an image's indexes, in order and without duplicates.
async fn of_image(state: &State<'_>, name: &str) -> Result<Vec<Entry>> {
    let containerd = state.containerd().await?;
    let target = containerd.image(name).await?.target;
    let store: Arc<dyn ContentStore> = Arc::new(containerd.clone());
    let manifests = image::manifests(&store, &target, &[]).await;
    let manifests = manifests.map_err(|error| {
        let what = match &error {
            ImageError::NoManifest { .. } | ImageError::PlatformMissing => "soci indexes",
            _ => "supported platforms",
        };
        anyhow::Error::from(error).context(format!("failed to get {what} for the image"))
    })?;
    let artifacts = state.artifacts();
    let recorded = artifacts.all()?;
    let content = state.content().await?;
    let (mut found, mut seen) = (Vec::new(), BTreeSet::new());
    for manifest in manifests {
        let manifest = manifest.digest.to_string();
        let is_index_of_it =
            |entry: &&Entry| entry.kind == Kind::Index && entry.oci_digest == manifest;
        for entry in recorded.iter().filter(is_index_of_it) {
            let index = index_of([&content, &store], &entry.digest).await?;
            for blob in index.iter().flat_map(SociIndex::ztocs) {
                if seen.insert(blob.ztoc.digest) {
                    found.push(recorded_ztoc(&artifacts, &blob.ztoc.digest)?);
                }
            }
        }
    }
    Ok(found)
}

fn recorded_ztoc(artifacts: &Artifacts, digest: &Digest) -> Result<Entry> {
    artifacts
        .get(digest)
        .context("failed to get ztoc from artifacts store (try running \"soci rebuild-db\" first)")
}

/// An index from the first store that has it; `None` if no store does.
async fn index_of(
    stores: [&Arc<dyn ContentStore>; 2],
    digest: &Digest,
) -> Result<Option<SociIndex>> {
    for store in stores {
        let bytes = match store.read(digest, MAX_DOCUMENT_BYTES).await {
            Err(error) if error.is_not_found() => continue,
            other => other.with_context(|| {
                format!("failed to read a soci index with digest {digest} from the content store")
            })?,
        };
        let index = SociIndex::parse(&bytes);
        return Ok(Some(index.with_context(|| {
            format!("failed to decode a soci index with digest {digest}")
        })?));
    }
    Ok(None)
}

/// Reads a complete zTOC and verifies its digest.
async fn read(content: &dyn ContentStore, digest: &Digest) -> Result<Bytes, StoreError> {
    content.read(digest, MAX_ZTOC_SIZE).await
}

/// Runs `ztoc info`.
pub(crate) async fn info(global: &Global, args: &ZtocInfo) -> Result<()> {
    let state = State::new(global);
    let digest: Digest = args.digest.parse()?;
    let entry = state.artifacts().get(&digest)?;
    if entry.kind == Kind::Index {
        bail!(
            "the provided digest belongs to a SOCI index. Use `soci index info` to get the detailed information about it"
        );
    }
    let content = state.content().await?;
    let bytes = read(content.as_ref(), &digest).await?;
    let ztoc = parse(&bytes)?;
    let mut out = Stream::new();
    describe(&ztoc, entry.size, &mut out, Form::of(args.json))?;
    out.finish()
}

/// Parses a zTOC. Errors begin with the reference's message.
fn parse(bytes: &[u8]) -> Result<Ztoc<'_>> {
    Ztoc::parse(bytes).context("cannot unmarshal ztoc")
}

/// The separators of a document.
struct Form {
    /// Before a member of the document, of the list of files, and of a file.
    breaks: [&'static str; 3],
    colon: &'static str,
}

impl Form {
    fn of(compact: bool) -> Self {
        if compact {
            Self {
                breaks: [""; 3],
                colon: ":",
            }
        } else {
            Self {
                breaks: ["\n  ", "\n    ", "\n      "],
                colon: ": ",
            }
        }
    }
}

/// Writes the content of a zTOC file by file, because it can have hundreds of thousands of files.
fn describe(ztoc: &Ztoc<'_>, size: u64, out: &mut Stream, form: Form) -> Result<()> {
    let Form {
        breaks: [member, item, field],
        colon,
    } = form;
    let spans = |file: &File<'_>| {
        let end = file.offset.saturating_add(file.size);
        (span_at(ztoc, file.offset), span_at(ztoc, end))
    };
    let is_split = |file: &File<'_>| {
        let (start, end) = spans(file);
        start != end
    };
    let split = ztoc.entries().filter(is_split).count();
    let head = [
        ("version", document::string(ztoc.version())),
        ("build_tool", document::string(ztoc.tool())),
        ("size", size.to_string()),
        ("span_size", ztoc.span_size().to_string()),
        ("num_spans", ztoc.spans().len().to_string()),
        ("num_files", ztoc.entry_count().to_string()),
        ("num_multi_span_files", split.to_string()),
    ];
    out.write(b"{")?;
    for (name, value) in head {
        out.write(format!("{member}\"{name}\"{colon}{value},").as_bytes())?;
    }
    out.write(format!("{member}\"files\"{colon}").as_bytes())?;
    let mut before = "[";
    for file in ztoc.entries() {
        if !out.is_open() {
            break;
        }
        let (start, end) = spans(&file);
        let name = document::string(file.name);
        let kind = file.kind.as_str();
        let text = format!(
            "{before}{item}{{{field}\"filename\"{colon}{name},{field}\"offset\"{colon}{},{field}\"size\"{colon}{},{field}\"type\"{colon}\"{kind}\",{field}\"start_span\"{colon}{start},{field}\"end_span\"{colon}{end}{item}}}",
            file.offset, file.size
        );
        out.write(text.as_bytes())?;
        before = ",";
    }
    let close = if before == "[" {
        "null".to_owned()
    } else {
        format!("{member}]")
    };
    let end = if member.is_empty() { "}\n" } else { "\n}\n" };
    out.write((close + end).as_bytes())
}

/// The span that the reference computes for an offset.
fn span_at(ztoc: &Ztoc<'_>, offset: u64) -> u64 {
    match (ztoc.compression(), ztoc.span_size()) {
        // The reference assumes spans of equal size and does not check that the span exists.
        (Compression::Plain, size) if size > 0 => offset / size,
        _ => ztoc.spans().at(offset).map_or(0, |span| u64::from(span.0)),
    }
}
