//! What an image cannot say is refused when it is put in.

use soci_erofs::format::{MAX_DEVICE_BLOCKS, MAX_XATTR_BODY};
use soci_erofs::{Attributes, Image, ImageError, Inode, Kind, NodeId, Reader, Time};

fn image() -> Image {
    Image::new(100, Attributes::default()).expect("image")
}

fn make(image: &mut Image, kind: Kind<'_>) -> Result<NodeId, ImageError> {
    image.inode(&Inode {
        kind,
        attributes: Attributes::default(),
    })
}

#[test]
fn names_that_no_directory_can_have() {
    let mut image = image();
    let node = make(&mut image, Kind::Fifo).expect("node");
    for name in [&b""[..], b".", b"..", b"a/b", b"a\0b", b"/"] {
        assert_eq!(
            image.link(NodeId::ROOT, name, node),
            Err(ImageError::BadName(name.to_vec()))
        );
    }
    assert_eq!(
        image.link(NodeId::ROOT, &[b'x'; 256], node),
        Err(ImageError::NameTooLong(256))
    );
    image
        .link(NodeId::ROOT, &[b'x'; 255], node)
        .expect("the longest name");
    assert_eq!(
        image.link(NodeId::ROOT, &[b'x'; 255], node),
        Err(ImageError::Duplicate(vec![b'x'; 255]))
    );
    assert_eq!(
        image.link(node, b"a", node),
        Err(ImageError::NotADirectory(b"a".to_vec()))
    );
}

#[test]
fn directories_have_one_name() {
    let mut image = image();
    let dir = make(&mut image, Kind::Directory).expect("node");
    image.link(NodeId::ROOT, b"a", dir).expect("link");
    let twice = |name: &[u8]| Err(ImageError::DirectoryLinkedTwice(name.to_vec()));
    assert_eq!(image.link(NodeId::ROOT, b"b", dir), twice(b"b"));
    assert_eq!(image.link(dir, b"b", dir), twice(b"b"));
    assert_eq!(image.link(dir, b"r", NodeId::ROOT), twice(b"r"));
    // After it was taken out it can be put elsewhere.
    assert_eq!(image.unlink(NodeId::ROOT, b"a"), Some(dir));
    image.link(NodeId::ROOT, b"b", dir).expect("link");
    assert_eq!(image.parent(dir), Some(NodeId::ROOT));
}

#[test]
fn symlink_targets_have_one_to_4095_bytes() {
    let mut image = image();
    assert_eq!(
        make(&mut image, Kind::Symlink(b"")),
        Err(ImageError::SymlinkLength(0))
    );
    assert_eq!(
        make(&mut image, Kind::Symlink(&[b'a'; 4096])),
        Err(ImageError::SymlinkLength(4096))
    );
    assert_eq!(
        make(&mut image, Kind::Symlink(b"a\0b")),
        Err(ImageError::SymlinkNul)
    );
    make(&mut image, Kind::Symlink(&[b'a'; 4095])).expect("the longest target");
}

#[test]
fn files_lie_inside_the_device() {
    let mut image = image();
    make(
        &mut image,
        Kind::Regular {
            size: 4096 * 100,
            data_block: 0,
        },
    )
    .expect("all of it");
    make(
        &mut image,
        Kind::Regular {
            size: 1,
            data_block: 99,
        },
    )
    .expect("the last block");
    make(
        &mut image,
        Kind::Regular {
            size: 0,
            data_block: u64::MAX,
        },
    )
    .expect("empty: nowhere");
    for (size, block) in [
        (4096 * 100 + 1, 0),
        (1, 100),
        (4097, 99),
        (u64::MAX, 1),
        (1, u64::MAX),
    ] {
        assert_eq!(
            make(
                &mut image,
                Kind::Regular {
                    size,
                    data_block: block
                }
            ),
            Err(ImageError::OutsideDevice {
                size,
                block,
                blocks: 100
            })
        );
    }
    let blocks = MAX_DEVICE_BLOCKS + 1;
    assert_eq!(
        Image::new(blocks, Attributes::default()).map(|_| ()),
        Err(ImageError::DeviceTooLarge(blocks))
    );
}

#[test]
fn device_numbers_and_times_fit() {
    let mut image = image();
    let number = |major, minor| Err(ImageError::DeviceNumber { major, minor });
    assert_eq!(
        make(
            &mut image,
            Kind::Char {
                major: 4096,
                minor: 0
            }
        ),
        number(4096, 0)
    );
    assert_eq!(
        make(
            &mut image,
            Kind::Block {
                major: 0,
                minor: 1 << 20
            }
        ),
        number(0, 1 << 20)
    );
    let mtime = Time {
        secs: 0,
        nanos: 1_000_000_000,
    };
    let attributes = Attributes {
        mtime,
        ..Attributes::default()
    };
    assert_eq!(
        image.set_attributes(NodeId::ROOT, attributes),
        Err(ImageError::BadTime(1_000_000_000))
    );
}

