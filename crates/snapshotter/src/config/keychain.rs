//! Keys of sources of credentials.

use super::declare::table;

table! {
    /// Credentials from secrets of Kubernetes.
    pub struct KubeconfigKeychain {
        /// Reads secrets of the type `kubernetes.io/dockerconfigjson`.
        enable_keychain: bool = false, unused;
        /// The configuration of the Kubernetes client; empty means the usual places.
        kubeconfig_path: String = String::new(), unused;
    }
}

table! {
    /// Credentials that the kubelet sends with a pull.
    pub struct CriKeychain {
        /// Serves the image service of the CRI on the daemon's socket and remembers credentials.
        enable_keychain: bool = false, unused;
        /// The socket of the runtime that answers the image service, also with `unix://`.
        image_service_path: String = "/run/containerd/containerd.sock".to_owned(), zero_is_default, unused;
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
