//! Decides what Prepare does. A pure function, called again whenever more is known.
//!
//! There are three ways to provide a layer, best first: **lazy** (mounted now, bytes are fetched on
//! demand), **whole** (downloaded in one pass, then mounted) and **deferred** (containerd gets
//! mounts and unpacks the layer itself). A snapshot without a target is never a layer of ours.
//! Every layer of an image without an index is whole, unless the configuration says otherwise.

use soci_status::{Reason, Verdict};

use super::labels::{self, Labels};
use super::name::{ImageName, layer_of};

/// Which images are pulled whole, all layers at once.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Parallel {
    /// None: images without an index are left to containerd.
    Never,
    /// Those without an index that can be used.
    #[default]
    WithoutIndex,
    /// All. No index is looked for.
    Always,
}

/// What the configuration says.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Rules {
    /// Which images are pulled whole.
    pub parallel: Parallel,
    /// Layers smaller than this many bytes are downloaded whole. 0 disables this.
    pub min_layer_size: u64,
    /// Refuse a layer of an image with an index instead of falling back to another way.
    pub strict: bool,
}

/// The size of the layer in the labels.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Size {
    /// The client did not send it.
    Unknown,
    /// It is not a number.
    Invalid,
    Bytes(u64),
}

/// What the image provides for one of its layers.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Found {
    /// An index that names a zTOC of this layer.
    Ztoc,
    /// An index without a zTOC of this layer.
    NoZtoc,
    /// An index whose zTOC of this layer is missing, invalid, or does not match the layer.
    BadZtoc,
    /// No index.
    NoIndex,
    /// A named index that is missing or invalid.
    BadIndex,
    /// Unknown: a source did not answer.
    Unreachable,
    /// Unknown: the answer did not arrive in time.
    Late,
}

/// What became of an attempt to provide the layer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Tried {
    /// It is mounted, and its bytes are fetched on demand.
    Lazy,
    /// It was downloaded and is mounted.
    Whole,
    /// It cannot be read, stored, or mounted lazily.
    NotLazy,
    /// It cannot be downloaded, stored, or mounted.
    NotWhole,
}

/// What is known about a request.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Facts {
    /// The request has a name under which to commit the layer.
    pub(crate) target: bool,
    /// The request has a namespace of containerd.
    pub(crate) namespace: bool,
    /// The target exists on the same parent.
    pub(crate) known: bool,
    /// The labels name an image and a layer, and can be parsed.
    pub(crate) named: bool,
    /// This machine can mount layers.
    pub(crate) able: bool,
    pub(crate) size: Size,
    /// The client or the manifest names an index.
    pub(crate) names_index: bool,
    /// What the image provides. `None` until it is asked.
    pub(crate) found: Option<Found>,
    /// The manifest is known, and nothing says that the registry does not send the layer.
    pub(crate) within_reach: bool,
    /// The last attempt.
    pub(crate) tried: Option<Tried>,
}

impl Facts {
    /// What the labels of a request say.
    pub(crate) fn of(namespace: Option<&str>, of: &Labels) -> Self {
        let size = match labels::value(of, labels::LAYER_SIZE).map(str::parse) {
            None => Size::Unknown,
            Some(Ok(bytes)) => Size::Bytes(bytes),
            Some(Err(_)) => Size::Invalid,
        };
        Self {
            target: labels::value(of, labels::TARGET).is_some(),
            namespace: namespace.is_some(),
            known: false,
            named: unnamed(namespace.unwrap_or_default(), of).is_none(),
            able: true,
            size,
            names_index: labels::value(of, labels::INDEX_DIGEST).is_some(),
            found: None,
            within_reach: true,
            tried: None,
        }
    }

    /// What is known about another layer of the same image: its size, and what the image provides
    /// for it, if it was asked.
    pub(crate) fn of_another(&self, size: u64, found: Option<Found>) -> Self {
        let size = match self.size {
            Size::Bytes(_) => Size::Bytes(size),
            // The request for it has no size either.
            Size::Unknown | Size::Invalid => Size::Unknown,
        };
        Self {
            size,
            found,
            tried: None,
            ..*self
        }
    }

    fn is_small(&self, rules: &Rules) -> bool {
        matches!(self.size, Size::Bytes(size) if size < rules.min_layer_size)
    }

    fn has_index(&self) -> bool {
        let read = [Found::Ztoc, Found::NoZtoc, Found::BadZtoc, Found::BadIndex];
        self.names_index || self.found.is_some_and(|found| read.contains(&found))
    }
}

/// Why the labels of a request do not name a layer.
pub(crate) fn unnamed(namespace: &str, of: &Labels) -> Option<String> {
    if !labels::names_a_layer(of) {
        return Some("the request does not name image, manifest and layer".to_owned());
    }
    let image = ImageName::from_labels(namespace, of).map(drop);
    image.and_then(|()| layer_of(of).map(drop)).err()
}

/// Why nothing can be mounted.
pub(crate) const UNABLE: &str = "this machine cannot mount layers";

/// What to do next.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Step {
    /// Create a plain snapshot.
    Plain,
    /// Refuse the request: a layer needs a namespace.
    NoNamespace,
    /// Answer that the target exists.
    Known,
    /// Ask the image what it provides.
    Ask,
    /// Mount the layer.
    Lazy,
    /// Download the layer, then mount it.
    Whole,
    /// Commit the mounted layer.
    Commit,
    /// Let containerd unpack the layer.
    Defer,
    /// Fail the request.
    Refuse,
}

