//! A TCP relay that makes a local registry remote, slow or unreachable.
//!
//! Each direction of a connection has a reader, a queue and a writer. Bytes leave the queue after
//! their delay, and no faster than two token buckets allow, one per connection and one shared (both
//! count only the direction to the client, in which layers travel). A new connection costs an extra
//! round trip, as a handshake would. Loss and slow start are not modeled.

use std::io::{ErrorKind, Read, Write};
use std::net::{Shutdown, SocketAddr, TcpListener, TcpStream};
use std::sync::atomic::{AtomicBool, AtomicU8, AtomicU64, Ordering};
use std::sync::mpsc::{Receiver, SyncSender, sync_channel};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::thread;
use std::time::{Duration, Instant};

/// Properties of the link. The default has no delay and no limits.
#[derive(Debug, Clone, Copy, Default)]
pub struct Shape {
    pub round_trip: Duration,
    /// Bytes per second of all connections together.
    pub rate: Option<u64>,
    /// Bytes per second of one connection.
    pub connection_rate: Option<u64>,
}

/// A running relay. On drop it stops accepting connections and closes existing ones.
#[derive(Debug)]
pub struct Relay {
    address: SocketAddr,
    link: Arc<Link>,
}

#[derive(Debug)]
struct Link {
    to: SocketAddr,
    shape: Shape,
    shared: Option<Bucket>,
    open: AtomicBool,
    /// [`FLOWS`], [`SILENT`] or [`DRIPS`].
    manner: AtomicU8,
    asked: AtomicU64,
    stopped: AtomicBool,
    delivered: AtomicU64,
    streams: Mutex<Vec<TcpStream>>,
}

/// How bytes reach clients: normally, not at all, or one at a time with pauses.
const FLOWS: u8 = 0;
const SILENT: u8 = 1;
const DRIPS: u8 = 2;
/// Pause between two bytes.
const DRIP: Duration = Duration::from_secs(1);

/// Pieces in flight in one direction of a connection: 4,096 pieces of at most 16 KiB, enough for
/// any delay used here.
const QUEUE: usize = 4096;
const PIECE: usize = 16 << 10;

/// Size of the kernel's send buffer in bytes. It is small, so that bytes for a client that does not
/// read count as not transferred.
const KEPT: usize = 64 << 10;

impl Relay {
    /// Listens on `listen` (port 0 for any port) and relays to `to`.
    pub fn start(listen: SocketAddr, to: SocketAddr, shape: Shape) -> std::io::Result<Self> {
        let listener = TcpListener::bind(listen)?;
        let address = listener.local_addr()?;
        let link = Arc::new(Link {
            to,
            shape,
            shared: shape.rate.map(Bucket::new),
            open: AtomicBool::new(true),
            manner: AtomicU8::new(FLOWS),
            asked: AtomicU64::new(0),
            stopped: AtomicBool::new(false),
            delivered: AtomicU64::new(0),
            streams: Mutex::new(Vec::new()),
        });
        let accepting = Arc::clone(&link);
        thread::Builder::new()
            .name("relay-accept".into())
            .spawn(move || accepting.accept(&listener))?;
        Ok(Self { address, link })
    }

    /// The address for clients.
    pub fn address(&self) -> SocketAddr {
        self.address
    }

    /// Makes the registry unreachable: closes connections, and new ones as soon as they are opened.
    pub fn cut(&self) {
        self.link.open.store(false, Ordering::SeqCst);
        self.link.close_all();
    }

    /// Keeps connections open and accepts new ones, but forwards nothing to clients.
    pub fn silence(&self) {
        self.link.manner.store(SILENT, Ordering::SeqCst);
    }

    /// The same, but each connection forwards one byte every `DRIP`.
    pub fn drip(&self) {
        self.link.manner.store(DRIPS, Ordering::SeqCst);
    }

    /// Number of bytes that clients have sent.
    pub fn asked(&self) -> u64 {
        self.link.asked.load(Ordering::SeqCst)
    }

    /// Makes the registry reachable again.
    pub fn restore(&self) {
        self.link.manner.store(FLOWS, Ordering::SeqCst);
        self.link.open.store(true, Ordering::SeqCst);
    }

