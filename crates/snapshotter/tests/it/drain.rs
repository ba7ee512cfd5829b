//! Calls that are running when the daemon ends or its worker is replaced.

use std::path::PathBuf;
use std::time::{Duration, Instant};

use rustix::process::{Pid, Signal, kill_process};
use soci_registry::testing::{Fault, On, TestRegistry, Wrong};
use tonic::{Code, Status};

use crate::image::{Image, Shape, file, tar};
use crate::process::{LONG, Place, Running, serves};
use crate::server::{connect, prepare_request};

/// How long the daemon waits for running calls.
const DRAIN: Duration = Duration::from_secs(5);
const SIGNALS: [Signal; 2] = [Signal::TERM, Signal::HUP];

/// A daemon, and a registry that delays the zTOC of its only layer.
struct Case {
    registry: TestRegistry,
    image: Image,
    place: Place,
    running: Running,
}

impl Case {
    fn new(kept_back: Duration) -> Self {
        let registry = TestRegistry::start();
        let layer = tar(&[file("a", b"a")]);
        let image = Image::publish(&registry, &[layer], Shape::default());
        let on = On::Blob(image.ztocs[0]);
        registry.fault(Fault::always(on, Wrong::Delay(kept_back)));
        let place = Place::new();
        let running = Running::start(place.command());
        Self {
            registry,
            image,
            place,
            running,
        }
    }

    fn socket(&self) -> PathBuf {
        self.place.path("s/s.sock")
    }

    /// Prepares the layer, and sends the daemon a signal once it waits for the registry. Returns
    /// the answer to the call and how long it took after the signal.
    async fn prepare_and(&self, signal: Signal) -> (Status, Duration) {
        let mut client = connect(self.socket()).await;
        let request = prepare_request("default", "key", "", self.image.labels(0));
        let call = async {
            let answer = tokio::time::timeout(LONG, client.prepare(request)).await;
            (answer.expect("an answer").unwrap_err(), Instant::now())
        };
        let end = async {
            self.until_asked().await;
            kill_process(Pid::from_child(&self.running.child), signal).unwrap();
            Instant::now()
        };
        let ((status, answered), signalled) = tokio::join!(call, end);
        let took = answered.checked_duration_since(signalled);
        (status, took.expect("the call was running"))
    }

    /// Waits until the daemon has requested the zTOC.
    async fn until_asked(&self) {
        let ztoc = self.image.ztocs[0].to_string();
        let asked = || {
            let seen = self.registry.seen();
            seen.iter().any(|seen| seen.path.ends_with(&ztoc))
        };
        let start = Instant::now();
        while !asked() {
            assert!(start.elapsed() < LONG, "the zTOC is not requested");
            tokio::time::sleep(Duration::from_millis(2)).await;
        }
    }

    /// Checks that the daemon has ended or that another worker serves.
    fn went_on(&mut self, signal: Signal) {
        if signal == Signal::HUP {
            serves(&self.socket());
            assert_eq!(self.running.end(Signal::INT).code(), Some(0));
        } else {
            while self.running.next() {}
            assert_eq!(self.running.child.wait().unwrap().code(), Some(0));
        }
    }
}

const GIVEN_UP: &str = "cancelling requests that are still running";

#[tokio::test(flavor = "multi_thread")]
async fn a_call_under_way_is_answered_before_the_worker_ends() {
    for signal in SIGNALS {
        let mut case = Case::new(Duration::from_secs(2));
        let (status, took) = case.prepare_and(signal).await;
        // The call's own answer: the layer is mounted.
        assert_eq!(status.code(), Code::AlreadyExists, "{signal:?}: {status}");
        assert!(took < DRAIN, "{signal:?}: {took:?}");
        tokio::task::block_in_place(|| case.went_on(signal));
        assert!(case.running.has("Got terminated"));
        assert!(!case.running.has(GIVEN_UP));
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_call_that_takes_longer_is_told_to_come_again() {
    for signal in SIGNALS {
        let mut case = Case::new(LONG);
        let (status, took) = case.prepare_and(signal).await;
        assert_eq!(status.code(), Code::Unavailable, "{signal:?}: {status:?}");
        let said = status.message();
        assert!(said.contains("stopped or replaced"), "{signal:?}: {said}");
        assert!(took >= DRAIN, "{signal:?}: {took:?}");
        assert!(
            took < DRAIN + Duration::from_secs(3),
            "{signal:?}: {took:?}"
        );
        case.registry.clear_faults();
        tokio::task::block_in_place(|| case.went_on(signal));
        assert!(case.running.has(GIVEN_UP), "{:#?}", case.running.said);
    }
}
