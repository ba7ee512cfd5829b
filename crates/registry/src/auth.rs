//! Tokens and passwords, sent only where a registry requests them.
//!
//! No credential is sent before a registry has sent a challenge. The challenge, the credential for
//! the host and the scope result in an [`Access`], which all requests for the same image at the
//! same host share. Bearer tokens are shared by (realm, service, scope, credential). They are
//! renewed shortly before they expire and whenever one is rejected.

use std::{
    collections::HashMap,
    fmt,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
};

use base64::{Engine, engine::general_purpose::STANDARD};
use reqwest::{
    Url,
    header::{HeaderMap, HeaderValue},
};

use super::{challenge::Challenge, exchange::Exchange, retry::RetryPolicy, transport::Transport};
use crate::{
    credentials::{Credential, Credentials, Secret},
    fetch::FetchError,
};
use soci_oci::reference::ImageRef;

mod scope;
mod token;

pub(crate) use scope::Scope;
pub(crate) use token::Token;
use token::{Cell, Tokens};

/// Above this number of tokens or hosts, unused ones are dropped.
const MANY_TOKENS: usize = 512;

pub(crate) struct Auth {
    credentials: Arc<dyn Credentials>,
    tokens: Tokens,
    accesses: Mutex<HashMap<(String, String, Scope), Arc<Access>>>,
}

impl fmt::Debug for Auth {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Auth")
            .field("credentials", &self.credentials)
            .finish_non_exhaustive()
    }
}

impl Auth {
    pub(crate) fn new(credentials: Arc<dyn Credentials>, retry: RetryPolicy) -> Auth {
        Auth {
            credentials,
            tokens: Tokens::new(retry),
            accesses: Mutex::default(),
        }
    }

    /// The authentication state for `image` and `scope` at `host`, shared by all requests.
    pub(crate) fn access(&self, host: &str, image: &ImageRef, scope: &Scope) -> Arc<Access> {
        let access = Access::new(host.to_owned(), image.clone(), scope.clone());
        self.shared(host.to_owned(), access)
    }

    /// The same for the host of a redirect's target. It gets anonymous tokens and no credentials.
    pub(crate) fn stranger(&self, url: &Url, image: &ImageRef, scope: &Scope) -> Arc<Access> {
        let access = Access {
            is_stranger: true,
            ..Access::new(url.authority().to_owned(), image.clone(), scope.clone())
        };
        self.shared(url.origin().ascii_serialization(), access)
    }

    fn shared(&self, place: String, access: Access) -> Arc<Access> {
        let key = (place, access.image.to_string(), access.scope.clone());
        let mut accesses = self.accesses.lock().unwrap_or_else(PoisonError::into_inner);
        if accesses.len() >= MANY_TOKENS {
            accesses.retain(|_, access| Arc::strong_count(access) > 1);
        }
        Arc::clone(accesses.entry(key).or_insert_with(|| Arc::new(access)))
    }
}

/// The authentication state for one host, image and scope.
pub(crate) struct Access {
    host: String,
    image: ImageRef,
    scope: Scope,
    /// Whether the host must not get our credentials.
    is_stranger: bool,
    known: Mutex<Option<Known>>,
}

#[derive(Clone)]
enum Known {
    /// The header with a password.
    Basic(Secret),
    /// The header with a token from the source of credentials.
    Token(Secret),
    /// Tokens from a token endpoint.
    Bearer(Arc<Cell>),
}

impl fmt::Debug for Access {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Access")
            .field("host", &self.host)
            .field("scope", &self.scope)
            .finish_non_exhaustive()
    }
}

impl Access {
    fn new(host: String, image: ImageRef, scope: Scope) -> Access {
        Access {
            host,
            image,
            scope,
            is_stranger: false,
            known: Mutex::default(),
        }
    }

    fn known(&self) -> MutexGuard<'_, Option<Known>> {
        self.known.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Value for `Authorization`; `None` if the host has not sent a challenge yet.
    pub(crate) async fn header(&self, auth: &Auth) -> Result<Option<HeaderValue>, FetchError> {
        let known = self.known().clone();
        match known {
            None => Ok(None),
            Some(Known::Basic(value) | Known::Token(value)) => {
                self.usable(secret_header(value.reveal()))
            }
            Some(Known::Bearer(cell)) => {
                let token = auth.tokens.get(&cell, None).await?;
                self.usable(secret_header(&format!("Bearer {}", token.value.reveal())))
            }
        }
    }

