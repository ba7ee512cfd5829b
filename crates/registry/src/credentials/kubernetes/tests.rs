use std::{
    io::{BufRead as _, BufReader, Write as _},
    net::{TcpListener, TcpStream},
    sync::mpsc,
    thread,
};

use super::*;

/// A small API server: it answers each list with what is configured, and each watch with the events
/// that the test sends, until one is empty.
struct ApiServer {
    folder: tempfile::TempDir,
    shared: Arc<Shared>,
    events: Mutex<mpsc::Sender<String>>,
}

struct Shared {
    lists: Mutex<BTreeMap<&'static str, String>>,
    /// A pause in the middle of each list.
    pause: Mutex<Duration>,
    seen: Mutex<Vec<String>>,
    events: Mutex<mpsc::Receiver<String>>,
}

impl ApiServer {
    fn start() -> ApiServer {
        let listener = TcpListener::bind("127.0.0.1:0").expect("a port");
        let folder = tempfile::tempdir().expect("a temporary folder");
        let address = listener.local_addr().expect("an address");
        let text = format!(
            "current-context: c\ncontexts: [{{name: c, context: {{cluster: k, user: u}}}}]\n\
             clusters: [{{name: k, cluster: {{server: 'http://{address}'}}}}]\n\
             users: [{{name: u, user: {{tokenFile: token}}}}]\n"
        );
        std::fs::write(folder.path().join("config"), text).expect("write");
        std::fs::write(folder.path().join("token"), "hunter2").expect("write");
        let (sender, events) = mpsc::channel();
        let shared = Arc::new(Shared {
            lists: Mutex::default(),
            pause: Mutex::default(),
            seen: Mutex::default(),
            events: Mutex::new(events),
        });
        let server = ApiServer {
            folder,
            shared: Arc::clone(&shared),
            events: Mutex::new(sender),
        };
        thread::spawn(move || {
            for connection in listener.incoming() {
                let shared = Arc::clone(&shared);
                thread::spawn(move || serve(&shared, connection.expect("a connection")));
            }
        });
        server
    }

    /// With two secrets for one registry.
    fn with_two_secrets() -> ApiServer {
        let server = ApiServer::start();
        let items = [
            pull_secret("a", "r.io", "first"),
            pull_secret("b", "r.io", "second"),
        ];
        server.list("dockerconfigjson", &items);
        server
    }

    fn secrets(&self) -> ClusterSecrets {
        ClusterSecrets::start(self.folder.path().join("config"))
    }

    /// Sets the items of a list.
    fn list(&self, kind: &'static str, items: &[String]) {
        let list = format!(
            r#"{{"metadata":{{"resourceVersion":"7"}},"items":[{}]}}"#,
            items.join(",")
        );
        self.shared.lists.lock().unwrap().insert(kind, list);
    }

    fn event(&self, kind: &str, object: &str) {
        let event = format!("{{\"type\":\"{kind}\",\"object\":{object}}}\n");
        self.events.lock().unwrap().send(event).expect("it serves");
    }

    /// Ends the connection of the watch.
    fn end_watch(&self) {
        self.events
            .lock()
            .unwrap()
            .send(String::new())
            .expect("it serves");
    }

    fn seen(&self) -> Vec<String> {
        self.shared.seen.lock().unwrap().clone()
    }
}

