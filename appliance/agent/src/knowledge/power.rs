//! Power cuts: what a real store writes is recorded operation by operation, and an agent's knowledge is opened from the image that each cut
//! leaves. Of what was written since the last sync a disk keeps any part, and of a single write its first sectors.

use std::{io, path::Path};

use rebec_book::{
    key::{Id, id_of_key},
    record::{DomainBody, HostBody, MemberBody, PoolBody, SeenBody, SeenState},
};
use rebec_host::{
    durable::cuts::{self, Chance},
    reserve::Reserve,
};
use rebec_pool::lease::{self, Ask, Stance};
use redb::{Database, StorageBackend};

use super::*;

/// What a disk writes whole.
const SECTOR_BYTES: usize = 512;
/// Images made of each cut: nothing that was not synced, all of it, and by chance.
const IMAGES: u64 = 3;

/// What the store did to its file.
#[derive(Debug, Clone)]
enum Deed {
    Write(usize, Vec<u8>),
    Length(usize),
    Sync,
}

#[derive(Debug, Default)]
struct Recorded {
    deeds: Vec<Deed>,
    bytes: Vec<u8>,
}

/// A file in memory that remembers how it came to be.
#[derive(Debug, Clone, Default)]
struct Disk(Arc<Mutex<Recorded>>);

fn apply(bytes: &mut Vec<u8>, deed: &Deed) {
    match deed {
        Deed::Write(at, data) => cuts::write(bytes, *at, data),
        Deed::Length(length) => bytes.resize(*length, 0),
        Deed::Sync => {}
    }
}

impl Disk {
    fn holding(bytes: Vec<u8>) -> Self {
        Self(Arc::new(Mutex::new(Recorded { deeds: vec![], bytes })))
    }

    fn does(&self, deed: Deed) {
        let mut inner = lock(&self.0);
        apply(&mut inner.bytes, &deed);
        inner.deeds.push(deed);
    }

    fn deeds(&self) -> usize {
        lock(&self.0).deeds.len()
    }
}

impl StorageBackend for Disk {
    fn len(&self) -> io::Result<u64> {
        Ok(lock(&self.0).bytes.len() as u64)
    }

    fn read(&self, offset: u64, out: &mut [u8]) -> io::Result<()> {
        let inner = lock(&self.0);
        let found = usize::try_from(offset).ok().and_then(|at| inner.bytes.get(at..at + out.len()));
        out.copy_from_slice(found.ok_or(io::ErrorKind::UnexpectedEof)?);
        Ok(())
    }

    fn set_len(&self, length: u64) -> io::Result<()> {
        self.does(Deed::Length(length as usize));
        Ok(())
    }

    fn sync_data(&self) -> io::Result<()> {
        self.does(Deed::Sync);
        Ok(())
    }

    fn write(&self, offset: u64, data: &[u8]) -> io::Result<()> {
        self.does(Deed::Write(offset as usize, data.to_vec()));
        Ok(())
    }
}

/// What the disk holds after the power was cut behind the first `at` deeds.
fn image(synced: &[u8], unsynced: &[Deed], which: u64, chance: &mut Chance) -> Vec<u8> {
    let mut bytes = synced.to_vec();
    for deed in unsynced {
        match (which, deed) {
            (0, _) => {}
            (1, deed) => apply(&mut bytes, deed),
            (_, Deed::Write(at, data)) if chance.below(2) == 0 => {
                let sectors = chance.below(data.len() / SECTOR_BYTES + 1);
                let kept = if chance.below(2) == 0 { data.len() } else { sectors * SECTOR_BYTES };
                apply(&mut bytes, &Deed::Write(*at, data[..kept].to_vec()));
            }
            (_, Deed::Write(..)) => {}
            (_, deed) => apply(&mut bytes, deed),
        }
    }
    bytes
}

fn secret(number: u8) -> SigningKey {
    SigningKey::from_bytes(&[number; 32])
}

fn key(number: u8) -> Key {
    public(&secret(number))
}

/// Pool 0, its domain 1, that domain's hosts 2 (which the store is of) and 3.
fn beginning() -> Vec<Signed> {
    let sign = |kind, id, seq, body: Body, by| Record::sign(kind, id, seq, Some(&body), &secret(by)).unwrap();
    let member = |host, seq, name: &str| {
        let body = MemberBody { host: key(host), domain: key(1), name: name.into(), dead: None, role: None };
        sign(Kind::MEMBER, id_of_key(&key(host)), seq, Body::Member(body), 1)
    };
    vec![
        sign(Kind::POOL, Name([0; 16]), 1, Body::Pool(PoolBody { name: "lab".into() }), 0),
        sign(Kind::DOMAIN, id_of_key(&key(1)), 2, Body::Domain(DomainBody { name: "alpha".into(), key: key(1) }), 0),
        member(2, 1, "a1"),
        member(3, 2, "a2"),
    ]
}

