//! The kubelet's `CredentialProviderConfig`: which plugin is for which images.
//!
//! A file is YAML or JSON. A provider that cannot be used is left out and reported; the others stay
//! valid. Fields that this program does not know are ignored.

use std::{collections::BTreeSet, ffi::OsString, path::Path, time::Duration};

use serde::Deserialize;

use super::{
    pattern::Pattern,
    plugin::{ApiVersion, Plugin},
};

/// Size limit in bytes for a file.
pub(super) const MAX_FILE: u64 = 1 << 20;
/// Limit for providers of all files, and for patterns, arguments and variables of each.
const MANY: usize = 256;
const KIND: &str = "CredentialProviderConfig";
const API_VERSIONS: [&str; 3] = [
    "kubelet.config.k8s.io/v1",
    "kubelet.config.k8s.io/v1beta1",
    "kubelet.config.k8s.io/v1alpha1",
];

/// A file that cannot be used at all. Does not quote the file, which may contain secrets.
#[derive(Debug, thiserror::Error)]
pub(super) enum ConfigError {
    #[error("not YAML or JSON of the expected form (line {line})")]
    Syntax { line: u64 },
    #[error("kind {kind:?} with apiVersion {api_version:?} is not supported")]
    Kind { kind: String, api_version: String },
}

