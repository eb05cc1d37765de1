//! Gossip: whom to ask when and what to say, so that every record is soon everywhere and every host knows who is there.
//!
//! ```text
//!                  handle(input)   poll_output()
//! what happened ----> [ Engine ] ----> Ask{to, question}, TakeIn{records}
//!                        ^  answer(question) -> Answer        next_deadline(), tick(now)
//!                        book, now, seed
//! ```
//! - Each second a host asks a few others (`members`) whether their books are equal, group by group, and says what it learnt lately.
//!   Where something differs, both get it. This alone makes all books equal in the end.
//! - News does not wait for that: it is offered to a few hosts at once, and by those who lacked it to a few more (`news`).
//! - Who is there, and what room it has, travels along as a beat for each host of the own domain, and is not stored.
//!
//! No sockets, clock or threads: a driver carries messages ([`message`]), proves records and puts them into the book. Numbers: [`limits`].

pub mod chance;
pub mod limits;
mod members;
pub mod message;
mod news;
#[cfg(test)]
mod tests;

use std::{
    collections::{BTreeMap, BTreeSet, VecDeque},
    time::Duration,
};

use chance::Chance;
use limits::*;
use members::Members;
use message::{Answer, Marks, Offer, Parcel, Question, Vitals};
use news::{News, offer_of};

use crate::{
    book::{Book, Came, Concern, GroupMark, Lens, Tag, tag_of},
    key::Key,
    record::Signed,
};

/// What happened.
#[derive(Debug)]
pub enum Input {
    /// This host wrote records: they are in the book.
    Wrote(Vec<Signed>),
    /// Of what was to be taken in, this was new and is in the book.
    Learnt(Vec<Signed>, Came),
    /// A question was answered.
    Answered {
        /// By whom.
        from: Key,
        /// How.
        answer: Answer,
    },
    /// A question was not answered.
    Failed {
        /// By whom.
        from: Key,
    },
    /// A host has spoken to this one, whatever about.
    Heard {
        /// Which.
        from: Key,
    },
}

/// What the driver is to do.
#[derive(Debug, PartialEq, Eq)]
pub enum Output {
    /// Ask a host.
    Ask {
        /// Which.
        to: Key,
        /// What.
        question: Question,
    },
    /// Prove records, put them into the book, and say which were new.
    TakeIn(Vec<Signed>, Came),
}

/// One host's gossip.
#[derive(Debug)]
pub struct Engine {
    members: Members,
    news: News,
    chance: Chance,
    round: u64,
    round_at: Duration,
    outputs: VecDeque<Output>,
}

impl Engine {
    /// Begins at the time 0. The beat grows from one run of a host to the next: seconds since 1970.
    pub fn new(own: Key, beat: u64, seed: u64) -> Self {
        let mut chance = Chance::new(seed);
        // Hosts that start together do not speak together.
        let round_at = PERIOD * chance.below(1000) as u32 / 1000;
        Self { members: Members::new(own, beat), news: News::new(own), chance, round: 0, round_at, outputs: VecDeque::new() }
    }

    /// What to do next.
    pub fn poll_output(&mut self) -> Option<Output> {
        self.outputs.pop_front()
    }

    /// When to call [`Engine::tick`].
    pub fn next_deadline(&self) -> Duration {
        self.news.offer_at().map_or(self.round_at, |at| at.min(self.round_at))
    }

    /// For how long nobody has heard of a host; none where it is there.
    pub fn silence(&self, now: Duration, host: &Key) -> Option<Duration> {
        self.members.silence(now, host)
    }

    /// The other hosts that are there.
    pub fn answering(&self, now: Duration) -> BTreeSet<Key> {
        self.members.answering(now)
    }

    /// How another host is, by its own word; none where none has come.
    pub fn vitals(&self, host: &Key) -> Option<Vitals> {
        self.members.vitals(host)
    }

    /// How this host is, from here on.
    pub fn feel(&mut self, now: Duration, vitals: Vitals) {
        self.members.feel(now, vitals);
    }

    /// Tells a host who this one is and asks for all that it lacks, as who has just joined does.
    pub fn catch_up(&mut self, book: &Book, from: Key) {
        let own = book.own().map_or_else(Vec::new, |own| book.log_of(&own));
        self.ask(from, Question::Records(Parcel { in_turn: own, alone: vec![] }));
        // What it says of itself is there by then.
        let lens = book.lens(book.domain_of(&from));
        let mut groups: Vec<Tag> = book.groups(0, &lens).into_iter().map(|mark| mark.group).collect();
        groups.sort_by_key(|group| *group != tag_of(&book.pool()));
        for group in groups {
            self.ask(from, Question::Marks(Marks { group, marks: book.marks_in(group, &lens) }));
        }
    }

