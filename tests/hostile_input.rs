//! Bad bytes cost at most the connection that sent them, and are answered as a server answers them.
//!
//! The same bytes go straight to a mongod and to a proxy in front of it. Where the two differ on purpose the table says
//! so, and why; a difference that is gone fails as well.
#![allow(clippy::unwrap_used, reason = "a test, its helpers included")]

mod support;

use bson::spec::BinarySubtype;
use bson::{Binary, Bson, Document, doc};
use support::pair::Pair;
use support::raw::{self, Observed, Reply, observe};

/// Bytes, and whether the proxy treats them as a server does.
struct Case {
    name: String,
    bytes: Vec<u8>,
    /// What the proxy does instead, and why.
    differs: Option<(Observed, &'static str)>,
}

fn same(name: impl Into<String>, bytes: Vec<u8>) -> Case {
    Case { name: name.into(), bytes, differs: None }
}

fn differs(name: impl Into<String>, bytes: Vec<u8>, proxy: Observed, why: &'static str) -> Case {
    Case { name: name.into(), bytes, differs: Some((proxy, why)) }
}

/// Runs every case, and tells of all that went wrong.
async fn compare(pair: &mut Pair, cases: Vec<Case>) {
    let direct = pair.direct();
    let mut wrong = Vec::new();
    for Case { name, bytes, differs } in cases {
        let server = observe(&direct, &bytes).await;
        let proxy = observe(pair.proxy.address(), &bytes).await;
        match differs {
            Some((expected, why)) => {
                if proxy != expected {
                    wrong
                        .push(format!("{name}: not as documented ({why})\n  proxy {proxy:?}\n  expected {expected:?}"));
                }
                if server == expected {
                    wrong.push(format!("{name}: no difference any more ({why})"));
                }
            }
            None if proxy != server => wrong.push(format!("{name}:\n  proxy  {proxy:?}\n  server {server:?}")),
            None => {}
        }
        pair.is_calm(&name).await;
    }
    assert!(wrong.is_empty(), "{} cases:\n{}", wrong.len(), wrong.join("\n"));
}

fn ping() -> Document {
    doc! { "ping": 1, "$db": "admin" }
}

fn lengths() -> Vec<Case> {
    let mut cases: Vec<Case> = [0, 15, -1, i32::MIN, i32::MAX, 48_000_001]
        .into_iter()
        .map(|length| same(format!("length {length}"), raw::header(length, raw::OP_MSG)))
        .collect();
    cases.extend([
        differs(
            "HTTP",
            b"GET / HTTP/1.1\r\nHost: localhost\r\n\r\n".to_vec(),
            Observed::closed(),
            "1.1: the server explains itself in plain text; the proxy may just close",
        ),
        same("TLS", b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03 and so on, for some time".to_vec()),
        same("OP_MSG of 16 bytes", raw::message(raw::OP_MSG, &[])),
        same("OP_MSG of 19 bytes", raw::message(raw::OP_MSG, &[0; 3])),
        same("OP_MSG of 20 bytes", raw::message(raw::OP_MSG, &[0; 4])),
        same("OP_MSG with a kind and nothing else", raw::op_msg(0, &[&[0]])),
    ]);
    cases
}

fn sections() -> Vec<Case> {
    let ping = raw::body(&ping());
    let insert = raw::body(&doc! { "insert": "c", "$db": "hostile" });
    let documents = raw::sequence("documents", &[doc! { "a": 1 }, doc! { "b": "x" }]);
    let both = raw::body(&doc! { "insert": "c", "documents": [{ "a": 1 }], "$db": "hostile" });
    let mut long = documents.clone();
    long[1] += 1;
    let mut short = documents.clone();
    short[1] -= 1;
    let mut negative = documents.clone();
    negative[1..5].copy_from_slice(&(-1_i32).to_le_bytes());
    let unknown = Observed { closed: true, ..Observed::error(40432, "Location40432") };
    let specification = "1.3: replied as the server does, and closed as the specification asks";
    vec![
        same("one body", raw::op_msg(0, &[&ping])),
        same("two bodies", raw::op_msg(0, &[&ping, &ping])),
        same("body and sequence", raw::op_msg(0, &[&insert, &documents])),
        same("sequence before body", raw::op_msg(0, &[&documents, &insert])),
        same("only a sequence", raw::op_msg(0, &[&documents])),
        same("the same sequence twice", raw::op_msg(0, &[&insert, &documents, &documents])),
        same("sequence that is a field too", raw::op_msg(0, &[&both, &documents])),
        same("unused sequence", raw::op_msg(0, &[&ping, &raw::sequence("unused", &[doc! {}])])),
        same("empty sequence", raw::op_msg(0, &[&insert, &raw::sequence("documents", &[])])),
        same("sequence without a name", raw::op_msg(0, &[&ping, &raw::sequence("", &[doc! {}])])),
        same("sequence one byte long", raw::op_msg(0, &[&insert, &long])),
        same("sequence one byte short", raw::op_msg(0, &[&insert, &short])),
        same("sequence of negative length", raw::op_msg(0, &[&insert, &negative])),
        same("sequence cut short", raw::op_msg(0, &[&insert, &documents[..documents.len() - 1]])),
        same("security token", raw::op_msg(0, &[&ping, &[&[2], &doc! {}.to_vec().unwrap()[..]].concat()])),
        differs("section kind 3", raw::op_msg(0, &[&ping, &[3, 5, 0, 0, 0, 0]]), unknown.clone(), specification),
        differs("section kind 255", raw::op_msg(0, &[&ping, &[255]]), unknown, specification),
        same("trailing zero", raw::op_msg(0, &[&ping, &[0]])),
    ]
}

fn commands() -> Vec<Case> {
    let no_command = |document: Document| raw::command(document);
    let internal = "3.7: reserved for servers among themselves, Unauthorized(13)";
    let refused = |field: &str| {
        let mut command = ping();
        command.insert(field, doc! { "a": 1 });
        differs(field, raw::command(command), Observed::error(13, "Unauthorized"), internal)
    };
    let deep = (0..250).fold(doc! {}, |inner, _| doc! { "a": inner });
    let of_size =
        |bytes: usize| raw::command(doc! { "insert": "c", "documents": [{ "a": "x".repeat(bytes) }], "$db": "d" });
    let large = doc! { "a": "x".repeat(17_000_000) };
    let sequence = raw::sequence("documents", &[large]);
    let insert = raw::body(&doc! { "insert": "c", "$db": "hostile" });
    let read_preference = |value: Bson| raw::command(doc! { "ping": 1, "$db": "admin", "$readPreference": value });
    vec![
        same("no $db", no_command(doc! { "ping": 1 })),
        same("empty document", no_command(doc! {})),
        same("$db of a wrong type", no_command(doc! { "ping": 1, "$db": 5 })),
        same("empty $db", no_command(doc! { "ping": 1, "$db": "" })),
        same("$db with a NUL", no_command(doc! { "ping": 1, "$db": "a\0b" })),
        same("$db with a dot", no_command(doc! { "find": "c", "$db": "a.b" })),
        same("$db too long", no_command(doc! { "find": "c", "$db": "d".repeat(200) })),
        same("first element is $db", no_command(doc! { "$db": "admin", "ping": 1 })),
        same("no such command", no_command(doc! { "noSuchCommand": 1, "$db": "admin" })),
        same("a command in capitals", no_command(doc! { "ISMASTER": 1, "$db": "admin" })),
        same("empty command name", no_command(doc! { "": 1, "$db": "admin" })),
        same("a very long command name", no_command(doc! { "x".repeat(100_000): 1, "$db": "admin" })),
        same("unknown field", no_command(doc! { "ping": 1, "$db": "admin", "$unknown": 1 })),
        same("nested 250 deep", no_command(doc! { "find": "c", "filter": deep, "$db": "hostile" })),
        same("17 MB document", of_size(17_000_000)),
        same("17 MB document in a sequence", raw::op_msg(0, &[&insert, &sequence])),
        same("just above 16 MiB", of_size(16 * 1024 * 1024 - 20)),
        same("negative maxTimeMS", no_command(doc! { "ping": 1, "maxTimeMS": -1, "$db": "admin" })),
        same("maxTimeMS in words", no_command(doc! { "ping": 1, "maxTimeMS": "soon", "$db": "admin" })),
        same("huge maxTimeMS", no_command(doc! { "ping": 1, "maxTimeMS": i64::MAX, "$db": "admin" })),
        same("lsid of a wrong type", no_command(doc! { "ping": 1, "lsid": 5, "$db": "admin" })),
        same("lsid without id", no_command(doc! { "ping": 1, "lsid": {}, "$db": "admin" })),
        same("txnNumber without lsid", no_command(doc! { "ping": 1, "txnNumber": 5_i64, "$db": "admin" })),
        same("autocommit alone", no_command(doc! { "find": "c", "autocommit": false, "$db": "hostile" })),
        same("startTransaction alone", no_command(doc! { "find": "c", "startTransaction": true, "$db": "hostile" })),
        same("getMore of an int32", no_command(doc! { "getMore": 5, "collection": "c", "$db": "hostile" })),
        same("getMore of nothing", no_command(doc! { "getMore": 5_i64, "collection": "c", "$db": "hostile" })),
        same("getMore without collection", no_command(doc! { "getMore": 5_i64, "$db": "hostile" })),
        same("killCursors without cursors", no_command(doc! { "killCursors": "c", "$db": "hostile" })),
        same("killCursors of words", no_command(doc! { "killCursors": "c", "cursors": ["a"], "$db": "hostile" })),
        same(
            "killCursors of a mixture",
            no_command(doc! { "killCursors": "c", "cursors": [5_i64, 5], "$db": "hostile" }),
        ),
        same("killSessions without a list", no_command(doc! { "killSessions": 1, "$db": "hostile" })),
        same("apiVersion 2", no_command(doc! { "hello": 1, "apiVersion": "2", "$db": "admin" })),
        same(
            "apiStrict with isMaster",
            no_command(doc! { "isMaster": 1, "apiVersion": "1", "apiStrict": true, "$db": "admin" }),
        ),
        same("read preference of a wrong type", read_preference(5.into())),
        same("empty read preference", read_preference(doc! {}.into())),
        same("read preference without sense", read_preference(doc! { "mode": "fastest" }.into())),
        same("tags with primary", read_preference(doc! { "mode": "primary", "tags": [{ "a": "b" }] }.into())),
        same("stale primary", read_preference(doc! { "mode": "primary", "maxStalenessSeconds": 100 }.into())),
        same("little staleness", read_preference(doc! { "mode": "nearest", "maxStalenessSeconds": 1 }.into())),
        refused("$audit"),
        refused("$client"),
        refused("$configTime"),
        refused("$configServerState"),
        refused("$replData"),
    ]
}

fn flags() -> Vec<Case> {
    let ping = raw::body(&ping());
    let mut cases: Vec<Case> =
        (2..32).map(|bit| same(format!("flag bit {bit}"), raw::op_msg(1 << bit, &[&ping]))).collect();
    let good = |flags: u32| raw::with_checksum(raw::op_msg(flags | 1, &[&ping]), 0);
    let plain = Reply { op_code: raw::OP_MSG, answers: true, ok: true, ..Reply::default() };
    let without = Observed { replies: vec![plain], ..Observed::default() };
    let no_body = Observed::error(40587, "Location40587");
    let short = "the server has a code of its own (51252) where there is no room for sections before the checksum";
    let legal = "1.4: a reply without checksum to a checksummed request is legal";
    cases.extend([
        differs("good checksum", good(0), without.clone(), legal),
        differs("good checksum, exhaustAllowed", good(1 << 16), without, legal),
        same("good checksum, moreToCome", good(2)),
        same("bad checksum", raw::with_checksum(raw::op_msg(1, &[&ping]), 1)),
        same("bad checksum, moreToCome", raw::with_checksum(raw::op_msg(3, &[&ping]), 1)),
        differs("checksum and nothing else", raw::op_msg(1, &[]), Observed::closed(), short),
        same("checksum that is the flags", raw::message(raw::OP_MSG, &[1, 0])),
        differs("good checksum of nothing", raw::with_checksum(raw::op_msg(1, &[]), 0), no_body, short),
        same("moreToCome", raw::op_msg(2, &[&ping])),
        same("moreToCome without body", raw::op_msg(2, &[])),
        same("moreToCome with two bodies", raw::op_msg(2, &[&ping, &ping])),
        same("moreToCome without $db", raw::op_msg(2, &[&raw::body(&doc! { "ping": 1 })])),
        same("moreToCome with broken BSON", raw::op_msg(2, &[&ping[..ping.len() - 1]])),
        same("moreToCome, no such command", raw::op_msg(2, &[&raw::body(&doc! { "nothing": 1, "$db": "d" })])),
        same("moreToCome, hello", raw::op_msg(2, &[&raw::body(&doc! { "hello": 1, "$db": "admin" })])),
        same(
            "moreToCome, unknown cursor",
            raw::op_msg(2, &[&raw::body(&doc! { "getMore": 5_i64, "collection": "c", "$db": "d" })]),
        ),
        same(
            "moreToCome, killCursors",
            raw::op_msg(2, &[&raw::body(&doc! { "killCursors": "c", "cursors": [5_i64], "$db": "d" })]),
        ),
        same("moreToCome, endSessions", raw::op_msg(2, &[&raw::body(&doc! { "endSessions": [], "$db": "admin" })])),
        same("moreToCome, saslContinue", raw::op_msg(2, &[&raw::body(&doc! { "saslContinue": 1, "$db": "admin" })])),
        same("exhaustAllowed find", raw::op_msg(1 << 16, &[&raw::body(&doc! { "find": "c", "$db": "hostile" })])),
    ]);
    cases
}

fn legacy() -> Vec<Case> {
    let namespace = |text: &str| [&[0; 4], text.as_bytes(), &[0]].concat();
    let insert = [namespace("hostile.c"), doc! { "a": 1 }.to_vec().unwrap()].concat();
    let update =
        [namespace("hostile.c"), vec![0; 4], doc! {}.to_vec().unwrap(), doc! { "$set": { "a": 1 } }.to_vec().unwrap()]
            .concat();
    let delete = [namespace("hostile.c"), vec![0; 4], doc! {}.to_vec().unwrap()].concat();
    let get_more = [namespace("hostile.c"), vec![1; 12]].concat();
    let kill = [vec![0; 4], 1_i32.to_le_bytes().to_vec(), vec![5; 8]].concat();
    let find = |namespace| raw::query(namespace, &doc! { "a": 1 });
    let hello = |namespace: &str, name: &str| raw::query(namespace, &doc! { name: 1, "helloOk": true });
    let greeting = Reply { op_code: 1, flags: 8, answers: true, ok: true, ..Reply::default() };
    let greeted = Observed { replies: vec![greeting], ..Observed::default() };
    let mut cut = raw::query("admin.$cmd", &doc! { "isMaster": 1 });
    cut.truncate(cut.len() - 1);
    let length = i32::try_from(cut.len()).unwrap();
    cut[..4].copy_from_slice(&length.to_le_bytes());
    vec![
        same("OP_INSERT", raw::message(2002, &insert)),
        same("OP_UPDATE", raw::message(2001, &update)),
        same("OP_DELETE", raw::message(2006, &delete)),
        same("OP_KILL_CURSORS", raw::message(2007, &kill)),
        same("OP_GET_MORE", raw::message(2005, &get_more)),
        same("OP_GET_MORE without body", raw::message(2005, &[])),
        same("OP_REPLY", raw::message(1, &[0; 20])),
        same("OP_COMMAND", raw::message(2010, &get_more)),
        same("OP_COMMANDREPLY", raw::message(2011, &get_more)),
        same("opcode 2003", raw::message(2003, &[0; 4])),
        differs("opcode 0", raw::message(0, &[0; 4]), Observed::closed(), "1.6: unknown closes; the server skips it"),
        same("opcode -1", raw::message(-1, &[0; 4])),
        same("opcode 1000000", raw::message(1_000_000, &[0; 4])),
        same("OP_QUERY isMaster", hello("admin.$cmd", "isMaster")),
        same("OP_QUERY ismaster", hello("admin.$cmd", "ismaster")),
        same("OP_QUERY hello", hello("admin.$cmd", "hello")),
        same("OP_QUERY hello elsewhere", hello("test.$cmd", "hello")),
        same("OP_QUERY isMaster, wrapped", raw::query("admin.$cmd", &doc! { "$query": { "isMaster": 1 } })),
        same("OP_QUERY hello, wrapped without $", raw::query("admin.$cmd", &doc! { "query": { "hello": 1 } })),
        same("OP_QUERY ISMASTER", hello("admin.$cmd", "ISMASTER")),
        same("OP_QUERY ping", raw::query("admin.$cmd", &doc! { "ping": 1 })),
        same("OP_QUERY of nothing", raw::query("admin.$cmd", &doc! {})),
        same(
            "OP_QUERY saslContinue",
            raw::query("admin.$cmd", &doc! { "saslContinue": 1, "conversationId": 1, "payload": "" }),
        ),
        same("OP_QUERY find", find("hostile.c")),
        same("OP_QUERY find without a dot", find("hostile")),
        same("OP_QUERY find nowhere", find("")),
        differs(
            "OP_QUERY .$cmd of no database",
            hello(".$cmd", "isMaster"),
            greeted,
            "1.6: the database does not matter for hello; the server refuses an empty one",
        ),
        same("OP_QUERY without body", raw::message(raw::OP_QUERY, &[])),
        same("OP_QUERY with an endless name", raw::message(raw::OP_QUERY, &[b'a'; 40])),
        same("OP_QUERY cut short", cut),
    ]
}

fn compression() -> Vec<Case> {
    let ping = raw::command(ping());
    let hello = raw::command(doc! { "hello": 1, "$db": "admin" });
    let error = raw::command(doc! { "noSuchCommand": 1, "$db": "admin" });
    let size = i32::try_from(ping.len() - 16).unwrap();
    let mut cases = Vec::new();
    for (id, name) in [(1, "snappy"), (2, "zlib"), (3, "zstd")] {
        let data = raw::deflate(id, &ping[16..]);
        let with_size = |size| raw::compressed_as(raw::OP_MSG, size, id, &data);
        // The server's zlib fills up with zeros what is missing; its other compressors close.
        let size_matters = |name, bytes| match id {
            2 => differs(name, bytes, Observed::closed(), "1.5: a wrong size closes"),
            _ => same(name, bytes),
        };
        let zeros = raw::deflate(id, &vec![0; 60_000_000]);
        cases.extend([
            same(format!("{name} ping"), raw::compressed(&ping, id)),
            same(format!("{name} hello"), raw::compressed(&hello, id)),
            same(format!("{name} error"), raw::compressed(&error, id)),
            same(format!("{name} OP_QUERY"), raw::compressed(&raw::query("admin.$cmd", &doc! { "isMaster": 1 }), id)),
            size_matters(format!("{name} one too many"), with_size(size + 1)),
            same(format!("{name} one too few"), with_size(size - 1)),
            same(format!("{name} of no size"), with_size(0)),
            same(format!("{name} of negative size"), with_size(-1)),
            same(format!("{name} of largest size"), with_size(i32::MAX)),
            same(format!("{name} of 48,000,001 bytes"), with_size(48_000_001 - 16)),
            size_matters(format!("{name} of a false size below the limit"), with_size(47_999_984)),
            same(format!("{name} bomb with a small size"), raw::compressed_as(raw::OP_MSG, 1000, id, &zeros)),
            same(format!("{name} bomb with its size"), raw::compressed_as(raw::OP_MSG, 60_000_000, id, &zeros)),
            same(format!("{name} of zeros"), raw::compressed_as(raw::OP_MSG, 40, id, &raw::deflate(id, &[0; 40]))),
            same(format!("{name} cut short"), raw::compressed_as(raw::OP_MSG, size, id, &data[..data.len() - 1])),
            same(format!("{name} of nothing"), raw::compressed_as(raw::OP_MSG, size, id, &[])),
            same(format!("{name} garbage"), raw::compressed_as(raw::OP_MSG, size, id, &[0xA5; 40])),
            differs(
                format!("{name} nested"),
                raw::compressed(&raw::compressed(&ping, id), id),
                Observed::closed(),
                "1.5: refused; the server skips it",
            ),
            same(format!("{name} OP_INSERT"), raw::compressed(&raw::message(2002, &[0; 30]), id)),
            same(format!("{name} moreToCome"), raw::compressed(&raw::op_msg(2, &[&raw::body(&self::ping())]), id)),
        ]);
    }
    for id in [0, 4, 7, 255] {
        cases.push(same(format!("compressor {id}"), raw::compressed(&ping, id)));
    }
    for length in [0, 4, 8, 9] {
        cases.push(same(
            format!("OP_COMPRESSED with {length} bytes"),
            raw::message(raw::OP_COMPRESSED, &vec![1; length]),
        ));
    }
    cases
}

#[tokio::test]
async fn lengths_sections_and_flags_are_judged_as_by_a_server() {
    let mut pair = Pair::new("").await;
    compare(&mut pair, [lengths(), sections(), flags(), legacy()].into_iter().flatten().collect()).await;
}

#[tokio::test]
async fn commands_that_make_no_sense_are_judged_as_by_a_server() {
    let mut pair = Pair::new("").await;
    compare(&mut pair, commands()).await;
}

#[tokio::test]
async fn compressed_messages_are_judged_as_by_a_server() {
    let mut pair = Pair::new("").await;
    compare(&mut pair, compression()).await;
}

/// Damages a command at every byte, and cuts it at every byte.
#[tokio::test]
async fn damaged_bson_is_judged_as_by_a_server() {
    let binary = Binary { subtype: BinarySubtype::Generic, bytes: vec![1, 2, 3] };
    let filter = doc! { "a": { "$in": [1, "two", 3.0] }, "b": { "$ne": binary }, "c": { "$gt": { "d": 5_i64 } } };
    let whole = raw::body(&doc! { "find": "c", "filter": filter, "limit": 3_i64, "$db": "hostile" });
    let mut cases = Vec::new();
    for at in 1..whole.len() {
        cases.push(same(format!("cut at {at}"), raw::op_msg(0, &[&whole[..at]])));
        for value in [0x00, 0xFF, whole[at].wrapping_add(1)] {
            let mut damaged = whole.clone();
            damaged[at] = value;
            cases.push(same(format!("byte {at} is {value}"), raw::op_msg(0, &[&damaged])));
        }
    }
    let mut pair = Pair::new("").await;
    compare(&mut pair, cases).await;
}
