//! Upstream connection strings, read through the `mongodb` crate: its parser, its option checks, its SRV and TXT look-ups.
//!
//! [`Upstream::parse`] does no I/O, so a configuration can be checked without a network; DNS happens in
//! `Upstream::monitor_options`, for monitoring only. Options about operations are ignored with a warning: clients state
//! them with each command. No error and no `Debug` here repeats a password, nor text that could be a part of one.

mod compression;
mod mistakes;
mod parts;
mod tls;

use std::fmt;
use std::time::Duration;

use mongodb::event::EventHandler;
use mongodb::event::sdam::SdamEvent;
use mongodb::options::{
    AuthMechanism, ClientOptions, ConnectionString, DriverInfo, HostInfo, ServerAddress, Tls, TlsOptions as TheirTls,
};
use zeroize::Zeroizing;

use super::Address;
pub use compression::Compression;
use mistakes::Mistakes;
pub use mistakes::UriErrors;
use parts::{LOAD_BALANCED, Options, Parts, query};
pub use tls::{KeyPassword, TlsOptions};

/// What servers accept as an application name, bytes.
const MAX_APP_NAME_BYTES: usize = 128;
/// What follows the application's name in the server's list of connections.
const MONITOR_SUFFIX: &str = " monitor";
/// The SDAM specification's `minHeartbeatFrequencyMS`.
const MIN_HEARTBEAT_FREQUENCY: Duration = Duration::from_millis(500);
/// The port of a host that names none.
const DEFAULT_PORT: u16 = 27017;

/// One thing that is wrong with a connection string, in words for its author.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{0}")]
pub struct UriError(String);

/// The parsed upstream connection string.
#[derive(Clone)]
pub struct Upstream {
    /// The connection string without credentials and without ignored options, for logs and pages.
    pub redacted: String,
    /// `appName`, at most 128 bytes.
    pub app_name: Option<String>,
    /// Who we are upstream; with SRV the monitor may learn another source from DNS.
    pub credential: Option<Credential>,
    /// Present when connections are encrypted, as they are with `mongodb+srv` unless `tls=false`.
    pub tls: Option<TlsOptions>,
    /// `replicaSet`.
    pub replica_set: Option<String>,
    /// `directConnection=true`: the one server named, whatever set it belongs to.
    pub direct_connection: bool,
    /// `mongodb+srv`: the hosts are in DNS.
    pub is_srv: bool,
    /// The hosts named, with the default port filled in; empty with SRV.
    pub seeds: Vec<Address>,
    /// `compressors`, in order of preference, and `zlibCompressionLevel`: for connections that carry commands.
    pub compression: Compression,
    /// Settings that win over file and profile.
    pub overrides: UriOverrides,
    /// What was ignored, one sentence per option, to be logged once.
    pub warnings: Vec<String>,
    /// For the monitor; holds no password but that of the key file.
    connection: ConnectionString,
}

/// A user as upstream knows it.
#[derive(Clone, PartialEq, Eq)]
pub struct Credential {
    /// Absent only with X.509, where the certificate says it.
    pub username: Option<String>,
    /// The database that holds the user.
    pub source: String,
    /// Absent only with X.509.
    pub password: Option<Zeroizing<String>>,
    /// `None`: the strongest SCRAM that the server offers for this user.
    pub mechanism: Option<Mechanism>,
}

/// How to prove who we are.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Mechanism {
    /// `SCRAM-SHA-1`.
    ScramSha1,
    /// `SCRAM-SHA-256`.
    ScramSha256,
    /// `MONGODB-X509`.
    X509,
    /// `PLAIN`, as used with LDAP.
    Plain,
}

