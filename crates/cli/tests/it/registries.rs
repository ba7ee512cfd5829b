//! Conversion from registry to registry: requests, uploads, and failures.

use std::fs;
use std::time::Duration;

use serde_json::Value;
use soci_oci::{Digest, media_type};
use soci_registry::testing::{Access, Fault, On, Seen, Setup, TestRegistry, Wrong};

use crate::site::{convert, converted, docker, layer, layout, publish, tagged, uploads};
use crate::soci::{Ran, command, run};

/// A registry with an image of these layers as `in:1`.
fn with_image(setup: Setup, layers: &[Vec<u8>]) -> TestRegistry {
    let registry = TestRegistry::with(setup);
    let folder = tempfile::tempdir().unwrap();
    let manifest = layout(folder.path(), layers);
    publish(folder.path(), &manifest, &registry, "in");
    registry.forget_seen();
    registry
}

fn layers() -> Vec<Vec<u8>> {
    vec![layer(1, 3 << 20), layer(2, 1 << 20), layer(3, 900)]
}

/// A `--min-layer-size` that excludes the last of [`layers`].
const SOME: &[&str] = &["--min-layer-size", "100000"];

fn digests(layers: &[Vec<u8>]) -> Vec<Digest> {
    layers.iter().map(|layer| Digest::sha256(layer)).collect()
}

#[test]
fn in_the_same_repository_layers_are_read_once_and_nothing_is_sent_that_is_there() {
    let layers = layers();
    let registry = with_image(Setup::default(), &layers);
    converted(SOME, &docker(&registry, "in:1"), &docker(&registry, "in:2"));
    let digests = digests(&layers);
    for (digest, layer) in digests.iter().zip(&layers).take(2) {
        assert_eq!(
            registry.bytes_sent(digest),
            layer.len() as u64,
            "one time each"
        );
    }
    assert_eq!(
        registry.bytes_sent(&digests[2]),
        0,
        "a small layer is not even read"
    );
    // Two zTOCs and the index's empty configuration.
    assert_eq!(uploads(&registry, "in").len(), 3);
    // The tag is written last.
    let seen = registry.seen();
    let last = seen.last().unwrap();
    assert_eq!(
        (last.method.as_str(), last.path.as_str()),
        ("PUT", "/v2/in/manifests/2")
    );
}

#[test]
fn another_repository_of_the_registry_gets_layers_without_sending_them() {
    let layers = layers();
    let registry = with_image(Setup::default(), &layers);
    converted(
        SOME,
        &docker(&registry, "in:1"),
        &docker(&registry, "other/out:2"),
    );
    for digest in digests(&layers) {
        assert!(registry.has_blob("other/out", &digest));
    }
    assert_eq!(registry.bytes_sent(&digests(&layers)[2]), 0);
    assert_eq!(uploads(&registry, "other/out").len(), 3);
}

#[test]
fn another_registry_gets_layers_from_the_same_stream() {
    let layers = layers();
    let from = with_image(Setup::default(), &layers);
    let to = TestRegistry::start();
    converted(SOME, &docker(&from, "in:1"), &docker(&to, "out:2"));
    for (digest, layer) in digests(&layers).iter().zip(&layers) {
        assert_eq!(from.bytes_sent(digest), layer.len() as u64);
        assert!(to.has_blob("out", digest));
    }
    assert!(
        from.seen()
            .iter()
            .all(|seen| matches!(seen.method.as_str(), "GET" | "HEAD"))
    );
    let expected = tagged(&to, "out", "2");
    // The second time, everything is present, and only the tag is sent.
    to.forget_seen();
    let ran = converted(SOME, &docker(&from, "in:1"), &docker(&to, "out:2"));
    assert_eq!(ran.stdout.matches("(already exists)").count(), 0, "{ran:?}");
    assert!(uploads(&to, "out").is_empty());
    // If the copy is trusted, only documents and zTOCs are read.
    from.forget_seen();
    to.forget_seen();
    let trusted = docker(&to, "out:2");
    let flags = [SOME, &["--reuse-from", &trusted]].concat();
    let ran = converted(&flags, &docker(&from, "in:1"), &docker(&to, "out:2"));
    assert_eq!(ran.stdout.matches("(already exists)").count(), 2, "{ran:?}");
    assert_eq!(
        digests(&layers)
            .iter()
            .map(|it| from.bytes_sent(it))
            .sum::<u64>(),
        0
    );
    assert!(uploads(&to, "out").is_empty());
    assert_eq!(tagged(&to, "out", "2"), expected);
    // `--force` builds everything again.
    let flags: Vec<&str> = flags.into_iter().chain(["--force"]).collect();
    let ran = converted(&flags, &docker(&from, "in:1"), &docker(&to, "out:2"));
    assert_eq!(ran.stdout.matches("(already exists)").count(), 0, "{ran:?}");
    assert_eq!(tagged(&to, "out", "2"), expected);
}

