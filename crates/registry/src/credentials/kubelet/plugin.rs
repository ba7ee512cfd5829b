//! One plugin: its question, its answer, and how long the answer holds.

use std::{cmp::Reverse, ffi::OsString, path::PathBuf, process::Command, time::Duration};

use serde::{Deserialize, Serialize};

use super::{config::parse_duration, pattern::Pattern};
use crate::credentials::{
    Credential,
    program::{self, Group, ProgramError},
};

/// Limit for the entries of an answer.
const MANY: usize = 256;

/// A plugin as it is configured.
#[derive(Clone, Debug)]
pub(super) struct Plugin {
    pub(super) name: String,
    pub(super) program: PathBuf,
    pub(super) patterns: Vec<Pattern>,
    /// How long an answer holds that does not say it.
    pub(super) default_cache: Duration,
    pub(super) api_version: ApiVersion,
    pub(super) args: Vec<OsString>,
    pub(super) env: Vec<(OsString, OsString)>,
    pub(super) limit: Duration,
}

/// The version of question and answer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum ApiVersion {
    V1,
    V1Beta1,
    V1Alpha1,
}

impl ApiVersion {
    pub(super) fn parse(text: &str) -> Option<ApiVersion> {
        [ApiVersion::V1, ApiVersion::V1Beta1, ApiVersion::V1Alpha1]
            .into_iter()
            .find(|version| version.text() == text)
    }

    fn text(self) -> &'static str {
        match self {
            ApiVersion::V1 => "credentialprovider.kubelet.k8s.io/v1",
            ApiVersion::V1Beta1 => "credentialprovider.kubelet.k8s.io/v1beta1",
            ApiVersion::V1Alpha1 => "credentialprovider.kubelet.k8s.io/v1alpha1",
        }
    }
}

/// Why a plugin gave no answer. Never contains its output, which may be a secret.
#[derive(Debug, thiserror::Error)]
pub(super) enum PluginError {
    #[error(transparent)]
    Program(#[from] ProgramError),
    #[error("its answer is no CredentialProviderResponse")]
    Form,
    #[error("its answer has another apiVersion than {expected}")]
    ApiVersion { expected: &'static str },
    #[error("its answer has no cacheKeyType of Image, Registry or Global")]
    KeyType,
    #[error("its answer has an invalid cacheDuration")]
    Duration,
    #[error("its answer has more than {MANY} entries")]
    Many,
}

/// What an answer is for.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize)]
pub(super) enum KeyType {
    Image,
    Registry,
    Global,
}

/// A valid answer.
#[derive(Clone, Debug)]
pub(super) struct Answer {
    pub(super) key_type: KeyType,
    /// How long it holds; zero means for this question only.
    pub(super) holds: Duration,
    /// The most specific pattern first.
    entries: Vec<(Pattern, Credential)>,
}

impl Answer {
    /// The credential for an image.
    pub(super) fn credential(&self, image: &str) -> Option<&Credential> {
        let find = |image: &str| {
            let mut entries = self.entries.iter();
            entries.find(|(pattern, _)| pattern.matches(image))
        };
        // Docker Hub has an older name, under which many tools know its credentials.
        let found = find(image).or_else(|| {
            let path = image.strip_prefix("docker.io/")?;
            find(&format!("index.docker.io/{path}"))
        });
        found.map(|(_, credential)| credential)
    }
}

#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
struct Question<'a> {
    kind: &'static str,
    api_version: &'static str,
    image: &'a str,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct Response {
    kind: String,
    api_version: String,
    #[serde(default)]
    cache_key_type: String,
    #[serde(default)]
    cache_duration: Option<String>,
    #[serde(default)]
    auth: Option<std::collections::BTreeMap<String, AuthConfig>>,
}

#[derive(Deserialize, Default)]
#[serde(default)]
struct AuthConfig {
    username: String,
    password: String,
}

impl Plugin {
    /// Whether the plugin is for this image.
    pub(super) fn is_for(&self, image: &str) -> bool {
        self.patterns.iter().any(|pattern| pattern.matches(image))
    }

    /// Runs the plugin.
    pub(super) async fn ask(&self, image: &str) -> Result<Answer, PluginError> {
        let question = Question {
            kind: "CredentialProviderRequest",
            api_version: self.api_version.text(),
            image,
        };
        // A struct of strings is always valid JSON.
        let question = serde_json::to_vec(&question).map_err(|_| PluginError::Form)?;
        let mut command = Command::new(&self.program);
        command.args(&self.args).envs(self.env.iter().cloned());
        let output = program::run(command, Group::Own, &question, self.limit).await?;
        self.answer(output.reveal())
    }