    /// Asks the source of credentials again after a rejection without a challenge. Returns whether
    /// it has another credential than before, which later requests use. A credential that does not
    /// fit the previous challenge waits for the next one. `plain`: the registry uses no TLS.
    pub(crate) async fn look_again(
        &self,
        auth: &Auth,
        plain: bool,
        sent: Option<&HeaderValue>,
    ) -> bool {
        let known = self.known().clone();
        let (Some(known), false, Some(_)) = (known, self.is_stranger, sent) else {
            return false;
        };
        self.was_refused(auth);
        let credential = auth.credentials.get(&self.host, &self.image).await;
        let now = match (&known, credential) {
            (Known::Basic(_), Some(Credential::Password { user, password })) => {
                Known::Basic(basic(&user, &password))
            }
            (Known::Token(_) | Known::Bearer(_), Some(Credential::Bearer(token))) => {
                Known::Token(bearer_value(&token))
            }
            (Known::Bearer(cell), Some(credential)) => {
                match self.with_credential(&cell.exchange, Some(credential), plain) {
                    Ok(exchange) => Known::Bearer(auth.tokens.cell(exchange)),
                    Err(error) => {
                        tracing::debug!(%error, "new credentials are not sent");
                        return false;
                    }
                }
            }
            (Known::Basic(_) | Known::Token(_), Some(_)) | (_, None) => return false,
        };
        let is_new = match (&known, &now) {
            (Known::Basic(old), Known::Basic(new)) | (Known::Token(old), Known::Token(new)) => {
                old.reveal() != new.reveal()
            }
            (Known::Bearer(old), Known::Bearer(new)) => !Arc::ptr_eq(old, new),
            _ => true,
        };
        if is_new {
            *self.known() = Some(now);
        }
        is_new
    }

    fn usable(&self, value: Option<HeaderValue>) -> Result<Option<HeaderValue>, FetchError> {
        let unusable = || self.refusal("our credential has characters that no header may have");
        value.map(Some).ok_or_else(unusable)
    }

    /// Called after a rejected request: obtains what `challenges` require, or without challenges
    /// what the previous ones required. `plain`: the registry uses no TLS. `sent`: the rejected
    /// header. `no_token`: the last exchange's failure, returned if the challenges lead to that
    /// exchange.
    pub(crate) async fn renew(
        &self,
        auth: &Auth,
        transport: &Arc<Transport>,
        challenges: &[Challenge],
        plain: bool,
        sent: Option<&HeaderValue>,
        no_token: Option<FetchError>,
    ) -> Result<(), FetchError> {
        let refused = sent.and_then(|value| value.to_str().ok());
        let refused = refused.and_then(|value| value.strip_prefix("Bearer "));
        if let (Some(refused), Some(Known::Bearer(cell))) = (refused, self.known().as_ref()) {
            cell.forget(refused);
        }
        let by_scheme = |scheme: &str| challenges.iter().find(|c| c.scheme == scheme);
        // An expired token is no reason to doubt the credential, but a refused exchange is.
        let is_refused = match &no_token {
            Some(error) => matches!(error, FetchError::Unauthorized { .. }),
            None => refused.is_none() && sent.is_some(),
        };
        if is_refused {
            self.was_refused(auth);
        }
        let known = if let Some(bearer) = by_scheme("bearer") {
            let credential = self.credential(auth).await;
            self.bearer(auth, transport, bearer, plain, credential)?
        } else if by_scheme("basic").is_some() {
            match auth.credentials.get(&self.host, &self.image).await {
                Some(Credential::Password { user, password }) => {
                    Known::Basic(basic(&user, &password))
                }
                Some(Credential::Identity(_) | Credential::Bearer(_)) => {
                    return Err(self.refusal("it wants a password, and we have a token"));
                }
                None => return Err(self.refusal("it wants a password, and we have none")),
            }
        } else {
            let known = self.known().clone();
            known.ok_or_else(|| self.refusal("it does not say what it wants to see"))?
        };
        let Known::Bearer(cell) = &known else {
            *self.known() = Some(known);
            return Ok(());
        };
        if let (Some(error), Some(Known::Bearer(before))) = (no_token, self.known().as_ref())
            && Arc::ptr_eq(before, cell)
        {
            return Err(error);
        }
        match auth.tokens.get(cell, refused).await {
            Ok(_) => *self.known() = Some(known),
            Err(error @ FetchError::Unauthorized { .. }) => {
                *self.known() = Some(self.second(auth, cell, plain).await.ok_or(error)?);
            }
            Err(error) => return Err(error),
        }
        Ok(())
    }

