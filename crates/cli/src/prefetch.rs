//! `soci prefetch`: lists and prints prefetch artifacts.

use std::fmt::Write as _;
use std::sync::Arc;

use anyhow::{Result, bail};
use serde::Serialize;
use soci_index::artifacts::{Entry, Kind, now};
use soci_index::prefetch::{self, MAX_ARTIFACT_BYTES, SpanRange};
use soci_oci::Digest;
use soci_store::ContentStore;
use soci_ztoc::Time;

use crate::args::{Global, PrefetchInfo, PrefetchList};
use crate::output::document;
use crate::output::stream::show;
use crate::output::table::{Table, age, printable};
use crate::state::State;

/// An artifact in the reference's JSON format.
#[derive(Serialize)]
#[serde(rename_all = "PascalCase")]
struct Listed {
    digest: String,
    layer_digest: String,
    /// -1 if the artifact cannot be read.
    total_spans: i64,
    created_at: String,
}

/// Runs `prefetch list`.
pub(crate) async fn list(global: &Global, args: &PrefetchList) -> Result<()> {
    let state = State::new(global);
    let mut entries = state.artifacts().all()?;
    entries.retain(|entry| entry.kind == Kind::Prefetch);
    state.check_content_store()?;
    let content = readable(&state, !entries.is_empty()).await;
    let mut listed = Vec::new();
    for entry in &entries {
        listed.push((entry, spans(content.as_ref(), entry).await));
    }
    if args.json {
        let listed: Vec<Listed> = listed.into_iter().map(described).collect();
        // The reference's encoder writes an empty list as `null`.
        let listed = Some(listed).filter(|listed| !listed.is_empty());
        return show(&document::pretty(&listed));
    }
    let mut table = Table::new(["DIGEST", "LAYER DIGEST", "SPANS", "CREATED"]);
    let now = now();
    for (entry, spans) in listed {
        table.row([
            entry.digest.to_string(),
            entry.oci_digest.clone(),
            spans.map_or_else(|| "N/A".to_owned(), |spans| spans.to_string()),
            age(entry.created_at, now),
        ]);
    }
    show(&table.to_string())
}

/// The content store, if it is reachable and needed.
async fn readable(state: &State<'_>, wanted: bool) -> Option<Arc<dyn ContentStore>> {
    if state.is_local() {
        return state.content().await.ok();
    }
    let containerd = state.containerd_if_there(wanted).await?;
    Some(Arc::new(containerd.clone()))
}

/// Number of spans that an artifact requests; `None` if it cannot be read.
async fn spans(content: Option<&Arc<dyn ContentStore>>, entry: &Entry) -> Option<u64> {
    let bytes = content?
        .read(&entry.digest, MAX_ARTIFACT_BYTES)
        .await
        .ok()?;
    Some(total(&prefetch::parse(&bytes).ok()?))
}

fn total(ranges: &[SpanRange]) -> u64 {
    let counts = ranges.iter().map(SpanRange::count);
    counts.fold(0, u64::saturating_add)
}

fn described((entry, spans): (&Entry, Option<u64>)) -> Listed {
    let spans = spans.and_then(|spans| i64::try_from(spans).ok());
    Listed {
        digest: entry.digest.to_string(),
        layer_digest: entry.oci_digest.clone(),
        total_spans: spans.unwrap_or(-1),
        created_at: created(entry).to_rfc3339(),
    }
}

fn created(entry: &Entry) -> Time {
    entry.created_at.unwrap_or(Time::YEAR_ONE)
}

/// Runs `prefetch info`.
pub(crate) async fn info(global: &Global, args: &PrefetchInfo) -> Result<()> {
    let state = State::new(global);
    let digest: Digest = args.digest.parse()?;
    let entry = state.artifacts().get(&digest)?;
    if entry.kind != Kind::Prefetch {
        let kind = entry.kind.name();
        bail!("the provided digest is not a prefetch artifact (type: {kind})");
    }
    let content = state.content().await?;
    let bytes = content.read(&digest, MAX_ARTIFACT_BYTES).await?;
    let ranges = prefetch::parse(&bytes)?;
    let mut text = summary(&entry, &ranges)?;
    if args.json {
        let document = document::indent(&prefetch::encode(&ranges))?;
        write!(text, "\nRaw JSON:\n{document}\n")?;
    }
    show(&text)
}

fn summary(entry: &Entry, ranges: &[SpanRange]) -> Result<String, std::fmt::Error> {
    let time = Time {
        nanos: 0,
        ..created(entry)
    };
    let created = time.to_rfc3339().replace('T', " ");
    let mut text = String::new();
    writeln!(text, "Digest:        {}", entry.digest)?;
    writeln!(text, "Version:       1.0")?;
    writeln!(text, "Span Ranges:   {}", ranges.len())?;
    writeln!(text, "Layer Digest:  {}", printable(&entry.oci_digest))?;
    writeln!(text, "Size:          {} bytes", entry.size)?;
    writeln!(text, "Created:       {}\n", created.trim_end_matches('Z'))?;
    writeln!(text, "Prefetch Spans:")?;
    for (number, range) in ranges.iter().enumerate() {
        let SpanRange {
            start,
            end,
            priority,
            first_use_ms,
        } = range;
        let count = range.count();
        writeln!(
            text,
            "  [{number}] StartSpan: {start}, EndSpan: {end} (covers {count} spans)"
        )?;
        if *priority != 0 {
            writeln!(text, "      Priority: {priority}")?;
        }
        if let Some(first_use_ms) = first_use_ms {
            writeln!(text, "      First Use: {first_use_ms} ms")?;
        }
    }
    writeln!(text, "\nTotal spans to prefetch: {}", total(ranges))?;
    Ok(text)
}
