//! The `mongomux` program: flags, logs, runtime, run, exit code.

use std::io::{IsTerminal, Write};
use std::process::ExitCode;

use mongomux::app::{self, App, Drained, StartError, user_add};
use mongomux::cli::{Cli, Command, RunArgs, SandboxArgs, UserAddArgs, UserCommand};
use mongomux::config::{Config, system};
use mongomux::sandbox::{self, SandboxOptions};
use mongomux::telemetry::logs;
use mongomux::trial;
use tokio::runtime::Builder;
use tokio::signal::unix::{SignalKind, signal};
use zeroize::Zeroize as _;

const FAILED: u8 = 1;
const BAD_CONFIGURATION: u8 = 2;
const CUT_OFF: u8 = 3;

fn main() -> ExitCode {
    let cli = Cli::from_process();
    if let Err(error) = logs::init(cli.log, cli.log_format) {
        return fail(FAILED, &error);
    }
    match cli.command {
        Command::Run(args) => match load(args) {
            Ok(config) => on_threads(config.worker_threads, run(config)),
            Err(code) => code,
        },
        Command::Check(args) => on_threads(1, check(args)),
        Command::User(UserCommand::Add(args)) => add_user(&args),
        Command::Sandbox(args) => on_threads(1, sandbox(args)),
    }
}

fn on_threads(threads: usize, program: impl Future<Output = ExitCode>) -> ExitCode {
    // A runtime of several threads with one worker would cost as much as one of a single thread, and another thread.
    let mut builder = match threads {
        1 => Builder::new_current_thread(),
        _ => Builder::new_multi_thread(),
    };
    match builder.worker_threads(threads).enable_all().build() {
        Ok(runtime) => runtime.block_on(program),
        Err(error) => fail(FAILED, &error),
    }
}

fn load(mut args: RunArgs) -> Result<Config, ExitCode> {
    let sources = args.sources();
    // The password in it has been copied to where it is wiped as well.
    args.upstream.zeroize();
    let loaded = sources.and_then(|sources| Config::load(&sources));
    let (config, warnings) = loaded.map_err(|errors| fail(BAD_CONFIGURATION, &errors))?;
    warnings.iter().for_each(|warning| tracing::warn!("{warning}"));
    Ok(config)
}

async fn run(config: Config) -> ExitCode {
    match system::raise_open_files(&config) {
        Ok(Some(warning)) => tracing::warn!("{warning}"),
        Ok(None) => {}
        Err(error) => tracing::warn!(%error, "cannot raise the limit of open files"),
    }
    let signals = [SignalKind::terminate(), SignalKind::interrupt(), SignalKind::hangup()].map(signal);
    let [terminate, interrupt, hangup] = signals;
    let signals = terminate.and_then(|terminate| Ok((terminate, interrupt?, hangup?)));
    let (mut terminate, mut interrupt, mut hangup) = match signals {
        Ok(signals) => signals,
        Err(error) => return fail(FAILED, &error),
    };
    let app = match App::start(config).await {
        Ok(app) => app,
        // As `check` says it.
        Err(StartError::Files(errors)) => return fail(BAD_CONFIGURATION, &errors),
        Err(error @ StartError::Listen(_)) => return fail(FAILED, &error),
    };
    loop {
        tokio::select! {
            _ = hangup.recv() => app.reload(),
            _ = terminate.recv() => break,
            _ = interrupt.recv() => break,
            () = app.drain_requested() => break,
        }
    }
    // A second signal ends the program at once; the drain that it cuts short has nothing to save.
    let drained = tokio::select! {
        drained = app.drain() => drained,
        _ = terminate.recv() => app.cut_off(),
        _ = interrupt.recv() => app.cut_off(),
    };
    match drained {
        Drained::Cleanly => ExitCode::SUCCESS,
        Drained::CutOff => ExitCode::from(CUT_OFF),
    }
}

async fn check(args: RunArgs) -> ExitCode {
    match load(args) {
        Ok(config) => {
            if let Err(errors) = app::check(&config).await {
                return fail(BAD_CONFIGURATION, &errors);
            }
            say(&mut std::io::stdout(), &format!("the configuration is valid\n{config}"));
            ExitCode::SUCCESS
        }
        Err(code) => code,
    }
}

fn add_user(args: &UserAddArgs) -> ExitCode {
    match user_add::add(args, user_add::ask) {
        Ok(added) => {
            say(&mut std::io::stdout(), &added.to_string());
            ExitCode::SUCCESS
        }
        Err(error) => fail(FAILED, &error),
    }
}

async fn sandbox(args: SandboxArgs) -> ExitCode {
    let options = SandboxOptions {
        clients: args.clients,
        duration: args.duration,
        members: usize::from(args.members),
        mongod: args.mongod.clone(),
        terminal: std::io::stdout().is_terminal(),
        ..SandboxOptions::default()
    };
    if let Err(error) = rlimit::increase_nofile_limit(u64::MAX) {
        tracing::warn!(%error, "cannot raise the limit of open files");
    }
    let mut out = std::io::stdout();
    match sandbox::run(options, &mut out, |uri| trial::start(uri, args)).await {
        Ok(summary) if summary.passed() => ExitCode::SUCCESS,
        Ok(_) => ExitCode::from(FAILED),
        Err(error) => fail(FAILED, &error),
    }
}

fn fail(code: u8, error: &dyn std::fmt::Display) -> ExitCode {
    say(&mut std::io::stderr(), &format!("mongomux: {error}"));
    ExitCode::from(code)
}

fn say(out: &mut dyn Write, text: &str) {
    // With nowhere to write to there is nobody to tell.
    drop(writeln!(out, "{text}"));
}
