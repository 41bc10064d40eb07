//! The users file: who may log in where `auth = "users"`, and with which credential its commands go upstream.
//!
//! Only what can be told from a key and its value is checked here; what a verifier is, is checked where it is understood. No
//! I/O, and no message ever repeats a password or a verifier.

use std::fmt;

use toml::Spanned;
use toml::de::{DeTable, DeValue};
use zeroize::Zeroizing;

use super::reader::{Reader, nearest};
use super::uri::{Credential, Mechanism};
use super::{ConfigError, limits};

/// Where users live unless their file says otherwise.
pub const DEFAULT_DATABASE: &str = "admin";

/// Where users live that are known by a certificate, or by a password that they send in the clear.
pub const EXTERNAL: &str = "$external";

const KEYS: [&str; 6] = ["name", "database", "password", "verifiers", "roles", "upstream"];
const UPSTREAM_KEYS: [&str; 4] = ["username", "password", "source", "mechanism"];
const ROLE_KEYS: [&str; 2] = ["role", "db"];

/// A user of a file. It holds secrets, hence no `Debug`.
pub struct FileUser {
    /// Where its table begins: file and line.
    pub place: String,
    /// What stands before its keys in messages.
    pub prefix: String,
    /// As clients type it.
    pub name: String,
    /// `admin` mostly.
    pub database: String,
    /// In the clear.
    pub password: Option<Zeroizing<String>>,
    /// In the form of `Verifier::parse`, with their places.
    pub verifiers: Vec<(String, Zeroizing<String>)>,
    /// For `connectionStatus`: role and database.
    pub roles: Vec<(String, String)>,
    /// What its own upstream connections log in with.
    pub upstream: Option<Credential>,
}

impl FileUser {
    /// A mistake in one of its keys.
    pub fn error(&self, place: &str, key: &str, problem: String) -> ConfigError {
        ConfigError { place: place.to_owned(), key: format!("{}{key}", self.prefix), problem }
    }
}

/// Reads a users file called `name`. Mistakes are added to `errors` in the order of their lines; users that have some are left
/// out.
pub fn read(name: &str, text: &str, errors: &mut Vec<ConfigError>) -> Vec<FileUser> {
    let mut reader = Reader::new(name, text);
    let (table, syntax) = DeTable::parse_recoverable(text);
    for error in &syntax {
        // The library's own report shows the line, which may hold a password.
        reader.refuse(error.span().unwrap_or_default(), "", format!("no valid TOML: {}", error.message()));
    }
    let users = if syntax.is_empty() { reader.users(table.get_ref()) } else { Vec::new() };
    errors.extend(reader.into_mistakes());
    users
}

