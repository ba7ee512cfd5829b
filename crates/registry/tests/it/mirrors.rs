//! Mirrors, and settings that change.

use std::{fs, path::Path};

use soci_oci::{media_type, reference::ImageRef};
use soci_registry::{
    HostFolders, Hosts, Options,
    testing::{Setup, TestRegistry},
};

use crate::{client, quick};

const MANIFEST: &[u8] = b"{}";

#[tokio::test]
async fn a_mirror_with_unusable_certificates_is_left_out() {
    let (origin, folder) = (
        TestRegistry::start(),
        tempfile::tempdir().expect("a folder"),
    );
    origin.add_manifest("app", Some("v1"), media_type::OCI_MANIFEST, MANIFEST);
    let text = format!(
        "server = 'http://{}'\n[host.'https://127.0.0.1:1']\nca = 'missing.pem'\n",
        origin.host()
    );
    let client = client(configured(folder.path(), &text));
    let image = ImageRef::parse("r.example/app:v1").expect("a name");
    client.resolve(&image).await.expect("the origin is fine");
}

#[tokio::test]
async fn changed_settings_and_certificates_take_effect_without_a_new_client() {
    let secure = || {
        let setup = Setup {
            tls: true,
            ..Setup::default()
        };
        let registry = TestRegistry::with(setup);
        registry.add_manifest("app", Some("v1"), media_type::OCI_MANIFEST, MANIFEST);
        registry
    };
    let (first, second) = (secure(), secure());
    let folder = tempfile::tempdir().expect("a folder");
    let text = |site: &TestRegistry| format!("server = 'https://{}'\nca = 'ca.pem'\n", site.host());
    let client = client(configured(folder.path(), &text(&first)));
    let image = ImageRef::parse("r.example/app:v1").expect("a name");
    let ca = folder.path().join("r.example/ca.pem");
    let (client_certificate, _) = TestRegistry::client_pem();
    fs::write(&ca, client_certificate).expect("a file");
    let refused = client.resolve(&image).await;
    assert!(refused.is_err(), "not the registry's authority");
    fs::write(&ca, TestRegistry::ca_pem()).expect("a file");
    client.resolve(&image).await.expect("trusted now");
    assert_eq!(first.requests(), 1);
    configured(folder.path(), &text(&second));
    client.resolve(&image).await.expect("elsewhere now");
    assert_eq!((first.requests(), second.requests()), (1, 1));
}

fn configured(folder: &Path, text: &str) -> Options {
    let own = folder.join("r.example");
    fs::create_dir_all(&own).expect("a folder");
    fs::write(own.join("hosts.toml"), text).expect("a file");
    let hosts = Hosts {
        folders: HostFolders::new(vec![folder.to_owned()]),
        ..Hosts::default()
    };
    Options { hosts, ..quick() }
}
