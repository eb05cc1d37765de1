//! TLS 1.3 between holders of host keys. Who somebody is, is the Ed25519 key that they hold: no certificate authority, name or
//! date counts.
//!
//! A certificate is self-signed over its holder's key. The key's bytes stand at the end of its SubjectPublicKeyInfo, whose other
//! bytes are fixed (RFC 8410 §4); the handshake's signature proves that the other side holds it.

mod verify;

#[cfg(test)]
mod tests;

use std::{
    net::{IpAddr, Ipv4Addr},
    sync::Arc,
};

use rustls::{
    ClientConfig, ServerConfig,
    crypto::{CryptoProvider, ring},
    pki_types::{CertificateDer, PrivateKeyDer, PrivatePkcs8KeyDer, ServerName},
    server::ParsedCertificate,
    version::TLS13,
};

pub use self::verify::{KeyError, why};

/// The bytes of an Ed25519 public key.
pub type PublicKey = [u8; 32];

/// `OneAsymmetricKey` around the 32 bytes of an Ed25519 key (RFC 8410 §7), without those bytes.
const ED25519_PKCS8: [u8; 16] = [0x30, 0x2e, 2, 1, 0, 0x30, 5, 6, 3, 0x2b, 0x65, 0x70, 4, 0x22, 4, 0x20];
/// SEQUENCE { SEQUENCE { OID 1.3.101.112 }, BIT STRING of 32 bytes }, without those bytes.
const ED25519_INFO: [u8; 12] = [0x30, 0x2a, 0x30, 5, 6, 3, 0x2b, 0x65, 0x70, 3, 0x21, 0];
/// Plays no part.
const NAME: &str = "rebec.invalid";

/// Why a side of TLS cannot be set up.
#[derive(Debug, thiserror::Error)]
pub enum TlsError {
    /// The own certificate could not be made.
    #[error("make a certificate for the host's key")]
    Certificate(#[from] rcgen::Error),
    /// The TLS library refuses.
    #[error("set TLS up")]
    Setup(#[from] rustls::Error),
}

/// A key with its certificate.
#[derive(Debug)]
pub struct Holder {
    certificate: CertificateDer<'static>,
    secret: PrivateKeyDer<'static>,
    provider: Arc<CryptoProvider>,
}

impl Holder {
    /// Of the 32 bytes of an Ed25519 secret key.
    ///
    /// # Errors
    /// When they are no key.
    pub fn new(secret: &[u8; 32]) -> Result<Self, TlsError> {
        let pkcs8 = [&ED25519_PKCS8[..], secret].concat();
        let pair = rcgen::KeyPair::try_from(&PrivatePkcs8KeyDer::from(pkcs8.as_slice()))?;
        let certificate = rcgen::CertificateParams::new(vec![NAME.to_owned()])?.self_signed(&pair)?.der().clone();
        Ok(Self { certificate, secret: PrivateKeyDer::Pkcs8(pkcs8.into()), provider: provider() })
    }

    /// A server that lets in whoever speaks TLS.
    ///
    /// # Errors
    /// Those of the TLS library.
    pub fn server(&self) -> Result<ServerConfig, TlsError> {
        let builder = ServerConfig::builder_with_provider(self.provider.clone()).with_protocol_versions(&[&TLS13])?;
        let config = builder.with_no_client_auth().with_single_cert(vec![self.certificate.clone()], self.secret.clone_key())?;
        Ok(full_handshakes(config))
    }

    /// A server that lets in whoever proves to hold a key: [`key_of_peer`] says which.
    ///
    /// # Errors
    /// Those of the TLS library.
    pub fn server_for_holders(&self) -> Result<ServerConfig, TlsError> {
        let builder = ServerConfig::builder_with_provider(self.provider.clone()).with_protocol_versions(&[&TLS13])?;
        let builder = builder.with_client_cert_verifier(Arc::new(verify::KeyVerifier::of_any(self.provider.clone())));
        Ok(full_handshakes(builder.with_single_cert(vec![self.certificate.clone()], self.secret.clone_key())?))
    }

    /// A client that proves to hold this key, of the holder of another.
    ///
    /// # Errors
    /// Those of the TLS library.
    pub fn client_of(&self, server: PublicKey) -> Result<ClientConfig, TlsError> {
        let builder = ClientConfig::builder_with_provider(self.provider.clone()).with_protocol_versions(&[&TLS13])?.dangerous();
        let builder = builder.with_custom_certificate_verifier(Arc::new(verify::KeyVerifier::of(server, self.provider.clone())));
        Ok(builder.with_client_auth_cert(vec![self.certificate.clone()], self.secret.clone_key())?)
    }
}

/// A client of the holder of a key, that proves nothing itself.
///
/// # Errors
/// Those of the TLS library.
pub fn client_of(server: PublicKey) -> Result<ClientConfig, TlsError> {
    let provider = provider();
    let builder = ClientConfig::builder_with_provider(provider.clone()).with_protocol_versions(&[&TLS13])?.dangerous();
    Ok(builder.with_custom_certificate_verifier(Arc::new(verify::KeyVerifier::of(server, provider))).with_no_client_auth())
}

/// What clients call every server: an address, of which nothing is sent.
#[must_use]
pub fn server_name() -> ServerName<'static> {
    IpAddr::from(Ipv4Addr::UNSPECIFIED).into()
}

/// The key that the other side of a connection has proved to hold.
#[must_use]
pub fn key_of_peer(connection: &rustls::CommonState) -> Option<PublicKey> {
    key_of(connection.peer_certificates()?.first()?).ok()
}

fn key_of(certificate: &CertificateDer<'_>) -> Result<PublicKey, rustls::Error> {
    let info = ParsedCertificate::try_from(certificate)?.subject_public_key_info();
    let key = info.strip_prefix(&ED25519_INFO).and_then(|key| key.try_into().ok());
    key.ok_or_else(|| rustls::CertificateError::BadEncoding.into())
}

/// Every connection shows the key again.
fn full_handshakes(mut config: ServerConfig) -> ServerConfig {
    config.send_tls13_tickets = 0;
    config
}

fn provider() -> Arc<CryptoProvider> {
    Arc::new(ring::default_provider())
}
