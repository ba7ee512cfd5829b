//! Layers of images: mounted lazily, downloaded whole, or left to containerd.

use std::fs;
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use soci_registry::testing::{Fault, On, TestRegistry, Wrong, noise};
use soci_snapshotter::config::Config;
use soci_snapshotter::mount::table::MountTable;
use tempfile::TempDir;
use tonic::{Code, Status};

use crate::image::{Image, Shape, file, tar};
use crate::server::{Labels, Mounted, Server};

/// Longer than any step of these tests.
const LONG: Duration = Duration::from_secs(30);

async fn daemon() -> Server {
    Server::daemon_on(TempDir::new().unwrap(), &Config::default()).await
}

fn big() -> Vec<u8> {
    noise(1, 300_000)
}

fn tars() -> Vec<Vec<u8>> {
    vec![
        tar(&[file("a", b"one"), file("big", &big())]),
        tar(&[file("a", b"two"), file("d/b", b"three")]),
    ]
}

/// Requests the layers of an image as containerd does, until one is not provided.
async fn pull(
    server: &Server,
    image: &Image,
    first: usize,
    labels: impl Fn(usize) -> Labels,
) -> Vec<Status> {
    let below = first.checked_sub(1).map(|below| image.target(below));
    let mut parent = below.unwrap_or_default();
    let mut said = Vec::new();
    for layer in first..image.layers.len() {
        let key = format!("extract-{layer}");
        match server
            .prepare_in("default", &key, &parent, labels(layer))
            .await
        {
            Ok(mounts) => panic!("layer {layer} is left to containerd: {mounts:?}"),
            Err(status) => said.push(status),
        }
        parent = image.target(layer);
    }
    said
}

pub(crate) async fn pull_all(server: &Server, image: &Image) {
    pull_all_from(server, image, 0).await;
}

pub(crate) async fn pull_all_from(server: &Server, image: &Image, first: usize) {
    for status in pull(server, image, first, |layer| image.labels(layer)).await {
        assert_eq!(status.code(), Code::AlreadyExists, "{status}");
        assert!(
            status.message().starts_with("target snapshot \"sha256:"),
            "{status}"
        );
    }
}

