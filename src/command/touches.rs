//! Which collections and databases a command touches: all that it names, and not only `$db`. What is not known for certain
//! touches everything.
//!
//! A view stands for itself, as in MongoDB's own rights: who may read it reads what it shows.

use super::kind;
use super::parse::Command;
use crate::wire::document::{find, kind as bson_kind};
use crate::wire::{Element, Elements, Frame};

/// Pipelines within pipelines are followed this deep; servers allow 20 levels.
const MAX_PIPELINE_DEPTH: usize = 24;

/// The collection that holds the raw data of a time series of that name has this before it.
const BUCKETS: &str = "system.buckets.";

/// What a command touches.
#[derive(Debug, Default, PartialEq, Eq)]
pub struct Touches<'a> {
    /// Database and collection.
    pub collections: Vec<(&'a str, &'a str)>,
    /// Databases as a whole.
    pub databases: Vec<&'a str>,
    /// Databases of which it tells what is in them, but not the data.
    pub described: Vec<&'a str>,
    /// All there is, for all we know.
    pub everything: bool,
    /// A pipeline in it writes, for all we know.
    pub writes: bool,
}

impl Command {
    /// What it touches.
    pub fn touches<'a>(&self, frame: &'a Frame) -> Touches<'a> {
        let (document, database) = (self.document(frame), self.database(frame));
        let mut touches = Touches::default();
        touches.command(document, database);
        // A server puts a sequence in the place of a field: what it names is not seen above.
        let known: [&[u8]; 5] = [b"documents", b"updates", b"deletes", b"ops", b"nsInfo"];
        touches.everything |= self.sequence_documents(frame).any(|(name, _)| !known.contains(&name));
        if self.spec.name == "bulkWrite" {
            let sequences = self.sequence_documents(frame).filter(|(name, _)| *name == b"nsInfo");
            touches.namespaces(sequences.map(|(_, document)| document));
            touches.everything |= touches.collections.is_empty();
        }
        touches
    }
}

impl<'a> Touches<'a> {
    fn command(&mut self, document: &'a [u8], database: &'a str) {
        let first = Elements::new(document).ok().and_then(|mut elements| elements.next()?.ok());
        let Some(first) = first else { return self.everything = true };
        match kind::lookup(first.name).name {
            "find"
            | "insert"
            | "update"
            | "delete"
            | "findAndModify"
            | "findandmodify"
            | "count"
            | "distinct"
            | "listIndexes"
            | "collStats"
            | "collstats"
            | "createIndexes"
            | "drop"
            | "dropIndexes"
            | "deleteIndexes"
            | "compact"
            | "reIndex"
            | "convertToCapped"
            | "validate"
            | "planCacheListFilters" => {
                self.collection(&first, database);
            }
            "aggregate" => {
                match first.kind {
                    bson_kind::STRING => self.collection(&first, database),
                    _ => self.whole(database),
                }
                self.pipeline_of(document, database, 0);
            }
            // Of a view and of what it shows.
            "create" | "collMod" => {
                self.collection(&first, database);
                if let Some(on) = find(document, b"viewOn") {
                    self.collection(&on, database);
                }
                self.pipeline_of(document, database, 0);
            }
            "mapReduce" | "mapreduce" => {
                self.collection(&first, database);
                self.output_of_map_reduce(document, database);
            }
            "getMore" => match find(document, b"collection") {
                // Its cursor was opened by a command that was judged.
                Some(collection) if collection.as_str().is_some_and(|name| name.starts_with("$cmd.")) => {}
                Some(collection) => self.collection(&collection, database),
                None => self.everything = true,
            },
            "renameCollection" => {
                self.namespace(Some(first));
                self.namespace(find(document, b"to"));
            }
            "dataSize" | "datasize" => self.namespace(Some(first)),
            "cloneCollectionAsCapped" => {
                self.collection(&first, database);
                match find(document, b"toCollection") {
                    Some(to) => self.collection(&to, database),
                    None => self.everything = true,
                }
            }
            "bulkWrite" => {
                let listed = find(document, b"nsInfo").and_then(|list| list.as_document());
                let listed = listed.into_iter().flat_map(|list| Elements::new(list).into_iter().flatten());
                self.namespaces(listed.map_while(Result::ok).filter_map(|item| item.as_document()));
            }
            // What it explains may not stand in it again: no server takes that.
            "explain" => match first.as_document() {
                Some(inner) if !is_explain(inner) => self.command(inner, database),
                _ => self.everything = true,
            },
            "dropDatabase" | "dbHash" | "dbhash" => self.whole(database),
            "listCollections" | "dbStats" | "dbstats" => self.described.push(database),
            "ping"
            | "buildInfo"
            | "buildinfo"
            | "listCommands"
            | "listDatabases"
            | "getParameter"
            | "serverStatus"
            | "hostInfo"
            | "startSession"
            | "refreshSessions"
            | "killSessions"
            | "killOp"
            | "features"
            | "isdbgrid"
            | "replSetGetStatus"
            | "replSetGetConfig"
            | "getDefaultRWConcern"
            | "balancerStatus" => {}
            _ => self.everything = true,
        }
    }

    fn collection(&mut self, name: &Element<'a>, database: &'a str) {
        match name.as_str() {
            // Every view of the database is defined in it.
            Some("system.views") => self.whole(database),
            Some(name) => self.collections.push((database, name.strip_prefix(BUCKETS).unwrap_or(name))),
            // A collection can also be told by its UUID, which could be any.
            None => self.everything = true,
        }
    }

    fn namespace(&mut self, namespace: Option<Element<'a>>) {
        match namespace.and_then(|namespace| namespace.as_str()?.split_once('.')) {
            Some((database, name)) => {
                self.collections.push((database, name.strip_prefix(BUCKETS).unwrap_or(name)));
            }
            None => self.everything = true,
        }
    }

