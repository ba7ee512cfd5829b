//! How the store starts with unreadable layers and with stores of other versions.

use std::os::unix::fs::PermissionsExt as _;

use super::*;
use crate::places::{self, Planned};

fn origin() -> Origin {
    Origin {
        reference: "registry.example/app:1".to_owned(),
        manifest: Digest::sha256(b"manifest").to_string(),
        index: None,
        found: "a test".to_owned(),
    }
}

/// A whole layer of one empty file.
fn whole(store: &LayerStore, name: &str) -> (LayerKey, LayerNumber) {
    let draft = store.draft().expect("a draft");
    let planned = [Planned {
        header: 0..512,
        offset: 512,
        size: 0,
    }];
    let table = places::plan(planned.into_iter(), 1536).expect("a plan");
    let places = places::Places::new(crate::sync::Arc::new(table.clone())).expect("tables");
    draft.data.set_len(places.data_size()).expect("set");
    draft.heads.set_len(places.heads_size()).expect("set");
    let sources = Sources {
        layer: Descriptor::of("layer", name.as_bytes()),
        ztoc: None,
        diff_id: Some(Digest::sha256(name.as_bytes())),
        origins: [origin()].into(),
    };
    let files = store
        .finish_whole(draft, sources, &table)
        .expect("finished");
    (files.key, files.number)
}

struct State(tempfile::TempDir);

impl State {
    fn new() -> State {
        State(tempfile::tempdir().expect("a directory"))
    }

    fn store(&self) -> LayerStore {
        LayerStore::open(self.0.path(), Some("boot")).expect("a store")
    }

    fn layer(&self, number: LayerNumber) -> PathBuf {
        self.0.path().join(FOLDER).join(number.to_string())
    }

    fn aside(&self, number: LayerNumber) -> PathBuf {
        let folder = format!("{FOLDER}.aside");
        self.0.path().join(folder).join(number.to_string())
    }
}

#[test]
fn the_folder_is_named_by_the_version() {
    assert_eq!(FOLDER, format!("layers-{VERSION}"));
}

#[test]
fn unreadable_layers_are_set_aside_and_do_not_prevent_the_start() {
    let state = State::new();
    let store = state.store();
    let [good, foreign, torn, odd] =
        ["good", "foreign", "torn", "odd"].map(|name| whole(&store, name));
    drop(store);
    let sources = |number| state.layer(number).join(sources::NAME);
    let folder = Folder::new(state.layer(foreign.1), "boot");
    folder
        .write(sources::NAME, |to| to.write_all(b"{\"layers\":[]}"))
        .expect("another format");
    fs::write(sources(torn.1), b"half").expect("damaged");
    // Reading it is an error, like a bad sector.
    fs::remove_file(sources(odd.1)).expect("removed");
    fs::create_dir(sources(odd.1)).expect("created");
    fs::create_dir(state.0.path().join(FOLDER).join("lost+found")).expect("created");
    let store = state.store();
    assert_eq!(store.list(), [(good.1, good.0)]);
    for (_, number) in [foreign, torn, odd] {
        assert!(!state.layer(number).exists());
        assert!(state.aside(number).join("data").exists(), "nothing is lost");
    }
    let mode = fs::metadata(state.aside(torn.1)).expect("exists");
    assert!(mode.is_dir());
    let above = state.0.path().join(format!("{FOLDER}.aside"));
    let mode = fs::metadata(above).expect("exists").permissions().mode();
    assert_eq!(mode & 0o777, 0o700);
    assert!(state.0.path().join(FOLDER).join("lost+found").exists());
    let (_, next) = whole(&store, "next");
    assert!(next > odd.1, "numbers are not reused");
}

#[test]
fn a_layer_with_an_unknown_format_is_set_aside_when_opened() {
    let state = State::new();
    let store = state.store();
    let (key, number) = whole(&store, "layer");
    let folder = Folder::new(state.layer(number), "boot");
    folder
        .write("places", |to| to.write_all(b"of another version"))
        .expect("written");
    let error = store.open_layer(&key).expect_err("not understood");
    assert!(matches!(error, StoreError::Foreign { .. }), "{error}");
    assert!(error.is_lasting());
    store.set_aside(&key, &error);
    assert!(store.list().is_empty());
    assert!(state.aside(number).join("data").exists());
    // A resource shortage says nothing about the layer.
    let shortage = io::Error::from(rustix::io::Errno::MFILE);
    assert!(!StoreError::io(Path::new("x"))(shortage).is_lasting());
    let broken = io::Error::from(rustix::io::Errno::IO);
    assert!(StoreError::io(Path::new("x"))(broken).is_lasting());
}

