//! Whose turn it is to accept connections, where one process takes over from another.

use tokio::sync::watch;

/// Where this process stands between the one before and the next one.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Shift {
    /// The process before accepts still.
    Before,
    /// Ours.
    Ours,
    /// Nobody's: the program ends. Its admin port is there to the end.
    Ending,
    /// The next process accepts, the admin port's connections as well.
    Over,
}

impl Shift {
    /// True as long as clients are accepted.
    pub fn accepts_clients(self) -> bool {
        self == Self::Ours
    }

    /// Resolves when it is `wanted`; never where nobody can tell any more.
    ///
    /// # Cancel safety
    /// Safe.
    pub async fn until(shift: &mut watch::Receiver<Self>, wanted: impl Fn(Self) -> bool) {
        if shift.wait_for(|shift| wanted(*shift)).await.is_err() {
            std::future::pending::<()>().await;
        }
    }

    /// True as long as connections to the admin port are accepted.
    pub fn accepts_admin(self) -> bool {
        matches!(self, Self::Ours | Self::Ending)
    }
}
