//! Spans and metrics as a collector gets them.
#![allow(clippy::unwrap_used, reason = "a test, its helpers included")]

mod support;

use std::collections::BTreeMap;
use std::sync::Arc;

use axum::Router;
use axum::body::Bytes;
use axum::extract::State;
use axum::http::{HeaderMap, StatusCode};
use axum::routing::post;
use bson::{Bson, Document, doc};
use mongomux::sandbox::deployment::Deployment;
use mongomux::sandbox::wire_client::WireClient;
use mongomux::tasks::Tasks;
use opentelemetry_proto::tonic::collector::metrics::v1::ExportMetricsServiceRequest;
use opentelemetry_proto::tonic::collector::trace::v1::ExportTraceServiceRequest;
use opentelemetry_proto::tonic::common::v1::KeyValue;
use opentelemetry_proto::tonic::common::v1::any_value::Value;
use opentelemetry_proto::tonic::metrics::v1::metric::Data;
use opentelemetry_proto::tonic::metrics::v1::{Metric, number_data_point};
use opentelemetry_proto::tonic::trace::v1::Span;
use prost::Message as _;
use support::program::Program;
use tokio::net::TcpListener;
use tokio::sync::watch;
use tokio::time::timeout;

const TRACE: &str = "0af7651916cd43dd8448eb211c80319c";
const PARENT: &str = "b7ad6b7169203331";

/// What came so far.
#[derive(Default)]
struct Received {
    spans: Vec<Span>,
    metrics: Vec<Metric>,
    resource: Vec<KeyValue>,
    token: Option<String>,
    /// So many batches are refused first.
    refusals: u32,
}

struct Collector {
    address: String,
    received: watch::Sender<Received>,
}

impl Collector {
    async fn start(refusals: u32) -> Self {
        let (received, _) = watch::channel(Received { refusals, ..Received::default() });
        let router = Router::new()
            .route("/v1/traces", post(traces))
            .route("/v1/metrics", post(metrics))
            .with_state(Arc::new(received.clone()));
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = format!("http://{}", listener.local_addr().unwrap());
        Tasks::new().spawn("collector", async move { axum::serve(listener, router).await.unwrap() });
        Self { address, received }
    }

    async fn until(&self, holds: impl FnMut(&Received) -> bool) -> watch::Ref<'_, Received> {
        let mut received = self.received.subscribe();
        let waited = timeout(support::PATIENCE, received.wait_for(holds)).await;
        drop(waited.unwrap_or_else(|_| panic!("only {:#?} came", self.received.borrow().spans)).unwrap());
        self.received.borrow()
    }

    /// The span of that command, once it has come.
    async fn span(&self, command: &str) -> Span {
        let named = |span: &&Span| span.name == command;
        let received = self.until(|received| received.spans.iter().any(|span| named(&span))).await;
        received.spans.iter().find(named).unwrap().clone()
    }
}

type Place = State<Arc<watch::Sender<Received>>>;

async fn traces(State(received): Place, headers: HeaderMap, body: Bytes) -> StatusCode {
    if received.borrow().refusals > 0 {
        received.send_modify(|received| received.refusals -= 1);
        return StatusCode::SERVICE_UNAVAILABLE;
    }
    let request = ExportTraceServiceRequest::decode(body).unwrap();
    received.send_modify(|received| {
        received.token = headers.get("authorization").map(|value| value.to_str().unwrap().to_owned());
        for of_us in request.resource_spans {
            received.resource = of_us.resource.unwrap().attributes;
            received.spans.extend(of_us.scope_spans.into_iter().flat_map(|scope| scope.spans));
        }
    });
    StatusCode::OK
}

async fn metrics(State(received): Place, body: Bytes) -> StatusCode {
    let request = ExportMetricsServiceRequest::decode(body).unwrap();
    let metrics = request.resource_metrics.into_iter().flat_map(|of_us| of_us.scope_metrics);
    let metrics = metrics.flat_map(|scope| scope.metrics).collect();
    received.send_modify(|received| received.metrics = metrics);
    StatusCode::OK
}