#[test]
fn attributes_that_no_inode_can_have() {
    let mut image = image();
    let root = NodeId::ROOT;
    for name in [
        &b"user."[..],
        b"user",
        b"lustre.x",
        b"system.x",
        b"",
        b"security.",
        b"user.a\0",
    ] {
        assert_eq!(
            image.set_xattr(root, name, b""),
            Err(ImageError::XattrName(name.to_vec())),
            "{name:?}"
        );
    }
    let long = [&b"user."[..], &[b'x'; 251]].concat();
    assert_eq!(
        image.set_xattr(root, &long, b""),
        Err(ImageError::XattrName(long.clone()))
    );
    image
        .set_xattr(root, &long[..255], b"v")
        .expect("the longest name");
    let too_large = |name: &[u8], value| {
        Err(ImageError::XattrTooLarge {
            name: name.to_vec(),
            value,
        })
    };
    assert_eq!(
        image.set_xattr(root, b"user.v", &[0; 1 << 16]),
        too_large(b"user.v", 1 << 16)
    );
    // Four of the largest values are too much together, and a refused one leaves nothing behind.
    for name in [b"user.1", b"user.2", b"user.3"] {
        image.set_xattr(root, name, &[1; 0xffff]).expect("fits");
    }
    assert_eq!(
        image.set_xattr(root, b"user.4", &[1; 0xffff]),
        too_large(b"user.4", 0xffff)
    );
    assert_eq!(image.xattr(root, b"user.4"), None);
    let used = 3 * (4 + 1 + 0xffff) + (4 + 250 + 1 + 1);
    let rest = MAX_XATTR_BODY - used - 5;
    image
        .set_xattr(root, b"user.4", &vec![1; rest])
        .expect("exactly full");

    let mut bytes = Vec::new();
    image.write(&mut bytes).expect("write");
    let reader = Reader::open(&bytes).expect("open");
    let stat = reader.stat(reader.root()).expect("root");
    let total: usize = reader
        .xattrs(&stat)
        .map(|xattr| xattr.expect("xattr").1.len())
        .sum();
    assert_eq!(total, 3 * 0xffff + rest + 1);
}

#[test]
fn attributes_can_be_replaced_and_taken_away() {
    let mut image = image();
    let root = NodeId::ROOT;
    for (name, value) in [
        (b"user.a", b"1"),
        (b"user.b", b"2"),
        (b"user.c", b"3"),
        (b"user.b", b"4"),
    ] {
        image.set_xattr(root, name, value).expect("set");
    }
    assert_eq!(image.xattr(root, b"user.b"), Some(&b"4"[..]));
    assert!(image.remove_xattr(root, b"user.b"));
    assert!(!image.remove_xattr(root, b"user.b"));
    let left: Vec<_> = image.xattrs(root).map(|(name, _)| name).collect();
    assert_eq!(left, [b"user.c", b"user.a"]);
}

#[test]
fn what_is_not_linked_is_not_written_and_link_counts_are_counted() {
    let mut image = image();
    let dir = make(&mut image, Kind::Directory).expect("dir");
    let file = make(
        &mut image,
        Kind::Regular {
            size: 1,
            data_block: 0,
        },
    )
    .expect("file");
    image.link(NodeId::ROOT, b"dir", dir).expect("link");
    image.link(dir, b"inside", file).expect("link");
    image.link(NodeId::ROOT, b"outside", file).expect("link");
    image.link(NodeId::ROOT, b"again", file).expect("link");
    image.unlink(NodeId::ROOT, b"again").expect("was there");
    image.unlink(NodeId::ROOT, b"dir").expect("was there");
    assert_eq!(image.child(NodeId::ROOT, b"dir"), None);
    let mut bytes = Vec::new();
    image.write(&mut bytes).expect("write");
    let reader = Reader::open(&bytes).expect("open");
    assert_eq!(reader.inode_count(), 2);
    let nid = reader
        .lookup(reader.root(), b"outside")
        .expect("lookup")
        .expect("there");
    assert_eq!(reader.stat(nid).expect("stat").nlink, 1);
    assert_eq!(reader.stat(reader.root()).expect("stat").nlink, 2);
}
