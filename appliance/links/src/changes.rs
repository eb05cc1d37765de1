//! When links, addresses and routes of this machine change, whoever changes them.

use std::{io, time::Duration};

use futures_util::stream::{Stream, StreamExt as _};
use rtnetlink::MulticastGroup;

/// What the kernel tells within this time of the first word is one change: an address that goes takes its routes with it.
const SETTLE: Duration = Duration::from_millis(50);
const GROUPS: [MulticastGroup; 4] =
    [MulticastGroup::Link, MulticastGroup::Ipv4Ifaddr, MulticastGroup::Ipv4Route, MulticastGroup::Ipv6Ifaddr];

/// What the kernel tells.
pub struct Changes(Box<dyn Stream<Item = ()> + Send + Unpin>);

impl Changes {
    /// From now on. Needs a tokio runtime.
    ///
    /// # Errors
    /// Where the kernel does not talk to us.
    pub fn watch() -> io::Result<Self> {
        let (connection, handle, messages) = rtnetlink::new_multicast_connection(&GROUPS)?;
        tokio::spawn(connection);
        // The connection lasts as long as its handle; each message is taken at once, and says no more than that it came.
        let told = messages.map(move |_| {
            let _lasts = &handle;
        });
        Ok(Self(Box::new(told)))
    }

    /// Until something has changed, and has settled. Never ends if the kernel tells nothing any more.
    pub async fn next(&mut self) {
        if self.0.next().await.is_none() {
            std::future::pending::<()>().await;
        }
        let settled = tokio::time::Instant::now() + SETTLE;
        while let Ok(Some(())) = tokio::time::timeout_at(settled, self.0.next()).await {}
    }
}
