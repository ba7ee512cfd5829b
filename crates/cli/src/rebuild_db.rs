//! `soci rebuild-db`: makes the records match the content store.

use std::sync::Arc;

use anyhow::{Context as _, Result};
use soci_index::artifacts::rebuild::{Images, Scan};

use crate::args::Global;
use crate::state::State;

const REMOVE: &str = "failed to remove old artifacts from db";
const ADD: &str = "failed to add new artifacts to db";

/// Runs the command.
pub(crate) async fn run(global: &Global) -> Result<()> {
    let state = State::new(global);
    let artifacts = state.artifacts();
    // Existing records need not be readable: unreadable records of the reference are skipped.
    artifacts.begin()?;
    let content = state.content().await?;
    let mut scan = Scan::of(&artifacts, content.as_ref())
        .await
        .context(REMOVE)?;
    scan.remove_lost().context(REMOVE)?;
    // Images are in containerd for either content store, and so are version 2 indexes.
    let images = if !state.is_local() || scan.has_new() {
        Some(images(&state).await.context(ADD)?)
    } else {
        None
    };
    for left_out in scan.add_new(images.as_ref()).await.context(ADD)? {
        let (index, cause) = (left_out.index, anyhow::Error::from(left_out.cause));
        tracing::warn!("index {index} is not recorded: its image cannot be read: {cause:#}");
    }
    Ok(())
}

async fn images(state: &State<'_>) -> Result<Images> {
    let containerd = state.containerd().await?;
    let images = containerd.all_images().await?;
    Ok(Images {
        store: Arc::new(containerd.clone()),
        targets: images.into_iter().map(|image| image.target).collect(),
    })
}
