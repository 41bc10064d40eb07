//! One slice of load from one crowd.

use std::io;
use std::time::Duration;

use hdrhistogram::Histogram;
use rand::RngExt;
use rand::rngs::StdRng;
use tokio::time::Instant;

use super::cases::Shape;
use super::crowd::{Crowd, PATIENCE};
use super::work::Work;

/// What a slice has shown. Times in nanoseconds.
pub struct Outcome {
    /// From the moment a request was due to its reply.
    pub latencies: Histogram<u64>,
    /// How late requests were sent; only in an open loop is it more than nothing.
    pub lateness: Histogram<u64>,
    /// Replies before the time was over.
    pub in_time: u64,
    /// All replies; the last ones are waited for.
    pub replies: u64,
    pub wrong: u64,
}

/// Works for so long, and then until nothing is in flight.
pub fn run(
    crowd: &mut Crowd,
    work: &mut Work,
    shape: Shape,
    length: Duration,
    random: &mut StdRng,
) -> io::Result<Outcome> {
    let new = || Histogram::new_with_max(nanos(PATIENCE), 3).map_err(io::Error::other);
    let mut outcome = Outcome { latencies: new()?, lateness: new()?, in_time: 0, replies: 0, wrong: 0 };
    let began = Instant::now();
    let end = began + length;
    let mut in_flight = 0;
    let mut arrivals = match shape {
        Shape::Open(rate) => Some(Arrivals { rate, next: began }),
        Shape::Same(sockets) => {
            in_flight = sockets.min(crowd.len());
            (0..in_flight).try_for_each(|index| crowd.send(index, work, Instant::now()))?;
            None
        }
        Shape::All => {
            in_flight = crowd.len();
            (0..in_flight).try_for_each(|index| crowd.send(index, work, Instant::now()))?;
            None
        }
        Shape::Turn(wanted) => {
            while in_flight < wanted
                && let Some(index) = crowd.next_idle()
            {
                crowd.send(index, work, Instant::now())?;
                in_flight += 1;
            }
            None
        }
    };
    let mut ready = Vec::new();
    loop {
        let mut until = None;
        if let Some(arrivals) = &mut arrivals {
            let now = Instant::now();
            while arrivals.next <= now
                && arrivals.next < end
                && let Some(index) = crowd.next_idle()
            {
                crowd.send(index, work, arrivals.next)?;
                in_flight += 1;
                outcome.lateness.saturating_record(nanos(now - arrivals.next));
                arrivals.pass(random);
            }
            // Who is due already waits for a socket, which is news.
            until = (arrivals.next > now && arrivals.next < end).then_some(arrivals.next);
            if until.is_none() && in_flight == 0 {
                return Ok(outcome);
            }
        } else if in_flight == 0 {
            return Ok(outcome);
        }
        crowd.wait(until, &mut ready)?;
        for &index in &ready {
            let Some((due, right)) = crowd.answer(index, work)? else { continue };
            let now = Instant::now();
            outcome.latencies.saturating_record(nanos(now - due));
            outcome.replies += 1;
            outcome.wrong += u64::from(!right);
            let is_in_time = now < end;
            outcome.in_time += u64::from(is_in_time);
            let next = match shape {
                Shape::Same(_) | Shape::All => Some(index),
                Shape::Turn(_) => crowd.next_idle(),
                Shape::Open(_) => None,
            };
            match next.filter(|_| is_in_time) {
                Some(next) => crowd.send(next, work, now)?,
                None => in_flight -= 1,
            }
        }
    }
}

/// A Poisson process.
struct Arrivals {
    rate: f64,
    next: Instant,
}

impl Arrivals {
    fn pass(&mut self, random: &mut StdRng) {
        let gap = -f64::ln(1.0 - random.random::<f64>()) / self.rate;
        self.next += Duration::from_secs_f64(gap);
    }
}

fn nanos(duration: Duration) -> u64 {
    u64::try_from(duration.as_nanos()).unwrap_or(u64::MAX)
}
