//! Before content is read: the probe, the mount, and the metadata of files.

use std::os::unix::fs::{FileTypeExt, MetadataExt};

use rustix::fs::{Mode, OFlags};
use rustix::process::{Gid, Uid};
use soci_erofs::Time;

use super::*;

#[test]
fn probe_takes_the_loop_way() {
    let world = World::new(layer(&[]));
    let state = world.place("state");
    let start = Instant::now();
    let chosen = wait(choose(Allowed::Auto, &state, &world.device, &world.thread)).unwrap();
    assert_eq!(chosen.way, Way::Loop, "{}", chosen.reason);
    assert!(chosen.xino, "{}", chosen.reason);
    let took = ms(start.elapsed());
    assert_eq!(world.table().under(&state).len(), 0);
    assert_eq!(std::fs::read_dir(&state).unwrap().count(), 0);
    answer(format!("in {took}"));
}

#[test]
fn probe_takes_the_loop_way_on_tmpfs_too() {
    let world = World::new(layer(&[]));
    let state = world.place("state");
    let flags = rustix::mount::MountFlags::empty();
    rustix::mount::mount("none", &state, "tmpfs", flags, None).unwrap();
    let chosen = wait(choose(Allowed::Auto, &state, &world.device, &world.thread));
    let left = world.table().under(&state).len();
    rustix::mount::unmount(&state, UnmountFlags::DETACH).unwrap();
    assert_eq!(chosen.unwrap().way, Way::Loop);
    assert_eq!(left, 1, "only the tmpfs is left");
}

#[test]
fn probe_of_the_file_way_leaves_nothing() {
    let world = World::new(layer(&[]));
    let state = world.place("state");
    let file = Allowed::Only(Way::File);
    match wait(choose(file, &state, &world.device, &world.thread)) {
        Ok(chosen) => {
            assert_eq!(chosen.way, Way::File);
            answer("it works");
        }
        Err(reason) => {
            assert!(reason.contains("mount mode file"), "{reason}");
            let cause = reason.rsplit(": ").next().unwrap_or_default();
            answer(format!("it does not work: {cause}"));
        }
    }
    assert_eq!(world.table().under(&state).len(), 0);
    assert_eq!(std::fs::read_dir(&state).unwrap().count(), 0);
}

#[test]
fn layers_are_attached_and_mounted() {
    let files = [("big", 3_000_001), ("empty", 0), ("one", 1), ("tail", 5000)];
    let world = World::new(layer(&files));
    world.serve_at_once();
    // Load the modules and create the first device before measuring.
    world.mount("first");
    let start = Instant::now();
    let image = LayerImage {
        patch: "other".to_owned(),
        ..world.on_demand()
    };
    let at = world.place("at");
    wait(world.mounter.mount(&image, &at)).unwrap();
    let took = start.elapsed();
    for (name, _) in files {
        let found = read_file(&at.join(name)).unwrap();
        assert!(found == world.layer.content(name), "{name}");
    }
    answer(format!("in {}", ms(took)));
}

const ACL: &str = "system.posix_acl_access";
const CAPABILITY: &str = "security.capability";
const LONG_VALUE: &str = "user.long";

/// rw- for the owner, r-- for user 1234 and the mask, --- for group and others (`posix_acl_xattr.h`).
const ACL_VALUE: &[u8] = b"\x02\0\0\0\
    \x01\0\x06\0\xff\xff\xff\xff\x02\0\x04\0\xd2\x04\0\0\x04\0\0\0\xff\xff\xff\xff\
    \x10\0\x04\0\xff\xff\xff\xff\x20\0\0\0\xff\xff\xff\xff";

/// CAP_NET_BIND_SERVICE, permitted and effective, revision 2.
const CAPABILITY_VALUE: &[u8] = b"\x01\0\0\x02\0\x04\0\0\0\0\0\0\0\0\0\0\0\0\0\0";

