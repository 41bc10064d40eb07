//! One connection as a server sees it: a request, what becomes of it, a reply; and the network at its worst in between.

use std::io;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use bson::Document;
use tokio::io::AsyncWriteExt;
use tokio::time::{Instant, sleep, sleep_until};

use crate::message::{self, MORE_TO_COME, Message, NoMessage};
use crate::network::{End, Far};
use crate::set::{Request, Set, error};

/// What becomes of a reply.
#[derive(Debug, Clone, Copy, PartialEq)]
enum Mangled {
    No,
    /// That to another request comes instead.
    OtherId,
    /// More follows.
    More,
    /// Half of it, and the end.
    Half,
    /// Half of it, and silence.
    Stuck,
    /// No message at all.
    Garbage,
    /// A byte now and then.
    Drip,
}

/// Connects the proxy to a member, as the system does it, whatever the process is at.
pub(crate) async fn connect(set: &Arc<Set>, number: usize) -> io::Result<End> {
    let member = &set.members[number];
    sleep(set.network.latency()).await;
    let unreachable_until = member.state().unreachable_until;
    if unreachable_until > Instant::now() {
        sleep_until(unreachable_until).await;
        return Err(io::ErrorKind::TimedOut.into());
    }
    if !member.state().up {
        return Err(io::ErrorKind::ConnectionRefused.into());
    }
    let (near, far) = set.network.link(Far::Server(number));
    check_bounds(set, number);
    let (start, made) = (member.state().start, Instant::now());
    let of_set = set.clone();
    set.tasks.spawn("server connection", async move { serve(&of_set, number, start, made, far).await });
    Ok(near)
}

fn check_bounds(set: &Set, number: usize) {
    let held = set.network.held_by_proxy(Far::Server(number));
    if held > set.bounds.of_server {
        set.truth.broken(format_args!("{held} connections to server {number}, {} may be", set.bounds.of_server));
    }
    let all: usize = (0..set.members.len()).map(|member| set.network.held_by_proxy(Far::Server(member))).sum();
    if set.bounds.of_all.is_some_and(|most| all > most) {
        set.truth.broken(format_args!("{all} connections to all servers, {:?} may be", set.bounds.of_all));
    }
}

async fn serve(set: &Set, number: usize, start: u64, made: Instant, mut end: End) {
    let member = &set.members[number];
    let gone = || member.state().start != start;
    let mut cursor = None;
    loop {
        let request = match message::read(&mut end).await {
            Ok(request) => {
                set.truth.facts().cursors_delivered.extend(cursor.take());
                request
            }
            Err(NoMessage::Closed | NoMessage::Broken) => return,
            Err(NoMessage::Malformed(what)) => {
                set.truth.broken(format_args!("server {number} got no message: {what}"));
                return;
            }
        };
        member.thaw().await;
        if gone() {
            return;
        }
        set.check_generation(number, made, &request.document);
        let wants_reply = request.flags & MORE_TO_COME == 0;
        if wants_reply && end.has_bytes() {
            set.truth.broken(format_args!("server {number} got a request before the reply to another"));
        }
        let Some(reply) = carry_out(set, number, &request, &end, &gone).await else { return };
        if wants_reply && end.has_bytes() {
            set.truth.broken(format_args!("server {number} got a request while it was busy with another"));
        }
        cursor = cursor_of(&reply);
        if wants_reply && !send(set, &request, reply, &mut end).await {
            return;
        }
    }
}

/// The cursor that a reply tells of.
pub(crate) fn cursor_of(reply: &Document) -> Option<i64> {
    let id = reply.get_document("cursor").and_then(|cursor| cursor.get_i64("id"));
    id.ok().filter(|id| *id != 0)
}

