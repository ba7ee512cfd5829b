//! Tokens and passwords: requested, shared, renewed, and never shown.

use std::{sync::Arc, time::Duration};

use async_trait::async_trait;
use soci_oci::{Digest, reference::ImageRef};
use soci_registry::{
    Registry,
    credentials::{Credential, Credentials, DockerConfig, ForHost, Secret},
    fetch::{Concern, FetchError, Fetcher},
    testing::{Access, Expired, Fault, On, Redirect, Setup, TestRegistry, Wrong, noise},
};

use crate::{client, client_as, everything_said, layer, login, quick};

const SECRET: &str = "hunter2-do-not-print";

fn tokens(login: Option<(&str, &str)>, lifetime: Duration, oauth: bool) -> TestRegistry {
    let login = login.map(|(user, password)| (user.to_owned(), password.to_owned()));
    let access = Access::Token {
        login,
        lifetime,
        oauth,
    };
    TestRegistry::with(Setup {
        access,
        ..Setup::default()
    })
}

const REPOSITORY: &str = "app";

/// A registry with one blob in one repository.
struct Site {
    registry: TestRegistry,
    bytes: Vec<u8>,
    digest: Digest,
}

impl Site {
    /// A registry that issues tokens with this lifetime to anonymous clients.
    fn anonymous(lifetime: Duration) -> Self {
        Self::of(tokens(None, lifetime, false))
    }

    fn of(registry: TestRegistry) -> Self {
        Self::with(registry, 100)
    }

    fn with(registry: TestRegistry, length: usize) -> Self {
        let bytes = noise(1, length);
        let digest = registry.add_blob(REPOSITORY, bytes.clone());
        Self {
            registry,
            bytes,
            digest,
        }
    }

    /// The blob, through a new client without credentials.
    fn blob(&self) -> Arc<dyn Fetcher> {
        self.blob_for(&client(quick()))
    }

    /// The blob, through a new client with these credentials.
    fn blob_as(&self, credentials: Arc<dyn Credentials>) -> Arc<dyn Fetcher> {
        self.blob_for(&client_as(quick(), credentials))
    }

    fn blob_for(&self, client: &Registry) -> Arc<dyn Fetcher> {
        let image = self.registry.reference(REPOSITORY, "v1");
        client.blob(&image, &layer(&self.bytes)).expect("a blob")
    }

    async fn read(&self, blob: &Arc<dyn Fetcher>) -> Result<(), FetchError> {
        read(&**blob, &self.bytes).await
    }
}

async fn read(blob: &dyn Fetcher, bytes: &[u8]) -> Result<(), FetchError> {
    let got = blob.fetch(0..bytes.len() as u64).await?.collect().await?;
    assert!(got == bytes);
    Ok(())
}

#[tokio::test]
async fn a_token_is_got_once_and_serves_all_blobs_of_the_image() {
    let registry = tokens(None, Duration::from_secs(300), false);
    let client = client(quick());
    let image = registry.reference("team/app", "v1");
    let blobs: Vec<Vec<u8>> = (0..4).map(|i| noise(i, 1000)).collect();
    let reads = blobs.iter().map(|bytes| async {
        registry.add_blob("team/app", bytes.clone());
        let blob = client.blob(&image, &layer(bytes)).expect("a blob");
        read(&*blob, bytes)
            .await
            .expect("an anonymous token is enough");
    });
    futures_util::future::join_all(reads).await;
    assert_eq!(
        registry.tokens_issued(),
        1,
        "all who need it share one exchange"
    );
    for bytes in &blobs {
        let blob = client.blob(&image, &layer(bytes)).expect("a blob");
        registry.forget_seen();
        read(&*blob, bytes).await.expect("goes on");
        assert_eq!(registry.requests(), 1, "no refusal on the way");
    }
    let scope = "service=test-registry&scope=repository%3Ateam%2Fapp%3Apull";
    registry.revoke_tokens();
    let blob = client.blob(&image, &layer(&blobs[0])).expect("a blob");
    read(&*blob, &blobs[0]).await.expect("a new token is got");
    let asked = registry
        .seen()
        .into_iter()
        .find(|seen| seen.path == "/token")
        .expect("asked");
    assert_eq!(asked.query, scope);
    assert_eq!(registry.tokens_issued(), 2);
}

