//! What the program says about itself: logs and metrics. Nothing here decides anything.

pub mod labels;
pub mod logs;
pub mod metrics;

pub use metrics::{Metrics, ServerMetrics};
