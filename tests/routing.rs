//! Every command reaches a server that may carry it out, and what continues one goes where that one went.
//!
//! Which member did what is asked of the members themselves, through their profilers.
#![allow(clippy::unwrap_used, reason = "a test, its helpers included")]

mod support;

use std::collections::BTreeSet;

use bson::{Bson, Document, doc};
use mongomux::sandbox::deployment::Deployment;
use mongomux::sandbox::wire_client::WireClient;
use support::hold::eventually;
use support::proxy::{Proxy, proxy};
use support::{code_and_labels, connect, first_batch, new_lsid, next_batch};

/// Round trips on a busy machine say nothing about who is near; and who finds no server must not wait long.
const SETTINGS: &str = "local_threshold_ms = 60_000\nserver_selection_timeout_ms = 2_000\nmin_pool_size = 0";

/// The tag `dc` of each member.
const CENTRES: [&str; 3] = ["north", "east", "west"];

/// A set of three with tags and profilers, and a proxy that knows of both.
struct Set {
    deployment: Deployment,
    proxy: Proxy,
    primary: usize,
}

impl Set {
    async fn start() -> Self {
        let deployment = support::replica_set(3).await;
        let primary = deployment.primary().await.expect("a primary");
        let mut admin = support::client(&deployment.members()[primary]).await;
        let config = admin.command("admin", doc! { "replSetGetConfig": 1 }).await.unwrap();
        let mut config = config.get_document("config").unwrap().clone();
        for (member, centre) in config.get_array_mut("members").unwrap().iter_mut().zip(CENTRES) {
            let Bson::Document(member) = member else { panic!("{member}") };
            member.insert("tags", doc! { "dc": centre, "on": "loopback" });
        }
        config.insert("version", config.get_i32("version").unwrap() + 1);
        admin.command("admin", doc! { "replSetReconfig": config, "force": true }).await.unwrap();
        for member in deployment.members() {
            let profile = doc! { "profile": 2, "slowms": 0 };
            support::client(member).await.command("test", profile).await.unwrap();
        }
        deployment.await_members().await.unwrap();
        assert_eq!(deployment.primary().await, Some(primary), "no election has a reason here");
        let proxy = proxy(&deployment.uri(), SETTINGS).await;
        eventually("all members with their tags", async || {
            let topology = proxy.clusters()[0].topology();
            let tagged = topology.data_bearing().filter(|server| !server.tags.is_empty()).count();
            tagged == 3 && topology.primary().is_some()
        })
        .await;
        Self { deployment, proxy, primary }
    }

    async fn client(&self) -> WireClient {
        connect(self.proxy.address()).await
    }

    fn secondaries(&self) -> Vec<usize> {
        (0..3).filter(|index| *index != self.primary).collect()
    }

    /// What each member did on a collection of `test` for the proxy, by member: names of commands.
    async fn done(&self, collection: &str) -> Vec<(usize, String)> {
        let mut done = Vec::new();
        for (index, member) in self.deployment.members().iter().enumerate() {
            if member.pid().is_none() {
                continue;
            }
            let filter = doc! { "ns": format!("test.{collection}"), "appName": "mongomux" };
            let find = doc! {
                "find": "system.profile", "filter": filter, "batchSize": 10_000,
                "$readPreference": { "mode": "secondaryPreferred" },
            };
            let reply = support::client(member).await.command("test", find).await.unwrap();
            for entry in first_batch(&reply) {
                let command = entry.get_document("command").ok().and_then(|command| command.keys().next().cloned());
                done.push((index, command.unwrap_or_else(|| entry.get_str("op").unwrap().to_owned())));
            }
        }
        done
    }

    async fn members_that_worked_on(&self, collection: &str) -> BTreeSet<usize> {
        self.done(collection).await.into_iter().map(|(member, _)| member).collect()
    }
}

fn set(members: &[usize]) -> BTreeSet<usize> {
    members.iter().copied().collect()
}

#[tokio::test]
async fn a_replica_set_is_read_and_written_where_each_command_belongs() {
    let mut set = Set::start().await;
    reads_follow_their_preference(&set).await;
    preferences_are_what_the_specification_says(&set).await;
    reads_see_what_their_session_has_written(&set).await;
    cursors_of_several_servers_end_with_a_restart(&set).await;
    writes_go_to_the_primary_whatever_they_prefer(&set).await;
    impossible_preferences_are_refused(&set).await;
    cursors_are_continued_and_killed_where_they_live(&set).await;
    without_a_primary_only_reads_that_may_go_elsewhere_do(&mut set).await;
}

