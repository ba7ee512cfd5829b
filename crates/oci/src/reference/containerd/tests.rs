use proptest::prelude::*;

use super::*;

const SHA: &str = "sha256:e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855";

#[test]
fn names_are_cut_as_containerd_cuts_them() {
    let by_digest = format!("r.example/app@{SHA}");
    let both = format!("r.example/app:v1@{SHA}");
    let cases = [
        ("r.example/app:v1", "r.example/app", "v1", "v1", ""),
        (
            "r.example:5000/a/b:v1",
            "r.example:5000/a/b",
            "v1",
            "v1",
            "",
        ),
        ("r.example/app", "r.example/app", "", "", ""),
        ("r.example//a/./b:t", "r.example/a/b", "t", "t", ""),
        ("r.example/%61pp:t", "r.example/app", "t", "t", ""),
        ("user@r.example/app:t", "r.example/app", "t", "t", ""),
        ("r.example/app:t?x#y", "r.example/app", "t", "t", ""),
        ("r.example/App:t", "r.example/App", "t", "t", ""),
        ("ubuntu", "ubuntu", "", "", ""),
        ("[::1]:5000/a:t", "[::1]:5000/a", "t", "t", ""),
        (&by_digest, "r.example/app", &by_digest[13..], "", SHA),
        (&both, "r.example/app", &both[14..], "v1", SHA),
    ];
    for (name, locator, object, tag, digest) in cases {
        let parsed = ContainerdName::parse(name).expect(name);
        assert_eq!(parsed.locator(), locator, "{name}");
        assert_eq!(parsed.object(), object, "{name}");
        assert_eq!(parsed.tag(), tag, "{name}");
        assert_eq!(parsed.digest(), digest, "{name}");
    }
}

#[test]
fn refusals_have_the_words_of_containerd() {
    let cases = [
        ("https://r.example/app", "invalid reference"),
        ("", "hostname required"),
        ("/app:t", "hostname required"),
        (
            "multi:foo",
            r#"parse "dummy://multi:foo": invalid port ":foo" after host"#,
        ),
        (
            "a b/c:t",
            r#"parse "dummy://a b/c:t": invalid character " " in host name"#,
        ),
        (
            "r.example/%zz",
            r#"parse "dummy://r.example/%zz": invalid URL escape "%zz""#,
        ),
        (
            "[::1/app",
            r#"parse "dummy://[::1/app": missing ']' in host"#,
        ),
        (
            "r.example/a\n",
            r#"parse "dummy://r.example/a\n": net/url: invalid control character in URL"#,
        ),
    ];
    for (name, message) in cases {
        assert_eq!(
            ContainerdName::parse(name).expect_err(name).to_string(),
            message
        );
    }
}

#[test]
fn an_image_reference_needs_repository_and_object() {
    let full = |name: &str| ImageRef::from_containerd(name);
    let image = full("r.example:5000/a/B:v1").expect("tagged");
    assert_eq!(
        (image.host(), image.repository(), image.tag()),
        ("r.example:5000", "a/B", Some("v1"))
    );
    assert_eq!(image.to_string(), "r.example:5000/a/B:v1");
    let by_digest = full(&format!("r.example/a@{SHA}")).expect("by digest");
    assert_eq!(
        by_digest.digest().map(ToString::to_string).as_deref(),
        Some(SHA)
    );
    assert_eq!(
        full("r.example/a"),
        Err(ContainerdNameError::ObjectRequired)
    );
    assert!(matches!(
        full("r.example"),
        Err(ContainerdNameError::NoRepository { .. })
    ));
    assert!(matches!(
        full("r.example/a@zz"),
        Err(ContainerdNameError::Digest { .. })
    ));
}

proptest! {
    #[test]
    fn prop_never_panics(name in "(\\PC|[%:@/#?\\[\\]]){0,40}") {
        if let Ok(parsed) = ContainerdName::parse(&name) {
            prop_assert!(!parsed.locator().is_empty());
            let _image = parsed.to_image_ref();
        }
    }
}
