//! How many commands one server is given at once, learnt from how long it takes.
//!
//! The algorithm is Gradient2 of Netflix' concurrency-limits library (github.com/Netflix/concurrency-limits, described in
//! "Performance Under Load"), after its description: the latency of a short time is compared with that of a long time, and
//! the limit follows their ratio. While commands take at most `TOLERANCE` times what is normal, the limit grows by a small
//! allowance, the queue that a server may have; beyond it the limit shrinks with the ratio, to half at most.
//!
//! Four things differ, as a pool has 2 to 300 connections and there is one server behind it:
//!
//! - The short time is a window and not one command: a pool carries cheap and dear ones side by side.
//! - The allowance is 4 for large limits only. Under a ratio that stays bad the limit falls to twice the allowance, which
//!   must not be most of a pool of ten. See `allowance`.
//! - It starts at its least and doubles with each window until the first that takes too long: a limit that begins too
//!   high sends an avalanche to a server that is cold, and takes it for normal.
//! - Where the limit cannot fall any further and commands still take too long, they do so without a queue at the server: the
//!   work has changed, or the server has. Then what is normal is learnt anew within seconds.
//!
//! What it cannot tell is a crowd that never leaves: what takes long for minutes becomes normal, slowly.

use std::time::Duration;

use tokio::time::Instant;

/// Weight of a new limit against the one before.
const SMOOTHING: f64 = 0.2;
/// Commands may take so many times what is normal before the limit shrinks.
const TOLERANCE: f64 = 1.5;
/// At once the limit shrinks to this at most.
const LEAST_GRADIENT: f64 = 0.5;
/// Windows of which what is normal is the mean, a newer one counting more.
const LONG_WINDOWS: f64 = 600.0;
/// As [`LONG_WINDOWS`] where nobody waits for anybody at the server.
const RELEARNING_WINDOWS: f64 = 19.0;
/// A server that has become so many times faster is believed sooner, by this factor for each window.
const FASTER: f64 = 2.0;
const FASTER_DECAY: f64 = 0.95;
/// A window is at least so long. Twice a second is soon enough for people, and what is normal lasts five minutes.
const WINDOW: Duration = Duration::from_millis(500);
/// As [`WINDOW`], while the limit doubles: 300 are reached within a second.
const STARTING_WINDOW: Duration = Duration::from_millis(100);
/// A window has at least so many commands, and as many as may be in flight.
const LEAST_SAMPLES: u32 = 10;
/// The allowance for large limits.
const MOST_ALLOWANCE: f64 = 4.0;
/// Less than this is rounded up to it, seconds: the clock is not that fine.
const LEAST_LATENCY: f64 = 1e-6;

/// The limit of one server.
#[derive(Debug)]
pub struct Gradient {
    min: f64,
    max: f64,
    limit: f64,
    /// Seconds; `None` before the first window.
    normal: Option<f64>,
    phase: Phase,
    window: Window,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Phase {
    /// Doubles while half of it is used, and the least latency of such windows is normal.
    Starting,
    Following,
    /// The limit was as low as it gets, and commands took too long all the same: what is normal is learnt anew.
    Relearning,
}

#[derive(Debug, Default)]
struct Window {
    began: Option<Instant>,
    samples: u32,
    seconds: f64,
    most_in_flight: u32,
}

impl Gradient {
    /// A limit between `min` and `max`, beginning at `min`. Both count commands; none is not a limit.
    pub fn new(min: u32, max: u32) -> Self {
        let max = max.max(1);
        let (min, max) = (f64::from(min.clamp(1, max)), f64::from(max));
        Self { min, max, limit: min, normal: None, phase: Phase::Starting, window: Window::default() }
    }

    /// Goes on between other bounds.
    pub fn set_bounds(&mut self, min: u32, max: u32) {
        let Self { min, max, .. } = Self::new(min, max);
        (self.min, self.max, self.limit) = (min, max, self.limit.clamp(min, max));
    }

    /// Commands that may be in flight.
    #[expect(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "between two numbers that were u32")]
    pub fn limit(&self) -> u32 {
        self.limit as u32
    }

    /// A command was answered after `took`, while so many were in flight with it. True when that has changed the limit.
    pub fn answered(&mut self, took: Duration, in_flight: u32, now: Instant) -> bool {
        let window = &mut self.window;
        let began = *window.began.get_or_insert(now);
        window.samples += 1;
        window.seconds += took.as_secs_f64();
        window.most_in_flight = window.most_in_flight.max(in_flight);
        let length = if self.phase == Phase::Starting { STARTING_WINDOW } else { WINDOW };
        if now.saturating_duration_since(began) < length || window.samples < LEAST_SAMPLES.max(self.limit()) {
            return false;
        }
        let window = std::mem::take(&mut self.window);
        let before = self.limit();
        self.follow((window.seconds / f64::from(window.samples)).max(LEAST_LATENCY), window.most_in_flight);
        self.limit() != before
    }

