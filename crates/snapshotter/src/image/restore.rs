//! Layers that are mounted again: by an earlier process, after a restart of the machine, or after somebody's
//! `umount`. Asks neither registry nor credentials for what the store has (I9).

use std::collections::HashMap;
use std::path::PathBuf;

use tracing::{debug, info, warn};

use super::discover::explain;
use super::labels::{self, Labels};
use super::name::ImageName;
use super::verdict::Subject;
use super::{Images, LayerUse, Parent, Request, show, source};
use crate::cpu::Lane;
use crate::layer::{Expected, Layer};
use crate::mount::table::MountTable;
use crate::store::LayerKey;
use crate::sync::Arc;

/// Why a layer could not be mounted again.
#[derive(Debug, thiserror::Error)]
pub enum RestoreError {
    /// The store has it no more, and nobody could bring it.
    #[error("{0}")]
    Gone(String),
    /// Its tree could not be made.
    #[error(transparent)]
    Show(#[from] show::ShowError),
    /// It could not be opened.
    #[error(transparent)]
    Open(#[from] crate::layer::OpenError),
    /// Its record does not take what it shows now.
    #[error("its record")]
    Record(#[source] Box<dyn std::error::Error + Send + Sync>),
}

/// A snapshot whose layer is to be mounted.
#[derive(Clone, Debug)]
pub(crate) struct Wanted {
    pub(crate) layer: LayerUse,
    pub(crate) at: PathBuf,
    /// What the layer's tar must be.
    pub(crate) expected: Expected,
    pub(crate) labels: Labels,
    /// Nearest first.
    pub(crate) parents: Vec<Parent>,
}

impl Wanted {
    /// The one of its chain that stands on `below` others shows this now.
    fn stands_on(&mut self, below: usize, shown: &LayerUse) {
        let at = self.parents.len().checked_sub(below + 1);
        if let Some(parent) = at.and_then(|at| self.parents.get_mut(at)) {
            *parent = Parent::Layer(shown.clone());
        }
    }
}

impl Images {
    /// Goes on with the layers that an earlier process mounted, so that those who read them read on. `moved` says
    /// that its connection to the kernel is gone; else this process has it.
    ///
    /// What cannot be taken over is logged; its readers get errors.
    pub(crate) async fn adopt(&self, used: &[LayerKey], moved: bool) {
        let parts = &self.0.parts;
        let mut numbers = parts.mounts.find().await.unwrap_or_else(|error| {
            warn!(
                error = explain(&error),
                "the layers of an earlier process are not known"
            );
            Vec::new()
        });
        let known: HashMap<_, _> = parts
            .layers
            .store()
            .list()
            .into_iter()
            .map(|(number, key)| (number.0, key))
            .collect();
        if !moved {
            // Layers that are mounted from files have no device that tells of them.
            numbers.extend(
                known
                    .iter()
                    .filter(|(_, key)| used.contains(key))
                    .map(|(number, _)| *number),
            );
            numbers.sort_unstable();
            numbers.dedup();
        }
        let mut layers = Vec::with_capacity(numbers.len());
        for number in numbers {
            let opened = match known.get(&number) {
                Some(key) => self.open_mounted(key).await,
                None => Err("it is not in the store any more".to_owned()),
            };
            match opened {
                Ok(layer) => layers.push(layer),
                Err(why) => warn!(
                    layer = number,
                    error = why,
                    "a mounted layer cannot be opened: its missing bytes cannot be read"
                ),
            }
        }
        // From here on every READ is answered; before, a change of hands would wait for those that are not.
        parts.mounts.restored();
        for layer in &layers {
            self.go_on_with(layer, moved).await;
        }
        if !layers.is_empty() {
            let count = layers.len();
            info!(
                count,
                moved, "went on with the layers of an earlier process"
            );
        }
    }

    async fn open_mounted(&self, key: &LayerKey) -> Result<Arc<Layer>, String> {
        let opened = self.0.parts.layers.open_present(key).await;
        let layer = opened.map_err(|error| explain(&error))?;
        let layer = layer.ok_or("it is not in the store any more")?;
        if !layer.is_complete() {
            self.add_sources(&layer);
        }
        self.0.parts.mounts.serve(&layer);
        Ok(layer)
    }

    async fn go_on_with(&self, layer: &Arc<Layer>, moved: bool) {
        if (moved || layer.is_complete())
            && let Err(error) = self.0.parts.mounts.take_over(layer).await
        {
            warn!(
                layer = layer.digest().to_string(),
                error = explain(&error),
                "a mounted layer is not taken over: its missing bytes cannot be read"
            );
        }
        self.finish_behind(layer);
    }

    /// Mounts what is not mounted by this process, lowest first; what each shows then.
    ///
    /// Where the store has lost what a record names, another form of the layer may take its place. `record` writes that
    /// down for good, by the position of what is wanted, before it is mounted: layers are removed by the records.
    pub(crate) async fn ensure<F, E>(
        &self,
        mut wanted: Vec<Wanted>,
        record: impl Fn(usize, LayerUse) -> F,
    ) -> Result<Vec<LayerUse>, (PathBuf, RestoreError)>
    where
        F: Future<Output = Result<(), E>>,
        E: std::error::Error + Send + Sync + 'static,
    {
        let Some(first) = wanted.first() else {
            return Ok(Vec::new());
        };
        // Without the table nothing is known, and nothing is mounted over what may be there.
        let table = MountTable::read()
            .map_err(|error| (first.at.clone(), show::ShowError::from(error).into()))?;
        let mounts = &self.0.parts.mounts;
        for position in (0..wanted.len()).rev() {
            let (above, here) = wanted.split_at_mut(position);
            let Some(here) = here.first_mut() else {
                continue;
            };
            let shown = match mounts.shown(&table, &here.at) {
                Some(shown) => {
                    self.0.parts.layers.note_use(&shown.layer);
                    shown
                }
                None => {
                    let restored = self.restore(here, |layer| record(position, layer));
                    restored.await.map_err(|error| (here.at.clone(), error))?
                }
            };
            if shown != here.layer {
                above
                    .iter_mut()
                    .for_each(|above| above.stands_on(here.parents.len(), &shown));
                here.layer = shown;
            }
        }
        Ok(wanted.into_iter().map(|wanted| wanted.layer).collect())
    }

    /// Mounts a layer from the store, or one that is got again; what it shows then.
    async fn restore<F, E>(
        &self,
        wanted: &Wanted,
        record: impl FnOnce(LayerUse) -> F,
    ) -> Result<LayerUse, RestoreError>
    where
        F: Future<Output = Result<(), E>>,
        E: std::error::Error + Send + Sync + 'static,
    {
        let LayerUse { layer: key, patch } = &wanted.layer;
        // Until the record names what is mounted.
        let _hold = self.0.holds.hold(key.layer).await;
        let layer = match self.0.parts.layers.open_present(key).await? {
            Some(layer) => layer,
            None => self.bring_back(wanted).await?,
        };
        if !layer.is_complete() {
            self.add_sources(&layer);
        }
        // None if it is another form, or was torn by a power loss: made again from entries and parents.
        let meta = match layer.key() == *key {
            true => self.named_meta(&layer, patch).await?,
            false => None,
        };
        let (patch, meta) = match meta {
            Some(meta) => (patch.clone(), meta),
            None => self.make_meta(&layer, &wanted.parents).await?,
        };
        let shown = LayerUse {
            layer: layer.key(),
            patch,
        };
        if shown != wanted.layer {
            info!(
                layer = layer.digest().to_string(),
                path = %wanted.at.display(),
                "the store has lost what a snapshot showed: another form of its layer takes its place"
            );
            let recorded = record(shown.clone()).await;
            recorded.map_err(|error| RestoreError::Record(Box::new(error)))?;
        }
        self.mount_meta(&layer, &shown.patch, meta, &wanted.at, &wanted.parents)
            .await
            .map_err(show::ShowError::from)?;
        Ok(shown)
    }

    async fn named_meta(
        &self,
        layer: &Arc<Layer>,
        patch: &str,
    ) -> Result<Option<PathBuf>, show::ShowError> {
        let (of, named) = (Arc::clone(layer), patch.to_owned());
        let cpu = &self.0.parts.cpu;
        Ok(cpu.run(Lane::Files, move || of.meta(&named)).await??)
    }

    /// The registry again, for a layer that the store knows. Asks nobody.
    pub(super) fn add_sources(&self, layer: &Layer) {
        let record = layer.record();
        for origin in &record.origins {
            match source::source(&self.0.parts.registry, &origin.reference, &record.layer) {
                Ok(source) => layer.add_source(source),
                Err(error) => debug!(reference = origin.reference, error, "no source"),
            }
        }
    }

    /// A layer that the store has lost is got as at first: perhaps in another form, as its image is now.
    async fn bring_back(&self, wanted: &Wanted) -> Result<Arc<Layer>, RestoreError> {
        let namespace = labels::value(&wanted.labels, labels::NAMESPACE).unwrap_or_default();
        let image =
            ImageName::from_labels(namespace, &wanted.labels).map_err(RestoreError::Gone)?;
        let request = Request {
            image,
            layer: wanted.layer.layer.layer,
            at: wanted.at.clone(),
            parents: wanted.parents.clone(),
            expected: wanted.expected,
            subject: Subject::default(),
            small: wanted.layer.layer.ztoc.is_none(),
        };
        let image = self.image(&request.image);
        let opened = self.open(&image, &request).await;
        let opened = opened.map_err(|left| RestoreError::Gone(left.why))?;
        Ok(opened.layer)
    }
}
