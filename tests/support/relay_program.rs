//! The [`Relay`] as a program, for the demo and the benchmarks.
//!
//! usage: `soci-test-relay LISTEN TO ROUND-TRIP-MS MEGABYTES-A-SECOND MEGABYTES-A-SECOND-A-CONNECTION [FILE]`
//!
//! Runs until it is killed. Appends to FILE the time and the number of bytes that clients have
//! received, whenever it has grown.

use std::fs::File;
use std::io::Write as _;
use std::net::SocketAddr;
use std::time::{Duration, SystemTime};

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
    let relay = Relay::start(listen, to, shape)?;
    if let Ok(path) = next("file") {
        return count(&relay, &path);
    }
    loop {
        std::thread::park();
    }
}

/// Time between two looks at the counter.
const LOOK: Duration = Duration::from_millis(10);

fn count(relay: &Relay, path: &str) -> Result<()> {
    let mut file = File::create(path).with_context(|| format!("cannot create {path}"))?;
    let mut written = None;
    loop {
        let delivered = relay.delivered();
        if written.replace(delivered) != Some(delivered) {
            let now = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH)?;
            writeln!(file, "{:.3} {delivered}", now.as_secs_f64())?;
        }
        std::thread::sleep(LOOK);
    }
}
