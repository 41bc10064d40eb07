//! The admin port: probes, metrics and stats over HTTP, and the order to drain.
//!
//! It runs on the runtime of the data path, so everything here reads counters, formats them and is done; no handler waits
//! for anything but the short body of an order, and `server_says` for what MongoDB says, one at a time. What is told is put
//! together in [`stats`] and [`advice`], which know no HTTP; sockets, their number and their time are in [`server`]; who may
//! ask for what is decided in [`access`].

pub mod access;
mod actions;
pub mod advice;
pub mod clients;
pub mod events;
#[cfg(test)]
mod fixture;
pub mod gauges;
pub mod history;
pub mod long_held;
pub mod order;
pub mod page;
pub mod pooling;
pub mod recorder;
pub mod rules;
pub mod sampler;
pub mod series;
pub mod server;
pub mod server_says;
pub mod snapshot_log;
pub mod stats;
pub mod suspicions;
pub mod tenants;
pub mod trends;
mod users;

use std::sync::{Arc, OnceLock};
use std::time::Duration;

use arc_swap::ArcSwap;
use axum::body::{Bytes, HttpBody as _};
use axum::extract::rejection::{PathRejection, QueryRejection};
use axum::extract::{DefaultBodyLimit, FromRequest, Path, Query, Request, State};
use axum::http::{HeaderValue, Method, StatusCode, header};
use axum::middleware::{Next, from_fn};
use axum::response::{IntoResponse, Response};
use axum::routing::{get, post};
use axum::{Json, Router};
use serde_json::json;
use tokio::sync::{Mutex, watch};
use tokio::time::{Instant, timeout_at};

use crate::admission::{MemoryBudget, Mode};
use crate::config::Effective;
use crate::config::limits::{ADMIN_BODY_BYTES, ADMIN_RULES_BYTES};
use crate::tasks::Tasks;
use crate::telemetry::logs::LevelsSet;
use crate::telemetry::{EventKind, Events, Metrics, logs};
use crate::upstream::Cluster;

pub use access::{Access, AdminTokens};
use access::{Caller, Denied, Who};
use actions::Disobeyed;
pub use actions::{ReloadAnswer, ReloadOrder};
use clients::{ClientQuery, ClientsStats, KillOrder};
use events::{EventQuery, EventStats};
pub use history::SAMPLE_INTERVAL;
use order::{LogOrder, ModeOrder};
use recorder::Recorder;
pub use rules::Ruled;
use rules::RulesOrder;
use sampler::Histories;
pub use series::STEP;
pub use server::serve;
pub use snapshot_log::log_snapshots;

/// Every path there is, for who asks for another one.
const PATHS: &[&str] = &[
    "/",
    "/livez",
    "/readyz",
    "/metrics",
    "/config",
    "/stats",
    "/clients",
    "/events",
    "/history",
    "/health/database",
    "/admin/pause",
    "/admin/resume",
    "/admin/reconnect",
    "/admin/cleanup",
    "/admin/reload",
    "/admin/breakers/{server}/{reset|trip}",
    "/server",
    "/admin/clients/{id}/kill",
    "/admin/clients/kill",
    "/admin/drain",
    "/admin/log",
    "/admin/mode",
    "/admin/rules",
];

/// As much of an unknown path is told.
const MAX_ACTION_CHARS: usize = 100;

/// The content type of Prometheus' text format.
const METRICS_TYPE: &str = "text/plain; version=0.0.4; charset=utf-8";

/// What the admin port tells of, and what it gives orders to.
pub struct Admin {
    clusters: Vec<Arc<Cluster>>,
    listeners: Vec<Ruled>,
    metrics: Arc<Metrics>,
    memory: Arc<MemoryBudget>,
    /// The last minutes.
    histories: Arc<Histories>,
    /// The last quarter of an hour, to be drawn.
    recorder: Arc<Recorder>,
    /// True from the order to drain on, whoever gave it.
    draining: watch::Sender<bool>,
    /// MongoDB is asked for one caller after the other.
    asking: Mutex<()>,
    /// What is in force; whoever reloads it replaces it here.
    effective: Arc<ArcSwap<Effective>>,
    started: Instant,
    /// Set once the program runs.
    reload: OnceLock<Box<ReloadOrder>>,
}

impl Admin {
    /// `draining` is shared with whoever drains: `POST /admin/drain` sets it, and `/readyz` says no once it is set.
    pub fn new(
        clusters: Vec<Arc<Cluster>>,
        listeners: Vec<Ruled>,
        metrics: Arc<Metrics>,
        memory: Arc<MemoryBudget>,
        draining: watch::Sender<bool>,
        effective: Arc<ArcSwap<Effective>>,
    ) -> Arc<Self> {
        let (histories, recorder) = (Arc::default(), Arc::default());
        Arc::new(Self {
            clusters,
            listeners,
            metrics,
            memory,
            histories,
            recorder,
            draining,
            effective,
            asking: Mutex::default(),
            started: Instant::now(),
            reload: OnceLock::new(),
        })
    }

    /// Has `POST /admin/reload` load the configuration again. Of two calls the first counts.
    pub fn on_reload(&self, reload: Box<ReloadOrder>) {
        // Who is told a second time knows the first.
        drop(self.reload.set(reload));
    }

