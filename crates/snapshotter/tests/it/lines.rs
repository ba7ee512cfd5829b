//! Lines of the log that tools and operators look for: their words, keys and levels.

use rustix::process::Signal;
use soci_registry::testing::TestRegistry;
use tonic::Code;

use crate::image::{Image, Shape, file, tar};
use crate::process::{Line, Place, Running};
use crate::server::{Labels, connect, labels, prepare_request};

/// The log of a daemon that prepares the only layer of an image, and the code of its answer.
async fn log_of(shape: Shape<'_>, settings: &str) -> (Vec<Line>, Option<Code>) {
    log_with(shape, settings, |_| Labels::new()).await
}

/// The same with additional labels of the request.
async fn log_with(
    shape: Shape<'_>,
    settings: &str,
    more: impl Fn(&Image) -> Labels,
) -> (Vec<Line>, Option<Code>) {
    let registry = TestRegistry::start();
    let image = Image::publish(&registry, &[tar(&[file("a", b"a")])], shape);
    let place = Place::with(settings);
    let mut command = place.command();
    command.args(["--no-keeper", "--log-level=debug"]);
    let mut running = Running::start(command);
    let mut client = connect(place.path("s/s.sock")).await;
    let mut labels = image.labels(0);
    labels.extend(more(&image));
    let request = prepare_request("default", "key", "", labels);
    let code = client
        .prepare(request)
        .await
        .err()
        .map(|status| status.code());
    drop(client);
    assert_eq!(running.end(Signal::INT).code(), Some(0));
    (std::mem::take(&mut running.said), code)
}

/// The only line with this message.
fn line<'a>(log: &'a [Line], message: &str) -> &'a Line {
    let found: Vec<&Line> = log.iter().filter(|line| line["msg"] == message).collect();
    let [line] = found[..] else {
        panic!("{message}: {found:?} in {log:#?}")
    };
    line
}

#[tokio::test(flavor = "multi_thread")]
async fn a_lazy_layer_is_told_in_the_lines_that_tools_read() {
    let (log, code) = log_of(Shape::default(), "skip_check_snapshotter_supported = true").await;
    assert_eq!(code, Some(Code::AlreadyExists));
    let fetching = line(&log, "fetching SOCI artifacts using index descriptor");
    assert_eq!(fetching["level"], "info");
    assert!(fetching["digest"].starts_with("sha256:"), "{fetching:?}");
    line(&log, "using soci v2 index annotation");
    let prepared = line(&log, "remote snapshot successfully prepared.");
    assert_eq!(prepared["level"], "info");
    assert_eq!(prepared["remote-snapshot-prepared"], "true");
    assert_eq!((&*prepared["key"], &*prepared["parent"]), ("key", ""));
    assert_eq!(
        line(&log, "skipped snapshotter is supported check")["level"],
        "warning"
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn a_layer_without_an_index_is_told_in_the_lines_that_tools_read() {
    let shape = Shape {
        unnamed: true,
        ..Shape::default()
    };
    let (log, code) = log_of(shape, "").await;
    assert_eq!(code, Some(Code::AlreadyExists));
    let parallel = line(&log, "preparing snapshot with parallel pull/unpack");
    assert_eq!(parallel["level"], "info");
    assert!(
        parallel["layerDigest"].starts_with("sha256:"),
        "{parallel:?}"
    );
    let prepared = line(&log, "local snapshot successfully prepared");
    assert_eq!(prepared["local-snapshot-prepared"], "true");
    let left = "[pull_modes.parallel_pull_unpack]\nenable = false\n";
    let (log, code) = log_of(shape, left).await;
    assert_eq!(code, None, "mounts for containerd");
    let failed = line(&log, "failed to prepare remote snapshot");
    assert_eq!(failed["remote-snapshot-prepared"], "false");
    assert_eq!(failed["level"], "warning");
    let deferred = line(
        &log,
        "no valid SOCI index found; deferring to container runtime",
    );
    assert_eq!(deferred["level"], "warning");
    assert_eq!(deferred["defer-snapshot-runtime"], "true");
    assert_eq!((&*deferred["key"], &*deferred["parent"]), ("key", ""));
    assert!(
        deferred["error"].contains("the manifest names none"),
        "the reason: {deferred:?}"
    );
    line(&log, "snapshotter is supported");
}

#[tokio::test(flavor = "multi_thread")]
async fn where_an_index_comes_from_is_told_in_the_lines_of_the_reference() {
    let lazy = Some(Code::AlreadyExists);
    let v1 = "[pull_modes.soci_v1]\nenable = true\n[pull_modes.soci_v2]\nenable = false\n";
    let refers = Shape {
        refers: true,
        ..Shape::default()
    };
    let (log, code) = log_of(refers, v1).await;
    assert_eq!(code, lazy);
    line(&log, "soci v2 is disabled");
    line(&log, "using soci v1 index via referrers API");
    let (log, _) = log_of(refers, "").await;
    line(&log, "soci v1 is disabled");
    let given = |image: &Image| {
        let label = "containerd.io/snapshot/remote/soci.index.digest";
        labels(&[(label, &image.index.to_string())])
    };
    let unnamed = Shape {
        unnamed: true,
        ..Shape::default()
    };
    let (log, code) = log_with(unnamed, "", given).await;
    assert_eq!(code, lazy);
    line(&log, "using provided soci index digest");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_layer_without_a_ztoc_is_told_in_the_line_of_the_reference() {
    let shape = Shape {
        without: Some(0),
        ..Shape::default()
    };
    let (log, _) = log_of(shape, "").await;
    let message = "skipping mounting layer as FUSE mount: no ztoc for layer";
    let skipped = line(&log, message);
    assert_eq!(skipped["level"], "info");
    assert!(skipped["layerDigest"].starts_with("sha256:"), "{skipped:?}");
    assert!(skipped.contains_key("image"), "{skipped:?}");
}
