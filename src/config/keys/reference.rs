//! The table as `docs/configuration.md`.

use std::fmt::Write as _;

use super::{Change, Key, Kind, Place, at};
use crate::config::Profile;

/// What stands before the tables.
const INTRODUCTION: &str = "\
# Configuration

Every key of the configuration file (`--config`, TOML), made from the table that the program itself reads by; this page is kept equal to
it by a test. [config/mongomux.toml](../config/mongomux.toml) has the same as comments to take the `#` from, and
[config/mongomux.schema.json](../config/mongomux.schema.json) is the schema that editors complete and check by (`#:schema PATH` as the
first line of the file, for those that read it).

Flags and environment win over the file, the file over the profile, the profile over the defaults; an option of the connection string
(`maxPoolSize`, ...) beats the same key of file and profile. Unknown keys are refused. `mongomux check` tells every mistake at once with
file, line and what would be right; `mongomux check --print` shows what is in force, and who says so; `mongomux check --connect` tries
the servers.

*Reload* says what becomes of a change when the file is read again: **live** is in force at once, *restart* after a restart.
";

/// The page.
pub fn reference() -> String {
    let mut page = INTRODUCTION.to_owned();
    for (title, introduction, places) in [
        ("The program", "They stand at the top of the file, before all tables.", &[Place::Program][..]),
        (
            "Clusters",
            "They stand at the top of the file, or, with several clusters, in a `[[cluster]]` table each.",
            &[Place::ClusterTable, Place::Cluster],
        ),
        (
            "Listeners",
            "They stand with their cluster, or in a `[[listener]]` table; `cluster` and `databases` in the latter only.",
            &[Place::Listener, Place::ListenerTable],
        ),
        ("Tenants", "Each `[[tenant]]` of a cluster (`[[cluster.tenant]]` with several).", &[Place::Tenant]),
        ("Priorities", "Each `[[priority]]` of a cluster.", &[Place::Priority]),
    ] {
        page.push_str(&format!("\n## {title}\n\n{introduction}\n\n"));
        page.push_str("| key | default | may be | reload | meaning |\n| --- | --- | --- | --- | --- |\n");
        for key in places.iter().flat_map(|&place| at(place)) {
            row(&mut page, key);
        }
    }
    page.push_str("\n## Profiles\n\nWhat each says; all else is as above.\n\n| profile | says |\n| --- | --- |\n");
    for &profile in Profile::ALL {
        let keys = [Place::Program, Place::Cluster].into_iter().flat_map(at).filter_map(Key::limit);
        let said = keys.filter_map(|limit| Some(format!("`{} = {}`", limit.key, profile.value(limit)?)));
        let said: Vec<String> = said.collect();
        page.push_str(&format!("| `{profile}` | {} |\n", said.join(", ")));
    }
    page
}

fn row(page: &mut String, key: &Key) {
    let default = match (key.default(), &key.kind) {
        (Some(default), Kind::Number(limit)) if limit.default == 0 => {
            format!("`{default}` ({})", limit.zero.unwrap_or(limit.unit))
        }
        (Some(default), Kind::Number(limit)) => format!("`{default}` {}", limit.unit),
        (Some(default), _) => format!("`{default}`"),
        (None, _) => String::new(),
    };
    let change = match key.change {
        Change::Live => "**live**",
        Change::Restart => "*restart*",
    };
    let range = key.range().replace('|', "\\|");
    // A String takes whatever is written to it.
    writeln!(page, "| `{}` | {default} | {range} | {change} | {} |", key.name, key.meaning).expect("into a string");
}
