//! What to look at when a step to a server fails, in plain words.

use std::io;
use std::time::Duration;

use rustls::{AlertDescription, CertificateError};

use super::Stage;
use crate::auth::sasl::AuthError;
use crate::config::uri::Upstream;
use crate::topology::description::ServerKind;
use crate::upstream::handshake::ConnectError;
use crate::upstream::tls::TlsError;

/// Where the records of a connection string with `mongodb+srv` cannot be had.
pub(super) const SRV: &str = "is the name spelt as the provider gives it, and does the resolver of this machine answer questions for SRV \
                              and TXT records?";

/// Where a name comes from a server.
pub(super) const TOLD: &str = "The name comes from the configuration of the replica set (rs.conf()): all members have to be reachable by \
                               it from here";

/// A step that took too long.
pub(super) fn late(within: Duration) -> String {
    format!("not done within connect_timeout_ms ({})", within.as_millis())
}

/// A step at which nobody answers.
pub(super) fn on_silence(at: Stage) -> String {
    match at {
        Stage::Dns => "the resolver of this machine does not answer: see /etc/resolv.conf (in a container, that of the container)",
        Stage::Tcp => {
            "nothing comes back: a firewall, a security group or a network policy drops it, or the address is wrong. With Atlas, is \
             this machine's address on the IP access list?"
        }
        Stage::Tls => "the port takes connections and does not speak TLS: is it the right port, and does the server have TLS?",
        Stage::Hello => {
            "the port takes connections and nobody answers there: is it MongoDB's port? Does the server expect TLS (tls=true), or \
             hang?"
        }
        Stage::Authentication | Stage::Ping => "the server answers no more: is it overloaded, or stopped?",
    }
    .to_owned()
}

/// A step that failed.
pub(super) fn on(at: Stage, error: &ConnectError, upstream: &Upstream) -> String {
    match error {
        ConnectError::Dial(_) if at == Stage::Dns => {
            "the name is not known here: is it spelt right, and does the resolver of this machine know it (in a container, that of the \
             container)?"
                .to_owned()
        }
        ConnectError::Dial(error) => on_dial(error),
        ConnectError::Tls(TlsError::Handshake(error)) => on_tls(error),
        ConnectError::Tls(_) => "the TLS options of the connection string do not fit this host".to_owned(),
        ConnectError::Timeout(_) => on_silence(at),
        ConnectError::Broken(_) | ConnectError::Hello(_) if at == Stage::Hello => match upstream.tls {
            Some(_) => "what answers there does not speak MongoDB's protocol: is it the right port?".to_owned(),
            None => {
                "what answers there does not speak MongoDB's protocol: is it the right port, and not one for HTTP or for TLS (tls=true)?"
                    .to_owned()
            }
        },
        ConnectError::Broken(_) | ConnectError::Hello(_) => "the server ended the connection: its log says why".to_owned(),
        ConnectError::TooOld { .. } => "the server is too old for mongomux: MongoDB 4.4 is the oldest".to_owned(),
        ConnectError::Auth { error, .. } => on_auth(error, upstream),
    }
}

fn on_dial(error: &io::Error) -> String {
    match error.kind() {
        io::ErrorKind::ConnectionRefused => {
            "nobody listens there: is mongod running, at this port, and at an address that can be reached from here (net.bindIp)?"
        }
        io::ErrorKind::TimedOut => return on_silence(Stage::Tcp),
        io::ErrorKind::NetworkUnreachable | io::ErrorKind::HostUnreachable => {
            "there is no route to this address: see the network of this machine, and VPN or peering"
        }
        io::ErrorKind::NotFound => "there is no such socket file: is mongod running on this machine?",
        io::ErrorKind::PermissionDenied => "this user may not use the socket",
        _ => "see the network between here and the server",
    }
    .to_owned()
}

