//! Attributes from lower layers.

use super::*;

fn below(entries: &[Made]) -> Vec<u8> {
    let mut bytes = Vec::new();
    base(entries).image().write(&mut bytes).expect("write");
    bytes
}

#[test]
fn implied_directories_take_attributes_from_the_nearest_layer() {
    let far = below(&[
        dir("d").mode(0o1777).owner(9, 9),
        dir("only").mode(0o700).mtime("7"),
    ]);
    let near = below(&[
        dir("real")
            .mode(0o2750)
            .owner(5, 6)
            .xattr("user.x", "1")
            .xattr(DEFAULT, named_acl(7, 7, 0)),
        symlink("d", "real"),
        file("file", 1),
    ]);
    let layers = [&near, &far].map(|image| Below::Image(Reader::open(image).expect("open")));
    let entries = [
        file("d/f", 1),
        file("only/f", 1),
        file("file/f", 1),
        file("new/f", 1),
    ];
    let tree = above(&entries);
    let patch = tree
        .settle(|path| Lower::nearest(&layers, path))
        .expect("settled");
    assert!(!patch.is_plain());

    let tree = build(&entries, &patch).expect("unpacks");
    assert_eq!(
        (tree.at("d").mode(), tree.at("d").owner()),
        (0o2750, (5, 6))
    );
    assert_eq!(tree.at("d").xattr_names(), [DEFAULT, "user.x"]);
    assert_eq!(tree.at("d/f").owner(), (0, 0), "the entry says 0:0");
    assert!(
        tree.at("d/f").xattr(ACCESS).is_some(),
        "inherits the default list"
    );
    assert_eq!(
        (tree.at("only").mode(), tree.at("only").time()),
        (0o700, (7, 0))
    );
    assert_eq!(
        tree.at("file").mode(),
        0o755,
        "something else ends the search"
    );
    assert_eq!(tree.at("new").mode(), 0o755);
}

#[test]
fn overlayfs_markers_are_not_taken_from_lower_layers() {
    let mut bytes = Vec::new();
    above(&[dir("d"), file("d/.wh..wh..opq", 0)])
        .image()
        .write(&mut bytes)
        .expect("write");
    let reader = Reader::open(&bytes).expect("open");
    let Lower::Directory(directory) = lookup_in_image(&reader, b"d").expect("exists") else {
        panic!("a directory");
    };
    assert_eq!(directory.xattrs, []);
    let whiteout = {
        let mut bytes = Vec::new();
        above(&[file(".wh.w", 0)])
            .image()
            .write(&mut bytes)
            .expect("write");
        bytes
    };
    let reader = Reader::open(&whiteout).expect("open");
    assert_eq!(
        lookup_in_image(&reader, b"w").expect("exists"),
        Lower::Other
    );
    assert_eq!(
        lookup_in_image(&reader, b"x").expect("nothing"),
        Lower::Absent
    );
    assert!(matches!(
        lookup_in_image(&reader, b"w/x"),
        Err(LowerError::NotADirectory(_))
    ));
}

#[test]
fn lookups_in_a_directory_and_in_an_image_agree() {
    use std::os::unix::fs::{PermissionsExt, symlink};
    let folder = tempfile::tempdir().expect("directory");
    let root = folder.path();
    std::fs::create_dir_all(root.join("real/inside")).expect("mkdir");
    std::fs::set_permissions(root.join("real/inside"), PermissionsExt::from_mode(0o1750))
        .expect("chmod");
    symlink("/real", root.join("abs")).expect("link");
    symlink("../../../real", root.join("up")).expect("link");
    symlink("loop", root.join("loop")).expect("link");
    std::fs::write(root.join("file"), "x").expect("write");
    rustix::fs::setxattr(
        root.join("real/inside"),
        "user.x",
        b"1",
        rustix::fs::XattrFlags::empty(),
    )
    .expect("setxattr");

    let root = std::fs::File::open(root).expect("open");
    for path in ["real/inside", "abs/inside", "up/inside"] {
        let Lower::Directory(found) = lookup_in_directory(&root, path.as_bytes()).expect(path)
        else {
            panic!("{path} is a directory");
        };
        assert_eq!(found.attributes.mode, 0o1750);
        assert_eq!(found.xattrs, [(b"user.x".to_vec(), b"1".to_vec())]);
    }
    assert_eq!(
        lookup_in_directory(&root, b"file").expect("file"),
        Lower::Other
    );
    assert_eq!(
        lookup_in_directory(&root, b"none/x").expect("none"),
        Lower::Absent
    );
    assert!(matches!(
        lookup_in_directory(&root, b"file/x"),
        Err(LowerError::NotADirectory(_))
    ));
    assert!(matches!(
        lookup_in_directory(&root, b"loop"),
        Err(LowerError::Links(_))
    ));
}
