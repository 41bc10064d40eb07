//! Spans and metrics over OTLP/HTTP, in the protobuf encoding. Only with the feature `otel`.
//!
//! Whoever has a span to tell puts it into a bounded queue and goes on: where the queue is full the span is dropped and
//! counted. One task takes batches out of it, another reads the metrics now and then; both send over connections of their own.
//! The metrics are those of `/metrics`, under the same names. The names of the environment variables are OpenTelemetry's.

mod export;
mod http;
mod metrics;
pub mod settings;
pub mod spans;

pub use export::{Export, Gather};
pub use settings::{Settings, SettingsError};
pub use spans::{CommandSpan, Spans, TraceContext};

use opentelemetry_proto::tonic::common::v1::any_value::Value;
use opentelemetry_proto::tonic::common::v1::{AnyValue, InstrumentationScope, KeyValue};

/// An attribute.
fn attribute(key: &str, value: Value) -> KeyValue {
    KeyValue { key: key.to_owned(), value: Some(AnyValue { value: Some(value) }), ..KeyValue::default() }
}

fn text(key: &str, value: impl Into<String>) -> KeyValue {
    attribute(key, Value::StringValue(value.into()))
}

fn number(key: &str, value: i64) -> KeyValue {
    attribute(key, Value::IntValue(value))
}

fn scope() -> InstrumentationScope {
    InstrumentationScope {
        name: env!("CARGO_PKG_NAME").to_owned(),
        version: env!("CARGO_PKG_VERSION").to_owned(),
        ..InstrumentationScope::default()
    }
}
