//! Flags and their environment names, through clap. What they say together with a configuration file is decided in
//! `config`; commands that are not there yet are not listed here either.

mod environment;
pub mod operate;

use std::collections::BTreeMap;
use std::ffi::OsString;
use std::path::{Path, PathBuf};
use std::time::Duration;

use clap::builder::{BoolishValueParser, PossibleValuesParser, TypedValueParser};
use clap::error::ErrorKind;
use clap::parser::ValueSource;
use clap::{Arg, ArgMatches, Args, CommandFactory, FromArgMatches, Parser, Subcommand};

use self::operate::{AdminArgs, DiagArgs, StatsArgs, TopArgs};
use crate::config::system::{Text, container_memory_bytes, read_file};
use crate::config::users_file::DEFAULT_DATABASE;
use crate::config::{Address, Attempt, Config, ConfigError, ConfigErrors, Profile, Sources, Warning};
use crate::telemetry::logs::{Levels, LogFormat};

/// PgBouncer for MongoDB: thousands of client sockets over a handful of upstream connections.
#[derive(Parser)]
#[command(name = "mongomux", version, arg_required_else_help = true)]
pub struct Cli {
    /// What to do.
    #[command(subcommand)]
    pub command: Command,

    /// Log messages of this level and above, to stderr; of some targets others, as in info,mongomux::connection=debug
    #[arg(long, global = true, value_name = "LEVEL", env = "MONGOMUX_LOG", default_value = "info")]
    pub log: Levels,

    /// Log for people, or as one JSON object per line
    #[arg(
        long, global = true, value_name = "FORMAT", env = "MONGOMUX_LOG_FORMAT", default_value = "text",
        value_parser = log_format()
    )]
    pub log_format: LogFormat,
}

/// The commands.
#[derive(Subcommand)]
pub enum Command {
    /// Run the proxy
    Run(RunArgs),
    /// Try it: a throw-away mongod, the proxy, and thousands of clients
    Sandbox(SandboxArgs),
    /// Say whether `run` would accept this configuration, and what is in force
    Check(CheckArgs),
    /// Show how a running proxy does, as a table
    Stats(StatsArgs),
    /// Show it live, in the terminal
    Top(TopArgs),
    /// Give a running proxy an order, or ask it who is connected and what has happened
    Admin(AdminArgs),
    /// Print what a ticket needs: versions, configuration, servers, pools, clients, events, without secrets
    Diag(DiagArgs),
    /// Look after a users file
    #[command(subcommand)]
    User(UserCommand),
}

/// What is to be done with a users file.
#[derive(Subcommand)]
pub enum UserCommand {
    /// Add a user, or give one another password: asked for on the terminal, else one line of the standard input
    Add(UserAddArgs),
}

/// A user to be added. Its password is never an argument, which others could see.
#[derive(Args, Clone, Debug, PartialEq, Eq)]
pub struct UserAddArgs {
    /// As clients type it
    #[arg(value_name = "NAME", env = "MONGOMUX_USER_NAME")]
    pub name: String,

    /// The users file; made where there is none
    #[arg(long, value_name = "FILE", env = "MONGOMUX_USERS_FILE")]
    pub file: PathBuf,

    /// What clients give as authSource
    #[arg(long, value_name = "DATABASE", env = "MONGOMUX_USER_DATABASE", default_value = DEFAULT_DATABASE)]
    pub database: String,

    /// What it can log in with; may be repeated [default: both]
    #[arg(
        long = "mechanism", value_name = "MECHANISM", env = "MONGOMUX_USER_MECHANISM", value_delimiter = ',',
        value_parser = PossibleValuesParser::new(["SCRAM-SHA-256", "SCRAM-SHA-1"])
    )]
    pub mechanisms: Vec<String>,
}

/// Where the configuration comes from. `check` takes what `run` takes, so that it judges the same configuration.
#[derive(Args, Clone, Default)]
pub struct RunArgs {
    /// Configuration file (TOML)
    #[arg(long, value_name = "FILE", env = "MONGOMUX_CONFIG")]
    pub config: Option<PathBuf>,

    /// Where clients connect: host:port or unix:/path; may be repeated
    #[arg(long, value_name = "ADDR", env = "MONGOMUX_LISTEN", value_delimiter = ',')]
    pub listen: Vec<Address>,

    /// Where metrics, probes and the page are served
    #[arg(long, value_name = "ADDR", env = "MONGOMUX_ADMIN")]
    pub admin: Option<Address>,

