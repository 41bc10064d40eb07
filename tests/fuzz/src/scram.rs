//! Log-ins by SCRAM: both ends talk to each other over a line on which somebody changes bytes, or to somebody who makes it up.
//!
//! Nobody is logged in by a message that was changed, and no server is taken for the right one that has not proved it.

use std::sync::LazyLock;

use arbitrary::{Arbitrary, Unstructured};
use bson::{RawDocument, RawDocumentBuf, rawdoc};
use mongomux::auth::scram_server::{ClientFirst, Decoys, MAX_PAYLOAD_BYTES, ServerNonce};
use mongomux::auth::users::Verifier;
use mongomux::auth::{ClientNonce, Conversation, Mechanism, SaltedKeys, Step};
use mongomux::wire::document::find;

const USER: &str = "us=er,";
const PASSWORD: &str = "pass";
const MECHANISMS: [Mechanism; 2] = [Mechanism::Sha1, Mechanism::Sha256];

/// What is stored of the user, by mechanism. Derived once: it takes milliseconds.
static VERIFIERS: LazyLock<[Verifier; 2]> = LazyLock::new(|| {
    MECHANISMS
        .map(|mechanism| Verifier::derive(mechanism, USER, PASSWORD, vec![9; 16], 4096).expect("a password of letters"))
});

/// One byte of one of the four messages that is changed on its way.
#[derive(Debug, Clone, Copy, Arbitrary)]
struct Change {
    message: u8,
    at: u16,
    to: u8,
}

/// What happens on the line.
#[derive(Debug, Arbitrary)]
enum Line {
    /// Bytes are changed on it.
    Tampered { sha256: bool, changes: Vec<Change> },
    /// The server makes up what it says.
    MadeUpServer { sha256: bool, replies: Vec<Vec<u8>> },
    /// The client does.
    MadeUpClient { sha256: bool, first: Vec<u8>, last: Vec<u8> },
}

/// What happens is made of the bytes.
pub fn check(data: &[u8]) {
    match Line::arbitrary_take_rest(Unstructured::new(data)) {
        Ok(Line::Tampered { sha256, changes }) => tampered(usize::from(sha256), &changes),
        Ok(Line::MadeUpServer { sha256, replies }) => made_up_server(usize::from(sha256), &replies),
        Ok(Line::MadeUpClient { sha256, first, last }) => made_up_client(usize::from(sha256), &first, &last),
        Err(_) => {}
    }
}

fn conversation(mechanism: usize) -> Conversation {
    Conversation::scram(MECHANISMS[mechanism], "admin", USER, PASSWORD, ClientNonce::from_random([1; 24])).unwrap()
}

/// The payload of a command or of a reply.
fn payload(document: &RawDocument) -> Vec<u8> {
    find(document.as_bytes(), b"payload").map(|payload| payload.value[5..].to_vec()).unwrap_or_default()
}

fn reply(payload: &[u8], done: bool) -> RawDocumentBuf {
    let payload = bson::Binary { subtype: bson::spec::BinarySubtype::Generic, bytes: payload.to_vec() };
    rawdoc! {"conversationId": 1, "done": done, "payload": payload, "ok": 1.0}
}

fn keys() -> &'static [SaltedKeys; 2] {
    static KEYS: LazyLock<[SaltedKeys; 2]> = LazyLock::new(|| {
        [0, 1].map(|mechanism| {
            let mut client = conversation(mechanism);
            let (_, challenge) = ClientFirst::parse(&payload(&client.start().unwrap()))
                .unwrap()
                .challenge(&VERIFIERS[mechanism], &ServerNonce::from_random([2; 24]));
            let Ok(Step::Derive(derivation)) = client.on_reply(&reply(&challenge, false)) else {
                panic!("it is right")
            };
            derivation.derive()
        })
    });
    &KEYS
}

