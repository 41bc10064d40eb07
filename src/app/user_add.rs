//! `mongomux user add`: writes a user into a users file, and leaves everything else in it as it is, comments included.
//!
//! Written are verifiers, from which nobody gets the password back but by trying. The file is replaced as a whole, so whoever
//! reads it meanwhile reads the old one or the new one.

use std::fmt;
use std::fs::Permissions;
use std::io::{self, BufRead as _, IsTerminal as _, Read as _, Write as _};
use std::os::unix::fs::PermissionsExt as _;
use std::path::{Path, PathBuf};

use toml_edit::{Array, ArrayOfTables, DocumentMut, Item, Table, value};
use zeroize::Zeroizing;

use crate::auth::users::Verifier;
use crate::auth::{Mechanism, ScramError};
use crate::cli::UserAddArgs;
use crate::config::system::read_secret;
use crate::config::{ConfigError, ConfigErrors, limits, users_file};

/// Longest password, bytes.
const MAX_PASSWORD_BYTES: u64 = 4096;

/// Why there is no such user now; the file is as it was.
#[derive(Debug, thiserror::Error)]
pub enum UserAddError {
    /// The file is there, and is no users file.
    #[error(transparent)]
    File(#[from] ConfigErrors),
    /// It cannot be written.
    #[error("{0} cannot be written: {1}")]
    Write(PathBuf, io::Error),
    /// The password cannot be read.
    #[error("cannot read the password: {0}")]
    Ask(#[from] io::Error),
    /// There is none.
    #[error("a password is expected, of 1 to {MAX_PASSWORD_BYTES} bytes")]
    Empty,
    /// It was typed twice, and differently.
    #[error("the two passwords differ")]
    Differ,
    /// SCRAM-SHA-256 does not allow it.
    #[error("{0}: with --mechanism SCRAM-SHA-1 it can be used")]
    Password(ScramError),
    /// Names have bounds.
    #[error("a name has 1 to {most} bytes without NUL", most = limits::MAX_USER_NAME_BYTES)]
    Name,
}

/// What was done.
#[derive(Debug)]
pub struct Added {
    name: String,
    file: PathBuf,
    replaced: bool,
}

impl fmt::Display for Added {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let did = if self.replaced { "another password for" } else { "added" };
        write!(f, "{did} {} in {}", self.name, self.file.display())
    }
}

/// Asks for a password: twice on a terminal and without showing it, else for one line of the standard input.
///
/// # Errors
/// [`UserAddError::Ask`], [`UserAddError::Differ`].
pub fn ask() -> Result<Zeroizing<String>, UserAddError> {
    if io::stdin().is_terminal() {
        let once = Zeroizing::new(rpassword::prompt_password("Password: ")?);
        let again = Zeroizing::new(rpassword::prompt_password("Once more: ")?);
        return if once == again { Ok(once) } else { Err(UserAddError::Differ) };
    }
    let mut line = Zeroizing::new(String::new());
    io::stdin().lock().take(MAX_PASSWORD_BYTES + 2).read_line(&mut line)?;
    Ok(Zeroizing::new(line.trim_end_matches(['\r', '\n']).to_owned()))
}

/// Adds the user, or gives one that is there another password.
///
/// # Errors
/// [`UserAddError`].
pub fn add(
    args: &UserAddArgs,
    ask: impl FnOnce() -> Result<Zeroizing<String>, UserAddError>,
) -> Result<Added, UserAddError> {
    let named = |name: &str| (1..=limits::MAX_USER_NAME_BYTES).contains(&name.len()) && !name.contains('\0');
    if !named(&args.name) || !named(&args.database) {
        return Err(UserAddError::Name);
    }
    // Before anybody types anything.
    let mut document = existing(&args.file)?;
    let password = ask()?;
    if password.is_empty() || password.len() as u64 > MAX_PASSWORD_BYTES {
        return Err(UserAddError::Empty);
    }
    let mut verifiers = Array::new();
    for mechanism in [Mechanism::Sha256, Mechanism::Sha1] {
        if args.mechanisms.is_empty() || args.mechanisms.iter().any(|name| name == mechanism.name()) {
            let salt = (0..mechanism.usual_salt_bytes()).map(|_| rand::random()).collect();
            let derived = Verifier::derive(mechanism, &args.name, &password, salt, mechanism.usual_iterations());
            verifiers.push(derived.map_err(UserAddError::Password)?.to_text());
        }
    }
    let users = document.entry("user").or_insert_with(|| Item::ArrayOfTables(ArrayOfTables::new()));
    // Anything else was no users file.
    let users = users.as_array_of_tables_mut().ok_or_else(|| not_in_double_brackets(&args.file))?;
    let is_it = |user: &Table| {
        let text = |key: &str| user.get(key).and_then(Item::as_str);
        text("name") == Some(&args.name) && text("database").unwrap_or(users_file::DEFAULT_DATABASE) == args.database
    };
    let found = users.iter().position(is_it);
    match found.and_then(|index| users.get_mut(index)) {
        Some(user) => {
            user.remove("password");
            user.insert("verifiers", value(verifiers));
        }
        None => {
            let mut user = Table::new();
            user.insert("name", value(&args.name));
            if args.database != users_file::DEFAULT_DATABASE {
                user.insert("database", value(&args.database));
            }
            user.insert("verifiers", value(verifiers));
            users.push(user);
        }
    }
    replace(&args.file, &document.to_string()).map_err(|error| UserAddError::Write(args.file.clone(), error))?;
    Ok(Added { name: format!("{}@{}", args.name, args.database), file: args.file.clone(), replaced: found.is_some() })
}

/// The file as it is, if it is a sound one; empty where there is none.
fn existing(file: &Path) -> Result<DocumentMut, UserAddError> {
    if !file.exists() {
        return Ok(DocumentMut::new());
    }
    let secret = read_secret(file).map_err(|error| ConfigErrors(vec![error]))?;
    let mut errors = Vec::new();
    if !secret.trim().is_empty() {
        users_file::read(&file.display().to_string(), &secret, &mut errors);
    }
    // Its own report would show a line.
    let parsed = secret.parse::<DocumentMut>().ok().filter(|_| errors.is_empty());
    parsed.ok_or(UserAddError::File(ConfigErrors(errors)))
}

fn not_in_double_brackets(file: &Path) -> UserAddError {
    let problem = "expected [[user]] tables, in double brackets".to_owned();
    let place = file.display().to_string();
    UserAddError::File(ConfigErrors(vec![ConfigError { place, key: "user".to_owned(), problem }]))
}

/// Writes a new file beside the old one, readable by nobody else, and puts it in its place.
fn replace(file: &Path, text: &str) -> io::Result<()> {
    // Where the path is a link, the file that it leads to.
    let file = file.canonicalize().unwrap_or_else(|_| file.to_owned());
    let directory = file.parent().filter(|parent| !parent.as_os_str().is_empty()).unwrap_or(Path::new("."));
    let mut new = tempfile::Builder::new().permissions(Permissions::from_mode(0o600)).tempfile_in(directory)?;
    new.write_all(text.as_bytes())?;
    new.as_file().sync_all()?;
    new.persist(&file)?;
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn args(file: &Path, name: &str) -> UserAddArgs {
        let (name, database) = (name.to_owned(), users_file::DEFAULT_DATABASE.to_owned());
        UserAddArgs { name, file: file.to_owned(), database, mechanisms: Vec::new() }
    }

    fn add_with(args: &UserAddArgs, password: &str) -> Result<Added, UserAddError> {
        add(args, || Ok(Zeroizing::new(password.to_owned())))
    }

    fn verifiers(file: &Path, user: usize) -> Vec<Verifier> {
        let mut errors = Vec::new();
        let users = users_file::read("users", &std::fs::read_to_string(file).unwrap(), &mut errors);
        assert_eq!(errors, []);
        users[user].verifiers.iter().map(|(_, text)| Verifier::parse(text).unwrap()).collect()
    }

    #[test]
    fn a_new_file_is_the_owners_alone_and_has_both_verifiers() {
        let directory = tempfile::tempdir().unwrap();
        let file = directory.path().join("users.toml");
        let added = add_with(&args(&file, "app"), "pencil").unwrap();
        assert_eq!(added.to_string(), format!("added app@admin in {}", file.display()));
        assert_eq!(std::fs::metadata(&file).unwrap().permissions().mode() & 0o777, 0o600);
        let written = verifiers(&file, 0);
        assert_eq!(written.len(), 2);
        assert!(written.iter().all(|verifier| verifier.fits("app", "pencil")));
        assert!(!std::fs::read_to_string(&file).unwrap().contains("pencil"));
        assert_eq!(std::fs::read_dir(directory.path()).unwrap().count(), 1, "nothing is left beside it");
    }

    #[test]
    fn everything_else_in_a_file_stays() {
        let directory = tempfile::tempdir().unwrap();
        let file = directory.path().join("users.toml");
        let text = "# ours\n[[user]]\nname = \"app\" # the shop\npassword = \"old\"\nroles = [] # none\n\n\
                    [[user]] # another\nname = \"app\"\ndatabase = \"shop\"\npassword = \"stays\"\n";
        std::fs::write(&file, text).unwrap();
        std::fs::set_permissions(&file, Permissions::from_mode(0o600)).unwrap();
        let added = add_with(&args(&file, "app"), "new").unwrap();
        assert!(added.to_string().starts_with("another password for app@admin"));
        let one = UserAddArgs { mechanisms: vec!["SCRAM-SHA-1".to_owned()], ..args(&file, "other") };
        add_with(&one, "new").unwrap();
        let now = std::fs::read_to_string(&file).unwrap();
        for kept in ["# ours\n", "# the shop", "# none", "# another", "password = \"stays\""] {
            assert!(now.contains(kept), "{kept} is not in\n{now}");
        }
        assert!(!now.contains("\"old\""));
        assert!(verifiers(&file, 0).iter().all(|verifier| verifier.fits("app", "new")));
        assert_eq!(verifiers(&file, 2).len(), 1);
    }

    #[test]
    fn what_goes_wrong_leaves_the_file_alone() {
        let directory = tempfile::tempdir().unwrap();
        let file = directory.path().join("users.toml");
        let told = |args: &UserAddArgs, password: &str| add_with(args, password).unwrap_err().to_string();
        assert!(told(&args(&file, "app"), "").contains("1 to 4096 bytes"));
        assert!(told(&args(&file, ""), "x").contains("a name has 1 to 512"));
        assert!(told(&args(&file, "app"), "\u{7}").contains("SCRAM-SHA-1"));
        assert!(!file.exists());
        for (text, mode, part) in [
            ("[[user]]\nname = 1\npassword = \"hush\"", 0o600, ":2: user[1].name"),
            ("password = \"hush", 0o600, "no valid TOML"),
            ("", 0o644, "chmod 600"),
            ("user = [{ name = \"a\", password = \"hush\" }]", 0o600, "double brackets"),
        ] {
            std::fs::write(&file, text).unwrap();
            std::fs::set_permissions(&file, Permissions::from_mode(mode)).unwrap();
            let told = told(&args(&file, "app"), "x");
            assert!(told.contains(part) && !told.contains("hush"), "{told}");
            assert_eq!(std::fs::read_to_string(&file).unwrap(), text);
        }
        // An empty one is as good as none.
        std::fs::write(&file, "").unwrap();
        std::fs::set_permissions(&file, Permissions::from_mode(0o600)).unwrap();
        add_with(&args(&file, "app"), "x").unwrap();
    }
}
