//! Handshakes in memory: who is let in, and who is not.

use std::io;

use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _, DuplexStream, duplex};
use tokio_rustls::{TlsAcceptor, TlsConnector};

use super::*;

const SECRETS: [[u8; 32]; 2] = [[1; 32], [2; 32]];

fn key_of_secret(secret: [u8; 32]) -> PublicKey {
    key_of(&Holder::new(&secret).unwrap().certificate).unwrap()
}

/// One connection: what the client says of it, and whom the server saw.
async fn meet(server: ServerConfig, client: ClientConfig) -> (io::Result<()>, io::Result<Option<PublicKey>>) {
    let (near, far): (DuplexStream, DuplexStream) = duplex(64 << 10);
    let client = async {
        let mut stream = TlsConnector::from(Arc::new(client)).connect(server_name(), near).await?;
        stream.write_all(b"?").await?;
        // A client hears of a refusal only here: its own side of the handshake ends before the server has looked at it.
        stream.read_exact(&mut [0]).await.map(|_| ())
    };
    let server = async {
        let mut stream = TlsAcceptor::from(Arc::new(server)).accept(far).await?;
        let key = key_of_peer(stream.get_ref().1);
        stream.read_exact(&mut [0]).await?;
        stream.write_all(b"!").await?;
        stream.flush().await?;
        Ok(key)
    };
    tokio::join!(client, server)
}

#[tokio::test]
async fn holders_know_each_other() {
    let [a, b] = SECRETS.map(|secret| Holder::new(&secret).unwrap());
    let [_, key_b] = SECRETS.map(key_of_secret);
    let (client, server) = meet(b.server_for_holders().unwrap(), a.client_of(key_b).unwrap()).await;
    client.unwrap();
    assert_eq!(server.unwrap(), Some(key_of_secret(SECRETS[0])));
}

#[tokio::test]
async fn a_client_without_a_key_is_let_in_only_where_none_is_asked_for() {
    let holder = Holder::new(&SECRETS[1]).unwrap();
    let key = key_of_secret(SECRETS[1]);
    let (said, seen) = meet(holder.server().unwrap(), client_of(key).unwrap()).await;
    said.unwrap();
    assert_eq!(seen.unwrap(), None);
    let (said, seen) = meet(holder.server_for_holders().unwrap(), client_of(key).unwrap()).await;
    assert!(said.is_err() && seen.is_err());
}

#[tokio::test]
async fn another_key_than_the_named_one_is_not_spoken_to() {
    let holder = Holder::new(&SECRETS[1]).unwrap();
    let (said, _) = meet(holder.server().unwrap(), client_of(key_of_secret(SECRETS[0])).unwrap()).await;
    let said = said.unwrap_err();
    let Some(rustls::Error::InvalidCertificate(error)) = said.get_ref().and_then(|error| error.downcast_ref()) else { panic!("{said}") };
    let found: String = key_of_secret(SECRETS[1]).iter().map(|byte| format!("{byte:02x}")).collect();
    assert!(why(error).contains(&found), "{}", why(error));
}

#[tokio::test]
async fn a_certificate_without_its_key_is_worth_nothing() {
    let [honest, thief] = SECRETS.map(|secret| Holder::new(&secret).unwrap());
    let thief = Holder { certificate: honest.certificate.clone(), ..thief };
    let (server, key) = (Holder::new(&[3; 32]).unwrap(), key_of_secret([3; 32]));
    // As a client, and as a server.
    if let Ok(config) = thief.client_of(key) {
        let (said, seen) = meet(server.server_for_holders().unwrap(), config).await;
        assert!(said.is_err() && seen.is_err());
    }
    if let Ok(config) = thief.server() {
        assert!(meet(config, client_of(key_of_secret(SECRETS[0])).unwrap()).await.0.is_err());
    }
}

#[test]
fn another_kind_of_key_is_none() {
    let pair = rcgen::KeyPair::generate_for(&rcgen::PKCS_ECDSA_P256_SHA256).unwrap();
    let certificate = rcgen::CertificateParams::new(vec![]).unwrap().self_signed(&pair).unwrap();
    assert!(key_of(certificate.der()).is_err());
    assert!(key_of(&CertificateDer::from(vec![0x30; 40])).is_err());
}
