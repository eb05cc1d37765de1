//! `rebec support-bundle`: the agent's tar file, written beside its name and renamed when it is whole.

use std::{
    fs,
    io::{self, Write},
    path::Path,
};

use rebec_api::job::JobProgress;

use super::{progress::Meter, session::Session};
use crate::{args::BundleOptions, client::path, failure::Failure, text::size};

/// Writes the bundle.
pub async fn run(session: &Session, options: &BundleOptions) -> Result<(), Failure> {
    if options.out == Path::new("-") {
        copy(session, &mut io::stdout().lock()).await?;
        return Ok(());
    }
    let refuse = |error: io::Error| Failure::Here(format!("write {}: {error}", options.out.display()));
    let folder = options.out.parent().filter(|folder| !folder.as_os_str().is_empty()).unwrap_or(Path::new("."));
    let mut file = tempfile::NamedTempFile::new_in(folder).map_err(refuse)?;
    let bytes = copy(session, &mut file).await.map_err(|failure| match failure {
        Failure::Output(error) => refuse(error),
        other => other,
    })?;
    file.as_file().sync_all().map_err(refuse)?;
    file.persist(&options.out).map_err(|error| refuse(error.error))?;
    let place = fs::canonicalize(&options.out).unwrap_or_else(|_| options.out.clone());
    session.say(&format!("{} ({}): look through it before you send it to anyone", place.display(), size(bytes)));
    Ok(())
}

async fn copy(session: &Session, out: &mut impl Write) -> Result<u64, Failure> {
    let mut meter = Meter::new();
    let mut body = session.client.open(&path(&["support-bundle"])).await?;
    let mut done_bytes = 0;
    while let Some(bytes) = session.client.next(&mut body).await? {
        out.write_all(&bytes)?;
        done_bytes += u64::try_from(bytes.len()).unwrap_or(0);
        meter.show("support bundle", &JobProgress { phase: "collecting".to_owned(), done_bytes, total_bytes: 0 });
    }
    out.flush()?;
    Ok(done_bytes)
}
