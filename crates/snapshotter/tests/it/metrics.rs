//! Metrics of the program, compared with what was pulled and read.

use std::fmt;
use std::fs;
use std::io::{Read, Write};
use std::net::{TcpListener, TcpStream};
use std::os::unix::net::UnixStream;
use std::thread;
use std::time::{Duration, Instant};

use rustix::process::{Pid, Signal, kill_process};
use soci_oci::digest::Digest;
use soci_registry::testing::{Fault, On, TestRegistry, Wrong, noise};
use tonic::Code;

use crate::ending::numbered;
use crate::image::{Image, Shape, file, tar};
use crate::process::{LONG, Place, Running, fails, pid};
use crate::server::{connect, prepare_request};

mod results;
mod starts;
mod status;

/// Several spans.
const SIZE: usize = 1_000_000;
const NOTHING_BEHIND: &str = "[background_fetch]\ndisable = true\n";

fn published(registry: &TestRegistry) -> Image {
    let tars = [tar(&[file("big", &noise(1, SIZE))])];
    Image::publish(registry, &tars, Shape::default())
}

/// An address that nobody uses now.
fn free_address() -> String {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    listener.local_addr().unwrap().to_string()
}

/// A daemon that serves metrics over TCP, with these further settings.
fn place_with_metrics(settings: &str) -> (Place, String) {
    let address = free_address();
    let place = Place::with(&format!("metrics_address = {address:?}\n{settings}"));
    (place, address)
}

/// The answer to a scrape.
struct Scrape {
    head: String,
    body: String,
}

impl fmt::Debug for Scrape {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}\n{}", self.head, self.body)
    }
}

impl Scrape {
    /// `None` if the daemon ends meanwhile.
    fn from(mut stream: impl Read + Write, path: &str) -> Option<Self> {
        let request = format!("GET {path} HTTP/1.1\r\nHost: node\r\nConnection: close\r\n\r\n");
        stream.write_all(request.as_bytes()).ok()?;
        let mut answer = String::new();
        stream.read_to_string(&mut answer).ok()?;
        let (head, body) = answer.split_once("\r\n\r\n")?;
        let (head, body) = (head.to_owned(), body.to_owned());
        Some(Self { head, body })
    }

    fn try_of(address: &str) -> Option<Self> {
        Self::from(TcpStream::connect(address).ok()?, "/metrics")
    }

    fn of(address: &str) -> Self {
        Self::try_of(address).expect("the daemon answers")
    }

    /// The value of a series with its labels.
    fn find(&self, series: &str) -> Option<f64> {
        let mut lines = self.body.lines();
        let value = lines.find_map(|line| line.strip_prefix(series)?.strip_prefix(' '));
        value.map(|value| value.parse().unwrap())
    }

    #[track_caller]
    fn get(&self, series: &str) -> f64 {
        self.find(series)
            .unwrap_or_else(|| panic!("no {series}: {self:?}"))
    }

    /// The value of a series of the reference about a layer.
    #[track_caller]
    fn of_layer(&self, name: &str, layer: &Digest, operation: &str) -> f64 {
        self.get(&format!(
            r#"{name}{{layer="{layer}",operation_type="{operation}"}}"#
        ))
    }
}

/// Scrapes until a series has at least this value.
fn until(address: &str, series: &str, least: f64) -> Scrape {
    let start = Instant::now();
    loop {
        let scrape = Scrape::try_of(address);
        let value = scrape.as_ref().and_then(|scrape| scrape.find(series));
        match scrape {
            Some(scrape) if value.is_some_and(|value| value >= least) => return scrape,
            _ => assert!(
                start.elapsed() < LONG,
                "{series} stays below {least}: {scrape:?}"
            ),
        }
        std::thread::sleep(Duration::from_millis(20));
    }
}

async fn pull(place: &Place, image: &Image) {
    pull_as(place, image, "key", 0, None).await;
}