/// Settings given in the connection string; the durations keep MongoDB's meaning of zero.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct UriOverrides {
    /// `maxPoolSize`, at least 1.
    pub max_pool_size: Option<u32>,
    /// `minPoolSize`.
    pub min_pool_size: Option<u32>,
    /// `maxConnecting`, at least 1.
    pub max_connecting: Option<u32>,
    /// `maxIdleTimeMS`; zero: never.
    pub max_idle_time: Option<Duration>,
    /// `waitQueueTimeoutMS`; zero: no limit.
    pub wait_queue_timeout: Option<Duration>,
    /// `serverSelectionTimeoutMS`.
    pub server_selection_timeout: Option<Duration>,
    /// `connectTimeoutMS`; zero: no limit.
    pub connect_timeout: Option<Duration>,
    /// `socketTimeoutMS`; zero: no limit.
    pub socket_timeout: Option<Duration>,
    /// `heartbeatFrequencyMS`, at least 500 ms.
    pub heartbeat_frequency: Option<Duration>,
    /// `localThresholdMS`.
    pub local_threshold: Option<Duration>,
}

/// What the connection string alone tells about the deployment.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum KindHint {
    /// A replica set or a sharded cluster, never a standalone.
    SetOrSharded,
    /// Only discovery can tell.
    NotTold,
}

/// The connection string with something in the place of the password, which is not in it but in a file.
///
/// # Errors
/// When it names no user, or has a password.
pub(super) fn without_password(text: &str) -> Result<String, UriError> {
    let parts = Parts::split(text)?;
    match parts.user_info {
        None | Some("") => {
            let problem =
                "the connection string names no user: expected mongodb://USER@..., with the password in this file";
            Err(refuse(problem))
        }
        Some(info) if info.contains(':') => {
            Err(refuse("the connection string has a password already: expected one of both"))
        }
        Some(info) => Ok(text.replacen(&format!("{info}@"), &format!("{info}:in-a-file@"), 1)),
    }
}

impl Upstream {
    /// Reads a connection string without touching the network.
    ///
    /// # Errors
    /// When it is malformed, contradicts itself, or asks for something that this proxy does not do.
    pub fn parse(text: &str) -> Result<Self, UriErrors> {
        match Self::read(text) {
            (Some(upstream), mistakes) if mistakes.0.is_empty() => Ok(upstream),
            (_, mistakes) => Err(mistakes),
        }
    }

    /// As [`Upstream::parse`], with what can be understood beside the mistakes: for looking at the rest of a configuration.
    pub(super) fn read(text: &str) -> (Option<Self>, UriErrors) {
        let mut mistakes = Mistakes::default();
        let parts = mistakes.keep(Parts::split(text));
        let upstream = parts.and_then(|parts| Self::of_parts(&parts, &mut mistakes));
        (upstream, UriErrors(mistakes.found))
    }

    fn of_parts(parts: &Parts<'_>, mistakes: &mut Mistakes) -> Option<Self> {
        let mut warnings = Vec::new();
        parts.check_ports(mistakes);
        // What looks like a port may be a password whose `@` is missing, and what follows a part of it.
        if mistakes.hosts && parts.user_info.is_none() {
            return None;
        }
        let Options { kept, shown, ours } = parts.options(&mut warnings, mistakes);
        let shown: Vec<&str> = kept.iter().chain(&shown).copied().collect();
        let redacted = format!("{}://{}{}", parts.scheme, parts.location, query(&shown));

        let mut connection = mistakes::connection(parts, &kept, mistakes)?;
        let overrides = overrides(&mut connection, mistakes);
        let tls = tls_options(&mut connection, ours.tls, mistakes);
        warnings.extend(tls.as_ref().and_then(TlsOptions::warning));
        let (is_srv, seeds) = match &connection.host_info {
            HostInfo::HostIdentifiers(hosts) => (false, hosts.iter().map(address).collect()),
            _ => (true, Vec::new()),
        };
        let upstream = Self {
            redacted,
            app_name: connection.app_name.clone(),
            credential: take_credential(&mut connection, mistakes),
            tls,
            replica_set: connection.replica_set.clone(),
            direct_connection: connection.direct_connection == Some(true),
            is_srv,
            seeds,
            compression: ours.compression,
            overrides,
            warnings,
            connection,
        };
        upstream.check(mistakes);
        Some(upstream)
    }

