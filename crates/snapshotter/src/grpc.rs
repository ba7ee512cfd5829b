//! containerd's snapshots service on top of the snapshotter; the only status mapping.
