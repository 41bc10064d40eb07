//! The rules of a listener that are in force, which an operator changes while clients work.

use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};

use crate::command::rules::judge;
use crate::command::{Command, Forbidden};
use crate::config::Rules;
use crate::upstream::pool::lock;
use crate::wire::Frame;

/// The rules of one listener.
#[derive(Debug, Default)]
pub struct RulesInForce {
    /// False where everything is allowed, which is all that most commands ask.
    any: AtomicBool,
    rules: Mutex<Arc<Rules>>,
}

impl RulesInForce {
    /// From the configuration.
    pub fn new(rules: Rules) -> Arc<Self> {
        Arc::new(Self { any: AtomicBool::new(!rules.is_empty()), rules: Mutex::new(Arc::new(rules)) })
    }

    /// Those in force now.
    pub fn current(&self) -> Arc<Rules> {
        lock(&self.rules).clone()
    }

    /// Puts what `change` makes of them in force, from the next command on.
    pub fn change(&self, change: impl FnOnce(&mut Rules)) -> Arc<Rules> {
        let mut rules = lock(&self.rules);
        let mut changed = Rules::clone(&rules);
        change(&mut changed);
        *rules = Arc::new(changed);
        self.any.store(!rules.is_empty(), Ordering::Release);
        rules.clone()
    }

    /// The rule that keeps a command from going upstream; `None` for almost all.
    pub(super) fn forbid(&self, command: &Command, frame: &Frame) -> Option<Forbidden> {
        if !self.any.load(Ordering::Acquire) {
            return None;
        }
        judge(&self.current(), command, frame).err()
    }
}