fn host_body() -> Body {
    let body = HostBody::bare(key(1));
    Body::Host(body.into())
}

fn seen(epoch: u64) -> Body {
    let state = SeenState::Running;
    let body = SeenBody {
        epoch,
        state,
        reason: None,
        endpoints: vec![],
        memory_bytes: 0,
        pid: 0,
        grants: vec![],
        to: None,
        keys: None,
        ahead: None,
    };
    Body::Seen(body.into())
}

fn store_on(disk: Disk) -> Result<Store> {
    let db = Database::builder().create_with_backend(disk)?;
    // Of a folder that is not there: there is nothing to give back.
    Store::of(db, Reserve::of(Path::new("/nowhere")))
}

/// An empty store, as it is when it gets its name.
fn made() -> Vec<u8> {
    let disk = Disk::default();
    drop(store_on(disk.clone()).unwrap());
    lock(&disk.0).bytes.clone()
}

/// What others have been told, and how many deeds had been done by then.
#[derive(Debug, Clone, Default)]
struct Told {
    deeds: usize,
    in_pool: bool,
    /// The last number of this host's own log.
    head: u64,
    /// The floor of the keeper's charge: the epoch at which it granted the VM.
    floor: u64,
    /// Orders that were taken on, and those of them that were carried out.
    begun: Vec<Id>,
    done: Vec<Id>,
}

const VM: Id = Name([7; 16]);

/// A host's life: it joins, says what runs, hears of others, keeps a VM and grants it, obeys orders, leaves and joins again.
fn story(disk: &Disk) -> Vec<Told> {
    let store = Arc::new(store_on(disk.clone()).unwrap());
    let knowledge = Knowledge::open(secret(2), None, store.clone(), None).unwrap();
    let (mut told, mut now) = (vec![], Told::default());
    let mut note = |now: &mut Told| {
        now.deeds = disk.deeds();
        told.push(now.clone());
    };
    for life in 0..2u64 {
        // Before it says so, an image of either kind is right.
        knowledge.enter(key(0), key(1), beginning()).unwrap();
        now.in_pool = true;
        note(&mut now);
        for round in 1..=6u64 {
            let body = if round == 1 { host_body() } else { seen(round) };
            let (kind, id) = if round == 1 { (Kind::HOST, id_of_key(&key(2))) } else { (Kind::SEEN, VM) };
            let written = knowledge.write(kind, id, Some(body), &secret(2)).unwrap();
            now.head = written.last().unwrap().read().unwrap().seq;
            note(&mut now);
            let other = Record::sign(Kind::SEEN, Name([round as u8; 16]), life * 10 + round, Some(&seen(round)), &secret(3)).unwrap();
            knowledge.take_in(vec![other], Came::Alone);
            let order = Name([(life * 10 + round) as u8; 16]);
            store.put_job(&order, &false, None).unwrap();
            now.begun.push(order);
            note(&mut now);
            if round % 2 == 0 {
                store.put_job(&order, &true, None).unwrap();
                now.done.push(order);
                note(&mut now);
            }
        }
        let promised = store.change_charge(&VM, |charge| {
            let ask = Ask { epoch: charge.map_or(1, |charge| charge.floor), stance: Stance::Runs };
            lease::promise(charge, charge.map_or(key(2), |charge| charge.starter), ask)
        });
        let promised = promised.unwrap().unwrap();
        let granted = store.change_charge(&VM, |charge| Ok::<_, ()>(lease::grant(charge.unwrap(), key(3)))).unwrap().unwrap();
        assert!(granted.floor > promised.floor);
        now.floor = granted.floor;
        note(&mut now);
        if life == 0 {
            now.in_pool = false;
            now.head = 0;
            // While it leaves, either is right.
            let before = Told { deeds: disk.deeds(), in_pool: false, ..now.clone() };
            told_leaving(&knowledge, before, &mut note);
        }
    }
    told
}

fn told_leaving(knowledge: &Knowledge, mut before: Told, note: &mut impl FnMut(&mut Told)) {
    note(&mut before);
    knowledge.forget().unwrap();
    note(&mut before);
}

