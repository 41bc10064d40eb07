//! What configuration takes from the machine: files, the container's memory limit, the limit of open files. All I/O of
//! configuration is here; what is made of it is not.

use std::collections::BTreeMap;
use std::fs::File;
use std::io::{self, Read};
use std::os::unix::fs::MetadataExt as _;
use std::path::{Path, PathBuf};

use zeroize::{Zeroize as _, Zeroizing};

use super::{Address, Config, ConfigError, Profile, Warning, limits};

/// Where flags and the environment are not told apart.
const FLAGS: &str = "command line or environment";

/// Everything [`Config::load`] looks at. It holds connection strings with their passwords, hence no `Debug`.
#[derive(Clone, Default)]
pub struct Sources {
    /// The configuration file.
    pub file: Option<Text>,
    /// The connection string of a flag, of the environment, or of a file of its own; `name` says which.
    pub upstream: Option<Text>,
    /// The file that it comes from, where that is so.
    pub upstream_file: Option<PathBuf>,
    /// Listeners of flags or environment; empty if there are none.
    pub listen: Vec<Address>,
    /// Admin port of flags or environment.
    pub admin: Option<Address>,
    /// Tokens for the admin port, of flags or environment.
    pub admin_token_file: Option<PathBuf>,
    /// The admin port gives probes and metrics only, by flags or environment.
    pub admin_probes_only: bool,
    /// Where the next process finds this one, of flags or environment.
    pub upgrade_socket: Option<PathBuf>,
    /// Where telemetry goes, of flags or environment.
    pub otlp_endpoint: Option<String>,
    /// Profile of flags or environment.
    pub profile: Option<Profile>,
    /// Listeners may be reachable from other machines although nobody is asked for a password.
    pub allow_unauthenticated_clients: bool,
    /// Memory limit of the container, bytes.
    pub container_memory_bytes: Option<u64>,
    /// Which flag, or which variable of the environment, says something about a key.
    pub said_by: BTreeMap<String, String>,
}

impl Sources {
    /// Who says something about `key` that is not said by the file.
    pub(super) fn origin(&self, key: &str) -> &str {
        self.said_by.get(key).map_or(FLAGS, String::as_str)
    }
}

/// A text and the name it goes by in error messages. It may hold a password, so it is wiped when it is dropped.
#[derive(Clone)]
pub struct Text {
    /// A path, or the name of the flag.
    pub name: String,
    /// What it says.
    pub text: String,
}

impl Drop for Text {
    fn drop(&mut self) {
        self.text.zeroize();
    }
}

/// Reads a file of at most [`limits::MAX_FILE_BYTES`].
///
/// # Errors
/// It cannot be read, is too long, or is no UTF-8.
pub fn read_file(path: &Path) -> Result<Text, ConfigError> {
    let name = path.display().to_string();
    let mut text = String::new();
    let read = File::open(path).and_then(|file| file.take(limits::MAX_FILE_BYTES + 1).read_to_string(&mut text));
    let problem = match read {
        Ok(length) if length as u64 <= limits::MAX_FILE_BYTES => return Ok(Text { name, text }),
        Ok(_) => format!("longer than {} bytes", limits::MAX_FILE_BYTES),
        Err(error) => format!("cannot be read: {error}"),
    };
    Err(ConfigError { place: name, key: String::new(), problem })
}

