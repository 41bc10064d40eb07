//! What the last minutes say about the size of a pool and about its clients: rules from samples to plain words. Each names
//! what it saw and what to change. Silence means that nothing is to be done.

use std::collections::BTreeMap;
use std::time::Duration;

use super::history::{ClientSample, Period, PoolSample, Ring};
use crate::config::limits::MAX_POOL_SIZE;
use crate::telemetry::ApplicationId;
use crate::telemetry::labels::{ConnectionClosed, Label as _};
use crate::upstream::shortage::Shortage;

/// Of fewer commands no share says anything.
const LEAST_COMMANDS: u64 = 100;

/// A pool is too small when so many percent of the commands wait ...
const WAITING_PERCENT: f64 = 10.0;

/// ... for so long each, on average: less is nothing beside a round trip ...
const WORTH_WAITING: Duration = Duration::from_millis(1);

/// ... and the wait of all adds this much to the time that they hold a connection.
const WAIT_OF_HELD: f64 = 0.5;

/// As many times the size is the most that is proposed at once: what a server does with more can only be tried.
const GROWTH: u32 = 3;

/// A small pool may grow to this at once: the default size, which any server takes.
const SMALL_POOL: u32 = 10;

/// More connections are in use when there are this many times more in flight ...
const MORE_IN_FLIGHT: f64 = 1.5;

/// ... and were of no use when no more than this many times more is done.
const MORE_DONE: f64 = 1.1;

/// An interval with fewer commands tells nothing about how fast the server is.
const LEAST_IN_INTERVAL: u64 = 20;

/// From this share in use on, percent, throughout the whole time, the next peak has to wait.
const BUSY_PERCENT: f64 = 80.0;

/// The share in use to aim at, percent, where there is a choice.
const COMFORT_PERCENT: f64 = 70.0;

/// From this share in use on, percent, it matters who has the rest.
const SHARED_PERCENT: f64 = 50.0;

/// Fewer idle connections are not worth a word: a server takes them without noticing.
const WORTH_CLOSING: u32 = 10;

/// So many times the most that were in use at once is too much.
const TOO_MANY_TIMES: u32 = 4;

/// Connections that live shorter than this on average are churn: the least idle time by default is longer.
const SHORT_LIFE: Duration = Duration::from_secs(25);

/// Of fewer connections that end, or sockets that are opened, and of fewer a minute, nobody takes notice.
const WORTH_COUNTING: f64 = 30.0;

/// A client that connects for each operation opens up to three sockets for it: two to monitor, one to use.
const COMMANDS_PER_SOCKET: u64 = 2;

/// How a pool may grow.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Bounds {
    /// `min_pool_size`.
    pub min_pool_size: u32,
    /// `max_pool_size`.
    pub max_pool_size: u32,
    /// `max_in_flight`.
    pub max_in_flight: Option<u32>,
    /// `max_upstream_connections`.
    pub max_upstream_connections: Option<u32>,
}

/// What is to be said of a server.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Trends {
    /// It is about why all that may be in use is, so nothing else needs to be said about that.
    pub short: bool,
    /// In plain words.
    pub words: Vec<String>,
}

/// Of a server; `name` tells the application behind a number.
pub fn for_server(ring: &Ring<PoolSample>, bounds: Bounds, name: impl Fn(ApplicationId) -> Option<String>) -> Trends {
    let (Some(ends), mut trends) = (ring.whole(), Trends::default()) else { return Trends::default() };
    let (period, limit) = (Period::between(ends), ends.1.limit.max(1));
    if let Some((shortage, waits)) = shortage(&period) {
        trends.short = matches!(shortage, Shortage::Pool | Shortage::InFlight | Shortage::Adaptive);
        trends.words.extend(short(ring, &period, (shortage, waits), ends.1, bounds));
    } else if ring.is_full() && is_busy_throughout(ring) {
        trends.short = true;
        trends.words.push(busy(&period, limit, bounds));
    }
    if trends.short || percent(period.in_use, limit.into()) >= SHARED_PERCENT {
        trends.words.extend(holder(ring, &period, name));
    }
    if ring.is_full() {
        trends.words.extend(too_large(ring, bounds));
    }
    trends.words.extend(churn(ends, &period));
    trends
}