    /// One window: its mean latency in seconds, and how many were in flight at most.
    fn follow(&mut self, short: f64, in_flight: u32) {
        let used = f64::from(in_flight) >= self.limit / 2.0;
        let normal = self.learn(short, used);
        let gradient = (TOLERANCE * normal / short).clamp(LEAST_GRADIENT, 1.0);
        if gradient < 1.0 && self.phase == Phase::Starting {
            self.phase = Phase::Following;
        }
        if gradient >= 1.0 && self.phase == Phase::Relearning {
            self.phase = Phase::Following;
        }
        // Who does not use half of it says nothing about more.
        if !used {
            return;
        }
        let target = match self.phase {
            Phase::Starting => self.limit * 2.0,
            _ => {
                let target = self.limit * gradient + allowance(self.limit);
                self.limit * (1.0 - SMOOTHING) + target * SMOOTHING
            }
        };
        let limit = target.clamp(self.min, self.max);
        let lowest = limit <= self.min || gradient <= LEAST_GRADIENT && self.limit - limit < SMOOTHING / 2.0;
        if gradient < 1.0 && lowest {
            self.phase = Phase::Relearning;
        }
        if self.phase == Phase::Starting && limit >= self.max {
            self.phase = Phase::Following;
        }
        self.limit = limit;
    }

