//! A token service like those of registries: every client gets a token for the requested scope, and
//! tokens expire soon.
//!
//! Half of the answers do not contain the lifetime. A test can make the service refuse for a while,
//! so that clients have only expired tokens.

use std::fs;
use std::io::{BufRead as _, BufReader, Write as _};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU16, AtomicU64, Ordering};
use std::thread;
use std::time::{Duration, SystemTime};

use anyhow::{Context as _, Result};
use base64::{Engine as _, engine::general_purpose::URL_SAFE_NO_PAD};
use serde_json::{Value, json};

use crate::image::filter;

/// The name of the service, and the registry it issues tokens for.
pub const ISSUER: &str = "soci.test";
pub const SERVICE: &str = "registry.soci.test";

/// How long a registry accepts a token after its expiry.
const LEEWAY: Duration = Duration::from_secs(60);
/// Timeout for clients that send nothing.
const PATIENCE: Duration = Duration::from_secs(10);

/// A running token service. It stops accepting connections on drop.
#[derive(Debug)]
pub struct Tokens {
    address: SocketAddr,
    shared: Arc<Shared>,
}

#[derive(Debug)]
struct Shared {
    key: PathBuf,
    /// As in the header of a token.
    certificate: String,
    life: Duration,
    given: AtomicU64,
    /// The status of every answer, or 0 to issue tokens.
    refuses: AtomicU16,
    stopped: AtomicBool,
}

impl Tokens {
    /// Signs with `key`. Its `certificate` is from an authority that the registry trusts. Both are
    /// PEM files.
    pub fn start(key: &Path, certificate: &Path, life: Duration) -> Result<Self> {
        let certificate = fs::read_to_string(certificate)?
            .lines()
            .filter(|line| !line.starts_with("-----"))
            .collect();
        let listener = TcpListener::bind(("127.0.0.1", 0))?;
        let address = listener.local_addr()?;
        let shared = Arc::new(Shared {
            key: key.to_path_buf(),
            certificate,
            life,
            given: AtomicU64::new(0),
            refuses: AtomicU16::new(0),
            stopped: AtomicBool::new(false),
        });
        let serving = Arc::clone(&shared);
        thread::Builder::new()
            .name("tokens".into())
            .spawn(move || serving.serve(&listener))?;
        Ok(Self { address, shared })
    }

    /// The URL at which clients request a token.
    pub fn realm(&self) -> String {
        format!("http://{}/token", self.address)
    }

    /// Number of issued tokens.
    pub fn given(&self) -> u64 {
        self.shared.given.load(Ordering::SeqCst)
    }

    /// Answers every request with this status from now on; `None` issues tokens again.
    pub fn refuse(&self, status: Option<u16>) {
        let status = status.unwrap_or_default();
        self.shared.refuses.store(status, Ordering::SeqCst);
    }
}

impl Drop for Tokens {
    fn drop(&mut self) {
        self.shared.stopped.store(true, Ordering::SeqCst);
        // A connection wakes the accept loop, which then ends.
        drop(TcpStream::connect(self.address));
    }
}

impl Shared {
    fn serve(self: Arc<Self>, listener: &TcpListener) {
        for client in listener.incoming() {
            if self.stopped.load(Ordering::SeqCst) {
                return;
            }
            let Ok(client) = client else { continue };
            let shared = Arc::clone(&self);
            let named = thread::Builder::new().name("tokens-client".into());
            // If no thread can be started, the client asks again.
            let _ = named.spawn(move || shared.answer(&client));
        }
    }

    fn answer(&self, client: &TcpStream) -> Result<()> {
        client.set_read_timeout(Some(PATIENCE))?;
        let mut lines = BufReader::new(client).lines();
        let request = lines.next().context("a request")??;
        for line in lines {
            if line?.is_empty() {
                break;
            }
        }
        let (status, body) = match self.refuses.load(Ordering::SeqCst) {
            0 => (200, self.given(&request)?),
            status => (status, json!({ "details": "no tokens now" })),
        };
        let body = body.to_string();
        let length = body.len();
        let head = format!(
            "HTTP/1.1 {status} Said\r\nContent-Type: application/json\r\nContent-Length: {length}\r\n\
             Connection: close\r\n\r\n"
        );
        let mut client = client;
        client.write_all(format!("{head}{body}").as_bytes())?;
        Ok(())
    }

