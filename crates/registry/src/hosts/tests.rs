use std::{fs, path::Path};

use super::*;
use crate::Tls;

fn hosts(mirrors: &[(&str, bool)]) -> Hosts {
    let mirror = |(host, insecure): &(&str, bool)| Mirror {
        host: (*host).to_owned(),
        insecure: *insecure,
        timeout: None,
    };
    let mirrors = mirrors.iter().map(mirror).collect();
    Hosts {
        mirrors: [("docker.io".to_owned(), mirrors)].into(),
        ..Hosts::default()
    }
}

fn with_files(folder: &Path, hosts: Hosts) -> Hosts {
    Hosts {
        folders: HostFolders::new(vec![folder.to_owned()]),
        ..hosts
    }
}

#[test]
fn mirrors_of_the_configuration_come_before_the_hosts_of_files() {
    let folder = tempfile::tempdir().expect("a temporary folder");
    let settings = folder.path().join("docker.io");
    fs::create_dir(&settings).expect("a folder");
    let text = "[host.'http://b.example']\n[host.'http://a.example']\n";
    fs::write(settings.join("hosts.toml"), text).expect("a file");
    let hosts = with_files(folder.path(), hosts(&[("first.example", true)]));
    let image = ImageRef::parse("ubuntu").expect("a name");
    let of = |operation| shown(&hosts.of(&image, operation).expect("hosts"));
    let all = [
        "Http first.example/v2",
        "Http b.example/v2",
        "Http a.example/v2",
        "Https registry-1.docker.io/v2",
    ];
    assert_eq!(of(Operation::Pull), all);
    assert_eq!(of(Operation::Referrers), all);
    assert_eq!(of(Operation::Push), all[3..], "mirrors are for reading");
}

#[test]
fn every_host_but_the_registrys_own_learns_which_registry_is_meant() {
    for (registry, host, named) in [
        ("r.example", "r.example", false),
        ("r.example:5000", "r.example:5000", false),
        ("r.example:5000", "r.example", true),
        ("r.example", "m.example", true),
        ("docker.io", "registry-1.docker.io", false),
        ("docker.io", "m.example", true),
        ("r.example", "registry-1.docker.io", true),
    ] {
        let image = ImageRef::parse(&format!("{registry}/app")).expect(registry);
        let mirror = Mirror {
            host: host.to_owned(),
            ..Mirror::default()
        };
        let folder = tempfile::tempdir().expect("a temporary folder");
        let settings = folder.path().join("_default");
        fs::create_dir(&settings).expect("a folder");
        let text = format!("[host.'https://{host}']\n");
        fs::write(settings.join("hosts.toml"), text).expect("a file");
        let hosts = Hosts {
            mirrors: [(registry.to_owned(), vec![mirror])].into(),
            ..Hosts::default()
        };
        let hosts = with_files(folder.path(), hosts);
        let hosts = hosts.of(&image, Operation::Pull).expect("hosts");
        let named = named.then_some(registry);
        let stands_for: Vec<_> = hosts.iter().map(|it| it.stands_for.as_deref()).collect();
        assert_eq!(stands_for, [named, named, None], "{registry} {host}");
    }
}

#[test]
fn this_machine_is_asked_as_containerd_does_where_its_files_say_nothing() {
    let folder = tempfile::tempdir().expect("a temporary folder");
    fs::create_dir(folder.path().join("_default")).expect("a folder without settings");
    let reached = |name: &str| {
        let image = ImageRef::parse(&format!("{name}/app")).expect(name);
        let hosts = with_files(folder.path(), Hosts::default());
        let host = hosts.origin(&image).expect(name);
        let tls = host.tls.of(&Tls::default()).unwrap_or_default();
        (host.scheme, tls.skip_verify)
    };
    for (name, expected) in [
        ("localhost:5000", (Scheme::HttpsFirst, true)),
        ("[::1]:5000", (Scheme::HttpsFirst, true)),
        ("localhost:443", (Scheme::Https, true)),
        ("localhost", (Scheme::Https, true)),
        ("localhost:80", (Scheme::Guess, false)),
        ("r.example:5000", (Scheme::Https, false)),
    ] {
        assert_eq!(reached(name), expected, "{name}");
    }
}

fn shown(hosts: &[Host]) -> Vec<String> {
    let show = |h: &Host| format!("{:?} {}{}", h.scheme, h.authority, h.path);
    hosts.iter().map(show).collect()
}

#[test]
fn mirrors_come_first_in_any_way_people_write_them() {
    let hosts = hosts(&[
        ("mirror.example", false),
        ("mirror.example:5000", true),
        ("10.0.0.1:5000/hub/v2/", false),
        ("http://mirror.example/v2", false),
        ("https://mirror.example", true),
        ("//mirror.example/x", false),
        ("localhost:5000", false),
    ]);
    let image = ImageRef::parse("ubuntu").expect("a name");
    assert_eq!(
        shown(&hosts.of(&image, Operation::Pull).expect("all fine")),
        [
            "Https mirror.example/v2",
            "Http mirror.example:5000/v2",
            "Https 10.0.0.1:5000/hub/v2",
            "Http mirror.example/v2",
            "Https mirror.example/v2",
            "Https mirror.example/x",
            "Guess localhost:5000/v2",
            "Https registry-1.docker.io/v2",
        ]
    );
}

#[test]
fn a_mirror_nobody_understands_is_left_out() {
    let hosts = hosts(&[
        ("", false),
        ("ftp://x", false),
        ("u:hunter2@x", false),
        ("a b", false),
    ]);
    let image = ImageRef::parse("ubuntu").expect("a name");
    assert_eq!(
        hosts
            .of(&image, Operation::Pull)
            .expect("the origin is fine")
            .len(),
        1
    );
    let mirror = Mirror {
        host: "u:hunter2@x".to_owned(),
        ..Mirror::default()
    };
    let error = mirror
        .to_host("docker.io")
        .expect_err("credentials do not belong there");
    assert!(!format!("{error} {error:?}").contains("hunter2"));
}

#[test]
fn this_machine_is_asked_without_tls_first() {
    let scheme = |name: &str| {
        let image = ImageRef::parse(&format!("{name}/app")).expect(name);
        Hosts::default().origin(&image).expect(name).scheme
    };
    for name in [
        "localhost",
        "localhost:5000",
        "127.0.0.1:5000",
        "127.8.9.1",
        "[::1]:5000",
    ] {
        assert_eq!(scheme(name), Scheme::Guess, "{name}");
    }
    for name in ["r.example", "localhost.example", "10.0.0.1:5000"] {
        assert_eq!(scheme(name), Scheme::Https, "{name}");
    }
}

#[test]
fn only_a_plain_host_is_an_origin() {
    for name in ["u@h/app:t", "h%20x/app:t", "h:99999/app:t"] {
        if let Ok(image) = ImageRef::from_containerd(name) {
            let origin = Hosts::default().origin(&image);
            assert!(origin.is_err() || image.host() == "h", "{name}");
        }
    }
}