    /// File with the tokens that the admin port asks for, one per line
    #[arg(long, value_name = "FILE", env = "MONGOMUX_ADMIN_TOKEN_FILE")]
    pub admin_token_file: Option<PathBuf>,

    /// Serve nothing but probes and metrics on the admin port
    #[arg(long, env = "MONGOMUX_ADMIN_PROBES_ONLY", value_parser = BoolishValueParser::new())]
    pub admin_probes_only: bool,

    /// Unix socket over which the next process takes over from this one
    #[arg(long, value_name = "PATH", env = "MONGOMUX_UPGRADE_SOCKET")]
    pub upgrade_socket: Option<PathBuf>,

    /// Where spans and metrics go over OTLP/HTTP, as in http://localhost:4318 (needs the feature otel)
    #[arg(long, value_name = "URL", env = "MONGOMUX_OTLP_ENDPOINT")]
    pub otlp_endpoint: Option<String>,

    /// Values to start from
    #[arg(long, value_name = "NAME", env = "MONGOMUX_PROFILE", value_parser = profile())]
    pub profile: Option<Profile>,

    /// File that holds the upstream connection string and nothing else
    #[arg(long, value_name = "FILE", env = "MONGOMUX_UPSTREAM_FILE")]
    pub upstream_file: Option<PathBuf>,

    /// Listen where other machines can connect, although clients need no password
    #[arg(long, env = "MONGOMUX_ALLOW_UNAUTHENTICATED_CLIENTS", value_parser = BoolishValueParser::new())]
    pub allow_unauthenticated_clients: bool,

    /// Upstream connection string; one with a password belongs in the environment or in a file
    #[arg(value_name = "URI", env = "MONGOMUX_UPSTREAM", hide_env_values = true)]
    pub upstream: Option<String>,

    /// Which flag or variable says something, by the name of its field.
    #[arg(skip)]
    said_by: BTreeMap<String, String>,
}

/// What is to be said about a configuration.
#[derive(Args, Clone, Default)]
pub struct CheckArgs {
    /// Where it comes from.
    #[command(flatten)]
    pub run: RunArgs,

    /// Try the servers as well: DNS, TCP, TLS, hello, authentication and a ping, each with its time
    #[arg(long, env = "MONGOMUX_CHECK_CONNECT", value_parser = BoolishValueParser::new())]
    pub connect: bool,

    /// Print every key with its value and who says so, as a file that could be used; without credentials
    #[arg(long, env = "MONGOMUX_CHECK_PRINT", value_parser = BoolishValueParser::new(), conflicts_with = "connect")]
    pub print: bool,

    /// Answer for programs
    #[arg(long, env = "MONGOMUX_JSON", value_parser = BoolishValueParser::new())]
    pub json: bool,
}

/// The one-command trial.
#[derive(Args, Debug, Clone, PartialEq, Eq)]
pub struct SandboxArgs {
    /// Client sockets to open
    #[arg(long, value_name = "N", env = "MONGOMUX_CLIENTS", default_value_t = 2_000, value_parser = clients())]
    pub clients: usize,

    /// How long to run, such as 30s or 5m [default: until Ctrl-C]
    #[arg(long = "for", value_name = "DURATION", env = "MONGOMUX_FOR", value_parser = duration)]
    pub duration: Option<Duration>,

    /// Where clients connect
    #[arg(long, value_name = "ADDR", env = "MONGOMUX_LISTEN")]
    pub listen: Option<Address>,

    /// Where metrics, probes and the page are served
    #[arg(long, value_name = "ADDR", env = "MONGOMUX_ADMIN")]
    pub admin: Option<Address>,

    /// The mongod to start [default: the one in PATH, else one is fetched]
    #[arg(long, value_name = "PATH", env = "MONGOD")]
    pub mongod: Option<PathBuf>,

    /// Members of the replica set
    #[arg(long, value_name = "N", env = "MONGOMUX_MEMBERS", default_value_t = 1, value_parser = clap::value_parser!(u8).range(1..=7))]
    pub members: u8,
}

impl Cli {
    /// Parses the arguments of this process; ends it with a message and code 2 if they are wrong.
    pub fn from_process() -> Self {
        Self::from_arguments(std::env::args_os()).unwrap_or_else(|error| error.exit())
    }