/// Why a provider is left out.
#[derive(Debug, thiserror::Error)]
pub(super) enum ProviderError {
    #[error("its name is no name of a file")]
    Name,
    #[error("an earlier provider has the same name")]
    Duplicate,
    #[error("apiVersion {0:?} is not supported")]
    ApiVersion(String),
    #[error("it has no matchImages")]
    NoImages,
    #[error(transparent)]
    Pattern(#[from] super::pattern::BadPattern),
    #[error("defaultCacheDuration {0:?} is not a duration like \"12h\" or \"1h30m\"")]
    Duration(String),
    #[error("it needs the service account of a pod, which only the kubelet has")]
    ServiceAccount,
    #[error("it has more than {MANY} patterns, arguments or variables")]
    Many,
    #[error("the configuration has more than {MANY} providers")]
    ManyProviders,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct File {
    #[serde(default)]
    api_version: String,
    #[serde(default)]
    kind: String,
    #[serde(default)]
    providers: Option<Vec<Provider>>,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase", default)]
#[derive(Default)]
struct Provider {
    name: String,
    match_images: Option<Vec<String>>,
    default_cache_duration: Option<String>,
    api_version: String,
    args: Option<Vec<String>>,
    env: Option<Vec<Variable>>,
    token_attributes: Option<TokenAttributes>,
}

#[derive(Deserialize, Default)]
#[serde(default)]
struct Variable {
    name: String,
    value: String,
}

#[derive(Deserialize, Default)]
#[serde(rename_all = "camelCase", default)]
struct TokenAttributes {
    require_service_account: Option<bool>,
}

/// Where plugins are, and how long they may take.
#[derive(Clone, Debug)]
pub(super) struct Place<'a> {
    pub(super) folder: &'a Path,
    pub(super) limit: Duration,
}

/// The providers of a file: each can be used, or has a name and the reason why not.
pub(super) type Providers = Vec<Result<Plugin, (String, ProviderError)>>;

/// Reads a file's providers, in its order. `names` are those of earlier files.
pub(super) fn providers(
    text: &[u8],
    place: &Place<'_>,
    names: &mut BTreeSet<String>,
) -> Result<Providers, ConfigError> {
    let file = parse(text)?;
    if file.kind != KIND || !API_VERSIONS.contains(&file.api_version.as_str()) {
        return Err(ConfigError::Kind {
            kind: shortened(&file.kind),
            api_version: shortened(&file.api_version),
        });
    }
    let providers = file.providers.unwrap_or_default().into_iter();
    let plugins = providers.map(|provider| {
        let name = shortened(&provider.name);
        plugin(provider, place, names).map_err(|error| (name, error))
    });
    Ok(plugins.collect())
}

fn parse(text: &[u8]) -> Result<File, ConfigError> {
    // JSON may be indented with tabs, which YAML refuses.
    if text.trim_ascii_start().starts_with(b"{") {
        return serde_json::from_slice(text).map_err(|error| ConfigError::Syntax {
            line: error.line() as u64,
        });
    }
    serde_saphyr::from_slice(text).map_err(|error| ConfigError::Syntax {
        line: error.location().map_or(0, |place| place.line()),
    })
}

fn plugin(
    provider: Provider,
    place: &Place<'_>,
    names: &mut BTreeSet<String>,
) -> Result<Plugin, ProviderError> {
    let Provider {
        name,
        match_images,
        default_cache_duration,
        api_version,
        args,
        env,
        token_attributes,
    } = provider;
    let is_odd = |c: char| c == '/' || c.is_whitespace() || c.is_control();
    if matches!(name.as_str(), "" | "." | "..") || name.contains(is_odd) {
        return Err(ProviderError::Name);
    }
    if names.len() >= MANY {
        return Err(ProviderError::ManyProviders);
    }
    let (match_images, args) = (match_images.unwrap_or_default(), args.unwrap_or_default());
    let env = env.unwrap_or_default();
    if match_images.len().max(args.len()).max(env.len()) > MANY {
        return Err(ProviderError::Many);
    }
    let api_version = ApiVersion::parse(&api_version)
        .ok_or_else(|| ProviderError::ApiVersion(shortened(&api_version)))?;
    if match_images.is_empty() {
        return Err(ProviderError::NoImages);
    }
    let patterns: Result<Vec<_>, _> = match_images.iter().map(|it| Pattern::parse(it)).collect();
    let patterns = patterns?;
    let duration = default_cache_duration.unwrap_or_default();
    let default_cache =
        parse_duration(&duration).ok_or_else(|| ProviderError::Duration(shortened(&duration)))?;
    let required = token_attributes.and_then(|it| it.require_service_account);
    if required == Some(true) {
        return Err(ProviderError::ServiceAccount);
    }
    if !names.insert(name.clone()) {
        return Err(ProviderError::Duplicate);
    }
    let env = env.into_iter().map(|variable| {
        let Variable { name, value } = variable;
        (OsString::from(name), OsString::from(value))
    });
    Ok(Plugin {
        program: place.folder.join(&name),
        name,
        patterns,
        default_cache,
        api_version,
        args: args.into_iter().map(OsString::from).collect(),
        env: env.collect(),
        limit: place.limit,
    })
}

/// The start of a text for a message.
fn shortened(text: &str) -> String {
    text.chars().take(100).collect()
}

/// Parses a duration as Go writes it, for example `1h30m`, `90s` or `1.5h`. Negative ones are
/// refused.
pub(super) fn parse_duration(text: &str) -> Option<Duration> {
    if text == "0" {
        return Some(Duration::ZERO);
    }
    let mut rest = text.strip_prefix('+').unwrap_or(text);
    let mut seconds = 0.0;
    if rest.is_empty() {
        return None;
    }
    while !rest.is_empty() {
        let end = rest.find(|c: char| !c.is_ascii_digit() && c != '.')?;
        let (number, tail) = rest.split_at(end);
        let (unit, tail) = match tail.find(|c: char| c.is_ascii_digit() || c == '.') {
            Some(at) => tail.split_at(at),
            None => (tail, ""),
        };
        let factor = match unit {
            "ns" => 1e-9,
            "us" | "µs" | "μs" => 1e-6,
            "ms" => 1e-3,
            "s" => 1.0,
            "m" => 60.0,
            "h" => 3600.0,
            _ => return None,
        };
        seconds += number.parse::<f64>().ok()? * factor;
        rest = tail;
    }
    Duration::try_from_secs_f64(seconds).ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(text: &str) -> Result<Providers, ConfigError> {
        let place = Place {
            folder: Path::new("/plugins"),
            limit: Duration::from_secs(60),
        };
        providers(text.as_bytes(), &place, &mut BTreeSet::new())
    }

    const YAML: &str = r#"
apiVersion: kubelet.config.k8s.io/v1
kind: CredentialProviderConfig
providers:
  - name: ecr-credential-provider
    matchImages:
      - "*.dkr.ecr.*.amazonaws.com"
      - public.ecr.aws
    defaultCacheDuration: "12h"
    apiVersion: credentialprovider.kubelet.k8s.io/v1
    args: ["get-credentials", "-v"]
    env:
      - name: AWS_PROFILE
        value: node
    aFieldOfTomorrow: {a: 1}
"#;

    #[test]
    fn a_file_of_the_kubelet_is_read() {
        let plugins = read(YAML).expect("a configuration");
        let plugin = plugins[0].as_ref().expect("a provider");
        assert_eq!(plugin.name, "ecr-credential-provider");
        assert_eq!(
            plugin.program,
            Path::new("/plugins/ecr-credential-provider")
        );
        assert_eq!(plugin.default_cache, Duration::from_secs(12 * 3600));
        assert_eq!(plugin.args, ["get-credentials", "-v"]);
        assert_eq!(plugin.env, [("AWS_PROFILE".into(), "node".into())]);
        assert_eq!(plugin.patterns.len(), 2);
    }

    #[test]
    fn json_with_tabs_and_every_api_version_are_read() {
        for version in ["v1", "v1beta1", "v1alpha1"] {
            let text = format!(
                "{{\n\t\"kind\": \"{KIND}\", \"apiVersion\": \"kubelet.config.k8s.io/{version}\",\n\t\"providers\": [{{\n\t\t\"name\": \"p\", \"matchImages\": [\"r.io\"], \"defaultCacheDuration\": \"0s\",\n\t\t\"apiVersion\": \"credentialprovider.kubelet.k8s.io/{version}\"}}]}}"
            );
            let plugins = read(&text).expect("a configuration");
            assert!(plugins[0].is_ok(), "{version}: {:?}", plugins[0]);
        }
    }

    #[test]
    fn an_invalid_provider_affects_only_itself() {
        let good = "{name: good, matchImages: [r.io], defaultCacheDuration: 1h, apiVersion: credentialprovider.kubelet.k8s.io/v1}";
        for (bad, reason) in [
            ("name: ../sh", "no name of a file"),
            ("name: ''", "no name of a file"),
            ("name: good", "same name"),
            ("apiVersion: credentialprovider.kubelet.k8s.io/v9", "v9"),
            ("matchImages: []", "no matchImages"),
            ("matchImages: ['https://r.io']", "no pattern"),
            ("defaultCacheDuration: soon", "soon"),
            ("defaultCacheDuration: -1h", "-1h"),
            (
                "tokenAttributes: {requireServiceAccount: true}",
                "service account",
            ),
        ] {
            let key = bad.split(':').next().unwrap_or_default();
            let other: Vec<_> = [
                "name: bad",
                "matchImages: [r.io]",
                "defaultCacheDuration: 1h",
                "apiVersion: credentialprovider.kubelet.k8s.io/v1",
            ]
            .into_iter()
            .filter(|line| !line.starts_with(&format!("{key}:")))
            .chain([bad])
            .collect();
            let text = format!(
                "kind: {KIND}\napiVersion: kubelet.config.k8s.io/v1\nproviders: [{good}, {{{}}}]",
                other.join(", ")
            );
            let plugins = read(&text).unwrap_or_else(|error| panic!("{bad}: {error}"));
            assert!(plugins[0].is_ok(), "{bad}");
            let (_, error) = plugins[1].as_ref().expect_err(bad);
            assert!(error.to_string().contains(reason), "{bad}: {error}");
        }
    }

    #[test]
    fn a_file_of_another_kind_is_refused_without_quoting_it() {
        for text in [
            "kind: Pod\napiVersion: v1",
            "kind: CredentialProviderConfig\napiVersion: kubelet.config.k8s.io/v9",
            "",
        ] {
            assert!(read(text).is_err(), "{text}");
        }
        for text in [
            "providers: hunter2",
            "{\"providers\": \"hunter2\"}",
            "hunter2: [",
        ] {
            let error = read(text).expect_err(text);
            assert!(!format!("{error:?} {error}").contains("hunter2"), "{error}");
        }
    }

    #[test]
    fn durations_are_those_of_go() {
        for (text, seconds) in [
            ("12h", Some(43_200.0)),
            ("6h0m0s", Some(21_600.0)),
            ("1h30m", Some(5400.0)),
            ("1.5h", Some(5400.0)),
            ("250ms", Some(0.25)),
            ("0", Some(0.0)),
            ("0s", Some(0.0)),
            ("", None),
            ("12", None),
            ("h", None),
            ("-1h", None),
            ("1d", None),
            ("1e9h", None),
            ("99999999999999999999h", None),
        ] {
            let expected = seconds.map(Duration::from_secs_f64);
            assert_eq!(parse_duration(text), expected, "{text}");
        }
    }
}
