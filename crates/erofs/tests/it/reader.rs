//! The reader sees what was written, and survives bytes of any content.

use std::collections::BTreeMap;

use proptest::prelude::*;
use soci_erofs::format::{S_IFBLK, S_IFCHR, S_IFDIR, S_IFIFO, S_IFLNK, S_IFREG};
use soci_erofs::{Image, Nid, ReadError, Reader};

use crate::trees::{Content, Taste, Tree, tree};

fn written(image: &Image) -> Vec<u8> {
    let mut bytes = Vec::new();
    let len = image.write(&mut bytes).expect("write");
    assert_eq!((len, len % 4096), (bytes.len() as u64, 0));
    bytes
}

/// Walks an image to its end; an error stops it.
fn walk(reader: &Reader<'_>) -> Result<BTreeMap<Vec<u8>, Nid>, ReadError> {
    let mut found = BTreeMap::from([(Vec::new(), reader.root())]);
    let mut todo = vec![(Vec::new(), reader.root())];
    // Damaged images may have directories in a circle.
    while let Some((path, dir)) = todo.pop().filter(|_| found.len() < 10_000) {
        for entry in reader.read_dir(dir) {
            let entry = entry?;
            let path = [&path, b"/".as_slice(), entry.name].concat();
            let stat = reader.stat(entry.nid)?;
            if stat.is_dir() {
                todo.push((path.clone(), entry.nid));
            }
            found.insert(path, entry.nid);
        }
    }
    Ok(found)
}

fn check(tree: &Tree, reader: &Reader<'_>, device: &[u8]) -> Result<(), ReadError> {
    let found = walk(reader)?;
    assert!(found.keys().eq(tree.paths.keys()));
    let distinct: std::collections::BTreeSet<_> = found.values().collect();
    assert_eq!(reader.inode_count(), distinct.len() as u64);

    for (path, &nid) in &found {
        let number = tree.paths[path];
        let thing = &tree.things[number];
        let stat = reader.stat(nid)?;
        assert_eq!(stat.attributes, thing.attributes);
        if let Some(slash) = path.iter().rposition(|&byte| byte == b'/') {
            let (parent, name) = (found[&path[..slash]], &path[slash + 1..]);
            assert_eq!(reader.lookup(parent, name)?, Some(nid));
            assert_eq!(reader.lookup(parent, &[name, b"\xff"].concat())?, None);
            if stat.is_dir() {
                assert_eq!(reader.lookup(nid, b"..")?, Some(parent));
            }
        }
        let xattrs: BTreeMap<_, _> = reader
            .xattrs(&stat)
            .map(|xattr| xattr.expect("xattr"))
            .collect();
        assert_eq!(xattrs.len(), thing.xattrs.len());
        assert!(
            xattrs
                .iter()
                .all(|(name, value)| thing.xattrs[name] == *value)
        );
        let expected_type = match &thing.content {
            Content::File(bytes) => {
                let mut read = Vec::new();
                for extent in reader.extents(&stat)? {
                    assert_eq!(extent.offset, read.len() as u64);
                    let at = extent.block as usize * 4096;
                    read.extend_from_slice(&device[at..at + extent.len as usize]);
                }
                assert!(read == *bytes);
                S_IFREG
            }
            Content::Directory => S_IFDIR,
            Content::Symlink(target) => {
                assert_eq!(reader.symlink_target(&stat)?, target);
                S_IFLNK
            }
            Content::Char(major, minor) => {
                assert_eq!(stat.device, (*major, *minor));
                S_IFCHR
            }
            Content::Block(major, minor) => {
                assert_eq!(stat.device, (*major, *minor));
                S_IFBLK
            }
            Content::Fifo => S_IFIFO,
        };
        assert_eq!(stat.file_type, expected_type);
        if !stat.is_dir() {
            assert_eq!(stat.nlink as usize, tree.links(number));
        }
    }
    Ok(())
}

/// Asks everything there is to ask; only its end counts.
fn ask_everything(bytes: &[u8]) {
    let Ok(reader) = Reader::open(bytes) else {
        return;
    };
    let Ok(found) = walk(&reader) else { return };
    for &nid in found.values() {
        let Ok(stat) = reader.stat(nid) else { continue };
        drop((
            reader.symlink_target(&stat),
            reader.extents(&stat),
            reader.lookup(nid, b"m"),
        ));
        assert!(reader.xattrs(&stat).count() <= bytes.len());
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 96, ..ProptestConfig::default() })]

    #[test]
    fn prop_the_reader_sees_the_tree_that_was_written(
        tree in tree(Taste { any_bytes: true, max_things: 200 })
    ) {
        let (image, device) = tree.image();
        let bytes = written(&image);
        prop_assert!(bytes == written(&image), "the same tree gives the same bytes");
        let reader = Reader::open(&bytes).expect("open");
        prop_assert_eq!(reader.uuid(), [7; 16]);
        check(&tree, &reader, &device).expect("an image of our own");
    }

    #[test]
    fn prop_damaged_images_give_errors_and_no_panics(
        tree in tree(Taste { any_bytes: true, max_things: 60 }),
        damage in prop::collection::vec((any::<prop::sample::Index>(), any::<u8>()), 1..40),
        keep in any::<prop::sample::Index>(),
    ) {
        let mut bytes = written(&tree.image().0);
        for (at, value) in damage {
            // Mostly where it hurts: the head and the inodes.
            let at = at.index(bytes.len());
            bytes[at] ^= value;
        }
        ask_everything(&bytes);
        ask_everything(&bytes[..keep.index(bytes.len())]);
    }
}

#[test]
fn other_images_are_refused() {
    assert!(matches!(
        Reader::open(&[]),
        Err(ReadError::OutOfBounds { .. })
    ));
    let zeros = vec![0; 8192];
    assert_eq!(
        Reader::open(&zeros).map(|_| ()),
        Err(ReadError::Superblock("not an EROFS image"))
    );
}