/// A line of the log, with its metric.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Line {
    /// The size in the labels is not a number.
    BadSize,
    /// The layer is too small to look for an index.
    Small,
    /// It is not lazy, and that is not a failure.
    NotIndexed,
    /// It is not lazy, which is a failure.
    NotRemote,
    /// It is downloaded whole.
    Local,
    /// It is downloaded whole, beside the other layers of its image.
    Parallel,
    /// It is mounted, and lazy.
    PreparedLazy,
    /// It is mounted from all of its bytes.
    PreparedWhole,
    /// It is left to containerd, because no index was found.
    Deferred,
    /// It is left to containerd, because it could not be provided.
    DeferredLocal,
    /// The pull fails.
    Refused,
}

/// What to do, what to log, and why.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Decision {
    pub(crate) step: Step,
    pub(crate) says: &'static [Line],
    /// The verdict, unless more must be known first.
    pub(crate) verdict: Option<(Verdict, Reason)>,
}

impl Decision {
    const fn next(step: Step, says: &'static [Line]) -> Self {
        let verdict = None;
        Self {
            step,
            says,
            verdict,
        }
    }

    const fn defer(reason: Reason, says: &'static [Line]) -> Self {
        Self {
            step: Step::Defer,
            says,
            verdict: Some((Verdict::Containerd, reason)),
        }
    }
}

/// Decides what to do next.
pub(crate) fn decide(facts: &Facts, rules: &Rules) -> Decision {
    let decision = without_strict(facts, rules);
    let reason = match decision {
        Decision {
            step: Step::Defer,
            verdict: Some((_, reason)),
            ..
        } => reason,
        // The configuration asks for the other reasons to download a layer whole: a small layer,
        // an index without its zTOC, and the parallel mode.
        Decision {
            step: Step::Whole, ..
        } => match facts.found {
            Some(Found::BadZtoc) => Reason::BadZtoc,
            Some(Found::BadIndex) => Reason::BadIndex,
            Some(Found::Unreachable) => Reason::Unreachable,
            _ => return decision,
        },
        other => return other,
    };
    if !rules.strict || !facts.has_index() {
        return decision;
    }
    Decision {
        step: Step::Refuse,
        says: &[Line::NotRemote, Line::Refused],
        verdict: Some((Verdict::Refused, reason)),
    }
}

fn without_strict(facts: &Facts, rules: &Rules) -> Decision {
    if !facts.target {
        Decision::next(Step::Plain, &[])
    } else if !facts.namespace {
        Decision::next(Step::NoNamespace, &[])
    } else if facts.known {
        Decision::next(Step::Known, &[])
    } else if !facts.named {
        Decision::defer(Reason::BadRequest, &[Line::Deferred])
    } else if !facts.able {
        Decision::defer(Reason::Unable, &[Line::Deferred])
    } else if let Some(tried) = facts.tried {
        after(tried, facts, rules)
    } else if rules.parallel == Parallel::Always {
        Decision::next(Step::Whole, &[Line::Parallel])
    } else if facts.is_small(rules) {
        Decision::next(Step::Whole, &[Line::Small, Line::Local])
    } else {
        match facts.found {
            None if facts.size == Size::Invalid => Decision::next(Step::Ask, &[Line::BadSize]),
            None => Decision::next(Step::Ask, &[]),
            Some(found) => by_image(found, facts, rules),
        }
    }
}

fn by_image(found: Found, facts: &Facts, rules: &Rules) -> Decision {
    const NO_INDEX: &[Line] = &[Line::NotIndexed, Line::Deferred];
    let parallel = rules.parallel != Parallel::Never && facts.within_reach;
    match found {
        Found::Ztoc => Decision::next(Step::Lazy, &[]),
        Found::NoZtoc => Decision::next(Step::Whole, &[Line::NotIndexed, Line::Local]),
        Found::BadZtoc => Decision::next(Step::Whole, &[Line::NotRemote, Line::Local]),
        Found::NoIndex | Found::BadIndex | Found::Unreachable if parallel => {
            Decision::next(Step::Whole, &[Line::NotIndexed, Line::Parallel])
        }
        Found::NoIndex => Decision::defer(Reason::NoIndex, NO_INDEX),
        Found::BadIndex => Decision::defer(Reason::BadIndex, NO_INDEX),
        Found::Unreachable => Decision::defer(Reason::Unreachable, NO_INDEX),
        Found::Late => Decision::defer(Reason::Timeout, &[Line::NotRemote, Line::Deferred]),
    }
}

fn after(tried: Tried, facts: &Facts, rules: &Rules) -> Decision {
    let mounted = |says, verdict, reason| Decision {
        step: Step::Commit,
        says,
        verdict: Some((verdict, reason)),
    };
    match tried {
        Tried::Lazy => mounted(&[Line::PreparedLazy], Verdict::Lazy, Reason::Index),
        Tried::Whole => {
            let (verdict, reason) = match facts.found {
                _ if rules.parallel == Parallel::Always => (Verdict::Parallel, Reason::Configured),
                Some(Found::NoIndex) => (Verdict::Parallel, Reason::NoIndex),
                Some(Found::BadIndex) => (Verdict::Parallel, Reason::BadIndex),
                Some(Found::Unreachable) => (Verdict::Parallel, Reason::Unreachable),
                Some(Found::BadZtoc) => (Verdict::Local, Reason::BadZtoc),
                _ if facts.is_small(rules) => (Verdict::Local, Reason::Small),
                _ => (Verdict::Local, Reason::NoZtoc),
            };
            mounted(&[Line::PreparedWhole], verdict, reason)
        }
        Tried::NotLazy => Decision::defer(Reason::Failed, &[Line::NotRemote, Line::DeferredLocal]),
        Tried::NotWhole => Decision::defer(Reason::Failed, &[Line::DeferredLocal]),
    }
}

#[cfg(test)]
mod tests;