#[test]
fn connections_that_break_are_resumed_where_they_broke() {
    let layers = layers();
    let from = with_image(Setup::default(), &layers);
    let to = TestRegistry::start();
    let big = digests(&layers)[0];
    for at in [1 << 20, 700_000, 50_000] {
        from.fault(Fault::once(On::Blob(big), Wrong::Cut(at)));
    }
    converted(SOME, &docker(&from, "in:1"), &docker(&to, "out:2"));
    let ranges = from.ranges(&big);
    assert_eq!(ranges.len(), 4, "{ranges:?}");
    assert!(
        ranges.windows(2).all(|pair| pair[0].start < pair[1].start),
        "{ranges:?}"
    );
    assert!(to.has_blob("out", &big));
    assert_eq!(
        uploads(&to, "out").len(),
        7,
        "three layers, their image's configuration, two zTOCs, the index's"
    );
}

#[test]
fn an_upload_that_breaks_begins_again_and_the_image_is_whole() {
    let layers = layers();
    let from = with_image(Setup::default(), &layers);
    let to = TestRegistry::start();
    let refusal = Wrong::status(500);
    to.fault(Fault::once(On::Path("/blobs/uploads/".into()), refusal).times(2));
    converted(SOME, &docker(&from, "in:1"), &docker(&to, "out:2"));
    for digest in digests(&layers) {
        assert!(to.has_blob("out", &digest));
    }
    assert!(tagged(&to, "out", "2").is_some());
}

#[test]
fn ztocs_of_another_image_are_taken_over() {
    let base = vec![layer(1, 3 << 20)];
    let registry = with_image(Setup::default(), &base);
    converted(
        SOME,
        &docker(&registry, "in:1"),
        &docker(&registry, "base:soci"),
    );
    let folder = tempfile::tempdir().unwrap();
    let manifest = layout(folder.path(), &[base[0].clone(), layer(2, 1 << 20)]);
    publish(folder.path(), &manifest, &registry, "app");
    registry.forget_seen();
    let reuse = format!("{}/base:soci", registry.host());
    let flags: Vec<&str> = SOME
        .iter()
        .copied()
        .chain(["--reuse-from", &reuse])
        .collect();
    let ran = converted(
        &flags,
        &docker(&registry, "app:1"),
        &docker(&registry, "app:soci"),
    );
    assert_eq!(ran.stdout.matches("(already exists)").count(), 1, "{ran:?}");
    assert_eq!(registry.bytes_sent(&digests(&base)[0]), 0);
    // The new zTOC. The old one and the index's configuration are mounted.
    assert_eq!(uploads(&registry, "app").len(), 1);
    let without = tagged(&registry, "app", "soci");
    converted(
        &[SOME, &["--force"]].concat(),
        &docker(&registry, "app:1"),
        &docker(&registry, "app:soci"),
    );
    assert_eq!(
        tagged(&registry, "app", "soci"),
        without,
        "taken over or built, it is the same image"
    );
}

#[test]
fn a_version_1_index_is_pushed_to_be_found_from_its_image() {
    let layers = layers();
    let registry = with_image(Setup::default(), &layers);
    let create = |flags: &[&str]| {
        let image = docker(&registry, "in:1");
        let words = ["create", "--standalone"];
        run(words
            .iter()
            .chain(SOME)
            .chain(flags)
            .copied()
            .chain([image.as_str()]))
    };
    let ran = create(&["--json"]);
    assert_eq!(ran.code, Some(0), "{ran:?}");
    let report: Value = serde_json::from_str(&ran.stdout).unwrap();
    let index = report["platforms"][0]["index"]["digest"]
        .as_str()
        .unwrap()
        .to_owned();
    let (_, bytes) = registry.manifest("in", &index).expect("the index is there");
    let document: Value = serde_json::from_slice(&bytes).unwrap();
    assert_eq!(
        document["config"]["mediaType"],
        "application/vnd.amazon.soci.index.v1+json"
    );
    assert_eq!(
        document["subject"]["digest"].as_str(),
        tagged(&registry, "in", "1").as_deref()
    );
    assert_eq!(registry.tags("in"), ["1"], "no tag is made for it");
    // Commands that trust the registry find and reuse it.
    let ran = create(&[]);
    assert_eq!(ran.stdout.matches("(already exists)").count(), 0, "{ran:?}");
    let trusted = docker(&registry, "in:1");
    let ran = create(&["--reuse-from", &trusted]);
    assert_eq!(ran.stdout.matches("(already exists)").count(), 2, "{ran:?}");
}

