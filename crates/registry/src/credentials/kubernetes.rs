//! Credentials from image pull secrets of a Kubernetes cluster.
//!
//! [`ClusterSecrets`] lists and watches the secrets with Docker's configuration in all namespaces.
//! A background task keeps them up to date for as long as the value lives. Credentials of secrets
//! are in memory only, and no helper program that a secret names is run. Among several secrets for
//! one image, those that a registry refused for it come last.

use std::{
    collections::BTreeMap,
    fmt,
    path::PathBuf,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use async_trait::async_trait;
use base64::{Engine as _, engine::general_purpose::STANDARD};
use serde_json::Value;
use tokio::{sync::watch, task::JoinSet, time::Instant};

use super::{Credential, Credentials, docker::ConfigFile};
use soci_oci::reference::ImageRef;

mod kubeconfig;
mod watching;

use watching::{Kind, Secret};

/// Limit for secrets. More than any cluster has registries.
const MANY: usize = 10_000;
/// How long after the start an image waits for the first list of secrets.
const PATIENCE: Duration = Duration::from_secs(5);

/// Namespace and name of a secret.
type Name = (String, String);

/// A secret with credentials.
struct Kept {
    kind: Kind,
    file: ConfigFile,
}

/// Host and repository.
type Image = (String, String);

/// The use of secrets for one image.
#[derive(Default)]
struct Served {
    /// The last secret.
    by: Option<Name>,
    /// How often the registry refused a secret.
    refusals: BTreeMap<Name, u32>,
}

#[derive(Default)]
struct State {
    secrets: BTreeMap<Name, Kept>,
    served: BTreeMap<Image, Served>,
}

impl fmt::Debug for State {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} secrets", self.secrets.len())
    }
}

/// What the watching tasks write to.
#[derive(Clone, Debug, Default)]
struct Store(Arc<Mutex<State>>);

impl Store {
    fn state(&self) -> MutexGuard<'_, State> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Replaces all secrets of a kind by those of a complete list.
    fn replace(&self, kind: Kind, secrets: Vec<Secret>) {
        let mut state = self.state();
        state.secrets.retain(|_, kept| kept.kind != kind);
        for secret in secrets {
            state.put(kind, secret);
        }
    }

    fn put(&self, kind: Kind, secret: Secret) {
        self.state().put(kind, secret);
    }

    fn remove(&self, secret: &Secret) {
        self.state().secrets.remove(&secret.name);
    }
}

impl State {
    fn put(&mut self, kind: Kind, secret: Secret) {
        let Some(file) = secret.data.as_deref().and_then(|data| parse(kind, data)) else {
            let (namespace, name) = &secret.name;
            tracing::warn!(
                namespace,
                name,
                "an image pull secret has no Docker configuration, leaving it out"
            );
            self.secrets.remove(&secret.name);
            return;
        };
        if self.secrets.len() < MANY || self.secrets.contains_key(&secret.name) {
            // It may have a new password.
            for served in self.served.values_mut() {
                served.refusals.remove(&secret.name);
            }
            self.secrets.insert(secret.name, Kept { kind, file });
        }
    }

    /// The credential for an image, from the secret that was refused least often for it.
    fn find(&mut self, host: &str, repository: &str) -> Option<Credential> {
        let image = (host.to_owned(), repository.to_owned());
        let before = self.served.get(&image);
        let refusals = |name| before.and_then(|served| served.refusals.get(name)).copied();
        let found = self.secrets.iter().filter_map(|(name, kept)| {
            let credential = kept.file.entry(host, repository)?.ok()?;
            Some((refusals(name).unwrap_or(0), name, credential))
        });
        let (_, name, credential) = found.min_by_key(|(refusals, name, _)| (*refusals, *name))?;
        if self.served.len() >= MANY && !self.served.contains_key(&image) {
            self.served.clear();
        }
        self.served.entry(image).or_default().by = Some(name.clone());
        Some(credential)
    }

    fn refused(&mut self, host: &str, repository: &str) {
        let image = (host.to_owned(), repository.to_owned());
        if let Some(served) = self.served.get_mut(&image)
            && let Some(name) = served.by.take()
        {
            let refusals = served.refusals.entry(name).or_default();
            *refusals = refusals.saturating_add(1);
        }
    }
}

/// Reads the data of a secret.
fn parse(kind: Kind, data: &str) -> Option<ConfigFile> {
    let document = STANDARD.decode(data).ok()?;
    let Value::Object(object) = serde_json::from_slice(&document).ok()? else {
        return None;
    };
    Some(match kind {
        Kind::DockerConfigJson => ConfigFile::of(&object).0.without_programs(),
        Kind::DockerCfg => ConfigFile::of_auths(&object),
    })
}

/// The secrets of the cluster.
#[derive(Debug)]
pub struct ClusterSecrets {
    store: Store,
    /// How many kinds have been listed.
    listed: watch::Receiver<usize>,
    started: Instant,
    /// Ended on drop.
    _tasks: JoinSet<()>,
}

impl ClusterSecrets {
    /// Lists and watches secrets from now on. An empty path means the default kubeconfig, or the
    /// service account of the pod. A cluster that cannot be reached is tried again for ever. Needs
    /// a tokio runtime.
    pub fn start(kubeconfig: PathBuf) -> ClusterSecrets {
        let store = Store::default();
        let (done, listed) = watch::channel(0);
        let done = Arc::new(done);
        let mut tasks = JoinSet::new();
        for kind in Kind::ALL {
            let (store, done) = (store.clone(), Arc::clone(&done));
            tasks.spawn(watching::follow(kubeconfig.clone(), kind, store, done));
        }
        ClusterSecrets {
            store,
            listed,
            started: Instant::now(),
            _tasks: tasks,
        }
    }
}

#[async_trait]
impl Credentials for ClusterSecrets {
    async fn get(&self, host: &str, image: &ImageRef) -> Option<Credential> {
        let mut listed = self.listed.clone();
        let all = listed.wait_for(|count| *count >= Kind::ALL.len());
        // A cluster that cannot be reached delays nothing later on.
        drop(tokio::time::timeout_at(self.started + PATIENCE, all).await);
        self.store.state().find(host, image.repository())
    }

    fn refused(&self, host: &str, image: &ImageRef) {
        self.store.state().refused(host, image.repository());
    }
}

#[cfg(test)]
mod tests;