async fn reads_follow_their_preference(it: &Set) {
    let mut client = it.client().await;
    let (primary, secondaries, all) = (set(&[it.primary]), set(&it.secondaries()), set(&[0, 1, 2]));
    let first = it.secondaries()[0];
    let here = |index: usize| doc! { "dc": CENTRES[index] };
    let nowhere = doc! { "dc": "nowhere" };
    let cases: Vec<(&str, Option<Document>, &BTreeSet<usize>)> = vec![
        ("none", None, &primary),
        ("primary", Some(doc! { "mode": "primary" }), &primary),
        ("primary_preferred", Some(doc! { "mode": "primaryPreferred" }), &primary),
        ("secondary", Some(doc! { "mode": "secondary" }), &secondaries),
        ("secondary_preferred", Some(doc! { "mode": "secondaryPreferred" }), &secondaries),
        ("nearest", Some(doc! { "mode": "nearest" }), &all),
        ("fresh", Some(doc! { "mode": "secondary", "maxStalenessSeconds": 120 }), &secondaries),
        ("all_tags", Some(doc! { "mode": "nearest", "tags": [{ "on": "loopback" }] }), &all),
        ("else_primary", Some(doc! { "mode": "secondaryPreferred", "tags": [nowhere.clone()] }), &primary),
        ("else_any", Some(doc! { "mode": "secondary", "tags": [nowhere.clone(), {}] }), &secondaries),
        ("tagged_primary", Some(doc! { "mode": "nearest", "tags": [here(it.primary)] }), &primary),
    ];
    for (name, preference, expected) in &cases {
        let mut find = doc! { "find": *name };
        find.extend(preference.clone().map(|preference| doc! { "$readPreference": preference }).unwrap_or_default());
        // With three to choose from, sixty reads miss one of them once in many billions of runs.
        for _ in 0..60 {
            client.command("test", find.clone()).await.unwrap();
        }
        assert_eq!(it.members_that_worked_on(name).await, **expected, "{name}");
    }
    let only_first = set(&[first]);
    let preference = doc! { "mode": "secondary", "tags": [nowhere, here(first)] };
    let reads = [
        doc! { "find": "tags" },
        doc! { "aggregate": "tags", "pipeline": [{ "$match": { "x": 1 } }], "cursor": {} },
        doc! { "count": "tags" },
        doc! { "distinct": "tags", "key": "x" },
        doc! { "explain": { "find": "tags" } },
        doc! { "explain": { "aggregate": "tags", "pipeline": [{ "$match": { "x": 1 } }], "cursor": {} } },
        doc! { "explain": { "count": "tags" }, "verbosity": "executionStats" },
    ];
    for mut read in reads {
        read.insert("$readPreference", preference.clone());
        client.command("test", read).await.unwrap();
    }
    let done = it.done("tags").await;
    assert_eq!(done.iter().map(|(member, _)| *member).collect::<BTreeSet<_>>(), only_first, "{done:?}");
    assert!(done.len() >= 5, "{done:?}");
}

