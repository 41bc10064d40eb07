//! How one server does, as all that notice it see it together: its breakers, and how much may be retried.
//!
//! There are two breakers, as two things can be wrong: a server may refuse new connections and serve those that are there,
//! and it may accept connections and answer no command. Each is judged by its own outcomes, so that neither hides the
//! other. Commands need the one for commands to be closed, and the other one only where there is no connection left
//! ([`Server::passes`](super::cluster::Server::passes)). To the outside they are one, which is as bad as the worse of them.
//!
//! Whether a half-open one may close is found out by the maintenance task of the pool, with a probe of its own: no
//! client's command is the guinea pig.

use std::sync::{Arc, Mutex, PoisonError};

use tokio::time::Instant;

use crate::breaker::state::ProbeId;
use crate::breaker::{Admission, Breaker, BreakerState, Failure, Outcome, Reason, RetryBudget, Transition, TripReason};
use crate::config::{Address, BreakerConfig};
use crate::telemetry::EventKind;
use crate::telemetry::labels::{BreakerLabel, TripLabel};
use crate::telemetry::metrics::ServerMetrics;

/// What a breaker judges.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Judgement {
    /// Commands, and pings over connections that are there.
    Commands,
    /// Establishing connections: TCP, TLS, hello and the log-in with the service's credential.
    Establishing,
}

impl Judgement {
    const ALL: [Self; 2] = [Self::Commands, Self::Establishing];

    /// The name in logs and texts.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Commands => "commands",
            Self::Establishing => "establishing",
        }
    }
}

/// A probe that is to be made, and for which breaker.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Probe {
    /// What is to be found out.
    pub judgement: Judgement,
    id: ProbeId,
}

/// How one server does, as the data path sees it.
pub struct Health {
    address: Address,
    inner: Mutex<Inner>,
    metrics: Arc<ServerMetrics>,
}

struct Inner {
    breakers: [Judged; Judgement::ALL.len()],
    retries: RetryBudget,
}

struct Judged {
    breaker: Breaker,
    /// Why it is not closed; empty while it is.
    why: String,
}

impl Inner {
    fn of(&mut self, judgement: Judgement) -> &mut Breaker {
        &mut self.breakers[judgement as usize].breaker
    }
}

impl Health {
    /// Of a server that nothing is known about.
    pub fn new(address: Address, config: &BreakerConfig, metrics: Arc<ServerMetrics>) -> Self {
        let breakers = Judgement::ALL.map(|_| Judged { breaker: Breaker::new(config), why: String::new() });
        Self { address, inner: Mutex::new(Inner { breakers, retries: RetryBudget::new() }), metrics }
    }

    /// Puts other rules in force.
    pub fn reconfigure(&self, config: &BreakerConfig) {
        self.with(|inner| inner.breakers.iter_mut().for_each(|it| it.breaker.reconfigure(config)));
    }

    /// True while that breaker is closed.
    pub fn closed(&self, judgement: Judgement) -> bool {
        self.with(|inner| inner.of(judgement).state() == BreakerState::Closed)
    }

    /// True while both are closed, so that new connections may be established.
    pub fn all_closed(&self) -> bool {
        self.state() == BreakerState::Closed
    }

    /// The worse of both states.
    pub fn state(&self) -> BreakerState {
        self.with(|inner| worst(inner))
    }

    /// Why traffic is refused, in words; `None` while both breakers are closed.
    pub fn trouble(&self) -> Option<String> {
        self.with(|inner| {
            let open = inner.breakers.iter().find(|it| it.breaker.state() != BreakerState::Closed)?;
            Some(open.why.clone())
        })
    }

    /// A command was answered, or failed; so was a ping over a connection of the pool. True when that has opened the
    /// breaker.
    pub fn command_ended(&self, outcome: Outcome, now: Instant) -> bool {
        // Only where it may open something, as this is on the path of every command.
        let jitter = if outcome == Outcome::Success { 0.0 } else { fastrand::f64() };
        self.change(Judgement::Commands, |inner| {
            inner.retries.count(now);
            inner.of(Judgement::Commands).record(outcome, now, jitter)
        })
    }

    /// A connection was established, or was not. True when that has opened the breaker.
    pub fn connected(&self, outcome: Outcome) -> bool {
        let (now, jitter) = (Instant::now(), fastrand::f64());
        self.change(Judgement::Establishing, |inner| inner.of(Judgement::Establishing).record(outcome, now, jitter))
    }

    /// Takes one retry out of the budget, if there is one left.
    pub fn may_retry(&self) -> bool {
        let granted = self.with(|inner| inner.retries.withdraw(Instant::now()));
        if !granted {
            self.metrics.retries_denied.inc();
        }
        granted
    }

