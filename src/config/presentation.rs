//! What the file says about the replica set that clients see.

use super::file::FileCluster;
use super::limits::MAX_REPLICA_SET_NAME_BYTES;
use super::{Address, ConfigError, Presentation, ShownSet};

/// The set that clients see, if they are to see one. Its name has to be known at the start: who is told another one never
/// comes back. It is `upstream_name` unless the file says another.
pub(super) fn shown_set(
    file: &FileCluster,
    upstream_name: Option<&str>,
    errors: &mut Vec<ConfigError>,
) -> Option<ShownSet> {
    let (name, address) = (file.replica_set_name.as_ref(), file.advertised_address.as_ref());
    let Some(presentation) = file.presentation.as_ref().filter(|found| found.value == Presentation::ReplicaSet) else {
        let only = || "has a meaning only with presentation = \"replica-set\"".to_owned();
        errors.extend(name.map(|found| found.error(only())));
        errors.extend(address.map(|found| found.error(only())));
        return None;
    };
    if let Some(found) = name.filter(|found| !(1..=MAX_REPLICA_SET_NAME_BYTES).contains(&found.value.len())) {
        let length = found.value.len();
        errors.push(found.error(format!("found a name of {length} bytes, expected 1 to {MAX_REPLICA_SET_NAME_BYTES}")));
    }
    if let Some(found) = address.filter(|found| matches!(found.value, Address::Tcp { port: 0, .. })) {
        errors.push(found.error("found port 0, expected the port that clients connect to".to_owned()));
    }
    let Some(name) = name.map(|found| &*found.value).or(upstream_name) else {
        let problem = "found \"replica-set\", which needs replica_set_name, or replicaSet= in the upstream's connection \
                       string: clients compare it with their own";
        errors.push(presentation.error(problem.to_owned()));
        return None;
    };
    // Drivers compare host names in lower case.
    let address = address.map(|found| match &found.value {
        Address::Tcp { host, port } => Address::tcp(host.to_lowercase(), *port),
        unix @ Address::Unix(_) => unix.clone(),
    });
    Some(ShownSet { name: name.to_owned(), address })
}
