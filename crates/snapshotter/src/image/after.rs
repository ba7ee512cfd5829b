//! What to do with a layer once its image was asked: a pure decision.

/// What the image says about one of its layers.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Found {
    /// It has an index, and the index a zTOC of this layer.
    Ztoc,
    /// It has an index without a zTOC of this layer.
    NoZtoc,
    /// The zTOC is there, and breaks the rules of its format.
    BadZtoc,
    /// It has no index that we may use.
    NoIndex,
    /// Nobody could be asked, or not in time.
    Unreachable,
}

/// What to do with a layer of an image.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum After {
    /// Mount it now.
    Lazy,
    /// Fetch all of it, then mount it.
    Whole,
    /// Let containerd unpack it.
    Defer,
}

/// Decides after the image was asked.
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
