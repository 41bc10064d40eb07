//! Every command we know by name, and how each is treated. A command that is not listed goes to the primary: the
//! server says what it thinks of it, and commands of future servers work.

/// How a command is treated. One row of [`COMMANDS`].
#[derive(Debug, PartialEq, Eq)]
pub struct CommandSpec {
    /// The name on the wire; empty for a command that is not listed.
    pub name: &'static str,
    /// Who deals with it.
    pub handling: Handling,
    /// What running it does, which decides whether it may run twice.
    pub effect: Effect,
    /// May run on a secondary, if its read preference says so.
    pub secondary_ok: bool,
}

/// Who deals with a command.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Handling {
    /// The proxy answers.
    Local(LocalCommand),
    /// Routed by the kind of command, its read preference and its transaction.
    Pass,
    /// To the server that holds the cursor.
    GetMore,
    /// To the servers that hold the cursors.
    KillCursors,
    /// To the server that holds the transaction, else to the primary.
    EndTransaction,
    /// Answered at once, passed on when there is time.
    EndSessions,
    /// Not through a shared connection: would change or reveal what belongs to everybody.
    Refuse,
    /// Of servers among themselves: unknown to clients.
    Internal,
}

/// Commands that the proxy answers itself.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum LocalCommand {
    /// The handshake; also keeps the name of the reply's field apart.
    Hello,
    /// SASL, first step.
    SaslStart,
    /// SASL, further steps.
    SaslContinue,
    /// X.509 log-in.
    Authenticate,
    /// An old nonce, harmless.
    GetNonce,
    /// End of a log-in.
    Logout,
    /// Our own pools.
    ConnPoolStats,
    /// The client's own address.
    WhatsMyUri,
    /// Who is logged in on this socket.
    ConnectionStatus,
}

/// What running a command does.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Effect {
    /// Nothing: it may run twice.
    Read,
    /// Data changes; with a `txnNumber` the server keeps it from happening twice.
    Write,
    /// Anything else: never run twice.
    Other,
    /// Ends what runs on the server; data stays as it is. Never run twice: another server has other things running.
    Control,
    /// Harmless to run twice, though it changes something.
    Idempotent,
}

impl CommandSpec {
    /// Served for a client that has still to log in.
    pub fn needs_no_log_in(&self) -> bool {
        match self.handling {
            Handling::Local(LocalCommand::ConnPoolStats) => false,
            Handling::Local(_) => true,
            _ => matches!(self.name, "ping" | "buildInfo" | "buildinfo" | "listCommands"),
        }
    }
}

const fn spec(name: &'static str, handling: Handling, effect: Effect, secondary_ok: bool) -> CommandSpec {
    CommandSpec { name, handling, effect, secondary_ok }
}

const fn read(name: &'static str) -> CommandSpec {
    spec(name, Handling::Pass, Effect::Read, true)
}

/// Describes the server, or what only the primary knows well.
const fn primary_read(name: &'static str) -> CommandSpec {
    spec(name, Handling::Pass, Effect::Read, false)
}

const fn control(name: &'static str) -> CommandSpec {
    spec(name, Handling::Pass, Effect::Control, false)
}

const fn write(name: &'static str) -> CommandSpec {
    spec(name, Handling::Pass, Effect::Write, false)
}

const fn other(name: &'static str) -> CommandSpec {
    spec(name, Handling::Pass, Effect::Other, false)
}

const fn idempotent(name: &'static str) -> CommandSpec {
    spec(name, Handling::Pass, Effect::Idempotent, false)
}

const fn local(name: &'static str, command: LocalCommand) -> CommandSpec {
    spec(name, Handling::Local(command), Effect::Read, false)
}

const fn refuse(name: &'static str) -> CommandSpec {
    spec(name, Handling::Refuse, Effect::Other, false)
}

const fn internal(name: &'static str) -> CommandSpec {
    spec(name, Handling::Internal, Effect::Other, false)
}

/// A command that is not listed.
pub static UNKNOWN: CommandSpec = other("");

/// Unknown to clients because it starts with an underscore.
static UNDERSCORE: CommandSpec = internal("");

