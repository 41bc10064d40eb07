//! The `mongodb` crate as a visitor of `tests/drivers/logins`; `python/visitor.py` says what is asked and answered.

use std::collections::HashMap;

use mongodb::Client;
use mongodb::bson::{Bson, Document, doc};
use mongodb::error::Error;
use serde_json::Value;

use crate::harness::{Result, code};

/// Obeys until there are no more orders.
pub async fn visit() -> Result {
    let mut clients = HashMap::new();
    for line in std::io::stdin().lines() {
        let order: Value = serde_json::from_str(&line?)?;
        let answer = match obey(&order, &mut clients).await {
            Ok(Some(reply)) => doc! { "reply": reply },
            Ok(None) => doc! {},
            Err(error) => doc! { "error": told(&error) },
        };
        println!("{}", Bson::from(answer).into_relaxed_extjson());
    }
    Ok(())
}

async fn obey(order: &Value, clients: &mut HashMap<String, Client>) -> mongodb::error::Result<Option<Document>> {
    let text = |key: &str| order[key].as_str().unwrap_or_default();
    if let Some(name) = order["open"].as_str() {
        clients.insert(name.to_owned(), Client::with_uri_str(text("uri")).await?);
    } else if let Some(name) = order["close"].as_str() {
        if let Some(client) = clients.remove(name) {
            client.shutdown().await;
        }
    } else {
        let client = clients.get(text("on")).ok_or_else(|| Error::custom("no such client"))?;
        let Ok(Bson::Document(command)) = Bson::try_from(order["run"].clone()) else {
            return Err(Error::custom("no command"));
        };
        return client.database(text("db")).run_command(command).await.map(Some);
    }
    Ok(None)
}

fn told(error: &Error) -> Document {
    let kind = format!("{:?}", error.kind);
    let kind = kind.split([' ', '(', '{']).next().unwrap_or_default();
    doc! { "kind": kind, "code": code(error), "message": error.kind.to_string() }
}
