//! The admin port as its callers see it: where it is, how one is let in, one question at a time, and in words why there is no
//! answer. Every question has its own connection, as the port closes each after its answer.

use std::io;
use std::net::IpAddr;
use std::path::{Path, PathBuf};
use std::time::Duration;

use axum::body::{Body, to_bytes};
use axum::http::{HeaderValue, Method, Request, StatusCode, header};
use bytes::Bytes;
use hyper::client::conn::http1;
use hyper_util::rt::TokioIo;
use serde_json::Value;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::{TcpStream, UnixStream};
use tokio::time::timeout;

use crate::admin::access::ORDER_HEADER;
use crate::cli::operate::PortArgs;
use crate::config::system::{read_file, read_secret};
use crate::config::uri::TlsOptions;
use crate::config::{Address, AdminAccess, Config, ConfigError, ConfigErrors, DEFAULT_ADMIN, Sources};
use crate::upstream::tls::{TlsError, UpstreamTls};

/// From the first packet to the last byte of an answer: the port itself takes 5 s at most.
const TIMEOUT: Duration = Duration::from_secs(10);

/// Metrics of a hundred servers are a megabyte.
const MAX_ANSWER_BYTES: usize = 16 << 20;

/// As the port answers for paths that it does not know.
const NO_SUCH_PATH: &str = "there is no such path";

/// Why a port cannot even be asked: flags, and the files that they name.
#[derive(Debug, thiserror::Error)]
pub enum PortError {
    /// The configuration, or a token.
    #[error(transparent)]
    Config(#[from] ConfigErrors),
    /// Certificates.
    #[error(transparent)]
    Tls(#[from] TlsError),
    /// A port that the system chooses is known to nobody.
    #[error("the admin port is {0}: the log of the proxy tells the real one, give it as --admin")]
    AnyPort(Address),
    /// Unix sockets speak no TLS.
    #[error("{0} is a unix socket, which speaks no TLS: leave out https, --admin-ca and --admin-cert")]
    UnixTls(Address),
}

impl From<ConfigError> for PortError {
    fn from(error: ConfigError) -> Self {
        Self::Config(ConfigErrors(vec![error]))
    }
}

/// Why there is no answer, or none that was hoped for.
#[derive(Debug, thiserror::Error)]
pub enum AskError {
    /// Nobody is there.
    #[error(
        "nothing listens at {address} ({error}): is mongomux running, and is that its admin port? Say another one with --admin, \
         MONGOMUX_ADMIN or --config"
    )]
    Nobody {
        /// Where it was looked for.
        address: Address,
        /// What the system says.
        error: io::Error,
    },
    /// No connection, for another reason.
    #[error("cannot connect to {address}: {error}")]
    Connect {
        /// To where.
        address: Address,
        /// What the system says.
        error: io::Error,
    },
    /// No TLS.
    #[error("{address}: {error}; {hint}")]
    Tls {
        /// With whom.
        address: Address,
        /// What was not agreed on.
        error: TlsError,
        /// What may help.
        hint: &'static str,
    },
    /// It took too long.
    #[error("{0} has not answered within {seconds} s: is that mongomux's admin port?", seconds = TIMEOUT.as_secs())]
    Timeout(Address),
    /// No HTTP, or the connection broke.
    #[error(
        "{address} does not speak HTTP ({error}): is that mongomux's admin port? One with TLS wants https://{address} or --admin-ca"
    )]
    NoHttp {
        /// Who.
        address: Address,
        /// What hyper says.
        error: hyper::Error,
    },
    /// The answer broke off, or is longer than any.
    #[error("the answer of {address} cannot be read: {error}")]
    Body {
        /// Who.
        address: Address,
        /// What is wrong with it.
        error: axum::Error,
    },
    /// Who asks may not.
    #[error("{address} refuses ({status}): {words}; {hint}", status = status.as_u16())]
    Denied {
        /// Who.
        address: Address,
        /// 401 or 403.
        status: StatusCode,
        /// Its own words.
        words: String,
        /// What may help.
        hint: &'static str,
    },
    /// It is older than this program.
    #[error("the mongomux at {address} has no {path}: this is version {ours}, use the same as the proxy", ours = env!("CARGO_PKG_VERSION"))]
    NoSuchPath {
        /// Who.
        address: Address,
        /// What was asked for.
        path: String,
    },
    /// A pause was not long enough.
    #[error("the pause is over before all was quiet: {0} at the last look, and what was held goes on")]
    NotQuiet(super::quiet::Running),
    /// It does not do what it was asked for.
    #[error("{words}")]
    Refused {
        /// What kind of no.
        status: StatusCode,
        /// Its own words.
        words: String,
    },
    /// Somebody else answers.
    #[error("{0} answers, but not as mongomux does: is that its admin port?")]
    NotMongomux(Address),
    /// Its answer is not what it was when this program was built.
    #[error("{address} runs mongomux {theirs}, and this is {ours}, which cannot read its answer ({error}): use the same version", ours = env!("CARGO_PKG_VERSION"))]
    Version {
        /// Who.
        address: Address,
        /// Its version.
        theirs: String,
        /// What is different.
        error: serde_json::Error,
    },
}

