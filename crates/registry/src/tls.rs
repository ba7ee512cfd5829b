//! TLS: trusted authorities and client certificates.
//!
//! Trusts the system's authorities and those that the caller or the settings of a host add. The
//! only crypto provider is aws-lc-rs, selected explicitly here.

use std::{
    io,
    path::{Path, PathBuf},
    sync::Arc,
};

use rustls::{
    ClientConfig, ConfigBuilder, DigitallySignedStruct, RootCertStore, SignatureScheme,
    client::{
        WantsClientCert,
        danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier},
    },
    crypto::{CryptoProvider, verify_tls12_signature, verify_tls13_signature},
    pki_types::{CertificateDer, PrivateKeyDer, ServerName, UnixTime, pem, pem::PemObject},
};

/// Certificate bundles of the distributions.
const CA_FILES: [&str; 5] = [
    "/etc/ssl/certs/ca-certificates.crt",
    "/etc/pki/tls/certs/ca-bundle.crt",
    "/etc/ssl/ca-bundle.pem",
    "/etc/pki/ca-trust/extracted/pem/tls-ca-bundle.pem",
    "/etc/ssl/cert.pem",
];
/// Folders of single certificates.
const CA_FOLDERS: [&str; 2] = ["/etc/ssl/certs", "/etc/pki/tls/certs"];

/// TLS settings in addition to the system's.
#[derive(Clone, Debug, Default, PartialEq, Eq, Hash)]
pub struct Tls {
    /// Files with certificate authorities to trust in addition to the system's.
    pub authorities: Vec<PathBuf>,
    /// The client certificate for registries that request one.
    pub identity: Option<Identity>,
    /// Accept any server certificate.
    pub skip_verify: bool,
}

/// A client certificate and its key, in PEM form.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Identity {
    /// File with the certificate and its intermediate certificates.
    pub certificate: PathBuf,
    /// File with the key; `None` if it is in the certificate file.
    pub key: Option<PathBuf>,
}

impl Tls {
    /// The certificate and key files.
    pub(crate) fn files(&self) -> impl Iterator<Item = &Path> {
        let identity = self.identity.iter();
        let own = identity.flat_map(|it| [Some(&it.certificate), it.key.as_ref()]);
        let all = self.authorities.iter().chain(own.flatten());
        all.map(PathBuf::as_path)
    }
}

/// Why TLS cannot be configured.
#[derive(Clone, Debug, thiserror::Error)]
#[non_exhaustive]
pub enum TlsError {
    /// A file cannot be read.
    #[error("read {}", path.display())]
    Read {
        /// The file.
        path: PathBuf,
        /// The system's error.
        #[source]
        source: Arc<io::Error>,
    },
    /// A file does not contain what is needed.
    #[error("{} has no {what} in PEM form", path.display())]
    Nothing {
        /// The file.
        path: PathBuf,
        /// What is missing.
        what: &'static str,
    },
    /// A file has content that TLS rejects.
    #[error("{} cannot be used for TLS", path.display())]
    Unusable {
        /// The file.
        path: PathBuf,
        /// The TLS library's error.
        #[source]
        source: Arc<dyn std::error::Error + Send + Sync>,
    },
    /// The provider supports no protocol version, which is a build error.
    #[error("TLS without protocol versions")]
    Versions(#[source] Arc<rustls::Error>),
}

/// Builds the configuration from the system's authorities and the caller's settings.
pub(super) fn client_config(roots: &RootCertStore, tls: &Tls) -> Result<ClientConfig, TlsError> {
    let mut roots = roots.clone();
    if !tls.skip_verify {
        for path in &tls.authorities {
            add_authorities(&mut roots, &certificates(path)?, path)?;
        }
    }
    let builder = builder(roots, tls.skip_verify)?;
    let Some(identity) = &tls.identity else {
        return Ok(builder.with_no_client_auth());
    };
    let (chain, key) = identity.load()?;
    let config = builder.with_client_auth_cert(chain, key);
    config.map_err(|error| unusable(&identity.certificate)(error))
}

/// TLS settings as PEM text.
pub(super) struct PemTls<'a> {
    /// The only authorities to trust; `None` means the system's.
    pub(super) authorities: Option<&'a [u8]>,
    /// Certificate and key.
    pub(super) identity: Option<(&'a [u8], &'a [u8])>,
    pub(super) skip_verify: bool,
}

/// Builds the configuration from text. `origin` names where the text is from, for errors.
pub(super) fn pem_config(tls: &PemTls<'_>, origin: &Path) -> Result<ClientConfig, TlsError> {
    let roots = match tls.authorities {
        None => Roots::from_env().load(),
        Some(text) => {
            let mut roots = RootCertStore::empty();
            add_authorities(&mut roots, &certificates_of(text, origin)?, origin)?;
            roots
        }
    };
    let builder = builder(roots, tls.skip_verify)?;
    let Some((certificate, key)) = tls.identity else {
        return Ok(builder.with_no_client_auth());
    };
    let chain = certificates_of(certificate, origin)?;
    let config = builder.with_client_auth_cert(chain, key_of(key, origin)?);
    config.map_err(|error| unusable(origin)(error))
}