#[tokio::test]
async fn a_token_that_runs_out_in_the_middle_of_a_range_is_renewed() {
    let site = Site::with(tokens(None, Duration::from_secs(300), false), 300_000);
    let blob = site.blob();
    site.registry
        .fault(Fault::once(On::Blob(site.digest), Wrong::Cut(100_000)).after(1));
    let mut body = blob.fetch(0..300_000).await.expect("begins");
    let mut got = body
        .next()
        .await
        .expect("goes on")
        .expect("a chunk")
        .to_vec();
    site.registry.revoke_tokens();
    while let Some(chunk) = body.next().await.expect("goes on with a new token") {
        got.extend_from_slice(&chunk);
    }
    assert!(got == site.bytes);
    assert_eq!(site.registry.tokens_issued(), 2);
}

#[tokio::test]
async fn a_token_is_renewed_before_its_announced_end() {
    let site = Site::anonymous(Duration::from_secs(1));
    let blob = site.blob();
    for _ in 0..8 {
        site.read(&blob).await.expect("goes on");
        tokio::time::sleep(Duration::from_millis(150)).await;
    }
    let refused = site
        .registry
        .seen()
        .iter()
        .filter(|seen| seen.status == 401)
        .count();
    assert_eq!(refused, 1, "only the first request comes without a token");
    assert!(site.registry.tokens_issued() >= 2);
}

#[tokio::test]
async fn a_token_of_unknown_life_is_renewed_when_it_is_refused() {
    let access = Access::Token {
        login: None,
        lifetime: Duration::from_millis(200),
        oauth: false,
    };
    let site = Site::of(TestRegistry::with(Setup {
        access,
        unannounced: true,
        ..Setup::default()
    }));
    let blob = site.blob();
    site.read(&blob).await.expect("comes");
    tokio::time::sleep(Duration::from_millis(300)).await;
    site.read(&blob).await.expect("comes with a new token");
    assert_eq!(site.registry.tokens_issued(), 2);
}

#[tokio::test]
async fn tokens_are_got_where_the_registry_says_now() {
    let site = Site::anonymous(Duration::from_secs(1));
    let blob = site.blob();
    site.read(&blob).await.expect("comes");
    site.registry.move_tokens();
    // The token has expired. The client first tries its last realm, which is gone.
    tokio::time::sleep(Duration::from_millis(1100)).await;
    site.read(&blob).await.expect("comes from the new realm");
    site.registry.revoke_tokens();
    site.read(&blob).await.expect("and again");
    assert_eq!(site.registry.tokens_issued(), 3);
}

/// A registry whose challenges to rejected tokens name a realm that refuses everyone.
fn closed() -> Site {
    Site::of(TestRegistry::with(Setup {
        access: Access::Token {
            login: None,
            lifetime: Duration::from_secs(300),
            oauth: false,
        },
        unannounced: true,
        closed_realm: true,
        ..Setup::default()
    }))
}

/// The number of requests for the blob that had this token.
fn with_token(site: &Site, number: u64) -> usize {
    let sent = Some(format!("Bearer token-{number}-do-not-print"));
    let seen = site.registry.seen().into_iter();
    seen.filter(|seen| seen.authorization == sent).count()
}

#[tokio::test]
async fn a_dead_token_whose_challenge_leads_nowhere_is_replaced_where_others_get_theirs() {
    let site = closed();
    let blob = site.blob();
    site.read(&blob).await.expect("comes");
    site.registry.revoke_tokens();
    site.registry.forget_seen();
    site.read(&blob)
        .await
        .expect("a token for those who have none");
    assert_eq!(site.registry.tokens_issued(), 2);
    assert_eq!(with_token(&site, 1), 1, "the dead token goes out once");
    site.registry.forget_seen();
    site.read(&blob).await.expect("goes on");
    assert_eq!(site.registry.requests(), 1, "the new token is kept");
}

