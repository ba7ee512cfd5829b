//! `soci convert`: creates an image that contains its index, in containerd or on disk.

use std::num::NonZeroUsize;
use std::path::Path;
use std::sync::Arc;

use anyhow::{Context as _, Result, anyhow, bail};
use soci_index::{BuildContext, BuildOptions, ConvertOptions, Converted, Platforms, RecordedZtocs};
use soci_index::{ZtocSource, convert, prefetch};
use soci_oci::reference::ContainerdName;
use soci_store::ContentStore;
use soci_store::containerd::Containerd;

use crate::args::{self, Convert, Global, PrefetchFiles, Ztocs};
use crate::output::{self, ConvertReport, Progress, Reporter};
use crate::record;
use crate::standalone;
use crate::state::State;

/// Runs the command.
pub(crate) async fn run(global: &Global, args: &Convert) -> Result<()> {
    if args.image.as_os_str().is_empty() {
        bail!("source image needs to be specified");
    }
    if args.destination.as_os_str().is_empty() {
        bail!("destination needs to be specified");
    }
    check_optimizations(&args.ztocs)?;
    let options = ConvertOptions {
        build: build_options(&args.ztocs, &args.prefetch)?,
        platforms: platforms(&args.platforms)?,
        allow_empty: args.standalone && args.allow_empty,
    };
    if args.standalone {
        return standalone::convert_image(global, args, &options).await;
    }
    let reporter = Arc::new(Reporter::new(Progress::new(global.progress), args.json));
    let result = with_containerd(global, args, &options, &reporter).await;
    conclude(args, result, &reporter)
}

/// Rejects unknown optimizations.
pub(crate) fn check_optimizations(ztocs: &Ztocs) -> Result<()> {
    for name in &ztocs.optimizations {
        if name != "xattr" {
            bail!("optimization {name} is not a valid optimization [xattr]");
        }
    }
    Ok(())
}

/// The build options from the flags.
pub(crate) fn build_options(ztocs: &Ztocs, files: &PrefetchFiles) -> Result<BuildOptions> {
    let prefetch = prefetch::paths(&files.files, files.json.as_deref())?;
    let span_size =
        u64::try_from(ztocs.span_size).map_err(|_| anyhow!("span size must be >= 0"))?;
    let min_layer_size =
        u64::try_from(ztocs.min_layer_size).map_err(|_| anyhow!("min layer size must be >= 0"))?;
    Ok(BuildOptions {
        span_size,
        min_layer_size,
        mark_xattrs: !ztocs.optimizations.is_empty(),
        threads: std::thread::available_parallelism().unwrap_or(NonZeroUsize::MIN),
        at_once: None,
        prefetch,
        record: files.record.as_deref().map(record::load).transpose()?,
    })
}

/// The platforms that the flags select.
pub(crate) fn platforms(flags: &args::Platforms) -> Result<Platforms> {
    if flags.all {
        return Ok(Platforms::All);
    }
    if flags.listed.is_empty() {
        return Ok(Platforms::Default);
    }
    let parse = |text: &String| {
        text.parse()
            .map_err(|error| anyhow!("could not parse platform {text}: {error}"))
    };
    let listed = flags.listed.iter().map(parse).collect::<Result<_>>()?;
    Ok(Platforms::Listed(listed))
}

/// The name of an image in containerd.
pub(crate) fn image_name(path: &Path) -> Result<&str> {
    path.to_str().context("image names are UTF-8")
}

/// zTOCs that were built on this machine; none with `force`, which rebuilds all.
pub(crate) async fn recorded(
    state: &State<'_>,
    store: &Arc<dyn ContentStore>,
    force: bool,
) -> Result<Vec<Arc<dyn ZtocSource>>> {
    let recorded = RecordedZtocs::new(state.artifacts(), Arc::clone(store));
    // Unusable records must fail the command at the start, not when the results are recorded.
    recorded.load().await?;
    Ok(if force {
        Vec::new()
    } else {
        vec![Arc::new(recorded)]
    })
}

