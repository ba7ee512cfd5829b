//! Push to a real registry (Debian's), which does not support referrers, with TLS and a password.

use std::os::unix::fs::PermissionsExt as _;

use soci_tests::TlsRegistry;
use soci_tests::process::tool;
use soci_tests::registry::LOGIN;

use super::*;

/// The registry with an image that is also in containerd.
struct Real {
    bench: Bench,
    registry: TlsRegistry,
    reference: String,
    subject: String,
}

impl Real {
    fn new(seed: u64) -> Result<Self> {
        let bench = Bench::new()?;
        let registry = TlsRegistry::with_password(&bench.path("registry"))?;
        let reference = registry.reference("app:1");
        let layout = bench.import(&image(seed)?, &reference)?;
        let real = Self {
            subject: manifest_of(&layout)?,
            bench,
            registry,
            reference,
        };
        real.log_in()?;
        real.crane(["push".as_ref(), layout.as_os_str(), real.reference.as_ref()])?;
        real.bench.create(&real.reference, "65536")?;
        Ok(real)
    }

    /// A docker configuration whose credential helper for this registry is a script.
    fn log_in(&self) -> Result<()> {
        let folder = self.bench.path("docker");
        fs::create_dir_all(&folder)?;
        let host = self.host();
        let config = json!({"credHelpers": {host: "test"}});
        fs::write(folder.join("config.json"), config.to_string())?;
        let (user, password) = LOGIN;
        let helper = folder.join("docker-credential-test");
        let script = format!(
            "#!/bin/sh\nread host\n[ \"$1 $host\" = \"get {host}\" ] || exit 1\n\
             echo '{{\"ServerURL\":\"'$host'\",\"Username\":\"{user}\",\"Secret\":\"{password}\"}}'\n",
            host = self.host()
        );
        fs::write(&helper, script)?;
        Ok(fs::set_permissions(
            &helper,
            fs::Permissions::from_mode(0o755),
        )?)
    }

    fn host(&self) -> &str {
        self.reference.split('/').next().unwrap_or_default()
    }

    /// A program that trusts the registry and has its credentials.
    fn known(&self, program: Program) -> Program {
        let folder = self.bench.path("docker");
        let path = std::env::var("PATH").unwrap_or_default();
        program
            .env("SSL_CERT_FILE", self.registry.authority())
            .env("DOCKER_CONFIG", &folder)
            .env("PATH", format!("{}:{path}", folder.display()))
    }

    fn crane<S: AsRef<std::ffi::OsStr>>(
        &self,
        arguments: impl IntoIterator<Item = S>,
    ) -> Result<String> {
        self.known(Program::tool("crane")?)
            .args(arguments)
            .succeed()
    }

    /// A program without any configuration except its flags.
    fn push(&self, arguments: &[&str]) -> Result<Finished> {
        let none = self.bench.path("none");
        let program = self.bench.node.soci(["push"])?.env("DOCKER_CONFIG", none);
        program.args(arguments).args([&self.reference]).finish()
    }
}