/// The reply; `None` when the process has ended meanwhile.
async fn carry_out(
    set: &Set,
    number: usize,
    message: &Message,
    end: &End,
    gone: &impl Fn() -> bool,
) -> Option<Document> {
    let request = Request::new(&message.document);
    let member = &set.members[number];
    if let Some(token) = request.token {
        set.truth.note(format_args!("server {number} has {} {token}", request.name));
    } else {
        set.truth.note(format_args!("server {number} has {} of the proxy", request.name));
    }
    if let Some(token) = request.token {
        *set.truth.facts().delivered.entry(token).or_default() += 1;
    }
    let greets = matches!(request.name, "hello" | "isMaster" | "ismaster" | "ping");
    let chance = &set.chance;
    let before = match chance.range(0..100) {
        _ if greets => 0..2,
        _ if let Ok(delay) = message.document.get_i32("delayMS") => delay as u64..delay as u64 + 1,
        _ if set.awaits_data(number, &request) => 200..1_000,
        0..85 => 0..15,
        85..97 => 20..400,
        _ => 400..4_000,
    };
    if !set.check_out_session(number, &request, end).await {
        return None;
    }
    let was_primary = member.state().primary;
    sleep(chance.ms(before)).await;
    member.thaw().await;
    if gone() {
        set.check_in_session(number, &request);
        return None;
    }
    let interrupted = was_primary && !member.state().primary;
    let mut reply = match chance.range(0..400) {
        // What the proxy does for itself it tries once.
        _ if request.token.is_none() => set.execute(number, &request),
        // A write that changes many may have changed some.
        _ if interrupted && matches!(request.name, "insert" | "update") => {
            if request.name == "update" && chance.percent(50) {
                set.execute(number, &request);
            }
            set.state_error(number, 11602, "InterruptedDueToReplStateChange", &request)
        }
        0 => error(462, "IngressRequestRateLimitExceeded", &["SystemOverloadedError", "RetryableError"]),
        1 => error(8000, "AtlasError", &[]),
        2 => {
            set.end_by_error(number, &request);
            set.state_error(number, 91, "ShutdownInProgress", &request)
        }
        3 if request.name != "getMore" => {
            set.end_by_error(number, &request);
            error(50, "MaxTimeMSExpired", &[])
        }
        _ => set.execute(number, &request),
    };
    set.check_in_session(number, &request);
    if let Some(token) = request.token {
        reply.insert("token", token);
    }
    if chance.percent(10) && !greets {
        sleep(chance.ms(0..200)).await;
    }
    member.thaw().await;
    (!gone()).then_some(reply)
}

/// True when the connection goes on.
async fn send(set: &Set, request: &Message, reply: Document, end: &mut End) -> bool {
    let chance = &set.chance;
    let mangled = if chance.percent(set.mangled_percent.load(Ordering::Relaxed)) {
        use Mangled::{Drip, Garbage, Half, More, OtherId, Stuck};
        let how = chance.pick(&[OtherId, More, Half, Stuck, Garbage, Drip]);
        set.truth.note(format_args!("a reply is mangled: {how:?}"));
        how
    } else {
        Mangled::No
    };
    let other = set.last_reply(&reply);
    let mut bytes = match other.filter(|_| mangled == Mangled::OtherId) {
        Some(other) => message::encode(1, request.request_id.wrapping_add(1), 0, &other),
        None => message::encode(1, request.request_id, 0, &reply),
    };
    let half = bytes.len() / 2;
    let sent = match mangled {
        Mangled::No | Mangled::OtherId => end.write_all(&bytes).await,
        Mangled::More => {
            bytes.extend_from_within(..half);
            end.write_all(&bytes).await
        }
        Mangled::Half => {
            end.write_all(&bytes[..half]).await.unwrap_or_default();
            return false;
        }
        Mangled::Stuck => {
            end.write_all(&bytes[..half]).await.unwrap_or_default();
            // Whoever has sent more behind it waits as long: it is over when all is to be well.
            sleep(Duration::from_secs(30)).await;
            return false;
        }
        Mangled::Garbage => {
            bytes[..4].copy_from_slice(&chance.bytes::<4>());
            end.write_all(&bytes).await.unwrap_or_default();
            // It may be the head of a message that is much larger.
            sleep(chance.ms(0..30_000)).await;
            return false;
        }
        Mangled::Drip => {
            for byte in bytes {
                if end.write_all(&[byte]).await.is_err() {
                    return false;
                }
                sleep(Duration::from_millis(2)).await;
            }
            Ok(())
        }
    };
    sent.is_ok()
}
