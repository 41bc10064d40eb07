//! The commands for whoever operates a running proxy: `stats`, `top`, `admin` and `diag`.
//!
//! They know the proxy by its admin port alone, as anybody else does. [`port`] finds that and asks there; what came is put into
//! words and tables by files that do no I/O; the commands themselves put both together and leave printing to `main`.

pub mod diag;
mod events;
pub mod order;
pub mod page;
pub mod port;
mod quiet;
mod readable;
mod series;
pub mod stats;
mod table;
pub mod top;

use std::io::{self, IsTerminal as _};

pub use page::Page;
pub use port::{AskError, Port};

/// How what is printed may look.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Look {
    /// Columns; `None` where lines may have any length, as in a file.
    pub width: Option<usize>,
    /// Whether colours are understood, and wanted.
    pub colour: bool,
}

impl Look {
    /// Of the standard output. No colours go into files and pipes, nor where `NO_COLOR` asks for none.
    pub fn of_stdout() -> Self {
        let terminal = io::stdout().is_terminal();
        let unwanted = std::env::var_os("NO_COLOR").is_some_and(|value| !value.is_empty());
        let width = terminal.then(crossterm::terminal::size).and_then(Result::ok).map(|(columns, _)| columns.into());
        Self { width, colour: terminal && !unwanted }
    }
}
