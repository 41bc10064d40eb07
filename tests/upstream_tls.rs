//! What servers see of our TLS: the name that was dialled, and a certificate by which the proxy logs in.
#![allow(clippy::unwrap_used, reason = "a test, its helpers included")]

mod support;

use std::path::Path;
use std::sync::{Arc, Mutex};

use bson::doc;
use mongomux::config::Address;
use mongomux::sandbox::deployment::{Deployment, DeploymentOptions};
use mongomux::tasks::Tasks;
use rustls::ServerConfig;
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer};
use rustls::server::Acceptor;
use support::certificates::{Authority, Wish};
use support::first_batch;
use support::proxy::proxy;
use tokio::net::{TcpListener, TcpStream};
use tokio_rustls::LazyConfigAcceptor;

/// Speaks TLS in front of a server that does not, and knows by which names it was called.
struct Terminator {
    port: u16,
    called: Arc<Mutex<Vec<Option<String>>>>,
    tasks: Tasks,
}

impl Drop for Terminator {
    fn drop(&mut self) {
        self.tasks.cancel();
    }
}

impl Terminator {
    async fn start(certificate: &Path, server: Address) -> Self {
        let chain = CertificateDer::pem_file_iter(certificate).unwrap().collect::<Result<_, _>>().unwrap();
        let key = PrivateKeyDer::from_pem_file(certificate).unwrap();
        let builder = ServerConfig::builder_with_provider(Arc::new(rustls::crypto::ring::default_provider()));
        let builder = builder.with_safe_default_protocol_versions().unwrap().with_no_client_auth();
        let config = Arc::new(builder.with_single_cert(chain, key).unwrap());
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let port = listener.local_addr().unwrap().port();
        let (called, tasks) = (Arc::<Mutex<Vec<_>>>::default(), Tasks::new());
        let (names, all) = (called.clone(), tasks.clone());
        let serve = async move {
            while let Ok((stream, _)) = listener.accept().await {
                let (names, config, server, all_of_it) =
                    (names.clone(), config.clone(), server.to_string(), all.clone());
                let relay = async move {
                    let Ok(hello) = LazyConfigAcceptor::new(Acceptor::default(), stream).await else { return };
                    names.lock().unwrap().push(hello.client_hello().server_name().map(ToOwned::to_owned));
                    let (Ok(mut near), Ok(mut far)) =
                        (hello.into_stream(config).await, TcpStream::connect(server).await)
                    else {
                        return;
                    };
                    drop(tokio::io::copy_bidirectional(&mut near, &mut far).await);
                };
                all.spawn("relay", async move {
                    tokio::select! {
                        () = relay => {}
                        () = all_of_it.cancelled() => {}
                    }
                });
            }
        };
        let ended = tasks.clone();
        tasks.spawn("accept", async move {
            tokio::select! {
                () = serve => {}
                () = ended.cancelled() => {}
            }
        });
        Self { port, called, tasks }
    }
}

#[tokio::test]
async fn servers_are_called_by_the_name_that_was_dialled() {
    let deployment = support::standalone().await;
    let authority = Authority::new();
    let certificate = authority.sign("server.pem", &Wish::default());
    // An address is no name.
    for (host, expected) in [("localhost", Some("localhost".to_owned())), ("127.0.0.1", None)] {
        let terminator = Terminator::start(&certificate, deployment.members()[0].address()).await;
        let ca = authority.file();
        let uri = format!("mongodb://{host}:{}/?tls=true&tlsCAFile={}", terminator.port, ca.display());
        let proxy = proxy(&uri, "min_pool_size = 0").await;
        let mut client = support::connect(proxy.address()).await;
        let monitoring = terminator.called.lock().unwrap().len();
        client.command("test", doc! { "find": "c" }).await.unwrap();
        let called = terminator.called.lock().unwrap().clone();
        assert!(monitoring > 0 && called.len() > monitoring, "{monitoring} {called:?}");
        assert!(called.iter().all(|name| *name == expected), "{host}: {called:?}");
    }
}

#[tokio::test]
async fn the_proxy_logs_in_with_its_certificate() {
    let authority = Authority::new();
    let server = authority.sign("server.pem", &Wish::default());
    let own = authority.sign("proxy.pem", &Wish { name: "the proxy", ..Wish::default() });
    let arguments = vec![
        "--tlsMode=preferTLS".to_owned(),
        format!("--tlsCertificateKeyFile={}", server.display()),
        format!("--tlsCAFile={}", authority.file().display()),
    ];
    let options = DeploymentOptions { auth: true, arguments, ..DeploymentOptions::for_tests(0) };
    let deployment = Deployment::start(options).await.unwrap_or_else(support::no_deployment);
    support::first_user(&deployment, "root", "rootpw").await;
    let address = deployment.members()[0].address();
    let root = mongodb::Client::with_uri_str(format!("mongodb://root:rootpw@{address}/?directConnection=true"));
    let role = doc! { "role": "readWrite", "db": "test" };
    let create = doc! { "createUser": "CN=the proxy", "roles": [role] };
    root.await.unwrap().database("$external").run_command(create).await.unwrap();
    let files = format!("tlsCAFile={}&tlsCertificateKeyFile={}", authority.file().display(), own.display());
    let uri = format!("mongodb://{address}/?tls=true&{files}");
    for (mechanism, logs_in) in [("&authMechanism=MONGODB-X509", true), ("", false)] {
        let proxy = proxy(&format!("{uri}{mechanism}"), "").await;
        let mut client = support::connect(proxy.address()).await;
        let insert = doc! { "insert": "c", "documents": [{ "_id": 1 }] };
        let code = |reply: bson::Document| reply.get_i32("code").unwrap_or_default();
        let elsewhere = client.reply("other", insert.clone()).await.unwrap();
        assert_eq!(code(elsewhere), 13, "what the user may not do");
        let written = code(client.reply("test", insert).await.unwrap());
        assert_eq!(written, if logs_in { 0 } else { 13 }, "{mechanism}");
        if logs_in {
            let found = client.command("test", doc! { "find": "c" }).await.unwrap();
            assert_eq!(first_batch(&found), [doc! { "_id": 1 }]);
        }
    }
}