    /// After a refused exchange: one with the credential that the source has now, if it is another.
    async fn second(&self, auth: &Auth, before: &Arc<Cell>, plain: bool) -> Option<Known> {
        let old = before.exchange.credential.as_ref()?;
        self.was_refused(auth);
        let new = self.credential(auth).await.filter(|new| new != old)?;
        if let Credential::Bearer(token) = &new {
            return Some(Known::Token(bearer_value(token)));
        }
        let exchange = self.with_credential(&before.exchange, Some(new), plain);
        let cell = auth.tokens.cell(exchange.ok()?);
        auth.tokens.get(&cell, None).await.ok()?;
        Some(Known::Bearer(cell))
    }

    /// Tells the source of credentials that access is denied.
    pub(crate) fn was_refused(&self, auth: &Auth) {
        if !self.is_stranger {
            auth.credentials.refused(&self.host, &self.image);
        }
    }

    async fn credential(&self, auth: &Auth) -> Option<Credential> {
        match self.is_stranger {
            true => None,
            false => auth.credentials.get(&self.host, &self.image).await,
        }
    }

    /// What a Bearer challenge asks for: the token that the source has, or an exchange.
    fn bearer(
        &self,
        auth: &Auth,
        transport: &Arc<Transport>,
        challenge: &Challenge,
        plain: bool,
        credential: Option<Credential>,
    ) -> Result<Known, FetchError> {
        match credential {
            Some(Credential::Bearer(token)) => Ok(Known::Token(bearer_value(&token))),
            credential => {
                let exchange = self.exchange(transport, challenge, plain, credential)?;
                Ok(Known::Bearer(auth.tokens.cell(exchange)))
            }
        }
    }

    fn exchange(
        &self,
        transport: &Arc<Transport>,
        bearer: &Challenge,
        plain: bool,
        credential: Option<Credential>,
    ) -> Result<Exchange, FetchError> {
        let realm = bearer
            .param("realm")
            .and_then(|realm| Url::parse(realm).ok());
        let realm = realm.filter(|realm| matches!(realm.scheme(), "http" | "https"));
        let Some(realm) = realm else {
            return Err(self.refusal("it names no address to get a token from"));
        };
        let anonymous = Exchange {
            transport: Arc::clone(transport),
            realm,
            service: bearer.param("service").unwrap_or_default().to_owned(),
            scope: self.scope.with(bearer.param("scope").unwrap_or_default()),
            credential: None,
            host: self.host.clone(),
            repository: self.image.repository().to_owned(),
        };
        self.with_credential(&anonymous, credential, plain)
    }

    /// The same exchange with this credential, which is not sent to a realm without TLS unless the
    /// registry has none either.
    fn with_credential(
        &self,
        exchange: &Exchange,
        credential: Option<Credential>,
        plain: bool,
    ) -> Result<Exchange, FetchError> {
        if credential.is_some() && exchange.realm.scheme() == "http" && !plain {
            return Err(self.refusal("it wants our credentials sent without TLS"));
        }
        Ok(exchange.with(credential))
    }

    /// The error for denied access, with its reason.
    pub(crate) fn refusal(&self, reason: &str) -> FetchError {
        FetchError::Unauthorized {
            host: self.host.clone(),
            repository: self.image.repository().to_owned(),
            reason: reason.to_owned(),
        }
    }
}

/// Value of a Basic `Authorization` header.
pub(super) fn basic(user: &str, password: &Secret) -> Secret {
    Secret::new(format!(
        "Basic {}",
        STANDARD.encode(format!("{user}:{}", password.reveal()))
    ))
}

fn bearer_value(token: &Secret) -> Secret {
    Secret::new(format!("Bearer {}", token.reveal()))
}

/// A header value that `Debug` does not print; `None` if it contains invalid characters.
pub(super) fn secret_header(value: &str) -> Option<HeaderValue> {
    let mut value = HeaderValue::from_str(value).ok()?;
    value.set_sensitive(true);
    Some(value)
}

/// Adds `Authorization` to the headers of a request.
pub(super) fn authorize(headers: &mut HeaderMap, value: HeaderValue) {
    headers.insert(reqwest::header::AUTHORIZATION, value);
}

#[cfg(test)]
mod tests;