/// An admin port.
pub struct Port {
    address: Address,
    token: Option<HeaderValue>,
    tls: Option<UpstreamTls>,
    /// For what to hint at.
    shows_token: bool,
    shows_certificate: bool,
}

impl std::fmt::Debug for Port {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_tuple("Port").field(&self.address).finish()
    }
}

trait Stream: AsyncRead + AsyncWrite + Send + Unpin {}
impl<S: AsyncRead + AsyncWrite + Send + Unpin> Stream for S {}

impl Port {
    /// The port that the flags mean, the configuration where they say nothing.
    ///
    /// # Errors
    /// [`PortError`]
    pub fn of(args: &PortArgs) -> Result<Self, PortError> {
        let configured = args.config.as_deref().map(configured).transpose()?;
        // What the file says of another port than the one that was named is not about that one.
        let configured = configured.filter(|it| args.admin.as_ref().is_none_or(|said| said.address == it.address));
        let address = match (&args.admin, &configured) {
            (Some(said), _) => said.address.clone(),
            (None, Some(it)) => it.address.clone(),
            (None, None) => Address::tcp(DEFAULT_ADMIN.0, DEFAULT_ADMIN.1),
        };
        let encrypted = args.admin.as_ref().is_some_and(|said| said.tls)
            || args.admin_ca.is_some()
            || args.admin_cert.is_some()
            || configured.as_ref().is_some_and(|it| it.tls && matches!(it.address, Address::Tcp { .. }));
        let address = reachable(address)?;
        let token_file = args.admin_token_file.clone().or_else(|| configured.and_then(|it| it.tokens));
        let token = token_file.as_deref().map(first_token).transpose()?;
        let tls = if encrypted { Some(tls_toward(&address, args)?) } else { None };
        let (shows_token, shows_certificate) = (token.is_some(), args.admin_cert.is_some());
        Ok(Self { address, token, tls, shows_token, shows_certificate })
    }

    /// Where it is.
    pub fn address(&self) -> &Address {
        &self.address
    }

    /// Asks for something, as JSON.
    ///
    /// # Errors
    /// [`AskError`]
    pub async fn get(&self, path: &str) -> Result<Value, AskError> {
        self.json(Method::GET, path, None).await
    }

    /// Asks for something that is text.
    ///
    /// # Errors
    /// [`AskError`]
    pub async fn text(&self, path: &str) -> Result<String, AskError> {
        let (status, body) = self.ask(Method::GET, path, None).await?;
        if !status.is_success() {
            return Err(self.refused(status, path, &body));
        }
        String::from_utf8(body.into()).map_err(|_| AskError::NotMongomux(self.address.clone()))
    }

    /// Gives an order.
    ///
    /// # Errors
    /// [`AskError`]
    pub async fn order(&self, path: &str, body: &Value) -> Result<Value, AskError> {
        self.json(Method::POST, path, Some(body)).await
    }

    /// Reads an answer as what it is meant to be.
    ///
    /// # Errors
    /// [`AskError::Version`] or [`AskError::NotMongomux`]
    pub fn read<T: serde::de::DeserializeOwned>(&self, answer: Value) -> Result<T, AskError> {
        let theirs = answer.get("version").and_then(Value::as_str).map(str::to_owned);
        serde_json::from_value(answer).map_err(|error| match theirs {
            Some(theirs) => AskError::Version { address: self.address.clone(), theirs, error },
            None => AskError::NotMongomux(self.address.clone()),
        })
    }

