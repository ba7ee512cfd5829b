//! Tests the registry client through the public API, against a registry with configurable faults.

mod access;
mod auth;
mod blob;
mod crowd;
mod documents;
mod mirrors;
mod push;
mod referrers;
mod tls;
mod upload;

use std::{sync::Arc, time::Duration};

use soci_oci::Descriptor;
use soci_registry::{
    Options, Registry,
    credentials::{Anonymous, Credential, Credentials, ForHost},
    retry::RetryPolicy,
    testing::TestRegistry,
};

/// Few retries and short waits, because the tests check behavior and not duration.
fn quick() -> Options {
    let retry = RetryPolicy {
        max_retries: 3,
        min_wait: Duration::from_millis(1),
        max_wait: Duration::from_millis(100),
        max_asked: Duration::from_millis(100),
    };
    Options {
        retry,
        blob_retry: retry,
        idle_timeout: Duration::from_millis(300),
        head_timeout: Duration::from_secs(2),
        ..Options::default()
    }
}

fn client(options: Options) -> Registry {
    client_as(options, Arc::new(Anonymous))
}

fn client_as(options: Options, credentials: Arc<dyn Credentials>) -> Registry {
    Registry::new(options, credentials).expect("a client")
}

fn login(registry: &TestRegistry, user: &str, secret: &str) -> Arc<dyn Credentials> {
    Arc::new(ForHost {
        host: registry.host(),
        credential: Credential::new(user, secret),
    })
}

fn layer(bytes: &[u8]) -> Descriptor {
    Descriptor::of("application/vnd.oci.image.layer.v1.tar+gzip", bytes)
}

/// An error with all its causes, in both forms: everything that a log could show.
fn everything_said(error: &dyn std::error::Error) -> String {
    let mut said = format!("{error:?} ");
    let mut cause = Some(error);
    while let Some(error) = cause {
        said += &format!("{error}: ");
        cause = error.source();
    }
    said
}
