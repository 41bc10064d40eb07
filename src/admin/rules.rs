//! The rules of listeners as the admin port shows and changes them:
//! `{"listener": "127.0.0.1:27016", "readOnly": true, "denyCommands": ["mapReduce"]}`.

use std::fmt::{self, Display};
use std::str::FromStr;
use std::sync::Arc;

use serde::{Deserialize, Serialize};

use crate::client::{Registry, RulesInForce};
use crate::command::kind::{UNKNOWN, lookup};
use crate::config::limits::MAX_RULE_ENTRIES;
use crate::config::{Address, CommandName, Commands, Namespaces, Rules};

/// A listener, what its clients may do, and who they are.
#[derive(Debug)]
pub struct Ruled {
    /// Where it listens.
    pub address: Address,
    /// The cluster it leads to, of several the default.
    pub cluster: String,
    /// Its rules.
    pub rules: Arc<RulesInForce>,
    /// Its clients.
    pub clients: Arc<Registry>,
}

impl Ruled {
    /// Says which names mean nothing.
    pub fn warn_of_unknown_commands(&self) {
        warn_of_unknown_commands(&self.address, &self.rules.current());
    }

    /// As `/stats` shows it.
    pub fn stats(&self) -> ListenerStats {
        let Rules { read_only, allow_commands, deny_commands, allow_namespaces, deny_namespaces } =
            &*self.rules.current();
        let commands = |list: &Commands| list.iter().map(ToString::to_string).collect();
        let namespaces = |list: &Namespaces| list.iter().map(ToString::to_string).collect();
        ListenerStats {
            address: self.address.to_string(),
            cluster: self.cluster.clone(),
            rules: RulesStats {
                read_only: *read_only,
                allow_commands: commands(allow_commands),
                deny_commands: commands(deny_commands),
                allow_namespaces: namespaces(allow_namespaces),
                deny_namespaces: namespaces(deny_namespaces),
            },
        }
    }
}

/// A name that is mistyped denies nothing.
pub fn warn_of_unknown_commands(listener: &Address, rules: &Rules) {
    for name in rules.allow_commands.iter().chain(rules.deny_commands.iter()) {
        if let CommandName::Named(name) = name
            && is_unknown(name)
        {
            tracing::warn!(%listener, command = name, "a rule names a command that is not known");
        }
    }
}

/// The table knows some names in two cases, and a rule means a name in any.
fn is_unknown(name: &str) -> bool {
    let known = crate::command::kind::COMMANDS.iter().any(|spec| spec.name.eq_ignore_ascii_case(name));
    !known && lookup(name.as_bytes()) == &UNKNOWN
}

/// One listener.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct ListenerStats {
    /// Where it listens.
    pub address: String,
    /// The cluster it leads to, of several the default.
    pub cluster: String,
    /// What its clients may do.
    pub rules: RulesStats,
}

/// The rules of a listener; an empty list is no rule.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
#[expect(missing_docs, reason = "each is the rule of the same name")]
pub struct RulesStats {
    pub read_only: bool,
    pub allow_commands: Vec<String>,
    pub deny_commands: Vec<String>,
    pub allow_namespaces: Vec<String>,
    pub deny_namespaces: Vec<String>,
}

impl fmt::Display for RulesStats {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let list = |what: &str, names: &[String]| (!names.is_empty()).then(|| format!("{what}: {}", names.join(", ")));
        let rules = [
            self.read_only.then(|| "read-only".to_owned()),
            list("only commands", &self.allow_commands),
            list("denied commands", &self.deny_commands),
            list("only namespaces", &self.allow_namespaces),
            list("denied namespaces", &self.deny_namespaces),
        ];
        f.write_str(&rules.into_iter().flatten().collect::<Vec<_>>().join("; "))
    }
}

/// An order to change rules that makes sense. What it does not name stays as it is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct RulesOrder {
    /// Of which listener; of all without an address.
    pub listener: Option<Address>,
    read_only: Option<bool>,
    allow_commands: Option<Commands>,
    deny_commands: Option<Commands>,
    allow_namespaces: Option<Namespaces>,
    deny_namespaces: Option<Namespaces>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields, rename_all = "camelCase")]
struct Written {
    listener: Option<String>,
    read_only: Option<bool>,
    allow_commands: Option<Vec<String>>,
    deny_commands: Option<Vec<String>>,
    allow_namespaces: Option<Vec<String>>,
    deny_namespaces: Option<Vec<String>>,
}