/// Waits until a condition becomes true.
pub(crate) async fn until<F: Future<Output = bool>>(what: &str, mut holds: impl FnMut() -> F) {
    let end = tokio::time::Instant::now() + LONG;
    while !holds().await {
        assert!(tokio::time::Instant::now() < end, "{what}");
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
}

fn check_content(root: &std::path::Path) {
    assert_eq!(fs::read(root.join("a")).unwrap(), b"two");
    assert_eq!(fs::read(root.join("d/b")).unwrap(), b"three");
    assert_eq!(fs::read(root.join("big")).unwrap(), big());
}

/// The number of layers that have an image to mount.
pub(crate) fn ready(server: &Server) -> usize {
    let layers = stored(server.root.path());
    let ready = layers.iter().filter(|layer| {
        let names = fs::read_dir(layer).into_iter().flatten().flatten();
        let mut names = names.map(|entry| entry.file_name());
        names.any(|name| name.to_string_lossy().starts_with("meta"))
    });
    ready.count()
}

fn mounts_below(server: &Server) -> usize {
    let table = fs::read_to_string("/proc/self/mountinfo").unwrap();
    let folder = server.directories().display().to_string();
    table.lines().filter(|line| line.contains(&folder)).count()
}

#[tokio::test(flavor = "multi_thread")]
async fn an_indexed_image_is_committed_at_once_and_reads_right() {
    let registry = TestRegistry::start();
    let image = Image::publish(&registry, &tars(), Shape::default());
    let server = daemon().await;
    pull_all(&server, &image).await;
    let top = server.stat(&image.target(1)).await.unwrap();
    assert_eq!(top.parent, image.target(0));
    let mut wanted = image.labels(1);
    for (key, value) in [
        ("containerd.io/snapshot/remote", "remote snapshot"),
        ("containerd.io/snapshot/remote/namespace", "default"),
        (
            "containerd.io/snapshot/remote/has.soci.index.digest",
            "true",
        ),
    ] {
        wanted.insert(key.to_owned(), value.to_owned());
    }
    assert_eq!(top.labels, wanted);
    assert_eq!(
        server.stat("extract-1").await.unwrap_err().code(),
        Code::NotFound
    );
    let view = server.viewed(&image.target(1)).await;
    check_content(view.path());
    let writable = Mounted::new(&server.prepare("container", &image.target(1)).await.unwrap());
    fs::write(writable.path().join("a"), b"changed").unwrap();
    assert_eq!(fs::read(view.path().join("a")).unwrap(), b"two");
    drop((writable, view));
    server.interrupt().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn manifest_index_and_ztocs_are_asked_for_once() {
    let registry = TestRegistry::start();
    let image = Image::publish(&registry, &tars(), Shape::default());
    let server = daemon().await;
    pull_all(&server, &image).await;
    for digest in [image.manifest, image.index].iter().chain(&image.ztocs) {
        let of = |seen: &&soci_registry::testing::Seen| seen.path.contains(&digest.to_string());
        let seen: Vec<_> = registry.seen();
        assert_eq!(seen.iter().filter(of).count(), 1, "{digest}: {seen:#?}");
    }
    server.interrupt().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn layers_are_made_ready_before_they_are_asked_for() {
    let registry = TestRegistry::start();
    let tars: Vec<_> = (0..4)
        .map(|n| tar(&[file(&format!("f{n}"), &noise(n, 200_000))]))
        .collect();
    let image = Image::publish(&registry, &tars, Shape::default());
    let server = daemon().await;
    let asked = server.prepare_in("default", "extract-0", "", image.labels(0));
    assert_eq!(asked.await.unwrap_err().code(), Code::AlreadyExists);
    until("all layers are ready", async || ready(&server) == 4).await;
    assert_eq!(mounts_below(&server), 1, "nothing is mounted before");
    // What is at hand needs no registry.
    let seen = registry.seen().len();
    pull_all_from(&server, &image, 1).await;
    let of_layers = registry.seen().split_off(seen);
    let asked: Vec<_> = of_layers
        .iter()
        .filter(|seen| {
            let names = |digest: &soci_oci::Digest| seen.path.contains(&digest.to_string());
            image.ztocs.iter().any(names) || names(&image.manifest) || names(&image.index)
        })
        .collect();
    assert!(asked.is_empty(), "{asked:#?}");
    let view = server.viewed(&image.target(3)).await;
    for n in 0..4 {
        let read = fs::read(view.path().join(format!("f{n}"))).unwrap();
        assert!(read == noise(n, 200_000), "{n}");
    }
    drop(view);
    server.interrupt().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_layer_without_a_ztoc_is_fetched_whole() {
    let registry = TestRegistry::start();
    for shape in [
        Shape {
            without: Some(0),
            ..Shape::default()
        },
        Shape {
            rubbish: Some(0),
            ..Shape::default()
        },
    ] {
        let image = Image::publish(&registry, &tars(), shape);
        let server = daemon().await;
        pull_all(&server, &image).await;
        let remote = async |layer| {
            let labels = server.stat(&image.target(layer)).await.unwrap().labels;
            labels.contains_key("containerd.io/snapshot/remote")
        };
        assert!(!remote(0).await && remote(1).await, "{shape:?}");
        let usage = server.usage(&image.target(0)).await.unwrap();
        assert!(usage.size >= 300_000, "{usage:?}");
        // The registry is not needed any more.
        registry.set_online(false);
        let view = server.view("bottom", &image.target(0)).await.unwrap();
        let view = Mounted::new(&view);
        assert_eq!(fs::read(view.path().join("big")).unwrap(), big());
        drop(view);
        registry.set_online(true);
        server.interrupt().await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_layer_whose_spans_are_too_large_to_hold_is_fetched_whole() {
    let registry = TestRegistry::start();
    let shape = Shape {
        span: Some(256 << 20),
        ..Shape::default()
    };
    let tars = [tar(&[
        file("a", b"one"),
        file("zeros", &vec![0; 130 << 20]),
    ])];
    let image = Image::publish(&registry, &tars, shape);
    let server = daemon().await;
    pull_all(&server, &image).await;
    let labels = server.stat(&image.target(0)).await.unwrap().labels;
    assert!(!labels.contains_key("containerd.io/snapshot/remote"));
    let view = server.viewed(&image.target(0)).await;
    assert_eq!(fs::read(view.path().join("a")).unwrap(), b"one");
    drop(view);
    server.interrupt().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn an_image_without_an_index_is_left_to_containerd_on_request_and_remembered() {
    let registry = TestRegistry::start();
    let image = Image::publish(
        &registry,
        &tars(),
        Shape {
            unnamed: true,
            ..Shape::default()
        },
    );
    let mut config = Config::default();
    config.pull_modes.parallel_pull_unpack.enable = Some(false);
    let server = Server::daemon_on(TempDir::new().unwrap(), &config).await;
    let mounts = server
        .prepare_in("default", "one", "", image.labels(0))
        .await
        .unwrap();
    assert_eq!(mounts[0].r#type, "bind");
    // Unpack the layer as containerd does.
    fs::write(std::path::Path::new(&mounts[0].source).join("a"), b"one").unwrap();
    server.commit("layer-0", "one").await.unwrap();
    let asked = registry.requests();
    let mounts = server
        .prepare_in("default", "two", "layer-0", image.labels(1))
        .await
        .unwrap();
    assert_eq!(mounts[0].r#type, "overlay");
    assert_eq!(
        registry.requests(),
        asked,
        "no further request to the registry"
    );
    assert_eq!(mounts_below(&server), 0);
    // The client may know an index that the manifest does not name.
    let with_index = |layer: usize| {
        let mut labels = image.labels(layer);
        let key = "containerd.io/snapshot/remote/soci.index.digest".to_owned();
        labels.insert(key, image.index.to_string());
        labels
    };
    for status in pull(&server, &image, 0, with_index).await {
        assert_eq!(status.code(), Code::AlreadyExists, "{status}");
    }
    server.interrupt().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_containerd_that_hangs_costs_a_moment_and_the_registry_is_asked() {
    let registry = TestRegistry::start();
    let shape = Shape {
        without: Some(0),
        ..Shape::default()
    };
    let image = Image::publish(&registry, &tars(), shape);
    let folder = TempDir::new().unwrap();
    let socket = folder.path().join("containerd.sock");
    // A socket that accepts connections but never answers.
    let _silent = std::os::unix::net::UnixListener::bind(&socket).unwrap();
    let mut config = Config::default();
    config.content_store.containerd_address = socket.display().to_string();
    let server = Server::daemon_on(TempDir::new().unwrap(), &config).await;
    let start = tokio::time::Instant::now();
    pull_all(&server, &image).await;
    let took = start.elapsed();
    assert!(took < Duration::from_secs(10), "{took:?}");
    let view = server.viewed(&image.target(1)).await;
    check_content(view.path());
    drop(view);
    server.interrupt().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_registry_that_did_not_answer_is_asked_again() {
    let registry = TestRegistry::start();
    let image = Image::publish(&registry, &tars(), Shape::default());
    let mut config = Config::default();
    config.http.max_retries = -1;
    let server = Server::daemon_on(TempDir::new().unwrap(), &config).await;
    registry.set_online(false);
    let mounts = server
        .prepare_in("default", "one", "", image.labels(0))
        .await
        .unwrap();
    assert_eq!(mounts[0].r#type, "bind");
    registry.set_online(true);
    pull_all(&server, &image).await;
    server.interrupt().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn after_a_restart_layers_are_mounted_without_a_registry() {
    let registry = TestRegistry::start();
    let image = Image::publish(&registry, &tars(), Shape::default());
    let server = daemon().await;
    pull_all(&server, &image).await;
    let view = server.viewed(&image.target(1)).await;
    check_content(view.path());
    drop(view);
    server
        .remove(&format!("{}-view", image.target(1)))
        .await
        .unwrap();
    registry.set_online(false);
    let server = Server::daemon_on(server.stop().await, &Config::default()).await;
    assert_eq!(mounts_below(&server), 2, "both mount points stay mounted");
    let view = server.viewed(&image.target(1)).await;
    check_content(view.path());
    drop(view);
    server.interrupt().await;
}

/// The directories of the layers in the store.
pub(crate) fn stored(root: &std::path::Path) -> Vec<PathBuf> {
    let entries = fs::read_dir(root.join(soci_snapshotter::store::FOLDER)).unwrap();
    let folders = entries.map(|entry| entry.unwrap().path());
    folders.filter(|path| path.is_dir()).collect()
}

#[tokio::test(flavor = "multi_thread")]
async fn a_lost_layer_that_comes_back_in_another_form_is_what_its_snapshot_names() {
    let registry = TestRegistry::start();
    let image = Image::publish(&registry, &tars(), Shape::default());
    let server = daemon().await;
    pull_all(&server, &image).await;
    let root = server.stop_unmounted().await;
    for folder in stored(root.path()) {
        fs::remove_dir_all(folder).unwrap();
    }
    // The lower layer can now only be downloaded whole.
    let rubbish = Wrong::Flip(0);
    registry.fault(Fault::always(On::Blob(image.ztocs[0]), rubbish));
    let server = Server::daemon_on(root, &Config::default()).await;
    let view = server.viewed(&image.target(1)).await;
    check_content(view.path());
    let sent = registry.bytes_sent(&image.layers[0]);
    assert!(sent > big().len() as u64, "{sent}");
    drop(view);
    server
        .remove(&format!("{}-view", image.target(1)))
        .await
        .unwrap();
    server.cleanup().await.unwrap();
    assert_eq!(
        stored(server.root.path()).len(),
        2,
        "both layers are in use"
    );
    registry.set_online(false);
    let server = Server::daemon_on(server.stop_unmounted().await, &Config::default()).await;
    let view = server.viewed(&image.target(0)).await;
    assert_eq!(fs::read(view.path().join("big")).unwrap(), big());
    drop(view);
    server.interrupt().await;
}

/// The mount points that show a layer.
fn layer_mounts(server: &Server) -> Vec<PathBuf> {
    let table = MountTable::read().unwrap();
    let folders = fs::read_dir(server.directories()).unwrap();
    let places = folders.map(|folder| folder.unwrap().path().join("fs"));
    places.filter(|at| table.top(at).is_some()).collect()
}

/// Counts how often one of `places` has no mount, until it is told to stop.
fn watch(places: Vec<PathBuf>) -> (Arc<AtomicBool>, std::thread::JoinHandle<usize>) {
    let over = Arc::new(AtomicBool::new(false));
    let told = Arc::clone(&over);
    let watcher = std::thread::spawn(move || {
        let mut uncovered = 0;
        while !told.load(Ordering::SeqCst) {
            let table = MountTable::read().unwrap();
            uncovered += places.iter().filter(|at| table.top(at).is_none()).count();
        }
        uncovered
    });
    (over, watcher)
}

#[tokio::test(flavor = "multi_thread")]
async fn no_mount_point_is_uncovered_by_a_restart_and_many_requests_after_it() {
    let registry = TestRegistry::start();
    let image = Image::publish(&registry, &tars(), Shape::default());
    let server = daemon().await;
    pull_all(&server, &image).await;
    let places = layer_mounts(&server);
    assert_eq!(places.len(), 2);
    let (over, watcher) = watch(places);
    let server = Server::daemon_on(server.stop().await, &Config::default()).await;
    let top = image.target(1);
    let (one, two, three, four) = tokio::join!(
        server.prepare("1", &top),
        server.prepare("2", &top),
        server.prepare("3", &top),
        server.prepare("4", &top),
    );
    for mounts in [one, two, three, four] {
        check_content(Mounted::new(&mounts.unwrap()).path());
    }
    over.store(true, Ordering::SeqCst);
    assert_eq!(watcher.join().unwrap(), 0);
    server.interrupt().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_layer_that_somebody_unmounted_is_mounted_again_when_it_is_used() {
    let registry = TestRegistry::start();
    let image = Image::publish(&registry, &tars(), Shape::default());
    let server = daemon().await;
    pull_all(&server, &image).await;
    let places = layer_mounts(&server);
    for at in &places {
        rustix::mount::unmount(at, rustix::mount::UnmountFlags::DETACH).unwrap();
    }
    let view = server.viewed(&image.target(1)).await;
    check_content(view.path());
    assert_eq!(layer_mounts(&server).len(), places.len());
    drop(view);
    server.interrupt().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn removed_layers_leave_neither_mounts_nor_files() {
    let registry = TestRegistry::start();
    let image = Image::publish(&registry, &tars(), Shape::default());
    let server = daemon().await;
    pull_all(&server, &image).await;
    assert_eq!(mounts_below(&server), 2);
    server.cleanup().await.unwrap();
    assert_eq!(mounts_below(&server), 2, "layers in use stay mounted");
    server.remove(&image.target(1)).await.unwrap();
    server.cleanup().await.unwrap();
    assert_eq!(mounts_below(&server), 1);
    let layers = || stored(server.root.path()).len();
    assert_eq!(layers(), 1);
    server.remove(&image.target(0)).await.unwrap();
    server.cleanup().await.unwrap();
    assert_eq!((mounts_below(&server), layers()), (0, 0));
    pull_all(&server, &image).await;
    server.interrupt().await;
}

/// Bytes on disk of the layers in the store.
fn on_disk(root: &std::path::Path) -> i64 {
    use std::os::unix::fs::MetadataExt as _;
    let blocks = |path: &std::path::Path| fs::metadata(path).unwrap().blocks();
    let of_folder = |folder: &PathBuf| {
        let files = fs::read_dir(folder).unwrap();
        let files = files.map(|file| blocks(&file.unwrap().path()));
        blocks(folder) + files.sum::<u64>()
    };
    let all = stored(root).iter().map(of_folder).sum::<u64>();
    i64::try_from(512 * all).unwrap()
}

#[tokio::test(flavor = "multi_thread")]
async fn usage_of_layers_is_what_they_take_on_disk_and_counts_a_shared_one_once() {
    let registry = TestRegistry::start();
    let image = Image::publish(&registry, &tars(), Shape::default());
    let mut config = Config::default();
    config.background_fetch.disable = true;
    let server = Server::daemon_on(TempDir::new().unwrap(), &config).await;
    pull_all(&server, &image).await;
    server
        .layer("other/1/lower", "", |root| {
            fs::write(root.join("a"), b"x").unwrap()
        })
        .await;
    let again = server
        .prepare_in("other", "extract", "other/1/lower", image.labels(1))
        .await
        .unwrap_err();
    assert_eq!(again.code(), Code::AlreadyExists, "{again}");
    let second = server.names(&["kind==committed"]).await.into_iter();
    let second = second.filter(|name| name.starts_with(&format!("{}@", image.target(1))));
    let [second] = &second.collect::<Vec<_>>()[..] else {
        panic!("expected one more snapshot of the layer");
    };
    let sizes = async || {
        let mut sizes = Vec::new();
        for name in [&image.target(0), &image.target(1), second] {
            sizes.push(server.usage(name).await.unwrap().size);
        }
        sizes
    };
    let is_right = async || sizes().await.iter().sum::<i64>() == on_disk(server.root.path());
    until("the sum equals the usage on disk", is_right).await;
    let before = sizes().await;
    assert!(
        before[0] > 0 && before[1] > 0 && before[2] == 0,
        "{before:?}"
    );
    assert!(before[0] < 300_000, "it has not been read: {before:?}");
    let view = server.viewed(&image.target(1)).await;
    check_content(view.path());
    drop(view);
    let grown = async || sizes().await[0] >= before[0] + 300_000;
    until("the data that was read is on disk", grown).await;
    until("the sum equals the usage on disk", is_right).await;
    // The first snapshot is removed, so the other one now counts the files.
    server
        .remove(&format!("{}-view", image.target(1)))
        .await
        .unwrap();
    server.remove(&image.target(1)).await.unwrap();
    assert!(server.usage(second).await.unwrap().size > 0);
    server.interrupt().await;
}

/// Number of files of the store that this process has open.
fn open_files(root: &std::path::Path) -> usize {
    let folder = root.join(soci_snapshotter::store::FOLDER);
    let files = fs::read_dir("/proc/self/fd").unwrap();
    let files = files.filter_map(|file| fs::read_link(file.unwrap().path()).ok());
    files.filter(|file| file.starts_with(&folder)).count()
}

#[tokio::test(flavor = "multi_thread")]
async fn complete_layers_have_no_files_open_and_are_used_as_before() {
    let registry = TestRegistry::start();
    let image = Image::publish(&registry, &tars(), Shape::default());
    let server = daemon().await;
    pull_all(&server, &image).await;
    assert!(open_files(server.root.path()) > 0);
    let closed = "no file of a complete layer is open";
    until(closed, async || open_files(server.root.path()) == 0).await;
    // A restart opens the files to take the layers over.
    let server = Server::daemon_on(server.stop().await, &Config::default()).await;
    until(closed, async || open_files(server.root.path()) == 0).await;
    registry.set_online(false);
    let view = server.viewed(&image.target(1)).await;
    check_content(view.path());
    drop(view);
    // Another mount of a layer whose files were closed.
    let other = Image::publish(&registry, &tars()[..1], Shape::default());
    registry.set_online(true);
    server
        .remove(&format!("{}-view", image.target(1)))
        .await
        .unwrap();
    for layer in [1, 0] {
        server.remove(&image.target(layer)).await.unwrap();
    }
    pull_all(&server, &other).await;
    let view = server.viewed(&other.target(0)).await;
    assert_eq!(fs::read(view.path().join("big")).unwrap(), big());
    drop(view);
    server.interrupt().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn the_space_of_a_removed_layer_comes_back_though_it_was_never_complete() {
    let registry = TestRegistry::start();
    let image = Image::publish(&registry, &tars(), Shape::default());
    let mut config = Config::default();
    config.background_fetch.disable = true;
    let server = Server::daemon_on(TempDir::new().unwrap(), &config).await;
    pull_all(&server, &image).await;
    let open = || open_files(server.root.path());
    assert!(open() > 0, "both layers are open");
    for layer in [1, 0] {
        server.remove(&image.target(layer)).await.unwrap();
    }
    server.cleanup().await.unwrap();
    until("no file of the layers is open", async || open() == 0).await;
    server.interrupt().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn an_image_may_have_a_layer_twice() {
    let registry = TestRegistry::start();
    let [bottom, top] = <[_; 2]>::try_from(tars()).unwrap();
    let empty = tar(&[]);
    let tars = [bottom, empty.clone(), top, empty];
    let image = Image::publish(&registry, &tars, Shape::default());
    let server = daemon().await;
    pull_all(&server, &image).await;
    let view = server.viewed(&image.target(3)).await;
    check_content(view.path());
    drop(view);
    let server = Server::daemon_on(server.stop().await, &Config::default()).await;
    let again = Mounted::new(&server.prepare("container", &image.target(3)).await.unwrap());
    check_content(again.path());
    drop(again);
    server.interrupt().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_target_on_another_parent_is_found_by_containerd_all_the_same() {
    let registry = TestRegistry::start();
    let image = Image::publish(&registry, &tars(), Shape::default());
    let server = daemon().await;
    pull_all(&server, &image).await;
    // Another namespace, where containerd unpacked the lower layer.
    server
        .layer("other/1/lower", "", |root| {
            fs::write(root.join("a"), b"x").unwrap()
        })
        .await;
    let labels = image.labels(1);
    let said = server
        .prepare_in("other", "extract", "other/1/lower", labels)
        .await
        .unwrap_err();
    assert_eq!(said.code(), Code::AlreadyExists, "{said}");
    let filter = format!(
        r#"labels."containerd.io/snapshot.ref"=={},parent==other/1/lower"#,
        format_args!("\"{}\"", image.target(1)),
    )
    .replace("parent==other/1/lower", r#"parent=="other/1/lower""#);
    let names = server.names(&[&filter]).await;
    assert_eq!(names.len(), 1, "{names:?}");
    assert_ne!(names[0], image.target(1));
    server.interrupt().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn what_was_prepared_for_a_client_that_went_away_belongs_to_nobody_and_is_taken_back() {
    let registry = TestRegistry::start();
    let shape = Shape {
        without: Some(0),
        ..Shape::default()
    };
    let image = Image::publish(&registry, &tars(), shape);
    let server = daemon().await;
    let late = Wrong::Delay(Duration::from_millis(500));
    registry.fault(Fault::once(On::Blob(image.layers[0]), late));
    let asked = server.prepare_in("default", "gone", "", image.labels(0));
    let begun = until("the layer is being prepared", || async {
        server.stat("gone").await.is_ok()
    });
    tokio::select! {
        said = asked => panic!("{said:?}"),
        () = begun => {}
    }
    until("no snapshot is left", || async {
        server.names(&[]).await.is_empty()
    })
    .await;
    assert_eq!(mounts_below(&server), 0);
    // The download has ended with the call. The next client gets one of its own.
    let again = server.prepare_in("default", "again", "", image.labels(0));
    assert_eq!(again.await.unwrap_err().code(), Code::AlreadyExists);
    assert_eq!(server.names(&[]).await, [image.target(0)]);
    server.interrupt().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn images_asked_for_twice_at_once_are_mounted_once() {
    let registry = TestRegistry::start();
    let image = Image::publish(&registry, &tars(), Shape::default());
    let server = daemon().await;
    let ask = |key: &'static str| server.prepare_in("default", key, "", image.labels(0));
    let (one, two) = tokio::join!(ask("one"), ask("two"));
    for said in [one, two] {
        assert_eq!(said.unwrap_err().code(), Code::AlreadyExists);
    }
    assert_eq!(server.names(&[]).await, [image.target(0)]);
    server.cleanup().await.unwrap();
    assert_eq!(mounts_below(&server), 1);
    server.interrupt().await;
}