    /// Contradictions that the driver would report only when it connects; none with what could not be read.
    fn check(&self, mistakes: &mut Mistakes) {
        if self.app_name.as_ref().is_some_and(|name| name.len() > MAX_APP_NAME_BYTES) {
            mistakes.add(refuse(format!("appName is longer than {MAX_APP_NAME_BYTES} bytes")));
        }
        if self.direct_connection && self.seeds.len() > 1 {
            mistakes.add(refuse("directConnection=true goes with one host, not with several"));
        }
        let x509 = self.credential.as_ref().is_some_and(|it| it.mechanism == Some(Mechanism::X509));
        if x509 && !mistakes.tls && self.tls.as_ref().is_none_or(|tls| tls.cert_key_file.is_none()) {
            mistakes.add(refuse("authMechanism=MONGODB-X509 needs tlsCertificateKeyFile"));
        }
        let plain = self.credential.as_ref().is_some_and(|it| it.mechanism == Some(Mechanism::Plain));
        let on_this_machine = !self.is_srv && self.seeds.iter().all(|seed| matches!(seed, Address::Unix(_)));
        let in_the_clear = self.tls.is_none() && !on_this_machine;
        if plain && in_the_clear && !mistakes.tls && !mistakes.hosts {
            let problem =
                "authMechanism=PLAIN sends the password in the clear: expected tls=true, or unix sockets only";
            mistakes.add(refuse(problem));
        }
    }

    /// Hosts named; 1 with SRV, where DNS knows the rest.
    pub fn host_count(&self) -> usize {
        self.seeds.len().max(1)
    }

    /// What is certain about the deployment before any server has answered.
    pub fn kind_hint(&self) -> KindHint {
        if self.replica_set.is_some() || self.seeds.len() > 1 || self.is_srv {
            KindHint::SetOrSharded
        } else {
            KindHint::NotTold
        }
    }

    /// Resolves SRV and TXT records, if there are any.
    async fn resolved(&self) -> Result<(ClientOptions, Option<Credential>), UriError> {
        let parsed = ClientOptions::parse(self.connection.clone()).await;
        let mut options = parsed.map_err(|error| match &self.connection.host_info {
            HostInfo::DnsRecord(name) => refuse(format!("SRV and TXT of `{name}`: {}", driver_words(&error))),
            _ => UriError::from_driver(&error),
        })?;
        if options.load_balanced == Some(true) {
            return Err(refuse(LOAD_BALANCED));
        }
        let told_source = options.credential.take().and_then(|credential| credential.source);
        let credential = self.credential.clone().map(|mut credential| {
            credential.source = told_source.unwrap_or(credential.source);
            credential
        });
        Ok((options, credential))
    }

    /// The same with the hosts that DNS names for it, the set and the credential's database: as if there were no SRV.
    ///
    /// # Errors
    /// When DNS fails, or says what we do not support.
    pub(crate) async fn without_srv(&self) -> Result<Self, UriError> {
        let (options, credential) = self.resolved().await?;
        let seeds = options.hosts.iter().map(address).collect();
        let replica_set = options.repl_set_name;
        Ok(Self { seeds, replica_set, credential, is_srv: false, ..self.clone() })
    }

    /// Resolves SRV and TXT records and builds the options of a driver client that only monitors: it never authenticates
    /// and keeps no pool. Also returns the credential with the source that DNS may have told.
    ///
    /// # Errors
    /// When DNS fails, or says what we do not support.
    pub(crate) async fn monitor_options(
        &self,
        heartbeat_frequency: Duration,
        connect_timeout: Duration,
        platform: String,
        events: EventHandler<SdamEvent>,
    ) -> Result<(ClientOptions, Option<Credential>), UriError> {
        // A wrong password is invisible to monitors, which never log in: credentials could only do harm here.
        let (mut options, credential) = self.resolved().await?;
        // It stands behind what the driver says of itself.
        let ours = DriverInfo::builder().name("mongomux").version(env!("CARGO_PKG_VERSION").to_owned());
        options.driver_info = Some(ours.platform(platform).build());
        options.app_name = Some(monitor_name(self.app_name.as_deref()));
        options.min_pool_size = None;
        options.max_pool_size = None;
        options.heartbeat_freq = Some(heartbeat_frequency.max(MIN_HEARTBEAT_FREQUENCY));
        options.connect_timeout = Some(connect_timeout);
        options.sdam_event_handler = Some(events);
        Ok((options, credential))
    }
}

impl fmt::Debug for Upstream {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("Upstream").field(&self.redacted).finish()
    }
}