/// What commands are short of, and how many, where that is worth a word.
fn shortage(period: &Period) -> Option<(Shortage, u64)> {
    let arrived = period.commands.max(period.waits());
    let is_worth_a_word = |waits| {
        arrived >= LEAST_COMMANDS
            && percent(float(waits), float(arrived)) >= WAITING_PERCENT
            && period.waited.as_secs_f64() >= float(period.waits()) * WORTH_WAITING.as_secs_f64()
            && period.waiting() >= WAIT_OF_HELD * period.in_use
    };
    period.shortage().filter(|(_, waits)| is_worth_a_word(*waits))
}

/// What commands waited for, and what to do about it: only what holds them back is worth to be raised.
fn short(
    ring: &Ring<PoolSample>,
    period: &Period,
    (shortage, waits): (Shortage, u64),
    last: &PoolSample,
    bounds: Bounds,
) -> Option<String> {
    let saw = |what: String| {
        format!(
            "In the last {}, {:.0} % of the commands waited {what}, {} each",
            minutes(period.length),
            percent(float(waits), float(period.commands.max(period.waits()))),
            time(period.waited.as_secs_f64() / float(period.waits().max(1))),
        )
    };
    let few = format!("with {:.1} of {} connections in use", period.in_use, last.limit);
    match shortage {
        Shortage::Pool | Shortage::InFlight => {
            let saw = saw(format!("for one of {} connections", last.limit.max(1)));
            Some(too_small(ring, period, &saw, last.limit.max(1), bounds))
        }
        Shortage::Adaptive => Some(format!(
            "{}: adaptive_limit has found that the server does no more with more at once. Find the slow commands, or give \
             the server more.",
            saw(format!("as the server is given {} at once", last.adapted)),
        )),
        Shortage::Cluster => Some(format!(
            "{}. max_upstream_connections leaves no room for more: raise it, or find the slow commands.",
            saw("while other servers had all connections".to_owned()),
        )),
        Shortage::Tenant => Some(format!(
            "{}, {few}. Raise tenant_max_in_flight, or max_in_flight of that [[tenant]], or leave it: weights alone share what \
             is scarce.",
            saw("as their tenant had all that it may have".to_owned()),
        )),
        Shortage::Transaction => Some(format!(
            "{}, {few}. Commit or abort transactions sooner; of two connections one can be kept for them while others go on.",
            saw("for an open transaction to end".to_owned()),
        )),
        Shortage::Other => None,
    }
}

fn too_small(ring: &Ring<PoolSample>, period: &Period, saw: &str, limit: u32, bounds: Bounds) -> String {
    if let Some((few, many)) = of_no_use(ring) {
        return format!(
            "{saw}. A larger pool would not help: with {:.1} in flight the server finishes {:.0} commands a second, with {:.1} \
             {:.0}. Find the slow commands, or give the server more.",
            few.in_use,
            few.rate(),
            many.in_use,
            many.rate(),
        );
    }
    // Little's law: those who are there at once are those who come in a second, times the seconds that each stays.
    let wanted = period.in_use + period.waiting();
    let came = format!("{saw}: {:.0} a second came and took {} each", period.rate(), time(period.held_seconds()));
    match room(wanted, limit, bounds) {
        Ok((key, size)) => format!("{came}. Raise {key} to {size}, or find the slow commands."),
        Err(key) => format!("{came}. {key} leaves no room for more: raise it, or find the slow commands."),
    }
}

