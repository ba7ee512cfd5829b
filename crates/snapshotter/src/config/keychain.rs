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
        /// The socket of the runtime that answers the image service.
        image_service_path: String = "/run/containerd/containerd.sock".to_owned(), zero_is_default, unused;
    }
}
