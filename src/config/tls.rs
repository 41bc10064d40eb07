//! How a listener encrypts: the `tls*` keys beside `listen`, in the words of mongod's `net.tls`, and those of the admin port, which
//! are the same with `admin_` before them. The files are not opened here.

use std::path::PathBuf;

use toml::Spanned;
use toml::de::DeValue;

use super::file::FileListener;
use super::reader::{Found, Reader};
use super::{Address, ConfigError};

/// What stands before the keys of the admin port. Whether callers have certificates is not among them: probes never have one, and who
/// has none may know a token.
const ADMIN: &str = "admin_";

/// How a listener or the admin port encrypts.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ListenerTls {
    /// PEM file with our certificate and those that vouch for it.
    pub certificate_key_file: PathBuf,
    /// PEM file with its key: the same one, unless it was said otherwise.
    pub key_file: PathBuf,
    /// Whether clients have certificates.
    pub client_certificates: ClientCertificates,
    /// The oldest version that is spoken.
    pub min_version: TlsVersion,
}

/// Whether clients show certificates.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum ClientCertificates {
    /// They are not asked for one.
    None,
    /// They are asked for one.
    Asked {
        /// PEM file of the authorities that they are to be signed by.
        ca_file: PathBuf,
        /// PEM file of certificates that are not valid any more.
        crl_file: Option<PathBuf>,
        /// Who has none is not served.
        required: bool,
    },
}

/// A version of TLS.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum TlsVersion {
    /// 1.2
    V1_2,
    /// 1.3
    V1_3,
}

/// What `tls_client_certificates` says.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Wanted {
    None,
    Optional,
    Required,
}

impl ClientCertificates {
    /// What the file says for this.
    pub(super) const fn wanted(&self) -> Wanted {
        match self {
            Self::None => Wanted::None,
            Self::Asked { required: false, .. } => Wanted::Optional,
            Self::Asked { required: true, .. } => Wanted::Required,
        }
    }
}

impl ListenerTls {
    /// All files that it is made of.
    pub fn files(&self) -> Vec<PathBuf> {
        let mut files = vec![self.certificate_key_file.clone(), self.key_file.clone()];
        if let ClientCertificates::Asked { ca_file, crl_file, .. } = &self.client_certificates {
            files.push(ca_file.clone());
            files.extend(crl_file.clone());
        }
        files.dedup();
        files
    }
}

/// What the file says of one listener, or of the admin port.
#[derive(Debug, Default)]
pub(super) struct FileTls {
    /// What stands before its keys.
    prefix: &'static str,
    on: Option<Found<bool>>,
    certificate_key_file: Option<Found<PathBuf>>,
    key_file: Option<Found<PathBuf>>,
    ca_file: Option<Found<PathBuf>>,
    client_certificates: Option<Found<Wanted>>,
    crl_file: Option<Found<PathBuf>>,
    min_version: Option<Found<TlsVersion>>,
}

impl Reader<'_> {
    /// A key of the admin port; false if it is none of TLS.
    pub(super) fn admin_tls_key(&mut self, name: &str, value: &Spanned<DeValue<'_>>, out: &mut FileTls) -> bool {
        out.prefix = ADMIN;
        name.strip_prefix(ADMIN).is_some_and(|plain| self.tls_key(name, plain, value, out))
    }

    /// A key of a listener; false if it is none of TLS.
    pub(super) fn tls_key(&mut self, path: &str, name: &str, value: &Spanned<DeValue<'_>>, out: &mut FileTls) -> bool {
        let file = match name {
            "tls" => {
                out.on = self.flag(path, value).map(|on| self.found(path, value, on));
                return true;
            }
            "tls_client_certificates" => {
                out.client_certificates = self.choice(path, value).map(|wanted| self.found(path, value, wanted));
                return true;
            }
            "tls_min_version" => {
                out.min_version = self.choice(path, value).map(|version| self.found(path, value, version));
                return true;
            }
            "tls_certificate_key_file" => &mut out.certificate_key_file,
            "tls_key_file" => &mut out.key_file,
            "tls_ca_file" => &mut out.ca_file,
            "tls_crl_file" => &mut out.crl_file,
            _ => return false,
        };
        let text = self.text_of(path, value).map(PathBuf::from);
        *file = text.map(|text| self.found(path, value, text));
        true
    }
}

impl FileTls {
    /// Where each key stands that says more than whether there is TLS.
    fn details(&self) -> impl Iterator<Item = Found<()>> {
        let files = [&self.certificate_key_file, &self.key_file, &self.ca_file, &self.crl_file];
        let files = files.into_iter().flatten().map(Found::place_only);
        let wanted = self.client_certificates.iter().map(Found::place_only);
        files.chain(wanted).chain(self.min_version.iter().map(Found::place_only))
    }