/// Whether an agent comes up from an image, and has kept what was told.
fn comes_up(bytes: Vec<u8>, told: &Told) -> Result<()> {
    let store = Arc::new(store_on(Disk::holding(bytes))?);
    let knowledge = Knowledge::open(secret(2), None, store.clone(), None)?;
    let in_pool = knowledge.read(|book| book.pool());
    assert!(in_pool.is_some() || !told.in_pool, "it forgot its pool");
    assert_eq!(in_pool.is_some(), store.domain()?.is_some(), "half of a pool");
    if told.in_pool {
        let next = knowledge.write(Kind::SEEN, VM, Some(seen(99)), &secret(2))?;
        let next = next.last().unwrap().read()?.seq;
        assert!(next > told.head, "number {next} is used again: {} was told", told.head);
    }
    let floor = store.charges()?.first().map_or(0, |(_, charge)| charge.floor);
    assert!(floor >= told.floor, "the VM was granted at epoch {}, and the keeper knows of {floor}", told.floor);
    let jobs = store.jobs::<bool>()?;
    let known = |order: &Id| jobs.iter().find(|(id, _)| id == order);
    assert!(told.begun.iter().all(|order| known(order).is_some()), "an order was forgotten");
    assert!(told.done.iter().all(|order| known(order).is_some_and(|(_, is_done)| *is_done)), "an end was forgotten");
    Ok(())
}

#[test]
fn whenever_the_power_goes_an_agent_comes_up_and_knows_what_it_told() {
    let disk = Disk::holding(made());
    let told = story(&disk);
    let deeds = lock(&disk.0).deeds.clone();
    assert!(told.len() > 30 && deeds.iter().filter(|deed| matches!(deed, Deed::Sync)).count() > 30, "{} of {}", told.len(), deeds.len());
    let (mut chance, mut synced, mut since) = (Chance(0x5eed), made(), 0);
    for at in 0..=deeds.len() {
        if at > 0 && matches!(deeds[at - 1], Deed::Sync) {
            deeds[since..at].iter().for_each(|deed| apply(&mut synced, deed));
            since = at;
        }
        let known = told.iter().rfind(|told| told.deeds <= at).cloned().unwrap_or_default();
        for which in 0..IMAGES {
            let bytes = image(&synced, &deeds[since..at], which, &mut chance);
            if let Err(error) = comes_up(bytes, &known) {
                panic!("cut behind deed {at} of {}, image {which}: {error:#}", deeds.len());
            }
        }
    }
}

#[test]
fn a_store_whose_making_was_cut_is_made_anew() {
    let disk = Disk::default();
    drop(store_on(disk.clone()).unwrap());
    let deeds = lock(&disk.0).deeds.clone();
    for at in 0..deeds.len() {
        let folder = tempfile::tempdir().unwrap();
        let mut bytes = vec![];
        deeds[..at].iter().for_each(|deed| apply(&mut bytes, deed));
        std::fs::write(folder.path().join(".records.redb"), bytes).unwrap();
        let store = Store::open(folder.path()).unwrap();
        assert!(store.domain().unwrap().is_none());
    }
}

/// A disk whose syncs take as long as the test wants.
#[derive(Debug, Clone)]
struct Slow(Disk, Arc<(Mutex<bool>, std::sync::Condvar)>);

impl StorageBackend for Slow {
    fn len(&self) -> io::Result<u64> {
        self.0.len()
    }

    fn read(&self, offset: u64, out: &mut [u8]) -> io::Result<()> {
        self.0.read(offset, out)
    }

    fn set_len(&self, length: u64) -> io::Result<()> {
        self.0.set_len(length)
    }

    fn sync_data(&self) -> io::Result<()> {
        let (stalled, changed) = &*self.1;
        drop(changed.wait_while(lock(stalled), |stalled| *stalled).unwrap());
        self.0.sync_data()
    }

    fn write(&self, offset: u64, data: &[u8]) -> io::Result<()> {
        self.0.write(offset, data)
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_disk_that_stalls_holds_up_nobody_who_does_not_write() {
    let slow = Slow(Disk::holding(made()), Arc::default());
    let store =
        Arc::new(Store::of(Database::builder().create_with_backend(slow.clone()).unwrap(), Reserve::of(Path::new("/nowhere"))).unwrap());
    *lock(&slow.1.0) = true;
    // More writers than the runtime has workers.
    let write = |number: u8| {
        let store = store.clone();
        tokio::spawn(async move { store.set_fact(&format!("fact {number}"), &number) })
    };
    let writers: Vec<_> = (0..4).map(write).collect();
    // A thread of its own: if all workers hang, nothing but it frees them.
    let (beat, beats) = std::sync::mpsc::channel();
    let stalled = slow.1.clone();
    let watch = std::thread::spawn(move || {
        let heard = (0..20).all(|_| beats.recv_timeout(std::time::Duration::from_secs(10)).is_ok());
        *lock(&stalled.0) = false;
        stalled.1.notify_all();
        heard
    });
    tokio::spawn(async move {
        while beat.send(()).is_ok() {
            tokio::time::sleep(std::time::Duration::from_millis(5)).await;
        }
    });
    for writer in writers {
        writer.await.unwrap().unwrap();
    }
    assert!(watch.join().unwrap(), "heartbeats waited for the disk");
}
