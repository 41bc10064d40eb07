//! A proxy for a test: in this process, or as the program itself.

use std::ops::Deref;

use mongomux::app::App;
use mongomux::config::system::{Sources, Text};
use mongomux::config::{Address, Config};

/// A proxy in this process, on a port of its own.
pub struct Proxy {
    app: App,
}

impl Deref for Proxy {
    type Target = App;

    fn deref(&self) -> &App {
        &self.app
    }
}

/// Starts a proxy in front of `uri`. `settings` are lines of a configuration file, for example `max_pool_size = 2`.
pub async fn proxy(uri: &str, settings: &str) -> Proxy {
    let file = Some(Text { name: "test settings".to_owned(), text: settings.to_owned() });
    let upstream = Some(Text { name: "test upstream".to_owned(), text: uri.to_owned() });
    let any_port = Address::tcp("127.0.0.1", 0);
    let sources =
        Sources { file, upstream, listen: vec![any_port.clone()], admin: Some(any_port), ..Sources::default() };
    let (config, _) = Config::load(&sources).unwrap_or_else(|errors| panic!("{errors}"));
    let app = App::start(config).await.unwrap_or_else(|error| panic!("the proxy did not start: {error}"));
    Proxy { app }
}

/// Starts a proxy as a configuration file says it, which must name its listeners.
pub async fn configured(settings: &str) -> Proxy {
    let file = Some(Text { name: "test settings".to_owned(), text: settings.to_owned() });
    let sources = Sources { file, admin: Some(Address::tcp("127.0.0.1", 0)), ..Sources::default() };
    let (config, _) = Config::load(&sources).unwrap_or_else(|errors| panic!("{errors}"));
    let app = App::start(config).await.unwrap_or_else(|error| panic!("the proxy did not start: {error}"));
    Proxy { app }
}

impl Proxy {
    /// Where its clients connect.
    pub fn address(&self) -> &Address {
        &self.app.addresses()[0]
    }

    /// A connection string for drivers.
    pub fn uri(&self) -> String {
        format!("mongodb://{}/", self.address())
    }

    /// The value of a metric as `/metrics` shows it, labels included in the name; 0 when it is not there.
    pub fn metric(&self, name: &str) -> f64 {
        let page = self.app.metrics().render();
        let line = page.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(' '));
        line.map_or(0.0, |value| value.parse().unwrap_or_else(|error| panic!("{name} is {value}: {error}")))
    }
}
