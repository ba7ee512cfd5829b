//! Prepares a layer, from the request to the commit under its target.

use std::path::PathBuf;

use soci_status::Verdict;
use tokio_util::sync::CancellationToken;
use tracing::{info, warn};

use super::metadata::{Commit, Info, Kind, Labels, Lasts, MetadataError, SnapshotId, Usage};
use super::verdicts::Judged;
use super::{Caller, Mount, SnapshotError, Snapshotter};
use crate::image::labels;
use crate::image::plan::{self, Decision, Facts, Step, decide};
use crate::image::verdict::{Subject, Way};
use crate::image::{Attempt, ImageName, Mounted, Request, layer_of};
use crate::layer::Expected;

/// A layer that containerd wants committed under a target name.
#[derive(Debug)]
pub(super) struct LayerWanted {
    pub(super) target: String,
    pub(super) namespace: String,
    pub(super) subject: Subject,
    pub(super) labels: Labels,
    /// What the request says.
    pub(super) facts: Facts,
}

impl LayerWanted {
    fn parent(&self) -> Option<String> {
        let parent = &self.subject.parent;
        (!parent.is_empty()).then(|| parent.clone())
    }

    /// Why the image is not even asked.
    pub(super) fn why(&self) -> String {
        plan::unnamed(&self.namespace, &self.labels).unwrap_or_else(|| plan::UNABLE.to_owned())
    }

    /// Creates a plain snapshot for containerd to unpack into.
    pub(super) async fn plain(
        self,
        snapshotter: &Snapshotter,
    ) -> Result<Vec<Mount>, SnapshotError> {
        let parent = self.parent();
        snapshotter
            .plain(Kind::Active, self.subject.key, parent, self.labels)
            .await
    }
}

impl Snapshotter {
    /// Mounts a layer and commits it, or leaves it to containerd.
    pub(super) async fn prepare_layer(
        &self,
        wanted: LayerWanted,
        caller: Caller,
    ) -> Result<Vec<Mount>, SnapshotError> {
        let Some(images) = self.shared.parts.images.get().cloned() else {
            return wanted.plain(self).await;
        };
        let (key, labels) = (wanted.subject.key.clone(), wanted.labels.clone());
        // Busy until the end, even if the key is removed in the meantime.
        let (mut chain, _busy) = self
            .create(
                Kind::Active,
                key,
                wanted.parent(),
                labels,
                Lasts::UnlessRepeated,
            )
            .await?;
        let at = self.shared.directories.fs(chain[0].record.id);
        let prepared = match self.request(&wanted, at.clone()) {
            Ok(request) => match self.ensure(&mut chain[1..]).await {
                Ok(()) => {
                    let parents = self.parents(&chain[1..]);
                    let gone = caller.0.clone();
                    let request = Request {
                        parents,
                        gone,
                        ..request
                    };
                    images.prepare(request).await
                }
                Err(error) => {
                    self.take_back(&chain).await;
                    return Err(error);
                }
            },
            Err(why) => {
                let facts = Facts {
                    named: false,
                    ..wanted.facts
                };
                Attempt::Left { why, facts }
            }
        };
        let done = match prepared {
            Attempt::Mounted(mounted) => {
                let committed = match caller.is_gone() {
                    // No caller would own it.
                    true => Err(SnapshotError::CallerGone),
                    false => self.commit_layer(&wanted, &chain, *mounted).await,
                };
                if committed.as_ref().is_ok_and(|committed| *committed) {
                    return Err(SnapshotError::TargetExists {
                        target: wanted.target,
                    });
                }
                if let Err(error) = images.unmount(&at).await {
                    warn!(
                        error = &error as &dyn std::error::Error,
                        "failed to unmount"
                    );
                }
                committed.and(Err(SnapshotError::TargetExists {
                    target: wanted.target,
                }))
            }
            Attempt::Left { why, facts } => self.leave(&wanted, &chain, &caller, why, &facts).await,
        };
        if done.is_err() {
            self.take_back(&chain).await;
        }
        done
    }

