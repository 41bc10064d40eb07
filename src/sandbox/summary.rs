//! What a run of the sandbox comes to: one fact per line, and whether it passed.

use std::fmt;

use tokio::time::Duration;

use super::census::ServerCount;
use super::load::LoadStats;

/// The end of a run.
#[derive(Debug, Clone)]
pub struct Summary {
    /// Sockets that were asked for.
    pub clients: usize,
    /// From the first socket to the stop.
    pub elapsed: Duration,
    /// What the clients saw; latencies of the whole run.
    pub load: LoadStats,
    /// What the servers saw.
    pub servers: Vec<ServerCount>,
    /// Data connections allowed per server.
    pub max_pool_size: u32,
    /// Plans the same work again.
    pub seed: u64,
}

impl Summary {
    /// True when all sockets were open at once, every answer was right, nobody failed, and every server was counted and
    /// never above the bound.
    pub fn passed(&self) -> bool {
        self.failures().is_empty()
    }

    /// What was not as it must be, in words.
    pub fn failures(&self) -> Vec<String> {
        let load = &self.load;
        let mut failures = Vec::new();
        let mut unless = |right: bool, failure: &dyn Fn() -> String| {
            if !right {
                failures.push(failure());
            }
        };
        unless(load.wrong == 0, &|| format!("{} wrong replies", load.wrong));
        unless(load.errors == 0, &|| format!("{} errors", load.errors));
        unless(load.commands > 0, &|| "no command was answered".to_owned());
        unless(load.most_connected == self.clients, &|| {
            format!("{} of {} sockets were open at once", load.most_connected, self.clients)
        });
        unless(!self.servers.is_empty(), &|| "no server was counted".to_owned());
        let bound = usize::try_from(self.max_pool_size).unwrap_or(usize::MAX);
        for server in &self.servers {
            unless(server.samples > 0, &|| format!("{} was never counted", server.address));
            unless(server.most_data <= bound, &|| {
                format!("{} upstream connections at {}, {bound} allowed", server.most_data, server.address)
            });
        }
        failures
    }
}

impl fmt::Display for Summary {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let load = &self.load;
        let mut line = |key: &str, value: String| writeln!(f, "{:<22} {value}", format!("{key}:"));
        let failures = self.failures();
        line("result", if failures.is_empty() { "passed" } else { "FAILED" }.to_owned())?;
        for failure in failures {
            line("failed because", failure)?;
        }
        line(
            "client sockets",
            format!("{} (asked for {}, served {})", load.most_connected, self.clients, load.served),
        )?;
        line("max pool size", format!("{} per server", self.max_pool_size))?;
        for server in &self.servers {
            let most = format!("{} at most, {} samples by {}", server.most_data, server.samples, server.address);
            line("upstream connections", most)?;
            line("monitor connections", format!("{} at most by {}", server.most_monitor, server.address))?;
        }
        let seconds = self.elapsed.as_secs_f64();
        line("duration", format!("{seconds:.1} s"))?;
        line("commands", load.commands.to_string())?;
        line("commands per second", per_second(load.commands, self.elapsed).to_string())?;
        line("errors", load.errors.to_string())?;
        line("wrong replies", load.wrong.to_string())?;
        if let Some(fault) = &load.first_fault {
            line("first fault", fault.clone())?;
        }
        line("latency p50", format!("{:.2} ms", millis(load.p50)))?;
        line("latency p99", format!("{:.2} ms", millis(load.p99)))?;
        line("latency max", format!("{:.2} ms", millis(load.slowest)))?;
        line("seed", self.seed.to_string())
    }
}

pub(super) fn millis(duration: Duration) -> f64 {
    duration.as_secs_f64() * 1_000.0
}

/// `count` in `elapsed`, rounded down to whole ones per second.
pub(super) fn per_second(count: u64, elapsed: Duration) -> u64 {
    let millis = elapsed.as_millis().max(1);
    u64::try_from(u128::from(count) * 1_000 / millis).unwrap_or(u64::MAX)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::Address;

    fn summary() -> Summary {
        let address = Address::tcp("127.0.0.1", 27017);
        Summary {
            clients: 2_000,
            elapsed: Duration::from_secs(10),
            load: LoadStats { commands: 30_000, most_connected: 2_000, served: 2_000, ..LoadStats::default() },
            servers: vec![ServerCount { most_data: 10, most_monitor: 2, samples: 20, ..ServerCount::new(address) }],
            max_pool_size: 10,
            seed: 7,
        }
    }

    #[test]
    fn facts_are_lines_with_a_key() {
        let text = summary().to_string();
        for line in [
            "result:                passed",
            "client sockets:        2000 (asked for 2000, served 2000)",
            "upstream connections:  10 at most, 20 samples by 127.0.0.1:27017",
            "commands per second:   3000",
            "wrong replies:         0",
            "seed:                  7",
        ] {
            assert!(text.lines().any(|found| found == line), "{line} is missing in\n{text}");
        }
    }

    #[test]
    fn every_broken_promise_fails_the_run() {
        assert!(summary().passed());
        type Break = fn(&mut Summary);
        let broken: [(&str, Break); 7] = [
            ("1 errors", |summary| summary.load.errors = 1),
            ("1 wrong replies", |summary| summary.load.wrong = 1),
            ("no command was answered", |summary| summary.load.commands = 0),
            ("1999 of 2000 sockets were open at once", |summary| summary.load.most_connected = 1_999),
            ("11 upstream connections at 127.0.0.1:27017, 10 allowed", |summary| summary.servers[0].most_data = 11),
            ("127.0.0.1:27017 was never counted", |summary| summary.servers[0].samples = 0),
            ("no server was counted", |summary| summary.servers.clear()),
        ];
        for (what, breaks) in broken {
            let mut summary = summary();
            breaks(&mut summary);
            assert!(!summary.passed(), "{what} passed");
            let expected = format!("result:                FAILED\nfailed because:        {what}\n");
            assert!(summary.to_string().starts_with(&expected), "{summary}");
        }
    }
}