impl fmt::Debug for Credential {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Credential")
            .field("username", &self.username)
            .field("source", &self.source)
            .field("mechanism", &self.mechanism)
            .finish_non_exhaustive()
    }
}

impl Mechanism {
    fn from_name(name: &str) -> Option<Self> {
        Some(match name {
            "SCRAM-SHA-1" => Self::ScramSha1,
            "SCRAM-SHA-256" => Self::ScramSha256,
            "MONGODB-X509" => Self::X509,
            "PLAIN" => Self::Plain,
            _ => return None,
        })
    }

    /// The name on the wire.
    pub fn name(self) -> &'static str {
        match self {
            Self::ScramSha1 => "SCRAM-SHA-1",
            Self::ScramSha256 => "SCRAM-SHA-256",
            Self::X509 => "MONGODB-X509",
            Self::Plain => "PLAIN",
        }
    }

    /// Where users of this mechanism live when the connection string does not say it.
    fn default_source(mechanism: Option<Self>, database: Option<&str>) -> String {
        match mechanism {
            None | Some(Self::ScramSha1 | Self::ScramSha256) => database.unwrap_or("admin"),
            Some(Self::Plain) => database.unwrap_or("$external"),
            Some(Self::X509) => "$external",
        }
        .to_owned()
    }
}

impl UriError {
    pub(crate) fn from_driver(error: &mongodb::error::Error) -> Self {
        Self(driver_words(error))
    }
}

/// What the driver says about an error, without its error class and labels.
pub(crate) fn driver_words(error: &mongodb::error::Error) -> String {
    use mongodb::error::ErrorKind;
    match error.kind.as_ref() {
        ErrorKind::InvalidArgument { message, .. } | ErrorKind::DnsResolve { message, .. } => message.clone(),
        ErrorKind::Io(error) => error.to_string(),
        kind => kind.to_string(),
    }
}

/// Our name for a server that the driver speaks of.
pub(crate) fn address(server: &ServerAddress) -> Address {
    match server {
        ServerAddress::Tcp { host, port } => Address::tcp(host.clone(), port.unwrap_or(DEFAULT_PORT)),
        ServerAddress::Unix { path } => Address::Unix(path.clone()),
        // The enum is open; whatever comes prints as something to show and to dial in vain.
        other => Address::tcp(other.to_string(), DEFAULT_PORT),
    }
}

fn read_by_driver(text: &str) -> Result<ConnectionString, UriError> {
    // The driver cuts behind two bytes, and panics where that is in the middle of a character.
    if text.split('%').skip(1).any(|escape| !escape.is_char_boundary(escape.len().min(2))) {
        return Err(refuse("two hexadecimal digits have to follow a `%`: write the sign itself as %25"));
    }
    ConnectionString::parse(text).map_err(|error| UriError::from_driver(&error))
}

/// Reads the settings, and takes out what the driver refuses to connect with.
fn overrides(connection: &mut ConnectionString, mistakes: &mut Mistakes) -> UriOverrides {
    if connection.max_pool_size == Some(0) {
        mistakes.add(refuse("maxPoolSize=0 means no limit, and a limit is what this proxy is for: give at least 1"));
    }
    if connection.max_connecting == Some(0) {
        mistakes.add(refuse("maxConnecting must be at least 1"));
    }
    if connection.heartbeat_frequency.is_some_and(|it| it < MIN_HEARTBEAT_FREQUENCY) {
        mistakes.add(refuse(format!("heartbeatFrequencyMS must be at least {}", MIN_HEARTBEAT_FREQUENCY.as_millis())));
    }
    #[expect(deprecated, reason = "the driver does not support socketTimeoutMS, we do")]
    let socket_timeout = connection.socket_timeout.take();
    // What was refused here is not to be refused once more as a limit.
    UriOverrides {
        max_pool_size: connection.max_pool_size.filter(|most| *most > 0),
        min_pool_size: connection.min_pool_size,
        max_connecting: connection.max_connecting.filter(|most| *most > 0),
        max_idle_time: connection.max_idle_time,
        wait_queue_timeout: connection.wait_queue_timeout(),
        server_selection_timeout: connection.server_selection_timeout,
        connect_timeout: connection.connect_timeout,
        socket_timeout,
        heartbeat_frequency: connection.heartbeat_frequency.filter(|time| *time >= MIN_HEARTBEAT_FREQUENCY),
        local_threshold: connection.local_threshold,
    }
}