    /// Time has passed.
    pub fn tick(&mut self, now: Duration, book: &Book) {
        self.members.refresh(now, book);
        if self.news.offer_at().is_some_and(|at| at <= now) {
            let offers = self.news.push(now, &mut self.chance);
            let named: Vec<_> = offers.iter().filter_map(|offer| Some((book.writer(offer.writer)?, offer.seq))).collect();
            for (to, told) in self.audience(now, book, &named) {
                self.ask(to, Question::Offers(told.into_iter().map(|index| offer_of(&named[index].0, named[index].1)).collect()));
            }
        }
        if self.round_at <= now {
            self.round_at = now + if self.members.is_small() { DIRECT_PERIOD / 4 } else { PERIOD };
            self.round += 1;
            self.news.expire(now, self.members.is_small());
            for to in self.members.next(now, self.round, &mut self.chance) {
                let (salt, lens) = (self.chance.any(), book.lens(book.domain_of(&to)));
                let beats = self.members.beats(now, &to, &mut self.chance);
                let offers = self.news.mention(book, &lens, &mut self.chance);
                self.ask(to, Question::Round { salt, groups: book.groups(salt, &lens), beats, offers });
            }
        }
    }

    /// Something happened.
    pub fn handle(&mut self, now: Duration, book: &Book, input: Input) {
        self.members.refresh(now, book);
        match input {
            Input::Wrote(records) => {
                let pushes = if self.members.is_small() { 0 } else { PUSHES };
                self.learn(now, book, &records, pushes);
                let named: Vec<_> = records.iter().filter_map(|signed| signed.numbered().ok()).collect();
                for (to, told) in self.audience(now, book, &named) {
                    let told = told.into_iter().filter_map(|index| records.get(index).cloned());
                    self.ask(to, Question::Records(Parcel::alone(told.collect())));
                }
            }
            Input::Learnt(records, came) => {
                let pushes = match came {
                    _ if self.members.is_small() => 0,
                    Came::Alone => PUSHES,
                    // What was long ago to many is offered by those who told it.
                    Came::InTurn if records.len() <= OFFERS_PER_WRITER => 1,
                    Came::InTurn => 0,
                };
                self.learn(now, book, &records, pushes);
            }
            Input::Failed { from } => self.members.asked(now, &from, false),
            Input::Heard { from } => self.members.heard(now, &from),
            Input::Answered { from, answer } => {
                self.members.asked(now, &from, true);
                self.answered(now, book, from, answer);
            }
        }
    }

    /// Answers a question. What it brings comes out of [`Engine::poll_output`].
    pub fn answer(&mut self, now: Duration, book: &Book, from: Key, question: Question) -> Answer {
        self.members.refresh(now, book);
        if let Some(proof) = book.proof_of_death(&from) {
            return Answer::Dead(proof.clone());
        }
        self.members.heard(now, &from);
        let lens = book.lens(book.domain_of(&from));
        match question {
            Question::Round { salt, groups, beats, offers } => {
                self.members.take_beats(now, &from, &beats);
                let wants = self.news.want(now, book, &offers);
                let marks = self.differing(book, &lens, salt, &groups, &offers);
                let told: BTreeSet<Offer> = offers.into_iter().collect();
                let offers = self.news.mention(book, &lens, &mut self.chance).into_iter().filter(|offer| !told.contains(offer)).collect();
                Answer::Round { marks, beats: self.members.beats(now, &from, &mut self.chance), offers, wants }
            }
            Question::Marks(theirs) => Answer::Records(self.lacking(now, book, (&from, &lens), &theirs)),
            Question::Offers(offers) => Answer::Wants(self.news.want(now, book, &offers)),
            Question::Wants(wants) => Answer::Records(Parcel::alone(self.news.serve(now, book, (&from, &lens), &wants))),
            Question::Records(parcel) => {
                self.take_in(parcel);
                Answer::Taken
            }
        }
    }

    fn answered(&mut self, now: Duration, book: &Book, from: Key, answer: Answer) {
        let lens = book.lens(book.domain_of(&from));
        match answer {
            Answer::Dead(proof) => self.outputs.push_back(Output::TakeIn(vec![proof], Came::Alone)),
            Answer::Taken => {}
            Answer::Records(parcel) => self.take_in(parcel),
            Answer::Wants(wants) => self.give(now, book, (&from, &lens), &wants),
            Answer::Round { marks, beats, offers, wants } => {
                self.members.take_beats(now, &from, &beats);
                self.give(now, book, (&from, &lens), &wants);
                let wants = self.news.want(now, book, &offers);
                if !wants.is_empty() {
                    self.ask(from, Question::Wants(wants));
                }
                for theirs in marks {
                    let parcel = self.lacking(now, book, (&from, &lens), &theirs);
                    if !parcel.is_empty() {
                        self.ask(from, Question::Records(parcel));
                    }
                    if book.is_behind_in(&theirs.marks, &lens) {
                        self.ask(from, Question::Marks(Marks { group: theirs.group, marks: book.marks_in(theirs.group, &lens) }));
                    }
                }
            }
        }
    }

