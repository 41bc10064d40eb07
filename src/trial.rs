//! The proxy as the sandbox wants it: started from a connection string, with its numbers and an end.

use std::sync::Arc;

use crate::app::{App, StartError};
use crate::cli::SandboxArgs;
use crate::config::system::{Sources, Text};
use crate::config::{Config, ConfigErrors};
use crate::sandbox::{Proxy, ProxyStats};

/// Why there is no proxy to try.
#[derive(Debug, thiserror::Error)]
pub enum TrialError {
    /// The flags do not fit together.
    #[error(transparent)]
    Config(#[from] ConfigErrors),
    /// It did not start.
    #[error(transparent)]
    Start(#[from] StartError),
}

/// Starts the proxy in front of `uri` in this process, with defaults but for what the flags say.
///
/// # Errors
/// [`TrialError`]
pub async fn start(uri: String, args: SandboxArgs) -> Result<Proxy, TrialError> {
    let sources = Sources {
        upstream: Some(Text { name: "sandbox".to_owned(), text: uri }),
        listen: args.listen.into_iter().collect(),
        admin: args.admin,
        ..Sources::default()
    };
    let (mut config, _) = Config::load(&sources)?;
    config.client.max_clients = config.client.max_clients.max(args.clients + 1);
    let app = Arc::new(App::start(config).await?);
    let (address, admin) = (app.addresses()[0].clone(), app.admin_address().clone());
    let of = app.clone();
    Ok(Proxy {
        address,
        admin: Some(admin),
        stats: Box::new(move || stats(&of)),
        stop: Box::pin(async move {
            app.drain().await;
        }),
    })
}

fn stats(app: &App) -> ProxyStats {
    let mut stats = ProxyStats::default();
    for cluster in app.clusters() {
        stats.queue += cluster.admission.waiting();
        for server in cluster.servers() {
            let snapshot = server.pool.snapshot();
            stats.in_use += snapshot.counts.in_use as usize;
            stats.idle += snapshot.counts.available as usize;
            stats.pending += snapshot.counts.pending as usize;
            stats.max_pool_size = snapshot.max_pool_size;
        }
    }
    stats
}
