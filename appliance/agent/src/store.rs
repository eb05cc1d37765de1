//! What survives the agent: records, invitations, and which pool this host belongs to. One redb file; it is also the lock that
//! keeps a second agent away from the same state folder.

use std::{collections::BTreeSet, fs, path::Path};

use anyhow::{Context, Result, anyhow};
use rebec_book::{
    Book, Key, Signed,
    book::Came,
    key::{Id, Name},
    record::{RecordKey, VmPrivate},
};
use rebec_host::reserve::Reserve;
use rebec_pool::{lease::Charge, ranges::Mark};
use redb::{Database, ReadableDatabase, ReadableTable, TableDefinition};
use serde::{Serialize, de::DeserializeOwned};

use crate::stall;

const RECORDS: TableDefinition<'_, &[u8], &[u8]> = TableDefinition::new("records");
const FACTS: TableDefinition<'_, &str, &[u8]> = TableDefinition::new("facts");
/// Not forgotten with the pool: a keeper that left and came back must know what it has granted.
const CHARGES: TableDefinition<'_, &[u8], &[u8]> = TableDefinition::new("charges");
/// What VMs start with that others are not told.
const PRIVATE: TableDefinition<'_, &[u8], &[u8]> = TableDefinition::new("private");
/// Parts of LANs' ranges that this host gives back. Not forgotten with the pool: a host that left and came back must know what it may not use.
const MARKS: TableDefinition<'_, &[u8], &[u8]> = TableDefinition::new("marks");
/// Orders, and what became of them.
const JOBS: TableDefinition<'_, &[u8], &[u8]> = TableDefinition::new("jobs");
const POOL: &str = "pool";
const DOMAIN: &str = "domain";
/// Its file in the state folder.
const FILE: &str = "records.redb";
/// The same until it is whole.
const NEW: &str = ".records.redb";

/// When something must be on the disk.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Durable {
    /// Before anybody acts on it.
    Now,
    /// With the next that must be there now.
    Later,
}

/// The open file.
pub struct Store {
    db: Database,
    reserve: Reserve,
}

impl Store {
    /// Opens or makes it.
    pub fn open(state: &Path) -> Result<Self> {
        let path = state.join(FILE);
        if !path.exists() {
            make(state, &path).with_context(|| format!("create {}", path.display()))?;
        }
        let db = Database::open(&path).map_err(|error| match error {
            redb::DatabaseError::DatabaseAlreadyOpen => {
                anyhow!("{}: another agent uses this state folder; stop that one, or give this one its own with --state", path.display())
            }
            other => anyhow!(other).context(format!("open {}", path.display())),
        })?;
        Self::of(db, Reserve::of(state))
    }

    /// Of an open file, with what keeps room for it.
    pub fn of(db: Database, reserve: Reserve) -> Result<Self> {
        let store = Self { db, reserve };
        store.write("make its tables", |tx| {
            tx.open_table(RECORDS)?;
            tx.open_table(FACTS)?;
            tx.open_table(CHARGES)?;
            tx.open_table(PRIVATE)?;
            tx.open_table(MARKS)?;
            tx.open_table(JOBS)?;
            Ok(())
        })?;
        Ok(store)
    }

    /// The domain that this host belongs to.
    pub fn domain(&self) -> Result<Option<Key>> {
        self.fact(DOMAIN)
    }

    /// The book as it was left; none where the host belongs to no pool.
    pub fn book(&self) -> Result<Option<Book>> {
        let Some(pool) = self.fact::<Key>(POOL)? else { return Ok(None) };
        let read = || -> Result<Vec<Signed>, redb::Error> {
            let table = self.db.begin_read()?.open_table(RECORDS)?;
            let values: Result<Vec<_>, _> = table.iter()?.map(|entry| entry.map(|(_, value)| value.value().to_vec())).collect();
            Ok(values?.iter().filter_map(|bytes| Signed::from_bytes(bytes).ok()).collect())
        };
        let mut stored = read().context("store: read the records")?;
        // Stored in the order of keys; believed in the order of authority, in which each finds those that allow it.
        stored.sort_by_cached_key(|signed| signed.read().map(|record| record.key).ok());
        let mut book = Book::new(pool);
        for signed in stored {
            if let Err(error) = book.restore(signed, Came::InTurn) {
                log::debug!("store: left out {error}");
            }
        }
        // What is void, or of writers who have left, is not read again.
        let current: BTreeSet<Vec<u8>> = book.all().filter_map(|signed| postcard::to_stdvec(&signed.read().ok()?.key).ok()).collect();
        self.write("remove what is void", |tx| Ok(tx.open_table(RECORDS)?.retain(|key, _| current.contains(key))?))?;
        Ok(Some(book))
    }