    /// True where there is to be TLS.
    pub(super) fn is_on(&self) -> bool {
        self.on.as_ref().is_some_and(|on| on.value)
    }

    /// Where each key stands.
    pub(super) fn places(&self) -> impl Iterator<Item = Found<()>> {
        self.on.iter().map(Found::place_only).chain(self.details())
    }

    /// What is in force for the TCP addresses of a listener. With authorities certificates of clients are required, as by
    /// mongod, unless it was said otherwise.
    pub(super) fn built(&self, listen: &[Address], errors: &mut Vec<ConfigError>) -> Option<ListenerTls> {
        self.built_with(listen, Wanted::Required, errors)
    }

    /// What is in force for the admin port. Probes and metrics need no certificate, so the handshake must not either.
    pub(super) fn built_for_admin(&self, admin: &Address, errors: &mut Vec<ConfigError>) -> Option<ListenerTls> {
        self.built_with(std::slice::from_ref(admin), Wanted::Optional, errors)
    }

    fn built_with(&self, listen: &[Address], usual: Wanted, errors: &mut Vec<ConfigError>) -> Option<ListenerTls> {
        let prefix = self.prefix;
        let Some(on) = &self.on else {
            // Whoever names a certificate thinks that it is used.
            let problem = format!("does nothing without `{prefix}tls = true` beside it");
            errors.extend(self.details().map(|key| key.error(problem.clone())));
            return None;
        };
        if !on.value {
            return None;
        }
        if !listen.iter().any(|address| matches!(address, Address::Tcp { .. })) {
            errors.push(on.error("unix sockets are never encrypted, and there is no other address here".to_owned()));
        }
        let client_certificates = self.client_certificates(usual, errors);
        let Some(certificate) = &self.certificate_key_file else {
            let problem = format!("needs {prefix}tls_certificate_key_file, the PEM file of certificate and key");
            errors.push(on.error(problem));
            return None;
        };
        Some(ListenerTls {
            certificate_key_file: certificate.value.clone(),
            key_file: self.key_file.as_ref().unwrap_or(certificate).value.clone(),
            client_certificates: client_certificates?,
            min_version: self.min_version.as_ref().map_or(TlsVersion::V1_2, |found| found.value),
        })
    }

    /// `usual` holds with authorities where nothing was said.
    fn client_certificates(&self, usual: Wanted, errors: &mut Vec<ConfigError>) -> Option<ClientCertificates> {
        let wanted = self.client_certificates.as_ref();
        match (wanted.map(|found| found.value), &self.ca_file) {
            (None | Some(Wanted::Optional | Wanted::Required), Some(ca_file)) => Some(ClientCertificates::Asked {
                ca_file: ca_file.value.clone(),
                crl_file: self.crl_file.as_ref().map(|found| found.value.clone()),
                required: wanted.map_or(usual, |found| found.value) == Wanted::Required,
            }),
            (Some(Wanted::Optional | Wanted::Required), None) => {
                let problem = "needs tls_ca_file, the authorities that client certificates are to be signed by";
                errors.extend(wanted.map(|found| found.error(problem.to_owned())));
                None
            }
            (Some(Wanted::None), Some(_)) | (None | Some(Wanted::None), None) => {
                for file in [&self.ca_file, &self.crl_file].into_iter().flatten() {
                    errors.push(file.error("does nothing, as no client certificates are asked for".to_owned()));
                }
                Some(ClientCertificates::None)
            }
        }
    }
}

impl FileListener {
    /// Keys that say how to listen, though nothing to listen at.
    pub(super) fn stray(&self) -> impl Iterator<Item = Found<()>> {
        let compressors = self.compressors.iter().map(Found::place_only);
        compressors
            .chain(self.proxy_protocol.iter().map(Found::place_only))
            .chain(self.tls.places())
            .chain(self.first_rule.clone())
    }
}

#[cfg(test)]
mod tests {
    use super::super::system::Text;
    use super::super::{AdminAccess, Config, Sources};
    use super::*;

    fn load(text: &str) -> Result<Vec<Option<ListenerTls>>, Vec<String>> {
        let file = Text { name: "m.toml".to_owned(), text: text.to_owned() };
        match Config::load(&Sources { file: Some(file), ..Sources::default() }) {
            Ok((config, _)) => Ok(config.listeners.into_iter().map(|listener| listener.tls).collect()),
            Err(errors) => Err(errors.0.iter().map(ConfigError::to_string).collect()),
        }
    }

