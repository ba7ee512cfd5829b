use super::*;

fn parsed(specifier: &str) -> String {
    let platform: Platform = specifier.parse().unwrap();
    format!(
        "{platform} {:?} {:?}",
        platform.os_version, platform.os_features
    )
}

#[test]
fn specifiers_are_read_as_containerd_reads_them() {
    let host = host_architecture();
    for (specifier, expected) in [
        ("linux/amd64", "linux/amd64"),
        ("Linux/X86_64", "linux/amd64"),
        ("linux/arm64", "linux/arm64"),
        ("linux/arm64/v8", "linux/arm64/v8"),
        ("linux/aarch64/8", "linux/arm64/v8"),
        ("linux/arm", "linux/arm"),
        ("linux/armhf", "linux/arm"),
        ("linux/armel", "linux/arm/v6"),
        ("linux/arm/7", "linux/arm/v7"),
        ("arm64", "linux/arm64"),
        ("i386", "linux/386"),
        ("macos/arm64", "darwin/arm64"),
        ("foo/bar", "foo/bar"),
        ("linux", &format!("linux/{host}")),
    ] {
        assert_eq!(
            parsed(specifier),
            format!("{expected} \"\" []"),
            "{specifier}"
        );
    }
    assert_eq!(
        parsed("windows(10.0.17763+win32k)/amd64"),
        "windows/amd64 \"10.0.17763\" [\"win32k\"]"
    );
}

#[test]
fn bad_specifiers_are_refused_with_the_reason() {
    for (specifier, expected) in [
        (
            "linux/*",
            "\"linux/*\": wildcards not yet supported: invalid argument",
        ),
        (
            "foo",
            "\"foo\": unknown operating system or architecture: invalid argument",
        ),
        (
            "a/b/c/d",
            "\"a/b/c/d\": cannot parse platform specifier: invalid argument",
        ),
    ] {
        let error = specifier.parse::<Platform>().unwrap_err();
        assert_eq!(error.to_string(), expected);
    }
    for specifier in [
        "",
        "linux/",
        "linux//v8",
        "li nux/amd64",
        "linux(/amd64",
        "linux(a+)/amd64",
    ] {
        assert!(specifier.parse::<Platform>().is_err(), "{specifier}");
    }
}

#[test]
fn usual_spellings_match_and_sub_platforms_do_not() {
    let matches = |wanted: &str, offered: &str| {
        wanted
            .parse::<Platform>()
            .unwrap()
            .matches(&offered.parse().unwrap())
    };
    for (wanted, offered, expected) in [
        ("linux/arm64", "linux/arm64/v8", true),
        ("linux/arm64/v8", "linux/arm64", true),
        ("linux/amd64", "linux/amd64/v1", true),
        ("linux/arm", "linux/arm/v7", true),
        ("linux/amd64", "linux/amd64/v2", false),
        ("linux/amd64", "linux/386", false),
        ("linux/arm/v7", "linux/arm/v6", false),
        ("linux/amd64", "windows/amd64", false),
        (
            "windows(10.0.17763.1)/amd64",
            "windows(10.0.17763.9)/amd64",
            true,
        ),
        (
            "windows(10.0.17763)/amd64",
            "windows(10.0.20348)/amd64",
            false,
        ),
        (
            "windows(10.0.26100)/amd64",
            "windows(10.0.20348)/amd64",
            true,
        ),
        ("windows/amd64", "windows(10.0.20348)/amd64", true),
        ("windows(10.0.26100)/amd64", "windows/amd64", true),
        ("windows/amd64", "windows(10.0.20348+win32k)/amd64", false),
    ] {
        assert_eq!(matches(wanted, offered), expected, "{wanted} {offered}");
    }
}

#[test]
fn json_has_gos_order_and_leaves_out_what_is_empty() {
    let platform: Platform = "windows(10.0.1+x)/arm64/v8".parse().unwrap();
    let json = r#"{"architecture":"arm64","os":"windows","os.version":"10.0.1","os.features":["x"],"variant":"v8"}"#;
    assert_eq!(crate::json::to_vec(&platform), json.as_bytes());
    assert_eq!(
        crate::json::to_vec(&Platform::default()),
        br#"{"architecture":"","os":""}"#
    );
    let read: Platform = crate::json::from_slice(br#"{"os":null,"os.features":null}"#).unwrap();
    assert_eq!(read, Platform::default());
}

proptest::proptest! {
    /// Formatting a parsed specifier and parsing it again gives an equal platform.
    #[test]
    fn prop_specifiers_survive_their_own_spelling(
        specifier in "(linux|windows|macos|x)(/(amd64|aarch64|arm|armel|i386|y)(/v?[1-9])?)?"
    ) {
        if let Ok(platform) = specifier.parse::<Platform>() {
            let again: Platform = platform.to_string().parse().unwrap();
            proptest::prop_assert!(platform.matches(&again) && again.matches(&platform));
            let normal = platform.normalised();
            proptest::prop_assert_eq!(normal.normalised(), normal);
        }
    }

    #[test]
    fn prop_any_text_is_a_platform_or_an_error(text in "\\PC{0,20}") {
        let _: Result<Platform, PlatformError> = text.parse();
    }
}
