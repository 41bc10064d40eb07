//! What a service manager is told: systemd, or whatever else listens behind `NOTIFY_SOCKET`. Without one, nobody is told.

use std::io;
use std::time::Duration;

use sd_notify::NotifyState;

use crate::tasks::Tasks;

/// Pings within the time after which the program is taken for hung: one of them may be late.
const PINGS_PER_TIMEOUT: u32 = 3;

/// The service is there for its clients. With `took_over`, this process is the one to watch from now on.
pub fn ready(status: &str, took_over: bool) {
    let mut states = vec![NotifyState::Ready, NotifyState::Status(status)];
    if took_over {
        states.push(NotifyState::MainPid(std::process::id()));
    }
    tell(&states);
}

/// The configuration is about to be read again; [`ready`] says when that is done.
pub fn reloading() {
    match NotifyState::monotonic_usec_now() {
        Ok(now) => tell(&[NotifyState::Reloading, now]),
        Err(error) => not_told(&error),
    }
}

/// The program ends.
pub fn stopping() {
    tell(&[NotifyState::Stopping, NotifyState::Status("draining")]);
}

/// In words.
pub fn status(text: &str) {
    tell(&[NotifyState::Status(text)]);
}

/// Where the manager asks for it (`WATCHDOG_USEC`), it hears of us in time as long as the runtime gets to its tasks: one that
/// is stuck does not, and is started again.
pub fn keep_alive(tasks: &Tasks) {
    let Some(timeout) = sd_notify::watchdog_enabled().filter(|timeout| *timeout > Duration::ZERO) else { return };
    let cancelled = tasks.clone();
    tasks.spawn("watchdog", async move {
        let mut due = tokio::time::interval(timeout / PINGS_PER_TIMEOUT);
        loop {
            // Nothing is lost when an arm loses: a tick that is due stays due.
            tokio::select! {
                _ = due.tick() => tell(&[NotifyState::Watchdog]),
                () = cancelled.cancelled() => return,
            }
        }
    });
}

fn tell(states: &[NotifyState<'_>]) {
    if let Err(error) = sd_notify::notify(states) {
        not_told(&error);
    }
}

fn not_told(error: &io::Error) {
    tracing::warn!(%error, "cannot tell the service manager");
}