/// Prepares the random numbers of the TLS library. This takes 30 ms of CPU time, which the first
/// connection would otherwise wait for.
pub fn warm_up() {
    let provider = rustls::crypto::aws_lc_rs::default_provider();
    if provider.secure_random.fill(&mut [0; 8]).is_err() {
        tracing::debug!(
            "cannot prepare the random numbers of the TLS library; the first connection tries again"
        );
    }
}

fn builder(
    roots: RootCertStore,
    skip_verify: bool,
) -> Result<ConfigBuilder<ClientConfig, WantsClientCert>, TlsError> {
    let provider = rustls::crypto::aws_lc_rs::default_provider();
    // Fails if a provider is already installed; then it is the same one. With a second provider,
    // the default would depend on run-time order.
    drop(provider.clone().install_default());
    let provider = Arc::new(provider);
    let builder = ClientConfig::builder_with_provider(Arc::clone(&provider))
        .with_safe_default_protocol_versions()
        .map_err(|error| TlsError::Versions(Arc::new(error)))?;
    if !skip_verify {
        return Ok(builder.with_root_certificates(roots));
    }
    let verifier = Arc::new(NoVerifier(provider));
    Ok(builder
        .dangerous()
        .with_custom_certificate_verifier(verifier))
}

fn add_authorities(
    roots: &mut RootCertStore,
    authorities: &[CertificateDer<'static>],
    origin: &Path,
) -> Result<(), TlsError> {
    for certificate in authorities {
        roots.add(certificate.clone()).map_err(unusable(origin))?;
    }
    Ok(())
}

impl Identity {
    fn load(&self) -> Result<(Vec<CertificateDer<'static>>, PrivateKeyDer<'static>), TlsError> {
        let chain = certificates(&self.certificate)?;
        let path = self.key.as_ref().unwrap_or(&self.certificate);
        Ok((chain, key_of(&read(path)?, path)?))
    }
}

fn key_of(text: &[u8], origin: &Path) -> Result<PrivateKeyDer<'static>, TlsError> {
    PrivateKeyDer::from_pem_slice(text).map_err(|error| match error {
        pem::Error::NoItemsFound => TlsError::Nothing {
            path: origin.to_owned(),
            what: "private key",
        },
        error => unusable(origin)(error),
    })
}

fn certificates(path: &Path) -> Result<Vec<CertificateDer<'static>>, TlsError> {
    certificates_of(&read(path)?, path)
}

fn certificates_of(text: &[u8], origin: &Path) -> Result<Vec<CertificateDer<'static>>, TlsError> {
    let found: Result<Vec<_>, _> = CertificateDer::pem_slice_iter(text).collect();
    let found = found.map_err(unusable(origin))?;
    if found.is_empty() {
        return Err(TlsError::Nothing {
            path: origin.to_owned(),
            what: "certificate",
        });
    }
    Ok(found)
}

fn read(path: &Path) -> Result<Vec<u8>, TlsError> {
    std::fs::read(path).map_err(|error| TlsError::Read {
        path: path.to_owned(),
        source: Arc::new(error),
    })
}

fn unusable<E: std::error::Error + Send + Sync + 'static>(
    path: &Path,
) -> impl FnOnce(E) -> TlsError {
    move |error| TlsError::Unusable {
        path: path.to_owned(),
        source: Arc::new(error),
    }
}

/// Accepts the certificate of every server, but verifies that the server has its key.
#[derive(Debug)]
struct NoVerifier(Arc<CryptoProvider>);

impl ServerCertVerifier for NoVerifier {
    fn verify_server_cert(
        &self,
        _: &CertificateDer<'_>,
        _: &[CertificateDer<'_>],
        _: &ServerName<'_>,
        _: &[u8],
        _: UnixTime,
    ) -> Result<ServerCertVerified, rustls::Error> {
        Ok(ServerCertVerified::assertion())
    }

    fn verify_tls12_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signature: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        let known = &self.0.signature_verification_algorithms;
        verify_tls12_signature(message, certificate, signature, known)
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signature: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        let known = &self.0.signature_verification_algorithms;
        verify_tls13_signature(message, certificate, signature, known)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.0.signature_verification_algorithms.supported_schemes()
    }
}

