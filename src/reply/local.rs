//! The other answers that the proxy gives itself: about the client's socket, about logins that are not needed, about its
//! own pools.
//!
//! These are the answers under `auth = "none"`. Refusals are in `errors`, hello is in `hello`.

use std::collections::BTreeSet;
use std::sync::Arc;

use bson::raw::{CString, RawArrayBuf, RawDocumentBuf, cstr};
use bson::rawdoc;

use super::errors::{self, ErrorReply};
use crate::config::Address;
use crate::topology::{ServerDescription, ServerKind, TopologyDescription};
use crate::wire::document::{Elements, find, kind};

/// Those of the locally answered commands that belong to version 1 of the stable API.
const API_V1: [&str; 5] = ["hello", "saslStart", "saslContinue", "authenticate", "endSessions"];

/// Checks `apiVersion`, `apiStrict` and `apiDeprecationErrors` of a command that is answered locally; for all others the
/// server does. Without such arguments every command passes.
///
/// # Errors
/// 322, 323, 14 or 4886600, as the server.
pub fn check_api(document: &[u8], name: &str) -> Result<(), ErrorReply> {
    let (mut version, mut strict, mut depends) = (None, false, false);
    for element in Elements::new(document).map_err(|_| errors::invalid_bson())? {
        let element = element.map_err(|_| errors::invalid_bson())?;
        // To a server an argument that is null is one that is not there.
        if matches!(element.kind, kind::NULL | kind::UNDEFINED) {
            continue;
        }
        match element.name {
            b"apiVersion" => match element.as_str() {
                Some(name) => version = Some(name),
                None => return Err(errors::type_mismatch("apiVersion", "string")),
            },
            b"apiStrict" | b"apiDeprecationErrors" => {
                if element.kind != kind::BOOL {
                    return Err(errors::type_mismatch(&String::from_utf8_lossy(element.name), "bool"));
                }
                depends = true;
                strict |= element.name == b"apiStrict" && element.as_truth() == Some(true);
            }
            _ => {}
        }
    }
    match version {
        Some("1") => {}
        Some(other) => return Err(errors::api_version(other)),
        None if depends => return Err(errors::api_arguments_without_version()),
        None => {}
    }
    if strict && !API_V1.contains(&name) {
        return Err(errors::api_strict(name));
    }
    Ok(())
}

/// The answer that says nothing more: to `endSessions`, which is forwarded in the background.
pub fn ok() -> RawDocumentBuf {
    rawdoc! {"ok": 1.0}
}

/// `whatsmyuri`: the client's address as we see it.
pub fn whatsmyuri(peer: &str) -> RawDocumentBuf {
    rawdoc! {"you": peer, "ok": 1.0}
}

/// `connectionStatus` of a client that has not logged in.
pub fn connection_status(document: &[u8]) -> RawDocumentBuf {
    let wants_privileges = find(document, b"showPrivileges").and_then(|element| element.as_truth()) == Some(true);
    let mut identity = rawdoc! {"authenticatedUsers": [], "authenticatedUserRoles": []};
    if wants_privileges {
        identity.append(cstr!("authenticatedUserPrivileges"), bson::RawArrayBuf::new());
    }
    rawdoc! {"authInfo": identity, "ok": 1.0}
}

/// `getnonce`, which was part of a login that no driver does any more; `nonce` is a random number.
pub fn getnonce(nonce: u64) -> RawDocumentBuf {
    rawdoc! {"nonce": format!("{nonce:016x}"), "ok": 1.0}
}

/// A login command of a client that has nothing to log in to: `saslContinue` misses its beginning, `logout` its login,
/// and all others are told to remove their credentials.
pub fn login(name: &str) -> ErrorReply {
    match name {
        "saslContinue" => errors::no_sasl_session(),
        "logout" => errors::not_logged_in(),
        _ => errors::credentials_not_expected(),
    }
}

/// One server's pool, for `connPoolStats`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PoolStats {
    /// The server.
    pub server: Address,
    /// Connections that carry a command.
    pub in_use: u64,
    /// Connections that wait for one.
    pub available: u64,
    /// Connections being established.
    pub pending: u64,
    /// Connections established since the start.
    pub created: u64,
    /// Connections replaced because of their age since the start.
    pub refreshed: u64,
}

impl PoolStats {
    fn add(&mut self, other: &Self) {
        self.in_use += other.in_use;
        self.available += other.available;
        self.pending += other.pending;
        self.created += other.created;
        self.refreshed += other.refreshed;
    }
}

