//! Access control of the test registry: open, password, or expiring tokens.

use std::time::{Duration, Instant};

use base64::{Engine, engine::general_purpose::STANDARD};
use hyper::{Method, StatusCode, header};

use super::{
    serve::{Answer, Head, text},
    state::Shared,
};

/// How clients authenticate to the test registry.
#[derive(Clone, Debug, Default)]
pub enum Access {
    /// No authentication.
    #[default]
    Open,
    /// `Authorization: Basic` with every request.
    Basic {
        /// The user name.
        user: String,
        /// The password.
        password: String,
    },
    /// `Authorization: Bearer` with a token from the registry's own token endpoint.
    Token {
        /// User name and password for tokens. If absent, everyone gets tokens for pulling.
        login: Option<(String, String)>,
        /// How long a token is valid, as stated in the response that issues it.
        lifetime: Duration,
        /// Whether the endpoint supports OAuth2 POST requests. If not, it responds to them with
        /// 404.
        oauth: bool,
    },
}

/// A token that was issued.
#[derive(Clone, Debug)]
pub(super) struct Token {
    value: String,
    scopes: Vec<String>,
    until: Instant,
}

/// Returns the response that rejects a request, or `None` if the request is allowed.
pub(super) fn refusal(shared: &Shared, head: &Head, repository: Option<&str>) -> Option<Answer> {
    let action = match head.method {
        Method::GET | Method::HEAD => "pull",
        Method::DELETE => "delete",
        _ => "push",
    };
    let challenge = match &shared.setup.access {
        Access::Open => return None,
        Access::Basic { user, password } => {
            let password = current(shared, password);
            if head.authorization.as_deref() == Some(basic(user, &password).as_str()) {
                return None;
            }
            "Basic realm=\"test registry\"".to_owned()
        }
        Access::Token { .. } => {
            let presented = bearer(head);
            let good = presented.is_some_and(|_| {
                repository.map_or_else(
                    || granted(shared, head, |_| true),
                    |name| may(shared, head, name, action),
                )
            });
            let foreign = shared.setup.foreign_scope;
            let has_foreign = foreign.is_none_or(|foreign| {
                granted(shared, head, |scopes| {
                    scopes.iter().any(|scope| scope == foreign)
                })
            });
            if good && has_foreign {
                return None;
            }
            let scope = match repository {
                Some(_) if foreign.is_some() => {
                    format!(",scope=\"{}\"", foreign.unwrap_or_default())
                }
                Some(name) if action == "push" => {
                    format!(",scope=\"repository:{name}:pull,push\"")
                }
                Some(name) => format!(",scope=\"repository:{name}:{action}\""),
                None => String::new(),
            };
            let error = if presented.is_some() {
                ",error=\"invalid_token\""
            } else {
                ""
            };
            format!(
                "Bearer realm=\"{}{}\",service=\"test-registry\"{scope}{error}",
                shared.base_url(),
                if presented.is_some() && shared.setup.closed_realm {
                    CLOSED
                } else {
                    realm(shared)
                }
            )
        }
    };
    let mut answer = text(
        StatusCode::UNAUTHORIZED,
        r#"{"errors":[{"code":"UNAUTHORIZED","message":"authentication required"}]}"#,
    );
    let challenge = challenge.parse().expect("a challenge is a header value");
    answer
        .headers_mut()
        .insert(header::WWW_AUTHENTICATE, challenge);
    Some(answer)
}

fn current(shared: &Shared, password: &str) -> String {
    let replaced = shared.inner().password.clone();
    replaced.unwrap_or_else(|| password.to_owned())
}

/// The path of the token endpoint that refuses everyone.
const CLOSED: &str = "/closed/token";

/// The path of the token endpoint in challenges.
fn realm(shared: &Shared) -> &'static str {
    if shared.inner().tokens_moved {
        "/moved/token"
    } else {
        "/token"
    }
}

fn bearer(head: &Head) -> Option<&str> {
    head.authorization.as_deref()?.strip_prefix("Bearer ")
}

