//! A server and a proxy in front of it, and a look at whether anybody suffers from what a test does.

use bson::doc;
use mongomux::config::Address;
use mongomux::sandbox::deployment::Deployment;
use mongomux::sandbox::wire_client::WireClient;
use mongomux::telemetry::labels::{ConnectionClosed, Label};

use super::proxy::{Proxy, proxy};

/// One connection, which no clean-up closes: whatever closes it was the bytes.
const ONE_CONNECTION: &str = "max_pool_size = 1\nmin_pool_size = 1\nmax_idle_time_ms = 0\n";

/// A server, a proxy in front of it, and a client that watches whether others suffer.
pub struct Pair {
    /// One member.
    pub deployment: Deployment,
    /// With one upstream connection.
    pub proxy: Proxy,
    witness: WireClient,
    created: u64,
}

impl Pair {
    /// `settings` are those of the proxy, beside the one connection.
    pub async fn new(settings: &str) -> Self {
        let deployment = super::replica_set(1).await;
        let proxy = proxy(&deployment.uri(), &format!("{ONE_CONNECTION}{settings}")).await;
        let mut witness = super::connect(proxy.address()).await;
        witness.command("admin", doc! { "ping": 1 }).await.unwrap();
        let created = created(&proxy);
        Self { deployment, proxy, witness, created }
    }

    /// Where the server is.
    pub fn direct(&self) -> Address {
        self.deployment.members()[0].address()
    }

    /// Nobody else has noticed anything: the witness is served, over the same upstream connection as ever.
    pub async fn is_calm(&mut self, after: &str) {
        self.witness
            .command("admin", doc! { "ping": 1 })
            .await
            .unwrap_or_else(|error| panic!("after {after}: {error}"));
        assert_eq!(created(&self.proxy), self.created, "an upstream connection was lost by {after}");
        for server in self.proxy.clusters()[0].servers() {
            for &reason in ConnectionClosed::ALL {
                assert_eq!(server.metrics.connections_closed[reason].get(), 0, "{reason:?} after {after}");
            }
            for to in ["open", "half_open"] {
                let name = format!("mongomux_breaker_transitions_total{{server=\"{}\",to=\"{to}\"}}", server.address);
                assert_eq!(self.proxy.metric(&name), 0.0, "the breaker is {to} after {after}");
            }
        }
        let topology = self.proxy.clusters()[0].topology();
        assert!(topology.primary().is_some_and(|server| server.is_known()), "suspect after {after}");
    }
}

fn created(proxy: &Proxy) -> u64 {
    proxy.clusters()[0].servers().iter().map(|server| server.pool.snapshot().created).sum()
}
