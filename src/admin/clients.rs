//! What `/clients` tells: who is connected, by what they have told of themselves, and each of them where that is asked for. And
//! the orders to end some.

use std::cmp::Reverse;
use std::collections::BTreeMap;
use std::fmt;
use std::net::IpAddr;
use std::time::Duration;

use serde::{Deserialize, Serialize};

use super::rules::Ruled;
use crate::auth::Identity;
use crate::client::registry::{ClientGroup, ClientSnapshot};
use crate::config::limits::{CLIENTS_SHOWN, MAX_CLIENT_GROUPS};
use crate::reply::ClientMetadata;

/// All of it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct ClientsStats {
    /// Clients that are connected and have begun to speak MongoDB's protocol.
    pub total: usize,
    /// By what they have told, the largest groups first.
    pub groups: Vec<GroupStats>,
    /// Clients of groups that are not shown.
    pub other_clients: usize,
    /// Single ones, where they are asked for: those first that came first.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub clients: Option<Vec<ClientStats>>,
}

/// Clients that have told the same of themselves, at one listener.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct GroupStats {
    /// `appName` of their connection string; empty where none was told.
    pub application: String,
    /// Name of the driver; empty where none was told.
    pub driver: String,
    /// Version of the driver; likewise.
    pub driver_version: String,
    /// The language's runtime, as far as the driver tells.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub platform: Option<String>,
    /// Who they have logged in as.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub user: Option<String>,
    /// Where they connect to.
    pub listener: String,
    /// The cluster that the listener leads to, of several the default.
    pub cluster: String,
    /// How many they are.
    pub clients: usize,
    /// As many have a command under way.
    pub active: usize,
    /// Since when the first of them is here.
    pub oldest_seconds: u64,
}

/// One client.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ClientStats {
    /// Its number: the `connectionId` that drivers log, and what an order to end it names.
    pub id: u64,
    /// Where it is; `unix` for one at a unix socket.
    pub address: String,
    /// As in [`GroupStats`].
    pub application: String,
    /// As in [`GroupStats`].
    pub driver: String,
    /// Of the driver.
    pub version: String,
    /// Who it has logged in as.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub user: Option<String>,
    /// When it came, RFC 3339.
    pub since: String,
    /// `active` from the first byte of a command to the last of its reply, else `idle`.
    pub state: String,
    /// Where it connected to.
    pub listener: String,
}

/// What is asked for.
#[derive(Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ClientQuery {
    list: Option<u8>,
    limit: Option<usize>,
    application: Option<String>,
}

/// An order to end the clients of an application.
#[derive(Debug, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct KillOrder {
    /// Their `appName`.
    pub application: String,
}

/// A client in words.
#[derive(Debug, PartialEq, Eq)]
pub struct NamedClient {
    id: u64,
    application: String,
    address: String,
}

impl fmt::Display for NamedClient {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "client {} of the application {:?} at {}", self.id, self.application, self.address)
    }
}

fn application(metadata: Option<&ClientMetadata>) -> String {
    metadata.and_then(|metadata| metadata.application.as_deref()).unwrap_or_default().to_owned()
}

fn driver(metadata: Option<&ClientMetadata>) -> (String, String) {
    metadata.map(|it| (it.driver_name.clone().into(), it.driver_version.clone().into())).unwrap_or_default()
}

fn shown(user: Option<&Identity>) -> Option<String> {
    user.map(|identity| identity.shown.clone())
}

fn address(address: Option<(IpAddr, u16)>) -> String {
    let written = |(host, port): (IpAddr, u16)| std::net::SocketAddr::from((host, port)).to_string();
    address.map_or_else(|| "unix".to_owned(), written)
}

impl GroupStats {
    fn of(group: &ClientGroup, listener: &Ruled) -> Self {
        let metadata = group.metadata.as_deref();
        let (driver, driver_version) = driver(metadata);
        Self {
            application: application(metadata),
            driver,
            driver_version,
            platform: metadata.and_then(|metadata| metadata.platform.clone()).map(String::from),
            user: shown(group.user.as_deref()),
            listener: listener.address.to_string(),
            cluster: listener.cluster.clone(),
            clients: group.clients,
            active: group.active,
            oldest_seconds: group.oldest.as_secs(),
        }
    }

    fn add(&mut self, other: &Self) {
        self.clients += other.clients;
        self.active += other.active;
        self.oldest_seconds = self.oldest_seconds.max(other.oldest_seconds);
    }
}

impl ClientStats {
    fn of(client: &ClientSnapshot, listener: &str, now: bson::DateTime) -> Self {
        let metadata = client.metadata.as_deref();
        let (driver, version) = driver(metadata);
        Self {
            id: client.number,
            address: address(client.address),
            application: application(metadata),
            driver,
            version,
            user: shown(client.user.as_deref()),
            since: before(now, client.age),
            state: if client.active { "active" } else { "idle" }.to_owned(),
            listener: listener.to_owned(),
        }
    }
}

/// So long before `now`, RFC 3339.
fn before(now: bson::DateTime, age: Duration) -> String {
    let millis = now.timestamp_millis().saturating_sub(i64::try_from(age.as_millis()).unwrap_or(i64::MAX));
    // Fails for years beyond 9999 only.
    bson::DateTime::from_millis(millis).try_to_rfc3339_string().unwrap_or_default()
}