    /// Parses arguments, the program's name first.
    ///
    /// # Errors
    /// clap's, also for help and version.
    pub fn from_arguments<I: IntoIterator<Item: Into<OsString> + Clone>>(arguments: I) -> Result<Self, clap::Error> {
        let matches = Self::command().try_get_matches_from(arguments)?;
        let mut cli = Self::from_arg_matches(&matches)?;
        let (Command::Run(args) | Command::Check(CheckArgs { run: args, .. })) = &mut cli.command else {
            return Ok(cli);
        };
        if let Some((name, matches)) = matches.subcommand() {
            args.choose_upstream(matches.value_source("upstream"), matches.value_source("upstream_file"))?;
            let command = Self::command();
            let known = command.find_subcommand(name).into_iter().flat_map(clap::Command::get_arguments);
            args.said_by = known.filter_map(|argument| said_by(argument, matches)).collect();
        }
        Ok(cli)
    }
}

impl RunArgs {
    /// A connection string and a file with one: a flag beats the environment, and two of a kind are a mistake.
    fn choose_upstream(&mut self, uri: Option<ValueSource>, file: Option<ValueSource>) -> Result<(), clap::Error> {
        match (uri, file) {
            (Some(ValueSource::CommandLine), Some(ValueSource::EnvVariable)) => self.upstream_file = None,
            (Some(ValueSource::EnvVariable), Some(ValueSource::CommandLine)) => self.upstream = None,
            (Some(_), Some(_)) => {
                let problem = "give either a connection string or --upstream-file, not both";
                return Err(Cli::command().error(ErrorKind::ArgumentConflict, problem));
            }
            _ => (),
        }
        Ok(())
    }

    /// Reads and checks the configuration.
    ///
    /// # Errors
    /// Every mistake there is.
    pub fn load(&self) -> Result<(Config, Vec<Warning>), ConfigErrors> {
        self.attempt()?.sound()
    }

    /// As [`RunArgs::load`], with what can be made of it beside the mistakes.
    ///
    /// # Errors
    /// Where there is nothing to make one of.
    pub fn attempt(&self) -> Result<Attempt, ConfigErrors> {
        let mut attempt = Config::attempt(&self.sources()?);
        let set = std::env::vars_os().filter_map(|(name, _)| name.into_string().ok());
        attempt.warnings.extend(environment::warnings(&Cli::command(), set));
        Ok(attempt)
    }

    /// Reads the files that are named, and the container's limit.
    ///
    /// # Errors
    /// One per file that cannot be read.
    pub fn sources(&self) -> Result<Sources, ConfigErrors> {
        let mut errors: Vec<ConfigError> = Vec::new();
        let mut read = |path: &PathBuf| read_file(path).map_err(|error| errors.push(error)).ok();
        let file = self.config.as_ref().and_then(&mut read);
        let upstream = match &self.upstream {
            Some(text) => Some(Text { name: "connection string".to_owned(), text: text.clone() }),
            None => self.upstream_file.as_ref().and_then(&mut read),
        };
        if !errors.is_empty() {
            errors.extend(file.iter().flat_map(Config::mistakes_of));
            return Err(ConfigErrors(errors));
        }
        let mut said_by = self.said_by.clone();
        if let (None, Some(path)) = (&self.upstream, &self.upstream_file) {
            let by = said_by.get("upstream_file").cloned().unwrap_or_default();
            said_by.insert("upstream".to_owned(), format!("{by} {}", path.display()));
        }
        Ok(Sources {
            file,
            upstream,
            said_by,
            upstream_file: self.upstream.is_none().then(|| self.upstream_file.clone()).flatten(),
            listen: self.listen.clone(),
            admin: self.admin.clone(),
            admin_token_file: self.admin_token_file.clone(),
            admin_probes_only: self.admin_probes_only,
            upgrade_socket: self.upgrade_socket.clone(),
            otlp_endpoint: self.otlp_endpoint.clone(),
            profile: self.profile,
            allow_unauthenticated_clients: self.allow_unauthenticated_clients,
            container_memory_bytes: container_memory_bytes(Path::new("/")),
        })
    }
}

/// The name of an argument that says something, and what it is called where it was said.
fn said_by(argument: &Arg, matches: &ArgMatches) -> Option<(String, String)> {
    let name = argument.get_id().as_str();
    let said = match matches.value_source(name)? {
        ValueSource::CommandLine => {
            argument.get_long().map_or_else(|| "the command line".to_owned(), |long| format!("flag --{long}"))
        }
        ValueSource::EnvVariable => format!("environment {}", argument.get_env()?.display()),
        _ => return None,
    };
    Some((name.to_owned(), said))
}

