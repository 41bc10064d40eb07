//! What the program says about itself: logs and metrics. Nothing here decides anything.

pub mod applications;
pub mod buckets;
pub mod events;
pub mod labels;
pub mod levels;
pub mod logs;
pub mod metrics;
#[cfg(feature = "otel")]
pub mod otlp;
mod repeats;
pub mod seldom;

pub use applications::{Application, ApplicationId, Applications};
pub use buckets::Buckets;
pub use events::{Event, Events};
pub use labels::EventKind;
pub use metrics::{Metrics, ServerMetrics};