/// What the driver has read of TLS and what it has not, together; it is told what the monitor needs of the rest.
fn tls_options(connection: &mut ConnectionString, extra: tls::Extra, mistakes: &mut Mistakes) -> Option<TlsOptions> {
    if connection.tls.is_none() && extra.implies_tls() {
        connection.tls = Some(Tls::Enabled(TheirTls::default()));
    }
    let Some(Tls::Enabled(theirs)) = &mut connection.tls else {
        extra.without_tls(mistakes);
        return None;
    };
    let any = theirs.allow_invalid_certificates == Some(true);
    let options = extra.with(theirs.ca_file_path.clone(), theirs.cert_key_file_path.clone(), any, mistakes);
    theirs.allow_invalid_certificates = Some(options.monitor_trusts_anybody());
    theirs.tls_certificate_key_file_password =
        options.key_password.as_ref().map(|password| password.expose().as_bytes().to_vec());
    Some(options)
}

/// Moves the password out of the driver's hands. The user name stays there: with it the driver tells which source DNS names.
fn take_credential(connection: &mut ConnectionString, mistakes: &mut Mistakes) -> Option<Credential> {
    let database = connection.default_database.as_deref();
    let theirs = connection.credential.as_mut()?;
    let mechanism = theirs.mechanism.as_ref().map(AuthMechanism::as_str).and_then(Mechanism::from_name);
    let password = theirs.password.take().map(Zeroizing::new);
    if password.is_none() && mechanism != Some(Mechanism::X509) && !mistakes.user {
        mistakes.add(refuse("a user name without a password"));
    }
    let source = theirs.source.clone().unwrap_or_else(|| Mechanism::default_source(mechanism, database));
    Some(Credential { username: theirs.username.clone(), source, password, mechanism })
}

/// How the monitoring connections call themselves: cut to what servers accept.
fn monitor_name(app_name: Option<&str>) -> String {
    let name = app_name.unwrap_or("mongomux");
    let room = name.floor_char_boundary(MAX_APP_NAME_BYTES - MONITOR_SUFFIX.len());
    format!("{}{MONITOR_SUFFIX}", &name[..room])
}

fn refuse(why: impl Into<String>) -> UriError {
    UriError(why.into())
}

#[cfg(test)]
mod tests {
    use super::super::CompressorName;
    use super::*;

    fn parse(text: &str) -> Upstream {
        Upstream::parse(text).unwrap()
    }

    fn refusal(text: &str) -> String {
        Upstream::parse(text).unwrap_err().to_string()
    }

    #[test]
    fn a_bare_host_is_a_standalone_or_anything() {
        let upstream = parse("mongodb://127.0.0.1");
        assert_eq!(upstream.seeds, [Address::tcp("127.0.0.1", 27017)]);
        assert_eq!(upstream.kind_hint(), KindHint::NotTold);
        assert_eq!(upstream.host_count(), 1);
        assert_eq!((upstream.tls, upstream.credential, upstream.is_srv), (None, None, false));
        assert_eq!(upstream.overrides, UriOverrides::default());
    }

    #[test]
    fn a_percent_sign_that_is_not_written_as_one_is_refused_whatever_follows() {
        for text in ["mongodb://u%2Şer:Sesame@h", "mongodb://u:Ses%€ame@h", "mongodb://h/?appName=%2Ş"] {
            let refusal = refusal(text);
            assert!(refusal.contains("%25") && !refusal.contains("Ses"), "{refusal}");
        }
        assert!(refusal("mongodb://u%2:Sesame@h").contains('%'), "the driver has words of its own");
    }

    #[test]
    fn sets_and_srv_are_known_without_discovery() {
        for text in ["mongodb://a,b:1", "mongodb://a/?replicaSet=rs0", "mongodb+srv://cluster.example.net"] {
            assert_eq!(parse(text).kind_hint(), KindHint::SetOrSharded, "{text}");
        }
        let srv = parse("mongodb+srv://cluster.example.net");
        assert!(srv.is_srv && srv.tls == Some(TlsOptions::default()));
        assert!(parse("mongodb+srv://cluster.example.net/?tls=false").tls.is_none());
    }

