//! Configuration files, users files and verifiers: a text is taken as a whole, or each of its mistakes is told.

use mongomux::auth::users::Verifier;
use mongomux::config::system::{Sources, Text};
use mongomux::config::users_file;
use mongomux::config::{Config, ConfigError, difference};

/// No number of mistakes may make the list of them much longer than the file.
const TOLD_BYTES_A_LINE: usize = 4096;

/// The first byte says what the text is.
pub fn check(data: &[u8]) {
    let Some((choice, text)) = data.split_first() else { return };
    let Ok(text) = std::str::from_utf8(text) else { return };
    match choice % 4 {
        0 => users(text),
        1 => verifier(text),
        _ => configuration(text),
    }
}

fn sources(text: &str) -> Sources {
    Sources { file: Some(Text { name: "m.toml".to_owned(), text: text.to_owned() }), ..Sources::default() }
}

fn configuration(text: &str) {
    let (config, warnings) = match Config::load(&sources(text)) {
        Ok(sound) => sound,
        Err(mistakes) => return are_told(&mistakes.0, text),
    };
    assert!(!config.clusters.is_empty() && !config.listeners.is_empty());
    for cluster in &config.clusters {
        let pool = &cluster.pool;
        assert!(pool.min_pool_size <= pool.max_pool_size && pool.max_pool_size > 0);
        assert!(cluster.wait_queue_size > 0);
        let mut ways =
            config.listeners.iter().flat_map(|it| [&it.cluster].into_iter().chain(it.databases.destinations()));
        assert!(ways.any(|name| *name == cluster.name), "a listener leads to each cluster");
    }
    assert!(config.client.max_message_bytes <= config.memory_limit_bytes);
    assert!(config.times.drain_quiet <= config.times.drain_timeout);
    assert!(warnings.iter().all(|warning| warning.0.len() <= TOLD_BYTES_A_LINE + text.len()));
    // What is shown of it asks for the same, if no file and no credential is needed.
    let shown = config.effective.to_string();
    if config.clusters.iter().all(|cluster| cluster.upstream.credential.is_none()) {
        let again = Config::load(&sources(&shown)).unwrap_or_else(|mistakes| panic!("{mistakes}\n{shown}")).0;
        assert_eq!(difference(&config.effective, &again.effective), [], "{shown}");
    }
}

fn are_told(mistakes: &[ConfigError], text: &str) {
    assert!(!mistakes.is_empty(), "who is refused is told why");
    for mistake in mistakes {
        assert!(!mistake.problem.is_empty() && !mistake.place.is_empty());
        assert!(mistake.to_string().len() <= TOLD_BYTES_A_LINE + text.len());
    }
}

fn users(text: &str) {
    let mut mistakes = Vec::new();
    let users = users_file::read("u.toml", text, &mut mistakes);
    if users.is_empty() {
        are_told(&mistakes, text);
    }
    for (index, user) in users.iter().enumerate() {
        assert!(!user.name.is_empty() && !user.database.is_empty());
        let twice = users[..index].iter().any(|other| (&other.name, &other.database) == (&user.name, &user.database));
        assert!(!twice, "nobody is there twice");
    }
}

fn verifier(text: &str) {
    if let Ok(verifier) = Verifier::parse(text) {
        assert_eq!(Verifier::parse(&verifier.to_text()).map(|again| again == verifier), Ok(true));
    }
}
