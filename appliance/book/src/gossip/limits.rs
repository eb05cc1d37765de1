//! How often, how many, how much: every number of the gossip, and why it is that.

use std::time::Duration;

/// Between two rounds of a host. A beat goes round a domain in log2 of its hosts rounds: 6 s for 50, of the 7 after which a host is silent.
pub const PERIOD: Duration = Duration::from_secs(1);
/// Up to so many other hosts everybody talks to everybody, and news goes to all at once.
pub const DIRECT_MAX: usize = 16;
/// Between two questions to one host in such a pool: three of them fit into [`SILENT_AFTER`].
pub const DIRECT_PERIOD: Duration = Duration::from_secs(2);
/// Hosts of the own domain that are asked in a round. With two, each host hears four others a second, asked and asking.
pub const OWN_AT_ONCE: usize = 2;
/// Hosts of other domains that are asked in a round, the domains in turn.
pub const FOREIGN_AT_ONCE: usize = 1;
/// A domain is asked through the same host for so many turns, as chance has it: a new connection takes more than the question.
pub const CONTACT_TURNS: u64 = 8;
/// Questions to silent hosts that are under way at a time, in places of their own.
pub const SILENT_AT_ONCE: usize = 8;
/// Silent hosts of a large pool are asked one in so many rounds: a try costs three packets of 1,200 bytes (RFC 9000 §14.1).
pub const SILENT_EVERY: u64 = 3;
/// A silent host is asked again after [`DIRECT_PERIOD`], doubled with every try at most so many times: 8 s where all talk to all, else 128 s.
pub const DOUBLINGS_MAX_DIRECT: u32 = 2;
/// See [`DOUBLINGS_MAX_DIRECT`].
pub const DOUBLINGS_MAX: u32 = 6;
/// A host of which nobody has heard for this long is silent: in a domain of up to [`BEATS_MAX`] hosts, and where all talk to all.
pub const SILENT_AFTER: Duration = Duration::from_secs(7);
/// So many failed questions in a row weigh more than what others say of a host.
pub const TRIES_TO_DOUBT: u32 = 2;

/// Beats in one message: 10 bytes each. A larger domain tells its beats in so many parts, and waits as many times longer for silence.
pub const BEATS_MAX: usize = 256;
/// What a beat may be ahead of the number that its host told and the seconds since: who says more is not believed, or could make a host look
/// silent for as long as its true number is lower.
pub const BEAT_AHEAD_S: u64 = 2;
/// The same of a host that has not spoken to this one yet. One that is further behind than this tells of a lie, here or there.
pub const BEAT_DOUBTED_S: u64 = 10;
/// How a host is goes along with its beat once in so many times, where it has not changed.
pub const VITALS_EVERY: u64 = 8;
/// The same to hosts of other domains, which hear less often of this one.
pub const VITALS_EVERY_FOREIGN: u64 = 2;

/// News is gathered for this long before it is offered: six rounds of offers, which reach 1,000 hosts, take some 2 s, and each round is
/// three messages however much there is.
pub const GATHER: Duration = Duration::from_millis(400);
/// Hosts that news is offered to at a time.
pub const FANOUT: usize = 3;
/// Hosts of another domain that are told what that has a part in; they tell their fellows.
pub const SHARED_FANOUT: usize = 2;
/// Times that a host offers one piece of news. Six offers by each host leave out one in e^6: 2 of 800, which the rounds tell.
pub const PUSHES: u8 = 2;
/// News is mentioned in rounds for this long.
pub const NEWS_FOR: Duration = Duration::from_secs(4);
/// News that a host keeps in mind.
pub const NEWS_MAX: usize = 1024;
/// The same of one writer: who writes more at a time waits for the comparison of marks.
pub const NEWS_PER_WRITER: usize = 32;
/// Offers in a message.
pub const OFFERS_MAX: usize = 64;
/// Offers of one writer in a message, so that one that writes much does not crowd out the others.
pub const OFFERS_PER_WRITER: usize = 4;
/// After this somebody else is asked for the same news.
pub const WANTED_FOR: Duration = Duration::from_secs(1);
/// What is wanted at a time.
pub const WANTED_MAX: usize = 1024;

/// Records in one message.
pub const RECORDS_BYTES: usize = 256 << 10;
/// Marks in one message are of as many groups as fit into this, and at least of one.
pub const MARKS_AT_ONCE: usize = 64;
/// Marks in one message at most: a domain's key cannot let in more hosts than it may write records, twice with its helpers'.
pub const MARKS_MAX: usize = 2 * crate::book::KEY_QUOTA.records;
/// Groups in one message: the domains that the pool's key has room for.
pub const GROUPS_MAX: usize = crate::book::KEY_QUOTA.records;
/// A group about which there is news is compared once in so many times: news mends itself.
pub const BUSY_GROUP_EVERY: u64 = 8;

/// Bytes of one other writer's records that a host passes on at a time: some 150 records.
pub const WRITER_BURST_BYTES: u64 = 64 << 10;
/// And in a second from there on. A writer that fills its quota costs each host this and no more.
pub const WRITER_BYTES_S: u64 = 2 << 10;
/// Bytes of others' records that a host gives another at a time. Who joins a pool gets as much from each of some hosts a second; who only
/// says that it lacks everything does not make others send it.
pub const HOST_BURST_BYTES: u64 = 64 << 10;
/// And in a second from there on.
pub const HOST_BYTES_S: u64 = 4 << 10;
/// Where all talk to all there are few to give: so much more.
pub const DIRECT_TIMES: u64 = 64;
/// Hosts talked to in this time have a connection that is still open.
pub const WARM_FOR: Duration = Duration::from_secs(30);
