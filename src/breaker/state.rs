//! Closed, open, half-open.
//!
//! ```text
//!              N failures in a row, or too few successes in the window
//!   ┌────────┐                 trip()                  ┌──────┐
//!   │ closed │ ───────────────────────────────────────▶│ open │
//!   └────────┘                                         └──────┘
//!       ▲                                               │    ▲
//!       │                        its time is over, or a │    │ the probe failed:
//!       │                           heartbeat succeeded │    │ open for twice as long
//!       │                                               ▼    │
//!       │      the probe succeeded, or reset()     ┌───────────┐
//!       └──────────────────────────────────────────│ half-open │
//!                                                  └───────────┘
//! ```
//!
//! Closed passes everything. Open refuses everything. Half-open admits one probe at a time and refuses the rest; only
//! the probe's outcome counts there, since commands that were sent before the trip may end at any time after it.
//!
//! A heartbeat never closes a breaker: the monitor has a connection of its own, which says little about the others.
//!
//! A method that changes the state returns the [`Transition`], for the caller to log and count.

#[cfg(test)]
mod model;

use std::time::Duration;

use tokio::time::Instant;

use super::window::Window;
use crate::config::BreakerConfig;

/// A probe that has told nothing for this long is given up and the next one admitted. The caller returns every probe,
/// with an outcome or as abandoned, so this only bounds the damage of one that was lost; a probe itself is bounded by
/// `connect_timeout`, usually far below.
pub const PROBE_EXPIRY: Duration = Duration::from_secs(60);

/// The three states, in order of the metric `breaker_state`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum BreakerState {
    /// Passes traffic.
    Closed,
    /// Admits one probe at a time.
    HalfOpen,
    /// Refuses traffic.
    Open,
}

impl BreakerState {
    /// All of them, in order.
    pub const ALL: [Self; 3] = [Self::Closed, Self::HalfOpen, Self::Open];

    /// The name in logs and metrics.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Closed => "closed",
            Self::HalfOpen => "half_open",
            Self::Open => "open",
        }
    }
}

/// How something that says whether the server works has ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Outcome {
    /// A connection was established, or a command answered, even with an error.
    Success,
    /// The server was not there.
    Failure(Failure),
}

/// What failed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Failure {
    /// No socket: name, TCP or TLS.
    Connect,
    /// A socket, but no hello or no login.
    Handshake,
    /// A connection broke in the middle of a command.
    Network,
    /// No answer to a command in time.
    Timeout,
}

/// Whether a command may go to the server.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Admission {
    /// Go; report the outcome with [`Breaker::record`].
    Pass,
    /// Try the server first and report with [`Breaker::probe_finished`] or [`Breaker::probe_abandoned`].
    Probe(ProbeId),
    /// Do not go.
    Refuse {
        /// The longest it can take until asking again gives another answer; a heartbeat, a probe or an operator can
        /// change it earlier.
        retry_after: Duration,
    },
}

/// Tells a probe from those that were given up before it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct ProbeId(u64);

/// A change of state.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Transition {
    /// The state before.
    pub from: BreakerState,
    /// The state now, always another one.
    pub to: BreakerState,
    /// What caused it.
    pub reason: Reason,
}

/// What caused a [`Transition`].
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Reason {
    /// To open.
    Tripped(TripReason),
    /// To half-open: the open time is over.
    OpenTimeOver,
    /// To half-open: the monitor reached the server.
    HeartbeatSucceeded,
    /// To closed.
    ProbeSucceeded,
    /// To closed, by an operator.
    Reset,
}

/// Why a breaker tripped; failures name the last one.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum TripReason {
    /// As many failures in a row as configured.
    ConsecutiveFailures(Failure),
    /// Too small a share of successes in the window.
    SuccessRate(Failure),
    /// The probe of a half-open breaker failed.
    ProbeFailed(Failure),
    /// An operator wants it open.
    Operator,
}

