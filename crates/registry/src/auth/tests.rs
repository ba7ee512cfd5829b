use async_trait::async_trait;

use super::{scope::MAX_SCOPE, *};
use crate::Options;

#[derive(Debug)]
struct Only(Option<Credential>);

#[async_trait]
impl Credentials for Only {
    async fn get(&self, _host: &str, _image: &ImageRef) -> Option<Credential> {
        self.0.clone()
    }
}

fn password(password: &str) -> Credential {
    Credential::new("me", password)
}

fn token(token: &str) -> Credential {
    Credential::Bearer(Secret::new(token))
}

fn identity(token: &str) -> Credential {
    Credential::Identity(Secret::new(token))
}

/// What a registry with one of three kinds of challenge got before.
fn before(kind: &str, auth: &Auth, access: &Access, realm: &str) -> Known {
    match kind {
        "basic" => Known::Basic(basic("me", &Secret::new("old"))),
        "token" => Known::Token(bearer_value(&Secret::new("old"))),
        _ => {
            let transport = Arc::new(Transport::new(&Options::default()).unwrap());
            let challenge = Challenge::new("bearer", &[("realm", realm)]);
            let exchange = access.exchange(&transport, &challenge, false, None);
            Known::Bearer(auth.tokens.cell(exchange.unwrap()))
        }
    }
}

async fn looked_again(kind: &str, realm: &str, plain: bool, now: Option<Credential>) -> bool {
    let auth = Auth::new(Arc::new(Only(now)), RetryPolicy::default());
    let image: ImageRef = "registry.example/app:1".parse().unwrap();
    let access = Access::new("registry.example".to_owned(), image, Scope::pull("app"));
    *access.known() = Some(before(kind, &auth, &access, realm));
    let sent = HeaderValue::from_static("what was refused");
    access.look_again(&auth, plain, Some(&sent)).await
}

#[tokio::test]
async fn a_new_credential_is_used_if_it_fits_the_challenge() {
    for (kind, now, is_used) in [
        ("basic", Some(password("old")), false),
        ("basic", Some(password("new")), true),
        ("basic", Some(token("new")), false),
        ("basic", Some(identity("new")), false),
        ("basic", None, false),
        ("token", Some(token("old")), false),
        ("token", Some(token("new")), true),
        ("token", Some(password("new")), false),
        ("token", Some(identity("new")), false),
        ("token", None, false),
        ("bearer", Some(password("new")), true),
        ("bearer", Some(token("new")), true),
        ("bearer", Some(identity("new")), true),
        ("bearer", None, false),
    ] {
        let shown = format!("{kind} {now:?}");
        let realm = "https://tokens.example/";
        assert_eq!(
            looked_again(kind, realm, false, now).await,
            is_used,
            "{shown}"
        );
    }
}

#[tokio::test]
async fn a_new_credential_is_not_sent_without_tls_to_please_a_registry_with_tls() {
    let realm = "http://tokens.example/";
    for credential in [password("new"), identity("new")] {
        let now = || Some(credential.clone());
        assert!(!looked_again("bearer", realm, false, now()).await);
        assert!(looked_again("bearer", realm, true, now()).await);
    }
}

#[test]
fn the_scopes_of_a_challenge_are_added() {
    let pull = Scope::pull("a");
    for (stated, expected) in [
        ("", "repository:a:pull"),
        ("repository:a:pull", "repository:a:pull"),
        ("aws", "repository:a:pull aws"),
        (
            "repository:key/a:pull registry:catalog:*",
            "repository:a:pull repository:key/a:pull registry:catalog:*",
        ),
        (
            "repository:a:pull,push",
            "repository:a:pull repository:a:pull,push",
        ),
    ] {
        assert_eq!(pull.with(stated).0, expected, "{stated}");
    }
    let push = Scope::push("a", None);
    assert_eq!(push.with("repository:a:push,pull"), push);
    let endless = "x".repeat(MAX_SCOPE);
    assert_eq!(push.with(&endless), push);
}

#[test]
fn scopes_name_what_is_needed() {
    assert_eq!(Scope::pull("a/b").0, "repository:a/b:pull");
    assert_eq!(Scope::push("a", None).0, "repository:a:pull,push");
    assert_eq!(Scope::push("a", Some("a")).0, "repository:a:pull,push");
    assert_eq!(
        Scope::push("a", Some("b")).0,
        "repository:a:pull,push repository:b:pull"
    );
}
