//! How a test registry is: open or closed, modern or old, honest or not.

use std::time::Duration;

use super::access::Access;

/// Where blobs really are: the registry answers a GET of a blob with a redirect to an address that
/// carries a signature and runs out.
#[derive(Clone, Debug)]
pub struct Redirect {
    /// How often one signed address may be used.
    pub uses: u32,
    /// What a used-up address answers.
    pub expired: Expired,
}

/// What a signed address answers when it has run out.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Expired {
    /// 403, as most object stores.
    Forbidden,
    /// 400 with an XML body that says `ExpiredToken`, as S3 with temporary credentials.
    ExpiredToken,
}

/// How it answers who asks for the referrers of a manifest.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Referrers {
    /// As the specification says.
    Api {
        /// Descriptors on one page; the next is named by `Link`.
        page: usize,
        /// Whether it filters by artifact type, and says so.
        filters: bool,
    },
    /// 404: a registry of before.
    Missing,
    /// 404 with the code `NAME_UNKNOWN`.
    UnknownName,
    /// 200 with a web page, as a proxy before a registry of before.
    Html,
    /// 200 with an index that never ends.
    Endless,
    /// Every page names itself as the next.
    Circle,
}

impl Default for Referrers {
    fn default() -> Referrers {
        Referrers::Api {
            page: 100,
            filters: true,
        }
    }
}

/// How a test registry is. `Setup::default()` is plain HTTP on a free port, open to everybody, quick and honest, with
/// everything the specification knows.
#[derive(Clone, Debug, Default)]
pub struct Setup {
    /// Port on 127.0.0.1; 0 takes a free one.
    pub port: u16,
    /// HTTPS with a certificate for `localhost` and 127.0.0.1 by [`TestRegistry::ca_pem`].
    pub tls: bool,
    /// With TLS: only who shows [`TestRegistry::client_pem`] gets a connection.
    pub wants_certificate: bool,
    /// Who may use it.
    pub access: Access,
    /// Its token endpoint does not say how long a token is good for.
    pub unannounced: bool,
    /// Time from a request's arrival to its answer.
    pub latency: Duration,
    /// Pace of every single body, in bytes per second.
    pub pace: Option<u64>,
    /// Pace at which it takes every single upload, in bytes per second.
    pub upload_pace: Option<u64>,
    /// Requests that are served at once; one more is answered with 429.
    pub most_requests: Option<usize>,
    /// Redirects of blobs.
    pub redirect: Option<Redirect>,
    /// Whether and how it lists referrers. Only one that does answers a manifest with `OCI-Subject`.
    pub referrers: Referrers,
    /// Nothing can be deleted: 405.
    pub keeps_all: bool,
    /// Blobs of other repositories cannot be mounted: an upload begins instead.
    pub mounts_nothing: bool,
}
