//! The effective configuration as a file.

use std::fmt;

use toml::Value;

use super::{Difference, Effective, Settings};

/// Values begin their remarks here, where they leave room.
const REMARKS: usize = 46;

/// Valid TOML: used as a file it asks for what is in force now, but for credentials.
impl fmt::Display for Effective {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let version = env!("CARGO_PKG_VERSION");
        writeln!(
            f,
            "# What is in force, as mongomux {version} reads it, and who says so. `***` stands for a credential.\n"
        )?;
        write_settings(f, &self.program)?;
        for (what, tables) in [("cluster", &self.clusters), ("listener", &self.listeners)] {
            for table in tables {
                writeln!(f, "\n[[{what}]]")?;
                write_settings(f, &table.settings)?;
            }
        }
        Ok(())
    }
}

fn write_settings(f: &mut fmt::Formatter<'_>, settings: &Settings) -> fmt::Result {
    for setting in settings.iter() {
        let key = setting.key.name;
        match &setting.value {
            Some(value) => {
                let said = format!("{key} = {value}");
                let origin: String = setting.origin.chars().map(|it| if it.is_control() { '?' } else { it }).collect();
                writeln!(f, "{said:<REMARKS$}  # {origin}")?;
            }
            None => writeln!(f, "# {key} is not set")?,
        }
    }
    Ok(())
}

/// `max_clients: 10000 -> 20000`
impl fmt::Display for Difference {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let shown = |value: &Option<Value>| value.as_ref().map_or_else(|| "nothing".to_owned(), Value::to_string);
        write!(f, "{}: {} -> {}", self.path, shown(&self.from), shown(&self.to))
    }
}

/// Says nothing: it would be long, and whoever wants to know asks for one of the other forms.
impl fmt::Debug for Effective {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Effective")
    }
}