    /// Sets the rate of all connections together. Requires a link that was created with a rate.
    pub fn limit(&self, rate: u64) {
        if let Some(bucket) = &self.link.shared {
            bucket.rate.store(rate.max(1), Ordering::SeqCst);
        }
    }

    /// Number of bytes that clients have received.
    pub fn delivered(&self) -> u64 {
        self.link.delivered.load(Ordering::SeqCst)
    }
}

impl Drop for Relay {
    fn drop(&mut self) {
        self.link.stopped.store(true, Ordering::SeqCst);
        self.cut();
        // A connection wakes the accept loop, which then ends.
        drop(TcpStream::connect(self.address));
    }
}

impl Link {
    fn accept(self: Arc<Self>, listener: &TcpListener) {
        for client in listener.incoming() {
            if self.stopped.load(Ordering::SeqCst) {
                return;
            }
            let Ok(client) = client else { continue };
            if !self.open.load(Ordering::SeqCst) {
                continue;
            }
            let link = Arc::clone(&self);
            let named = thread::Builder::new().name("relay-connection".into());
            if named.spawn(move || link.carry(&client)).is_err() {
                return;
            }
        }
    }

    fn carry(self: &Arc<Self>, client: &TcpStream) {
        let Ok(server) = TcpStream::connect(self.to) else {
            return;
        };
        if rustix::net::sockopt::set_socket_send_buffer_size(client, KEPT).is_err() {
            return;
        }
        let streams =
            [client, &server].map(|stream| (stream.set_nodelay(true), stream.try_clone()));
        for (_, clone) in streams {
            let Ok(clone) = clone else { return };
            self.streams().push(clone);
        }
        let bucket = self.shape.connection_rate.map(Bucket::new);
        let opened = Instant::now() + self.shape.round_trip;
        thread::scope(|scope| {
            scope.spawn(|| self.direction(client, &server, opened, false, None));
            self.direction(&server, client, opened, true, bucket.as_ref());
        });
    }

    /// Moves bytes until either end closes, then closes both.
    fn direction(
        &self,
        from: &TcpStream,
        to: &TcpStream,
        opened: Instant,
        limited: bool,
        own: Option<&Bucket>,
    ) {
        let (sender, receiver) = sync_channel(QUEUE);
        let delay = self.shape.round_trip / 2;
        thread::scope(|scope| {
            scope.spawn(move || read_pieces(from, &sender, opened, delay));
            self.write_pieces(to, &receiver, limited, own);
            close(from);
        });
        close(to);
    }

    fn write_pieces(
        &self,
        mut to: &TcpStream,
        pieces: &Receiver<(Instant, Vec<u8>)>,
        limited: bool,
        own: Option<&Bucket>,
    ) {
        for (due, piece) in pieces {
            wait_until(due);
            if limited {
                let mut when = Instant::now();
                for bucket in [own, self.shared.as_ref()].into_iter().flatten() {
                    when = when.max(bucket.take(piece.len()));
                }
                wait_until(when);
            }
            let rest = if limited {
                self.hold(to, &piece)
            } else {
                self.asked.fetch_add(piece.len() as u64, Ordering::SeqCst);
                Some(piece.as_slice())
            };
            if rest.is_none_or(|rest| to.write_all(rest).is_err()) {
                return;
            }
            if limited {
                self.delivered
                    .fetch_add(piece.len() as u64, Ordering::SeqCst);
            }
        }
    }

    /// Holds a piece while the link does not flow, and returns what has not been forwarded by then;
    /// `None` at the end.
    fn hold<'p>(&self, mut to: &TcpStream, piece: &'p [u8]) -> Option<&'p [u8]> {
        let mut rest = piece;
        let mut next = Instant::now() + DRIP;
        loop {
            if self.stopped.load(Ordering::SeqCst) {
                return None;
            }
            match self.manner.load(Ordering::SeqCst) {
                FLOWS => return Some(rest),
                DRIPS if Instant::now() >= next => {
                    let (byte, left) = rest.split_at_checked(1)?;
                    to.write_all(byte).ok()?;
                    rest = left;
                    next = Instant::now() + DRIP;
                }
                _ => thread::sleep(Duration::from_millis(10)),
            }
        }
    }

    fn streams(&self) -> MutexGuard<'_, Vec<TcpStream>> {
        self.streams.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn close_all(&self) {
        for stream in self.streams().drain(..) {
            close(&stream);
        }
    }
}

