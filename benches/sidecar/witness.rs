//! What the server itself says: the judge that no proxy can influence.

use std::error::Error;

use bson::doc;
use mongomux::config::Address;
use mongomux::sandbox::census;
use mongomux::sandbox::wire_client::WireClient;
use tokio::runtime::Runtime;

use super::work;

/// A connection of its own to the server.
pub struct Witness {
    runtime: Runtime,
    server: WireClient,
}

impl Witness {
    /// Connects; from here on the runtime serves nobody else, as the load blocks the thread.
    pub fn new(runtime: Runtime, server: &Address) -> Result<Self, Box<dyn Error>> {
        let server = runtime.block_on(WireClient::connect_as(server, "witness"))?;
        Ok(Self { runtime, server })
    }

    /// Fills what is read from; see [`work::prepare`].
    pub fn prepare(&mut self) -> Result<(), Box<dyn Error>> {
        Ok(self.runtime.block_on(work::prepare(&mut self.server))?)
    }

    /// See [`work::take_inserted`].
    pub fn take_inserted(&mut self) -> Result<u64, Box<dyn Error>> {
        Ok(self.runtime.block_on(work::take_inserted(&mut self.server))?)
    }

    /// The server's version.
    pub fn version(&mut self) -> Result<String, Box<dyn Error>> {
        let info = self.runtime.block_on(self.server.command("admin", doc! { "buildInfo": 1 }))?;
        Ok(info.get_str("version")?.to_owned())
    }

    /// Connections of everybody, this one included.
    pub fn connections(&mut self) -> Result<i32, Box<dyn Error>> {
        let status = self.runtime.block_on(self.server.command("admin", doc! { "serverStatus": 1 }))?;
        Ok(status.get_document("connections")?.get_i32("current")?)
    }

    /// The program's data connections.
    pub fn data_connections(&mut self) -> Result<usize, Box<dyn Error>> {
        let connections = self.runtime.block_on(census::take(&mut self.server))?;
        Ok(connections.get(census::DATA).copied().unwrap_or(0))
    }
}
