//! What the store does at its start with what it cannot read, and with other versions of itself.

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
        State(tempfile::tempdir().expect("a folder"))
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
fn what_cannot_be_read_is_set_aside_and_stops_nothing() {
    let state = State::new();
    let store = state.store();
    let [good, foreign, torn, odd] =
        ["good", "foreign", "torn", "odd"].map(|name| whole(&store, name));
    drop(store);
    let sources = |number| state.layer(number).join(sources::NAME);
    let folder = Folder::new(state.layer(foreign.1), "boot");
    folder
        .write(sources::NAME, |to| to.write_all(b"{\"layers\":[]}"))
        .expect("another form");
    fs::write(sources(torn.1), b"half").expect("torn");
    // As a bad sector: reading it is an error.
    fs::remove_file(sources(odd.1)).expect("removed");
    fs::create_dir(sources(odd.1)).expect("made");
    fs::create_dir(state.0.path().join(FOLDER).join("lost+found")).expect("made");
    let store = state.store();
    assert_eq!(store.list(), [(good.1, good.0)]);
    for (_, number) in [foreign, torn, odd] {
        assert!(!state.layer(number).exists());
        assert!(state.aside(number).join("data").exists(), "nothing is lost");
    }
    let mode = fs::metadata(state.aside(torn.1)).expect("is there");
    assert!(mode.is_dir());
    let above = state.0.path().join(format!("{FOLDER}.aside"));
    let mode = fs::metadata(above).expect("is there").permissions().mode();
    assert_eq!(mode & 0o777, 0o700);
    assert!(state.0.path().join(FOLDER).join("lost+found").exists());
    let (_, next) = whole(&store, "next");
    assert!(next > odd.1, "numbers are not used again");
}

#[test]
fn a_layer_that_this_version_cannot_use_is_set_aside_when_it_is_opened() {
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
    // A shortage is not a property of the layer.
    let shortage = io::Error::from(rustix::io::Errno::MFILE);
    assert!(!StoreError::io(Path::new("x"))(shortage).is_lasting());
    let broken = io::Error::from(rustix::io::Errno::IO);
    assert!(StoreError::io(Path::new("x"))(broken).is_lasting());
}

#[test]
fn of_two_folders_of_one_layer_the_older_goes() {
    let state = State::new();
    let store = state.store();
    let (key, older) = whole(&store, "layer");
    // Forgotten, and the crash comes before it is deleted.
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
        fs::create_dir_all(at(layer)).expect("made");
        fs::write(at(layer).join("data"), b"bytes").expect("written");
    }
    let store = state.store();
    assert!(store.list().is_empty());
    let (_, number) = whole(&store, "layer");
    assert_eq!(
        number,
        LayerNumber(501),
        "numbers are the node's, not a version's"
    );

    let sys = tempfile::tempdir().expect("a folder");
    let device = |name: &str| sys.path().join("class/block").join(name);
    let backed = device("loop0").join("loop");
    fs::create_dir_all(&backed).expect("made");
    fs::create_dir_all(sys.path().join("fs/erofs/features")).expect("made");
    fs::create_dir_all(sys.path().join("fs/erofs/loop0")).expect("made");
    let file = |path: &str| format!("{}\n", at(path).display());
    fs::write(backed.join("backing_file"), file("layers/7/data")).expect("written");
    let table = sys.path().join("mountinfo");
    let line = format!(
        "30 1 0:40 / /x ro - erofs {} ro\n",
        at("layers/90/meta").display()
    );
    fs::write(&table, line).expect("written");
    let uses = || Uses::read_at(&table, sys.path()).expect("readable");
    // Both are used: one by a loop, one by a mount from a file.
    let delete = || store.aside.delete_an_older(&uses()).expect("deleted");
    assert!(!delete());
    // Nothing names it, but a container may still have it.
    fs::write(&table, b"").expect("written");
    fs::create_dir_all(sys.path().join("fs/erofs/erofs-1")).expect("made");
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