/// The breaker of one server. Every method is total, takes constant time and neither waits nor logs.
#[derive(Debug, Clone)]
pub struct Breaker {
    config: BreakerConfig,
    state: State,
    /// Outcomes while closed; empty in the other states.
    window: Window,
    /// Failures since the last success while closed; below the configured number, zero in the other states.
    consecutive_failures: u32,
    /// How long the next trip opens it, before jitter; `open_initial` to `open_max`.
    next_open: Duration,
    /// When a probe last closed it.
    closed_at: Option<Instant>,
    probes: u64,
}

#[derive(Debug, Clone, Copy)]
enum State {
    Closed,
    Open { until: Instant, by_operator: bool },
    HalfOpen { probe: Option<Probe> },
}

#[derive(Debug, Clone, Copy)]
struct Probe {
    id: ProbeId,
    expires: Instant,
}

impl Breaker {
    /// A closed breaker that knows nothing of its server.
    pub fn new(config: &BreakerConfig) -> Self {
        Self {
            state: State::Closed,
            window: Window::new(config.window),
            consecutive_failures: 0,
            next_open: config.open_initial,
            closed_at: None,
            probes: 0,
            config: config.clone(),
        }
    }

    /// Goes on by other rules. What was counted is forgotten, and an open breaker stays open as long as it was to be.
    pub fn reconfigure(&mut self, config: &BreakerConfig) {
        self.window = Window::new(config.window);
        self.consecutive_failures = 0;
        self.next_open = self.next_open.clamp(config.open_initial, config.open_max);
        self.config = config.clone();
    }

    /// The state as of the last change. An open one whose time is over still says open: the first to ask for admission
    /// makes it half-open.
    pub fn state(&self) -> BreakerState {
        match self.state {
            State::Closed => BreakerState::Closed,
            State::Open { .. } => BreakerState::Open,
            State::HalfOpen { .. } => BreakerState::HalfOpen,
        }
    }

    /// For how long [`Self::admits`] would refuse, without asking for admission; `None` if it would not.
    pub fn refuses(&self, now: Instant) -> Option<Duration> {
        let until = match self.state {
            State::Closed | State::HalfOpen { probe: None } => return None,
            State::Open { until, .. } => until,
            State::HalfOpen { probe: Some(probe) } => probe.expires,
        };
        (now < until).then(|| until - now)
    }

    /// Asks for admission of one command. A probe is promised to the caller, who must return it.
    pub fn admits(&mut self, now: Instant) -> (Admission, Option<Transition>) {
        if let Some(retry_after) = self.refuses(now) {
            return (Admission::Refuse { retry_after }, None);
        }
        let transition = match self.state {
            State::Closed => return (Admission::Pass, None),
            State::Open { .. } => self.enter(State::HalfOpen { probe: None }, Reason::OpenTimeOver),
            State::HalfOpen { .. } => None,
        };
        self.probes += 1;
        let id = ProbeId(self.probes);
        self.state = State::HalfOpen { probe: Some(Probe { id, expires: now + PROBE_EXPIRY }) };
        (Admission::Probe(id), transition)
    }

    /// Reports how a command that was passed, or a connection established meanwhile, has ended. Only counts while closed.
    /// `jitter`, from 0 to 1, shortens the open time of a trip by up to a half, so that proxies do not return together.
    pub fn record(&mut self, outcome: Outcome, now: Instant, jitter: f64) -> Option<Transition> {
        if !matches!(self.state, State::Closed) {
            return None;
        }
        self.window.record(outcome == Outcome::Success, now);
        let Outcome::Failure(failure) = outcome else {
            // A success never trips, even if it is the one that completes the minimum of samples.
            self.consecutive_failures = 0;
            return None;
        };
        self.consecutive_failures += 1;
        let reason = if self.consecutive_failures >= self.config.consecutive_failures {
            TripReason::ConsecutiveFailures(failure)
        } else if self.success_rate_is_low(now) {
            TripReason::SuccessRate(failure)
        } else {
            return None;
        };
        // A breaker that opens again soon after it closed goes on doubling; one that was closed for the longest open time
        // has proved that the server was well.
        if self.closed_at.is_some_and(|at| now.saturating_duration_since(at) >= self.config.open_max) {
            self.next_open = self.config.open_initial;
        }
        self.open(reason, now, jitter)
    }

