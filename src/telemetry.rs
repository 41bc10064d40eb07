//! What the program says about itself: logs and metrics. Nothing here decides anything.

pub mod applications;
pub mod labels;
pub mod logs;
pub mod metrics;
pub mod seldom;

pub use applications::{Application, ApplicationId, Applications};
pub use metrics::{Metrics, ServerMetrics};
