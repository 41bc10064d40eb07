//! The `mongomux` program: flags, logs, runtime, run, exit code.

use std::io::{IsTerminal, Write};
use std::process::ExitCode;

use mongomux::app::{self, App, Drained, StartError, connect, service, user_add};
use mongomux::cli::operate::{AdminArgs, DiagArgs, PortArgs, StatsArgs, TopArgs};
use mongomux::cli::{CheckArgs, Cli, Command, RunArgs, SandboxArgs, UserAddArgs, UserCommand};
use mongomux::client::GivenSockets;
use mongomux::config::{Config, ConfigErrors, system};
use mongomux::operate::{Look, Port, diag, order, page, stats, top};
use mongomux::sandbox::{self, SandboxOptions};
use mongomux::telemetry::logs;
use mongomux::trial;
use tokio::runtime::Builder;
use tokio::signal::unix::{SignalKind, signal};

const FAILED: u8 = 1;
const BAD_CONFIGURATION: u8 = 2;
const CUT_OFF: u8 = 3;

fn main() -> ExitCode {
    let cli = Cli::from_process();
    if let Err(error) = logs::init(cli.log, cli.log_format) {
        return fail(FAILED, &error);
    }
    let code = match cli.command {
        Command::Run(args) => match load(&args) {
            Ok(config) => match GivenSockets::of_systemd() {
                Ok(given) => on_threads(config.worker_threads, run(config, given, args)),
                Err(error) => fail(FAILED, &format!("cannot use the sockets of LISTEN_FDS: {error}")),
            },
            Err(code) => code,
        },
        Command::Check(args) => on_threads(1, check(args)),
        Command::Stats(args) => on_threads(1, show_stats(args)),
        Command::Top(args) => on_threads(1, show_top(args)),
        Command::Admin(args) => on_threads(1, give_order(args)),
        Command::Diag(args) => on_threads(1, diagnose(args)),
        Command::User(UserCommand::Add(args)) => add_user(&args),
        Command::Sandbox(args) => on_threads(1, sandbox(args)),
    };
    logs::tell_repeated_now();
    code
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

fn load(args: &RunArgs) -> Result<Config, ExitCode> {
    let attempt = args.attempt().map_err(|errors| fail(BAD_CONFIGURATION, &errors))?;
    if !attempt.mistakes.is_empty() {
        return Err(on_threads(1, async { fail(BAD_CONFIGURATION, &app::all_mistakes(attempt).await) }));
    }
    let (config, warnings) = attempt.sound().map_err(|errors| fail(BAD_CONFIGURATION, &errors))?;
    warnings.iter().for_each(|warning| tracing::warn!("{warning}"));
    Ok(config)
}

async fn run(config: Config, given: GivenSockets, args: RunArgs) -> ExitCode {
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
    // One that is told to end while it takes over leaves everything to the process before: to take over first and then to end would
    // leave nobody. Biased, as it may just have taken over.
    let started = tokio::select! {
        biased;
        started = App::start_or_take_over(config, given, Box::new(move || args.load())) => started,
        _ = terminate.recv() => return given_up(),
        _ = interrupt.recv() => return given_up(),
    };
    let (app, took_over) = match started {
        Ok(started) => started,
        // As `check` says it.
        Err(StartError::Files(errors)) => return fail(BAD_CONFIGURATION, &errors),
        Err(error @ (StartError::Listen(_) | StartError::Upgrade(_))) => return fail(FAILED, &error),
    };
    service::ready("accepting clients", took_over);
    loop {
        tokio::select! {
            _ = hangup.recv() => {
                service::reloading();
                // It has told what is wrong itself.
                drop(app.reload().await);
                service::ready("accepting clients", false);
            }
            _ = terminate.recv() => break,
            _ = interrupt.recv() => break,
            () = app.drain_requested() => break,
        }
    }
    // A service that another process goes on with does not stop: its manager would end both.
    if !app.is_relieved() {
        service::stopping();
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

/// Nobody was served yet.
fn given_up() -> ExitCode {
    tracing::info!("told to end before it has begun");
    ExitCode::SUCCESS
}

async fn check(args: CheckArgs) -> ExitCode {
    match checked(&args).await {
        Ok((said, code)) => {
            say(&mut std::io::stdout(), said.trim_end());
            code
        }
        Err(errors) if args.json => {
            say(&mut std::io::stdout(), &json(&serde_json::json!({"valid": false, "errors": errors.0})));
            ExitCode::from(BAD_CONFIGURATION)
        }
        Err(errors) => fail(BAD_CONFIGURATION, &errors),
    }
}

/// What is to be said about a configuration that is valid.
async fn checked(args: &CheckArgs) -> Result<(String, ExitCode), ConfigErrors> {
    let attempt = args.run.attempt()?;
    if !attempt.mistakes.is_empty() {
        return Err(app::all_mistakes(attempt).await);
    }
    let (config, warnings) = attempt.sound()?;
    warnings.iter().for_each(|warning| tracing::warn!("{warning}"));
    if args.connect {
        let walked = connect::connect(&config).await?;
        let code = if walked.passed() { ExitCode::SUCCESS } else { ExitCode::from(FAILED) };
        return Ok((if args.json { json(&walked) } else { walked.to_string() }, code));
    }
    app::check(&config).await?;
    let said = match (args.print, args.json) {
        (true, false) => config.effective.to_string(),
        (true, true) => json(&config.effective),
        (false, true) => {
            let warnings: Vec<String> = warnings.iter().map(ToString::to_string).collect();
            json(&serde_json::json!({"valid": true, "warnings": warnings}))
        }
        (false, false) => format!("the configuration is valid\n{config}"),
    };
    Ok((said, ExitCode::SUCCESS))
}

fn json(value: &impl serde::Serialize) -> String {
    serde_json::to_string_pretty(value).expect("nothing in it is no JSON")
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

fn port(args: &PortArgs) -> Result<Port, ExitCode> {
    Port::of(args).map_err(|error| fail(BAD_CONFIGURATION, &error))
}

async fn show_stats(args: StatsArgs) -> ExitCode {
    let port = match port(&args.port) {
        Ok(port) => port,
        Err(code) => return code,
    };
    let shown = async {
        if args.json {
            return port.get("/stats").await.map(|answer| page::json(&format!("{answer:#}")));
        }
        let look = Look::of_stdout();
        stats::ask(&port).await.map(|stats| stats::page(&stats, look).render(look.colour))
    };
    tell(shown.await)
}

async fn show_top(args: TopArgs) -> ExitCode {
    let port = match port(&args.port) {
        Ok(port) => port,
        Err(code) => return code,
    };
    let TopArgs { interval, count, json, .. } = args;
    let shown = match json {
        true => top::objects(&port, interval, count, &mut std::io::stdout()).await,
        false => top::live(&port, interval, count, Look::of_stdout()).await,
    };
    match shown {
        // As the other commands do: who reads no further has seen enough.
        Err(top::TopError::Write(error)) if error.kind() == std::io::ErrorKind::BrokenPipe => ExitCode::SUCCESS,
        shown => shown.map_or_else(|error| fail(FAILED, &error), |()| ExitCode::SUCCESS),
    }
}

async fn give_order(args: AdminArgs) -> ExitCode {
    let port = match port(&args.port) {
        Ok(port) => port,
        Err(code) => return code,
    };
    let answer = order::carry_out(&port, &args.action).await;
    tell(answer.map(|answer| match args.json {
        true => page::json(&format!("{answer:#}")),
        false => {
            let look = Look::of_stdout();
            order::page(&args.action, &answer, look).render(look.colour)
        }
    }))
}

async fn diagnose(args: DiagArgs) -> ExitCode {
    let port = match port(&args.port) {
        Ok(port) => port,
        Err(code) => return code,
    };
    // Before anything is asked.
    let file = match args.output.as_deref().map(diag::create).transpose() {
        Ok(file) => file,
        Err(error) => return fail(FAILED, &format!("{}: {error}", args.output.unwrap_or_default().display())),
    };
    let bundle = diag::gather(&port, args.server).await;
    let look = if file.is_some() { Look { width: None, colour: false } } else { Look::of_stdout() };
    let text =
        if args.json { page::json(&format!("{:#}", bundle.json())) } else { bundle.page(look).render(look.colour) };
    match file {
        Some(mut file) => {
            if let Err(error) = writeln!(file, "{text}") {
                return fail(FAILED, &error);
            }
        }
        None => say(&mut std::io::stdout(), &text),
    }
    if bundle.is_alone() { ExitCode::from(FAILED) } else { ExitCode::SUCCESS }
}

/// Prints an answer, or why there is none.
fn tell(answer: Result<String, impl std::fmt::Display>) -> ExitCode {
    match answer {
        Ok(text) => {
            say(&mut std::io::stdout(), &text);
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
    // It may have the words of a server in it, or of whoever answers at the admin port.
    say(&mut std::io::stderr(), &page::harmless(&format!("mongomux: {error}")));
    ExitCode::from(code)
}

fn say(out: &mut dyn Write, text: &str) {
    // With nowhere to write to there is nobody to tell.
    drop(writeln!(out, "{text}"));
}