fn on_tls(error: &io::Error) -> String {
    let reason = error.get_ref().and_then(|inner| inner.downcast_ref::<rustls::Error>());
    match reason {
        Some(rustls::Error::InvalidCertificate(why)) => match why {
            CertificateError::UnknownIssuer => {
                "the certificate is signed by an authority that is not trusted: tlsCAFile= names the file with the right one"
            }
            CertificateError::NotValidForName | CertificateError::NotValidForNameContext { .. } => {
                "the certificate is for other names than this one: use one of its names in the connection string and in the \
                 configuration of the set, or have a certificate issued for this name"
            }
            CertificateError::Expired | CertificateError::ExpiredContext { .. } => {
                "the certificate has expired (or the clock of this machine is wrong): it has to be renewed on the server"
            }
            CertificateError::NotValidYet | CertificateError::NotValidYetContext { .. } => {
                "the certificate is not valid yet: is the clock of this machine right?"
            }
            // What webpki does not like, by the name that stands in the reason.
            CertificateError::Other(_) => {
                "the server's certificate cannot be used: CaUsedAsEndEntity is one of an authority (CA:TRUE, as `openssl req -x509` makes \
                 them), which signs those of servers and cannot be one itself; UnsupportedCertVersion one without extensions"
            }
            _ => "the server's certificate cannot be used",
        },
        Some(rustls::Error::AlertReceived(
            AlertDescription::CertificateRequired | AlertDescription::BadCertificate | AlertDescription::UnknownCA,
        )) => "the server wants another certificate of ours: tlsCertificateKeyFile=, signed by an authority that it trusts",
        Some(rustls::Error::InvalidMessage(_)) => {
            "what answers there does not speak TLS: is it the right port, and does the server have TLS?"
        }
        Some(rustls::Error::PeerIncompatible(_)) => "the server speaks only versions or ciphers of TLS that are not safe any more",
        _ => "the server ended the handshake: does it have TLS at this port, and does it want a certificate (tlsCertificateKeyFile=)?",
    }
    .to_owned()
}

fn on_auth(error: &AuthError, upstream: &Upstream) -> String {
    let source = upstream.credential.as_ref().map_or("admin", |credential| credential.source.as_str());
    match error {
        AuthError::Refused { code: 334, .. } => {
            "the server does not offer this mechanism to this user: see authMechanism= in the connection string"
                .to_owned()
        }
        AuthError::Refused { .. } | AuthError::Scram(_) => format!(
            "user, password or database are wrong: the user was looked for in `{source}` (authSource=), which has to be the database \
             that it was created in. In a connection string, special characters of a password are written with % (`@` as %40)"
        ),
        AuthError::NotLoggedIn | AuthError::Protocol(_) => "the server's answers make no sense here".to_owned(),
    }
}

/// What a server is, where the connection string wants something else.
pub(super) fn on_kind(kind: ServerKind, set_name: Option<&str>, upstream: &Upstream) -> Option<(String, String)> {
    let wanted = upstream.replica_set.as_deref();
    let said = |error: String, advice: &str| Some((error, advice.to_owned()));
    match (kind, wanted, set_name) {
        (ServerKind::RsGhost, ..) => said(
            "a member of a replica set that has not begun".to_owned(),
            "rs.initiate() on it, or wait until it knows its set",
        ),
        (_, Some(wanted), Some(found)) if wanted != found => said(
            format!("the set is called `{found}`, and the connection string says replicaSet={wanted}"),
            "write replicaSet= as the set is called, or the hosts of the other set",
        ),
        (ServerKind::Standalone, Some(wanted), _) => said(
            format!("a standalone server, and the connection string says replicaSet={wanted}"),
            "leave replicaSet= out, or start mongod with --replSet",
        ),
        (ServerKind::Standalone, None, _) if upstream.seeds.len() > 1 => said(
            "a standalone server among several".to_owned(),
            "name one standalone alone, or members of one replica set",
        ),
        (ServerKind::Unknown, ..) => said("it does not say what it is".to_owned(), "is it MongoDB?"),
        _ => None,
    }
}
