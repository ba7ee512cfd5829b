use std::collections::{BTreeMap, BTreeSet};

use proptest::prelude::*;

use super::*;
use soci_oci::descriptor::Annotations;
use soci_oci::json;

/// Documents by digest, without a store.
#[derive(Default)]
struct Images(BTreeMap<Digest, Vec<u8>>);

impl Images {
    fn put(&mut self, media_type: &str, bytes: Vec<u8>) -> Descriptor {
        let descriptor = Descriptor::of(media_type, &bytes);
        self.0.insert(descriptor.digest, bytes);
        descriptor
    }

    /// An index of these members. The note makes it different from others.
    fn index(&mut self, note: impl ToString, members: &[&Descriptor]) -> Descriptor {
        let mut index = ImageIndex::new(members.iter().map(|&it| it.clone()).collect());
        index.annotations = Annotations::from([("note".to_owned(), note.to_string())]);
        self.put(media_type::OCI_INDEX, json::to_vec(&index))
    }

    fn manifest(&mut self, layers: Vec<Descriptor>) -> Descriptor {
        let manifest = Manifest {
            schema_version: 2,
            media_type: media_type::OCI_MANIFEST.to_owned(),
            artifact_type: String::new(),
            config: Descriptor::of(media_type::OCI_CONFIG, b"{}"),
            layers: Some(layers),
            subject: None,
            annotations: Annotations::new(),
        };
        self.put(media_type::OCI_MANIFEST, json::to_vec(&manifest))
    }

    /// A chain of indexes around `inner`.
    fn around(&mut self, inner: &Descriptor, indexes: usize) -> Descriptor {
        (0..indexes).fold(inner.clone(), |inner, number| self.index(number, &[&inner]))
    }

    fn visit(&self, root: &Descriptor, limits: Limits) -> Result<Visited, ReachableError> {
        let mut visited = Visited::default();
        let mut traversal = Traversal::new(root.digest, root, limits);
        while let Some(document) = traversal.next_document() {
            let Some(bytes) = self.0.get(&document.descriptor.digest) else {
                visited.missing.push(document.descriptor.digest);
                continue;
            };
            let blobs = traversal.enter(&document, bytes)?;
            visited.blobs.extend(blobs);
            visited.documents.push(document.descriptor.digest);
        }
        visited.depths = traversal.depths();
        Ok(visited)
    }

    fn visited(&self, root: &Descriptor) -> Visited {
        self.visit(root, Limits::KEPT).unwrap()
    }
}

#[derive(Debug, Default)]
struct Visited {
    documents: Vec<Digest>,
    missing: Vec<Digest>,
    blobs: Vec<Descriptor>,
    depths: HashMap<Digest, usize>,
}

#[test]
fn a_document_at_two_depths_is_visited_once_and_written_before_both() {
    let mut images = Images::default();
    let leaf = images.manifest(Vec::new());
    let shared = images.index("shared", &[&leaf]);
    let between = images.index("between", &[&shared]);
    for members in [[&shared, &between], [&between, &shared]] {
        let root = images.index("root", &members);
        let visited = images.visited(&root);
        assert_eq!(visited.documents.len(), 4);
        let depth = |it: &Descriptor| visited.depths[&it.digest];
        assert_eq!([&root, &between, &shared, &leaf].map(depth), [0, 1, 2, 3]);
    }
}

#[test]
fn the_shortest_path_counts_for_the_limit_on_depth() {
    let mut images = Images::default();
    let leaf = images.index("leaf", &[]);
    let deepest = images.around(&leaf, MAX_DEPTH);
    assert_eq!(images.visited(&deepest).documents.len(), MAX_DEPTH + 1);
    let too_deep = images.index("root", &[&deepest]);
    let error = images.visit(&too_deep, Limits::KEPT).unwrap_err();
    let ReachableError::Store(StoreError::TooDeep(digest)) = error else {
        panic!("{error}");
    };
    assert_eq!(digest, leaf.digest);
    for members in [[&deepest, &leaf], [&leaf, &deepest]] {
        let root = images.index("root", &members);
        let visited = images.visited(&root);
        assert_eq!(visited.depths[&leaf.digest], MAX_DEPTH + 1);
    }
}

#[test]
fn what_is_not_entered_counts_for_no_limit_but_the_number() {
    let mut images = Images::default();
    let absent = Descriptor::of(media_type::OCI_MANIFEST, b"absent");
    let root = images.around(&absent, MAX_DEPTH + 1);
    let visited = images.visited(&root);
    assert_eq!(visited.missing, [absent.digest]);
    assert_eq!(visited.documents.len(), MAX_DEPTH + 1);
}

