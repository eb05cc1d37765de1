//! The loop that hears what comes seldom and is answered at once, on a thread of its own.

use std::os::fd::AsRawFd;

use anyhow::{Context, Result, anyhow};
use event_manager::{EventManager, EventOps, EventSet, Events, MutEventSubscriber, SubscriberOps as _};
use rebec_devices::Threads;

/// What is heard in it.
pub type Heard = Box<dyn MutEventSubscriber + Send>;

/// Starts the loop; it lives as long as the process.
pub fn listen(threads: &dyn Threads, heard: Vec<Heard>) -> Result<()> {
    let mut manager = EventManager::new().map_err(|error| anyhow!("services: wait for events: {error:?}"))?;
    for subscriber in heard {
        manager.add_subscriber(subscriber);
    }
    let body = move || {
        loop {
            if let Err(error) = manager.run() {
                log::error!("services: wait for events: {error:?}; signals and newcomers are not heard any more");
                return;
            }
        }
    };
    threads.spawn("services", Box::new(body)).map(drop).context("start the thread of the services")
}

/// Has the loop hear what comes to a descriptor.
pub fn add(ops: &mut EventOps<'_>, what: &str, descriptor: &impl AsRawFd) {
    if let Err(error) = ops.add(Events::new(descriptor, EventSet::IN)) {
        log::error!("{what}: wait for events: {error:?}; nobody is heard there");
    }
}
