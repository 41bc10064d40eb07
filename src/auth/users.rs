//! What is known about the users that may log in, and where it comes from.

use std::future::Future;
use std::pin::Pin;
use std::sync::Arc;

use base64::{Engine as _, engine::general_purpose::STANDARD as BASE64};
use subtle::ConstantTimeEq as _;

use super::Secret;
use super::identity::{Identity, UserName};
use super::scram::{KeyId, MAX_ITERATIONS, MIN_ITERATIONS, Mechanism, ScramError};

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

/// A text that is no verifier.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error(
    "expected SCRAM-SHA-256$<iterations>:<salt>$<StoredKey>:<ServerKey> or the same of SCRAM-SHA-1, each but the first in base64"
)]
pub struct NoVerifier;

impl Verifier {
    /// What a server stores for that password. Takes milliseconds.
    ///
    /// # Errors
    /// [`ScramError::Password`] when the password cannot be one of SCRAM-SHA-256; it can still be one of SCRAM-SHA-1.
    pub fn derive(
        mechanism: Mechanism,
        user: &str,
        password: &str,
        salt: Vec<u8>,
        iterations: u32,
    ) -> Result<Self, ScramError> {
        let prepared = mechanism.prepare(user, password)?;
        Ok(Self::of_prepared(KeyId::new(mechanism, salt, iterations), &prepared))
    }

    pub(super) fn of_prepared(id: KeyId, prepared: &Secret) -> Self {
        let mechanism = id.mechanism();
        let salted = Secret::from(mechanism.pbkdf2(prepared.expose(), id.salt(), id.iterations()));
        let client_key = Secret::from(mechanism.hmac(salted.expose(), b"Client Key"));
        let stored_key = mechanism.hash(client_key.expose()).into();
        Self { id, stored_key, server_key: mechanism.hmac(salted.expose(), b"Server Key").into() }
    }

    /// True when it was made of that password. Takes as long as to make it.
    pub fn fits(&self, user: &str, password: &str) -> bool {
        let (mechanism, salt) = (self.id.mechanism(), self.id.salt().to_vec());
        Self::derive(mechanism, user, password, salt, self.id.iterations())
            .is_ok_and(|other| bool::from(other.stored_key.expose().ct_eq(self.stored_key.expose())))
    }

    /// Reads `SCRAM-SHA-256$<iterations>:<salt>$<StoredKey>:<ServerKey>`.
    ///
    /// # Errors
    /// [`NoVerifier`], which does not repeat the text.
    pub fn parse(text: &str) -> Result<Self, NoVerifier> {
        Self::read(text).ok_or(NoVerifier)
    }

    fn read(text: &str) -> Option<Self> {
        let mut parts = text.split('$');
        let mechanism = match parts.next()? {
            "SCRAM-SHA-1" => Mechanism::Sha1,
            "SCRAM-SHA-256" => Mechanism::Sha256,
            _ => return None,
        };
        let (iterations, salt) = parts.next()?.split_once(':')?;
        let (stored_key, server_key) = parts.next()?.split_once(':')?;
        let iterations = iterations.parse().ok().filter(|it| (MIN_ITERATIONS..=MAX_ITERATIONS).contains(it))?;
        let salt = BASE64.decode(salt).ok().filter(|salt| (8..=64).contains(&salt.len()))?;
        let key = |text: &str| {
            let key = Secret::from(BASE64.decode(text).ok()?);
            (key.expose().len() == mechanism.hash(b"").len()).then_some(key)
        };
        let (stored_key, server_key) = (key(stored_key)?, key(server_key)?);
        let whole = parts.next().is_none();
        whole.then(|| Self { id: KeyId::new(mechanism, salt, iterations), stored_key, server_key })
    }

    /// What [`Verifier::parse`] reads.
    pub fn to_text(&self) -> String {
        let base64 = |bytes: &[u8]| BASE64.encode(bytes);
        format!(
            "{}${}:{}${}:{}",
            self.id.mechanism(),
            self.id.iterations(),
            base64(self.id.salt()),
            base64(self.stored_key.expose()),
            base64(self.server_key.expose())
        )
    }
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
    /// Keeps what verifies it by one mechanism.
    pub fn set(&mut self, verifier: Verifier) {
        match verifier.id.mechanism() {
            Mechanism::Sha1 => self.sha1 = Some(verifier),
            Mechanism::Sha256 => self.sha256 = Some(verifier),
        }
    }

    /// True when who has proven to be the one is the other as well.
    pub fn proves_as(&self, other: &Self) -> bool {
        (&self.sha1, &self.sha256, self.by_certificate) == (&other.sha1, &other.sha256, other.by_certificate)
    }

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

#[cfg(test)]
mod tests {
    use super::*;

    /// As PostgreSQL writes and this program reads it, for the password `pencil` of RFC 7677.
    const TEXT: &str = "SCRAM-SHA-256$4096:W22ZaJ0SNY7soEsUEjb6gQ==$WG5d8oPm3OtcPnkdi4Uo7BkeZkBFzpcXkuLmtbsT4qY=:wfPLwcE6nTWhTAmQ7tl2KeoiWGPlZqQxSrmfPwDl2dU=";

    #[test]
    fn a_verifier_is_read_and_written() {
        let read = Verifier::parse(TEXT).unwrap();
        let salt = BASE64.decode("W22ZaJ0SNY7soEsUEjb6gQ==").unwrap();
        assert_eq!(Verifier::derive(Mechanism::Sha256, "user", "pencil", salt, 4096), Ok(read.clone()));
        assert_eq!(read.to_text(), TEXT);
        assert!(read.fits("user", "pencil") && !read.fits("user", "Pencil"));
        assert!(!format!("{read:?}").contains("WG5d"));
    }

    #[test]
    fn what_is_no_verifier_is_refused_and_not_repeated() {
        for length in 0..TEXT.len() {
            assert_eq!(Verifier::parse(&TEXT[..length]), Err(NoVerifier), "{length}");
        }
        for (from, to) in
            [("256", "512"), ("256", "1"), ("4096", "4095"), ("4096", "99999999"), ("gQ==", "*"), ("$", ":")]
        {
            assert_eq!(Verifier::parse(&TEXT.replace(from, to)), Err(NoVerifier), "{to}");
        }
        assert_eq!(Verifier::parse(&format!("{TEXT}$")), Err(NoVerifier));
        assert_eq!(Verifier::parse(&TEXT.replace("W22ZaJ0SNY7soEsUEjb6gQ==", "AAAA")), Err(NoVerifier), "short salt");
    }
}
