//! The server's end of SCRAM-SHA-1 and SCRAM-SHA-256 (RFC 5802, RFC 7677), with MongoDB's deviations.
//!
//! ```text
//! client-first ─▶ ClientFirst ── Verifier, nonce ──▶ ScramServer ── client-final ──▶ the client's key, server-final
//!                                                        └──────────────────────────▶ ScramFailure
//! ```
//!
//! Nothing of it takes long: what a password became with its salt is stored. From a right proof follows the client's key,
//! which is all that is needed to log in wherever the same salt is stored.
//!
//! Who is not known is taken through the same steps with a verifier that no password fits, see [`Decoys`]: neither the answers
//! nor the work tell one from a user with another password.

use base64::{Engine as _, engine::general_purpose::STANDARD as BASE64};
use subtle::{Choice, ConstantTimeEq as _};
use zeroize::Zeroizing;

use super::Secret;
use super::scram::{KeyId, Mechanism};
use super::users::{UserRecord, Verifier};

/// Longest payload of a client, bytes. Those of drivers have 60 to 150; the name of a user is the only long part. A socket that
/// is not logged in keeps about twice as much.
pub const MAX_PAYLOAD_BYTES: usize = 1024;

/// A longer nonce of a client, which comes again in three messages that are kept. Those of drivers have 24 to 44.
const MAX_NONCE_BYTES: usize = 256;

/// A shorter nonce of a client is refused: servers do so, too.
const MIN_NONCE_BYTES: usize = 8;

/// Why a log-in by SCRAM fails; for the log, since clients are never told.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum ScramFailure {
    /// The message is not SCRAM; says which part.
    #[error("malformed SCRAM message of the client: {0}")]
    Malformed(&'static str),
    /// The client insists on channel binding.
    #[error("the client asks for channel binding")]
    ChannelBinding,
    /// The message does not belong to this conversation.
    #[error("the nonce or the header is not that of this conversation")]
    OtherConversation,
    /// There is no such user, or it has another password.
    #[error("wrong user or password")]
    WrongProof,
}

/// Our half of the nonce, fresh for every conversation.
#[derive(Debug, Clone)]
pub struct ServerNonce(String);

impl ServerNonce {
    /// The nonce made of 24 unpredictable bytes.
    pub fn from_random(random: [u8; 24]) -> Self {
        Self(BASE64.encode(random))
    }
}

/// The message that opens a conversation: `n,,n=user,r=nonce`.
#[derive(Debug, Clone)]
pub struct ClientFirst {
    user: String,
    /// `n,,` mostly; its base64 form comes again in the last message.
    header: String,
    /// What both proofs sign of it: `n=user,r=nonce`.
    bare: String,
    nonce: String,
}

impl ClientFirst {
    /// Reads it.
    ///
    /// # Errors
    /// [`ScramFailure`], never [`ScramFailure::WrongProof`].
    pub fn parse(payload: &[u8]) -> Result<Self, ScramFailure> {
        let text = text_of(payload)?;
        let (binding, rest) = text.split_once(',').ok_or(ScramFailure::Malformed("header"))?;
        match binding {
            // `y`: it could, and thinks that we cannot, which is true.
            "n" | "y" => {}
            _ if binding.starts_with("p=") => return Err(ScramFailure::ChannelBinding),
            _ => return Err(ScramFailure::Malformed("header")),
        }
        // An authorization identity is read over, as servers do: nobody acts for somebody else.
        let (authorize, bare) = rest.split_once(',').ok_or(ScramFailure::Malformed("header"))?;
        if !authorize.is_empty() && !authorize.starts_with("a=") {
            return Err(ScramFailure::Malformed("header"));
        }
        let mut attributes = bare.split(',');
        let user = attribute(attributes.next(), "n=").ok_or(ScramFailure::Malformed("user"))?;
        let nonce = attribute(attributes.next(), "r=").ok_or(ScramFailure::Malformed("nonce"))?;
        // What follows are optional extensions, to be ignored (RFC 5802, 5.1).
        if !(MIN_NONCE_BYTES..=MAX_NONCE_BYTES).contains(&nonce.len()) {
            return Err(ScramFailure::Malformed("nonce"));
        }
        let user = unescape(user).filter(|user| !user.is_empty()).ok_or(ScramFailure::Malformed("user"))?;
        let header = format!("{binding},{authorize},");
        Ok(Self { user, header, bare: bare.to_owned(), nonce: nonce.to_owned() })
    }

