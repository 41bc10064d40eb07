//! Orders about clusters, servers and the program, as they are written: the bodies of `POST /admin/...`, and what is answered.
//!
//! Each can be given again: an order that finds nothing left to do is obeyed as well.

use std::pin::Pin;
use std::sync::Arc;
use std::time::Duration;

use axum::extract::{DefaultBodyLimit, Path, State};
use axum::http::StatusCode;
use axum::response::{IntoResponse as _, Response};
use axum::routing::{get, post};
use axum::{Json, Router};
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};

use super::{Admin, Body, error, obeyed};
use crate::config::limits::{ADMIN_BODY_BYTES, PAUSE_TIMEOUT_MAX};
use crate::config::{Address, ConfigErrors, Difference};
use crate::telemetry::EventKind;
use crate::upstream::{Cleaned, Cleanup, Cluster, Server};

/// What has become of a configuration that was loaded again.
#[derive(Debug, Clone, PartialEq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct ReloadAnswer {
    /// What is in force now.
    pub applied: Vec<Difference>,
    /// What is in force after a restart.
    pub needs_restart: Vec<Difference>,
    /// What works, though hardly as intended.
    pub warnings: Vec<String>,
}

/// Loads the configuration again.
pub type ReloadOrder =
    dyn Fn() -> Pin<Box<dyn Future<Output = Result<ReloadAnswer, ConfigErrors>> + Send>> + Send + Sync;

/// Why an order is not obeyed.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Disobeyed {
    /// It makes no sense; says what would.
    Wrong(String),
    /// What it names is not there; says what is.
    Unknown(String),
}

impl Disobeyed {
    /// The answer to whoever asked.
    pub(super) fn into_response(self) -> Response {
        match self {
            Self::Wrong(what) => error(StatusCode::BAD_REQUEST, &what),
            Self::Unknown(what) => error(StatusCode::NOT_FOUND, &what),
        }
    }

    /// What is said of it.
    pub(super) fn into_words(self) -> String {
        match self {
            Self::Wrong(words) | Self::Unknown(words) => words,
        }
    }
}

/// What the audit is told of an order, and its answer.
pub(super) type Obeyed = (Value, String);

