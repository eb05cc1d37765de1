//! `/v1/parts` and `/v1/images`.

use std::{collections::BTreeSet, fs::File, io::Read, sync::Arc};

use axum::{
    body::Body,
    extract::{Extension, State},
    http::{HeaderMap, header},
};
use rebec_api::{
    ApiError, ErrorCode,
    image::{ImageInfo, NewImage, Part},
};
use rebec_book::{
    Body as Record,
    authority::Granted,
    key::{Digest, Name, bound_id},
    record::{DiskRef, ImageBody, Kind, PartRef},
    view,
};

use super::{
    answer::{Answer, Failure, Json},
    names, shown,
};
use crate::{
    agent::{Agent, now_s, random},
    derived, run,
};

/// The first bytes of a qcow2 image.
const QCOW2_MAGIC: &[u8; 4] = b"QFI\xfb";
/// Where its header says how large the disk is, and where the name of a backing file would be.
const QCOW2_HEADER_BYTES: usize = 72;
/// Longest kernel command line.
const CMDLINE_BYTES_MAX: usize = 2048;

/// `PUT /v1/parts`
pub async fn put_part(State(agent): State<Arc<Agent>>, headers: HeaderMap, body: Body) -> Answer<Part> {
    let length = headers.get(header::CONTENT_LENGTH).and_then(|value| value.to_str().ok()?.parse().ok());
    let part = agent.depot.take(body.into_data_stream(), length).await?;
    Ok(axum::Json(part))
}

/// `GET /v1/images`
pub async fn list(State(agent): State<Arc<Agent>>) -> Answer<Vec<ImageInfo>> {
    Ok(axum::Json(agent.pool(shown::images)?))
}

/// `POST /v1/images`
pub async fn create(State(agent): State<Arc<Agent>>, Json(new): Json<NewImage>) -> Answer<ImageInfo> {
    names::check("image", &new.name)?;
    let _alone = agent.naming.lock().await;
    if names::taken(&agent, Kind::IMAGE, &new.name)? {
        return Err(ApiError::new(ErrorCode::Conflict, format!("image `{}` exists already; choose another name", new.name)).into());
    }
    if new.cmdline.len() > CMDLINE_BYTES_MAX {
        return Err(ApiError::new(ErrorCode::BadRequest, format!("cmdline: longer than {CMDLINE_BYTES_MAX} bytes")).into());
    }
    let body = match body(&agent, &new) {
        Ok(body) => body,
        Err(error) => {
            // What was sent for an image that there will not be goes again.
            let sent = [Some(&new.kernel), new.initramfs.as_ref(), new.disk.as_ref()].into_iter().flatten();
            let needed = agent.pool(needed)?;
            let sent = sent.filter_map(|part| part.digest.parse().ok());
            agent.depot.remove(sent.filter(|digest| agent.depot.has(digest) && !needed.contains(digest)));
            return Err(error.into());
        }
    };
    let id = bound_id(&agent.key(), &body.nonce);
    agent.publish(Kind::IMAGE, id, Some(Record::Image(body.clone().into())))?;
    run::publish_host(&agent);
    // Nobody waits for it but the first VM.
    let maker = agent.clone();
    tokio::spawn(async move { derived::ensure(&maker.options.vmm, &maker.depot, &body, || ()).await });
    let shown = agent.pool(|book| shown::images(book).into_iter().find(|image| image.name == new.name))?;
    Ok(axum::Json(shown.ok_or_else(|| ApiError::not_found("image", &new.name, "rebec image ls"))?))
}

fn body(agent: &Agent, new: &NewImage) -> Result<ImageBody, ApiError> {
    Ok(ImageBody {
        nonce: Name(random()),
        name: new.name.clone(),
        kernel: kernel(agent, new)?,
        initramfs: new.initramfs.as_ref().map(|part| held(agent, "initramfs", part)).transpose()?,
        cmdline: new.cmdline.clone(),
        disk: new.disk.as_ref().map(|part| disk(agent, part)).transpose()?,
        created: now_s(),
        domains: new.domains.iter().map(|name| names::domain(agent, name)).collect::<Result<_, _>>()?,
    })
}

