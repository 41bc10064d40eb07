//! `mongomux top`: the same as `stats`, live. Each interval it asks once, and shows what has happened since.

mod model;
mod moment;
mod terminal;
mod view;

use std::io::{self, Write};
use std::time::Duration;

use tokio::time::{Instant, sleep_until};

use self::model::{Model, Next};
use self::moment::{Frame, Moment};
use self::terminal::{Terminal, Wish};
use self::view::Paint;
use super::port::{AskError, Port};
use super::series::Scrape;
use super::{Look, page, stats};

/// Why it ended otherwise than by a key.
#[derive(Debug, thiserror::Error)]
pub enum TopError {
    /// The proxy does not answer; of `--json` the last time that it was asked.
    #[error(transparent)]
    Ask(#[from] AskError),
    /// There is nothing to draw on.
    #[error("cannot draw on the terminal: {0}; `--json` needs none, nor does `mongomux stats`")]
    Terminal(io::Error),
    /// Nobody reads any more.
    #[error("cannot write: {0}")]
    Write(io::Error),
}

/// Draws until somebody wants the end, or for so many intervals.
///
/// # Errors
/// [`TopError`]
pub async fn live(port: &Port, interval: Duration, count: Option<u64>, look: Look) -> Result<(), TopError> {
    // Before the terminal is touched, so that there is something to read when it cannot be had.
    let mut last = take(port).await?;
    let mut model = Model::default();
    let mut terminal = Terminal::open().map_err(TopError::Terminal)?;
    let (address, paint) = (port.address().to_string(), Paint { colour: look.colour });
    let mut asking = Box::pin(take_at(port, last.at + interval));
    let mut left = count;
    while left != Some(0) {
        terminal.draw(|screen| view::draw(screen, &model, &address, paint)).map_err(TopError::Terminal)?;
        tokio::select! {
            taken = &mut asking => {
                let frame = taken.map(|moment| {
                    let frame = Frame::between(&last, &moment, now());
                    last = moment;
                    frame
                });
                model.take(frame.map_err(|error| error.to_string()));
                left = left.map(|left| left - 1);
                asking = Box::pin(take_at(port, Instant::now() + interval));
            }
            // A question that goes on is asked to its end meanwhile.
            wish = terminal.wish() => match wish.map_err(TopError::Terminal)? {
                Wish::Key(key) if model.key(key) == Next::Quit => break,
                Wish::Key(_) | Wish::Redraw => {}
                Wish::End => break,
            }
        }
    }
    Ok(())
}

/// Writes one JSON object per interval, without end or so many: what has happened in it, or why that is not known.
///
/// # Errors
/// [`TopError`]
pub async fn objects(port: &Port, interval: Duration, count: Option<u64>, out: &mut dyn Write) -> Result<(), TopError> {
    let mut last = take(port).await?;
    let mut failed = None;
    let mut written = 0;
    while count.is_none_or(|count| written < count) {
        let taken = take_at(port, Instant::now() + interval).await;
        let line = match taken {
            Ok(moment) => {
                let frame = Frame::between(&last, &moment, now());
                (last, failed) = (moment, None);
                serde_json::to_string(&frame).expect("numbers and texts are JSON")
            }
            Err(error) => {
                let line = serde_json::json!({"time": now(), "error": error.to_string()}).to_string();
                failed = Some(error);
                line
            }
        };
        writeln!(out, "{}", page::json(&line)).and_then(|()| out.flush()).map_err(TopError::Write)?;
        written += 1;
    }
    failed.map_or(Ok(()), |error| Err(error.into()))
}

async fn take_at(port: &Port, at: Instant) -> Result<Moment, AskError> {
    sleep_until(at).await;
    take(port).await
}

async fn take(port: &Port) -> Result<Moment, AskError> {
    let stats = stats::ask(port).await?;
    let scrape = Scrape::parse(&port.text("/metrics").await?);
    // An older proxy tells of none.
    let events = port.get("/events").await.ok();
    Ok(Moment { at: Instant::now(), stats, scrape, events })
}

fn now() -> String {
    bson::DateTime::now().try_to_rfc3339_string().unwrap_or_default()
}
