//! The setup of a test registry: access, features and limits.

use std::time::Duration;

use super::access::Access;

/// Blob redirects: the registry responds to a GET of a blob with a redirect to a signed address
/// that expires.
#[derive(Clone, Debug)]
pub struct Redirect {
    /// How often a signed address can be used.
    pub uses: u32,
    /// The response of an expired address.
    pub expired: Expired,
}

/// The response of a signed address after it has expired.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Expired {
    /// 403, like most object stores.
    Forbidden,
    /// 400 with an XML body that contains `ExpiredToken`, like S3 with temporary credentials.
    ExpiredToken,
}

/// How the registry responds to requests for the referrers of a manifest.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Referrers {
    /// According to the specification.
    Api {
        /// Number of descriptors per page. `Link` names the next page.
        page: usize,
        /// Whether it filters by artifact type and reports that it did.
        filters: bool,
    },
    /// 404, like registries without the referrers API.
    Missing,
    /// 404 with the code `NAME_UNKNOWN`.
    UnknownName,
    /// 200 with a web page, like a proxy in front of an old registry.
    Html,
    /// 200 with an endless index.
    Endless,
    /// Every page names itself as the next one.
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

/// The setup of a test registry. `Setup::default()` is plain HTTP on a free port without access
/// control, delays or faults, and with all features of the specification.
#[derive(Clone, Debug, Default)]
pub struct Setup {
    /// The scope that challenges state in place of the repository's. Tokens must have both.
    pub foreign_scope: Option<&'static str>,
    /// Port on 127.0.0.1. 0 selects a free one.
    pub port: u16,
    /// Use HTTPS with a certificate for `localhost` and 127.0.0.1, issued by
    /// [`TestRegistry::ca_pem`].
    pub tls: bool,
    /// With TLS, require the client certificate [`TestRegistry::client_pem`].
    pub wants_certificate: bool,
    /// Access control.
    pub access: Access,
    /// Challenges to rejected tokens name a token endpoint that refuses everyone.
    pub closed_realm: bool,
    /// Omit the lifetime of tokens from responses of the token endpoint.
    pub unannounced: bool,
    /// Delay before the response to each request.
    pub latency: Duration,
    /// Speed limit of each response body, in bytes per second.
    pub pace: Option<u64>,
    /// Speed limit of each upload, in bytes per second.
    pub upload_pace: Option<u64>,
    /// Maximum number of concurrent requests. Further requests are answered with 429.
    pub most_requests: Option<usize>,
    /// Signed addresses answer only requests whose `Referer` is the blob's address at the registry.
    pub wants_referer: bool,
    /// Redirects of blobs.
    pub redirect: Option<Redirect>,
    /// Support for the referrers API. Without it, responses to manifests have no `OCI-Subject`.
    pub referrers: Referrers,
    /// Reject all deletions with 405.
    pub keeps_all: bool,
    /// Do not mount blobs of other repositories; start an upload instead.
    pub mounts_nothing: bool,
}
