//! Decides how to provide a layer, given what is known about its image. A pure function.

/// What the image provides for one of its layers.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Found {
    /// An index that names a zTOC of this layer.
    Ztoc,
    /// An index without a zTOC of this layer.
    NoZtoc,
    /// An index whose zTOC of this layer is missing or invalid.
    BadZtoc,
    /// No usable index.
    NoIndex,
    /// Unknown: no source could be reached, or none answered in time.
    Unreachable,
}

/// How to provide a layer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum After {
    /// Mount it now.
    Lazy,
    /// Download all of it, then mount it.
    Whole,
    /// Let containerd unpack it.
    Defer,
}

/// Decides how to provide a layer.
pub(crate) fn after(found: Found) -> After {
    match found {
        Found::Ztoc => After::Lazy,
        Found::NoZtoc | Found::BadZtoc => After::Whole,
        Found::NoIndex | Found::Unreachable => After::Defer,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn layers_are_decided_by_the_table() {
        let cases = [
            (Found::Ztoc, After::Lazy),
            (Found::NoZtoc, After::Whole),
            (Found::BadZtoc, After::Whole),
            (Found::NoIndex, After::Defer),
            (Found::Unreachable, After::Defer),
        ];
        for (found, wanted) in cases {
            assert_eq!(after(found), wanted);
        }
    }
}