impl Reader<'_> {
    fn users(&mut self, file: &DeTable<'_>) -> Vec<FileUser> {
        let mut users: Vec<FileUser> = Vec::new();
        for (key, value) in file {
            if key.get_ref() != "user" {
                self.refuse(key.span(), key.get_ref(), "unknown key: a users file has [[user]] tables only".to_owned());
                continue;
            }
            for (index, (place, table)) in self.tables("user", value, limits::MAX_FILE_USERS).into_iter().enumerate() {
                let Some(user) = self.user(place, &format!("user[{}].", index + 1), table) else { continue };
                match users.iter().find(|other| (&other.name, &other.database) == (&user.name, &user.database)) {
                    Some(first) => {
                        let problem = format!("is there already, at {}", first.place);
                        let span = table.get("name").map_or(0..0, Spanned::span);
                        self.refuse(span, &format!("{}name", user.prefix), problem);
                    }
                    None => users.push(user),
                }
            }
        }
        if !file.contains_key("user") {
            self.refuse(0..0, "user", "missing: at least one [[user]] table is expected".to_owned());
        }
        users
    }

    fn user(&mut self, place: String, prefix: &str, table: &DeTable<'_>) -> Option<FileUser> {
        let mut user = FileUser {
            place,
            prefix: prefix.to_owned(),
            name: String::new(),
            database: DEFAULT_DATABASE.to_owned(),
            password: None,
            verifiers: Vec::new(),
            roles: Vec::new(),
            upstream: None,
        };
        let mut sound = true;
        for (key, value) in table {
            let (name, path) = (key.get_ref().as_ref(), format!("{prefix}{}", key.get_ref()));
            sound &= match name {
                "name" => self.word(&path, value).map(|name| user.name = name).is_some(),
                "database" => self.word(&path, value).map(|database| user.database = database).is_some(),
                "password" => self.secret(&path, value).map(|password| user.password = Some(password)).is_some(),
                "verifiers" => self.verifiers(&path, value).map(|verifiers| user.verifiers = verifiers).is_some(),
                "roles" => self.roles(&path, value).map(|roles| user.roles = roles).is_some(),
                "upstream" => self.credential(&path, value).map(|it| user.upstream = Some(it)).is_some(),
                _ => self.unknown_key(&path, name, key, &KEYS),
            };
        }
        let start = table.values().map(|value| value.span().start).min().unwrap_or_default();
        let mut refuse = |key: &str, problem: &str| {
            self.refuse(start..start, &format!("{prefix}{key}"), problem.to_owned());
            sound = false;
        };
        if !table.contains_key("name") {
            refuse("name", "missing");
        }
        match (table.contains_key("password"), table.contains_key("verifiers")) {
            (true, true) => refuse("verifiers", "expected either `password` or `verifiers`, not both"),
            // Whoever is known by a certificate needs neither.
            (false, false) if user.database != EXTERNAL => {
                refuse("password", "missing: `password` or `verifiers` is expected")
            }
            _ => {}
        }
        sound.then_some(user)
    }

    fn unknown_key(
        &mut self,
        path: &str,
        name: &str,
        key: &Spanned<impl Sized>,
        known: &'static [&'static str],
    ) -> bool {
        let hint =
            nearest(name, known.iter().copied()).map_or_else(String::new, |near| format!(", did you mean `{near}`?"));
        self.refuse(key.span(), path, format!("unknown key{hint}"));
        false
    }

    /// A text that may be shown.
    fn word(&mut self, path: &str, value: &Spanned<DeValue<'_>>) -> Option<String> {
        let text = self.text_of(path, value)?;
        if text.is_empty() || text.len() > limits::MAX_USER_NAME_BYTES || text.contains('\0') {
            let most = limits::MAX_USER_NAME_BYTES;
            self.refuse(value.span(), path, format!("expected 1 to {most} bytes without NUL, found {}", text.len()));
            return None;
        }
        Some(text.to_owned())
    }

    /// A text that must not be shown, nor what stands in its place.
    fn secret(&mut self, path: &str, value: &Spanned<DeValue<'_>>) -> Option<Zeroizing<String>> {
        let text = value.get_ref().as_str().filter(|text| !text.is_empty());
        if text.is_none() {
            self.refuse(value.span(), path, "expected a text in quotes that is not empty".to_owned());
        }
        text.map(|text| Zeroizing::new(text.to_owned()))
    }

    fn verifiers(&mut self, path: &str, value: &Spanned<DeValue<'_>>) -> Option<Vec<(String, Zeroizing<String>)>> {
        let array = value.get_ref().as_array().filter(|array| (1..=2).contains(&array.len()));
        let Some(array) = array else {
            self.refuse(value.span(), path, "expected a list of one or two verifiers".to_owned());
            return None;
        };
        array.iter().map(|item| Some((self.place(&item.span()), self.secret(path, item)?))).collect()
    }

    fn roles(&mut self, path: &str, value: &Spanned<DeValue<'_>>) -> Option<Vec<(String, String)>> {
        let array = value.get_ref().as_array().filter(|array| array.len() <= limits::MAX_FILE_ROLES);
        let Some(array) = array else {
            let most = limits::MAX_FILE_ROLES;
            let problem =
                format!("expected a list of at most {most} tables such as {{ role = \"readWrite\", db = \"shop\" }}");
            self.refuse(value.span(), path, problem);
            return None;
        };
        array.iter().map(|item| self.role(path, item)).collect()
    }

    fn role(&mut self, path: &str, value: &Spanned<DeValue<'_>>) -> Option<(String, String)> {
        let table = self.table(path, value)?;
        let (mut role, mut db, mut sound) = (None, None, true);
        for (key, value) in table {
            let (name, path) = (key.get_ref().as_ref(), format!("{path}.{}", key.get_ref()));
            match name {
                "role" => role = self.word(&path, value),
                "db" => db = self.word(&path, value),
                _ => sound = self.unknown_key(&path, name, key, &ROLE_KEYS),
            }
        }
        for name in ROLE_KEYS.iter().filter(|name| !table.contains_key(**name)) {
            self.refuse(value.span(), &format!("{path}.{name}"), "missing".to_owned());
        }
        Some((role?, db?)).filter(|_| sound)
    }

    fn credential(&mut self, path: &str, value: &Spanned<DeValue<'_>>) -> Option<Credential> {
        let table = self.table(path, value)?;
        let (mut username, mut password, mut source, mut mechanism) = (None, None, None, None);
        let mut sound = true;
        for (key, value) in table {
            let (name, path) = (key.get_ref().as_ref(), format!("{path}.{}", key.get_ref()));
            sound &= match name {
                "username" => self.word(&path, value).map(|it| username = Some(it)).is_some(),
                "password" => self.secret(&path, value).map(|it| password = Some(it.to_string())).is_some(),
                "source" => self.word(&path, value).map(|it| source = Some(it)).is_some(),
                "mechanism" => {
                    let choices = [
                        ("SCRAM-SHA-1", Mechanism::ScramSha1),
                        ("SCRAM-SHA-256", Mechanism::ScramSha256),
                        ("PLAIN", Mechanism::Plain),
                    ];
                    self.one_of(&path, value, &choices).map(|it| mechanism = Some(it)).is_some()
                }
                _ => self.unknown_key(&path, name, key, &UPSTREAM_KEYS),
            };
        }
        for name in ["username", "password"].iter().filter(|name| !table.contains_key(**name)) {
            self.refuse(value.span(), &format!("{path}.{name}"), "missing".to_owned());
            sound = false;
        }
        let usual = if mechanism == Some(Mechanism::Plain) { EXTERNAL } else { DEFAULT_DATABASE };
        let source = source.unwrap_or_else(|| usual.to_owned());
        sound.then_some(Credential { username, source, password: password.map(Zeroizing::new), mechanism })
    }
}