    #[test]
    fn unix_sockets_are_hosts() {
        let upstream = parse("mongodb://%2Frun%2Fmongodb-27017.sock/db?appName=x");
        assert_eq!(upstream.seeds, [Address::Unix("/run/mongodb-27017.sock".into())]);
    }

    #[test]
    fn settings_are_read() {
        let upstream = parse(
            "mongodb://h/?maxPoolSize=7&minPoolSize=0&maxConnecting=3&maxIdleTimeMS=4&waitQueueTimeoutMS=5\
             &serverSelectionTimeoutMS=6&connectTimeoutMS=8&socketTimeoutMS=9&heartbeatFrequencyMS=500&localThresholdMS=11",
        );
        let ms = |n| Some(Duration::from_millis(n));
        assert_eq!(
            upstream.overrides,
            UriOverrides {
                max_pool_size: Some(7),
                min_pool_size: Some(0),
                max_connecting: Some(3),
                max_idle_time: ms(4),
                wait_queue_timeout: ms(5),
                server_selection_timeout: ms(6),
                connect_timeout: ms(8),
                socket_timeout: ms(9),
                heartbeat_frequency: ms(500),
                local_threshold: ms(11),
            }
        );
        assert!(upstream.warnings.is_empty(), "{:?}", upstream.warnings);
    }

    #[test]
    fn credentials_are_read_and_shown_nowhere() {
        let upstream = parse("mongodb://us%40er:s3cr%2Ft@h:1/db?appName=a&compressors=zstd");
        let credential = upstream.credential.clone().unwrap();
        assert_eq!(credential.username.as_deref(), Some("us@er"));
        assert_eq!(credential.password.as_deref().map(String::as_str), Some("s3cr/t"));
        assert_eq!((credential.source.as_str(), credential.mechanism), ("db", None));
        assert_eq!(upstream.redacted, "mongodb://h:1/db?appName=a&compressors=zstd");
        assert!(upstream.connection.credential.as_ref().is_some_and(|theirs| theirs.password.is_none()));
        assert!(!format!("{upstream:?}{credential:?}").contains("s3cr"));
    }

    #[test]
    fn the_source_of_a_user_follows_mechanism_and_database() {
        let source = |text| parse(text).credential.unwrap().source;
        assert_eq!(source("mongodb://u:p@h"), "admin");
        assert_eq!(source("mongodb://u:p@h/db?authSource=other"), "other");
        assert_eq!(source("mongodb://u:p@h/?authMechanism=PLAIN&tls=true"), "$external");
        let x509 = parse("mongodb://h/?authMechanism=MONGODB-X509&tls=true&tlsCertificateKeyFile=/k.pem");
        let credential = x509.credential.unwrap();
        assert_eq!((credential.source.as_str(), credential.mechanism), ("$external", Some(Mechanism::X509)));
        assert_eq!(x509.tls.unwrap().cert_key_file, Some("/k.pem".into()));
    }

    #[test]
    fn options_about_operations_are_ignored_with_a_warning_each() {
        let options = [
            "readPreference=secondary",
            "readPreferenceTags=dc:a",
            "readPreferenceTags=",
            "w=majority",
            "wTimeoutMS=1",
            "journal=true",
            "retryWrites=true",
            "retryReads=false",
            "readConcernLevel=local",
            "timeoutMS=5000",
            "waitQueueMultiple=2",
            "uuidRepresentation=standard",
        ];
        let upstream = parse(&format!("mongodb://h/?{}&appName=x", options.join("&")));
        assert_eq!(upstream.warnings.len(), options.len());
        assert!(upstream.warnings[0].starts_with("readPreference is ignored: "), "{}", upstream.warnings[0]);
        assert_eq!(upstream.redacted, "mongodb://h/?appName=x");
    }

