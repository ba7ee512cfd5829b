//! Disk space that downloads of several images will take, before they have taken it.

use crate::sync::{Arc, Mutex};

/// The space of all downloads of the node that nobody waits for yet, in bytes.
#[derive(Clone, Debug, Default)]
pub(super) struct Reserved(Arc<Mutex<u64>>);

/// The space of one download, until dropped.
#[derive(Debug)]
pub(super) struct Reservation {
    all: Reserved,
    bytes: u64,
}

impl Drop for Reservation {
    fn drop(&mut self) {
        *self.all.0.lock() -= self.bytes;
    }
}

impl Reserved {
    /// Reserves space, if all reservations together fit into `room`. `None` if they do not.
    pub(super) fn take(&self, bytes: u64, room: u64) -> Option<Reservation> {
        let mut taken = self.0.lock();
        let all = taken.checked_add(bytes).filter(|all| *all <= room)?;
        *taken = all;
        Some(Reservation {
            all: self.clone(),
            bytes,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn all_reservations_together_fit_into_the_room() {
        let reserved = Reserved::default();
        let one = reserved.take(60, 100).expect("room");
        let other = reserved.clone();
        assert!(other.take(50, 100).is_none(), "the space of another image");
        let two = other.take(40, 100).expect("room");
        assert!(reserved.take(1, 100).is_none());
        assert!(reserved.take(u64::MAX, u64::MAX).is_none());
        drop(one);
        let three = reserved.take(60, 100).expect("room");
        drop((two, three));
        assert!(reserved.take(100, 100).is_some());
    }
}