    /// What is normal, this window included.
    fn learn(&mut self, short: f64, used: bool) -> f64 {
        let normal = self.normal.get_or_insert(short);
        let windows = match self.phase {
            Phase::Starting if used => {
                *normal = normal.min(short);
                return *normal;
            }
            Phase::Following => LONG_WINDOWS,
            // Nobody is in the way of anybody.
            Phase::Starting | Phase::Relearning => RELEARNING_WINDOWS,
        };
        *normal += (short - *normal) * 2.0 / (windows + 1.0);
        if *normal > short * FASTER {
            *normal *= FASTER_DECAY;
        }
        *normal
    }
}

/// The queue that a server may have: half of the root of the limit, so 1 for up to 4 commands, 1.6 for 10, and the library's 4
/// from 64 on.
fn allowance(limit: f64) -> f64 {
    (limit.sqrt() / 2.0).clamp(1.0, MOST_ALLOWANCE)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    /// A server and those who always want something of it.
    struct Model {
        gradient: Gradient,
        now: Instant,
        demand: u32,
        /// Of a command alone, milliseconds.
        alone: f64,
        /// So many it carries out side by side; more take turns.
        capacity: u32,
        commands: u32,
    }

    impl Model {
        fn new(max: u32, demand: u32, alone: f64, capacity: u32) -> Self {
            Self { gradient: Gradient::new(2, max), now: Instant::now(), demand, alone, capacity, commands: 0 }
        }

        fn limit(&self) -> u32 {
            self.gradient.limit()
        }

        fn in_flight(&self) -> u32 {
            self.limit().min(self.demand)
        }

        /// Milliseconds on average.
        fn latency(&self) -> f64 {
            self.alone * (f64::from(self.in_flight()) / f64::from(self.capacity)).max(1.0)
        }

        fn run(&mut self, seconds: f64) -> u32 {
            let end = self.now + Duration::from_secs_f64(seconds);
            while self.now < end {
                let (in_flight, latency) = (self.in_flight(), self.latency() / 1e3);
                // Cheap ones and dear ones, in turn.
                let each = [0.2, 1.8, 0.5, 1.5, 1.0][(self.commands % 5) as usize];
                self.commands += 1;
                self.now += Duration::from_secs_f64(latency / f64::from(in_flight));
                self.gradient.answered(Duration::from_secs_f64(latency * each), in_flight, self.now);
            }
            self.limit()
        }
    }

    #[test]
    fn it_starts_at_its_least_and_reaches_what_a_server_can_do_within_seconds() {
        let mut model = Model::new(300, 1_000, 5.0, 1_000);
        assert_eq!(model.limit(), 2);
        assert_eq!(model.run(3.0), 300);
        let mut small = Model::new(10, 1_000, 5.0, 1_000);
        assert_eq!(small.run(1.5), 10);
    }

    #[test]
    fn it_stays_near_what_a_server_can_do() {
        for (max, capacity) in [(10, 3), (50, 10), (300, 10), (300, 60)] {
            let mut model = Model::new(max, 1_000, 5.0, capacity);
            model.run(10.0);
            for _ in 0..50 {
                let limit = model.run(1.0);
                assert!((capacity..=capacity * 5 / 2 + 4).contains(&limit), "{limit} of {max} for {capacity}");
            }
        }
    }

    #[test]
    fn it_falls_when_the_server_slows_down_under_the_load_and_latency_recovers() {
        let mut model = Model::new(300, 1_000, 5.0, 200);
        assert!(model.run(20.0) >= 200);
        model.capacity = 20;
        assert!(model.latency() >= 50.0, "ten times as long");
        assert!(model.run(20.0) <= 50);
        assert!(model.latency() <= 13.0, "{}", model.latency());
    }

    #[test]
    fn it_grows_when_the_server_becomes_fast() {
        let mut model = Model::new(300, 1_000, 5.0, 20);
        assert!(model.run(30.0) <= 50);
        model.capacity = 300;
        assert!(model.run(200.0) >= 150, "{}", model.limit());
        let mut model = Model::new(50, 1_000, 50.0, 5);
        model.run(30.0);
        (model.alone, model.capacity) = (5.0, 100);
        assert_eq!(model.run(120.0), 50);
    }

    /// All commands take ten times as long, however few there are: fewer would not help.
    #[test]
    fn other_work_becomes_normal_and_is_not_throttled_for_long() {
        for max in [10, 50, 300] {
            let mut model = Model::new(max, 1_000, 5.0, 1_000);
            assert_eq!(model.run(10.0), max);
            model.alone = 50.0;
            let mut lowest = max;
            let mut seconds = 0.0;
            while seconds == 0.0 || model.limit() < max.min(20) {
                lowest = lowest.min(model.run(1.0));
                seconds += 1.0;
                assert!(seconds < 90.0, "{} of {max} after {seconds} s", model.limit());
            }
            assert!(lowest < max, "it was careful first");
            model.run(300.0);
            assert_eq!(model.limit(), max);
        }
    }

    #[test]
    fn a_crowd_does_not_become_normal_within_two_minutes() {
        let mut model = Model::new(300, 1_000, 5.0, 20);
        assert!(model.run(120.0) <= 60, "{}", model.limit());
    }

    #[test]
    fn it_does_not_grow_for_who_does_not_use_half_of_it() {
        let mut model = Model::new(300, 8, 5.0, 1_000);
        let limit = model.run(60.0);
        assert!((8..=32).contains(&limit), "{limit}");
        model.demand = 1_000;
        assert_eq!(model.run(2.0), 300, "it goes on where it was");
    }

    #[test]
    fn few_commands_say_nothing() {
        let mut gradient = Gradient::new(1, 100);
        let now = Instant::now();
        for n in 0..9 {
            assert!(!gradient.answered(Duration::from_millis(5), 1, now + Duration::from_secs(n)));
        }
        assert!(gradient.answered(Duration::from_millis(5), 1, now + Duration::from_secs(9)));
        assert_eq!(gradient.limit(), 2);
    }

    #[test]
    fn a_window_ends_when_its_time_is_over_and_it_has_enough_commands() {
        let (mut gradient, began) = (Gradient::new(1, 100), Instant::now());
        let mut answered = |after| gradient.answered(Duration::from_millis(5), 1, began + after);
        for _ in 0..20 {
            assert!(!answered(Duration::ZERO));
        }
        assert!(!answered(STARTING_WINDOW - Duration::from_nanos(1)));
        assert!(answered(STARTING_WINDOW));
    }

    /// Latencies as multiples of what was normal before.
    #[test]
    fn what_is_normal_is_learnt_by_phase() {
        let learn = |phase, short, used| {
            let mut gradient = Gradient { normal: Some(1.0), phase, ..Gradient::new(1, 100) };
            let normal = gradient.learn(short, used);
            assert_eq!(gradient.normal, Some(normal));
            normal
        };
        let near = |found: f64, expected: f64| assert!((found - expected).abs() < 1e-9, "{found}, not {expected}");
        near(learn(Phase::Starting, 0.9, true), 0.9);
        near(learn(Phase::Starting, 3.0, true), 1.0);
        for phase in [Phase::Starting, Phase::Relearning] {
            near(learn(phase, 3.0, false), 1.0 + 2.0 / 10.0);
            near(learn(phase, 0.9, false), 1.0 - 0.1 / 10.0);
        }
        near(learn(Phase::Relearning, 3.0, true), 1.0 + 2.0 / 10.0);
        near(learn(Phase::Following, 3.0, true), 1.0 + 2.0 * 2.0 / 601.0);
        near(learn(Phase::Following, 0.6, true), 1.0 - 0.4 * 2.0 / 601.0);
        near(learn(Phase::Following, 0.4, true), (1.0 - 0.6 * 2.0 / 601.0) * FASTER_DECAY);
        near(Gradient::new(1, 100).learn(7.0, true), 7.0);
    }

    #[test]
    fn the_limit_follows_the_ratio_by_phase() {
        let follow = |phase, limit, short, in_flight| {
            let mut gradient = Gradient { normal: Some(1.0), phase, limit, ..Gradient::new(2, 100) };
            gradient.follow(short, in_flight);
            (gradient.phase, (gradient.limit * 1e3).round() / 1e3)
        };
        use Phase::{Following, Relearning, Starting};
        // While nothing takes too long, up by a fifth of the allowance; by half of it is enough use.
        assert_eq!(follow(Following, 16.0, 1.0, 8), (Following, 16.4));
        assert_eq!(follow(Following, 16.0, 1.0, 7), (Following, 16.0));
        assert_eq!(follow(Following, 16.0, 1.5, 16), (Following, 16.4));
        // A fifth of the way to the ratio, and half of the limit at most at once.
        assert_eq!(follow(Following, 16.0, 2.0, 16), (Following, 15.608));
        assert_eq!(follow(Following, 16.0, 100.0, 16), (Following, 14.8));
        // As low as it gets by the allowance; whoever falls still does not learn anew.
        assert_eq!(follow(Following, 3.6, 100.0, 4), (Following, 3.44));
        assert_eq!(follow(Following, 2.9, 100.0, 4), (Relearning, 2.81));
        assert_eq!(follow(Following, 2.0, 1.6, 4), (Following, 2.176));
        assert_eq!(follow(Relearning, 2.9, 100.0, 4), (Relearning, 2.81));
        assert_eq!(follow(Relearning, 3.6, 1.0, 4), (Following, 3.8));
        // Doubles until something takes too long, or no more may be.
        assert_eq!(follow(Starting, 16.0, 1.0, 16), (Starting, 32.0));
        assert_eq!(follow(Starting, 16.0, 2.0, 16), (Following, 15.6));
        assert_eq!(follow(Starting, 50.0, 1.0, 50), (Following, 100.0));
        assert_eq!(follow(Starting, 49.9, 1.0, 50), (Starting, 99.8));
    }

    #[test]
    fn at_its_bound_a_limit_is_as_low_as_it_gets() {
        let mut gradient =
            Gradient { normal: Some(1.0), phase: Phase::Following, limit: 10.0, ..Gradient::new(10, 100) };
        gradient.follow(2.5, 10);
        assert_eq!((gradient.phase, gradient.limit), (Phase::Relearning, 10.0));
        let mut fixed = Gradient { normal: Some(1.0), phase: Phase::Following, ..Gradient::new(10, 10) };
        fixed.follow(1.0, 10);
        assert_eq!((fixed.phase, fixed.limit), (Phase::Following, 10.0), "nothing takes too long");
    }

    #[test]
    fn other_bounds_are_in_force_at_once_and_what_was_learnt_stays() {
        let mut model = Model::new(300, 1_000, 5.0, 1_000);
        assert_eq!(model.run(3.0), 300);
        for (min, max, limit) in [(5, 50, 50), (60, 100, 60), (2, 80, 60), (0, 0, 1)] {
            model.gradient.set_bounds(min, max);
            assert_eq!(model.limit(), limit, "{min} to {max}");
        }
        model.gradient.set_bounds(1, 10);
        assert_eq!(model.run(60.0), 10);
    }

    #[test]
    fn bounds_that_make_no_sense_are_put_right() {
        for (min, max, limit) in [(0, 0, 1), (0, 10, 1), (20, 10, 10), (3, 3, 3)] {
            assert_eq!(Gradient::new(min, max).limit(), limit);
        }
    }

    proptest! {
        #[test]
        fn it_stays_within_its_bounds_whatever_comes(
            min in 0_u32..400, max in 0_u32..400,
            samples in proptest::collection::vec((0_u64..20_000_000, 0_u32..500, 0_u64..300_000), 1..3_000),
        ) {
            let mut gradient = Gradient::new(min, max);
            let mut now = Instant::now();
            for (took, in_flight, after) in samples {
                now += Duration::from_micros(after);
                let before = gradient.limit();
                let changed = gradient.answered(Duration::from_micros(took), in_flight, now);
                prop_assert_eq!(changed, gradient.limit() != before);
                prop_assert!(gradient.limit.is_finite() && gradient.normal.is_none_or(|normal| normal.is_finite() && normal > 0.0));
                prop_assert!((min.clamp(1, max.max(1))..=max.max(1)).contains(&gradient.limit()));
            }
        }
    }
}
