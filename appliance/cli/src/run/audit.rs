//! `rebec audit`.

use rebec_api::audit::{AuditMark, AuditRow, AuditVerdict};

use super::session::Session;
use crate::{
    args::{AuditCommand, AuditOptions},
    client::path,
    failure::Failure,
    text::{lists, printable},
};

/// `rebec audit`, `rebec audit verify`
pub async fn run(session: &Session, options: &AuditOptions) -> Result<(), Failure> {
    let client = &session.client;
    match &options.command {
        None => {
            let rows: Vec<AuditRow> = client.get(&format!("{}?tail={}", path(&["audit"]), options.tail)).await?;
            session.list(&rows, "nothing was decided here yet: looking is not written down", lists::audit)
        }
        Some(AuditCommand::Verify { known }) => {
            let noted = known.as_ref().map(|known| known.seq);
            let known = known.as_ref().map_or_else(String::new, |known| format!("?known={known}"));
            let verdict: AuditVerdict = client.get(&format!("{}{known}", path(&["audit", "verify"]))).await?;
            if session.json {
                session.show(&verdict, |_| String::new())?;
            }
            if let Some(row) = noted.filter(|row| row + 1 < verdict.first) {
                session.say(&format!("row {row} was dropped when the log was full, and is not compared"));
            }
            match &verdict.wrong {
                Some(wrong) => Err(Failure::Here(format!(
                    "the audit log was changed: {}; keep a copy of the folder `audit` in the host's state folder, and ask who could write there",
                    printable(wrong)
                ))),
                None if session.json => Ok(()),
                None => session.print(&whole(&verdict)),
            }
        }
    }
}

fn whole(verdict: &AuditVerdict) -> String {
    let mark = |mark: &AuditMark| printable(&mark.to_string());
    let Some(last) = &verdict.last else { return "the audit log has no rows yet\n".to_owned() };
    let told = verdict
        .told
        .as_ref()
        .map_or_else(|| "the pool was told of no row yet".to_owned(), |told| format!("the pool was told of {}", mark(told)));
    format!("the audit log is whole: rows {} to {}\nits end is {}\n{told}\n", verdict.first, last.seq, mark(last))
}
