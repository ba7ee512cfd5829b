//! Access to registries: client and server certificates, and the administrator's files.

use std::{
    fs,
    path::{Path, PathBuf},
    sync::Arc,
};

use soci_oci::media_type;
use soci_registry::{
    HostFolders, Hosts, Identity, Options, Registry, RegistryError, Tls,
    credentials::{Credential, ForRegistry},
    testing::{Access, Setup, TestRegistry},
};

use crate::{client, client_as, everything_said, quick};

const MANIFEST: &[u8] = b"{}";

fn registry(setup: Setup) -> TestRegistry {
    let registry = TestRegistry::with(setup);
    registry.add_manifest("app", Some("v1"), media_type::OCI_MANIFEST, MANIFEST);
    registry
}

fn secure(wants_certificate: bool) -> TestRegistry {
    registry(Setup {
        tls: true,
        wants_certificate,
        ..Setup::default()
    })
}

/// The files of the tests, in a directory.
struct Files(tempfile::TempDir);

impl Files {
    fn new() -> Files {
        let folder = tempfile::tempdir().expect("a temporary folder");
        let (certificate, key) = TestRegistry::client_pem();
        let files = Files(folder);
        files.write("ca.pem", TestRegistry::ca_pem());
        files.write("client.pem", certificate);
        files.write("client.key", key);
        files.write("both.pem", &format!("{key}{certificate}"));
        files
    }

    fn path(&self, name: &str) -> PathBuf {
        self.0.path().join(name)
    }

    fn write(&self, name: &str, text: &str) {
        let path = self.path(name);
        fs::create_dir_all(path.parent().expect("a folder")).expect("make the folder");
        fs::write(path, text).expect("write the file");
    }
}

fn with(tls: Tls) -> Registry {
    client(Options { tls, ..quick() })
}

async fn reach(client: &Registry, registry: &TestRegistry) -> Result<(), RegistryError> {
    client
        .resolve(&registry.reference("app", "v1"))
        .await
        .map(drop)
}

#[tokio::test]
async fn an_authority_of_ones_own_is_trusted_and_another_is_not() {
    let (registry, files) = (secure(false), Files::new());
    let error = reach(&with(Tls::default()), &registry).await;
    let error = error.expect_err("nobody knows this authority");
    assert!(everything_said(&error).contains("UnknownIssuer"), "{error}");
    let tls = Tls {
        authorities: vec![files.path("ca.pem")],
        ..Tls::default()
    };
    reach(&with(tls), &registry).await.expect("trusted");
    let tls = Tls {
        skip_verify: true,
        ..Tls::default()
    };
    reach(&with(tls), &registry).await.expect("not looked at");
}

#[tokio::test]
async fn a_certificate_is_shown_to_who_wants_one() {
    let (registry, files) = (secure(true), Files::new());
    let identity = |certificate: &str, key: Option<&str>| Identity {
        certificate: files.path(certificate),
        key: key.map(|key| files.path(key)),
    };
    let tls = |identity| Tls {
        authorities: vec![files.path("ca.pem")],
        identity,
        skip_verify: false,
    };
    let error = reach(&with(tls(None)), &registry).await;
    let error = error.expect_err("the registry wants a certificate");
    let said = everything_said(&error);
    assert!(said.contains("CertificateRequired"), "{said}");
    assert!(!error.is_transient(), "{said}");
    for identity in [
        identity("client.pem", Some("client.key")),
        identity("both.pem", None),
    ] {
        let client = with(tls(Some(identity)));
        reach(&client, &registry).await.expect("let in");
    }
}

#[tokio::test]
async fn a_file_that_is_no_use_is_named() {
    let files = Files::new();
    files.write("empty.pem", "");
    files.write(
        "broken.pem",
        "-----BEGIN CERTIFICATE-----\nAAAA\n-----END CERTIFICATE-----\n",
    );
    let authority = |name: &str| Tls {
        authorities: vec![files.path(name)],
        ..Tls::default()
    };
    let shows = |certificate: &str, key: Option<&str>| Tls {
        identity: Some(Identity {
            certificate: files.path(certificate),
            key: key.map(|key| files.path(key)),
        }),
        ..Tls::default()
    };
    for (tls, culprit) in [
        (authority("missing.pem"), "missing.pem"),
        (authority("empty.pem"), "empty.pem"),
        (authority("broken.pem"), "broken.pem"),
        (shows("missing.pem", None), "missing.pem"),
        (shows("client.pem", None), "client.pem"),
        (shows("client.pem", Some("ca.pem")), "ca.pem"),
        (shows("ca.pem", Some("client.key")), "ca.pem"),
    ] {
        let options = Options { tls, ..quick() };
        let error = Registry::new(options, Arc::new(soci_registry::credentials::Anonymous));
        let said = everything_said(&error.expect_err(culprit));
        assert!(said.contains(culprit), "{culprit}: {said}");
    }
}

fn hosts(folder: &Path) -> Options {
    let folders = vec![PathBuf::from("/no/such"), folder.to_owned()];
    let hosts = Hosts {
        folders: HostFolders::new(folders),
        ..Hosts::default()
    };
    Options { hosts, ..quick() }
}

