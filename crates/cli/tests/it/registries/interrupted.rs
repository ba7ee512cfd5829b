//! Copies that are interrupted or take too long.

use super::*;

#[test]
fn an_interrupted_copy_leaves_no_tag() {
    let layers = layers();
    let from = with_image(
        Setup {
            pace: Some(200_000),
            ..Setup::default()
        },
        &layers,
    );
    let to = TestRegistry::start();
    let mut child = command()
        .args([
            "convert",
            "--standalone",
            &docker(&from, "in:1"),
            &docker(&to, "out:2"),
        ])
        .args(SOME)
        .spawn()
        .unwrap();
    let big = digests(&layers)[0];
    while from.bytes_sent(&big) == 0 {
        std::thread::sleep(Duration::from_millis(10));
    }
    let killed = run_kill(child.id());
    assert!(killed);
    assert_eq!(child.wait().unwrap().code(), Some(130));
    assert_eq!(tagged(&to, "out", "2"), None);
    assert!(!to.has_blob("out", &big));
    let (begun, left) = sessions(&to, "out");
    assert!(
        begun > 0 && left == 0,
        "{left} of {begun} uploads are left to the registry"
    );
}

/// The number of uploads started in a repository, and of those neither completed nor canceled.
fn sessions(registry: &TestRegistry, repository: &str) -> (usize, usize) {
    let prefix = format!("/v2/{repository}/blobs/uploads/");
    let seen = registry.seen();
    let count = |is_one: fn(&Seen) -> bool| {
        let here = seen.iter().filter(|it| it.path.starts_with(&prefix));
        here.filter(|it| is_one(it)).count()
    };
    let begun = count(|it| it.method == "POST" && it.status == 202);
    let ended = count(|it| it.method == "PUT" && it.status == 201);
    // The registry may already have deleted a failed upload (404).
    let taken_back = count(|it| it.method == "DELETE");
    (begun, begun.saturating_sub(ended + taken_back))
}

#[test]
fn a_copy_that_takes_too_long_leaves_no_tag_and_no_upload() {
    let layers = layers();
    let pace = Some(200_000);
    let from = with_image(
        Setup {
            pace,
            ..Setup::default()
        },
        &layers,
    );
    let to = TestRegistry::start();
    let ran = convert(
        &[SOME, &["--timeout", "1s"]].concat(),
        &docker(&from, "in:1"),
        &docker(&to, "out:2"),
    );
    assert_eq!(ran.code, Some(1), "{ran:?}");
    assert!(ran.stderr.contains("context deadline exceeded"), "{ran:?}");
    assert_eq!(tagged(&to, "out", "2"), None);
    let (begun, left) = sessions(&to, "out");
    assert!(
        begun > 0 && left == 0,
        "{left} of {begun} uploads are left to the registry"
    );
}

fn run_kill(process: u32) -> bool {
    let status = std::process::Command::new("kill")
        .args(["-INT", &process.to_string()])
        .status();
    status.is_ok_and(|status| status.success())
}
