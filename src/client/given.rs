//! Sockets that listen already when the program starts: opened by systemd, or handed over by the process before. What has
//! connected to them and was not accepted yet is not lost.

use std::io;
use std::net::TcpListener;
use std::os::fd::OwnedFd;
use std::os::unix::net::UnixListener;

use listenfd::ListenFd;

use crate::config::Address;

/// What an administrator calls a socket of the admin port, or of a client listener, in `FileDescriptorName=`.
const ADMIN_NAME: &str = "admin";
const LISTENER_NAME: &str = "listener";

/// A socket that listens.
#[derive(Debug)]
pub(super) enum Listening {
    Tcp(TcpListener),
    Unix(UnixListener),
}

/// A socket that listens already.
#[derive(Debug)]
pub struct GivenSocket {
    pub(super) listening: Listening,
    pub(super) address: Address,
    /// What it is for, where that is said.
    name: String,
}

impl GivenSocket {
    /// One that another process has opened. Its kind is that of `address`, which is told in its own words where it can be.
    ///
    /// # Errors
    /// It is no socket that listens.
    pub fn new(socket: OwnedFd, address: Address, name: String) -> io::Result<Self> {
        match address {
            Address::Tcp { .. } => Self::tcp(TcpListener::from(socket), name),
            Address::Unix(_) => {
                let listening = Listening::Unix(UnixListener::from(socket));
                Ok(Self { listening, address, name })
            }
        }
    }

    /// Where it listens.
    pub fn address(&self) -> &Address {
        &self.address
    }

    fn tcp(listener: TcpListener, name: String) -> io::Result<Self> {
        let local = listener.local_addr()?;
        let address = Address::tcp(local.ip().to_string(), local.port());
        Ok(Self { listening: Listening::Tcp(listener), address, name })
    }

    fn unix(listener: UnixListener, name: String) -> io::Result<Self> {
        let local = listener.local_addr()?;
        let path = local.as_pathname().ok_or_else(|| io::Error::other("a unix socket without a path"))?;
        let address = Address::Unix(path.to_owned());
        Ok(Self { listening: Listening::Unix(listener), address, name })
    }
}

/// Those that are not taken yet.
#[derive(Debug, Default)]
pub struct GivenSockets(Vec<GivenSocket>);

impl GivenSockets {
    /// Those that systemd has opened (`LISTEN_FDS`), if they are meant for this process. To be called once, before there are
    /// threads: what it reads is taken out of the environment.
    ///
    /// # Errors
    /// One of them is no socket that listens.
    pub fn of_systemd() -> io::Result<Self> {
        // Read before the crate clears what belongs to it.
        let names = std::env::var("LISTEN_FDNAMES").unwrap_or_default();
        let mut names = names.split(':').map(str::to_owned);
        let mut sockets = ListenFd::from_env();
        let mut given = Vec::new();
        for index in 0..sockets.len() {
            let name = names.next().unwrap_or_default();
            let socket = match sockets.take_unix_listener(index) {
                Ok(Some(listener)) => GivenSocket::unix(listener, name)?,
                _ => match sockets.take_tcp_listener(index)? {
                    Some(listener) => GivenSocket::tcp(listener, name)?,
                    None => continue,
                },
            };
            given.push(socket);
        }
        Ok(Self(given))
    }

    /// One more.
    pub fn push(&mut self, socket: GivenSocket) {
        self.0.push(socket);
    }

    /// Those for `listeners`, in their order, and the one for the admin port: by address, else by name, so that a port that
    /// another program has chosen needs to be told once only. What is left over is of no use here.
    pub async fn assign(
        &mut self,
        listeners: &[Address],
        admin: &Address,
    ) -> (Vec<Option<GivenSocket>>, Option<GivenSocket>) {
        let mut for_listeners = Vec::new();
        for address in listeners {
            for_listeners.push(self.take_at(address).await);
        }
        let mut for_admin = self.take_at(admin).await;
        for missing in for_listeners.iter_mut().filter(|given| given.is_none()) {
            *missing = self.take_named(LISTENER_NAME);
        }
        if for_admin.is_none() {
            for_admin = self.take_named(ADMIN_NAME);
        }
        (for_listeners, for_admin)
    }

    /// Where those listen that nobody has taken.
    pub fn left(&self) -> impl Iterator<Item = &Address> {
        self.0.iter().map(GivenSocket::address)
    }

    async fn take_at(&mut self, address: &Address) -> Option<GivenSocket> {
        if self.0.is_empty() {
            return None;
        }
        let mut meant = vec![address.clone()];
        if let Address::Tcp { host, port } = address {
            // A name that leads nowhere is not ours to complain about: whoever binds it does.
            let resolved = tokio::net::lookup_host((host.as_str(), *port)).await.into_iter().flatten();
            meant.extend(resolved.map(|it| Address::tcp(it.ip().to_string(), it.port())));
        }
        let index = self.0.iter().position(|given| meant.contains(&given.address))?;
        Some(self.0.remove(index))
    }

    fn take_named(&mut self, name: &str) -> Option<GivenSocket> {
        let index = self.0.iter().position(|given| given.name == name)?;
        Some(self.0.remove(index))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn given(name: &str) -> GivenSocket {
        GivenSocket::tcp(TcpListener::bind("127.0.0.1:0").unwrap(), name.to_owned()).unwrap()
    }

    #[tokio::test]
    async fn sockets_go_to_their_address_and_the_others_by_name() {
        let all = [given(""), given("listener"), given("listener"), given("admin"), given("x")];
        let at: Vec<Address> = all.iter().map(|it| it.address().clone()).collect();
        let mut sockets = GivenSockets(all.into());
        let Address::Tcp { port, .. } = at[0] else { panic!("TCP was asked for") };
        // The first by a name that leads there; the second by its own, since the third is meant for somebody else.
        let wanted =
            [Address::tcp("localhost", port), Address::tcp("127.0.0.1", 1), at[2].clone(), Address::tcp("::1", 0)];
        let (listeners, admin) = sockets.assign(&wanted, &Address::tcp("127.0.0.1", 2)).await;
        let found: Vec<_> = listeners.iter().map(|it| it.as_ref().map(|it| it.address().clone())).collect();
        assert_eq!(found, [Some(at[0].clone()), Some(at[1].clone()), Some(at[2].clone()), None]);
        assert_eq!(admin.unwrap().address(), &at[3]);
        assert_eq!(sockets.left().collect::<Vec<_>>(), [&at[4]]);
    }
}
