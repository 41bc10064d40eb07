//! Commands that servers know and that are treated like unknown ones: passed to the primary. Their names matter only to who
//! has not logged in, who is told of the others that there is no such command.

/// Of a server of version 6.0, in the order of their bytes.
const SERVER_COMMANDS: &[&str] = &[
    "abortShardSplit",
    "appendOplogNote",
    "applyOps",
    "autoSplitVector",
    "checkShardingIndex",
    "cleanupOrphaned",
    "clusterAbortTransaction",
    "clusterAggregate",
    "clusterCommitTransaction",
    "clusterDelete",
    "clusterFind",
    "clusterGetMore",
    "clusterInsert",
    "clusterUpdate",
    "commitShardSplit",
    "compactStructuredEncryptionData",
    "connPoolSync",
    "createRole",
    "createUser",
    "dbCheck",
    "donorAbortMigration",
    "donorForgetMigration",
    "donorStartMigration",
    "driverOIDTest",
    "dropAllRolesFromDatabase",
    "dropAllUsersFromDatabase",
    "dropConnections",
    "dropRole",
    "dropUser",
    "flushRouterConfig",
    "forgetShardSplit",
    "getDatabaseVersion",
    "getLastError",
    "grantPrivilegesToRole",
    "grantRolesToRole",
    "grantRolesToUser",
    "internalRenameIfOptionsAndIndexesMatch",
    "invalidateUserCache",
    "mergeChunks",
    "planCacheClear",
    "planCacheClearFilters",
    "planCacheSetFilter",
    "profile",
    "recipientForgetMigration",
    "recipientSyncData",
    "recipientVoteImportedFiles",
    "revokePrivilegesFromRole",
    "revokeRolesFromRole",
    "revokeRolesFromUser",
    "rotateCertificates",
    "setClusterParameter",
    "setDefaultRWConcern",
    "setFeatureCompatibilityVersion",
    "setFreeMonitoring",
    "setIndexCommitQuorum",
    "setParameter",
    "setProfilingFilterGlobally",
    "setShardVersion",
    "setUserWriteBlockMode",
    "splitChunk",
    "splitVector",
    "startRecordingTraffic",
    "stopRecordingTraffic",
    "updateRole",
    "updateUser",
    "voteCommitIndexBuild",
    "waitForFailPoint",
];

/// True when servers know a command of that name which has no row of its own.
pub fn is_known_to_servers(name: &str) -> bool {
    SERVER_COMMANDS.binary_search(&name).is_ok()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::command::kind::{UNKNOWN, lookup};

    #[test]
    fn names_are_in_order_and_have_no_row_of_their_own() {
        assert!(SERVER_COMMANDS.is_sorted_by(|a, b| a < b));
        for name in SERVER_COMMANDS {
            assert_eq!(lookup(name.as_bytes()), &UNKNOWN, "{name}");
        }
        assert!(is_known_to_servers("createUser") && !is_known_to_servers("nonsense") && !is_known_to_servers("find"));
    }
}
