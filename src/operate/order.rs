//! `mongomux admin`: what each action asks of the admin port. No I/O here but the question.

use percent_encoding::{AsciiSet, NON_ALPHANUMERIC, utf8_percent_encode};
use serde_json::{Map, Value, json};

use super::Look;
use super::page::Page;
use super::port::{AskError, Port};
use super::{events, quiet, readable};
use crate::cli::operate::{Action, RulesArgs};

/// What stands for itself in one segment of a path: addresses read in the proxy's log as they were written.
const SEGMENT: &AsciiSet = &NON_ALPHANUMERIC.remove(b'.').remove(b'-').remove(b'_').remove(b':');

/// Gives the order or asks the question; returns what the proxy says.
///
/// # Errors
/// [`AskError`], with the proxy's own words where it does not do it.
pub async fn carry_out(port: &Port, action: &Action) -> Result<Value, AskError> {
    let answer = asked(port, action).await?;
    match action {
        Action::Pause { wait: true, timeout: Some(timeout), .. } => quiet::wait(port, answer, *timeout).await,
        _ => Ok(answer),
    }
}

async fn asked(port: &Port, action: &Action) -> Result<Value, AskError> {
    match request(action) {
        // Whoever asks with curl gets a word.
        (path, None) if *action == Action::Livez => port.text(&path).await.map(|word| json!(word.trim())),
        (path, Some(body)) => port.order(&path, &body).await,
        (path, None) => port.get(&path).await,
    }
}

/// The answer for people.
pub fn page(action: &Action, answer: &Value, look: Look) -> Page {
    if matches!(action, Action::Events { .. }) {
        return Page { lines: events::lines(Some(answer), usize::MAX) };
    }
    let mut page = Page::default();
    readable::write(&mut page, answer, look.width);
    page
}

/// The path, and for orders the body.
fn request(action: &Action) -> (String, Option<Value>) {
    let (path, fields) = match action {
        Action::Pause { cluster, database, timeout, wait: _ } => {
            let timeout = timeout.map(|timeout| timeout.as_millis().to_string().parse::<u64>().unwrap_or(u64::MAX));
            let fields =
                vec![("cluster", json!(cluster.cluster)), ("database", json!(database)), ("timeoutMs", json!(timeout))];
            ("/admin/pause", fields)
        }
        Action::Resume { cluster, database } => {
            ("/admin/resume", vec![("cluster", json!(cluster.cluster)), ("database", json!(database))])
        }
        Action::Reconnect { cluster, server } => {
            ("/admin/reconnect", vec![("cluster", json!(cluster.cluster)), ("server", json!(server))])
        }
        Action::Cleanup { mode, cluster, server } => {
            let fields = vec![("mode", json!(mode)), ("cluster", json!(cluster.cluster)), ("server", json!(server))];
            ("/admin/cleanup", fields)
        }
        Action::Drain => ("/admin/drain", Vec::new()),
        Action::Kill { id: Some(id), .. } => return (format!("/admin/clients/{id}/kill"), Some(json!({}))),
        Action::Kill { id: None, application } => ("/admin/clients/kill", vec![("application", json!(application))]),
        Action::Breaker { server, action } => {
            let server = utf8_percent_encode(server, SEGMENT);
            return (format!("/admin/breakers/{server}/{action}"), Some(json!({})));
        }
        // To say null is to say something here.
        Action::Log { level } => {
            let level = level.as_ref().map(ToString::to_string);
            return ("/admin/log".to_owned(), Some(json!({"level": level})));
        }
        Action::Mode { mode, cluster, hold, no_hold } => {
            let hold = (*hold || *no_hold).then_some(*hold);
            ("/admin/mode", vec![("mode", json!(mode)), ("cluster", json!(cluster.cluster)), ("hold", json!(hold))])
        }
        Action::Rules(rules) => ("/admin/rules", rules_fields(rules)),
        Action::Reload => ("/admin/reload", Vec::new()),
        Action::Events { cluster, kind, limit } => {
            let limit = limit.map(|limit| limit.to_string());
            let asked =
                [("cluster", cluster.cluster.as_deref()), ("kind", kind.as_deref()), ("limit", limit.as_deref())];
            return (question("/events", asked), None);
        }
        Action::Clients { list, application, limit } => {
            let limit = limit.map(|limit| limit.to_string());
            let asked =
                [("list", list.then_some("1")), ("application", application.as_deref()), ("limit", limit.as_deref())];
            return (question("/clients", asked), None);
        }
        Action::Livez => return ("/livez".to_owned(), None),
    };
    let named = fields.into_iter().filter(|(_, value)| !value.is_null());
    let body: Map<String, Value> = named.map(|(name, value)| (name.to_owned(), value)).collect();
    (path.to_owned(), Some(Value::Object(body)))
}

