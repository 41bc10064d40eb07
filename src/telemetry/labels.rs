//! The closed sets that metric labels come from. What a client sends never becomes a label: a command of unknown name
//! is `other`.

/// A label of a metric: an enum whose every value is known beforehand.
pub trait Label: Copy + 'static {
    /// Name of the label: `reason`.
    const NAME: &'static str;
    /// Every value, ordered by [`Self::index`].
    const ALL: &'static [Self];

    /// The value as `/metrics` shows it.
    fn as_str(self) -> &'static str;

    /// Place in [`Self::ALL`].
    fn index(self) -> usize;
}

macro_rules! labels {
    ($($(#[$doc:meta])* $label:literal: $name:ident { $($variant:ident = $text:literal,)+ })+) => {$(
        $(#[$doc])*
        #[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
        pub enum $name {
            $(#[doc = concat!("`", $text, "`")] $variant,)+
        }

        impl Label for $name {
            const NAME: &'static str = $label;
            const ALL: &'static [Self] = &[$(Self::$variant,)+];

            fn as_str(self) -> &'static str {
                match self {
                    $(Self::$variant => $text,)+
                }
            }

            fn index(self) -> usize {
                self as usize
            }
        }

        impl $name {
            /// The value of that text.
            pub fn from_text(text: &str) -> Option<Self> {
                match text {
                    $($text => Some(Self::$variant),)+
                    _ => None,
                }
            }
        }
    )+};
}

labels! {
    /// Commands worth a line of their own; see [`CommandLabel::of`].
    "command": CommandLabel {
        Find = "find",
        Insert = "insert",
        Update = "update",
        Delete = "delete",
        Aggregate = "aggregate",
        Count = "count",
        Distinct = "distinct",
        FindAndModify = "findAndModify",
        GetMore = "getMore",
        KillCursors = "killCursors",
        CommitTransaction = "commitTransaction",
        AbortTransaction = "abortTransaction",
        BulkWrite = "bulkWrite",
        Hello = "hello",
        Ping = "ping",
        BuildInfo = "buildInfo",
        EndSessions = "endSessions",
        ListCollections = "listCollections",
        ListIndexes = "listIndexes",
        ListDatabases = "listDatabases",
        CreateIndexes = "createIndexes",
        Create = "create",
        Drop = "drop",
        Explain = "explain",
        Sasl = "sasl",
        Other = "other",
    }

    /// How a command ended: with a good reply, with an error from upstream, with an error of ours and nothing sent,
    /// or with nobody left to tell.
    "outcome": Outcome {
        Completed = "completed",
        Failed = "failed",
        Refused = "refused",
        Abandoned = "abandoned",
    }

    /// Shares of a pool, each kept for one kind of work.
    "lane": Lane {
        Transaction = "transaction",
        Regular = "regular",
        Await = "await",
        Background = "background",
    }

    /// Who a socket belongs to.
    "side": Side {
        Client = "client",
        Upstream = "upstream",
    }

    /// Toward whom a certificate is shown.
    "side": CertificateSide {
        Client = "client",
        Upstream = "upstream",
        Admin = "admin",
    }

    /// A client is active from the first byte of a request to the last of its reply.
    "state": ClientState {
        Active = "active",
        Idle = "idle",
    }

    /// Why a client's socket was closed. `proxy_header` is a header of the PROXY protocol that is missing or broken, `tls` a
    /// handshake that failed, or TLS where there is none, `max_clients_per_address` that its address has too many, `unauthenticated`
    /// sent too much before it had logged in, `revoked` belonged to a user that was dropped or has another password now, `killed` was
    /// ended by an operator, `proxy` by a decision of ours that none of the others names. `handed_over` sockets are not closed: the next
    /// process goes on with them, and `drain` are those that could not be handed over.
    "reason": ClientClosed {
        ClientLeft = "client_left",
        Idle = "idle",
        Stalled = "stalled",
        HandshakeTimeout = "handshake_timeout",
        ProtocolError = "protocol_error",
        ProxyHeader = "proxy_header",
        Tls = "tls",
        MaxClientsPerAddress = "max_clients_per_address",
        Drain = "drain",
        HandedOver = "handed_over",
        Unauthenticated = "unauthenticated",
        Revoked = "revoked",
        Killed = "killed",
        Proxy = "proxy",
    }

    /// What clients log in with.
    "mechanism": LogInMechanism {
        ScramSha1 = "SCRAM-SHA-1",
        ScramSha256 = "SCRAM-SHA-256",
        Plain = "PLAIN",
        X509 = "MONGODB-X509",
    }

    /// How a log-in ended: `paused` was not looked at after many that failed, `unavailable` could not be.
    "outcome": LogInOutcome {
        Succeeded = "succeeded",
        Failed = "failed",
        Paused = "paused",
        Unavailable = "unavailable",
    }

    /// Connections of a pool, in CMAP's words.
    "state": ConnectionState {
        Available = "available",
        InUse = "in_use",
        Pending = "pending",
    }

    /// Why an upstream connection was closed: CMAP's reasons, the scheduled refresh, and what the proxy or its operator has
    /// other use for.
    "reason": ConnectionClosed {
        Stale = "stale",
        Idle = "idle",
        Error = "error",
        PoolClosed = "pool_closed",
        Lifetime = "lifetime",
        Turnover = "turnover",
        Revoked = "revoked",
        Shrunk = "shrunk",
        Ordered = "ordered",
    }

    /// Why a command was refused for lack of room; `unacknowledged` are writes that could be dropped without a word.
    "reason": ShedReason {
        QueueFull = "queue_full",
        QueueBytes = "queue_bytes",
        Tenant = "tenant",
        QueueTimeout = "queue_timeout",
        QueueStands = "queue_stands",
        Memory = "memory",
        MaxClients = "max_clients",
        MaxClientsPerAddress = "max_clients_per_address",
        Unacknowledged = "unacknowledged",
    }

    /// Which rule refused a command. `listed` are those that nobody may send through a shared connection.
    "reason": RefusedReason {
        Listed = "listed",
        ReadOnly = "read_only",
        Command = "command",
        Namespace = "namespace",
    }

    /// Why a command was sent again: it had not been sent whole, or it is of a kind that may run twice.
    "reason": RetryReason {
        NotSent = "not_sent",
        Read = "read",
        Write = "write",
        Commit = "commit",
        Abort = "abort",
        Cleanup = "cleanup",
    }

    /// What binds commands to one server.
    "kind": PinKind {
        Cursor = "cursor",
        Transaction = "transaction",
    }

    /// What is held for long.
    "what": LongHeldKind {
        Command = "command",
        Cursor = "cursor",
        Transaction = "transaction",
    }

    /// Why the proxy has aborted a transaction: its client was idle for too long, its clients have gone, or the reply to one of
    /// its statements was lost.
    "reason": TransactionEnd {
        Idle = "idle",
        Orphaned = "orphaned",
        ReplyLost = "reply_lost",
    }

    /// A breaker's states; their order is the value of `breaker_state`.
    "to": BreakerLabel {
        Closed = "closed",
        HalfOpen = "half_open",
        Open = "open",
    }

    /// Why a breaker opened.
    "reason": TripLabel {
        ConsecutiveFailures = "consecutive_failures",
        SuccessRate = "success_rate",
        ProbeFailed = "probe_failed",
        Operator = "operator",
    }

    /// What happens to a server: it is reached for the first time, something fails with it, it is lost, it is reached again.
    "event": ServerEvent {
        Connected = "connected",
        Error = "error",
        Disconnected = "disconnected",
        Reconnected = "reconnected",
    }

    /// What is worth to be remembered for a while; see `/events`. `error` is a connection that broke or could not be had, `role` a
    /// server that became something else, `refresh` connections that were replaced, `action` any order to the admin port, `user`
    /// users or credentials that changed.
    "kind": EventKind {
        Connected = "connected",
        Error = "error",
        Disconnected = "disconnected",
        Reconnected = "reconnected",
        ServerFound = "server_found",
        ServerLeft = "server_left",
        Role = "role",
        Breaker = "breaker",
        PoolCleared = "pool_cleared",
        Refresh = "refresh",
        Reload = "reload",
        Mode = "mode",
        Paused = "paused",
        Resumed = "resumed",
        Drain = "drain",
        Action = "action",
        User = "user",
        ClientKilled = "client_killed",
        CapWarning = "cap_warning",
    }

    /// SDAM's server types.
    "state": ServerState {
        Unknown = "unknown",
        Standalone = "standalone",
        Mongos = "mongos",
        Primary = "primary",
        Secondary = "secondary",
        Arbiter = "arbiter",
        Other = "other",
        Ghost = "ghost",
        LoadBalancer = "load_balancer",
    }
}

impl From<ServerEvent> for EventKind {
    fn from(event: ServerEvent) -> Self {
        match event {
            ServerEvent::Connected => Self::Connected,
            ServerEvent::Error => Self::Error,
            ServerEvent::Disconnected => Self::Disconnected,
            ServerEvent::Reconnected => Self::Reconnected,
        }
    }
}

impl CommandLabel {
    /// The label of the command of that name.
    pub fn of(name: &str) -> Self {
        match name {
            "isMaster" | "ismaster" => Self::Hello,
            "findandmodify" => Self::FindAndModify,
            "buildinfo" => Self::BuildInfo,
            "saslStart" | "saslContinue" => Self::Sasl,
            _ => Self::from_text(name).unwrap_or(Self::Other),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn check<L: Label + PartialEq + std::fmt::Debug>() {
        for (index, label) in L::ALL.iter().enumerate() {
            assert_eq!(label.index(), index);
            assert!(!L::ALL[..index].iter().any(|other| other.as_str() == label.as_str()), "{label:?} is there twice");
        }
    }

    #[test]
    fn indexes_point_back_and_texts_are_unique() {
        check::<CommandLabel>();
        check::<Outcome>();
        check::<Lane>();
        check::<ClientClosed>();
        check::<ConnectionState>();
        check::<ServerState>();
    }

    #[test]
    fn the_sets_are_the_documented_ones() {
        fn texts<L: Label>() -> String {
            let texts: Vec<&str> = L::ALL.iter().map(|label| label.as_str()).collect();
            format!("{}: {}", L::NAME, texts.join(" "))
        }
        assert_eq!(
            texts::<CommandLabel>(),
            "command: find insert update delete aggregate count distinct findAndModify getMore killCursors commitTransaction \
             abortTransaction bulkWrite hello ping buildInfo endSessions listCollections listIndexes listDatabases \
             createIndexes create drop explain sasl other"
        );
        assert_eq!(texts::<Outcome>(), "outcome: completed failed refused abandoned");
        assert_eq!(texts::<Lane>(), "lane: transaction regular await background");
        assert_eq!(texts::<Side>(), "side: client upstream");
        assert_eq!(texts::<CertificateSide>(), "side: client upstream admin");
        assert_eq!(texts::<ClientState>(), "state: active idle");
        assert_eq!(
            texts::<ClientClosed>(),
            "reason: client_left idle stalled handshake_timeout protocol_error proxy_header tls max_clients_per_address drain \
             handed_over unauthenticated revoked killed proxy"
        );
        assert_eq!(texts::<LogInMechanism>(), "mechanism: SCRAM-SHA-1 SCRAM-SHA-256 PLAIN MONGODB-X509");
        assert_eq!(texts::<LogInOutcome>(), "outcome: succeeded failed paused unavailable");
        assert_eq!(texts::<ConnectionState>(), "state: available in_use pending");
        assert_eq!(
            texts::<ConnectionClosed>(),
            "reason: stale idle error pool_closed lifetime turnover revoked shrunk ordered"
        );
        assert_eq!(
            texts::<ShedReason>(),
            "reason: queue_full queue_bytes tenant queue_timeout queue_stands memory max_clients \
             max_clients_per_address unacknowledged"
        );
        assert_eq!(texts::<RefusedReason>(), "reason: listed read_only command namespace");
        assert_eq!(texts::<RetryReason>(), "reason: not_sent read write commit abort cleanup");
        assert_eq!(texts::<PinKind>(), "kind: cursor transaction");
        assert_eq!(texts::<LongHeldKind>(), "what: command cursor transaction");
        assert_eq!(texts::<TransactionEnd>(), "reason: idle orphaned reply_lost");
        assert_eq!(texts::<BreakerLabel>(), "to: closed half_open open");
        assert_eq!(texts::<TripLabel>(), "reason: consecutive_failures success_rate probe_failed operator");
        assert_eq!(texts::<ServerEvent>(), "event: connected error disconnected reconnected");
        assert_eq!(
            texts::<EventKind>(),
            "kind: connected error disconnected reconnected server_found server_left role breaker pool_cleared refresh reload \
             mode paused resumed drain action user client_killed cap_warning"
        );
        for &event in ServerEvent::ALL {
            assert_eq!(EventKind::from(event).as_str(), event.as_str());
        }
        assert_eq!(
            texts::<ServerState>(),
            "state: unknown standalone mongos primary secondary arbiter other ghost load_balancer"
        );
    }

    #[test]
    fn commands_are_labelled_by_name_and_unknown_ones_as_other() {
        for label in CommandLabel::ALL {
            assert_eq!(CommandLabel::of(label.as_str()), *label);
        }
        for (name, label) in [
            ("isMaster", CommandLabel::Hello),
            ("ismaster", CommandLabel::Hello),
            ("saslContinue", CommandLabel::Sasl),
            ("findandmodify", CommandLabel::FindAndModify),
            ("Find", CommandLabel::Other),
            ("whatever a client sends", CommandLabel::Other),
        ] {
            assert_eq!(CommandLabel::of(name), label, "{name}");
        }
    }
}
