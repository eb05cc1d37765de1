//! `rebec vm forward`: each connection to a local port becomes one into the guest, through the agent. A connection that
//! fails is told, and the others go on.

use std::{net::SocketAddr, rc::Rc, time::Duration};

use tokio::{
    io::copy_bidirectional,
    net::{TcpListener, TcpStream},
    sync::Semaphore,
    task::LocalSet,
    time::sleep,
};

use super::{session::Session, vm::get};
use crate::{
    client::{Client, path},
    failure::Failure,
    talk,
};

/// Connections at a time; more wait in the listener's queue.
const CONNECTIONS_MAX: usize = 128;
/// Rest after a failed accept: no descriptors are left, and some will be again.
const REST: Duration = Duration::from_millis(100);

/// Forwards until the user interrupts.
pub async fn run(session: &Session, name: &str, port: u16, listen: SocketAddr) -> Result<(), Failure> {
    let vm = get(session, name).await?;
    let refuse = |error: std::io::Error| Failure::Here(format!("listen at {listen}: {error}"));
    let listener = TcpListener::bind(listen).await.map_err(refuse)?;
    let local = listener.local_addr().map_err(refuse)?;
    session.show(&local, |local| format!("{local}\n"))?;
    session.say(&format!("{local} leads to port {port} of vm {}; Ctrl-C ends it", vm.name));
    let at: Rc<str> = path(&["vms", name, "forward", &port.to_string()]).into();
    let carriers = LocalSet::new();
    tokio::select! {
        _ = tokio::signal::ctrl_c() => Ok(()),
        never = carriers.run_until(serve(&listener, &session.client, &at)) => match never {},
    }
}

async fn serve(listener: &TcpListener, client: &Client, at: &Rc<str>) -> std::convert::Infallible {
    let free = Rc::new(Semaphore::new(CONNECTIONS_MAX));
    loop {
        let permit = Rc::clone(&free);
        match listener.accept().await {
            Ok((stream, _)) => {
                let (client, at) = (client.clone(), Rc::clone(at));
                tokio::task::spawn_local(async move {
                    let Ok(_permit) = permit.acquire().await else { return };
                    if let Err(why) = carry(&client, &at, stream).await {
                        talk::say(&format!("rebec: {why}"));
                    }
                });
            }
            Err(error) => {
                talk::say(&format!("rebec: accept: {error}"));
                sleep(REST).await;
            }
        }
    }
}

async fn carry(client: &Client, at: &str, mut local: TcpStream) -> Result<(), String> {
    let mut guest = client.upgrade(at).await.map_err(|error| error.to_string())?;
    // How a carried connection ends is between its two ends.
    drop(copy_bidirectional(&mut local, &mut guest).await);
    Ok(())
}
