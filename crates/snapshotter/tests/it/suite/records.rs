//! Names, kinds, parents and labels of snapshots.

use std::collections::BTreeSet;
use std::fs;
use std::time::SystemTime;

use soci_snapshotter::grpc::proto::containerd::services::snapshots::v1::{Info, Kind};
use tonic::Code;

use crate::server::{Labels, Server, labels};

/// c1 and c2 (on c1) are committed, a1 (on c2) and a2 are active, v1 (on c2) and v2 are views.
async fn populated() -> Server {
    let server = Server::start().await;
    server.prepare("c1-a", "").await.unwrap();
    server.commit("c1", "c1-a").await.unwrap();
    server.prepare("c2-a", "c1").await.unwrap();
    server.commit("c2", "c2-a").await.unwrap();
    server.prepare("a1", "c2").await.unwrap();
    server.prepare("a2", "").await.unwrap();
    server.view("v1", "c2").await.unwrap();
    server.view("v2", "").await.unwrap();
    server
}

const POPULATION: [(&str, Kind, &str); 6] = [
    ("c1", Kind::Committed, ""),
    ("c2", Kind::Committed, "c1"),
    ("a1", Kind::Active, "c2"),
    ("a2", Kind::Active, ""),
    ("v1", Kind::View, "c2"),
    ("v2", Kind::View, ""),
];

fn code<T: std::fmt::Debug>(result: Result<T, tonic::Status>) -> Code {
    result.unwrap_err().code()
}