/// Runs work under a lease, and ends the lease afterwards in any case. New content without a label
/// may then be garbage-collected.
pub(crate) async fn leased<T>(
    state: &State<'_>,
    work: impl AsyncFnOnce(Containerd) -> Result<T>,
) -> Result<T> {
    let containerd = state.containerd().await?;
    // Listen before the lease exists, so that a signal cannot leave it behind.
    let signals = crate::signals::Signals::listen()?;
    let lease = containerd.lease().await?;
    let limited = crate::limited(state.left(), work(lease.store()));
    let result = signals.unless(limited).await;
    if let Err(error) = lease.end().await {
        tracing::warn!(%error, "the lease on the new content could not be ended; it ends in a day");
    }
    result
}

/// Converts an image in containerd and stores the result there.
async fn with_containerd(
    global: &Global,
    args: &Convert,
    options: &ConvertOptions,
    reporter: &Arc<Reporter>,
) -> Result<Converted> {
    let image = image_name(&args.image)?;
    let destination = image_name(&args.destination)?;
    check_destination(destination).map_err(|cause| {
        anyhow!("the destination image must be a tagged ref of the form \"registry/repository:tag\": {cause}")
    })?;
    match global.content_store.as_str() {
        "containerd" => {}
        "soci" => tracing::warn!(
            "convert keeps images and their indexes in containerd; --content-store soci has no effect"
        ),
        other => bail!("unknown content store type: {other}; must be one of [soci containerd]"),
    }
    let state = State::new(global);
    let containerd = state.containerd().await?;
    let target = containerd.image(image).await?.target;
    let store: Arc<dyn ContentStore> = Arc::new(containerd.clone());
    let known = recorded(&state, &store, args.ztocs.force).await?;
    leased(&state, async |containerd| {
        let store: Arc<dyn ContentStore> = Arc::new(containerd.clone());
        let context = BuildContext {
            known,
            source: Arc::clone(&store),
            store,
            records: Some(state.artifacts()),
            observer: reporter.clone(),
        };
        let converted = convert(&context, &target, options).await?;
        containerd
            .put_image(destination, &converted.image, record_time())
            .await?;
        Ok(converted)
    })
    .await
}

/// Reports the result of a conversion in the requested format.
pub(crate) fn conclude(
    args: &Convert,
    result: Result<Converted>,
    reporter: &Reporter,
) -> Result<()> {
    match &result {
        Err(_) => reporter.progress().finish(),
        Ok(converted) => {
            reporter.finish();
            if args.json {
                let source = args.image.to_string_lossy();
                let destination = args.destination.to_string_lossy();
                let report = ConvertReport::new(&source, &destination, converted, reporter);
                reporter.object(&report)?;
            }
        }
    }
    output::strict(args.strict, reporter, result).map(drop)
}

/// The time of the image's record, if the environment sets it.
fn record_time() -> Option<i64> {
    let text = std::env::var("SOURCE_DATE_EPOCH")
        .ok()
        .filter(|text| !text.is_empty())?;
    let seconds = text.parse().ok();
    if seconds.is_none() {
        tracing::warn!(value = text, "SOURCE_DATE_EPOCH is not a number of seconds");
    }
    seconds
}

fn check_destination(name: &str) -> Result<(), String> {
    if name.is_empty() {
        return Err("reference cannot be empty".to_owned());
    }
    let parsed = ContainerdName::parse(name)
        .map_err(|error| format!("could not parse reference: {error}"))?;
    if !parsed.digest().is_empty() {
        return Err("reference must not contain a digest".to_owned());
    }
    if parsed.tag().is_empty() {
        return Err("reference must be tagged".to_owned());
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn destinations_need_a_tag_and_no_digest() {
        let digest = "sha256:44136fa355b3678a1146ad16f7e8649e94fb4fc21fe77e8310c060f61caaff8a";
        for (name, cause) in [
            ("", "reference cannot be empty".to_owned()),
            ("reg.example/app", "reference must be tagged".to_owned()),
            (&format!("reg.example/app@{digest}"), "reference must not contain a digest".to_owned()),
            (&format!("reg.example/app:1@{digest}"), "reference must not contain a digest".to_owned()),
            (
                "multi:foo",
                "could not parse reference: parse \"dummy://multi:foo\": invalid port \":foo\" after host"
                    .to_owned(),
            ),
            ("http://reg.example/app:1", "could not parse reference: invalid reference".to_owned()),
            ("/app:1", "could not parse reference: hostname required".to_owned()),
        ] {
            assert_eq!(check_destination(name), Err(cause), "{name}");
        }
        assert_eq!(check_destination("reg.example:5000/a/b:1"), Ok(()));
    }
}
