//! Compares the `--json` output of every command with its table in `docs/json.md`.

use std::collections::BTreeSet;
use std::fs;
use std::path::Path;

use serde_json::{Value, json};
use soci_index::artifacts::{Entry, Kind};
use soci_index::{SociIndex, Version};
use soci_oci::media_type;
use soci_registry::testing::TestRegistry;
use soci_ztoc::Time;

use crate::pages::{page, sections};
use crate::schema::Schema;
use crate::seed::{Root, absent, entry, image};
use crate::site::{docker, layer, layout, publish};
use crate::soci::{blob, converted, member, run, tar};

/// A `--min-layer-size` between the sizes of [`layers`], and a file of the first one to prefetch.
const FLAGS: [&str; 5] = [
    "--json",
    "--min-layer-size",
    "4000",
    "--prefetch-file",
    "file-1",
];

fn layers() -> [Vec<u8>; 2] {
    [layer(1, 5000), layer(2, 100)]
}

fn parsed(text: &str) -> Value {
    serde_json::from_str(text).unwrap_or_else(|error| panic!("{error}: {text}"))
}

/// The output that `make e2e` recorded for a command that needs containerd.
fn recorded(file: &str, command: &str) -> Vec<Value> {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../tests/transcripts");
    let text = fs::read_to_string(folder.join(file)).unwrap();
    let start = format!("$ {command}");
    let steps = text.split("\n$ ").map(|step| format!("$ {step}"));
    let outputs = steps.filter(|step| step.starts_with(&start)).map(|step| {
        let lines = step.lines().filter_map(|line| line.strip_prefix("  "));
        let lines: Vec<&str> = lines.collect();
        parsed(&lines.join("\n").replace("<n>", "0.5"))
    });
    let outputs: Vec<Value> = outputs.collect();
    assert!(!outputs.is_empty(), "{file} has no {command}");
    outputs
}

fn check_all(command: &str, outputs: impl IntoIterator<Item = Value>) {
    let mut schema = Schema::of(command);
    outputs.into_iter().for_each(|it| schema.check(&it));
    schema.finish();
}

#[test]
fn every_command_with_json_has_a_section() {
    let folder = tempfile::tempdir().unwrap();
    assert_eq!(
        run(["man".as_ref(), folder.path().as_os_str()]).code,
        Some(0)
    );
    let has_json = |file: &Path| {
        let page = fs::read_to_string(file).unwrap();
        page.lines().any(|line| line == r".B \-\-json")
    };
    let files = fs::read_dir(folder.path()).unwrap();
    let files = files.map(|it| it.unwrap().path());
    let commands = files.filter(|file| has_json(file));
    let commands: BTreeSet<String> = commands
        .map(|file| file.file_stem().unwrap().to_str().unwrap().to_owned())
        .collect();
    let page = page("json.md");
    let headings = sections(&page).into_iter().map(|(title, _)| title);
    let headings = headings.filter_map(|title| title.strip_prefix('`')?.strip_suffix('`'));
    let documented: BTreeSet<String> = headings.map(|it| it.replace(' ', "-")).collect();
    assert_eq!(commands, documented);
}

#[test]
fn convert() {
    let folder = tempfile::tempdir().unwrap();
    let path = |name: &str| folder.path().join(name);
    layout(&path("in"), &layers());
    let some = converted(&FLAGS, &path("in"), &path("some.tar"));
    let none = ["--json", "--allow-empty", "--min-layer-size", "1000000"];
    let none = converted(&none, &path("in"), &path("none.tar"));
    let outputs = [parsed(&some.stdout), parsed(&none.stdout)];
    let recorded = [
        recorded("convert.txt", "soci convert --json"),
        recorded("standalone.txt", "soci convert --standalone --json"),
    ];
    check_all("soci convert", outputs.into_iter().chain(recorded.concat()));
}

#[test]
fn the_object_is_on_standard_error_when_the_image_is_on_standard_output() {
    let folder = tempfile::tempdir().unwrap();
    let path = |name: &str| folder.path().join(name);
    layout(&path("in"), &layers());
    let output = crate::soci::command()
        .args(["convert", "--standalone"])
        .args(FLAGS)
        .args([path("in").as_os_str(), "-".as_ref()])
        .output()
        .unwrap();
    Schema::of("soci convert").check(&serde_json::from_slice(&output.stderr).unwrap());
}

#[test]
fn create() {
    let registry = TestRegistry::start();
    let folder = tempfile::tempdir().unwrap();
    let manifest = layout(folder.path(), &layers());
    publish(folder.path(), &manifest, &registry, "in");
    let image = docker(&registry, "in:1");
    let words = ["create", "--standalone"].iter().chain(&FLAGS).copied();
    let ran = run(words.chain([image.as_str()]));
    assert_eq!(ran.code, Some(0), "{ran:?}");
    let recorded = recorded("create.txt", "soci create --json");
    check_all(
        "soci create",
        recorded.into_iter().chain([parsed(&ran.stdout)]),
    );
}