#[test]
fn the_older_of_two_directories_of_one_layer_is_removed() {
    let state = State::new();
    let store = state.store();
    let (key, older) = whole(&store, "layer");
    // Forgotten, but a crash prevents its deletion.
    assert_eq!(store.forget(&key), Some(older));
    let (same, newer) = whole(&store, "layer");
    assert_eq!(same, key);
    let store = state.store();
    assert_eq!(store.list(), [(newer, key)]);
    assert!(!state.layer(older).exists() && state.layer(newer).exists());
}

#[test]
fn other_versions_are_left_alone_until_an_older_one_is_unused() {
    let state = State::new();
    let at = |path: &str| state.0.path().join(path);
    for layer in ["layers/7", "layers/90", "layers-3/500", "layers-x/1"] {
        fs::create_dir_all(at(layer)).expect("created");
        fs::write(at(layer).join("data"), b"bytes").expect("written");
    }
    let store = state.store();
    assert!(store.list().is_empty());
    let (_, number) = whole(&store, "layer");
    assert_eq!(
        number,
        LayerNumber(501),
        "numbers are unique across versions"
    );

    let sys = tempfile::tempdir().expect("a directory");
    let device = |name: &str| sys.path().join("class/block").join(name);
    let backed = device("loop0").join("loop");
    fs::create_dir_all(&backed).expect("created");
    fs::create_dir_all(sys.path().join("fs/erofs/features")).expect("created");
    fs::create_dir_all(sys.path().join("fs/erofs/loop0")).expect("created");
    let file = |path: &str| format!("{}\n", at(path).display());
    fs::write(backed.join("backing_file"), file("layers/7/data")).expect("written");
    let table = sys.path().join("mountinfo");
    let line = format!(
        "30 1 0:40 / /x ro - erofs {} ro\n",
        at("layers/90/meta").display()
    );
    fs::write(&table, line).expect("written");
    let uses = || Uses::read_at(&table, sys.path()).expect("readable");
    // Both are in use: one by a loop device, one by a file-backed mount.
    let delete = || store.aside.delete_an_older(&uses()).expect("deleted");
    assert!(!delete());
    // No table names it, but a container may still hold it.
    fs::write(&table, b"").expect("written");
    fs::create_dir_all(sys.path().join("fs/erofs/erofs-1")).expect("created");
    assert!(!delete());
    assert!(at("layers/90/data").exists());
    fs::remove_dir(sys.path().join("fs/erofs/erofs-1")).expect("removed");
    assert!(delete());
    assert!(!at("layers/90").exists() && at("layers/7/data").exists());
    assert!(!delete(), "the other is in use");
    fs::write(backed.join("backing_file"), "/elsewhere\n").expect("written");
    assert!(delete() && delete() && !delete());
    assert!(!at("layers").exists());
    assert!(at("layers-3/500/data").exists() && at("layers-x/1/data").exists());
}

#[test]
fn a_draft_that_is_given_up_is_removed_by_the_pool() {
    let state = State::new();
    let store = state.store();
    let cpu = Cpu::new(std::num::NonZeroUsize::MIN).expect("threads");
    let (release, gate) = std::sync::mpsc::channel::<()>();
    // The lane for removals runs one job at a time.
    cpu.spawn(Lane::FilesBehind, move || gate.recv().unwrap_or_default());
    let draft = store.draft().expect("a draft").remove_on(&cpu);
    let folder = draft.path.clone();
    drop(draft);
    assert!(folder.exists(), "who drops a draft does not wait");
    drop(release);
    // Dropping the pool runs every job.
    drop(cpu);
    assert!(!folder.exists());
    let draft = store.draft().expect("a draft");
    let folder = draft.path.clone();
    drop(draft);
    assert!(!folder.exists());
}
