//! `soci convert`: an image that carries its index, in containerd or on disk.

use std::num::NonZeroUsize;
use std::path::Path;
use std::sync::Arc;

use anyhow::{Result, anyhow, bail};
use soci_index::{ConvertOptions, Converted, Means, Platforms, prefetch};
use soci_oci::Descriptor;
use soci_oci::reference::ContainerdName;
use soci_oci::store::ContentStore;
use soci_oci::store::containerd::Containerd;

use crate::args::{Convert, Global};
use crate::output::Progress;
use crate::standalone;

/// Runs the command.
pub(crate) async fn run(global: &Global, args: &Convert) -> Result<()> {
    if args.image.as_os_str().is_empty() {
        bail!("source image needs to be specified");
    }
    if args.destination.as_os_str().is_empty() {
        bail!("destination needs to be specified");
    }
    let options = options(args)?;
    if args.standalone {
        standalone::convert_image(args, &options).await
    } else {
        with_containerd(global, args, &options).await
    }
}

fn options(args: &Convert) -> Result<ConvertOptions> {
    for name in &args.ztocs.optimizations {
        if name != "xattr" {
            bail!("optimization {name} is not a valid optimization [xattr]");
        }
    }
    let span_size =
        u64::try_from(args.ztocs.span_size).map_err(|_| anyhow!("span size must be >= 0"))?;
    let min_layer_size = u64::try_from(args.ztocs.min_layer_size)
        .map_err(|_| anyhow!("min layer size must be >= 0"))?;
    let platforms = if args.platforms.all {
        Platforms::All
    } else if args.platforms.listed.is_empty() {
        Platforms::Default
    } else {
        let parse = |text: &String| {
            text.parse()
                .map_err(|error| anyhow!("could not parse platform {text}: {error}"))
        };
        Platforms::Listed(
            args.platforms
                .listed
                .iter()
                .map(parse)
                .collect::<Result<_>>()?,
        )
    };
    let build = soci_index::BuildOptions {
        span_size,
        min_layer_size,
        mark_xattrs: !args.ztocs.optimizations.is_empty(),
        threads: std::thread::available_parallelism().unwrap_or(NonZeroUsize::MIN),
        prefetch: prefetch::paths(&args.prefetch.files, args.prefetch.json.as_deref())?,
    };
    Ok(ConvertOptions {
        platforms,
        build,
        allow_empty: args.standalone && args.allow_empty,
    })
}

/// The image is in containerd, and so is the copy.
async fn with_containerd(global: &Global, args: &Convert, options: &ConvertOptions) -> Result<()> {
    let name = |path: &Path| {
        path.to_str()
            .map(str::to_owned)
            .ok_or_else(|| anyhow!("image names are UTF-8"))
    };
    let (image, destination) = (name(&args.image)?, name(&args.destination)?);
    check_destination(&destination).map_err(|cause| {
        anyhow!("the destination image must be a tagged ref of the form \"registry/repository:tag\": {cause}")
    })?;
    match global.content_store.as_str() {
        "containerd" => {}
        "soci" => tracing::warn!(
            "convert keeps images and their indexes in containerd; --content-store soci has no effect"
        ),
        other => bail!("unknown content store type: {other}; must be one of [soci containerd]"),
    }
    let containerd =
        Containerd::connect(&global.address, &global.namespace, global.timeout).await?;
    let target = containerd.image(&image).await?.target;
    let lease = containerd.lease().await?;
    let result = async {
        let store: Arc<dyn ContentStore> = Arc::new(lease.store());
        let converted = convert(&store, &target, options, &Arc::new(Progress::new())).await?;
        lease
            .store()
            .put_image(&destination, &converted.image, record_time())
            .await?;
        Ok(())
    };
    let result = crate::unless_interrupted(result).await;
    if let Err(error) = lease.end().await {
        tracing::warn!(%error, "the lease on the new content could not be ended; it ends in a day");
    }
    result
}

/// The time of the image's record, where the environment fixes it.
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

/// Converts and tells about it.
pub(crate) async fn convert(
    store: &Arc<dyn ContentStore>,
    target: &Descriptor,
    options: &ConvertOptions,
    progress: &Arc<Progress>,
) -> Result<Converted> {
    let means = Means {
        source: Arc::clone(store),
        store: Arc::clone(store),
        known: Vec::new(),
        records: None,
        observer: progress.clone(),
    };
    let converted = soci_index::convert(&means, target, options).await;
    progress.finish();
    Ok(converted?)
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
