//! `rebec lan capture`: each port's stream is read by a task of its own, and written here as one file.

use std::{
    fs::File,
    io::{self, Write},
    path::Path,
};

use rebec_api::{
    lan::LanInfo,
    vm::{NicInfo, VmInfo},
};
use tokio::{select, sync::mpsc};

use super::session::Session;
use crate::{
    args::CaptureOptions,
    client::{ClientError, path},
    failure::Failure,
    pcapng::{self, Part},
};

/// Pieces that wait to be written.
const PIECES_MAX: usize = 64;

/// A port that is listened at.
struct Port {
    vm: String,
    mac: String,
    part: Part,
}

/// Captures at every port of a LAN, or of a VM, until the time is over, the file is full, or the user ends it.
pub async fn run(session: &Session, options: CaptureOptions) -> Result<(), Failure> {
    let ports = ports(session, &options.name).await?;
    if ports.is_empty() {
        return Err(Failure::Here(format!("{}: no VM of it runs, so there is nothing to capture", options.name)));
    }
    let refuse = |error: io::Error| Failure::Here(format!("write {}: {error}", options.out.display()));
    let mut out: Box<dyn Write + Send> =
        if options.out == Path::new("-") { Box::new(io::stdout()) } else { Box::new(File::create(&options.out).map_err(refuse)?) };
    let (pieces, mut read) = mpsc::channel(PIECES_MAX);
    let share = (options.max_bytes.bytes() / ports.len() as u64).max(1);
    let (mut bodies, mut refused) = (vec![], None);
    let mut listened_at = vec![];
    for port in ports {
        let query = query(&options, &port.mac, share);
        match session.client.open(&format!("{}?{query}", path(&["vms", &port.vm, "capture"]))).await {
            Ok(body) => {
                bodies.push(body);
                listened_at.push(port);
            }
            // Of another domain's VM it takes a role there.
            Err(error) => {
                session.say(&format!("{}: not captured: {error}", port.vm));
                refused = Some(error);
            }
        }
    }
    let mut ports = listened_at;
    if let Some(error) = refused.filter(|_| ports.is_empty()) {
        return Err(error.into());
    }
    session.say(&format!("captures at {} ports for {} s; end it earlier with Ctrl-C", ports.len(), options.seconds));
    let reading = bodies.into_iter().enumerate().map(|(number, mut body)| {
        let pieces = pieces.clone();
        async move {
            loop {
                let piece = session.client.next(&mut body).await.transpose();
                let is_over = !matches!(piece, Some(Ok(_)));
                if let Some(piece) = piece
                    && pieces.send((number, piece)).await.is_err()
                {
                    return;
                }
                if is_over {
                    return;
                }
            }
        }
    });
    let reading = futures_util::future::join_all(reading);
    drop(pieces);
    let writing = async {
        let (mut file, mut bytes, mut total) = (pcapng::File::default(), vec![], 0_u64);
        while let Some((number, piece)) = read.recv().await {
            let piece = match piece {
                Ok(piece) => piece,
                // The VM has gone, or its host: the other ports go on.
                Err(error) => {
                    session.say(&format!("{}: its capture ended early: {error}", ports[number].vm));
                    continue;
                }
            };
            bytes.clear();
            ports[number].part.push(&mut file, &piece, &mut bytes).map_err(|error| Failure::Here(error.to_string()))?;
            out.write_all(&bytes).map_err(refuse)?;
            total += bytes.len() as u64;
        }
        out.flush().map_err(refuse)?;
        Ok::<_, Failure>(total)
    };
    let both = async { tokio::join!(reading, writing).1 };
    let total = select! {
        total = both => Some(total?),
        _ = tokio::signal::ctrl_c() => None,
    };
    match total {
        Some(total) => ports.iter().for_each(|port| session.say(&told(port, total))),
        None => session.say("ended; what came so far is in the file"),
    }
    Ok(())
}

fn told(port: &Port, total: u64) -> String {
    match port.part.counted() {
        Some(counted) => {
            format!("{} {}: {} frames, {} of them not in the file of {total} bytes", port.vm, port.mac, counted.seen, counted.lost)
        }
        None => format!("{} {}: cut off before it said how many frames were lost", port.vm, port.mac),
    }
}

/// Those of the LAN of this name, or else of the VM.
async fn ports(session: &Session, name: &str) -> Result<Vec<Port>, Failure> {
    let lan: Result<LanInfo, ClientError> = session.client.get(&path(&["lans", name])).await;
    let port = |vm: String, mac: String| Port { vm, mac, part: Part::default() };
    match lan {
        Ok(lan) => Ok(lan.ports.into_iter().filter(|port| !port.endpoint.is_empty()).map(|found| port(found.vm, found.mac)).collect()),
        Err(error) if error.unreachable() => Err(error.into()),
        Err(_) => {
            let vm: VmInfo = session.client.get(&path(&["vms", name])).await?;
            Ok(vm.nics.into_iter().map(|NicInfo { mac, .. }| port(vm.name.clone(), mac)).collect())
        }
    }
}

fn query(options: &CaptureOptions, mac: &str, share: u64) -> String {
    let filter: String = options
        .filter
        .bytes()
        .map(|byte| if byte.is_ascii_alphanumeric() { char::from(byte).to_string() } else { format!("%{byte:02x}") })
        .collect();
    format!("net={mac}&filter={filter}&seconds={}&max_bytes={share}", options.seconds)
}
