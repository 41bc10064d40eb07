//! All files that a configuration names, read before anything starts: so that everything that is wrong with them is told at once,
//! by `check` as by `run`.

use std::fmt::Display;
use std::path::Path;
use std::sync::Arc;

use super::doors::UsersOfFiles;
use super::upgrade_socket;
use crate::admin::AdminTokens;
use crate::admin::rules::warn_of_unknown_commands;
use crate::auth::Identities;
use crate::client::ClientTls;
use crate::client::tls::ClientTlsError;
use crate::config::system::read_secret;
use crate::config::uri::Credential;
use crate::config::{AdminAccess, Attempt, ClusterConfig, Config, ConfigError, ConfigErrors, ListenerTls};
use crate::tls::FileErrors;
use crate::upstream::rotation;
use crate::upstream::tls::{TlsError, UpstreamTls};

/// What is in them.
pub(super) struct Files {
    pub(super) users: UsersOfFiles,
    /// Of each listener, in their order.
    pub(super) listeners: Vec<Option<Arc<ClientTls>>>,
    /// Of each cluster, in their order.
    pub(super) clusters: Vec<FilesOfCluster>,
    pub(super) admin_tls: Option<Arc<ClientTls>>,
    pub(super) admin_tokens: Option<Arc<AdminTokens>>,
    #[cfg(feature = "otel")]
    pub(super) export: Option<crate::telemetry::otlp::Export>,
}

/// What the files of one cluster hold.
pub(super) struct FilesOfCluster {
    pub(super) tls: Option<Arc<UpstreamTls>>,
    /// The one to log in with, where it stands in a file.
    pub(super) credential: Option<Credential>,
}

/// Reads all files that a configuration names, to see whether they can be used.
///
/// # Errors
/// Everything that is wrong with them.
pub async fn check(config: &Config) -> Result<(), ConfigErrors> {
    config.listeners.iter().for_each(|listener| warn_of_unknown_commands(&listener.listen, &listener.rules));
    let mistakes = in_files(config).await;
    if mistakes.is_empty() { Ok(()) } else { Err(ConfigErrors(mistakes)) }
}

/// What is wrong with a configuration, and with the files that it names as far as it can be understood: nobody is to mend the
/// one to be told of the other then.
pub async fn all_mistakes(attempt: Attempt) -> ConfigErrors {
    let mut mistakes = attempt.mistakes;
    if let Some(config) = &attempt.config {
        mistakes.extend(in_files(config).await);
    }
    ConfigErrors(mistakes)
}

async fn in_files(config: &Config) -> Vec<ConfigError> {
    let mut mistakes =
        Mistakes(Files::read(config, &Arc::default()).await.err().map_or_else(Vec::new, |errors| errors.0));
    if let Some(path) = &config.upgrade_socket {
        mistakes.upgrade_socket(path);
    }
    mistakes.0
}

impl Files {
    /// Reads all of them.
    ///
    /// # Errors
    /// Everything that is wrong with them.
    pub(super) async fn read(config: &Config, identities: &Arc<Identities>) -> Result<Self, ConfigErrors> {
        let mut mistakes = Mistakes::default();
        let users = UsersOfFiles::read(config, identities).await;
        let users = users.map_err(|errors| mistakes.0.extend(errors.0)).ok();
        let mut listeners: Vec<Option<Arc<ClientTls>>> = Vec::new();
        for (index, listener) in config.listeners.iter().enumerate() {
            // Addresses that are listed together have the same files, and what is wrong with them is said once.
            let before = config.listeners[..index].iter().position(|other| other.tls == listener.tls);
            listeners.push(match before {
                Some(before) => listeners[before].clone(),
                None => mistakes.client_tls(&format!("listener {}", listener.listen), listener.tls.as_ref()),
            });
        }
        let clusters = config.clusters.iter().map(|cluster| mistakes.of_cluster(cluster)).collect();
        let admin_tls = mistakes.client_tls("admin port", config.admin_tls.as_ref());
        let admin_tokens = match &config.admin_access {
            AdminAccess::Proven { tokens: Some(file), .. } => mistakes.tokens(file),
            AdminAccess::Proven { .. } | AdminAccess::Loopback | AdminAccess::ProbesOnly => None,
        };
        #[cfg(feature = "otel")]
        let export = mistakes.export(config.otlp_endpoint.as_deref());
        match users {
            Some(users) if mistakes.0.is_empty() => Ok(Self {
                users,
                listeners,
                clusters,
                admin_tls,
                admin_tokens,
                #[cfg(feature = "otel")]
                export,
            }),
            _ => Err(ConfigErrors(mistakes.0)),
        }
    }
}

/// All that were found so far.
#[derive(Default)]
struct Mistakes(Vec<ConfigError>);

impl Mistakes {
    fn add(&mut self, whose: &str, file: impl Display, problem: impl Display) {
        self.0.push(ConfigError { place: whose.to_owned(), key: file.to_string(), problem: problem.to_string() });
    }

    fn add_files(&mut self, whose: &str, errors: &FileErrors) {
        errors.0.iter().for_each(|error| self.add(whose, error.file.display(), &error.reason));
    }

    fn client_tls(&mut self, whose: &str, settings: Option<&ListenerTls>) -> Option<Arc<ClientTls>> {
        match ClientTls::new(settings?) {
            Ok(tls) => return Some(Arc::new(tls)),
            Err(ClientTlsError::Files(errors)) => self.add_files(whose, &errors),
            Err(error @ ClientTlsError::Settings(_)) => self.add(whose, "", error),
        }
        None
    }

    fn of_cluster(&mut self, cluster: &ClusterConfig) -> FilesOfCluster {
        let whose = format!("cluster `{}`", cluster.name);
        let tls = cluster.upstream.tls.as_ref().and_then(|options| match UpstreamTls::new(options) {
            Ok(tls) => Some(Arc::new(tls)),
            Err(TlsError::Files(errors)) => {
                self.add_files(&whose, &errors);
                None
            }
            Err(error) => {
                self.add(&whose, "", error);
                None
            }
        });
        let file = cluster.credential_file.as_ref().zip(cluster.upstream.credential.as_ref());
        let credential = file.and_then(|(file, configured)| {
            let read = rotation::read(file, configured);
            read.map_err(|error| self.add(&whose, error.file.display(), &error.problem)).ok()
        });
        FilesOfCluster { tls, credential }
    }

    /// Who starts finds out itself: the process that is there may hand over its own socket.
    fn upgrade_socket(&mut self, path: &Path) {
        if let Err(problem) = upgrade_socket::check(path) {
            self.add("upgrade_socket", path.display(), problem);
        }
    }

    #[cfg(feature = "otel")]
    fn export(&mut self, endpoint: Option<&str>) -> Option<crate::telemetry::otlp::Export> {
        let export = crate::telemetry::otlp::Export::prepare(endpoint, &|name| std::env::var(name).ok());
        export.map_err(|error| self.add("telemetry", &error.name, &error.problem)).ok().flatten()
    }

    fn tokens(&mut self, file: &Path) -> Option<Arc<AdminTokens>> {
        let text =
            read_secret(file).map_err(|error| self.add("admin_token_file", &error.place, &error.problem)).ok()?;
        let tokens = AdminTokens::parse(&text);
        tokens.map_err(|error| self.add("admin_token_file", file.display(), error)).map(Arc::new).ok()
    }
}
