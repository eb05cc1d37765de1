//! Roles as the API says them and as records do.

use rebec_api::{host::HostRole, token};
use rebec_book::Role;

/// What a user of the API means.
pub fn meant(role: token::Role) -> Role {
    match role {
        token::Role::Viewer => Role::Viewer,
        token::Role::User => Role::User,
        token::Role::Scheduler => Role::Scheduler,
        token::Role::Operator => Role::Operator,
        token::Role::Admin => Role::Admin,
    }
}

/// As the API says it.
pub fn said(role: Role) -> token::Role {
    match role {
        Role::Viewer => token::Role::Viewer,
        Role::User => token::Role::User,
        Role::Scheduler => token::Role::Scheduler,
        Role::Operator => token::Role::Operator,
        Role::Admin => token::Role::Admin,
    }
}

/// What root at a host is to have.
pub fn meant_for_host(role: HostRole) -> Option<Role> {
    match role {
        HostRole::None => None,
        HostRole::Viewer => Some(Role::Viewer),
        HostRole::User => Some(Role::User),
        HostRole::Scheduler => Some(Role::Scheduler),
        HostRole::Operator => Some(Role::Operator),
        HostRole::Admin => Some(Role::Admin),
    }
}

/// What root at a host has.
pub fn said_of_host(role: Option<Role>) -> HostRole {
    match role {
        None => HostRole::None,
        Some(Role::Viewer) => HostRole::Viewer,
        Some(Role::User) => HostRole::User,
        Some(Role::Scheduler) => HostRole::Scheduler,
        Some(Role::Operator) => HostRole::Operator,
        Some(Role::Admin) => HostRole::Admin,
    }
}