impl ClientQuery {
    /// What is asked for.
    pub fn answer(&self, listeners: &[Ruled], now: bson::DateTime) -> ClientsStats {
        let mut groups = groups(listeners, |group| self.names(group.metadata.as_deref()));
        let total = groups.iter().map(|group| group.clients).sum();
        groups.sort_by_key(|group| Reverse(group.clients));
        let other_clients = groups.iter().skip(MAX_CLIENT_GROUPS).map(|group| group.clients).sum();
        groups.truncate(MAX_CLIENT_GROUPS);
        let clients = self.list.is_some_and(|list| list > 0).then(|| self.list(listeners, now));
        ClientsStats { total, groups, other_clients, clients }
    }

    fn names(&self, metadata: Option<&ClientMetadata>) -> bool {
        let named = metadata.and_then(|metadata| metadata.application.as_deref()).unwrap_or_default();
        self.application.as_ref().is_none_or(|wanted| named == wanted)
    }

    fn list(&self, listeners: &[Ruled], now: bson::DateTime) -> Vec<ClientStats> {
        let mut all = Vec::new();
        for listener in listeners {
            let clients = listener.clients.clients().into_iter();
            let wanted = clients.filter(|client| self.names(client.metadata.as_deref()));
            all.extend(wanted.map(|client| (client, listener)));
        }
        all.sort_unstable_by_key(|(client, _)| client.number);
        // Before they are put into words: of ten thousand, a hundred are shown.
        all.truncate(self.limit.unwrap_or(CLIENTS_SHOWN));
        all.iter().map(|(client, listener)| ClientStats::of(client, &listener.address.to_string(), now)).collect()
    }
}

/// The groups of all listeners; those that read the same are one.
fn groups(listeners: &[Ruled], wanted: impl Fn(&ClientGroup) -> bool) -> Vec<GroupStats> {
    let mut groups = BTreeMap::new();
    for listener in listeners {
        for group in listener.clients.groups().iter().filter(|group| wanted(group)) {
            let group = GroupStats::of(group, listener);
            let key = (
                group.application.clone(),
                group.driver.clone(),
                group.driver_version.clone(),
                group.platform.clone(),
                group.user.clone(),
                group.listener.clone(),
            );
            groups.entry(key).and_modify(|known: &mut GroupStats| known.add(&group)).or_insert(group);
        }
    }
    groups.into_values().collect()
}

/// Ends the client of that number; `None` when there is none.
pub fn kill(listeners: &[Ruled], id: u64) -> Option<NamedClient> {
    listeners.iter().find_map(|listener| {
        let client = listener.clients.clients().into_iter().find(|client| client.number == id)?;
        let named =
            NamedClient { id, application: application(client.metadata.as_deref()), address: address(client.address) };
        // It may have left meanwhile.
        (listener.clients.kill(|number, _| number == id) > 0).then_some(named)
    })
}

/// What is known where there is no client of that number.
pub fn unknown(listeners: &[Ruled], id: u64) -> String {
    let numbers = listeners.iter().flat_map(|listener| listener.clients.clients()).map(|client| client.number);
    let (count, newest) = numbers.fold((0_usize, 0), |(count, newest), number| (count + 1, newest.max(number)));
    let gone = if id > 0 && id <= newest { "it has left, or was never a client" } else { "there was none so far" };
    format!("id: no client {id} is connected, {gone}; {count} are, the newest is {newest}")
}

impl KillOrder {
    /// Reads the body of a request.
    ///
    /// # Errors
    /// What is wrong, where, and what would be right.
    pub fn parse(body: &[u8]) -> Result<Self, String> {
        serde_json::from_slice(body).map_err(|error| format!(r#"body: {error}; expected {{"application": "NAME"}}"#))
    }

    /// Ends them; returns how many.
    pub fn carry_out(&self, listeners: &[Ruled]) -> usize {
        let of_it = |_, metadata: Option<&ClientMetadata>| application(metadata) == self.application;
        listeners.iter().map(|listener| listener.clients.kill(of_it)).sum()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn times_and_addresses_are_written_as_usual() {
        let now = bson::DateTime::from_millis(1_700_000_000_000);
        assert_eq!(before(now, Duration::from_secs(20)), "2023-11-14T22:13:00Z");
        assert_eq!(address(Some(("10.0.0.1".parse().unwrap(), 7))), "10.0.0.1:7");
        assert_eq!(address(Some(("::1".parse().unwrap(), 7))), "[::1]:7");
        assert_eq!(address(None), "unix");
    }

    #[test]
    fn an_order_names_an_application_and_nothing_else() {
        let order = KillOrder { application: "shop".to_owned() };
        assert_eq!(KillOrder::parse(br#"{"application": "shop"}"#), Ok(order));
        for (body, told) in [
            ("", "EOF"),
            ("{}", "missing field `application`"),
            (r#"{"application": "shop", "user": "a"}"#, "unknown field `user`"),
        ] {
            let error = KillOrder::parse(body.as_bytes()).unwrap_err();
            assert!(error.contains(told) && error.contains(r#"{"application": "NAME"}"#), "{error}");
        }
    }
}
