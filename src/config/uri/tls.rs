//! The `tls*` options: most are the driver's to read, and the rest is ours, as its TLS does less than ours.

use std::collections::BTreeSet;
use std::fmt;
use std::path::PathBuf;

use zeroize::Zeroizing;

use super::mistakes::Mistakes;
use super::refuse;

/// Encryption towards upstream.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct TlsOptions {
    /// PEM file of the authorities to trust; the public ones when absent.
    pub ca_file: Option<PathBuf>,
    /// PEM file with our certificate and its key.
    pub cert_key_file: Option<PathBuf>,
    /// Of the key in it.
    pub key_password: Option<KeyPassword>,
    /// Trust any certificate, whoever it is of: `tlsAllowInvalidCertificates` or `tlsInsecure`. As with most drivers names are
    /// not looked at then either: a certificate that anybody can make has whatever name it likes.
    pub allow_invalid_certificates: bool,
    /// Trust the authorities, though not that they name the host.
    pub allow_invalid_hostnames: bool,
}

/// The password of a key file; shown nowhere, and wiped when it is dropped.
#[derive(Clone, PartialEq, Eq)]
pub struct KeyPassword(Zeroizing<String>);

impl KeyPassword {
    /// The password, which is not to be kept elsewhere.
    pub fn expose(&self) -> &str {
        &self.0
    }
}

impl fmt::Debug for KeyPassword {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("<secret>")
    }
}

/// What the driver does not read.
#[derive(Default)]
pub(super) struct Extra {
    allow_invalid_hostnames: bool,
    key_password: Option<KeyPassword>,
}

impl Extra {
    pub(super) fn take_invalid_hostnames(&mut self, value: &str) -> Result<(), String> {
        self.allow_invalid_hostnames = value.parse().map_err(|_| "expected true or false".to_owned())?;
        Ok(())
    }

    pub(super) fn take_key_password(&mut self, value: &str) -> Result<(), String> {
        let decoded = percent_encoding::percent_decode_str(value).decode_utf8();
        let decoded = decoded.map_err(|_| "no UTF-8 behind its percent signs".to_owned())?;
        self.key_password = Some(KeyPassword(Zeroizing::new(decoded.into_owned())));
        Ok(())
    }

    /// True when there has to be TLS: with every other option of its kind there is as well.
    pub(super) fn implies_tls(&self) -> bool {
        self.allow_invalid_hostnames
    }

    /// Where there is no TLS, nothing may be said of it.
    pub(super) fn without_tls(&self, mistakes: &mut Mistakes) {
        if self.allow_invalid_hostnames {
            mistakes.add(refuse("tlsAllowInvalidHostnames goes with TLS, and there is none"));
        }
        self.without_key_file(mistakes);
    }

    /// What is in force, with what the driver has read.
    pub(super) fn with(
        self,
        ca_file: Option<PathBuf>,
        cert_key_file: Option<PathBuf>,
        allow_invalid_certificates: bool,
        mistakes: &mut Mistakes,
    ) -> TlsOptions {
        if cert_key_file.is_none() {
            self.without_key_file(mistakes);
        }
        let Self { allow_invalid_hostnames, key_password } = self;
        TlsOptions { ca_file, cert_key_file, key_password, allow_invalid_certificates, allow_invalid_hostnames }
    }

    /// Where another option of TLS is wrong, it may be the one that names the file.
    fn without_key_file(&self, mistakes: &mut Mistakes) {
        if self.key_password.is_some() && !mistakes.tls {
            mistakes.add(refuse("tlsCertificateKeyFilePassword goes with tlsCertificateKeyFile, and there is none"));
        }
    }
}

impl TlsOptions {
    /// Whether the monitor takes any certificate. Its driver can leave out names only together with all else. It has no
    /// credential and carries no command, and whatever servers it is told of have to show us a certificate of the authorities.
    pub(super) fn monitor_trusts_anybody(&self) -> bool {
        self.allow_invalid_certificates || self.allow_invalid_hostnames
    }

