//! The table as a JSON schema, for editors.

use serde_json::{Map, Value, json};

use super::{Change, Item, Key, Kind, Place, at};
use crate::config::limits::MAX_DATABASE_ROUTES;

/// Of an address: what else is wrong with one is told when it is read.
const ADDRESS: &str = "^(unix:.+|.+:[0-9]{1,5})$";

/// The schema of the configuration file.
pub fn schema() -> Value {
    let top = [Place::Program, Place::Cluster, Place::Listener];
    let mut schema = object(&top);
    schema["$schema"] = json!("https://json-schema.org/draft/2020-12/schema");
    schema["title"] = json!("mongomux");
    schema["description"] =
        json!("Configuration file of mongomux, in TOML. x-reload says whether a change needs a restart.");
    // With tables of clusters, the keys of clusters stand in them.
    let elsewhere = object(&[Place::Cluster, Place::Listener]);
    let elsewhere = elsewhere["properties"].as_object().into_iter().flat_map(Map::keys);
    let elsewhere: Map<String, Value> = elsewhere.map(|key| (key.clone(), Value::Bool(false))).collect();
    schema["dependentSchemas"] = json!({"cluster": {"properties": elsewhere}});
    schema
}

/// A table that has the keys of these places.
fn object(places: &[Place]) -> Value {
    let mut properties = Map::new();
    let mut required = Vec::new();
    for key in places.iter().flat_map(|&place| at(place)) {
        if key.is_needed() {
            required.push(key.name);
        }
        match key.name.split_once('.') {
            None => drop(properties.insert(key.name.to_owned(), of_key(key))),
            Some((table, name)) => {
                let empty = || json!({"type": "object", "additionalProperties": false, "properties": {}});
                properties.entry(table).or_insert_with(empty)["properties"][name] = of_key(key);
            }
        }
    }
    let mut object = json!({"type": "object", "additionalProperties": false, "properties": properties});
    if !required.is_empty() {
        object["required"] = json!(required);
    }
    object
}

fn of_key(key: &Key) -> Value {
    let mut schema = of_kind(&key.kind);
    schema["description"] = json!(key.meaning);
    schema["x-reload"] = json!(key.change.name());
    if let Some(default) = key.default() {
        schema["default"] = json!(default);
    }
    schema
}

fn of_kind(kind: &Kind) -> Value {
    match *kind {
        Kind::Number(limit) => {
            let range = json!({"type": "integer", "minimum": limit.min, "maximum": limit.max});
            match limit.zero {
                Some(meaning) => json!({"anyOf": [{"const": 0, "description": meaning}, range]}),
                None => range,
            }
        }
        Kind::Flag => json!({"type": "boolean"}),
        Kind::Choice { words, .. } => json!({"enum": words()}),
        Kind::Text { most, .. } => json!({"type": "string", "minLength": 1, "maxLength": most}),
        Kind::ConnectionString { .. } => json!({"type": "string", "pattern": "^mongodb(\\+srv)?://"}),
        Kind::File => json!({"type": "string", "minLength": 1}),
        Kind::Address { .. } => json!({"type": "string", "pattern": ADDRESS}),
        Kind::List { of, least, most } => {
            let item = of_item(of);
            let list = json!({"type": "array", "items": item, "minItems": least, "maxItems": most});
            json!({"anyOf": [item, list]})
        }
        Kind::Databases => json!({
            "type": "object", "additionalProperties": {"type": "string"},
            "minProperties": 1, "maxProperties": MAX_DATABASE_ROUTES,
        }),
        Kind::Tables { of, most } => json!({"type": "array", "items": object(of), "minItems": 1, "maxItems": most}),
    }
}

fn of_item(item: Item) -> Value {
    match item {
        Item::Address => json!({"type": "string", "pattern": ADDRESS}),
        Item::Compressor => json!({"enum": ["snappy", "zlib", "zstd"]}),
        Item::Command => json!({"type": "string", "pattern": "^[A-Za-z0-9_]{1,64}$"}),
        Item::Namespace => json!({"type": "string", "pattern": "^([*]|[^.*]+[.]([*]|[^*]+))$"}),
        Item::Database => json!({"type": "string", "pattern": "^([^*]{1,128}[*]?|[*])$"}),
    }
}

impl Change {
    /// As JSON says it.
    pub(in crate::config) const fn name(self) -> &'static str {
        match self {
            Self::Live => "live",
            Self::Restart => "restart",
        }
    }
}