/// Every mode with every kind of tags, with a limit of staleness and without, hedged and not: only members that the server
/// selection specification names answer, and where it names none nobody does.
async fn preferences_are_what_the_specification_says(it: &Set) {
    const MODES: [&str; 5] = ["primary", "primaryPreferred", "secondary", "secondaryPreferred", "nearest"];
    let centre = |index: usize| doc! { "dc": CENTRES[index] };
    let [first, second] = it.secondaries()[..] else { panic!("two secondaries") };
    let nowhere = || doc! { "dc": "nowhere" };
    // With the members that have them, in the order in which they are tried.
    let all = vec![0, 1, 2];
    let tag_sets = [
        (None, vec![all.clone()]),
        (Some(vec![doc! {}]), vec![all.clone()]),
        (Some(vec![doc! { "on": "loopback" }]), vec![all.clone()]),
        (Some(vec![centre(first)]), vec![vec![first]]),
        (Some(vec![centre(it.primary)]), vec![vec![it.primary]]),
        (Some(vec![nowhere(), centre(second)]), vec![vec![], vec![second]]),
        (Some(vec![centre(it.primary), centre(first)]), vec![vec![it.primary], vec![first]]),
        (Some(vec![nowhere(), doc! {}]), vec![vec![], all.clone()]),
        (Some(vec![nowhere()]), vec![vec![]]),
    ];
    let mut cases = Vec::new();
    for mode in MODES {
        for (tags, members) in &tag_sets {
            for (stale, hedged) in [(false, false), (true, false), (false, true), (true, true)] {
                let mut preference = doc! { "mode": mode };
                preference.extend(tags.clone().map(|tags| doc! { "tags": tags }).unwrap_or_default());
                if stale {
                    preference.insert("maxStalenessSeconds", 90);
                }
                if hedged {
                    preference.insert("hedge", doc! { "enabled": true });
                }
                let expected = expected_members(it, mode, members);
                let is_refused =
                    mode == "primary" && (stale || hedged || tags.as_ref().is_some_and(|tags| tags != &[doc! {}]));
                cases.push((preference, expected, is_refused));
            }
        }
    }
    let checks = cases.iter().enumerate().map(|(number, (preference, expected, is_refused))| async move {
        let mut client = it.client().await;
        let name = format!("case{number}");
        let find = doc! { "find": &name, "$readPreference": preference.clone() };
        for _ in 0..6 {
            let reply = client.reply("test", find.clone()).await.unwrap();
            let code = reply.get_i32("code").unwrap_or_default();
            match (is_refused, expected.is_empty()) {
                // The server's own words: a preference for the primary has no further wishes.
                (true, _) => assert!([2, 72].contains(&code), "{preference}: {reply}"),
                (false, true) => {
                    assert_eq!(code, 6, "{preference}: {reply}");
                    return;
                }
                (false, false) => assert_eq!(code, 0, "{preference}: {reply}"),
            }
        }
    });
    futures_util::future::join_all(checks).await;
    let mut wrong = Vec::new();
    for (number, (preference, expected, is_refused)) in cases.iter().enumerate() {
        let answered = it.members_that_worked_on(&format!("case{number}")).await;
        let as_expected = answered.is_subset(expected) && answered.is_empty() == expected.is_empty();
        if !as_expected && !is_refused {
            wrong.push(format!("{preference}: {answered:?} answered, of {expected:?}"));
        }
    }
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
}

/// Who may answer, from the specification: filtered by mode, then by the first tag set that anybody has.
fn expected_members(it: &Set, mode: &str, tagged: &[Vec<usize>]) -> BTreeSet<usize> {
    let (primary, secondaries) = (set(&[it.primary]), set(&it.secondaries()));
    let of = |members: &BTreeSet<usize>| {
        let matching = tagged.iter().map(|tagged| members & &set(tagged));
        matching.into_iter().find(|matching| !matching.is_empty()).unwrap_or_default()
    };
    match mode {
        "primary" | "primaryPreferred" => primary,
        "secondary" => of(&secondaries),
        "secondaryPreferred" => Some(of(&secondaries)).filter(|found| !found.is_empty()).unwrap_or(primary),
        _ => of(&(&primary | &secondaries)),
    }
}

/// Causal consistency: a read on a secondary waits until that has what the session wrote on the primary.
async fn reads_see_what_their_session_has_written(it: &Set) {
    let mut client = it.client().await;
    let lsid = new_lsid();
    let mut answered = BTreeSet::new();
    for round in 0..150_i32 {
        let insert = doc! { "insert": "causal", "documents": [{ "_id": round }], "writeConcern": { "w": 1 }, "lsid": lsid.clone() };
        let written = client.command("test", insert).await.unwrap();
        assert!(written.contains_key("$clusterTime"), "{written}");
        let time = written.get_timestamp("operationTime").unwrap();
        let (preference, member) = match round % 3 {
            0 => (doc! { "mode": "secondary" }, None),
            other => {
                let member = it.secondaries()[usize::from(other == 2)];
                (doc! { "mode": "secondary", "tags": [{ "dc": CENTRES[member] }] }, Some(member))
            }
        };
        let find = doc! {
            "find": "causal", "filter": { "_id": round }, "readConcern": { "afterClusterTime": time },
            "$readPreference": preference, "lsid": lsid.clone(), "$clusterTime": written.get_document("$clusterTime").unwrap(),
        };
        let found = client.command("test", find).await.unwrap();
        assert_eq!(first_batch(&found), [doc! { "_id": round }]);
        answered.extend(member);
    }
    assert_eq!(answered, set(&it.secondaries()));
    let finds = it.done("causal").await.into_iter().filter(|(_, command)| command == "find");
    assert_eq!(finds.map(|(member, _)| member).collect::<BTreeSet<_>>(), set(&it.secondaries()));
}