/// Whether an error is about certificates, the server's or the client's. A retry would fail the
/// same way.
pub(super) fn is_about_certificates(error: &(dyn std::error::Error + 'static)) -> bool {
    use rustls::AlertDescription as Alert;
    let mut cause = Some(error);
    while let Some(error) = cause {
        match error.downcast_ref::<rustls::Error>() {
            Some(rustls::Error::InvalidCertificate(_)) => return true,
            Some(rustls::Error::AlertReceived(
                Alert::CertificateRequired
                | Alert::BadCertificate
                | Alert::UnsupportedCertificate
                | Alert::CertificateRevoked
                | Alert::CertificateExpired
                | Alert::CertificateUnknown
                | Alert::UnknownCA
                | Alert::AccessDenied,
            )) => return true,
            _ => {}
        }
        // `io::Error::source` skips the wrapped error, and TLS errors are wrapped in `io::Error`.
        let wrapped = error
            .downcast_ref::<io::Error>()
            .and_then(io::Error::get_ref);
        cause = match wrapped {
            Some(inner) => Some(inner as &(dyn std::error::Error + 'static)),
            None => error.source(),
        };
    }
    false
}

/// Locations of certificate authorities.
#[derive(Debug)]
pub(super) struct Roots {
    file: Option<PathBuf>,
    folders: Vec<PathBuf>,
}

impl Roots {
    /// `SSL_CERT_FILE` replaces the distribution's file. `SSL_CERT_DIR` (several folders, separated
    /// by colons) replaces its folders. The two are independent.
    pub(super) fn from_env() -> Roots {
        let file = match std::env::var_os("SSL_CERT_FILE").filter(|file| !file.is_empty()) {
            Some(file) => Some(PathBuf::from(file)),
            None => CA_FILES
                .iter()
                .map(PathBuf::from)
                .find(|file| file.is_file()),
        };
        let folders = match std::env::var_os("SSL_CERT_DIR").filter(|folders| !folders.is_empty()) {
            Some(folders) => std::env::split_paths(&folders).collect(),
            None => CA_FOLDERS.iter().map(PathBuf::from).collect(),
        };
        Roots { file, folders }
    }

    /// Loads all readable certificates and logs the rest. An empty result is not an error, because
    /// plain HTTP may be all that is needed.
    pub(super) fn load(&self) -> RootCertStore {
        let mut certificates: Vec<CertificateDer<'static>> = Vec::new();
        let mut add = |file: Option<&Path>, folder: Option<&Path>| {
            let found = rustls_native_certs::load_certs_from_paths(file, folder);
            for error in &found.errors {
                tracing::debug!(%error, "certificate authority left out");
            }
            certificates.extend(found.certs);
        };
        add(self.file.as_deref(), None);
        for folder in self.folders.iter().filter(|folder| folder.is_dir()) {
            add(None, Some(folder));
        }
        certificates.sort_unstable_by(|a, b| a.as_ref().cmp(b.as_ref()));
        certificates.dedup();
        let mut roots = RootCertStore::empty();
        let (_, ignored) = roots.add_parsable_certificates(certificates);
        if ignored > 0 {
            tracing::debug!(ignored, "certificate authorities that cannot be parsed");
        }
        roots
    }
}

#[cfg(all(test, feature = "testing"))]
mod tests {
    use super::*;
    use crate::testing::TestRegistry;

    #[test]
    fn authorities_come_from_the_file_and_every_folder() {
        let folder = tempfile::tempdir().expect("a temporary folder");
        let path = folder.path().join("test-ca.crt");
        std::fs::write(&path, TestRegistry::ca_pem()).expect("write the authority");
        std::fs::write(folder.path().join("broken.crt"), "no certificate").expect("write junk");
        let count = |file: Option<PathBuf>, folders: &[&Path]| {
            let folders = folders.iter().map(|f| (*f).to_owned()).collect();
            Roots { file, folders }.load().len()
        };
        assert_eq!(count(Some(path.clone()), &[]), 1);
        assert_eq!(count(None, &[Path::new("/no/such"), folder.path()]), 1);
        assert_eq!(count(Some(path), &[folder.path()]), 1, "the same one twice");
        assert_eq!(count(Some(PathBuf::from("/no/such")), &[]), 0);
    }

    #[test]
    fn text_in_pem_form_configures_tls_and_other_text_is_refused() {
        let (certificate, key) = TestRegistry::client_pem();
        let good = TestRegistry::ca_pem().as_bytes();
        let identity = (certificate.as_bytes(), key.as_bytes());
        let of = |authorities, identity| {
            let tls = PemTls {
                authorities,
                identity,
                skip_verify: false,
            };
            pem_config(&tls, Path::new("a kubeconfig")).map(drop)
        };
        of(Some(good), Some(identity)).expect("usable");
        for (authorities, identity) in [
            (&b"hunter2"[..], None),
            (good, Some((identity.0, &b"hunter2"[..]))),
            (good, Some((&b"hunter2"[..], identity.1))),
        ] {
            let error = of(Some(authorities), identity).expect_err("not PEM");
            assert!(matches!(error, TlsError::Nothing { .. }), "{error:?}");
        }
    }
}
