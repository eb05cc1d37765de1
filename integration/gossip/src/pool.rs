//! The whole pool: hosts, network and the hostile one, driven by events in the order of virtual time.

use std::{
    collections::{BTreeMap, BTreeSet, HashMap},
    time::Duration,
};

use anyhow::{Context as _, Result};
use rebec_book::{
    Book, Key, Signed,
    book::Came,
    gossip::{
        Engine,
        chance::Chance,
        message::{Answer, Question},
    },
    record::SeenState,
};

use crate::{
    Plan,
    host::{Account, Host, Proved, Said, TIMED_OF},
    hostile::Hostile,
    network::{HEAD_BYTES, Network, TIMEOUT, TRY_BYTES},
    world::{self, World, Writer},
};

const HOSTILE_EVERY: Duration = Duration::from_millis(250);

enum Event {
    Tick,
    Question { from: usize, number: u64, bytes: Vec<u8> },
    Answer { from: usize, number: u64, bytes: Vec<u8> },
    Unanswered { from: usize, number: u64 },
    Hostile,
}

/// A record that is on its way to everybody.
struct Spreading {
    written: Duration,
    missing: BTreeSet<usize>,
    last: Duration,
}

/// All of it.
pub struct Pool {
    plan: Plan,
    now: Duration,
    /// Each by its number.
    pub hosts: Vec<Host>,
    numbers: BTreeMap<Key, usize>,
    writers: Vec<Writer>,
    network: Network,
    hostile: Hostile,
    hostile_at: usize,
    /// What records took that several hosts shared.
    pub proved: Proved,
    events: BTreeMap<(Duration, u64), (usize, Event)>,
    ticks: Vec<Option<Duration>>,
    waiting: BTreeSet<u64>,
    count: u64,
    chance: Chance,
    spreading: HashMap<(Key, u64), Spreading>,
    changed: BTreeSet<usize>,
}

impl Pool {
    /// Everybody has the same book, and knows nothing of who is there.
    pub fn new(plan: Plan) -> Result<Self> {
        let World { pool, hosts: mut writers, records } = world::make(&plan)?;
        let (mut book, mut proved) = (Book::new(pool), Proved::default());
        for signed in &records {
            let entry = proved.entry(signed).context("a record of the world is wrong")?;
            book.restore_read(entry, Came::InTurn)?;
        }
        // Each host has what concerns its domain.
        let scoped = |host: &Writer| {
            let mut book = book.clone().of_host(host.key);
            let others = book.unconcerned();
            book.forget(&others);
            book
        };
        let books: Vec<Book> = writers.iter().take(plan.domains).map(scoped).collect();
        let mut chance = Chance::new(plan.seed);
        let host = |number: usize| Host {
            key: writers[number].key,
            site: writers[number].domain,
            book: books[writers[number].domain].clone().of_host(writers[number].key),
            engine: Engine::new(writers[number].key, 1_800_000_000, plan.seed ^ (number as u64) << 20),
            is_silent: false,
            is_timed: number.is_multiple_of(TIMED_OF),
            account: Account::default(),
            unconcerned: BTreeSet::new(),
            look_at: Duration::from_millis((number % 2000) as u64),
        };
        let mut hosts: Vec<Host> = (0..plan.hosts).map(host).collect();
        for number in chance.some((1..plan.hosts).collect(), plan.hosts * plan.silent_percent / 100) {
            hosts[number].is_silent = true;
        }
        let numbers = hosts.iter().enumerate().map(|(number, host)| (host.key, number)).collect();
        let others: Vec<Key> = hosts[1..].iter().map(|host| host.key).collect();
        let network = Network::new(plan.domains, plan.seed);
        let bad = std::mem::replace(&mut writers[0], Writer::nobody());
        let hostile = Hostile::new(bad, &book, records, others, plan.seed);
        let mut pool = Self {
            plan,
            now: Duration::ZERO,
            ticks: vec![None; hosts.len()],
            hosts,
            numbers,
            writers,
            network,
            hostile,
            hostile_at: 0,
            proved,
            events: BTreeMap::new(),
            waiting: BTreeSet::new(),
            count: 0,
            chance,
            spreading: HashMap::new(),
            changed: BTreeSet::new(),
        };
        for number in 1..pool.hosts.len() {
            pool.plan_tick(number);
        }
        Ok(pool)
    }