    /// Who wants to log in, as it was typed: names of users are never prepared.
    pub fn user(&self) -> &str {
        &self.user
    }

    /// Asks for a proof; returns the payload that does so.
    pub fn challenge(self, verifier: &Verifier, nonce: &ServerNonce) -> (ScramServer, Vec<u8>) {
        let Verifier { id, stored_key, server_key } = verifier;
        let nonce = format!("{}{}", self.nonce, nonce.0);
        let first = format!("r={nonce},s={},i={}", BASE64.encode(id.salt()), id.iterations());
        // Without the proof the last message is known beforehand.
        let final_bare = format!("c={},r={nonce}", BASE64.encode(&self.header));
        let mut auth_message = format!("{},{first},{final_bare}", self.bare);
        auth_message.shrink_to_fit();
        let server = ScramServer {
            id: id.clone(),
            stored_key: stored_key.clone(),
            server_key: server_key.clone(),
            auth_message,
            final_bare_bytes: final_bare.len(),
        };
        (server, first.into_bytes())
    }
}

/// A conversation that waits for the client's proof.
#[derive(Debug, Clone)]
pub struct ScramServer {
    id: KeyId,
    stored_key: Secret,
    server_key: Secret,
    /// What both proofs sign. Ends in the last message without its proof ...
    auth_message: String,
    /// ... which has this length.
    final_bare_bytes: usize,
}

/// A right proof.
#[derive(Debug)]
pub struct Proven {
    /// Mechanism, salt and iterations that the key is of.
    pub id: KeyId,
    /// What the password became: as secret as it.
    pub client_key: Secret,
    /// The payload by which we prove to know the user as well.
    pub server_final: Vec<u8>,
}

impl ScramServer {
    /// Judges the client's last message, `c=biws,r=nonce,p=proof`.
    ///
    /// # Errors
    /// [`ScramFailure`]; the conversation is over either way.
    pub fn on_client_final(self, payload: &[u8]) -> Result<Proven, ScramFailure> {
        let text = text_of(payload)?;
        let (bare, proof) = text.rsplit_once(",p=").ok_or(ScramFailure::Malformed("proof"))?;
        let expected = self.auth_message.get(self.auth_message.len().saturating_sub(self.final_bare_bytes)..);
        if expected != Some(bare) {
            return Err(ScramFailure::OtherConversation);
        }
        let proof = Secret::from(BASE64.decode(proof).map_err(|_| ScramFailure::Malformed("proof"))?);
        let mechanism = self.id.mechanism();
        let signature = mechanism.hmac(self.stored_key.expose(), self.auth_message.as_bytes());
        if proof.expose().len() != signature.len() {
            return Err(ScramFailure::Malformed("proof"));
        }
        let key: Vec<u8> = proof.expose().iter().zip(&signature).map(|(proof, mask)| proof ^ mask).collect();
        let client_key = Secret::from(key);
        let hashed = mechanism.hash(client_key.expose());
        let right: Choice = hashed.as_slice().ct_eq(self.stored_key.expose());
        if !bool::from(right) {
            return Err(ScramFailure::WrongProof);
        }
        let ours = mechanism.hmac(self.server_key.expose(), self.auth_message.as_bytes());
        let server_final = format!("v={}", BASE64.encode(ours)).into_bytes();
        Ok(Proven { id: self.id, client_key, server_final })
    }
}

/// Rounds by which passwords become a secret for [`Decoys`]: anybody can ask for decoys and try passwords at them, so that each
/// try is to cost more than at what servers store.
const DECOY_ITERATIONS: u32 = 50_000;

/// Verifiers for users that there are not. Those of one name are always the same for one secret, as those of a real user are,
/// and have the size that servers give them.
pub struct Decoys(Secret);

impl Decoys {
    /// Made of a secret that nobody else has.
    pub fn new(secret: [u8; 32]) -> Self {
        Self(secret.to_vec().into())
    }