/// The known commands; the busiest first, as a look-up goes from top to bottom.
pub static COMMANDS: &[CommandSpec] = &[
    read("find"),
    write("insert"),
    write("update"),
    spec("getMore", Handling::GetMore, Effect::Other, false),
    read("aggregate"),
    write("delete"),
    write("findAndModify"),
    read("count"),
    read("distinct"),
    spec("commitTransaction", Handling::EndTransaction, Effect::Idempotent, false),
    spec("abortTransaction", Handling::EndTransaction, Effect::Idempotent, false),
    read("ping"),
    local("hello", LocalCommand::Hello),
    local("isMaster", LocalCommand::Hello),
    local("ismaster", LocalCommand::Hello),
    spec("killCursors", Handling::KillCursors, Effect::Idempotent, false),
    write("bulkWrite"),
    write("findandmodify"),
    spec("endSessions", Handling::EndSessions, Effect::Idempotent, false),
    idempotent("refreshSessions"),
    idempotent("startSession"),
    local("saslStart", LocalCommand::SaslStart),
    local("saslContinue", LocalCommand::SaslContinue),
    local("authenticate", LocalCommand::Authenticate),
    local("getnonce", LocalCommand::GetNonce),
    local("logout", LocalCommand::Logout),
    local("connPoolStats", LocalCommand::ConnPoolStats),
    local("whatsmyuri", LocalCommand::WhatsMyUri),
    local("connectionStatus", LocalCommand::ConnectionStatus),
    read("buildInfo"),
    read("buildinfo"),
    read("listCollections"),
    read("listIndexes"),
    read("listDatabases"),
    read("listCommands"),
    read("explain"),
    read("mapReduce"),
    read("mapreduce"),
    read("collStats"),
    read("collstats"),
    read("dbStats"),
    read("dbstats"),
    read("dataSize"),
    read("datasize"),
    read("geoSearch"),
    read("getParameter"),
    read("serverStatus"),
    read("hostInfo"),
    read("currentOp"),
    read("validate"),
    other("create"),
    other("createIndexes"),
    other("drop"),
    other("dropDatabase"),
    other("dropIndexes"),
    other("collMod"),
    other("renameCollection"),
    control("killOp"),
    control("killSessions"),
    other("configureFailPoint"),
    primary_read("usersInfo"),
    primary_read("rolesInfo"),
    primary_read("replSetGetStatus"),
    primary_read("replSetGetConfig"),
    primary_read("replSetGetRBID"),
    primary_read("getLog"),
    primary_read("getCmdLineOpts"),
    primary_read("getDefaultRWConcern"),
    primary_read("getClusterParameter"),
    primary_read("getDiagnosticData"),
    primary_read("getFreeMonitoringStatus"),
    primary_read("top"),
    primary_read("lockInfo"),
    primary_read("features"),
    primary_read("availableQueryOptions"),
    primary_read("dbHash"),
    primary_read("dbhash"),
    primary_read("filemd5"),
    primary_read("planCacheListFilters"),
    primary_read("validateDBMetadata"),
    primary_read("listShards"),
    primary_read("balancerStatus"),
    primary_read("balancerCollectionStatus"),
    primary_read("getShardMap"),
    primary_read("getShardVersion"),
    primary_read("shardingState"),
    primary_read("isdbgrid"),
    internal("coordinateCommitTransaction"),
    internal("prepareTransaction"),
    internal("replSetHeartbeat"),
    internal("replSetRequestVotes"),
    internal("replSetUpdatePosition"),
    refuse("killAllSessions"),
    refuse("killAllSessionsByPattern"),
    refuse("fsync"),
    refuse("fsyncUnlock"),
    refuse("shutdown"),
    refuse("replSetStepDown"),
    refuse("replSetFreeze"),
    refuse("replSetReconfig"),
    refuse("replSetInitiate"),
    refuse("replSetMaintenance"),
    refuse("replSetSyncFrom"),
    refuse("replSetResizeOplog"),
    refuse("logRotate"),
    refuse("sleep"),
    refuse("testDeadlock"),
    refuse("godinsert"),
];

/// How the command called `name` is treated.
pub fn lookup(name: &[u8]) -> &'static CommandSpec {
    match COMMANDS.iter().find(|spec| spec.name.as_bytes() == name) {
        Some(spec) => spec,
        None if name.starts_with(b"_") => &UNDERSCORE,
        None => &UNKNOWN,
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use super::*;

    #[test]
    fn every_name_stands_once() {
        let names: BTreeSet<_> = COMMANDS.iter().map(|spec| spec.name).collect();
        assert_eq!(names.len(), COMMANDS.len());
    }

    #[test]
    fn names_are_case_sensitive_as_on_a_server() {
        assert_eq!(lookup(b"isMaster").handling, Handling::Local(LocalCommand::Hello));
        assert_eq!(lookup(b"ismaster").handling, Handling::Local(LocalCommand::Hello));
        for name in ["IsMaster", "ISMASTER", "Find", "", "madeUp"] {
            assert_eq!(lookup(name.as_bytes()), &UNKNOWN, "{name}");
        }
    }

    #[test]
    fn who_has_not_logged_in_gets_what_a_server_gives() {
        let served: Vec<_> = COMMANDS.iter().filter(|spec| spec.needs_no_log_in()).map(|spec| spec.name).collect();
        let expected = "ping hello isMaster ismaster saslStart saslContinue authenticate getnonce logout whatsmyuri \
                        connectionStatus buildInfo buildinfo listCommands";
        assert_eq!(served.join(" "), expected);
        assert!(!UNKNOWN.needs_no_log_in() && !UNDERSCORE.needs_no_log_in());
    }

    #[test]
    fn only_reads_go_to_secondaries() {
        for spec in COMMANDS.iter().filter(|spec| spec.secondary_ok) {
            assert_eq!((spec.effect, spec.handling), (Effect::Read, Handling::Pass), "{}", spec.name);
        }
    }

    #[test]
    fn commands_among_servers_are_unknown_to_clients() {
        assert_eq!(lookup(b"_configsvrAddShard").handling, Handling::Internal);
        assert_eq!(lookup(b"prepareTransaction").handling, Handling::Internal);
    }
}