    /// Reports how a probe has ended; `jitter` as in [`Self::record`]. The outcome of a probe that is not the current one
    /// any more (expired and overtaken, or the breaker was tripped or reset meanwhile) is ignored.
    pub fn probe_finished(&mut self, id: ProbeId, outcome: Outcome, now: Instant, jitter: f64) -> Option<Transition> {
        if !self.is_current(id) {
            return None;
        }
        match outcome {
            Outcome::Success => {
                self.closed_at = Some(now);
                self.enter(State::Closed, Reason::ProbeSucceeded)
            }
            Outcome::Failure(failure) => self.open(TripReason::ProbeFailed(failure), now, jitter),
        }
    }

    /// Returns a probe that told nothing, for example because its client left: the next to ask gets one.
    pub fn probe_abandoned(&mut self, id: ProbeId) {
        if self.is_current(id) {
            self.state = State::HalfOpen { probe: None };
        }
    }

    /// The monitor reached the server: no reason to wait any longer, unless an operator wants it open.
    pub fn heartbeat_succeeded(&mut self) -> Option<Transition> {
        match self.state {
            State::Open { by_operator: false, .. } => {
                self.enter(State::HalfOpen { probe: None }, Reason::HeartbeatSucceeded)
            }
            State::Closed | State::Open { .. } | State::HalfOpen { .. } => None,
        }
    }

    /// Opens it for `open_max`, whatever the server does. Heartbeats do not end this early, [`Self::reset`] does.
    pub fn trip(&mut self, now: Instant) -> Option<Transition> {
        let state = State::Open { until: now + self.config.open_max, by_operator: true };
        self.enter(state, Reason::Tripped(TripReason::Operator))
    }

    /// Closes it and forgets what it knew of the server.
    pub fn reset(&mut self) -> Option<Transition> {
        self.next_open = self.config.open_initial;
        self.enter(State::Closed, Reason::Reset)
    }

    fn success_rate_is_low(&mut self, now: Instant) -> bool {
        let counts = self.window.counts(now);
        counts.total >= u64::from(self.config.minimum_samples)
            && (counts.successes as f64) < self.config.success_rate * (counts.total as f64)
    }

    fn is_current(&self, id: ProbeId) -> bool {
        matches!(self.state, State::HalfOpen { probe: Some(probe) } if probe.id == id)
    }

    fn open(&mut self, reason: TripReason, now: Instant, jitter: f64) -> Option<Transition> {
        // `max` turns a NaN, on which `mul_f64` would panic, into 0.
        let open_for = self.next_open.mul_f64(1.0 - jitter.clamp(0.0, 1.0).max(0.0) / 2.0);
        self.next_open = self.next_open.saturating_mul(2).min(self.config.open_max);
        self.enter(State::Open { until: now + open_for, by_operator: false }, Reason::Tripped(reason))
    }

    /// The one place where the state changes its name.
    fn enter(&mut self, state: State, reason: Reason) -> Option<Transition> {
        let from = self.state();
        self.state = state;
        self.window.clear();
        self.consecutive_failures = 0;
        let to = self.state();
        (from != to).then_some(Transition { from, to, reason })
    }
}

