//! gRPC health (`grpc.health.v1`) on the daemon's socket: whether it can answer containerd.
//!
//! While the daemon starts, a check waits like any other request. The services are not serving
//! while the records of snapshots cannot be read, and when the daemon ends.

use std::time::Duration;

use tonic::server::NamedService as _;
use tonic_health::ServingStatus;
use tonic_health::pb::health_server::HealthServer;
use tonic_health::server::{HealthReporter, HealthService};
use tracing::{info, warn};

use crate::grpc;
use crate::image::explain;
use crate::snapshots::Snapshotter;

/// How often to look.
const EVERY: Duration = Duration::from_secs(5);
/// How long to wait for the disk.
const PATIENCE: Duration = Duration::from_secs(10);
/// The services with a status. The empty name means the daemon as a whole.
const SERVICES: [&str; 2] = ["", grpc::Server::NAME];

/// The status of the services.
#[derive(Clone, Debug)]
pub(super) struct Health(HealthReporter);

impl Health {
    /// The status, and the service that answers checks.
    pub(super) async fn new() -> (Self, HealthServer<HealthService>) {
        let reporter = HealthReporter::new();
        let service = HealthService::from_health_reporter(reporter.clone());
        let health = Self(reporter);
        health.set(ServingStatus::Serving).await;
        (health, HealthServer::new(service))
    }

    async fn set(&self, status: ServingStatus) {
        for service in SERVICES {
            self.0.set_service_status(service, status).await;
        }
    }

    /// Follows the records of snapshots until it is dropped.
    pub(super) async fn follow(self, snapshotter: Snapshotter) {
        let mut serves = true;
        loop {
            tokio::time::sleep(EVERY).await;
            let trouble = match tokio::time::timeout(PATIENCE, snapshotter.check()).await {
                Ok(Ok(())) => None,
                Ok(Err(error)) => Some(explain(&error)),
                Err(_) => Some(format!("no answer in {} s", PATIENCE.as_secs())),
            };
            match &trouble {
                None if !serves => info!("snapshot records can be read again: health is SERVING"),
                Some(error) if serves => warn!(
                    error,
                    "snapshot records cannot be read: health is NOT_SERVING until they can"
                ),
                _ => {}
            }
            if serves != trouble.is_none() {
                serves = trouble.is_none();
                self.set(match serves {
                    true => ServingStatus::Serving,
                    false => ServingStatus::NotServing,
                })
                .await;
            }
        }
    }

    /// The daemon ends: tells those who watch, and ends their streams, for which the end would
    /// wait.
    pub(super) async fn end(&self) {
        self.set(ServingStatus::NotServing).await;
        let mut reporter = self.0.clone();
        for service in SERVICES {
            reporter.clear_service_status(service).await;
        }
    }
}