/// Whether the request has a valid token with scopes that satisfy `scopes`.
fn granted(shared: &Shared, head: &Head, scopes: impl Fn(&[String]) -> bool) -> bool {
    let now = Instant::now();
    let presented = bearer(head);
    let inner = shared.inner();
    let mut tokens = inner.tokens.iter();
    tokens.any(|token| {
        Some(token.value.as_str()) == presented && token.until > now && scopes(&token.scopes)
    })
}

/// Whether the request may perform an action on a repository. Always true if no tokens are
/// required.
pub(super) fn may(shared: &Shared, head: &Head, repository: &str, action: &str) -> bool {
    !matches!(shared.setup.access, Access::Token { .. })
        || granted(shared, head, |scopes| {
            scopes.iter().any(|scope| allows(scope, repository, action))
        })
}

fn allows(scope: &str, repository: &str, action: &str) -> bool {
    scope
        .strip_prefix("repository:")
        .and_then(|rest| rest.rsplit_once(':'))
        .is_some_and(|(name, actions)| {
            name == repository && actions.split(',').any(|granted| granted == action)
        })
}

/// The token endpoint: GET with Basic or without credentials, and POST as in OAuth2.
pub(super) fn token(shared: &Shared, head: &Head, body: &[u8]) -> Answer {
    let Access::Token {
        login,
        lifetime,
        oauth,
    } = &shared.setup.access
    else {
        return text(StatusCode::NOT_FOUND, "no tokens here");
    };
    if head.path == CLOSED {
        return text(StatusCode::UNAUTHORIZED, "no tokens for anyone");
    }
    if head.path != realm(shared) {
        return text(StatusCode::GONE, "no tokens here any more");
    }
    let login = login
        .as_ref()
        .map(|(user, password)| (user, current(shared, password)));
    let (scopes, granted) = if head.method == Method::POST {
        if !oauth {
            return text(StatusCode::NOT_FOUND, "no OAuth2 here");
        }
        let form = pairs(std::str::from_utf8(body).unwrap_or_default());
        let value = |key: &str| form.iter().find(|(k, _)| k == key).map(|(_, v)| v.as_str());
        let granted = login
            .as_ref()
            .is_some_and(|(user, password)| match value("grant_type") {
                Some("password") => {
                    value("username") == Some(user) && value("password") == Some(password.as_str())
                }
                Some("refresh_token") => value("refresh_token") == Some(password.as_str()),
                _ => false,
            });
        (values(&form, "scope"), granted)
    } else {
        let granted = match (&login, &head.authorization) {
            (Some((user, password)), Some(given)) => *given == basic(user, password),
            (Some(_), None) => false,
            (None, _) => true,
        };
        (values(&pairs(&head.query), "scope"), granted)
    };
    if !granted {
        return text(
            StatusCode::UNAUTHORIZED,
            r#"{"details":"incorrect username or password"}"#,
        );
    }
    let value = {
        let mut inner = shared.inner();
        inner.tokens_issued += 1;
        let value = format!("token-{}-do-not-print", inner.tokens_issued);
        let until = Instant::now() + *lifetime;
        inner.tokens.push(Token {
            value: value.clone(),
            scopes,
            until,
        });
        value
    };
    let field = if head.method == Method::POST {
        "access_token"
    } else {
        "token"
    };
    let announced = match shared.setup.unannounced {
        true => String::new(),
        false => format!(r#","expires_in":{}"#, lifetime.as_secs().max(1)),
    };
    text(
        StatusCode::OK,
        &format!(r#"{{"{field}":"{value}"{announced}}}"#),
    )
}

fn basic(user: &str, password: &str) -> String {
    format!("Basic {}", STANDARD.encode(format!("{user}:{password}")))
}

fn values(pairs: &[(String, String)], key: &str) -> Vec<String> {
    let of_key = pairs.iter().filter(|(k, _)| k == key);
    of_key
        .flat_map(|(_, v)| v.split(' ').map(str::to_owned))
        .collect()
}

/// Decodes the pairs of a query or form.
pub(super) fn pairs(text: &str) -> Vec<(String, String)> {
    let url = format!("http://x/?{text}");
    match reqwest::Url::parse(&url) {
        Ok(url) => url.query_pairs().into_owned().collect(),
        Err(_) => Vec::new(),
    }
}