    /// Made of passwords that this proxy has, in order: so they are the same after a restart, and those of other instances with
    /// the same passwords. Takes milliseconds. `None` where there is no password.
    pub fn of_passwords<'a>(passwords: impl IntoIterator<Item = &'a str>) -> Option<Self> {
        let mut all = Zeroizing::new(Vec::new());
        for password in passwords.into_iter().filter(|password| !password.is_empty()) {
            // With their lengths, so that no two lists are one text.
            all.extend_from_slice(&(password.len() as u64).to_le_bytes());
            all.extend_from_slice(password.as_bytes());
        }
        (!all.is_empty()).then(|| Self(Mechanism::Sha256.pbkdf2(&all, b"mongomux decoys", DECOY_ITERATIONS).into()))
    }

    /// What verifies a user by that mechanism, and nobody where there is nothing that could. Both are worked out in any case.
    pub fn verifier_of(&self, record: Option<&UserRecord>, mechanism: Mechanism, name: &str) -> Verifier {
        let decoy = self.verifier(mechanism, name);
        record.and_then(|record| record.verifier(mechanism)).cloned().unwrap_or(decoy)
    }

    /// A salt of the usual length for a user of that name.
    pub fn salt(&self, mechanism: Mechanism, name: &str) -> Vec<u8> {
        let mut salt = self.derive("salt", mechanism, name);
        salt.truncate(mechanism.usual_salt_bytes());
        salt
    }

    fn verifier(&self, mechanism: Mechanism, name: &str) -> Verifier {
        let key = |what| {
            let mut key = self.derive(what, mechanism, name);
            key.truncate(mechanism.hash(b"").len());
            Secret::from(key)
        };
        Verifier {
            id: KeyId::new(mechanism, self.salt(mechanism, name), mechanism.usual_iterations()),
            stored_key: key("stored key"),
            server_key: key("server key"),
        }
    }

    fn derive(&self, what: &str, mechanism: Mechanism, name: &str) -> Vec<u8> {
        Mechanism::Sha256.hmac(self.0.expose(), format!("{what},{mechanism},{name}").as_bytes())
    }
}

impl Mechanism {
    /// Bytes of salt that servers give a user.
    pub fn usual_salt_bytes(self) -> usize {
        match self {
            Self::Sha1 => 16,
            Self::Sha256 => 28,
        }
    }

    /// Iterations that servers use unless told otherwise.
    pub fn usual_iterations(self) -> u32 {
        match self {
            Self::Sha1 => 10_000,
            Self::Sha256 => 15_000,
        }
    }
}

fn text_of(payload: &[u8]) -> Result<&str, ScramFailure> {
    if payload.len() > MAX_PAYLOAD_BYTES {
        return Err(ScramFailure::Malformed("length"));
    }
    str::from_utf8(payload).map_err(|_| ScramFailure::Malformed("text"))
}

fn attribute<'a>(field: Option<&'a str>, name: &str) -> Option<&'a str> {
    field?.strip_prefix(name)
}

