//! The flags of the commands that look at a running proxy and steer it: where its admin port is, and what is asked of it.

use std::fmt;
use std::path::PathBuf;
use std::str::FromStr;
use std::time::Duration;

use clap::builder::{BoolishValueParser, PossibleValuesParser};
use clap::{Args, Subcommand};

use super::duration;
use crate::config::Address;
use crate::config::address::AddressError;
use crate::telemetry::logs::{Levels, LevelsError};

/// In the help these stand by themselves: they are the same for all commands.
const PORT: &str = "The admin port";

/// Where the admin port is and how one is let in there. All of these commands take them.
#[derive(Args, Clone, Debug, Default, PartialEq, Eq)]
pub struct PortArgs {
    /// The admin port: host:port, https://host:port or unix:/path [default: as the configuration says, else 127.0.0.1:9627]
    #[arg(long, global = true, help_heading = PORT, value_name = "ADDR", env = "MONGOMUX_ADMIN")]
    pub admin: Option<PortAddress>,

    /// Configuration file of the proxy, which says where its admin port is and which tokens it takes
    #[arg(long, global = true, help_heading = PORT, value_name = "FILE", env = "MONGOMUX_CONFIG")]
    pub config: Option<PathBuf>,

    /// File with a token of the proxy's admin_token_file; the first one in it is shown
    #[arg(long, global = true, help_heading = PORT, value_name = "FILE", env = "MONGOMUX_ADMIN_TOKEN_FILE")]
    pub admin_token_file: Option<PathBuf>,

    /// Authorities (PEM) of the admin port's certificate, which speaks TLS then [default: the public ones]
    #[arg(long, global = true, help_heading = PORT, value_name = "FILE", env = "MONGOMUX_ADMIN_CA")]
    pub admin_ca: Option<PathBuf>,

    /// Certificate to show the admin port, with its private key (PEM)
    #[arg(long, global = true, help_heading = PORT, value_name = "FILE", env = "MONGOMUX_ADMIN_CERT")]
    pub admin_cert: Option<PathBuf>,
}

/// An address, and whether TLS is spoken there whatever else is said.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PortAddress {
    /// Where it is.
    pub address: Address,
    /// `https://` stood before it.
    pub tls: bool,
}

impl FromStr for PortAddress {
    type Err = AddressError;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let secure = text.strip_prefix("https://");
        let rest = secure.or_else(|| text.strip_prefix("http://"));
        let address = rest.map_or(text, |rest| rest.trim_end_matches('/')).parse()?;
        Ok(Self { address, tls: secure.is_some() })
    }
}

impl fmt::Display for PortAddress {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}{}", if self.tls { "https://" } else { "" }, self.address)
    }
}

/// One snapshot.
#[derive(Args, Clone, Debug)]
pub struct StatsArgs {
    /// Where to ask.
    #[command(flatten)]
    pub port: PortArgs,

    /// Print JSON, as /stats answers
    #[arg(long, env = "MONGOMUX_JSON", value_parser = BoolishValueParser::new())]
    pub json: bool,
}

/// The same, live.
#[derive(Args, Clone, Debug)]
pub struct TopArgs {
    /// Where to ask.
    #[command(flatten)]
    pub port: PortArgs,

    /// How often to ask, such as 500ms or 2s
    #[arg(long, value_name = "DURATION", env = "MONGOMUX_INTERVAL", default_value = "1s", value_parser = interval)]
    pub interval: Duration,

    /// Print one JSON object per interval instead
    #[arg(long, env = "MONGOMUX_JSON", value_parser = BoolishValueParser::new())]
    pub json: bool,

    /// End after so many intervals
    #[arg(long, value_name = "N", env = "MONGOMUX_COUNT", value_parser = clap::value_parser!(u64).range(1..))]
    pub count: Option<u64>,
}

/// What to paste into a ticket.
#[derive(Args, Clone, Debug)]
pub struct DiagArgs {
    /// Where to ask.
    #[command(flatten)]
    pub port: PortArgs,

    /// Ask MongoDB as well, through the proxy: its connections, by application
    #[arg(long, env = "MONGOMUX_DIAG_SERVER", value_parser = BoolishValueParser::new())]
    pub server: bool,

    /// Print JSON
    #[arg(long, env = "MONGOMUX_JSON", value_parser = BoolishValueParser::new())]
    pub json: bool,

    /// Write to a file that only its owner can read, instead of the standard output
    #[arg(long, value_name = "FILE", env = "MONGOMUX_OUTPUT")]
    pub output: Option<PathBuf>,
}

/// One order, or one question.
#[derive(Args, Clone, Debug)]
pub struct AdminArgs {
    /// Where to ask.
    #[command(flatten)]
    pub port: PortArgs,

    /// Print the answer as JSON
    #[arg(long, global = true, env = "MONGOMUX_JSON", value_parser = BoolishValueParser::new())]
    pub json: bool,

    /// What to do.
    #[command(subcommand)]
    pub action: Action,
}

/// Which cluster is meant.
#[derive(Args, Clone, Debug, Default, PartialEq, Eq)]
pub struct ClusterArg {
    /// Only this cluster [default: all]
    #[arg(long, value_name = "NAME")]
    pub cluster: Option<String>,
}