fn serve(shared: &Shared, connection: TcpStream) {
    let mut out = connection.try_clone().expect("a socket");
    let mut lines = BufReader::new(connection).lines();
    let Some(Ok(first)) = lines.next() else {
        return;
    };
    let head: Vec<_> = lines
        .map_while(|line| line.ok().filter(|line| !line.is_empty()))
        .collect();
    let is_known = head
        .iter()
        .any(|line| line.eq_ignore_ascii_case("authorization: Bearer hunter2"));
    shared.seen.lock().unwrap().push(first.clone());
    if !is_known {
        let _ = out.write_all(b"HTTP/1.1 403 Forbidden\r\nconnection: close\r\n\r\nno");
        return;
    }
    let _ = out.write_all(b"HTTP/1.1 200 OK\r\nconnection: close\r\n\r\n");
    let is_old = first.contains("dockercfg");
    if !first.contains("watch=true") {
        let kind = if is_old {
            "dockercfg"
        } else {
            "dockerconfigjson"
        };
        let lists = shared.lists.lock().unwrap();
        let list = lists.get(kind).cloned();
        let list = list.unwrap_or_else(|| r#"{"metadata":{},"items":null}"#.to_owned());
        let (begin, end) = list.as_bytes().split_at(list.len() / 2);
        let _ = out.write_all(begin);
        thread::sleep(*shared.pause.lock().unwrap());
        let _ = out.write_all(end);
    } else if is_old {
        // Nothing changes.
        thread::sleep(Duration::from_secs(3600));
    } else {
        let events = shared.events.lock().unwrap();
        while let Ok(event) = events.recv() {
            if event.is_empty() || out.write_all(event.as_bytes()).is_err() {
                return;
            }
        }
    }
}

fn object(name: &str, key: &str, document: &str) -> String {
    let data = STANDARD.encode(document);
    format!(r#"{{"metadata":{{"namespace":"n","name":"{name}"}},"data":{{"{key}":"{data}"}}}}"#)
}

/// A secret with a user for a registry.
fn pull_secret(name: &str, host: &str, user: &str) -> String {
    let document = format!(r#"{{"auths":{{"{host}":{{"username":"{user}","password":"p"}}}}}}"#);
    object(name, ".dockerconfigjson", &document)
}

async fn user(secrets: &ClusterSecrets, name: &str) -> Option<String> {
    let image = ImageRef::parse(name).expect("a name");
    match secrets.get(image.host(), &image).await? {
        Credential::Password { user, .. } => Some(user),
        other => panic!("{other:?}"),
    }
}

async fn becomes(secrets: &ClusterSecrets, name: &str, expected: Option<&str>) {
    for _ in 0..1000 {
        if user(secrets, name).await.as_deref() == expected {
            return;
        }
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
    panic!("{name} is not {expected:?}");
}

#[tokio::test]
async fn both_kinds_of_secrets_are_listed_with_the_token() {
    let server = ApiServer::start();
    let old = r#"{"old.io":{"username":"old","password":"p"}}"#;
    server.list("dockercfg", &[object("old", ".dockercfg", old)]);
    let hub = pull_secret("hub", "https://index.docker.io/v1/", "hub");
    let useless = object("bad", ".dockerconfigjson", "hunter2");
    server.list(
        "dockerconfigjson",
        &[useless, pull_secret("new", "new.io", "new"), hub],
    );
    let secrets = server.secrets();
    for (name, expected) in [
        ("old.io/a", Some("old")),
        ("new.io/a", Some("new")),
        ("nginx", Some("hub")),
        ("other.io/a", None),
    ] {
        assert_eq!(user(&secrets, name).await.as_deref(), expected, "{name}");
    }
    let seen = server.seen();
    let listed =
        "GET /api/v1/secrets?fieldSelector=type%3Dkubernetes.io%2Fdockercfg&limit=100 HTTP/1.1";
    assert!(seen.iter().any(|line| line == listed), "{seen:?}");
    assert!(!format!("{secrets:?}").contains("hunter2"));
}

#[tokio::test]
async fn changes_are_followed_and_a_watch_that_ends_begins_with_a_list() {
    let server = ApiServer::start();
    server.list("dockerconfigjson", &[pull_secret("a", "r.io", "first")]);
    let secrets = server.secrets();
    becomes(&secrets, "r.io/x", Some("first")).await;
    server.event("MODIFIED", &pull_secret("a", "r.io", "second"));
    becomes(&secrets, "r.io/x", Some("second")).await;
    server.event("BOOKMARK", r#"{"metadata":{"resourceVersion":"9"}}"#);
    server.event("DELETED", &pull_secret("a", "r.io", "second"));
    becomes(&secrets, "r.io/x", None).await;
    server.list("dockerconfigjson", &[pull_secret("b", "r.io", "third")]);
    server.event("ERROR", r#"{"code":410}"#);
    becomes(&secrets, "r.io/x", Some("third")).await;
}

#[tokio::test]
async fn a_list_that_comes_slowly_is_read_to_its_end() {
    let server = ApiServer::start();
    *server.shared.pause.lock().unwrap() = Duration::from_millis(2100);
    server.list("dockerconfigjson", &[pull_secret("a", "r.io", "me")]);
    let secrets = server.secrets();
    becomes(&secrets, "r.io/x", Some("me")).await;
}

#[test]
fn a_server_on_this_machine_is_asked_without_the_proxy_of_the_environment() {
    // A process of its own, because the environment belongs to all tests.
    let program = std::env::current_exe().expect("this test");
    let test = "credentials::kubernetes::tests::a_secret_cannot_run_a_program";
    let output = std::process::Command::new(program)
        .args(["--exact", test])
        .env("http_proxy", "http://127.0.0.1:1")
        .env_remove("NO_PROXY")
        .env_remove("no_proxy")
        .output()
        .expect("it runs");
    let said = String::from_utf8_lossy(&output.stdout);
    assert!(output.status.success(), "{said}");
    assert!(said.contains("1 passed"), "{said}");
}

#[tokio::test]
async fn a_secret_that_is_refused_comes_after_the_others() {
    let server = ApiServer::with_two_secrets();
    let secrets = server.secrets();
    let image = ImageRef::parse("r.io/x").expect("a name");
    for expected in ["first", "second", "first"] {
        assert_eq!(user(&secrets, "r.io/x").await.as_deref(), Some(expected));
        secrets.refused(image.host(), &image);
    }
}

#[tokio::test]
async fn a_refusal_for_one_repository_does_not_concern_another() {
    let server = ApiServer::with_two_secrets();
    let secrets = server.secrets();
    let image = ImageRef::parse("r.io/x").expect("a name");
    assert_eq!(user(&secrets, "r.io/x").await.as_deref(), Some("first"));
    secrets.refused(image.host(), &image);
    assert_eq!(user(&secrets, "r.io/y").await.as_deref(), Some("first"));
    assert_eq!(user(&secrets, "r.io/x").await.as_deref(), Some("second"));
    server.event("MODIFIED", &pull_secret("a", "r.io", "third"));
    becomes(&secrets, "r.io/x", Some("third")).await;
}

#[tokio::test]
async fn a_watch_that_ends_goes_on_from_the_last_version() {
    let server = ApiServer::start();
    server.list("dockerconfigjson", &[pull_secret("a", "r.io", "first")]);
    let secrets = server.secrets();
    becomes(&secrets, "r.io/x", Some("first")).await;
    server.event("BOOKMARK", r#"{"metadata":{"resourceVersion":"9"}}"#);
    // The server ends the connection.
    server.end_watch();
    server.event("MODIFIED", &pull_secret("a", "r.io", "second"));
    becomes(&secrets, "r.io/x", Some("second")).await;
    let seen = server.seen();
    let of_kind: Vec<_> = (seen.iter())
        .filter(|line| line.contains("dockerconfigjson"))
        .collect();
    let versions: Vec<_> = (of_kind.iter())
        .map(|line| line.contains("resourceVersion=9"))
        .collect();
    assert_eq!(versions, [false, false, true], "{of_kind:?}");
}

#[tokio::test]
async fn a_secret_cannot_run_a_program() {
    let document = r#"{"credsStore":"x","credHelpers":{"r.io":"x"},"auths":{"r.io":{"username":"me","password":"p"}}}"#;
    let server = ApiServer::start();
    server.list(
        "dockerconfigjson",
        &[object("a", ".dockerconfigjson", document)],
    );
    assert_eq!(
        user(&server.secrets(), "r.io/x").await.as_deref(),
        Some("me")
    );
}

#[tokio::test]
async fn a_token_that_is_not_allowed_is_replaced_by_the_one_in_the_file() {
    let server = ApiServer::start();
    server.list("dockerconfigjson", &[pull_secret("a", "r.io", "me")]);
    let token = server.folder.path().join("token");
    std::fs::write(&token, "expired").expect("write");
    let secrets = server.secrets();
    while server.seen().len() < 2 {
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
    std::fs::write(&token, "hunter2").expect("write");
    becomes(&secrets, "r.io/x", Some("me")).await;
}
