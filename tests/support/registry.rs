//! A real registry behind TLS, with a certificate of an authority that the test creates.

use std::fs;
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU16, Ordering};
use std::time::Duration;

use anyhow::{Context, Result, bail};

use crate::process::{Daemon, Program};
use crate::tokens::{ISSUER, SERVICE, Tokens};

/// The name that `scripts/sandbox` gives to the loopback address. Not `localhost`, to which clients
/// speak plain HTTP.
pub const HOST: &str = "registry.soci.test";

/// Name and password of a registry that requires a login.
pub const LOGIN: (&str, &str) = ("carol", "sesame");
/// The same as a line of its password file, which supports only bcrypt.
const PASSWORD_FILE: &str = "carol:$2y$05$abcdefghijklmnopqrstuuKcS.CYWVYVaLiiCKrrc0A5s3mGesJ9O\n";

/// `docker-registry serve` on its own port.
#[derive(Debug)]
pub struct TlsRegistry {
    daemon: Daemon,
    port: u16,
    authority: PathBuf,
    folder: PathBuf,
    tokens: Option<Tokens>,
}

impl TlsRegistry {
    /// Starts a registry that stores its blobs under `folder`.
    pub fn start(folder: &Path) -> Result<Self> {
        let authority = make_certificates(folder)?;
        Self::configured(folder, authority, "")
    }

    /// Starts another one with the same certificate.
    pub fn another(&self, folder: &Path) -> Result<Self> {
        fs::create_dir_all(folder)?;
        for name in ["ca.pem", "server.pem", "server.key"] {
            fs::copy(self.folder.join(name), folder.join(name))?;
        }
        Self::configured(folder, folder.join("ca.pem"), "")
    }

    /// Requires [`LOGIN`] from now on.
    pub fn ask_for_password(&mut self) -> Result<()> {
        let access = access(&self.folder)?;
        write_config(&self.folder, self.port, &access)?;
        self.restart()
    }

    /// Starts another one that requires [`LOGIN`].
    pub fn with_password(folder: &Path) -> Result<Self> {
        let authority = make_certificates(folder)?;
        Self::configured(folder, authority, &access(folder)?)
    }

    /// Starts another one that requires tokens, and accepts each for a limited time only.
    pub fn with_tokens(folder: &Path, life: Duration) -> Result<Self> {
        let authority = make_certificates(folder)?;
        let (key, certificate) = make_signer(folder)?;
        let tokens = Tokens::start(&key, &certificate, life)?;
        let (realm, shown) = (tokens.realm(), authority.display());
        let access = format!(
            "auth: {{token: {{realm: \"{realm}\", service: {SERVICE}, issuer: {ISSUER}, rootcertbundle: {shown}}}}}\n"
        );
        let registry = Self::configured(folder, authority, &access)?;
        Ok(Self {
            tokens: Some(tokens),
            ..registry
        })
    }

    fn configured(folder: &Path, authority: PathBuf, access: &str) -> Result<Self> {
        let port = free_port()?;
        write_config(folder, port, access)?;
        Ok(Self {
            daemon: serve(folder, port)?,
            port,
            authority,
            folder: folder.to_path_buf(),
            tokens: None,
        })
    }

    /// Restarts it with the same blobs on the same port.
    pub fn restart(&mut self) -> Result<()> {
        self.daemon.kill(Duration::from_secs(20))?;
        self.daemon = serve(&self.folder, self.port)?;
        Ok(())
    }

    /// Its address, for a [`crate::Relay`] in front of it.
    pub fn address(&self) -> SocketAddr {
        SocketAddr::from(([127, 0, 0, 1], self.port))
    }

    /// The certificate of the authority that signed its own.
    pub fn authority(&self) -> &Path {
        &self.authority
    }

    /// The token service that it refers to, if any.
    pub fn tokens(&self) -> Option<&Tokens> {
        self.tokens.as_ref()
    }

    /// The reference `registry.soci.test:PORT/name`.
    pub fn reference(&self, name: &str) -> String {
        format!("{HOST}:{}/{name}", self.port)
    }

    /// Pushes every manifest in the index of an OCI layout.
    pub fn push(&self, layout: &Path, name: &str) -> Result<()> {
        Program::tool("crane")?
            .args([
                "push".as_ref(),
                layout.as_os_str(),
                self.reference(name).as_ref(),
            ])
            .env("SSL_CERT_FILE", &self.authority)
            .succeed()
            .map(|_| ())
    }

