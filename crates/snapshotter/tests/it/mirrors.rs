//! Layers from mirrors: of the configuration and of `hosts.toml`, complete and incomplete, dead, mute
//! and wrong.

use std::fs;
use std::path::Path;

use soci_registry::testing::{Access, Fault, On, Referrers, Setup, TestRegistry, Wrong, noise};
use soci_snapshotter::config::{Config, Host, Mirror};
use tempfile::TempDir;

use crate::image::{Image, Shape, file, tar};
use crate::registries::{SIZE, daemon, nothing_behind, provides, read_big, tars};
use crate::server::Server;

/// A registry and a mirror of it with the same image, and a daemon that uses both.
struct Mirrored {
    registry: TestRegistry,
    mirror: TestRegistry,
    image: Image,
    config: Config,
}

impl Mirrored {
    fn new() -> Self {
        Self::of(Shape::default())
    }

    /// With a mirror in the daemon's configuration.
    fn of(shape: Shape<'_>) -> Self {
        let mut case = Self::with(Setup::default(), shape);
        let first = Mirror {
            host: case.mirror.host(),
            insecure: true,
            request_timeout_sec: 0,
        };
        let mirrors = vec![first];
        let host = Host { mirrors };
        case.config.resolver.host.insert(case.registry.host(), host);
        case
    }

    /// With a mirror that no configuration names.
    fn with(mirror: Setup, shape: Shape<'_>) -> Self {
        let (registry, mirror) = (TestRegistry::start(), TestRegistry::with(mirror));
        let image = Image::publish(&registry, &tars(), shape);
        Image::publish(&mirror, &tars(), shape);
        let mut config = nothing_behind();
        config.pull_modes.soci_v1.enable = shape.refers;
        Self {
            registry,
            mirror,
            image,
            config,
        }
    }

    /// Writes the settings of the registry to a folder of `hosts.toml` files.
    fn write_hosts(&self, folder: &Path, text: &str) {
        let name = self.registry.host().replace(':', "_");
        let own = folder.join(format!("{name}_"));
        fs::create_dir_all(&own).unwrap();
        fs::write(own.join("ca.pem"), TestRegistry::ca_pem()).unwrap();
        fs::write(own.join("hosts.toml"), text).unwrap();
    }

    /// Pulls the image and reads everything in it.
    async fn read(&self) {
        let server = daemon(&self.config).await;
        self.read_on(&server).await;
        server.interrupt().await;
    }

    async fn read_on(&self, server: &Server) {
        assert!(provides(server, &self.image).await);
        let view = server.viewed(&self.image.target(0)).await;
        assert!(read_big(&view).await.unwrap() == noise(1, SIZE));
    }