    #[test]
    fn a_certificate_is_enough_and_unix_sockets_stay_plain() {
        let listen = "listen = [\"127.0.0.1:1\", \"unix:/a\"]\n";
        let plain = ListenerTls {
            certificate_key_file: "/c".into(),
            key_file: "/c".into(),
            client_certificates: ClientCertificates::None,
            min_version: TlsVersion::V1_2,
        };
        let told = load(&format!("{listen}tls = true\ntls_certificate_key_file = \"/c\"\n"));
        assert_eq!(told.unwrap(), [Some(plain.clone()), None]);
        assert_eq!(plain.files(), [PathBuf::from("/c")]);
        assert_eq!(load(&format!("{listen}tls = false\ntls_certificate_key_file = \"/c\"\n")).unwrap(), [None, None]);
        assert_eq!(load(listen).unwrap(), [None, None]);
    }

    #[test]
    fn authorities_require_certificates_unless_said_otherwise() {
        let with = |more: &str| {
            let base = "tls = true\ntls_certificate_key_file = \"/c\"\ntls_key_file = \"/k\"\ntls_ca_file = \"/a\"\n";
            load(&format!("[[listener]]\nlisten = \"127.0.0.1:1\"\n{base}{more}")).unwrap().remove(0).unwrap()
        };
        let asked = |required, crl_file| ClientCertificates::Asked { ca_file: "/a".into(), crl_file, required };
        assert_eq!(with("").client_certificates, asked(true, None));
        assert_eq!(with("tls_client_certificates = \"optional\"").client_certificates, asked(false, None));
        let all = with("tls_client_certificates = \"required\"\ntls_crl_file = \"/r\"\ntls_min_version = \"1.3\"");
        assert_eq!(all.client_certificates, asked(true, Some("/r".into())));
        assert_eq!(all.min_version, TlsVersion::V1_3);
        assert_eq!(all.files(), ["/c", "/k", "/a", "/r"].map(PathBuf::from));
    }

    fn admin(text: &str) -> Result<(AdminAccess, Option<ListenerTls>, Vec<String>), Vec<String>> {
        let file = Text { name: "m.toml".to_owned(), text: text.to_owned() };
        match Config::load(&Sources { file: Some(file), ..Sources::default() }) {
            Ok((config, warnings)) => {
                let warnings = warnings.iter().map(ToString::to_string).collect();
                Ok((config.admin_access, config.admin_tls, warnings))
            }
            Err(errors) => Err(errors.0.iter().map(ConfigError::to_string).collect()),
        }
    }

    const ADMIN_TLS: &str = "admin_tls = true\nadmin_tls_certificate_key_file = \"/c\"\n";
    const ADMIN_CA: &str = "admin_tls_ca_file = \"/a\"\n";
    const ADMIN_TOKENS: &str = "admin_token_file = \"/t\"\n";

    #[test]
    fn certificates_open_the_admin_port_as_tokens_do_and_are_not_needed_to_connect() {
        let asked = ClientCertificates::Asked { ca_file: "/a".into(), crl_file: None, required: false };
        let (token, elsewhere) = (|| Some(PathBuf::from("/t")), "admin = \"0.0.0.0:1\"\n");
        for (text, access, certificates) in [
            (ADMIN_TLS.to_owned(), AdminAccess::Loopback, &ClientCertificates::None),
            ([ADMIN_TLS, ADMIN_CA].concat(), AdminAccess::Proven { tokens: None, certificates: true }, &asked),
            (
                [elsewhere, ADMIN_TLS, ADMIN_CA].concat(),
                AdminAccess::Proven { tokens: None, certificates: true },
                &asked,
            ),
            (
                [elsewhere, ADMIN_TLS, ADMIN_CA, ADMIN_TOKENS].concat(),
                AdminAccess::Proven { tokens: token(), certificates: true },
                &asked,
            ),
            (
                [elsewhere, ADMIN_TLS, ADMIN_TOKENS].concat(),
                AdminAccess::Proven { tokens: token(), certificates: false },
                &ClientCertificates::None,
            ),
            (
                [elsewhere, ADMIN_TLS, "admin_probes_only = true\n"].concat(),
                AdminAccess::ProbesOnly,
                &ClientCertificates::None,
            ),
        ] {
            let (found, tls, warnings) = admin(&text).unwrap_or_else(|errors| panic!("{text}: {errors:?}"));
            assert_eq!((found, &tls.unwrap().client_certificates), (access, certificates), "{text}");
            assert_eq!(warnings, [""; 0], "{text}");
        }
        let more = admin(&[ADMIN_TLS, ADMIN_CA, "admin_tls_key_file = \"/k\"\nadmin_tls_crl_file = \"/r\"\n"].concat());
        assert_eq!(more.unwrap().1.unwrap().files(), ["/c", "/k", "/a", "/r"].map(PathBuf::from));
    }