#[tokio::test]
async fn a_dead_token_does_not_go_out_again_though_there_is_no_other() {
    let site = closed();
    let blob = site.blob();
    site.read(&blob).await.expect("comes");
    site.registry.revoke_tokens();
    site.registry.forget_seen();
    site.registry
        .fault(Fault::always(On::Token, Wrong::status(401)));
    for _ in 0..3 {
        let error = site.read(&blob).await.expect_err("no token anywhere");
        let said = everything_said(&error);
        assert!(said.contains("refused us without credentials"), "{said}");
    }
    assert_eq!(with_token(&site, 1), 1, "the dead token goes out once");
    site.registry.clear_faults();
    site.read(&blob)
        .await
        .expect("the first realm grants again");
    assert_eq!(site.registry.tokens_issued(), 2);
}

/// A registry that sends requests for its blob to another one, which wants tokens of its own.
/// That begins after some requests.
fn moved_away(other: &Site, after: u32) -> Site {
    let site = Site::of(tokens(
        Some(("me", SECRET)),
        Duration::from_secs(300),
        false,
    ));
    let location = format!(
        "http://{}/v2/{REPOSITORY}/blobs/{}",
        other.registry.host(),
        site.digest
    );
    let there = Wrong::Status {
        code: 307,
        headers: vec![("location", location)],
        body: String::new(),
    };
    let fault = Fault::always(On::Blob(site.digest), there);
    site.registry.fault(fault.after(after));
    site
}

#[tokio::test]
async fn a_host_that_we_are_sent_to_gets_its_own_token_and_no_credentials() {
    let other = Site::anonymous(Duration::from_secs(300));
    // Two reads, each with a challenge first. The second token of this registry has another name
    // than the first of the other one.
    let site = moved_away(&other, 4);
    let blob = site.blob_as(login(&site.registry, "me", SECRET));
    for _ in 0..2 {
        site.registry.revoke_tokens();
        site.read(&blob).await.expect("comes from here");
    }
    assert_eq!(site.registry.tokens_issued(), 2);
    for _ in 0..3 {
        site.read(&blob).await.expect("comes from there");
    }
    assert_eq!(other.registry.tokens_issued(), 1, "one for all reads");
    let seen = other.registry.seen();
    let asked = seen.iter().filter(|seen| seen.path != "/token").count();
    assert_eq!(asked, 4, "{seen:?}");
    for seen in seen {
        let own = seen.authorization.as_deref() == Some("Bearer token-1-do-not-print");
        assert!(seen.authorization.is_none() || own, "{seen:?}");
        assert!(!seen.query.contains(SECRET), "{seen:?}");
    }
}

#[tokio::test]
async fn a_host_that_we_are_sent_to_may_refuse_strangers() {
    let closed = tokens(Some(("me", SECRET)), Duration::from_secs(300), false);
    let other = Site::of(closed);
    let site = moved_away(&other, 2);
    // The same login would be good at the other host. It was not given for it.
    let blob = site.blob_as(login(&site.registry, "me", SECRET));
    site.read(&blob).await.expect("comes from here");
    let error = site.read(&blob).await.expect_err("refused there");
    let said = everything_said(&error);
    assert!(said.contains("refused us without credentials"), "{said}");
    assert!(said.contains(&other.registry.host()), "{said}");
    assert!(
        other
            .registry
            .seen()
            .iter()
            .all(|seen| seen.authorization.is_none())
    );
}

#[tokio::test]
async fn a_token_endpoint_in_trouble_is_told_from_the_registry() {
    let site = Site::anonymous(Duration::from_secs(1));
    site.registry
        .fault(Fault::always(On::Token, Wrong::status(500)));
    let blob = site.blob();
    let error = site.read(&blob).await.expect_err("no token");
    assert_eq!(error.concern(), Concern::Repository, "{error:?}");
    assert!(error.is_transient());
    let asked = site.registry.seen();
    let asked = asked.iter().filter(|seen| seen.path == "/token").count();
    assert_eq!(
        asked, 4,
        "one exchange with its attempts, not one for each attempt at the blob"
    );
}

