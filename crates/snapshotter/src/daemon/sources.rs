//! Where the daemon's credentials come from, in the order in which they are asked.
//!
//! Docker's configuration, the kubelet's plugins, secrets of the cluster, and pulls through the
//! image service. When a registry refuses an image for which no source has a credential, a warning
//! names the image and what can be done.

use std::collections::HashMap;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use async_trait::async_trait;
use soci_oci::reference::ImageRef;
use soci_registry::credentials::{
    Chain, ClusterSecrets, Credential, Credentials, DockerConfig, KubeletPlugins, PluginOptions,
    PullKeychain,
};
use tracing::warn;

use crate::config::Config;
use crate::cri::ImageService;
use crate::sync::{Arc, Mutex};

/// How often the warning is repeated for one repository.
const AGAIN: Duration = Duration::from_secs(600);
/// Above this number of repositories, old ones are dropped.
const MANY: usize = 1024;

/// The sources.
#[derive(Debug)]
pub(super) struct Sources {
    chain: Chain,
    /// What pulls through the image service brought, if it is served.
    pulls: Option<PullKeychain>,
    /// What to do if no source has a credential.
    remedy: &'static str,
    /// Repositories without a credential, by their host, and when that was last logged.
    unknown: Mutex<HashMap<(String, String), Option<Instant>>>,
}

impl Sources {
    pub(super) fn of(config: &Config) -> Self {
        let mut sources: Vec<Arc<dyn Credentials>> = vec![Arc::new(DockerConfig::from_env())];
        let providers = &config.credential_providers;
        if providers.is_set() && providers.bin_dir.is_empty() {
            warn!("[credential_providers] needs bin_dir, not using the plugins of the kubelet");
        } else if providers.is_set() {
            sources.push(Arc::new(KubeletPlugins::new(PluginOptions {
                config: PathBuf::from(&providers.config),
                bin_dir: PathBuf::from(&providers.bin_dir),
                limit: Duration::from_secs(u64::try_from(providers.timeout_sec).unwrap_or(0)),
            })));
        }
        let cluster = &config.kubeconfig_keychain;
        if cluster.enable_keychain {
            let kubeconfig = PathBuf::from(&cluster.kubeconfig_path);
            sources.push(Arc::new(ClusterSecrets::start(kubeconfig)));
        }
        let pulls = (config.cri_keychain.enable_keychain).then(PullKeychain::default);
        if let Some(pulls) = &pulls {
            sources.push(Arc::new(pulls.clone()));
        }
        Self {
            chain: Chain(sources),
            pulls,
            remedy: remedy(config),
            unknown: Mutex::default(),
        }
    }

    /// The image service that brings credentials, if it is enabled.
    pub(super) fn image_service(&self, config: &Config) -> Option<ImageService> {
        let socket = Path::new(&config.cri_keychain.image_service_path);
        let pulls = self.pulls.clone()?;
        Some(ImageService::new(socket, pulls))
    }
}

fn remedy(config: &Config) -> &'static str {
    let lasting =
        config.credential_providers.is_set() || config.kubeconfig_keychain.enable_keychain;
    match (config.cri_keychain.enable_keychain, lasting) {
        (true, false) => {
            "the CRI keychain forgets credentials when the daemon restarts: pull the image again, or configure a source that lasts ([credential_providers], [kubeconfig_keychain], or docker login for root)"
        }
        (true, true) => {
            "pull the image again, or give a configured source credentials for this registry"
        }
        (false, true) => "give a configured source credentials for this registry",
        (false, false) => {
            "configure [credential_providers], [kubeconfig_keychain] or [cri_keychain], or run docker login as root"
        }
    }
}

#[async_trait]
impl Credentials for Sources {
    async fn get(&self, host: &str, image: &ImageRef) -> Option<Credential> {
        let found = self.chain.get(host, image).await;
        let key = (host.to_owned(), image.repository().to_owned());
        let mut unknown = self.unknown.lock();
        if found.is_some() {
            unknown.remove(&key);
        } else {
            if unknown.len() >= MANY {
                unknown.clear();
            }
            unknown.entry(key).or_default();
        }
        found
    }

    fn refused(&self, host: &str, image: &ImageRef) {
        self.chain.refused(host, image);
        let key = (host.to_owned(), image.repository().to_owned());
        let mut unknown = self.unknown.lock();
        let Some(logged) = unknown.get_mut(&key) else {
            return;
        };
        let now = Instant::now();
        if logged.is_some_and(|logged| now.duration_since(logged) < AGAIN) {
            return;
        }
        *logged = Some(now);
        drop(unknown);
        let (image, remedy) = (image.to_string(), self.remedy);
        warn!(
            image,
            host, remedy, "the registry refuses access, and there are no credentials for the image"
        );
    }
}
