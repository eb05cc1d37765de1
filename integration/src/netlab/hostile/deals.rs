//! The hostile member as its domain's broker: contracts as it would like them, signed by whom it can make sign.

use std::time::{SystemTime, UNIX_EPOCH};

use anyhow::{Context as _, Result, bail};
pub use rebec_book::contract::{Contract, Terms};
use rebec_book::{contract::Reclaim, key::Name};
use serde_json::Value;

use super::{Hostile, Question};

/// Seconds since 1970.
pub fn now_s() -> Result<u64> {
    Ok(SystemTime::now().duration_since(UNIX_EPOCH)?.as_secs())
}

/// What a broker answered to a proposal.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Said {
    /// It signed.
    Signed,
    /// It keeps it for an operator.
    Waits,
    /// It would sign other terms, or none; or it was not even heard. Why.
    Not(String),
}

impl Hostile {
    /// Terms about a machine of another domain, which its own would borrow from now on.
    pub fn terms(&self, host: &str, nonce: u64) -> Result<Terms> {
        let (key, _) = self.known()?.host(host)?;
        let lender = self.known()?.domain_of(&key).with_context(|| format!("host {host} is in no domain"))?;
        let (borrower, from) = (self.domain.key(), now_s()?);
        Ok(Terms {
            nonce: Name(u128::from(nonce).to_be_bytes()),
            lender,
            borrower,
            host: key,
            vcpus: 1,
            memory_bytes: 64 << 20,
            disk_bytes: 1 << 30,
            price_milli: 1000,
            from,
            until: None,
            notice_s: 1,
            reclaim: Reclaim::Migrate,
            lans: vec![],
            vms: vec![],
            answer_by: from + 60,
        })
    }

    /// The same, signed with its domain's key.
    pub fn signed(&self, terms: Terms) -> Contract {
        let mut contract = Contract::draft(terms);
        self.domain.signs_contract(&mut contract);
        contract
    }

    /// Shows a host a proposal, and hears what it says.
    pub fn proposes(&self, host: &str, contract: &Contract) -> Result<Said> {
        let question = Question::Contract(contract.clone().into());
        let answer = self.connects(host)?.ask(&question.request()?)?;
        if !answer.is_granted() {
            return Ok(Said::Not(answer.text()));
        }
        let answer: Value = serde_json::from_slice(&answer.body).context("the answer to a proposal")?;
        let why = |of: &str| answer[of]["why"].as_str().map(str::to_owned);
        match why("refused").or_else(|| why("counter")) {
            Some(why) => Ok(Said::Not(why)),
            None if answer["signed"].is_object() => Ok(Said::Signed),
            None if answer["waits"].is_object() => Ok(Said::Waits),
            None => bail!("host {host} answers a proposal with {answer}"),
        }
    }

    /// Fails unless a proposal is refused in these words.
    pub fn is_not_signed(&self, host: &str, contract: &Contract, says: &str) -> Result<()> {
        match self.proposes(host, contract)? {
            Said::Not(why) if why.contains(says) => Ok(()),
            said => bail!("host {host} says {said:?}, not `{says}`"),
        }
    }
}