/// The zTOCs in a command's output.
fn ztocs(ran: &Ran) -> Vec<String> {
    let lines = ran.stdout.lines();
    let digests = lines.filter_map(|line| line.split("-> ztoc ").nth(1)?.split(' ').next());
    digests.map(str::to_owned).collect()
}

/// Tags an image whose index claims the zTOC of `lie` for `layer`. Returns the zTOC.
fn forge(registry: &TestRegistry, tag: &str, layer: &[u8], lie: Vec<u8>) -> String {
    let (layer, lied) = (Digest::sha256(layer), Digest::sha256(&lie));
    let elsewhere = with_image(Setup::default(), &[lie]);
    let (from, to) = (docker(&elsewhere, "in:1"), docker(&elsewhere, "in:2"));
    let ztoc = ztocs(&converted(&[], &from, &to)).remove(0);
    registry.add_blob("in", elsewhere.blob(&ztoc.parse().unwrap()).unwrap());
    // Digests have equal length, so all sizes stay correct.
    let text = |digest: &str| {
        let (_, bytes) = elsewhere.manifest("in", digest).unwrap();
        String::from_utf8(bytes.to_vec()).unwrap()
    };
    let image = text("2");
    let parsed: Value = serde_json::from_str(&image).unwrap();
    let index = parsed["manifests"][1]["digest"].as_str().unwrap();
    let forged = text(index).replace(&lied.to_string(), &layer.to_string());
    let image = image.replace(index, &Digest::sha256(forged.as_bytes()).to_string());
    registry.add_manifest("in", None, media_type::OCI_MANIFEST, forged.into_bytes());
    registry.add_manifest("in", Some(tag), media_type::OCI_INDEX, image.into_bytes());
    ztoc
}

#[test]
fn a_forged_ztoc_is_taken_over_only_from_an_image_that_is_trusted() {
    let good = layer(1, 200_000);
    let registry = with_image(Setup::default(), std::slice::from_ref(&good));
    let source = docker(&registry, "in:1");
    let honest = converted(&[], &source, &docker(&registry, "in:honest"));
    let forged = [forge(&registry, "soci", &good, layer(2, 200_000))];
    assert_ne!(ztocs(&honest), forged);
    let copy = docker(&registry, "in:soci");
    let trusting = converted(
        &["--reuse-from", &copy],
        &source,
        &docker(&registry, "in:t"),
    );
    assert_eq!(ztocs(&trusting), forged, "the forgery would fit");
    let ran = converted(&[], &source, &copy);
    assert_eq!(ztocs(&ran), ztocs(&honest));
    assert_eq!(
        tagged(&registry, "in", "soci"),
        tagged(&registry, "in", "honest")
    );
}

#[test]
fn an_image_with_nothing_to_index_is_copied_when_that_is_fine() {
    let layers = vec![layer(1, 500)];
    let from = with_image(Setup::default(), &layers);
    let to = TestRegistry::start();
    let (source, target) = (docker(&from, "in:1"), docker(&to, "out:2"));
    let ran = convert(SOME, &source, &target);
    assert_eq!(ran.code, Some(1), "{ran:?}");
    assert_eq!(tagged(&to, "out", "2"), None);
    let ran = converted(&[SOME, &["--allow-empty"]].concat(), &source, &target);
    assert!(
        ran.stdout.contains("the copy is the image as it is"),
        "{ran:?}"
    );
    assert_eq!(tagged(&to, "out", "2"), tagged(&from, "in", "1"));
}

