//! What this host knows of its pool: the book and the store under it. The one place that numbers and signs this host's records, and
//! that takes in those of others.
//!
//! Own records are on the disk before anybody hears of them, one after the other. Those of others are believed at once and written
//! without waiting for the disk: what a power cut takes is asked for again.

use std::{
    collections::BTreeSet,
    sync::{Arc, Mutex},
};

use anyhow::{Result, anyhow, ensure};
use ed25519_dalek::SigningKey;
use rebec_api::{ApiError, ErrorCode};
use rebec_book::{
    Body, Book, Grant, Key, Record, Signed,
    book::{Came, GONE_MAX},
    key::{Id, Name, public},
    record::{FloorBody, Kind, RecordKey},
};
use rebec_host::lock;
use tokio::sync::{Notify, watch};

use crate::{
    chance::now_s,
    later::Later,
    store::{Durable, Store},
};

/// What is said to whoever asks about a pool where there is none.
pub const NO_POOL: &str = "this host belongs to no pool yet; make one with `rebec pool init`, or join one with `rebec pool join`";

/// Records that wait to be told. What does not fit is mended by the next round of the gossip.
const UNTOLD_MAX: usize = 4096;

/// The book and what keeps it.
pub struct Knowledge {
    own: Key,
    secret: SigningKey,
    /// The name that this host would take where nobody has given it one.
    name: Option<String>,
    later: Option<Later>,
    store: Arc<Store>,
    book: Mutex<Option<Book>>,
    /// Held by whoever numbers a record, until that is on the disk and in the book: so no number is used twice.
    numbering: Mutex<()>,
    /// What did not concern this host's domain at the last look.
    unconcerned: Mutex<BTreeSet<RecordKey>>,
    /// What was written here and others have not been told.
    untold: Mutex<Vec<Signed>>,
    /// There is something of that.
    written: Notify,
    /// Grows with every change.
    changed: watch::Sender<u64>,
}

impl Knowledge {
    /// What was left on the disk, of a host whose records are signed with this.
    pub fn open(secret: SigningKey, name: Option<String>, store: Arc<Store>, later: Option<Later>) -> Result<Self> {
        let own = public(&secret);
        let book = store.book()?.map(|book| book.of_host(own));
        Ok(Self {
            own,
            secret,
            name,
            later,
            store,
            book: Mutex::new(book),
            numbering: Mutex::default(),
            unconcerned: Mutex::default(),
            untold: Mutex::default(),
            written: Notify::new(),
            changed: watch::Sender::new(0),
        })
    }

    /// Reads the book; none where this host belongs to no pool. The book is locked meanwhile: `read` asks nobody that reads it too.
    pub fn read<T>(&self, read: impl FnOnce(&Book) -> T) -> Option<T> {
        lock(&self.book).as_ref().map(read)
    }

    /// The same, where having none is a case of its own.
    pub fn look<T>(&self, read: impl FnOnce(Option<&Book>) -> T) -> T {
        read(lock(&self.book).as_ref())
    }

    /// Enters a pool whose first records are known, as a host of a domain. What cannot be believed is left out: the rest is there.
    pub fn enter(&self, pool: Key, domain: Key, records: Vec<Signed>) -> Result<()> {
        let _numbering = lock(&self.numbering);
        let mut book = Book::new(pool).of_host(self.own);
        let mut believed = |signed: &Signed| match book.merge(signed.clone()) {
            Ok(is_new) => is_new,
            Err(error) => {
                log::debug!("a record was left out: {error}");
                false
            }
        };
        let mut taken: Vec<Signed> = records.into_iter().filter(&mut believed).collect();
        if !book.is_domain(&domain) || !book.claims(&self.own).any(|(claims, _)| claims == domain) {
            return Err(anyhow!("the records that came with the answer do not say that this host belongs to the domain"));
        }
        // Above whatever it wrote in an earlier membership, which is void.
        let floor = now_s() << 20;
        let body = Body::Floor(FloorBody { floor });
        let first = Record::sign(Kind::FLOOR, Name([0; 16]), floor + 1, Some(&body), &self.secret)?;
        book.restore(first.clone(), Came::InTurn)?;
        taken.push(first);
        self.store.enter(pool, domain, &taken)?;
        *lock(&self.book) = Some(book);
        self.touch();
        Ok(())
    }

    /// Forgets the pool.
    pub fn forget(&self) -> Result<()> {
        self.store.leave()?;
        *lock(&self.book) = None;
        lock(&self.untold).clear();
        self.touch();
        Ok(())
    }

    /// Takes in records of others; returns what was new. What could not be stored is asked for again.
    pub fn take_in(&self, records: Vec<Signed>, came: Came) -> Vec<Signed> {
        // Proved before the book is locked: a signature takes as long as a thousand look-ups.
        let believable = |signed: &Signed| match self.read(|book| book.wants(signed)) {
            Some(true) => signed.open().map(drop).inspect_err(|error| log::debug!("a record was not believed: {error}")).is_ok(),
            known => known.is_some(),
        };
        let proved: Vec<Signed> = records.into_iter().filter(believable).collect();
        let mut new = vec![];
        if let Some(book) = lock(&self.book).as_mut() {
            for signed in proved {
                match book.restore(signed.clone(), came) {
                    Ok(true) => new.push(signed),
                    Ok(false) => {}
                    Err(error) => log::debug!("a record was not taken in: {error}"),
                }
            }
        }
        if !new.is_empty() {
            self.touch();
            if let Err(error) = self.store.put(&new, Durable::Later) {
                log::error!("{error:#}");
            }
        }
        new
    }

    /// Writes one of this host's own records, of which everybody hears.
    pub fn publish(&self, kind: Kind, id: Id, body: Option<Body>) -> Result<(), ApiError> {
        self.publish_as(kind, id, body, &self.secret)
    }

