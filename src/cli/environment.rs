//! Variables that look as if they were meant for this program and are none of its own. They change nothing, and who has set them
//! thinks that they do. No I/O here.

use std::collections::BTreeSet;

use clap::Command;

use crate::config::{Warning, nearest};

const PREFIX: &str = "MONGOMUX_";

/// Read elsewhere than by flags.
const OTHERS: [&str; 1] = ["MONGOMUX_CACHE"];

/// What is to be said of the variables of these names.
pub(super) fn warnings(command: &Command, set: impl Iterator<Item = String>) -> Vec<Warning> {
    let mut known: BTreeSet<String> = OTHERS.map(str::to_owned).into();
    add_names(command, &mut known);
    let strangers = set.filter(|name| name.starts_with(PREFIX) && !known.contains(name) && !is_of_kubernetes(name));
    let warning = |name: String| {
        let what = nearest(&name, known.iter().map(String::as_str)).map_or_else(
            || "keys of the configuration stand in its file".to_owned(),
            |near| format!("did you mean {near}?"),
        );
        Warning(format!("environment {name}: no such variable, it changes nothing; {what}"))
    };
    strangers.map(warning).collect()
}

/// Kubernetes tells each container of the services beside it: `MONGOMUX_SERVICE_HOST`, `MONGOMUX_PORT_27016_TCP_ADDR`, ...
fn is_of_kubernetes(name: &str) -> bool {
    name.contains("_SERVICE_") || name.contains("_PORT")
}

fn add_names(command: &Command, known: &mut BTreeSet<String>) {
    let names = command.get_arguments().filter_map(|argument| argument.get_env()?.to_str());
    known.extend(names.map(str::to_owned));
    command.get_subcommands().for_each(|command| add_names(command, known));
}

#[cfg(test)]
mod tests {
    use clap::CommandFactory as _;

    use super::*;

    fn told(names: &[&str]) -> Vec<String> {
        let names = names.iter().map(|name| (*name).to_owned());
        warnings(&crate::cli::Cli::command(), names).iter().map(ToString::to_string).collect()
    }

    #[test]
    fn a_variable_that_changes_nothing_is_told_with_what_was_meant() {
        let listen =
            "environment MONGOMUX_LISTENN: no such variable, it changes nothing; did you mean MONGOMUX_LISTEN?";
        assert_eq!(told(&["MONGOMUX_LISTENN"]), [listen]);
        let pool = "environment MONGOMUX_MAX_POOL_SIZE: no such variable, it changes nothing; keys of the configuration stand in its file";
        assert_eq!(told(&["MONGOMUX_MAX_POOL_SIZE"]), [pool]);
    }

    #[test]
    fn those_that_mean_something_and_those_of_others_are_not() {
        let known =
            ["MONGOMUX_LISTEN", "MONGOMUX_LOG", "MONGOMUX_CHECK_PRINT", "MONGOMUX_USERS_FILE", "MONGOMUX_CACHE"];
        let beside =
            ["MONGOMUX_SERVICE_HOST", "MONGOMUX_SERVICE_PORT_CLIENTS", "MONGOMUX_PORT", "MONGOMUX_PORT_27016_TCP_ADDR"];
        for names in [&known[..], &beside, &["PATH", "XMONGOMUX_A"]] {
            assert_eq!(told(names), [""; 0], "{names:?}");
        }
    }
}
