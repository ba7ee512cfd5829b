//! gRPC health.

use std::time::{Duration, Instant};

use rustix::process::{Pid, Signal, kill_process};
use soci_snapshotter::grpc;
use tonic::Code;
use tonic::server::NamedService as _;
use tonic_health::pb::HealthCheckRequest;
use tonic_health::pb::health_check_response::ServingStatus;
use tonic_health::pb::health_client::HealthClient;

use crate::process::{Place, Running};
use crate::server::channel;

#[tokio::test(flavor = "multi_thread")]
async fn health_is_serving_until_the_daemon_ends() {
    let place = Place::new();
    let mut running = Running::start(place.command());
    let mut client = HealthClient::new(channel(place.path("s/s.sock")).await);
    let request = |service: &str| HealthCheckRequest {
        service: service.to_owned(),
    };
    for service in ["", grpc::Server::NAME] {
        let answer = client.check(request(service)).await.expect("an answer");
        let status = answer.into_inner().status();
        assert_eq!(status, ServingStatus::Serving, "{service:?}");
    }
    let unknown = client.check(request("other")).await.unwrap_err();
    assert_eq!(unknown.code(), Code::NotFound);

    let watched = client.watch(request(grpc::Server::NAME)).await;
    let mut watched = watched.expect("a stream").into_inner();
    let first = watched.message().await.unwrap().expect("a status");
    assert_eq!(first.status(), ServingStatus::Serving);
    kill_process(Pid::from_child(&running.child), Signal::TERM).unwrap();
    let begin = Instant::now();
    let last = watched.message().await.unwrap().expect("a status");
    assert_eq!(last.status(), ServingStatus::NotServing);
    assert!(
        watched.message().await.unwrap().is_none(),
        "the stream ends"
    );
    while running.next() {}
    assert!(
        begin.elapsed() < Duration::from_secs(4),
        "the end waits for a stream"
    );
}
