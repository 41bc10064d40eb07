//! The credential of the service where it comes from a file: read at start, and again whenever the file changes. New connections
//! log in with what is new; the others are replaced one by one, each by one that has logged in, so that a wrong password closes
//! nothing that works.

use std::future::ready;
use std::path::PathBuf;
use std::sync::Arc;

use super::cluster::Cluster;
use super::handshake::UpstreamDialer;
use crate::config::CredentialFile;
use crate::config::system::read_file;
use crate::config::uri::{Credential, Upstream};
use crate::reload::Reload;
use crate::tasks::Tasks;
use crate::telemetry::EventKind;

/// Why a file gives no credential. Never shows what it holds.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{}: {problem}", file.display())]
pub struct CredentialError {
    /// Which one.
    pub file: PathBuf,
    /// What is wrong with it.
    pub problem: String,
}

/// The credential that stands in `file` now; what a file with a password says nothing about is as in `configured`.
///
/// # Errors
/// [`CredentialError`].
pub fn read(file: &CredentialFile, configured: &Credential) -> Result<Credential, CredentialError> {
    let (path, wrong) = match file {
        CredentialFile::Password(path) | CredentialFile::ConnectionString(path) => {
            (path, |problem: String| CredentialError { file: path.clone(), problem })
        }
    };
    let read = read_file(path).map_err(|error| wrong(error.problem))?;
    let text = read.text.as_str();
    match file {
        CredentialFile::Password(_) => {
            // One newline at the end is the editor's.
            let password = text.strip_suffix('\n').unwrap_or(text);
            let password = password.strip_suffix('\r').unwrap_or(password);
            if password.is_empty() {
                return Err(wrong("is empty, expected a password".to_owned()));
            }
            Ok(Credential { password: Some(password.to_owned().into()), ..configured.clone() })
        }
        CredentialFile::ConnectionString(_) => {
            let parsed = Upstream::parse(text.trim()).map_err(|error| wrong(error.to_string()))?;
            parsed.credential.ok_or_else(|| wrong("the connection string holds no user any more".to_owned()))
        }
    }
}

/// Follows the file from now on.
pub fn follow(
    file: CredentialFile,
    configured: Credential,
    dialer: Arc<UpstreamDialer>,
    cluster: Arc<Cluster>,
    reload: &Reload,
    tasks: &Tasks,
) {
    let mut last = configured;
    let path = file.path().clone();
    let watched = vec![path.clone()];
    let events = cluster.metrics.events.clone();
    let name = cluster.name.clone();
    let told = move |text: &str| events.record(EventKind::User, Some(&name), None, text);
    let mut read_again = move || match read(&file, &last) {
        Ok(credential) if credential == last => true,
        Ok(credential) => {
            tracing::info!(cluster = %cluster.name, file = %path.display(), "new upstream credential");
            told("there is a new credential, and connections are replaced by such that log in with it");
            last = credential.clone();
            dialer.log_in_as(credential);
            cluster.servers().iter().for_each(|server| server.pool.renew());
            true
        }
        Err(error) => {
            tracing::error!(cluster = %cluster.name, %error, "the upstream credential stays as it was");
            told(&format!("the credential stays as it was: {error}"));
            false
        }
    };
    reload.watch(watched, tasks, move || ready(read_again()));
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::uri::Mechanism;

    fn credential(user: &str, password: &str) -> Credential {
        let (username, password) = (Some(user.to_owned()), Some(password.to_owned().into()));
        Credential { username, source: "admin".to_owned(), password, mechanism: None }
    }

    #[test]
    fn a_file_gives_a_password_or_all_of_it() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("secret");
        let configured = credential("service", "old");
        let told = |text: &str, file: fn(PathBuf) -> CredentialFile| {
            std::fs::write(&path, text).unwrap();
            read(&file(path.clone()), &configured).map_err(|error| error.problem)
        };
        assert_eq!(told(" n€w \r\n", CredentialFile::Password).unwrap(), credential("service", " n€w "));
        assert_eq!(told("\n", CredentialFile::Password).unwrap_err(), "is empty, expected a password");
        let all = "mongodb://next:s%40cret@db/?authMechanism=SCRAM-SHA-1\n";
        let expected = Credential { mechanism: Some(Mechanism::ScramSha1), ..credential("next", "s@cret") };
        assert_eq!(told(all, CredentialFile::ConnectionString).unwrap(), expected);
        let none = told("mongodb://db", CredentialFile::ConnectionString).unwrap_err();
        assert_eq!(none, "the connection string holds no user any more");
        let wrong = told("mongodb://next:hunter2@db/?maxPoolSize=x", CredentialFile::ConnectionString).unwrap_err();
        assert!(!wrong.contains("hunter2"), "{wrong}");
        std::fs::remove_file(&path).unwrap();
        assert!(read(&CredentialFile::Password(path), &configured).is_err());
    }
}
