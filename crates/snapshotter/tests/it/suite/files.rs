//! Writes to snapshots, and what is seen through them.

use std::collections::BTreeMap;
use std::fs;
use std::io::Write;
use std::os::unix::fs::{DirBuilderExt, MetadataExt, PermissionsExt, lchown};
use std::path::Path;

use crate::server::{Mounted, Server, labels};

fn write(path: &Path, text: &str, mode: u32) {
    fs::write(path, text).unwrap();
    fs::set_permissions(path, fs::Permissions::from_mode(mode)).unwrap();
}

fn create(path: &Path, mode: u32) {
    fs::DirBuilder::new().mode(mode).create(path).unwrap();
    fs::set_permissions(path, fs::Permissions::from_mode(mode)).unwrap();
}

/// Maps each path below `root` to kind, mode, owner and content.
fn tree(root: &Path) -> BTreeMap<String, (u32, u32, u32, Vec<u8>)> {
    let mut found = BTreeMap::new();
    let mut pending = vec![root.to_owned()];
    while let Some(folder) = pending.pop() {
        for entry in fs::read_dir(&folder).unwrap() {
            let path = entry.unwrap().path();
            let seen = fs::symlink_metadata(&path).unwrap();
            let content = if seen.is_file() {
                fs::read(&path).unwrap()
            } else {
                Vec::new()
            };
            let name = path
                .strip_prefix(root)
                .unwrap()
                .to_str()
                .unwrap()
                .to_owned();
            found.insert(name, (seen.mode(), seen.uid(), seen.gid(), content));
            if seen.is_dir() {
                pending.push(path);
            }
        }
    }
    found
}

type Change = fn(&Path);

/// Applies changes one after another, each in its own layer and all in one plain directory. After
/// every step, the mount of the layer must show what the directory contains; after the last one, a
/// view too.
async fn layers_equal_a_folder(changes: &[Change]) {
    let server = Server::start().await;
    let plain = tempfile::tempdir().unwrap();
    let mut parent = String::new();
    for (number, change) in changes.iter().enumerate() {
        let key = format!("key-{number}");
        let mounted = Mounted::new(&server.prepare(&key, &parent).await.unwrap());
        assert_eq!(
            tree(mounted.path()),
            tree(plain.path()),
            "before step {number}"
        );
        change(plain.path());
        change(mounted.path());
        assert_eq!(
            tree(mounted.path()),
            tree(plain.path()),
            "after step {number}"
        );
        drop(mounted);
        parent = format!("layer-{number}");
        server.commit(&parent, &key).await.unwrap();
    }
    let view = server.viewed(&parent).await;
    assert_eq!(tree(view.path()), tree(plain.path()));
}