/// What can be ordered and asked. All orders may be given again. None of it comes from the environment: what was left there is
/// not to aim an order.
#[derive(Subcommand, Clone, Debug, PartialEq, Eq)]
pub enum Action {
    /// Hold new commands until `resume`: clients wait and notice nothing but the time
    Pause {
        /// Of which cluster.
        #[command(flatten)]
        cluster: ClusterArg,
        /// Only commands on this database
        #[arg(long, value_name = "NAME")]
        database: Option<String>,
        /// Resume by itself after this time, such as 30s
        #[arg(long, value_name = "DURATION", value_parser = duration)]
        timeout: Option<Duration>,
        /// End only when no command and no transaction runs any more, and with code 1 when the time is over first
        #[arg(long, requires = "timeout", conflicts_with = "database")]
        wait: bool,
    },
    /// Let on what `pause` holds
    Resume {
        /// Of which cluster.
        #[command(flatten)]
        cluster: ClusterArg,
        /// Only commands on this database
        #[arg(long, value_name = "NAME")]
        database: Option<String>,
    },
    /// Replace all upstream connections, one by one
    Reconnect {
        /// Of which cluster.
        #[command(flatten)]
        cluster: ClusterArg,
        /// Only those to this server
        #[arg(long, value_name = "HOST:PORT")]
        server: Option<String>,
    },
    /// Close upstream connections: those that are idle, all as they become free (soft), or all at once (hard)
    Cleanup {
        /// How much is closed
        #[arg(value_name = "MODE", value_parser = PossibleValuesParser::new(["idle", "soft", "hard"]))]
        mode: String,
        /// Of which cluster.
        #[command(flatten)]
        cluster: ClusterArg,
        /// Only those to this server
        #[arg(long, value_name = "HOST:PORT")]
        server: Option<String>,
    },
    /// Stop accepting, serve what is open, and end
    Drain,
    /// Disconnect a client, or all of an application
    Kill {
        /// As `mongomux admin clients --list` and the log tell it
        #[arg(value_name = "ID", required_unless_present = "application", conflicts_with = "application")]
        id: Option<u64>,
        /// All clients of this application
        #[arg(long, value_name = "NAME")]
        application: Option<String>,
    },
    /// Close a server's breaker, or open it
    Breaker {
        /// As `mongomux stats` tells it
        #[arg(value_name = "HOST:PORT")]
        server: String,
        /// Close it and forget what it has seen, or open it
        #[arg(value_name = "ACTION", value_parser = PossibleValuesParser::new(["reset", "trip"]))]
        action: String,
    },
    /// Log from this level on, until it is told otherwise
    Log {
        /// As --log takes it: a level, and others for some targets; `default` for what --log says
        #[arg(value_name = "LEVEL", value_parser = log_levels)]
        level: LogLevels,
    },
    /// Say how far the proxy serves: everything, reads, or only what is open
    Mode {
        /// The mode to be
        #[arg(value_name = "MODE", value_parser = PossibleValuesParser::new(["normal", "read-only", "maintenance"]))]
        mode: String,
        /// Of which cluster.
        #[command(flatten)]
        cluster: ClusterArg,
        /// In maintenance: hold what is new, which is the default
        #[arg(long, conflicts_with = "no_hold")]
        hold: bool,
        /// In maintenance: refuse what is new
        #[arg(long)]
        no_hold: bool,
    },
    /// Change what the clients of listeners may do; what is not named stays as it is
    Rules(RulesArgs),
    /// Read the configuration again
    Reload,
    /// What has happened, newest first
    Events {
        /// Of which cluster.
        #[command(flatten)]
        cluster: ClusterArg,
        /// Only of this kind, such as breaker or reload
        #[arg(long, value_name = "KIND")]
        kind: Option<String>,
        /// At most so many
        #[arg(long, value_name = "N")]
        limit: Option<usize>,
    },
    /// Who is connected, by application and driver
    Clients {
        /// One by one as well, the oldest first: their ids, addresses, and whether they are at work
        #[arg(long)]
        list: bool,
        /// Only those of this application
        #[arg(long, value_name = "NAME")]
        application: Option<String>,
        /// At most so many of the list [default: 100]
        #[arg(long, value_name = "N", requires = "list")]
        limit: Option<usize>,
    },
    /// Say whether it lives, whatever MongoDB does: for health checks, as every port answers that
    Livez,
}

/// What is to be logged; `None` for what the proxy was started with.
pub type LogLevels = Option<Levels>;

fn log_levels(text: &str) -> Result<LogLevels, LevelsError> {
    if text == "default" { Ok(None) } else { text.parse().map(Some) }
}

/// The rules of a listener.
#[derive(Args, Clone, Debug, Default, PartialEq, Eq)]
pub struct RulesArgs {
    /// Only of this listener [default: all]
    #[arg(long, value_name = "ADDR")]
    pub listener: Option<String>,

    /// Pass only what is known to read: true or false
    #[arg(long, value_name = "BOOL", num_args = 0..=1, default_missing_value = "true")]
    pub read_only: Option<bool>,

    /// Nothing but these commands, or groups of them, separated by commas; "" for no such rule
    #[arg(long, value_name = "NAMES")]
    pub allow_commands: Option<String>,

    /// All but these
    #[arg(long, value_name = "NAMES")]
    pub deny_commands: Option<String>,

    /// Only what touches nothing but these namespaces
    #[arg(long, value_name = "NAMES")]
    pub allow_namespaces: Option<String>,

    /// Nothing that touches these
    #[arg(long, value_name = "NAMES")]
    pub deny_namespaces: Option<String>,
}

/// As often as the proxy is not bothered by, and as seldom as somebody still looks.
fn interval(text: &str) -> Result<Duration, String> {
    const BOUNDS: std::ops::RangeInclusive<Duration> = Duration::from_millis(100)..=Duration::from_secs(3600);
    let interval = duration(text)?;
    if BOUNDS.contains(&interval) { Ok(interval) } else { Err(format!("`{text}`: expected 100ms to 1h")) }
}
