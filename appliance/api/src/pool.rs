//! The pool, its domains, and the tickets that let hosts in.

use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

use crate::host::HostRole;

/// `POST /v1/pool`: this host founds a pool and its first domain.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct InitPool {
    /// The pool's name.
    pub name: String,
    /// The first domain's name.
    pub domain: String,
}

/// `POST /v1/pool/join`: this host joins with a ticket and nothing else.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct JoinPool {
    /// The ticket's text.
    pub ticket: String,
}

/// `GET /v1/pool`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct PoolStatus {
    /// The pool's name; none on a host that belongs to none.
    pub pool: Option<String>,
    /// The pool's key, 64 hexadecimal digits.
    pub key: Option<String>,
    /// This host's name.
    pub host: String,
    /// This host's key, 64 hexadecimal digits: who signs a command says which host it is for.
    #[serde(default)]
    pub host_key: String,
    /// This host's domain.
    pub domain: Option<String>,
    /// Domains known here.
    pub domains: u32,
    /// Hosts known here, and how many of them answer.
    pub hosts: u32,
    /// See `hosts`.
    pub hosts_reachable: u32,
    /// VMs known here.
    pub vms: u32,
    /// How far this host is with its pool, in words.
    pub join: String,
    /// Where hosts are of several versions: which, and which of them are to be upgraded.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub versions: Option<String>,
}

/// A domain: `GET /v1/domains` is a list of these.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct DomainInfo {
    /// Its name.
    pub name: String,
    /// Its root key, 64 hexadecimal digits.
    pub key: String,
    /// Hosts that belong to it.
    pub hosts: u32,
    /// Whether this host belongs to it.
    pub own: bool,
}

/// `POST /v1/hosts/invite` and `POST /v1/domains/invite`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct Invite {
    /// The name of the domain to found; only for a domain's invitation.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub domain: Option<String>,
    /// How many hosts may use the ticket.
    #[serde(default = "Invite::default_uses")]
    pub uses: u32,
    /// For how long, in seconds.
    #[serde(default = "Invite::default_valid_s")]
    pub valid_s: u64,
    /// What root at a host that joins may do in the domain; not for a domain's invitation, whose founder is its admin.
    #[serde(default, skip_serializing_if = "HostRole::is_usual")]
    pub role: HostRole,
}

impl Invite {
    /// One host.
    pub fn default_uses() -> u32 {
        1
    }

    /// One day.
    pub fn default_valid_s() -> u64 {
        86_400
    }
}

/// Answer to an invitation. The ticket is shown once; only its hash is kept.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct Invited {
    /// What the joiner types: `rebec1...`.
    pub ticket: String,
    /// The invitation's name, to revoke it by.
    pub id: String,
    /// When it ends, in seconds since 1970.
    pub expires: u64,
    /// How many hosts may use it.
    pub uses: u32,
}

/// An invitation that is open: `GET /v1/invitations`. `DELETE /v1/invitations/{id}` revokes it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct Invitation {
    /// Its name.
    pub id: String,
    /// The domain that the joiner will found, or none for a host of the issuer's domain.
    pub founds: Option<String>,
    /// When it ends, in seconds since 1970.
    pub expires: u64,
    /// Uses left.
    pub uses_left: u32,
}

/// `POST /v1/domain-key/export` answers it, `POST /v1/domain-key/import` takes it: who has it can be the domain.
#[derive(Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct DomainKey {
    /// 32 bytes as hexadecimal digits.
    pub key: String,
}

/// The key stays out of logs.
impl std::fmt::Debug for DomainKey {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("DomainKey").finish_non_exhaustive()
    }
}