    /// The answer with a token. Every second one does not contain the lifetime.
    fn given(&self, request: &str) -> Result<Value> {
        let number = self.given.fetch_add(1, Ordering::SeqCst);
        let token = self.token(&scopes(request), number)?;
        let mut answer = json!({ "token": token });
        if number.is_multiple_of(2) {
            answer["expires_in"] = self.life.as_secs().into();
        }
        Ok(answer)
    }

    fn token(&self, access: &[Value], number: u64) -> Result<String> {
        let now = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH)?;
        let header = json!({ "typ": "JWT", "alg": "RS256", "x5c": [self.certificate] });
        let claims = json!({
            "iss": ISSUER,
            "sub": "",
            "aud": SERVICE,
            "exp": (now + self.life).saturating_sub(LEEWAY).as_secs(),
            "nbf": now.saturating_sub(LEEWAY).as_secs(),
            "iat": now.as_secs(),
            "jti": number.to_string(),
            "access": access,
        });
        let [header, claims] =
            [header, claims].map(|part| URL_SAFE_NO_PAD.encode(part.to_string()));
        let signed = format!("{header}.{claims}");
        let key = self.key.to_str().context("a path that can be written")?;
        let arguments = ["dgst", "-sha256", "-sign", key];
        let signature = filter("openssl", &arguments, signed.as_bytes())?;
        Ok(format!("{signed}.{}", URL_SAFE_NO_PAD.encode(signature)))
    }
}

/// The access that a request line asks for, as a token grants it.
fn scopes(request: &str) -> Vec<Value> {
    let target = request.split(' ').nth(1).unwrap_or_default();
    let query = target.split_once('?').map_or("", |(_, query)| query);
    let values = query
        .split('&')
        .filter_map(|pair| pair.strip_prefix("scope="))
        .map(decoded);
    let scopes: Vec<String> = values
        .flat_map(|value| value.split(' ').map(str::to_owned).collect::<Vec<_>>())
        .collect();
    let access = |scope: &String| {
        let (kind, rest) = scope.split_once(':')?;
        let (name, actions) = rest.rsplit_once(':')?;
        let actions: Vec<&str> = actions.split(',').collect();
        Some(json!({ "type": kind, "name": name, "actions": actions }))
    };
    scopes.iter().filter_map(access).collect()
}

/// Decodes a query value.
fn decoded(value: &str) -> String {
    let mut bytes = Vec::with_capacity(value.len());
    let mut rest = value.as_bytes();
    while let Some((&first, others)) = rest.split_first() {
        let hex = others
            .get(..2)
            .and_then(|two| std::str::from_utf8(two).ok());
        let code = hex.and_then(|two| u8::from_str_radix(two, 16).ok());
        match (first, code) {
            (b'%', Some(byte)) => {
                bytes.push(byte);
                rest = &others[2..];
            }
            (b'+', _) => {
                bytes.push(b' ');
                rest = others;
            }
            _ => {
                bytes.push(first);
                rest = others;
            }
        }
    }
    String::from_utf8_lossy(&bytes).into_owned()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_scope_of_a_request_is_granted() {
        let line = "GET /token?scope=repository%3Aa%2Fb%3Apull%2Cpush+repository:c:pull&service=s&scope=x%3Ay%3Az HTTP/1.1";
        let granted = |kind: &str, name: &str, actions: &[&str]| json!({ "type": kind, "name": name, "actions": actions });
        assert_eq!(
            scopes(line),
            [
                granted("repository", "a/b", &["pull", "push"]),
                granted("repository", "c", &["pull"]),
                granted("x", "y", &["z"]),
            ]
        );
        assert!(scopes("GET /token HTTP/1.1").is_empty());
    }
}