fn held(agent: &Agent, what: &str, part: &Part) -> Result<PartRef, ApiError> {
    let digest: Digest = part.digest.parse().map_err(|error| ApiError::new(ErrorCode::BadRequest, format!("{what}: digest {error}")))?;
    let length = std::fs::metadata(agent.depot.path(&digest)).map(|file| file.len());
    match length {
        Ok(bytes) if bytes == part.bytes => Ok(PartRef { digest, bytes }),
        _ => Err(ApiError::new(
            ErrorCode::BadRequest,
            format!("{what}: part {} is not in this host's depot; PUT it to /v1/parts first", digest.short()),
        )),
    }
}

/// A kernel is a bzImage or an ELF; its first bytes say so. What else is wrong with it the VMM says.
fn kernel(agent: &Agent, new: &NewImage) -> Result<PartRef, ApiError> {
    let part = held(agent, "kernel", &new.kernel)?;
    let head = head(agent, &part.digest, 0x206)?;
    let elf = head.starts_with(b"\x7fELF");
    let bzimage = head.get(0x202..0x206) == Some(b"HdrS");
    if elf || bzimage {
        return Ok(part);
    }
    Err(ApiError::new(ErrorCode::BadRequest, "kernel: neither a Linux bzImage nor an ELF file; give a distribution's vmlinuz"))
}

/// A disk is raw or qcow2 that stands alone.
fn disk(agent: &Agent, part: &Part) -> Result<DiskRef, ApiError> {
    let part = held(agent, "disk", part)?;
    let bad = |what: &str| ApiError::new(ErrorCode::BadRequest, format!("disk: {what}"));
    let header = head(agent, &part.digest, QCOW2_HEADER_BYTES)?;
    if !header.starts_with(QCOW2_MAGIC) {
        if part.bytes == 0 || !part.bytes.is_multiple_of(512) {
            return Err(bad(&format!("{} bytes are neither qcow2 nor whole sectors of a raw disk; was the file cut off?", part.bytes)));
        }
        return Ok(DiskRef { part, qcow2: false, virtual_bytes: part.bytes });
    }
    let field = |at: usize| header.get(at..at + 8).and_then(|bytes| bytes.try_into().ok()).map(u64::from_be_bytes);
    let (Some(backing), Some(virtual_bytes)) = (field(8), field(24)) else { return Err(bad("a qcow2 image that is cut short")) };
    if backing != 0 {
        return Err(bad("this qcow2 image has a backing file; flatten it first with `qemu-img convert -O qcow2`"));
    }
    if virtual_bytes == 0 || !virtual_bytes.is_multiple_of(512) {
        return Err(bad("this qcow2 image has no usable size"));
    }
    Ok(DiskRef { part, qcow2: true, virtual_bytes })
}

fn head(agent: &Agent, digest: &Digest, bytes: usize) -> Result<Vec<u8>, ApiError> {
    let mut head = vec![];
    let read = File::open(agent.depot.path(digest)).and_then(|file| file.take(bytes as u64).read_to_end(&mut head));
    read.map(|_| head).map_err(|error| ApiError::new(ErrorCode::Failed, format!("depot: read part {}: {error}", digest.short())))
}

/// `DELETE /v1/images/{name}`: its parts go where nothing else needs them; VMs that stand on it keep theirs.
pub async fn remove(State(agent): State<Arc<Agent>>, Extension(granted): Extension<Granted>) -> Result<(), Failure> {
    let gone = || ApiError::new(ErrorCode::NotFound, "the image is gone; `rebec image ls` lists those there are");
    let id = granted.about().ok_or_else(gone)?;
    let found = agent.pool(|book| {
        let home = book.thing(Kind::IMAGE, id)?.home;
        let Some(Record::Image(image)) = book.get(Kind::IMAGE, id, home) else { return None };
        Some((home, image.parts().map(|part| part.digest).collect::<Vec<_>>()))
    })?;
    let (home, parts) = found.ok_or_else(gone)?;
    if home != agent.key() {
        let host = agent.name_of(&home);
        return Err(ApiError::new(ErrorCode::Forbidden, format!("this image was imported on host {host}; remove it there")).into());
    }
    agent.publish(Kind::IMAGE, id, None)?;
    let needed = agent.pool(needed)?;
    agent.depot.remove(parts.into_iter().filter(|digest| !needed.contains(digest)));
    run::publish_host(&agent);
    Ok(())
}

/// The parts of all images, and of all VMs.
pub fn needed(book: &rebec_book::Book) -> BTreeSet<Digest> {
    let images = view::images(book).into_iter().flat_map(|image| image.body.parts());
    let vms = view::vms(book).into_iter().flat_map(|vm| vm.body.image.parts());
    images.chain(vms).map(|part| part.digest).collect()
}