#[test]
fn push() {
    check_all("soci push", recorded("push.txt", "soci push --json"));
}

#[test]
fn verify() {
    let folder = tempfile::tempdir().unwrap();
    let path = |name: &str| folder.path().join(name);
    layout(&path("in"), &layers());
    let flags = [&FLAGS[..], &["--format", "oci-dir"]].concat();
    let report = parsed(&converted(&flags, &path("in"), &path("out")).stdout);
    let verify = |name: &str, code: i32| {
        let words = ["verify", "--json", "--deep"].map(AsRef::as_ref);
        let ran = run(words.into_iter().chain([path(name).as_os_str()]));
        assert_eq!(ran.code, Some(code), "{ran:?}");
        parsed(&ran.stdout)
    };
    // Problems of a manifest name no layer; problems of a zTOC do.
    let mut outputs = vec![verify("out", 0), verify("in", 1)];
    let ztoc = &report["platforms"][0]["layers"][0]["ztoc"]["digest"];
    fs::remove_file(blob(&path("out"), ztoc.as_str().unwrap())).unwrap();
    outputs.push(verify("out", 1));
    outputs.extend(recorded("verify.txt", "soci verify --json"));
    check_all("soci verify", outputs);
}

#[test]
fn status() {
    let example = crate::status::example();
    check_all("soci status", [crate::status::printed(&example)]);
    // Every verdict and reason is on the page.
    let mut schema = Schema::of("soci status");
    for verdict in soci_status::Verdict::ALL {
        for reason in soci_status::Reason::ALL {
            let mut status = example.clone();
            let layer = &mut status.images[0].layers[0];
            layer.verdict = verdict.name().to_owned();
            layer.reason = reason.name().to_owned();
            schema.check(&serde_json::to_value(&status).unwrap());
        }
    }
}

/// An entry with a time, and one without.
fn two(kind: Kind) -> [Entry; 2] {
    let timed = Entry {
        created_at: Some(Time {
            secs: 1_763_697_972,
            nanos: 120_000_000,
        }),
        ..entry(kind, &absent(&format!("timed {kind:?}")))
    };
    [timed, entry(kind, &absent(&format!("untimed {kind:?}")))]
}

#[test]
fn lists() {
    let root = Root::new();
    for kind in [Kind::Index, Kind::Layer, Kind::Prefetch] {
        root.artifacts().put(&two(kind)).unwrap();
    }
    for (file, command, recording) in [
        ("index.txt", "soci index list", "soci index list --json"),
        ("ztoc.txt", "soci ztoc list", "soci ztoc ls --json"),
        (
            "prefetch.txt",
            "soci prefetch list",
            "soci prefetch ls --json",
        ),
    ] {
        let words: Vec<&str> = command.split(' ').skip(1).chain(["--json"]).collect();
        let printed = parsed(&root.prints(&words));
        let recorded = recorded(file, recording);
        check_all(command, recorded.into_iter().chain([printed]));
    }
}

#[test]
fn index_info() {
    let root = Root::new();
    let archive = tar(&[member("f", b'0', "", b"content")]);
    let ztoc = root.ztoc(&archive, 1 << 20);
    let first = root.index(&absent("manifest"), vec![ztoc.clone()]);
    let second = SociIndex::new(Version::V2, vec![ztoc], None);
    let second = root.put(media_type::OCI_MANIFEST, &second.to_bytes());
    let outputs = [first, second].map(|index| {
        root.record(Kind::Index, &index);
        let digest = index.digest.to_string();
        parsed(&root.prints(&["index", "info", "--json", &digest]))
    });
    check_all("soci index info", outputs);
}

#[test]
fn ztoc_info() {
    let root = Root::new();
    let members = [
        member("f", b'0', "", b"content"),
        member("d/", b'5', "", b""),
        member("s", b'2', "f", b""),
        member("h", b'1', "f", b""),
        member("p", b'6', "", b""),
    ];
    let outputs = [tar(&members), tar(&[])].map(|archive| {
        let ztoc = root.ztoc(&archive, 1 << 20);
        root.record(Kind::Layer, &ztoc);
        let digest = ztoc.digest.to_string();
        parsed(&root.prints(&["ztoc", "info", "--json", &digest]))
    });
    check_all("soci ztoc info", outputs);
}

#[test]
fn prefetch_info() {
    let root = Root::new();
    let spans = json!([{"start_span": 0, "end_span": 3}, {"start_span": 7, "end_span": 7, "priority": 2, "first_use_ms": 9}]);
    let document = json!({"version": "1.0", "prefetch_spans": spans}).to_string();
    let artifact = root.prefetch(&image(), &document);
    root.record(Kind::Prefetch, &artifact);
    let digest = artifact.digest.to_string();
    let printed = root.prints(&["prefetch", "info", "--json", &digest]);
    let (_, artifact) = printed.split_once("\nRaw JSON:\n").unwrap();
    check_all("soci prefetch info", [parsed(artifact)]);
}
