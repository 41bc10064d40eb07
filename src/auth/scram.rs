//! The client's end of SCRAM-SHA-1 and SCRAM-SHA-256 (RFC 5802, RFC 7677), with MongoDB's deviations.
//!
//! ```text
//! ScramClient ── server-first ──▶ Challenge ── SaltedKeys ──▶ ServerSignature ── server-final ──▶ verified
//!      │                              │
//!      ▼                              ▼
//! client-first          KeyDerivation ── derive ──▶ SaltedKeys
//! ```
//!
//! Each step consumes the one before it, so a conversation cannot skip the check of the server's signature. Deriving
//! the keys takes thousands of rounds of HMAC (milliseconds), everything else microseconds: it is a value of its own that
//! a blocking thread can run, and its result can be kept under its [`KeyId`].
//!
//! The deviations: SHA-1 salts the hex MD5 of `user:mongo:password`, without SASLprep; SHA-256 prepares the password, and
//! neither prepares the user name. Channel binding is absent: no MongoDB server does it.

use std::fmt;

use base64::{Engine as _, engine::general_purpose::STANDARD as BASE64};
use hmac::{EagerHash, Hmac, KeyInit as _, Mac as _};
use md5::Md5;
use sha1::{Digest as _, Sha1};
use sha2::Sha256;
use subtle::ConstantTimeEq as _;
use zeroize::Zeroizing;

use super::Secret;

/// Fewer rounds are refused, as the authentication specification demands: a man in the middle could ask for one round and
/// then guess the password from the proof.
pub const MIN_ITERATIONS: u32 = 4096;

/// More rounds are refused: servers use 10,000 to 15,000, and these are seconds of a core for each login.
pub const MAX_ITERATIONS: u32 = 10_000_000;

/// Longest server message that is parsed; real ones have about 120 bytes. This bounds nonce, salt and error text too.
const MAX_SERVER_MESSAGE_BYTES: usize = 4096;

/// `n,,`: no channel binding, no authorization identity. Its base64 form is `biws`.
const GS2_HEADER: &str = "n,,";

/// Why a SCRAM conversation ended. Only the first variant is ours (the configured password), the rest is upstream's.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum ScramError {
    /// SASLprep refuses the password, so no server can have stored it.
    #[error("the password has characters that SCRAM-SHA-256 does not allow")]
    Password,
    /// The server's message is not SCRAM; says which part.
    #[error("malformed SCRAM message of the server: {0}")]
    Malformed(&'static str),
    /// The server's nonce does not continue ours: a replay, or an answer to somebody else.
    #[error("the server's SCRAM nonce does not continue ours")]
    Nonce,
    /// The server asks for fewer rounds than is safe or more than is sane.
    #[error("{0} SCRAM iterations are outside {MIN_ITERATIONS} to {MAX_ITERATIONS}")]
    Iterations(u32),
    /// The server ended the conversation with this `e=` value.
    #[error("the server ended the SCRAM conversation: {0:?}")]
    Refused(String),
    /// The server's salt is not that of the keys we have.
    #[error("the keys are of another salt: the password has changed")]
    OtherSalt,
    /// The server does not know the password either: it is not the server it claims to be.
    #[error("the server's SCRAM signature is wrong")]
    Signature,
}

/// Which hash, and with it which preparation of the password.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Mechanism {
    /// `SCRAM-SHA-1`, for users made before MongoDB 4.0.
    Sha1,
    /// `SCRAM-SHA-256`.
    Sha256,
}