/// `connPoolStats` about our own pools in the server's shape, one pool called `pool_name` over all servers, and the replica sets
/// that we follow. Where two clusters have the same server, that is one host.
pub fn conn_pool_stats(pool_name: &str, pools: &[PoolStats], followed: &[Arc<TopologyDescription>]) -> RawDocumentBuf {
    let mut hosts_stats: Vec<PoolStats> = Vec::new();
    for stats in pools {
        match hosts_stats.iter_mut().find(|host| host.server == stats.server) {
            Some(host) => host.add(stats),
            None => hosts_stats.push(stats.clone()),
        }
    }
    let sum = |count: fn(&PoolStats) -> u64| int(pools.iter().map(count).fold(0, u64::saturating_add));
    let in_use = sum(|pool| pool.in_use);
    let available = sum(|pool| pool.available);
    let created = sum(|pool| pool.created);
    let pending = sum(|pool| pool.pending);
    let refreshed = sum(|pool| pool.refreshed);
    let mut hosts = RawDocumentBuf::new();
    let mut pool = rawdoc! {
        "poolInUse": in_use, "poolAvailable": available, "poolCreated": created, "poolRefreshing": pending,
        "poolRefreshed": refreshed,
    };
    for stats in &hosts_stats {
        let host = rawdoc! {
            "inUse": int(stats.in_use), "available": int(stats.available), "created": int(stats.created),
            "refreshing": int(stats.pending), "refreshed": int(stats.refreshed),
        };
        // A name with a NUL cannot be a key, nor was it ever dialled.
        if let Ok(name) = CString::try_from(stats.server.to_string()) {
            hosts.append(&name, &host);
            pool.append(&name, &host);
        }
    }
    let mut named = RawDocumentBuf::new();
    if let Ok(name) = CString::try_from(pool_name.to_owned()) {
        named.append(name, pool);
    }
    let mut sets = RawDocumentBuf::new();
    let mut seen = BTreeSet::new();
    for topology in followed {
        if let Some(name) = &topology.set_name
            && seen.insert(name)
            && let Ok(key) = CString::try_from(name.clone())
        {
            sets.append(key, rawdoc! {"hosts": topology.servers.values().map(member).collect::<RawArrayBuf>()});
        }
    }
    let monitors = i32::try_from(seen.len()).unwrap_or(i32::MAX);
    // The first two count the server's synchronous and sharded connections; there are no such things here.
    rawdoc! {
        "numClientConnections": 0, "numAScopedConnections": 0, "totalInUse": in_use, "totalAvailable": available,
        "totalCreated": created, "totalRefreshing": pending, "totalRefreshed": refreshed, "pools": named, "hosts": hosts,
        "numReplicaSetMonitorsCreated": monitors, "replicaSets": sets, "ok": 1.0,
    }
}

/// A member of a replica set as a server tells of one that it follows.
fn member(server: &ServerDescription) -> RawDocumentBuf {
    let mut told = rawdoc! {
        "addr": server.address.to_string(),
        "ok": server.is_known(),
        "ismaster": server.kind == ServerKind::RsPrimary,
        // Hidden members are in no list of ours.
        "hidden": false,
        "secondary": server.kind == ServerKind::RsSecondary,
    };
    if let Some(time) = server.round_trip_time {
        told.append(cstr!("pingTimeMillis"), i32::try_from(time.as_millis()).unwrap_or(i32::MAX));
    }
    if !server.tags.is_empty() {
        let mut tags = RawDocumentBuf::new();
        for (name, value) in &server.tags {
            // A name with a NUL cannot be a key, nor come from a document.
            if let Ok(name) = CString::try_from(name.clone()) {
                tags.append(name, value.as_str());
            }
        }
        told.append(cstr!("tags"), tags);
    }
    told
}

