//! The table of decisions: what is known, what happens, which lines are logged, and the verdict.

use soci_oci::digest::Digest;

use super::*;

fn any() -> String {
    Digest::sha256(b"any").to_string()
}

/// The labels of a request for a layer.
fn request() -> Labels {
    let digest = any();
    [
        (labels::TARGET, "sha256:1"),
        (labels::IMAGE_REFERENCE, "registry.example/app:1"),
        (labels::MANIFEST_DIGEST, &digest),
        (labels::LAYER_DIGEST, &digest),
    ]
    .map(|(key, value)| (key.to_owned(), value.to_owned()))
    .into()
}

fn layer() -> Facts {
    Facts::of(Some("default"), &request())
}

/// A layer of an image that was asked.
fn found(found: Found) -> Facts {
    Facts {
        found: Some(found),
        ..layer()
    }
}

fn tried(found: Option<Found>, tried: Tried) -> Facts {
    Facts {
        found,
        tried: Some(tried),
        ..layer()
    }
}

/// A layer of this size, where the minimum is 10.
fn sized(size: &str) -> Facts {
    let mut labels = request();
    labels.insert(labels::LAYER_SIZE.to_owned(), size.to_owned());
    Facts::of(Some("default"), &labels)
}

fn without(label: &str) -> Facts {
    let mut labels = request();
    labels.remove(label);
    Facts::of(Some("default"), &labels)
}

fn with(label: &str, value: &str) -> Facts {
    let mut labels = request();
    labels.insert(label.to_owned(), value.to_owned());
    Facts::of(Some("default"), &labels)
}

const RULES: Rules = Rules {
    parallel: Parallel::Never,
    min_layer_size: 10,
    strict: false,
};
const STRICT: Rules = Rules {
    strict: true,
    ..RULES
};

const NO_LINES: &[Line] = &[];
const DEFERRED: &[Line] = &[Line::Deferred];
const NO_INDEX: &[Line] = &[Line::NotIndexed, Line::Deferred];

