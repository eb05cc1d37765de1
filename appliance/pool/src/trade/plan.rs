//! The form of every plan: steps and refusals, each with its reason.

/// What is to be done, and what was asked for and is not.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Plan<Step> {
    /// In the order in which they are to be taken.
    pub steps: Vec<Because<Step>>,
    /// Each says whom or what it is about.
    pub refusals: Vec<Because<String>>,
}

/// Something decided, and why.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Because<What> {
    /// What was decided.
    pub what: What,
    /// In words, with the line of the policy that made it.
    pub reason: String,
}

impl<Step> Plan<Step> {
    /// A plan of nothing.
    pub fn nothing() -> Self {
        Self { steps: vec![], refusals: vec![] }
    }

    /// One step more.
    pub fn step(&mut self, what: Step, reason: String) {
        self.steps.push(Because { what, reason });
    }

    /// One refusal more.
    pub fn refuse(&mut self, about: impl Into<String>, reason: String) {
        self.refusals.push(Because { what: about.into(), reason });
    }
}