    /// When an open breaker is due for a probe: the probe to be made.
    pub fn start_probe(&self) -> Option<Probe> {
        let now = Instant::now();
        Judgement::ALL.into_iter().find_map(|judgement| {
            let mut id = None;
            self.change(judgement, |inner| match inner.of(judgement).state() {
                BreakerState::Closed => None,
                BreakerState::Open | BreakerState::HalfOpen => {
                    let (admission, transition) = inner.of(judgement).admits(now);
                    if let Admission::Probe(probe) = admission {
                        id = Some(probe);
                    }
                    transition
                }
            });
            id.map(|id| Probe { judgement, id })
        })
    }

    /// How a probe ended; `None` when it could not be made.
    pub fn finish_probe(&self, Probe { judgement, id }: Probe, outcome: Option<Outcome>) {
        let (now, jitter) = (Instant::now(), fastrand::f64());
        match outcome {
            Some(outcome) => {
                self.change(judgement, |inner| inner.of(judgement).probe_finished(id, outcome, now, jitter));
            }
            None => self.with(|inner| inner.of(judgement).probe_abandoned(id)),
        }
    }

    /// An operator wants no traffic there, until it is reset or the longest time that a breaker is open is over.
    pub fn trip(&self) {
        self.change(Judgement::Commands, |inner| inner.of(Judgement::Commands).trip(Instant::now()));
    }

    /// An operator wants it tried again: what was known of the server is forgotten.
    pub fn reset(&self) {
        for judgement in Judgement::ALL {
            self.change(judgement, |inner| inner.of(judgement).reset());
        }
    }

    /// Monitoring reached the server.
    pub fn heartbeat_succeeded(&self) {
        for judgement in Judgement::ALL {
            self.change(judgement, |inner| inner.of(judgement).heartbeat_succeeded());
        }
    }

    /// When the next probe is due, while a breaker is not closed.
    pub fn next_probe(&self) -> Option<Instant> {
        let now = Instant::now();
        self.with(|inner| {
            let due = inner.breakers.iter().filter(|it| it.breaker.state() != BreakerState::Closed);
            due.map(|it| now + it.breaker.refuses(now).unwrap_or_default()).min()
        })
    }

    /// True when the change was to open.
    fn change(&self, judgement: Judgement, act: impl FnOnce(&mut Inner) -> Option<Transition>) -> bool {
        let changed = self.with(|inner| {
            let transition = act(inner)?;
            let why = &mut inner.breakers[judgement as usize].why;
            match transition.reason {
                Reason::Tripped(reason) => *why = words(judgement, reason),
                Reason::ProbeSucceeded | Reason::Reset => why.clear(),
                Reason::OpenTimeOver | Reason::HeartbeatSucceeded => {}
            }
            let why = why.clone();
            Some((transition, worst(inner), why))
        });
        let Some((Transition { from, to, reason }, worst, why)) = changed else { return false };
        self.metrics.breaker_changed(label(to), label(worst));
        if let Reason::Tripped(reason) = reason {
            self.metrics.breaker_trips[trip_label(reason)].inc();
        }
        tracing::info!(
            server = %self.address, judges = judgement.as_str(), from = from.as_str(), to = to.as_str(), ?reason,
            "breaker changed"
        );
        let why = if why.is_empty() { String::new() } else { format!(": {why}") };
        self.metrics.happened(EventKind::Breaker, &format!("{} ({}){why}", to.as_str(), judgement.as_str()));
        to == BreakerState::Open
    }

    fn with<T>(&self, act: impl FnOnce(&mut Inner) -> T) -> T {
        act(&mut self.inner.lock().unwrap_or_else(PoisonError::into_inner))
    }
}

fn worst(inner: &Inner) -> BreakerState {
    inner.breakers.iter().map(|it| it.breaker.state()).max().unwrap_or(BreakerState::Closed)
}

fn label(state: BreakerState) -> BreakerLabel {
    match state {
        BreakerState::Closed => BreakerLabel::Closed,
        BreakerState::HalfOpen => BreakerLabel::HalfOpen,
        BreakerState::Open => BreakerLabel::Open,
    }
}

fn trip_label(reason: TripReason) -> TripLabel {
    match reason {
        TripReason::ConsecutiveFailures(_) => TripLabel::ConsecutiveFailures,
        TripReason::SuccessRate(_) => TripLabel::SuccessRate,
        TripReason::ProbeFailed(_) => TripLabel::ProbeFailed,
        TripReason::Operator => TripLabel::Operator,
    }
}

