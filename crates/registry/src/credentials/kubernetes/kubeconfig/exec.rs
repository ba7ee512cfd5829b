//! Programs that a kubeconfig names, which give a token or a client certificate.

use std::{
    path::{Path, PathBuf},
    process::Command,
    time::Duration,
};

use base64::{Engine as _, engine::general_purpose::STANDARD};
use serde::Deserialize;

use super::{Access, Cluster, KubeconfigError};
use crate::credentials::program::{self, Group};

/// Timeout for a program.
const PATIENCE: Duration = Duration::from_secs(60);
/// The extension of a cluster that is meant for exec commands.
const EXEC_EXTENSION: &str = "client.authentication.k8s.io/exec";

#[derive(Deserialize, Default)]
#[serde(default, rename_all = "camelCase")]
pub(super) struct Exec {
    api_version: String,
    command: String,
    args: Option<Vec<String>>,
    env: Option<Vec<Variable>>,
    pub(super) provide_cluster_info: bool,
}

#[derive(Deserialize, Default)]
#[serde(default)]
struct Variable {
    name: String,
    value: String,
}

#[derive(Deserialize, Default)]
#[serde(default)]
struct ExecCredential {
    status: ExecStatus,
}

#[derive(Deserialize, Default)]
#[serde(default, rename_all = "camelCase")]
pub(super) struct ExecStatus {
    pub(super) token: String,
    pub(super) client_certificate_data: String,
    pub(super) client_key_data: String,
}

impl Cluster {
    /// What the exec command learns about the cluster. Files become data.
    pub(super) fn info(&self, access: &Access) -> serde_json::Value {
        let mut info = serde_json::json!({"server": self.server});
        if let Some(name) = &access.tls_name {
            info["tls-server-name"] = name.as_str().into();
        }
        if self.insecure_skip_tls_verify {
            info["insecure-skip-tls-verify"] = true.into();
        }
        if let Some(authorities) = &access.authorities {
            info["certificate-authority-data"] = STANDARD.encode(authorities).into();
        }
        if !self.proxy_url.is_empty() {
            info["proxy-url"] = self.proxy_url.as_str().into();
        }
        if self.disable_compression {
            info["disable-compression"] = true.into();
        }
        let mut extensions = self.extensions.iter().flatten();
        let own = extensions.find(|it| it.name == EXEC_EXTENSION);
        if let Some(config) = own.and_then(|it| it.extension.clone()) {
            info["config"] = config;
        }
        info
    }
}

impl Exec {
    /// Runs the program, as `aws eks get-token`.
    pub(super) async fn ask(
        &self,
        folder: &Path,
        cluster: Option<serde_json::Value>,
    ) -> Result<ExecStatus, KubeconfigError> {
        // A path is relative to the file, and a name is looked up in PATH.
        let program = match self.command.contains('/') {
            true => folder.join(&self.command),
            false => PathBuf::from(&self.command),
        };
        let mut command = Command::new(program);
        command.args(self.args.as_deref().unwrap_or_default());
        for Variable { name, value } in self.env.iter().flatten() {
            command.env(name, value);
        }
        let mut info = serde_json::json!({
            "kind": "ExecCredential",
            "apiVersion": self.api_version,
            "spec": {"interactive": false},
        });
        if let Some(cluster) = cluster {
            info["spec"]["cluster"] = cluster;
        }
        command.env("KUBERNETES_EXEC_INFO", info.to_string());
        let output = program::run(command, Group::Own, b"", PATIENCE).await?;
        let answer: Result<ExecCredential, _> = serde_json::from_slice(output.reveal());
        let status = answer.map_err(|_| KubeconfigError::Answer)?.status;
        match status.token.is_empty() && status.client_certificate_data.is_empty() {
            true => Err(KubeconfigError::Answer),
            false => Ok(status),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::credentials::kubernetes::kubeconfig::{
        Login,
        tests::{config, of},
    };

    #[tokio::test]
    async fn an_exec_command_learns_about_the_cluster_if_it_wants_to() {
        let script = r#"'printf "{\"status\":{\"token\":\"%s\"}}" "$(printf %s "$KUBERNETES_EXEC_INFO" | base64 -w0)"'"#;
        let told = async |flag: &str| {
            let text = config(&format!(
                "{{exec: {{apiVersion: client.authentication.k8s.io/v1, {flag} command: /bin/sh, args: [-c, {script}]}}}}"
            ));
            let extension = "tls-server-name: kubernetes, extensions: [{name: client.authentication.k8s.io/exec, extension: {audience: us}}], certificate";
            let text = text.replacen("certificate", extension, 1);
            let access = of(&text).await.unwrap_or_else(|error| panic!("{error}"));
            let Login::Token(token) = access.login else {
                panic!("no token");
            };
            let text = STANDARD.decode(token.reveal()).expect("base64");
            let info: serde_json::Value = serde_json::from_slice(&text).expect("JSON");
            info["spec"]["cluster"].clone()
        };
        assert!(told("").await.is_null());
        assert_eq!(
            told("provideClusterInfo: true,").await,
            serde_json::json!({
                "server": "https://api.example:6443",
                "tls-server-name": "kubernetes",
                "certificate-authority-data": "aGk=",
                "config": {"audience": "us"},
            })
        );
    }
}