    #[test]
    fn who_sends_tokens_in_the_clear_is_warned() {
        let warned = |text: &str| admin(text).unwrap().2;
        let elsewhere = "admin = \"0.0.0.0:1\"\n";
        let told = warned(&[elsewhere, ADMIN_TOKENS].concat());
        assert!(told.len() == 1 && told[0].starts_with("m.toml:1: admin: tokens travel in the clear"), "{told:?}");
        assert_eq!(warned(ADMIN_TOKENS), [""; 0]);
        assert_eq!(warned(&[elsewhere, "admin_probes_only = true"].concat()), [""; 0]);
    }

    #[test]
    fn mistakes_about_the_admin_port_name_its_keys() {
        for (text, told) in [
            ("admin_tls = true".to_owned(), "m.toml:1: admin_tls: needs admin_tls_certificate_key_file"),
            (ADMIN_CA.to_owned(), "m.toml:1: admin_tls_ca_file: does nothing without `admin_tls = true`"),
            (
                format!("{ADMIN_TLS}admin_tls_crl_file = \"/r\""),
                "m.toml:3: admin_tls_crl_file: does nothing, as no client",
            ),
            (format!("admin = \"unix:/a\"\n{ADMIN_TLS}"), "m.toml:2: admin_tls: unix sockets are never encrypted"),
            (format!("admin = \"0.0.0.0:1\"\n{ADMIN_TLS}"), "m.toml:1: admin: found `0.0.0.0:1`, which other machines"),
            (
                format!("{ADMIN_TLS}{ADMIN_CA}admin_probes_only = true"),
                "m.toml:4: admin_probes_only: found beside admin_tls_ca_file, whose certificates would open nothing",
            ),
            (
                format!("{ADMIN_TLS}admin_tls_client_certificates = \"required\""),
                "m.toml:3: admin_tls_client_certificates: unknown key",
            ),
            (format!("[[cluster]]\n{ADMIN_CA}"), "m.toml:2: cluster[1].admin_tls_ca_file: holds for the whole program"),
        ] {
            let mistakes = admin(&text).unwrap_err();
            assert!(mistakes.len() == 1 && mistakes[0].starts_with(told), "{text}: {mistakes:?}");
        }
    }

    #[test]
    fn what_would_do_nothing_or_cannot_be_is_refused_with_its_place() {
        let listen = "listen = \"127.0.0.1:1\"\n";
        for (text, told) in [
            ("tls = true", "m.toml:2: tls: needs tls_certificate_key_file"),
            (
                "tls_certificate_key_file = \"/c\"",
                "m.toml:2: tls_certificate_key_file: does nothing without `tls = true`",
            ),
            ("tls_min_version = \"1.3\"", "m.toml:2: tls_min_version: does nothing without"),
            (
                "tls_client_certificates = \"optional\"\ntls = true\ntls_certificate_key_file = \"/c\"",
                "m.toml:2: tls_client_certificates: needs tls_ca_file",
            ),
            (
                "tls_crl_file = \"/r\"\ntls = true\ntls_certificate_key_file = \"/c\"",
                "m.toml:2: tls_crl_file: does nothing, as no client certificates",
            ),
            (
                "tls_ca_file = \"/a\"\ntls_client_certificates = \"none\"\ntls = true\ntls_certificate_key_file = \"/c\"",
                "m.toml:2: tls_ca_file: does nothing",
            ),
            ("tls = \"on\"", "m.toml:2: tls: found \"on\", expected true or false"),
            ("tls_min_version = \"1.1\"", "m.toml:2: tls_min_version: found \"1.1\", expected \"1.2\" or \"1.3\""),
        ] {
            let mistakes = load(&format!("{listen}{text}\n")).unwrap_err();
            assert!(mistakes.len() == 1 && mistakes[0].starts_with(told), "{text}: {mistakes:?}");
        }
        let unix = load("listen = \"unix:/a\"\ntls = true\ntls_certificate_key_file = \"/c\"\n").unwrap_err();
        assert!(unix.len() == 1 && unix[0].contains("never encrypted"), "{unix:?}");
        let stray = load("tls = true\n[[listener]]\nlisten = \"127.0.0.1:1\"\n").unwrap_err();
        assert!(stray[0].contains("belongs into the [[listener]] table"), "{stray:?}");
    }
}
