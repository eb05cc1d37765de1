//! The Unix socket, where requests of root at this host come in: who may open it is root, in the role that the domain gave this host. Those over TLS and the mesh: `rebec_peer::serve`.

use std::{os::unix::fs::PermissionsExt, path::Path};

use anyhow::{Context, Result, bail};
use axum::Router;
use rebec_peer::accept;
pub use rebec_peer::serve::{LIMITS, Limits, connection, tls};
use tokio::net::{UnixListener, UnixStream};

use rebec_book::{Key, warrant::Signer};

use super::Caller;

/// Takes requests of root on a Unix socket until the task is dropped.
pub async fn unix(path: &Path, router: Router, own: Key) -> Result<()> {
    let listener = listen(path).await?;
    accept::each("API socket", (LIMITS.connections, LIMITS.per_address), listener, |stream, place| {
        let router = router.clone();
        tokio::spawn(async move {
            connection(stream, router, Caller::Signer(Signer::root(own)), LIMITS.head).await;
            drop(place);
        });
    })
    .await;
    Ok(())
}

/// A socket that a killed agent left is replaced; one that answers is not.
async fn listen(path: &Path) -> Result<UnixListener> {
    if UnixStream::connect(path).await.is_ok() {
        bail!("{}: another agent listens here; stop that one, or give this one its own --socket", path.display());
    }
    if let Some(folder) = path.parent() {
        std::fs::create_dir_all(folder).with_context(|| format!("create {}", folder.display()))?;
    }
    let unnamed = path.with_extension("new");
    for stale in [path, &unnamed] {
        match std::fs::remove_file(stale) {
            Ok(()) => {}
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => {}
            Err(error) => return Err(error).with_context(|| format!("remove {}", stale.display())),
        }
    }
    let listener = UnixListener::bind(&unnamed).with_context(|| format!("listen on {}", path.display()))?;
    std::fs::set_permissions(&unnamed, std::fs::Permissions::from_mode(0o600))?;
    // It has its name only now that it listens.
    std::fs::rename(&unnamed, path)?;
    Ok(listener)
}
