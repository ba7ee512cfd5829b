//! The messages of CRI that are read, with the field numbers of `runtime/v1/api.proto`.
//!
//! Fields that are not needed are left out. Messages with secrets cannot be printed.

use std::fmt;

use soci_registry::credentials::PullLogin;

#[derive(Clone, PartialEq, prost::Message)]
pub(super) struct ImageSpec {
    #[prost(string, tag = "1")]
    pub(super) image: String,
}

#[derive(Clone, PartialEq, prost::Message)]
#[prost(skip_debug)]
pub(super) struct AuthConfig {
    #[prost(string, tag = "1")]
    pub(super) username: String,
    #[prost(string, tag = "2")]
    pub(super) password: String,
    #[prost(string, tag = "3")]
    pub(super) auth: String,
    #[prost(string, tag = "4")]
    pub(super) server_address: String,
    #[prost(string, tag = "5")]
    pub(super) identity_token: String,
    #[prost(string, tag = "6")]
    pub(super) registry_token: String,
}

impl fmt::Debug for AuthConfig {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("AuthConfig(redacted)")
    }
}

impl AuthConfig {
    pub(super) fn into_login(self) -> PullLogin {
        let Self {
            username,
            password,
            auth,
            server_address,
            identity_token,
            registry_token,
        } = self;
        PullLogin {
            username,
            password,
            auth,
            server_address,
            identity_token,
            registry_token,
        }
    }
}

#[derive(Clone, PartialEq, prost::Message)]
pub(super) struct PullImageRequest {
    #[prost(message, optional, tag = "1")]
    pub(super) image: Option<ImageSpec>,
    #[prost(message, optional, tag = "2")]
    pub(super) auth: Option<AuthConfig>,
}

#[derive(Clone, PartialEq, prost::Message)]
pub(super) struct PullImageResponse {
    #[prost(string, tag = "1")]
    pub(super) image_ref: String,
}

#[derive(Clone, PartialEq, prost::Message)]
pub(super) struct RemoveImageRequest {
    #[prost(message, optional, tag = "1")]
    pub(super) image: Option<ImageSpec>,
}