#[tokio::test]
async fn hosts_are_asked_for_what_they_are_good_for() {
    let (mirror, origin, files) = (secure(false), secure(false), Files::new());
    let text = format!(
        "server = 'https://{}'\nca = 'ca.pem'\n\
         [host.'https://{}']\ncapabilities = ['pull', 'resolve']\nca = ['ca.pem']\n\
         [host.'https://{1}'.header]\nx-for-the-mirror = 'y'\n",
        origin.host(),
        mirror.host()
    );
    files.write("r.example_443_/ca.pem", TestRegistry::ca_pem());
    files.write("r.example_443_/hosts.toml", &text);
    let client = client(hosts(files.0.path()));
    let image = soci_oci::reference::ImageRef::parse("r.example:443/app:v1").expect("a name");
    let found = client.resolve(&image).await.expect("the mirror has it");
    assert_eq!((mirror.requests(), origin.requests()), (1, 0));
    assert_eq!(mirror.seen()[0].query, "ns=r.example%3A443");
    client
        .push_manifest(&image, "v2", media_type::OCI_MANIFEST, MANIFEST.into())
        .await
        .expect("the origin takes it");
    assert_eq!((mirror.requests(), origin.requests()), (1, 1));
    assert_eq!(found.digest, soci_oci::Digest::sha256(MANIFEST));
}

#[tokio::test]
async fn pushes_and_the_password_go_to_no_host_that_is_not_named_for_them() {
    let login = Access::Basic {
        user: "me".to_owned(),
        password: "hunter2".to_owned(),
    };
    let closed = || Setup {
        access: login.clone(),
        ..Setup::default()
    };
    let (mirror, origin, files) = (registry(closed()), registry(closed()), Files::new());
    for (capabilities, to_mirror) in [("", false), ("capabilities = ['push', 'pull']", true)] {
        let text = format!(
            "server = 'http://{}'\n[host.'http://{}']\n{capabilities}\n",
            origin.host(),
            mirror.host()
        );
        files.write("r.example/hosts.toml", &text);
        let options = hosts(files.0.path());
        let image = soci_oci::reference::ImageRef::parse("r.example/app:v1").expect("a name");
        let credentials = ForRegistry {
            registry: "r.example".to_owned(),
            hosts: options.hosts.own_hosts(&image).expect("hosts"),
            credential: Credential::new("me", "hunter2"),
        };
        let client = client_as(options, Arc::new(credentials));
        client
            .push_manifest(&image, "v2", media_type::OCI_MANIFEST, MANIFEST.into())
            .await
            .expect("taken");
        assert_eq!(mirror.manifest("app", "v2").is_some(), to_mirror);
        let seen = mirror.seen();
        let knows_us = seen.iter().any(|seen| seen.authorization.is_some());
        assert_eq!(knows_us, to_mirror);
    }
}

#[tokio::test]
async fn http_with_certificates_is_tried_with_tls_first() {
    let files = Files::new();
    for tls in [true, false] {
        let registry = registry(Setup {
            tls,
            ..Setup::default()
        });
        let text = format!("server = 'http://{}'\nca = 'ca.pem'\n", registry.host());
        files.write("r.example/ca.pem", TestRegistry::ca_pem());
        files.write("r.example/hosts.toml", &text);
        let client = client(hosts(files.0.path()));
        let image = soci_oci::reference::ImageRef::parse("r.example/app:v1").expect("a name");
        for _ in 0..2 {
            client.resolve(&image).await.expect("reached");
        }
        let gets = registry.seen().into_iter();
        let named = gets.filter(|seen| seen.path.ends_with("/v1")).count();
        assert!(named <= 3, "it is known how to speak to it: {named}");
    }
}

#[tokio::test]
async fn a_registry_of_this_machine_needs_no_known_certificate_where_files_speak_of_it() {
    for tls in [true, false] {
        let (registry, files) = (
            registry(Setup {
                tls,
                ..Setup::default()
            }),
            Files::new(),
        );
        files.write("_default/hosts.toml", "[host.'https://127.0.0.1:1']\n");
        let client = client(hosts(files.0.path()));
        reach(&client, &registry).await.expect("reached");
    }
}

#[tokio::test]
async fn the_registry_of_this_name_may_be_reached_with_certificates_alone() {
    let (registry, files) = (secure(true), Files::new());
    let folder = registry.host();
    let (certificate, key) = TestRegistry::client_pem();
    files.write(&format!("{folder}/ca.crt"), TestRegistry::ca_pem());
    files.write(&format!("{folder}/client.cert"), certificate);
    files.write(&format!("{folder}/client.key"), key);
    let client = client(hosts(files.0.path()));
    reach(&client, &registry).await.expect("let in");
}

#[tokio::test]
async fn a_credential_is_for_its_registry_only() {
    let login = Access::Basic {
        user: "me".to_owned(),
        password: "hunter2".to_owned(),
    };
    let closed = || Setup {
        access: login.clone(),
        ..Setup::default()
    };
    let (ours, other) = (registry(closed()), registry(closed()));
    let image = ours.reference("app", "v1");
    let hosts = Hosts::default();
    let credentials = ForRegistry {
        registry: ours.host(),
        hosts: hosts.own_hosts(&image).expect("a host"),
        credential: Credential::new("me", "hunter2"),
    };
    let client = client_as(quick(), Arc::new(credentials));
    reach(&client, &ours).await.expect("let in");
    reach(&client, &other).await.expect_err("not known there");
    assert!(other.seen().iter().all(|seen| seen.authorization.is_none()));
}
