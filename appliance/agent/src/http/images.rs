//! `/v1/parts` and `/v1/images`.

use std::{fs::File, io::Read, sync::Arc};

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
    record::{DiskRef, ImageBody, Kind, PartRef, REASON_BYTES_MAX},
    view,
};

use super::{
    answer::{Answer, Failure, Json},
    jobs, shown,
};
use crate::{
    agent::Agent,
    chance::{now_s, random},
    depot::judge,
    derived, names,
};

/// The first bytes of a qcow2 image.
const QCOW2_MAGIC: &[u8; 4] = b"QFI\xfb";
/// Where its header says where the name of a backing file would be.
const QCOW2_HEADER_BYTES: usize = 16;
/// Longest kernel command line.
const CMDLINE_BYTES_MAX: usize = 2048;

/// `PUT /v1/parts`
pub async fn put_part(State(agent): State<Arc<Agent>>, headers: HeaderMap, body: Body) -> Answer<Part> {
    let length = headers.get(header::CONTENT_LENGTH).and_then(|value| value.to_str().ok()?.parse().ok());
    let part = agent.host.depot.take(body.into_data_stream(), length).await?;
    Ok(axum::Json(part))
}

/// `GET /v1/images`
pub async fn list(State(agent): State<Arc<Agent>>) -> Answer<Vec<ImageInfo>> {
    Ok(axum::Json(agent.knowledge.pool(shown::images)?))
}

/// `POST /v1/images`
pub async fn create(State(agent): State<Arc<Agent>>, Json(new): Json<NewImage>) -> Answer<ImageInfo> {
    names::check("image", &new.name)?;
    let body = match body(&agent, &new).await {
        Ok(body) => body,
        Err(error) => {
            // What was sent for an image that there will not be goes again.
            let sent = [new.kernel.as_ref(), new.initramfs.as_ref(), new.disk.as_ref()].into_iter().flatten();
            let needed = agent.knowledge.pool(view::needed)?;
            let sent = sent.filter_map(|part| part.digest.parse().ok());
            agent.host.depot.remove(sent.filter(|digest| agent.host.depot.has(digest) && !needed.contains(digest)));
            return Err(error.into());
        }
    };
    {
        let _alone = agent.orders.naming.lock().await;
        if names::taken(&agent.knowledge, Kind::IMAGE, &new.name)? {
            return Err(ApiError::new(ErrorCode::Conflict, format!("image `{}` exists already; choose another name", new.name)).into());
        }
        let id = bound_id(&agent.knowledge.key(), &body.nonce);
        agent.knowledge.publish(Kind::IMAGE, id, Some(Record::Image(body.clone().into())))?;
    }
    agent.bulletin.publish();
    // Nobody waits for it but the first VM.
    let maker = agent.host.clone();
    tokio::spawn(async move { derived::ensure(maker.vmm(), &maker.depot, &body, || ()).await });
    let shown = agent.knowledge.pool(|book| shown::images(book).into_iter().find(|image| image.name == new.name))?;
    Ok(axum::Json(shown.ok_or_else(|| ApiError::not_found("image", &new.name, "rebec image ls"))?))
}

/// What an image is to be, of parts that were judged as a start would judge them.
async fn body(agent: &Agent, new: &NewImage) -> Result<ImageBody, ApiError> {
    let bad = |what: String| ApiError::new(ErrorCode::BadRequest, what);
    if new.cmdline.len() > CMDLINE_BYTES_MAX {
        return Err(bad(format!("cmdline: longer than {CMDLINE_BYTES_MAX} bytes")));
    }
    if new.kernel.is_none() && new.disk.is_none() {
        return Err(bad("an image needs a kernel, or a disk whose boot loader says what starts".into()));
    }
    if new.kernel.is_none() && new.initramfs.is_some() {
        return Err(bad("initramfs: it goes with a kernel; give both, or neither to start what the disk says".into()));
    }
    let domains = new.domains.iter().map(|name| names::domain(&agent.knowledge, name)).collect::<Result<_, _>>()?;
    let kernel = new.kernel.as_ref().map(|part| held(agent, "kernel", part)).transpose()?;
    let initramfs = new.initramfs.as_ref().map(|part| held(agent, "initramfs", part)).transpose()?;
    let disk = new.disk.as_ref().map(|part| held(agent, "disk", part)).transpose()?;
    if let Some(disk) = &disk {
        require_alone(agent, disk)?;
    }
    let digest = |part: &Option<PartRef>| part.map(|part| part.digest);
    let judgement = judge::judge(agent.host.vmm(), &agent.host.depot, digest(&kernel).as_ref(), digest(&disk).as_ref()).await?;
    let disk = disk.zip(judgement.disk).map(|(part, disk)| DiskRef { part, qcow2: disk.format == "qcow2", virtual_bytes: disk.bytes });
    Ok(ImageBody {
        nonce: Name(random()),
        name: new.name.clone(),
        kernel,
        initramfs,
        cmdline: new.cmdline.clone(),
        disk,
        created: now_s(),
        domains,
        starts: judgement.start.map(|start| cut(start.from)),
    })
}