    /// Remembers from now on how the pools are used, with a sample in each interval.
    pub fn keep_history(&self, interval: Duration, tasks: &Tasks) {
        sampler::keep(self.histories.clone(), self.clusters.clone(), interval, tasks);
    }

    /// Records from now on what `/history` tells, with a point at each step.
    pub fn keep_series(&self, step: Duration, tasks: &Tasks) {
        recorder::keep(self.recorder.clone(), self.clusters.clone(), self.metrics.clone(), step, tasks);
    }

    /// Everything that `/history` tells.
    pub fn series(&self) -> series::History {
        self.recorder.told(&self.clusters, Instant::now())
    }

    /// Why no traffic should come here, one reason per line; `None` when it may.
    pub fn not_ready(&self) -> Option<String> {
        if *self.draining.borrow() {
            return Some("draining".to_owned());
        }
        let reasons = self.clusters.iter().filter_map(|cluster| {
            let reason = match cluster.mode.mode() {
                Mode::Maintenance { .. } => Some("maintenance mode, by order of the operator".to_owned()),
                Mode::Normal | Mode::ReadOnly => cluster.not_ready(),
            };
            reason.map(|reason| format!("{}: {reason}", cluster.name))
        });
        let reasons: Vec<String> = reasons.collect();
        (!reasons.is_empty()).then(|| reasons.join("\n"))
    }

    /// Puts a mode in force; returns the names of the clusters that it holds for.
    ///
    /// # Errors
    /// When no cluster has the name.
    fn switch_mode(&self, order: &ModeOrder) -> Result<Vec<&str>, String> {
        let meant = self.clusters_named(order.cluster.as_deref()).map_err(Disobeyed::into_words)?;
        for cluster in &meant {
            let before = cluster.switch_mode(order.mode);
            let to = order.mode;
            tracing::info!(cluster = %cluster.name, ?before, ?to, "mode was switched");
            let told = format!("is {to} now, was {before}");
            self.metrics.events.record(EventKind::Mode, Some(&cluster.name), None, &told);
        }
        Ok(meant.into_iter().map(|cluster| cluster.name.as_str()).collect())
    }

    /// Puts rules in force; returns the listeners that they hold for, as they are now.
    ///
    /// # Errors
    /// When no listener has the address.
    fn change_rules(&self, order: &RulesOrder) -> Result<Vec<rules::ListenerStats>, String> {
        let named = |listener: &&Ruled| order.listener.as_ref().is_none_or(|address| *address == listener.address);
        let meant: Vec<_> = self.listeners.iter().filter(named).collect();
        if let (true, Some(address)) = (meant.is_empty(), &order.listener) {
            let known: Vec<String> = self.listeners.iter().map(|listener| listener.address.to_string()).collect();
            return Err(format!("listener: found \"{address}\", expected one of {known:?}"));
        }
        for listener in &meant {
            listener.rules.change(|rules| order.apply_to(rules));
            listener.warn_of_unknown_commands();
        }
        Ok(meant.into_iter().map(Ruled::stats).collect())
    }

    /// Everything that `/stats` tells.
    pub fn stats(&self) -> stats::Stats {
        let now = Instant::now();
        let clusters = self.clusters.iter().enumerate();
        let clusters = clusters.map(|(index, cluster)| stats::of_cluster(cluster, &self.histories.of(index), now));
        stats::Stats {
            version: env!("CARGO_PKG_VERSION").to_owned(),
            uptime_seconds: now.duration_since(self.started).as_secs(),
            draining: *self.draining.borrow(),
            surplus_clients: usize::try_from(self.metrics.client_connections_surplus.get()).unwrap_or_default(),
            memory: stats::MemoryStats { used_bytes: self.memory.used(), limit_bytes: self.memory.limit() },
            clusters: clusters.collect(),
            listeners: self.listeners.iter().map(Ruled::stats).collect(),
        }
    }
}

/// All routes.
fn router(admin: Arc<Admin>, access: Arc<Access>) -> Router {
    let log = admin.metrics.events.clone();
    let asked = access.clone();
    let page = get(page::page).route_layer(from_fn(move |request, next| guard_page(asked.clone(), request, next)));
    let open = Router::new()
        .route("/livez", get(async || "alive\n"))
        .route("/readyz", get(readyz))
        .route("/metrics", get(metrics));
    let guarded = Router::new()
        .route("/stats", get(async |State(admin): State<Arc<Admin>>| Json(admin.stats())))
        .route("/clients", get(clients))
        .route("/events", get(events))
        .merge(actions::routes())
        .route("/history", get(async |State(admin): State<Arc<Admin>>| Json(admin.series())))
        .route("/server", get(server_says))
        .route("/admin/clients/{id}/kill", post(kill_client))
        .route("/admin/clients/kill", post(kill_clients).layer(DefaultBodyLimit::max(ADMIN_BODY_BYTES)))
        .route("/config", get(config))
        .route("/admin/drain", post(drain))
        .route("/admin/log", post(change_levels).layer(DefaultBodyLimit::max(ADMIN_BODY_BYTES)))
        .route("/admin/mode", post(switch_mode).layer(DefaultBodyLimit::max(ADMIN_BODY_BYTES)))
        .route("/admin/rules", post(change_rules).layer(DefaultBodyLimit::max(ADMIN_RULES_BYTES)))
        .route_layer(from_fn(move |request, next| guard(access.clone(), request, next)));
    open.merge(guarded)
        .route("/", page)
        .fallback(async || error(StatusCode::NOT_FOUND, "there is no such path"))
        .method_not_allowed_fallback(async || error(StatusCode::METHOD_NOT_ALLOWED, "this path takes another method"))
        .layer(from_fn(move |request, next| audit(log.clone(), request, next)))
        .with_state(admin)
}

