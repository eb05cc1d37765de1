//! What a guest may see of a processor: names of features, compact sets of them, and models, which are what a guest is shown wherever it runs.
//! Pure: CPUID entries in, entries and reasons out. It asks no processor and no KVM, so that hosts and pools reckon with the same sets.
//!
//! ```text
//! host's CPUID --> Features::of --> a host's record --> Features::common --> the model `pool`
//!       '------------------------------------> Model::filter <-- host | x86-64-v2 | x86-64-v3 | x86-64-v4 | only:SET
//!                                                    '--> what the guest sees --> beyond(): may it go there?
//! ```

mod compare;
mod entry;
mod features;
mod model;
mod names;
mod xsave;

#[cfg(test)]
mod tests;

pub use self::{
    compare::beyond,
    entry::Entry,
    features::{Features, FeaturesError},
    model::{Level, Model, ModelError},
};

/// KVM's paravirtual features.
pub const KVM_FEATURES_LEAF: u32 = 0x4000_0001;
/// Where and how the parts of the XSAVE area lie.
const XSAVE_LEAF: u32 = 0xd;
