//! The hostile host: a member that forges others' records, sends old ones, writes as much as it may as fast as it can, and lies about
//! what it has and who is there.

use anyhow::Result;
use rebec_book::{
    Key, Signed,
    book::{Book, GroupMark, ShortMark, Tag, tag_of},
    gossip::{
        chance::Chance,
        message::{Answer, Beat, Beats, Marks, Offer, Parcel, Question},
    },
    key::Name,
    record::Kind,
};

use crate::world::Writer;

/// Its book's worth of records, in messages of so many, to so many hosts at a time, four times a second.
const FLOOD: usize = 50;
const VICTIMS: usize = 5;
const FORGED: usize = 10;
const OLD: usize = 20;
const WRITTEN_MAX: usize = 8192;

/// What it knows and makes up.
pub struct Hostile {
    writer: Writer,
    chance: Chance,
    old: Vec<Signed>,
    domains: Vec<Tag>,
    hosts: Vec<Key>,
    written: usize,
}

impl Hostile {
    /// Knows what was in the book.
    pub fn new(writer: Writer, book: &Book, old: Vec<Signed>, hosts: Vec<Key>, seed: u64) -> Self {
        let domains = book.groups(0, &book.lens(None)).into_iter().map(|mark| mark.group).collect();
        Self { writer, chance: Chance::new(seed), old, domains, hosts, written: 0 }
    }

    /// What it sends now, to whom.
    pub fn act(&mut self) -> Result<Vec<(Key, Question)>> {
        let mut said = vec![];
        let mut flood = vec![];
        while flood.len() < FLOOD && self.written < WRITTEN_MAX {
            self.written += 1;
            let id = Name(u128::from(self.chance.any()).to_be_bytes());
            flood.push(self.writer.write(Kind::SEEN, id, None)?);
        }
        for _ in 0..VICTIMS {
            let to = self.hosts[self.chance.below(self.hosts.len())];
            said.push((to, Question::Records(Parcel { in_turn: flood.clone(), alone: vec![] })));
            said.push((to, Question::Records(Parcel { in_turn: self.forged(), alone: vec![] })));
            let offers = self.offers();
            let (groups, beats) = (self.groups(), self.beats());
            said.push((to, Question::Round { salt: 1, groups, beats, offers }));
        }
        Ok(said)
    }

    /// What it answers: anything but the truth.
    pub fn answer(&mut self, question: &Question) -> Answer {
        match question {
            Question::Round { .. } => {
                let group = self.domains[self.chance.below(self.domains.len())];
                let marks =
                    (0..50).map(|_| ShortMark { writer: self.victim(), head: self.chance.any(), mark: self.chance.any() }).collect();
                Answer::Round { marks: vec![Marks { group, marks }], beats: self.beats(), offers: self.offers(), wants: self.offers() }
            }
            Question::Offers(offers) => Answer::Wants(offers.clone()),
            Question::Marks(_) | Question::Wants(_) => Answer::Records(Parcel { in_turn: self.forged(), alone: vec![] }),
            Question::Records(_) => Answer::Taken,
        }
    }

    fn victim(&mut self) -> Tag {
        tag_of(&self.hosts[self.chance.below(self.hosts.len())])
    }

    /// Others' records under a wrong signature, and true ones of long ago.
    fn forged(&mut self) -> Vec<Signed> {
        let mut records = vec![];
        for _ in 0..FORGED {
            let signed = &self.old[self.chance.below(self.old.len())];
            records.push(signed.forged());
        }
        records.extend((0..OLD).map(|_| self.old[self.chance.below(self.old.len())].clone()));
        records
    }

    fn groups(&mut self) -> Vec<GroupMark> {
        let domains = self.domains.clone();
        domains.into_iter().map(|group| GroupMark { group, digest: Name(self.chance.any().to_be_bytes()) }).collect()
    }

    fn offers(&mut self) -> Vec<Offer> {
        (0..60).map(|_| Offer { writer: self.victim(), seq: self.chance.any() }).collect()
    }

    /// Everybody is there, and for ever.
    fn beats(&mut self) -> Beats {
        let others = self.hosts.iter().take(250).map(|host| Beat { host: tag_of(host), beside: 0, age: 0, vitals: None }).collect();
        Beats { own: u64::MAX, others, vitals: None }
    }
}
