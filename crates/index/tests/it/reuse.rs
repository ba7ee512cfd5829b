//! Existing zTOCs: which ones are reused, and how the others are handled.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use async_trait::async_trait;
use soci_index::artifacts::{Entry, Kind};
use soci_index::{
    Artifacts, BuildContext, ConvertOptions, Converted, KnownError, Outcome, Platforms,
    RecordedZtocs, ZTOC_MEDIA_TYPE, ZtocSource, convert,
};
use soci_oci::{Descriptor, media_type};
use soci_store::{Blob, StoreError};

use crate::image::{Images, build_options, tar};

fn options() -> ConvertOptions {
    ConvertOptions {
        platforms: Platforms::All,
        build: build_options(),
        allow_empty: false,
    }
}

/// Claims these zTOCs for every layer.
#[derive(Debug)]
struct Claims {
    images: Images,
    ztocs: Vec<Descriptor>,
    opened: AtomicUsize,
}

#[async_trait]
impl ZtocSource for Claims {
    async fn candidates(&self, _: &Descriptor, _: u64) -> Result<Vec<Descriptor>, KnownError> {
        if self.ztocs.is_empty() {
            return Err("the registry is away".into());
        }
        Ok(self.ztocs.clone())
    }

    async fn open(&self, ztoc: &Descriptor) -> Result<Blob, StoreError> {
        self.opened.fetch_add(1, Ordering::Relaxed);
        self.images.store.open(&ztoc.digest).await
    }
}

fn outcome(converted: &Converted, layer: usize) -> &Outcome {
    &converted.platforms[0].parts.layers[layer].outcome
}

async fn one_layer(images: &Images, name: &str) -> Descriptor {
    let layers = vec![images.layer(name).await];
    images.manifest("linux/amd64", layers).await
}

/// The zTOC of a layer with one file, built separately in another store.
async fn made_elsewhere(name: &str, span_size: u64) -> (Images, Descriptor) {
    let images = Images::new();
    let target = one_layer(&images, name).await;
    let mut options = options();
    options.build.span_size = span_size;
    let converted = convert(&images.context(), &target, &options).await.unwrap();
    let ztoc = converted.platforms[0].parts.layers[0].ztoc().unwrap();
    let ztoc = Descriptor::new(ZTOC_MEDIA_TYPE, ztoc.digest, ztoc.size);
    (images, ztoc)
}

async fn with_claims(images: Images, ztocs: Vec<Descriptor>) -> (Outcome, Vec<String>, usize) {
    let here = Images::new();
    let target = one_layer(&here, "a").await;
    let claims = Arc::new(Claims {
        images,
        ztocs,
        opened: AtomicUsize::new(0),
    });
    let context = BuildContext {
        known: vec![claims.clone()],
        ..here.context()
    };
    let converted = convert(&context, &target, &options()).await.unwrap();
    let ztoc = converted.platforms[0].parts.layers[0].ztoc().unwrap();
    // However the zTOC was obtained, it is in the store now.
    assert_eq!(
        here.store.size(&ztoc.digest).await.unwrap(),
        Some(ztoc.size)
    );
    let opened = claims.opened.load(Ordering::Relaxed);
    (outcome(&converted, 0).clone(), here.notes(), opened)
}

const SPAN: u64 = 4 << 20;

