//! Tests the stores through the public API, against a registry with configurable faults.

mod upload;

use std::{sync::Arc, time::Duration};

use soci_oci::Descriptor;
use soci_registry::{Options, Registry, credentials::Anonymous, retry::RetryPolicy};

/// A client with few retries and short waits, because the tests check behavior and not duration.
fn client() -> Registry {
    let retry = RetryPolicy {
        max_retries: 3,
        min_wait: Duration::from_millis(1),
        max_wait: Duration::from_millis(100),
        max_asked: Duration::from_millis(100),
    };
    let options = Options {
        retry,
        blob_retry: retry,
        idle_timeout: Duration::from_millis(300),
        head_timeout: Duration::from_secs(2),
        ..Options::default()
    };
    Registry::new(options, Arc::new(Anonymous)).expect("a client")
}

fn layer(bytes: &[u8]) -> Descriptor {
    Descriptor::of("application/vnd.oci.image.layer.v1.tar+gzip", bytes)
}
