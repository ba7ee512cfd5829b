//! Requests to a host that the registry redirects to.
//!
//! Such a host never gets credentials. If it is itself a registry that requires a token, the token
//! is requested anonymously, and only that host gets it.

use reqwest::{Response, StatusCode};

use super::{Call, Endpoint, authorized::challenges_of};
use crate::{auth::Scope, fetch::FetchError};

impl Endpoint {
    /// Sends a request to another host, if necessary once more with a token.
    pub(super) async fn send_elsewhere(
        &self,
        call: &Call,
        scope: &Scope,
    ) -> Result<Response, FetchError> {
        let access = self.auth.stranger(&call.url, &self.image, scope);
        // Without a token, the response names the current token endpoint.
        let sent = access.header(&self.auth).await.unwrap_or_default();
        let answer = self.send_once(call, sent.as_ref()).await?;
        let challenges = challenges_of(&answer);
        let wants_token = challenges.iter().any(|it| it.scheme == "bearer");
        if answer.status() != StatusCode::UNAUTHORIZED || !wants_token {
            return Ok(answer);
        }
        drop(answer);
        // An anonymous request has nothing that needs TLS.
        let plain = true;
        access
            .renew(
                &self.auth,
                &self.transport,
                &challenges,
                plain,
                sent.as_ref(),
                None,
            )
            .await?;
        let sent = access.header(&self.auth).await?;
        self.send_once(call, sent.as_ref()).await
    }
}
