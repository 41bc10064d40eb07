//! The live view: a few lines drawn over themselves on a terminal, one plain line a second elsewhere.

use std::fmt::Write as _;
use std::io::{self, Write};

use tokio::time::Duration;

use super::ProxyStats;
use super::census::ServerCount;
use super::load::LoadStats;
use super::summary::{millis, per_second};

/// What is shown at one moment.
#[derive(Debug, Clone)]
pub struct Frame {
    /// Since the load began.
    pub elapsed: Duration,
    /// When it ends, where that is known.
    pub duration: Option<Duration>,
    /// Sockets that were asked for.
    pub clients: usize,
    /// What the clients saw; latencies since the frame before.
    pub load: LoadStats,
    /// What the proxy says.
    pub proxy: ProxyStats,
    /// What the servers say.
    pub servers: Vec<ServerCount>,
}

/// Draws frames; remembers what is needed to draw over the last one.
#[derive(Debug)]
pub struct View {
    terminal: bool,
    drawn_lines: usize,
    last: (Duration, u64),
}

impl View {
    /// For a terminal that understands ANSI sequences, or for a pipe or file.
    pub fn new(terminal: bool) -> Self {
        Self { terminal, drawn_lines: 0, last: (Duration::ZERO, 0) }
    }

    /// Writes one frame.
    pub fn draw(&mut self, out: &mut dyn Write, frame: &Frame) -> io::Result<()> {
        let (last_elapsed, last_commands) = self.last;
        self.last = (frame.elapsed, frame.load.commands);
        let new_commands = frame.load.commands.saturating_sub(last_commands);
        let rate = per_second(new_commands, frame.elapsed.saturating_sub(last_elapsed));
        if !self.terminal {
            writeln!(out, "{}", line(frame, rate))?;
            return out.flush();
        }
        let text = lines(frame, rate);
        let mut drawing = String::new();
        if self.drawn_lines > 0 {
            // Up to the first line of the last frame; each line is then cleared to its end as it is written.
            write!(drawing, "\x1b[{}A", self.drawn_lines).map_err(io::Error::other)?;
        }
        for line in &text {
            write!(drawing, "\r{line}\x1b[K\n").map_err(io::Error::other)?;
        }
        self.drawn_lines = text.len();
        out.write_all(drawing.as_bytes())?;
        out.flush()
    }
}

fn line(frame: &Frame, rate: u64) -> String {
    let Frame { load, proxy, .. } = frame;
    let servers: Vec<String> = frame.servers.iter().map(|server| server.data.to_string()).collect();
    format!(
        "t={}s clients={} in_use={} idle={} pending={} max={} seen_by_server={} queue={} commands_per_second={rate} \
         p50_ms={:.2} p99_ms={:.2} errors={} wrong={}",
        frame.elapsed.as_secs(),
        load.connected,
        proxy.in_use,
        proxy.idle,
        proxy.pending,
        proxy.max_pool_size,
        servers.join(","),
        proxy.queue,
        millis(load.p50),
        millis(load.p99),
        load.errors,
        load.wrong,
    )
}

fn lines(frame: &Frame, rate: u64) -> Vec<String> {
    let Frame { load, proxy, .. } = frame;
    let clock = |time: Duration| format!("{}:{:02}", time.as_secs() / 60, time.as_secs() % 60);
    let end = frame.duration.map_or_else(|| "until Ctrl-C".to_owned(), |end| format!("of {}", clock(end)));
    let mut lines = vec![
        format!("  time            {:>9} {end}", clock(frame.elapsed)),
        format!("  clients         {:>9} of {} sockets open", load.connected, frame.clients),
        format!(
            "  upstream        {:>9} in use, {} idle, {} opening; at most {} per server",
            proxy.in_use, proxy.idle, proxy.pending, proxy.max_pool_size
        ),
    ];
    for server in &frame.servers {
        let counted = format!("{} at most so far, counted by {}", server.most_data, server.address);
        lines.push(format!("  server sees     {:>9} connections, {counted}", server.data));
    }
    lines.extend([
        format!("  queue           {:>9} waiting", proxy.queue),
        format!("  commands        {rate:>9} per second, {} in all", load.commands),
        format!("  latency         {:>9.2} ms p50, {:.2} ms p99", millis(load.p50), millis(load.p99)),
        format!("  errors          {:>9} and {} wrong replies", load.errors, load.wrong),
    ]);
    lines
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::Address;

    fn frame(seconds: u64, commands: u64) -> Frame {
        Frame {
            elapsed: Duration::from_secs(seconds),
            duration: Some(Duration::from_secs(90)),
            clients: 2_000,
            load: LoadStats { connected: 1_999, commands, p99: Duration::from_micros(9_870), ..LoadStats::default() },
            proxy: ProxyStats { in_use: 9, idle: 1, pending: 0, max_pool_size: 10, queue: 34 },
            servers: vec![ServerCount { data: 10, ..ServerCount::new(Address::tcp("127.0.0.1", 1)) }],
        }
    }

    #[test]
    fn a_pipe_gets_one_plain_line_with_the_rate_since_the_last() {
        let (mut view, mut out) = (View::new(false), Vec::new());
        view.draw(&mut out, &frame(1, 1_000)).unwrap();
        view.draw(&mut out, &frame(3, 6_000)).unwrap();
        let text = String::from_utf8(out).unwrap();
        let lines: Vec<&str> = text.lines().collect();
        assert_eq!(lines.len(), 2);
        assert!(lines[0].contains(" commands_per_second=1000 "), "{text}");
        assert!(lines[1].contains(" commands_per_second=2500 "), "{text}");
        assert!(lines[1].starts_with("t=3s clients=1999 in_use=9 idle=1 pending=0 max=10 seen_by_server=10 queue=34 "));
        assert!(!text.contains('\x1b'));
    }

    #[test]
    fn a_terminal_is_drawn_over() {
        let (mut view, mut out) = (View::new(true), Vec::new());
        view.draw(&mut out, &frame(1, 1_000)).unwrap();
        let first = String::from_utf8(std::mem::take(&mut out)).unwrap();
        view.draw(&mut out, &frame(62, 6_000)).unwrap();
        let second = String::from_utf8(out).unwrap();
        let height = first.lines().count();
        assert!(!first.contains(&format!("\x1b[{height}A")));
        assert!(second.starts_with(&format!("\x1b[{height}A\r")), "{second:?}");
        assert!(second.contains("1:02 of 1:30"));
        assert!(second.contains("9.87 ms p99"));
    }
}