#[tokio::test(flavor = "multi_thread")]
async fn a_ztoc_that_fits_is_taken_over_without_reading_the_layer() {
    let (images, ztoc) = made_elsewhere("a", SPAN).await;
    let (outcome, notes, _) = with_claims(images, vec![ztoc.clone()]).await;
    assert!(matches!(&outcome, Outcome::Reused(it) if it.digest == ztoc.digest));
    assert_eq!(notes.len(), 1);
    assert!(notes[0].ends_with("(already exists)"), "{notes:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn what_does_not_fit_is_built_anew_and_told() {
    let (images, ztoc) = made_elsewhere("a", 65536).await;
    let (outcome, notes, _) = with_claims(images, vec![ztoc]).await;
    assert!(matches!(outcome, Outcome::Built(_)), "{notes:?}");
    let reason = "its span size is 65536, not 4194304";
    assert!(
        notes[0].contains("built again") && notes[0].ends_with(reason),
        "{notes:?}"
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn a_ztoc_of_a_layer_of_another_size_does_not_fit() {
    let images = Images::new();
    let mut large = tar("a", b"content");
    large.extend([0; 512]);
    let layer = images.put(media_type::OCI_LAYER, large).await;
    let target = images.manifest("linux/amd64", vec![layer]).await;
    let converted = convert(&images.context(), &target, &options())
        .await
        .unwrap();
    let ztoc = converted.platforms[0].parts.layers[0]
        .ztoc()
        .unwrap()
        .clone();
    let (outcome, notes, _) = with_claims(images, vec![ztoc]).await;
    assert!(matches!(outcome, Outcome::Built(_)));
    let reason = "it is of a layer of 2560 bytes, not 2048";
    assert!(notes[0].ends_with(reason), "{notes:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn candidates_are_tried_in_order_and_missing_ones_are_no_news() {
    let (images, good) = made_elsewhere("a", SPAN).await;
    let garbage = images.put(ZTOC_MEDIA_TYPE, "no ztoc").await;
    let missing = Descriptor::of(ZTOC_MEDIA_TYPE, b"missing");
    let lied = Descriptor {
        size: good.size + 1,
        ..good.clone()
    };
    let ztocs = vec![missing.clone(), garbage.clone(), lied, good.clone()];
    let (outcome, notes, opened) = with_claims(images, ztocs).await;
    assert!(matches!(outcome, Outcome::Reused(_)));
    assert_eq!(opened, 4);
    assert_eq!(notes.len(), 3, "{notes:?}");
    assert!(notes[0].contains(&format!("ztoc {}: cannot unmarshal ztoc", garbage.digest)));
    assert!(notes[1].contains("bytes, expected"), "{notes:?}");

    // A very long list is not followed to its end.
    let (outcome, _, opened) = with_claims(Images::new(), vec![missing; 100]).await;
    assert!(matches!(outcome, Outcome::Built(_)));
    assert_eq!(opened, 4);
}

#[tokio::test(flavor = "multi_thread")]
async fn nobody_who_can_say_is_a_warning() {
    let (outcome, notes, _) = with_claims(Images::new(), Vec::new()).await;
    assert!(matches!(outcome, Outcome::Built(_)));
    assert!(notes[0].ends_with("the registry is away"), "{notes:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn what_was_recorded_is_taken_over_unless_it_is_gone_or_something_else() {
    let root = tempfile::tempdir().unwrap();
    let records = Artifacts::at(root.path());
    let images = Images::new();
    let target = one_layer(&images, "a").await;
    let context = || BuildContext {
        known: vec![Arc::new(RecordedZtocs::new(
            records.clone(),
            images.store.clone(),
        ))],
        records: Some(records.clone()),
        ..images.context()
    };
    let first = convert(&context(), &target, &options()).await.unwrap();
    assert!(matches!(outcome(&first, 0), Outcome::Built(_)));
    let second = convert(&context(), &target, &options()).await.unwrap();
    assert!(matches!(outcome(&second, 0), Outcome::Reused(_)));
    assert_eq!(first.image, second.image);

    let all = records.all().unwrap();
    let of_kind = |kind| all.iter().find(|entry| entry.kind == kind).unwrap();
    let (ztoc, index) = (of_kind(Kind::Layer), of_kind(Kind::Index));
    assert_eq!((all.len(), ztoc.span_size), (2, SPAN));
    assert_eq!(
        (&ztoc.location, &ztoc.location),
        (&ztoc.oci_digest, &ztoc.oci_digest)
    );
    assert_eq!(index.location, target.digest.to_string());
    assert_eq!(index.image_digest, first.image.digest.to_string());
    let bound = first.platforms[0].index.as_ref().unwrap();
    assert_eq!(index.oci_digest, bound.manifest.to_string());
    assert_eq!(index.platform, "linux/amd64");

    // A record that rebuild-db created may describe a pulled zTOC.
    let found = Entry {
        is_found: true,
        ..ztoc.clone()
    };
    records.put(&[found]).unwrap();
    let again = convert(&context(), &target, &options()).await.unwrap();
    assert!(matches!(outcome(&again, 0), Outcome::Built(_)));
    assert!(!records.get(&ztoc.digest).unwrap().is_found);

    // An artifact with the wrong media type is no candidate, even if layer and span size match.
    let misfiled = Entry {
        media_type: "application/vnd.amazon.soci.prefetch.v1+json".to_owned(),
        ..ztoc.clone()
    };
    records.put(&[misfiled]).unwrap();
    let third = convert(&context(), &target, &options()).await.unwrap();
    assert!(matches!(outcome(&third, 0), Outcome::Built(_)));
    images.notes();

    std::fs::remove_file(images.layout.blob_path(&ztoc.digest)).unwrap();
    let fourth = convert(&context(), &target, &options()).await.unwrap();
    assert!(matches!(outcome(&fourth, 0), Outcome::Built(_)));
    assert_eq!(images.notes().len(), 1, "one line and no warning");
}