async fn readyz(State(admin): State<Arc<Admin>>) -> Response {
    match admin.not_ready() {
        None => "ready\n".into_response(),
        Some(reason) => (StatusCode::SERVICE_UNAVAILABLE, format!("{reason}\n")).into_response(),
    }
}

async fn metrics(State(admin): State<Arc<Admin>>) -> Response {
    gauges::refresh(&admin.clusters, &admin.metrics, &admin.memory, Instant::now());
    ([(header::CONTENT_TYPE, METRICS_TYPE)], admin.metrics.render()).into_response()
}

/// Always 200: the body is the answer. What looks at the status code wants `/readyz`.
async fn health(State(admin): State<Arc<Admin>>) -> Json<stats::Health> {
    Json(stats::Health::of(&admin.stats(), bson::DateTime::now()))
}

async fn events(
    State(admin): State<Arc<Admin>>,
    query: Result<Query<EventQuery>, QueryRejection>,
) -> Result<Json<Vec<EventStats>>, Response> {
    let wrong = |what: String| error(StatusCode::BAD_REQUEST, &what);
    let query = query.map_err(|rejection| wrong(rejection.body_text()))?;
    admin.clusters_named(query.cluster()).map_err(Disobeyed::into_response)?;
    query.answer(&admin.metrics.events).map(Json).map_err(wrong)
}

async fn server_says(State(admin): State<Arc<Admin>>) -> Response {
    // The time in which others are answered is a part of it, so that whoever is behind them gets an answer as well.
    let deadline = Instant::now() + server_says::TIME;
    match timeout_at(deadline, admin.asking.lock()).await {
        Ok(_turn) => Json(json!({"clusters": server_says::ask(&admin.clusters, deadline).await})).into_response(),
        Err(_) => error(StatusCode::SERVICE_UNAVAILABLE, "MongoDB is being asked for somebody else: try again"),
    }
}

async fn clients(
    State(admin): State<Arc<Admin>>,
    query: Result<Query<ClientQuery>, QueryRejection>,
) -> Result<Json<ClientsStats>, Response> {
    let query = query.map_err(|rejection| error(StatusCode::BAD_REQUEST, &rejection.body_text()))?;
    Ok(Json(query.answer(&admin.listeners, bson::DateTime::now())))
}

async fn kill_client(State(admin): State<Arc<Admin>>, id: Result<Path<u64>, PathRejection>) -> Response {
    let id = match id {
        Ok(Path(id)) => id,
        Err(rejection) => return error(StatusCode::BAD_REQUEST, &format!("id: {}", rejection.body_text())),
    };
    match clients::kill(&admin.listeners, id) {
        Some(client) => {
            let told = format!("{client} was ended");
            admin.metrics.events.record(EventKind::ClientKilled, None, None, &told);
            obeyed(StatusCode::OK, json!({"killed": true, "id": id}), told)
        }
        None => error(StatusCode::NOT_FOUND, &clients::unknown(&admin.listeners, id)),
    }
}

async fn kill_clients(State(admin): State<Arc<Admin>>, Body(body): Body) -> Response {
    match KillOrder::parse(&body) {
        Ok(order) => {
            let killed = order.carry_out(&admin.listeners);
            let told = format!("{killed} clients of the application {:?} were ended", order.application);
            if killed > 0 {
                admin.metrics.events.record(EventKind::ClientKilled, None, None, &told);
            }
            obeyed(StatusCode::OK, json!({"killed": killed}), told)
        }
        Err(what) => error(StatusCode::BAD_REQUEST, &what),
    }
}

async fn drain(State(admin): State<Arc<Admin>>) -> Response {
    let already = admin.draining.send_replace(true);
    let order = if already { "drain, which was under way" } else { "drain" };
    obeyed(StatusCode::ACCEPTED, json!({"draining": true}), order.to_owned())
}

async fn switch_mode(State(admin): State<Arc<Admin>>, Body(body): Body) -> Response {
    let switched = ModeOrder::parse(&body).and_then(|order| {
        let clusters = admin.switch_mode(&order)?;
        let how = if order.mode == (Mode::Maintenance { hold: false }) { ", what is new is refused," } else { "" };
        let told = format!("{}{how} for {}", order.mode, clusters.join(", "));
        Ok((json!({"mode": order.mode.to_string(), "clusters": clusters}), told))
    });
    match switched {
        Ok((answer, told)) => obeyed(StatusCode::OK, answer, told),
        Err(what) => error(StatusCode::BAD_REQUEST, &what),
    }
}

