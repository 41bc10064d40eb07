//! Who may ask for what on the admin port.
//!
//! Probes and metrics are for everybody. The rest is for this machine, or for whoever knows a token or has a certificate that the
//! handshake has verified; and never for a page in a browser that comes from elsewhere, however it got there: with the address of this port under a name of its own, or with a
//! request that browsers send without asking. No I/O here.

use std::fmt;
use std::sync::{Arc, Mutex};

use axum::http::{HeaderMap, Method, StatusCode, header};
use sha2::{Digest as _, Sha256};
use subtle::ConstantTimeEq as _;

use crate::config::Address;
use crate::upstream::pool::lock;

/// Orders have this header: browsers do not send one of such a name to another site without asking there first.
pub const ORDER_HEADER: &str = "x-mongomux";

/// Tokens at once: an old and a new one for each of a few who ask.
const MAX_TOKENS: usize = 16;

/// Fewer characters could be guessed.
const MIN_TOKEN_BYTES: usize = 16;

/// More is no token but another file.
const MAX_TOKEN_BYTES: usize = 1_024;

/// What the admin port asks for.
#[derive(Debug)]
pub struct Access {
    address: Address,
    /// Nobody gets more than probes and metrics.
    probes_only: bool,
    /// Where there are some, one of them is needed, or a certificate.
    tokens: Option<Arc<AdminTokens>>,
    /// A certificate is needed, or a token.
    certificates: bool,
}

/// Who asks.
#[derive(Debug, Clone)]
pub struct Caller {
    /// An address, or `unix socket`.
    pub from: Arc<str>,
    /// The subject of the certificate that it has shown, which was verified.
    pub certificate: Option<Arc<str>>,
}

/// Who asks, as far as it was looked at.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Who {
    /// Whoever is on this machine.
    Local,
    /// Who knows the token of that number, counted from 1.
    Token(usize),
    /// Who has a certificate of that subject.
    Certificate(Arc<str>),
}

impl fmt::Display for Who {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Local => f.write_str("this machine"),
            Self::Token(number) => write!(f, "token {number}"),
            Self::Certificate(subject) => write!(f, "certificate {subject}"),
        }
    }
}

/// A request that is refused.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Denied {
    /// How it is answered.
    pub status: StatusCode,
    /// What would be right.
    pub why: &'static str,
}

const fn forbidden(why: &'static str) -> Denied {
    Denied { status: StatusCode::FORBIDDEN, why }
}

impl Access {
    /// Of a port at `address`.
    pub fn new(address: Address, probes_only: bool, tokens: Option<Arc<AdminTokens>>) -> Self {
        Self { address, probes_only, tokens, certificates: false }
    }

    /// Asks for a certificate as well, of which a caller needs one or the other.
    pub fn with_certificates(self) -> Self {
        Self { certificates: true, ..self }
    }

    /// Decides about a request for more than probes and metrics. `certificate` is the subject of that which the caller has
    /// shown, and `has_body` says that something follows the request's head.
    ///
    /// # Errors
    /// [`Denied`].
    pub fn admit(
        &self,
        method: &Method,
        headers: &HeaderMap,
        certificate: Option<&Arc<str>>,
        has_body: bool,
    ) -> Result<Who, Denied> {
        // What others reach without having to prove anything; a configuration that means more by it is not accepted.
        let open_to_all = self.tokens.is_none() && !self.certificates && !self.address.is_loopback();
        if self.probes_only || open_to_all {
            return Err(forbidden(
                "here only /livez, /readyz and /metrics are served: for the rest set admin_token_file or admin_tls_ca_file, or \
                 let the admin port listen on a loopback address or a unix socket",
            ));
        }
        let who = self.who(headers, certificate)?;
        if !is_same_site(headers) {
            return Err(forbidden("requests from pages of other sites are refused"));
        }
        if method == Method::POST {
            if !headers.contains_key(ORDER_HEADER) {
                return Err(forbidden("orders need a header that pages of other sites cannot send: X-Mongomux: 1"));
            }
            if has_body && !is_json(headers) {
                return Err(Denied {
                    status: StatusCode::UNSUPPORTED_MEDIA_TYPE,
                    why: "the body of an order is JSON: Content-Type: application/json",
                });
            }
        }
        Ok(who)
    }