/// `=2C` is a comma and `=3D` an equals sign; any other `=` is a mistake.
fn unescape(escaped: &str) -> Option<String> {
    let mut parts = escaped.split('=');
    let mut user = parts.next()?.to_owned();
    for part in parts {
        let (sign, rest) = match (part.strip_prefix("2C"), part.strip_prefix("3D")) {
            (Some(rest), _) => (',', rest),
            (_, Some(rest)) => ('=', rest),
            (None, None) => return None,
        };
        user.push(sign);
        user.push_str(rest);
    }
    Some(user)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::super::scram::{ClientNonce, ScramClient};
    use super::*;

    const BOTH: [Mechanism; 2] = [Mechanism::Sha1, Mechanism::Sha256];

    /// A verifier with the least rounds that clients accept, so that tests are quick.
    fn verifier(mechanism: Mechanism, user: &str, password: &str) -> Verifier {
        Verifier::derive(mechanism, user, password, b"0123456789abcdef".to_vec(), 4096).unwrap()
    }

    fn nonce() -> ServerNonce {
        ServerNonce::from_random([7; 24])
    }

    /// A whole conversation of our two ends.
    fn converse(stored: &Verifier, user: &str, password: &str) -> Result<(), ScramFailure> {
        let mechanism = stored.id.mechanism();
        let client = ScramClient::new(mechanism, user, password, ClientNonce::from_random([9; 24])).unwrap();
        let first = ClientFirst::parse(&client.client_first())?;
        assert_eq!(first.user(), user);
        let (server, server_first) = first.challenge(stored, &nonce());
        let challenge = client.on_server_first(&server_first).unwrap();
        let keys = challenge.derivation().derive();
        let (client_final, signature) = challenge.client_final(&keys);
        let proven = server.on_client_final(&client_final)?;
        assert_eq!(mechanism.hash(proven.client_key.expose()), stored.stored_key.expose());
        signature.verify(&proven.server_final).unwrap();
        Ok(())
    }

    /// What the RFCs say that a server sends, given what it knows.
    fn recorded(stored: &Verifier, ours: &str, first: &str, server_first: &str, last: &str) -> String {
        let (server, sent) = ClientFirst::parse(first.as_bytes()).unwrap().challenge(stored, &ServerNonce(ours.into()));
        assert_eq!(String::from_utf8(sent).unwrap(), server_first);
        String::from_utf8(server.on_client_final(last.as_bytes()).unwrap().server_final).unwrap()
    }

    #[test]
    fn rfc_5802_vector() {
        // The RFC salts the password itself, and MongoDB a digest of it.
        let stored = Verifier::of_prepared(
            KeyId::new(Mechanism::Sha1, BASE64.decode("QSXCR+Q6sek8bf92").unwrap(), 4096),
            &b"pencil".to_vec().into(),
        );
        let told = recorded(
            &stored,
            "3rfcNHYJY1ZVvWVs7j",
            "n,,n=user,r=fyko+d2lbbFgONRv9qkxdawL",
            "r=fyko+d2lbbFgONRv9qkxdawL3rfcNHYJY1ZVvWVs7j,s=QSXCR+Q6sek8bf92,i=4096",
            "c=biws,r=fyko+d2lbbFgONRv9qkxdawL3rfcNHYJY1ZVvWVs7j,p=v0X8v3Bz2T0CJGbJQyF0X+HI4Ts=",
        );
        assert_eq!(told, "v=rmF9pqV8S7suAoZWja4dJRkFsKQ=");
    }

    #[test]
    fn rfc_7677_vector() {
        let salt = BASE64.decode("W22ZaJ0SNY7soEsUEjb6gQ==").unwrap();
        let stored = Verifier::derive(Mechanism::Sha256, "user", "pencil", salt, 4096).unwrap();
        let told = recorded(
            &stored,
            "%hvYDpWUa2RaTCAfuxFIlj)hNlF$k0",
            "n,,n=user,r=rOprNGfwEbeRWgbNEkqO",
            "r=rOprNGfwEbeRWgbNEkqO%hvYDpWUa2RaTCAfuxFIlj)hNlF$k0,s=W22ZaJ0SNY7soEsUEjb6gQ==,i=4096",
            "c=biws,r=rOprNGfwEbeRWgbNEkqO%hvYDpWUa2RaTCAfuxFIlj)hNlF$k0,p=dHzbZapWIk4jUhN+Ute9ytag9zjfMHgsqmmiz7AndVQ=",
        );
        assert_eq!(told, "v=6rriTRBi23WpRR/wtup+mMhUZUn/dB5nLTJRsjl95G4=");
    }

    /// The users of the authentication specification's tests. Names are not prepared: `\u{2168}` is another user than `IX`.
    #[test]
    fn passwords_are_prepared_and_names_are_not() {
        let stored = verifier(Mechanism::Sha256, "IX", "IX");
        for password in ["IX", "I\u{AD}X"] {
            assert_eq!(converse(&stored, "IX", password), Ok(()), "{password:?}");
        }
        let stored = verifier(Mechanism::Sha256, "\u{2168}", "\u{2163}");
        for password in ["IV", "I\u{AD}V", "\u{2163}"] {
            assert_eq!(converse(&stored, "\u{2168}", password), Ok(()), "{password:?}");
        }
        assert_eq!(converse(&stored, "\u{2168}", "IX"), Err(ScramFailure::WrongProof));
    }

    #[test]
    fn only_the_right_password_is_accepted() {
        for mechanism in BOTH {
            let stored = verifier(mechanism, "user", "pencil");
            assert_eq!(converse(&stored, "user", "pencil"), Ok(()));
            for wrong in ["Pencil", "pencil ", ""] {
                assert_eq!(converse(&stored, "user", wrong), Err(ScramFailure::WrongProof));
            }
        }
    }

    #[test]
    fn nobody_fits_the_verifier_of_a_user_that_there_is_not() {
        let decoys = Decoys::new([5; 32]);
        for mechanism in BOTH {
            let decoy = decoys.verifier_of(None, mechanism, "nobody@admin");
            assert_eq!(converse(&decoy, "nobody", "pencil"), Err(ScramFailure::WrongProof));
            assert_eq!(
                decoy,
                decoys.verifier_of(Some(&UserRecord::default()), mechanism, "nobody@admin"),
                "the same again"
            );
            let real = Verifier::derive(
                mechanism,
                "nobody",
                "pencil",
                vec![0; mechanism.usual_salt_bytes()],
                mechanism.usual_iterations(),
            )
            .unwrap();
            let shape = |verifier: &Verifier| {
                let first = ClientFirst::parse(b"n,,n=nobody,r=0123456789").unwrap();
                let (_, message) = first.challenge(verifier, &nonce());
                (message.len(), verifier.stored_key.expose().len(), verifier.server_key.expose().len())
            };
            assert_eq!(shape(&decoy), shape(&real), "nothing but the bytes of the salt differs");
            assert_ne!(decoy.id.salt(), decoys.verifier_of(None, mechanism, "other@admin").id.salt());
        }
        assert_ne!(decoys.salt(Mechanism::Sha256, "a"), Decoys::new([6; 32]).salt(Mechanism::Sha256, "a"));
    }

    #[test]
    fn headers_and_names_are_read_as_servers_do() {
        let user = |first: &str| ClientFirst::parse(first.as_bytes()).map(|first| first.user);
        for header in ["n,,", "y,,", "n,a=other,", "y,a=x,"] {
            assert_eq!(user(&format!("{header}n=user,r=0123456789")).as_deref(), Ok("user"), "{header}");
        }
        assert_eq!(user("n,,n=a=3Db=2Cc=2C,r=0123456789,x=y").as_deref(), Ok("a=b,c,"));
        assert_eq!(user("p=tls-unique,,n=user,r=0123456789"), Err(ScramFailure::ChannelBinding));
        for (first, part) in [
            ("", "header"),
            ("garbage", "header"),
            ("n,", "header"),
            ("q,,n=user,r=0123456789", "header"),
            ("n,b,n=user,r=0123456789", "header"),
            ("n,,m=x,n=user,r=0123456789", "user"),
            ("n,,n=a=b,r=0123456789", "user"),
            ("n,,n=a=2c,r=0123456789", "user"),
            ("n,,n==,r=0123456789", "user"),
            ("n,,n=,r=0123456789", "user"),
            ("n,,n=user", "nonce"),
            ("n,,n=user,r=", "nonce"),
            ("n,,n=user,r=0123456", "nonce"),
        ] {
            assert_eq!(user(first), Err(ScramFailure::Malformed(part)), "{first}");
        }
        assert_eq!(ClientFirst::parse(b"n,,n=\xff,r=0123456789").unwrap_err(), ScramFailure::Malformed("text"));
        let long = format!("n,,n=user,r={}", "a".repeat(MAX_PAYLOAD_BYTES));
        assert_eq!(user(&long), Err(ScramFailure::Malformed("length")));
    }

    /// A right proof for `n,,n=user,r=0123456789`, and the server that waits for it.
    fn waiting(mechanism: Mechanism) -> (ScramServer, Vec<u8>) {
        let client = ScramClient::new(mechanism, "user", "pencil", ClientNonce::from_random([9; 24])).unwrap();
        let first = ClientFirst::parse(&client.client_first()).unwrap();
        let (server, server_first) = first.challenge(&verifier(mechanism, "user", "pencil"), &nonce());
        let challenge = client.on_server_first(&server_first).unwrap();
        let keys = challenge.derivation().derive();
        (server, challenge.client_final(&keys).0)
    }

    #[test]
    fn every_cut_and_every_changed_byte_of_the_last_message_fails() {
        for mechanism in BOTH {
            let (server, whole) = waiting(mechanism);
            assert!(server.clone().on_client_final(&whole).is_ok());
            for length in 0..whole.len() {
                assert!(server.clone().on_client_final(&whole[..length]).is_err(), "{length}");
            }
            for position in 0..whole.len() {
                let mut changed = whole.clone();
                changed[position] ^= 1;
                assert!(server.clone().on_client_final(&changed).is_err(), "{position}");
            }
            for hostile in [&b""[..], b",p=", b"c=biws,r=x,p=AAAA", b"\xff\xfe,p=AAAA", &[b'='; 5000]] {
                assert!(server.clone().on_client_final(hostile).is_err());
            }
        }
    }

    #[test]
    fn the_header_of_the_first_message_is_bound_to_the_last() {
        let stored = verifier(Mechanism::Sha256, "user", "pencil");
        let first = ClientFirst::parse(b"y,,n=user,r=0123456789").unwrap();
        let (server, _) = first.challenge(&stored, &nonce());
        let ours = nonce().0;
        let last = format!("c=biws,r=0123456789{ours},p={}", BASE64.encode([0; 32]));
        assert_eq!(server.on_client_final(last.as_bytes()).unwrap_err(), ScramFailure::OtherConversation);
    }

    #[test]
    fn no_secret_is_shown() {
        let (server, _) = waiting(Mechanism::Sha256);
        assert!(format!("{server:?}").matches("<secret>").count() == 2);
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(24))]
        #[test]
        fn whoever_knows_the_password_gets_in(user in "\\PC{1,20}", password in "[ -~]{1,20}", sha1 in any::<bool>()) {
            let mechanism = if sha1 { Mechanism::Sha1 } else { Mechanism::Sha256 };
            let stored = verifier(mechanism, &user, &password);
            prop_assert_eq!(converse(&stored, &user, &password), Ok(()));
            prop_assert_eq!(Verifier::parse(&stored.to_text()), Ok(stored));
        }

        #[test]
        fn bytes_never_cause_a_panic(payload in proptest::collection::vec(any::<u8>(), 0..200)) {
            if let Ok(first) = ClientFirst::parse(&payload) {
                let (server, _) = first.challenge(&Decoys::new([1; 32]).verifier(Mechanism::Sha1, "x"), &nonce());
                prop_assert!(server.on_client_final(&payload).is_err());
            }
            prop_assert!(Verifier::parse(&String::from_utf8_lossy(&payload)).is_err());
        }
    }

    #[test]
    fn decoys_of_the_same_passwords_are_the_same_and_of_others_are_not() {
        let salt = |passwords: &[&str]| {
            Decoys::of_passwords(passwords.iter().copied()).map(|decoys| decoys.salt(Mechanism::Sha256, "admin.nobody"))
        };
        let one = salt(&["a", "bc"]);
        assert!(one.is_some());
        assert_eq!(salt(&["a", "bc"]), one);
        for others in [&["ab", "c"][..], &["bc", "a"], &["abc"]] {
            assert!(salt(others).is_some_and(|salt| Some(salt) != one), "{others:?}");
        }
        assert_eq!((salt(&[]), salt(&[""])), (None, None), "whoever has no secret would know it");
    }

    #[test]
    fn what_is_kept_of_a_conversation_is_little_whatever_the_client_says() {
        let stored = verifier(Mechanism::Sha256, "u", "x");
        for (user, nonce, authorize) in [(700, 256, 0), (10, 256, 700), (10, 700, 0), (10, 256, 0)] {
            let (user, nonce, authorize) = ("u".repeat(user), "n".repeat(nonce), "a".repeat(authorize));
            let first = format!("n,a={authorize},n={user},r={nonce}");
            assert!(first.len() <= MAX_PAYLOAD_BYTES);
            let Ok(first) = ClientFirst::parse(first.as_bytes()) else {
                assert_eq!(nonce.len(), 700, "a long nonce is refused");
                continue;
            };
            let (server, _) = first.challenge(&stored, &self::nonce());
            assert!(server.auth_message.capacity() <= 2048, "{}", server.auth_message.capacity());
        }
    }
}
