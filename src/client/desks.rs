//! Room to work in, for as long as a message takes: of thousands of clients few are at work at once, and what the path of a
//! command needs is several times what an idle client does.
//!
//! A desk is an allocation that is used again, so that taking one costs none.

use std::sync::Mutex;

use tokio_util::sync::ReusableBoxFuture;

use super::session::Served;
use crate::config::limits::MAX_FREE_DESKS;
use crate::upstream::pool::lock;

/// A client at work on one message. Dropping it ends the client with it.
pub(super) type Desk<S> = ReusableBoxFuture<'static, Served<S>>;

/// Those that nobody works at; [`MAX_FREE_DESKS`] at most.
pub struct Desks<S> {
    free: Mutex<Vec<Desk<S>>>,
}

impl<S> Default for Desks<S> {
    fn default() -> Self {
        Self { free: Mutex::default() }
    }
}

impl<S> Desks<S> {
    /// Takes a desk for this work.
    pub(super) fn take(&self, work: impl Future<Output = Served<S>> + Send + 'static) -> Desk<S> {
        let free = lock(&self.free).pop();
        match free {
            Some(mut desk) => {
                desk.set(work);
                desk
            }
            None => Desk::new(work),
        }
    }

    /// The work is done.
    pub(super) fn give_back(&self, desk: Desk<S>) {
        let mut free = lock(&self.free);
        if free.len() < MAX_FREE_DESKS {
            free.push(desk);
        }
    }
}
