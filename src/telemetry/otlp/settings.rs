//! What is exported and where to, from the configuration's `otlp_endpoint` and OpenTelemetry's environment variables.

use std::path::PathBuf;
use std::time::Duration;

use hyper::Uri;
use hyper::header::{HeaderName, HeaderValue};
use opentelemetry_proto::tonic::resource::v1::Resource;
use percent_encoding::percent_decode_str;

use super::text;

/// OpenTelemetry's defaults.
const TIMEOUT: Duration = Duration::from_secs(10);
const METRIC_INTERVAL: Duration = Duration::from_secs(60);
const SPAN_DELAY: Duration = Duration::from_secs(5);

/// Names a file.
pub(super) const CERTIFICATE: &str = "OTEL_EXPORTER_OTLP_CERTIFICATE";

/// Headers and attributes of the resource, each: as many are taken.
const MAX_PAIRS: usize = 64;

/// What is exported, and where to.
#[derive(Debug, Clone)]
pub struct Settings {
    /// `None` for no spans.
    pub traces: Option<Target>,
    /// `None` for no metrics.
    pub metrics: Option<Target>,
    /// Which spans.
    pub sampler: Sampler,
    /// Between two looks at the metrics.
    pub metric_interval: Duration,
    /// A span waits this long for others.
    pub span_delay: Duration,
    /// Who we are.
    pub resource: Resource,
    /// Certificates of authorities in the place of those that everybody knows.
    pub certificate: Option<PathBuf>,
}

/// Where one kind of data goes.
#[derive(Debug, Clone)]
pub struct Target {
    /// The whole URL.
    pub url: Uri,
    /// Sent along; they may carry a token, so that they are marked as secret.
    pub headers: Vec<(HeaderName, HeaderValue)>,
    /// For one attempt.
    pub timeout: Duration,
}

/// Which spans are recorded.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Sampler {
    /// Whoever has begun the trace decides.
    pub by_parent: bool,
    /// Of all others, from 0 to 1.
    pub ratio: f64,
}

/// A variable, or a key, makes no sense.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{name}: {problem}")]
pub struct SettingsError {
    /// Which.
    pub name: String,
    /// What is wrong, and what would be right.
    pub problem: String,
}

/// Looks a variable up.
type Environment<'a> = &'a dyn Fn(&str) -> Option<String>;

impl Settings {
    /// `None` when nothing is to be exported.
    ///
    /// # Errors
    /// The first [`SettingsError`].
    pub fn read(endpoint: Option<&str>, environment: Environment<'_>) -> Result<Option<Self>, SettingsError> {
        let variable = |name: &str| environment(name).map(|value| value.trim().to_owned()).filter(|it| !it.is_empty());
        let environment: Environment<'_> = &variable;
        if environment("OTEL_SDK_DISABLED").is_some_and(|value| value.eq_ignore_ascii_case("true")) {
            return Ok(None);
        }
        let traces = Target::read(endpoint, "TRACES", "v1/traces", environment)?;
        let metrics = Target::read(endpoint, "METRICS", "v1/metrics", environment)?;
        if traces.is_none() && metrics.is_none() {
            return Ok(None);
        }
        let milliseconds = |name: &str, default: Duration| match environment(name) {
            None => Ok(default),
            Some(value) => match value.parse() {
                Ok(number @ 1..=86_400_000) => Ok(Duration::from_millis(number)),
                _ => Err(wrong(name, &value, "milliseconds from 1 to 86400000")),
            },
        };
        Ok(Some(Self {
            traces,
            metrics,
            sampler: Sampler::read(environment)?,
            metric_interval: milliseconds("OTEL_METRIC_EXPORT_INTERVAL", METRIC_INTERVAL)?,
            span_delay: milliseconds("OTEL_BSP_SCHEDULE_DELAY", SPAN_DELAY)?,
            resource: resource(environment)?,
            certificate: environment(CERTIFICATE).map(PathBuf::from),
        }))
    }
}