impl Mechanism {
    /// The name on the wire and in connection strings.
    pub fn name(self) -> &'static str {
        match self {
            Self::Sha1 => "SCRAM-SHA-1",
            Self::Sha256 => "SCRAM-SHA-256",
        }
    }

    /// What stands in for the password when keys are derived.
    pub(super) fn prepare(self, username: &str, password: &str) -> Result<Secret, ScramError> {
        match self {
            Self::Sha1 => {
                let digest =
                    Md5::new().chain_update(username).chain_update(":mongo:").chain_update(password).finalize();
                Ok(hex(&digest).into_bytes().into())
            }
            Self::Sha256 => {
                let prepared = stringprep::saslprep(password).map_err(|_| ScramError::Password)?;
                Ok(prepared.into_owned().into_bytes().into())
            }
        }
    }

    pub(super) fn hash(self, data: &[u8]) -> Vec<u8> {
        match self {
            Self::Sha1 => Sha1::digest(data).to_vec(),
            Self::Sha256 => Sha256::digest(data).to_vec(),
        }
    }

    pub(super) fn hmac(self, key: &[u8], data: &[u8]) -> Vec<u8> {
        match self {
            Self::Sha1 => hmac::<Sha1>(key, data),
            Self::Sha256 => hmac::<Sha256>(key, data),
        }
    }

    pub(super) fn pbkdf2(self, password: &[u8], salt: &[u8], iterations: u32) -> Vec<u8> {
        match self {
            Self::Sha1 => pbkdf2::pbkdf2_hmac_array::<Sha1, 20>(password, salt, iterations).to_vec(),
            Self::Sha256 => pbkdf2::pbkdf2_hmac_array::<Sha256, 32>(password, salt, iterations).to_vec(),
        }
    }
}

impl fmt::Display for Mechanism {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

/// Our half of the nonce, fresh for every conversation; never contains a comma.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ClientNonce(String);

impl ClientNonce {
    /// The nonce made of 24 unpredictable bytes.
    pub fn from_random(random: [u8; 24]) -> Self {
        Self(BASE64.encode(random))
    }
}

/// A conversation that has not heard from the server yet.
#[derive(Debug, Clone)]
pub struct ScramClient {
    mechanism: Mechanism,
    password: Secret,
    nonce: ClientNonce,
    /// client-first-message-bare: `n=user,r=nonce`.
    first_bare: String,
}

impl ScramClient {
    /// Prepares the password.
    ///
    /// # Errors
    /// [`ScramError::Password`] when SASLprep refuses it; never for SCRAM-SHA-1.
    pub fn new(mechanism: Mechanism, username: &str, password: &str, nonce: ClientNonce) -> Result<Self, ScramError> {
        Ok(Self::prepared(mechanism, username, mechanism.prepare(username, password)?, nonce))
    }

    /// For a user whose keys are known, and not the password: what [`Challenge::derivation`] names must be looked up, and not be
    /// derived.
    pub fn with_keys(mechanism: Mechanism, username: &str, nonce: ClientNonce) -> Self {
        Self::prepared(mechanism, username, Vec::new().into(), nonce)
    }

    fn prepared(mechanism: Mechanism, username: &str, password: Secret, nonce: ClientNonce) -> Self {
        // `=` first, or it would escape the escapes.
        let escaped = username.replace('=', "=3D").replace(',', "=2C");
        let first_bare = format!("n={escaped},r={}", nonce.0);
        Self { mechanism, password, nonce, first_bare }
    }

    /// Which hash this conversation uses.
    pub fn mechanism(&self) -> Mechanism {
        self.mechanism
    }

    /// The payload that opens the conversation.
    pub fn client_first(&self) -> Vec<u8> {
        format!("{GS2_HEADER}{}", self.first_bare).into_bytes()
    }

    /// Reads the server's nonce, salt and iteration count.
    ///
    /// # Errors
    /// When the message is malformed, the nonce is not a continuation of ours, or the iterations are out of bounds.
    pub fn on_server_first(self, message: &[u8]) -> Result<Challenge, ScramError> {
        let text = server_text(message)?;
        let mut attributes = text.split(',');
        let nonce = attribute(attributes.next(), "r=").ok_or(ScramError::Malformed("nonce"))?;
        let salt = attribute(attributes.next(), "s=").ok_or(ScramError::Malformed("salt"))?;
        let iterations = attribute(attributes.next(), "i=").ok_or(ScramError::Malformed("iterations"))?;
        // Attributes after these are optional extensions, to be ignored (RFC 5802, 5.1).

        if nonce.len() <= self.nonce.0.len() || !nonce.starts_with(&self.nonce.0) {
            return Err(ScramError::Nonce);
        }
        let salt = BASE64.decode(salt).map_err(|_| ScramError::Malformed("salt"))?;
        let iterations = iterations.parse().map_err(|_| ScramError::Malformed("iterations"))?;
        if !(MIN_ITERATIONS..=MAX_ITERATIONS).contains(&iterations) {
            return Err(ScramError::Iterations(iterations));
        }

        let final_bare = format!("c={},r={nonce}", BASE64.encode(GS2_HEADER));
        let auth_message = format!("{},{text},{final_bare}", self.first_bare);
        let id = KeyId { mechanism: self.mechanism, salt, iterations };
        Ok(Challenge { derivation: KeyDerivation { id, password: self.password }, final_bare, auth_message })
    }
}

/// Names one derivation for one credential: the same id gives the same keys, as long as the password is the same.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct KeyId {
    mechanism: Mechanism,
    salt: Vec<u8>,
    iterations: u32,
}