fn attributes(span: &Span) -> BTreeMap<&str, Bson> {
    let plain = |value: &KeyValue| match value.value.as_ref().unwrap().value.as_ref().unwrap() {
        Value::StringValue(text) => Bson::from(text.as_str()),
        Value::IntValue(number) => Bson::from(*number),
        other => panic!("{other:?}"),
    };
    span.attributes.iter().map(|attribute| (attribute.key.as_str(), plain(attribute))).collect()
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

async fn run(deployment: &Deployment, collector: &str, more: &[(&str, &str)]) -> (Program, WireClient) {
    let mut command = Program::command();
    let uri = deployment.uri();
    command.args(["run", "--listen", "127.0.0.1:0", "--admin", "127.0.0.1:0", "--otlp-endpoint"]);
    command.args([collector, &uri]).env("OTEL_BSP_SCHEDULE_DELAY", "50").env("OTEL_METRIC_EXPORT_INTERVAL", "100");
    let program = Program::spawn({
        command.envs(more.iter().copied());
        command
    });
    let client = WireClient::connect_as(&program.address().await, "shop").await.unwrap();
    (program, client)
}

fn in_trace(sampled: bool) -> Document {
    doc! { "traceparent": format!("00-{TRACE}-{PARENT}-0{}", u8::from(sampled)), "tracestate": "shop=1" }
}

#[tokio::test]
async fn spans_of_commands_have_their_parents_and_what_the_specification_asks_for() {
    let deployment = support::replica_set(1).await;
    let collector = Collector::start(0).await;
    let said = [("OTEL_SERVICE_NAME", "proxy"), ("OTEL_EXPORTER_OTLP_HEADERS", "authorization=geheim")];
    let (mut program, mut client) = run(&deployment, &collector.address, &said).await;
    let documents: Vec<_> = (0..5).map(|id| doc! { "_id": id, "geheim": "geheim" }).collect();
    client.command("test", doc! { "insert": "c", "documents": documents, "comment": in_trace(true) }).await.unwrap();
    let find = doc! { "find": "c", "batchSize": 2, "comment": format!("traceparent='00-{TRACE}-{PARENT}-01'") };
    let cursor = client.command("test", find).await.unwrap().get_document("cursor").unwrap().get_i64("id").unwrap();
    client.command("test", doc! { "getMore": cursor, "collection": "c", "batchSize": 1 }).await.unwrap();
    client.command("test", doc! { "aggregate": "c", "pipeline": [], "cursor": {} }).await.unwrap();
    client.reply("test", doc! { "count": "c", "query": { "$geheim": 1 } }).await.unwrap();
    client.command("test", doc! { "distinct": "c", "key": "a", "comment": in_trace(false) }).await.unwrap();
    let lsid = support::new_lsid();
    for (database, command, start) in [
        ("test", doc! { "delete": "c", "deletes": [{ "q": { "_id": 1 }, "limit": 1 }] }, true),
        ("admin", doc! { "commitTransaction": 1 }, false),
    ] {
        let mut command = command;
        command.extend(doc! { "lsid": lsid.clone(), "txnNumber": 7_i64, "autocommit": false });
        if start {
            command.insert("startTransaction", true);
        }
        client.command(database, command).await.unwrap();
    }

    let server = deployment.members()[0].address();
    let insert = collector.span("insert").await;
    let found = attributes(&insert);
    for (key, value) in [
        ("db.system.name", Bson::from("mongodb")),
        ("db.namespace", Bson::from("test")),
        ("db.collection.name", Bson::from("c")),
        ("db.operation.name", Bson::from("insert")),
        ("db.command.name", Bson::from("insert")),
        ("db.query.summary", Bson::from("insert test.c")),
        ("server.address", Bson::from(server.host().as_ref())),
        ("server.port", Bson::from(i64::from(server.port().unwrap()))),
        ("network.transport", Bson::from("tcp")),
    ] {
        assert_eq!(found.get(key), Some(&value), "{key}: {insert:#?}");
    }
    for id in ["db.mongodb.driver_connection_id", "db.mongodb.server_connection_id"] {
        assert!(found[id].as_i64().unwrap() > 0, "{id}");
    }
    assert_eq!((hex(&insert.trace_id), hex(&insert.parent_span_id)), (TRACE.to_owned(), PARENT.to_owned()));
    assert_eq!((insert.trace_state.as_str(), insert.kind, insert.status.is_none()), ("shop=1", 3, true));
    assert!(insert.start_time_unix_nano <= insert.events[0].time_unix_nano);
    assert!(insert.events[0].time_unix_nano <= insert.end_time_unix_nano, "{insert:#?}");

    let find = collector.span("find").await;
    assert_eq!(hex(&find.trace_id), TRACE, "from a text");
    let more = collector.span("getMore").await;
    for span in [&find, &more] {
        assert_eq!(attributes(span)["db.mongodb.cursor_id"], Bson::from(cursor));
        assert_eq!(attributes(span)["db.collection.name"], Bson::from("c"));
    }
    assert!(more.parent_span_id.is_empty() && hex(&more.trace_id) != TRACE, "it has told no parent");
    collector.span("aggregate").await;
    let count = collector.span("count").await;
    assert_eq!(attributes(&count)["db.response.status_code"], Bson::from("2"));
    assert_eq!((attributes(&count)["error.type"].clone(), count.status.unwrap().code), (Bson::from("2"), 2));
    assert_eq!(attributes(&collector.span("delete").await)["db.mongodb.txn_number"], Bson::from(7_i64));
    let commit = collector.span("commitTransaction").await;
    assert_eq!(attributes(&commit)["db.query.summary"], Bson::from("commitTransaction admin"));
    assert_eq!(attributes(&commit)["db.mongodb.txn_number"], Bson::from(7_i64));
    {
        let received = collector.received.borrow();
        assert!(received.spans.iter().all(|span| span.name != "distinct"), "its trace is not recorded");
        assert!(!format!("{:?}", received.spans).contains("geheim"), "values are not told");
        assert_eq!(received.token.as_deref(), Some("geheim"));
        let service = received.resource.iter().find(|attribute| attribute.key == "service.name").unwrap();
        assert_eq!(service.value.as_ref().unwrap().value, Some(Value::StringValue("proxy".to_owned())));
    }
    program.terminate();
    let (code, log, _) = program.ended().await;
    assert!(code == 0 && !log.contains("geheim"), "{log}");
}

#[tokio::test]
async fn a_command_that_the_proxy_gives_up_has_one_span_with_its_server() {
    let deployment = support::standalone().await;
    let collector = Collector::start(0).await;
    let directory = tempfile::tempdir().unwrap();
    let file = directory.path().join("mongomux.toml");
    std::fs::write(&file, "command_timeout_ms = 500").unwrap();
    let settings = [("MONGOMUX_CONFIG", file.to_str().unwrap())];
    let (_program, mut client) = run(&deployment, &collector.address, &settings).await;
    client.command("test", doc! { "insert": "c", "documents": [{ "_id": 1 }] }).await.unwrap();
    client.reply("test", doc! { "find": "c", "filter": { "$where": "sleep(5000) || true" } }).await.unwrap();
    // Of a length that servers refuse.
    client.reply("test", doc! { "distinct": "x".repeat(100_000), "key": "a" }).await.unwrap();
    let distinct = collector.span("distinct").await;
    assert!(distinct.attributes.iter().all(|it| format!("{it:?}").len() < 1_000), "names have a bound");
    let received = collector.received.borrow();
    let finds: Vec<_> = received.spans.iter().filter(|span| span.name == "find").collect();
    let [find] = finds[..] else { panic!("{finds:#?}") };
    let (found, port) = (attributes(find), deployment.members()[0].address().port().unwrap());
    assert_eq!((&found["error.type"], &found["server.port"]), (&Bson::from("timeout"), &Bson::from(i64::from(port))));
    assert!(find.end_time_unix_nano - find.events[0].time_unix_nano >= 500_000_000, "{find:#?}");
}

#[tokio::test]
async fn metrics_arrive_under_their_names() {
    let deployment = support::standalone().await;
    let collector = Collector::start(0).await;
    let (_program, mut client) = run(&deployment, &collector.address, &[("OTEL_TRACES_EXPORTER", "none")]).await;
    client.command("test", doc! { "count": "c" }).await.unwrap();
    let counted = |metric: &Metric| match &metric.data {
        Some(Data::Sum(sum)) => sum.data_points.iter().any(|point| {
            let labels = format!("{:?}", point.attributes);
            labels.contains("\"count\"")
                && labels.contains("\"completed\"")
                && point.value == Some(number_data_point::Value::AsDouble(1.0))
        }),
        _ => false,
    };
    let is = |metric: &Metric| metric.name == "mongomux_commands_total" && counted(metric);
    let received = collector.until(|received| received.metrics.iter().any(is)).await;
    let has = |name: &str| received.metrics.iter().any(|metric| metric.name == name);
    assert!(has("mongomux_upstream_connections") && has("mongomux_command_seconds") && has("process_open_fds"));
    assert!(received.spans.is_empty());
}

#[tokio::test]
async fn a_collector_that_refuses_at_first_gets_all_and_one_that_is_not_there_stops_nobody() {
    let deployment = support::standalone().await;
    let collector = Collector::start(1).await;
    let (_program, mut client) = run(&deployment, &collector.address, &[]).await;
    client.command("test", doc! { "count": "c" }).await.unwrap();
    collector.span("count").await;

    let (program, mut client) = run(&deployment, "http://127.0.0.1:1", &[]).await;
    for _ in 0..1_000 {
        client.command("test", doc! { "ping": 1 }).await.unwrap();
    }
    program.line("telemetry is not taken").await;
}

#[tokio::test]
async fn settings_that_make_no_sense_are_told() {
    for (name, value) in [("OTEL_TRACES_SAMPLER", "sometimes"), ("OTEL_EXPORTER_OTLP_CERTIFICATE", "/no/such/file")] {
        let mut command = Program::command();
        command.args(["check", "--otlp-endpoint", "http://127.0.0.1:1"]).env(name, value);
        let (code, log, _) = Program::spawn(command).ended().await;
        assert!(code == 2 && log.contains(name), "{log}");
    }
}
