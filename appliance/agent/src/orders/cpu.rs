//! CPU models of VMs: what a user asks for becomes a model that stays, whatever hosts come and go; and what a VM that runs may use of a processor.

use rebec_api::{ApiError, ErrorCode};
use rebec_book::{Key, key::Id, record::CpuBody, view};
use rebec_cpu::{Features, Model};

use super::Orders;
use crate::names;

/// What all hosts of this domain have in common; behind a colon, hosts that are named.
const POOL: &str = "pool";

/// The model of a VM that is created; none is what its host gives.
pub fn model(orders: &Orders, asked: &str) -> Result<Option<CpuBody>, ApiError> {
    let model = match asked.split_once(':').map_or((asked, None), |(word, hosts)| (word, Some(hosts))) {
        (POOL, None) => common(orders, &all(orders)?)?,
        (POOL, Some(hosts)) => {
            let keys = hosts.split(',').map(|name| names::host(&orders.knowledge, name)).collect::<Result<Vec<_>, _>>()?;
            common(orders, &keys)?
        }
        _ => asked.parse().map_err(|error| ApiError::new(ErrorCode::BadRequest, format!("{error}, or pool, or pool:HOST,HOST")))?,
    };
    // A set is for programs: nobody reads it.
    let word = if asked.starts_with("only:") { "only" } else { asked };
    Ok((model != Model::Host).then(|| CpuBody { asked: word.to_owned(), model: model.to_string() }))
}

/// Hosts of this domain that can run VMs.
fn all(orders: &Orders) -> Result<Vec<Key>, ApiError> {
    orders.knowledge.pool(|book| {
        let hosts = view::hosts(book).into_iter().filter(|host| Some(host.domain) == book.own_domain());
        hosts.filter(|host| host.member.dead.is_none() && host.body.no_kvm.is_none()).map(|host| host.key).collect()
    })
}

fn common(orders: &Orders, hosts: &[Key]) -> Result<Model, ApiError> {
    let refuse = |what: String| ApiError::new(ErrorCode::Refused, format!("CPU model {POOL}: {what}"));
    let told: Vec<(String, Option<String>)> = orders.knowledge.pool(|book| {
        let told = hosts.iter().filter_map(|key| view::host(book, key));
        told.map(|host| (host.name, host.body.cpu.clone())).collect()
    })?;
    let mut sets: Vec<(String, Features)> = vec![];
    for (name, set) in told {
        let set = set.and_then(|set| set.parse().ok());
        let unknown =
            || refuse(format!("host {name} does not say what its processor has: upgrade it, or name the hosts, as in {POOL}:a1,a2"));
        sets.push((name.clone(), set.ok_or_else(unknown)?));
    }
    let common = Features::common(sets.iter().map(|(name, set)| (name.as_str(), set))).map_err(refuse)?;
    common.map(|set| Model::Only(set.into())).ok_or_else(|| refuse("no host of this domain can run VMs".into()))
}

/// What a VM that runs here may use of a processor, by its VMM's word; one that does not say so may use anything, and is judged by the VMMs.
pub async fn used(orders: &Orders, id: Id) -> Model {
    let Some(vm) = orders.vms.get(&id) else { return Model::Host };
    let status = vm.talk(|control| control.status()).await;
    let set = status.ok().and_then(|status| status.cpu?.features.parse::<Features>().ok());
    set.map_or(Model::Host, |set| Model::Only(set.into()))
}
