//! Where credentials come from, and that they are never printed.

use super::*;

#[test]
fn a_token_in_the_place_of_the_user_is_not_printed() {
    let registry = with_image(Setup::default(), &[layer(1, 200_000)]);
    let (from, to) = (docker(&registry, "in:1"), docker(&registry, "out:2"));
    for user in ["hunter2", ":hunter2"] {
        let ran = converted(&["--user", user], &from, &to);
        assert!(ran.stderr.contains("--password-stdin"), "{ran:?}");
        assert!(!ran.stderr.contains("hunter2"), "{ran:?}");
    }
}

#[test]
fn passwords_helpers_and_tokens_let_us_in() {
    let login = |access| Setup {
        access,
        tls: true,
        ..Setup::default()
    };
    let basic = || Access::Basic {
        user: "me".into(),
        password: "hunter2".into(),
    };
    let layers = vec![layer(1, 200_000)];
    let folder = tempfile::tempdir().unwrap();
    fs::write(folder.path().join("ca.pem"), TestRegistry::ca_pem()).unwrap();
    let ca = folder.path().join("ca.pem");
    fs::write(folder.path().join("password"), "hunter2\n").unwrap();
    let helper = folder.path().join("docker-credential-test");
    fs::write(
        &helper,
        "#!/bin/sh\necho '{\"Username\":\"me\",\"Secret\":\"hunter2\"}'\n",
    )
    .unwrap();
    fs::set_permissions(&helper, std::os::unix::fs::PermissionsExt::from_mode(0o755)).unwrap();
    fs::write(
        folder.path().join("config.json"),
        r#"{"credsStore":"test"}"#,
    )
    .unwrap();
    let path = format!("{}:/usr/bin:/bin", folder.path().display());
    for (flags, with_config, good) in [
        (&["--user", "me", "--password-stdin"][..], false, true),
        (&["--user", "me:hunter2"], false, true),
        (&[], true, true),
        (&[], false, false),
        (&["--user", "me:wrong"], false, false),
    ] {
        let registry = with_image(login(basic()), &layers);
        let mut command = command();
        command
            .env("PATH", &path)
            .args(["convert", "--standalone", "--min-layer-size", "0"]);
        if with_config {
            command.env("DOCKER_CONFIG", folder.path());
        }
        command.arg("--tlscacert").arg(&ca).args(flags);
        command.args([docker(&registry, "in:1"), docker(&registry, "out:2")]);
        command.stdin(fs::File::open(folder.path().join("password")).unwrap());
        let output = command.output().unwrap();
        let said = String::from_utf8_lossy(&output.stderr).into_owned();
        assert_eq!(output.status.success(), good, "{flags:?}: {said}");
        assert_eq!(tagged(&registry, "out", "2").is_some(), good);
        assert!(!said.contains("hunter2"), "{said}");
    }
}

/// A registry with an image that requires a token, which anonymous clients can get.
fn asks_for_tokens() -> TestRegistry {
    let access = Access::Token {
        login: None,
        lifetime: Duration::from_secs(60),
        oauth: false,
    };
    let setup = Setup {
        access,
        ..Setup::default()
    };
    with_image(setup, &[layer(1, 200_000)])
}

#[test]
fn a_broken_docker_configuration_is_named_once_and_not_quoted() {
    let (registry, to) = (asks_for_tokens(), TestRegistry::start());
    let host = registry.host();
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("config.json");
    for (text, problem) in [
        (
            format!(r#"{{"auths":{{"{host}":{{"auth":"hunter2"#),
            "error in line 1",
        ),
        ("\u{feff}{}".to_owned(), "error in line 1"),
        (
            format!(r#"{{"auths":{{"{host}":{{"auth":"hunter2!"}}}}}}"#),
            "the auth of",
        ),
    ] {
        fs::write(&file, text).unwrap();
        let output = command()
            .env("DOCKER_CONFIG", folder.path())
            .args(["convert", "--standalone", "--min-layer-size", "0"])
            .args([docker(&registry, "in:1"), docker(&to, "out:2")])
            .output()
            .unwrap();
        let said = String::from_utf8(output.stderr).unwrap();
        assert!(output.status.success(), "{said}");
        assert_eq!(said.matches(file.to_str().unwrap()).count(), 1, "{said}");
        assert!(
            said.contains("level=warning") && said.contains(problem),
            "{said}"
        );
        assert!(!said.contains("hunter2"), "{said}");
    }
}

#[test]
fn what_is_tried_is_told_to_those_who_ask() {
    let (registry, to) = (asks_for_tokens(), TestRegistry::start());
    let nothing = tempfile::tempdir().unwrap();
    for verbose in [false, true] {
        let output = command()
            .env("DOCKER_CONFIG", nothing.path())
            .args(["convert", "--standalone", "--min-layer-size", "0"])
            .arg(format!("--verbose={verbose}"))
            .args([docker(&registry, "in:1"), docker(&to, "out:2")])
            .output()
            .unwrap();
        let said = String::from_utf8(output.stderr).unwrap();
        let is_told = said.contains("level=debug msg=\"no docker configuration\"");
        assert_eq!(is_told, verbose, "{said}");
        assert!(verbose || said.is_empty(), "{said}");
    }
}
