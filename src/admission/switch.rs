//! The orders of an operator about the commands of a cluster, which whoever waits is told of.

use std::sync::atomic::{AtomicBool, Ordering};

use tokio::sync::watch;

use super::mode::{Mode, Orders};
use super::pauses::Pauses;

/// The orders in force.
#[derive(Debug)]
pub struct ModeSwitch {
    /// What almost every command asks, without a lock.
    normal: AtomicBool,
    orders: watch::Sender<Orders>,
}

impl Default for ModeSwitch {
    fn default() -> Self {
        Self { normal: AtomicBool::new(true), orders: watch::Sender::default() }
    }
}

impl ModeSwitch {
    /// True while nothing is held or refused.
    pub fn is_normal(&self) -> bool {
        self.normal.load(Ordering::Acquire)
    }

    /// The mode in force.
    pub fn mode(&self) -> Mode {
        self.orders.borrow().mode
    }

    /// Asks the orders in force; `ask` gives none.
    pub fn ask<T>(&self, ask: impl FnOnce(&Orders) -> T) -> T {
        ask(&self.orders.borrow())
    }

    /// Puts another mode in force and wakes who waits for one; returns the one before.
    pub fn switch(&self, to: Mode) -> Mode {
        self.change(|orders| std::mem::replace(&mut orders.mode, to))
    }

    /// Changes what is paused, and wakes who waits for that.
    pub fn pauses<T>(&self, change: impl FnOnce(&mut Pauses) -> T) -> T {
        self.change(|orders| change(&mut orders.pauses))
    }

    fn change<T>(&self, change: impl FnOnce(&mut Orders) -> T) -> T {
        let mut told = None;
        // Both under the lock of the watch, so that two orders at once leave them agreeing.
        self.orders.send_modify(|orders| {
            told = Some(change(orders));
            self.normal.store(orders.is_normal(), Ordering::Release);
        });
        told.expect("a watch is changed whoever listens")
    }

    /// For waiting for other orders.
    pub fn subscribe(&self) -> watch::Receiver<Orders> {
        self.orders.subscribe()
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
        assert!(!switch.is_normal() && switch.mode() == Mode::ReadOnly);
        told.changed().await.unwrap();
        assert_eq!(told.borrow_and_update().mode, Mode::ReadOnly);
        switch.pauses(|pauses| pauses.pause(None, None)).unwrap();
        assert!(told.has_changed().unwrap());
        assert_eq!(switch.switch(Mode::Normal), Mode::ReadOnly);
        assert!(!switch.is_normal(), "paused still");
        switch.pauses(|pauses| pauses.resume(None));
        assert!(switch.is_normal());
    }
}
