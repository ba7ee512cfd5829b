//! Answers the kernel's requests: a root directory with one file per layer, named by its number.

use std::collections::HashSet;
use std::fmt;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use rustix::io::Errno;

use super::journal::Journal;
use super::reads::{Arrived, Reads};
use super::session::{Connection, Handler};
use super::wire::{self, Attributes, Listing, NodeId, Operation, Request, Unique};

/// For how long the kernel may cache names and attributes, in seconds. They never change.
const VALID_SECS: u64 = 365 * 24 * 60 * 60;

/// The smallest file number: 1 is the root, and the kernel uses 0 for "no node".
pub(super) const FIRST_FILE: u64 = 2;

/// Type and permission bits. Only root opens these files, on the mount thread.
const ROOT_MODE: u32 = 0o040_500;
const FILE_MODE: u32 = 0o100_400;

/// State shared by the threads.
#[derive(Default)]
pub(super) struct Files {
    pub(super) reads: Arc<Reads>,
    /// Number of running threads.
    pub(super) running: AtomicUsize,
}

impl fmt::Debug for Files {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Files")
            .field("unanswered", &self.reads.unanswered_in_all())
            .field("running", &self.running)
            .finish_non_exhaustive()
    }
}

/// The reply to a request that is answered immediately.
enum Reply {
    Body(Vec<u8>),
    Error(Errno),
    /// No reply: the operation has none, or the request is parked.
    None,
}

impl Handler for Files {
    fn handle(&self, connection: &Arc<Connection>, bytes: &[u8]) {
        let request = match wire::parse(bytes) {
            Ok(request) => request,
            Err(error) => {
                tracing::error!(%error, len = bytes.len(), "cannot parse a FUSE request");
                if let Some(unique) = wire::unique_of(bytes) {
                    connection.reply_error(unique, Errno::IO);
                }
                return;
            }
        };
        let unique = request.unique;
        // A panic gives EIO for this request only. If it was a READ, unwinding has already answered
        // it.
        let reply = catch_unwind(AssertUnwindSafe(|| self.answer(connection, &request)))
            .unwrap_or_else(|_| {
                tracing::error!(unique = unique.0, "a FUSE request panicked");
                Reply::Error(Errno::IO)
            });
        match reply {
            Reply::Body(body) => connection.reply(unique, &body),
            Reply::Error(error) => connection.reply_error(unique, error),
            Reply::None => {}
        }
    }

    fn ended(&self) {
        self.running.fetch_sub(1, Ordering::SeqCst);
    }
}

impl Files {
    /// Takes over the requests that an earlier process had read and not answered.
    pub(super) fn take_over(&self, connection: &Arc<Connection>, journal: &Arc<Journal>) {
        let written = journal.reads();
        let known: HashSet<u64> = written.iter().map(|(_, read)| read.unique).collect();
        let mut count = known.len();
        for (slot, read) in written {
            self.reads.arrive(Arrived {
                connection: Arc::clone(connection),
                unique: Unique(read.unique),
                layer: read.layer,
                offset: read.offset,
                size: read.size,
                slot: Some(slot),
            });
        }
        for mut buffer in journal.buffers() {
            let Some(request) = buffer.request() else {
                continue;
            };
            // A READ that is both recorded and still in its buffer is one READ.
            if wire::unique_of(request).is_some_and(|unique| !known.contains(&unique.0)) {
                self.handle(connection, request);
                count += 1;
            }
            buffer.clear();
        }
        tracing::info!(count, "took over the requests of an earlier process");
    }

    /// Answers or parks a request.
    fn answer(&self, connection: &Arc<Connection>, request: &Request<'_>) -> Reply {
        match request.operation {
            Operation::Lookup(name) => self.lookup(request.node, name),
            Operation::GetAttr => match self.attributes(request.node) {
                Some(attributes) => Reply::Body(wire::attr_out(&attributes, VALID_SECS)),
                None => Reply::Error(Errno::STALE),
            },
            Operation::Open => match self.reads.get(request.node.0) {
                Some(_) => Reply::Body(wire::open_out(wire::OPEN_DIRECT_IO | wire::OPEN_NO_FLUSH)),
                None => Reply::Error(Errno::STALE),
            },
            Operation::Read { offset, size } => {
                let read = (request.node.0, offset, size);
                self.reads
                    .arrive(Arrived::new(connection, request.unique, read));
                Reply::None
            }
            Operation::OpenDir => Reply::Body(wire::open_out(0)),
            Operation::ReadDir { offset, size } => Reply::Body(self.list(offset, size)),
            Operation::StatFs => {
                let files = self.reads.numbers().len();
                Reply::Body(wire::statfs_out(u64::try_from(files).unwrap_or(u64::MAX)))
            }
            Operation::Release | Operation::ReleaseDir | Operation::Destroy => {
                Reply::Body(Vec::new())
            }
            Operation::Forget | Operation::BatchForget | Operation::Interrupt => Reply::None,
            // INIT is sent once, in the handshake.
            Operation::Init(_) => Reply::Error(Errno::PROTO),
            Operation::Other(_) => Reply::Error(Errno::NOSYS),
        }
    }

    fn lookup(&self, parent: NodeId, name: &[u8]) -> Reply {
        let found = file_number(name)
            .filter(|_| parent == NodeId::ROOT)
            .and_then(|number| self.attributes(NodeId(number)));
        match found {
            Some(attributes) => Reply::Body(wire::entry_out(&attributes, VALID_SECS)),
            None => Reply::Error(Errno::NOENT),
        }
    }

    fn attributes(&self, node: NodeId) -> Option<Attributes> {
        if node == NodeId::ROOT {
            return Some(Attributes {
                node,
                size: 0,
                mode: ROOT_MODE,
                links: 2,
            });
        }
        let size = self.reads.get(node.0)?.size();
        Some(Attributes {
            node,
            size,
            mode: FILE_MODE,
            links: 1,
        })
    }

    /// The entries of the root after `offset`. An entry's offset depends only on its number (`.` is
    /// 1, `..` is 2, file n is n + 1), so a listing continues correctly while files are added and
    /// removed.
    fn list(&self, offset: u64, size: u32) -> Vec<u8> {
        let mut listing = Listing::new(size);
        let dots = [(1, ".".to_owned()), (2, "..".to_owned())];
        let dots = dots.map(|(at, name)| (at, NodeId::ROOT, ROOT_MODE, name));
        let files = self.reads.numbers().into_iter();
        let files = files.map(|n| (n.saturating_add(1), NodeId(n), FILE_MODE, n.to_string()));
        for (at, node, mode, name) in dots.into_iter().chain(files) {
            if at > offset && !listing.push(node, at, mode, name.as_bytes()) {
                break;
            }
        }
        listing.into_bytes()
    }
}

/// Parses a file name in the root: a decimal number, as written by [`super::Device::path`].
fn file_number(name: &[u8]) -> Option<u64> {
    let number: u64 = std::str::from_utf8(name).ok()?.parse().ok()?;
    (number >= FIRST_FILE && number.to_string().as_bytes() == name).then_some(number)
}