/// Reads a file that holds secrets, of at most [`limits::MAX_FILE_BYTES`], which only its owner and its group may read: a secret
/// that is mounted for a container is its group's.
///
/// # Errors
/// It cannot be read, everybody can read it, is too long, or is no UTF-8; in words that show nothing of it.
pub fn read_secret(path: &Path) -> Result<Zeroizing<String>, ConfigError> {
    let wrong = |problem| ConfigError { place: path.display().to_string(), key: String::new(), problem };
    let unreadable = |error: io::Error| wrong(format!("cannot be read: {error}"));
    // Of the file that is read, not of what the path leads to a moment later.
    let file = File::open(path).map_err(unreadable)?;
    let about = file.metadata().map_err(unreadable)?;
    let mode = about.mode() & 0o777;
    if mode & 0o007 != 0 {
        return Err(wrong(format!("everybody may use it (mode {mode:03o}), it holds secrets: chmod 600")));
    }
    // Never moved to a larger place, as what it leaves behind would not be wiped.
    let size = about.len().min(limits::MAX_FILE_BYTES);
    let room = usize::try_from(size).unwrap_or_default().saturating_add(1);
    let mut bytes = Zeroizing::new(Vec::with_capacity(room));
    let length = file.take(room as u64).read_to_end(&mut bytes).map_err(unreadable)?;
    if length as u64 > size {
        return Err(wrong(format!("longer than {} bytes, or still being written", limits::MAX_FILE_BYTES)));
    }
    let text = std::str::from_utf8(&bytes).map_err(|_| wrong("no text in UTF-8".to_owned()))?;
    Ok(Zeroizing::new(text.to_owned()))
}

/// The memory limit of the control group this process lives in, bytes. `root` is `/` but for tests.
pub fn container_memory_bytes(root: &Path) -> Option<u64> {
    let number = |path: &Path| std::fs::read_to_string(path).ok()?.trim().parse::<u64>().ok();
    let groups = root.join("sys/fs/cgroup");
    // Version 2: the group is named by the kernel, and each group above it limits it, too. Without a limit, "max" is
    // written there, which is no number.
    let membership = std::fs::read_to_string(root.join("proc/self/cgroup")).unwrap_or_default();
    let own = membership.lines().find_map(|line| line.strip_prefix("0::/")).unwrap_or_default();
    let unified = Path::new(own).ancestors().filter_map(|group| number(&groups.join(group).join("memory.max"))).min();
    // Version 1 has one file, with a number near 2^63 for "no limit".
    unified.or_else(|| number(&groups.join("memory/memory.limit_in_bytes")))
}

/// Raises the soft limit of open files to the hard one, and warns if even that is too low for `config`.
///
/// # Errors
/// The limit can be neither read nor raised.
pub fn raise_open_files(config: &Config) -> io::Result<Option<Warning>> {
    let (soft, hard) = rlimit::Resource::NOFILE.get()?;
    if soft < hard {
        rlimit::Resource::NOFILE.set(hard, hard)?;
    }
    Ok(open_files_short(config, hard))
}