    /// The file of a blob. The registry serves it without checks, so a test may change it.
    pub fn blob_file(&self, digest: &str) -> Result<PathBuf> {
        let hex = digest.strip_prefix("sha256:").context("a SHA-256 digest")?;
        Ok(self
            .folder
            .join("blobs/docker/registry/v2/blobs/sha256")
            .join(&hex[..2])
            .join(hex)
            .join("data"))
    }

    pub fn log(&self) -> String {
        self.daemon.log()
    }
}

/// The lines of its configuration for a password file with [`LOGIN`]. Writes that file.
fn access(folder: &Path) -> Result<String> {
    let passwords = folder.join("passwords");
    fs::write(&passwords, PASSWORD_FILE)?;
    let shown = passwords.display();
    Ok(format!(
        "auth: {{htpasswd: {{realm: test, path: {shown}}}}}\n"
    ))
}

fn write_config(folder: &Path, port: u16, access: &str) -> Result<()> {
    let shown = folder.display();
    let config = format!(
        "version: 0.1\nlog: {{level: warn, accesslog: {{disabled: true}}}}\n\
         storage: {{filesystem: {{rootdirectory: {shown}/blobs}}}}\n\
         {access}http: {{addr: 127.0.0.1:{port}, tls: {{certificate: {shown}/server.pem, key: {shown}/server.key}}}}\n"
    );
    Ok(fs::write(folder.join("registry.yml"), config)?)
}

fn serve(folder: &Path, port: u16) -> Result<Daemon> {
    let mut daemon = Program::tool("docker-registry")?
        .args(["serve".as_ref(), folder.join("registry.yml").as_os_str()])
        .spawn(&folder.join("registry.log"))?;
    daemon.wait_until("listening", Duration::from_secs(20), |_| {
        TcpStream::connect(("127.0.0.1", port)).is_ok()
    })?;
    Ok(daemon)
}

/// Creates an authority and a server certificate signed by it. Returns the authority's certificate.
fn make_certificates(folder: &Path) -> Result<PathBuf> {
    fs::create_dir_all(folder)?;
    fs::write(
        folder.join("names"),
        format!("subjectAltName=DNS:{HOST},IP:127.0.0.1"),
    )?;
    let key = "-newkey ec -pkeyopt ec_paramgen_curve:P-256 -nodes";
    openssl(
        folder,
        &format!(
            "req -x509 {key} -days 30 -subj /CN=test-authority -keyout ca.key -out ca.pem -addext \
             basicConstraints=critical,CA:TRUE"
        ),
    )?;
    openssl(
        folder,
        &format!("req {key} -subj /CN={HOST} -keyout server.key -out server.csr"),
    )?;
    let sign = "x509 -req -in server.csr -CA ca.pem -CAkey ca.key -CAcreateserial -days 30";
    openssl(folder, &format!("{sign} -extfile names -out server.pem"))?;
    Ok(folder.join("ca.pem"))
}

/// Creates a key for signing tokens, and its certificate from the authority created before.
fn make_signer(folder: &Path) -> Result<(PathBuf, PathBuf)> {
    let key = "-newkey rsa:2048 -nodes";
    openssl(
        folder,
        &format!("req {key} -subj /CN=tokens -keyout tokens.key -out tokens.csr"),
    )?;
    let sign = "x509 -req -in tokens.csr -CA ca.pem -CAkey ca.key -CAcreateserial -days 30";
    openssl(folder, &format!("{sign} -out tokens.pem"))?;
    Ok((folder.join("tokens.key"), folder.join("tokens.pem")))
}

fn openssl(folder: &Path, line: &str) -> Result<String> {
    Program::at(Path::new("openssl"))
        .args(line.split(' '))
        .folder(folder)
        .succeed()
        .context("openssl")
}

/// First port for servers of tests, and their number. The kernel gives connections and listeners on
/// port 0 only higher ports (`ip_local_port_range`), so nothing else takes one of these before the
/// server starts.
const FIRST_PORT: u16 = 20_000;
const PORTS: u16 = 12_000;

/// A free port that this process has not returned before.
pub fn free_port() -> Result<u16> {
    static NEXT: AtomicU16 = AtomicU16::new(0);
    // Test processes that run at the same time begin at different ports.
    let begin = u16::try_from(std::process::id() % u32::from(PORTS))?;
    for _ in 0..PORTS {
        let offset = (begin + NEXT.fetch_add(1, Ordering::Relaxed) % PORTS) % PORTS;
        if TcpListener::bind(("127.0.0.1", FIRST_PORT + offset)).is_ok() {
            return Ok(FIRST_PORT + offset);
        }
    }
    bail!("no port from {FIRST_PORT} on is free")
}
