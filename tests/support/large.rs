//! Large messages, and clients that are slow with them.

use bson::spec::BinarySubtype;
use bson::{Binary, Bson, Document, doc};
use mongomux::config::Address;
use mongomux::sandbox::mongod::Mongod;
use mongomux::sandbox::wire_client::Request;
use tokio::io::AsyncWriteExt;
use tokio::net::{TcpSocket, TcpStream};

use super::client;

/// So many bytes.
pub fn bytes(count: usize) -> Bson {
    Bson::Binary(Binary { subtype: BinarySubtype::Generic, bytes: vec![0x5A; count] })
}

/// An insert into `c` of a little more than so many bytes.
pub fn large(id: i32, count: usize) -> Request {
    let document = doc! { "_id": id, "data": bytes(count) };
    Request::new("test", doc! { "insert": "c" }).sequence("documents", vec![document])
}

/// A collection whose first batch is a reply of 16 MB, the largest there is.
pub async fn sixteen_megabytes(server: &Mongod) {
    let mut client = client(server).await;
    for id in 0..4 {
        let reply = client.exchange(&large(id, 4_000_000)).await.unwrap().document().unwrap();
        assert_eq!(reply.get_i32("n").unwrap(), 1, "{reply}");
    }
}

/// Asks for all of it.
pub fn all() -> Document {
    doc! { "find": "c", "singleBatch": true }
}

/// A socket that takes little at once, on which a command was sent and nothing read.
pub async fn slow_reader(address: &Address, command: Document) -> TcpStream {
    let Address::Tcp { host, port } = address else { panic!("a TCP proxy") };
    let socket = TcpSocket::new_v4().unwrap();
    socket.set_recv_buffer_size(64 * 1024).unwrap();
    let mut stream = socket.connect(format!("{host}:{port}").parse().unwrap()).await.unwrap();
    stream.write_all(&Request::new("test", command).encode(1).unwrap()).await.unwrap();
    stream
}

/// A socket on which the head of a request was sent, and never its rest.
pub async fn half_sent(address: &Address, request: &Request) -> (TcpStream, usize) {
    let message = request.encode(1).unwrap();
    let mut stream = super::raw::connect(address).await;
    stream.write_all(&message[..1000]).await.unwrap();
    (stream, message.len())
}
