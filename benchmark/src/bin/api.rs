//! Latency of the snapshots service: Prepare, Stat and Remove at a fixed rate, as containerd calls
//! them.
//!
//! `api SOCKET PARENT RATE SECONDS` prints, for each method, the number of calls, and the median,
//! 99th percentile and maximum of their latencies in milliseconds. PARENT is the name of a committed
//! snapshot that the new ones stand on. The latency counts from the time at which the call is due,
//! so that a call that waits for another one counts as slow.

use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, bail};
use tonic::client::Grpc;
use tonic::codegen::http::uri::PathAndQuery;
use tonic::transport::{Channel, Endpoint};
use tonic_prost::ProstCodec;

/// Sequences of calls at once.
const CALLERS: u32 = 16;
const METHODS: [&str; 3] = ["Prepare", "Stat", "Remove"];

#[derive(Clone, PartialEq, prost::Message)]
struct Prepare {
    #[prost(string, tag = "1")]
    snapshotter: String,
    #[prost(string, tag = "2")]
    key: String,
    #[prost(string, tag = "3")]
    parent: String,
}

/// Stat and Remove.
#[derive(Clone, PartialEq, prost::Message)]
struct Named {
    #[prost(string, tag = "1")]
    snapshotter: String,
    #[prost(string, tag = "2")]
    key: String,
}

#[derive(Clone, PartialEq, prost::Message)]
struct Ignored {}

fn main() -> Result<()> {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let [socket, parent, rate, seconds] = &arguments[..] else {
        bail!("usage: api SOCKET PARENT RATE SECONDS");
    };
    let rate: f64 = rate.parse().context("RATE")?;
    let pause = Duration::from_secs_f64(f64::from(CALLERS) / rate);
    let until = Duration::from_secs(seconds.parse().context("SECONDS")?);
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()?;
    let waited = runtime.block_on(async {
        let endpoint = Endpoint::from_shared(format!("unix://{socket}"))?;
        let channel = endpoint.connect().await?;
        let start = Instant::now();
        let callers: Vec<_> = (0..CALLERS)
            .map(|number| {
                let caller = Caller {
                    client: Grpc::new(channel.clone()),
                    parent: parent.clone(),
                    number,
                };
                // Evenly spread over one pause.
                let first = start + pause * number / CALLERS;
                tokio::spawn(caller.run(first, pause, start + until))
            })
            .collect();
        let mut waited = [const { Vec::new() }; 3];
        for caller in callers {
            for (all, own) in waited.iter_mut().zip(caller.await??) {
                all.extend(own);
            }
        }
        Ok::<_, anyhow::Error>(waited)
    })?;
    for (method, mut waited) in METHODS.into_iter().zip(waited) {
        waited.sort();
        let at = |part: f64| {
            let index = (waited.len() as f64 * part) as usize;
            let wait = waited.get(index).or(waited.last());
            wait.map_or(0.0, |wait| wait.as_secs_f64() * 1e3)
        };
        println!(
            "{method}: {} calls, median {:.2} ms, p99 {:.2} ms, maximum {:.2} ms",
            waited.len(),
            at(0.5),
            at(0.99),
            at(1.0)
        );
    }
    Ok(())
}

struct Caller {
    client: Grpc<Channel>,
    parent: String,
    number: u32,
}

impl Caller {
    async fn run(
        mut self,
        mut due: Instant,
        pause: Duration,
        until: Instant,
    ) -> Result<[Vec<Duration>; 3]> {
        let mut waited = [const { Vec::new() }; 3];
        let mut round = 0;
        while due < until {
            let key = format!("benchmark/{}/{round}", self.number);
            for (method, waited) in METHODS.into_iter().zip(&mut waited) {
                tokio::time::sleep_until(due.into()).await;
                self.call(method, &key).await?;
                waited.push(due.elapsed());
                due += pause;
            }
            round += 1;
        }
        Ok(waited)
    }

    async fn call(&mut self, method: &str, key: &str) -> Result<()> {
        let path = format!("/containerd.services.snapshots.v1.Snapshots/{method}");
        let path = PathAndQuery::try_from(path)?;
        let (snapshotter, key) = ("soci".to_owned(), key.to_owned());
        self.client.ready().await?;
        if method == "Prepare" {
            let parent = self.parent.clone();
            let request = Prepare {
                snapshotter,
                key,
                parent,
            };
            let codec = ProstCodec::<Prepare, Ignored>::default();
            let request = tonic::Request::new(request);
            self.client.unary(request, path, codec).await?;
        } else {
            let codec = ProstCodec::<Named, Ignored>::default();
            let request = tonic::Request::new(Named { snapshotter, key });
            self.client.unary(request, path, codec).await?;
        }
        Ok(())
    }
}
