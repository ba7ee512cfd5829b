//! Existing indexes, platforms, output, and errors.

use super::*;

/// An image in containerd and in a registry that lists referrers.
fn scene(seed: u64) -> Result<(Bench, TestRegistry, String, String)> {
    let bench = Bench::new()?;
    let registry = TestRegistry::start();
    let reference = name(&registry, "app:1");
    let layout = bench.import(&image(seed)?, &reference)?;
    crane_push(&layout, &reference)?;
    let subject = manifest_of(&layout)?;
    Ok((bench, registry, reference, subject))
}

#[test]
fn the_newest_index_is_pushed_and_one_that_is_there_is_treated_as_asked() -> Result<()> {
    let (bench, registry, reference, subject) = scene(4)?;
    let push = |arguments: &[&str]| {
        let all = [&["--plain-http", &reference], arguments].concat();
        bench.pushed(&all)
    };
    bench.create(&reference, "65536")?;
    let first = push(&["-q"])?;
    assert_eq!(first.lines().count(), 1, "{first}");
    let first = first.trim().to_owned();
    bench.create(&reference, "131072")?;

    registry.forget_seen();
    let kept = push(&["--existing-index", "skip"])?;
    let found = format!("soci index found in remote repository with digest: {first}");
    assert_eq!(
        kept,
        format!(
            "checking if a soci index already exists in remote repository...\n\
             {found}: skipping pushing artifacts for image manifest: {subject}\n"
        )
    );
    assert_eq!(push(&["--existing-index=skip", "--quiet"])?, "");
    assert!(writes(&registry).is_empty());

    let second = push(&["-q"])?;
    let (warning, second) = second.split_once('\n').context("two lines")?;
    assert_eq!(warning, format!("[WARN] {found}: pushing index anyway"));
    let second = second.trim().to_owned();
    assert_ne!(first, second, "the newer one");
    let ztoc = &manifest(&registry, "app", &second)?["layers"][0];
    assert_eq!(ztoc["annotations"]["com.amazon.soci.span-size"], "131072");

    let many = push(&[])?;
    assert!(many.contains("\n[WARN] multiple soci indices found in remote repository: pushing"));
    registry.forget_seen();
    let allowed = push(&["--existing-index", "allow"])?;
    let lines: Vec<&str> = allowed.lines().collect();
    let skipped = format!("skipped artifact with digest: {second}");
    assert_eq!(
        lines,
        [
            &format!("pushing soci index with digest: {second}"),
            &skipped
        ]
    );
    assert_eq!(registry.requests(), 1, "one HEAD");
    Ok(())
}

#[test]
fn artifacts_in_the_state_folder_are_pushed_from_there() -> Result<()> {
    let (bench, registry, reference, subject) = scene(5)?;
    let create = [
        "create",
        "--content-store",
        "soci",
        "--min-layer-size",
        "0",
        &reference,
    ];
    bench.node.soci(create)?.succeed()?;
    // Artifacts that are only in the state directory are not in containerd's store.
    let pushed = bench.push(&["--plain-http", &reference])?;
    assert_eq!(pushed.code, Some(1), "{pushed:?}");
    assert!(
        pushed.stderr.contains("`soci create` makes it again"),
        "{pushed:?}"
    );
    let printed = bench.pushed(&["--plain-http", "--content-store", "soci", &reference])?;
    let index = check_lines(&printed, &[&subject])?;
    assert!(registry.manifest("app", &index).is_some());
    Ok(())
}

#[test]
fn every_platform_is_found_before_anything_is_pushed() -> Result<()> {
    let bench = Bench::new()?;
    let registry = TestRegistry::start();
    let reference = name(&registry, "app:1");
    let layout = bench.import(&image(6)?, "unused.test/a:1")?;
    two_platforms(&layout, &reference)?;
    bench.import_layout(&layout)?;
    let create = [
        "create",
        "--min-layer-size",
        "0",
        "--platform",
        "linux/amd64",
        &reference,
    ];
    bench.node.soci(create)?.succeed()?;
    let none = bench.push(&["--plain-http", "--all-platforms", &reference])?;
    assert_eq!(none.code, Some(1));
    let error =
        "soci: could not find any soci index manifest v1 to push for platform linux/arm64/v8\n";
    assert_eq!(none.stderr, error);
    assert_eq!(registry.requests(), 0, "nothing was asked");

    let create = [
        "create",
        "--min-layer-size",
        "0",
        "--all-platforms",
        &reference,
    ];
    bench.node.soci(create)?.succeed()?;
    let printed = bench.pushed(&["--plain-http", "--all-platforms", "--json", &reference])?;
    let report: Value = serde_json::from_str(&printed)?;
    let indexes = report["indexes"].as_array().context("indexes")?;
    let platforms: Vec<_> = indexes.iter().map(|index| &index["platform"]).collect();
    assert_eq!(platforms, ["linux/amd64", "linux/arm64/v8"]);
    for index in indexes {
        assert_eq!(index["outcome"], "pushed", "{report:#}");
        let digest = index["index"].as_str().context("a digest")?;
        let pushed = manifest(&registry, "app", digest)?;
        assert_eq!(pushed["subject"]["digest"], index["manifest"]);
    }
    // The platforms share their layers, and therefore their zTOCs.
    assert_eq!(report["image"], reference.as_str());
    Ok(())
}

