//! Keys of sources of credentials.

use super::declare::table;

table! {
    /// Credentials from secrets of the cluster: [credentials.md](credentials.md).
    pub struct KubeconfigKeychain {
        /// Lists and watches the image pull secrets of all namespaces.
        enable_keychain: bool = false;
        /// How to reach the cluster; empty means `$KUBECONFIG`, `~/.kube/config`, or the service
        /// account of the pod.
        kubeconfig_path: String = String::new();
    }
}

table! {
    /// Credentials that the kubelet sends with a pull: [credentials.md](credentials.md).
    pub struct CriKeychain {
        /// Serves the image service of the CRI on the daemon's socket and remembers credentials.
        enable_keychain: bool = false;
        /// The socket of the runtime that answers the image service, also with `unix://`.
        image_service_path: String = "/run/containerd/containerd.sock".to_owned(), zero_is_default;
    }
}

impl CriKeychain {
    /// Brings values into their effective form.
    pub(super) fn settle(&mut self) {
        if let Some(path) = self.image_service_path.strip_prefix("unix://") {
            self.image_service_path = path.to_owned();
        }
    }
}

table! {
    /// Credentials from the kubelet's plugins: [credentials.md](credentials.md). The first two keys
    /// have the values of the kubelet's `--image-credential-provider-config` and
    /// `--image-credential-provider-bin-dir`.
    pub struct CredentialProviders {
        /// A `CredentialProviderConfig`, or a directory of them; empty means no plugins.
        config: String = String::new(), ours;
        /// The directory with the plugins.
        bin_dir: String = String::new(), ours;
        /// How long a plugin may run, in seconds.
        timeout_sec: i64 = 60, zero_is_default, ours;
    }
}

impl CredentialProviders {
    /// Whether plugins are configured.
    pub fn is_set(&self) -> bool {
        !self.config.is_empty()
    }
}
