//! Room to work in, for as long as a message takes: of thousands of clients few are at work at once, and what the path of a
//! command needs is several times what an idle client does.
//!
//! A desk is made once and used again: a client is put on its tray with the message that has come, and taken from there with
//! the message served. So taking a desk costs no allocation, and the room itself is never moved.

use std::pin::Pin;
use std::sync::{Arc, Mutex};
use std::task::{Context, Poll};

use super::leaving::ClientStream;
use super::registry::{AtWork, Registry};
use super::session::{Served, Session};
use super::socket::{Incoming, ReadEnd};
use crate::config::limits::MAX_FREE_DESKS;
use crate::upstream::pool::lock;

/// A place where one client at a time is served. Dropping it drops who is at work there.
pub(super) struct Desk<S> {
    work: Pin<Box<dyn Future<Output = ()> + Send>>,
    tray: Arc<Mutex<Option<Tray<S>>>>,
    at_work: Arc<AtWork>,
}

/// What lies on a desk before and after the work.
enum Tray<S> {
    Job(Box<Session<S>>, Result<Incoming, ReadEnd>),
    Done(Served<S>),
}

impl<S: ClientStream> Desk<S> {
    fn new(registry: &Registry) -> Self {
        let tray = Arc::new(Mutex::new(None));
        Self { work: Box::pin(work(tray.clone())), tray, at_work: registry.desk() }
    }

    /// Serves the message that lies on the tray.
    pub(super) fn poll(&mut self, context: &mut Context<'_>) -> Poll<Served<S>> {
        // It never ends.
        let _pending = self.work.as_mut().poll(context);
        match lock(&self.tray).take_if(|tray| matches!(tray, Tray::Done(_))) {
            Some(Tray::Done(served)) => Poll::Ready(served),
            _ => Poll::Pending,
        }
    }
}

/// Serves one message after the other. Whoever puts one on the tray polls.
async fn work<S: ClientStream>(tray: Arc<Mutex<Option<Tray<S>>>>) {
    loop {
        let (session, message) =
            std::future::poll_fn(|_| match lock(&tray).take_if(|tray| matches!(tray, Tray::Job(..))) {
                Some(Tray::Job(session, message)) => Poll::Ready((session, message)),
                _ => Poll::Pending,
            })
            .await;
        let served = session.serve(message).await;
        *lock(&tray) = Some(Tray::Done(served));
    }
}

/// Those that nobody works at; [`MAX_FREE_DESKS`] at most.
pub struct Desks<S> {
    free: Mutex<Vec<Desk<S>>>,
}

impl<S> Default for Desks<S> {
    fn default() -> Self {
        Self { free: Mutex::default() }
    }
}

impl<S: ClientStream> Desks<S> {
    /// Takes a desk for a client and its message.
    pub(super) fn take(&self, session: Box<Session<S>>, message: Result<Incoming, ReadEnd>) -> Desk<S> {
        let free = lock(&self.free).pop();
        let desk = free.unwrap_or_else(|| Desk::new(&session.shared.bounds.registry));
        desk.at_work.begins(session.number());
        *lock(&desk.tray) = Some(Tray::Job(session, message));
        desk
    }

    /// The work is done.
    pub(super) fn give_back(&self, desk: Desk<S>) {
        desk.at_work.ends();
        let mut free = lock(&self.free);
        if free.len() < MAX_FREE_DESKS {
            free.push(desk);
        }
    }
}