#[test]
fn every_request_gets_its_decision() {
    use Step::{Ask, Commit, Defer, Known, Lazy, NoNamespace, Plain, Whole};
    let defer = |reason| Some((Verdict::Containerd, reason));
    let local = |reason| Some((Verdict::Local, reason));
    let small = Facts {
        tried: Some(Tried::Whole),
        ..sized("9")
    };
    let rows: &[(&str, Facts, Step, &[Line], _)] = &[
        // The request.
        ("no target", without(labels::TARGET), Plain, NO_LINES, None),
        (
            "no target, nothing",
            Facts::of(None, &Labels::new()),
            Plain,
            NO_LINES,
            None,
        ),
        (
            "no namespace",
            Facts::of(None, &request()),
            NoNamespace,
            NO_LINES,
            None,
        ),
        (
            "exists",
            Facts {
                known: true,
                ..layer()
            },
            Known,
            NO_LINES,
            None,
        ),
        (
            "exists, unable",
            Facts {
                known: true,
                able: false,
                ..layer()
            },
            Known,
            NO_LINES,
            None,
        ),
        (
            "no reference",
            without(labels::IMAGE_REFERENCE),
            Defer,
            DEFERRED,
            defer(Reason::BadRequest),
        ),
        (
            "no manifest",
            without(labels::MANIFEST_DIGEST),
            Defer,
            DEFERRED,
            defer(Reason::BadRequest),
        ),
        (
            "no layer",
            without(labels::LAYER_DIGEST),
            Defer,
            DEFERRED,
            defer(Reason::BadRequest),
        ),
        (
            "bad reference",
            with(labels::IMAGE_REFERENCE, ":"),
            Defer,
            DEFERRED,
            defer(Reason::BadRequest),
        ),
        (
            "bad manifest",
            with(labels::MANIFEST_DIGEST, "x"),
            Defer,
            DEFERRED,
            defer(Reason::BadRequest),
        ),
        (
            "bad layer",
            with(labels::LAYER_DIGEST, "x"),
            Defer,
            DEFERRED,
            defer(Reason::BadRequest),
        ),
        (
            "bad index",
            with(labels::INDEX_DIGEST, "x"),
            Defer,
            DEFERRED,
            defer(Reason::BadRequest),
        ),
        (
            "empty index",
            with(labels::INDEX_DIGEST, ""),
            Ask,
            NO_LINES,
            None,
        ),
        (
            "unable",
            Facts {
                able: false,
                ..layer()
            },
            Defer,
            DEFERRED,
            defer(Reason::Unable),
        ),
        // min_layer_size.
        (
            "small",
            sized("9"),
            Whole,
            &[Line::Small, Line::Local],
            None,
        ),
        ("large enough", sized("10"), Ask, NO_LINES, None),
        ("odd size", sized("10 MB"), Ask, &[Line::BadSize], None),
        ("unknown size", layer(), Ask, NO_LINES, None),
        (
            "small, mounted",
            small,
            Commit,
            &[Line::PreparedWhole],
            local(Reason::Small),
        ),
        // What the image says.
        ("zTOC", found(Found::Ztoc), Lazy, NO_LINES, None),
        (
            "sparse index",
            found(Found::NoZtoc),
            Whole,
            &[Line::NotIndexed, Line::Local],
            None,
        ),
        (
            "bad zTOC",
            found(Found::BadZtoc),
            Whole,
            &[Line::NotRemote, Line::Local],
            None,
        ),
        (
            "no index",
            found(Found::NoIndex),
            Defer,
            NO_INDEX,
            defer(Reason::NoIndex),
        ),
        (
            "unusable index",
            found(Found::BadIndex),
            Defer,
            NO_INDEX,
            defer(Reason::BadIndex),
        ),
        (
            "unreachable",
            found(Found::Unreachable),
            Defer,
            NO_INDEX,
            defer(Reason::Unreachable),
        ),
        (
            "timeout",
            found(Found::Late),
            Defer,
            &[Line::NotRemote, Line::Deferred],
            defer(Reason::Timeout),
        ),
        // What was tried.
        (
            "lazy",
            tried(Some(Found::Ztoc), Tried::Lazy),
            Commit,
            &[Line::PreparedLazy],
            Some((Verdict::Lazy, Reason::Index)),
        ),
        (
            "not lazy",
            tried(Some(Found::Ztoc), Tried::NotLazy),
            Defer,
            &[Line::NotRemote, Line::DeferredLocal],
            defer(Reason::Failed),
        ),
        (
            "sparse, mounted",
            tried(Some(Found::NoZtoc), Tried::Whole),
            Commit,
            &[Line::PreparedWhole],
            local(Reason::NoZtoc),
        ),
        (
            "bad zTOC, mounted",
            tried(Some(Found::BadZtoc), Tried::Whole),
            Commit,
            &[Line::PreparedWhole],
            local(Reason::BadZtoc),
        ),
        (
            "not whole",
            tried(Some(Found::NoZtoc), Tried::NotWhole),
            Defer,
            &[Line::DeferredLocal],
            defer(Reason::Failed),
        ),
    ];
    for (name, facts, step, says, verdict) in rows {
        let wanted = Decision {
            step: *step,
            says,
            verdict: *verdict,
        };
        assert_eq!(decide(facts, &RULES), wanted, "{name}");
    }
}

#[test]
fn without_a_minimum_no_layer_is_small() {
    assert_eq!(decide(&sized("0"), &Rules::default()).step, Step::Ask);
}