    /// Leaves a layer to containerd, or refuses to. The caller takes the snapshot back on error.
    async fn leave(
        &self,
        wanted: &LayerWanted,
        chain: &[Info],
        caller: &Caller,
        why: String,
        facts: &Facts,
    ) -> Result<Vec<Mount>, SnapshotError> {
        if caller.is_gone() {
            info!("the client cancelled the pull of this layer");
            return Err(SnapshotError::CallerGone);
        }
        let decision = decide(facts, &self.shared.options.rules);
        self.conclude(wanted, &decision, &why);
        if decision.step == Step::Refuse {
            return Err(SnapshotError::Strict { why });
        }
        // Unpacking takes long, so the record must be on disk first.
        let lasts = self.shared.metadata.sync().await;
        let mounts = match caller.is_gone() {
            true => Err(SnapshotError::CallerGone),
            false => self.mounts_of(chain).await,
        };
        lasts.map_err(SnapshotError::from).and(mounts)
    }

    fn request(&self, wanted: &LayerWanted, at: PathBuf) -> Result<Request, String> {
        info!("preparing filesystem mount at mountpoint={}", at.display());
        Ok(Request {
            image: ImageName::from_labels(&wanted.namespace, &wanted.labels)?,
            layer: layer_of(&wanted.labels)?,
            at,
            // Determined when the layer is mounted.
            parents: Vec::new(),
            gone: CancellationToken::new(),
            expected: Expected::by_names(&wanted.target, wanted.parent().as_deref()),
            subject: wanted.subject.clone(),
            facts: wanted.facts,
            rules: self.shared.options.rules,
        })
    }

    /// Logs a decision that ends a request, and records the verdict.
    pub(super) fn conclude(&self, wanted: &LayerWanted, decision: &Decision, why: &str) {
        wanted.subject.say(decision, why);
        if let Some((verdict, reason)) = decision.verdict {
            let judged = Judged {
                verdict,
                reason,
                why: why.to_owned(),
            };
            let verdicts = &self.shared.verdicts;
            verdicts.note(&wanted.namespace, &wanted.labels, judged);
        }
    }

    /// Commits a mounted layer under its target. Returns false if the target exists on the same
    /// parent.
    async fn commit_layer(
        &self,
        wanted: &LayerWanted,
        chain: &[Info],
        mounted: Mounted,
    ) -> Result<bool, SnapshotError> {
        let Mounted {
            layer,
            way,
            why,
            facts,
            hold,
        } = mounted;
        let mut labels = wanted.labels.clone();
        labels.insert(labels::NAMESPACE.to_owned(), wanted.namespace.clone());
        if way == Way::Lazy {
            labels.insert(labels::REMOTE.to_owned(), labels::REMOTE_VALUE.to_owned());
        }
        let decision = decide(&facts, &self.shared.options.rules);
        if !matches!(decision.verdict, Some((Verdict::Parallel, _))) {
            labels.insert(labels::HAS_INDEX.to_owned(), "true".to_owned());
        }
        let commit = Commit {
            labels,
            parent: None,
            // Not recorded: it changes, and the store knows it.
            usage: Usage::default(),
            owner: None,
            layer: Some(layer),
        };
        let committed = self.commit_named(wanted, chain[0].record.id, commit).await;
        // If the commit succeeded, the record holds the layer now.
        drop(hold);
        if matches!(committed, Ok(true)) {
            self.conclude(wanted, &decision, &why);
        }
        committed
    }

    /// Returns false if the target already exists on the same parent.
    async fn commit_named(
        &self,
        wanted: &LayerWanted,
        id: SnapshotId,
        commit: Commit,
    ) -> Result<bool, SnapshotError> {
        let (metadata, key) = (&self.shared.metadata, &wanted.subject.key);
        let target = wanted.target.clone();
        match metadata.commit(key, &target, commit.clone()).await {
            Err(MetadataError::AlreadyExists { .. }) => {}
            other => return Ok(other.map(|_| true)?),
        }
        if self.is_known(target.clone(), wanted.parent()).await? {
            return Ok(false);
        }
        // The name belongs to the same layer on another parent. containerd finds a layer by target
        // label and parent, whatever its name.
        metadata
            .commit(key, &format!("{target}@{id}"), commit)
            .await?;
        Ok(true)
    }
}