impl Target {
    fn read(
        endpoint: Option<&str>,
        signal: &str,
        path: &str,
        environment: Environment<'_>,
    ) -> Result<Option<Self>, SettingsError> {
        let exporter = format!("OTEL_{signal}_EXPORTER");
        match environment(&exporter).as_deref() {
            None | Some("otlp") => {}
            Some("none") => return Ok(None),
            Some(other) => return Err(wrong(&exporter, other, "otlp or none")),
        }
        let of_signal = |what: &str| format!("OTEL_EXPORTER_OTLP_{signal}_{what}");
        let of_all = |what: &str| format!("OTEL_EXPORTER_OTLP_{what}");
        let either = |what: &str| {
            let found = |name: String| environment(&name).map(|value| (name, value));
            found(of_signal(what)).or_else(|| found(of_all(what)))
        };
        let (name, url) = match (environment(&of_signal("ENDPOINT")), endpoint) {
            // As it stands; all others are where the paths begin.
            (Some(url), None) => (of_signal("ENDPOINT"), url),
            (_, Some(base)) => ("otlp_endpoint".to_owned(), format!("{}/{path}", base.trim_end_matches('/'))),
            (None, None) => match environment(&of_all("ENDPOINT")) {
                Some(base) => (of_all("ENDPOINT"), format!("{}/{path}", base.trim_end_matches('/'))),
                None => return Ok(None),
            },
        };
        if let Some((name, protocol)) = either("PROTOCOL").filter(|(_, protocol)| protocol != "http/protobuf") {
            return Err(wrong(&name, &protocol, "http/protobuf"));
        }
        let expected = "http://host:port or https://host:port, with a path or without";
        let url: Uri = url.parse().map_err(|_| wrong(&name, &url, expected))?;
        if !matches!(url.scheme_str(), Some("http" | "https")) || url.host().is_none_or(str::is_empty) {
            return Err(wrong(&name, &url.to_string(), expected));
        }
        if url.authority().is_some_and(|authority| authority.as_str().contains('@')) {
            let problem = "found a user or a password, expected them in OTEL_EXPORTER_OTLP_HEADERS".to_owned();
            return Err(SettingsError { name, problem });
        }
        let mut headers = Vec::new();
        if let Some((name, value)) = either("HEADERS") {
            // Not told what it is: it may be a token.
            let problem = || SettingsError { name: name.clone(), problem: "expected name=value,name=value".to_owned() };
            for (key, value) in pairs(&value).ok_or_else(problem)? {
                let key = key.to_ascii_lowercase().parse().map_err(|_| problem())?;
                let mut value: HeaderValue = value.parse().map_err(|_| problem())?;
                value.set_sensitive(true);
                headers.push((key, value));
            }
        }
        let timeout = match either("TIMEOUT") {
            None => TIMEOUT,
            Some((name, value)) => match value.parse() {
                Ok(number @ 1..=600_000) => Duration::from_millis(number),
                _ => return Err(wrong(&name, &value, "milliseconds from 1 to 600000")),
            },
        };
        Ok(Some(Self { url, headers, timeout }))
    }
}

impl Sampler {
    fn read(environment: Environment<'_>) -> Result<Self, SettingsError> {
        const NAME: &str = "OTEL_TRACES_SAMPLER";
        const ARGUMENT: &str = "OTEL_TRACES_SAMPLER_ARG";
        let name = environment(NAME).unwrap_or_else(|| "parentbased_always_on".to_owned());
        let by_parent = name.starts_with("parentbased_");
        let ratio = match name.trim_start_matches("parentbased_") {
            "always_on" => 1.0,
            "always_off" => 0.0,
            "traceidratio" => {
                let argument = environment(ARGUMENT).unwrap_or_else(|| "1".to_owned());
                let ratio = argument.parse().ok().filter(|ratio| (0.0..=1.0).contains(ratio));
                ratio.ok_or_else(|| wrong(ARGUMENT, &argument, "a number from 0 to 1"))?
            }
            _ => {
                let known = "always_on, always_off, traceidratio, or one of them after parentbased_";
                return Err(wrong(NAME, &name, known));
            }
        };
        Ok(Self { by_parent, ratio })
    }