#[test]
fn crane_reads_what_was_pushed_to_a_registry_that_lists_no_referrers() -> Result<()> {
    let real = Real::new(11)?;
    let login = format!("{}:{}", LOGIN.0, LOGIN.1);
    let authority = real.registry.authority().display().to_string();
    let flags = ["--user", &login, "--tlscacert", &authority];
    let pushed = real.push(&flags)?;
    ensure!(pushed.code == Some(0), "{}", pushed.stderr);
    let index = check_lines(&pushed.stdout, &[&real.subject])?;

    let repository = format!("{}/app", real.host());
    let tag = format!("{repository}:{}", real.subject.replace(':', "-"));
    let listed: Value = serde_json::from_str(&real.crane(["manifest", &tag])?)?;
    assert_eq!(listed["manifests"].as_array().map(Vec::len), Some(1));
    let entry = &listed["manifests"][0];
    assert_eq!(entry["digest"], index.as_str());
    assert_eq!(
        entry["artifactType"],
        "application/vnd.amazon.soci.index.v1+json"
    );
    let made_by = &entry["annotations"]["com.amazon.soci.build-tool-identifier"];
    assert_eq!(made_by, "AWS SOCI CLI v0.2");
    let bytes = real.crane(["manifest", &format!("{repository}@{index}")])?;
    assert_eq!(digest(bytes.as_bytes()), index, "byte for byte");
    let manifest: Value = serde_json::from_str(&bytes)?;
    for ztoc in manifest["layers"].as_array().context("zTOCs")? {
        let name = format!(
            "{repository}@{}",
            ztoc["digest"].as_str().context("a digest")?
        );
        let file = real.bench.path("ztoc");
        let crane = [tool("crane")?, "blob".into(), name.into(), file.clone()];
        let shell = ["-c", "exec \"$0\" \"$1\" \"$2\" >\"$3\""];
        real.known(Program::at(Path::new("sh")))
            .args(shell)
            .args(crane)
            .succeed()?;
        assert_eq!(
            fs::metadata(&file)?.len(),
            ztoc["size"].as_u64().unwrap_or(0)
        );
    }

    // Again, with credentials from docker's configuration, and logging all requests.
    let again = real.known(real.bench.node.soci(["push", "--debug"])?);
    let again = again.args([&real.reference]).finish()?;
    ensure!(again.code == Some(0), "{}", again.stderr);
    let sent = |method: &str| {
        again
            .stdout
            .contains(&format!("\nhttp req {method} https://"))
    };
    assert!(sent("GET") && sent("HEAD"), "{}", again.stdout);
    assert!(
        !sent("PUT") && !sent("POST") && !sent("PATCH"),
        "{}",
        again.stdout
    );
    assert!(again.stdout.contains("\nhttp res 200 OK\n"));
    assert!(
        again
            .stdout
            .contains(&format!("\nskipped artifact with digest: {index}\n"))
    );
    assert!(!format!("{again:?}").contains(LOGIN.1));

    // Another index is added to the list, although this registry does not support deletion.
    real.bench.create(&real.reference, "131072")?;
    let second = real.push(&[&flags[..], &["-q", "--existing-index", "allow"]].concat())?;
    assert_eq!((second.code, second.stderr.as_str()), (Some(0), ""));
    let listed: Value = serde_json::from_str(&real.crane(["manifest", &tag])?)?;
    assert_eq!(listed["manifests"][1]["digest"], second.stdout.trim());
    Ok(())
}

#[test]
fn wrong_credentials_and_unknown_authorities_are_rejected() -> Result<()> {
    let real = Real::new(12)?;
    let authority = real.registry.authority().display().to_string();
    let wrong = real.push(&["--user", "carol:hunter2", "--tlscacert", &authority])?;
    assert_eq!(wrong.code, Some(1));
    let said = format!("{wrong:?}");
    assert!(
        said.contains("soci: failed to fetch list of referrers: "),
        "{said}"
    );
    assert!(!said.contains("hunter2"), "{said}");
    let nobody = real.push(&["--tlscacert", &authority, "--existing-index", "allow"])?;
    assert_eq!(nobody.code, Some(1));
    assert!(
        nobody
            .stderr
            .contains("soci: error pushing graph to remote: "),
        "{nobody:?}"
    );
    let login = format!("{}:{}", LOGIN.0, LOGIN.1);
    let stranger = real.push(&["--user", &login])?;
    assert_eq!(stranger.code, Some(1), "an authority that nobody knows");
    assert!(stranger.stderr.contains("certificate"), "{stranger:?}");
    let trusting = real.push(&["--user", &login, "-k"])?;
    assert_eq!(trusting.code, Some(0), "{trusting:?}");

    // As in containerd's directory of registries. The first of the two paths does not exist.
    let folder = real.bench.path("certs.d");
    let own = folder.join(real.host());
    fs::create_dir_all(&own)?;
    let hosts = format!(
        "server = \"https://{}\"\nca = \"{authority}\"\n",
        real.host()
    );
    fs::write(own.join("hosts.toml"), hosts)?;
    let folders = format!("{},{}", real.bench.path("no").display(), folder.display());
    let known = real.push(&["--user", &login, "--hosts-dir", &folders])?;
    assert_eq!(known.code, Some(0), "{known:?}");
    Ok(())
}
