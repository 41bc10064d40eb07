//! The breaker against a naive model of its rules, over a list of operations: the tests of this crate make them up at random,
//! and a fuzz target makes them of bytes. Compiled for these only, and so by what both of them can name.

use super::*;

/// The same rules over whole ticks, from the full history, without a ring, a counter or a stored deadline.
#[derive(Debug, Default)]
struct Model {
    now: u64,
    mode: Mode,
    /// All outcomes since it last became closed.
    outcomes: Vec<(u64, bool)>,
    /// How many trips since the server was last known to be well.
    trips: u32,
    closed_at: Option<u64>,
}

#[derive(Debug, Default, Clone, Copy, PartialEq)]
enum Mode {
    #[default]
    Closed,
    /// Since when, for how long, by an operator.
    Open(u64, u64, bool),
    /// The probe and since when.
    HalfOpen(Option<(ProbeId, u64)>),
}

/// One tick is one bucket of the window, so that the ring and the list agree to the outcome.
const TICK: Duration = Duration::from_secs(1);
const WINDOW: u64 = 10;
const OPEN_INITIAL: u64 = 4;
const OPEN_MAX: u64 = 24;
const IN_A_ROW: usize = 4;
const MINIMUM: usize = 6;

impl Model {
    fn open(&mut self, quarters: u64) {
        let full = (OPEN_INITIAL << self.trips.min(16)).min(OPEN_MAX);
        self.trips += 1;
        self.mode = Mode::Open(self.now, full * (4 - quarters) / 4, false);
    }

    fn record(&mut self, success: bool, quarters: u64) {
        if self.mode != Mode::Closed {
            return;
        }
        self.outcomes.push((self.now, success));
        let row = self.outcomes.iter().rev().take_while(|(_, success)| !success).count();
        let recent = || self.outcomes.iter().filter(|(at, _)| at + WINDOW > self.now);
        let low = recent().count() >= MINIMUM && recent().filter(|(_, ok)| *ok).count() * 2 < recent().count();
        if !success && (row >= IN_A_ROW || low) {
            if self.closed_at.is_some_and(|at| self.now - at >= OPEN_MAX) {
                self.trips = 0;
            }
            self.open(quarters);
        }
    }

    fn close(&mut self) {
        self.mode = Mode::Closed;
        self.outcomes.clear();
    }

    fn admits(&self) -> Expected {
        match self.mode {
            Mode::Closed => Expected::Pass,
            Mode::Open(since, ticks, _) if self.now < since + ticks => Expected::Refuse(since + ticks - self.now),
            Mode::HalfOpen(Some((_, since))) if self.now < since + 60 => Expected::Refuse(since + 60 - self.now),
            Mode::Open(..) | Mode::HalfOpen(_) => Expected::Probe,
        }
    }

    fn state(&self) -> BreakerState {
        match self.mode {
            Mode::Closed => BreakerState::Closed,
            Mode::Open(..) => BreakerState::Open,
            Mode::HalfOpen(_) => BreakerState::HalfOpen,
        }
    }
}

#[derive(Debug, PartialEq)]
enum Expected {
    Pass,
    Probe,
    Refuse(u64),
}

#[derive(Debug, Clone, Copy)]
pub(super) enum Operation {
    Wait(u64),
    Record {
        success: bool,
        quarters: u64,
    },
    Ask,
    /// `back` probes before the last one taken.
    Finish {
        back: usize,
        success: bool,
        quarters: u64,
    },
    Abandon {
        back: usize,
    },
    Heartbeat,
    Trip,
    Reset,
}

impl Operation {
    /// What two bytes stand for: what it is, the common ones more often, and what with.
    pub(super) fn of((kind, with): (u8, u8)) -> Self {
        // Quarters of the greatest jitter: 0 or 2 keep every open time a whole number of ticks.
        let (success, quarters) = (with % 10 < 3, if with < 128 { 0 } else { 2 });
        // Mostly the last probe, sometimes one of long ago.
        let back = if with % 5 == 4 { usize::from(with % 3) } else { 0 };
        match kind % 32 {
            0..6 => Self::Wait(u64::from(match with {
                0..142 => with % 3,
                142..228 => with % 30,
                228.. => with % 100,
            })),
            6..18 => Self::Record { success, quarters },
            18..24 => Self::Ask,
            24..28 => Self::Finish { back, success: with % 2 == 0, quarters },
            28 => Self::Abandon { back },
            29 => Self::Heartbeat,
            30 => Self::Trip,
            _ => Self::Reset,
        }
    }
}

