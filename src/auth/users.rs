//! What is known about the users that may log in, and where it comes from.

use std::future::Future;
use std::pin::Pin;
use std::sync::Arc;

use super::Secret;
use super::identity::{Identity, UserName};
use super::scram::{KeyId, Mechanism};

/// What a server stores about one user for one SCRAM mechanism: enough to verify it, not to log in as it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Verifier {
    /// Mechanism, salt and iterations.
    pub id: KeyId,
    /// The hash of the client's key.
    pub stored_key: Secret,
    /// What the server proves itself with.
    pub server_key: Secret,
}

/// What is known about one user.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct UserRecord {
    /// For SCRAM-SHA-1.
    pub sha1: Option<Verifier>,
    /// For SCRAM-SHA-256.
    pub sha256: Option<Verifier>,
    /// May log in with a certificate that names it.
    pub by_certificate: bool,
    /// For `connectionStatus`: role and database.
    pub roles: Vec<(String, String)>,
}

impl UserRecord {
    /// What verifies it by that mechanism.
    pub fn verifier(&self, mechanism: Mechanism) -> Option<&Verifier> {
        match mechanism {
            Mechanism::Sha1 => self.sha1.as_ref(),
            Mechanism::Sha256 => self.sha256.as_ref(),
        }
    }
}

/// How a user has proven who it is.
#[derive(Debug)]
pub enum Proof {
    /// By SCRAM; its key was recovered from the proof.
    Scram {
        /// Mechanism, salt and iterations that the key is of.
        id: KeyId,
        /// What the password became.
        client_key: Secret,
    },
    /// By its password in the clear, which was found right.
    Password,
    /// By a certificate that was verified.
    Certificate,
}

/// Why a user could not be looked up or admitted, which says nothing about the user.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{0}")]
pub struct UsersUnavailable(pub String);

/// A future that is boxed.
pub type Boxed<'a, T> = Pin<Box<dyn Future<Output = T> + Send + 'a>>;

/// Where users come from.
pub trait UserSource: Send + Sync {
    /// Looks a user up; `None` if there is none. Takes as long for those who are not there as for those who are.
    fn find<'a>(&'a self, user: &'a UserName) -> Boxed<'a, Result<Option<Arc<UserRecord>>, UsersUnavailable>>;

    /// A client has proven to be `user`, of which `record` is known.
    ///
    /// # Errors
    /// [`UsersUnavailable`] when there are too many.
    fn admit(&self, user: &UserName, record: &UserRecord, proof: Proof) -> Result<Arc<Identity>, UsersUnavailable>;

    /// True where clients may log in with a password in the clear (PLAIN) or a certificate: not where the log-in upstream
    /// needs their keys.
    fn takes_other_than_scram(&self) -> bool;
}