fn tampered(mechanism: usize, changes: &[Change]) {
    let mut changed = false;
    let mut over_the_line = |number: u8, message: Vec<u8>| {
        let mut message = message;
        let before = message.clone();
        for change in changes.iter().filter(|change| change.message % 4 == number) {
            let at = usize::from(change.at) % message.len();
            message[at] = change.to;
        }
        changed |= message != before;
        message
    };
    let (mut client, mut server_accepts) = (conversation(mechanism), false);
    let mut talk = || -> Option<Step> {
        let first = over_the_line(0, payload(&client.start()?));
        let first = ClientFirst::parse(&first).ok()?;
        let (server, challenge) = first.challenge(&VERIFIERS[mechanism], &ServerNonce::from_random([2; 24]));
        let challenge = over_the_line(1, challenge);
        let Ok(Step::Derive(derivation)) = client.on_reply(&reply(&challenge, false)) else { return None };
        // Another salt or another count gives other keys.
        let keys =
            if derivation.id() == &VERIFIERS[mechanism].id { &keys()[mechanism] } else { &keys()[1 - mechanism] };
        let Ok(Step::Send(last)) = client.on_keys(keys) else { return None };
        let proven = server.on_client_final(&over_the_line(2, payload(&last))).ok()?;
        server_accepts = true;
        client.on_reply(&reply(&over_the_line(3, proven.server_final), true)).ok()
    };
    let done = matches!(talk(), Some(Step::Done));
    assert_eq!(done, !changed, "both are convinced when and only when nothing was changed");
    assert!(server_accepts || !done);
}

fn made_up_server(mechanism: usize, replies: &[Vec<u8>]) {
    let mut client = conversation(mechanism);
    let mut nonce_went = false;
    for bytes in replies {
        let raw = RawDocument::from_bytes(bytes).ok().map(RawDocument::to_owned);
        // Mostly only what stands in the payload is made up, and it begins as it should.
        let text = if nonce_went {
            bytes.clone()
        } else {
            [&payload(&conversation(mechanism).start().unwrap())[3..], bytes].concat()
        };
        let text = text.split_first_chunk::<12>().map_or(text.clone(), |(_, rest)| rest.to_vec());
        let reply = raw.unwrap_or_else(|| reply(&text, bytes.len() % 2 == 0));
        match client.on_reply(&reply) {
            Ok(Step::Done) => panic!("a server that knows nothing is taken for the right one"),
            Ok(Step::Derive(derivation)) => {
                assert!((4096..=10_000_000).contains(&derivation.id().iterations()));
                nonce_went = true;
                assert!(matches!(client.on_keys(&keys()[mechanism]), Ok(Step::Send(_))));
            }
            Ok(Step::Send(_)) => panic!("nothing more is said to who has not proved itself"),
            Err(_) => {
                assert!(client.on_reply(&reply).is_err(), "it has ended");
                return;
            }
        }
    }
}

fn made_up_client(mechanism: usize, first: &[u8], last: &[u8]) {
    let Ok(first) = ClientFirst::parse(first) else { return };
    assert!(!first.user().is_empty() && first.user().len() <= MAX_PAYLOAD_BYTES);
    let known = (first.user() == USER).then(|| VERIFIERS[mechanism].clone());
    let decoys = Decoys::new([5; 32]);
    let verifier = known.unwrap_or_else(|| decoys.verifier_of(None, MECHANISMS[mechanism], first.user()));
    let (server, challenge) = first.challenge(&verifier, &ServerNonce::from_random([2; 24]));
    assert!(challenge.len() <= 2 * MAX_PAYLOAD_BYTES);
    // With the right beginning, as a fuzzer cannot guess the nonce; the proof is made up.
    let nonce = String::from_utf8(challenge).unwrap();
    let nonce = nonce.split(',').next().unwrap().to_owned();
    let right = [format!("c=biws,{nonce},p=").as_bytes(), last].concat();
    for message in [last, &right] {
        assert!(server.clone().on_client_final(message).is_err(), "nobody is let in without the password");
    }
}
