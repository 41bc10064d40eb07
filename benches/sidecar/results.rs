//! All that was measured, and what a set of rounds says.

use std::collections::BTreeMap;

use serde::Serialize;

/// Everything, as it goes into the file.
#[derive(Debug, Default, Serialize)]
pub struct Results {
    pub conditions: BTreeMap<&'static str, String>,
    pub purpose: Purpose,
    /// In the order in which they were measured.
    pub targets: Vec<String>,
    pub slices: Vec<Slice>,
    /// The program alone, with more clients than the 1:1 proxies could have.
    pub many: Vec<Slice>,
    pub memory: Vec<Memory>,
    pub storms: Vec<Storm>,
    pub meanwhile: Vec<Meanwhile>,
    /// What must not be.
    pub wrong: Vec<String>,
}

/// What a run is about, and so which target another one is held against.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize)]
pub enum Purpose {
    /// The program beside what else there is.
    #[default]
    References,
    /// The program in other set-ups.
    Variants,
    /// Each target while others disturb it.
    Disturbances,
}

/// One slice of one case.
#[derive(Debug, Clone, Serialize)]
pub struct Slice {
    pub case: String,
    pub title: String,
    pub target: String,
    pub round: usize,
    pub replies: u64,
    pub per_second: f64,
    pub p50_ms: f64,
    pub p99_ms: f64,
    pub p999_ms: f64,
    /// How late requests were sent, in an open loop.
    pub late_p99_ms: f64,
    /// Processor time per command.
    pub proxy_us: Option<f64>,
    pub server_us: f64,
    pub load_us: f64,
    /// The most that the proxy held in this slice.
    pub peak_kib: Option<u64>,
}

impl Slice {
    /// Proxy and server together.
    pub fn sum_us(&self) -> f64 {
        self.proxy_us.unwrap_or(0.0) + self.server_us
    }
}

/// What idle clients cost.
#[derive(Debug, Clone, Serialize)]
pub struct Memory {
    pub target: String,
    pub clients: usize,
    /// After the first client came and went.
    pub bare_kib: Option<u64>,
    pub idle_kib: Option<u64>,
    /// How much more the server holds than before.
    pub server_kib: i64,
    /// How many more connections the server has than before.
    pub connections: i32,
    /// Processor time of the proxy while nobody asks anything, in milliseconds per second.
    pub idle_cpu_ms: Option<f64>,
}

impl Memory {
    /// Of the proxy, for each client.
    pub fn kib_per_client(&self) -> Option<f64> {
        Some((self.idle_kib? as f64 - self.bare_kib? as f64) / self.clients as f64)
    }
}

/// One storm of connects.
#[derive(Debug, Clone, Serialize)]
pub struct Storm {
    pub target: String,
    pub round: usize,
    pub seconds: f64,
    /// Processor time per client.
    pub proxy_us: Option<f64>,
    pub server_us: f64,
}

/// How a disturbance fared.
#[derive(Debug, Clone, Serialize)]
pub struct Meanwhile {
    pub target: String,
    pub round: usize,
    /// What slow readers got, in MB per second.
    pub read: f64,
    /// Until the last client of a storm was served.
    pub storm_seconds: f64,
}

/// What was measured once in a round, for one target.
pub trait Measured {
    fn target(&self) -> &str;
    fn round(&self) -> usize;
}

impl Measured for Slice {
    fn target(&self) -> &str {
        &self.target
    }

    fn round(&self) -> usize {
        self.round
    }
}

impl Measured for Storm {
    fn target(&self) -> &str {
        &self.target
    }

    fn round(&self) -> usize {
        self.round
    }
}

impl Measured for Meanwhile {
    fn target(&self) -> &str {
        &self.target
    }

    fn round(&self) -> usize {
        self.round
    }
}

/// Median, least and most of some rounds.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Spread {
    pub median: f64,
    pub least: f64,
    pub most: f64,
}

impl Spread {
    /// Of any number of values; `None` of none.
    pub fn of(values: impl IntoIterator<Item = f64>) -> Option<Self> {
        let mut values: Vec<f64> = values.into_iter().collect();
        values.sort_by(f64::total_cmp);
        let middle = values.len() / 2;
        let median = match values.len() {
            0 => return None,
            even if even % 2 == 0 => f64::midpoint(values[middle - 1], values[middle]),
            _ => values[middle],
        };
        Some(Self { median, least: values[0], most: values[values.len() - 1] })
    }
}

/// One figure of a measurement; `None` where it has none, as the processor time of no proxy.
pub type Figure<M> = fn(&M) -> Option<f64>;

/// A figure over the rounds of one target.
pub fn spread<M: Measured>(measured: &[&M], target: &str, figure: Figure<M>) -> Option<Spread> {
    Spread::of(measured.iter().filter(|it| it.target() == target).filter_map(|it| figure(it)))
}

/// The ratio of a figure to that of another target in the same round.
pub fn ratio<M: Measured>(measured: &[&M], target: &str, to: &str, figure: Figure<M>) -> Option<Spread> {
    let value = |target: &str, round| {
        let found = measured.iter().find(|it| it.target() == target && it.round() == round);
        found.and_then(|it| figure(it))
    };
    let of_target = measured.iter().filter(|it| it.target() == target);
    Spread::of(of_target.filter_map(|it| Some(figure(it)? / value(to, it.round())?)))
}

impl Results {
    /// The slices of one case.
    pub fn of_case(&self, case: &str) -> Vec<&Slice> {
        self.slices.iter().filter(|slice| slice.case == case).collect()
    }

    /// The names of all cases, in the order in which they were measured.
    pub fn cases(&self) -> Vec<&str> {
        let mut cases: Vec<&str> = Vec::new();
        for slice in &self.slices {
            if !cases.contains(&slice.case.as_str()) {
                cases.push(&slice.case);
            }
        }
        cases
    }
}
