//! A machine for tests: it remembers what functions ask of it.

use std::{
    io,
    sync::{Mutex, MutexGuard, PoisonError},
};

use vmm_sys_util::eventfd::EventFd;

use super::PciHost;

/// MSI-X's control word, in the configuration space.
pub(crate) const MSIX_CONTROL: u64 = 0x9a;
/// Where the table is in the BAR.
pub(crate) const TABLE: u64 = super::TABLE;

#[derive(Debug, Default)]
pub(crate) struct FakeHost {
    messages: Mutex<Vec<(u64, u32)>>,
    watched: Mutex<Vec<u64>>,
}

impl FakeHost {
    /// Messages since the last call.
    pub(crate) fn take_messages(&self) -> Vec<(u64, u32)> {
        std::mem::take(&mut lock(&self.messages))
    }

    /// Where kicks are watched for.
    pub(crate) fn watched(&self) -> Vec<u64> {
        lock(&self.watched).clone()
    }
}

impl PciHost for FakeHost {
    fn interrupt(&self, address: u64, data: u32) {
        lock(&self.messages).push((address, data));
    }

    fn watch(&self, address: u64, _kick: &EventFd) -> io::Result<()> {
        let mut watched = lock(&self.watched);
        if watched.contains(&address) {
            return Err(io::ErrorKind::AlreadyExists.into());
        }
        watched.push(address);
        Ok(())
    }

    fn forget(&self, address: u64, _kick: &EventFd) -> io::Result<()> {
        let mut watched = lock(&self.watched);
        let at = watched.iter().position(|watched| *watched == address).ok_or(io::ErrorKind::NotFound)?;
        watched.remove(at);
        Ok(())
    }
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