#[tokio::test]
async fn a_failing_server_gets_one_exchange_for_each_operation() {
    for wrong in [Wrong::status(500), Wrong::Hangup] {
        let site = Site::anonymous(Duration::from_secs(1));
        let blob = site.blob();
        site.read(&blob).await.expect("comes");
        tokio::time::sleep(Duration::from_millis(1100)).await;
        site.registry.fault(Fault::always(On::Any, wrong.clone()));
        site.registry.forget_seen();
        let error = site.read(&blob).await.expect_err("all of it fails");
        assert!(error.is_transient(), "{error:?}");
        let seen = site.registry.seen();
        let asked = seen.iter().filter(|seen| seen.path == "/token").count();
        assert_eq!((asked, seen.len()), (4, 5), "{wrong:?}");
        site.registry.clear_faults();
        site.read(&blob).await.expect("comes again");
    }
}

#[tokio::test]
async fn a_403_for_a_token_that_is_over_renews_it() {
    let site = Site::anonymous(Duration::from_secs(300));
    let blob = site.blob();
    site.read(&blob).await.expect("a first token");
    site.registry
        .fault(Fault::once(On::Blob(site.digest), Wrong::status(403)));
    site.read(&blob).await.expect("a second token");
    assert_eq!(site.registry.tokens_issued(), 2);
    site.registry
        .fault(Fault::always(On::Blob(site.digest), Wrong::status(403)));
    let error = site.read(&blob).await.expect_err("refused for good");
    assert!(
        matches!(error, FetchError::Status { status: 403, .. }),
        "{error:?}"
    );
    assert_eq!(site.registry.tokens_issued(), 3, "one renewal a request");
}

#[tokio::test]
async fn the_words_of_ecr_mean_that_the_password_is_over() {
    let password = |user: &str| Access::Basic {
        user: user.to_owned(),
        password: SECRET.to_owned(),
    };
    let site = Site::of(TestRegistry::with(Setup {
        access: password("AWS"),
        ..Setup::default()
    }));
    let blob = site.blob_as(login(&site.registry, "AWS", SECRET));
    let body = r#"{"errors":[{"code":"DENIED","message":"Your authorization token has expired. Reauthenticate and try again."}]}"#;
    let ecr = Wrong::Status {
        code: 403,
        headers: vec![],
        body: body.to_owned(),
    };
    site.registry.fault(Fault::once(On::Blob(site.digest), ecr));
    site.read(&blob)
        .await
        .expect("Basic is offered without a challenge");
    let denied = Wrong::Status {
        code: 403,
        headers: vec![],
        body: r#"{"errors":[{"code":"DENIED","message":"no"}]}"#.to_owned(),
    };
    site.registry
        .fault(Fault::once(On::Blob(site.digest), denied));
    site.registry.forget_seen();
    let error = site
        .read(&blob)
        .await
        .expect_err("another 403 is a refusal");
    assert!(error.to_string().ends_with("403: DENIED no"), "{error}");
}

