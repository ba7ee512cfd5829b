//! A TCP relay that makes a local registry far away, slow or absent.
//!
//! Each direction of a connection is a reader, a queue and a writer: bytes leave the queue not before their delay and
//! not faster than two token buckets allow, one of the connection and one shared by all (both count the direction
//! towards the client only, which is where layers travel). A new connection pays one more round trip, as a handshake
//! would. Loss and slow start are not modelled.

use std::io::{ErrorKind, Read, Write};
use std::net::{Shutdown, SocketAddr, TcpListener, TcpStream};
use std::sync::atomic::{AtomicBool, AtomicU8, AtomicU64, Ordering};
use std::sync::mpsc::{Receiver, SyncSender, sync_channel};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::thread;
use std::time::{Duration, Instant};

/// What the link is like. The default is a wire without delay or limit.
#[derive(Debug, Clone, Copy, Default)]
pub struct Shape {
    pub round_trip: Duration,
    /// Bytes a second of all connections together.
    pub rate: Option<u64>,
    /// Bytes a second of one connection.
    pub connection_rate: Option<u64>,
}

/// A running relay; it stops taking connections when dropped and closes those it has.
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

/// How bytes go to clients: as the shape says, not at all, or one now and then.
const FLOWS: u8 = 0;
const SILENT: u8 = 1;
const DRIPS: u8 = 2;
/// Time from one byte to the next.
const DRIP: Duration = Duration::from_secs(1);

/// Bytes in flight in one direction of one connection: 4,096 pieces of at most 16 KiB, more than any delay here needs.
const QUEUE: usize = 4096;
const PIECE: usize = 16 << 10;

/// What the kernel keeps for a client that does not read: little, or the bytes of one that waits would still pass the link.
const KEPT: usize = 64 << 10;

impl Relay {
    /// Listens on `listen` (port 0: any) and relays to `to`.
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

    /// Where clients connect.
    pub fn address(&self) -> SocketAddr {
        self.address
    }

    /// The registry is gone: connections are closed, and new ones are closed as soon as they come.
    pub fn cut(&self) {
        self.link.open.store(false, Ordering::SeqCst);
        self.link.close_all();
    }

    /// Connections stay and new ones are taken, and nothing comes of them: what the registry says waits here.
    pub fn silence(&self) {
        self.link.manner.store(SILENT, Ordering::SeqCst);
    }

    /// The same, but a byte comes of each every [`DRIP`].
    pub fn drip(&self) {
        self.link.manner.store(DRIPS, Ordering::SeqCst);
    }

    /// Bytes that clients have sent.
    pub fn asked(&self) -> u64 {
        self.link.asked.load(Ordering::SeqCst)
    }

    /// The registry is back.
    pub fn restore(&self) {
        self.link.manner.store(FLOWS, Ordering::SeqCst);
        self.link.open.store(true, Ordering::SeqCst);
    }

    /// All connections together get so many bytes a second from now on; only on a link that was made with a rate.
    pub fn limit(&self, rate: u64) {
        if let Some(bucket) = &self.link.shared {
            bucket.rate.store(rate.max(1), Ordering::SeqCst);
        }
    }

    /// Bytes that have reached clients.
    pub fn delivered(&self) -> u64 {
        self.link.delivered.load(Ordering::SeqCst)
    }
}

impl Drop for Relay {
    fn drop(&mut self) {
        self.link.stopped.store(true, Ordering::SeqCst);
        self.cut();
        // A connection of our own wakes the accept loop, which then sees that it is to end.
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

    /// Keeps a piece as long as the link does not flow, and gives what has not dripped meanwhile; `None` at the end.
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

/// Closing a stream that the other end has closed already is what is wanted.
fn close(stream: &TcpStream) {
    drop(stream.shutdown(Shutdown::Both));
}

fn wait_until(when: Instant) {
    let now = Instant::now();
    if when > now {
        thread::sleep(when - now);
    }
}

/// Tokens as a time: the moment at which everything taken so far has passed.
#[derive(Debug)]
struct Bucket {
    rate: AtomicU64,
    passed: Mutex<Instant>,
}

/// What may pass at once after a pause: two milliseconds' worth, so that sleeping's coarseness costs no rate.
const BURST: Duration = Duration::from_millis(2);

impl Bucket {
    fn new(rate: u64) -> Self {
        Self {
            rate: AtomicU64::new(rate.max(1)),
            passed: Mutex::new(Instant::now()),
        }
    }

    /// When these bytes have passed.
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

    /// A server that sends `bytes` to whoever connects.
    fn server(bytes: usize) -> SocketAddr {
        let listener = TcpListener::bind(("127.0.0.1", 0)).expect("listen");
        let address = listener.local_addr().expect("an address");
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
    fn the_rate_and_the_delay_are_those_asked_for() {
        let shape = Shape {
            round_trip: Duration::from_millis(40),
            rate: Some(20_000_000),
            connection_rate: None,
        };
        let relay = Relay::start(any_port(), server(4_000_000), shape).expect("a relay");
        let start = Instant::now();
        assert_eq!(received(relay.address()), 4_000_000);
        let took = start.elapsed().as_secs_f64();
        assert!(
            (0.25..0.40).contains(&took),
            "200 ms of bytes and 60 ms of way took {took}"
        );
        assert_eq!(relay.delivered(), 4_000_000);
    }

    #[test]
    fn a_silent_relay_takes_connections_and_gives_nothing_until_it_is_restored() {
        let relay = Relay::start(any_port(), server(1000), Shape::default()).expect("a relay");
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
        let relay = Relay::start(any_port(), server(1000), Shape::default()).expect("a relay");
        assert_eq!(received(relay.address()), 1000);
        relay.cut();
        assert_eq!(received(relay.address()), 0);
        relay.restore();
        assert_eq!(received(relay.address()), 1000);
    }
}
