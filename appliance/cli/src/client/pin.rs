//! Who is an agent: the holder of the key that the user named, and nobody else. No certificate authority, name or date counts.
//!
//! The agent's certificate is self-signed over its host's Ed25519 key. The key's bytes stand at the end of its
//! SubjectPublicKeyInfo, whose other bytes are fixed (RFC 8410 §4); the handshake's signature proves that the other side holds it.

use std::{fmt, sync::Arc};

use rustls::{
    CertificateError, DigitallySignedStruct, Error, OtherError, SignatureScheme,
    client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier},
    crypto::{CryptoProvider, verify_tls13_signature},
    pki_types::{CertificateDer, ServerName, UnixTime},
    server::ParsedCertificate,
};

use crate::args::values::HostKey;

/// SEQUENCE { SEQUENCE { OID 1.3.101.112 }, BIT STRING of 32 bytes }, without those bytes.
const ED25519_INFO: [u8; 12] = [0x30, 0x2a, 0x30, 0x05, 0x06, 0x03, 0x2b, 0x65, 0x70, 0x03, 0x21, 0x00];

/// Accepts one key.
#[derive(Debug)]
pub struct Pinned {
    key: HostKey,
    provider: Arc<CryptoProvider>,
}

impl Pinned {
    /// Accepts this key.
    pub fn new(key: HostKey, provider: Arc<CryptoProvider>) -> Self {
        Self { key, provider }
    }
}

/// Another key than the one that was named.
#[derive(Debug)]
struct OtherKey([u8; 32]);

impl fmt::Display for OtherKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "who answers there holds the key ")?;
        self.0.iter().try_for_each(|byte| write!(f, "{byte:02x}"))?;
        write!(f, ", which is not the one that was named")
    }
}

impl std::error::Error for OtherKey {}

/// A certificate error in words.
pub fn why(error: &CertificateError) -> String {
    match error {
        CertificateError::Other(OtherError(error)) => error.to_string(),
        other => format!("who answers there shows no host key ({other})"),
    }
}

impl ServerCertVerifier for Pinned {
    fn verify_server_cert(
        &self,
        certificate: &CertificateDer<'_>,
        _intermediates: &[CertificateDer<'_>],
        _name: &ServerName<'_>,
        _ocsp: &[u8],
        _now: UnixTime,
    ) -> Result<ServerCertVerified, Error> {
        let info = ParsedCertificate::try_from(certificate)?.subject_public_key_info();
        let found = info.strip_prefix(&ED25519_INFO).and_then(|key| <[u8; 32]>::try_from(key).ok());
        match found {
            Some(found) if found == self.key.0 => Ok(ServerCertVerified::assertion()),
            Some(found) => Err(CertificateError::Other(OtherError(Arc::new(OtherKey(found)))).into()),
            None => Err(CertificateError::BadEncoding.into()),
        }
    }

    fn verify_tls12_signature(
        &self,
        _message: &[u8],
        _certificate: &CertificateDer<'_>,
        _signature: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        Err(Error::General("TLS 1.2 is not spoken".to_owned()))
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signature: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        verify_tls13_signature(message, certificate, signature, &self.provider.signature_verification_algorithms)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        vec![SignatureScheme::ED25519]
    }
}