    /// The same with any key that this host holds.
    pub fn publish_as(&self, kind: Kind, id: Id, body: Option<Body>, secret: &SigningKey) -> Result<(), ApiError> {
        let written = self.write(kind, id, body, secret);
        let records = written.map_err(|error| ApiError::new(ErrorCode::Failed, format!("{error:#}")))?;
        self.tell(records);
        Ok(())
    }

    /// The same of a body that this version does not understand.
    pub fn publish_bytes(&self, kind: Kind, id: Id, body: &[u8]) -> Result<()> {
        self.tell(self.write_bytes(kind, id, body, &self.secret)?);
        Ok(())
    }

    /// Others are to hear of what was written here.
    pub fn tell(&self, records: Vec<Signed>) {
        let mut untold = lock(&self.untold);
        let room = UNTOLD_MAX.saturating_sub(untold.len());
        untold.extend(records.into_iter().take(room));
        drop(untold);
        self.written.notify_one();
    }

    /// What others have not been told; whoever takes it tells them.
    pub fn take_untold(&self) -> Vec<Signed> {
        std::mem::take(&mut *lock(&self.untold))
    }

    /// Until something was written, since this was waited for last. For who tells it.
    pub async fn written(&self) {
        self.written.notified().await;
    }

    /// Gives a VM to a host at an epoch, in this host's name.
    pub fn sign_grant(&self, vm: &Id, to: Key, epoch: u64) -> Grant {
        Grant::sign(vm, to, epoch, &self.secret)
    }

    /// Numbers, signs, stores and believes a record; returns what others are to hear.
    pub fn write(&self, kind: Kind, id: Id, body: Option<Body>, secret: &SigningKey) -> Result<Vec<Signed>> {
        let _numbering = lock(&self.numbering);
        let writer = public(secret);
        let gone = self.read(|book| book.gone(&writer)).ok_or_else(|| anyhow!(NO_POOL))?;
        let mut records = if gone < GONE_MAX { vec![] } else { self.make_room(&writer, secret)? };
        let head = self.read(|book| book.head(&writer)).unwrap_or_default();
        let signed = self.sign(kind, id, head + 1, body.as_ref(), secret)?;
        self.believe(std::slice::from_ref(&signed))?;
        records.push(signed);
        Ok(records)
    }

    /// The same of a body that this version does not understand.
    pub fn write_bytes(&self, kind: Kind, id: Id, body: &[u8], secret: &SigningKey) -> Result<Vec<Signed>> {
        let _numbering = lock(&self.numbering);
        let head = self.read(|book| book.head(&public(secret))).ok_or_else(|| anyhow!(NO_POOL))?;
        let signed = Record::sign_bytes(kind, id, head + 1, Some(body), secret)?;
        self.believe(std::slice::from_ref(&signed))?;
        Ok(vec![signed])
    }

    /// What nobody would believe is not signed.
    fn sign(&self, kind: Kind, id: Id, seq: u64, body: Option<&Body>, secret: &SigningKey) -> Result<Signed> {
        let grown = self.later.zip(body).and_then(|(later, body)| Some((later.body)(body, body.to_bytes()?)));
        let signed = match grown {
            Some(body) => Record::sign_bytes(kind, id, seq, Some(&body), secret)?,
            None => Record::sign(kind, id, seq, body, secret)?,
        };
        ensure!(signed.read()?.body != Some(Body::Unknown), "{kind:?} record: a name, a text or a list in it is longer than it may be");
        Ok(signed)
    }

    /// Everything that a writer says, said anew above a floor that voids the rest: the things that are gone.
    fn make_room(&self, writer: &Key, secret: &SigningKey) -> Result<Vec<Signed>> {
        let (head, living) = self.read(|book| (book.head(writer), book.living(writer))).unwrap_or_default();
        let known = living.into_iter().filter(|(_, _, body)| *body != Body::Unknown);
        let floor = (Kind::FLOOR, Name([0; 16]), Body::Floor(FloorBody { floor: head }));
        let again = (head + 1..).zip(known.chain([floor]));
        let records = again.map(|(seq, (kind, id, body))| self.sign(kind, id, seq, Some(&body), secret)).collect::<Result<Vec<_>>>()?;
        self.believe(&records)?;
        Ok(records)
    }

    fn believe(&self, records: &[Signed]) -> Result<()> {
        self.store.put(records, Durable::Now)?;
        if let Some(book) = lock(&self.book).as_mut() {
            for signed in records {
                book.restore(signed.clone(), Came::InTurn)?;
            }
        }
        self.touch();
        Ok(())
    }

    /// Drops what concerned this host's domain once and does no more, at this look and at the last: what makes it concern may be on its way.
    pub fn forget_unconcerned(&self) {
        let now: BTreeSet<RecordKey> = self.read(Book::unconcerned).unwrap_or_default().into_iter().collect();
        let before = std::mem::replace(&mut *lock(&self.unconcerned), now.clone());
        let stale: Vec<RecordKey> = now.intersection(&before).copied().collect();
        if stale.is_empty() {
            return;
        }
        if let Some(book) = lock(&self.book).as_mut() {
            book.forget(&stale);
        }
        if let Err(error) = self.store.remove(&stale) {
            log::error!("{error:#}");
        }
        self.touch();
    }

    /// Wakes those who wait for a change of what this host knows or has.
    pub fn touch(&self) {
        self.changed.send_modify(|count| *count += 1);
    }

    /// Hears of every change.
    pub fn watch(&self) -> watch::Receiver<u64> {
        self.changed.subscribe()
    }
}

mod known;
#[cfg(test)]
mod power;
