//! Serves metrics over HTTP, at `/metrics`.
//!
//! A scrape takes short locks only, so neither readers nor a registry can delay it. Other tasks of
//! its thread run between the encoding of two families.

use hyper::StatusCode;
use tokio::sync::watch;

use super::http::{Answer, Endpoint, PLAIN, Place, Site, ending, not_found, response};
use crate::config::Service;
use crate::device::Device;
use crate::image::Images;
use crate::metrics::{self, Figures, MetricFamily, Scraped};
use crate::snapshots::Late;
use crate::sync::{Arc, Weak};

const PATH: &str = "/metrics";

/// The parts of the daemon that a scrape asks.
#[derive(Debug)]
pub(super) struct Observer {
    pub(super) late: Late,
    pub(super) devices: watch::Receiver<Option<Arc<Device>>>,
}

impl Observer {
    fn families(&self) -> Vec<MetricFamily> {
        let figures = self.late.get().map(Images::figures);
        let parked = self.devices.borrow().as_ref().map(|device| device.parked());
        metrics::global().gather(&Figures {
            parked: parked.unwrap_or(0),
            ..figures.unwrap_or_default()
        })
    }
}

impl Site for Observer {
    const WHAT: &'static str = "metrics";

    async fn answer(site: Weak<Self>, path: String) -> Answer {
        if path != PATH {
            return not_found();
        }
        let metrics = metrics::global();
        let _in_flight = InFlight::new();
        let Some(families) = site.upgrade().map(|observer| observer.families()) else {
            metrics.scrapes.inc(Scraped::Unavailable);
            return ending();
        };
        match encoded(&families).await {
            Ok(text) => {
                metrics.scrapes.inc(Scraped::Success);
                response(StatusCode::OK, metrics::CONTENT_TYPE, text)
            }
            Err(error) => {
                metrics.scrapes.inc(Scraped::Failure);
                response(
                    StatusCode::INTERNAL_SERVER_ERROR,
                    PLAIN,
                    format!("{error}\n"),
                )
            }
        }
    }

    /// Forgets the series of removed layers.
    fn tidy(&self) {
        if let Some(images) = self.late.get() {
            metrics::global().operations.forget_old(&images.stored());
        }
    }
}

/// Listens at the address of the configuration. `None` if metrics are not served.
pub(super) async fn open(service: &Service, must: bool) -> anyhow::Result<Option<Endpoint>> {
    if !service.serves_metrics() {
        return Ok(None);
    }
    let place = Place {
        network: service.metrics_network.clone(),
        address: service.metrics_address.clone(),
        replaces: false,
        set_by: "metrics_network and metrics_address",
    };
    Endpoint::open(Observer::WHAT, place, must).await.map(Some)
}

/// Counts a scrape in progress, also if its client disconnects.
struct InFlight;

impl InFlight {
    fn new() -> Self {
        metrics::global().scraping.inc();
        Self
    }
}

impl Drop for InFlight {
    fn drop(&mut self) {
        metrics::global().scraping.dec();
    }
}

async fn encoded(families: &[MetricFamily]) -> Result<String, prometheus::Error> {
    let mut text = String::new();
    for family in families {
        metrics::encode(family, &mut text)?;
        tokio::task::yield_now().await;
    }
    Ok(text)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn metrics_are_served_unless_they_are_switched_off() {
        let service = Service {
            metrics_address: "127.0.0.1:0".to_owned(),
            ..Service::default()
        };
        assert!(open(&service, true).await.unwrap().is_some());
        let silent = Service {
            no_prometheus: true,
            ..service
        };
        assert!(open(&silent, true).await.unwrap().is_none());
        assert!(open(&Service::default(), true).await.unwrap().is_none());
    }
}