impl RulesOrder {
    /// Reads the body of a request.
    ///
    /// # Errors
    /// What is wrong, where, and what would be right.
    pub fn parse(body: &[u8]) -> Result<Self, String> {
        const EXAMPLE: &str = r#"expected one or more of "readOnly": true | false, "allowCommands", "denyCommands", "allowNamespaces" and "denyNamespaces": [...], and "listener": "ADDRESS" where one is meant"#;
        let written: Written = serde_json::from_slice(body).map_err(|error| format!("body: {error}; {EXAMPLE}"))?;
        let listener = written.listener.map(|text| text.parse().map_err(|error| format!("listener: {error}")));
        let order = Self {
            listener: listener.transpose()?,
            read_only: written.read_only,
            allow_commands: list("allowCommands", written.allow_commands)?,
            deny_commands: list("denyCommands", written.deny_commands)?,
            allow_namespaces: list("allowNamespaces", written.allow_namespaces)?,
            deny_namespaces: list("denyNamespaces", written.deny_namespaces)?,
        };
        let says_nothing = Self { listener: order.listener.clone(), ..Self::NOTHING };
        if order == says_nothing { Err(format!("body: no rule is named; {EXAMPLE}")) } else { Ok(order) }
    }

    const NOTHING: Self = Self {
        listener: None,
        read_only: None,
        allow_commands: None,
        deny_commands: None,
        allow_namespaces: None,
        deny_namespaces: None,
    };

    /// Changes what it names.
    pub fn apply_to(&self, rules: &mut Rules) {
        fn put<T: Clone>(place: &mut T, ordered: Option<&T>) {
            if let Some(ordered) = ordered {
                *place = ordered.clone();
            }
        }
        put(&mut rules.read_only, self.read_only.as_ref());
        put(&mut rules.allow_commands, self.allow_commands.as_ref());
        put(&mut rules.deny_commands, self.deny_commands.as_ref());
        put(&mut rules.allow_namespaces, self.allow_namespaces.as_ref());
        put(&mut rules.deny_namespaces, self.deny_namespaces.as_ref());
    }
}

fn list<T, L>(key: &str, texts: Option<Vec<String>>) -> Result<Option<L>, String>
where
    T: FromStr<Err: Display>,
    L: From<Vec<T>>,
{
    let Some(texts) = texts else { return Ok(None) };
    if texts.len() > MAX_RULE_ENTRIES {
        return Err(format!("{key}: found {} entries, expected at most {MAX_RULE_ENTRIES}", texts.len()));
    }
    let parsed: Result<Vec<T>, _> = texts.iter().map(|text| text.parse()).collect();
    parsed.map(|entries| Some(entries.into())).map_err(|error| format!("{key}: {error}"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_order_changes_what_it_names_and_nothing_else() {
        let mut rules = Rules { deny_commands: vec![CommandName::Admin].into(), ..Rules::default() };
        let order = RulesOrder::parse(br#"{"readOnly": true, "allowNamespaces": ["shop.*"]}"#).unwrap();
        assert_eq!(order.listener, None);
        order.apply_to(&mut rules);
        assert!(rules.read_only && rules.allow_namespaces.names_all_of("shop"));
        assert_eq!(rules.deny_commands.iter().count(), 1);
        let order = r#"{"listener": "127.0.0.1:5", "readOnly": false, "denyCommands": [], "allowNamespaces": []}"#;
        let order = RulesOrder::parse(order.as_bytes()).unwrap();
        assert_eq!(order.listener, Some(Address::tcp("127.0.0.1", 5)));
        order.apply_to(&mut rules);
        assert!(rules.is_empty(), "an empty list is no rule: {rules:?}");
    }

    #[test]
    fn an_order_that_makes_no_sense_is_told_what_would() {
        let told = |body: &str| RulesOrder::parse(body.as_bytes()).unwrap_err();
        for (body, word) in [
            ("", "EOF"),
            ("{}", "no rule is named"),
            (r#"{"listener": "127.0.0.1:5"}"#, "no rule is named"),
            (r#"{"readonly": true}"#, "unknown field `readonly`"),
            (r#"{"readOnly": "yes"}"#, "invalid type"),
            (r#"{"denyCommands": ["a b"]}"#, "denyCommands: \"a b\" is no command"),
            (r#"{"denyCommands": ["getMore"]}"#, "always passed"),
            (r#"{"denyNamespaces": ["shop"]}"#, "denyNamespaces: \"shop\" is no namespace"),
            (r#"{"listener": "", "readOnly": true}"#, "listener: "),
        ] {
            assert!(told(body).contains(word), "{body}: {}", told(body));
        }
        let many = format!(r#"{{"denyCommands": [{}"find"]}}"#, r#""find","#.repeat(MAX_RULE_ENTRIES));
        assert!(told(&many).contains("found 257 entries"));
    }

    #[test]
    fn names_that_deny_nothing_are_told_from_others() {
        for known in ["find", "findAndModify", "FINDANDMODIFY", "dropIndexes", "deleteindexes", "shutdown", "_secret"] {
            assert!(!is_unknown(known), "{known}");
        }
        assert!(is_unknown("dropDatabases"));
    }
}
