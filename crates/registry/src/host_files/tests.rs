use std::{fs, sync::Arc};

use super::{parse::parse, *};

fn folder() -> tempfile::TempDir {
    tempfile::tempdir().expect("a temporary folder")
}

fn write(path: &Path, text: &str) {
    fs::create_dir_all(path.parent().expect("a folder")).expect("make it");
    fs::write(path, text).expect("write");
}

fn load(folders: &[PathBuf], registry: &str) -> Option<Arc<[HostEntry]>> {
    HostFolders::new(folders.to_vec()).entries(registry)
}

fn shown(entries: &[HostEntry]) -> Vec<String> {
    let letter = |yes: bool, letter| if yes { letter } else { '-' };
    let show = |entry: &HostEntry| {
        let Capabilities {
            pull,
            resolve,
            referrers,
            push,
        } = entry.capabilities;
        let letters = [(pull, 'P'), (resolve, 'R'), (referrers, 'L'), (push, 'U')];
        let letters: String = letters.iter().map(|&(yes, of)| letter(yes, of)).collect();
        let address = match &entry.address {
            Some((scheme, host, path)) => format!("{scheme:?} {host}{path}"),
            None => "itself".to_owned(),
        };
        format!("{letters} {address}")
    };
    entries.iter().map(show).collect()
}

fn entries(text: &str) -> Vec<String> {
    shown(&parse(Path::new("/d"), text).expect(text))
}

#[test]
fn hosts_come_in_the_order_of_the_file_and_the_registry_last() {
    let text = r#"
server = "https://r.example"
[host."https://z.example/v2"]
  capabilities = ["pull", "Resolve"]
[host."a.example:5000"]
  capabilities = ["push"]
[host."http://b.example/some/path/"]
[host."https://c.example/api"]
  override_path = true
[host."https://d.example/"]
  override_path = true
"#;
    assert_eq!(
        entries(text),
        [
            "PR-- Https z.example/v2",
            "---U Https a.example:5000/v2",
            "PRL- Http b.example/some/path/v2",
            "PRL- Https c.example/api",
            "PRL- Https d.example",
            "PRLU Https r.example/v2",
        ]
    );
    let without_server = "capabilities = ['pull']";
    assert_eq!(entries(without_server), ["PRLU itself"]);
    let with_server = "capabilities = ['pull']\nserver = 'a'";
    assert_eq!(entries(with_server), ["P--- Https a/v2"]);
    assert_eq!(entries("[plugins.other]\nx = 1"), ["PRLU itself"]);
}

#[test]
fn http_with_certificates_is_https_first() {
    for (settings, scheme) in [
        ("", "Http"),
        ("ca = 'a'", "HttpsFirst"),
        ("client = 'a'", "HttpsFirst"),
        ("skip_verify = true", "HttpsFirst"),
        ("skip_verify = false", "HttpsFirst"),
    ] {
        for (host, scheme) in [("a", scheme), ("a:5000", scheme), ("a:80", "Http")] {
            let text = format!("[host.'http://{host}']\n{settings}");
            assert_eq!(
                entries(&text)[0],
                format!("PRL- {scheme} {host}/v2"),
                "{text}"
            );
            let text = format!("server = 'http://{host}'\n{settings}");
            assert_eq!(
                entries(&text)[0],
                format!("PRLU {scheme} {host}/v2"),
                "{text}"
            );
        }
    }
}

