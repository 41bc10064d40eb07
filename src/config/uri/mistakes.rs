//! All that is wrong with a connection string, although the driver tells one mistake at a time.

use std::fmt;

use zeroize::Zeroizing;

use super::parts::{Parts, query};
use super::{ConnectionString, UriError, read_by_driver};

/// In the place of hosts that cannot be read, so that the options can: one name, as SRV wants it.
const STAND_IN_HOST: &str = "host.invalid";
/// Likewise, of a user.
const STAND_IN_USER: &str = "user:password@";

/// Why a connection string cannot be used: everything that is wrong with it.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub struct UriErrors(pub Vec<UriError>);

impl fmt::Display for UriErrors {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (index, error) in self.0.iter().enumerate() {
            write!(f, "{}{error}", if index == 0 { "" } else { "; " })?;
        }
        Ok(())
    }
}

/// What was found so far, and what is not to be judged as it could not be read.
#[derive(Default)]
pub(super) struct Mistakes {
    pub(super) found: Vec<UriError>,
    /// Something that was said about TLS.
    pub(super) tls: bool,
    /// Something about hosts.
    pub(super) hosts: bool,
    /// The user, or something about log-ins.
    pub(super) user: bool,
}

impl Mistakes {
    pub(super) fn add(&mut self, error: UriError) {
        if !self.found.contains(&error) {
            self.found.push(error);
        }
    }

    /// Of an option, `key` in lower case.
    pub(super) fn of_option(&mut self, key: &str, error: UriError) {
        self.tls |= key.starts_with("tls") || key == "ssl";
        self.user |= key.starts_with("auth");
        self.add(error);
    }

    /// Goes on with what there is beside it.
    pub(super) fn keep<T>(&mut self, result: Result<T, UriError>) -> Option<T> {
        result.map_err(|error| self.add(error)).ok()
    }
}

/// What the driver makes of it, without what it refuses. `None` where it refuses even what stands in for the rest.
pub(super) fn connection(parts: &Parts<'_>, options: &[&str], mistakes: &mut Mistakes) -> Option<ConnectionString> {
    let parse = |start: &str, options: &[&str]| {
        read_by_driver(&Zeroizing::new(format!("{}://{start}{}", parts.scheme, query(options))))
    };
    let user_info = Zeroizing::new(parts.user_info.map(|info| format!("{info}@")).unwrap_or_default());
    let own = Zeroizing::new(format!("{}{}", *user_info, parts.location));
    if !mistakes.hosts
        && let Ok(connection) = parse(&own, options)
    {
        return Some(connection);
    }
    let start = start(&parse, &own, &user_info, mistakes)?;
    let mut accepted: Vec<&str> = Vec::new();
    for option in options {
        accepted.push(option);
        if let Err(error) = parse(&start, &accepted) {
            accepted.pop();
            let name = option.split_once('=').map_or(*option, |(name, _)| name);
            mistakes.of_option(&name.to_lowercase(), error);
        }
    }
    parse(&start, &accepted).ok()
}

/// User and hosts, or what stands in for them where they cannot be read.
fn start(
    parse: &impl Fn(&str, &[&str]) -> Result<ConnectionString, UriError>,
    own: &str,
    user_info: &str,
    mistakes: &mut Mistakes,
) -> Option<Zeroizing<String>> {
    if !mistakes.hosts {
        match parse(own, &[]) {
            Ok(_) => return Some(Zeroizing::new(own.to_owned())),
            Err(error) => mistakes.add(error),
        }
    }
    // Whether it is the hosts or the user that cannot be read.
    let without_hosts = Zeroizing::new(format!("{user_info}{STAND_IN_HOST}"));
    mistakes.hosts = true;
    match parse(&without_hosts, &[]) {
        Ok(_) => return Some(without_hosts),
        Err(error) => mistakes.add(error),
    }
    mistakes.user = true;
    let stand_in = format!("{STAND_IN_USER}{STAND_IN_HOST}");
    parse(&stand_in, &[]).is_ok().then(|| Zeroizing::new(stand_in))
}