async fn change_levels(Body(body): Body) -> Response {
    let order = match LogOrder::parse(&body) {
        Ok(order) => order,
        Err(what) => return error(StatusCode::BAD_REQUEST, &what),
    };
    match logs::set_levels(order.levels) {
        Ok(LevelsSet { before, now }) => {
            let (before, now) = (before.to_string(), now.to_string());
            let told = format!("{before} to {now}");
            obeyed(StatusCode::OK, json!({"level": now, "before": before}), told)
        }
        Err(not_ours) => error(StatusCode::CONFLICT, &not_ours.to_string()),
    }
}

async fn change_rules(State(admin): State<Arc<Admin>>, Body(body): Body) -> Response {
    match RulesOrder::parse(&body).and_then(|order| admin.change_rules(&order)) {
        Ok(listeners) => {
            let listeners = json!({"listeners": listeners});
            let told = listeners["listeners"].to_string();
            obeyed(StatusCode::OK, listeners, told)
        }
        Err(what) => error(StatusCode::BAD_REQUEST, &what),
    }
}

/// What is in force, and who says so.
async fn config(State(admin): State<Arc<Admin>>) -> Response {
    Json(&**admin.effective.load()).into_response()
}

fn error(status: StatusCode, what: &str) -> Response {
    (status, Json(json!({"error": what, "paths": PATHS}))).into_response()
}

/// The body of an order. What cannot be read is answered as all mistakes are.
struct Body(Bytes);

impl<S: Send + Sync> FromRequest<S> for Body {
    type Rejection = Response;

    async fn from_request(request: Request, state: &S) -> Result<Self, Response> {
        let read = Bytes::from_request(request, state).await;
        read.map(Self).map_err(|rejection| error(rejection.status(), &rejection.body_text()))
    }
}

/// What a handler did, for the audit.
#[derive(Debug, Clone)]
struct Ordered(String);

fn admitted(access: &Access, request: &Request) -> Result<Who, Denied> {
    let has_body = !request.body().is_end_stream();
    let certificate = request.extensions().get::<Caller>().and_then(|caller| caller.certificate.as_ref());
    access.admit(request.method(), request.headers(), certificate, has_body)
}

/// Lets on who may see the page: also who has shown no token yet. A browser cannot send one when somebody goes to an address; the
/// page asks for it, and has nothing to tell before.
async fn guard_page(access: Arc<Access>, request: Request, next: Next) -> Response {
    match admitted(&access, &request) {
        Ok(_) | Err(Denied { status: StatusCode::UNAUTHORIZED, .. }) => next.run(request).await,
        Err(Denied { status, why }) => error(status, why),
    }
}

/// Lets on who may ask.
async fn guard(access: Arc<Access>, request: Request, next: Next) -> Response {
    match admitted(&access, &request) {
        Ok(who) => {
            let mut response = next.run(request).await;
            response.extensions_mut().insert(who);
            response
        }
        Err(Denied { status, why }) => {
            let mut response = error(status, why);
            if status == StatusCode::UNAUTHORIZED {
                response.headers_mut().insert(header::WWW_AUTHENTICATE, HeaderValue::from_static("Bearer"));
            }
            response
        }
    }
}

/// One line for every order, obeyed or not: who, what, and what came of it. It tells what was understood of a body, and never
/// what stood in a header.
async fn audit(events: Arc<Events>, request: Request, next: Next) -> Response {
    if request.method() != Method::POST {
        return next.run(request).await;
    }
    let caller = request.extensions().get::<Caller>().cloned();
    let caller = caller.as_ref().map_or("unknown", |caller| &caller.from);
    let action: String = request.uri().path().chars().take(MAX_ACTION_CHARS).collect();
    let response = next.run(request).await;
    let who = response.extensions().get::<Who>();
    let by = who.map_or_else(|| "nobody that was admitted".to_owned(), Who::to_string);
    let order = response.extensions().get::<Ordered>().map_or("none", |Ordered(order)| order);
    let (status, obeyed) = (response.status().as_u16(), response.status().is_success());
    // Who may not give orders does not push out what others are to see, either.
    if who.is_some() {
        let outcome = if obeyed { order.to_owned() } else { format!("refused with status {status}") };
        events.record(EventKind::Action, None, None, &format!("{action} by {by} from {caller}: {outcome}"));
    }
    tracing::info!(target: logs::AUDIT, %caller, by, action, order, obeyed, status, "admin order");
    response
}

/// The answer to an order, with what the audit is to tell of it.
fn obeyed(status: StatusCode, answer: serde_json::Value, order: String) -> Response {
    let mut response = (status, Json(answer)).into_response();
    response.extensions_mut().insert(Ordered(order));
    response
}

#[cfg(test)]
mod tests {
    use axum::body::to_bytes;
    use axum::http::HeaderMap;
    use hyper::service::Service as _;
    use hyper_util::service::TowerToHyperService;
    use serde_json::Value;

    use super::fixture::{Fixture, idle_admin};
    use super::*;
    use crate::admission::{Lane, Newcomer};
    use crate::config::Address;
    use crate::telemetry::labels::Label as _;

    /// A request without a socket.
    async fn ask_with(
        admin: &Arc<Admin>,
        exposed: bool,
        method: Method,
        path: &str,
        headers: &[(&str, &str)],
    ) -> (StatusCode, HeaderMap, String) {
        send(admin, exposed, method, path, headers, String::new()).await
    }

