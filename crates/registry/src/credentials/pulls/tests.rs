use super::*;

fn image(name: &str) -> ImageRef {
    ImageRef::parse(name).expect("a name")
}

fn login(user: &str) -> PullLogin {
    PullLogin {
        username: user.to_owned(),
        password: "p".to_owned(),
        ..PullLogin::default()
    }
}

async fn user(keychain: &PullKeychain, host: &str, name: &str) -> Option<String> {
    match keychain.get(host, &image(name)).await? {
        Credential::Password { user, .. } => Some(user),
        other => panic!("{other:?}"),
    }
}

#[tokio::test]
async fn the_newest_pull_of_a_repository_wins() {
    let keychain = PullKeychain::default();
    for (name, name_of_user) in [("r.io/a:1", "one"), ("r.io/a:2", "two"), ("r.io/b:1", "b")] {
        keychain
            .begin(&image(name), &login(name_of_user))
            .succeed("id");
    }
    for (host, name, expected) in [
        ("r.io", "r.io/a:1", Some("two")),
        ("r.io", "r.io/b:9", Some("b")),
        ("r.io", "r.io/c:1", None),
        ("mirror.io", "r.io/a:1", None),
        ("mirror.io", "mirror.io/a:1", None),
    ] {
        let found = user(&keychain, host, name).await;
        assert_eq!(found.as_deref(), expected, "{host} {name}");
    }
    keychain
        .begin(&image("r.io/a:1"), &login("three"))
        .succeed("id");
    let found = user(&keychain, "r.io", "r.io/a:2").await;
    assert_eq!(found.as_deref(), Some("three"));
}

#[tokio::test]
async fn a_failed_pull_gives_back_what_it_replaced() {
    let keychain = PullKeychain::default();
    keychain
        .begin(&image("r.io/a:1"), &login("good"))
        .succeed("");
    let running = keychain.begin(&image("r.io/a:1"), &login("bad"));
    let found = user(&keychain, "r.io", "r.io/a:1").await;
    assert_eq!(found.as_deref(), Some("bad"), "it runs");
    drop(running);
    let found = user(&keychain, "r.io", "r.io/a:1").await;
    assert_eq!(found.as_deref(), Some("good"));
    let first = keychain.begin(&image("r.io/a:1"), &login("first"));
    keychain
        .begin(&image("r.io/a:1"), &login("second"))
        .succeed("");
    drop(first);
    let found = user(&keychain, "r.io", "r.io/a:1").await;
    assert_eq!(found.as_deref(), Some("second"), "a later pull stays");
}

#[tokio::test]
async fn a_failed_pull_of_another_tag_leaves_no_login() {
    let keychain = PullKeychain::default();
    let failed = keychain.begin(&image("r.io/a:2"), &login("bad"));
    drop(failed);
    assert_eq!(user(&keychain, "r.io", "r.io/a:2").await, None);
    keychain
        .begin(&image("r.io/a:1"), &login("good"))
        .succeed("");
    let running = keychain.begin(&image("r.io/a:1"), &login("own"));
    let failed = keychain.begin(&image("r.io/a:2"), &login("bad"));
    let found = user(&keychain, "r.io", "r.io/a:1").await;
    assert_eq!(found.as_deref(), Some("own"), "its own pull comes first");
    drop((failed, running));
    for name in ["r.io/a:1", "r.io/a:2"] {
        let found = user(&keychain, "r.io", name).await;
        assert_eq!(found.as_deref(), Some("good"), "{name}");
    }
}

#[tokio::test]
async fn two_failed_pulls_at_once_give_back_the_good_login() {
    for first_ends_first in [true, false] {
        let keychain = PullKeychain::default();
        let begin = |user| keychain.begin(&image("r.io/a:1"), &login(user));
        begin("good").succeed("");
        let (first, second) = (begin("bad"), begin("worse"));
        match first_ends_first {
            true => drop((first, second)),
            false => drop((second, first)),
        }
        let found = user(&keychain, "r.io", "r.io/a:1").await;
        assert_eq!(found.as_deref(), Some("good"), "{first_ends_first}");
    }
}

