//! A connection string cut into its parts, and what becomes of each option.

use std::collections::BTreeSet;

use super::compression::Compression;
use super::mistakes::Mistakes;
use super::{Mechanism, UriError, refuse, tls};

/// A connection string cut at the places where the driver cuts it.
pub(super) struct Parts<'a> {
    pub(super) scheme: &'a str,
    pub(super) user_info: Option<&'a str>,
    /// Hosts, and the database where one is named.
    pub(super) location: &'a str,
    options: &'a str,
}

impl<'a> Parts<'a> {
    /// Finds the mistakes that the driver would report by quoting what may be a password.
    pub(super) fn split(text: &'a str) -> Result<Self, UriError> {
        let (scheme, rest) = text
            .split_once("://")
            .filter(|(scheme, _)| matches!(*scheme, "mongodb" | "mongodb+srv"))
            .ok_or_else(|| refuse("a connection string starts with mongodb:// or mongodb+srv://"))?;
        let (before, options) = rest.split_once('?').unwrap_or((rest, ""));
        let (user_info, location) = match before.rsplit_once('@') {
            Some((user_info, location)) => (Some(user_info), location),
            None if options.contains('@') => {
                return Err(refuse(
                    "there is an `@` after the first `?`: write `?` as %3F in a password, `@` as %40 elsewhere",
                ));
            }
            None => (None, before),
        };
        Ok(Self { scheme, user_info, location, options })
    }

    /// Looks at the ports, which the driver would report by quoting them.
    pub(super) fn check_ports(&self, mistakes: &mut Mistakes) {
        let hosts = self.location.split_once('/').map_or(self.location, |(hosts, _)| hosts);
        for host in hosts.split(',').filter(|host| !host.starts_with('[') && !host.ends_with(".sock")) {
            if let Some((name, port)) = host.split_once(':')
                && !port.parse::<u16>().is_ok_and(|port| port > 0)
            {
                mistakes.hosts = true;
                mistakes.add(refuse(format!("the port of host `{name}` is no number from 1 to 65535")));
            }
        }
    }

    /// The options, sorted by who is to see them; the others are refused, or ignored with a warning.
    pub(super) fn options(&self, warnings: &mut Vec<String>, mistakes: &mut Mistakes) -> Options<'a> {
        let mut options = Options::default();
        let mut seen = BTreeSet::new();
        for (index, pair) in self.options.split('&').filter(|pair| !pair.is_empty()).enumerate() {
            let Some((name, value)) = pair.split_once('=') else {
                mistakes.add(refuse(format!("option {} is not of the form name=value", index + 1)));
                continue;
            };
            let key = name.to_lowercase();
            if !seen.insert(key.clone()) && key != "readpreferencetags" {
                mistakes.of_option(&key, refuse(format!("{name} is given more than once")));
                continue;
            }
            let taken = match treatment(&key, value) {
                Treatment::Keep => {
                    options.kept.push(pair);
                    Ok(())
                }
                Treatment::Take(take) => {
                    options.shown.push(pair);
                    take(&mut options.ours, value)
                }
                Treatment::TakeSecret(take) => take(&mut options.ours, value),
                Treatment::Drop => Ok(()),
                Treatment::Ignore(why) => {
                    warnings.push(format!("{name} is ignored: {why}"));
                    Ok(())
                }
                Treatment::Refuse(why) => Err(why.to_owned()),
            };
            if let Err(why) = taken {
                mistakes.of_option(&key, refuse(format!("{name}: {why}")));
            }
        }
        warnings.extend(options.ours.compression.warning());
        tls::contradictions(&seen, mistakes);
        options
    }
}

/// The options of a connection string.
#[derive(Default)]
pub(super) struct Options<'a> {
    /// What the driver is to see.
    pub(super) kept: Vec<&'a str>,
    /// What only we act on, as far as it may be shown.
    pub(super) shown: Vec<&'a str>,
    pub(super) ours: Ours,
}

/// What only we act on: the driver does nothing but monitor, and cannot do all that we can.
#[derive(Default)]
pub(super) struct Ours {
    pub(super) compression: Compression,
    pub(super) tls: tls::Extra,
}

pub(super) fn query(options: &[&str]) -> String {
    let question_mark = if options.is_empty() { "" } else { "?" };
    format!("{question_mark}{}", options.join("&"))
}

enum Treatment {
    Keep,
    /// Ours to act on: reads the value, or says why it cannot be.
    Take(fn(&mut Ours, &str) -> Result<(), String>),
    /// The same, and nobody is to see it.
    TakeSecret(fn(&mut Ours, &str) -> Result<(), String>),
    /// Says what is the case anyway.
    Drop,
    Ignore(&'static str),
    Refuse(&'static str),
}

pub(super) const LOAD_BALANCED: &str = "an upstream behind a load balancer is not supported";

/// `key` in lower case.
fn treatment(key: &str, value: &str) -> Treatment {
    match key {
        "readpreference"
        | "readpreferencetags"
        | "maxstalenessseconds"
        | "readconcernlevel"
        | "w"
        | "wtimeoutms"
        | "journal"
        | "retryreads"
        | "retrywrites"
        | "timeoutms"
        | "uuidrepresentation"
        | "adaptiveretries"
        | "maxadaptiveretries"
        | "enableoverloadretargeting" => {
            Treatment::Ignore("it is about operations and belongs in the application's connection string")
        }
        "compressors" => Treatment::Take(|ours, value| ours.compression.take_compressors(value)),
        "zlibcompressionlevel" => Treatment::Take(|ours, value| ours.compression.take_zlib_level(value)),
        "waitqueuesize" | "waitqueuemultiple" => Treatment::Ignore("set wait_queue_size in the configuration"),
        "serverselectiontryonce" => Treatment::Ignore("it is for single-threaded drivers"),
        "tlsdisableocspendpointcheck" | "tlsdisablecertificaterevocationcheck" => {
            Treatment::Ignore("neither OCSP nor revocation lists of servers are looked at")
        }
        "authmechanismproperties" => Treatment::Ignore("no supported mechanism has properties"),
        "authmechanism" if Mechanism::from_name(value).is_none() => {
            Treatment::Refuse("supported are SCRAM-SHA-256, SCRAM-SHA-1, MONGODB-X509 and PLAIN")
        }
        "loadbalanced" if value == "false" => Treatment::Drop,
        "loadbalanced" => Treatment::Refuse(LOAD_BALANCED),
        "tlsallowinvalidhostnames" => Treatment::Take(|ours, value| ours.tls.take_invalid_hostnames(value)),
        "tlscertificatekeyfilepassword" => Treatment::TakeSecret(|ours, value| ours.tls.take_key_password(value)),
        "proxyhost" | "proxyport" | "proxyusername" | "proxypassword" => {
            Treatment::Refuse("SOCKS5 proxies are not supported")
        }
        _ => Treatment::Keep,
    }
}
