//! The plainest pool that there can be: ten server connections, a line of those who wait for one, and messages taken whole. No
//! limits, errors, sessions or metrics: what is left of a pooler when all that it is good for is taken away, on one thread.

use std::collections::VecDeque;
use std::io;
use std::net::SocketAddr;
use std::sync::{Arc, Mutex, OnceLock};

use mongomux::tasks::Tasks;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::runtime::Builder;
use tokio::sync::oneshot;

use super::relay;

const CONNECTIONS: usize = 10;

/// A server connection and its buffer.
type Connection = (TcpStream, Vec<u8>);

#[derive(Default)]
struct Pool {
    idle: Vec<Connection>,
    waiting: VecDeque<oneshot::Sender<Connection>>,
}

/// Serves until the process is killed.
pub fn run(listen: SocketAddr, upstream: SocketAddr) -> io::Result<()> {
    Builder::new_current_thread().enable_all().build()?.block_on(async {
        let mut pool = Pool::default();
        for _ in 0..CONNECTIONS {
            let connection = TcpStream::connect(upstream).await?;
            connection.set_nodelay(true)?;
            pool.idle.push((connection, Vec::new()));
        }
        let (pool, greeting, tasks) = (Arc::new(Mutex::new(pool)), Arc::new(OnceLock::new()), Tasks::new());
        let listener = relay::listen(listen)?;
        loop {
            let (client, _) = listener.accept().await?;
            client.set_nodelay(true)?;
            let (pool, greeting) = (pool.clone(), greeting.clone());
            // Whatever ended it, the client sees it.
            tasks.spawn("client", async move { drop(serve(client, &pool, &greeting).await) });
        }
    })
}

/// The first message of a client is its greeting, which the server answers once for all.
async fn serve(mut client: TcpStream, pool: &Mutex<Pool>, greeting: &OnceLock<Vec<u8>>) -> io::Result<()> {
    let (mut request, mut greeted) = (Vec::new(), false);
    loop {
        receive(&mut client, &mut request).await?;
        if !std::mem::replace(&mut greeted, true)
            && let Some(greeting) = greeting.get()
        {
            let mut reply = greeting.clone();
            reply[8..12].copy_from_slice(&request[4..8]);
            client.write_all(&reply).await?;
            continue;
        }
        let (mut server, mut reply) = check_out(pool).await;
        server.write_all(&request).await?;
        receive(&mut server, &mut reply).await?;
        greeting.get_or_init(|| reply.clone());
        let written = client.write_all(&reply).await;
        check_in(pool, (server, reply));
        written?;
    }
}

async fn check_out(pool: &Mutex<Pool>) -> Connection {
    let turn = {
        let mut pool = pool.lock().expect("nobody panics with it");
        if let Some(connection) = pool.idle.pop() {
            return connection;
        }
        let (hand_over, turn) = oneshot::channel();
        pool.waiting.push_back(hand_over);
        turn
    };
    turn.await.expect("the pool outlives its clients")
}

fn check_in(pool: &Mutex<Pool>, mut connection: Connection) {
    let mut pool = pool.lock().expect("nobody panics with it");
    while let Some(next) = pool.waiting.pop_front() {
        match next.send(connection) {
            Ok(()) => return,
            // It has left.
            Err(back) => connection = back,
        }
    }
    pool.idle.push(connection);
}

/// Takes one whole message.
async fn receive(socket: &mut TcpStream, message: &mut Vec<u8>) -> io::Result<()> {
    message.clear();
    loop {
        let length = message.first_chunk().map(|length| u32::from_le_bytes(*length) as usize);
        if length.is_some_and(|length| message.len() >= length) {
            return Ok(());
        }
        message.reserve(length.unwrap_or(0).saturating_sub(message.len()).max(4_096));
        if socket.read_buf(message).await? == 0 {
            return Err(io::ErrorKind::UnexpectedEof.into());
        }
    }
}
