//! One token exchange: sends a credential to the token endpoint of a challenge and returns a token.
//!
//! With a credential, an OAuth2 POST comes first (`password`, or `refresh_token` for an identity
//! token). If the endpoint does not support it (400, 401, 404, 405, or a redirect that a POST
//! cannot follow), a GET with Basic authentication follows for passwords. Without a credential, an
//! anonymous GET is sent. Redirects are followed; secrets go only to the realm's own host.

use std::{sync::Arc, time::Duration};

use bytes::Bytes;
use reqwest::{
    Method, Response, Url,
    header::{CONTENT_TYPE, HeaderMap, HeaderValue},
};
use serde::Deserialize;

use super::{
    answer::read_capped,
    auth::{Scope, Token, authorize, basic, secret_header},
    endpoint::{MAX_REDIRECTS, redirect_target},
    refusal::refused,
    retry::{Attempts, RetryPolicy},
    transport::Transport,
};
use crate::{
    credentials::{Credential, Secret},
    fetch::FetchError,
    url::RedactedUrl,
};

/// Client ID for token endpoints, some of which accept only known clients. Same value as the Go
/// snapshotter.
const CLIENT_ID: &str = "containerd-client";
/// Size limit in bytes for the response of a token endpoint.
const MAX_ANSWER: u64 = 4 << 20;
/// Timeout for an exchange with all its retries.
const PATIENCE: Duration = Duration::from_secs(60);

/// The inputs of an exchange.
#[derive(Debug)]
pub(crate) struct Exchange {
    /// With the TLS settings of the registry that named the realm.
    pub(crate) transport: Arc<Transport>,
    pub(crate) realm: Url,
    pub(crate) service: String,
    pub(crate) scope: Scope,
    pub(crate) credential: Option<Credential>,
    /// The registry and repository that need the token, for messages.
    pub(crate) host: String,
    pub(crate) repository: String,
}

impl Exchange {
    /// The same exchange with another credential.
    pub(crate) fn with(&self, credential: Option<Credential>) -> Exchange {
        Exchange {
            transport: Arc::clone(&self.transport),
            realm: self.realm.clone(),
            service: self.service.clone(),
            scope: self.scope.clone(),
            credential,
            host: self.host.clone(),
            repository: self.repository.clone(),
        }
    }
}

#[derive(Deserialize, Default)]
#[serde(default)]
struct TokenAnswer {
    token: String,
    access_token: String,
    expires_in: Option<f64>,
}

impl Exchange {
    /// Requests a token; retries according to the policy if the endpoint is overloaded.
    pub(crate) async fn run(&self, retry: RetryPolicy) -> Result<Token, FetchError> {
        let mut attempts = Attempts::within(retry, PATIENCE);
        let tries = async {
            loop {
                let error = match self.once().await {
                    Ok(token) => return Ok(token),
                    Err(error) => error,
                };
                if !error.is_worth_repeating() {
                    return Err(error);
                }
                attempts.wait(error).await?;
            }
        };
        match tokio::time::timeout(PATIENCE, tries).await {
            Ok(result) => result.map_err(|error| self.about_token(error)),
            // A timeout is not a refusal: a caller that can wait longer may retry.
            Err(_) => Err(self.about_token(FetchError::Silent {
                url: RedactedUrl::from(&self.realm),
                idle: PATIENCE,
            })),
        }
    }

    async fn once(&self) -> Result<Token, FetchError> {
        let Some(credential) = &self.credential else {
            let answer = self.get(None).await?;
            return self.token_of(answer).await;
        };
        let answer = self.post(credential).await?;
        match (answer.status().as_u16(), credential) {
            (300..=399 | 400 | 401 | 404 | 405, Credential::Password { user, password }) => {
                drop(answer);
                let login = basic(user, password);
                let answer = self.get(Some(&login)).await?;
                self.token_of(answer).await
            }
            (400 | 404 | 405, Credential::Identity(_) | Credential::Bearer(_)) => {
                Err(self.refusal("its token endpoint does not take identity tokens"))
            }
            _ => self.token_of(answer).await,
        }
    }

    async fn get(&self, login: Option<&Secret>) -> Result<Response, FetchError> {
        let mut url = self.realm.clone();
        {
            let mut query = url.query_pairs_mut();
            if !self.service.is_empty() {
                query.append_pair("service", &self.service);
            }
            for scope in self.scope.0.split(' ') {
                query.append_pair("scope", scope);
            }
        }
        let unusable = || self.refusal("our credential has characters that no header may have");
        let login = login.map(|login| secret_header(login.reveal()).ok_or_else(unusable));
        self.ask(url, login.transpose()?, None).await
    }