    /// The marks of some groups that differ. The keys' is one of them if it does: others are judged by it. In a large pool a group about
    /// which there is news is compared now and then only.
    fn differing(&mut self, book: &Book, lens: &Lens, salt: u64, theirs: &[GroupMark], offers: &[Offer]) -> Vec<Marks> {
        let ours: BTreeSet<(Tag, Tag)> = book.groups(salt, lens).into_iter().map(|mark| (mark.group, mark.digest)).collect();
        let theirs: BTreeSet<(Tag, Tag)> = theirs.iter().map(|mark| (mark.group, mark.digest)).collect();
        let differing: BTreeSet<Tag> = ours.symmetric_difference(&theirs).map(|(group, _)| *group).collect();
        if differing.is_empty() {
            return vec![];
        }
        let writers = self.news.writers().into_iter().chain(offers.iter().map(|offer| offer.writer)).collect::<BTreeSet<_>>();
        let busy: BTreeSet<Tag> = writers.into_iter().filter_map(|tag| book.group_of_log(&book.writer(tag)?)).collect();
        let mut quiet: Vec<Tag> = vec![];
        for group in differing {
            if self.members.is_small() || !busy.contains(&group) || self.chance.once_in(BUSY_GROUP_EVERY) {
                quiet.push(group);
            }
        }
        let count = quiet.len();
        let mut quiet = self.chance.some(quiet, count);
        quiet.sort_by_key(|group| *group != tag_of(&book.pool()));
        let mut room = MARKS_AT_ONCE;
        let marks = quiet.into_iter().map(|group| Marks { group, marks: book.marks_in(group, lens) }).enumerate();
        let fits = marks.take_while(|(index, marks)| {
            let fits = *index == 0 || marks.marks.len() < room;
            room = room.saturating_sub(marks.marks.len() + 1);
            fits
        });
        fits.map(|(_, marks)| marks).collect()
    }

    fn lacking(&mut self, now: Duration, book: &Book, (to, lens): (&Key, &Lens), theirs: &Marks) -> Parcel {
        let (news, chance) = (&mut self.news, self.chance.any());
        let has_room = |writer: &Key, bytes| news.has_room(now, to, writer, bytes);
        let (in_turn, alone) = book.above_in(theirs.group, &theirs.marks, lens, RECORDS_BYTES, chance, has_room);
        Parcel { in_turn, alone }
    }

    fn give(&mut self, now: Duration, book: &Book, (to, lens): (&Key, &Lens), wants: &[Offer]) {
        let records = self.news.serve(now, book, (to, lens), wants);
        if !records.is_empty() {
            self.ask(*to, Question::Records(Parcel::alone(records)));
        }
    }

    fn take_in(&mut self, parcel: Parcel) {
        for (records, came) in [(parcel.in_turn, Came::InTurn), (parcel.alone, Came::Alone)] {
            if !records.is_empty() {
                self.outputs.push_back(Output::TakeIn(records, came));
            }
        }
    }

    /// What concerns another domain, and not this one, is no news here: somebody sent it who should not have.
    fn learn(&mut self, now: Duration, book: &Book, records: &[Signed], pushes: u8) {
        let own = book.own_domain();
        for (writer, seq) in records.iter().filter_map(|signed| signed.numbered().ok()) {
            let concern = book.concern_of(&writer, seq);
            if concern.is_some_and(|concern| own.is_none_or(|own| concern.has(&own))) {
                self.news.learn(now, offer_of(&writer, seq), pushes);
            } else {
                self.news.came(&offer_of(&writer, seq));
            }
        }
    }

    /// Who is told of which of some records: in a small pool everybody whom they concern; else some of the own domain, and some of each
    /// other domain that has a part in one.
    fn audience(&mut self, now: Duration, book: &Book, named: &[(Key, u64)]) -> BTreeMap<Key, Vec<usize>> {
        let mut hosts: BTreeSet<Key> = self.members.told(now, &mut self.chance).into_iter().collect();
        if !self.members.is_small() {
            let (mut is_everybodys, mut domains) = (false, BTreeSet::new());
            for concern in named.iter().filter_map(|(writer, seq)| book.concern_of(writer, *seq)) {
                match concern {
                    Concern::Everybody => is_everybodys = true,
                    Concern::Domains(concerned) => domains.extend(concerned),
                }
            }
            // The same hosts for all of it: a message costs more than what is in it.
            if is_everybodys {
                hosts.extend(self.members.told_elsewhere(now, &mut self.chance));
            }
            for domain in domains.into_iter().filter(|domain| Some(*domain) != book.own_domain()) {
                hosts.extend(self.members.told_in(now, &domain, SHARED_FANOUT, &mut self.chance));
            }
        }
        let mut lenses: BTreeMap<Option<Key>, Lens> = BTreeMap::new();
        let told = hosts.into_iter().map(|host| {
            let domain = book.domain_of(&host);
            let lens = lenses.entry(domain).or_insert_with(|| book.lens(domain));
            let shown = named.iter().enumerate().filter(|(_, (writer, seq))| book.shows(lens, writer, *seq));
            (host, shown.map(|(index, _)| index).collect::<Vec<_>>())
        });
        told.filter(|(_, told)| !told.is_empty()).collect()
    }

    fn ask(&mut self, to: Key, question: Question) {
        self.outputs.push_back(Output::Ask { to, question });
    }
}