/// A layer with a file that has an ACL, and one node of each other kind.
fn decorated() -> Layer {
    let attributes = Attributes {
        mode: 0o4640,
        uid: 70_000,
        gid: 5,
        mtime: Time {
            secs: 1_000_000_007,
            nanos: 123_456_789,
        },
    };
    layer_with(&[("plain", 4096)], |image, _, plain| {
        let (size, data_block) = (4096, LEAD / BLOCK);
        let kind = Kind::Regular { size, data_block };
        let file = image.inode(&Inode { kind, attributes }).unwrap();
        image.set_xattr(file, ACL.as_bytes(), ACL_VALUE).unwrap();
        image
            .set_xattr(file, CAPABILITY.as_bytes(), CAPABILITY_VALUE)
            .unwrap();
        image
            .set_xattr(plain, LONG_VALUE.as_bytes(), &[b'x'; 2000])
            .unwrap();
        image.link(NodeId::ROOT, b"file", file).unwrap();
        image.link(NodeId::ROOT, b"linked", file).unwrap();
        let nodes = [
            (&b"link"[..], Kind::Symlink(b"file")),
            (b"whiteout", Kind::Char { major: 0, minor: 0 }),
            (
                b"device",
                Kind::Block {
                    major: 259,
                    minor: 300,
                },
            ),
            (b"fifo", Kind::Fifo),
            (b"socket", Kind::Socket),
        ];
        for (name, kind) in nodes {
            let node = image.inode(&Inode { kind, attributes }).unwrap();
            image.link(NodeId::ROOT, name, node).unwrap();
        }
    })
}

fn xattr(path: &Path, name: &str) -> Vec<u8> {
    let mut value = vec![0; 4096];
    let len = rustix::fs::lgetxattr(path, name, &mut value[..]).unwrap();
    value.truncate(len);
    value
}

#[test]
fn xattrs_acls_owners_and_nodes_are_those_of_the_image() {
    let world = World::new(decorated());
    world.serve_at_once();
    let at = world.mount("at");
    apart(move || {
        let stat = |name: &str| std::fs::symlink_metadata(at.join(name)).unwrap();
        let file = stat("file");
        assert_eq!((file.mode(), file.nlink()), (0o104_640, 2));
        assert_eq!((file.uid(), file.gid()), (70_000, 5));
        assert_eq!(
            (file.mtime(), file.mtime_nsec()),
            (1_000_000_007, 123_456_789)
        );
        assert_eq!(file.ino(), stat("linked").ino());
        assert_eq!(xattr(&at.join("file"), ACL), ACL_VALUE);
        assert_eq!(xattr(&at.join("file"), CAPABILITY), CAPABILITY_VALUE);
        assert_eq!(xattr(&at.join("plain"), LONG_VALUE), [b'x'; 2000]);
        assert_eq!(
            std::fs::read_link(at.join("link")).unwrap(),
            Path::new("file")
        );
        assert!(stat("whiteout").file_type().is_char_device());
        assert_eq!(stat("whiteout").rdev(), 0);
        assert!(stat("device").file_type().is_block_device());
        let number = stat("device").rdev();
        assert_eq!((libc::major(number), libc::minor(number)), (259, 300));
        assert!(stat("fifo").file_type().is_fifo());
        assert!(stat("socket").file_type().is_socket());
    });
}

#[test]
fn acls_are_heeded() {
    let world = World::new(decorated());
    world.serve_at_once();
    let at = world.mount("at");
    for (user, allowed) in [(1234, true), (1235, false)] {
        let at = at.clone();
        let opened = apart(move || {
            // The parents of the mount may be inaccessible to this user. The thread ends with the
            // job.
            let root = rustix::fs::open(&at, OFlags::PATH, Mode::empty())?;
            rustix::thread::set_thread_gid(Gid::from_raw(user))?;
            rustix::thread::set_thread_uid(Uid::from_raw(user))?;
            rustix::fs::openat(root, "file", OFlags::RDONLY, Mode::empty()).map(drop)
        });
        assert_eq!(opened.is_ok(), allowed, "user {user}: {opened:?}");
    }
}
