//! Private images, with credentials from the kubelet's plugins or from nowhere.

use std::fs;
use std::os::unix::fs::symlink;
use std::time::Duration;

use soci_registry::testing::{Access, Setup, TestRegistry, noise};
use soci_snapshotter::config::Config;
use tempfile::TempDir;

use crate::image::{Image, Shape, file, tar};
use crate::process::{Place, Running};
use crate::server::{Mounted, Server, connect, prepare_request};

const SIZE: usize = 1_000_000;
const PASSWORD: &str = "p4ssw0rd";

fn private() -> TestRegistry {
    let access = Access::Basic {
        user: "somebody".to_owned(),
        password: PASSWORD.to_owned(),
    };
    TestRegistry::with(Setup {
        access,
        ..Setup::default()
    })
}

fn publish(registry: &TestRegistry) -> Image {
    let tars = [tar(&[file("big", &noise(1, SIZE))])];
    Image::publish(registry, &tars, Shape::default())
}

/// A directory with plugins of the kubelet, asked in the order in which they are added.
struct Plugins {
    folder: TempDir,
    config: String,
}

impl Plugins {
    fn new() -> Self {
        Self {
            folder: TempDir::new().unwrap(),
            config:
                "kind: CredentialProviderConfig\napiVersion: kubelet.config.k8s.io/v1\nproviders:\n"
                    .to_owned(),
        }
    }

    /// Adds a plugin for all images of the registry. The plugin is a link to the shell that runs the
    /// script.
    fn add(mut self, registry: &TestRegistry, name: &str, script: &str) -> Self {
        let folder = self.folder.path();
        self.config += &format!(
            "- name: {name}\n  matchImages: ['{}']\n  defaultCacheDuration: 1h\n  apiVersion: credentialprovider.kubelet.k8s.io/v1\n  args: ['{}/{name}.sh']\n",
            registry.host(),
            folder.display(),
        );
        symlink("/bin/sh", folder.join(name)).unwrap();
        self.change(name, script);
        self
    }

    fn change(&self, name: &str, script: &str) {
        let at = self.folder.path().join(format!("{name}.sh"));
        fs::write(&at, format!("echo >> {}.runs\n{script}\n", at.display())).unwrap();
    }

    fn remove(&self, name: &str) {
        fs::remove_file(self.folder.path().join(name)).unwrap();
    }

    fn runs(&self, name: &str) -> usize {
        let at = self.folder.path().join(format!("{name}.sh.runs"));
        fs::read_to_string(at).map_or(0, |text| text.lines().count())
    }

    /// A configuration with these plugins and without background downloads.
    fn config(&self) -> Config {
        let path = self.folder.path().join("config.yaml");
        fs::write(&path, &self.config).unwrap();
        let mut config = Config::default();
        config.background_fetch.disable = true;
        config.credential_providers.config = path.display().to_string();
        config.credential_providers.bin_dir = self.folder.path().display().to_string();
        config.credential_providers.timeout_sec = 60;
        config
    }
}

/// A script that gives this password for the registry, for as long as `holds`.
fn gives(registry: &TestRegistry, password: &str, holds: &str) -> String {
    format!(
        r#"echo '{{"kind":"CredentialProviderResponse","apiVersion":"credentialprovider.kubelet.k8s.io/v1","cacheKeyType":"Registry","cacheDuration":"{holds}","auth":{{"{}":{{"username":"somebody","password":"{password}"}}}}}}'"#,
        registry.host()
    )
}

async fn prepare(server: &Server, image: &Image) {
    let asked = server.prepare_in("default", "extract", "", image.labels(0));
    let status = asked.await.expect_err("the daemon provides the layer");
    assert_eq!(status.code(), tonic::Code::AlreadyExists, "{status}");
}

async fn read(view: &Mounted) -> std::io::Result<Vec<u8>> {
    let path = view.path().join("big");
    tokio::task::spawn_blocking(move || fs::read(path))
        .await
        .unwrap()
}

#[tokio::test(flavor = "multi_thread")]
async fn a_plugin_gives_the_credentials_and_others_that_fail_are_left_out() {
    let registry = private();
    let image = publish(&registry);
    let plugins = Plugins::new()
        .add(&registry, "hangs", "sleep 1000")
        .add(&registry, "missing", "")
        .add(&registry, "garbage", "echo hunter2")
        .add(&registry, "good", &gives(&registry, PASSWORD, "1h"));
    plugins.remove("missing");
    let mut config = plugins.config();
    config.credential_providers.timeout_sec = 3;
    let server = Server::daemon_on(TempDir::new().unwrap(), &config).await;
    prepare(&server, &image).await;
    let view = server.viewed(&image.target(0)).await;
    assert!(read(&view).await.unwrap() == noise(1, SIZE));
    for name in ["hangs", "garbage", "good"] {
        assert_eq!(plugins.runs(name), 1, "{name}");
    }
    drop(view);
    server.interrupt().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_read_waits_for_a_plugin_that_has_new_credentials() {
    let registry = private();
    let image = publish(&registry);
    let plugins = Plugins::new().add(&registry, "p", &gives(&registry, PASSWORD, "100ms"));
    let server = Server::daemon_on(TempDir::new().unwrap(), &plugins.config()).await;
    prepare(&server, &image).await;
    let view = server.viewed(&image.target(0)).await;
    registry.change_password("a new one");
    let (content, ()) = tokio::join!(read(&view), async {
        tokio::time::sleep(Duration::from_millis(500)).await;
        plugins.change("p", &gives(&registry, "a new one", "1h"));
    });
    assert!(content.unwrap() == noise(1, SIZE));
    drop(view);
    server.interrupt().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_private_image_goes_on_after_a_restart_with_a_plugin() {
    let registry = private();
    let image = publish(&registry);
    let plugins = Plugins::new().add(&registry, "p", &gives(&registry, PASSWORD, "1h"));
    let mut config = plugins.config();
    config.cri_keychain.enable_keychain = true;
    let server = Server::daemon_on(TempDir::new().unwrap(), &config).await;
    prepare(&server, &image).await;
    let server = Server::daemon_on(server.stop_unmounted().await, &config).await;
    let view = server.viewed(&image.target(0)).await;
    assert!(read(&view).await.unwrap() == noise(1, SIZE));
    assert_eq!(plugins.runs("p"), 2, "it is asked again");
    drop(view);
    server.interrupt().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn an_image_without_credentials_is_named_with_what_can_be_done() {
    for (config, remedy) in [
        (
            "[cri_keychain]\nenable_keychain = true\n",
            "the CRI keychain forgets credentials when the daemon restarts",
        ),
        ("", "configure [credential_providers]"),
    ] {
        let registry = private();
        let image = publish(&registry);
        let place = Place::with(config);
        let mut running = Running::start(place.command());
        let mut client = connect(place.path("s/s.sock")).await;
        let request = prepare_request("default", "key", "", image.labels(0));
        client.prepare(request).await.expect("left to containerd");
        running.end(rustix::process::Signal::INT);
        let message = "the registry refuses access, and there are no credentials for the image";
        let lines: Vec<_> = running
            .said
            .iter()
            .filter(|line| line["msg"] == message)
            .collect();
        let [line] = lines[..] else {
            panic!("{lines:?}");
        };
        assert!(line["image"].starts_with(&registry.host()), "{line:?}");
        assert!(line["remedy"].starts_with(remedy), "{line:?}");
    }
}