    /// Enters a pool as a host of a domain, with the records known so far: all of it or nothing.
    pub fn enter(&self, pool: Key, domain: Key, records: &[Signed]) -> Result<()> {
        let (pool, domain, rows) = (serde_json::to_vec(&pool)?, serde_json::to_vec(&domain)?, rows(records)?);
        self.write("enter the pool", |tx| {
            let mut facts = tx.open_table(FACTS)?;
            facts.insert(POOL, pool.as_slice())?;
            facts.insert(DOMAIN, domain.as_slice())?;
            insert(tx, &rows)
        })
    }

    /// Forgets the pool and all its records.
    pub fn leave(&self) -> Result<()> {
        self.write("leave the pool", |tx| {
            tx.open_table(FACTS)?.retain(|_, _| false)?;
            tx.open_table(RECORDS)?.retain(|_, _| false)?;
            Ok(())
        })
    }

    /// Writes records, all or none.
    pub fn put(&self, records: &[Signed], durable: Durable) -> Result<()> {
        let rows = rows(records)?;
        self.write_as(durable, "write records", |tx| insert(tx, &rows))
    }

    /// Removes records: with the next write that must be on the disk.
    pub fn remove(&self, keys: &[RecordKey]) -> Result<()> {
        let keys = keys.iter().map(postcard::to_stdvec).collect::<Result<Vec<_>, _>>()?;
        self.write_as(Durable::Later, "remove records", |tx| {
            let mut table = tx.open_table(RECORDS)?;
            for key in &keys {
                table.remove(key.as_slice())?;
            }
            Ok(())
        })
    }

    /// A named fact of this host.
    pub fn fact<T: DeserializeOwned>(&self, name: &str) -> Result<Option<T>> {
        let read = || -> Result<Option<Vec<u8>>, redb::Error> {
            let table = self.db.begin_read()?.open_table(FACTS)?;
            Ok(table.get(name)?.map(|value| value.value().to_vec()))
        };
        let bytes = read().with_context(|| format!("store: read {name}"))?;
        bytes.map(|bytes| serde_json::from_slice(&bytes).with_context(|| format!("store: understand {name}"))).transpose()
    }

    /// Writes a named fact.
    pub fn set_fact<T: Serialize>(&self, name: &str, value: &T) -> Result<()> {
        let bytes = serde_json::to_vec(value)?;
        self.write(name, |tx| {
            tx.open_table(FACTS)?.insert(name, bytes.as_slice())?;
            Ok(())
        })
    }

    /// Changes a named fact, or leaves it where the change is refused. Who changes it at the same time waits.
    pub fn change_fact<T, R>(&self, name: &str, change: impl FnOnce(&mut T) -> Result<R>) -> Result<R>
    where
        T: Serialize + DeserializeOwned + Default,
    {
        let tx = self.begin().with_context(|| format!("store: change {name}"))?;
        let mut table = tx.open_table(FACTS)?;
        let mut value: T = match table.get(name)? {
            Some(bytes) => serde_json::from_slice(bytes.value()).with_context(|| format!("store: understand {name}"))?,
            None => T::default(),
        };
        let outcome = change(&mut value)?;
        table.insert(name, serde_json::to_vec(&value)?.as_slice())?;
        drop(table);
        stall::may(|| tx.commit()).with_context(|| format!("store: change {name}"))?;
        Ok(outcome)
    }

