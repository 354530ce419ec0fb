//! The certificates that are built into the kernel's trusted keyring: whose modules (and kexec
//! images) it accepts.
//!
//! Source: Linux certs/system_certificates.S, certs/system_keyring.c (`load_system_certificate_list`):
//! X.509 certificates in DER, one behind the other, each with a two-byte length.

use crate::bytes::u64_at;
use crate::kallsyms::Symbols;
use crate::vmlinux::Image;
use alloc::format;
use alloc::string::{String, ToString};
use alloc::vec::Vec;
use x509_cert::Certificate as X509;
use x509_cert::der::Decode;

/// More certificates than any kernel has; Debian's have two or three.
const CERTIFICATE_LIMIT: usize = 256;

/// A certificate.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Certificate {
    /// Whose key it is, as RFC 4514 writes names.
    pub subject: String,
    /// Who signed it.
    pub issuer: String,
    /// Last day of its validity. The kernel does not ask.
    pub not_after: String,
}

/// The trusted keyring as it is built in.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Keys {
    /// Certificates that could be read.
    pub certificates: Vec<Certificate>,
    /// Why there are none, or not more.
    pub remark: Option<String>,
}

impl Keys {
    /// Reads the list.
    pub(crate) fn find(image: &Image<'_>, symbols: &Symbols) -> Self {
        let word = |name| u64_at(image.bytes(symbols.address_of(name)?, 8)?, 0);
        let list = || {
            let length = word("system_certificate_list_size")?;
            let start = symbols.address_of("system_certificate_list")?;
            image.bytes(start, usize::try_from(length).ok()?)
        };
        match list() {
            Some(list) => Self::read(list),
            None => Self {
                certificates: Vec::new(),
                remark: Some("the kernel has no system_certificate_list".into()),
            },
        }
    }

    fn read(list: &[u8]) -> Self {
        let mut keys = Self::default();
        let mut rest = list;
        while !rest.is_empty() && keys.certificates.len() < CERTIFICATE_LIMIT {
            let Some((certificate, tail)) = first(rest) else {
                let at = list.len() - rest.len();
                keys.remark = Some(format!("no certificate can be read at byte {at} of the list"));
                break;
            };
            keys.certificates.push(certificate);
            rest = tail;
        }
        keys
    }
}

/// The first certificate of a list, and the rest.
fn first(list: &[u8]) -> Option<(Certificate, &[u8])> {
    let &[0x30, 0x82, high, low, ..] = list else { return None };
    let length = usize::from(u16::from_be_bytes([high, low])) + 4;
    let (der, rest) = list.split_at_checked(length)?;
    let certificate = X509::from_der(der).ok()?.tbs_certificate;
    let certificate = Certificate {
        subject: certificate.subject.to_string(),
        issuer: certificate.issuer.to_string(),
        not_after: certificate.validity.not_after.to_string(),
    };
    Some((certificate, rest))
}
