//! Keys and certificates of an API server.

use super::write_private;
use anyhow::{Context as _, Result};
use rcgen::{BasicConstraints, CertificateParams, CertifiedIssuer, DnType, IsCa, KeyPair};
use std::net::Ipv4Addr;
use std::path::Path;

/// A CA, a server certificate signed by it, and the key that signs ServiceAccount tokens.
pub(super) struct Pki {
    ca: String,
    certificate: String,
    key: String,
    accounts: KeyPair,
}

impl Pki {
    /// Generates all of them for a server with these addresses.
    pub(super) fn new(addresses: &[Ipv4Addr]) -> Result<Self> {
        let mut authority = CertificateParams::default();
        authority.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        authority
            .distinguished_name
            .push(DnType::CommonName, "netdp test authority");
        let authority = CertifiedIssuer::self_signed(authority, KeyPair::generate()?)
            .context("making a certificate authority")?;
        let key = KeyPair::generate()?;
        let mut names = vec!["localhost".to_owned(), "kubernetes.default.svc".to_owned()];
        names.extend(addresses.iter().map(Ipv4Addr::to_string));
        let certificate = CertificateParams::new(names)?
            .signed_by(&key, &authority)
            .context("signing the server's certificate")?;
        Ok(Self {
            ca: authority.pem(),
            certificate: certificate.pem(),
            key: key.serialize_pem(),
            accounts: KeyPair::generate()?,
        })
    }

    /// Writes ca.crt, server.crt, server.key, accounts.key and accounts.pub.
    pub(super) fn write(&self, dir: &Path) -> Result<()> {
        for (name, text) in [
            ("ca.crt", &self.ca),
            ("server.crt", &self.certificate),
            ("server.key", &self.key),
            ("accounts.key", &self.accounts.serialize_pem()),
            ("accounts.pub", &self.accounts.public_key_pem()),
        ] {
            write_private(&dir.join(name), text)?;
        }
        Ok(())
    }
}