impl Breaker {
    /// Panics where what must hold does not. For tests, those of others included.
    pub fn check_invariants(&mut self, now: Instant) {
        self.window.check_invariants();
        assert!((self.config.open_initial..=self.config.open_max).contains(&self.next_open));
        match self.state {
            State::Closed => assert!(self.consecutive_failures < self.config.consecutive_failures),
            State::Open { until, .. } => assert!(until <= now + self.config.open_max),
            State::HalfOpen { probe } => {
                assert!(probe.is_none_or(|probe| probe.id.0 == self.probes && probe.expires <= now + PROBE_EXPIRY));
            }
        }
        if !matches!(self.state, State::Closed) {
            assert_eq!(self.consecutive_failures, 0);
            assert_eq!(self.window.counts(now).total, 0);
        }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const FAILURE: Outcome = Outcome::Failure(Failure::Network);

    /// The defaults of the product.
    fn config() -> BreakerConfig {
        BreakerConfig {
            consecutive_failures: 5,
            success_rate: 0.5,
            minimum_samples: 20,
            window: Duration::from_secs(10),
            open_initial: Duration::from_secs(1),
            open_max: Duration::from_secs(60),
        }
    }

    fn change(from: BreakerState, to: BreakerState, reason: Reason) -> Option<Transition> {
        Some(Transition { from, to, reason })
    }

    /// Fails a closed breaker until it trips; returns how long it refuses.
    fn trip_by_failures(breaker: &mut Breaker, now: Instant, jitter: f64) -> Duration {
        while breaker.record(FAILURE, now, jitter).is_none() {}
        breaker.refuses(now).unwrap()
    }

    /// Takes the probe that must be there.
    fn probe(breaker: &mut Breaker, now: Instant) -> ProbeId {
        let (Admission::Probe(id), _) = breaker.admits(now) else { panic!("{breaker:?}") };
        id
    }

    #[test]
    fn failures_in_a_row_trip_and_a_probe_closes() {
        use BreakerState::{Closed, HalfOpen, Open};
        let mut now = Instant::now();
        let mut breaker = Breaker::new(&config());
        for _ in 0..4 {
            assert_eq!(breaker.record(FAILURE, now, 0.0), None);
        }
        assert_eq!(breaker.record(Outcome::Success, now, 0.0), None);
        for _ in 0..4 {
            assert_eq!(breaker.record(FAILURE, now, 0.0), None);
        }
        assert_eq!(breaker.admits(now), (Admission::Pass, None));
        let tripped = Reason::Tripped(TripReason::ConsecutiveFailures(Failure::Connect));
        let last = Outcome::Failure(Failure::Connect);
        assert_eq!(breaker.record(last, now, 0.0), change(Closed, Open, tripped));

        let refused = Admission::Refuse { retry_after: Duration::from_secs(1) };
        assert_eq!(breaker.admits(now), (refused, None));
        now += Duration::from_millis(999);
        let refused = Admission::Refuse { retry_after: Duration::from_millis(1) };
        assert_eq!(breaker.admits(now), (refused, None));
        assert_eq!(breaker.state(), Open);
        now += Duration::from_millis(1);
        let (admission, transition) = breaker.admits(now);
        let Admission::Probe(id) = admission else { panic!("{admission:?}") };
        assert_eq!(transition, change(Open, HalfOpen, Reason::OpenTimeOver));
        assert!(matches!(breaker.admits(now), (Admission::Refuse { .. }, None)));

        let closed = breaker.probe_finished(id, Outcome::Success, now, 0.0);
        assert_eq!(closed, change(HalfOpen, Closed, Reason::ProbeSucceeded));
        assert_eq!(breaker.admits(now), (Admission::Pass, None));
    }

    #[test]
    fn a_low_success_rate_trips_once_there_are_enough_samples() {
        let now = Instant::now();
        // Two failures for each success: 33 %, and never five in a row.
        let outcomes = |count| [FAILURE, FAILURE, Outcome::Success].into_iter().cycle().take(count);
        let mut breaker = Breaker::new(&config());
        for outcome in outcomes(19) {
            assert_eq!(breaker.record(outcome, now, 0.0), None);
        }
        let tripped = breaker.record(FAILURE, now, 0.0).unwrap();
        assert_eq!(tripped.reason, Reason::Tripped(TripReason::SuccessRate(Failure::Network)));

        // The same spread over more than the window never has enough.
        let mut breaker = Breaker::new(&config());
        for (index, outcome) in (0..).zip(outcomes(200)) {
            assert_eq!(breaker.record(outcome, now + Duration::from_millis(600) * index, 0.0), None);
        }
        // Exactly the limit is not below it.
        let mut breaker = Breaker::new(&config());
        for outcome in [Outcome::Success, FAILURE].into_iter().cycle().take(200) {
            assert_eq!(breaker.record(outcome, now, 0.0), None);
        }
    }

    #[test]
    fn a_success_never_trips() {
        let now = Instant::now();
        let mut breaker = Breaker::new(&BreakerConfig { consecutive_failures: 100, ..config() });
        for _ in 0..19 {
            breaker.record(FAILURE, now, 0.0);
        }
        assert_eq!(breaker.record(Outcome::Success, now, 0.0), None);
        assert!(breaker.record(FAILURE, now, 0.0).is_some());
    }

    #[test]
    fn open_time_doubles_with_failing_probes() {
        let mut now = Instant::now();
        let mut breaker = Breaker::new(&config());
        let mut seconds = vec![trip_by_failures(&mut breaker, now, 0.0).as_secs()];
        for _ in 0..7 {
            now += breaker.refuses(now).unwrap();
            let id = probe(&mut breaker, now);
            let reopened = breaker.probe_finished(id, FAILURE, now, 0.0).unwrap();
            assert_eq!(reopened.reason, Reason::Tripped(TripReason::ProbeFailed(Failure::Network)));
            seconds.push(breaker.refuses(now).unwrap().as_secs());
        }
        assert_eq!(seconds, [1, 2, 4, 8, 16, 32, 60, 60]);
    }

    #[test]
    fn open_time_starts_over_after_a_healthy_time_only() {
        for (healthy_ms, expected) in [(59_999, 2), (60_000, 1)] {
            let mut now = Instant::now();
            let mut breaker = Breaker::new(&config());
            now += trip_by_failures(&mut breaker, now, 0.0);
            let id = probe(&mut breaker, now);
            breaker.probe_finished(id, Outcome::Success, now, 0.0);
            now += Duration::from_millis(healthy_ms);
            assert_eq!(trip_by_failures(&mut breaker, now, 0.0).as_secs(), expected, "{healthy_ms}");
        }
    }

    #[test]
    fn jitter_shortens_by_up_to_a_half() {
        let now = Instant::now();
        for (jitter, millis) in [(0.0, 1000), (0.5, 750), (1.0, 500), (7.0, 500), (-1.0, 1000), (f64::NAN, 1000)] {
            let mut breaker = Breaker::new(&config());
            assert_eq!(trip_by_failures(&mut breaker, now, jitter), Duration::from_millis(millis), "{jitter}");
        }
    }

    #[test]
    fn a_heartbeat_makes_it_half_open_and_no_more() {
        use BreakerState::{HalfOpen, Open};
        let now = Instant::now();
        let mut breaker = Breaker::new(&config());
        assert_eq!(breaker.heartbeat_succeeded(), None);
        trip_by_failures(&mut breaker, now, 0.0);
        assert_eq!(breaker.heartbeat_succeeded(), change(Open, HalfOpen, Reason::HeartbeatSucceeded));
        assert_eq!(breaker.heartbeat_succeeded(), None);
        let id = probe(&mut breaker, now);
        // Nor does it let a second probe out.
        assert_eq!(breaker.heartbeat_succeeded(), None);
        assert!(breaker.refuses(now).is_some());
        assert!(breaker.probe_finished(id, Outcome::Success, now, 0.0).is_some());
    }

    #[test]
    fn outcomes_from_before_the_trip_change_nothing_after_it() {
        let mut now = Instant::now();
        let mut breaker = Breaker::new(&config());
        let open_for = trip_by_failures(&mut breaker, now, 0.0);
        for outcome in [[FAILURE; 10], [Outcome::Success; 10]].concat() {
            assert_eq!(breaker.record(outcome, now, 0.0), None);
        }
        assert_eq!(breaker.refuses(now), Some(open_for));
        now += open_for;
        probe(&mut breaker, now);
        for outcome in [[FAILURE; 10], [Outcome::Success; 10]].concat() {
            assert_eq!(breaker.record(outcome, now, 0.0), None);
        }
        assert_eq!(breaker.state(), BreakerState::HalfOpen);
    }

    #[test]
    fn abandoned_and_lost_probes_make_room_for_the_next() {
        let mut now = Instant::now();
        let mut breaker = Breaker::new(&config());
        now += trip_by_failures(&mut breaker, now, 0.0);
        let abandoned = probe(&mut breaker, now);
        breaker.probe_abandoned(abandoned);
        let lost = probe(&mut breaker, now);
        // Abandoning twice does not take the other's place.
        breaker.probe_abandoned(abandoned);
        assert_eq!(breaker.refuses(now), Some(PROBE_EXPIRY));
        now += PROBE_EXPIRY;
        let last = probe(&mut breaker, now);
        for id in [abandoned, lost] {
            assert_eq!(breaker.probe_finished(id, FAILURE, now, 0.0), None);
            assert_eq!(breaker.probe_finished(id, Outcome::Success, now, 0.0), None);
        }
        assert!(breaker.probe_finished(last, Outcome::Success, now, 0.0).is_some());
        assert_eq!(breaker.probe_finished(last, FAILURE, now, 0.0), None);
    }

    #[test]
    fn a_late_probe_that_nobody_overtook_still_counts() {
        let mut now = Instant::now();
        let mut breaker = Breaker::new(&config());
        now += trip_by_failures(&mut breaker, now, 0.0);
        let id = probe(&mut breaker, now);
        now += PROBE_EXPIRY * 2;
        assert!(breaker.probe_finished(id, Outcome::Success, now, 0.0).is_some());
    }

    #[test]
    fn an_operator_overrules_heartbeats_and_probes() {
        use BreakerState::{Closed, HalfOpen, Open};
        let mut now = Instant::now();
        let mut breaker = Breaker::new(&config());
        let tripped = Reason::Tripped(TripReason::Operator);
        assert_eq!(breaker.trip(now), change(Closed, Open, tripped));
        assert_eq!(breaker.trip(now), None);
        assert_eq!(breaker.heartbeat_succeeded(), None);
        assert_eq!(breaker.refuses(now), Some(Duration::from_secs(60)));
        now += Duration::from_secs(60);
        let id = probe(&mut breaker, now);
        assert_eq!(breaker.trip(now), change(HalfOpen, Open, tripped));
        assert_eq!(breaker.probe_finished(id, Outcome::Success, now, 0.0), None);
        assert_eq!(breaker.reset(), change(Open, Closed, Reason::Reset));
        assert_eq!(breaker.reset(), None);
        assert_eq!(trip_by_failures(&mut breaker, now, 0.0), Duration::from_secs(1));
        breaker.reset();
        assert_eq!(trip_by_failures(&mut breaker, now, 0.0), Duration::from_secs(1));
    }

    #[test]
    fn other_rules_forget_what_was_counted_and_an_open_breaker_stays_open_as_long_as_it_was_to_be() {
        let seconds = Duration::from_secs;
        let mut now = Instant::now();
        let mut breaker = Breaker::new(&config());
        let trips =
            |breaker: &mut Breaker, failures| (0..failures).any(|_| breaker.record(FAILURE, now, 0.0).is_some());
        assert!(!trips(&mut breaker, 4));
        breaker.reconfigure(&config());
        assert!(!trips(&mut breaker, 4), "the four before are forgotten");
        breaker.reconfigure(&BreakerConfig { consecutive_failures: 100, minimum_samples: 8, ..config() });
        assert!(!trips(&mut breaker, 7), "and are not in the window");
        assert!(trips(&mut breaker, 1), "by the new rules");

        breaker.reconfigure(&BreakerConfig { open_initial: seconds(5), open_max: seconds(8), ..config() });
        assert_eq!(breaker.refuses(now), Some(seconds(1)));
        let mut opened = Vec::new();
        for _ in 0..3 {
            now += breaker.refuses(now).unwrap();
            let id = probe(&mut breaker, now);
            breaker.probe_finished(id, FAILURE, now, 0.0);
            opened.push(breaker.refuses(now).unwrap());
        }
        assert_eq!(opened, [5, 8, 8].map(seconds));
    }

    #[test]
    fn states_are_in_the_order_of_the_metric() {
        assert_eq!(BreakerState::ALL.map(|state| state as u8), [0, 1, 2]);
        assert_eq!(BreakerState::ALL.map(BreakerState::as_str), ["closed", "half_open", "open"]);
    }

    proptest! {
        #[test]
        fn behaves_like_the_naive_model(operations in prop::collection::vec(any::<(u8, u8)>(), 1..300)) {
            model::run(operations.into_iter().map(model::Operation::of));
        }
    }
}
