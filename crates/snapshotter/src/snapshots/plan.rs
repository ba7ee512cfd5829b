//! Decides what Prepare does with a request, before the image is queried (`image::after` decides
//! later).
//!
//! There are three ways to provide a layer, best first: **lazy** (mounted now, bytes are fetched on
//! demand), **whole** (downloaded in one pass, then mounted) and **deferred** (containerd gets
//! mounts and unpacks the layer itself). A snapshot without a target is never a layer of ours.

/// The facts known before the image is queried.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Facts<'a> {
    /// Name under which to commit the layer.
    pub target: Option<&'a str>,
    /// containerd's namespace of the request.
    pub namespace: Option<&'a str>,
    /// Whether the target exists on the same parent.
    pub known: bool,
    /// Whether the labels name reference, manifest and layer.
    pub named: bool,
    /// Whether this machine can mount layers.
    pub able: bool,
    /// Size of the layer in bytes, if the client sent it.
    pub size: Option<u64>,
    /// Layers smaller than this many bytes are downloaded whole. 0 disables this.
    pub min_layer_size: u64,
}

/// What to do with a request.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum First {
    /// A plain snapshot.
    Plain,
    /// Refuse the request: a layer needs a namespace.
    NoNamespace,
    /// Answer that the target exists.
    Known,
    /// Let containerd unpack the layer.
    Defer(Why),
    /// Query the image, and mount lazily if possible.
    Lazy,
    /// Download the layer whole without looking for an index.
    Small,
}

/// Why a layer is left to containerd immediately.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub(crate) enum Why {
    #[error("the request does not name image, manifest and layer")]
    Unnamed,
    #[error("this machine cannot mount layers")]
    Unable,
}

/// Decides before the image is queried.
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

    /// A request for a layer that has everything it needs.
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
    fn each_request_gets_the_expected_decision() {
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
