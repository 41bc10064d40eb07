//! The run: what is measured, in which order.

use std::error::Error;
use std::io;
use std::time::Duration;

use rand::rngs::StdRng;
use rand::seq::SliceRandom;
use tokio::time::Instant;

use super::accounting::Process;
use super::cases::Case;
use super::crowd::Crowd;
use super::load;
use super::references::{Reference, Running, Server};
use super::results::{Memory, Results, Slice, Storm};
use super::witness::Witness;
use super::work::Work;

/// Load before each slice that is not counted: another target had caches and processors until then.
const WARM_UP: Duration = Duration::from_millis(100);

/// New clients at a time where it is not about storms.
const CONNECTING: usize = 100;

/// How long idle processes are watched.
const IDLE: Duration = Duration::from_secs(2);

/// After a storm, for what its sockets leave to do.
pub const REST: Duration = Duration::from_secs(1);

/// `max_pool_size` by default.
const POOL: usize = 10;

/// The program at its defaults.
pub const PROGRAM: &str = "mongomux";

/// A target and its clients.
pub struct Side {
    pub running: Running,
    pub crowd: Crowd,
}

/// Everything that a run has at hand.
pub struct Run {
    pub server: Server,
    pub witness: Witness,
    pub random: StdRng,
    pub results: Results,
    pub slice: Duration,
    pub rounds: usize,
    /// How many of the targets are the program, in whatever set-up: each has a pool.
    pub programs: usize,
}

impl Run {
    /// All cases, and then storms, with so many clients for each target.
    pub fn compare(&mut self, references: &[Reference], cases: &[Case], clients: usize) -> Result<(), Box<dyn Error>> {
        let mut sides = Vec::new();
        for reference in references {
            self.results.targets.push(reference.name.clone());
            sides.push(self.settle(reference, clients)?);
        }
        self.watch_idle(&sides)?;
        let mut works: Vec<Work> = cases.iter().map(|case| Work::new(case.command)).collect();
        for round in 0..self.rounds {
            for (case, work) in cases.iter().zip(&mut works) {
                eprintln!("round {} of {}: {case}", round + 1, self.rounds);
                // By chance, so that no target always comes after the same one.
                sides.shuffle(&mut self.random);
                for side in &mut sides {
                    let slice = self.slice(side, *case, work, round)?;
                    self.results.slices.push(slice);
                }
                self.check_inserted(*case, work)?;
                self.check_bound(&case.to_string())?;
            }
        }
        let mut running: Vec<Running> = sides.into_iter().map(|side| side.running).collect();
        // The server has thousands of sockets to close first.
        std::thread::sleep(2 * REST);
        for round in 0..self.rounds {
            eprintln!("round {} of {}: storm", round + 1, self.rounds);
            running.shuffle(&mut self.random);
            for target in &running {
                self.storm(target, clients, round)?;
            }
        }
        Ok(())
    }

    /// One target alone, which needs no upstream connection for each client: first with as many as the others had.
    pub fn crowd(&mut self, reference: &Reference, case: Case, few: usize, many: usize) -> Result<(), Box<dyn Error>> {
        eprintln!("{many} clients");
        let (server_before, connections_before) = (self.server.process.resident_kib()?, self.witness.connections()?);
        let mut side = self.settle(reference, few)?;
        let Some(Memory { bare_kib, .. }) = self.results.memory.pop() else { return Ok(()) };
        side.crowd.grow(many, &side.running.address, &reference.name, CONNECTING)?;
        self.record_memory(&side, bare_kib, server_before, connections_before)?;
        let mut work = Work::new(case.command);
        for round in 0..self.rounds {
            let slice = self.slice(&mut side, case, &mut work, round)?;
            self.results.many.push(Slice { title: format!("{}, {many} of them", slice.title), ..slice });
        }
        Ok(())
    }

    /// Starts a target and connects its clients.
    pub fn settle(&mut self, reference: &Reference, clients: usize) -> Result<Side, Box<dyn Error>> {
        let connections_before = self.witness.connections()?;
        let running = reference.start(&self.server, clients)?;
        let bare_kib = running.process().map(Process::resident_kib).transpose()?;
        let server_before = self.server.process.resident_kib()?;
        let mut crowd = Crowd::new()?;
        crowd.grow(clients, &running.address, &reference.name, CONNECTING)?;
        let side = Side { running, crowd };
        self.record_memory(&side, bare_kib, server_before, connections_before)?;
        Ok(side)
    }

    fn record_memory(
        &mut self,
        side: &Side,
        bare_kib: Option<u64>,
        server_before: u64,
        connections_before: i32,
    ) -> Result<(), Box<dyn Error>> {
        self.results.memory.push(Memory {
            target: side.running.name.clone(),
            clients: side.crowd.len(),
            bare_kib,
            idle_kib: side.running.process().map(Process::resident_kib).transpose()?,
            server_kib: self.server.process.resident_kib()?.cast_signed() - server_before.cast_signed(),
            connections: self.witness.connections()? - connections_before,
            idle_cpu_ms: None,
        });
        Ok(())
    }

