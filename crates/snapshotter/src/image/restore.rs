//! Mounts layers again after a restart of the process or the machine, or after an external
//! `umount`. Needs neither registry nor credentials for layers in the store (I9).

use std::collections::HashMap;
use std::path::PathBuf;

use tokio_util::sync::CancellationToken;
use tracing::{debug, info, warn};

use super::discover::explain;
use super::labels::{self, Labels};
use super::name::ImageName;
use super::plan::{Facts, Found, Parallel, Rules};
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
    /// It is missing from the store and could not be downloaded.
    #[error("{0}")]
    Gone(String),
    /// Its tree could not be built.
    #[error(transparent)]
    Show(#[from] show::ShowError),
    /// It could not be opened.
    #[error(transparent)]
    Open(#[from] crate::layer::OpenError),
    /// Its record could not be updated.
    #[error("its record")]
    Record(#[source] Box<dyn std::error::Error + Send + Sync>),
}

/// A snapshot whose layer must be mounted.
#[derive(Clone, Debug)]
pub(crate) struct Wanted {
    pub(crate) layer: LayerUse,
    pub(crate) at: PathBuf,
    /// What is known about the layer's tar.
    pub(crate) expected: Expected,
    pub(crate) labels: Labels,
    /// The nearest parent first.
    pub(crate) parents: Vec<Parent>,
}

impl Wanted {
    /// Updates the parent that has `below` parents of its own to `shown`.
    fn stands_on(&mut self, below: usize, shown: &LayerUse) {
        let at = self.parents.len().checked_sub(below + 1);
        if let Some(parent) = at.and_then(|at| self.parents.get_mut(at)) {
            *parent = Parent::Layer(shown.clone());
        }
    }
}

impl Images {
    /// Takes over the layers that an earlier process mounted, so that their readers continue.
    /// `moved` says that the earlier connection to the kernel is gone; otherwise this process has
    /// it.
    ///
    /// Layers that cannot be taken over are logged, and their readers get errors.
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
            // Layers mounted from files have no loop device, so `find` does not report them.
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
        // Every READ is answered from now on. Earlier, a takeover would wait for unanswered READs.
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
        self.0.parts.mounts.note(&layer);
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

    /// Mounts the layers that this process has not mounted, lowest first. Returns what each
    /// snapshot then shows.
    ///
    /// If a recorded layer is missing from the store, another form of it may replace it. Before
    /// that is mounted, `record` stores it durably, by position in `wanted`, because removal relies
    /// on the records.
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
        // Without the mount table, nothing can be mounted safely over existing mounts.
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

    /// Mounts a layer from the store, or downloads it again. Returns what it shows.
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
        // Hold the layer until the record names it.
        let _hold = self.0.holds.hold(key.layer).await;
        let layer = match self.0.parts.layers.open_present(key).await? {
            Some(layer) => layer,
            None => self.bring_back(wanted).await?,
        };
        if !layer.is_complete() {
            self.add_sources(&layer);
        }
        // `None` if this is another form, or a power failure damaged it. The image is then made
        // again.
        let meta = match layer.key() == *key && !patch.is_empty() {
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
            let (layer, path) = (layer.digest().to_string(), wanted.at.display());
            if wanted.layer.patch.is_empty() {
                info!(layer, %path, "mounted a layer that the SOCI snapshotter had loaded lazily");
            } else {
                info!(
                    layer,
                    %path,
                    "the store has lost what a snapshot showed: another form of its layer takes its place"
                );
            }
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

    /// Adds the registry as a source of a layer in the store. Makes no request.
    pub(super) fn add_sources(&self, layer: &Layer) {
        let record = layer.record();
        for origin in &record.origins {
            match source::source(&self.0.parts.registry, &origin.reference, &record.layer) {
                Ok(source) => layer.add_source(source),
                Err(error) => debug!(reference = origin.reference, error, "no source"),
            }
        }
    }

    /// Opens a lost layer, or one that the reference had loaded, like a newly requested one. Its
    /// form may differ from the recorded one.
    async fn bring_back(&self, wanted: &Wanted) -> Result<Arc<Layer>, RestoreError> {
        let namespace = labels::value(&wanted.labels, labels::NAMESPACE).unwrap_or_default();
        let image =
            ImageName::from_labels(namespace, &wanted.labels).map_err(RestoreError::Gone)?;
        let whole = !labels::is_lazy(&wanted.labels);
        let facts = Facts {
            target: true,
            found: whole.then_some(Found::NoZtoc),
            ..Facts::of(Some(namespace), &wanted.labels)
        };
        let request = Request {
            image,
            layer: wanted.layer.layer.layer,
            at: wanted.at.clone(),
            parents: wanted.parents.clone(),
            expected: wanted.expected,
            subject: Subject::default(),
            facts,
            rules: Rules {
                parallel: Parallel::Never,
                ..Rules::default()
            },
            gone: CancellationToken::new(),
        };
        let image = self.image(&request.image);
        let left = match self.open(&image, &request).await {
            Ok(opened) => return Ok(opened.layer),
            Err(left) => left.why,
        };
        if whole {
            return Err(RestoreError::Gone(left));
        }
        // A committed snapshot cannot be left to containerd, for example if its index is gone.
        let facts = Facts {
            found: Some(Found::NoZtoc),
            ..request.facts
        };
        let whole = self.open(&image, &Request { facts, ..request }).await;
        let whole = whole.map_err(|gone| RestoreError::Gone(format!("{left}; {}", gone.why)))?;
        Ok(whole.layer)
    }
}