#[tokio::test]
async fn of_two_pulls_at_once_the_one_that_began_later_counts() {
    for first_ends_first in [true, false] {
        let keychain = PullKeychain::default();
        let begin = |user| keychain.begin(&image("r.io/a:1"), &login(user));
        let (first, second) = (begin("old"), begin("new"));
        let ends = match first_ends_first {
            true => [first, second],
            false => [second, first],
        };
        for pull in ends {
            pull.succeed("");
        }
        let found = user(&keychain, "r.io", "r.io/a:1").await;
        assert_eq!(found.as_deref(), Some("new"), "{first_ends_first}");
        assert_eq!(keychain.state().pulls.len(), 1);
        assert!(keychain.state().running.is_empty());
    }
}

#[tokio::test]
async fn a_login_is_forgotten_with_its_image_or_when_it_is_not_needed() {
    let keychain = PullKeychain::default();
    for (name, id) in [
        ("a:1", "sha256:a"),
        ("b:1", "sha256:b"),
        ("c:1", "sha256:c"),
    ] {
        keychain.begin(&image(name), &login("me")).succeed(id);
    }
    keychain.forget("docker.io/library/a:1");
    keychain.forget("sha256:b");
    keychain
        .begin(&image("c:1"), &PullLogin::default())
        .succeed("sha256:c");
    keychain.forget("");
    for name in ["a:1", "b:1", "c:1"] {
        let found = user(&keychain, "registry-1.docker.io", name).await;
        assert_eq!(found, None, "{name}");
    }
}

#[tokio::test]
async fn the_server_address_says_who_may_get_the_login() {
    for (address, host, expected) in [
        ("", "r.io:5000", true),
        ("https://r.io:5000/v2/", "r.io:5000", true),
        ("r.io:5000", "r.io:5000", true),
        ("https://r.io", "r.io:5000", false),
        ("https://mirror.io", "mirror.io", true),
        ("https://mirror.io", "r.io:5000", false),
        ("", "mirror.io", false),
    ] {
        let keychain = PullKeychain::default();
        let login = PullLogin {
            server_address: address.to_owned(),
            ..login("me")
        };
        keychain.begin(&image("r.io:5000/a:1"), &login).succeed("");
        let found = user(&keychain, host, "r.io:5000/a:1").await;
        assert_eq!(found.is_some(), expected, "{address:?} {host}");
    }
    let keychain = PullKeychain::default();
    let hub = PullLogin {
        server_address: "https://index.docker.io/v1/".to_owned(),
        ..login("me")
    };
    keychain.begin(&image("a"), &hub).succeed("");
    assert!(user(&keychain, "registry-1.docker.io", "a").await.is_some());
}

#[test]
fn the_parts_of_a_login_have_the_order_of_containerd() {
    let of = |login: PullLogin| login.credential();
    let auth = STANDARD.encode("me:secret\0\0");
    let mut login = PullLogin {
        username: "u".to_owned(),
        password: "p".to_owned(),
        auth,
        identity_token: "i".to_owned(),
        registry_token: "r".to_owned(),
        ..PullLogin::default()
    };
    assert_eq!(of(login.clone()), Some(Credential::new("u", "p")));
    login.username.clear();
    assert_eq!(of(login.clone()), Some(Credential::new("", "i")));
    login.identity_token.clear();
    assert_eq!(of(login.clone()), Some(Credential::new("me", "secret")));
    "hunter2".clone_into(&mut login.auth);
    assert_eq!(of(login.clone()), None);
    login.auth.clear();
    let token = Credential::Bearer(Secret::new("r"));
    assert_eq!(of(login.clone()), Some(token));
    login.registry_token = "x".repeat(MAX_PART + 1);
    assert_eq!(of(login.clone()), None);
    assert!(!format!("{login:?}").contains('x'));
}

#[tokio::test]
async fn the_oldest_pulls_make_room() {
    let keychain = PullKeychain::default();
    for n in 0..=MANY {
        let name = format!("r.io/{n}:1");
        keychain.begin(&image(&name), &login("me")).succeed("");
    }
    assert_eq!(user(&keychain, "r.io", "r.io/0:1").await, None);
    assert!(user(&keychain, "r.io", "r.io/1:1").await.is_some());
    assert_eq!(keychain.state().pulls.len(), MANY);
}
