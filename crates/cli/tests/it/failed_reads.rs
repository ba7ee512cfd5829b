//! A blob that the registry does not give is reported with the reason, and not as damaged.

use serde_json::Value;
use soci_oci::Digest;
use soci_registry::testing::{Fault, On, TestRegistry, Wrong};

use crate::site::{converted, docker, layer, layout, publish};
use crate::soci::{Ran, run};

/// A registry with an image of one layer as `in:1`, converted as `in:2`.
struct Scene {
    registry: TestRegistry,
    layer: Digest,
}

impl Scene {
    fn new() -> Self {
        let registry = TestRegistry::start();
        let folder = tempfile::tempdir().unwrap();
        let layer = layer(1, 100_000);
        let manifest = layout(folder.path(), std::slice::from_ref(&layer));
        publish(folder.path(), &manifest, &registry, "in");
        converted(&[], &docker(&registry, "in:1"), &docker(&registry, "in:2"));
        Self {
            registry,
            layer: Digest::sha256(&layer),
        }
    }

    fn refuse(&self, digest: &Digest) -> Fault {
        Fault::always(On::Blob(*digest), Wrong::status(403))
    }

    fn run(&self, words: &[&str], tag: &str) -> Ran {
        let image = docker(&self.registry, &format!("in:{tag}"));
        run(words.iter().copied().chain([image.as_str()]))
    }

    /// A digest in a document of the repository.
    fn digest(&self, object: &str, place: &str) -> Digest {
        let (_, document) = self.registry.manifest("in", object).unwrap();
        let document: Value = serde_json::from_slice(&document).unwrap();
        let digest = document.pointer(place).unwrap().as_str().unwrap();
        digest.parse().unwrap()
    }
}

#[test]
fn a_layer_that_is_refused_could_not_be_read_and_is_not_damaged() {
    for received in [0, 1000] {
        let scene = Scene::new();
        let layer = scene.layer;
        if received > 0 {
            let cut = Fault::once(On::Blob(layer), Wrong::Cut(received));
            scene.registry.fault(cut);
        }
        scene.registry.fault(scene.refuse(&layer));
        let ran = scene.run(&["verify", "--deep"], "2");
        assert_eq!(ran.code, Some(1));
        let lines: Vec<&str> = ran.stdout.lines().collect();
        let begin = format!(
            "layer {layer}: could not be read: {}/in:2: blobs/{layer}: ",
            scene.registry.host()
        );
        assert!(lines[0].starts_with(&begin), "{ran:?}");
        assert!(lines[0].ends_with(" answered 403"), "{ran:?}");
        assert!(lines[1].ends_with(": 1 problem"), "{ran:?}");
        scene.registry.clear_faults();
        scene.registry.fault(scene.refuse(&layer));
        let ran = scene.run(&["verify", "--deep", "--json"], "2");
        let report: Value = serde_json::from_str(&ran.stdout).unwrap();
        let problem = report["problems"][0]["problem"].as_str().unwrap();
        assert!(problem.ends_with(" answered 403"), "{report}");
    }
}

#[test]
fn every_command_names_the_cause_of_a_failed_read() {
    let scene = Scene::new();
    let config = scene.digest("1", "/config/digest");
    let index = scene.digest("2", "/manifests/1/digest");
    let ztoc = scene.digest(&index.to_string(), "/layers/0/digest");
    for (words, tag, blob) in [
        (&["create", "--standalone"][..], "1", config),
        (&["verify"], "2", ztoc),
        (&["verify", "--json"], "2", ztoc),
    ] {
        scene.registry.fault(scene.refuse(&blob));
        let ran = scene.run(words, tag);
        assert_eq!(ran.code, Some(1), "{words:?}: {ran:?}");
        let what = format!("blobs/{blob}: ");
        assert!(ran.stderr.contains(&what), "{words:?}: {ran:?}");
        let end = " answered 403\n";
        assert!(ran.stderr.ends_with(end), "{words:?}: {ran:?}");
        scene.registry.clear_faults();
    }
}
