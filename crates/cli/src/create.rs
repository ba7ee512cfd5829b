//! `soci create`: builds a version 1 index for an image.

use std::sync::Arc;

use anyhow::{Context as _, Result, bail};
use soci_index::create::image_labels;
use soci_index::{BuildContext, CreateOptions, Creation, create};
use soci_oci::Digest;
use soci_store::ContentStore;
use soci_store::containerd::Containerd;

use crate::args::{Create, Global};
use crate::convert::{build_options, check_optimizations, image_name, leased, platforms, recorded};
use crate::output::{self, CreateReport, Progress, Reporter};
use crate::standalone;
use crate::state::State;

/// Runs the command.
pub(crate) async fn run(global: &Global, args: &Create) -> Result<()> {
    if args.image.as_os_str().is_empty() {
        bail!("source image needs to be specified");
    }
    check_optimizations(&args.ztocs)?;
    let reporter = Arc::new(Reporter::new(Progress::new(global.progress), args.json));
    let result = if args.standalone {
        let options = CreateOptions {
            platforms: platforms(&args.platforms)?,
            build: build_options(&args.ztocs, &args.prefetch)?,
        };
        standalone::create_index(global, args, &options, &reporter).await
    } else {
        with_containerd(global, args, &reporter).await
    };
    conclude(args, result, &reporter)
}

async fn with_containerd(
    global: &Global,
    args: &Create,
    reporter: &Arc<Reporter>,
) -> Result<Creation> {
    let state = State::new(global);
    let containerd = state.containerd().await?;
    let name = image_name(&args.image)?;
    let target = containerd.image(name).await?.target;
    let content = state.content().await?;
    let platforms = platforms(&args.platforms)?;
    let known = recorded(&state, &content, args.ztocs.force).await?;
    let options = CreateOptions {
        platforms,
        build: build_options(&args.ztocs, &args.prefetch)?,
    };
    let is_containerd = global.content_store == "containerd";
    leased(&state, async |leased| {
        let source: Arc<dyn ContentStore> = Arc::new(leased.clone());
        let store = if is_containerd {
            Arc::clone(&source)
        } else {
            content
        };
        let context = BuildContext {
            known,
            source,
            store,
            records: Some(state.artifacts()),
            observer: reporter.clone(),
        };
        let mut creation = create(&context, &target, &options).await;
        let made: Vec<Digest> = creation.indexes.iter().map(|it| it.index.digest).collect();
        if is_containerd {
            keep(&leased, name, &made).await?;
        }
        match creation.failure.take() {
            Some(error) => Err(error.into()),
            None => Ok(creation),
        }
    })
    .await
}

/// Adds labels to the image's record, so that its indexes are not garbage-collected.
async fn keep(containerd: &Containerd, image: &str, indexes: &[Digest]) -> Result<()> {
    if indexes.is_empty() {
        return Ok(());
    }
    let label = async {
        let existing = containerd.image(image).await?.labels;
        let labels = image_labels(&existing, indexes);
        containerd.label_image(image, &labels).await
    };
    label
        .await
        .with_context(|| format!("containerd will remove the index again: label image {image:?}"))
}

/// Reports the result in the requested format.
pub(crate) fn conclude(args: &Create, result: Result<Creation>, reporter: &Reporter) -> Result<()> {
    match &result {
        Err(_) => reporter.progress().finish(),
        Ok(creation) => {
            reporter.finish();
            if args.json {
                let report = CreateReport::new(&args.image.to_string_lossy(), creation, reporter);
                output::json(&report)?;
            }
        }
    }
    output::strict(args.strict, reporter, result).map(drop)
}