    /// Lets the hostile host loose.
    pub fn loose(&mut self) {
        self.at(self.now, self.hostile_at, Event::Hostile);
    }

    /// Hosts that answer and are honest.
    pub fn living(&self) -> Vec<usize> {
        (0..self.hosts.len()).filter(|number| *number != self.hostile_at && !self.hosts[*number].is_silent).collect()
    }

    /// The virtual time.
    pub fn now(&self) -> Duration {
        self.now
    }

    /// Runs, with so many changes in a second.
    pub fn run(&mut self, time: Duration, changes_s: usize) -> Result<()> {
        let until = self.now + time;
        let pause = Duration::from_secs(1) / changes_s.max(1) as u32;
        let mut next_change = if changes_s > 0 { self.now } else { until };
        loop {
            let next = self.events.first_key_value().map_or(until, |((at, _), _)| *at).min(next_change);
            if next >= until {
                self.now = until;
                return Ok(());
            }
            self.now = next;
            if next == next_change {
                next_change += pause;
                self.change()?;
                continue;
            }
            if let Some((_, (to, event))) = self.events.pop_first() {
                self.happen(to, event)?;
            }
        }
    }

    /// A VM of some host is in another state.
    fn change(&mut self) -> Result<()> {
        let living = self.living();
        let by = living[self.chance.below(living.len())];
        let vm = self.chance.below(self.plan.vms);
        if !self.changed.insert(by * self.plan.vms + vm) {
            return Ok(());
        }
        let id = self.writers[by].vms[vm];
        let signed = self.writers[by].seen(id, SeenState::Paused, 7)?;
        let named = (self.writers[by].key, self.writers[by].seq);
        let said = self.hosts[by].write(self.now, signed, &mut self.proved);
        let concern = self.hosts[by].book.concern_of(&named.0, named.1).context("what was written is in its writer's book")?;
        let concerned = |host: &usize| *host != by && self.hosts[*host].book.own_domain().is_some_and(|domain| concern.has(&domain));
        let missing = living.into_iter().filter(concerned).collect();
        self.spreading.insert(named, Spreading { written: self.now, missing, last: self.now });
        self.say(by, said);
        self.plan_tick(by);
        Ok(())
    }

    fn happen(&mut self, to: usize, event: Event) -> Result<()> {
        if to == self.hostile_at {
            return self.happen_hostile(event);
        }
        if self.hosts[to].is_silent {
            return Ok(());
        }
        let said = match event {
            Event::Tick => {
                self.ticks[to] = None;
                self.hosts[to].tick(self.now, &mut self.proved)
            }
            Event::Question { from, number, bytes } => {
                let asker = self.hosts[from].key;
                let (answer, said) = self.hosts[to].answer(self.now, asker, &bytes, &mut self.proved);
                if let Some(bytes) = answer {
                    self.hosts[to].account.tell(&bytes, true);
                    self.send(to, from, bytes, |bytes| Event::Answer { from: to, number, bytes });
                }
                said
            }
            Event::Answer { from, number, bytes } if self.waiting.remove(&number) => {
                let from = self.hosts[from].key;
                self.hosts[to].answered(self.now, from, Some(&bytes), &mut self.proved)
            }
            Event::Unanswered { from, number } if self.waiting.remove(&number) => {
                let from = self.hosts[from].key;
                self.hosts[to].answered(self.now, from, None, &mut self.proved)
            }
            Event::Answer { .. } | Event::Unanswered { .. } | Event::Hostile => vec![],
        };
        self.say(to, said);
        self.plan_tick(to);
        Ok(())
    }

