//! Where a VM wants to be and with whom: labels of VMs and hosts, and what a VM asks of the host that it goes to.

use minicbor::{Decode, Encode};

use super::VmBody;
use crate::{key::Id, name::is_name};

/// Labels of one thing, and partners of one kind that a VM has.
pub const LABELS_MAX: usize = 16;
/// Longest label.
pub const LABEL_BYTES_MAX: usize = 128;

/// What is asked of where a VM goes. It is judged whenever the VM is given a host (started, moved, brought home), and moves nothing by itself.
#[derive(Debug, Clone, Default, PartialEq, Eq, Encode, Decode)]
pub struct PlacingBody {
    /// Its own labels, as in `app=db`.
    #[n(0)]
    pub labels: Vec<String>,
    /// Labels that its host must have.
    #[n(1)]
    pub hosts: Vec<String>,
    /// It goes to a host where each of these is.
    #[n(2)]
    pub near: Vec<Partner>,
    /// It goes to no host where one of these is.
    #[n(3)]
    pub apart: Vec<Partner>,
}

/// Other VMs: one, or all of the same domain that have a label.
#[derive(Debug, Clone, PartialEq, Eq, Encode, Decode)]
pub struct Partner {
    /// This one.
    #[n(0)]
    pub vm: Option<Id>,
    /// Those with this label.
    #[n(1)]
    pub label: Option<String>,
}

impl Partner {
    /// One VM.
    pub fn vm(vm: Id) -> Self {
        Self { vm: Some(vm), label: None }
    }

    /// All that have a label.
    pub fn label(label: &str) -> Self {
        Self { vm: None, label: Some(label.to_owned()) }
    }

    /// Whether a VM of these labels is one of them.
    pub fn is(&self, vm: Option<Id>, labels: &[String]) -> bool {
        self.vm.is_some() && self.vm == vm || self.label.as_ref().is_some_and(|label| labels.contains(label))
    }

    fn is_sound(&self) -> bool {
        self.vm.is_some() != self.label.is_some() && self.label.iter().all(|label| is_label(label))
    }
}

/// Whether a text is a label: a name, `=` and a name.
pub fn is_label(text: &str) -> bool {
    text.len() <= LABEL_BYTES_MAX && text.split_once('=').is_some_and(|(key, value)| is_name(key) && is_name(value))
}

pub(super) fn are_labels(labels: &[String]) -> bool {
    labels.len() <= LABELS_MAX && labels.iter().all(|label| is_label(label))
}

impl PlacingBody {
    fn is_sound(&self) -> bool {
        let partners = [&self.near, &self.apart];
        are_labels(&self.labels)
            && are_labels(&self.hosts)
            && partners.into_iter().all(|partners| partners.len() <= LABELS_MAX && partners.iter().all(Partner::is_sound))
    }
}

impl VmBody {
    /// Its own labels.
    pub fn labels(&self) -> &[String] {
        self.placing.as_ref().map_or(&[], |placing| &placing.labels)
    }

    pub(super) fn has_sound_placing(&self) -> bool {
        self.placing.as_ref().is_none_or(|placing| placing.is_sound())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_label_is_a_name_and_a_name() {
        for good in ["app=db", "rack=r1", "disk=nvme-2.0"] {
            assert!(is_label(good), "{good}");
        }
        for bad in ["", "app", "=db", "app=", "app==db", "a b=c", "app=d,b", &format!("{}=x", "a".repeat(200))] {
            assert!(!is_label(bad), "{bad}");
        }
    }
}