/// What people read fits into a record.
fn cut(mut text: String) -> String {
    let end = (0..=REASON_BYTES_MAX.min(text.len())).rev().find(|at| text.is_char_boundary(*at)).unwrap_or(0);
    text.truncate(end);
    text
}

fn held(agent: &Agent, what: &str, part: &Part) -> Result<PartRef, ApiError> {
    let digest: Digest = part.digest.parse().map_err(|error| ApiError::new(ErrorCode::BadRequest, format!("{what}: digest {error}")))?;
    let length = std::fs::metadata(agent.host.depot.path(&digest)).map(|file| file.len());
    match length {
        Ok(bytes) if bytes == part.bytes => Ok(PartRef { digest, bytes }),
        _ => Err(ApiError::new(
            ErrorCode::BadRequest,
            format!("{what}: part {} is not in this host's depot; PUT it to /v1/parts first", digest.short()),
        )),
    }
}

/// A disk stands alone: what others have in their depots is this one file.
fn require_alone(agent: &Agent, disk: &PartRef) -> Result<(), ApiError> {
    let mut header = vec![];
    let read =
        File::open(agent.host.depot.path(&disk.digest)).and_then(|file| file.take(QCOW2_HEADER_BYTES as u64).read_to_end(&mut header));
    read.map_err(|error| ApiError::new(ErrorCode::Failed, format!("depot: read part {}: {error}", disk.digest.short())))?;
    let backing = header.get(8..16).is_some_and(|offset| offset != [0; 8]);
    if header.starts_with(QCOW2_MAGIC) && backing {
        let what = "disk: this qcow2 image has a backing file; flatten it first with `qemu-img convert -O qcow2`";
        return Err(ApiError::new(ErrorCode::BadRequest, what));
    }
    Ok(())
}

/// `DELETE /v1/images/{name}`: its parts go where nothing else needs them; VMs that stand on it keep theirs.
pub async fn remove(State(agent): State<Arc<Agent>>, Extension(granted): Extension<Granted>, headers: HeaderMap) -> Result<(), Failure> {
    let order = jobs::order(&headers)?;
    let Some(id) = granted.about() else {
        // It has gone, by this order: parts that an agent that ended has left go with the next sweep.
        return Ok(jobs::finish(&agent, granted.asker(), order, "remove an image".to_owned(), async |_, _| Ok(())).await?);
    };
    let found = agent.knowledge.pool(|book| {
        let home = book.thing(Kind::IMAGE, id)?.home;
        let Some(Record::Image(image)) = book.get(Kind::IMAGE, id, home) else { return None };
        Some((home, image.name.clone(), image.parts().map(|part| part.digest).collect::<Vec<_>>()))
    })?;
    let gone = || ApiError::new(ErrorCode::NotFound, "the image is gone; `rebec image ls` lists those there are");
    let (home, name, parts) = found.ok_or_else(gone)?;
    if home != agent.knowledge.key() {
        let host = agent.knowledge.name_of(&home);
        return Err(ApiError::new(ErrorCode::Forbidden, format!("this image was imported on host {host}; remove it there")).into());
    }
    let removed = jobs::finish(&agent, granted.asker(), order, format!("remove image {name}"), async move |agent, _| {
        agent.knowledge.publish(Kind::IMAGE, id, None)?;
        let needed = agent.knowledge.pool(view::needed)?;
        agent.host.depot.remove(parts.into_iter().filter(|digest| !needed.contains(digest)));
        agent.bulletin.publish();
        Ok(())
    });
    Ok(removed.await?)
}
