//! The modes of a cluster, and what each of them means for which command.
//!
//! ```text
//!                 what is open      what only reads     what may write
//! normal          passes            passes              passes
//! read-only       passes            passes              refused, in open transactions, too
//! maintenance     passes            held, or refused    held, or refused
//! ```
//!
//! What is open is what a transaction or a cursor goes on with or ends with. Commands that the proxy answers itself, hello
//! first, never come here.

use std::fmt;

use super::pauses::Pauses;
use crate::command::{Command, Handling};

/// How far a cluster serves, by order of its operator.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Mode {
    /// Everything.
    #[default]
    Normal,
    /// Nothing that may write.
    ReadOnly,
    /// Nothing new.
    Maintenance {
        /// New commands wait for the end of the mode; else they are refused at once.
        hold: bool,
    },
}

impl fmt::Display for Mode {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Normal => "normal",
            Self::ReadOnly => "read-only",
            Self::Maintenance { .. } => "maintenance",
        })
    }
}

/// What a command is to a mode.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Bearing {
    /// Goes on with an open transaction or cursor, or ends it.
    pub continues: bool,
    /// Changes data, or is not known not to.
    pub may_write: bool,
}

impl Bearing {
    /// Of a command.
    pub fn of(command: &Command) -> Self {
        let session = &command.session;
        let continues = match command.spec.handling {
            Handling::GetMore | Handling::KillCursors | Handling::EndTransaction | Handling::EndSessions => true,
            Handling::Pass | Handling::Local(_) | Handling::Refuse | Handling::Internal => {
                session.transaction().is_some() && !session.starts_transaction
            }
        };
        Self { continues, may_write: command.may_write() }
    }
}

/// What becomes of a command.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Ruling {
    /// It goes on.
    Pass,
    /// It waits for another mode.
    Hold,
    /// Refused, because it may write.
    RefuseWrite,
    /// Refused, because it is new.
    RefuseNew,
}

/// What an operator has ordered about the commands of a cluster.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Orders {
    /// How far it serves.
    pub mode: Mode,
    /// What waits for the time being, whatever the mode.
    pub pauses: Pauses,
}

impl Orders {
    /// True where nothing is held or refused.
    pub fn is_normal(&self) -> bool {
        self.mode == Mode::Normal && self.pauses.is_empty()
    }

    /// Decides about a command on `database`. Who is refused anyway does not wait for it.
    pub fn rules(&self, bearing: Bearing, database: &str) -> Ruling {
        self.with_pause(bearing, self.pauses.holds(database))
    }

    /// As [`Orders::rules`] for one that waits for its turn already: the pause of a database lets it go on.
    pub fn rules_waiting(&self, bearing: Bearing) -> Ruling {
        self.with_pause(bearing, self.pauses.is_whole())
    }

    fn with_pause(&self, bearing: Bearing, is_paused: bool) -> Ruling {
        match self.mode.rules(bearing) {
            Ruling::Pass if is_paused && !bearing.continues => Ruling::Hold,
            ruling => ruling,
        }
    }
}

impl Mode {
    /// Decides about a command.
    pub fn rules(self, bearing: Bearing) -> Ruling {
        match self {
            Self::ReadOnly if bearing.may_write => Ruling::RefuseWrite,
            Self::Maintenance { hold: true } if !bearing.continues => Ruling::Hold,
            Self::Maintenance { hold: false } if !bearing.continues => Ruling::RefuseNew,
            Self::Normal | Self::ReadOnly | Self::Maintenance { .. } => Ruling::Pass,
        }
    }
}

#[cfg(test)]
mod tests {
    use bson::{Document, doc};

    use super::*;
    use crate::command::kind::COMMANDS;
    use crate::wire::encode;

    const HOLDING: Mode = Mode::Maintenance { hold: true };
    const REFUSING: Mode = Mode::Maintenance { hold: false };

    fn bearing(mut document: Document) -> Bearing {
        document.insert("$db", "d");
        let mut frame = encode::op_msg(1, 0, &bson::RawDocumentBuf::try_from(&document).unwrap());
        Bearing::of(&Command::parse(&mut frame).unwrap())
    }

    /// Read-only, holding, refusing; `.` passes, `h` is held, `w` and `n` are refused.
    fn rulings(document: Document) -> String {
        let bearing = bearing(document);
        assert_eq!(Mode::Normal.rules(bearing), Ruling::Pass);
        let letter = |mode: Mode| match mode.rules(bearing) {
            Ruling::Pass => '.',
            Ruling::Hold => 'h',
            Ruling::RefuseWrite => 'w',
            Ruling::RefuseNew => 'n',
        };
        [Mode::ReadOnly, HOLDING, REFUSING].into_iter().map(letter).collect()
    }

    fn in_transaction(mut document: Document) -> Document {
        let lsid = doc! {"id": bson::Uuid::from_bytes([4; 16])};
        document.extend(doc! {"lsid": lsid, "txnNumber": 3_i64, "autocommit": false});
        document
    }

    fn starting(document: Document) -> Document {
        let mut document = in_transaction(document);
        document.insert("startTransaction", true);
        document
    }