    #[test]
    fn compressors_are_ours_and_not_the_monitors() {
        let upstream = parse("mongodb://h/?compressors=zstd%2Czlib,zstd&zlibCompressionLevel=0&appName=x");
        let compressors = vec![CompressorName::Zstd, CompressorName::Zlib];
        assert_eq!(upstream.compression, Compression { compressors, zlib_level: Some(0) });
        assert!(upstream.warnings.is_empty(), "{:?}", upstream.warnings);
        assert!(upstream.redacted.contains("compressors=zstd"), "{}", upstream.redacted);
        assert_eq!(parse("mongodb://h/?compressors=zlib&zlibCompressionLevel=-1").compression.zlib_level, None);
        let without = parse("mongodb://h/?compressors=snappy&zlibCompressionLevel=3");
        assert!(without.warnings[0].contains("does not name zlib"), "{:?}", without.warnings);
    }

    #[test]
    fn what_we_do_not_do_is_refused_by_name() {
        for (options, word) in [
            ("compressors=zstd,noop", "compressors: found \"noop\""),
            ("compressors=lz4", "compressors: found \"lz4\", expected"),
            ("compressors=", "compressors: found \"\""),
            ("zlibCompressionLevel=10", "zlibCompressionLevel: expected -1"),
            ("maxPoolSize=0", "maxPoolSize=0 means no limit"),
            ("maxConnecting=0", "maxConnecting must be"),
            ("heartbeatFrequencyMS=499", "at least 500"),
            ("loadBalanced=true", "load balancer"),
            ("tlsAllowInvalidHostnames=yes", "tlsAllowInvalidHostnames: expected true or false"),
            ("tlsCertificateKeyFilePassword=hush", "tlsCertificateKeyFilePassword goes with tlsCertificateKeyFile"),
            ("tlsInsecure=true&tlsAllowInvalidHostnames=true", "tlsInsecure goes without tlsAllowInvalidHostnames"),
            ("tls=false&tlsAllowInvalidHostnames=true", "tlsAllowInvalidHostnames goes with TLS"),
            ("proxyHost=p", "SOCKS5"),
            ("authMechanism=GSSAPI", "supported are SCRAM-SHA-256"),
            ("authMechanism=MONGODB-X509&tls=true", "tlsCertificateKeyFile"),
            ("maxPoolSise=3", "invalid option"),
            ("maxPoolSize=3&maxpoolsize=4", "more than once"),
            ("maxPoolSize=three", "maxpoolsize"),
            ("appName=x&oops", "option 2 is not of the form"),
        ] {
            let text = refusal(&format!("mongodb://h/?{options}"));
            assert!(text.contains(word), "{options}: {text}");
        }
        assert!(refusal("mongodb://a,b/?directConnection=true").contains("directConnection"));
        assert!(refusal("postgres://h").contains("mongodb://"));
        assert!(refusal(&format!("mongodb://h/?appName={}", "x".repeat(129))).contains("128"));
        for text in ["h", "h/?tls=false", "h,%2Ftmp%2Fmongodb-1.sock"] {
            let options = if text.contains('?') { "&" } else { "/?" };
            let told = refusal(&format!("mongodb://u:hush@{text}{options}authMechanism=PLAIN"));
            assert!(told.contains("in the clear") && !told.contains("hush"), "{told}");
        }
        assert!(refusal("mongodb+srv://u:p@h.example.net/?tls=false&authMechanism=PLAIN").contains("in the clear"));
        parse("mongodb://u:p@%2Ftmp%2Fmongodb-1.sock/?authMechanism=PLAIN");
        parse("mongodb+srv://u:p@h.example.net/?authMechanism=PLAIN");
        assert!(refusal("mongodb://user@h").contains("without a password"));
    }