    /// What is insecure.
    pub(super) fn warning(&self) -> Option<String> {
        let what = if self.allow_invalid_certificates {
            "TLS without checking certificates (tlsInsecure, tlsAllowInvalidCertificates): whoever stands between us and the \
             servers can pretend to be one of them, and read and change everything"
        } else if self.allow_invalid_hostnames {
            "TLS without checking host names (tlsAllowInvalidHostnames): whoever has any certificate of the authorities can \
             pretend to be one of the servers. Monitoring, which has no credential and carries no command, takes any \
             certificate then"
        } else {
            return None;
        };
        Some(what.to_owned())
    }
}

/// Options that the specification does not let stand together. `given` are all names, in lower case.
pub(super) fn contradictions(given: &BTreeSet<String>, mistakes: &mut Mistakes) {
    let parts = [
        "tlsAllowInvalidCertificates",
        "tlsAllowInvalidHostnames",
        "tlsDisableOCSPEndpointCheck",
        "tlsDisableCertificateRevocationCheck",
    ];
    let stands = |name: &str| given.contains(&name.to_lowercase());
    for part in parts.into_iter().filter(|part| stands("tlsInsecure") && stands(part)) {
        mistakes.add(refuse(format!("tlsInsecure goes without {part}: it says the same and more")));
    }
}

#[cfg(test)]
mod tests {
    use mongodb::options::{Tls, TlsOptions as TheirOptions};

    use super::super::Upstream;
    use super::*;

    fn parse(text: &str) -> Upstream {
        Upstream::parse(text).unwrap()
    }

    fn theirs(upstream: &Upstream) -> &TheirOptions {
        match &upstream.connection.tls {
            Some(Tls::Enabled(options)) => options,
            other => panic!("{other:?}"),
        }
    }

    #[test]
    fn secure_settings_have_no_warning() {
        let upstream = parse("mongodb://h/?tlsCAFile=/ca.pem&tlsAllowInvalidHostnames=false");
        let tls = upstream.tls.unwrap();
        assert_eq!(tls, TlsOptions { ca_file: Some("/ca.pem".into()), ..TlsOptions::default() });
        assert_eq!(upstream.warnings, [""; 0]);
        assert!(parse("mongodb://h/?ssl=true").tls.is_some());
        assert!(parse("mongodb://h/?tlsAllowInvalidHostnames=false").tls.is_none());
    }

    #[test]
    fn what_is_insecure_is_done_by_its_name_only_and_warned_of() {
        for option in ["tlsInsecure=true", "tlsAllowInvalidCertificates=true"] {
            let upstream = parse(&format!("mongodb://h/?{option}"));
            assert!(upstream.tls.unwrap().allow_invalid_certificates, "{option}");
            assert!(
                upstream.warnings.len() == 1 && upstream.warnings[0].contains("pretend"),
                "{:?}",
                upstream.warnings
            );
        }
        let upstream = parse("mongodb://h/?tlsAllowInvalidHostnames=true");
        let tls = upstream.tls.clone().unwrap();
        assert!(tls.allow_invalid_hostnames && !tls.allow_invalid_certificates);
        assert_eq!(theirs(&upstream).allow_invalid_certificates, Some(true));
        assert!(upstream.warnings[0].contains("Monitoring"), "{:?}", upstream.warnings);
        for unlooked in ["tlsDisableOCSPEndpointCheck", "tlsDisableCertificateRevocationCheck"] {
            let upstream = parse(&format!("mongodb://h/?tls=true&{unlooked}=true"));
            assert!(upstream.warnings[0].contains("OCSP"), "{:?}", upstream.warnings);
        }
    }

    #[test]
    fn the_password_of_a_key_is_decoded_and_shown_nowhere() {
        let upstream =
            parse("mongodb://h/?tls=true&tlsCertificateKeyFile=/k.pem&tlsCertificateKeyFilePassword=hu%2Fsh%40");
        let password = upstream.tls.clone().unwrap().key_password.unwrap();
        assert_eq!(password.expose(), "hu/sh@");
        assert_eq!(theirs(&upstream).tls_certificate_key_file_password.as_deref(), Some(&b"hu/sh@"[..]));
        assert_eq!(upstream.redacted, "mongodb://h/?tls=true&tlsCertificateKeyFile=/k.pem");
        assert!(!format!("{upstream:?}{:?}", upstream.tls).contains("hu/"));
    }
}