fn words(judgement: Judgement, reason: TripReason) -> String {
    let what = match judgement {
        Judgement::Commands => "commands fail",
        Judgement::Establishing => "connections cannot be established",
    };
    let (how, last) = match reason {
        TripReason::ConsecutiveFailures(failure) => ("several in a row", failure),
        TripReason::SuccessRate(failure) => ("too many of the last ones", failure),
        TripReason::ProbeFailed(failure) => ("so did the last probe", failure),
        TripReason::Operator => return "opened by an operator".to_owned(),
    };
    let last = match last {
        Failure::Connect => "no connection",
        Failure::Handshake => "no hello or no log-in",
        Failure::Network => "the connection broke",
        Failure::Timeout => "no answer in time",
    };
    format!("{what}, {how}: {last}")
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use proptest::prelude::*;

    use super::*;
    use crate::telemetry::labels::Label as _;
    use crate::telemetry::metrics::Metrics;

    fn health() -> (Health, Arc<Metrics>) {
        let config = BreakerConfig {
            consecutive_failures: 3,
            success_rate: 0.5,
            minimum_samples: 20,
            window: Duration::from_secs(10),
            open_initial: Duration::from_secs(1),
            open_max: Duration::from_secs(60),
        };
        let metrics = Metrics::new();
        (Health::new(Address::tcp("db", 1), &config, metrics.server("default", "db:1")), metrics)
    }

    const BROKEN: Outcome = Outcome::Failure(Failure::Network);
    const REFUSED: Outcome = Outcome::Failure(Failure::Connect);

    #[tokio::test(start_paused = true)]
    async fn neither_kind_of_success_hides_failures_of_the_other() {
        let (health, metrics) = health();
        for tripped in [false, false, true] {
            assert!(!health.command_ended(BROKEN, Instant::now()));
            assert!(!health.command_ended(Outcome::Success, Instant::now()));
            assert_eq!(health.connected(REFUSED), tripped);
        }
        assert!(!health.closed(Judgement::Establishing) && health.closed(Judgement::Commands));
        assert_eq!(health.state(), BreakerState::Open);
        let why = health.trouble().unwrap();
        assert_eq!(why, "connections cannot be established, several in a row: no connection");
        assert!(metrics.render().contains("mongomux_breaker_state{server=\"db:1\"} 2"));
        let trips = "mongomux_breaker_trips_total{reason=\"consecutive_failures\",server=\"db:1\"} 1";
        assert!(metrics.render().contains(trips), "{}", metrics.render());
    }

    #[tokio::test(start_paused = true)]
    async fn each_breaker_has_its_own_probe_and_the_worse_state_shows() {
        let (health, metrics) = health();
        assert!((0..3).any(|_| health.command_ended(BROKEN, Instant::now())));
        assert!((0..3).any(|_| health.connected(REFUSED)));
        assert_eq!(health.start_probe(), None);
        tokio::time::advance(Duration::from_secs(1)).await;
        let commands = health.start_probe().unwrap();
        let establishing = health.start_probe().unwrap();
        assert_eq!((commands.judgement, establishing.judgement), (Judgement::Commands, Judgement::Establishing));
        assert_eq!(health.start_probe(), None, "one at a time");
        health.finish_probe(commands, Some(Outcome::Success));
        assert!(health.closed(Judgement::Commands) && !health.all_closed());
        assert!(metrics.render().contains("mongomux_breaker_state{server=\"db:1\"} 1"));
        assert!(health.next_probe().is_some());
        health.finish_probe(establishing, Some(Outcome::Success));
        assert_eq!((health.all_closed(), health.trouble(), health.next_probe()), (true, None, None));
        assert!(metrics.render().contains("mongomux_breaker_state{server=\"db:1\"} 0"));
    }

    #[tokio::test(start_paused = true)]
    async fn a_heartbeat_makes_probes_due_at_once() {
        let (health, _metrics) = health();
        assert!((0..3).any(|_| health.connected(REFUSED)));
        assert!(health.next_probe().unwrap() > Instant::now());
        health.heartbeat_succeeded();
        assert_eq!(health.next_probe(), Some(Instant::now()));
        assert_eq!(health.state(), BreakerState::HalfOpen);
    }

    /// What may happen to the health of a server.
    #[derive(Debug, Clone, Copy)]
    enum Happening {
        Wait(u64),
        CommandEnded(Outcome),
        Connected(Outcome),
        StartProbe,
        /// The oldest probe that is under way.
        FinishProbe(Option<Outcome>),
        Heartbeat,
    }

    fn happening() -> impl Strategy<Value = Happening> {
        let outcome = || prop_oneof![2 => Just(BROKEN), 2 => Just(REFUSED), 1 => Just(Outcome::Success)];
        prop_oneof![
            3 => (0..5_000_u64).prop_map(Happening::Wait),
            6 => outcome().prop_map(Happening::CommandEnded),
            6 => outcome().prop_map(Happening::Connected),
            4 => Just(Happening::StartProbe),
            4 => prop::option::weighted(0.8, outcome()).prop_map(Happening::FinishProbe),
            1 => Just(Happening::Heartbeat),
        ]
    }

    fn states(health: &Health) -> [BreakerState; 2] {
        health.with(|inner| [inner.breakers[0].breaker.state(), inner.breakers[1].breaker.state()])
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(64))]

        /// Two breakers show as one, each change of either is counted once, and neither is touched by what concerns the other.
        #[test]
        fn two_breakers_show_as_the_worse_of_them(happenings in prop::collection::vec(happening(), 1..150)) {
            let runtime = tokio::runtime::Builder::new_current_thread().enable_time().start_paused(true).build().unwrap();
            runtime.block_on(async {
                let (health, metrics) = health();
                let mut probes = std::collections::VecDeque::<Probe>::new();
                let mut entered = [0_u64; 3];
                for happening in happenings {
                    let before = states(&health);
                    let mut opened = None;
                    let concerns = match happening {
                        Happening::Wait(millis) => {
                            tokio::time::advance(Duration::from_millis(millis)).await;
                            vec![]
                        }
                        Happening::CommandEnded(outcome) => {
                            opened = Some(health.command_ended(outcome, Instant::now()));
                            vec![Judgement::Commands]
                        }
                        Happening::Connected(outcome) => {
                            opened = Some(health.connected(outcome));
                            vec![Judgement::Establishing]
                        }
                        Happening::StartProbe => {
                            let probe = health.start_probe();
                            probes.extend(probe);
                            probe.map(|probe| probe.judgement).into_iter().collect()
                        }
                        Happening::FinishProbe(outcome) => {
                            let Some(probe) = probes.pop_front() else { continue };
                            health.finish_probe(probe, outcome);
                            vec![probe.judgement]
                        }
                        Happening::Heartbeat => {
                            health.heartbeat_succeeded();
                            Judgement::ALL.to_vec()
                        }
                    };
                    let after = states(&health);
                    for judgement in Judgement::ALL {
                        let (was, is) = (before[judgement as usize], after[judgement as usize]);
                        prop_assert!(was == is || concerns.contains(&judgement), "{:?} changed {:?}", happening, judgement);
                        prop_assert_eq!(health.closed(judgement), is == BreakerState::Closed);
                        if was != is {
                            entered[is as usize] += 1;
                        }
                    }
                    let worst = after[0].max(after[1]);
                    prop_assert_eq!(health.state(), worst);
                    prop_assert_eq!(health.all_closed(), worst == BreakerState::Closed);
                    prop_assert_eq!(health.next_probe().is_some(), worst != BreakerState::Closed);
                    let trouble = health.trouble();
                    let first = after.iter().position(|state| *state != BreakerState::Closed);
                    let words = ["commands fail, ", "connections cannot be established, "];
                    prop_assert_eq!(trouble.is_some(), first.is_some());
                    prop_assert!(trouble.zip(first).is_none_or(|(why, first)| why.starts_with(words[first])));
                    if let Some(opened) = opened {
                        prop_assert_eq!(opened, before != after && worst == BreakerState::Open);
                    }
                }
                // The lives are of all lengths, so that this is looked at at any point of one.
                let page = metrics.render();
                let value = |metric: &str| -> u64 {
                    let value = page.lines().find_map(|line| line.strip_prefix(metric)?.strip_prefix(' '));
                    value.unwrap_or_else(|| panic!("{metric} is not on the page")).parse().unwrap()
                };
                prop_assert_eq!(value("mongomux_breaker_state{server=\"db:1\"}"), health.state() as u64);
                for state in BreakerState::ALL {
                    let to = state.as_str();
                    let counted = value(&format!("mongomux_breaker_transitions_total{{server=\"db:1\",to=\"{to}\"}}"));
                    prop_assert_eq!(counted, entered[state as usize], "to {}", to);
                }
                let reasons = TripLabel::ALL.iter().map(|reason| reason.as_str());
                let tripped = reasons.map(|reason| {
                    value(&format!("mongomux_breaker_trips_total{{reason=\"{reason}\",server=\"db:1\"}}"))
                });
                prop_assert_eq!(tripped.sum::<u64>(), entered[BreakerState::Open as usize]);
                Ok(())
            })?;
        }
    }

    #[tokio::test(start_paused = true)]
    async fn retries_come_out_of_a_budget_and_denied_ones_are_counted() {
        let (health, metrics) = health();
        let granted = (0..150).filter(|_| health.may_retry()).count();
        assert_eq!(granted, 100);
        assert!(!(0..1000).any(|_| health.command_ended(Outcome::Success, Instant::now())));
        assert_eq!((0..150).filter(|_| health.may_retry()).count(), 100, "a tenth of the traffic more");
        assert!(metrics.render().contains("mongomux_retries_denied_total{server=\"db:1\"} 100"));
    }
}