/// Whose, and nothing else.
impl fmt::Display for FileUser {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}@{}", self.name, self.database)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn mistakes(text: &str) -> Vec<String> {
        let mut errors = Vec::new();
        read("users.toml", text, &mut errors);
        errors.iter().map(ConfigError::to_string).collect()
    }

    #[test]
    fn users_are_read_with_all_they_may_have() {
        let mut errors = Vec::new();
        let users = read(
            "users.toml",
            "# who\n[[user]]\nname = \"a\"\npassword = \"pencil\"\n\
             roles = [{ role = \"read\", db = \"shop\" }]\n\
             upstream = { username = \"b\", password = \"secret\", source = \"shop\", mechanism = \"SCRAM-SHA-1\" }\n\
             [[user]]\nname = \"a\"\ndatabase = \"shop\"\nverifiers = [\"x\", \"y\"]\n\
             [[user]]\nname = \"CN=client\"\ndatabase = \"$external\"\n",
            &mut errors,
        );
        assert_eq!(errors, []);
        let shown: Vec<String> = users.iter().map(FileUser::to_string).collect();
        assert_eq!(shown, ["a@admin", "a@shop", "CN=client@$external"]);
        assert_eq!(users[0].password.as_deref().map(String::as_str), Some("pencil"));
        assert_eq!(users[0].roles, [("read".to_owned(), "shop".to_owned())]);
        let own = users[0].upstream.as_ref().unwrap();
        assert_eq!((own.username.as_deref(), own.source.as_str()), (Some("b"), "shop"));
        assert_eq!(own.mechanism, Some(Mechanism::ScramSha1));
        assert_eq!(users[1].verifiers[1].0, "users.toml:10");
    }

    #[test]
    fn all_mistakes_are_told_with_line_and_key_and_without_secrets() {
        let told = mistakes(
            "users = 1\n[[user]]\nname = \"\"\npasword = \"hush-1\"\n[[user]]\nname = \"b\"\npassword = \"hush-2\"\n\
             verifiers = [\"hush-3\"]\n[[user]]\nname = \"c\"\nverifiers = [7]\nroles = [{ role = \"read\" }]\n\
             [[user]]\nname = \"d\"\npassword = \"hush-4\"\nupstream = { user_name = \"x\", password = 5 }\n\
             [[user]]\nname = \"d\"\npassword = \"hush-5\"\n[[user]]\nname = \"d\"\npassword = \"hush-6\"\n",
        );
        let text = told.join("\n");
        assert!(!text.contains("hush"), "{text}");
        for line in [
            "users.toml:1: users: unknown key: a users file has [[user]] tables only",
            "users.toml:3: user[1].name: expected 1 to 512 bytes without NUL, found 0",
            "users.toml:4: user[1].pasword: unknown key, did you mean `password`?",
            "users.toml:3: user[1].password: missing: `password` or `verifiers` is expected",
            "users.toml:6: user[2].verifiers: expected either `password` or `verifiers`, not both",
            "users.toml:11: user[3].verifiers: expected a text in quotes that is not empty",
            "users.toml:12: user[3].roles.db: missing",
            "users.toml:16: user[4].upstream.user_name: unknown key, did you mean `username`?",
            "users.toml:16: user[4].upstream.password: expected a text in quotes that is not empty",
            "users.toml:16: user[4].upstream.username: missing",
            "users.toml:21: user[6].name: is there already, at users.toml:17",
        ] {
            assert!(told.iter().any(|told| told == line), "missing: {line}\nin:\n{text}");
        }
        assert_eq!(told.len(), 11, "{text}");
    }

    #[test]
    fn a_broken_file_shows_none_of_its_lines() {
        let told = mistakes("[[user]]\nname = \"a\"\npassword = \"hush\n");
        assert!(
            !told.is_empty() && told.iter().all(|told| told.starts_with("users.toml:3: no valid TOML")),
            "{told:?}"
        );
        assert!(!told.concat().contains("hush"));
        assert_eq!(mistakes("# nobody\n"), ["users.toml:1: user: missing: at least one [[user]] table is expected"]);
        assert_eq!(mistakes("user = []\n").len(), 1);
    }
}
