//! Images that claim layers of other images.

use std::fs;
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Result, ensure};
use soci_tests::image::{change_ztocs, digest, leave_out_last_entry, noise};
use soci_tests::node::SOCI;
use soci_tests::tar::{directory, file, whiteout};
use soci_tests::{Image, Layer, Node, NodeOptions, Shape, Site};

const LIMIT: Duration = Duration::from_secs(60);

/// Waits for a line of the daemon's log that contains all of these words.
fn wait_for_log(node: &Node, words: &[&str]) -> Result<()> {
    let start = Instant::now();
    loop {
        let log = node.snapshotter_log();
        if log
            .lines()
            .any(|line| words.iter().all(|word| line.contains(word)))
        {
            return Ok(());
        }
        ensure!(start.elapsed() < LIMIT, "no line with {words:?}:\n{log}");
        thread::sleep(Duration::from_millis(50));
    }
}

/// A link on which layers stay incomplete for seconds.
const SLOW: Shape = Shape {
    round_trip: Duration::ZERO,
    rate: Some(400_000),
    connection_rate: None,
};

const VERDICT: &str = "the layer does not match its image";

#[test]
fn an_image_that_claims_layers_of_another_does_not_affect_it() -> Result<()> {
    let site = Site::with(NodeOptions::default(), SLOW)?;
    let node = &site.node;
    let good = Image::runnable(&[&[file("hello", "the good one\n")]])?;
    let rest = file("rest", noise(1, 2 << 20));
    let mut foreign = Image::runnable(&[&[file("hello", "the foreign one\n"), rest]])?;
    foreign.claims = Some(good.layers.iter().map(Layer::diff_id).collect());
    let good = site.publish(&good, "good:1")?;
    let bad = site.publish(&foreign, "foreign:1")?;
    node.pull(&bad, SOCI)?;
    let container = format!("runs-{}", std::process::id());
    node.ctr(["run", "--detach", "--snapshotter", SOCI, &bad, &container])?
        .args(["/bin/sleep", "1000"])
        .succeed()?;
    site.relay.limit(100_000_000);
    let layer = foreign.layers[1].digest();
    wait_for_log(node, &[VERDICT, &bad, &layer, &foreign.layers[1].diff_id()])?;
    // The running container continues.
    let hello = node.root_of(&container)?.join("hello");
    assert_eq!(fs::read_to_string(hello)?, "the foreign one\n");
    // containerd uses the stored layers for the good image, but no container starts from them.
    node.pull(&good, SOCI)?;
    for (reference, id) in [(&good, "good"), (&bad, "bad")] {
        let said = node.run(reference, SOCI, id, &["/bin/cat", "/hello"])?;
        assert_ne!(said.code, Some(0), "{said:?}");
        for word in [&layer, &bad] {
            assert!(
                said.stderr.contains(word),
                "{word} is named: {}",
                said.stderr
            );
        }
        assert!(!said.stdout.contains("the foreign one"), "{said:?}");
    }
    // In another namespace the good image is correct, while the foreign one still exists.
    let other = |arguments: &[&str]| node.ctr(["--namespace", "other"])?.args(arguments).finish();
    let pulled = other(&["images", "pull", "--snapshotter", SOCI, &good])?;
    assert_eq!(pulled.code, Some(0), "{}", pulled.stderr);
    let id = format!("other-{}", std::process::id());
    let said = other(&[
        "run",
        "--rm",
        "--snapshotter",
        SOCI,
        &good,
        &id,
        "/bin/cat",
        "/hello",
    ])?;
    assert_eq!(said.stdout, "the good one\n", "{}", said.stderr);
    // In this namespace it is correct once the foreign image is removed.
    node.ctr(["tasks", "rm", "--force", &container])?
        .succeed()?;
    node.ctr(["containers", "rm", &container])?.succeed()?;
    node.remove_image(&bad)?;
    node.remove_image(&good)?;
    node.pull(&good, SOCI)?;
    let said = node.run(&good, SOCI, "again", &["/bin/cat", "/hello"])?;
    assert_eq!(said.stdout, "the good one\n", "{}", said.stderr);
    // The correct layers have the names now.
    node.pull(&bad, SOCI)?;
    let said = node.run(&bad, SOCI, "bad-again", &["/bin/cat", "/hello"])?;
    assert_eq!(said.stdout, "the good one\n", "{}", said.stderr);
    Ok(())
}

#[test]
fn a_layer_that_is_known_to_be_foreign_is_refused_at_once() -> Result<()> {
    let site = Site::new("")?;
    let mut foreign = Image::runnable(&[&[file("hello", "the foreign one\n")]])?;
    foreign.claims = Some(vec![foreign.layers[0].diff_id(), digest(b"another")]);
    let reference = site.publish(&foreign, "foreign:1")?;
    site.node.pull(&reference, SOCI)?;
    wait_for_log(&site.node, &[VERDICT, &reference])?;
    site.node.remove_image(&reference)?;
    // The layer is left to containerd, which rejects it because of its wrong diff-ID.
    let refused = site
        .node
        .pull(&reference, SOCI)
        .expect_err("its diff-ID is wrong");
    assert!(format!("{refused:#}").contains("diff id"), "{refused:#}");
    Ok(())
}

#[test]
fn a_ztoc_without_a_whiteout_is_detected() -> Result<()> {
    let site = Site::new("")?;
    let node = &site.node;
    let image = Image::runnable(&[
        &[
            directory("d"),
            file("d/secret", "removed by the next layer\n"),
        ],
        &[
            directory("d"),
            file("d/other", noise(1, 300_000)),
            whiteout("d/secret"),
        ],
    ])?;
    let converted = site.converted(&image, "hides:1", &[])?;
    change_ztocs(&converted, |ztoc| {
        leave_out_last_entry(ztoc, "d/.wh.secret")
    })?;
    let reference = site.publish_layout(&converted, "hides:1")?;
    node.pull(&reference, SOCI)?;
    wait_for_log(node, &[VERDICT, &image.layers[2].digest(), "d/.wh.secret"])?;
    let said = node.run(&reference, SOCI, "one", &["/bin/ls", "/d"])?;
    assert_ne!(said.code, Some(0), "{said:?}");
    // When it is pulled again, it is downloaded whole, without the zTOC.
    node.remove_image(&reference)?;
    node.pull(&reference, SOCI)?;
    let said = node.run(&reference, SOCI, "two", &["/bin/ls", "/d"])?;
    assert_eq!(said.stdout, "other\n", "{}", said.stderr);
    Ok(())
}

#[test]
fn containers_wait_for_verified_layers_if_configured() -> Result<()> {
    let options = NodeOptions {
        config: "[snapshotter]\ntrust = \"verified\"\n[background_fetch]\ndisable = true\n"
            .to_owned(),
        ..NodeOptions::default()
    };
    let site = Site::with(options, SLOW)?;
    let node = &site.node;
    let image =
        Image::runnable(&[&[file("hello", "all of it\n"), file("big", noise(1, 3 << 20))]])?;
    let reference = site.publish(&image, "waits:1")?;
    node.pull(&reference, SOCI)?;
    let said = thread::scope(|scope| {
        let run = scope.spawn(|| node.run(&reference, SOCI, "one", &["/bin/cat", "/hello"]));
        thread::sleep(Duration::from_secs(2));
        assert!(!run.is_finished(), "it starts without its last bytes");
        site.relay.limit(100_000_000);
        run.join().expect("no panic")
    })?;
    assert_eq!(said.stdout, "all of it\n", "{}", said.stderr);
    Ok(())
}