#[test]
fn certificates_have_three_forms_and_are_beside_the_file() {
    let text = r#"
ca = "ca.pem"
client = "both.pem"
[host.a]
  ca = ["one.pem", "/etc/two.pem"]
  client = [["c.pem", "k.pem"]]
  skip_verify = true
[host.b]
  client = ["x.pem"]
[host.c]
  client = [["c.pem", ""]]
"#;
    let all = parse(Path::new("/d"), text).expect(text);
    let tls: Vec<Tls> = all
        .iter()
        .map(|it| it.tls.of(&Tls::default()).expect("changes"))
        .collect();
    let identity = |certificate: &str, key: Option<&str>| {
        let certificate = PathBuf::from(certificate);
        Some(Identity {
            certificate,
            key: key.map(PathBuf::from),
        })
    };
    assert_eq!(
        tls[0].authorities,
        [Path::new("/d/one.pem"), Path::new("/etc/two.pem")]
    );
    assert_eq!(tls[0].identity, identity("/d/c.pem", Some("/d/k.pem")));
    assert!(tls[0].skip_verify);
    assert_eq!(tls[1].identity, identity("/d/x.pem", None));
    assert_eq!(tls[2].identity, identity("/d/c.pem", None));
    assert_eq!(tls[3].authorities, [Path::new("/d/ca.pem")]);
    assert_eq!(tls[3].identity, identity("/d/both.pem", None));
}

#[test]
fn a_hosts_own_word_on_verification_counts() {
    let base = Tls {
        skip_verify: true,
        ..Tls::default()
    };
    let all = parse(Path::new("/d"), "skip_verify = false\n[host.a]\n").expect("fine");
    assert_eq!(all[0].tls.of(&base), None);
    assert_eq!(all[1].tls.of(&base), Some(Tls::default()));
}

#[test]
fn headers_are_sent_and_not_shown() {
    let text = "[host.a.header]\n x-one = 'hunter2'\n x-two = ['a', 'hunter2']\n";
    let all = parse(Path::new("/d"), text).expect(text);
    assert_eq!(all[0].headers.get("x-one").expect("one"), "hunter2");
    assert_eq!(all[0].headers.get_all("x-two").iter().count(), 2);
    assert!(!format!("{all:?}").contains("hunter2"));
}

#[test]
fn what_cannot_be_understood_is_no_setting() {
    for text in [
        "server = 1",
        "[host.a",
        "[host.a]\ncapabilities = ['fly']",
        "[host.'ftp://a']",
        "[host.'https://u:hunter2@a']",
        "[host.a]\nca = 1",
        "[host.a]\nclient = [['a']]",
        "[host.a.header]\n'x y' = 'hunter2'",
        "[host.a.header]\n'Authorization: Bearer hunter2' = ''",
        "[host.a.header]\n'Authorization=hunter2' = ''",
        "header = 'Authorization: Bearer hunter2'",
        "[host.a]\nheader = 'Authorization: Bearer hunter2'",
        "[host.a]\nheader.authorization = 'hunter2",
        "[host.a]\nskip_verify = 'hunter2'",
        "[host.'https://u:hunter2@a:port']",
        "server = 'ftp://u:hunter2@a'",
        "server = 'ftp://a?token=hunter2'",
    ] {
        let problem = parse(Path::new("/d"), text).expect_err(text);
        assert!(!problem.contains("hunter2"), "{problem}");
        let root = folder();
        write(&root.path().join("r.example/hosts.toml"), text);
        let found = load(&[root.path().to_owned()], "r.example").expect("the folder is there");
        assert_eq!(shown(&found), ["PRLU itself"], "{text}");
    }
}

#[test]
fn a_problem_names_the_line_of_what_is_wrong() {
    for (text, line) in [
        ("server = 'a'\n\nheader = 'x: y'\n", 3),
        ("server = 'a'\n[host.a]\nheader = 'x: y'\n", 3),
        ("server = 1", 1),
        ("ca = 1\n[host.a]\n", 1),
        ("[host.a]\n[host.a\n", 2),
    ] {
        let problem = parse(Path::new("/d"), text).expect_err(text);
        assert_eq!(problem, format!("line {line} cannot be understood"));
    }
}