/// Prepares a layer, under another name than its own if `target` is given.
async fn pull_as(place: &Place, image: &Image, key: &str, layer: usize, target: Option<Digest>) {
    let mut labels = image.labels(layer);
    if let Some(target) = target {
        let label = "containerd.io/snapshot.ref".to_owned();
        labels.insert(label, target.to_string());
    }
    let mut client = connect(place.path("s/s.sock")).await;
    let request = prepare_request("default", key, "", labels);
    let said = client.prepare(request).await.unwrap_err();
    assert_eq!(said.code(), Code::AlreadyExists, "{said}");
}

/// Reads the file of the only layer on a thread.
fn read(place: &Place) -> std::thread::JoinHandle<std::io::Result<Vec<u8>>> {
    let snapshot = numbered(&place.path("root/snapshotter/snapshots"));
    std::thread::spawn(move || fs::read(snapshot.join("fs/big")))
}

#[tokio::test(flavor = "multi_thread")]
async fn figures_agree_with_what_was_read() {
    let registry = TestRegistry::start();
    let image = published(&registry);
    let place = Place::new();
    let socket = place.path("s/metrics.sock");
    let settings = format!(
        "metrics_network = \"unix\"\nmetrics_address = {:?}\n{NOTHING_BEHIND}",
        socket.display().to_string()
    );
    fs::write(place.path("config.toml"), settings).unwrap();
    let mut running = Running::start(place.command());
    let scrape =
        |path| Scrape::from(UnixStream::connect(&socket).unwrap(), path).expect("an answer");

    let before = scrape("/metrics");
    assert!(before.head.starts_with("HTTP/1.1 200 "), "{before:?}");
    let kind = "content-type: text/plain; version=0.0.4; charset=utf-8";
    assert!(before.head.contains(kind), "{before:?}");
    let failures = r#"soci_fs_operation_count{layer="",operation_type="fuse_mount_failure_count"}"#;
    assert_eq!(before.get(failures), 0.0);
    assert_eq!(before.get("soci_read_wait_seconds_count"), 0.0);
    assert!(scrape("/").head.starts_with("HTTP/1.1 404 "));
    let scrapes = scrape("/metrics");
    assert_eq!(
        scrapes.get("promhttp_metric_handler_requests_in_flight"),
        1.0
    );
    assert_eq!(
        scrapes.get(r#"promhttp_metric_handler_requests_total{code="200"}"#),
        1.0
    );

    pull(&place, &image).await;
    let lazy = scrape("/metrics");
    let layer = image.layers[0];
    assert_eq!(
        lazy.get(r#"soci_prepared_layers_total{result="lazy"}"#),
        1.0
    );
    assert_eq!(lazy.get(r#"soci_mounted_layers{state="incomplete"}"#), 1.0);
    assert_eq!(lazy.get("soci_stored_layers"), 1.0);
    let mountpoint = numbered(&place.path("root/snapshotter/snapshots")).join("fs");
    let mounted = format!(
        r#"{{digest="{layer}",mountpoint="{}"}}"#,
        mountpoint.display()
    );
    let size = lazy.get(&format!("soci_fs_layer_size_bytes{mounted}"));
    assert!(size > SIZE as f64, "{size}");
    for operation in [
        "mount",
        "fuse_mount",
        "init_metadata_store",
        "ztoc_fetch",
        "ztoc_unmarshal",
    ] {
        let count = "soci_fs_operation_duration_milliseconds_count";
        assert_eq!(lazy.of_layer(count, &layer, operation), 1.0, "{operation}");
    }

    assert!(read(&place).join().unwrap().unwrap() == noise(1, SIZE));
    // The kernel may have read ahead.
    let no_read_waits = || {
        let scrape = scrape("/metrics");
        (scrape.get("soci_parked_reads") == 0.0).then_some(scrape)
    };
    let after = (0..500).find_map(|_| {
        thread::sleep(Duration::from_millis(20));
        no_read_waits()
    });
    let after = after.expect("every read is answered");
    let fetched = after.get(r#"soci_fetched_bytes_total{purpose="on_demand"}"#);
    assert!(
        fetched >= SIZE as f64 && fetched <= registry.bytes_sent(&layer) as f64,
        "{fetched}"
    );
    assert_eq!(
        after.get(r#"soci_fetched_bytes_total{purpose="background"}"#),
        0.0
    );
    let reads = after.of_layer("soci_fs_operation_count", &layer, "synchronous_read_count");
    let timed = "soci_fs_operation_duration_microseconds_count";
    assert_eq!(after.of_layer(timed, &layer, "synchronous_read"), reads);
    let served = after.of_layer("soci_fs_bytes_served", &layer, "synchronous_bytes_served");
    assert!(reads >= 1.0 && served >= SIZE as f64, "{reads} {served}");
    let waits = after.get("soci_read_wait_seconds_count");
    assert!(waits >= 1.0 && waits <= reads, "{waits} of {reads}");
    let spans = "synchronous_read_remote_registry_fetch_count";
    assert!(after.of_layer("soci_fs_operation_count", &layer, spans) >= 1.0);
    let part = after.get(&format!("soci_fs_layer_fetched_size_bytes{mounted}"));
    assert!(part > 0.9 * size && part <= size, "{part} of {size}");
    assert!(after.get(r#"soci_registry_requests_total{result="success"}"#) >= 4.0);

    assert_eq!(running.end(Signal::INT).code(), Some(0));
    assert!(!socket.exists());
}

#[tokio::test(flavor = "multi_thread")]
async fn scrapes_are_answered_while_a_registry_hangs() {
    let registry = TestRegistry::start();
    let image = published(&registry);
    let (place, address) = place_with_metrics(NOTHING_BEHIND);
    let mut running = Running::start(place.command());
    pull(&place, &image).await;
    let on = On::Blob(image.layers[0]);
    registry.fault(Fault::always(on, Wrong::Stall(0)));
    let reader = read(&place);
    until(&address, "soci_parked_reads", 1.0);
    let start = Instant::now();
    for _ in 0..10 {
        Scrape::of(&address);
    }
    assert!(
        start.elapsed() < Duration::from_secs(2),
        "{:?}",
        start.elapsed()
    );
    // A client that sends nothing does not delay others.
    let silent: Vec<_> = (0..8)
        .map(|_| TcpStream::connect(&address).unwrap())
        .collect();
    Scrape::of(&address);
    drop(silent);
    assert_eq!(running.end(Signal::INT).code(), Some(0));
    assert!(reader.join().unwrap().is_err(), "the daemon has ended");
}

#[tokio::test(flavor = "multi_thread")]
async fn failed_reads_are_counted_by_cause() {
    let registry = TestRegistry::start();
    let image = published(&registry);
    let (place, address) = place_with_metrics(NOTHING_BEHIND);
    let mut running = Running::start(place.command());
    pull(&place, &image).await;
    let on = On::Blob(image.layers[0]);
    registry.fault(Fault::always(on, Wrong::status(404)));
    read(&place).join().unwrap().expect_err("the layer is gone");
    let scrape = Scrape::of(&address);
    let failed = scrape.get(r#"soci_read_failures_total{cause="download"}"#);
    assert!(failed >= 1.0, "{failed}");
    assert_eq!(
        scrape.get(r#"soci_read_failures_total{cause="corrupt"}"#),
        0.0
    );
    let name = "fuse_file_read_failure_count";
    let of_layer = scrape.of_layer("soci_fs_operation_count", &image.layers[0], name);
    assert_eq!(of_layer, failed);
    let state = r#"soci_fs_operation_count{layer="",operation_type="fuse_failure_state"}"#;
    assert_eq!(scrape.get(state), 1.0);
    let refused = scrape.get(r#"soci_registry_requests_total{result="client_error"}"#);
    assert!(refused >= 1.0, "{refused}");
    assert_eq!(running.end(Signal::INT).code(), Some(0));
}

#[tokio::test(flavor = "multi_thread")]
async fn evictions_and_the_limits_of_the_cache_are_reported() {
    let registry = TestRegistry::start();
    let image = published(&registry);
    let settings = format!("{NOTHING_BEHIND}[cache]\nmax_bytes = 300000\nmin_free_bytes = -1\n");
    let (place, address) = place_with_metrics(&settings);
    let mut running = Running::start(place.command());
    pull(&place, &image).await;
    assert!(read(&place).join().unwrap().unwrap() == noise(1, SIZE));
    let scrape = Scrape::of(&address);
    assert_eq!(scrape.get("soci_cache_max_bytes"), 300_000.0);
    assert_eq!(scrape.get("soci_cache_min_free_bytes"), 0.0);
    assert!(scrape.get("soci_cache_free_bytes") > 0.0);
    // No container uses the layer, so it may be evicted at any time from here on.
    let least = (SIZE - 300_000) as f64;
    let scrape = until(&address, "soci_evicted_bytes_total", least);
    assert!(scrape.get("soci_evicted_layers_total") >= 1.0);
    assert!(scrape.get("soci_evicted_spans_total") >= 1.0);
    assert!(scrape.get("soci_cache_bytes") < SIZE as f64);
    assert_eq!(running.end(Signal::INT).code(), Some(0));
}

#[tokio::test(flavor = "multi_thread")]
async fn the_next_worker_serves_the_same_address() {
    let registry = TestRegistry::start();
    let image = published(&registry);
    let (place, address) = place_with_metrics(NOTHING_BEHIND);
    let mut running = Running::start(place.command());
    pull(&place, &image).await;
    assert_eq!(Scrape::of(&address).get("soci_worker_restarts_total"), 0.0);
    for restarts in [1.0, 2.0] {
        let before = running.worker();
        kill_process(pid(before), Signal::KILL).unwrap();
        let scrape = until(&address, "soci_worker_restarts_total", restarts);
        assert_eq!(scrape.get("soci_worker_restarts_total"), restarts);
        let scrape = until(&address, r#"soci_mounted_layers{state="incomplete"}"#, 1.0);
        assert_eq!(scrape.get("soci_read_wait_seconds_count"), 0.0);
    }
    assert!(read(&place).join().unwrap().unwrap() == noise(1, SIZE));
    // A read is counted after it is answered.
    until(&address, "soci_read_wait_seconds_count", 1.0);
    until(&address, "soci_cache_bytes", SIZE as f64);
    kill_process(Pid::from_child(&running.child), Signal::HUP).unwrap();
    until(&address, "soci_worker_restarts_total", 3.0);
    assert_eq!(running.end(Signal::INT).code(), Some(0));
}

#[test]
fn metrics_are_served_only_where_they_are_configured() {
    let (place, address) = place_with_metrics("no_prometheus = true\n");
    let mut running = Running::start(place.command());
    TcpStream::connect(&address).expect_err("nothing listens");
    assert_eq!(running.end(Signal::TERM).code(), Some(0));

    let taken = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = taken.local_addr().unwrap().to_string();
    for (settings, wanted) in [
        (format!("metrics_address = {address:?}\n"), &*address),
        ("metrics_address = 'x'\n".to_owned(), "no port"),
        (
            "metrics_address = ':1'\nmetrics_network = 'udp'\n".to_owned(),
            "unknown network",
        ),
    ] {
        let (code, said) = fails(Place::with(&settings).command());
        assert_eq!(code, Some(1), "{said}");
        assert!(
            said.contains("cannot serve metrics") && said.contains(wanted),
            "{said}"
        );
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_scrape_of_a_hundred_layers_is_fast() {
    const LAYERS: u64 = 100;
    let registry = TestRegistry::start();
    let tars: Vec<_> = (0..LAYERS)
        .map(|n| tar(&[file("a", &noise(n, 5000))]))
        .collect();
    let image = Image::publish(&registry, &tars, Shape::default());
    let (place, address) = place_with_metrics("");
    let mut running = Running::start(place.command());
    for layer in 0..tars.len() {
        pull_as(&place, &image, &format!("key-{layer}"), layer, None).await;
    }
    let state = |state| format!(r#"soci_mounted_layers{{state="{state}"}}"#);
    let scrape = until(&address, &state("complete"), LAYERS as f64);
    assert_eq!(scrape.get(&state("incomplete")), 0.0);
    let took = (0..10).map(|_| {
        let start = Instant::now();
        Scrape::of(&address);
        start.elapsed()
    });
    let took = took.min().unwrap();
    // Twice the limit, because a release is compiled with more optimization than this test.
    assert!(took < Duration::from_millis(40), "{took:?}");
    assert_eq!(running.end(Signal::INT).code(), Some(0));
}