/// The expensive step as a value, to be run on a thread that may block.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct KeyDerivation {
    id: KeyId,
    password: Secret,
}

impl KeyId {
    /// Names the derivation with that salt and so many iterations.
    pub fn new(mechanism: Mechanism, salt: Vec<u8>, iterations: u32) -> Self {
        Self { mechanism, salt, iterations }
    }

    /// Which hash.
    pub fn mechanism(&self) -> Mechanism {
        self.mechanism
    }

    /// What makes equal passwords differ.
    pub fn salt(&self) -> &[u8] {
        &self.salt
    }

    /// Rounds of PBKDF2.
    pub fn iterations(&self) -> u32 {
        self.iterations
    }
}

impl KeyDerivation {
    /// Under what the result may be kept.
    pub fn id(&self) -> &KeyId {
        &self.id
    }

    /// Runs PBKDF2: milliseconds at the usual counts, seconds at [`MAX_ITERATIONS`].
    pub fn derive(&self) -> SaltedKeys {
        let KeyId { mechanism, salt, iterations } = &self.id;
        let salted = Zeroizing::new(mechanism.pbkdf2(&self.password.0, salt, *iterations));
        SaltedKeys {
            client_key: mechanism.hmac(&salted, b"Client Key").into(),
            server_key: mechanism.hmac(&salted, b"Server Key").into(),
        }
    }
}

/// What the password became with the server's salt: enough to log in, so as secret as the password.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SaltedKeys {
    client_key: Secret,
    server_key: Secret,
}

impl SaltedKeys {
    /// Those of a client that has proven to have `client_key`, as its server stores `server_key`.
    pub fn new(client_key: Secret, server_key: Secret) -> Self {
        Self { client_key, server_key }
    }
}

/// The server has told salt and iterations; the conversation waits for the keys they give.
#[derive(Debug, Clone)]
pub struct Challenge {
    derivation: KeyDerivation,
    /// client-final-message-without-proof: `c=biws,r=nonce`.
    final_bare: String,
    /// What both proofs sign.
    auth_message: String,
}

impl Challenge {
    /// How to get the keys; look under its id before running it.
    pub fn derivation(&self) -> &KeyDerivation {
        &self.derivation
    }

    /// The payload with our proof, and what the server's answer must prove. Keys of another [`KeyId`] give a proof that
    /// the server refuses.
    pub fn client_final(self, keys: &SaltedKeys) -> (Vec<u8>, ServerSignature) {
        let mechanism = self.derivation.id.mechanism;
        let stored_key = mechanism.hash(&keys.client_key.0);
        let client_signature = mechanism.hmac(&stored_key, self.auth_message.as_bytes());
        let proof: Vec<u8> = keys.client_key.0.iter().zip(&client_signature).map(|(key, mask)| key ^ mask).collect();
        let payload = format!("{},p={}", self.final_bare, BASE64.encode(proof)).into_bytes();
        (payload, ServerSignature(mechanism.hmac(&keys.server_key.0, self.auth_message.as_bytes()).into()))
    }
}

/// The signature that only a server knowing the user's keys can give.
#[derive(Debug, Clone)]
pub struct ServerSignature(Secret);

impl ServerSignature {
    /// Checks the server's last message; without this a server that knows nothing could take our commands.
    ///
    /// # Errors
    /// When the message is malformed, carries an error, or the signature is not the expected one.
    pub fn verify(&self, message: &[u8]) -> Result<(), ScramError> {
        let first = server_text(message)?.split(',').next();
        if let Some(error) = attribute(first, "e=") {
            return Err(ScramError::Refused(error.to_owned()));
        }
        let signature = attribute(first, "v=").ok_or(ScramError::Malformed("signature"))?;
        let signature = BASE64.decode(signature).map_err(|_| ScramError::Malformed("signature"))?;
        if bool::from(signature.ct_eq(self.0.expose())) { Ok(()) } else { Err(ScramError::Signature) }
    }
}