    async fn send(
        admin: &Arc<Admin>,
        exposed: bool,
        method: Method,
        path: &str,
        headers: &[(&str, &str)],
        body: String,
    ) -> (StatusCode, HeaderMap, String) {
        let order = method == Method::POST;
        let mut request =
            Request::builder().method(method).uri(path).extension(Caller { from: "test".into(), certificate: None });
        if order {
            request = request.header(access::ORDER_HEADER, "1").header("content-type", "application/json");
        }
        for (name, value) in headers {
            request = request.header(*name, *value);
        }
        let address = Address::tcp(if exposed { "0.0.0.0" } else { "127.0.0.1" }, 9627);
        let access = Arc::new(Access::new(address, false, None));
        answer(admin, &access, request.body(axum::body::Body::from(body)).unwrap()).await
    }

    async fn answer(admin: &Arc<Admin>, access: &Arc<Access>, request: Request) -> (StatusCode, HeaderMap, String) {
        let service = TowerToHyperService::new(router(admin.clone(), access.clone()));
        let response = service.call(request).await.unwrap();
        let (parts, body) = response.into_parts();
        let body = to_bytes(body, 1 << 20).await.unwrap();
        (parts.status, parts.headers, String::from_utf8(body.to_vec()).unwrap())
    }

    async fn ask(admin: &Arc<Admin>, method: Method, path: &str) -> (StatusCode, String) {
        let (status, _, body) = ask_with(admin, false, method, path, &[]).await;
        (status, body)
    }

    fn admin(fixture: &Fixture) -> Arc<Admin> {
        let clusters = vec![fixture.cluster.clone()];
        Admin::new(
            clusters,
            Vec::new(),
            fixture.metrics.clone(),
            fixture.memory.clone(),
            watch::Sender::default(),
            Arc::default(),
        )
    }

    #[tokio::test]
    async fn without_a_server_it_lives_is_not_ready_and_says_why() {
        let (fixture, server) = Fixture::unreachable("root:geheim@").await;
        let admin = admin(&fixture);
        let refused = format!("no server: {server}: Connection refused (os error 111)");
        assert_eq!(ask(&admin, Method::GET, "/livez").await, (StatusCode::OK, "alive\n".to_owned()));
        let unready = (StatusCode::SERVICE_UNAVAILABLE, format!("default: {refused}\n"));
        assert_eq!(ask(&admin, Method::GET, "/readyz").await, unready);

        let (status, body) = ask(&admin, Method::GET, "/stats").await;
        assert_eq!(status, StatusCode::OK);
        assert!(!body.contains("geheim") && !body.contains("root"), "credentials stay inside: {body}");
        let stats: Value = serde_json::from_str(&body).unwrap();
        let cluster = &stats["clusters"][0];
        assert_eq!((&cluster["status"], &cluster["problem"]), (&json!("down"), &json!(refused)));
        assert_eq!(cluster["upstream"], json!(format!("mongodb://{server}/")));
        let shown = &cluster["servers"][0];
        assert_eq!((&shown["status"], &shown["serverVersion"]), (&json!("down"), &Value::Null));
        assert!(shown["recommendations"][0].as_str().unwrap().contains("Connection refused"), "{shown}");

        let (status, body) = ask(&admin, Method::GET, "/health/database").await;
        let health: Value = serde_json::from_str(&body).unwrap();
        assert_eq!((status, &health["database"]["healthy"]), (StatusCode::OK, &json!(false)));
        fixture.end().await;
    }