    /// What this host knows of the VMs that it keeps.
    pub fn charges(&self) -> Result<Vec<(Id, Charge)>> {
        let table = self.db.begin_read()?.open_table(CHARGES).context("store: read the charges")?;
        let mut charges = vec![];
        for entry in table.iter()? {
            let (key, value) = entry?;
            let vm = key.value().try_into().map(Name).context("store: a charge without a VM")?;
            charges.push((vm, serde_json::from_slice(value.value()).with_context(|| format!("store: understand the charge of VM {vm}"))?));
        }
        Ok(charges)
    }

    /// Changes what is known of one, or leaves it where the change is refused. Who changes it at the same time waits.
    pub fn change_charge<E>(&self, vm: &Id, change: impl FnOnce(Option<&Charge>) -> Result<Charge, E>) -> Result<Result<Charge, E>> {
        let what = || format!("store: change the charge of VM {vm}");
        let tx = self.begin().with_context(what)?;
        let mut table = tx.open_table(CHARGES)?;
        let before: Option<Charge> = match table.get(vm.0.as_slice())? {
            Some(bytes) => Some(serde_json::from_slice(bytes.value()).with_context(what)?),
            None => None,
        };
        let after = match change(before.as_ref()) {
            Ok(after) => after,
            Err(refused) => return Ok(Err(refused)),
        };
        if before.as_ref() != Some(&after) {
            table.insert(vm.0.as_slice(), serde_json::to_vec(&after)?.as_slice())?;
            drop(table);
            stall::may(|| tx.commit()).with_context(what)?;
        }
        Ok(Ok(after))
    }

    /// What others are not told of a VM.
    pub fn private(&self, vm: &Id) -> Result<Option<VmPrivate>> {
        let table = self.db.begin_read()?.open_table(PRIVATE).context("store: read what VMs start with")?;
        let bytes = table.get(vm.0.as_slice())?.map(|value| value.value().to_vec());
        bytes.map(|bytes| minicbor::decode(&bytes).with_context(|| format!("store: understand what VM {vm} starts with"))).transpose()
    }

    /// Keeps it.
    pub fn set_private(&self, vm: &Id, private: &VmPrivate) -> Result<()> {
        let bytes = minicbor::to_vec(private)?;
        self.write("keep what a VM starts with", |tx| {
            tx.open_table(PRIVATE)?.insert(vm.0.as_slice(), bytes.as_slice())?;
            Ok(())
        })
    }

    /// Forgets it of all VMs but these.
    pub fn retain_private(&self, wanted: impl Fn(&Id) -> bool) -> Result<()> {
        let table = self.db.begin_read()?.open_table(PRIVATE).context("store: read what VMs start with")?;
        let wanted = |key: &[u8]| key.try_into().is_ok_and(|id| wanted(&Name(id)));
        let mut stale = false;
        for entry in table.iter()? {
            stale |= !wanted(entry?.0.value());
        }
        if stale {
            self.write("forget what VMs start with", |tx| Ok(tx.open_table(PRIVATE)?.retain(|key, _| wanted(key))?))
        } else {
            Ok(())
        }
    }

    /// Parts of ranges that this host has begun to give back.
    pub fn marks(&self) -> Result<Vec<Mark>> {
        let table = self.db.begin_read()?.open_table(MARKS).context("store: read the marks")?;
        let mut marks = vec![];
        for entry in table.iter()? {
            marks.push(serde_json::from_slice(entry?.1.value()).context("store: understand a mark")?);
        }
        Ok(marks)
    }

    /// Begins to give parts of ranges back.
    pub fn mark(&self, marks: &[Mark]) -> Result<()> {
        let rows = marks.iter().map(|mark| Ok((mark_key(mark), serde_json::to_vec(mark)?))).collect::<Result<Vec<_>>>()?;
        self.write("mark parts of ranges", |tx| {
            let mut table = tx.open_table(MARKS)?;
            for (key, value) in &rows {
                table.insert(key.as_slice(), value.as_slice())?;
            }
            Ok(())
        })
    }

    /// One has gone back, as a record says: both are on the disk, or neither.
    pub fn unmark(&self, mark: &Mark, says: &Signed) -> Result<()> {
        let rows = rows(std::slice::from_ref(says))?;
        self.write("forget a mark", |tx| {
            insert(tx, &rows)?;
            tx.open_table(MARKS)?.remove(mark_key(mark).as_slice())?;
            Ok(())
        })
    }