    /// Whether a span of that trace is recorded; `parent` is what whoever began it has decided.
    pub fn samples(self, trace_id: [u8; 16], parent: Option<bool>) -> bool {
        match parent.filter(|_| self.by_parent) {
            Some(sampled) => sampled,
            // As OpenTelemetry's own: of one trace, all who ask with the same ratio decide the same.
            None => {
                let [.., a, b, c, d, e, f, g, h] = trace_id;
                let place = u64::from_be_bytes([a, b, c, d, e, f, g, h]) >> 1;
                // Rounded to a double, the last places are as large as the bound.
                self.ratio >= 1.0 || (place as f64) < self.ratio * (1_u64 << 63) as f64
            }
        }
    }
}

fn resource(environment: Environment<'_>) -> Result<Resource, SettingsError> {
    const NAME: &str = "OTEL_RESOURCE_ATTRIBUTES";
    let said = environment(NAME).unwrap_or_default();
    let said = if said.is_empty() { Some(Vec::new()) } else { pairs(&said) };
    let mut said = said.ok_or_else(|| wrong(NAME, "what is no list", "name=value,name=value"))?;
    if let Some(service) = environment("OTEL_SERVICE_NAME") {
        said.retain(|(key, _)| key != "service.name");
        said.push(("service.name".to_owned(), service));
    }
    for (key, value) in [("service.name", env!("CARGO_PKG_NAME")), ("service.version", env!("CARGO_PKG_VERSION"))] {
        if !said.iter().any(|(known, _)| known == key) {
            said.push((key.to_owned(), value.to_owned()));
        }
    }
    let attributes = said.into_iter().map(|(key, value)| text(&key, value)).collect();
    Ok(Resource { attributes, ..Resource::default() })
}

/// `a=b,c=d`, with the values percent-encoded.
fn pairs(list: &str) -> Option<Vec<(String, String)>> {
    let pairs: Option<Vec<_>> = list
        .split(',')
        .filter(|pair| !pair.trim().is_empty())
        .map(|pair| {
            let (key, value) = pair.split_once('=')?;
            let value = percent_decode_str(value.trim()).decode_utf8().ok()?;
            Some((key.trim().to_owned(), value.into_owned())).filter(|(key, _)| !key.is_empty())
        })
        .collect();
    pairs.filter(|pairs| pairs.len() <= MAX_PAIRS)
}

