//! The switch between modes, which whoever waits is told of.

use std::sync::atomic::{AtomicBool, Ordering};

use tokio::sync::watch;

use super::mode::Mode;

/// The mode in force.
#[derive(Debug)]
pub struct ModeSwitch {
    /// What almost every command asks, without a lock.
    normal: AtomicBool,
    mode: watch::Sender<Mode>,
}

impl Default for ModeSwitch {
    fn default() -> Self {
        Self { normal: AtomicBool::new(true), mode: watch::Sender::default() }
    }
}

impl ModeSwitch {
    /// True while nothing is held or refused.
    pub fn is_normal(&self) -> bool {
        self.normal.load(Ordering::Acquire)
    }

    /// The mode in force.
    pub fn mode(&self) -> Mode {
        *self.mode.borrow()
    }

    /// Puts another mode in force and wakes who waits for one; returns the one before.
    pub fn switch(&self, to: Mode) -> Mode {
        let mut before = to;
        // Both under the lock of the watch, so that two orders at once leave them agreeing.
        self.mode.send_modify(|mode| {
            before = std::mem::replace(mode, to);
            self.normal.store(to == Mode::Normal, Ordering::Release);
        });
        before
    }

    /// For waiting for another mode.
    pub fn subscribe(&self) -> watch::Receiver<Mode> {
        self.mode.subscribe()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn a_switch_is_seen_at_once_and_wakes_who_waits() {
        let switch = ModeSwitch::default();
        assert!(switch.is_normal() && switch.mode() == Mode::Normal);
        let mut told = switch.subscribe();
        assert_eq!(switch.switch(Mode::ReadOnly), Mode::Normal);
        assert!(!switch.is_normal());
        told.changed().await.unwrap();
        assert_eq!(*told.borrow_and_update(), Mode::ReadOnly);
        assert_eq!(switch.switch(Mode::Normal), Mode::ReadOnly);
        assert!(switch.is_normal() && told.has_changed().unwrap());
    }
}