    fn who(&self, headers: &HeaderMap, certificate: Option<&Arc<str>>) -> Result<Who, Denied> {
        if let Some(subject) = certificate.filter(|_| self.certificates) {
            return Ok(Who::Certificate(subject.clone()));
        }
        match &self.tokens {
            Some(tokens) => tokens.number_of(bearer(headers)).map(Who::Token).ok_or(Denied {
                status: StatusCode::UNAUTHORIZED,
                why: "this needs a token of admin_token_file, in a header: Authorization: Bearer TOKEN, or where \
                      admin_tls_ca_file is set a certificate",
            }),
            None if self.certificates => {
                Err(forbidden("this needs a certificate of one of admin_tls_ca_file's authorities"))
            }
            None if self.is_called_by_our_name(headers) => Ok(Who::Local),
            None => Err(forbidden("the Host header names another host: call this port by a loopback address")),
        }
    }

    /// A page whose own name was made to mean this port calls it by that name. Over a unix socket no page comes.
    fn is_called_by_our_name(&self, headers: &HeaderMap) -> bool {
        let Address::Tcp { host: ours, .. } = &self.address else { return true };
        // What browsers never leave out.
        let Some(host) = headers.get(header::HOST) else { return true };
        let name = host.to_str().unwrap_or_default();
        let without_port = match name.rsplit_once(':') {
            Some((before, port)) if port.bytes().all(|byte| byte.is_ascii_digit()) => before,
            _ => name,
        };
        let name = without_port.trim_start_matches('[').trim_end_matches(']');
        let loopback = name.parse::<std::net::IpAddr>().is_ok_and(|ip| ip.is_loopback());
        loopback || name.eq_ignore_ascii_case("localhost") || name.eq_ignore_ascii_case(ours)
    }
}

/// What a browser says about the page that asks: programs do not.
fn is_same_site(headers: &HeaderMap) -> bool {
    let Some(origin) = headers.get(header::ORIGIN) else { return true };
    let host = headers.get(header::HOST).map_or(b"".as_slice(), |host| host.as_bytes());
    let origin = origin.as_bytes();
    let named = origin.strip_prefix(b"http://").or_else(|| origin.strip_prefix(b"https://"));
    !host.is_empty() && named == Some(host)
}

fn is_json(headers: &HeaderMap) -> bool {
    let kind = headers.get(header::CONTENT_TYPE).and_then(|kind| kind.to_str().ok()).unwrap_or_default();
    let kind = kind.split(';').next().unwrap_or_default().trim();
    kind.eq_ignore_ascii_case("application/json")
}

fn bearer(headers: &HeaderMap) -> Option<&[u8]> {
    let value = headers.get(header::AUTHORIZATION)?.as_bytes();
    let (scheme, token) = value.split_at_checked(7)?;
    scheme.eq_ignore_ascii_case(b"bearer ").then(|| token.trim_ascii())
}

/// The tokens of a file; only what they hash to is kept.
pub struct AdminTokens(Mutex<Arc<[TokenHash]>>);

type TokenHash = [u8; 32];

/// Numbers and lengths tell nothing, and neither do hashes need to be told.
impl fmt::Debug for AdminTokens {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("<tokens>")
    }
}

/// Why a text holds no tokens. Never shows any of it.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum TokenError {
    /// Nothing but comments.
    #[error("there is no token in it: expected one per line, as `openssl rand -hex 32` makes them")]
    None,
    /// Too many lines.
    #[error("there are more than {MAX_TOKENS} tokens in it")]
    Many,
    /// A line that is none.
    #[error(
        "line {0} is no token: expected {MIN_TOKEN_BYTES} to {MAX_TOKEN_BYTES} visible characters without spaces, as \
         `openssl rand -hex 32` makes them"
    )]
    Malformed(usize),
}