    fn answer(&self, output: &[u8]) -> Result<Answer, PluginError> {
        let response: Response = serde_json::from_slice(output).map_err(|_| PluginError::Form)?;
        if response.kind != "CredentialProviderResponse" {
            return Err(PluginError::Form);
        }
        let expected = self.api_version.text();
        if response.api_version != expected {
            return Err(PluginError::ApiVersion { expected });
        }
        let key_type = match response.cache_key_type.as_str() {
            "Image" => KeyType::Image,
            "Registry" => KeyType::Registry,
            "Global" => KeyType::Global,
            _ => return Err(PluginError::KeyType),
        };
        let holds = match response.cache_duration {
            None => self.default_cache,
            Some(text) => parse_duration(&text).ok_or(PluginError::Duration)?,
        };
        let auth = response.auth.unwrap_or_default();
        if auth.len() > MANY {
            return Err(PluginError::Many);
        }
        let entries = auth.into_iter().rev().filter_map(|(key, auth)| {
            let AuthConfig { username, password } = auth;
            let pattern = Pattern::parse_key(&key).ok()?;
            (!username.is_empty()).then(|| (pattern, Credential::new(&username, &password)))
        });
        let mut entries: Vec<_> = entries.collect();
        // In descending order, as in the kubelet, so that longer paths come first.
        entries.sort_by_cached_key(|(pattern, _)| Reverse(pattern.text()));
        Ok(Answer {
            key_type,
            holds,
            entries,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn plugin() -> Plugin {
        Plugin {
            name: "p".to_owned(),
            program: "/p".into(),
            patterns: Vec::new(),
            default_cache: Duration::from_secs(7),
            api_version: ApiVersion::V1,
            args: Vec::new(),
            env: Vec::new(),
            limit: Duration::from_secs(1),
        }
    }

    fn response(rest: &str) -> String {
        format!(
            r#"{{"kind":"CredentialProviderResponse","apiVersion":"credentialprovider.kubelet.k8s.io/v1"{rest}}}"#
        )
    }

    #[test]
    fn the_most_specific_entry_of_an_answer_wins() {
        let text = response(
            r#","cacheKeyType":"Registry","cacheDuration":"6h0m0s","auth":{
            "*.example.io":{"username":"glob","password":"p"},
            "r.example.io":{"username":"host","password":"p"},
            "r.example.io/team":{"username":"team","password":"p"},
            "https://index.docker.io/v1/":{"username":"hub","password":"p"},
            "none.example.org":{"username":"","password":""}}"#,
        );
        let answer = plugin().answer(text.as_bytes()).expect("an answer");
        assert_eq!(answer.key_type, KeyType::Registry);
        assert_eq!(answer.holds, Duration::from_secs(6 * 3600));
        for (image, user) in [
            ("r.example.io/team/app", Some("team")),
            ("r.example.io/app", Some("host")),
            ("x.example.io/app", Some("glob")),
            ("docker.io/library/app", Some("hub")),
            ("none.example.org/app", None),
            ("other.io/app", None),
        ] {
            let expected = user.map(|user| Credential::new(user, "p"));
            assert_eq!(answer.credential(image), expected.as_ref(), "{image}");
        }
    }

    #[test]
    fn entries_are_compared_without_scheme_and_api_version() {
        for (host, team) in [
            ("r.example.io", "https://r.example.io/team"),
            ("r.example.io/v2/", "r.example.io/team"),
            ("http://r.example.io/v1/", "https://r.example.io/v2/team"),
        ] {
            let text = response(&format!(
                r#","cacheKeyType":"Registry","auth":{{
                "{host}":{{"username":"host","password":"p"}},
                "{team}":{{"username":"team","password":"p"}}}}"#
            ));
            let answer = plugin().answer(text.as_bytes()).expect("an answer");
            let expected = Credential::new("team", "p");
            let found = answer.credential("r.example.io/team/app");
            assert_eq!(found, Some(&expected), "{host} {team}");
        }
    }

    #[test]
    fn an_answer_without_duration_holds_as_long_as_configured() {
        let text = response(r#","cacheKeyType":"Image","auth":null"#);
        let answer = plugin().answer(text.as_bytes()).expect("an answer");
        assert_eq!(answer.holds, Duration::from_secs(7));
        assert_eq!(answer.credential("r.io/app"), None);
    }

    #[test]
    fn an_invalid_answer_is_refused_without_quoting_it() {
        let many: Vec<_> = (0..=MANY).map(|n| format!(r#""h{n}.io":{{}}"#)).collect();
        for text in [
            String::new(),
            "hunter2".to_owned(),
            "{}".to_owned(),
            response(r#","auth":"hunter2""#),
            response(r#","cacheKeyType":"hunter2""#),
            response(""),
            response(r#","cacheKeyType":"Image","cacheDuration":"hunter2""#),
            response(&format!(
                r#","cacheKeyType":"Image","auth":{{{}}}"#,
                many.join(",")
            )),
            response(r#","cacheKeyType":"Image""#).replace("k8s.io/v1", "k8s.io/v1beta1"),
            response(r#","cacheKeyType":"Image""#).replace("Response", "Request"),
        ] {
            let error = plugin().answer(text.as_bytes()).expect_err(&text);
            assert!(!format!("{error:?} {error}").contains("hunter2"), "{error}");
        }
    }
}