#[tokio::test(flavor = "multi_thread")]
async fn stat_tells_kind_parent_and_times() {
    let before = prost_types::Timestamp::from(SystemTime::now());
    let server = populated().await;
    let after = prost_types::Timestamp::from(SystemTime::now());
    for (name, kind, parent) in POPULATION {
        let info = server.stat(name).await.unwrap();
        assert_eq!(
            (info.name.as_str(), info.kind(), info.parent.as_str()),
            (name, kind, parent)
        );
        let (created, updated) = (info.created_at.unwrap(), info.updated_at.unwrap());
        assert_eq!(created, updated);
        let order = [before, created, after].map(|at| (at.seconds, at.nanos));
        assert!(order.is_sorted(), "{order:?}");
    }
    assert_eq!(code(server.stat("nobody").await), Code::NotFound);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_key_or_name_is_given_once() {
    let server = populated().await;
    for taken in ["a1", "c1", "v1"] {
        assert_eq!(code(server.prepare(taken, "c1").await), Code::AlreadyExists);
        assert_eq!(code(server.view(taken, "c1").await), Code::AlreadyExists);
    }
    assert_eq!(code(server.commit("c1", "a2").await), Code::AlreadyExists);
    assert_eq!(server.stat("a2").await.unwrap().kind(), Kind::Active);
}

#[tokio::test(flavor = "multi_thread")]
async fn parents_must_be_committed() {
    let server = populated().await;
    assert_eq!(code(server.prepare("new", "nobody").await), Code::NotFound);
    assert_eq!(code(server.view("new", "nobody").await), Code::NotFound);
    for parent in ["a1", "v1"] {
        assert_eq!(
            code(server.prepare("new", parent).await),
            Code::InvalidArgument
        );
    }
    assert_eq!(code(server.prepare("", "").await), Code::InvalidArgument);
    // The rejected requests left no snapshot.
    assert_eq!(code(server.stat("new").await), Code::NotFound);
    let directories = fs::read_dir(server.directories()).unwrap().count();
    assert_eq!(directories, POPULATION.len());
}

#[tokio::test(flavor = "multi_thread")]
async fn only_active_snapshots_are_committed() {
    let server = populated().await;
    assert_eq!(
        code(server.commit("new", "c1").await),
        Code::FailedPrecondition
    );
    assert_eq!(
        code(server.commit("new", "v1").await),
        Code::FailedPrecondition
    );
    assert_eq!(code(server.commit("new", "nobody").await), Code::NotFound);
    assert_eq!(code(server.commit("", "a1").await), Code::InvalidArgument);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_commit_replaces_labels_and_frees_the_key() {
    let server = Server::start().await;
    server
        .prepare_with("key", "", labels(&[("old", "1"), ("empty", "")]))
        .await
        .unwrap();
    assert_eq!(
        server.stat("key").await.unwrap().labels,
        labels(&[("old", "1")])
    );
    server
        .commit_with("name", "key", labels(&[("new", "2")]), "")
        .await
        .unwrap();
    assert_eq!(
        server.stat("name").await.unwrap().labels,
        labels(&[("new", "2")])
    );
    assert_eq!(code(server.stat("key").await), Code::NotFound);
    assert_eq!(code(server.mounts("key").await), Code::NotFound);
    server.prepare("key", "name").await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn a_commit_may_set_a_parent_where_there_is_none() {
    let server = populated().await;
    let on = |name: &'static str, key: &'static str, parent: &'static str| {
        server.commit_with(name, key, Labels::new(), parent)
    };
    assert_eq!(code(on("new", "a1", "c1").await), Code::InvalidArgument);
    assert_eq!(code(on("new", "a2", "nobody").await), Code::NotFound);
    on("c3", "a2", "c2").await.unwrap();
    assert_eq!(server.stat("c3").await.unwrap().parent, "c2");
    on("c4", "a1", "c2").await.unwrap();
    let mounts = server.view("on-c3", "c3").await.unwrap();
    assert_eq!(mounts[0].options[0].matches("/fs").count(), 3, "{mounts:?}");
    assert_eq!(code(server.remove("c2").await), Code::FailedPrecondition);
}

#[tokio::test(flavor = "multi_thread")]
async fn mounts_are_those_that_were_answered_before() {
    let server = populated().await;
    let prepared = server.prepare("a3", "c2").await.unwrap();
    assert_eq!(server.mounts("a3").await.unwrap(), prepared);
    let viewed = server.view("v3", "c2").await.unwrap();
    assert_eq!(server.mounts("v3").await.unwrap(), viewed);
    assert_eq!(code(server.mounts("c1").await), Code::FailedPrecondition);
    assert_eq!(code(server.mounts("nobody").await), Code::NotFound);
}

#[tokio::test(flavor = "multi_thread")]
async fn updates_change_labels_and_nothing_else() {
    let server = populated().await;
    for (name, kind, parent) in POPULATION {
        let before = server.stat(name).await.unwrap();
        let change = |labels: Labels| Info {
            name: name.to_owned(),
            parent: "doesnotexist".to_owned(),
            labels,
            ..Info::default()
        };
        let all = labels(&[("l1", "v1"), ("l2", "v2"), ("l3", "v3")]);
        let info = server.update(change(all.clone()), &[]).await.unwrap();
        assert_eq!(info.labels, all);
        assert_eq!((info.kind(), info.parent.as_str()), (kind, parent));
        assert_eq!(info.created_at, before.created_at);
        assert_ne!(info.updated_at, before.updated_at);
        let some = labels(&[("l1", "updated"), ("l4", "v4")]);
        let info = server
            .update(change(some), &["labels.l1", "labels.l2"])
            .await
            .unwrap();
        assert_eq!(info.labels, labels(&[("l1", "updated"), ("l3", "v3")]));
        let last = labels(&[("l4", "v4")]);
        let info = server
            .update(change(last.clone()), &["labels"])
            .await
            .unwrap();
        assert_eq!(info.labels, last);
        assert_eq!(server.stat(name).await.unwrap(), info);
        let refused = server.update(change(Labels::new()), &["parent"]).await;
        assert_eq!(code(refused), Code::InvalidArgument);
    }
    let nobody = Info {
        name: "nobody".to_owned(),
        ..Info::default()
    };
    assert_eq!(code(server.update(nobody, &[]).await), Code::NotFound);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_removed_key_can_be_used_again() {
    let server = Server::start().await;
    server.prepare("committed-a", "").await.unwrap();
    server.commit("committed-1", "committed-a").await.unwrap();
    server.prepare("reuse-1", "committed-1").await.unwrap();
    server.remove("reuse-1").await.unwrap();
    server.view("reuse-1", "committed-1").await.unwrap();
    server.remove("reuse-1").await.unwrap();
    server.prepare("reuse-1", "").await.unwrap();
    server.remove("committed-1").await.unwrap();
    server.commit("committed-1", "reuse-1").await.unwrap();
    assert_eq!(code(server.remove("nobody").await), Code::NotFound);
}

#[tokio::test(flavor = "multi_thread")]
async fn an_intermediate_snapshot_stays_while_others_stand_on_it() {
    let server = populated().await;
    let error = server.remove("c2").await.unwrap_err();
    assert_eq!(error.code(), Code::FailedPrecondition);
    assert!(error.message().contains("remove"), "{error}");
    for name in ["a1", "v1", "c2", "c1"] {
        server.remove(name).await.unwrap();
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn walk_selects_with_filters() {
    let server = Server::start().await;
    let with = |number: &str| labels(&[("l", number), ("containerd.io/gc.root", "check-walk")]);
    let without = || labels(&[("containerd.io/gc.root", "check-walk")]);
    server.prepare_with("a-np", "", without()).await.unwrap();
    server.prepare("p-tmp", "").await.unwrap();
    server
        .commit_with("p", "p-tmp", without(), "")
        .await
        .unwrap();
    server.prepare_with("a", "p", without()).await.unwrap();
    server.view_with("v", "p", without()).await.unwrap();
    server.prepare("p-wl-tmp", "").await.unwrap();
    server
        .commit_with("p-wl", "p-wl-tmp", with("1"), "")
        .await
        .unwrap();
    server
        .prepare_with("a-wl", "p-wl", with("2"))
        .await
        .unwrap();
    server.view_with("v-wl", "p-wl", with("3")).await.unwrap();
    server.prepare_with("a-np-wl", "", with("2")).await.unwrap();
    let walk = r#"labels."containerd.io/gc.root"==check-walk"#;
    let and = |filter: &str| format!("{filter},{walk}");
    let (active, view) = (and("kind==active"), and("kind==view"));
    let (committed, children) = (and("kind==committed"), and(r#"parent!="""#));
    let all: &[&str] = &["a-np", "p", "a", "v", "p-wl", "a-wl", "v-wl", "a-np-wl"];
    let cases: &[(&[&str], &[&str])] = &[
        (&[walk], all),
        (&[], all),
        (&[&active], &["a-np", "a", "a-wl", "a-np-wl"]),
        (&[&view], &["v", "v-wl"]),
        (&[&committed], &["p", "p-wl"]),
        (&["name==p", "name==a-np-wl"], &["p", "a-np-wl"]),
        (&["name==a-wl,labels.l"], &["a-wl"]),
        (&["parent==p"], &["a", "v"]),
        (&[&children], &["a", "v", "a-wl", "v-wl"]),
        (&["labels.l"], &["p-wl", "a-wl", "v-wl", "a-np-wl"]),
        (&["labels.l==2"], &["a-wl", "a-np-wl"]),
        (&["name~=^a-.*wl$"], &["a-wl", "a-np-wl"]),
    ];
    for (filters, wanted) in cases {
        let found: BTreeSet<_> = server.names(filters).await.into_iter().collect();
        let wanted: BTreeSet<_> = wanted.iter().map(|&name| name.to_owned()).collect();
        assert_eq!(found, wanted, "{filters:?}");
    }
    assert_eq!(
        code(server.blocks(&["name=x"]).await),
        Code::InvalidArgument
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn containerd_finds_a_target_by_its_quoted_label_and_parent() {
    let server = Server::start().await;
    server.prepare("key-1", "").await.unwrap();
    server.commit("sha256:base", "key-1").await.unwrap();
    server.prepare("key-2", "sha256:base").await.unwrap();
    let target = labels(&[("containerd.io/snapshot.ref", "sha256:top")]);
    server
        .commit_with("sha256:top", "key-2", target, "")
        .await
        .unwrap();
    let filter = r#"labels."containerd.io/snapshot.ref"=="sha256:top",parent=="sha256:base""#;
    assert_eq!(server.names(&[filter]).await, ["sha256:top"]);
}

#[tokio::test(flavor = "multi_thread")]
async fn an_empty_list_is_an_empty_stream() {
    let server = Server::start().await;
    assert!(server.blocks(&[]).await.unwrap().is_empty());
    server.prepare("key", "").await.unwrap();
    assert!(server.blocks(&["name==other"]).await.unwrap().is_empty());
}

#[tokio::test(flavor = "multi_thread")]
async fn a_list_comes_in_blocks_of_a_hundred() {
    let server = Server::start().await;
    for number in 0..205 {
        server.prepare(&format!("key-{number}"), "").await.unwrap();
    }
    let sizes: Vec<_> = server
        .blocks(&[])
        .await
        .unwrap()
        .iter()
        .map(Vec::len)
        .collect();
    assert_eq!(sizes, [100, 100, 5]);
}

#[tokio::test(flavor = "multi_thread")]
async fn snapshots_can_be_asked_for_and_changed_during_a_walk() {
    let server = populated().await;
    for block in server.blocks(&[]).await.unwrap() {
        for info in block {
            assert_eq!(server.stat(&info.name).await.unwrap(), info);
            let again = Info {
                labels: labels(&[("seen", "1")]),
                ..info
            };
            server.update(again, &["labels"]).await.unwrap();
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn files_go_with_cleanup_and_not_before() {
    let server = populated().await;
    server.remove("a1").await.unwrap();
    server.remove("v2").await.unwrap();
    let count = || fs::read_dir(server.directories()).unwrap().count();
    assert_eq!(count(), 6);
    fs::create_dir(server.directories().join("new-left-by-a-crash")).unwrap();
    fs::create_dir(server.directories().join("999")).unwrap();
    server.cleanup().await.unwrap();
    assert_eq!(count(), 4);
    server.cleanup().await.unwrap();
    assert_eq!(count(), 4);
}

#[tokio::test(flavor = "multi_thread")]
async fn cleanup_leaves_alone_what_is_being_made() {
    let server = Server::start().await;
    let make = async {
        for number in 0..300 {
            let key = format!("key-{number}");
            let mounts = server.prepare(&key, "").await.unwrap();
            assert!(fs::metadata(&mounts[0].source).is_ok(), "{key}");
        }
    };
    let clean = async {
        for _ in 0..300 {
            server.cleanup().await.unwrap();
        }
    };
    tokio::join!(make, clean);
    assert_eq!(fs::read_dir(server.directories()).unwrap().count(), 300);
}

#[tokio::test(flavor = "multi_thread")]
async fn records_survive_a_restart() {
    let server = populated().await;
    let before = server.blocks(&[]).await.unwrap();
    let server = Server::start_on(server.stop().await).await;
    assert_eq!(server.blocks(&[]).await.unwrap(), before);
    server.remove("a2").await.unwrap();
    let mounts = server.prepare("a2", "").await.unwrap();
    assert!(
        mounts[0].source.ends_with("/7/fs"),
        "IDs are never reused: {mounts:?}"
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn a_layer_without_the_labels_of_its_image_is_left_to_containerd() {
    let server = Server::start().await;
    let target = || labels(&[("containerd.io/snapshot.ref", "sha256:x")]);
    // Without a namespace, the request fails and leaves nothing.
    assert_eq!(
        code(server.prepare_with("key", "", target()).await),
        Code::Unknown
    );
    assert_eq!(code(server.stat("key").await), Code::NotFound);
    let mounts = server
        .prepare_in("default", "key", "", target())
        .await
        .unwrap();
    assert_eq!(mounts[0].r#type, "bind");
    // Once it is committed under its target, the next request gets this answer.
    server
        .commit_with("sha256:x", "key", target(), "")
        .await
        .unwrap();
    let error = server
        .prepare_in("default", "key-2", "", target())
        .await
        .unwrap_err();
    assert_eq!(error.code(), Code::AlreadyExists);
    assert!(
        error.message().contains("target snapshot \"sha256:x\""),
        "{error}"
    );
    assert_eq!(code(server.stat("key-2").await), Code::NotFound);
}