/// Turns the image of a layout into one for two platforms with different configurations.
fn two_platforms(layout: &Path, reference: &str) -> Result<()> {
    let blob = |digest: &str| layout.join("blobs/sha256").join(&digest[7..]);
    let put = |document: &Value| -> Result<Value> {
        let bytes = serde_json::to_vec(document)?;
        let name = digest(&bytes);
        fs::write(blob(&name), &bytes)?;
        Ok(json!({"mediaType": document["mediaType"], "digest": name, "size": bytes.len()}))
    };
    let index = layout.join("index.json");
    let mut root: Value = serde_json::from_slice(&fs::read(&index)?)?;
    let mut amd64 = root["manifests"][0].clone();
    let path = blob(amd64["digest"].as_str().context("a digest")?);
    let mut manifest: Value = serde_json::from_slice(&fs::read(path)?)?;
    let path = blob(manifest["config"]["digest"].as_str().context("a digest")?);
    let mut config: Value = serde_json::from_slice(&fs::read(path)?)?;
    config["architecture"] = json!("arm64");
    config["variant"] = json!("v8");
    let config = put(&config)?;
    manifest["config"]["digest"] = config["digest"].clone();
    manifest["config"]["size"] = config["size"].clone();
    let mut arm64 = put(&manifest)?;
    amd64["platform"] = json!({"os": "linux", "architecture": "amd64"});
    arm64["platform"] = json!({"os": "linux", "architecture": "arm64", "variant": "v8"});
    let kind = "application/vnd.oci.image.index.v1+json";
    let mut both =
        put(&json!({"schemaVersion": 2, "mediaType": kind, "manifests": [amd64, arm64]}))?;
    both["annotations"] = json!({"io.containerd.image.name": reference});
    root["manifests"] = json!([both]);
    Ok(fs::write(index, serde_json::to_vec(&root)?)?)
}

#[test]
fn errors_contain_the_reason() -> Result<()> {
    let (bench, registry, reference, _) = scene(7)?;
    let none = "could not find any soci index manifest v1 to push for platform linux/amd64";
    let cases: [(&[&str], &str); 6] = [
        (&[], "please provide an image reference to push"),
        (&["no.test/such:1"], "image \"no.test/such:1\": not found"),
        (
            &["--platform", "linux/s390x", &reference],
            "not found: image manifest for linux/s390x; the image has linux/amd64 (select with --platform or -p)",
        ),
        (&[&reference], none),
        (
            &["--existing-index", "maybe", &reference],
            "unexpected value for flag existing-index: maybe, expected types [warn skip allow]",
        ),
        (
            &["--content-store", "nowhere", &reference],
            "unknown content store type: nowhere; must be one of [soci containerd]",
        ),
    ];
    registry.forget_seen();
    for (arguments, error) in cases {
        let refused = bench.push(arguments)?;
        assert_eq!(refused.code, Some(1), "{arguments:?}");
        assert_eq!(refused.stdout, "", "{arguments:?}");
        assert_eq!(refused.stderr, format!("soci: {error}\n"), "{arguments:?}");
    }
    assert_eq!(registry.requests(), 0);

    let platform = bench.push(&["--platform", "a/b/c/d", &reference])?;
    let stderr = &platform.stderr;
    assert!(
        stderr.starts_with("soci: could not parse platform a/b/c/d: "),
        "{stderr}"
    );
    bench.create(&reference, "65536")?;
    let many = ["--max-concurrent-uploads", "9223372036854775808"];
    let printed = bench.pushed(&[&["--plain-http", &reference], &many[..]].concat())?;
    let warning = "warning: overflow for setting --max-concurrent-uploads=9223372036854775808; defaulting to 3";
    let printed = printed.strip_prefix(warning).context("a warning")?;
    assert!(printed.starts_with("checking if"), "{printed}");
    let zero = ["--max-concurrent-uploads=0", "--snapshotter", "none"];
    let pushed = bench.push(&[&zero[..], &["--http-trace", &reference]].concat())?;
    assert_eq!(pushed.code, Some(0), "{pushed:?}");
    assert!(pushed.stdout.contains("\nhttp res 200 OK\n"), "{pushed:?}");
    Ok(())
}

#[test]
fn an_image_that_names_its_index_is_not_pushed() -> Result<()> {
    let (bench, _registry, reference, _) = scene(8)?;
    let converted = reference.replace(":1", ":soci");
    let convert = ["convert", "--min-layer-size", "0", &reference, &converted];
    bench.node.soci(convert)?.succeed()?;
    let refused = bench.push(&["--plain-http", &converted])?;
    assert_eq!(refused.code, Some(1));
    assert_eq!(
        refused.stdout,
        "[WARN] Skippping SOCI index manifest v2. \
         You should push the whole image with higher level tools like finch or nerdctl.\n"
    );
    let none = "could not find any soci index manifest v1 to push for platform linux/amd64";
    assert_eq!(refused.stderr, format!("soci: {none}\n"));
    Ok(())
}