impl AdminTokens {
    /// Reads the text of a file: one token per line; empty lines and those that begin with `#` do not count.
    ///
    /// # Errors
    /// [`TokenError`].
    pub fn parse(text: &str) -> Result<Self, TokenError> {
        hashes(text).map(|hashes| Self(Mutex::new(hashes)))
    }

    /// Puts those of `text` in the place of those that were known; they stay when there are none in it.
    ///
    /// # Errors
    /// [`TokenError`].
    pub fn replace(&self, text: &str) -> Result<usize, TokenError> {
        let hashes = hashes(text)?;
        let count = hashes.len();
        *lock(&self.0) = hashes;
        Ok(count)
    }

    /// The number of a token, counted from 1. Takes as long for a wrong one as for a right one, whatever they share and however
    /// long they are: hashes are compared, and all of them.
    fn number_of(&self, token: Option<&[u8]>) -> Option<usize> {
        let hash: TokenHash = Sha256::digest(token?).into();
        let known = lock(&self.0).clone();
        let mut number = None;
        for (index, other) in known.iter().enumerate() {
            if bool::from(other.ct_eq(&hash)) {
                number = Some(index + 1);
            }
        }
        number
    }
}

fn hashes(text: &str) -> Result<Arc<[TokenHash]>, TokenError> {
    let mut hashes = Vec::new();
    for (index, line) in text.lines().enumerate() {
        let token = line.trim();
        if token.is_empty() || token.starts_with('#') {
            continue;
        }
        let is_token = (MIN_TOKEN_BYTES..=MAX_TOKEN_BYTES).contains(&token.len())
            && token.bytes().all(|byte| byte.is_ascii_graphic());
        if !is_token {
            return Err(TokenError::Malformed(index + 1));
        }
        hashes.push(Sha256::digest(token).into());
    }
    match hashes.len() {
        0 => Err(TokenError::None),
        1..=MAX_TOKENS => Ok(hashes.into()),
        _ => Err(TokenError::Many),
    }
}

#[cfg(test)]
mod tests {
    use axum::http::{HeaderName, HeaderValue};

    use super::*;

    const OLD: &str = "0123456789abcdef0123456789abcdef";
    const NEW: &str = "fedcba9876543210fedcba9876543210";

