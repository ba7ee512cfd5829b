//! `docs/metrics.md`, made from the definitions.

use std::fmt::Write;

use soci_status::{Reason, Verdict};

use super::definitions::{self as all, DEFINITIONS, Definition, Origin};
use super::operations::{self, LayerEvent, NodeEvent, Timed};
use super::values::{
    self, Answer, Pause, Prepared, Purpose, ReadFailure, ReplayResult, State, Value,
};

const HEAD: &str = "\
# Metrics

The daemon serves metrics for Prometheus over HTTP, at the path `/metrics`, in the text format 0.0.4. They are off by
default. This page is generated from the code; a test compares it.

```toml
# /etc/soci-snapshotter-grpc/config.toml
metrics_address = \"127.0.0.1:9900\"
# metrics_network = \"unix\" and a path in metrics_address for a Unix socket; \"tcp\" is the default
```

| key | default | meaning |
|--|--|--|
| `metrics_address` | empty: not served | `host:port`, `:port` for all addresses of the machine, or the path of a socket |
| `metrics_network` | `tcp` | `tcp`, `tcp4`, `tcp6` or `unix` |
| `no_prometheus` | `false` | `true`: not served, whatever the address |

The daemon does not start if it cannot listen at the address, or if the path is a file or a socket in use. There is no
authentication, so use an address that only the scraper reaches. The series contain digests of layers and paths of mount points, and no credentials.

The worker process counts. When the keeper replaces it, counters start at 0 again, as after any restart of a program
(`rate()` and `increase()` handle this), and `soci_worker_restarts_total` rises. A worker that replaces another one and
cannot listen at the address starts anyway, logs an error, and tries again every few seconds. So does a daemon that takes
over mounts from systemd.

In `soci_registry_requests_total`, `denied` includes the 401 with which a registry answers the first request before it
names its token server. In `soci_prepared_layers_total`, `failed` includes layers of images whose registry did not
answer when the daemon asked for an index.

