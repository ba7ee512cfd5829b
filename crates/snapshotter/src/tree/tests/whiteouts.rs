//! Whiteouts and opaque markers in base layers and in upper layers.

use super::*;

#[test]
fn a_base_layer_executes_whiteouts() {
    let tree = base(&[
        dir("d"),
        file("d/f", 1),
        file("d/g", 1),
        file("d/.wh.f", 0),
        file(".wh.x", 0),
    ]);
    assert_eq!(tree.paths(), ["/d", "/d/g"]);
    let gone = base(&[file("d/f", 1), file(".wh.d", 0)]);
    assert_eq!(gone.paths(), [""; 0]);
}

#[test]
fn an_opaque_marker_in_a_base_layer_spares_entries_only() {
    let tree = base(&[
        dir("d"),
        file("d/entry", 1),
        file("d/implied/inside", 1),
        dir("d/dir"),
        file("d/dir/also", 1),
        file("d/.wh..wh..opq", 0),
    ]);
    assert_eq!(tree.paths(), ["/d", "/d/dir", "/d/dir/also", "/d/entry"]);
}

#[test]
fn an_opaque_marker_spares_paths_that_were_entries_before() {
    let tree = base(&[
        dir("d/e"),
        file("d/.wh.e", 0),
        file("d/e/f", 1),
        file("d/.wh..wh..opq", 0),
    ]);
    assert_eq!(tree.paths(), ["/d", "/d/e", "/d/e/f"]);
}

#[test]
fn an_upper_layer_keeps_whiteouts_as_devices() {
    let tree = above(&[dir("d"), file("d/.wh.f", 0).owner(5, 6).mode(0o777)]);
    assert_eq!(tree.at("d/f").kind(), Kind::Char { major: 0, minor: 0 });
    assert_eq!((tree.at("d/f").mode(), tree.at("d/f").owner()), (0, (5, 6)));
}

#[test]
fn a_whiteout_of_a_name_in_the_same_layer_fails_and_a_later_entry_replaces_it() {
    let own = [file("f", 1), file(".wh.f", 0)];
    assert_eq!(refused(&own, ABOVE), (1, Refusal::WhiteoutOfOwn));
    let twice = [file(".wh.f", 0), file(".wh.f", 0)];
    assert_eq!(refused(&twice, ABOVE), (1, Refusal::WhiteoutOfOwn));
    let tree = above(&[file(".wh.f", 0), file("f", 7)]);
    assert_eq!(
        tree.at("f").kind(),
        Kind::Regular {
            size: 7,
            data_block: 100
        }
    );
}

#[test]
fn an_opaque_marker_in_an_upper_layer_is_an_attribute() {
    let tree = above(&[
        file("d/before", 1),
        file("d/.wh..wh..opq", 0),
        file("d/after", 1),
    ]);
    assert_eq!(
        tree.at("d").xattr("trusted.overlay.opaque"),
        Some(&b"y"[..])
    );
    assert_eq!(tree.paths(), ["/d", "/d/after", "/d/before"]);
    let namespace = Rules {
        user_namespace: true,
        ..ABOVE
    };
    let tree = build(&[file("d/.wh..wh..opq", 0)], &Patch::plain(namespace)).expect("unpacks");
    assert_eq!(tree.at("d").xattr_names(), ["user.overlay.opaque"]);
}

#[test]
fn whiteouts_without_a_name_fail_and_unknown_markers_are_whiteouts() {
    for name in [".wh.", ".wh..", ".wh..."] {
        assert_eq!(refused(&[file(name, 0)], BASE), (0, Refusal::WhiteoutName));
        assert_eq!(refused(&[file(name, 0)], ABOVE), (0, Refusal::WhiteoutName));
    }
    let tree = above(&[file(".wh..wh.x", 0)]);
    assert_eq!(tree.paths(), ["/.wh.x"]);
}