#[test]
fn documents_are_limited_in_number_and_in_bytes() {
    let mut images = Images::default();
    let members: Vec<Descriptor> = (0..9).map(|it| images.index(it, &[])).collect();
    let root = images.index("root", &members.iter().collect::<Vec<_>>());
    let bytes = images.0.values().map(|bytes| bytes.len() as u64).sum();
    let exact = Limits {
        depth: 1,
        documents: 10,
        bytes,
    };
    assert_eq!(images.visit(&root, exact).unwrap().documents.len(), 10);
    let fewer = Limits {
        documents: 9,
        ..exact
    };
    let error = images.visit(&root, fewer).unwrap_err();
    assert_eq!(
        error.to_string(),
        "an image with more than 9 manifests and indexes"
    );
    let smaller = Limits {
        bytes: bytes - 1,
        ..exact
    };
    let error = images.visit(&root, smaller).unwrap_err();
    let ReachableError::Store(StoreError::TooManyDocuments { image, limit }) = error else {
        panic!("{error}");
    };
    assert_eq!((image, limit), (root.digest, bytes - 1));
}

#[test]
fn the_role_decides_what_is_a_document() {
    let mut images = Images::default();
    let inner = images.manifest(Vec::new());
    let foreign = Descriptor {
        urls: vec!["https://elsewhere/".to_owned()],
        ..Descriptor::of(media_type::DOCKER_FOREIGN_LAYER_GZIP, b"foreign")
    };
    let layers = vec![foreign.clone(), inner.clone()];
    let manifest = images.manifest(layers);
    let other = Descriptor::of("application/octet-stream", b"other");
    let root = images.index("root", &[&other, &manifest]);
    let visited = images.visited(&root);
    assert_eq!(visited.documents, [root.digest, manifest.digest]);
    let config = Descriptor::of(media_type::OCI_CONFIG, b"{}");
    assert_eq!(visited.blobs, [other, config, foreign, inner]);
}

#[test]
fn invalid_documents_are_named() {
    let mut images = Images::default();
    let index = images.index("", &[]);
    let disguised = Descriptor {
        media_type: media_type::OCI_MANIFEST.to_owned(),
        ..index
    };
    let text = images.put(media_type::OCI_MANIFEST, b"no json".to_vec());
    for broken in [disguised, text] {
        let root = images.index("root", &[&broken]);
        let error = images.visit(&root, Limits::KEPT).unwrap_err();
        assert!(
            matches!(error, ReachableError::Document { digest, .. } if digest == broken.digest),
            "{error:?}"
        );
    }
}

#[test]
fn thousands_of_paths_to_a_document_are_visited_as_one() {
    let mut images = Images::default();
    let mut level = vec![images.index("leaf", &[])];
    for depth in 1..=MAX_DEPTH {
        let members: Vec<Descriptor> = level.clone();
        let members: Vec<&Descriptor> = members.iter().collect();
        let index = |number| images.index(format!("{depth} {number}"), &members);
        level = (0..100).map(index).collect();
    }
    let visited = images.visited(&level[0]);
    assert_eq!(visited.documents.len(), 2 + 100 * (MAX_DEPTH - 1));
}

/// For each index, the earlier indexes that are its members. The first one is missing.
fn members() -> impl Strategy<Value = Vec<Vec<prop::sample::Index>>> {
    prop::collection::vec(
        prop::collection::vec(any::<prop::sample::Index>(), 0..4),
        1..12,
    )
}

proptest! {
    /// Every document on some path is visited once, and is deeper than all that refer to it.
    #[test]
    fn prop_every_document_is_visited_once_and_below_its_parents(graph in members()) {
        let mut images = Images::default();
        let mut all = vec![Descriptor::of(media_type::OCI_INDEX, b"missing")];
        let mut parents: Vec<(Digest, Digest)> = Vec::new();
        for (number, members) in graph.iter().enumerate() {
            let members: Vec<&Descriptor> = members.iter().map(|it| it.get(&all)).collect();
            let index = images.index(number, &members);
            parents.extend(members.iter().map(|member| (index.digest, member.digest)));
            all.push(index);
        }
        let root = all.last().unwrap();
        let limits = Limits { depth: all.len(), ..Limits::KEPT };
        let visited = images.visit(root, limits).unwrap();
        let mut expected = BTreeSet::from([root.digest]);
        // Members come before their parents in the list, so one pass from its end is enough.
        for (parent, member) in parents.iter().rev() {
            if expected.contains(parent) {
                expected.insert(*member);
                prop_assert!(visited.depths[parent] < visited.depths[member]);
            }
        }
        let mut returned = visited.documents.clone();
        returned.extend(&visited.missing);
        prop_assert_eq!(returned.len(), expected.len());
        prop_assert_eq!(returned.into_iter().collect::<BTreeSet<_>>(), expected);
    }
}
