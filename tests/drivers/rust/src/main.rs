//! The driver scenario for the `mongodb` crate: each check prints `ok NAME`, `FAIL NAME: reason` or `n/a NAME: why`.
//!
//! ```text
//! drivers-rust URI [--view sharded|replicaset|loadbalanced] [--compressor NAME] [--only NAME,...]
//! ```

mod cursors;
mod data;
mod harness;
mod limits;
mod sessions;
mod streams;
mod visitor;

use std::process::ExitCode;
use std::time::Duration;

use futures_util::future::{FutureExt, LocalBoxFuture};

use harness::{Lacking, Result, Stage};

/// Of one check. A transaction alone may start over for 120 s.
const LONGEST: Duration = Duration::from_secs(30);

macro_rules! checks {
    ($stage:ident, $($module:ident: $($name:ident)+;)+) => {
        vec![$($((stringify!($name), $module::$name($stage).boxed_local()),)+)+]
    };
}

fn checks(s: &Stage) -> Vec<(&'static str, LocalBoxFuture<'_, Result>)> {
    checks! { s,
        data: connect compression crud catalog bulk_write bulk_write_client batches;
        cursors: cursor cursor_close cursor_timeout_free aggregate aggregate_out collation explain let_and_comment hint
            list_cursors kill_cursors tailable;
        sessions: read_options read_preferences causal_reads sessions snapshot_reads transaction_commit
            transaction_abort transaction_conflict transaction_cursor transaction_errors;
        streams: change_stream change_stream_resume change_stream_many;
        limits: large_document large_bulk gridfs unacknowledged_write stable_api max_time write_concern
            retryable_reads retryable_writes error_codes commands concurrency monitoring_quiet view close;
    }
}

#[tokio::main]
async fn main() -> ExitCode {
    let mut arguments = std::env::args().skip(1);
    let uri = arguments.next().expect("usage: drivers-rust URI [--view VIEW] [--compressor NAME] [--only NAME,...]");
    if uri == "visit" {
        return match visitor::visit().await {
            Ok(()) => ExitCode::SUCCESS,
            Err(error) => {
                eprintln!("{error}");
                ExitCode::FAILURE
            }
        };
    }
    let mut view = "sharded".to_owned();
    let mut compressor = None;
    let mut only: Option<String> = None;
    while let (Some(name), Some(value)) = (arguments.next(), arguments.next()) {
        match name.as_str() {
            "--view" => view = value,
            "--compressor" => compressor = Some(value),
            "--only" => only = Some(value),
            _ => panic!("there is no {name}"),
        }
    }
    let stage = Stage::open(&uri, view, compressor).await.expect("the address can be read");
    let mut failed = false;
    for (name, check) in checks(&stage) {
        if only
            .as_ref()
            .is_some_and(|only| !["connect", "close"].contains(&name) && !only.split(',').any(|o| o == name))
        {
            continue;
        }
        let outcome = match tokio::time::timeout(LONGEST, check).await {
            Ok(outcome) => outcome,
            Err(_) => Err(format!("not done after {LONGEST:?}").into()),
        };
        match outcome {
            Ok(()) => println!("ok {name}"),
            Err(error) if error.is::<Lacking>() => println!("n/a {name}: {error}"),
            Err(error) => {
                failed = true;
                let reason: String = error.to_string().split_whitespace().collect::<Vec<_>>().join(" ");
                println!("FAIL {name}: {}", reason.chars().take(400).collect::<String>());
                eprintln!("{name}: {error:?}");
                if name == "connect" {
                    break;
                }
            }
        }
    }
    println!("finished");
    ExitCode::from(u8::from(failed))
}
