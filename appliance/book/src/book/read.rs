//! What is read of a book: by kind, id, name and LAN, and who belongs to whom by what is in it now.

use super::*;

impl Book {
    /// Whether the pool has this domain.
    pub fn is_domain(&self, key: &Key) -> bool {
        self.domain(key).is_some()
    }

    /// A domain's record.
    pub fn domain(&self, key: &Key) -> Option<&DomainBody> {
        match self.get(Kind::DOMAIN, id_of_key(key), self.pool) {
            Some(Body::Domain(domain)) if domain.key == *key => Some(domain),
            _ => None,
        }
    }

    /// A domain's name; its digits where it has none.
    pub fn domain_name(&self, key: &Key) -> String {
        self.domain(key).map_or_else(|| key.short(), |domain| domain.name.clone())
    }

    /// Whether a key may let hosts into a domain: its own, or a helper's.
    pub fn speaks_for(&self, key: &Key, domain: &Key) -> bool {
        let is_helper = || matches!(self.get(Kind::HELPER, id_of_key(key), *domain), Some(Body::Helper(helper)) if helper.key == *key);
        self.is_domain(domain) && (key == domain || is_helper())
    }

    /// What domains say of a host: each that claims it, and in what words.
    pub fn claims(&self, host: &Key) -> impl Iterator<Item = (Key, &MemberBody)> {
        self.about(Kind::MEMBER, id_of_key(host)).filter_map(move |record| match &record.body {
            Some(Body::Member(member)) if member.host == *host && self.speaks_for(&record.key.writer, &member.domain) => {
                Some((member.domain, member))
            }
            _ => None,
        })
    }

    /// A user of a domain. Of several who speak for the domain, its own word counts before its helpers'.
    pub fn user(&self, domain: &Key, key: &Key) -> Option<&UserBody> {
        let records = self.about(Kind::USER, id_of_key(key)).filter(|record| self.speaks_for(&record.key.writer, domain));
        let bodies = records.filter_map(|record| match &record.body {
            Some(Body::User(user)) if user.key == *key && user.domain == *domain => Some((record.key.writer == *domain, user)),
            _ => None,
        });
        bodies.max_by_key(|(is_own, _)| *is_own).map(|(_, user)| user)
    }

    /// The users of a domain, by name.
    pub fn users(&self, domain: &Key) -> Vec<&UserBody> {
        let users = self.of_kind(Kind::USER).filter_map(|record| match &record.body {
            Some(Body::User(body)) if body.domain == *domain => self.user(domain, &body.key),
            _ => None,
        });
        let mut all: Vec<&UserBody> = users.collect();
        all.sort_by(|a, b| (&a.name, a.key).cmp(&(&b.name, b.key)));
        all.dedup_by_key(|user| user.key);
        all
    }

    /// What a host says of itself.
    pub fn host(&self, host: &Key) -> Option<&HostBody> {
        match self.get(Kind::HOST, id_of_key(host), *host) {
            Some(Body::Host(body)) => Some(body),
            _ => None,
        }
    }

    /// Who says something of itself as a host: a record under another's id is none.
    pub fn speakers(&self) -> impl Iterator<Item = Key> {
        let all = self.of_kind(Kind::HOST).map(|record| record.key);
        all.filter(|key| key.id == id_of_key(&key.writer)).map(|key| key.writer)
    }

    /// The domain a host belongs to, by that domain's word and its own, and in what words. Of several who speak for the domain, one
    /// that declares the host dead counts.
    pub fn membership(&self, host: &Key) -> Option<(Key, &MemberBody)> {
        let own = self.host(host)?.domain;
        self.claims(host).filter(|(domain, _)| *domain == own).max_by_key(|(_, member)| member.dead.is_some())
    }

    /// The domain a host belongs to. Kept with its log: this is asked of every record that is shown.
    pub fn domain_of(&self, host: &Key) -> Option<Key> {
        self.logs.get(host).and_then(|log| log.domain)
    }

    /// Whether a host belongs to some domain of the pool.
    pub fn is_member(&self, host: &Key) -> bool {
        self.domain_of(host).is_some()
    }

    /// Why a host was declared dead, if its domain did.
    pub fn dead(&self, host: &Key) -> Option<&str> {
        self.membership(host).and_then(|(_, member)| member.dead.as_deref())
    }

    /// The record that declares a host dead: it is told of it before anything else.
    pub fn proof_of_death(&self, host: &Key) -> Option<&Signed> {
        let (_, member) = self.membership(host).filter(|(_, member)| member.dead.is_some())?;
        let says = |record: &&Record| matches!(&record.body, Some(Body::Member(body)) if body == member);
        let record = self.about(Kind::MEMBER, id_of_key(host)).find(says)?;
        self.signed(&record.key)
    }

    /// The host that reads this book.
    pub fn own(&self) -> Option<Key> {
        self.own
    }

    /// The domain of the host that reads this book.
    pub fn own_domain(&self) -> Option<Key> {
        self.own.and_then(|own| self.domain_of(&own))
    }