fn server_text(message: &[u8]) -> Result<&str, ScramError> {
    if message.len() > MAX_SERVER_MESSAGE_BYTES {
        return Err(ScramError::Malformed("length"));
    }
    str::from_utf8(message).map_err(|_| ScramError::Malformed("text"))
}

fn attribute<'a>(field: Option<&'a str>, name: &str) -> Option<&'a str> {
    field?.strip_prefix(name)
}

fn hmac<D: EagerHash>(key: &[u8], data: &[u8]) -> Vec<u8> {
    let mac = Hmac::<D>::new_from_slice(key).expect("HMAC takes keys of every length");
    mac.chain_update(data).finalize().into_bytes().to_vec()
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn client(mechanism: Mechanism, username: &str, password: &str, nonce: &str) -> ScramClient {
        ScramClient::new(mechanism, username, password, ClientNonce(nonce.to_owned())).unwrap()
    }

    /// Runs a whole conversation against a recorded server; returns client-final and the verdict on server-final.
    fn converse(client: ScramClient, server_first: &str, server_final: &str) -> (String, Result<(), ScramError>) {
        let challenge = client.on_server_first(server_first.as_bytes()).unwrap();
        let keys = challenge.derivation().derive();
        let (payload, signature) = challenge.client_final(&keys);
        (String::from_utf8(payload).unwrap(), signature.verify(server_final.as_bytes()))
    }

    const RFC_7677_NONCE: &str = "rOprNGfwEbeRWgbNEkqO";
    const RFC_7677_FIRST: &str =
        "r=rOprNGfwEbeRWgbNEkqO%hvYDpWUa2RaTCAfuxFIlj)hNlF$k0,s=W22ZaJ0SNY7soEsUEjb6gQ==,i=4096";
    const RFC_7677_FINAL: &str = "v=6rriTRBi23WpRR/wtup+mMhUZUn/dB5nLTJRsjl95G4=";

    #[test]
    fn rfc_5802_vector() {
        // The RFC salts the password itself; MongoDB's digest of it is replaced for this one test.
        let mut client = client(Mechanism::Sha1, "user", "", "fyko+d2lbbFgONRv9qkxdawL");
        client.password = b"pencil".to_vec().into();
        assert_eq!(client.client_first(), b"n,,n=user,r=fyko+d2lbbFgONRv9qkxdawL");
        let server_first = "r=fyko+d2lbbFgONRv9qkxdawL3rfcNHYJY1ZVvWVs7j,s=QSXCR+Q6sek8bf92,i=4096";
        let (payload, verdict) = converse(client, server_first, "v=rmF9pqV8S7suAoZWja4dJRkFsKQ=");
        assert_eq!(payload, "c=biws,r=fyko+d2lbbFgONRv9qkxdawL3rfcNHYJY1ZVvWVs7j,p=v0X8v3Bz2T0CJGbJQyF0X+HI4Ts=");
        assert_eq!(verdict, Ok(()));
    }

    #[test]
    fn mongodb_sha1_vector() {
        let client = client(Mechanism::Sha1, "user", "pencil", "fyko+d2lbbFgONRv9qkxdawL");
        let server_first =
            "r=fyko+d2lbbFgONRv9qkxdawLHo+Vgk7qvUOKUwuWLIWg4l/9SraGMHEE,s=rQ9ZY3MntBeuP3E1TDVC4w==,i=10000";
        let (payload, verdict) = converse(client, server_first, "v=UMWeI25JD1yNYZRMpZ4VHvhZ9e0=");
        assert_eq!(
            payload,
            "c=biws,r=fyko+d2lbbFgONRv9qkxdawLHo+Vgk7qvUOKUwuWLIWg4l/9SraGMHEE,p=MC2T8BvbmWRckDw8oWl5IVghwCY="
        );
        assert_eq!(verdict, Ok(()));
    }

    #[test]
    fn rfc_7677_vector() {
        let client = client(Mechanism::Sha256, "user", "pencil", RFC_7677_NONCE);
        assert_eq!(client.client_first(), b"n,,n=user,r=rOprNGfwEbeRWgbNEkqO");
        let (payload, verdict) = converse(client, RFC_7677_FIRST, RFC_7677_FINAL);
        assert_eq!(
            payload,
            "c=biws,r=rOprNGfwEbeRWgbNEkqO%hvYDpWUa2RaTCAfuxFIlj)hNlF$k0,p=dHzbZapWIk4jUhN+Ute9ytag9zjfMHgsqmmiz7AndVQ="
        );
        assert_eq!(verdict, Ok(()));
    }

    #[test]
    fn user_names_are_escaped_and_not_prepared() {
        let first = client(Mechanism::Sha256, "a=b,c\u{2168}", "x", "nonce").client_first();
        assert_eq!(first, "n,,n=a=3Db=2Cc\u{2168},r=nonce".as_bytes());
    }

    #[test]
    fn only_sha256_prepares_the_password() {
        // The auth specification's pairs: user IX with IX or I<soft hyphen>X, user U+2168 with IV or I<soft hyphen>V
        // for a password stored as U+2163.
        let sha256 = |password| Mechanism::Sha256.prepare("user", password).unwrap().expose().to_vec();
        assert_eq!(sha256("I\u{ad}X"), b"IX");
        assert_eq!(sha256("\u{2168}"), b"IX");
        assert_eq!(sha256("I\u{ad}V"), b"IV");
        assert_eq!(sha256("\u{2163}"), b"IV");
        // RFC 4013, section 3.
        assert_eq!(sha256("USER"), b"USER");
        assert_eq!(sha256("\u{aa}"), b"a");
        assert_eq!(Mechanism::Sha256.prepare("user", "\u{7}"), Err(ScramError::Password));
        assert_eq!(Mechanism::Sha256.prepare("user", "\u{627}1"), Err(ScramError::Password));

        let sha1 = |password| Mechanism::Sha1.prepare("user", password).unwrap().expose().to_vec();
        assert_eq!(sha1("pencil"), b"1c33006ec1ffd90f9cadcbcc0e118200");
        assert_ne!(sha1("\u{2168}"), sha1("IX"));
        assert!(Mechanism::Sha1.prepare("user", "\u{7}").is_ok());
    }

    #[test]
    fn keys_can_be_reused_only_with_the_same_salt_and_count() {
        let challenge = |server_first: &str| {
            client(Mechanism::Sha256, "user", "pencil", RFC_7677_NONCE)
                .on_server_first(server_first.as_bytes())
                .unwrap()
        };
        let first = challenge(RFC_7677_FIRST);
        let keys = first.derivation().derive();
        let again = challenge("r=rOprNGfwEbeRWgbNEkqOother,s=W22ZaJ0SNY7soEsUEjb6gQ==,i=4096");
        assert_eq!(first.derivation().id(), again.derivation().id());
        assert_eq!(again.derivation().derive(), keys);
        let salted = challenge("r=rOprNGfwEbeRWgbNEkqOother,s=W22ZaJ0SNY7soEsUEjb6gA==,i=4096");
        assert_ne!(first.derivation().id(), salted.derivation().id());
        assert_ne!(salted.derivation().derive(), keys);
        let counted = challenge("r=rOprNGfwEbeRWgbNEkqOother,s=W22ZaJ0SNY7soEsUEjb6gQ==,i=4097");
        assert_ne!(first.derivation().id(), counted.derivation().id());
    }

    #[test]
    fn bad_server_first_messages_are_errors() {
        let long = format!("r=nonce1,s=QSXCR+Q6sek8bf92,i=4096,x={}", "x".repeat(MAX_SERVER_MESSAGE_BYTES));
        let cases: &[(&str, ScramError)] = &[
            ("", ScramError::Malformed("nonce")),
            ("m=ext,r=nonce1,s=QSXCR+Q6sek8bf92,i=4096", ScramError::Malformed("nonce")),
            ("r=nonce1", ScramError::Malformed("salt")),
            ("r=nonce1,i=4096,s=QSXCR+Q6sek8bf92", ScramError::Malformed("salt")),
            ("r=nonce1,s=*,i=4096", ScramError::Malformed("salt")),
            ("r=nonce1,s=QSXCR+Q6sek8bf92", ScramError::Malformed("iterations")),
            ("r=nonce1,s=QSXCR+Q6sek8bf92,i=", ScramError::Malformed("iterations")),
            ("r=nonce1,s=QSXCR+Q6sek8bf92,i=-1", ScramError::Malformed("iterations")),
            ("r=nonce1,s=QSXCR+Q6sek8bf92,i=99999999999", ScramError::Malformed("iterations")),
            ("r=nonce1,s=QSXCR+Q6sek8bf92,i=4095", ScramError::Iterations(4095)),
            ("r=nonce1,s=QSXCR+Q6sek8bf92,i=10000001", ScramError::Iterations(10_000_001)),
            ("r=nonce,s=QSXCR+Q6sek8bf92,i=4096", ScramError::Nonce),
            ("r=nonc,s=QSXCR+Q6sek8bf92,i=4096", ScramError::Nonce),
            ("r=other1,s=QSXCR+Q6sek8bf92,i=4096", ScramError::Nonce),
            (&long, ScramError::Malformed("length")),
        ];
        for (message, error) in cases {
            let client = client(Mechanism::Sha1, "user", "pencil", "nonce");
            assert_eq!(client.on_server_first(message.as_bytes()).unwrap_err(), *error, "{message}");
        }
        let client = client(Mechanism::Sha1, "user", "pencil", "nonce");
        assert_eq!(client.on_server_first(b"r=nonce\xff").unwrap_err(), ScramError::Malformed("text"));
    }

    #[test]
    fn optional_extensions_are_ignored() {
        let client = client(Mechanism::Sha1, "user", "pencil", "nonce");
        assert!(client.on_server_first(b"r=nonce1,s=QSXCR+Q6sek8bf92,i=4096,x=y").is_ok());
    }

    #[test]
    fn only_the_right_server_signature_is_accepted() {
        let client = client(Mechanism::Sha256, "user", "pencil", RFC_7677_NONCE);
        let challenge = client.on_server_first(RFC_7677_FIRST.as_bytes()).unwrap();
        let keys = challenge.derivation().derive();
        let (_, signature) = challenge.client_final(&keys);
        assert_eq!(signature.verify(RFC_7677_FINAL.as_bytes()), Ok(()));
        assert_eq!(signature.verify(format!("{RFC_7677_FINAL},x=y").as_bytes()), Ok(()));
        assert_eq!(signature.verify(RFC_7677_FINAL.replace("6rri", "6rrj").as_bytes()), Err(ScramError::Signature));
        assert_eq!(signature.verify(b"v="), Err(ScramError::Signature));
        assert_eq!(signature.verify(b"v=6rri"), Err(ScramError::Signature));
        assert_eq!(signature.verify(b"v=*"), Err(ScramError::Malformed("signature")));
        assert_eq!(signature.verify(b""), Err(ScramError::Malformed("signature")));
        assert_eq!(signature.verify(b"e=invalid-proof"), Err(ScramError::Refused("invalid-proof".to_owned())));
    }

    #[test]
    fn debug_shows_no_secret() {
        let client = client(Mechanism::Sha256, "user", "pencil", RFC_7677_NONCE);
        let shown = format!("{client:?}");
        let challenge = client.on_server_first(RFC_7677_FIRST.as_bytes()).unwrap();
        let keys = challenge.derivation().derive();
        let shown = format!("{shown} {challenge:?} {keys:?}");
        let (_, signature) = challenge.client_final(&keys);
        let shown = format!("{shown} {signature:?}");
        assert!(shown.matches("<secret>").count() >= 5, "{shown}");
        assert!(!shown.contains("pencil") && !shown.contains(&format!("{:?}", b"pencil")), "{shown}");
    }

    #[test]
    fn random_nonces_are_printable_without_comma() {
        let nonce = ClientNonce::from_random(std::array::from_fn(|i| u8::try_from(i * 11 % 256).unwrap()));
        assert_eq!(nonce.0.len(), 32);
        assert!(nonce.0.bytes().all(|byte| byte.is_ascii_graphic() && byte != b','));
        assert_ne!(nonce, ClientNonce::from_random([0; 24]));
    }
}