fn wrong(name: &str, found: &str, expected: &str) -> SettingsError {
    let found = crate::telemetry::logs::redact(found).into_owned();
    SettingsError { name: name.to_owned(), problem: format!("found {found:?}, expected {expected}") }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use super::*;

    fn read(endpoint: Option<&str>, variables: &[(&str, &str)]) -> Result<Option<Settings>, SettingsError> {
        let variables: BTreeMap<_, _> = variables.iter().copied().collect();
        Settings::read(endpoint, &|name| variables.get(name).map(|value| (*value).to_owned()))
    }

    fn urls(settings: &Settings) -> [Option<String>; 2] {
        [&settings.traces, &settings.metrics].map(|target| target.as_ref().map(|target| target.url.to_string()))
    }

    #[test]
    fn the_endpoint_is_where_paths_begin_unless_it_is_of_one_signal() {
        assert!(read(None, &[]).unwrap().is_none());
        let both = ["http://c:4318/v1/traces", "http://c:4318/v1/metrics"].map(|url| Some(url.to_owned()));
        for settings in [
            read(Some("http://c:4318"), &[]),
            read(Some("http://c:4318/"), &[("OTEL_EXPORTER_OTLP_TRACES_ENDPOINT", "http://other/")]),
            read(None, &[("OTEL_EXPORTER_OTLP_ENDPOINT", "http://c:4318")]),
        ] {
            assert_eq!(urls(&settings.unwrap().unwrap()), both);
        }
        let one = read(None, &[("OTEL_EXPORTER_OTLP_TRACES_ENDPOINT", "https://t/x")]).unwrap().unwrap();
        assert_eq!(urls(&one), [Some("https://t/x".to_owned()), None]);
        let none = [("OTEL_METRICS_EXPORTER", "none"), ("OTEL_EXPORTER_OTLP_HEADERS", "Authorization=Bearer%20geheim")];
        let traces = read(Some("http://c:4318"), &none).unwrap().unwrap();
        assert!(traces.metrics.is_none() && !format!("{traces:?}").contains("geheim"));
        let headers = traces.traces.unwrap().headers;
        assert_eq!((headers[0].0.as_str(), headers[0].1.to_str().unwrap()), ("authorization", "Bearer geheim"));
        assert!(read(Some("http://c"), &[("OTEL_SDK_DISABLED", "true")]).unwrap().is_none());
    }

    #[test]
    fn mistakes_are_told_by_name() {
        for (name, value) in [
            ("OTEL_TRACES_SAMPLER", "sometimes"),
            ("OTEL_METRIC_EXPORT_INTERVAL", "0"),
            ("OTEL_EXPORTER_OTLP_PROTOCOL", "grpc"),
            ("OTEL_TRACES_EXPORTER", "zipkin"),
            ("OTEL_EXPORTER_OTLP_TIMEOUT", "soon"),
            ("OTEL_EXPORTER_OTLP_HEADERS", "geheim"),
            ("OTEL_RESOURCE_ATTRIBUTES", "a"),
        ] {
            let error = read(Some("http://c"), &[(name, value)]).unwrap_err();
            assert_eq!(error.name, name);
            assert!(!error.to_string().contains("geheim"), "{error}");
        }
        for endpoint in ["c:4318", "ftp://c", "http://", "not a url", "http://u:geheim@c", "http://geheim@c:4318/x"] {
            let error = read(Some(endpoint), &[]).unwrap_err();
            assert!(!error.to_string().contains("geheim"), "{error}");
            assert_eq!(read(Some(endpoint), &[]).unwrap_err().name, "otlp_endpoint", "{endpoint}");
        }
        let ratio = [("OTEL_TRACES_SAMPLER", "traceidratio"), ("OTEL_TRACES_SAMPLER_ARG", "2")];
        assert_eq!(read(Some("http://c"), &ratio).unwrap_err().name, "OTEL_TRACES_SAMPLER_ARG");
    }

    #[test]
    fn parents_decide_and_of_the_others_a_share_is_taken() {
        let sampler = |variables: &[(&str, &str)]| read(Some("http://c"), variables).unwrap().unwrap().sampler;
        let every = sampler(&[]);
        let (low, high) = ([0; 16], [0xFF; 16]);
        assert!(every.samples(high, None) && every.samples(low, Some(true)) && !every.samples(low, Some(false)));
        let half = [("OTEL_TRACES_SAMPLER", "parentbased_traceidratio"), ("OTEL_TRACES_SAMPLER_ARG", "0.5")];
        let half = sampler(&half);
        assert!(half.samples(low, None) && !half.samples(high, None) && half.samples(high, Some(true)));
        let alone = sampler(&[("OTEL_TRACES_SAMPLER", "always_off")]);
        assert!(!alone.samples(low, Some(true)) && !alone.samples(low, None));
        assert!(sampler(&[("OTEL_TRACES_SAMPLER", "always_on")]).samples(high, Some(false)));
    }

    #[test]
    fn the_resource_has_a_name_and_what_was_said() {
        let said = [("OTEL_RESOURCE_ATTRIBUTES", "host.name=a%20b,service.name=x"), ("OTEL_SERVICE_NAME", "shop")];
        let settings = read(Some("http://c"), &said).unwrap().unwrap();
        for expected in [text("host.name", "a b"), text("service.name", "shop")] {
            assert!(settings.resource.attributes.contains(&expected), "{:?}", settings.resource);
        }
        assert_eq!(settings.resource.attributes.iter().filter(|it| it.key == "service.name").count(), 1);
    }
}
