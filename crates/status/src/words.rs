//! The fixed values of the document, which metrics and logs use too.

/// How a layer or an image is provided.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Verdict {
    /// Mounted before its bytes are present.
    Lazy,
    /// Downloaded from start to end by the daemon, then mounted.
    Local,
    /// Downloaded whole by the daemon, beside the other layers of its image, then mounted.
    Parallel,
    /// Left to containerd, which downloads and unpacks it.
    Containerd,
    /// Refused: the pull fails (`[snapshotter] strict`).
    Refused,
}

impl Verdict {
    /// All values.
    pub const ALL: [Self; 5] = [
        Self::Lazy,
        Self::Local,
        Self::Parallel,
        Self::Containerd,
        Self::Refused,
    ];

    /// The value in the document.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::Lazy => "lazy",
            Self::Local => "local",
            Self::Parallel => "parallel",
            Self::Containerd => "containerd",
            Self::Refused => "refused",
        }
    }
}

/// Why a layer or an image has its verdict.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Reason {
    /// The index has a zTOC of the layer.
    Index,
    /// The index has no zTOC of the layer.
    NoZtoc,
    /// The layer is smaller than `min_layer_size`.
    Small,
    /// The zTOC is missing, invalid, or does not match the layer.
    BadZtoc,
    /// The image names no index.
    NoIndex,
    /// The image names an index that is missing or invalid.
    BadIndex,
    /// The configuration asks for it.
    Configured,
    /// The registry did not deliver the manifest, the index, or the zTOC. The next request tries
    /// again.
    Unreachable,
    /// The index and the zTOC did not arrive within `mount_timeout_sec`.
    Timeout,
    /// The request does not name an image and a layer, or the names are invalid.
    BadRequest,
    /// This machine cannot mount layers.
    Unable,
    /// The layer could not be downloaded, stored, or mounted.
    Failed,
    /// An earlier process decided, and the reason was not stored.
    Earlier,
}

impl Reason {
    /// All values.
    pub const ALL: [Self; 13] = [
        Self::Index,
        Self::NoZtoc,
        Self::Small,
        Self::BadZtoc,
        Self::NoIndex,
        Self::BadIndex,
        Self::Configured,
        Self::Unreachable,
        Self::Timeout,
        Self::BadRequest,
        Self::Unable,
        Self::Failed,
        Self::Earlier,
    ];

    /// The value in the document.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::Index => "index",
            Self::NoZtoc => "no_ztoc",
            Self::Small => "small",
            Self::BadZtoc => "bad_ztoc",
            Self::NoIndex => "no_index",
            Self::BadIndex => "bad_index",
            Self::Configured => "configured",
            Self::Unreachable => "unreachable",
            Self::Timeout => "timeout",
            Self::BadRequest => "bad_request",
            Self::Unable => "unable",
            Self::Failed => "failed",
            Self::Earlier => "earlier",
        }
    }
}

/// The verdicts with the reasons that they can have when they are made.
pub const POSSIBLE: &[(Verdict, Reason)] = &[
    (Verdict::Lazy, Reason::Index),
    (Verdict::Local, Reason::NoZtoc),
    (Verdict::Local, Reason::Small),
    (Verdict::Local, Reason::BadZtoc),
    (Verdict::Parallel, Reason::NoIndex),
    (Verdict::Parallel, Reason::BadIndex),
    (Verdict::Parallel, Reason::Unreachable),
    (Verdict::Parallel, Reason::Configured),
    (Verdict::Containerd, Reason::NoIndex),
    (Verdict::Containerd, Reason::BadIndex),
    (Verdict::Containerd, Reason::Unreachable),
    (Verdict::Containerd, Reason::Timeout),
    (Verdict::Containerd, Reason::BadRequest),
    (Verdict::Containerd, Reason::Unable),
    (Verdict::Containerd, Reason::Failed),
    (Verdict::Refused, Reason::BadZtoc),
    (Verdict::Refused, Reason::BadIndex),
    (Verdict::Refused, Reason::Unreachable),
    (Verdict::Refused, Reason::Timeout),
    (Verdict::Refused, Reason::Unable),
    (Verdict::Refused, Reason::Failed),
];

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use super::*;

    #[test]
    fn names_are_different() {
        let verdicts: BTreeSet<_> = Verdict::ALL.iter().map(|it| it.name()).collect();
        let reasons: BTreeSet<_> = Reason::ALL.iter().map(|it| it.name()).collect();
        assert_eq!(verdicts.len(), Verdict::ALL.len());
        assert_eq!(reasons.len(), Reason::ALL.len());
    }
}
