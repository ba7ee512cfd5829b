//! The fault script of the test registry: which requests fail, how, and how often.

use std::time::Duration;

use soci_oci::digest::Digest;

/// The requests that a fault applies to.
#[derive(Clone, Debug)]
pub enum On {
    /// All requests, including token requests.
    Any,
    /// GET of this blob, including at a signed address.
    Blob(Digest),
    /// Requests whose path or query contains this text.
    Path(String),
    /// GET or HEAD of any manifest.
    Manifest,
    /// HEAD requests whose path contains this text.
    Head(String),
    /// Requests to the token endpoint.
    Token,
    /// Requests to signed addresses, which redirected clients send.
    Signed,
}

/// The fault.
#[derive(Clone, Debug)]
pub enum Wrong {
    /// Close the connection after this many bytes of the body.
    Cut(u64),
    /// Send nothing after this many bytes of the body, but keep the connection open.
    Stall(u64),
    /// Close the connection without a response.
    Hangup,
    /// Send the correct response after this delay.
    Delay(Duration),
    /// Send this response instead.
    Status {
        /// HTTP status code.
        code: u16,
        /// Additional header fields, such as `Retry-After`.
        headers: Vec<(&'static str, String)>,
        /// Body of the response.
        body: String,
    },
    /// Invert the bits of the byte at this offset of the blob.
    Flip(u64),
    /// Send this many bytes less than requested, with a matching length.
    Shorten(u64),
    /// Send this many bytes more than `Content-Range` states.
    Lengthen(u64),
    /// Respond to a range request with a 200 and the whole blob.
    IgnoreRange,
    /// The same, but close the connection after this many bytes.
    IgnoreRangeAndCut(u64),
    /// Respond with a 200 that states no length and ends after this many bytes of the blob.
    WholeWithoutLength(u64),
    /// Send the correct response without any header.
    Bare,
    /// Send a 206 with a range that starts and ends this many bytes later.
    ShiftRange(u64),
    /// Send a correct 206 with at most this many bytes of the range, which a server may do.
    GiveAtMost(u64),
    /// Send a correct 206 with `*` as the size of the blob.
    UnknownTotal,
    /// Send a 206 without `Content-Range`.
    NoContentRange,
    /// Send a 206 with the type of a response of several parts.
    Multipart,
    /// Reject ranges that end at the last byte with a 416, and with `open` also those without an
    /// end.
    RefuseEnd {
        /// Whether ranges without an end are rejected.
        open: bool,
    },
    /// Send a 206 that overstates the size of the blob by this many bytes.
    OtherTotal(u64),
}

impl Wrong {
    /// A response with only a status.
    pub fn status(code: u16) -> Wrong {
        Wrong::Status {
            code,
            headers: Vec::new(),
            body: String::new(),
        }
    }

    /// A 429 with this `Retry-After`.
    pub fn too_many(retry_after: &str) -> Wrong {
        let headers = vec![("retry-after", retry_after.to_owned())];
        Wrong::Status {
            code: 429,
            headers,
            body: String::new(),
        }
    }
}

/// One entry of the script.
#[derive(Clone, Debug)]
pub struct Fault {
    on: On,
    wrong: Wrong,
    skip: u32,
    times: u32,
}

impl Fault {
    /// Applies once, to the next matching request.
    pub fn once(on: On, wrong: Wrong) -> Fault {
        Fault {
            on,
            wrong,
            skip: 0,
            times: 1,
        }
    }

    /// Applies to every matching request until the faults are cleared.
    pub fn always(on: On, wrong: Wrong) -> Fault {
        Fault {
            on,
            wrong,
            skip: 0,
            times: u32::MAX,
        }
    }

    /// Applies this many times.
    #[must_use]
    pub fn times(self, times: u32) -> Fault {
        Fault { times, ..self }
    }

    /// Skips this many matching requests first, whether or not other faults apply to them.
    #[must_use]
    pub fn after(self, skip: u32) -> Fault {
        Fault { skip, ..self }
    }
}

/// The properties of a request that the script uses.
#[derive(Debug)]
pub(super) struct Asked<'a> {
    pub(super) path_and_query: &'a str,
    pub(super) head: bool,
    pub(super) blob: Option<&'a Digest>,
    pub(super) manifest: bool,
    pub(super) token: bool,
    pub(super) signed: bool,
}

/// The faults, tried in order.
#[derive(Debug, Default)]
pub(super) struct Script(Vec<Fault>);

impl Script {
    pub(super) fn push(&mut self, fault: Fault) {
        self.0.push(fault);
    }

    pub(super) fn clear(&mut self) {
        self.0.clear();
    }

    /// Returns the first fault that applies to the request, and removes exhausted faults.
    pub(super) fn take(&mut self, asked: &Asked<'_>) -> Option<Wrong> {
        let mut hit = None;
        for fault in &mut self.0 {
            let matches = match &fault.on {
                On::Any => true,
                On::Blob(digest) => asked.blob == Some(digest),
                On::Path(part) => asked.path_and_query.contains(part),
                On::Head(part) => asked.head && asked.path_and_query.contains(part),
                On::Manifest => asked.manifest,
                On::Token => asked.token,
                On::Signed => asked.signed,
            };
            if !matches {
                continue;
            }
            if fault.skip > 0 {
                fault.skip -= 1;
            } else if hit.is_none() {
                // "Always" is a count that no test exhausts.
                fault.times -= 1;
                hit = Some(fault.wrong.clone());
            }
        }
        self.0.retain(|fault| fault.times > 0);
        hit
    }
}