#[tokio::test(flavor = "multi_thread")]
async fn basic_two_layers_and_a_view() {
    let server = Server::start().await;
    let first = |root: &Path| {
        write(&root.join("foo"), "foo\n", 0o777);
        create(&root.join("a"), 0o755);
        create(&root.join("a/b"), 0o755);
        create(&root.join("a/b/c"), 0o755);
    };
    let second = |root: &Path| {
        write(&root.join("bar"), "bar\n", 0o777);
        write(&root.join("foo"), "bar\n", 0o777);
        fs::remove_dir_all(root.join("a/b")).unwrap();
    };
    let plain = tempfile::tempdir().unwrap();
    first(plain.path());
    server.layer("one", "", first).await;
    server.layer("two", "one", second).await;
    assert_eq!(server.stat("two").await.unwrap().parent, "one");
    assert!(
        server.stat("two-key").await.is_err(),
        "the key is gone after commit"
    );
    second(plain.path());
    let view = server.viewed("two").await;
    assert_eq!(tree(view.path()), tree(plain.path()));
    drop(view);
    server.remove("two-view").await.unwrap();
    let error = server.remove("one").await.unwrap_err();
    assert!(error.message().contains("remove"), "{error}");
    server.remove("two").await.unwrap();
    server.remove("one").await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn files_of_a_lower_layer_are_updated() {
    layers_equal_a_folder(&[
        |root| {
            create(&root.join("etc"), 0o700);
            write(&root.join("etc/hosts"), "mydomain 10.0.0.1", 0o644);
            write(&root.join("etc/profile"), "PATH=/usr/bin", 0o644);
        },
        |root| {
            write(&root.join("etc/hosts"), "mydomain 10.0.0.2", 0o644);
            write(&root.join("etc/profile"), "PATH=/usr/bin", 0o666);
            create(&root.join("root"), 0o700);
            write(&root.join("root/.bashrc"), "PATH=/usr/sbin:/usr/bin", 0o644);
        },
    ])
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_directory_that_was_removed_and_made_again_hides_the_lower_one() {
    layers_equal_a_folder(&[
        |root| {
            create(&root.join("lib"), 0o700);
            write(&root.join("lib/hidden"), "", 0o644);
        },
        |root| {
            fs::remove_dir_all(root.join("lib")).unwrap();
            create(&root.join("lib"), 0o700);
            write(&root.join("lib/not-hidden"), "", 0o644);
        },
        |root| write(&root.join("lib/newfile"), "", 0o644),
    ])
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn owners_of_a_lower_layer_are_changed() {
    layers_equal_a_folder(&[
        |root| {
            for folder in ["opt", "opt/a", "opt/a/b"] {
                create(&root.join(folder), 0o700);
            }
            write(&root.join("opt/a/b/file.txt"), "hello", 0o644);
        },
        |root| {
            for path in ["opt", "opt/a", "opt/a/b", "opt/a/b/file.txt"] {
                lchown(root.join(path), Some(1), Some(1)).unwrap();
            }
        },
    ])
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn directory_permissions_survive_commits() {
    layers_equal_a_folder(&[
        |root| {
            for folder in ["dir1", "dir2", "dir3", "dir4", "dir5"] {
                create(&root.join(folder), 0o700);
            }
            write(&root.join("dir4/f1"), "...", 0o644);
            write(&root.join("dir5/f1"), "...", 0o644);
            for path in ["dir1", "dir2", "dir3", "dir5", "dir5/f1"] {
                lchown(root.join(path), Some(1), Some(1)).unwrap();
            }
        },
        |root| {
            lchown(root.join("dir2"), Some(0), Some(0)).unwrap();
            fs::remove_dir_all(root.join("dir3")).unwrap();
            lchown(root.join("dir4"), Some(1), Some(1)).unwrap();
            lchown(root.join("dir4/f1"), Some(1), Some(1)).unwrap();
        },
        |root| {
            create(&root.join("dir3"), 0o700);
            lchown(root.join("dir3"), Some(1), Some(1)).unwrap();
            fs::remove_dir_all(root.join("dir5")).unwrap();
            create(&root.join("dir5"), 0o700);
            lchown(root.join("dir5"), Some(1), Some(1)).unwrap();
        },
    ])
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn deleted_files_stay_deleted_in_children() {
    layers_equal_a_folder(&[
        |root| {
            write(&root.join("foo"), "foo\n", 0o777);
            write(&root.join("foobar"), "foobar\n", 0o777);
        },
        |root| fs::remove_file(root.join("foobar")).unwrap(),
        |_| {},
    ])
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn files_of_a_lower_layer_are_moved_and_linked() {
    layers_equal_a_folder(&[
        |root| {
            create(&root.join("dir1"), 0o700);
            write(&root.join("dir1/f1"), "Hello", 0o644);
            create(&root.join("dir2"), 0o700);
            write(&root.join("dir2/f2"), "...", 0o644);
        },
        |root| {
            create(&root.join("dir3"), 0o700);
            write(&root.join("dir3/f1"), "Hello", 0o644);
            fs::remove_dir_all(root.join("dir1")).unwrap();
            fs::hard_link(root.join("dir2/f2"), root.join("dir3/f2")).unwrap();
            fs::remove_file(root.join("dir2/f2")).unwrap();
        },
    ])
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn files_of_a_lower_layer_are_renamed() {
    layers_equal_a_folder(&[
        |root| {
            create(&root.join("somefiles"), 0o700);
            write(&root.join("somefiles/f1"), "was here first!", 0o644);
            write(&root.join("somefiles/f2"), "nothing interesting", 0o644);
        },
        |root| {
            write(&root.join("somefiles/f1-overwrite"), "new content 1", 0o644);
            fs::rename(
                root.join("somefiles/f1-overwrite"),
                root.join("somefiles/f1"),
            )
            .unwrap();
            fs::rename(root.join("somefiles/f2"), root.join("somefiles/f3")).unwrap();
        },
    ])
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_view_is_read_only() {
    let server = Server::start().await;
    server.layer("one", "", |_| {}).await;
    server.layer("two", "one", |_| {}).await;
    for name in ["one", "two"] {
        let view = server.viewed(name).await;
        let error = fs::File::create(view.path().join("testfile")).unwrap_err();
        assert_eq!(
            error.kind(),
            std::io::ErrorKind::ReadOnlyFilesystem,
            "{name}: {error}"
        );
    }
    let view = Mounted::new(&server.view("of-nothing", "").await.unwrap());
    let error = fs::File::create(view.path().join("testfile")).unwrap_err();
    assert_eq!(error.kind(), std::io::ErrorKind::ReadOnlyFilesystem);
}

#[tokio::test(flavor = "multi_thread")]
async fn the_root_of_a_snapshot_is_open_to_everyone() {
    let server = Server::start().await;
    let mounted = Mounted::new(&server.prepare("key", "").await.unwrap());
    assert_eq!(fs::metadata(mounted.path()).unwrap().mode() & 0o777, 0o755);
    drop(mounted);
    server.commit("one", "key").await.unwrap();
    let mounted = Mounted::new(&server.prepare("key", "one").await.unwrap());
    assert_eq!(fs::metadata(mounted.path()).unwrap().mode() & 0o777, 0o755);
}

#[tokio::test(flavor = "multi_thread")]
async fn the_owner_of_the_root_is_inherited_from_the_parent() {
    let server = Server::start().await;
    server
        .layer("one", "", |root| lchown(root, Some(12), Some(34)).unwrap())
        .await;
    server.layer("two", "one", |_| {}).await;
    let mounted = Mounted::new(&server.prepare("key", "two").await.unwrap());
    let root = fs::metadata(mounted.path()).unwrap();
    assert_eq!((root.uid(), root.gid()), (12, 34));
}

#[tokio::test(flavor = "multi_thread")]
async fn parents_of_128_layers_are_mounted() {
    let server = Server::start().await;
    let plain = tempfile::tempdir().unwrap();
    let mut parent = String::new();
    for number in 0..128 {
        let change = |root: &Path| {
            let only_me = root.join("onlyme");
            if number == 0 {
                write(&root.join("bottom"), "way at the bottom\n", 0o777);
                create(&root.join("addhere"), 0o755);
            } else {
                write(
                    &root.join(format!("addhere/file-{number}")),
                    "same\n",
                    0o755,
                );
                fs::remove_dir_all(&only_me).unwrap();
            }
            write(
                &root.join("overwriteme"),
                &format!("{number} WAS HERE!\n"),
                0o777,
            );
            create(&only_me, 0o755);
            write(&only_me.join(format!("file-{number}")), "only me!\n", 0o777);
        };
        change(plain.path());
        let name = format!("layer-{number}");
        server.layer(&name, &parent, change).await;
        parent = name;
    }
    let view = server.viewed(&parent).await;
    assert_eq!(tree(view.path()), tree(plain.path()));
}

#[tokio::test(flavor = "multi_thread")]
async fn usage_grows_with_what_is_written_and_stays_after_commit() {
    let server = Server::start().await;
    let mounted = Mounted::new(&server.prepare("key", "").await.unwrap());
    let empty = server.usage("key").await.unwrap();
    assert_eq!(empty.inodes, 1);
    let mut file = fs::File::create(mounted.path().join("file")).unwrap();
    file.write_all(&vec![7; 1 << 20]).unwrap();
    file.sync_all().unwrap();
    let full = server.usage("key").await.unwrap();
    assert_eq!(full.inodes, 2);
    assert!(full.size - empty.size >= 1 << 20, "{full:?}");
    drop(mounted);
    server.commit("one", "key").await.unwrap();
    assert_eq!(server.usage("one").await.unwrap(), full);
    server.view("view", "one").await.unwrap();
    let view = server.usage("view").await.unwrap();
    assert_eq!((view.size, view.inodes), (0, 0));
    assert_eq!(
        server.usage("nobody").await.unwrap_err().code(),
        tonic::Code::NotFound
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn labels_of_a_user_namespace_are_followed_once() {
    let server = Server::start().await;
    server
        .layer("base", "", |at| {
            write(&at.join("a"), "a", 0o644);
            lchown(at.join("a"), Some(5), Some(7)).unwrap();
        })
        .await;
    let map = |to: &str| {
        labels(&[
            ("containerd.io/snapshot/uidmapping", to),
            ("containerd.io/snapshot/gidmapping", to),
        ])
    };
    let mounts = server
        .prepare_with("container", "base", map("0:100000:65536"))
        .await
        .unwrap();
    let owner = |path: &Path| {
        let found = fs::metadata(path).unwrap();
        (found.uid(), found.gid())
    };
    let mounted = Mounted::new(&mounts);
    assert_eq!(owner(mounted.path()), (100_000, 100_000));
    assert_eq!(owner(&mounted.path().join("a")), (100_005, 100_007));
    // What is changed is copied with its owner.
    fs::set_permissions(mounted.path().join("a"), fs::Permissions::from_mode(0o600)).unwrap();
    assert_eq!(owner(&mounted.path().join("a")), (100_005, 100_007));
    drop(mounted);
    // A view of one snapshot is its copy alone.
    let view = server.view_with("seen", "base", map("0:7:1,1:200000:65535"));
    let view = Mounted::new(&view.await.unwrap());
    assert_eq!(owner(view.path()), (7, 7));
    assert_eq!(owner(&view.path().join("a")), (200_004, 200_006));
    drop(view);
    // A snapshot without a parent belongs to the container's root.
    let mounts_of_root = server.prepare_with("root", "", map("0:100000:65536")).await;
    let mounted = Mounted::new(&mounts_of_root.unwrap());
    assert_eq!(owner(mounted.path()), (100_000, 100_000));
    drop(mounted);
    // One label without the other is ignored.
    let one = labels(&[("containerd.io/snapshot/uidmapping", "0:100000:65536")]);
    let mounts_of_one = server.prepare_with("one", "base", one).await;
    let mounted = Mounted::new(&mounts_of_one.unwrap());
    assert_eq!(owner(mounted.path()), (0, 0));
    drop(mounted);
    // Mounts returns the same as Prepare.
    assert_eq!(server.mounts("container").await.unwrap(), mounts);

    // If containerd changes the owners itself, they are not mapped again.
    server.prepare("mapped-remap", "base").await.unwrap();
    server.commit("mapped", "mapped-remap").await.unwrap();
    let mounts = server
        .prepare_with("other", "mapped", map("0:100000:65536"))
        .await
        .unwrap();
    let mounted = Mounted::new(&mounts);
    assert_eq!(owner(&mounted.path().join("a")), (5, 7));

    for bad in ["", "1:2:3", "0:1:x", "0:1:10,5:20:10"] {
        let refused = server
            .prepare_with("bad", "base", map(bad))
            .await
            .unwrap_err();
        assert_eq!(refused.code(), tonic::Code::InvalidArgument, "{refused}");
        assert!(refused.message().contains("mapping"), "{refused}");
    }
}