    /// What was ordered of this host. Rows that are none of this version are left out.
    pub fn jobs<T: DeserializeOwned>(&self) -> Result<Vec<(Id, T)>> {
        let table = self.db.begin_read()?.open_table(JOBS).context("store: read the jobs")?;
        let mut jobs = vec![];
        for entry in table.iter()? {
            let (key, value) = entry?;
            let row = key.value().try_into().ok().zip(serde_json::from_slice(value.value()).ok());
            jobs.extend(row.map(|(order, row)| (Name(order), row)));
        }
        Ok(jobs)
    }

    /// Writes the row of an order; that of an old one goes.
    pub fn put_job(&self, order: &Id, row: &impl Serialize, old: Option<&Id>) -> Result<()> {
        let bytes = serde_json::to_vec(row)?;
        self.write("write down a job", |tx| {
            let mut table = tx.open_table(JOBS)?;
            if let Some(old) = old {
                table.remove(old.0.as_slice())?;
            }
            table.insert(order.0.as_slice(), bytes.as_slice())?;
            Ok(())
        })
    }

    /// Nothing came of an order.
    pub fn forget_job(&self, order: &Id) -> Result<()> {
        self.write("forget a job", |tx| {
            tx.open_table(JOBS)?.remove(order.0.as_slice())?;
            Ok(())
        })
    }

    /// A VM that this host kept is no more.
    pub fn forget_charge(&self, vm: &Id) -> Result<()> {
        self.write("forget a charge", |tx| {
            tx.open_table(CHARGES)?.remove(vm.0.as_slice())?;
            Ok(())
        })
    }

    /// A write that finds no room leaves the database unusable until it is opened again.
    fn begin(&self) -> Result<redb::WriteTransaction, redb::TransactionError> {
        // One at a time: whoever writes may wait for the disk.
        stall::may(|| {
            self.reserve.make_room();
            self.db.begin_write()
        })
    }

    fn write(&self, what: &str, change: impl FnOnce(&redb::WriteTransaction) -> Result<(), redb::Error>) -> Result<()> {
        self.write_as(Durable::Now, what, change)
    }

    fn write_as(
        &self,
        durable: Durable,
        what: &str,
        change: impl FnOnce(&redb::WriteTransaction) -> Result<(), redb::Error>,
    ) -> Result<()> {
        let attempt = || -> Result<(), redb::Error> {
            let mut tx = self.begin()?;
            if durable == Durable::Later {
                tx.set_durability(redb::Durability::None)?;
            }
            change(&tx)?;
            tx.commit()?;
            Ok(())
        };
        stall::may(attempt).with_context(|| format!("store: {what}"))
    }
}

/// Makes the file under another name: one whose making a power cut ended could not be opened, and this host would never start again.
fn make(state: &Path, path: &Path) -> Result<()> {
    let new = state.join(NEW);
    match fs::remove_file(&new) {
        Err(error) if error.kind() != std::io::ErrorKind::NotFound => return Err(error.into()),
        _ => {}
    }
    Store::of(Database::create(&new)?, Reserve::of(state))?;
    fs::File::open(&new)?.sync_all()?;
    fs::rename(&new, path)?;
    Ok(fs::File::open(state)?.sync_all()?)
}

fn mark_key(mark: &Mark) -> Vec<u8> {
    [mark.lan.0.as_slice(), &mark.tag.to_be_bytes()].concat()
}

type Row = (Vec<u8>, Vec<u8>);

fn rows(records: &[Signed]) -> Result<Vec<Row>> {
    let row = |signed: &Signed| Ok((postcard::to_stdvec::<RecordKey>(&signed.read()?.key)?, signed.to_bytes()));
    records.iter().map(row).collect()
}

fn insert(tx: &redb::WriteTransaction, rows: &[Row]) -> Result<(), redb::Error> {
    let mut table = tx.open_table(RECORDS)?;
    for (key, value) in rows {
        table.insert(key.as_slice(), value.as_slice())?;
    }
    Ok(())
}
