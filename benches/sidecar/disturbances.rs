//! What ordinary clients notice of others that are a burden: slow readers of large documents, and a storm of new clients.

use std::error::Error;
use std::io;
use std::sync::mpsc::{Receiver, channel};
use std::thread::{self, JoinHandle};

use rand::seq::SliceRandom;
use socket2::SockAddr;
use tokio::time::Instant;

use super::cases::Case;
use super::crowd::Crowd;
use super::measure::{REST, Run, Side};
use super::references::Reference;
use super::results::{Meanwhile, Slice};
use super::slow_readers::{SlowReaders, join};
use super::work::Work;

/// What ordinary clients ask.
const CASE: &str = "find-100B@open";

/// Clients that connect at once while others are served.
const STORM: usize = 2_000;

/// Between the name of a target and what disturbs it.
const BESIDE: &str = " beside ";
const SLOW_READERS: &str = "slow readers";
const A_STORM: &str = "a storm";

/// The target that nothing disturbs.
pub fn calm(target: &str) -> &str {
    target.split(BESIDE).next().unwrap_or(target)
}

impl Run {
    /// Each target with so many ordinary clients: alone, beside slow readers, and while many others connect.
    pub fn disturb(&mut self, references: &[Reference], clients: usize) -> Result<(), Box<dyn Error>> {
        let mut sides = Vec::new();
        for reference in references {
            let name = &reference.name;
            self.results.targets.extend([name.clone(), beside(name, SLOW_READERS), beside(name, A_STORM)]);
            sides.push(self.settle(reference, clients)?);
        }
        let case: Case = CASE.parse()?;
        let mut work = Work::new(case.command);
        for round in 0..self.rounds {
            sides.shuffle(&mut self.random);
            for side in &mut sides {
                eprintln!("round {} of {}: {}", round + 1, self.rounds, side.running.name);
                let calm = self.slice(side, case, &mut work, round)?;
                self.results.slices.push(calm);
                let read = self.beside_slow_readers(side, case, &mut work, round)?;
                thread::sleep(REST);
                let storm_seconds = self.beside_storm(side, case, &mut work, round)?;
                thread::sleep(REST);
                let target = side.running.name.clone();
                self.results.meanwhile.push(Meanwhile { target, round, read, storm_seconds });
            }
            self.check_bound(CASE)?;
        }
        Ok(())
    }

    fn beside_slow_readers(
        &mut self,
        side: &mut Side,
        case: Case,
        work: &mut Work,
        round: usize,
    ) -> Result<f64, Box<dyn Error>> {
        let readers = SlowReaders::start(side.running.address.clone())?;
        let slice = self.slice(side, case, work, round)?;
        let got = readers.stop()?;
        if got.wrong > 0 {
            self.results.wrong.push(format!("slow readers of {}: {} replies", slice.target, got.wrong));
        }
        self.results.slices.push(Slice { target: beside(&slice.target, SLOW_READERS), ..slice });
        Ok(got.bytes as f64 / 1e6 / got.seconds)
    }

    /// How long it took until the last one was served.
    fn beside_storm(
        &mut self,
        side: &mut Side,
        case: Case,
        work: &mut Work,
        round: usize,
    ) -> Result<f64, Box<dyn Error>> {
        let address = side.running.address.clone();
        let (staying, over) = channel();
        let mut storm: Option<JoinHandle<_>> = None;
        let begin = || storm = Some(thread::spawn(move || blow(&address, &over)));
        let slice = self.slice_with(side, case, work, round, begin)?;
        self.results.slices.push(Slice { target: beside(&slice.target, A_STORM), ..slice });
        drop(staying);
        Ok(join(storm.ok_or("no storm")?)?)
    }
}

/// How long it takes until all are served; they stay until the slice is over.
fn blow(address: &SockAddr, over: &Receiver<()>) -> io::Result<f64> {
    let began = Instant::now();
    let mut crowd = Crowd::new()?;
    crowd.grow(STORM, address, "storm", STORM)?;
    let seconds = began.elapsed().as_secs_f64();
    // Nothing is ever sent: the other end is dropped.
    over.recv().unwrap_or_default();
    Ok(seconds)
}

fn beside(target: &str, what: &str) -> String {
    format!("{target}{BESIDE}{what}")
}