    fn happen_hostile(&mut self, event: Event) -> Result<()> {
        match event {
            Event::Hostile => {
                for (to, question) in self.hostile.act()? {
                    self.ask(self.hostile_at, to, question.to_bytes());
                }
                self.at(self.now + HOSTILE_EVERY, self.hostile_at, Event::Hostile);
            }
            Event::Question { from, number, bytes } => {
                if let Ok(question) = Question::from_bytes(&bytes) {
                    let answer: Answer = self.hostile.answer(&question);
                    self.send(self.hostile_at, from, answer.to_bytes(), |bytes| Event::Answer { from: 0, number, bytes });
                }
            }
            Event::Answer { .. } | Event::Unanswered { .. } | Event::Tick => {}
        }
        Ok(())
    }

    fn say(&mut self, by: usize, said: Vec<Said>) {
        for one in said {
            match one {
                Said::Question(to, bytes) => self.ask(by, to, bytes),
                Said::Learnt(records) => self.learnt(by, &records),
            }
        }
    }

    fn learnt(&mut self, by: usize, records: &[Signed]) {
        for named in records.iter().filter_map(|signed| signed.numbered().ok()) {
            if let Some(spreading) = self.spreading.get_mut(&named)
                && spreading.missing.remove(&by)
            {
                spreading.last = self.now;
            }
        }
    }

    fn ask(&mut self, by: usize, to: Key, bytes: Vec<u8>) {
        let Some(to) = self.numbers.get(&to).copied() else { return };
        self.count += 1;
        let number = self.count;
        self.waiting.insert(number);
        self.at(self.now + TIMEOUT, by, Event::Unanswered { from: to, number });
        if self.hosts[to].is_silent {
            let account = &mut self.hosts[by].account;
            account.bytes += TRY_BYTES;
            account.connection_bytes += TRY_BYTES;
            return;
        }
        self.hosts[by].account.tell(&bytes, false);
        self.send(by, to, bytes, |bytes| Event::Question { from: by, number, bytes });
    }

    fn send(&mut self, from: usize, to: usize, bytes: Vec<u8>, event: impl FnOnce(Vec<u8>) -> Event) {
        let fate = self.network.send(self.now, (from as u32, self.hosts[from].site), (to as u32, self.hosts[to].site));
        for (number, bytes) in [(from, bytes.len() + HEAD_BYTES + fate.handshake_bytes), (to, fate.handshake_bytes)] {
            self.hosts[number].account.bytes += bytes;
            self.hosts[number].account.connection_bytes += fate.handshake_bytes;
        }
        if let Some(after) = fate.after {
            self.at(self.now + after, to, event(bytes));
        }
    }

    fn at(&mut self, when: Duration, to: usize, event: Event) {
        self.count += 1;
        self.events.insert((when, self.count), (to, event));
    }

    fn plan_tick(&mut self, number: usize) {
        let when = self.hosts[number].engine.next_deadline().max(self.now);
        if self.ticks[number].is_none_or(|planned| when < planned) {
            self.ticks[number] = Some(when);
            self.at(when, number, Event::Tick);
        }
    }

    /// What the hosts that answer and are honest took since this was asked last.
    pub fn accounts(&mut self) -> Vec<Account> {
        let living = self.living();
        let taken = living.into_iter().map(|number| {
            let host = &mut self.hosts[number];
            Account { host: number, domain: host.site, ..std::mem::take(&mut host.account) }
        });
        taken.collect()
    }

    /// Of each record that was written how long it took to everybody; none where it is still missing somewhere.
    pub fn spread(&self) -> Vec<Option<Duration>> {
        self.spreading.values().map(|one| one.missing.is_empty().then(|| one.last - one.written)).collect()
    }
}

impl Writer {
    /// In place of one that was taken away.
    fn nobody() -> Self {
        Self {
            secret: ed25519_dalek::SigningKey::from_bytes(&[0; 32]),
            key: rebec_book::key::Name([0; 32]),
            domain: 0,
            seq: 0,
            vms: vec![],
        }
    }
}
