//! The [`Relay`] as a program, for the demo and the benchmarks.
//!
//! usage: soci-test-relay LISTEN TO ROUND-TRIP-MS MEGABYTES-A-SECOND MEGABYTES-A-SECOND-A-CONNECTION
//!
//! Runs until it is killed.

use std::net::SocketAddr;
use std::time::Duration;

use anyhow::{Context, Result};
use soci_tests::{Relay, Shape};

fn main() -> Result<()> {
    let mut arguments = std::env::args().skip(1);
    let mut next = |what: &str| arguments.next().with_context(|| format!("missing: {what}"));
    let listen: SocketAddr = next("address to listen on")?.parse()?;
    let to: SocketAddr = next("address to relay to")?.parse()?;
    let round_trip = Duration::from_millis(next("round trip in milliseconds")?.parse()?);
    let rate = next("megabytes a second")?.parse::<u64>()? * 1_000_000;
    let connection_rate = next("megabytes a second a connection")?.parse::<u64>()? * 1_000_000;
    let shape = Shape {
        round_trip,
        rate: Some(rate),
        connection_rate: Some(connection_rate),
    };
    let _relay = Relay::start(listen, to, shape)?;
    loop {
        std::thread::park();
    }
}
