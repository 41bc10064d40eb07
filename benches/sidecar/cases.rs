//! What is asked, and how: a case is a command and a shape of load.

use std::fmt;
use std::str::FromStr;

/// Different documents that are asked for in turn, so that a reply for somebody else is seen: many small ones, and large
/// ones that the server can still hold in its cache.
const SMALL_DOCUMENTS: i32 = 1_000;
const LARGE_DOCUMENTS: i32 = 64;
const HUGE_DOCUMENTS: i32 = 8;

/// Requests in flight where it is not all sockets or one.
const IN_FLIGHT: usize = 64;

/// Arrivals per second of the open loop.
const ARRIVALS: f64 = 2_500.0;

/// One command.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Command {
    pub name: &'static str,
    pub kind: Kind,
}

/// What it does.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kind {
    Ping,
    /// By `_id`, in a collection of this many documents of so many bytes.
    Find {
        bytes: usize,
        documents: i32,
    },
    Insert {
        bytes: usize,
    },
}

/// All commands.
pub const COMMANDS: [Command; 6] = [
    Command { name: "ping", kind: Kind::Ping },
    Command { name: "find-100B", kind: Kind::Find { bytes: 100, documents: SMALL_DOCUMENTS } },
    Command { name: "find-16KiB", kind: Kind::Find { bytes: 16 << 10, documents: LARGE_DOCUMENTS } },
    Command { name: "find-1MB", kind: Kind::Find { bytes: 1_000_000, documents: HUGE_DOCUMENTS } },
    Command { name: "insert-100B", kind: Kind::Insert { bytes: 100 } },
    Command { name: "insert-16KiB", kind: Kind::Insert { bytes: 16 << 10 } },
];

/// How requests come.
#[derive(Debug, Clone, Copy, PartialEq)]
pub enum Shape {
    /// Closed loop: so many in flight, always on the same sockets.
    Same(usize),
    /// Closed loop: so many in flight, each on the next socket that has none. What thousands of clients that are idle most
    /// of the time look like.
    Turn(usize),
    /// Closed loop: every socket has one in flight.
    All,
    /// Poisson arrivals, so many a second, over all sockets.
    Open(f64),
}

/// A command in a shape.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Case {
    pub command: Command,
    pub shape: Shape,
}

/// What is measured unless something else is asked for: what the targets are about first.
pub const DEFAULT_CASES: &str = "find-100B@64,insert-100B@64,find-100B@turn,insert-100B@turn,find-100B@open,\
    find-16KiB@64,insert-16KiB@64,ping@64,find-100B@1,find-100B@all,find-1MB@64";

impl fmt::Display for Case {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let name = self.command.name;
        match self.shape {
            Shape::Same(sockets) => write!(f, "{name}@{sockets}"),
            Shape::Turn(_) => write!(f, "{name}@turn"),
            Shape::All => write!(f, "{name}@all"),
            Shape::Open(_) => write!(f, "{name}@open"),
        }
    }
}

impl FromStr for Command {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        COMMANDS.into_iter().find(|command| command.name == text).ok_or_else(|| {
            let names = COMMANDS.map(|command| command.name);
            format!("{text} is not one of {}", names.join(", "))
        })
    }
}

impl FromStr for Case {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let refuse = || format!("{text} is not COMMAND@turn, @all, @open or @SOCKETS");
        let (name, shape) = text.split_once('@').ok_or_else(refuse)?;
        let command = name.parse()?;
        let shape = match shape {
            "turn" => Shape::Turn(IN_FLIGHT),
            "all" => Shape::All,
            "open" => Shape::Open(ARRIVALS),
            sockets => Shape::Same(sockets.parse().ok().filter(|sockets| *sockets > 0).ok_or_else(refuse)?),
        };
        Ok(Self { command, shape })
    }
}

impl Case {
    /// In words.
    pub fn title(&self) -> String {
        let command = match self.command.kind {
            Kind::Ping => "ping".to_owned(),
            Kind::Find { bytes, .. } => format!("find {} by _id", size(bytes)),
            Kind::Insert { bytes } => format!("insert {}", size(bytes)),
        };
        let shape = match self.shape {
            Shape::Same(1) => "1 in flight".to_owned(),
            Shape::Same(sockets) => format!("{sockets} in flight on the same sockets"),
            Shape::Turn(in_flight) => format!("{in_flight} in flight, all sockets in turn"),
            Shape::All => "1 in flight on every socket".to_owned(),
            Shape::Open(rate) => format!("{rate}/s over all sockets"),
        };
        format!("{command}, {shape}")
    }
}

fn size(bytes: usize) -> String {
    match bytes {
        1_000_000 => "1 MB".to_owned(),
        1024.. => format!("{} KiB", bytes >> 10),
        _ => format!("{bytes} B"),
    }
}