fn parse<'b, T: Deserialize<'b>>(body: &'b [u8], example: &str) -> Result<T, Disobeyed> {
    // All of it can be left out, so the body can.
    let body = if body.is_empty() { b"{}" } else { body };
    serde_json::from_slice(body).map_err(|error| Disobeyed::Wrong(format!("body: {error}; expected {example}")))
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
struct Pause {
    cluster: Option<String>,
    database: Option<String>,
    timeout_ms: Option<u64>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Resume {
    cluster: Option<String>,
    database: Option<String>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Which {
    cluster: Option<String>,
    server: Option<String>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct OfCluster {
    cluster: Option<String>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct CleanUp {
    mode: Cleanup,
    cluster: Option<String>,
    server: Option<String>,
}

/// A server that an order is meant for, with its cluster.
type Meant<'c> = (&'c Arc<Cluster>, Arc<Server>);

#[derive(Serialize)]
struct CleanedServer {
    cluster: String,
    server: String,
    #[serde(flatten)]
    cleaned: Cleaned,
}

/// All of them, to be guarded as any order.
pub(super) fn routes() -> Router<Arc<Admin>> {
    let by_mode = get(super::health).post(clean_up_idle);
    Router::new()
        .route("/health/database", by_mode)
        .route("/admin/pause", post(pause))
        .route("/admin/resume", post(resume))
        .route("/admin/reconnect", post(reconnect))
        .route("/admin/cleanup", post(clean_up))
        .route("/admin/reload", post(reload))
        .route("/admin/breakers/{server}/{order}", post(breaker))
        .layer(DefaultBodyLimit::max(ADMIN_BODY_BYTES))
}

async fn pause(State(admin): State<Arc<Admin>>, Body(body): Body) -> Response {
    answered(admin.pause(&body))
}

async fn resume(State(admin): State<Arc<Admin>>, Body(body): Body) -> Response {
    answered(admin.resume(&body))
}

async fn reconnect(State(admin): State<Arc<Admin>>, Body(body): Body) -> Response {
    answered(admin.reconnect(&body))
}

async fn clean_up(State(admin): State<Arc<Admin>>, Body(body): Body) -> Response {
    answered(admin.clean_up(&body))
}

async fn clean_up_idle(State(admin): State<Arc<Admin>>, Body(body): Body) -> Response {
    answered(admin.clean_up_idle(&body))
}

async fn breaker(
    State(admin): State<Arc<Admin>>,
    Path((server, order)): Path<(String, String)>,
    Body(body): Body,
) -> Response {
    answered(admin.breaker(&server, &order, &body))
}

/// All or nothing: a configuration with mistakes is told all of them, and changes nothing.
async fn reload(State(admin): State<Arc<Admin>>) -> Response {
    let Some(reload) = admin.reload.get() else {
        return error(StatusCode::SERVICE_UNAVAILABLE, "the program is still starting");
    };
    match reload().await {
        Ok(answer) => {
            let told = format!("{} applied, {} need a restart", answer.applied.len(), answer.needs_restart.len());
            obeyed(StatusCode::OK, json!(answer), told)
        }
        Err(errors) => {
            let mistakes: Vec<String> = errors.0.iter().map(ToString::to_string).collect();
            let what = "the configuration has mistakes, and nothing was changed";
            (StatusCode::UNPROCESSABLE_ENTITY, Json(json!({"error": what, "mistakes": mistakes}))).into_response()
        }
    }
}

fn answered(order: Result<Obeyed, Disobeyed>) -> Response {
    match order {
        Ok((answer, told)) => obeyed(StatusCode::OK, answer, told),
        Err(disobeyed) => disobeyed.into_response(),
    }
}

impl Admin {
    /// The clusters that an order names; all without a name.
    pub(super) fn clusters_named(&self, name: Option<&str>) -> Result<Vec<&Arc<Cluster>>, Disobeyed> {
        let named = |cluster: &&Arc<Cluster>| name.is_none_or(|name| name == cluster.name);
        let meant: Vec<_> = self.clusters.iter().filter(named).collect();
        match name {
            Some(name) if meant.is_empty() => {
                let known: Vec<&str> = self.clusters.iter().map(|cluster| cluster.name.as_str()).collect();
                Err(Disobeyed::Unknown(format!("cluster: found {name:?}, expected one of {known:?}")))
            }
            _ => Ok(meant),
        }
    }

    /// The servers that an order names, each with its cluster; all without a name.
    fn servers_named(&self, cluster: Option<&str>, server: Option<&str>) -> Result<Vec<Meant<'_>>, Disobeyed> {
        let clusters = self.clusters_named(cluster)?;
        let address = server.map(|text| {
            text.parse::<Address>().map_err(|error| Disobeyed::Wrong(format!("server: found {text:?}: {error}")))
        });
        let address = address.transpose()?;
        let of = |cluster: &'_ Arc<Cluster>| cluster.servers_at(address.as_ref());
        let meant: Vec<_> =
            clusters.iter().flat_map(|cluster| of(cluster).into_iter().map(move |server| (*cluster, server))).collect();
        match server {
            Some(server) if meant.is_empty() => {
                let known = clusters.iter().flat_map(|cluster| cluster.servers());
                let known: Vec<String> = known.map(|server| server.address.to_string()).collect();
                Err(Disobeyed::Unknown(format!("server: found {server:?}, expected one of {known:?}")))
            }
            _ => Ok(meant),
        }
    }

    /// `POST /admin/pause`
    pub(super) fn pause(&self, body: &[u8]) -> Result<Obeyed, Disobeyed> {
        let example = r#"{"cluster": "NAME", "database": "NAME", "timeoutMs": 30000}, each of which may be left out"#;
        let Pause { cluster, database, timeout_ms } = parse(body, example)?;
        let most = PAUSE_TIMEOUT_MAX.as_millis();
        if let Some(found) = timeout_ms.filter(|&found| found == 0 || u128::from(found) > most) {
            return Err(Disobeyed::Wrong(format!("timeoutMs: found {found}, expected 1 to {most} ms")));
        }
        if let Some(found) = database.as_deref().filter(|name| !is_database(name)) {
            return Err(Disobeyed::Wrong(format!("database: found {found:?}, which no database can be called")));
        }
        let timeout = timeout_ms.map(Duration::from_millis);
        let clusters = self.clusters_named(cluster.as_deref())?;
        let ends = timeout.map_or_else(String::new, |timeout| format!(" for {timeout:?}"));
        let told = format!("paused{}{ends}", of_database(database.as_deref()));
        for cluster in &clusters {
            let paused = cluster.pause(database.as_deref(), timeout);
            paused.map_err(|error| Disobeyed::Wrong(format!("cluster {}: {error}", cluster.name)))?;
            self.metrics.events.record(EventKind::Paused, Some(&cluster.name), None, &told);
        }
        let in_flight: u32 = clusters
            .iter()
            .flat_map(|cluster| cluster.servers())
            .map(|server| server.pool.snapshot().counts.in_use)
            .sum();
        let names = names(&clusters);
        let answer = json!({
            "paused": names, "database": database, "timeoutMs": timeout_ms, "inFlight": in_flight,
        });
        Ok((answer, format!("{told} of {}", names.join(", "))))
    }

    /// `POST /admin/resume`
    pub(super) fn resume(&self, body: &[u8]) -> Result<Obeyed, Disobeyed> {
        let example = r#"{"cluster": "NAME", "database": "NAME"}, each of which may be left out"#;
        let Resume { cluster, database } = parse(body, example)?;
        let clusters = self.clusters_named(cluster.as_deref())?;
        let told = format!("goes on{}", of_database(database.as_deref()));
        for cluster in &clusters {
            cluster.resume(database.as_deref());
            self.metrics.events.record(EventKind::Resumed, Some(&cluster.name), None, &told);
        }
        let names = names(&clusters);
        let told = format!("{told} in {}", names.join(", "));
        Ok((json!({"resumed": names, "database": database}), told))
    }

    /// `POST /admin/reconnect`
    pub(super) fn reconnect(&self, body: &[u8]) -> Result<Obeyed, Disobeyed> {
        let Which { cluster, server } =
            parse(body, r#"{"cluster": "NAME", "server": "HOST:PORT"}, each of which may be left out"#)?;
        let meant = self.servers_named(cluster.as_deref(), server.as_deref())?;
        let replaced: Vec<Value> = meant
            .iter()
            .map(|(cluster, server)| {
                let (connections, address) = (server.pool.reconnect(), server.address.to_string());
                let told = format!("{connections} connections are replaced by order, one by one");
                self.metrics.events.record(EventKind::Refresh, Some(&cluster.name), Some(&address), &told);
                json!({"cluster": cluster.name, "server": address, "connections": connections})
            })
            .collect();
        let told = format!("{} servers", replaced.len());
        Ok((json!({"reconnecting": replaced}), told))
    }

    /// `POST /admin/cleanup`
    pub(super) fn clean_up(&self, body: &[u8]) -> Result<Obeyed, Disobeyed> {
        let example = r#"{"mode": "idle" | "soft" | "hard"}, with "cluster": "NAME" and "server": "HOST:PORT" where one is meant"#;
        let CleanUp { mode, cluster, server } = parse(body, example)?;
        self.clean_up_as(mode, cluster.as_deref(), server.as_deref())
    }

    /// `POST /health/database`: what is idle is cleaned up.
    pub(super) fn clean_up_idle(&self, body: &[u8]) -> Result<Obeyed, Disobeyed> {
        #[derive(Deserialize)]
        #[serde(rename_all = "lowercase")]
        enum Action {
            Cleanup,
        }
        #[derive(Deserialize)]
        #[serde(deny_unknown_fields)]
        struct Order {
            action: Action,
        }
        let Order { action: Action::Cleanup } = parse(body, r#"{"action": "cleanup"}"#)?;
        self.clean_up_as(Cleanup::Idle, None, None)
    }

    fn clean_up_as(&self, mode: Cleanup, cluster: Option<&str>, server: Option<&str>) -> Result<Obeyed, Disobeyed> {
        let meant = self.servers_named(cluster, server)?;
        let clean = |(cluster, server): &Meant<'_>| {
            let (cleaned, address) = (server.pool.clean_up(mode), server.address.to_string());
            let told = format!("clean-up ({mode}): {} closed, {} end", cleaned.closed, cleaned.ending);
            self.metrics.events.record(EventKind::Action, Some(&cluster.name), Some(&address), &told);
            CleanedServer { cluster: cluster.name.clone(), server: address, cleaned }
        };
        let servers: Vec<CleanedServer> = meant.iter().map(clean).collect();
        let (closed, ending) = servers
            .iter()
            .fold((0, 0), |(closed, ending), it| (closed + it.cleaned.closed, ending + it.cleaned.ending));
        let told = format!("{mode}: {closed} closed, {ending} end");
        Ok((json!({"mode": mode, "closed": closed, "ending": ending, "servers": servers}), told))
    }

    /// `POST /admin/breakers/{server}/{reset|trip}`
    pub(super) fn breaker(&self, server: &str, order: &str, body: &[u8]) -> Result<Obeyed, Disobeyed> {
        let OfCluster { cluster } = parse(body, r#"{"cluster": "NAME"}, which may be left out"#)?;
        let act: fn(&Server) = match order {
            "trip" => |server| server.trip(),
            "reset" => |server| server.health.reset(),
            _ => return Err(Disobeyed::Unknown(format!("found {order:?}, expected \"reset\" or \"trip\""))),
        };
        let meant = self.servers_named(cluster.as_deref(), Some(server))?;
        meant.iter().for_each(|(_, server)| act(server));
        let state = meant.first().map(|(_, server)| server.health.state().as_str());
        Ok((json!({"server": server, "breaker": state}), format!("{order} of {server}")))
    }
}

/// Whether a database can be called so: what is misspelt like this would pause nothing, and nobody would notice.
fn is_database(name: &str) -> bool {
    (1..64).contains(&name.len()) && !name.contains(|c: char| c.is_control() || " /\\.\"$*<>:|?".contains(c))
}

fn of_database(database: Option<&str>) -> String {
    database.map_or_else(String::new, |database| format!(" database {database:?}"))
}

fn names<'c>(clusters: &[&'c Arc<Cluster>]) -> Vec<&'c str> {
    clusters.iter().map(|cluster| cluster.name.as_str()).collect()
}