/// Credentials that can be replaced.
#[derive(Debug)]
struct Replaced(std::sync::Mutex<&'static str>);

#[async_trait]
impl Credentials for Replaced {
    async fn get(&self, _host: &str, _image: &ImageRef) -> Option<Credential> {
        Some(Credential::Password {
            user: "me".to_owned(),
            password: Secret::new(*self.0.lock().unwrap()),
        })
    }
}

#[tokio::test]
async fn credentials_are_read_again_when_access_is_denied_without_a_challenge() {
    for tokens_of in [None, Some(false)] {
        let registry = match tokens_of {
            None => TestRegistry::with(Setup {
                access: Access::Basic {
                    user: "me".to_owned(),
                    password: SECRET.to_owned(),
                },
                ..Setup::default()
            }),
            Some(post) => tokens(Some(("me", SECRET)), Duration::from_secs(300), post),
        };
        let site = Site::of(registry);
        let replaced = Arc::new(Replaced(std::sync::Mutex::new(SECRET)));
        let blob = site.blob_as(Arc::clone(&replaced) as _);
        site.read(&blob).await.expect("the first password");
        let denied = |times| Fault::always(On::Blob(site.digest), Wrong::status(403)).times(times);
        // The same password is not sent again; a token is renewed once.
        site.registry.fault(denied(2));
        let error = site.read(&blob).await.expect_err("denied");
        assert!(error.is_transient() && error.is_refusal(), "{error:?}");
        site.registry.clear_faults();
        site.registry.change_password("a new one");
        *replaced.0.lock().unwrap() = "a new one";
        site.registry.fault(denied(1));
        site.read(&blob).await.expect("the new password is sent");
    }
}

/// Answers from memory until it hears that the answer was refused.
#[derive(Debug, Default)]
struct Remembering {
    refused: std::sync::atomic::AtomicUsize,
}

#[async_trait]
impl Credentials for Remembering {
    async fn get(&self, _host: &str, _image: &ImageRef) -> Option<Credential> {
        let is_refused = self.refused.load(std::sync::atomic::Ordering::SeqCst) > 0;
        Some(Credential::Password {
            user: "me".to_owned(),
            password: Secret::new(if is_refused { "a new one" } else { SECRET }),
        })
    }

    fn refused(&self, _host: &str, _image: &ImageRef) {
        self.refused
            .fetch_add(1, std::sync::atomic::Ordering::SeqCst);
    }
}

#[tokio::test]
async fn a_source_that_answers_from_memory_hears_that_its_answer_is_refused() {
    for tokens_of in [None, Some(false), Some(true)] {
        let registry = match tokens_of {
            None => TestRegistry::with(Setup {
                access: Access::Basic {
                    user: "me".to_owned(),
                    password: SECRET.to_owned(),
                },
                ..Setup::default()
            }),
            Some(post) => tokens(Some(("me", SECRET)), Duration::from_secs(300), post),
        };
        let site = Site::of(registry);
        let source = Arc::new(Remembering::default());
        let blob = site.blob_as(Arc::clone(&source) as _);
        let heard = || source.refused.load(std::sync::atomic::Ordering::SeqCst);
        site.read(&blob).await.expect("the first password");
        site.registry.revoke_tokens();
        site.read(&blob).await.expect("a new token");
        assert_eq!(heard(), 0, "a token that is over is no bad credential");
        site.registry.change_password("a new one");
        site.registry.revoke_tokens();
        site.read(&blob).await.expect("the new password");
        assert!(heard() > 0);
    }
}

#[tokio::test]
async fn passwords_work_by_basic_by_post_and_by_get() {
    let basic = Access::Basic {
        user: "me".to_owned(),
        password: SECRET.to_owned(),
    };
    let registries = [
        TestRegistry::with(Setup {
            access: basic,
            ..Setup::default()
        }),
        tokens(Some(("me", SECRET)), Duration::from_secs(300), true),
        tokens(Some(("me", SECRET)), Duration::from_secs(300), false),
    ];
    for registry in &registries {
        let bytes = noise(1, 100);
        registry.add_blob("app", bytes.clone());
        let image = registry.reference("app", "v1");
        let client = client_as(quick(), login(registry, "me", SECRET));
        let blob = client.blob(&image, &layer(&bytes)).expect("a blob");
        read(&*blob, &bytes).await.expect("the password is good");
        for wrong in [login(registry, "me", "wrong"), login(registry, "", "wrong")] {
            let client = client_as(quick(), wrong);
            let blob = client.blob(&image, &layer(&bytes)).expect("a blob");
            let error = read(&*blob, &bytes).await.expect_err("the password is bad");
            assert!(
                matches!(error, FetchError::Unauthorized { .. }),
                "{error:?}"
            );
        }
    }
    let posts = |r: &TestRegistry| r.seen().iter().filter(|seen| seen.method == "POST").count();
    assert_eq!(posts(&registries[0]), 0);
    assert!(posts(&registries[1]) >= 1);
}

#[tokio::test]
async fn an_identity_token_is_a_refresh_token() {
    let site = Site::of(tokens(
        Some(("", "refresh-me")),
        Duration::from_secs(300),
        true,
    ));
    let blob = site.blob_as(login(&site.registry, "", "refresh-me"));
    site.read(&blob).await.expect("the token is good");
}

#[tokio::test]
async fn the_docker_configuration_is_read_at_every_challenge() {
    let site = Site::of(tokens(
        Some(("me", SECRET)),
        Duration::from_secs(300),
        false,
    ));
    let folder = tempfile::tempdir().expect("a temporary folder");
    let path = folder.path().join("config.json");
    let blob = site.blob_as(Arc::new(DockerConfig::at(&path)));
    let error = site.read(&blob).await.expect_err("nobody is logged in");
    assert!(error.to_string().contains("without credentials"), "{error}");
    let text = format!(
        r#"{{"auths":{{"{}":{{"username":"me","password":"{SECRET}"}}}}}}"#,
        site.registry.host()
    );
    std::fs::write(&path, text).expect("docker login");
    site.read(&blob).await.expect("the login is noticed");
}

#[tokio::test]
async fn a_caller_who_gives_up_does_not_take_the_others_down() {
    let site = Site::anonymous(Duration::from_secs(300));
    site.registry.fault(Fault::once(
        On::Token,
        Wrong::Delay(Duration::from_millis(300)),
    ));
    let blob = site.blob();
    let first = tokio::time::timeout(Duration::from_millis(100), site.read(&blob));
    let second = async {
        tokio::time::sleep(Duration::from_millis(50)).await;
        site.read(&blob).await
    };
    let (first, second) = tokio::join!(first, second);
    assert!(first.is_err(), "the first gave up");
    second.expect("the second got the token of the same exchange");
    assert_eq!(site.registry.tokens_issued(), 1);
}

#[tokio::test]
async fn a_busy_token_endpoint_is_asked_again() {
    let site = Site::anonymous(Duration::from_secs(300));
    site.registry
        .fault(Fault::once(On::Token, Wrong::too_many("0")));
    site.registry.fault(Fault::once(On::Token, Wrong::Hangup));
    let blob = site.blob();
    site.read(&blob).await.expect("got in the end");
}

fn moved(code: u16, host: &str) -> Wrong {
    let scope = "service=test-registry&scope=repository:app:pull";
    Wrong::Status {
        code,
        headers: vec![("location", format!("http://{host}/token?{scope}"))],
        body: String::new(),
    }
}

#[tokio::test]
async fn a_token_endpoint_may_send_us_on() {
    for code in [301, 302, 303, 307, 308] {
        let site = Site::anonymous(Duration::from_secs(300));
        let there = moved(code, &site.registry.host());
        site.registry.fault(Fault::once(On::Token, there));
        site.read(&site.blob()).await.expect("got there");
        assert_eq!(site.registry.tokens_issued(), 1);
    }
    for (code, methods) in [
        (307, &["POST 307", "POST 200"][..]),
        (302, &["POST 302", "GET 200"]),
    ] {
        let login_at = tokens(Some(("me", SECRET)), Duration::from_secs(300), true);
        let site = Site::of(login_at);
        let there = moved(code, &site.registry.host());
        site.registry.fault(Fault::once(On::Token, there));
        let blob = site.blob_as(login(&site.registry, "me", SECRET));
        // Only 307 and 308 resend the form. After other redirects, the GET request goes to the
        // realm itself.
        site.read(&blob).await.expect("let in");
        let seen = site.registry.seen().into_iter();
        let at_tokens = seen.filter(|seen| seen.path == "/token");
        let asked: Vec<String> = at_tokens
            .map(|seen| format!("{} {}", seen.method, seen.status))
            .collect();
        assert_eq!(asked, methods);
    }
}

#[tokio::test]
async fn a_token_endpoint_cannot_send_our_password_elsewhere() {
    for oauth in [true, false] {
        let closed = tokens(Some(("me", SECRET)), Duration::from_secs(300), oauth);
        let site = Site::of(closed);
        let other = site.registry.host().replace("127.0.0.1", "localhost");
        site.registry
            .fault(Fault::always(On::Token, moved(307, &other)));
        let blob = site.blob_as(login(&site.registry, "me", SECRET));
        site.read(&blob).await.expect_err("nobody is known there");
        let seen = site.registry.seen().into_iter();
        let elsewhere: Vec<_> = seen.filter(|seen| seen.host == other).collect();
        assert!(!elsewhere.is_empty(), "it is asked, as a stranger");
        for seen in elsewhere {
            assert_eq!((seen.method.as_str(), seen.authorization), ("GET", None));
        }
    }
}

#[tokio::test]
async fn strange_token_endpoints_are_refusals_not_panics() {
    let answer = |body: &str| Wrong::Status {
        code: 200,
        headers: vec![],
        body: body.to_owned(),
    };
    for (wrong, reason) in [
        (answer(""), "gave no token"),
        (answer("{\"token\":\"\"}"), "gave no token"),
        (answer("{\"token\":\"a\\nb\"}"), "characters"),
        (
            answer("{\"token\":\"wrong\",\"expires_in\":-5}"),
            "was refused",
        ),
        (
            answer("{\"token\":\"wrong\",\"expires_in\":1e300}"),
            "was refused",
        ),
        (Wrong::status(401), "refused us"),
        (Wrong::status(302), "answered 302"),
    ] {
        let site = Site::anonymous(Duration::from_secs(300));
        site.registry.fault(Fault::always(On::Token, wrong.clone()));
        let blob = site.blob();
        let error = site.read(&blob).await.expect_err("no token");
        assert!(
            everything_said(&error).contains(reason),
            "{wrong:?}: {error}"
        );
    }
}

#[tokio::test]
async fn strange_challenges_are_refusals() {
    for challenge in [
        "Bearer realm=\"file:///etc/passwd\"",
        "Bearer realm=\"not an address\"",
        "Bearer",
        "Negotiate",
        "Basic realm=\"x\"",
    ] {
        let registry = TestRegistry::start();
        let headers = vec![("www-authenticate", challenge.to_owned())];
        registry.fault(Fault::always(
            On::Any,
            Wrong::Status {
                code: 401,
                headers,
                body: String::new(),
            },
        ));
        let client = client(quick());
        let blob = client
            .blob(&registry.reference("app", "v1"), &layer(b"x"))
            .expect("a blob");
        let error = read(&*blob, b"x").await.expect_err("not understood");
        let unauthorized = matches!(error, FetchError::Unauthorized { .. });
        assert!(unauthorized, "{challenge}: {error:?}");
        assert_eq!(registry.requests(), 1, "not repeated");
    }
}

#[tokio::test]
async fn credentials_go_to_their_host_only_and_are_never_shown() {
    let access = Access::Token {
        login: Some(("me".to_owned(), SECRET.to_owned())),
        lifetime: Duration::from_secs(300),
        oauth: false,
    };
    let redirect = Some(Redirect {
        uses: 1,
        expired: Expired::Forbidden,
    });
    let site = Site::of(TestRegistry::with(Setup {
        access,
        redirect,
        ..Setup::default()
    }));
    let credentials = ForHost {
        host: site.registry.host(),
        credential: Credential::new("me", SECRET),
    };
    let client = client_as(quick(), Arc::new(credentials.clone()));
    let blob = site.blob_for(&client);
    for _ in 0..3 {
        site.read(&blob)
            .await
            .expect("storage refuses a second credential, so none was sent");
    }
    for seen in site.registry.seen() {
        let at_storage = seen.path.starts_with("/signed/");
        assert!(at_storage == seen.host.starts_with("localhost"));
        assert!(!at_storage || seen.authorization.is_none());
    }
    site.registry
        .fault(Fault::always(On::Any, Wrong::status(401)));
    let mut said = everything_said(&site.read(&blob).await.expect_err("refused"));
    site.registry.clear_faults();
    site.registry.set_online(false);
    said += &everything_said(&site.read(&blob).await.expect_err("nobody there"));
    said += &format!("{client:?} {blob:?} {credentials:?}");
    for secret in [SECRET, "do-not-print", "Bearer t", "Basic "] {
        assert!(!said.contains(secret), "{secret} in {said}");
    }
}

#[tokio::test]
async fn no_credentials_are_sent_before_they_are_asked_for() {
    let site = Site::of(TestRegistry::start());
    let blob = site.blob_as(login(&site.registry, "me", SECRET));
    site.read(&blob).await.expect("open to everybody");
    assert!(
        site.registry
            .seen()
            .iter()
            .all(|seen| seen.authorization.is_none())
    );
}

#[tokio::test]
async fn the_scope_of_a_challenge_is_requested_with_ours() {
    for scope in ["aws", "repository:key/1/app:pull", "registry:catalog:*"] {
        let site = Site::of(TestRegistry::with(Setup {
            access: Access::Token {
                login: None,
                lifetime: Duration::from_secs(300),
                oauth: false,
            },
            foreign_scope: Some(scope),
            ..Setup::default()
        }));
        site.read(&site.blob()).await.expect(scope);
        assert_eq!(site.registry.tokens_issued(), 1, "{scope}");
    }
}