    /// What there is of a kind under a name, in any domain.
    pub fn of_name(&self, kind: Kind, name: &str) -> Vec<Thing> {
        let hash = hash_of_name(name);
        let ids = self.names.range((kind, hash, Name([0; 16]))..=(kind, hash, Name([0xff; 16]))).map(|(_, _, id)| *id);
        let records = ids.flat_map(|id| self.about(kind, id)).filter(|record| record.body.as_ref().and_then(name_of) == Some(name));
        let mut things: Vec<Thing> = records.filter_map(|record| self.as_thing(&record.key)).collect();
        things.dedup_by_key(|thing| thing.id);
        things
    }

    /// A thing of a kind, by its id: only one writer can have it.
    pub fn thing(&self, kind: Kind, id: Id) -> Option<Thing> {
        let living = self.about(kind, id).filter(|record| record.body.as_ref().is_some_and(|body| body.kind().is_some()));
        living.filter_map(|record| self.as_thing(&record.key)).next()
    }

    /// Of members only: what others left is not shown.
    fn as_thing(&self, key: &RecordKey) -> Option<Thing> {
        match (key.kind, self.get(key.kind, key.id, key.writer)?) {
            (Kind::MEMBER, Body::Member(member)) => {
                let counts = self.domain_of(&member.host) == Some(member.domain) && self.speaks_for(&key.writer, &member.domain);
                counts.then_some(Thing { id: key.id, home: member.host, domain: Some(member.domain) })
            }
            (Kind::DOMAIN, Body::Domain(domain)) => Some(Thing { id: key.id, home: key.writer, domain: Some(domain.key) }),
            _ => self.domain_of(&key.writer).map(|domain| Thing { id: key.id, home: key.writer, domain: Some(domain) }),
        }
    }

    /// How a thing is called here.
    pub fn shown(&self, kind: Kind, name: &str, thing: &Thing) -> String {
        // Who takes the place of a host that is dead has its name.
        let lives = |other: &Thing| kind != Kind::MEMBER || other.id == thing.id || self.dead(&other.home).is_none();
        let twins = self.of_name(kind, name).iter().filter(|other| other.domain == thing.domain && lives(other)).count() > 1;
        let name = if twins { format!("{name}~{}", thing.id.short()) } else { name.to_owned() };
        match thing.domain {
            Some(domain) if kind != Kind::DOMAIN && Some(domain) != self.own_domain() => format!("{}/{name}", self.domain_name(&domain)),
            _ => name,
        }
    }

    /// The VMs that are on a LAN, by their records' names.
    pub fn on_lan(&self, lan: Id) -> impl Iterator<Item = &Record> {
        let ids = self.on_lan.range((lan, Name([0; 16]))..=(lan, Name([0xff; 16]))).map(|(_, id)| *id);
        ids.flat_map(|id| self.about(Kind::VM, id)).filter(move |record| lans_of(record).any(|of| of == lan))
    }

    /// The records of one kind, also those that say that something is gone.
    pub fn of_kind(&self, kind: Kind) -> impl Iterator<Item = &Record> {
        self.between(kind, Name([0; 16]), Name([0xff; 16]))
    }

    /// What all writers say of one thing.
    pub fn about(&self, kind: Kind, id: Id) -> impl Iterator<Item = &Record> {
        self.between(kind, id, id)
    }

    fn between(&self, kind: Kind, low: Id, high: Id) -> impl Iterator<Item = &Record> {
        self.entries.between(kind, low, high).map(|entry| &entry.record)
    }

    pub(super) fn entries_about(&self, kind: Kind, id: Id) -> impl Iterator<Item = &Arc<Entry>> {
        self.entries.between(kind, id, id)
    }

    /// What one writer says of one thing; none when it is unknown or gone.
    pub fn get(&self, kind: Kind, id: Id, writer: Key) -> Option<&Body> {
        self.entries.get(&RecordKey { kind, id, writer }).and_then(|entry| entry.record.body.as_ref())
    }

    /// A record as it was signed.
    pub fn signed(&self, key: &RecordKey) -> Option<&Signed> {
        self.entries.get(key).map(|entry| &entry.signed)
    }

    /// The number that a writer's record has; none where there is none.
    pub fn seq(&self, kind: Kind, id: Id, writer: Key) -> Option<u64> {
        self.entries.get(&RecordKey { kind, id, writer }).map(|entry| entry.record.seq)
    }

    /// The number of a writer's last record.
    pub fn head(&self, writer: &Key) -> u64 {
        self.logs.get(writer).map_or(0, |log| log.head)
    }

    /// How many of a writer's records say that something is gone.
    pub fn gone(&self, writer: &Key) -> usize {
        self.logs.get(writer).map_or(0, |log| log.gone)
    }

    /// What a writer says now, as it must be written again before its log is cut.
    pub fn living(&self, writer: &Key) -> Vec<(Kind, Id, Body)> {
        let mine = self.logs.get(writer).into_iter().flat_map(|log| &log.by_seq);
        let body = |entry: &Arc<Entry>| Some((entry.record.key.kind, entry.record.key.id, entry.record.body.clone()?));
        mine.filter_map(body).filter(|(kind, _, _)| *kind != Kind::FLOOR).collect()
    }

    /// How many records there are.
    pub fn len(&self) -> usize {
        self.entries.len()
    }

    /// Whether there are none.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Every record, in the order of authority.
    pub fn all(&self) -> impl Iterator<Item = &Signed> {
        self.entries.all().map(|entry| &entry.signed)
    }
}