    #[test]
    fn everything_that_is_wrong_is_told_at_once() {
        for (text, told) in [
            (
                "h/?maxPoolSize=0&minPoolSize=x&tls=maybe&foo=1&maxConnecting=0&heartbeatFrequencyMS=1",
                &["maxPoolSize=0", "minpoolsize", "tls", "foo", "maxConnecting", "heartbeatFrequencyMS"][..],
            ),
            (
                "h/?compressors=lz4&zlibCompressionLevel=10&oops&loadBalanced=true&appName=a&appname=b&proxyHost=p",
                &["\"lz4\"", "-1 (the default)", "option 3", "load balancer", "more than once", "SOCKS5"],
            ),
            ("u:p@a:x,b:y/?foo=1&directConnection=perhaps", &["host `a`", "host `b`", "foo", "directconnection"]),
            ("u:p%zz@h:1/?minPoolSize=x&authMechanism=GSSAPI", &["password", "minpoolsize", "supported are"]),
            ("u:p@h/?authMechanism=PLAIN&maxConnecting=x", &["in the clear", "maxconnecting"]),
            (
                "a,b/?directConnection=true&authMechanism=MONGODB-X509",
                &["directConnection=true", "tlsCertificateKeyFile"],
            ),
            ("u@h/?tlsInsecure=true&tlsAllowInvalidHostnames=true", &["tlsInsecure goes", "without a password"]),
            // What hangs on something that cannot be read is not judged.
            ("u:p@h/?authMechanism=PLAIN&tls=maybe", &["`tls`"]),
            ("u:p@h:x/?authMechanism=PLAIN", &["host `h`"]),
        ] {
            let errors = Upstream::parse(&format!("mongodb://{text}")).unwrap_err().0;
            let of = |word: &str| errors.iter().filter(|error| error.to_string().contains(word)).count();
            assert!(told.iter().all(|word| of(word) > 0) && errors.len() == told.len(), "{text}: {errors:#?}");
        }
    }

    #[test]
    fn what_is_not_wrong_is_understood_beside_what_is() {
        let (upstream, errors) =
            Upstream::read("mongodb://u:p@h/?foo=1&tlsCAFile=/ca.pem&minPoolSize=7&tls=true&bar=2&replicaSet=rs0");
        let upstream = upstream.unwrap();
        assert_eq!(errors.0.len(), 2, "{errors}");
        assert_eq!((upstream.overrides.min_pool_size, upstream.replica_set.as_deref()), (Some(7), Some("rs0")));
        assert_eq!(upstream.tls.unwrap().ca_file, Some("/ca.pem".into()));
        assert_eq!(upstream.seeds, [Address::tcp("h", 27017)]);
    }

    #[test]
    fn no_error_repeats_what_may_be_a_password() {
        for text in [
            "mongodb://user:hush",
            "mongodb://user:hu?sh@h",
            "mongodb://user:hush?x=1@h",
            "mongodb://user:pw?hush=1",
            "mongodb://user:hu/sh@h",
            "mongodb://user:hu@sh@h:x",
            "hush://h",
            "mongodb://user:hu%sh@h",
            "mongodb://user:hush@h/?hush",
            "mongodb://user:hush@[h/",
        ] {
            let error = refusal(text);
            assert!(!error.contains("hush") && !error.contains("sh@") && !error.contains("hu"), "{text}: {error}");
        }
    }

    #[test]
    fn the_monitor_is_named_after_the_application_within_the_limit() {
        assert_eq!(monitor_name(None), "mongomux monitor");
        assert_eq!(monitor_name(Some("shop")), "shop monitor");
        let long = monitor_name(Some(&"ä".repeat(64)));
        assert!(long.len() <= MAX_APP_NAME_BYTES && long.ends_with("ä monitor"), "{long}");
    }

    #[tokio::test]
    async fn the_monitoring_client_has_no_credential_and_no_pool() {
        let upstream =
            parse("mongodb://u:p@h/db?minPoolSize=5&maxPoolSize=9&socketTimeoutMS=1&appName=shop&replicaSet=rs0");
        let (heartbeat, connect) = (Duration::from_secs(7), Duration::from_secs(3));
        let (options, credential) =
            upstream.monitor_options(heartbeat, connect, "p".to_owned(), EventHandler::callback(|_| ())).await.unwrap();
        assert!(options.credential.is_none() && options.min_pool_size.is_none() && options.max_pool_size.is_none());
        assert_eq!(options.app_name.as_deref(), Some("shop monitor"));
        assert_eq!((options.heartbeat_freq, options.connect_timeout), (Some(heartbeat), Some(connect)));
        assert_eq!(options.repl_set_name.as_deref(), Some("rs0"));
        assert_eq!(credential, upstream.credential);
    }
}