/// `250ms`, `10s`, `5m` or `1h`, more than nothing.
fn duration(text: &str) -> Result<Duration, String> {
    let refuse = || format!("`{text}` is not a duration: expected a whole number and a unit, as in 250ms, 10s, 5m, 1h");
    let digits = text.find(|c: char| !c.is_ascii_digit()).unwrap_or(text.len());
    let (number, unit) = text.split_at(digits);
    let number: u64 = number.parse().ok().filter(|&number| number > 0).ok_or_else(refuse)?;
    let unit_ms = match unit {
        "ms" => 1,
        "s" => 1_000,
        "m" => 60_000,
        "h" => 3_600_000,
        _ => return Err(refuse()),
    };
    number.checked_mul(unit_ms).map(Duration::from_millis).ok_or_else(refuse)
}

fn log_format() -> impl TypedValueParser<Value = LogFormat> {
    PossibleValuesParser::new(LogFormat::NAMES).try_map(|name| name.parse::<LogFormat>())
}

fn profile() -> impl TypedValueParser<Value = Profile> {
    PossibleValuesParser::new(Profile::ALL.iter().map(|profile| profile.name())).try_map(|name| name.parse::<Profile>())
}

fn clients() -> impl TypedValueParser<Value = usize> {
    // More than any machine has ports for on one address.
    clap::value_parser!(u64).range(1..=60_000).try_map(usize::try_from)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parse(arguments: &[&str]) -> Result<Cli, clap::Error> {
        Cli::from_arguments(std::iter::once(&"mongomux").chain(arguments))
    }

    fn run(arguments: &[&str]) -> RunArgs {
        match parse(&[&["run"], arguments].concat()).unwrap_or_else(|error| panic!("{error}")).command {
            Command::Run(args) => args,
            _ => panic!("another command"),
        }
    }

    fn sandbox(arguments: &[&str]) -> Result<SandboxArgs, clap::Error> {
        match parse(&[&["sandbox"], arguments].concat())?.command {
            Command::Sandbox(args) => Ok(args),
            _ => panic!("another command"),
        }
    }

    #[test]
    fn the_definition_is_sound() {
        Cli::command().debug_assert();
    }

    #[test]
    fn run_takes_its_flags_and_a_connection_string() {
        let args = run(&[
            "--listen",
            "127.0.0.1:1,unix:/a",
            "--listen",
            "[::1]:2",
            "--admin",
            "127.0.0.1:3",
            "--profile",
            "high-availability",
            "--config",
            "x.toml",
            "mongodb://db",
        ]);
        let listen: Vec<String> = args.listen.iter().map(Address::to_string).collect();
        assert_eq!(listen, ["127.0.0.1:1", "unix:/a", "[::1]:2"]);
        assert_eq!(args.admin, Some(Address::tcp("127.0.0.1", 3)));
        assert_eq!(args.profile, Some(Profile::HighAvailability));
        assert_eq!(args.config, Some("x.toml".into()));
        assert_eq!(args.upstream.as_deref(), Some("mongodb://db"));
        assert!(!args.allow_unauthenticated_clients);
    }

    #[test]
    fn the_sandbox_has_the_documented_defaults() {
        let args = sandbox(&[]).unwrap();
        assert_eq!((args.clients, args.members, args.duration), (2_000, 1, None));
        let args = sandbox(&["--clients", "50", "--for", "10s", "--members", "3"]).unwrap();
        assert_eq!((args.clients, args.members, args.duration), (50, 3, Some(Duration::from_secs(10))));
        assert!(sandbox(&["--members", "0"]).is_err() && sandbox(&["--clients", "0"]).is_err());
    }

    #[test]
    fn a_user_is_added_without_its_password_being_an_argument() {
        let add = |arguments: &[&str]| match parse(&[&["user", "add"], arguments].concat())?.command {
            Command::User(UserCommand::Add(args)) => Ok::<_, clap::Error>(args),
            _ => panic!("another command"),
        };
        let args = add(&["app", "--file", "users.toml"]).unwrap();
        assert_eq!((args.name.as_str(), args.database.as_str(), args.mechanisms.len()), ("app", "admin", 0));
        let args = add(&["app", "--file", "f", "--database", "shop", "--mechanism", "SCRAM-SHA-1"]).unwrap();
        assert_eq!((args.database.as_str(), args.mechanisms), ("shop", vec!["SCRAM-SHA-1".to_owned()]));
        for wrong in [&["app"][..], &["app", "secret", "--file", "f"], &["app", "--file", "f", "--mechanism", "PLAIN"]]
        {
            assert!(add(wrong).is_err(), "{wrong:?}");
        }
    }

    #[test]
    fn durations_have_a_number_and_a_unit() {
        for (text, ms) in [("250ms", 250), ("10s", 10_000), ("5m", 300_000), ("1h", 3_600_000)] {
            assert_eq!(duration(text), Ok(Duration::from_millis(ms)), "{text}");
        }
        for text in
            ["", "10", "s", "0s", "-1s", "1.5s", "10 s", "1d", "5M", "99999999999999999h", "99999999999999999999s"]
        {
            assert!(duration(text).unwrap_err().contains(&format!("`{text}`")), "{text}");
        }
    }

    #[test]
    fn log_flags_go_with_every_command() {
        for arguments in [["run", "--log", "debug"], ["--log", "debug", "check"]] {
            let cli = parse(&arguments).unwrap_or_else(|error| panic!("{error}"));
            assert_eq!((cli.log, cli.log_format), ("debug".parse().unwrap(), LogFormat::Text));
        }
        assert_eq!(parse(&["sandbox", "--log-format", "json"]).ok().unwrap().log_format, LogFormat::Json);
    }

    #[test]
    fn wrong_flags_end_with_code_two() {
        for arguments in [
            &["run", "--listen", "nowhere"][..],
            &["run", "--profile", "huge"],
            &["run", "--upstream-file", "f", "mongodb://db"],
            &["run", "--log", "loud"],
            &["run", "--nonsense"],
            &["sandbox", "--for", "soon"],
            &["stats", "now"],
            &["top", "--interval", "5"],
            &["top", "--interval", "10ms"],
            &["top", "--count", "0"],
            &["admin"],
            &["admin", "cleanup", "all"],
            &["admin", "kill", "somebody"],
            &["admin", "mode", "maintenance", "--hold", "--no-hold"],
            &["run", "--connect"],
            &["check", "--connect", "--print"],
        ] {
            assert_eq!(parse(arguments).err().map(|error| error.exit_code()), Some(2), "{arguments:?}");
        }
    }

    #[test]
    fn a_flag_beats_the_environment_between_a_string_and_a_file_with_one() {
        use ValueSource::{CommandLine, EnvVariable};
        let both =
            RunArgs { upstream: Some("mongodb://db".into()), upstream_file: Some("f".into()), ..RunArgs::default() };
        let mut args = both.clone();
        args.choose_upstream(Some(CommandLine), Some(EnvVariable)).unwrap();
        assert_eq!((args.upstream.is_some(), args.upstream_file.is_some()), (true, false));
        let mut args = both.clone();
        args.choose_upstream(Some(EnvVariable), Some(CommandLine)).unwrap();
        assert_eq!((args.upstream.is_some(), args.upstream_file.is_some()), (false, true));
        assert!(both.clone().choose_upstream(Some(EnvVariable), Some(EnvVariable)).is_err());
        assert!(both.clone().choose_upstream(Some(CommandLine), Some(CommandLine)).is_err());
    }

    #[test]
    fn every_flag_has_an_environment_name_and_no_secret_shows_in_the_help() {
        let mut program = Cli::command();
        program.build();
        let commands =
            program.get_subcommands().flat_map(|command| std::iter::once(command).chain(command.get_subcommands()));
        // What an order aims at is said with it, and never left in the environment.
        let orders = Cli::command();
        let orders = orders.find_subcommand("admin").unwrap();
        let is_order = |name: &str| orders.find_subcommand(name).is_some();
        for command in commands.filter(|command| command.get_name() != "help" && !is_order(command.get_name())) {
            for flag in command.get_arguments().filter(|flag| !["help", "version"].contains(&flag.get_id().as_str())) {
                let name = flag.get_env().unwrap_or_else(|| panic!("{} of {}", flag.get_id(), command.get_name()));
                let name = name.to_str().unwrap();
                assert!(name.starts_with("MONGOMUX_") || name == "MONGOD", "{name}");
                assert_eq!(flag.is_hide_env_values_set(), flag.get_id() == "upstream", "{name}");
            }
        }
    }

    #[test]
    fn files_are_read_and_all_missing_ones_told() {
        let directory = tempfile::tempdir().unwrap();
        let upstream = directory.path().join("upstream");
        std::fs::write(&upstream, "mongodb://db:1\n").unwrap();
        let sources = run(&["--upstream-file", upstream.to_str().unwrap()]).sources().unwrap_or_else(|e| panic!("{e}"));
        assert_eq!(sources.upstream.unwrap().text, "mongodb://db:1\n");
        let errors = run(&["--config", "/none/a", "--upstream-file", "/none/b"]).sources().err().unwrap();
        assert_eq!(errors.to_string().lines().count(), 2, "{errors}");
    }
}
