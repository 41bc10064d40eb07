//! Whether a process could listen at `upgrade_socket`, told before one has to.

use std::io::ErrorKind;
use std::os::unix::ffi::OsStrExt as _;
use std::os::unix::fs::FileTypeExt as _;
use std::path::Path;

use rustix::fs::{Access, access};

/// As the system keeps the path of a unix socket, with the zero at its end.
const MAX_SOCKET_PATH_BYTES: usize = 107;

/// What is wrong with such a path.
///
/// # Errors
/// In words, each of which goes behind the path.
pub(super) fn check(path: &Path) -> Result<(), String> {
    let bytes = path.as_os_str().as_bytes().len();
    if bytes > MAX_SOCKET_PATH_BYTES {
        return Err(format!("is {bytes} bytes long, and a unix socket may have at most {MAX_SOCKET_PATH_BYTES}"));
    }
    let directory = match path.parent() {
        Some(parent) if !parent.as_os_str().is_empty() => parent,
        _ => Path::new("."),
    };
    let shown = directory.display();
    match std::fs::metadata(directory) {
        Ok(found) if !found.is_dir() => return Err(format!("{shown} is no directory")),
        Ok(_) => {}
        Err(error) => return Err(format!("the directory {shown} cannot be used: {error}")),
    }
    access(directory, Access::WRITE_OK | Access::EXEC_OK)
        .map_err(|error| format!("this user cannot make a socket in the directory {shown}: {error}"))?;
    match std::fs::metadata(path) {
        Ok(found) if !found.file_type().is_socket() => Err("is there and no socket".to_owned()),
        Err(error) if error.kind() != ErrorKind::NotFound => Err(error.to_string()),
        Ok(_) | Err(_) => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt as _;

    use rustix::process::geteuid;
    use rustix::thread::{Uid, set_thread_res_uid};

    use super::*;

    /// In a thread that is nobody in particular, as root may do everything.
    fn checked_as_nobody(path: &Path) -> Result<(), String> {
        let of = path.to_owned();
        let nobody = std::thread::spawn(move || {
            if geteuid().is_root() {
                let nobody = Uid::from_raw(65_534);
                set_thread_res_uid(nobody, nobody, nobody).unwrap();
            }
            check(&of)
        });
        nobody.join().unwrap()
    }

    #[test]
    fn a_directory_that_others_own_is_told() {
        let directory = tempfile::tempdir().unwrap();
        let socket = directory.path().join("up.sock");
        let mode = |mode| std::fs::set_permissions(directory.path(), std::fs::Permissions::from_mode(mode)).unwrap();
        mode(0o777);
        assert_eq!(checked_as_nobody(&socket), Ok(()));
        mode(0o555);
        let told = checked_as_nobody(&socket).unwrap_err();
        assert!(told.contains("cannot make a socket in the directory") && told.contains("Permission denied"), "{told}");
        mode(0o777);
    }
}
