//! What the clients of a listener may do, beside what MongoDB lets them: rules of the proxy's own. What they mean for a command
//! is decided in `command/rules.rs`.

use std::fmt;
use std::str::FromStr;

use super::Namespaces;

/// Passed whatever lists of commands say: each of them ends or continues what another command began, and was judged with it.
const ALWAYS_PASSED: [&str; 5] = ["getMore", "killCursors", "commitTransaction", "abortTransaction", "endSessions"];

/// Longest name of a command: more than any server has.
const MAX_COMMAND_BYTES: usize = 64;

/// What the clients of a listener may do. Without any rule: everything.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Rules {
    /// Only what is known to read.
    pub read_only: bool,
    /// Only these, unless empty.
    pub allow_commands: Commands,
    /// Not these.
    pub deny_commands: Commands,
    /// Only what touches nothing else, unless empty.
    pub allow_namespaces: Namespaces,
    /// Nothing that touches one of these.
    pub deny_namespaces: Namespaces,
}

impl Rules {
    /// True when everything may be done.
    pub fn is_empty(&self) -> bool {
        *self == Self::default()
    }
}

/// A list of commands.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Commands(Vec<CommandName>);

impl Commands {
    /// True when none is listed.
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// The entries.
    pub fn iter(&self) -> impl Iterator<Item = &CommandName> {
        self.0.iter()
    }
}

impl From<Vec<CommandName>> for Commands {
    fn from(names: Vec<CommandName>) -> Self {
        Self(names)
    }
}

/// One entry of a list of commands.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum CommandName {
    /// `read`: what asks for data.
    Read,
    /// `write`: what changes data, collections or indexes.
    Write,
    /// `admin`: all the rest, what is not known included.
    Admin,
    /// `find`. Servers know some commands by names that differ in case, so case does not matter.
    Named(String),
}

/// Why a text is no [`CommandName`].
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum CommandNameError {
    /// Not a name.
    #[error("{0:?} is no command: expected a command's name, \"read\", \"write\" or \"admin\"")]
    NoName(String),
    /// A rule about it would be ignored.
    #[error("`{0}` is always passed: what it ends or continues is judged when it begins")]
    Always(&'static str),
}

impl FromStr for CommandName {
    type Err = CommandNameError;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        match text {
            "read" => return Ok(Self::Read),
            "write" => return Ok(Self::Write),
            "admin" => return Ok(Self::Admin),
            _ => {}
        }
        if let Some(always) = ALWAYS_PASSED.into_iter().find(|name| name.eq_ignore_ascii_case(text)) {
            return Err(CommandNameError::Always(always));
        }
        let is_name = |byte: u8| byte.is_ascii_alphanumeric() || byte == b'_';
        if text.is_empty() || text.len() > MAX_COMMAND_BYTES || !text.bytes().all(is_name) {
            return Err(CommandNameError::NoName(text.chars().take(MAX_COMMAND_BYTES).collect()));
        }
        Ok(Self::Named(text.to_owned()))
    }
}

impl fmt::Display for CommandName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Read => "read",
            Self::Write => "write",
            Self::Admin => "admin",
            Self::Named(name) => name,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn entries_are_shown_as_they_were_written_and_others_refused() {
        for text in ["read", "write", "admin", "find", "_internal", "findAndModify"] {
            assert_eq!(text.parse::<CommandName>().unwrap().to_string(), text);
        }
        let told = |text: &str| text.parse::<CommandName>().unwrap_err().to_string();
        for wrong in ["", "find one", "a*", "$db", "naïve", &"x".repeat(65)] {
            assert!(told(wrong).contains("is no command"), "{wrong}");
        }
        assert_eq!(told("getmore"), "`getMore` is always passed: what it ends or continues is judged when it begins");
    }

    #[test]
    fn rules_that_say_nothing_are_none() {
        assert!(Rules::default().is_empty());
        assert!(!Rules { read_only: true, ..Rules::default() }.is_empty());
        assert!(!Rules { deny_commands: vec![CommandName::Admin].into(), ..Rules::default() }.is_empty());
    }
}
