//! What containers see: overlays on layers, and layers with mapped owners.

use std::ffi::CString;
use std::io::{Seek, Write};
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::MetadataExt;

use rustix::mount::{MoveMountFlags, OpenTreeFlags};

use super::*;

/// A mount that is removed on drop.
struct Mounted(PathBuf);

impl Drop for Mounted {
    fn drop(&mut self) {
        let at = self.0.clone();
        let gone = apart(move || rustix::mount::unmount(&at, UnmountFlags::DETACH));
        if !std::thread::panicking() {
            gone.unwrap();
        }
    }
}

/// Mounts an overlay of the lower directories, writable if the world has the directories for it.
fn overlay(world: &World, name: &str, lower: &[&Path], options: &str) -> Mounted {
    let at = world.place(name);
    let mut text = b"lowerdir=".to_vec();
    text.extend(
        lower
            .iter()
            .map(|path| path.as_os_str().as_bytes())
            .collect::<Vec<_>>()
            .join(&b':'),
    );
    let (upper, work) = (
        world.place(&format!("{name}-upper")),
        world.place(&format!("{name}-work")),
    );
    for (option, path) in [(&b",upperdir="[..], upper), (b",workdir=", work)] {
        text.extend_from_slice(option);
        text.extend_from_slice(path.as_os_str().as_bytes());
    }
    text.extend_from_slice(options.as_bytes());
    let (text, place) = (CString::new(text).unwrap(), at.clone());
    let flags = rustix::mount::MountFlags::empty();
    apart(move || rustix::mount::mount("overlay", place, "overlay", flags, text.as_c_str()))
        .unwrap();
    Mounted(at)
}

/// Two layers, each with its own file. The second metadata image is stored next to the first.
fn two_layers() -> (World, PathBuf, PathBuf) {
    let world = World::new(layer(&[("file", 1 << 20)]));
    world.serve_at_once();
    std::fs::write(world.path("second.meta"), layer(&[("other", 1 << 20)]).meta).unwrap();
    let first = world.mount("first");
    let second = world.place("second");
    let image = LayerImage {
        meta: world.path("second.meta"),
        patch: "second".to_owned(),
        ..world.on_demand()
    };
    wait(world.mounter.mount(&image, &second)).unwrap();
    (world, first, second)
}

#[test]
fn overlay_with_xino_is_one_device_and_keeps_inodes() {
    let (world, first, second) = two_layers();
    let merged = overlay(&world, "merged", &[&first, &second], ",xino=on");
    let at = merged.0.clone();
    apart(move || {
        let stat = |name: &str| {
            let found = std::fs::symlink_metadata(at.join(name)).unwrap();
            (found.dev(), found.ino())
        };
        let root = stat("");
        let (file, other) = (stat("file"), stat("other"));
        assert_eq!((file.0, other.0), (root.0, root.0), "st_dev");
        assert_ne!(file.1, other.1, "st_ino");
        let mut opened = File::options().append(true).open(at.join("file")).unwrap();
        opened.write_all(b"more").unwrap();
        assert_eq!(opened.stream_position().unwrap(), (1 << 20) + 4);
        assert_eq!(stat("file"), file, "after copy-up");
        std::fs::create_dir(at.join("new")).unwrap();
        assert_eq!(stat("new").0, root.0);
    });
}

#[test]
fn overlay_on_an_overlay_and_o_direct_through_it() {
    let (world, first, second) = two_layers();
    let merged = overlay(&world, "merged", &[&first, &second], ",xino=on");
    let inner = overlay(&world, "inner", &[&merged.0, &second], "");
    let (at, content) = (inner.0.clone(), world.layer.content("file"));
    apart(move || {
        let mut block = Aligned::new(1 << 20);
        let file = open_direct(&at.join("file")).unwrap();
        file.read_exact_at(block.bytes(), 0).unwrap();
        assert!(block.bytes()[..] == content[..]);
        assert!(std::fs::read(at.join("other")).unwrap() == content);
    });
}

/// A user namespace that maps user 0 to user 100,000. Its process ends on drop.
struct Users(Child);

impl Users {
    fn new() -> Users {
        let child = Command::new("unshare").args(["-U", "sleep", "600"]).spawn();
        let users = Users(child.unwrap());
        let ours = std::fs::read_link("/proc/self/ns/user").unwrap();
        until(|| std::fs::read_link(users.path("ns/user")).is_ok_and(|theirs| theirs != ours));
        for map in ["uid_map", "gid_map"] {
            std::fs::write(users.path(map), "0 100000 65536").unwrap();
        }
        users
    }

    fn path(&self, name: &str) -> PathBuf {
        PathBuf::from(format!("/proc/{}/{name}", self.0.id()))
    }
}

impl Drop for Users {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// A copy of the mount at `from` whose owners are mapped by `users`.
fn idmapped(from: &Path, users: &File) -> std::io::Result<OwnedFd> {
    let flags = OpenTreeFlags::OPEN_TREE_CLONE | OpenTreeFlags::OPEN_TREE_CLOEXEC;
    let tree = rustix::mount::open_tree(rustix::fs::CWD, from, flags)?;
    set_users(tree.as_fd(), users)?;
    Ok(tree)
}

#[allow(unsafe_code, reason = "mount_setattr has no safe wrapper")]
fn set_users(tree: BorrowedFd<'_>, users: &File) -> std::io::Result<()> {
    let attributes = libc::mount_attr {
        attr_set: libc::MOUNT_ATTR_IDMAP,
        attr_clr: 0,
        propagation: 0,
        userns_fd: u64::from(users.as_raw_fd().cast_unsigned()),
    };
    // SAFETY: both descriptors are open, the path is a C string, and the structure lives for the
    // call.
    let result = unsafe {
        libc::syscall(
            libc::SYS_mount_setattr,
            tree.as_raw_fd(),
            c"".as_ptr(),
            libc::AT_EMPTY_PATH,
            std::ptr::from_ref(&attributes),
            size_of::<libc::mount_attr>(),
        )
    };
    if result == 0 {
        Ok(())
    } else {
        Err(std::io::Error::last_os_error())
    }
}

#[test]
fn layer_is_mounted_with_other_owners_and_so_is_an_overlay_on_it() {
    let (world, first, second) = two_layers();
    let users = Users::new();
    let namespace = users.path("ns/user");
    let mapped = world.place("mapped");
    let at = mapped.clone();
    apart(move || {
        let namespace = File::open(namespace).unwrap();
        let tree = idmapped(&first, &namespace).unwrap();
        let flags = MoveMountFlags::MOVE_MOUNT_F_EMPTY_PATH;
        rustix::mount::move_mount(tree, "", rustix::fs::CWD, &at, flags).unwrap();
    });
    let mapped = Mounted(mapped);
    let merged = overlay(&world, "merged", &[&mapped.0, &second], "");
    let (plain, overlaid) = (mapped.0.join("file"), merged.0.join("file"));
    let content = world.layer.content("file");
    apart(move || {
        for path in [plain, overlaid] {
            let found = std::fs::metadata(&path).unwrap();
            assert_eq!((found.uid(), found.gid()), (100_000, 100_000), "{path:?}");
            assert!(std::fs::read(path).unwrap() == content);
        }
    });
}