/// What is to be raised and to how much, for so many commands at once; an error names the bound that is in the way.
fn room(wanted: f64, limit: u32, bounds: Bounds) -> Result<(&'static str, u32), &'static str> {
    let most = limit.saturating_mul(GROWTH).max(SMALL_POOL).min(u32::try_from(MAX_POOL_SIZE.max).unwrap_or(u32::MAX));
    #[expect(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "cast saturates, and is bounded")]
    let size = (wanted.ceil() as u32).clamp(limit.saturating_add(1), most.max(limit.saturating_add(1)));
    let size = size.min(bounds.max_upstream_connections.unwrap_or(u32::MAX));
    match bounds.max_in_flight {
        _ if size <= limit => Err("max_upstream_connections"),
        Some(in_flight) if in_flight < bounds.max_pool_size => Ok(("max_in_flight", size.min(bounds.max_pool_size))),
        _ => Ok(("max_pool_size", size)),
    }
}

/// The server when few are in flight and when many are, where it does no more with many.
fn of_no_use(ring: &Ring<PoolSample>) -> Option<(Period, Period)> {
    let mut intervals: Vec<Period> =
        ring.pairs().map(Period::between).filter(|it| it.commands >= LEAST_IN_INTERVAL).collect();
    intervals.sort_by(|one, other| one.in_use.total_cmp(&other.in_use));
    let third = intervals.len() / 3;
    if third < 2 {
        return None;
    }
    let few = together(&intervals[..third])?;
    let many = together(&intervals[intervals.len() - third..])?;
    // With less than one in flight it is the clients that are slow.
    let more = few.in_use >= 1.0 && many.in_use >= MORE_IN_FLIGHT * few.in_use;
    (more && many.rate() <= MORE_DONE * few.rate()).then_some((few, many))
}

fn together(periods: &[Period]) -> Option<Period> {
    let length: Duration = periods.iter().map(|it| it.length).sum();
    let in_use: f64 = periods.iter().map(|it| it.in_use * it.length.as_secs_f64()).sum();
    let seconds = length.as_secs_f64();
    (seconds > 0.0).then(|| Period {
        length,
        commands: periods.iter().map(|it| it.commands).sum(),
        in_use: in_use / seconds,
        waits_for: std::array::from_fn(|index| periods.iter().map(|it| it.waits_for[index]).sum()),
        waited: periods.iter().map(|it| it.waited).sum(),
    })
}

fn is_busy_throughout(ring: &Ring<PoolSample>) -> bool {
    ring.pairs().all(|(before, after)| {
        percent(Period::between((before, after)).in_use, after.limit.max(1).into()) > BUSY_PERCENT
    })
}

fn busy(period: &Period, limit: u32, bounds: Bounds) -> String {
    let saw = format!(
        "More than {BUSY_PERCENT:.0} % of {limit} connections were in use throughout the last {}, {:.1} on average: the next \
         peak has to wait.",
        minutes(period.length),
        period.in_use,
    );
    match room(period.in_use * 100.0 / COMFORT_PERCENT, limit, bounds) {
        Ok((key, size)) => format!("{saw} Raise {key} to {size}, or find the slow commands."),
        Err(key) => format!("{saw} {key} leaves no room for more: raise it, or find the slow commands."),
    }
}

fn holder(ring: &Ring<PoolSample>, period: &Period, name: impl Fn(ApplicationId) -> Option<String>) -> Option<String> {
    let (mut by_application, mut all) = (BTreeMap::<_, Duration>::new(), Duration::ZERO);
    // The first sample tells of the time before it.
    for sample in ring.iter().skip(1) {
        all += sample.held_by_all;
        sample.holders.iter().for_each(|(id, held)| *by_application.entry(*id).or_default() += *held);
    }
    let (id, most) = by_application.iter().max_by_key(|(_, held)| **held)?;
    let share = percent(most.as_secs_f64(), all.as_secs_f64());
    // One that is alone is not in anybody's way.
    if by_application.len() < 2 || share <= 50.0 {
        return None;
    }
    let who = match (name(*id), *id) {
        (Some(name), _) => format!("the application `{name}`"),
        (None, ApplicationId::OWN) => "the proxy itself".to_owned(),
        (None, _) => "clients without an appName".to_owned(),
    };
    Some(format!(
        "Of the time that connections were held in the last {}, {share:.0} % was by {who}: look there first.",
        minutes(period.length)
    ))
}

fn too_large(ring: &Ring<PoolSample>, bounds: Bounds) -> Option<String> {
    let open = ring.iter().map(|sample| sample.open).min()?;
    // The first sample tells of the time before it.
    let peak = ring.iter().skip(1).map(|sample| sample.peak).max()?;
    if open < WORTH_CLOSING || peak.saturating_mul(TOO_MANY_TIMES) > open {
        return None;
    }
    let enough = peak.saturating_mul(2).max(2);
    let key = if bounds.min_pool_size > enough { "min_pool_size" } else { "max_pool_size" };
    Some(format!(
        "Of {open} connections that were always open in the last five minutes, {peak} were in use at once at most: lower \
         {key} to {enough}."
    ))
}

fn churn((first, last): (&PoolSample, &PoolSample), period: &Period) -> Option<String> {
    let closed = ConnectionClosed::ALL.iter().map(|reason| {
        let index = reason.index();
        (last.closed[index].saturating_sub(first.closed[index]), *reason)
    });
    // What was established may just be a pool that grows.
    let count: u64 = closed.clone().map(|(count, _)| count).sum();
    let open = f64::from(first.open + last.open) / 2.0;
    let life = open * period.length.as_secs_f64() / float(count.max(1));
    if !is_often(count, period.length) || life >= SHORT_LIFE.as_secs_f64() {
        return None;
    }
    let (_, reason) = closed.max_by_key(|(count, _)| *count)?;
    let why = match reason {
        ConnectionClosed::Idle => "most were closed for being idle: raise max_idle_time_ms",
        ConnectionClosed::Lifetime => "most were closed for their age: raise max_lifetime_ms",
        ConnectionClosed::Error => {
            "most broke, or were closed in the middle of a command: look for clients that leave before their reads have \
             ended, for time limits, and for the network"
        }
        ConnectionClosed::Turnover => {
            "most gave their places to other users: raise max_pool_size towards the number of users that are busy at once"
        }
        ConnectionClosed::Revoked => "most were of users that were dropped, or have other passwords now",
        ConnectionClosed::Shrunk | ConnectionClosed::Ordered => "most were closed by order of the operator",
        ConnectionClosed::Stale | ConnectionClosed::PoolClosed => "most were closed as their server was lost",
    };
    Some(format!(
        "{count} connections were closed in the last {} with {} commands, and live for {life:.0} s: {why}.",
        minutes(period.length),
        period.commands,
    ))
}

/// Connections that were established and closed a minute, over all that is remembered, rounded to tenths.
pub fn churn_per_minute(ring: &Ring<PoolSample>) -> (f64, f64) {
    let (Some(first), Some(last)) = (ring.iter().next(), ring.iter().last()) else { return (0.0, 0.0) };
    let minutes = last.at.saturating_duration_since(first.at).as_secs_f64() / 60.0;
    if minutes <= 0.0 {
        return (0.0, 0.0);
    }
    let a_minute = |count: u64| (float(count) / minutes * 10.0).round() / 10.0;
    let closed = |sample: &PoolSample| sample.closed.iter().sum::<u64>();
    (a_minute(last.created.saturating_sub(first.created)), a_minute(closed(last).saturating_sub(closed(first))))
}

/// Of a cluster: its clients connect anew for each operation. So they did the whole time and still do: who starts together
/// connects together as well.
pub fn for_clients(ring: &Ring<ClientSample>) -> Option<String> {
    let opens = |(first, last): (&ClientSample, &ClientSample)| {
        let (opened, commands) =
            (last.opened.saturating_sub(first.opened), last.commands.saturating_sub(first.commands));
        let length = last.at.saturating_duration_since(first.at);
        // Without any command they are no clients: something looks whether the port is open.
        let busy = is_often(opened, length) && commands >= opened / 10;
        (busy && commands <= opened.saturating_mul(COMMANDS_PER_SOCKET)).then_some((opened, commands, length))
    };
    ring.lately().and_then(opens)?;
    let (opened, commands, length) = ring.whole().and_then(opens)?;
    Some(format!(
        "Clients opened {opened} sockets in the last {} for {commands} commands: they seem to connect anew for each \
         operation. Make one MongoClient for each process and keep it.",
        minutes(length),
    ))
}

/// Worth a word, both as a number and as a rate.
fn is_often(count: u64, length: Duration) -> bool {
    float(count) >= WORTH_COUNTING && float(count) * 60.0 >= WORTH_COUNTING * length.as_secs_f64()
}

fn percent(part: f64, whole: f64) -> f64 {
    if whole > 0.0 { part * 100.0 / whole } else { 0.0 }
}

#[expect(clippy::cast_precision_loss, reason = "for shares and rates")]
fn float(count: u64) -> f64 {
    count as f64
}

fn minutes(length: Duration) -> String {
    match length.as_secs() {
        seconds @ 0..90 => format!("{seconds} s"),
        seconds => format!("{} min", (seconds + 30) / 60),
    }
}

fn time(seconds: f64) -> String {
    format!("{:.1?}", Duration::from_secs_f64(seconds.max(0.0)))
}

#[cfg(test)]
mod tests {
    use tokio::time::Instant;

    use super::super::history::tests::sample;
    use super::super::history::{INTERVALS, SAMPLE_INTERVAL};
    use super::*;
    use crate::telemetry::Applications;
    use crate::upstream::usage::UsageTotals;

    #[test]
    fn churn_is_told_by_the_minute() {
        let (start, mut ring) = (Instant::now(), Ring::default());
        assert_eq!(churn_per_minute(&ring), (0.0, 0.0));
        ring.push(sample(start, 0));
        assert_eq!(churn_per_minute(&ring), (0.0, 0.0));
        for (seconds, created, closed) in [(30, 9, 1), (90, 12, 4)] {
            let mut later = sample(start, seconds);
            later.created += created;
            later.closed[1] = closed;
            ring.push(later);
        }
        assert_eq!(churn_per_minute(&ring), (8.0, 2.7));
    }

    /// What happens in one interval of ten seconds.
    #[derive(Clone)]
    struct Interval {
        commands: u64,
        in_use: f64,
        waits: u64,
        short_of: Shortage,
        waiting: f64,
        closed: (ConnectionClosed, u64),
        open: u32,
        peak: u32,
        holders: Vec<(ApplicationId, u64)>,
    }

    /// A pool of ten with half of it in use, and nobody waits.
    fn healthy() -> Interval {
        Interval {
            commands: 1_000,
            in_use: 5.0,
            waits: 0,
            short_of: Shortage::Pool,
            waiting: 0.0,
            closed: (ConnectionClosed::Idle, 0),
            open: 10,
            peak: 8,
            holders: Vec::new(),
        }
    }

    const BOUNDS: Bounds =
        Bounds { min_pool_size: 2, max_pool_size: 10, max_in_flight: None, max_upstream_connections: None };

    fn ring(limit: u32, intervals: impl IntoIterator<Item = Interval>) -> Ring<PoolSample> {
        let mut sample = PoolSample {
            at: Instant::now(),
            totals: UsageTotals::default(),
            own_commands: 0,
            created: 10,
            closed: [0; ConnectionClosed::ALL.len()],
            open: 10,
            peak: 10,
            limit,
            adapted: limit.min(4),
            holders: vec![(ApplicationId::OWN, Duration::from_secs(1_000))],
            held_by_all: Duration::from_secs(1_000),
        };
        let mut ring = Ring::default();
        ring.push(sample.clone());
        for it in intervals {
            sample.at += SAMPLE_INTERVAL;
            sample.totals.ended += it.commands;
            sample.totals.held += SAMPLE_INTERVAL.mul_f64(it.in_use);
            sample.totals.waits[it.short_of.index()] += it.waits;
            sample.totals.waited += SAMPLE_INTERVAL.mul_f64(it.waiting);
            sample.closed[it.closed.0.index()] += it.closed.1;
            (sample.open, sample.peak) = (it.open, it.peak);
            sample.hold(it.holders.iter().map(|(id, seconds)| (*id, Duration::from_secs(*seconds))).collect());
            ring.push(sample.clone());
        }
        ring
    }

    fn same(count: usize, interval: Interval) -> impl Iterator<Item = Interval> {
        std::iter::repeat_n(interval, count)
    }

    fn said(bounds: Bounds, ring: &Ring<PoolSample>) -> Vec<String> {
        for_server(ring, bounds, |_| None).words
    }

    /// What is said of a pool of ten for which so much happens in each interval, for five minutes.
    fn always(change: impl FnOnce(&mut Interval)) -> Vec<String> {
        let mut interval = healthy();
        change(&mut interval);
        said(BOUNDS, &ring(10, same(INTERVALS, interval)))
    }

    #[track_caller]
    fn only(said: &[String], parts: &[&str]) {
        assert_eq!(said.len(), 1, "{said:?}");
        parts.iter().for_each(|part| assert!(said[0].contains(part), "{part}: {said:?}"));
    }

    const QUIET: [&str; 0] = [];

    #[test]
    fn nothing_is_said_of_a_healthy_pool_nor_in_the_first_minute_nor_of_a_few_commands() {
        assert_eq!(always(|_| {}), QUIET);
        assert_eq!(always(|it| (it.commands, it.in_use, it.peak) = (0, 0.0, 3)), QUIET, "at rest");
        let bad = Interval {
            waits: 900,
            waiting: 50.0,
            in_use: 10.0,
            closed: (ConnectionClosed::Error, 500),
            open: 50,
            peak: 1,
            ..healthy()
        };
        for intervals in 0..=5 {
            assert_eq!(said(BOUNDS, &ring(10, same(intervals, bad.clone()))), QUIET, "{intervals}");
        }
        assert!(!said(BOUNDS, &ring(10, same(6, bad))).is_empty(), "a minute is enough");
        let few = |commands| {
            always(move |it| (it.commands, it.waits, it.waiting, it.in_use) = (commands, commands, 9.0, 5.0))
        };
        assert_eq!(few(3), QUIET, "ninety");
        assert_eq!(few(4).len(), 1);
    }

    #[test]
    fn a_pool_is_too_small_when_a_share_waits_and_the_wait_weighs() {
        // Littles law: 5 in use and 9 waiting are 14 at once.
        let short = |waits, waiting| always(move |it| (it.waits, it.waiting) = (waits, waiting));
        let said = short(500, 9.0);
        only(&said, &["In the last 5 min, 50 % of the commands waited for one of 10 connections, 180.0ms each"]);
        only(&said, &["100 a second came and took 50.0ms each. Raise max_pool_size to 14"]);
        assert_eq!((short(99, 9.0), short(100, 9.0).len()), (vec![], 1), "the share");
        assert_eq!((short(500, 2.4), short(500, 2.5).len()), (vec![], 1), "beside the time that commands take");
        let quick =
            |waiting| always(move |it| (it.commands, it.in_use, it.waits, it.waiting) = (10_000, 0.1, 5_000, waiting));
        assert_eq!((quick(0.49), quick(0.5).len()), (vec![], 1), "a millisecond");
    }

    #[test]
    fn only_what_holds_commands_back_is_to_be_raised() {
        let short = |short_of| {
            let interval = Interval { waits: 500, waiting: 9.0, in_use: 2.0, short_of, ..healthy() };
            for_server(&ring(10, same(INTERVALS, interval)), BOUNDS, |_| None)
        };
        for (short_of, of_all, parts) in [
            (Shortage::Pool, true, ["for one of 10 connections, 180.0ms each", "Raise max_pool_size to 11"]),
            (Shortage::Adaptive, true, ["as the server is given 4 at once", "adaptive_limit has found"]),
            (
                Shortage::Cluster,
                false,
                ["other servers had all connections", "max_upstream_connections leaves no room"],
            ),
            (Shortage::Tenant, false, ["with 2.0 of 10 connections in use", "Raise tenant_max_in_flight"]),
            (Shortage::Transaction, false, ["for an open transaction to end", "Commit or abort transactions sooner"]),
        ] {
            let trends = short(short_of);
            only(&trends.words, &parts);
            assert_eq!(trends.short, of_all, "{short_of:?}: the moment has its own words where all is in use then");
            assert_eq!(trends.words[0].contains("max_pool_size"), short_of == Shortage::Pool, "{trends:?}");
        }
        assert_eq!(short(Shortage::Other), Trends::default());
    }

    #[test]
    fn what_is_proposed_is_sensible_and_names_the_bound_that_is_in_the_way() {
        let bad = Interval { waits: 900, waiting: 400.0, in_use: 10.0, ..healthy() };
        let propose = |limit, bounds| said(bounds, &ring(limit, same(10, bad.clone()))).swap_remove(0);
        let has = |said: &str, part: &str| assert!(said.contains(part), "{part}: {said}");
        has(&propose(10, BOUNDS), "Raise max_pool_size to 30");
        has(&propose(1, Bounds { max_pool_size: 1, ..BOUNDS }), "Raise max_pool_size to 10");
        let most = u32::try_from(MAX_POOL_SIZE.max).unwrap();
        let in_flight = Bounds { max_in_flight: Some(4), ..BOUNDS };
        has(&propose(4, in_flight), "Raise max_in_flight to 10");
        let cluster = |most| Bounds { max_upstream_connections: Some(most), ..BOUNDS };
        has(&propose(10, cluster(12)), "Raise max_pool_size to 12");
        has(&propose(10, cluster(10)), "max_upstream_connections leaves no room for more");
        assert_eq!(room(1e12, most / 2, Bounds { max_pool_size: most / 2, ..BOUNDS }), Ok(("max_pool_size", most)));
        assert_eq!(room(0.0, 10, BOUNDS), Ok(("max_pool_size", 11)), "never less than there is");
    }

    #[test]
    fn a_larger_pool_is_of_no_use_where_the_server_does_no_more_with_more_in_flight() {
        // Half of the time with 4 in flight, half with 10.
        let short = |rates: [u64; 2]| {
            let at = |in_use, commands| Interval { commands, in_use, waits: commands / 2, waiting: 9.0, ..healthy() };
            let half = |index: usize, in_use| same(15, at(in_use, rates[index]));
            said(BOUNDS, &ring(10, half(0, 4.0).chain(half(1, 10.0))))
        };
        only(&short([1_000, 1_100]), &["would not help: with 4.0 in flight the server finishes 100", "with 10.0 110."]);
        only(&short([1_000, 1_110]), &["Raise max_pool_size"]);
        only(&short([1_000, 2_500]), &["Raise max_pool_size"]);
        // Alike all the time: nobody has seen it with more.
        let alike = Interval { waits: 900, waiting: 9.0, in_use: 10.0, ..healthy() };
        only(&said(BOUNDS, &ring(10, same(30, alike))), &["Raise max_pool_size"]);
        let idle = |in_use| Interval { commands: 500, in_use, waits: 400, waiting: 9.0, ..healthy() };
        let slow_clients = same(15, idle(0.5)).chain(same(15, idle(2.0)));
        only(&said(BOUNDS, &ring(10, slow_clients)), &["Raise max_pool_size"]);
    }

    #[test]
    fn a_pool_that_is_busy_throughout_is_told_once_it_was_for_five_minutes() {
        let busy = |in_use| Interval { in_use, peak: 10, ..healthy() };
        only(&said(BOUNDS, &ring(10, same(30, busy(8.5)))), &["More than 80 % of 10", "8.5 on average", "to 13"]);
        assert_eq!(said(BOUNDS, &ring(10, same(30, busy(8.0)))), QUIET);
        assert_eq!(said(BOUNDS, &ring(10, same(29, busy(9.9)))), QUIET, "not yet");
        let pause = same(15, busy(9.9)).chain([busy(7.0)]).chain(same(14, busy(9.9)));
        assert_eq!(said(BOUNDS, &ring(10, pause)), QUIET);
        let both = Interval { waits: 900, waiting: 9.0, ..busy(9.9) };
        only(&said(BOUNDS, &ring(10, same(30, both))), &["commands waited"]);
    }

    #[test]
    fn a_pool_is_too_large_when_most_of_what_is_open_is_never_used() {
        let open = |open, peak| move |it: &mut Interval| (it.open, it.peak) = (open, peak);
        assert_eq!(always(open(40, 3)), QUIET, "ten were open at the beginning of it, and three were in use");
        let large = ring(50, same(INTERVALS + 1, Interval { open: 40, peak: 10, ..healthy() }));
        let with = |min_pool_size| Bounds { min_pool_size, max_pool_size: 50, ..BOUNDS };
        only(&said(with(40), &large), &["Of 40 connections", "10 were in use at once", "lower min_pool_size to 20"]);
        only(&said(with(2), &large), &["lower max_pool_size to 20"]);
        let used = ring(50, same(INTERVALS + 1, Interval { open: 40, peak: 11, ..healthy() }));
        assert_eq!(said(with(40), &used), QUIET);
        let small = |open| said(with(2), &ring(50, same(INTERVALS + 1, Interval { open, peak: 1, ..healthy() })));
        assert_eq!((small(9), small(10).len()), (vec![], 1), "a few are not worth a word");
        let young = ring(50, same(INTERVALS - 1, Interval { open: 10, peak: 1, ..healthy() }));
        assert_eq!(said(with(40), &young), QUIET, "not before five minutes");
        let with_peak = |open, peak| Interval { open, peak, ..healthy() };
        let once = |it| same(15, with_peak(40, 1)).chain([it]).chain(same(15, with_peak(40, 1)));
        assert_eq!(said(with(40), &ring(50, once(with_peak(40, 11)))), QUIET, "they were needed once");
        assert_eq!(said(with(40), &ring(50, once(with_peak(9, 1)))), QUIET, "they were closed once");
    }

    #[test]
    fn connections_that_do_not_live_are_churn() {
        // Ten are open: with five that end in ten seconds each lives for twenty.
        let churn = |count, reason| always(move |it| it.closed = (reason, count));
        only(
            &churn(5, ConnectionClosed::Error),
            &[
                "150 connections were closed in the last 5 min with 30000 commands",
                "live for 20 s",
                "middle of a command",
            ],
        );
        only(&churn(5, ConnectionClosed::Idle), &["raise max_idle_time_ms"]);
        only(&churn(5, ConnectionClosed::Lifetime), &["raise max_lifetime_ms"]);
        only(&churn(5, ConnectionClosed::Stale), &["server was lost"]);
        assert_eq!(churn(4, ConnectionClosed::Error), QUIET, "25 s, and fewer than 30 a minute");
        let two = |count| always(move |it| (it.closed, it.open, it.peak) = ((ConnectionClosed::Error, count), 2, 2));
        assert_eq!(two(4), QUIET, "few in a minute, however short they live");
    }

    #[test]
    fn who_holds_most_is_named_where_it_matters() {
        let all = Applications::default();
        let (shop, search) = (all.named("shop").id(), all.named("search").id());
        let name = |id| all.name(id).map(String::from);
        let told = |in_use, holders: &[(ApplicationId, u64)]| {
            let interval = Interval { in_use, holders: holders.to_vec(), ..healthy() };
            for_server(&ring(10, same(INTERVALS, interval)), BOUNDS, name).words
        };
        only(&told(5.0, &[(shop, 3), (search, 2)]), &["in the last 5 min, 60 % was by the application `shop`"]);
        assert_eq!(told(5.0, &[(shop, 2), (search, 2)]), QUIET, "half");
        assert_eq!(told(5.0, &[(shop, 2)]), QUIET, "alone");
        assert_eq!(told(4.9, &[(shop, 3), (search, 2)]), QUIET, "there is room for all");
        only(&told(5.0, &[(ApplicationId::UNNAMED, 3), (search, 2)]), &["clients without an appName"]);
        let both = told(9.0, &[(shop, 3), (search, 2)]);
        assert!(both.len() == 2 && both[0].contains("More than 80 %") && both[1].contains("`shop`"), "{both:?}");
    }

    /// Clients that open so many sockets and send so many commands in each interval.
    fn clients(intervals: impl IntoIterator<Item = (u64, u64)>) -> Option<String> {
        let mut sample = ClientSample { at: Instant::now(), opened: 500, commands: 9 };
        let mut ring = Ring::default();
        ring.push(sample);
        for (opened, commands) in intervals {
            sample.at += SAMPLE_INTERVAL;
            sample.opened += opened;
            sample.commands += commands;
            ring.push(sample);
        }
        for_clients(&ring)
    }

    #[test]
    fn clients_that_connect_anew_for_each_operation_are_told() {
        let always = |opened, commands| clients([(opened, commands); INTERVALS]);
        let said = always(5, 10).unwrap();
        assert!(said.contains("Clients opened 150 sockets in the last 5 min for 300 commands"), "{said}");
        assert_eq!(always(4, 8), None, "a few");
        assert_eq!(always(5, 11), None, "they are used");
        assert_eq!(always(20, 1), None, "somebody looks whether the port is open");
        assert!(clients([(5, 10); 6]).is_some());
        assert_eq!(clients([(5, 10); 5]), None, "not in the first minute");
        assert_eq!(clients([(2_000, 2_000)].into_iter().chain([(0, 100); 6])), None, "all have started, and stay");
    }
}
