//! Certificates of all kinds, good and bad, and clients that speak TLS.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use mongomux::config::Address;
use mongomux::sandbox::wire_client::WireClient;
use rcgen::{
    BasicConstraints, CertificateParams, CertificateRevocationListParams, CertifiedIssuer, DnType, IsCa, KeyPair,
    KeyUsagePurpose, RevokedCertParams, SerialNumber, date_time_ymd,
};
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer, ServerName};
use rustls::{ClientConfig, RootCertStore, SupportedProtocolVersion};
use tempfile::TempDir;
use tokio::net::TcpStream;
use tokio_rustls::TlsConnector;
use tokio_rustls::client::TlsStream;

/// An authority with the certificates that it has signed, in a directory of its own.
pub struct Authority {
    issuer: CertifiedIssuer<'static, KeyPair>,
    directory: TempDir,
}

/// What a certificate says.
#[derive(Debug, Clone)]
pub struct Wish<'a> {
    /// `commonName` of its subject.
    pub name: &'a str,
    /// Hosts that it is for.
    pub hosts: &'a [&'a str],
    /// The year at whose begin it expires.
    pub until: i32,
    /// To be revoked by.
    pub number: u64,
}

impl Default for Wish<'_> {
    fn default() -> Self {
        Self { name: "somebody", hosts: &["127.0.0.1", "localhost"], until: 4000, number: 7 }
    }
}

impl Authority {
    /// A new one, which nobody knows.
    pub fn new() -> Self {
        let mut params = CertificateParams::default();
        // No two of the same name: whose signature it is would not be told apart then.
        params.distinguished_name.push(DnType::CommonName, format!("authority {:x}", rand::random::<u64>()));
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        params.key_usages = vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::CrlSign];
        let issuer = CertifiedIssuer::self_signed(params, KeyPair::generate().unwrap()).unwrap();
        let directory = tempfile::tempdir().unwrap();
        std::fs::write(directory.path().join("ca.pem"), issuer.pem()).unwrap();
        Self { issuer, directory }
    }

    /// The file of its certificate.
    pub fn file(&self) -> PathBuf {
        self.directory.path().join("ca.pem")
    }

    /// A file in its directory.
    pub fn path(&self, name: &str) -> PathBuf {
        self.directory.path().join(name)
    }

    /// Signs a certificate, and puts it into `file` with its key, as MongoDB has them.
    pub fn sign(&self, file: &str, wish: &Wish<'_>) -> PathBuf {
        let (certificate, key) = self.signed(wish);
        let path = self.path(file);
        replace(&path, &(certificate + &key));
        path
    }

    /// A file with its own certificate and key, as who has made one with `openssl req -x509` gives it to a server.
    pub fn own(&self) -> PathBuf {
        let path = self.path("own.pem");
        replace(&path, &(self.issuer.pem() + &self.issuer.key().serialize_pem()));
        path
    }

    /// PEM of a new certificate, and of its key.
    pub fn signed(&self, wish: &Wish<'_>) -> (String, String) {
        let hosts: Vec<String> = wish.hosts.iter().map(|&host| host.to_owned()).collect();
        let mut params = CertificateParams::new(hosts).unwrap();
        params.distinguished_name.push(DnType::CommonName, wish.name);
        params.not_after = date_time_ymd(wish.until, 1, 1);
        params.serial_number = Some(SerialNumber::from(wish.number));
        let key = KeyPair::generate().unwrap();
        let certificate = params.signed_by(&key, &self.issuer).unwrap();
        (certificate.pem(), key.serialize_pem())
    }

    /// A list by which the certificate of that number is not valid any more.
    pub fn revoke(&self, file: &str, number: u64) -> PathBuf {
        let revoked = RevokedCertParams {
            serial_number: SerialNumber::from(number),
            revocation_time: date_time_ymd(2020, 1, 1),
            reason_code: None,
            invalidity_date: None,
        };
        let params = CertificateRevocationListParams {
            this_update: date_time_ymd(2020, 1, 1),
            next_update: date_time_ymd(4000, 1, 1),
            crl_number: SerialNumber::from(1),
            issuing_distribution_point: None,
            revoked_certs: vec![revoked],
            key_identifier_method: rcgen::KeyIdMethod::Sha256,
        };
        let path = self.path(file);
        replace(&path, &params.signed_by(&self.issuer).unwrap().pem().unwrap());
        path
    }
}

/// Puts a text where another may be, as a whole.
pub fn replace(path: &Path, text: &str) {
    let fresh = path.with_extension("new");
    std::fs::write(&fresh, text).unwrap();
    std::fs::rename(&fresh, path).unwrap();
}

/// A client's side of TLS.
pub struct TlsClient {
    /// Who is to have signed the server's certificate.
    pub trusts: PathBuf,
    /// Its own certificate with its key.
    pub shows: Option<PathBuf>,
    /// The only version that it speaks, if not all.
    pub version: Option<&'static SupportedProtocolVersion>,
}

impl TlsClient {
    /// Trusts that authority, and shows nothing.
    pub fn new(authority: &Authority) -> Self {
        Self { trusts: authority.file(), shows: None, version: None }
    }

    /// Shows a certificate.
    pub fn shows(self, file: PathBuf) -> Self {
        Self { shows: Some(file), ..self }
    }

    /// For rustls.
    pub fn config(&self) -> Arc<ClientConfig> {
        let mut roots = RootCertStore::empty();
        roots.add(CertificateDer::from_pem_file(&self.trusts).unwrap()).unwrap();
        let provider = Arc::new(rustls::crypto::ring::default_provider());
        let versions = self.version.as_slice();
        let versions = if versions.is_empty() { rustls::DEFAULT_VERSIONS } else { versions };
        let builder = ClientConfig::builder_with_provider(provider).with_protocol_versions(versions).unwrap();
        let builder = builder.with_root_certificates(roots);
        Arc::new(match &self.shows {
            Some(file) => {
                let chain = CertificateDer::pem_file_iter(file).unwrap().collect::<Result<_, _>>().unwrap();
                builder.with_client_auth_cert(chain, PrivateKeyDer::from_pem_file(file).unwrap()).unwrap()
            }
            None => builder.with_no_client_auth(),
        })
    }

    /// Shakes hands. With TLS 1.3 that a server does not want us shows at the first read only.
    pub async fn connect(&self, address: &Address) -> std::io::Result<TlsStream<TcpStream>> {
        connect(&self.config(), address).await
    }

    /// A client that was greeted; else why not.
    pub async fn greeted(&self, address: &Address) -> Result<WireClient, String> {
        let stream = self.connect(address).await.map_err(|error| error.to_string())?;
        let mut client = WireClient::over(stream);
        client.hello("mongomux test").await.map(|_| client).map_err(|error| error.to_string())
    }
}

/// Shakes hands with 127.0.0.1.
pub async fn connect(config: &Arc<ClientConfig>, address: &Address) -> std::io::Result<TlsStream<TcpStream>> {
    let stream = TcpStream::connect(address.to_string()).await?;
    stream.set_nodelay(true)?;
    let name = ServerName::try_from("127.0.0.1").unwrap();
    TlsConnector::from(config.clone()).connect(name, stream).await
}
