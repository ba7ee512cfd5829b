//! Requests with credentials: sends them, and renews them once if they are rejected.

use reqwest::{Response, StatusCode, Url, header::WWW_AUTHENTICATE};

use super::{Call, Endpoint, MAX_REFUSAL};
use crate::{
    auth::{Access, Scope},
    challenge::{self, Challenge},
    fetch::{FetchError, is_transient_status},
    refusal::{refused, refused_text},
    url::RedactedUrl,
};

/// ECR's exact message for an expired token.
const ECR_EXPIRED: &str = "Your authorization token has expired. Reauthenticate and try again.";

impl Endpoint {
    /// Sends a request, with credentials if it goes to this host.
    pub(super) async fn send_authorized(
        &self,
        call: &Call,
        scope: &Scope,
    ) -> Result<Response, FetchError> {
        if !self.is_ours(&call.url) {
            return self.send_elsewhere(call, scope).await;
        }
        let access = self.auth.access(&self.host.authority, &self.image, scope);
        let answer = self.send_as(call, &access).await;
        if answer.as_ref().is_err_and(wants_login) {
            access.was_refused(&self.auth);
        }
        answer
    }

    /// Sends a request to this host.
    async fn send_as(&self, call: &Call, access: &Access) -> Result<Response, FetchError> {
        // If the token endpoint failed, send the request without a token: the challenge in the
        // response names the current token endpoint.
        let (sent, no_token) = match access.header(&self.auth).await {
            Ok(sent) => (sent, None),
            Err(error) => (None, Some(error)),
        };
        let mut answer = self.send_once(call, sent.as_ref()).await;
        if let Some(error @ FetchError::Token { .. }) = &no_token {
            answer = no_more(error, &call.url, answer).await;
        }
        let refusal = match self.judge(answer?, &call.url).await {
            Verdict::Answered(answer) => return Ok(answer),
            Verdict::Refused(refusal) => refusal,
        };
        // Without a challenge, only a token can be renewed, or a credential that has changed. The
        // same password would be rejected again.
        let had_token = sent
            .as_ref()
            .is_some_and(|sent| sent.as_bytes().starts_with(b"Bearer "));
        if refusal.challenges.is_empty()
            && !access
                .look_again(&self.auth, self.is_plain(), sent.as_ref())
                .await
            && !had_token
        {
            return Err(match refusal.status.as_u16() {
                _ if no_token.is_some() => no_token.unwrap_or(refusal.error),
                401 => access.refusal("it does not say what it wants to see"),
                _ => refusal.error,
            });
        }
        tracing::info!(
            host = self.host.authority,
            "Received status code: {}. Authorizing...",
            refusal.status
        );
        let (transport, challenges) = (&self.transport, &refusal.challenges);
        let (plain, sent) = (self.is_plain(), sent.as_ref());
        match access
            .renew(&self.auth, transport, challenges, plain, sent, no_token)
            .await
        {
            Ok(()) => self.send_renewed(call, access).await,
            Err(error @ FetchError::Unauthorized { .. }) if had_token => {
                self.send_anew(call, access, &refusal, error).await
            }
            Err(error) => Err(error),
        }
    }

    /// Called if the realm that was named for a rejected token gives none: sends the request
    /// without a token. The challenge in the response may name another realm.
    async fn send_anew(
        &self,
        call: &Call,
        access: &Access,
        before: &Refusal,
        error: FetchError,
    ) -> Result<Response, FetchError> {
        let answer = self.send_once(call, None).await?;
        let refusal = match self.judge(answer, &call.url).await {
            Verdict::Answered(answer) => return Ok(answer),
            Verdict::Refused(refusal) => refusal,
        };
        if refusal.realm().is_none() || refusal.realm() == before.realm() {
            return Err(error);
        }
        let (transport, challenges) = (&self.transport, &refusal.challenges);
        access
            .renew(
                &self.auth,
                transport,
                challenges,
                self.is_plain(),
                None,
                None,
            )
            .await?;
        self.send_renewed(call, access).await
    }

    /// Sends a request with credentials that were just renewed.
    async fn send_renewed(&self, call: &Call, access: &Access) -> Result<Response, FetchError> {
        let sent = access.header(&self.auth).await?;
        match self
            .judge(self.send_once(call, sent.as_ref()).await?, &call.url)
            .await
        {
            Verdict::Answered(answer) => Ok(answer),
            Verdict::Refused(refusal) => Err(match refusal.status.as_u16() {
                401 => access.refusal("what we presented was refused"),
                _ => refusal.error,
            }),
        }
    }

    /// Detects missing or expired credentials: 401, and 403, which some registries return for
    /// expired tokens.
    async fn judge(&self, answer: Response, url: &Url) -> Verdict {
        let status = answer.status();
        if !matches!(status, StatusCode::UNAUTHORIZED | StatusCode::FORBIDDEN) {
            return Verdict::Answered(answer);
        }
        let mut challenges = challenges_of(&answer);
        let url = RedactedUrl::from(url);
        let error = refused_text(url, answer, MAX_REFUSAL).await;
        if status == StatusCode::FORBIDDEN {
            let ecr =
                matches!(&error, FetchError::Status { detail, .. } if detail.contains(ECR_EXPIRED));
            if !ecr {
                challenges.clear();
            } else if challenges.is_empty() {
                challenges.push(Challenge::new("basic", &[("service", "ecr.amazonaws.com")]));
            }
        }
        Verdict::Refused(Refusal {
            status,
            challenges,
            error,
        })
    }
}

fn wants_login(error: &FetchError) -> bool {
    match error {
        FetchError::Unauthorized { .. } => true,
        FetchError::Status { status, .. } => matches!(status, 401 | 403),
        _ => false,
    }
}

/// The challenges in a response.
pub(super) fn challenges_of(answer: &Response) -> Vec<Challenge> {
    let values = answer.headers().get_all(WWW_AUTHENTICATE);
    let texts = values.iter().filter_map(|value| value.to_str().ok());
    texts.flat_map(challenge::parse).collect()
}

/// Prevents retries of a request without a token after a token exchange has used up its retries.
/// Each retry would start with another exchange.
async fn no_more(
    no_token: &FetchError,
    url: &Url,
    answer: Result<Response, FetchError>,
) -> Result<Response, FetchError> {
    let last = match answer {
        Ok(answer) if is_transient_status(answer.status().as_u16()) => {
            refused(RedactedUrl::from(url), answer).await
        }
        Err(error) if error.is_worth_repeating() => error,
        answer => return answer,
    };
    Err(FetchError::GaveUp {
        attempts: no_token.attempts() + 1,
        last: Box::new(last),
    })
}

enum Verdict {
    Answered(Response),
    Refused(Refusal),
}

struct Refusal {
    status: StatusCode,
    challenges: Vec<Challenge>,
    error: FetchError,
}

impl Refusal {
    /// The first realm of the challenges.
    fn realm(&self) -> Option<&str> {
        let mut realms = self.challenges.iter().filter_map(|it| it.param("realm"));
        realms.next()
    }
}
