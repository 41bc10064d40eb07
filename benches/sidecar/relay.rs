//! The plainest 1:1 proxy there can be: an upstream socket for each client's, and bytes copied both ways.

use std::io;
use std::net::SocketAddr;

use mongomux::tasks::Tasks;
use tokio::io::copy_bidirectional;
use tokio::net::{TcpListener, TcpSocket, TcpStream};

/// Of the clients that connect at once.
const BACKLOG: u32 = 4_096;

/// A listener that takes a storm.
pub fn listen(address: SocketAddr) -> io::Result<TcpListener> {
    let socket = TcpSocket::new_v4()?;
    socket.set_reuseaddr(true)?;
    socket.bind(address)?;
    socket.listen(BACKLOG)
}

/// Relays until the process is killed, on as many threads as tokio takes by default.
pub fn run(listen: SocketAddr, upstream: SocketAddr) -> io::Result<()> {
    tokio::runtime::Runtime::new()?.block_on(async {
        let listener = self::listen(listen)?;
        let tasks = Tasks::new();
        loop {
            let (mut client, _) = listener.accept().await?;
            tasks.spawn("relayed connection", async move {
                let relayed = async {
                    let mut server = TcpStream::connect(upstream).await?;
                    client.set_nodelay(true)?;
                    server.set_nodelay(true)?;
                    copy_bidirectional(&mut client, &mut server).await
                };
                // Whatever ended it, both ends see it.
                drop(relayed.await);
            });
        }
    })
}