/// Which member had one nobody knows any more, and no other is asked for it.
async fn cursors_of_several_servers_end_with_a_restart(it: &Set) {
    let mut client = it.client().await;
    let documents: Vec<Document> = (0..9).map(|id| doc! { "_id": id }).collect();
    client.command("test", doc! { "insert": "restarted", "documents": documents }).await.unwrap();
    let found = client.command("test", doc! { "find": "restarted", "batchSize": 2 }).await.unwrap();
    let id = found.get_document("cursor").unwrap().get_i64("id").unwrap();
    let restarted = proxy(&it.deployment.uri(), SETTINGS).await;
    let mut other = connect(restarted.address()).await;
    other.command("test", doc! { "ping": 1 }).await.unwrap();
    eventually("all members", async || restarted.clusters()[0].topology().data_bearing().count() == 3).await;
    let more = doc! { "getMore": id, "collection": "restarted" };
    let gone = other.reply("test", more.clone()).await.unwrap();
    assert_eq!(code_and_labels(&gone), (43, vec![]), "{gone}");
    let killed = other.command("test", doc! { "killCursors": "restarted", "cursors": [id] }).await.unwrap();
    assert_eq!(killed.get_array("cursorsNotFound").unwrap(), &[Bson::from(id)]);
    assert_eq!(next_batch(&client.command("test", more).await.unwrap()).len(), 7, "who knows it goes on");
}

async fn writes_go_to_the_primary_whatever_they_prefer(it: &Set) {
    let mut client = it.client().await;
    let writes = [
        doc! { "insert": "written", "documents": [{ "_id": 1, "n": 0 }] },
        doc! { "update": "written", "updates": [{ "q": { "_id": 1 }, "u": { "$inc": { "n": 1 } } }] },
        doc! { "findAndModify": "written", "query": { "_id": 1 }, "update": { "$inc": { "n": 1 } } },
        doc! { "aggregate": "written", "pipeline": [{ "$out": "copied" }], "cursor": {} },
        doc! { "aggregate": "written", "pipeline": [{ "$merge": { "into": "merged" } }], "cursor": {} },
        doc! { "createIndexes": "written", "indexes": [{ "key": { "n": 1 }, "name": "n" }] },
        doc! { "explain": { "aggregate": "written", "pipeline": [{ "$out": "copied" }], "cursor": {} } },
        doc! { "explain": { "delete": "written", "deletes": [{ "q": { "_id": 1 }, "limit": 1 }] } },
        doc! { "delete": "written", "deletes": [{ "q": { "_id": 1 }, "limit": 1 }] },
    ];
    for mut write in writes {
        write.insert("$readPreference", doc! { "mode": "secondary" });
        client.command("test", write).await.unwrap();
    }
    let done = it.done("written").await;
    assert!(done.iter().all(|(member, _)| *member == it.primary), "{done:?}");
    assert!(done.iter().filter(|(_, command)| command == "aggregate").count() == 2, "{done:?}");
    for copy in ["copied", "merged"] {
        assert_eq!(client.command("test", doc! { "count": copy }).await.unwrap().get_i32("n").unwrap(), 1, "{copy}");
    }
}

async fn impossible_preferences_are_refused(it: &Set) {
    let mut client = it.client().await;
    for (preference, code) in [
        (doc! { "mode": "secondary", "maxStalenessSeconds": 89 }, 160),
        (doc! { "mode": "primary", "tags": [{ "dc": "east" }] }, 2),
        (doc! { "mode": "somewhere" }, 2),
        // Nobody has such tags: after `server_selection_timeout_ms` that is trouble upstream.
        (doc! { "mode": "secondary", "tags": [{ "dc": "nowhere" }] }, 6),
    ] {
        let find = doc! { "find": "impossible", "$readPreference": preference };
        let reply = client.reply("test", find.clone()).await.unwrap();
        assert_eq!(code_and_labels(&reply), (code, vec![]), "{find} {reply}");
    }
    assert_eq!(it.members_that_worked_on("impossible").await, set(&[]));
    client.command("test", doc! { "ping": 1 }).await.unwrap();
}