The verdict in `soci_image_verdict_total` is that of the image as a whole: `refused` or `containerd` if that happened to
one of its layers, else `lazy` if one of its layers is lazy, else `parallel` or `local`. [json.md](json.md#soci-status)
describes each verdict and reason. `soci status` shows them for every image.
";

const REFERENCE: &str = "
## Series of the reference implementation

Names, types, labels, buckets and help are those of the reference implementation, so its dashboards work. A series with
the label `layer` exists from the layer's first event in this process until the layer leaves the state directory, and for
an hour after its last event. The label is
the digest of the layer, or of the index for `soci_index_fetch`. It is empty for events of the node.
";

const NEVER: &str = "
These values of `operation_type` do not occur, because the kernel answers these requests, or because the daemon has
no such step. Those that the reference reports at its start are reported as 0.

| `operation_type` | reason |
|--|--|
";

/// Values of the reference that do not occur here.
const ABSENT: &[(&str, &str)] = &[
    (
        "node_readdir, fuse_node_*_failure_count, fuse_file_getattr_failure_count, fuse_whiteout_getattr_failure_count, fuse_unknown_operation_failure_count",
        "the kernel reads names and attributes from the EROFS image of the layer; the daemon only answers reads of content",
    ),
    (
        "node.Getattr, node.Getxattr, node.Listxattr, node.Lookup, node.Open, node.Readdir, node.Readlink, file.Read, file.Getattr, whiteout.Getattr",
        "as above. `fuse_metrics_emit_wait_duration_sec` has no effect",
    ),
    (
        "blob_redirect",
        "a redirect is part of the request that follows it: `remote_registry_get`",
    ),
    ("get_layer_size", "the size is in the manifest of the image"),
    (
        "preresolve_queue_drop",
        "layers that are prepared ahead are bounded without a queue. Always 0",
    ),
];

const COMMON: &str = "
## Series of the process

These are the series that clients of Prometheus report for any program. The `go_*` series do not exist, because the
daemon is not written in Go.
";

const READING: &str = "
## What to watch

| question | expression |
|--|--|
| do reads of containers fail? | `increase(soci_read_failures_total[10m]) > 0` |
| how long do reads wait? | `histogram_quantile(0.99, rate(soci_read_wait_seconds_bucket[5m]))` |
| is an image wrong? | `increase(soci_quarantined_layers_total[1h]) > 0`; the log names image, layer and index |
| are images not loaded lazily? | `increase(soci_image_verdict_total{verdict=~\"containerd\\|refused\"}[1h]) > 0`; `soci status` names them |
| do registries answer? | `rate(soci_registry_requests_total{result=~\"no_answer\\|server_error\\|throttled\"}[5m])` |
| is the disk too small? | `soci_background_paused_layers{reason=\"disk\"} > 0`, `rate(soci_evicted_bytes_total[1h])` |
| does the worker crash? | `increase(soci_worker_restarts_total[1h]) > 0` |
";

/// The page.
pub fn document() -> String {
    let mut page = HEAD.to_owned();
    page.push_str("\n## Series of soci-rs\n\n");
    table(&mut page, Origin::Own);
    page.push_str(READING);
    page.push_str(REFERENCE);
    page.push('\n');
    table(&mut page, Origin::Reference);
    page.push_str("\nThese values of `operation_type` are reported:\n\n| series | `operation_type` |\n|--|--|\n");
    for (definition, values) in reported() {
        row(&mut page, &[&code(definition.name), &codes(&values)]);
    }
    page.push_str(NEVER);
    for (values, reason) in ABSENT {
        let values: Vec<&str> = values.split(", ").collect();
        row(&mut page, &[&codes(&values), reason]);
    }
    page.push_str(COMMON);
    page.push('\n');
    table(&mut page, Origin::Common);
    page
}

fn table(page: &mut String, origin: Origin) {
    page.push_str("| name | type | labels | since | meaning |\n|--|--|--|--|--|\n");
    for of in DEFINITIONS.iter().filter(|of| of.origin == origin) {
        let labels = of.labels.iter().map(|label| match values_of(of, label) {
            Some(values) => format!("{}: {}", code(label), codes(&values)),
            None => code(label),
        });
        let labels: Vec<String> = labels.collect();
        let cells = [
            &*code(of.name),
            of.kind.name(),
            &labels.join(", "),
            of.since,
            of.help,
        ];
        row(page, &cells);
    }
}

/// The values of a label that has a fixed set of them.
fn values_of(definition: &Definition, label: &str) -> Option<Vec<&'static str>> {
    match (definition.name, label) {
        (name, _) if name == all::PREPARED.name => Some(values::names::<Prepared>()),
        (name, "reason") if name == all::IMAGE_VERDICTS.name => Some(reasons()),
        (_, "verdict") => Some(Verdict::ALL.iter().map(|it| it.name()).collect()),
        (_, "cause") => Some(values::names::<ReadFailure>()),
        (_, "purpose") => Some(values::names::<Purpose>()),
        (_, "use") => Some(values::names::<ReplayResult>()),
        (_, "result") => Some(values::names::<Answer>()),
        (_, "state") => Some(values::names::<State>()),
        (_, "reason") => Some(values::names::<Pause>()),
        _ => None,
    }
}

/// The reasons that are counted. An earlier process has counted its verdicts.
fn reasons() -> Vec<&'static str> {
    let all = Reason::ALL.iter();
    let counted = all.filter(|reason| soci_status::POSSIBLE.iter().any(|(_, of)| of == *reason));
    counted.map(|reason| reason.name()).collect()
}

/// The operation types that are counted.
fn reported() -> [(&'static Definition, Vec<&'static str>); 5] {
    let counts = [
        operations::READ_COUNT,
        operations::READ_FETCHES,
        operations::BACKGROUND_SPANS,
        operations::BACKGROUND_FAILURES,
    ];
    let counts = counts
        .into_iter()
        .chain(values::names::<LayerEvent>())
        .chain(counted_node_events());
    [
        (&all::OPERATION_MILLISECONDS, values::names::<Timed>()),
        (&all::OPERATION_MICROSECONDS, vec![operations::READ]),
        (&all::OPERATION_COUNT, counts.collect()),
        (&all::BYTES_SERVED, vec![operations::READ_BYTES]),
        (
            &all::IMAGE_OPERATION_COUNT,
            vec![operations::BACKGROUND_QUEUE],
        ),
    ]
}

fn counted_node_events() -> impl Iterator<Item = &'static str> {
    let all = NodeEvent::TABLE.iter();
    all.filter(|(event, _)| *event != NodeEvent::PreresolveDrop)
        .map(|(_, name)| *name)
}

fn code(text: &str) -> String {
    format!("`{text}`")
}

fn codes(texts: &[&str]) -> String {
    let texts: Vec<String> = texts.iter().map(|text| code(text)).collect();
    texts.join(", ")
}

fn row(page: &mut String, cells: &[&str]) {
    // Writing to a string does not fail.
    let _ = writeln!(page, "| {} |", cells.join(" | "));
}