    fn namespaces(&mut self, listed: impl Iterator<Item = &'a [u8]>) {
        listed.for_each(|document| self.namespace(find(document, b"ns")));
    }

    /// On `admin` a pipeline of no collection can tell of all databases.
    fn whole(&mut self, database: &'a str) {
        self.databases.push(database);
        self.everything |= database == "admin";
    }

    fn output_of_map_reduce(&mut self, document: &'a [u8], database: &'a str) {
        let Some(out) = find(document, b"out") else { return };
        let Some(fields) = out.as_document() else { return self.collection(&out, database) };
        let database = find(fields, b"db").map_or(Some(database), |other| other.as_str());
        for action in [b"replace".as_slice(), b"merge", b"reduce"] {
            match (find(fields, action), database) {
                (Some(collection), Some(database)) => self.collection(&collection, database),
                (Some(_), None) => self.everything = true,
                (None, _) => {}
            }
        }
    }

    fn pipeline_of(&mut self, document: &'a [u8], database: &'a str, depth: usize) {
        if let Some(pipeline) = find(document, b"pipeline") {
            self.pipeline(&pipeline, database, depth);
        }
    }

    fn pipeline(&mut self, pipeline: &Element<'a>, database: &'a str, depth: usize) {
        let stages =
            pipeline.as_document().filter(|_| depth < MAX_PIPELINE_DEPTH).and_then(|it| Elements::new(it).ok());
        let Some(stages) = stages else { return self.unknown() };
        for stage in stages {
            let stage = stage.ok().and_then(|stage| Elements::new(stage.as_document()?).ok()?.next()?.ok());
            match stage {
                Some(stage) => self.stage(&stage, database, depth.saturating_add(1)),
                // No stage at all: the server refuses it.
                None => self.unknown(),
            }
        }
    }

    fn unknown(&mut self) {
        (self.everything, self.writes) = (true, true);
    }

    fn stage(&mut self, stage: &Element<'a>, database: &'a str, depth: usize) {
        let fields = || stage.as_document();
        match stage.name {
            b"$addFields"
            | b"$bucket"
            | b"$bucketAuto"
            | b"$changeStreamSplitLargeEvent"
            | b"$collStats"
            | b"$count"
            | b"$densify"
            | b"$documents"
            | b"$fill"
            | b"$geoNear"
            | b"$group"
            | b"$indexStats"
            | b"$limit"
            | b"$listSearchIndexes"
            | b"$match"
            | b"$planCacheStats"
            | b"$project"
            | b"$redact"
            | b"$replaceRoot"
            | b"$replaceWith"
            | b"$sample"
            | b"$score"
            | b"$search"
            | b"$searchMeta"
            | b"$set"
            | b"$setWindowFields"
            | b"$skip"
            | b"$sort"
            | b"$sortByCount"
            | b"$unset"
            | b"$unwind"
            | b"$vectorSearch" => {}
            b"$changeStream" => {
                let all = fields().and_then(|fields| find(fields, b"allChangesForCluster"));
                self.everything |= all.is_some_and(|all| all.as_truth() != Some(false));
            }
            b"$currentOp"
            | b"$listCatalog"
            | b"$listClusterCatalog"
            | b"$listLocalSessions"
            | b"$listSessions"
            | b"$listSampledQueries"
            | b"$queryStats"
            | b"$querySettings"
            | b"$sharedDataDistribution" => {
                self.everything = true;
            }
            b"$lookup" | b"$graphLookup" => match fields() {
                Some(fields) => {
                    // Without one it joins with documents that stand in its own pipeline.
                    if let Some(from) = find(fields, b"from") {
                        self.collection_of(&from, b"coll", database);
                    }
                    self.pipeline_of(fields, database, depth);
                }
                None => self.unknown(),
            },
            b"$unionWith" => {
                match (stage.as_str(), fields().and_then(|fields| find(fields, b"coll"))) {
                    (None, Some(_)) | (Some(_), _) => self.collection_of(stage, b"coll", database),
                    (None, None) if fields().is_none() => self.unknown(),
                    (None, None) => {}
                }
                if let Some(fields) = fields() {
                    self.pipeline_of(fields, database, depth);
                }
            }
            b"$facet" => match fields().and_then(|fields| Elements::new(fields).ok()) {
                Some(facets) => facets.for_each(|facet| match facet {
                    Ok(facet) => self.pipeline(&facet, database, depth),
                    Err(_) => self.unknown(),
                }),
                None => self.unknown(),
            },
            b"$out" => {
                self.writes = true;
                self.collection_of(stage, b"coll", database);
            }
            b"$merge" => {
                self.writes = true;
                match fields().map_or(Some(*stage), |fields| find(fields, b"into")) {
                    Some(into) => self.collection_of(&into, b"coll", database),
                    None => self.everything = true,
                }
            }
            _ => self.unknown(),
        }
    }

    /// A collection as `"name"` or as `{db: "database", coll: "name"}`.
    fn collection_of(&mut self, told: &Element<'a>, field: &[u8], database: &'a str) {
        let Some(fields) = told.as_document() else { return self.collection(told, database) };
        let database = find(fields, b"db").map_or(Some(database), |other| other.as_str());
        match (find(fields, field), database) {
            (Some(name), Some(database)) => self.collection(&name, database),
            _ => self.everything = true,
        }
    }
}

fn is_explain(command: &[u8]) -> bool {
    let first = Elements::new(command).ok().and_then(|mut elements| elements.next()?.ok());
    first.is_none_or(|first| kind::lookup(first.name).name == "explain")
}