async fn cursors_are_continued_and_killed_where_they_live(it: &Set) {
    let mut client = it.client().await;
    let documents: Vec<Document> = (0..20).map(|id| doc! { "_id": id }).collect();
    let concern = doc! { "w": 3, "wtimeout": 20_000 };
    let insert = doc! { "insert": "many", "documents": documents, "writeConcern": concern };
    client.command("test", insert).await.unwrap();
    let open = async |client: &mut WireClient, member: usize| {
        let preference = doc! { "mode": "secondary", "tags": [{ "dc": CENTRES[member] }] };
        let find = doc! { "find": "many", "sort": { "_id": 1 }, "batchSize": 2, "$readPreference": preference };
        let reply = client.command("test", find).await.unwrap();
        assert_eq!(first_batch(&reply).len(), 2);
        reply.get_document("cursor").unwrap().get_i64("id").unwrap()
    };
    let secondaries = it.secondaries();
    let mut cursors = Vec::new();
    for member in &secondaries {
        cursors.push(open(&mut client, *member).await);
        cursors.push(open(&mut client, *member).await);
    }
    // A client's other socket, with another preference or none: only the cursor counts.
    let mut other = it.client().await;
    for cursor in &cursors {
        let more = doc! { "getMore": cursor, "collection": "many", "batchSize": 3 };
        let reply = other.command("test", more).await.unwrap();
        let ids: Vec<i32> = next_batch(&reply).iter().map(|it| it.get_i32("_id").unwrap()).collect();
        assert_eq!(ids, [2, 3, 4]);
    }
    let continued: Vec<usize> =
        it.done("many").await.into_iter().filter(|(_, command)| command == "getMore").map(|(it, _)| it).collect();
    assert_eq!(continued, [secondaries[0], secondaries[0], secondaries[1], secondaries[1]]);

    let (unknown, spared) = (0x7777_i64, cursors.pop().unwrap());
    let mut ids = cursors.clone();
    ids.push(unknown);
    let reply = other.command("test", doc! { "killCursors": "many", "cursors": ids }).await.unwrap();
    let listed = |name: &str| -> BTreeSet<i64> {
        reply.get_array(name).unwrap().iter().map(|id| id.as_i64().unwrap()).collect()
    };
    assert_eq!(listed("cursorsKilled"), cursors.iter().copied().collect());
    assert_eq!(listed("cursorsNotFound"), BTreeSet::from([unknown]));
    assert!(listed("cursorsAlive").is_empty() && listed("cursorsUnknown").is_empty(), "{reply}");
    for (index, cursor) in cursors.iter().enumerate() {
        let member = &it.deployment.members()[secondaries[index / 2]];
        let more = doc! { "getMore": cursor, "collection": "many" };
        let gone = support::client(member).await.command("test", more.clone()).await.unwrap_err();
        assert_eq!(gone.code(), Some(43), "the member itself says so");
        assert_eq!(client.command("test", more).await.unwrap_err().code(), Some(43));
    }
    let more = doc! { "getMore": spared, "collection": "many", "batchSize": 100 };
    let rest = client.command("test", more).await.unwrap();
    assert_eq!(next_batch(&rest).len(), 15, "the one that was not named lives");
}

async fn without_a_primary_only_reads_that_may_go_elsewhere_do(it: &mut Set) {
    let (primary, secondaries) = (it.primary, it.secondaries());
    for member in &secondaries {
        let mut member = support::client(&it.deployment.members()[*member]).await;
        member.command("admin", doc! { "replSetFreeze": 600 }).await.unwrap();
    }
    let mut client = it.client().await;
    let opened = client.command("test", doc! { "find": "many", "batchSize": 2 }).await.unwrap();
    let left = opened.get_document("cursor").unwrap().get_i64("id").unwrap();
    it.deployment.member(primary).kill().await.unwrap();
    let killed = client.command("test", doc! { "killCursors": "many", "cursors": [left] }).await.unwrap();
    assert_eq!(killed.get_array("cursorsNotFound").unwrap(), &[Bson::from(left)], "{killed}");
    assert!(!it.proxy.clusters()[0].pins.lock().unwrap().knows_cursor(left), "it went with its server");
    for mode in ["primaryPreferred", "secondary", "secondaryPreferred", "nearest"] {
        let find = doc! { "find": "no_primary", "$readPreference": { "mode": mode } };
        client.command("test", find).await.unwrap_or_else(|error| panic!("{mode}: {error}"));
    }
    assert!(it.members_that_worked_on("no_primary").await.is_subset(&set(&secondaries)));
    let reply = client.reply("test", doc! { "find": "no_primary" }).await.unwrap();
    assert_eq!(code_and_labels(&reply), (6, vec![]), "{reply}");
    let text = reply.get_str("errmsg").unwrap();
    let lost = it.deployment.members()[primary].address().to_string();
    assert!(text.contains("no primary") && text.contains(&lost), "{text}");

    // One that waits long enough sees the next primary.
    let patient = proxy(&it.deployment.uri(), "server_selection_timeout_ms = 30_000").await;
    let mut patient_client = connect(patient.address()).await;
    let insert = doc! { "insert": "no_primary", "documents": [{ "_id": 1 }] };
    let thaw = async {
        for member in &secondaries {
            let mut member = support::client(&it.deployment.members()[*member]).await;
            member.command("admin", doc! { "replSetFreeze": 0 }).await.unwrap();
        }
    };
    let (inserted, ()) = tokio::join!(patient_client.command("test", insert), thaw);
    assert_eq!(inserted.unwrap().get_i32("n").unwrap(), 1);
}
