//! What Prepare will do with a request: a pure decision, before the image is asked. (`image::after` has the one after.)
//!
//! Three ways to get a layer, from the best to the one that always works: **lazy** (mounted now, bytes come when
//! they are read), **whole** (fetched in one pass, then mounted), **deferred** (containerd gets mounts and
//! unpacks the layer itself). A snapshot without a target is never a layer of ours.

/// What is known before the image is asked.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Facts<'a> {
    /// Name to commit the layer under.
    pub target: Option<&'a str>,
    /// containerd's namespace of the request.
    pub namespace: Option<&'a str>,
    /// The target exists, on the same parent.
    pub known: bool,
    /// Reference, manifest and layer were named.
    pub named: bool,
    /// This machine can mount layers.
    pub able: bool,
    /// Size of the layer in bytes, if the client told it.
    pub size: Option<u64>,
    /// Layers smaller than this are fetched whole; 0 is off.
    pub min_layer_size: u64,
}

/// What to do with a request.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum First {
    /// A snapshot as any other.
    Plain,
    /// Refuse: a layer needs a namespace.
    NoNamespace,
    /// Answer that the target exists.
    Known,
    /// Let containerd unpack the layer.
    Defer(Why),
    /// Ask the image, and mount lazily if it allows.
    Lazy,
    /// Fetch the layer whole without asking for an index.
    Small,
}

/// Why a layer is not even tried.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub(crate) enum Why {
    #[error("the request does not name image, manifest and layer")]
    Unnamed,
    #[error("this machine cannot mount layers")]
    Unable,
}

/// Decides before the image is asked.
pub(crate) fn first(facts: &Facts<'_>) -> First {
    if facts.target.is_none() {
        First::Plain
    } else if facts.namespace.is_none() {
        First::NoNamespace
    } else if facts.known {
        First::Known
    } else if !facts.named {
        First::Defer(Why::Unnamed)
    } else if !facts.able {
        First::Defer(Why::Unable)
    } else if facts.size.is_some_and(|size| size < facts.min_layer_size) {
        First::Small
    } else {
        First::Lazy
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A request for a layer with everything that a layer needs.
    const LAYER: Facts<'_> = Facts {
        target: Some("sha256:1"),
        namespace: Some("default"),
        known: false,
        named: true,
        able: true,
        size: None,
        min_layer_size: 0,
    };

    #[test]
    fn requests_are_decided_by_the_table() {
        let cases = [
            (LAYER, First::Lazy),
            (
                Facts {
                    target: None,
                    ..LAYER
                },
                First::Plain,
            ),
            (
                Facts {
                    target: None,
                    namespace: None,
                    named: false,
                    ..LAYER
                },
                First::Plain,
            ),
            (
                Facts {
                    namespace: None,
                    ..LAYER
                },
                First::NoNamespace,
            ),
            (
                Facts {
                    namespace: None,
                    known: true,
                    ..LAYER
                },
                First::NoNamespace,
            ),
            (
                Facts {
                    known: true,
                    ..LAYER
                },
                First::Known,
            ),
            (
                Facts {
                    known: true,
                    named: false,
                    able: false,
                    ..LAYER
                },
                First::Known,
            ),
            (
                Facts {
                    named: false,
                    ..LAYER
                },
                First::Defer(Why::Unnamed),
            ),
            (
                Facts {
                    able: false,
                    ..LAYER
                },
                First::Defer(Why::Unable),
            ),
            (
                Facts {
                    size: Some(9),
                    min_layer_size: 10,
                    ..LAYER
                },
                First::Small,
            ),
            (
                Facts {
                    size: Some(10),
                    min_layer_size: 10,
                    ..LAYER
                },
                First::Lazy,
            ),
            (
                Facts {
                    size: Some(0),
                    min_layer_size: 0,
                    ..LAYER
                },
                First::Lazy,
            ),
            (
                Facts {
                    size: None,
                    min_layer_size: 10,
                    ..LAYER
                },
                First::Lazy,
            ),
        ];
        for (facts, wanted) in cases {
            assert_eq!(first(&facts), wanted, "{facts:?}");
        }
    }
}