    fn sent(&self) -> (u64, u64) {
        let layer = &self.image.layers[0];
        (
            self.mirror.bytes_sent(layer),
            self.registry.bytes_sent(layer),
        )
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_mirror_of_the_configuration_is_asked_first() {
    let case = Mirrored::new();
    case.read().await;
    assert_eq!(case.registry.requests(), 0, "{:?}", case.registry.seen());
    assert!(case.sent().0 >= SIZE as u64);
}

#[tokio::test(flavor = "multi_thread")]
async fn wrong_bytes_of_a_mirror_reach_no_reader() {
    let case = Mirrored::new();
    // Bytes of the second span and of one in the middle.
    for at in [100_000, 1_500_000] {
        let on = On::Blob(case.image.layers[0]);
        case.mirror.fault(Fault::always(on, Wrong::Flip(at)));
    }
    case.read().await;
    assert!(case.sent().1 > 0, "the registry has the right bytes");
}

#[tokio::test(flavor = "multi_thread")]
async fn wrong_documents_of_a_mirror_change_nothing() {
    let mut shape = Shape::default();
    for without in [None, Some(0)] {
        shape.without = without;
        let case = Mirrored::of(shape);
        case.mirror.fault(Fault::always(On::Any, Wrong::Flip(700)));
        let server = daemon(&case.config).await;
        assert!(provides(&server, &case.image).await);
        let (from_mirror, from_registry) = case.sent();
        let lazy = from_mirror + from_registry < SIZE as u64;
        assert_eq!(lazy, without.is_none(), "a wrong zTOC is not the end");
        assert!(case.mirror.requests() > 0, "the mirror was asked");
        let view = server.viewed(&case.image.target(0)).await;
        assert!(read_big(&view).await.unwrap() == noise(1, SIZE));
        drop(view);
        server.interrupt().await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_mirror_that_is_down_or_does_not_answer_does_not_fail_reads() {
    let case = Mirrored::new();
    case.mirror.set_online(false);
    case.read().await;
    let case = Mirrored::new();
    let on = On::Blob(case.image.layers[0]);
    case.mirror.fault(Fault::always(on, Wrong::Stall(0)));
    case.read().await;
    assert!(case.sent().1 >= SIZE as u64);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_mirror_that_dies_while_a_container_reads_is_replaced_by_the_registry() {
    let case = Mirrored::new();
    let server = daemon(&case.config).await;
    assert!(provides(&server, &case.image).await);
    let view = server.viewed(&case.image.target(0)).await;
    assert_eq!(case.registry.requests(), 0);
    case.mirror.set_online(false);
    assert!(read_big(&view).await.unwrap() == noise(1, SIZE));
    assert!(case.sent().1 > 0);
    drop(view);
    server.interrupt().await;
}

/// The `Authorization` header that the administrator's file sets.
const LOGIN: &str = "Basic bWU6cHc=";

#[tokio::test(flavor = "multi_thread")]
async fn a_mirror_of_hosts_toml_serves_everything_while_the_registry_is_down() {
    for refers in [false, true] {
        let shape = Shape {
            refers,
            ..Shape::default()
        };
        let access = Access::Basic {
            user: "me".to_owned(),
            password: "pw".to_owned(),
        };
        let setup = Setup {
            tls: true,
            access,
            ..Setup::default()
        };
        let folder = TempDir::new().unwrap();
        let mut case = Mirrored::with(setup, shape);
        let mirror = case.mirror.host();
        let text = format!(
            "[host.'https://{mirror}']\ncapabilities = ['pull', 'resolve']\nca = 'ca.pem'\n\
             [host.'https://{mirror}'.header]\nauthorization = '{LOGIN}'\n"
        );
        case.write_hosts(folder.path(), &text);
        case.config.registry.config_path = format!("/no/such:{}", folder.path().display());
        case.registry.set_online(false);
        case.read().await;
        let seen = case.mirror.seen();
        for seen in &seen {
            assert_eq!(seen.authorization.as_deref(), Some(LOGIN), "{seen:?}");
            assert!(seen.query.contains("ns=127.0.0.1%3A"), "{seen:?}");
        }
        let kinds = ["/manifests/", "/referrers/", "/blobs/"];
        let asked = kinds.map(|kind| seen.iter().any(|seen| seen.path.contains(kind)));
        assert_eq!(asked, [true, refers, true]);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_changed_hosts_toml_holds_for_the_next_image() {
    let folder = TempDir::new().unwrap();
    let mut case = Mirrored::with(Setup::default(), Shape::default());
    case.config.registry.config_path = folder.path().display().to_string();
    let server = daemon(&case.config).await;
    case.read_on(&server).await;
    assert_eq!(case.mirror.requests(), 0);
    let text = format!("[host.'http://{}']\n", case.mirror.host());
    case.write_hosts(folder.path(), &text);
    case.registry.forget_seen();
    let tars = [tar(&[file("a", b"two")])];
    let next = Image::publish(&case.registry, &tars, Shape::default());
    Image::publish(&case.mirror, &tars, Shape::default());
    server.remove("extract").await.ok();
    assert!(provides(&server, &next).await);
    let view = server.viewed(&next.target(0)).await;
    assert_eq!(fs::read(view.path().join("a")).unwrap(), b"two");
    drop(view);
    assert_eq!(case.registry.requests(), 0, "{:?}", case.registry.seen());
    assert!(case.mirror.bytes_sent(&next.layers[0]) > 0);
    server.interrupt().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn an_index_that_the_mirror_does_not_list_is_found_at_the_registry() {
    let shape = Shape {
        refers: true,
        ..Shape::default()
    };
    for wrong in [None, Some(Wrong::status(404)), Some(Wrong::status(503))] {
        let setup = Setup {
            referrers: Referrers::Missing,
            ..Setup::default()
        };
        let folder = TempDir::new().unwrap();
        let mut case = Mirrored::with(setup, shape);
        let text = format!("[host.'http://{}']\n", case.mirror.host());
        case.write_hosts(folder.path(), &text);
        case.config.registry.config_path = folder.path().display().to_string();
        if let Some(wrong) = wrong {
            let on = On::Path("/referrers/".to_owned());
            case.mirror.fault(Fault::always(on, wrong));
        }
        case.read().await;
        let seen = case.registry.seen();
        assert!(seen.iter().any(|seen| seen.path.contains("/referrers/")));
    }
}
