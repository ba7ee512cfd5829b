//! containerd leases: content stored under a lease is kept until the lease ends.

use std::time::{Duration, SystemTime, UNIX_EPOCH};

use tonic::transport::Channel;

use super::api::containerd::services::leases::v1::leases_client::LeasesClient;
use super::api::containerd::services::leases::v1::{CreateRequest, DeleteRequest};
use super::{Containerd, failure, header_value};
use crate::StoreError;

/// When containerd expires the lease of a process that died. Same as the reference.
const LEASE_LIFE: Duration = Duration::from_secs(24 * 60 * 60);

/// Protects content from garbage collection. Call [`Lease::end`] to end it; a lease that is only
/// dropped expires after a day.
#[derive(Debug)]
pub struct Lease {
    id: String,
    store: Containerd,
}

impl Lease {
    /// The store whose writes belong to this lease.
    #[must_use]
    pub fn store(&self) -> Containerd {
        self.store.clone()
    }

    /// Ends the lease. Content that is not reachable otherwise may then be collected.
    pub async fn end(self) -> Result<(), StoreError> {
        let Self { id, store } = self;
        let request = store.request(DeleteRequest { id, sync: false });
        store
            .leases()
            .delete(request)
            .await
            .map_err(failure("delete lease"))?;
        Ok(())
    }
}

impl Containerd {
    /// Creates a lease.
    pub async fn lease(&self) -> Result<Lease, StoreError> {
        let now = SystemTime::now()
            .duration_since(UNIX_EPOCH)
            .unwrap_or_default();
        let id = format!("soci-{}-{:016x}", now.as_nanos(), random());
        let expire = rfc3339((now + LEASE_LIFE).as_secs());
        let labels = [("containerd.io/gc.expire".to_owned(), expire)].into();
        let request = self.request(CreateRequest {
            id: id.clone(),
            labels,
        });
        self.leases()
            .create(request)
            .await
            .map_err(failure("create lease"))?;
        let mut store = self.clone();
        store.headers.insert("containerd-lease", header_value(&id)?);
        Ok(Lease { id, store })
    }

    fn leases(&self) -> LeasesClient<Channel> {
        LeasesClient::new(self.channel.clone())
    }
}

/// Returns a unique number. It does not need to be secret.
fn random() -> u64 {
    use std::hash::{BuildHasher as _, Hasher as _};
    std::hash::RandomState::new().build_hasher().finish()
}

/// Formats Unix time in seconds as RFC 3339 in UTC.
fn rfc3339(seconds: u64) -> String {
    let (days, rest) = (seconds / 86_400, seconds % 86_400);
    // Days since 0000-03-01, in eras of 400 years. Years start in March, so leap days come last.
    let days = days + 719_468;
    let (era, of_era) = (days / 146_097, days % 146_097);
    let year = (of_era - of_era / 1_460 + of_era / 36_524 - of_era / 146_096) / 365;
    let of_year = of_era - (365 * year + year / 4 - year / 100);
    let shifted = (5 * of_year + 2) / 153;
    let day = of_year - (153 * shifted + 2) / 5 + 1;
    let month = if shifted < 10 {
        shifted + 3
    } else {
        shifted - 9
    };
    let year = era * 400 + year + u64::from(month <= 2);
    let (hour, minute, second) = (rest / 3_600, rest / 60 % 60, rest % 60);
    format!("{year:04}-{month:02}-{day:02}T{hour:02}:{minute:02}:{second:02}Z")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn times_are_civil() {
        for (seconds, text) in [
            (0, "1970-01-01T00:00:00Z"),
            (951_782_400, "2000-02-29T00:00:00Z"),
            (1_709_251_199, "2024-02-29T23:59:59Z"),
            (1_735_689_600, "2025-01-01T00:00:00Z"),
            (4_107_542_400, "2100-03-01T00:00:00Z"),
        ] {
            assert_eq!(rfc3339(seconds), text);
        }
    }
}