    async fn json(&self, method: Method, path: &str, body: Option<&Value>) -> Result<Value, AskError> {
        let (status, answer) = self.ask(method, path, body).await?;
        if !status.is_success() {
            return Err(self.refused(status, path, &answer));
        }
        serde_json::from_slice(&answer).map_err(|_| AskError::NotMongomux(self.address.clone()))
    }

    async fn ask(&self, method: Method, path: &str, body: Option<&Value>) -> Result<(StatusCode, Bytes), AskError> {
        let asked = timeout(TIMEOUT, async {
            let stream = self.connect().await?;
            self.exchange(stream, self.request(method, path, body)).await
        });
        asked.await.unwrap_or_else(|_| Err(AskError::Timeout(self.address.clone())))
    }

    fn request(&self, method: Method, path: &str, body: Option<&Value>) -> Request<Body> {
        let host = match &self.address {
            Address::Tcp { .. } => self.address.to_string(),
            Address::Unix(_) => "localhost".to_owned(),
        };
        let mut request = Request::builder().method(method).uri(path).header(header::HOST, host);
        if let Some(token) = &self.token {
            request = request.header(header::AUTHORIZATION, token);
        }
        let body = match body {
            Some(body) => {
                request = request.header(ORDER_HEADER, "1").header(header::CONTENT_TYPE, "application/json");
                Body::from(body.to_string())
            }
            None => Body::empty(),
        };
        request.body(body).expect("paths are escaped, and hosts have no spaces")
    }

    async fn connect(&self) -> Result<Box<dyn Stream>, AskError> {
        let failed = |error: io::Error| {
            let address = self.address.clone();
            match error.kind() {
                io::ErrorKind::ConnectionRefused | io::ErrorKind::NotFound => AskError::Nobody { address, error },
                _ => AskError::Connect { address, error },
            }
        };
        let (host, port) = match &self.address {
            Address::Unix(path) => return Ok(Box::new(UnixStream::connect(path).await.map_err(failed)?)),
            Address::Tcp { host, port } => (host.as_str(), *port),
        };
        let stream = TcpStream::connect((host, port)).await.map_err(failed)?;
        let Some(tls) = &self.tls else { return Ok(Box::new(stream)) };
        match tls.connect(host, stream).await {
            Ok(stream) => Ok(Box::new(stream)),
            Err(error) => Err(AskError::Tls { address: self.address.clone(), hint: tls_hint(&error), error }),
        }
    }

    async fn exchange(&self, stream: Box<dyn Stream>, request: Request<Body>) -> Result<(StatusCode, Bytes), AskError> {
        let no_http = |error| AskError::NoHttp { address: self.address.clone(), error };
        let (mut sender, connection) = http1::handshake(TokioIo::new(stream)).await.map_err(no_http)?;
        let answered = async move {
            let response = sender.send_request(request).await.map_err(no_http)?;
            let status = response.status();
            let body = to_bytes(Body::new(response.into_body()), MAX_ANSWER_BYTES).await;
            Ok((status, body.map_err(|error| AskError::Body { address: self.address.clone(), error })?))
        };
        // The connection ends with its sender. What is wrong with it is told by the answer that there is not.
        futures_util::future::join(answered, connection).await.0
    }

    fn refused(&self, status: StatusCode, path: &str, body: &[u8]) -> AskError {
        let address = self.address.clone();
        let told = serde_json::from_slice::<Value>(body).unwrap_or_default();
        let Some(words) = told.get("error").and_then(Value::as_str) else {
            return AskError::NotMongomux(address);
        };
        // Of a configuration that is not taken: each in a line of its own, as `check` tells them.
        let mistakes = told.get("mistakes").and_then(Value::as_array).into_iter().flatten().filter_map(Value::as_str);
        let words = std::iter::once(words).chain(mistakes).collect::<Vec<_>>().join("\n  ");
        match status {
            StatusCode::UNAUTHORIZED | StatusCode::FORBIDDEN => {
                AskError::Denied { address, status, words, hint: self.way_in() }
            }
            StatusCode::NOT_FOUND if words == NO_SUCH_PATH => AskError::NoSuchPath { address, path: path.to_owned() },
            _ => AskError::Refused { status, words },
        }
    }