fn outcome(success: bool) -> Outcome {
    if success { Outcome::Success } else { Outcome::Failure(Failure::Network) }
}

/// Does all of it to both, and looks after each step whether they agree.
pub(super) fn run(operations: impl IntoIterator<Item = Operation>) {
    let ticks = |count: u64| TICK * u32::try_from(count).unwrap();
    let start = Instant::now();
    let mut breaker = Breaker::new(&BreakerConfig {
        consecutive_failures: u32::try_from(IN_A_ROW).unwrap(),
        success_rate: 0.5,
        minimum_samples: u32::try_from(MINIMUM).unwrap(),
        window: ticks(WINDOW),
        open_initial: ticks(OPEN_INITIAL),
        open_max: ticks(OPEN_MAX),
    });
    let mut model = Model::default();
    let mut probes = Vec::new();
    for operation in operations {
        let now = start + ticks(model.now);
        let from = model.state();
        let transition = match operation {
            Operation::Wait(count) => {
                model.now += count;
                None
            }
            Operation::Record { success, quarters } => {
                model.record(success, quarters);
                breaker.record(outcome(success), now, quarters as f64 / 2.0)
            }
            Operation::Ask => {
                let expected = model.admits();
                let (admission, transition) = breaker.admits(now);
                match admission {
                    Admission::Pass => assert_eq!(expected, Expected::Pass),
                    Admission::Refuse { retry_after } => {
                        assert_eq!(expected, Expected::Refuse(retry_after.as_secs()));
                    }
                    Admission::Probe(id) => {
                        assert_eq!(expected, Expected::Probe);
                        assert!(!probes.contains(&id));
                        probes.push(id);
                        model.mode = Mode::HalfOpen(Some((id, model.now)));
                    }
                }
                transition
            }
            Operation::Finish { back, success, quarters } => {
                let Some(&id) = probes.iter().rev().nth(back) else { continue };
                if matches!(model.mode, Mode::HalfOpen(Some((current, _))) if current == id) {
                    if success {
                        model.close();
                        model.closed_at = Some(model.now);
                    } else {
                        model.open(quarters);
                    }
                }
                breaker.probe_finished(id, outcome(success), now, quarters as f64 / 2.0)
            }
            Operation::Abandon { back } => {
                let Some(&id) = probes.iter().rev().nth(back) else { continue };
                if matches!(model.mode, Mode::HalfOpen(Some((current, _))) if current == id) {
                    model.mode = Mode::HalfOpen(None);
                }
                breaker.probe_abandoned(id);
                None
            }
            Operation::Heartbeat => {
                if matches!(model.mode, Mode::Open(_, _, false)) {
                    model.mode = Mode::HalfOpen(None);
                }
                breaker.heartbeat_succeeded()
            }
            Operation::Trip => {
                model.mode = Mode::Open(model.now, OPEN_MAX, true);
                breaker.trip(now)
            }
            Operation::Reset => {
                model.close();
                (model.trips, model.closed_at) = (0, None);
                breaker.reset()
            }
        };
        let now = start + ticks(model.now);
        breaker.check_invariants(now);
        assert_eq!(breaker.state(), model.state());
        assert_eq!(breaker.refuses(now).is_some(), matches!(model.admits(), Expected::Refuse(_)));
        let seen = transition.map(|transition| (transition.from, transition.to));
        assert_eq!(seen, (from != model.state()).then_some((from, model.state())));
    }
    // Whatever happened, it is never stuck: one long wait and a good probe bring it back.
    let now = start + ticks(model.now) + ticks(OPEN_MAX).max(PROBE_EXPIRY);
    if let (Admission::Probe(id), _) = breaker.admits(now) {
        breaker.probe_finished(id, Outcome::Success, now, 0.0);
    }
    assert_eq!(breaker.admits(now).0, Admission::Pass);
}