    fn headers(named: &[(&'static str, &str)]) -> HeaderMap {
        let header = |(name, value): &(&'static str, &str)| {
            (HeaderName::from_static(name), HeaderValue::from_str(value).unwrap())
        };
        named.iter().map(header).collect()
    }

    fn access(address: &str, tokens: Option<&str>) -> Access {
        let tokens = tokens.map(|text| Arc::new(AdminTokens::parse(text).unwrap()));
        Access::new(address.parse().unwrap(), false, tokens)
    }

    fn get(access: &Access, named: &[(&'static str, &str)]) -> Result<Who, u16> {
        access.admit(&Method::GET, &headers(named), None, false).map_err(|denied| denied.status.as_u16())
    }

    fn post(access: &Access, named: &[(&'static str, &str)], has_body: bool) -> Result<Who, u16> {
        access.admit(&Method::POST, &headers(named), None, has_body).map_err(|denied| denied.status.as_u16())
    }

    #[test]
    fn this_machine_needs_no_token_and_others_get_nothing_without_one() {
        let local = access("127.0.0.1:9627", None);
        for host in ["localhost", "localhost:9627", "127.0.0.1:9627", "127.5.5.5", "[::1]:9627", "[::1]", "LOCALHOST"] {
            assert_eq!(get(&local, &[("host", host)]), Ok(Who::Local), "{host}");
        }
        assert_eq!(get(&local, &[]), Ok(Who::Local));
        assert_eq!(get(&access("0.0.0.0:9627", None), &[("host", "localhost")]), Err(403));
        let probes = Access::new("127.0.0.1:1".parse().unwrap(), true, None);
        assert_eq!(get(&probes, &[("host", "localhost")]), Err(403));
    }

    #[test]
    fn a_certificate_counts_as_a_token_where_it_is_asked_for() {
        let subject: Arc<str> = "CN=somebody".into();
        let with = |access: &Access, certificate: Option<&Arc<str>>, named: &[(&'static str, &str)]| {
            let admitted = access.admit(&Method::GET, &headers(named), certificate, false);
            admitted.map_err(|denied| denied.status.as_u16())
        };
        let (shown, token) = (Who::Certificate(subject.clone()), ("authorization", &*format!("Bearer {OLD}")));
        for address in ["0.0.0.0:1", "127.0.0.1:1"] {
            let asked = access(address, None).with_certificates();
            assert_eq!(with(&asked, Some(&subject), &[("host", "proxy.example")]), Ok(shown.clone()));
            assert_eq!(with(&asked, None, &[("host", "localhost")]), Err(403));
            assert_eq!(with(&asked, None, &[token]), Err(403), "there are no tokens");
            let both = access(address, Some(OLD)).with_certificates();
            assert_eq!(with(&both, Some(&subject), &[]), Ok(shown.clone()));
            assert_eq!(with(&both, None, &[token]), Ok(Who::Token(1)));
            assert_eq!(with(&both, None, &[]), Err(401));
            let page = [("host", "proxy.example"), ("origin", "https://evil.example")];
            assert_eq!(with(&both, Some(&subject), &page), Err(403), "a browser shows it to whoever asks");
            let order = both.admit(&Method::POST, &headers(&[]), Some(&subject), false);
            assert_eq!(order.map_err(|denied| denied.status.as_u16()), Err(403));
        }
        assert_eq!(with(&access("0.0.0.0:1", None), Some(&subject), &[]), Err(403), "nobody asked for it");
        assert_eq!(with(&access("0.0.0.0:1", Some(OLD)), Some(&subject), &[]), Err(401));
        let probes = Access::new("0.0.0.0:1".parse().unwrap(), true, None).with_certificates();
        assert_eq!(with(&probes, Some(&subject), &[]), Err(403));
        assert_eq!(shown.to_string(), "certificate CN=somebody");
    }

    #[test]
    fn a_name_that_was_made_to_mean_this_port_opens_nothing() {
        let local = access("127.0.0.1:9627", None);
        for host in
            ["evil.example", "evil.example:9627", "localhost.evil.example", "10.0.0.1:9627", "", "127.0.0.1.evil"]
        {
            assert_eq!(get(&local, &[("host", host)]), Err(403), "{host}");
        }
        let unix = access("unix:/run/admin", None);
        assert_eq!(get(&unix, &[("host", "anything")]), Ok(Who::Local));
        let named = access("localhost:9627", None);
        assert_eq!(get(&named, &[("host", "localhost:1")]), Ok(Who::Local));
    }

    #[test]
    fn pages_of_other_sites_are_refused_and_our_own_are_not() {
        let local = access("127.0.0.1:9627", None);
        for (host, origin, expected) in [
            ("localhost:9627", "http://localhost:9627", Ok(Who::Local)),
            ("[::1]:9627", "http://[::1]:9627", Ok(Who::Local)),
            ("localhost:9627", "http://evil.example", Err(403)),
            ("localhost:9627", "http://localhost:3000", Err(403)),
            ("localhost:9627", "null", Err(403)),
            ("", "http://", Err(403)),
            ("evil.example:9627", "http://evil.example:9627", Err(403)),
        ] {
            assert_eq!(get(&local, &[("host", host), ("origin", origin)]), expected, "{host} {origin}");
        }
    }

    #[test]
    fn orders_need_what_browsers_do_not_send_unasked() {
        let local = access("127.0.0.1:9627", None);
        let (order, json) = (("x-mongomux", "1"), ("content-type", "application/json"));
        assert_eq!(post(&local, &[], false), Err(403));
        assert_eq!(post(&local, &[json], true), Err(403));
        assert_eq!(post(&local, &[order], false), Ok(Who::Local));
        assert_eq!(post(&local, &[order, json], true), Ok(Who::Local));
        assert_eq!(post(&local, &[order, ("content-type", "Application/JSON; charset=utf-8")], true), Ok(Who::Local));
        for other in
            ["text/plain", "application/x-www-form-urlencoded", "application/jsonp", "text/plain; application/json"]
        {
            assert_eq!(post(&local, &[order, ("content-type", other)], true), Err(415), "{other}");
        }
        assert_eq!(post(&local, &[order], true), Err(415));
        let guarded = access("0.0.0.0:9627", Some(OLD));
        let token = ("authorization", "Bearer 0123456789abcdef0123456789abcdef");
        assert_eq!(post(&guarded, &[token], false), Err(403), "a token alone gives no orders");
        assert_eq!(post(&guarded, &[token, order], false), Ok(Who::Token(1)));
    }

    #[test]
    fn a_token_is_needed_wherever_there_is_one() {
        for address in ["127.0.0.1:9627", "0.0.0.0:9627", "unix:/run/admin"] {
            let access = access(address, Some(&format!("# old\n{OLD}\n\n  {NEW}\r\n")));
            assert_eq!(get(&access, &[("host", "localhost")]), Err(401), "{address}");
            let with = |value: &str| get(&access, &[("authorization", value), ("host", "proxy.example")]);
            assert_eq!(with(&format!("Bearer {OLD}")), Ok(Who::Token(1)));
            assert_eq!(with(&format!("bearer  {NEW}")), Ok(Who::Token(2)));
            for wrong in [
                OLD.to_owned(),
                format!("Basic {OLD}"),
                format!("Bearer {}", &OLD[1..]),
                format!("Bearer {OLD}0"),
                format!("Bearer {OLD} {NEW}"),
                "Bearer # old".to_owned(),
                "Bearer ".to_owned(),
                "Bear".to_owned(),
                String::new(),
            ] {
                assert_eq!(with(&wrong), Err(401), "{wrong}");
            }
        }
    }

    #[test]
    fn tokens_are_replaced_and_kept_when_there_are_none() {
        let tokens = AdminTokens::parse(OLD).unwrap();
        let number = |token: &str| tokens.number_of(Some(token.as_bytes()));
        assert_eq!((number(OLD), number(NEW)), (Some(1), None));
        assert_eq!(tokens.replace(&format!("{NEW}\n{OLD}")), Ok(2));
        assert_eq!((number(OLD), number(NEW)), (Some(2), Some(1)));
        assert_eq!(tokens.replace("# nothing yet\n"), Err(TokenError::None));
        assert_eq!(number(OLD), Some(2));
        assert_eq!(tokens.replace(NEW), Ok(1));
        assert_eq!((number(OLD), number(NEW)), (None, Some(1)));
        assert_eq!(format!("{tokens:?}"), "<tokens>");
    }

    #[test]
    fn what_is_no_token_is_told_by_line_and_not_shown() {
        let told = |text: &str| AdminTokens::parse(text).err().map(|error| error.to_string()).unwrap_or_default();
        assert!(told("").contains("no token"));
        for wrong in ["short-secret", "a secret with some spaces", "geheim-geheim-gehéim", &"x".repeat(1_025)] {
            let told = told(&format!("{OLD}\n{wrong}"));
            assert!(told.starts_with("line 2 is no token") && !told.contains("secret"), "{told}");
            assert!(!told.contains("geheim"));
        }
        assert!(told(&format!("{OLD}\n").repeat(17)).contains("more than 16"));
    }
}
