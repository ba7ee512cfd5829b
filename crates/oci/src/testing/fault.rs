//! The fault script of the test registry: which request goes wrong, how, and how often.

use std::time::Duration;

use crate::digest::Digest;

/// Requests that a fault applies to.
#[derive(Clone, Debug)]
pub enum On {
    /// All of them, token requests included.
    Any,
    /// GET of this blob, also at a signed address.
    Blob(Digest),
    /// Path (with query) contains this text.
    Path(String),
    /// GET or HEAD of any manifest.
    Manifest,
    /// The token endpoint.
    Token,
    /// Signed addresses only: what a redirected client asks for.
    Signed,
}

/// What goes wrong.
#[derive(Clone, Debug)]
pub enum Wrong {
    /// The connection closes after this many bytes of the body.
    Cut(u64),
    /// Nothing comes after this many bytes of the body; the connection stays open.
    Stall(u64),
    /// The connection closes before any answer.
    Hangup,
    /// The answer comes this much later, and is right.
    Delay(Duration),
    /// A status instead of the answer.
    Status {
        /// HTTP status code.
        code: u16,
        /// More header fields, such as `Retry-After`.
        headers: Vec<(&'static str, String)>,
        /// Body of the answer.
        body: String,
    },
    /// The byte at this offset of the blob arrives with its bits flipped.
    Flip(u64),
    /// The body is this much shorter than asked for, and says so in its length.
    Shorten(u64),
    /// The body has this many bytes more than its `Content-Range` says.
    Lengthen(u64),
    /// A 200 with the whole blob in answer to a range.
    IgnoreRange,
    /// The same, and the connection closes after this many bytes.
    IgnoreRangeAndCut(u64),
    /// A 206 with another range, this much further on.
    ShiftRange(u64),
    /// A 206 with at most this many bytes of the range, and says so: a server may do that.
    GiveAtMost(u64),
    /// The right 206, with `*` for the blob's size.
    UnknownTotal,
    /// A 206 with a blob size that is this much larger than the truth.
    OtherTotal(u64),
}

impl Wrong {
    /// A bare status.
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

/// One line of the script.
#[derive(Clone, Debug)]
pub struct Fault {
    on: On,
    wrong: Wrong,
    skip: u32,
    times: u32,
}

impl Fault {
    /// Goes wrong once, at the next request that matches.
    pub fn once(on: On, wrong: Wrong) -> Fault {
        Fault {
            on,
            wrong,
            skip: 0,
            times: 1,
        }
    }

    /// Goes wrong at every matching request until the faults are cleared.
    pub fn always(on: On, wrong: Wrong) -> Fault {
        Fault {
            on,
            wrong,
            skip: 0,
            times: u32::MAX,
        }
    }

    /// Goes wrong this many times.
    #[must_use]
    pub fn times(self, times: u32) -> Fault {
        Fault { times, ..self }
    }

    /// Lets this many matching requests pass first (whatever other lines do to them).
    #[must_use]
    pub fn after(self, skip: u32) -> Fault {
        Fault { skip, ..self }
    }
}

/// What the script needs to know of a request.
#[derive(Debug)]
pub(super) struct Asked<'a> {
    pub(super) path_and_query: &'a str,
    pub(super) blob: Option<&'a Digest>,
    pub(super) manifest: bool,
    pub(super) token: bool,
    pub(super) signed: bool,
}

/// Lines of the script, tried in order.
#[derive(Debug, Default)]
pub(super) struct Script(Vec<Fault>);

impl Script {
    pub(super) fn push(&mut self, fault: Fault) {
        self.0.push(fault);
    }

    pub(super) fn clear(&mut self) {
        self.0.clear();
    }

    /// What this request suffers: the first line that matches and is due. Lines used up go.
    pub(super) fn take(&mut self, asked: &Asked<'_>) -> Option<Wrong> {
        let mut hit = None;
        for fault in &mut self.0 {
            let matches = match &fault.on {
                On::Any => true,
                On::Blob(digest) => asked.blob == Some(digest),
                On::Path(part) => asked.path_and_query.contains(part),
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
                // "Always" is a count that no test uses up.
                fault.times -= 1;
                hit = Some(fault.wrong.clone());
            }
        }
        self.0.retain(|fault| fault.times > 0);
        hit
    }
}
