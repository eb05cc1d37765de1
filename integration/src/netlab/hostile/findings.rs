//! What a story finds: attacks that succeeded. Each is tried, also when one before it did succeed, so that a run tells of all.

use anyhow::{Result, bail};

use crate::progress::say;

/// Attacks that succeeded so far.
#[derive(Debug, Default)]
pub struct Findings(Vec<String>);

impl Findings {
    /// Tries an attack: its error says in what it succeeded.
    pub fn of(&mut self, attack: &str, withstood: Result<()>) {
        match withstood {
            Ok(()) => say("hostile", format_args!("withstood: {attack}")),
            Err(error) => {
                say("hostile", format_args!("SUCCEEDED: {attack}: {error:#}"));
                self.0.push(format!("{attack}: {error:#}"));
            }
        }
    }

    /// Fails if any attack succeeded.
    pub fn are_none(self) -> Result<()> {
        if self.0.is_empty() {
            return Ok(());
        }
        bail!("{} attacks succeeded:\n  {}", self.0.len(), self.0.join("\n  "))
    }
}

#[cfg(test)]
mod tests {
    use anyhow::anyhow;

    use super::*;

    #[test]
    fn one_attack_that_succeeds_is_enough_and_is_named() {
        let mut findings = Findings::default();
        findings.of("a knock", Ok(()));
        findings.of("a push", Err(anyhow!("the door is open")));
        let said = findings.are_none().unwrap_err().to_string();
        assert!(said.contains("1 attacks") && said.contains("a push: the door is open") && !said.contains("a knock"), "{said}");
        Findings::default().are_none().unwrap();
    }
}
