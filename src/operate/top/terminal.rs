//! The terminal that `top` draws on, and gives back as it was, however it ends: by a key, a signal, an error or a panic.

use std::io::{self, IsTerminal as _};
use std::mem::ManuallyDrop;

use crossterm::event::{Event, EventStream, KeyEvent};
use futures_util::StreamExt as _;
use ratatui::{DefaultTerminal, Frame};
use tokio::signal::unix::{Signal, SignalKind, signal};

/// Drawn on while it lives. A panic restores it before it says what has happened: ratatui's hook does that.
pub(super) struct Terminal {
    /// Never dropped: that would complain where the terminal has gone, to where there may be nobody to complain to either.
    inner: ManuallyDrop<DefaultTerminal>,
    events: EventStream,
    /// What ends programs, and would leave the terminal as it is.
    signals: [Signal; 4],
}

/// What somebody wants.
pub(super) enum Wish {
    /// This key means.
    Key(KeyEvent),
    /// The terminal has another size, or something else to be drawn anew for.
    Redraw,
    /// The end.
    End,
}

impl Terminal {
    /// Takes the terminal.
    ///
    /// # Errors
    /// There is none.
    pub(super) fn open() -> io::Result<Self> {
        use SignalKind as Kind;
        // What would be written there otherwise is no output of any use.
        if !io::stdout().is_terminal() {
            return Err(io::Error::other("the standard output is none"));
        }
        let [first, second, third, fourth] =
            [Kind::terminate(), Kind::interrupt(), Kind::hangup(), Kind::quit()].map(signal);
        let signals = [first?, second?, third?, fourth?];
        let inner = match ratatui::try_init() {
            Ok(inner) => ManuallyDrop::new(inner),
            Err(error) => {
                // Half of it may have been done.
                drop(ratatui::try_restore());
                return Err(error);
            }
        };
        Ok(Self { inner, events: EventStream::new(), signals })
    }

    /// Draws.
    ///
    /// # Errors
    /// The terminal has gone.
    pub(super) fn draw(&mut self, draw: impl FnOnce(&mut Frame<'_>)) -> io::Result<()> {
        self.inner.draw(draw).map(drop)
    }

    /// Waits for a key or a signal.
    ///
    /// # Cancel safety
    /// Safe.
    ///
    /// # Errors
    /// The terminal has gone.
    pub(super) async fn wish(&mut self) -> io::Result<Wish> {
        let [terminate, interrupt, hangup, quit] = &mut self.signals;
        // Nothing is lost when an arm loses: each gives what has come the next time.
        tokio::select! {
            event = self.events.next() => match event {
                Some(Ok(Event::Key(key))) => Ok(Wish::Key(key)),
                Some(Ok(_)) => Ok(Wish::Redraw),
                Some(Err(error)) => Err(error),
                None => Ok(Wish::End),
            },
            _ = terminate.recv() => Ok(Wish::End),
            _ = interrupt.recv() => Ok(Wish::End),
            _ = hangup.recv() => Ok(Wish::End),
            _ = quit.recv() => Ok(Wish::End),
        }
    }
}

impl Drop for Terminal {
    fn drop(&mut self) {
        // A terminal that has gone needs nothing.
        drop((ratatui::try_restore(), self.inner.show_cursor()));
    }
}