#[test]
fn a_strict_daemon_refuses_to_fall_back_only_if_there_is_an_index() {
    let named = |facts: Facts| Facts {
        names_index: true,
        ..facts
    };
    let refused = [
        (found(Found::BadZtoc), Reason::BadZtoc),
        (found(Found::BadIndex), Reason::BadIndex),
        (named(found(Found::Unreachable)), Reason::Unreachable),
        (named(found(Found::Late)), Reason::Timeout),
        (
            named(Facts {
                able: false,
                ..layer()
            }),
            Reason::Unable,
        ),
        (tried(Some(Found::Ztoc), Tried::NotLazy), Reason::Failed),
        (tried(Some(Found::NoZtoc), Tried::NotWhole), Reason::Failed),
    ];
    for (facts, reason) in refused {
        let decision = decide(&facts, &STRICT);
        assert_eq!(decision.step, Step::Refuse, "{facts:?}");
        assert_eq!(decision.verdict, Some((Verdict::Refused, reason)));
        assert_eq!(decision.says, [Line::NotRemote, Line::Refused]);
    }
    // No index, an index that nothing names as far as is known, and what the configuration asks for.
    let as_before = [
        found(Found::NoIndex),
        found(Found::Unreachable),
        found(Found::Late),
        found(Found::Ztoc),
        found(Found::NoZtoc),
        sized("9"),
        without(labels::LAYER_DIGEST),
        without(labels::TARGET),
        Facts {
            able: false,
            ..layer()
        },
        tried(Some(Found::Ztoc), Tried::Lazy),
        tried(Some(Found::NoZtoc), Tried::Whole),
        tried(None, Tried::NotWhole),
    ];
    for facts in as_before {
        assert_eq!(decide(&facts, &STRICT), decide(&facts, &RULES), "{facts:?}");
    }
}

#[test]
fn an_image_without_an_index_is_pulled_whole_unless_the_configuration_forbids_it() {
    const PARALLEL: &[Line] = &[Line::NotIndexed, Line::Parallel];
    let rules = Rules {
        parallel: Parallel::WithoutIndex,
        ..RULES
    };
    let unknown = |facts: Facts| Facts {
        within_reach: false,
        ..facts
    };
    let reasons = [
        (Found::NoIndex, Reason::NoIndex),
        (Found::BadIndex, Reason::BadIndex),
        (Found::Unreachable, Reason::Unreachable),
    ];
    for (what, reason) in reasons {
        let whole = Decision::next(Step::Whole, PARALLEL);
        assert_eq!(decide(&found(what), &rules), whole, "{what:?}");
        let mounted = decide(&tried(Some(what), Tried::Whole), &rules);
        assert_eq!(mounted.step, Step::Commit);
        assert_eq!(mounted.verdict, Some((Verdict::Parallel, reason)));
        let failed = decide(&tried(Some(what), Tried::NotWhole), &rules);
        assert_eq!(failed.step, Step::Defer);
        assert_eq!(failed.says, [Line::DeferredLocal]);
        // A download of the layer would fail.
        let left = decide(&unknown(found(what)), &rules);
        assert_eq!(left, decide(&found(what), &RULES), "{what:?}");
        assert_eq!(left.step, Step::Defer);
    }
    // The others are decided as without the mode.
    for what in [Found::Ztoc, Found::NoZtoc, Found::BadZtoc, Found::Late] {
        assert_eq!(decide(&found(what), &rules), decide(&found(what), &RULES));
    }
    assert_eq!(decide(&sized("9"), &rules), decide(&sized("9"), &RULES));
    // An index that something names keeps its protection.
    let strict = Rules {
        strict: true,
        ..rules
    };
    let named = Facts {
        names_index: true,
        ..found(Found::Unreachable)
    };
    for (facts, reason) in [
        (found(Found::BadIndex), Reason::BadIndex),
        (named, Reason::Unreachable),
    ] {
        let refused = decide(&facts, &strict).verdict;
        assert_eq!(refused, Some((Verdict::Refused, reason)));
    }
    for what in [Found::NoIndex, Found::Unreachable] {
        assert_eq!(decide(&found(what), &strict).step, Step::Whole);
    }
}

#[test]
fn every_image_is_pulled_whole_if_the_configuration_asks_for_it() {
    let rules = Rules {
        parallel: Parallel::Always,
        strict: true,
        ..RULES
    };
    let whole = Decision::next(Step::Whole, &[Line::Parallel]);
    for facts in [layer(), sized("9"), with(labels::INDEX_DIGEST, &any())] {
        assert_eq!(decide(&facts, &rules), whole, "{facts:?}");
        let mounted = Facts {
            tried: Some(Tried::Whole),
            ..facts
        };
        let verdict = decide(&mounted, &rules).verdict;
        assert_eq!(verdict, Some((Verdict::Parallel, Reason::Configured)));
    }
    let unnamed = without(labels::LAYER_DIGEST);
    assert_eq!(decide(&unnamed, &rules), decide(&unnamed, &RULES));
}