#[test]
fn a_registry_has_one_folder_by_several_names() {
    let (first, second) = (folder(), folder());
    let folders = [
        PathBuf::from("/no/such"),
        first.path().to_owned(),
        second.path().to_owned(),
    ];
    let server = |name: &str| {
        let found = load(&folders, name)?;
        found
            .last()?
            .address
            .as_ref()
            .map(|(_, host, _)| host.clone())
    };
    assert!(load(&folders, "r.example:5000").is_none());
    write(
        &second.path().join("r.example:5000/hosts.toml"),
        "server = 'colon'",
    );
    assert_eq!(server("r.example:5000").as_deref(), Some("colon"));
    write(&first.path().join("_default/hosts.toml"), "server = 'any'");
    assert_eq!(server("r.example:5000").as_deref(), Some("any"));
    write(
        &first.path().join("r.example_5000_/hosts.toml"),
        "server = 'spelt'",
    );
    assert_eq!(server("r.example:5000").as_deref(), Some("spelt"));
    let both = first.path().join("r.example:5000/hosts.toml");
    write(&both, "server = 'colon'");
    assert_eq!(server("r.example:5000").as_deref(), Some("spelt"));
    assert_eq!(server("other").as_deref(), Some("any"));
    assert_eq!(server("..").as_deref(), Some("any"));
}

#[test]
fn without_a_file_certificates_are_where_docker_has_them() {
    let root = folder();
    let own = root.path().join("r.example");
    for name in ["ca.crt", "b.crt", "client.cert", "client.key", "readme"] {
        write(&own.join(name), "x");
    }
    let found = load(&[root.path().to_owned()], "r.example").expect("the folder is there");
    assert_eq!(shown(&found), ["PRLU itself"]);
    let tls = found[0].tls.of(&Tls::default()).expect("changes");
    assert_eq!(tls.authorities, [own.join("b.crt"), own.join("ca.crt")]);
    assert_eq!(
        tls.identity,
        Some(Identity {
            certificate: own.join("client.cert"),
            key: Some(own.join("client.key")),
        })
    );
}

#[test]
fn changed_settings_apply_the_next_time() {
    let root = folder();
    let folders = HostFolders::new(vec![root.path().to_owned()]);
    let now = |registry: &str| folders.entries(registry).map(|entries| shown(&entries));
    assert_eq!(now("r.example"), None);
    let file = root.path().join("r.example/hosts.toml");
    write(&file, "[host.'a']\n");
    let a = Some(vec!["PRL- Https a/v2".to_owned(), "PRLU itself".to_owned()]);
    assert_eq!(now("r.example"), a);
    let kept = folders.entries("r.example").expect("settings");
    let again = folders.entries("r.example").expect("settings");
    assert!(Arc::ptr_eq(&kept, &again), "read once");
    // The same number of bytes, as when one digit of an address changes.
    write(&file, "[host.'b']\n");
    assert_eq!(now("r.example").expect("settings")[0], "PRL- Https b/v2");
    let other = root.path().join("new");
    write(&other, "[host.'c']\n");
    fs::rename(other, &file).expect("replaced as a whole");
    assert_eq!(now("r.example").expect("settings")[0], "PRL- Https c/v2");
    fs::remove_file(&file).expect("removed");
    assert_eq!(now("r.example"), Some(vec!["PRLU itself".to_owned()]));
    write(&root.path().join("r.example/ca.crt"), "x");
    let entries = folders.entries("r.example").expect("settings");
    assert!(entries[0].tls.of(&Tls::default()).is_some());
    fs::remove_dir_all(root.path().join("r.example")).expect("removed");
    assert_eq!(now("r.example"), None);
}

#[test]
fn a_timeout_for_connecting_is_written_as_in_go() {
    let of = |text: &str| {
        let text = format!("[host.a]\ndial_timeout = '{text}'\n");
        let entries = parse(Path::new("/d"), &text)?;
        Ok::<_, String>(entries[0].dial_timeout)
    };
    for (text, milliseconds) in [
        ("200ms", 200),
        ("3s", 3_000),
        ("1.5s", 1_500),
        ("1m30s", 90_000),
        ("1h", 3_600_000),
    ] {
        assert_eq!(of(text), Ok(Some(Duration::from_millis(milliseconds))));
    }
    for text in [
        "",
        "3",
        "s",
        "3 s",
        "-3s",
        "3s4",
        "0s",
        "1e9s",
        "99999999999999999999h",
    ] {
        assert!(of(text).is_err(), "{text}");
    }
    let entries = parse(Path::new("/d"), "[host.a]\n").expect("fine");
    assert_eq!(entries[0].dial_timeout, None);
}