    /// What whoever was turned away may try.
    fn way_in(&self) -> &'static str {
        match (self.shows_token, self.shows_certificate) {
            (false, false) => {
                "show a token with --admin-token-file FILE, or a certificate with --admin-cert FILE, or ask on the machine itself"
            }
            (true, false) => "the token that --admin-token-file has shown is none of the proxy's admin_token_file",
            _ => "what --admin-cert has shown is signed by none of the proxy's admin_tls_ca_file",
        }
    }
}

/// What a configuration file says of the admin port.
struct Configured {
    address: Address,
    tokens: Option<PathBuf>,
    tls: bool,
}

fn configured(file: &Path) -> Result<Configured, ConfigErrors> {
    let file = read_file(file).map_err(|error| ConfigErrors(vec![error]))?;
    let (config, _) = Config::load(&Sources { file: Some(file), ..Sources::default() })?;
    let tokens = match config.admin_access {
        AdminAccess::Proven { tokens, .. } => tokens,
        AdminAccess::Loopback | AdminAccess::ProbesOnly => None,
    };
    Ok(Configured { address: config.admin, tokens, tls: config.admin_tls.is_some() })
}

/// Who listens everywhere is reached on this machine.
fn reachable(address: Address) -> Result<Address, PortError> {
    match address {
        Address::Tcp { port: 0, .. } => Err(PortError::AnyPort(address)),
        Address::Tcp { host, port } => Ok(match host.parse::<IpAddr>() {
            Ok(IpAddr::V4(ip)) if ip.is_unspecified() => Address::tcp("127.0.0.1", port),
            Ok(IpAddr::V6(ip)) if ip.is_unspecified() => Address::tcp("::1", port),
            _ => Address::tcp(host, port),
        }),
        unix @ Address::Unix(_) => Ok(unix),
    }
}

/// A file of the proxy's has several; one of them is enough.
fn first_token(file: &Path) -> Result<HeaderValue, PortError> {
    let secret = read_secret(file)?;
    let token = secret.lines().map(str::trim).find(|line| !line.is_empty() && !line.starts_with('#'));
    let header = token.and_then(|token| HeaderValue::try_from(format!("Bearer {token}")).ok());
    let mut header = header.ok_or_else(|| ConfigError {
        place: file.display().to_string(),
        key: "admin_token_file".to_owned(),
        problem: "there is no token in it".to_owned(),
    })?;
    header.set_sensitive(true);
    Ok(header)
}

fn tls_toward(address: &Address, args: &PortArgs) -> Result<UpstreamTls, PortError> {
    if matches!(address, Address::Unix(_)) {
        return Err(PortError::UnixTls(address.clone()));
    }
    let (ca_file, cert_key_file) = (args.admin_ca.clone(), args.admin_cert.clone());
    Ok(UpstreamTls::new(&TlsOptions { ca_file, cert_key_file, ..TlsOptions::default() })?)
}

fn tls_hint(error: &TlsError) -> &'static str {
    let TlsError::Handshake(error) = error else { return "call the port by a name that a certificate can have" };
    match error.get_ref().and_then(|inner| inner.downcast_ref::<rustls::Error>()) {
        Some(rustls::Error::InvalidMessage(_)) => {
            "does the port speak TLS? Without it leave out https, --admin-ca and --admin-cert"
        }
        Some(rustls::Error::InvalidCertificate(rustls::CertificateError::UnknownIssuer)) => {
            "give the authority of the admin port's certificate with --admin-ca FILE"
        }
        Some(rustls::Error::InvalidCertificate(
            rustls::CertificateError::NotValidForName | rustls::CertificateError::NotValidForNameContext { .. },
        )) => "call the port by a name that is in its certificate: --admin NAME:PORT",
        Some(rustls::Error::InvalidCertificate(_)) => {
            "the port has to be given another certificate; one of an authority (CaUsedAsEndEntity) signs others and cannot be one itself"
        }
        Some(rustls::Error::AlertReceived(_)) => "it may ask for another certificate: --admin-cert FILE",
        _ => "does the port speak TLS?",
    }
}