/// Counts are `int` in the server's answer; one that does not fit stays at the largest.
fn int(count: u64) -> i32 {
    i32::try_from(count).unwrap_or(i32::MAX)
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use bson::{Document, doc};

    use super::*;

    fn check(name: &str, arguments: Document) -> Option<i32> {
        let mut command = doc! {name: 1};
        command.extend(arguments);
        check_api(&command.to_vec().unwrap(), name).err().map(|error| error.code.number)
    }

    #[test]
    fn api_arguments_are_judged_as_by_the_server() {
        for name in ["hello", "isMaster", "whatsmyuri", "endSessions", "saslStart"] {
            assert_eq!(check(name, doc! {}), None);
            assert_eq!(check(name, doc! {"apiVersion": "1"}), None);
            assert_eq!(check(name, doc! {"apiVersion": "1", "apiStrict": false, "apiDeprecationErrors": true}), None);
            assert_eq!(check(name, doc! {"apiVersion": "2"}), Some(322));
            assert_eq!(check(name, doc! {"apiVersion": 1}), Some(14));
            assert_eq!(check(name, doc! {"apiVersion": "1", "apiStrict": 1}), Some(14));
            assert_eq!(check(name, doc! {"apiStrict": true}), Some(4_886_600));
            assert_eq!(check(name, doc! {"apiVersion": "2", "apiStrict": 1}), Some(14), "types come first");
            assert_eq!(check(name, doc! {"apiVersion": null, "apiStrict": null}), None, "as if they were not there");
            assert_eq!(check(name, doc! {"apiDeprecationErrors": false}), Some(4_886_600));
        }
    }

    #[test]
    fn strict_clients_get_only_what_the_api_has() {
        let strict = doc! {"apiVersion": "1", "apiStrict": true};
        for name in ["hello", "saslStart", "saslContinue", "authenticate", "endSessions"] {
            assert_eq!(check(name, strict.clone()), None);
        }
        for name in ["isMaster", "ismaster", "whatsmyuri", "connectionStatus", "getnonce", "logout", "connPoolStats"] {
            assert_eq!(check(name, strict.clone()), Some(323), "{name}");
        }
    }

    #[test]
    fn small_answers_have_the_shape_of_the_server() {
        assert_eq!(ok(), rawdoc! {"ok": 1.0});
        assert_eq!(whatsmyuri("10.0.0.1:5"), rawdoc! {"you": "10.0.0.1:5", "ok": 1.0});
        assert_eq!(getnonce(0xAB), rawdoc! {"nonce": "00000000000000ab", "ok": 1.0});
        let status = |request: Document| connection_status(&request.to_vec().unwrap());
        let users = rawdoc! {"authenticatedUsers": [], "authenticatedUserRoles": []};
        assert_eq!(status(doc! {"connectionStatus": 1}), rawdoc! {"authInfo": users, "ok": 1.0});
        let full = status(doc! {"connectionStatus": 1, "showPrivileges": true});
        assert!(full.get_document("authInfo").unwrap().get_array("authenticatedUserPrivileges").is_ok());
    }

    #[test]
    fn logins_are_refused_with_what_to_do() {
        let codes = ["saslStart", "authenticate", "saslContinue", "logout"].map(|name| login(name).code.number);
        assert_eq!(codes, [334, 334, 17, 13]);
        let text = login("saslStart").message;
        assert!(text.contains("auth = \"none\"") && text.contains("remove user name, password"), "{text}");
    }

    #[test]
    fn pool_statistics_add_up() {
        let stats = |host: &str, in_use| PoolStats {
            server: Address::tcp(host, 27017),
            in_use,
            available: 3,
            pending: 1,
            created: 20,
            refreshed: u64::MAX,
        };
        let reply = Document::try_from(conn_pool_stats("default", &[stats("db1", 7), stats("db2", 2)], &[])).unwrap();
        let host =
            |in_use| doc! {"inUse": in_use, "available": 3, "created": 20, "refreshing": 1, "refreshed": i32::MAX};
        let expected = doc! {
            "numClientConnections": 0, "numAScopedConnections": 0, "totalInUse": 9, "totalAvailable": 6,
            "totalCreated": 40, "totalRefreshing": 2, "totalRefreshed": i32::MAX,
            "pools": {"default": {
                "poolInUse": 9, "poolAvailable": 6, "poolCreated": 40, "poolRefreshing": 2, "poolRefreshed": i32::MAX,
                "db1:27017": host(7), "db2:27017": host(2),
            }},
            "hosts": {"db1:27017": host(7), "db2:27017": host(2)},
            "numReplicaSetMonitorsCreated": 0, "replicaSets": {}, "ok": 1.0,
        };
        assert_eq!(reply, expected);
    }

    #[test]
    fn replica_sets_are_told_with_their_members() {
        let member = |host: &str, kind| {
            let address = Address::tcp(host, 27017);
            let (tags, round_trip_time) = match kind {
                ServerKind::RsPrimary => {
                    (vec![("dc".to_owned(), "east".to_owned())], Some(Duration::from_micros(2_900)))
                }
                _ => (Vec::new(), None),
            };
            let known =
                ServerDescription { kind, tags, round_trip_time, ..ServerDescription::unknown(address.clone()) };
            (address, known)
        };
        let kinds = [("a", ServerKind::RsPrimary), ("b", ServerKind::RsSecondary), ("c", ServerKind::Unknown)];
        let servers = kinds.into_iter().map(|(host, kind)| member(host, kind)).collect();
        let set = TopologyDescription { set_name: Some("rs".to_owned()), servers, ..TopologyDescription::default() };
        let (set, alone) = (Arc::new(set), Arc::new(TopologyDescription::default()));
        let reply = Document::try_from(conn_pool_stats("default", &[], &[set.clone(), alone, set])).unwrap();
        let told = |addr: &str, ok, ismaster, secondary| {
            doc! {
                "addr": addr, "ok": ok, "ismaster": ismaster, "hidden": false, "secondary": secondary,
            }
        };
        let mut primary = told("a:27017", true, true, false);
        primary.extend(doc! {"pingTimeMillis": 2, "tags": {"dc": "east"}});
        let members = vec![primary, told("b:27017", true, false, true), told("c:27017", false, false, false)];
        assert_eq!(reply.get_document("replicaSets").unwrap(), &doc! {"rs": {"hosts": members}});
        assert_eq!(reply.get_i32("numReplicaSetMonitorsCreated").unwrap(), 1, "two clusters may have the same set");
    }
}