    #[test]
    fn every_command_that_goes_upstream_in_every_mode() {
        let goes = |handling| !matches!(handling, Handling::Local(_) | Handling::Refuse | Handling::Internal);
        let by_ruling = |expected: &str| {
            let names = COMMANDS.iter().filter(|spec| goes(spec.handling)).map(|spec| spec.name);
            names.filter(|name| rulings(doc! {*name: "c"}) == expected).collect::<Vec<_>>().join(" ")
        };
        assert_eq!(by_ruling("..."), "getMore commitTransaction abortTransaction killCursors endSessions");
        assert_eq!(
            by_ruling("whn"),
            "insert update delete findAndModify bulkWrite findandmodify create createIndexes drop dropDatabase dropIndexes \
             deleteIndexes collMod renameCollection convertToCapped cloneCollectionAsCapped compact reIndex configureFailPoint"
        );
        assert_eq!(
            by_ruling(".hn"),
            "find aggregate count distinct ping refreshSessions startSession buildInfo buildinfo listCollections listIndexes \
             listDatabases listCommands explain mapReduce mapreduce collStats collstats dbStats dbstats dataSize datasize \
             geoSearch getParameter serverStatus hostInfo currentOp validate killOp killSessions usersInfo rolesInfo \
             replSetGetStatus replSetGetConfig replSetGetRBID getLog getCmdLineOpts getDefaultRWConcern getClusterParameter \
             getDiagnosticData getFreeMonitoringStatus top lockInfo features availableQueryOptions dbHash dbhash filemd5 \
             planCacheListFilters validateDBMetadata listShards balancerStatus balancerCollectionStatus getShardMap \
             getShardVersion shardingState isdbgrid"
        );
        let counted = ["...", "whn", ".hn"].map(|ruling| by_ruling(ruling).split(' ').count()).iter().sum::<usize>();
        assert_eq!(counted, COMMANDS.iter().filter(|spec| goes(spec.handling)).count(), "no other ruling");
    }

    #[test]
    fn fields_decide_where_the_name_does_not() {
        for (document, expected) in [
            (doc! {"aggregate": "c", "pipeline": [{"$match": {}}]}, ".hn"),
            (doc! {"aggregate": "c", "pipeline": [{"$match": {}}, {"$out": "x"}]}, "whn"),
            (doc! {"aggregate": "c", "pipeline": [{"$merge": {"into": "x"}}]}, "whn"),
            (doc! {"mapReduce": "c", "out": {"inline": 1}}, ".hn"),
            (doc! {"mapReduce": "c", "out": "x"}, "whn"),
            (doc! {"validate": "c", "repair": true}, "whn"),
            (doc! {"explain": {"delete": "c", "deletes": []}}, ".hn"),
            // Nobody knows what they do.
            (doc! {"createUser": "u"}, "whn"),
            (doc! {"madeUp": 1}, "whn"),
            (doc! {"getMore": 5_i64, "collection": "c"}, "..."),
        ] {
            assert_eq!(rulings(document.clone()), expected, "{document}");
        }
    }

    #[test]
    fn an_open_transaction_goes_on_and_a_new_one_is_new() {
        for (name, alone, first, next) in [
            ("find", ".hn", ".hn", "..."),
            ("insert", "whn", "whn", "w.."),
            ("create", "whn", "whn", "w.."),
            ("madeUp", "whn", "whn", "w.."),
            ("getMore", "...", "...", "..."),
            ("commitTransaction", "...", "...", "..."),
            ("abortTransaction", "...", "...", "..."),
        ] {
            let command = || doc! {name: 1};
            let found = [command(), starting(command()), in_transaction(command())].map(rulings);
            assert_eq!(found, [alone, first, next], "{name}");
        }
        // What only claims to belong to one, without its number, is new.
        assert_eq!(rulings(doc! {"find": "c", "autocommit": false}), ".hn");
    }

    #[test]
    fn a_pause_holds_what_is_new_on_its_database_and_lets_go_who_waits_for_its_turn_already() {
        let [find, get_more, insert] =
            [doc! {"find": "c"}, doc! {"getMore": 5_i64, "collection": "c"}, doc! {"insert": "c"}].map(bearing);
        let mut orders = Orders::default();
        assert!(orders.is_normal());
        orders.pauses.pause(Some("d"), None).unwrap();
        assert!(!orders.is_normal());
        assert_eq!((orders.rules(find, "d"), orders.rules(find, "other")), (Ruling::Hold, Ruling::Pass));
        assert_eq!((orders.rules(get_more, "d"), orders.rules_waiting(find)), (Ruling::Pass, Ruling::Pass));
        orders.pauses.pause(None, None).unwrap();
        assert_eq!((orders.rules(find, "other"), orders.rules_waiting(find)), (Ruling::Hold, Ruling::Hold));
        assert_eq!(orders.rules_waiting(get_more), Ruling::Pass);
        orders.mode = Mode::ReadOnly;
        assert_eq!(orders.rules(insert, "d"), Ruling::RefuseWrite, "it would wait in vain");
        orders.pauses.resume(None);
        assert!(!orders.is_normal());
    }

    #[test]
    fn modes_are_shown_by_their_names() {
        let shown = [Mode::default(), Mode::ReadOnly, HOLDING, REFUSING].map(|mode| mode.to_string());
        assert_eq!(shown, ["normal", "read-only", "maintenance", "maintenance"]);
    }
}
