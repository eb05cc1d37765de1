//! `rebec image`. An import puts each file into the depot first and then gives them a name together, so that an import that
//! is cut off leaves no image behind.

use std::path::Path;

use rebec_api::{
    image::{ImageInfo, NewImage, Part},
    job::JobProgress,
};

use super::{
    progress::Meter,
    session::{Session, parse},
};
use crate::{
    args::{ImageCommand, ImportOptions},
    client::{ClientError, Upload, path},
    failure::Failure,
    text::{lists, shows, size},
};

/// `rebec image ...`
pub async fn run(session: &Session, command: ImageCommand) -> Result<(), Failure> {
    let client = &session.client;
    match command {
        ImageCommand::Import(options) => import(session, options).await,
        ImageCommand::Ls => {
            let images: Vec<ImageInfo> = client.get(&path(&["images"])).await?;
            session.list(&images, "no images; `rebec image import NAME DISK` makes one", lists::images)
        }
        ImageCommand::Show { name } => {
            let images: Vec<ImageInfo> = client.get(&path(&["images"])).await?;
            let image = images.into_iter().find(|image| image.name == name);
            let image =
                image.ok_or_else(|| Failure::Here(format!("there is no image `{name}`; `rebec image ls` lists those there are")))?;
            session.show(&image, shows::image)
        }
        ImageCommand::Rm { name } => {
            session.finish(client.delete(&path(&["images", &name])).await?, &format!("image {name} is removed")).await
        }
    }
}

async fn import(session: &Session, options: ImportOptions) -> Result<(), Failure> {
    // All files are opened before the first is sent: a slip in the last name costs nothing.
    let open = |path: &Path| Upload::open(path);
    let kernel = options.kernel.as_deref().map(open).transpose()?;
    let initramfs = options.initramfs.as_deref().map(open).transpose()?;
    let disk = options.disk.or(options.file).as_deref().map(Upload::open_packed).transpose()?;
    let known: Vec<ImageInfo> = session.client.get(&path(&["images"])).await?;
    if known.iter().any(|image| image.name == options.name) {
        return Err(Failure::Here(format!("image `{0}` exists already; choose another name, or `rebec image rm {0}` first", options.name)));
    }
    let kernel = put_all(session, "kernel", kernel).await?;
    let initramfs = put_all(session, "initramfs", initramfs).await?;
    let disk = put_all(session, "disk", disk).await?;
    let image = NewImage { name: options.name, kernel, initramfs, cmdline: options.cmdline, disk, domains: options.domains };
    let made: ImageInfo = parse(session.settle(session.client.post(&path(&["images"]), &image).await?).await?)?;
    session.tell(&made, |made| {
        let parts = [made.kernel.as_ref(), made.initramfs.as_ref(), made.disk.as_ref()];
        let stored = size(parts.into_iter().flatten().map(|part| part.bytes).fold(0, u64::saturating_add));
        let starts = made.starts.as_ref().map(|starts| format!("; it starts {starts}")).unwrap_or_default();
        format!("image {0} is imported ({stored}){starts}; `rebec vm run NAME --image {0}` starts a VM from it", made.name)
    })
}

async fn put_all(session: &Session, what: &str, upload: Option<Upload>) -> Result<Option<Part>, Failure> {
    match upload {
        Some(upload) => put(session, what, upload).await.map(Some),
        None => Ok(None),
    }
}

async fn put(session: &Session, what: &str, upload: Upload) -> Result<Part, Failure> {
    let (total_bytes, sent) = (upload.len(), upload.sent());
    let mut meter = Meter::new();
    let show = |done_bytes| {
        let phase = if done_bytes < total_bytes { "sending" } else { "storing" };
        meter.show(what, &JobProgress { phase: phase.to_owned(), done_bytes, total_bytes });
    };
    let part: Part = session.client.put(&path(&["parts"]), upload, show).await?;
    if part.bytes != sent.bytes() || sent.digest() != Some(part.digest.as_str()) {
        let why = format!("{what}: what arrived is not what was sent; import it again");
        return Err(ClientError::File(why).into());
    }
    Ok(part)
}