    /// Sends a GET, or a POST with a form that contains a secret. A redirected form is only sent to
    /// the realm's own host, and only for 307 and 308.
    async fn ask(
        &self,
        mut url: Url,
        login: Option<HeaderValue>,
        form: Option<Bytes>,
    ) -> Result<Response, FetchError> {
        for _ in 0..=MAX_REDIRECTS {
            let mut headers = HeaderMap::new();
            if let Some(login) = login.clone().filter(|_| self.may_see_secrets(&url)) {
                authorize(&mut headers, login);
            }
            let (method, body) = match form.clone() {
                None => (Method::GET, None),
                Some(form) => {
                    let form_type = "application/x-www-form-urlencoded; charset=utf-8";
                    headers.insert(CONTENT_TYPE, HeaderValue::from_static(form_type));
                    (Method::POST, Some(form.into()))
                }
            };
            let sent = self
                .transport
                .send(method, url.clone(), headers, body, None);
            let answer = sent.await?;
            let status = answer.status().as_u16();
            let target = match redirect_target(&url, &answer) {
                Ok(target) if matches!(status, 301 | 302 | 303 | 307 | 308) => target,
                _ => return Ok(answer),
            };
            let keeps_tls = url.scheme() == "http" || target.scheme() == "https";
            let keeps_form = form.is_none() || (status >= 307 && self.may_see_secrets(&target));
            if !keeps_tls || !keeps_form {
                return Ok(answer);
            }
            url = target;
        }
        Err(FetchError::Redirects {
            url: RedactedUrl::from(&self.realm),
            limit: MAX_REDIRECTS,
        })
    }

    /// Whether the URL is on the realm's host, or on the same host with TLS if the realm has none.
    fn may_see_secrets(&self, url: &Url) -> bool {
        let gains_tls = self.realm.scheme() == "http" && url.scheme() == "https";
        url.origin() == self.realm.origin() || (gains_tls && url.host() == self.realm.host())
    }

    async fn post(&self, credential: &Credential) -> Result<Response, FetchError> {
        // A temporary URL serves as the form encoder.
        let mut form = self.realm.clone();
        form.set_query(None);
        {
            let mut pairs = form.query_pairs_mut();
            pairs.append_pair("client_id", CLIENT_ID);
            pairs.append_pair("service", &self.service);
            pairs.append_pair("scope", &self.scope.0);
            match credential {
                Credential::Password { user, password } => {
                    pairs.append_pair("grant_type", "password");
                    pairs.append_pair("username", user);
                    pairs.append_pair("password", password.reveal());
                }
                Credential::Identity(token) | Credential::Bearer(token) => {
                    pairs.append_pair("grant_type", "refresh_token");
                    pairs.append_pair("refresh_token", token.reveal());
                }
            }
        }
        let form = Bytes::from(form.query().unwrap_or_default().to_owned());
        self.ask(self.realm.clone(), None, Some(form)).await
    }

    async fn token_of(&self, answer: Response) -> Result<Token, FetchError> {
        let url = RedactedUrl::from(&self.realm);
        match answer.status().as_u16() {
            200..=299 => {}
            401 | 403 => {
                return Err(self.refusal(match self.credential {
                    Some(_) => "its token endpoint refused our credentials",
                    None => "its token endpoint refused us without credentials",
                }));
            }
            _ => return Err(refused(url, answer).await),
        }
        let body = read_capped(url, answer, MAX_ANSWER).await?;
        let answer: TokenAnswer = serde_json::from_slice(&body).unwrap_or_default();
        let value = [answer.token, answer.access_token]
            .into_iter()
            .find(|v| !v.is_empty());
        let Some(value) = value else {
            return Err(self.refusal("its token endpoint gave no token"));
        };
        let lifetime = answer.expires_in.filter(|seconds| *seconds > 0.0);
        let lifetime = lifetime.and_then(|seconds| Duration::try_from_secs_f64(seconds).ok());
        Ok(Token::new(Secret::new(value), lifetime))
    }

    fn refusal(&self, reason: &str) -> FetchError {
        FetchError::Unauthorized {
            host: self.host.clone(),
            repository: self.repository.clone(),
            reason: reason.to_owned(),
        }
    }

    fn about_token(&self, error: FetchError) -> FetchError {
        match error {
            refusal @ FetchError::Unauthorized { .. } => refusal,
            other => FetchError::Token {
                host: self.host.clone(),
                repository: self.repository.clone(),
                source: Box::new(other),
            },
        }
    }

    /// The error for an exchange whose task was stopped.
    pub(crate) fn abandoned(&self) -> FetchError {
        self.refusal("the token exchange was stopped")
    }
}