fn read_pieces(
    mut from: &TcpStream,
    to: &SyncSender<(Instant, Vec<u8>)>,
    opened: Instant,
    delay: Duration,
) {
    loop {
        let mut piece = vec![0; PIECE];
        match from.read(&mut piece) {
            Ok(0) => return,
            Ok(length) => {
                piece.truncate(length);
                if to
                    .send((Instant::now().max(opened) + delay, piece))
                    .is_err()
                {
                    return;
                }
            }
            Err(error) if error.kind() == ErrorKind::Interrupted => {}
            Err(_) => return,
        }
    }
}

/// The stream may already be closed by the other end.
fn close(stream: &TcpStream) {
    drop(stream.shutdown(Shutdown::Both));
}

fn wait_until(when: Instant) {
    let now = Instant::now();
    if when > now {
        thread::sleep(when - now);
    }
}

/// A token bucket as a time: when everything taken so far has passed.
#[derive(Debug)]
struct Bucket {
    rate: AtomicU64,
    passed: Mutex<Instant>,
}

/// Bytes that may pass at once after a pause, as a time: 2 ms, so that inexact sleeps do not lower
/// the rate.
const BURST: Duration = Duration::from_millis(2);

impl Bucket {
    fn new(rate: u64) -> Self {
        Self {
            rate: AtomicU64::new(rate.max(1)),
            passed: Mutex::new(Instant::now()),
        }
    }

    /// The time when these bytes have passed.
    fn take(&self, bytes: usize) -> Instant {
        let mut passed = self.passed.lock().unwrap_or_else(PoisonError::into_inner);
        let now = Instant::now();
        let from = (*passed).max(now.checked_sub(BURST).unwrap_or(now));
        let rate = self.rate.load(Ordering::SeqCst);
        *passed = from + Duration::from_nanos((bytes as u64).saturating_mul(1_000_000_000) / rate);
        *passed
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A server that sends `bytes` to each client.
    fn server(bytes: usize) -> SocketAddr {
        let listener = TcpListener::bind(("127.0.0.1", 0)).expect("listen");
        let address = listener.local_addr().expect("the listener has an address");
        thread::spawn(move || {
            for stream in listener.incoming().flatten() {
                let mut stream = stream;
                drop(stream.write_all(&vec![7; bytes]));
            }
        });
        address
    }

    fn any_port() -> SocketAddr {
        SocketAddr::from(([127, 0, 0, 1], 0))
    }

    fn received(from: SocketAddr) -> usize {
        let mut all = Vec::new();
        let mut stream = TcpStream::connect(from).expect("connect");
        drop(stream.read_to_end(&mut all));
        all.len()
    }

    #[test]
    fn the_relay_keeps_the_configured_rate_and_delay() {
        let shape = Shape {
            round_trip: Duration::from_millis(40),
            rate: Some(20_000_000),
            connection_rate: None,
        };
        let relay = Relay::start(any_port(), server(4_000_000), shape).expect("the relay starts");
        let start = Instant::now();
        assert_eq!(received(relay.address()), 4_000_000);
        let took = start.elapsed().as_secs_f64();
        assert!(
            (0.25..0.40).contains(&took),
            "200 ms of bytes and 60 ms of delay took {took}"
        );
        assert_eq!(relay.delivered(), 4_000_000);
    }

    #[test]
    fn a_silent_relay_takes_connections_and_gives_nothing_until_it_is_restored() {
        let relay =
            Relay::start(any_port(), server(1000), Shape::default()).expect("the relay starts");
        relay.silence();
        thread::scope(|scope| {
            let client = scope.spawn(|| received(relay.address()));
            let start = Instant::now();
            while start.elapsed() < Duration::from_millis(100) {
                assert_eq!(relay.delivered(), 0);
                thread::sleep(Duration::from_millis(10));
            }
            relay.restore();
            assert_eq!(client.join().expect("no panic"), 1000);
        });
    }

    #[test]
    fn a_cut_relay_closes_connections_until_it_is_restored() {
        let relay =
            Relay::start(any_port(), server(1000), Shape::default()).expect("the relay starts");
        assert_eq!(received(relay.address()), 1000);
        relay.cut();
        assert_eq!(received(relay.address()), 0);
        relay.restore();
        assert_eq!(received(relay.address()), 1000);
    }
}