/// A path with what is asked of it.
fn question(path: &str, asked: [(&str, Option<&str>); 3]) -> String {
    let asked = asked.into_iter().filter_map(|(name, value)| Some((name, utf8_percent_encode(value?, SEGMENT))));
    let asked: Vec<String> = asked.map(|(name, value)| format!("{name}={value}")).collect();
    if asked.is_empty() { path.to_owned() } else { format!("{path}?{}", asked.join("&")) }
}

fn rules_fields(rules: &RulesArgs) -> Vec<(&'static str, Value)> {
    // An empty list is no rule, and a list that is not named stays.
    let list = |names: &Option<String>| {
        let names = names.as_deref();
        json!(names.map(|names| names.split(',').map(str::trim).filter(|name| !name.is_empty()).collect::<Vec<_>>()))
    };
    vec![
        ("listener", json!(rules.listener)),
        ("readOnly", json!(rules.read_only)),
        ("allowCommands", list(&rules.allow_commands)),
        ("denyCommands", list(&rules.deny_commands)),
        ("allowNamespaces", list(&rules.allow_namespaces)),
        ("denyNamespaces", list(&rules.deny_namespaces)),
    ]
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cli::{Cli, Command};

    fn asked(line: &str) -> (String, Option<Value>) {
        let arguments = ["mongomux", "admin"].into_iter().chain(line.split(' ').map(|word| word.trim_matches('"')));
        let cli = Cli::from_arguments(arguments.collect::<Vec<_>>()).unwrap_or_else(|error| panic!("{line}: {error}"));
        let Command::Admin(args) = cli.command else { panic!("another command") };
        request(&args.action)
    }

    #[test]
    fn each_action_is_the_request_that_the_port_takes() {
        for (line, path, body) in [
            ("pause", "/admin/pause", json!({})),
            (
                "pause --cluster a --database shop --timeout 30s",
                "/admin/pause",
                json!({"cluster": "a", "database": "shop", "timeoutMs": 30_000}),
            ),
            ("pause --timeout 2s --wait", "/admin/pause", json!({"timeoutMs": 2_000})),
            ("resume --database shop", "/admin/resume", json!({"database": "shop"})),
            ("reconnect --server db:1", "/admin/reconnect", json!({"server": "db:1"})),
            ("cleanup soft --cluster a", "/admin/cleanup", json!({"mode": "soft", "cluster": "a"})),
            ("drain", "/admin/drain", json!({})),
            ("kill 17", "/admin/clients/17/kill", json!({})),
            ("kill --application shop", "/admin/clients/kill", json!({"application": "shop"})),
            ("breaker db.example:27017 reset", "/admin/breakers/db.example:27017/reset", json!({})),
            ("breaker ../../drain?x trip", "/admin/breakers/..%2F..%2Fdrain%3Fx/trip", json!({})),
            ("log debug", "/admin/log", json!({"level": "debug"})),
            ("log info,mongomux::connection=debug", "/admin/log", json!({"level": "info,mongomux::connection=debug"})),
            ("log default", "/admin/log", json!({"level": null})),
            ("mode read-only", "/admin/mode", json!({"mode": "read-only"})),
            ("mode maintenance --no-hold", "/admin/mode", json!({"mode": "maintenance", "hold": false})),
            ("mode maintenance --hold", "/admin/mode", json!({"mode": "maintenance", "hold": true})),
            ("rules --read-only", "/admin/rules", json!({"readOnly": true})),
            (
                "rules --read-only false --deny-commands mapReduce,dropDatabase --allow-namespaces \"\" --listener 127.0.0.1:1",
                "/admin/rules",
                json!({"readOnly": false, "denyCommands": ["mapReduce", "dropDatabase"], "allowNamespaces": [],
                       "listener": "127.0.0.1:1"}),
            ),
            ("reload", "/admin/reload", json!({})),
        ] {
            assert_eq!(asked(line), (path.to_owned(), Some(body)), "{line}");
        }
        for (line, path) in [
            ("events", "/events"),
            ("events --cluster a --kind breaker --limit 9", "/events?cluster=a&kind=breaker&limit=9"),
            ("clients --json", "/clients"),
            ("clients --list", "/clients?list=1"),
            ("clients --list --limit 9 --application a&b#c", "/clients?list=1&application=a%26b%23c&limit=9"),
            ("livez", "/livez"),
        ] {
            assert_eq!(asked(line), (path.to_owned(), None), "{line}");
        }
    }

    #[test]
    fn what_cannot_be_meant_is_refused() {
        for line in [
            "kill",
            "kill 7 --application shop",
            "log loud",
            "clients --limit 3",
            "pause --wait",
            "pause --wait --timeout 2s --database shop",
        ] {
            let arguments = ["mongomux", "admin"].into_iter().chain(line.split(' '));
            assert!(Cli::from_arguments(arguments.collect::<Vec<_>>()).is_err(), "{line}");
        }
    }
}