/// The warning of [`raise_open_files`] for a limit of `limit` files.
fn open_files_short(config: &Config, limit: u64) -> Option<Warning> {
    let upstream: u64 = config
        .clusters
        .iter()
        .map(|cluster| {
            let all = u64::from(cluster.pool.max_pool_size) * limits::ASSUMED_SERVERS;
            cluster.max_upstream_connections.map_or(all, u64::from)
        })
        .sum();
    let clients = config.client.max_clients + config.client.surplus_clients();
    let needed = clients as u64 + upstream + limits::OPEN_FILES_RESERVE;
    let short = needed.checked_sub(limit).filter(|&short| short > 0)?;
    Some(Warning(format!(
        "the limit of open files is {limit}, {short} short of the {needed} that {clients} clients (max_clients and a tenth) and \
         {upstream} upstream connections need: raise it (ulimit -n) or lower max_clients"
    )))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_secret_is_a_file_that_not_everybody_reads() {
        use std::os::unix::fs::PermissionsExt as _;
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("secret");
        let read = |text: &str, mode: u32| {
            std::fs::write(&path, text).unwrap();
            std::fs::set_permissions(&path, std::fs::Permissions::from_mode(mode)).unwrap();
            read_secret(&path).map(|text| text.to_string()).map_err(|error| error.to_string())
        };
        for mode in [0o600, 0o400, 0o640, 0o440] {
            assert_eq!(read("geheim\n", mode).unwrap(), "geheim\n", "{mode:o}");
        }
        for mode in [0o644, 0o604, 0o602, 0o777] {
            let told = read("geheim", mode).unwrap_err();
            assert!(told.contains("everybody may use it") && !told.contains("geheim"), "{told}");
        }
        assert_eq!(read("", 0o600).unwrap(), "");
        let long = "x".repeat(usize::try_from(limits::MAX_FILE_BYTES).unwrap() + 1);
        assert!(read(&long, 0o600).unwrap_err().contains("longer than"));
        std::fs::write(&path, b"\xff").unwrap();
        assert!(read_secret(&path).unwrap_err().problem.contains("UTF-8"));
        let none = read_secret(&directory.path().join("none")).unwrap_err();
        assert!(none.problem.contains("cannot be read"));
    }

    fn write(root: &Path, path: &str, text: &str) {
        let path = root.join(path);
        std::fs::create_dir_all(path.parent().unwrap()).unwrap();
        std::fs::write(path, text).unwrap();
    }

    #[test]
    fn the_lowest_limit_of_the_own_group_and_those_above_counts() {
        let root = tempfile::tempdir().unwrap();
        assert_eq!(container_memory_bytes(root.path()), None);
        write(root.path(), "proc/self/cgroup", "0::/pod/app\n");
        write(root.path(), "sys/fs/cgroup/pod/app/memory.max", "max\n");
        assert_eq!(container_memory_bytes(root.path()), None);
        write(root.path(), "sys/fs/cgroup/pod/memory.max", "268435456\n");
        write(root.path(), "sys/fs/cgroup/other/memory.max", "1\n");
        assert_eq!(container_memory_bytes(root.path()), Some(268_435_456));
        write(root.path(), "sys/fs/cgroup/pod/app/memory.max", "134217728\n");
        assert_eq!(container_memory_bytes(root.path()), Some(134_217_728));
    }

    #[test]
    fn a_container_sees_its_group_as_the_root() {
        let root = tempfile::tempdir().unwrap();
        write(root.path(), "proc/self/cgroup", "0::/\n");
        write(root.path(), "sys/fs/cgroup/memory.max", "536870912\n");
        assert_eq!(container_memory_bytes(root.path()), Some(536_870_912));
    }

    #[test]
    fn version_one_control_groups_are_read_as_well() {
        let root = tempfile::tempdir().unwrap();
        write(root.path(), "proc/self/cgroup", "4:memory:/docker/x\n");
        write(root.path(), "sys/fs/cgroup/memory/memory.limit_in_bytes", "1048576\n");
        assert_eq!(container_memory_bytes(root.path()), Some(1_048_576));
    }

    #[test]
    fn a_file_that_is_missing_or_too_long_is_named() {
        let root = tempfile::tempdir().unwrap();
        let missing = read_file(&root.path().join("none.toml")).err().unwrap();
        assert!(missing.place.ends_with("none.toml") && missing.problem.starts_with("cannot be read"), "{missing}");
        write(root.path(), "long.toml", &"#".repeat(1_048_577));
        assert_eq!(read_file(&root.path().join("long.toml")).err().unwrap().problem, "longer than 1048576 bytes");
        write(root.path(), "fits.toml", &"#".repeat(1_048_576));
        assert!(read_file(&root.path().join("fits.toml")).is_ok());
    }

    #[test]
    fn the_warning_says_by_how_many_files_the_limit_is_short() {
        let (config, _) = Config::load(&Sources::default()).unwrap();
        // 10,000 clients and a tenth, 3 servers with 10 connections each, and the reserve.
        let needed = 11_000 + 30 + 128;
        assert_eq!(open_files_short(&config, needed), None);
        let warning = open_files_short(&config, needed - 7).unwrap().to_string();
        assert!(warning.contains("11151, 7 short of the 11158"), "{warning}");
    }
}