    #[tokio::test]
    async fn with_a_server_it_is_ready_until_it_drains() {
        let (fixture, server) = Fixture::standalone().await;
        let admin = admin(&fixture);
        assert_eq!(ask(&admin, Method::GET, "/readyz").await, (StatusCode::OK, "ready\n".to_owned()));

        let (_, body) = ask(&admin, Method::GET, "/stats").await;
        let stats: Value = serde_json::from_str(&body).unwrap();
        assert_eq!((&stats["version"], &stats["draining"]), (&json!(env!("CARGO_PKG_VERSION")), &json!(false)));
        let expected = json!({
            "address": server, "status": "healthy", "role": "standalone", "serverVersion": "7.0",
            "active": 0, "idle": 2, "pending": 0, "closing": 0, "min": 2, "max": 10, "utilization": 0,
            "limit": 10, "waitQueue": {"length": 0, "oldestMs": 0}, "breaker": "closed", "breakerReason": null,
            "lanes": [
                {"lane": "transaction", "active": 0, "waiting": 0}, {"lane": "regular", "active": 0, "waiting": 0},
                {"lane": "await", "active": 0, "waiting": 0}, {"lane": "background", "active": 0, "waiting": 0},
            ],
            "events": {"connected": 1, "error": 0, "disconnected": 0, "reconnected": 0},
            "pins": {"cursors": 0, "transactions": 0}, "clients": 0, "tenants": [], "users": [],
            "churn": {"created": 2, "closed": 0, "replaced": 0, "createdPerMinute": 0.0, "closedPerMinute": 0.0},
            "longHeld": {"count": 0, "items": []}, "error": null, "recommendations": [],
        });
        assert_eq!(stats["clusters"][0]["servers"], json!([expected]));

        let mut draining = admin.draining.subscribe();
        let (status, body) = ask(&admin, Method::POST, "/admin/drain").await;
        assert_eq!((status, body.as_str()), (StatusCode::ACCEPTED, r#"{"draining":true}"#));
        assert!(*draining.borrow_and_update(), "whoever drains hears of it");
        let unready = (StatusCode::SERVICE_UNAVAILABLE, "draining\n".to_owned());
        assert_eq!(ask(&admin, Method::GET, "/readyz").await, unready);
        assert_eq!(ask(&admin, Method::GET, "/livez").await.0, StatusCode::OK);
        fixture.end().await;
    }

    #[tokio::test]
    async fn a_mode_is_ordered_shown_and_ended() {
        let (fixture, _) = Fixture::standalone().await;
        let admin = admin(&fixture);
        let order = async |body: &str| {
            let (status, _, answer) = send(&admin, false, Method::POST, "/admin/mode", &[], body.to_owned()).await;
            (status.as_u16(), serde_json::from_str::<Value>(&answer).unwrap())
        };
        let shown = async || {
            let (status, ready) = ask(&admin, Method::GET, "/readyz").await;
            (fixture.cluster.mode.mode(), admin.stats().clusters[0].mode.clone(), status.as_u16(), ready)
        };
        let ready = || "ready\n".to_owned();
        assert_eq!(shown().await, (Mode::Normal, "normal".to_owned(), 200, ready()));
        let answer = json!({"mode": "read-only", "clusters": ["default"]});
        assert_eq!(order(r#"{"mode": "read-only"}"#).await, (200, answer));
        assert_eq!(shown().await, (Mode::ReadOnly, "read-only".to_owned(), 200, ready()));
        assert_eq!(order(r#"{"mode": "maintenance", "cluster": "default", "hold": false}"#).await.0, 200);
        let unready = "default: maintenance mode, by order of the operator\n".to_owned();
        assert_eq!(shown().await, (Mode::Maintenance { hold: false }, "maintenance".to_owned(), 503, unready));

        let too_long = format!(r#"{{"mode": "normal", "cluster": "{}"}}"#, "x".repeat(ADMIN_BODY_BYTES));
        for (body, status, told) in [
            (r#"{"mode": "of"}"#, 400, "expected one of `normal`"),
            (r#"{"mode": "normal", "cluster": "shop"}"#, 400, r#"cluster: found "shop", expected one of ["default"]"#),
            (too_long.as_str(), 413, "length limit"),
        ] {
            let (found, answer) = order(body).await;
            assert_eq!(found, status, "{body}");
            assert!(answer["error"].as_str().unwrap().contains(told), "{answer}");
        }
        assert_eq!(fixture.cluster.mode.mode(), Mode::Maintenance { hold: false }, "mistakes change nothing");
        let headers = [("host", "localhost:9627"), ("origin", "http://evil.example")];
        for (exposed, headers) in [(true, &[][..]), (false, &headers)] {
            let body = r#"{"mode": "normal"}"#.to_owned();
            let (status, ..) = send(&admin, exposed, Method::POST, "/admin/mode", headers, body).await;
            assert_eq!(status, StatusCode::FORBIDDEN);
        }
        assert!(!fixture.cluster.mode.is_normal());
        assert_eq!(order(r#"{"mode": "normal"}"#).await.0, 200);
        assert_eq!(shown().await, (Mode::Normal, "normal".to_owned(), 200, ready()));
        fixture.end().await;
    }

    #[tokio::test]
    async fn a_scrape_shows_the_pools_as_they_are() {
        let (fixture, server) = Fixture::standalone().await;
        let admin = admin(&fixture);
        let pool = fixture.cluster.servers()[0].pool.clone();
        let _buffered = fixture.memory.try_reply(77).unwrap();
        let mut held = vec![
            pool.try_check_out(crate::admission::Lane::Regular, Instant::now()).unwrap().unwrap(),
            pool.try_check_out(crate::admission::Lane::Regular, Instant::now()).unwrap().unwrap(),
        ];
        let (status, headers, body) = ask_with(&admin, false, Method::GET, "/metrics", &[]).await;
        assert_eq!((status, headers[header::CONTENT_TYPE].to_str().unwrap()), (StatusCode::OK, METRICS_TYPE));
        let has = |body: &str, line: &str| assert!(body.lines().any(|it| it == line), "missing: {line}\n{body}");
        has(&body, &format!("mongomux_upstream_connections{{server=\"{server}\",state=\"in_use\"}} 2"));
        has(&body, &format!("mongomux_upstream_connections{{server=\"{server}\",state=\"available\"}} 0"));
        has(&body, &format!("mongomux_upstream_connections_max{{server=\"{server}\"}} 10"));
        has(&body, "mongomux_buffered_bytes 77");
        has(&body, &format!("mongomux_buffered_bytes_max {}", fixture.memory.limit()));
        held.clear();
        let (_, body) = ask(&admin, Method::GET, "/metrics").await;
        has(&body, &format!("mongomux_upstream_connections{{server=\"{server}\",state=\"available\"}} 2"));
        fixture.end().await;
    }

    #[tokio::test]
    async fn who_waits_shows_by_lane_and_age() {
        let (fixture, server) = Fixture::standalone().await;
        let admin = admin(&fixture);
        let pool = fixture.cluster.servers()[0].pool.clone();
        let mut held = Vec::new();
        for _ in 0..10 {
            held.push(pool.check_out(Lane::Regular, Instant::now() + std::time::Duration::from_secs(5)).await.unwrap());
        }
        let _place = fixture.cluster.admission.admit_always(Newcomer { bytes: 700, ..Newcomer::default() });
        let waiter = pool.clone();
        let deadline = Instant::now() + std::time::Duration::from_secs(60);
        let mut waiting = Box::pin(waiter.check_out(Lane::Transaction, deadline));
        assert!(futures_util::poll!(&mut waiting).is_pending());
        let snapshot = pool.snapshot();
        assert_eq!(snapshot.waiting[Lane::Transaction.index()], 1);
        gauges::refresh(
            &admin.clusters,
            &admin.metrics,
            &admin.memory,
            snapshot.oldest.unwrap() + std::time::Duration::from_secs(3),
        );
        let body = admin.metrics.render();
        for line in [
            format!("mongomux_wait_queue_length{{lane=\"transaction\",server=\"{server}\"}} 1"),
            format!("mongomux_wait_queue_length{{lane=\"regular\",server=\"{server}\"}} 0"),
            "mongomux_wait_queue_oldest_seconds 3".to_owned(),
            "mongomux_wait_queue_bytes 700".to_owned(),
        ] {
            assert!(body.lines().any(|it| it == line), "missing: {line}\n{body}");
        }
        let stats = admin.stats();
        let cluster = &stats.clusters[0];
        let queue = cluster.wait_queue;
        assert_eq!((queue.length, queue.bytes, cluster.connections.utilization), (1, Some(700), 100));
        assert_eq!((cluster.status, cluster.servers[0].status), (stats::Status::Degraded, stats::Status::Degraded));
        let lanes = cluster.servers[0].lanes.iter().map(|it| (&*it.lane, it.active, it.waiting));
        let expected = [("transaction", 0, 1), ("regular", 10, 0), ("await", 0, 0), ("background", 0, 0)];
        assert_eq!(lanes.collect::<Vec<_>>(), expected);
        drop(waiting);
        held.clear();
        fixture.end().await;
    }

    #[tokio::test]
    async fn who_waits_for_a_server_is_as_old_as_the_wait() {
        let (fixture, _) = Fixture::unreachable("").await;
        let admin = admin(&fixture);
        let since = Instant::now();
        let of = |since| fixture.cluster.admission.admit(Newcomer { since, max_waiting: 9, ..Newcomer::default() });
        let places =
            [None, Some(since), Some(since + std::time::Duration::from_secs(2))].map(|since| of(since).unwrap());
        let later = since + std::time::Duration::from_secs(3);
        let oldest_ms =
            || stats::of_cluster(&fixture.cluster, &sampler::ClusterHistory::default(), later).wait_queue.oldest_ms;
        let gauge = || {
            gauges::refresh(&admin.clusters, &admin.metrics, &admin.memory, later);
            admin.metrics.wait_queue_oldest_seconds.get()
        };
        assert_eq!((oldest_ms(), gauge()), (3_000, 3.0));
        let recorder = recorder::Recorder::default();
        recorder.record(&admin.clusters, &admin.metrics, later);
        assert_eq!(recorder.told(&admin.clusters, later).clusters[0].load.oldest_ms, [Some(3_000)]);
        drop(places);
        assert_eq!((oldest_ms(), gauge()), (0, 0.0));
        fixture.end().await;
    }

    #[tokio::test]
    async fn unknown_paths_are_told_the_known_ones_and_wrong_methods_so() {
        let admin = idle_admin();
        for path in ["/index.html", "/stats/", "/admin", "/admin/pauses"] {
            let (status, body) = ask(&admin, Method::GET, path).await;
            assert_eq!(status, StatusCode::NOT_FOUND, "{path}");
            let error: Value = serde_json::from_str(&body).unwrap();
            assert_eq!(error["paths"], json!(PATHS), "{path}");
        }
        for path in PATHS {
            let wrong = match *path {
                "/health/database" => Method::PUT,
                _ if path.starts_with("/admin/") => Method::GET,
                _ => Method::POST,
            };
            let (status, body) = ask(&admin, wrong, path).await;
            assert_eq!(status, StatusCode::METHOD_NOT_ALLOWED, "{path}");
            assert!(serde_json::from_str::<Value>(&body).unwrap()["error"].is_string());
        }
        assert!(!*admin.draining.borrow(), "a GET gives no orders");
    }

    #[tokio::test]
    async fn a_port_that_others_reach_tells_probes_and_metrics_only() {
        let admin = idle_admin();
        for path in PATHS {
            let method = if path.starts_with("/admin/") { Method::POST } else { Method::GET };
            let (status, _, body) = ask_with(&admin, true, method, path, &[]).await;
            match *path {
                "/livez" | "/readyz" | "/metrics" => assert_eq!(status, StatusCode::OK, "{path}"),
                _ => {
                    assert_eq!(status, StatusCode::FORBIDDEN, "{path}");
                    assert!(body.contains("loopback") && !body.contains("<html"), "{body}");
                }
            }
        }
        assert!(!*admin.draining.borrow());
    }

    #[tokio::test]
    async fn the_page_is_there_to_ask_for_a_token_and_tells_nothing_before() {
        let (fixture, server) = Fixture::standalone().await;
        let admin = admin(&fixture);
        let token = || Arc::new(AdminTokens::parse("0123456789abcdef").unwrap());
        let exposed = |probes_only, tokens| Access::new(Address::tcp("0.0.0.0", 9627), probes_only, tokens);
        let local = || Access::new(Address::tcp("127.0.0.1", 9627), false, None);
        for (access, host, page, history) in [
            (exposed(false, Some(token())), "db.example", 200, 401),
            (exposed(true, None), "db.example", 403, 403),
            (exposed(false, None), "db.example", 403, 403),
            (exposed(false, None).with_certificates(), "db.example", 403, 403),
            (local(), "evil.example", 403, 403),
            (local(), "localhost:9627", 200, 200),
        ] {
            let access = Arc::new(access);
            for (path, expected) in [("/", page), ("/history", history)] {
                let request =
                    Request::builder().uri(path).header("host", host).body(axum::body::Body::empty()).unwrap();
                let (status, headers, body) = answer(&admin, &access, request).await;
                assert_eq!(status.as_u16(), expected, "{access:?} {path}");
                if (path, expected) == ("/", 200) {
                    assert!(body.contains("<html") && !body.contains(&server), "it has no data in it");
                    let told = |name: &str| headers[name].to_str().unwrap();
                    assert!(told("content-security-policy").starts_with("default-src 'none'; script-src 'sha256-"));
                    assert_eq!((told("x-content-type-options"), told("cache-control")), ("nosniff", "no-store"));
                }
            }
        }
        fixture.end().await;
    }

    #[tokio::test]
    async fn what_is_in_force_is_told_with_who_says_so_and_without_secrets() {
        use crate::config::system::Text;
        use crate::config::{Config, Sources};

        let file = Text {
            name: "file.toml".to_owned(),
            text: "max_clients = 5\n[[cluster]]\nname = 'a'\n\
            upstream = 'mongodb://root:geheim@h/?tls=true'"
                .to_owned(),
        };
        let (config, _) = Config::load(&Sources { file: Some(file), ..Sources::default() }).unwrap();
        let admin = idle_admin();
        assert_eq!(ask(&admin, Method::GET, "/config").await.0, StatusCode::OK);
        admin.effective.store(Arc::new(config.effective));
        let (status, body) = ask(&admin, Method::GET, "/config").await;
        let told: Value = serde_json::from_str(&body).unwrap();
        assert_eq!((status, body.contains("geheim")), (StatusCode::OK, false), "{body}");
        let setting =
            |value: Value, origin: &str, reload: &str| json!({"value": value, "origin": origin, "reload": reload});
        assert_eq!(told["program"]["max_clients"], setting(json!(5), "file.toml:1", "live"));
        assert_eq!(told["program"]["profile"], setting(json!("default"), "default", "live"));
        assert_eq!(told["clusters"][0]["name"], "a");
        let upstream = &told["clusters"][0]["settings"]["upstream"];
        assert_eq!(
            (&upstream["value"], &upstream["origin"]),
            (&json!("mongodb://***@h/?tls=true"), &json!("file.toml:4"))
        );
        assert_eq!(told["listeners"].as_array().map(Vec::len), Some(1), "{body}");
    }

    #[tokio::test(start_paused = true)]
    async fn whoever_is_behind_others_is_answered_in_time() {
        let admin = idle_admin();
        let (_others, asked) = (admin.asking.lock().await, Instant::now());
        let (status, body) = ask(&admin, Method::GET, "/server").await;
        assert_eq!(status, StatusCode::SERVICE_UNAVAILABLE, "{body}");
        assert!(asked.elapsed() < crate::config::limits::ADMIN_EXCHANGE_TIMEOUT, "{:?}", asked.elapsed());
    }

    #[tokio::test]
    async fn pages_of_other_sites_give_no_orders() {
        let admin = idle_admin();
        for headers in [
            &[("host", "localhost:9627"), ("origin", "http://evil.example")][..],
            &[("host", "evil.example:9627"), ("origin", "http://evil.example:9627")],
            &[("host", "localhost:9627"), ("origin", "http://localhost:3000")],
            &[("host", "localhost:9627"), ("origin", "null")],
            &[("origin", "http://")],
        ] {
            let (status, ..) = ask_with(&admin, false, Method::POST, "/admin/drain", headers).await;
            assert_eq!(status, StatusCode::FORBIDDEN, "{headers:?}");
        }
        assert!(!*admin.draining.borrow());
        for host in ["localhost:9627", "127.0.0.1:9627", "[::1]:9627"] {
            let origin = format!("http://{host}");
            let headers = [("host", host), ("origin", origin.as_str())];
            let (status, ..) = ask_with(&admin, false, Method::POST, "/admin/drain", &headers).await;
            assert_eq!(status, StatusCode::ACCEPTED, "{host}");
        }
    }
}
