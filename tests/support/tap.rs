//! A relay between the proxy and a server that changes nothing and remembers every message of both.

use std::sync::{Arc, Mutex};

use bson::Document;
use mongomux::config::Address;
use mongomux::tasks::Tasks;
use tokio::io::{AsyncRead, AsyncWrite, AsyncWriteExt};
use tokio::net::TcpStream;

use super::{raw, scripted};

/// What was said over one data connection, in order.
#[derive(Debug, Default)]
struct Heard {
    requests: Vec<Vec<u8>>,
    replies: Vec<Vec<u8>>,
}

/// The relay; it ends with the test.
pub struct Tap {
    address: Address,
    data: Arc<Mutex<Heard>>,
    monitors: Arc<Mutex<Heard>>,
}

impl Tap {
    /// In front of the server at `server`.
    pub fn start(server: Address) -> Self {
        let (listener, port) = scripted::listen(None);
        let tap = Self { address: Address::tcp("127.0.0.1", port), data: Arc::default(), monitors: Arc::default() };
        let (data, monitors) = (tap.data.clone(), tap.monitors.clone());
        let tasks = Tasks::new();
        tasks.clone().spawn("tap", async move {
            while let Ok((proxy, _)) = listener.accept().await {
                let (server, data, monitors) = (server.clone(), data.clone(), monitors.clone());
                tasks.spawn("tapped connection", async move {
                    // An end is an end, whatever caused it.
                    relay(proxy, server, &data, &monitors).await.unwrap_or_default();
                });
            }
        });
        tap
    }

    /// The connection string for the proxy, with more options.
    pub fn uri(&self, options: &str) -> String {
        format!("mongodb://{}/?directConnection=true{options}", self.address)
    }

    /// The requests of this name over data connections so far.
    pub fn requests(&self, name: &str) -> Vec<Vec<u8>> {
        let data = self.data.lock().unwrap();
        data.requests
            .iter()
            .filter(|request| command(request).keys().next().is_some_and(|it| it == name))
            .cloned()
            .collect()
    }

    /// The reply to a request.
    pub fn reply_to(&self, request: &[u8]) -> Vec<u8> {
        let data = self.data.lock().unwrap();
        let place = data.requests.iter().position(|it| it == request).expect("a request that was heard");
        data.replies[place].clone()
    }

    /// All that monitoring has said.
    pub fn monitoring(&self) -> Vec<Vec<u8>> {
        self.monitors.lock().unwrap().requests.clone()
    }
}

/// Request and reply, one after the other; all connections share one list, so each pair is kept together.
async fn relay(mut proxy: TcpStream, server: Address, data: &Mutex<Heard>, monitors: &Mutex<Heard>) -> Option<()> {
    let mut server = raw::connect(&server).await;
    proxy.set_nodelay(true).ok()?;
    let first = scripted::read_message(&mut proxy).await?;
    if scripted::is_monitor(&command(&first)) {
        monitors.lock().unwrap().requests.push(first.clone());
        server.write_all(&first).await.ok()?;
        tokio::io::copy_bidirectional(&mut proxy, &mut server).await.ok()?;
        return None;
    }
    exchange(first, &mut proxy, &mut server, data).await?;
    loop {
        let request = scripted::read_message(&mut proxy).await?;
        exchange(request, &mut proxy, &mut server, data).await?;
    }
}

async fn exchange(
    request: Vec<u8>,
    proxy: &mut (impl AsyncWrite + Unpin),
    server: &mut (impl AsyncRead + AsyncWrite + Unpin),
    heard: &Mutex<Heard>,
) -> Option<()> {
    server.write_all(&request).await.ok()?;
    let reply = scripted::read_message(server).await?;
    {
        let mut heard = heard.lock().unwrap();
        heard.requests.push(request);
        heard.replies.push(reply.clone());
    }
    proxy.write_all(&reply).await.ok()
}

/// The command in a message, compressed or not.
pub fn command(message: &[u8]) -> Document {
    raw::document_of(message)
}
