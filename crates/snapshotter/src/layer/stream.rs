//! Downloads a layer without a zTOC: one sequential pass from the registry to `data`, `heads`, and
//! the list of entries.
//!
//! ```text
//! steps of the blob, downloaded in parallel, passed on in order
//!   ├─▶ SHA-256 = the layer's digest
//!   └─▶ decompress ─┬─▶ SHA-256 = diff-ID
//!                   └─▶ tar scanner ─▶ contents to data, the rest to heads, entries to the plan
//! ```
//!
//! Each arrow leads to a stage with its own jobs in the pool, so that one layer can use several
//! cores. Everything goes into a draft that is not visible. It becomes a layer when both digests
//! match. Entries that unpacking ignores or rejects are ignored or rejected here too.

use bytes::Bytes;
use soci_oci::{Digest, Verifier};
use soci_ztoc::LayerFormat;
use tokio::sync::mpsc::{UnboundedReceiver, UnboundedSender, unbounded_channel};

use super::{Context, Whole};
use crate::{
    cpu::Lane,
    fetch::Source,
    store::{Draft, sources::Sources},
    sync::{Arc, OnceLock},
};

mod decoding;
mod error;
mod files;
mod keep;
mod program;
mod ready;
mod rooms;
mod settings;
mod stages;
mod steps;
mod turns;

pub use error::StreamError;
pub use program::{Program, Programs};
pub(super) use ready::Ready;
pub use settings::WholeOptions;
pub(super) use turns::Turns;

use decoding::{Decoding, Decompressed};
use files::Files;
use keep::Keep;
use ready::{Pass, Verified};
use stages::{Tar, Unpack};
use steps::Steps;

/// Downloads a layer. Wrong bytes of a mirror are downloaded once more, from the registry itself. A
/// layer that a program does not decompress correctly is downloaded once more for our own decoder.
pub(super) async fn pull_from_any(
    context: &Arc<Context>,
    whole: Whole,
) -> Result<Ready, StreamError> {
    let used = OnceLock::new();
    let first = pull(context, &whole, Some(&used)).await;
    let pulled = match (first, used.get()) {
        (Err(error), Some(program)) if error.may_be_of_a_program() => {
            let again = pull(context, &whole, None).await;
            if again.is_ok() {
                program.failed(&whole.layer.digest, &error);
            }
            again
        }
        (first, program) => {
            if let (Ok(_), Some(program)) = (&first, program) {
                program.worked();
            }
            first
        }
    };
    let error = match pulled {
        Err(error) if error.is_about_bytes() => error,
        pulled => return pulled,
    };
    let has_others = |source: &Source| source.fetcher.distrust();
    if whole.sources.iter().filter(|it| has_others(it)).count() == 0 {
        return Err(error);
    }
    tracing::warn!(
        error = &error as &dyn std::error::Error,
        "a mirror may have sent wrong bytes; downloading the layer again from the registry itself"
    );
    pull(context, &whole, None).await
}

/// The program that decompresses a layer, once it is known. `None` if none may.
type Used<'a> = Option<&'a OnceLock<Arc<Program>>>;

/// Downloads a layer. Dropping the future removes its files.
async fn pull(context: &Arc<Context>, whole: &Whole, used: Used<'_>) -> Result<Ready, StreamError> {
    let image: Arc<str> = whole.origin.reference.as_str().into();
    let turn = context.passes.take(&image, whole.order).await;
    let (store, cpu) = (Arc::clone(&context.store), Arc::clone(&context.cpu));
    let make = move || store.draft().map(|draft| draft.remove_on(&cpu));
    let draft = context.cpu.run(Lane::Files, make).await??;
    let kept = whole.keep.clone();
    let mut kept = kept.map(|store| Keep::start(context, store, whole.layer.clone()));
    let steps = Steps::new(context, whole, image);
    let pass = pass(context, whole, steps, draft, (used, &mut kept)).await?;
    let sources = Sources {
        layer: whole.layer.clone(),
        ztoc: None,
        diff_id: Some(whole.diff_id),
        origins: [whole.origin.clone()].into(),
    };
    let store = Arc::clone(&context.store);
    let verified = move || Verified::new(&store, pass, sources);
    let verified = context.cpu.run(Lane::Files, verified).await??;
    Ok(Ready {
        verified,
        turn,
        kept,
    })
}

/// Sends the bytes of a layer through all stages. The first stage that fails ends all of them.
async fn pass(
    context: &Context,
    whole: &Whole,
    steps: Steps,
    draft: Draft,
    (used, kept): (Used<'_>, &mut Option<Keep>),
) -> Result<Pass, StreamError> {
    let layer = whole.layer.digest;
    let cpu = &context.cpu;
    let (to_digest, digest) = unbounded_channel();
    let (to_decoder, decoder) = unbounded_channel();
    let (to_diff_id, diff_id) = unbounded_channel();
    let (to_unpack, unpack) = unbounded_channel();
    let tar = Tar([to_diff_id, to_unpack]);
    let ((), compressed, decompressed, tar, unpack) = tokio::try_join!(
        deal(layer, steps, [to_digest, to_decoder], kept),
        stages::run(cpu, Verifier::new(layer), digest),
        decompress(context, layer, decoder, tar, used),
        stages::run(cpu, Verifier::new(whole.diff_id), diff_id),
        stages::run(cpu, Unpack::new(layer, draft), unpack),
    )?;
    Ok(Pass {
        layer,
        compressed,
        decompressed,
        tar,
        unpack,
    })
}

/// Decompresses in the way that the first bytes show: with a program if there is one that starts,
/// and with our own decoder if the layer is to be indexed.
async fn decompress(
    context: &Context,
    layer: Digest,
    mut steps: UnboundedReceiver<Bytes>,
    tar: Tar,
    used: Used<'_>,
) -> Result<Decompressed, StreamError> {
    let Some(first) = steps.recv().await else {
        return Ok(Ok(None));
    };
    let format = LayerFormat::sniff(&first);
    if format == LayerFormat::Plain {
        stages::pass_on(first, steps, &tar).await;
        return Ok(Ok(None));
    }
    let indexes = context.options.whole.indexes && format == LayerFormat::Gzip;
    if let Some(used) = used
        && !indexes
        && let Some(program) = context.options.whole.programs.of(format)
        && let Some(child) = program.start(&layer)
    {
        let program = used.get_or_init(|| program);
        let input = (first, steps);
        program.decompress(child, layer, input, tar).await?;
        return Ok(Ok(None));
    }
    let decoder = Decoding::start(context, layer, &first, indexes).await?;
    decoder.decompress(&context.cpu, (first, steps), tar).await
}

/// Deals the steps to the stages that read the compressed bytes.
async fn deal(
    layer: Digest,
    mut steps: Steps,
    stages: [UnboundedSender<Bytes>; 2],
    kept: &mut Option<Keep>,
) -> Result<(), StreamError> {
    while let Some(step) = steps.next().await {
        let step = step.map_err(|source| StreamError::Fetch {
            layer: Box::new(layer),
            source: Box::new(source),
        })?;
        if let Some(kept) = kept {
            kept.push(step.bytes.clone()).await;
        }
        let bytes = Bytes::from_owner(step);
        for stage in &stages {
            // A stage that is gone has failed, and ends the pass.
            drop(stage.send(bytes.clone()));
        }
    }
    Ok(())
}