#[test]
fn a_registry_that_lies_ends_in_an_error_and_no_tag() {
    let layers = layers();
    let big = digests(&layers)[0];
    let html = || Wrong::Status {
        code: 200,
        headers: vec![("content-type", "text/html".to_owned())],
        body: "<html>log in</html>".to_owned(),
    };
    let around = move |registry: &TestRegistry| Wrong::Status {
        code: 307,
        headers: vec![(
            "location",
            format!("http://{}/v2/in/blobs/{big}", registry.host()),
        )],
        body: String::new(),
    };
    type Script = dyn Fn(&TestRegistry) -> Fault;
    let cases: [(&str, Box<Script>, &str); 6] = [
        (
            "wrong bytes",
            Box::new(move |_| Fault::always(On::Blob(big), Wrong::Flip(1000))),
            "sha256:",
        ),
        (
            "another size",
            Box::new(move |_| Fault::always(On::Blob(big), Wrong::OtherTotal(1))),
            "bytes",
        ),
        (
            "a web page",
            Box::new(move |_| Fault::always(On::Manifest, html())),
            "in:1",
        ),
        (
            "redirect loop",
            Box::new(move |it| Fault::always(On::Blob(big), around(it))),
            "redirects",
        ),
        (
            "no blob",
            Box::new(move |_| Fault::always(On::Blob(big), Wrong::status(404))),
            "404",
        ),
        (
            "refused",
            Box::new(move |_| Fault::always(On::Manifest, Wrong::status(403))),
            "403",
        ),
    ];
    for (name, script, said) in cases {
        let from = with_image(Setup::default(), &layers);
        let to = TestRegistry::start();
        from.fault(script(&from));
        let ran = convert(SOME, &docker(&from, "in:1"), &docker(&to, "out:2"));
        assert_eq!(ran.code, Some(1), "{name}: {ran:?}");
        assert!(ran.stderr.contains(said), "{name}: {ran:?}");
        assert_eq!(ran.stderr.lines().count(), 1, "{name}: {ran:?}");
        assert_eq!(tagged(&to, "out", "2"), None, "{name}");
        assert!(
            !to.has_blob("out", &big) || name == "another size",
            "{name}"
        );
    }
}

#[test]
fn a_token_in_the_place_of_the_user_is_not_printed() {
    let registry = with_image(Setup::default(), &[layer(1, 200_000)]);
    let (from, to) = (docker(&registry, "in:1"), docker(&registry, "out:2"));
    for user in ["hunter2", ":hunter2"] {
        let ran = converted(&["--user", user], &from, &to);
        assert!(ran.stderr.contains("--password-stdin"), "{ran:?}");
        assert!(!ran.stderr.contains("hunter2"), "{ran:?}");
    }
}

#[test]
fn passwords_helpers_and_tokens_let_us_in() {
    let login = |access| Setup {
        access,
        tls: true,
        ..Setup::default()
    };
    let basic = || Access::Basic {
        user: "me".into(),
        password: "hunter2".into(),
    };
    let layers = vec![layer(1, 200_000)];
    let folder = tempfile::tempdir().unwrap();
    fs::write(folder.path().join("ca.pem"), TestRegistry::ca_pem()).unwrap();
    let ca = folder.path().join("ca.pem");
    fs::write(folder.path().join("password"), "hunter2\n").unwrap();
    let helper = folder.path().join("docker-credential-test");
    fs::write(
        &helper,
        "#!/bin/sh\necho '{\"Username\":\"me\",\"Secret\":\"hunter2\"}'\n",
    )
    .unwrap();
    fs::set_permissions(&helper, std::os::unix::fs::PermissionsExt::from_mode(0o755)).unwrap();
    fs::write(
        folder.path().join("config.json"),
        r#"{"credsStore":"test"}"#,
    )
    .unwrap();
    let path = format!("{}:/usr/bin:/bin", folder.path().display());
    for (flags, with_config, good) in [
        (&["--user", "me", "--password-stdin"][..], false, true),
        (&["--user", "me:hunter2"], false, true),
        (&[], true, true),
        (&[], false, false),
        (&["--user", "me:wrong"], false, false),
    ] {
        let registry = with_image(login(basic()), &layers);
        let mut command = command();
        command
            .env("PATH", &path)
            .args(["convert", "--standalone", "--min-layer-size", "0"]);
        if with_config {
            command.env("DOCKER_CONFIG", folder.path());
        }
        command.arg("--tlscacert").arg(&ca).args(flags);
        command.args([docker(&registry, "in:1"), docker(&registry, "out:2")]);
        command.stdin(fs::File::open(folder.path().join("password")).unwrap());
        let output = command.output().unwrap();
        let said = String::from_utf8_lossy(&output.stderr).into_owned();
        assert_eq!(output.status.success(), good, "{flags:?}: {said}");
        assert_eq!(tagged(&registry, "out", "2").is_some(), good);
        assert!(!said.contains("hunter2"), "{said}");
    }
}

/// A registry with an image that requires a token, which anonymous clients can get.
fn asks_for_tokens() -> TestRegistry {
    let access = Access::Token {
        login: None,
        lifetime: Duration::from_secs(60),
        oauth: false,
    };
    let setup = Setup {
        access,
        ..Setup::default()
    };
    with_image(setup, &[layer(1, 200_000)])
}

