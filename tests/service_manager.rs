//! What a service manager hears of the program, and the sockets that it gives to it.
#![allow(clippy::unwrap_used, reason = "a test, its helpers included")]

mod support;

use std::net::TcpListener;
use std::os::fd::{AsRawFd as _, OwnedFd};
use std::path::PathBuf;

use bson::doc;
use mongomux::config::Address;
use mongomux::sandbox::wire_client::WireClient;
use support::connect;
use support::program::Program;
use support::succession::Place;
use tempfile::TempDir;
use tokio::net::{TcpStream, UnixDatagram};
use tokio::time::timeout;

/// What listens behind `NOTIFY_SOCKET`.
struct Manager {
    socket: UnixDatagram,
    directory: TempDir,
}

impl Manager {
    fn new() -> Self {
        let directory = tempfile::tempdir().unwrap();
        Self { socket: UnixDatagram::bind(directory.path().join("notify")).unwrap(), directory }
    }

    fn path(&self) -> PathBuf {
        self.directory.path().join("notify")
    }

    /// The next message of which a line begins with `what`; those before it are passed over, and say nothing of `not`.
    async fn hears(&self, what: &str, not: &[&str]) -> Vec<String> {
        let heard = async {
            loop {
                let mut bytes = [0; 4_096];
                let length = self.socket.recv(&mut bytes).await.unwrap();
                let lines: Vec<String> =
                    std::str::from_utf8(&bytes[..length]).unwrap().lines().map(str::to_owned).collect();
                if lines.iter().any(|line| line.starts_with(what)) {
                    return lines;
                }
                let too_early = lines.iter().find(|line| not.iter().any(|not| line.starts_with(not)));
                assert_eq!(too_early, None, "before {what}");
            }
        };
        timeout(support::PATIENCE, heard).await.unwrap_or_else(|_| panic!("{what} is never said"))
    }
}

fn monotonic_microseconds() -> i64 {
    let now = nix::time::clock_gettime(nix::time::ClockId::CLOCK_MONOTONIC).unwrap();
    now.tv_sec() * 1_000_000 + now.tv_nsec() / 1_000
}

#[tokio::test]
async fn a_service_manager_hears_of_the_whole_life_of_the_program_and_of_the_next_one() {
    let deployment = support::standalone().await;
    let manager = Manager::new();
    let mut place = Place::new(&deployment.uri(), "drain_timeout_ms = 5_000");
    place.notifies(&manager.path());
    let (mut program, address) = place.first().await;
    let ready = manager.hears("READY=1", &["STOPPING=1", "RELOADING=1", "MAINPID="]).await;
    assert!(!ready.iter().any(|line| line.starts_with("MAINPID")), "{ready:?}: it is the one that was started");
    connect(&address).await.command("admin", doc! { "ping": 1 }).await.unwrap();
    for _ in 0..3 {
        manager.hears("WATCHDOG=1", &["READY=1", "STOPPING=1"]).await;
    }

    let before = monotonic_microseconds();
    program.hang_up();
    let reloading = manager.hears("RELOADING=1", &["READY=1"]).await;
    let since = reloading.iter().find_map(|line| line.strip_prefix("MONOTONIC_USEC=")).expect("since when");
    assert!((before..=monotonic_microseconds()).contains(&since.parse().unwrap()), "{reloading:?} after {before}");
    manager.hears("READY=1", &["STOPPING=1"]).await;

    let next = place.start();
    let ready = manager.hears("READY=1", &["STOPPING=1"]).await;
    assert!(ready.contains(&format!("MAINPID={}", next.pid())), "{ready:?}");
    assert_eq!(program.ended().await.0, 0);
    // It goes on to be watched, and the old one has not said that the service stops.
    for _ in 0..3 {
        manager.hears("WATCHDOG=1", &["READY=1", "STOPPING=1"]).await;
    }
    let mut next = next;
    next.terminate();
    manager.hears("STOPPING=1", &["READY=1"]).await;
    assert_eq!(next.ended().await.0, 0);
}

/// Sockets that are open before the program is, and after it.
struct Held {
    sockets: [TcpListener; 2],
    /// The same, as children inherit them.
    inherited: [OwnedFd; 2],
}

impl Held {
    fn new() -> Self {
        let sockets = [(); 2].map(|()| TcpListener::bind("127.0.0.1:0").unwrap());
        // Out of the way of the numbers where they are to be in the end.
        let inherited = [&sockets[0], &sockets[1]].map(|socket| {
            let high = rustix::io::fcntl_dupfd_cloexec(socket, 100).unwrap();
            rustix::io::fcntl_setfd(&high, rustix::io::FdFlags::empty()).unwrap();
            high
        });
        Self { sockets, inherited }
    }

    fn addresses(&self) -> [Address; 2] {
        [&self.sockets[0], &self.sockets[1]].map(|socket| socket.local_addr().unwrap().to_string().parse().unwrap())
    }

    /// As systemd starts it: the sockets from 3 on, and said to be for it.
    fn start(&self, arguments: &[&str]) -> Program {
        let [clients, admin] = [0, 1].map(|index| self.inherited[index].as_raw_fd());
        let script = format!(
            "exec 3<&{clients} 4<&{admin} {clients}<&- {admin}<&-; LISTEN_PID=$$ LISTEN_FDS=2 \
             LISTEN_FDNAMES=listener:admin exec \"$0\" \"$@\""
        );
        let mut command = Program::command_of("bash");
        command.args(["-c", &script, env!("CARGO_BIN_EXE_mongomux")]).args(arguments);
        Program::spawn(command)
    }
}

#[tokio::test]
async fn who_connects_to_a_socket_of_the_service_manager_waits_while_there_is_no_program() {
    let deployment = support::standalone().await;
    let held = Held::new();
    let [address, admin] = held.addresses();
    let uri = deployment.uri();
    for round in 0..3 {
        // The system has taken the connect, and there is nobody yet who could answer.
        let early = TcpStream::connect(address.to_string()).await.expect("somebody listens");
        let mut program = if round == 0 {
            // By their names: the configuration says other addresses.
            held.start(&["run", "--listen", "127.0.0.1:1", "--admin", "127.0.0.1:2", &uri])
        } else {
            // By their addresses.
            held.start(&["run", "--listen", &address.to_string(), "--admin", &admin.to_string(), &uri])
        };
        let mut early = WireClient::over(early);
        early.hello("mongomux test").await.expect("an answer");
        early.command("test", doc! { "count": "c" }).await.expect("an answer");
        assert_eq!(program.address().await, address);
        let health = support::http(&admin, "GET", "/livez", "").await;
        assert!(health.starts_with("HTTP/1.1 200"), "{health}");
        program.terminate();
        program.line("draining").await;
        drop(early);
        assert_eq!(program.ended().await.0, 0);
    }
}