    fn watch_idle(&mut self, sides: &[Side]) -> io::Result<()> {
        let processes: Vec<Option<Process>> = sides.iter().map(|side| side.running.process()).collect();
        let look =
            || processes.iter().map(|process| process.map(Process::cpu).transpose()).collect::<io::Result<Vec<_>>>();
        let (server, before) = (self.server.process.cpu()?, look()?);
        std::thread::sleep(IDLE);
        let per_second = |spent: Duration| spent.as_secs_f64() * 1e3 / IDLE.as_secs_f64();
        for ((memory, before), after) in self.results.memory.iter_mut().zip(before).zip(look()?) {
            memory.idle_cpu_ms = before.zip(after).map(|(before, after)| per_second(after - before));
        }
        let server = per_second(self.server.process.cpu()? - server);
        self.results.conditions.insert("mongod while idle, ms of CPU per second", format!("{server:.1}"));
        Ok(())
    }

    pub fn slice(
        &mut self,
        side: &mut Side,
        case: Case,
        work: &mut Work,
        round: usize,
    ) -> Result<Slice, Box<dyn Error>> {
        self.slice_with(side, case, work, round, || ())
    }

    /// The same, and something else begins when it does.
    pub fn slice_with(
        &mut self,
        side: &mut Side,
        case: Case,
        work: &mut Work,
        round: usize,
        begin: impl FnOnce(),
    ) -> Result<Slice, Box<dyn Error>> {
        let name = &side.running.name;
        let named = |error: io::Error| format!("{case} through {name}: {error}");
        let proxy = side.running.process();
        proxy.map(Process::forget_peak).transpose()?;
        let warm_up = load::run(&mut side.crowd, work, case.shape, WARM_UP, &mut self.random).map_err(named)?;
        let cpu = |proxy: Option<Process>| -> io::Result<[Option<Duration>; 3]> {
            let proxy = proxy.map(Process::cpu).transpose()?;
            Ok([proxy, Some(self.server.process.cpu()?), Some(Process::current().cpu()?)])
        };
        let before = cpu(proxy)?;
        begin();
        let outcome = load::run(&mut side.crowd, work, case.shape, self.slice, &mut self.random).map_err(named)?;
        let after = cpu(proxy)?;
        let spent = |index: usize| -> Option<f64> {
            Some((after[index]? - before[index]?).as_secs_f64() * 1e6 / outcome.replies as f64)
        };
        let millis = |quantile| outcome.latencies.value_at_quantile(quantile) as f64 / 1e6;
        let slice = Slice {
            case: case.to_string(),
            title: case.title(),
            target: name.clone(),
            round,
            replies: outcome.replies,
            per_second: outcome.in_time as f64 / self.slice.as_secs_f64(),
            p50_ms: millis(0.5),
            p99_ms: millis(0.99),
            p999_ms: millis(0.999),
            late_p99_ms: outcome.lateness.value_at_quantile(0.99) as f64 / 1e6,
            proxy_us: spent(0),
            server_us: spent(1).unwrap_or_default(),
            load_us: spent(2).unwrap_or_default(),
            peak_kib: proxy.map(Process::peak_kib),
        };
        let wrong = warm_up.wrong + outcome.wrong;
        if wrong > 0 {
            self.results.wrong.push(format!("{case} through {name}: {wrong} replies"));
        }
        Ok(slice)
    }

    pub fn check_bound(&mut self, when: &str) -> Result<(), Box<dyn Error>> {
        if self.programs == 0 {
            return Ok(());
        }
        let connections = self.witness.data_connections()?;
        if !(1..=POOL * self.programs).contains(&connections) {
            self.results.wrong.push(format!("{when}: {connections} upstream connections"));
        }
        Ok(())
    }

    /// What was acknowledged is there, and nothing else.
    fn check_inserted(&mut self, case: Case, work: &mut Work) -> Result<(), Box<dyn Error>> {
        let acknowledged = std::mem::take(&mut work.inserted);
        let there = self.witness.take_inserted()?;
        if there != acknowledged {
            self.results.wrong.push(format!("{case}: {acknowledged} inserts acknowledged, {there} documents"));
        }
        Ok(())
    }

    fn storm(&mut self, target: &Running, clients: usize, round: usize) -> Result<(), Box<dyn Error>> {
        let (server, proxy) = (self.server.process, target.process());
        let before = (server.cpu()?, proxy.map(Process::cpu).transpose()?);
        let began = Instant::now();
        let mut crowd = Crowd::new()?;
        crowd.grow(clients, &target.address, &target.name, clients)?;
        let seconds = began.elapsed().as_secs_f64();
        let after = (server.cpu()?, proxy.map(Process::cpu).transpose()?);
        let each = |spent: Duration| spent.as_secs_f64() * 1e6 / clients as f64;
        self.results.storms.push(Storm {
            target: target.name.clone(),
            round,
            seconds,
            proxy_us: before.1.zip(after.1).map(|(before, after)| each(after - before)),
            server_us: each(after.0 - before.0),
        });
        self.check_bound("storm")?;
        drop(crowd);
        std::thread::sleep(REST);
        Ok(())
    }
}