#[test]
fn a_broken_docker_configuration_is_named_once_and_not_quoted() {
    let (registry, to) = (asks_for_tokens(), TestRegistry::start());
    let host = registry.host();
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("config.json");
    for (text, problem) in [
        (
            format!(r#"{{"auths":{{"{host}":{{"auth":"hunter2"#),
            "error in line 1",
        ),
        ("\u{feff}{}".to_owned(), "error in line 1"),
        (
            format!(r#"{{"auths":{{"{host}":{{"auth":"hunter2!"}}}}}}"#),
            "the auth of",
        ),
    ] {
        fs::write(&file, text).unwrap();
        let output = command()
            .env("DOCKER_CONFIG", folder.path())
            .args(["convert", "--standalone", "--min-layer-size", "0"])
            .args([docker(&registry, "in:1"), docker(&to, "out:2")])
            .output()
            .unwrap();
        let said = String::from_utf8(output.stderr).unwrap();
        assert!(output.status.success(), "{said}");
        assert_eq!(said.matches(file.to_str().unwrap()).count(), 1, "{said}");
        assert!(
            said.contains("level=warning") && said.contains(problem),
            "{said}"
        );
        assert!(!said.contains("hunter2"), "{said}");
    }
}

#[test]
fn what_is_tried_is_told_to_those_who_ask() {
    let (registry, to) = (asks_for_tokens(), TestRegistry::start());
    let nothing = tempfile::tempdir().unwrap();
    for verbose in [false, true] {
        let output = command()
            .env("DOCKER_CONFIG", nothing.path())
            .args(["convert", "--standalone", "--min-layer-size", "0"])
            .arg(format!("--verbose={verbose}"))
            .args([docker(&registry, "in:1"), docker(&to, "out:2")])
            .output()
            .unwrap();
        let said = String::from_utf8(output.stderr).unwrap();
        let is_told = said.contains("level=debug msg=\"no docker configuration\"");
        assert_eq!(is_told, verbose, "{said}");
        assert!(verbose || said.is_empty(), "{said}");
    }
}

#[test]
fn an_interrupted_copy_leaves_no_tag() {
    let layers = layers();
    let from = with_image(
        Setup {
            pace: Some(200_000),
            ..Setup::default()
        },
        &layers,
    );
    let to = TestRegistry::start();
    let mut child = command()
        .args([
            "convert",
            "--standalone",
            &docker(&from, "in:1"),
            &docker(&to, "out:2"),
        ])
        .args(SOME)
        .spawn()
        .unwrap();
    let big = digests(&layers)[0];
    while from.bytes_sent(&big) == 0 {
        std::thread::sleep(Duration::from_millis(10));
    }
    let killed = run_kill(child.id());
    assert!(killed);
    assert_eq!(child.wait().unwrap().code(), Some(130));
    assert_eq!(tagged(&to, "out", "2"), None);
    assert!(!to.has_blob("out", &big));
    let (begun, left) = sessions(&to, "out");
    assert!(
        begun > 0 && left == 0,
        "{left} of {begun} uploads are left to the registry"
    );
}

/// The number of uploads started in a repository, and of those neither completed nor canceled.
fn sessions(registry: &TestRegistry, repository: &str) -> (usize, usize) {
    let prefix = format!("/v2/{repository}/blobs/uploads/");
    let seen = registry.seen();
    let count = |is_one: fn(&Seen) -> bool| {
        let here = seen.iter().filter(|it| it.path.starts_with(&prefix));
        here.filter(|it| is_one(it)).count()
    };
    let begun = count(|it| it.method == "POST" && it.status == 202);
    let ended = count(|it| it.method == "PUT" && it.status == 201);
    // The registry may already have deleted a failed upload (404).
    let taken_back = count(|it| it.method == "DELETE");
    (begun, begun.saturating_sub(ended + taken_back))
}

#[test]
fn a_copy_that_takes_too_long_leaves_no_tag_and_no_upload() {
    let layers = layers();
    let pace = Some(200_000);
    let from = with_image(
        Setup {
            pace,
            ..Setup::default()
        },
        &layers,
    );
    let to = TestRegistry::start();
    let ran = convert(
        &[SOME, &["--timeout", "1s"]].concat(),
        &docker(&from, "in:1"),
        &docker(&to, "out:2"),
    );
    assert_eq!(ran.code, Some(1), "{ran:?}");
    assert!(ran.stderr.contains("context deadline exceeded"), "{ran:?}");
    assert_eq!(tagged(&to, "out", "2"), None);
    let (begun, left) = sessions(&to, "out");
    assert!(
        begun > 0 && left == 0,
        "{left} of {begun} uploads are left to the registry"
    );
}

fn run_kill(process: u32) -> bool {
    let status = std::process::Command::new("kill")
        .args(["-INT", &process.to_string()])
        .status();
    status.is_ok_and(|status| status.success())
}
