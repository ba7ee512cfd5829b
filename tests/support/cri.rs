//! Pods, through containerd's CRI like a kubelet.
//!
//! A [`Pod`] uses the network of the node, so no CNI is needed, unless it has a user namespace. It
//! ends on drop, with its containers.

mod messages;

use std::path::Path;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::Duration;

use anyhow::{Context as _, Result};
use tokio::runtime::Runtime;
use tonic::client::Grpc;
use tonic::codegen::http::uri::PathAndQuery;
use tonic::transport::{Channel, Endpoint};
use tonic_prost::ProstCodec;

use crate::process::Finished;
use messages::*;

/// Time limit of a call; longer means that it hangs.
const LIMIT: Duration = Duration::from_secs(120);

/// A client of containerd's CRI.
#[derive(Debug)]
pub struct Cri {
    runtime: Runtime,
    channel: Channel,
}

impl Cri {
    pub fn connect(socket: &Path) -> Result<Self> {
        let runtime = tokio::runtime::Builder::new_current_thread()
            .enable_all()
            .build()?;
        let endpoint = Endpoint::from_shared(format!("unix://{}", socket.display()))?;
        let channel = runtime
            .block_on(endpoint.connect())
            .with_context(|| format!("connect to {}", socket.display()))?;
        Ok(Self { runtime, channel })
    }

    /// Whether the image service knows this image.
    pub fn has(&self, reference: &str) -> Result<bool> {
        let request = ImageStatusRequest {
            image: Some(ImageSpec::of(reference)),
        };
        let method = "/runtime.v1.ImageService/ImageStatus";
        let answer: ImageStatusResponse = self.call(method, request)?;
        Ok(answer.image.is_some())
    }

    /// Pulls an image with the snapshotter that the CRI is configured with.
    pub fn pull(&self, reference: &str) -> Result<()> {
        self.pull_with(reference, None)
    }

    /// Pulls an image with a user name and a password.
    pub fn pull_as(&self, reference: &str, (username, password): (&str, &str)) -> Result<()> {
        let (username, password) = (username.to_owned(), password.to_owned());
        self.pull_with(reference, Some(AuthConfig { username, password }))
    }

    fn pull_with(&self, reference: &str, auth: Option<AuthConfig>) -> Result<()> {
        let request = PullImageRequest {
            image: Some(ImageSpec::of(reference)),
            auth,
        };
        let method = "/runtime.v1.ImageService/PullImage";
        self.call::<_, PullImageResponse>(method, request).map(drop)
    }

    /// Starts the sandbox of a pod, after pulling its image if it is missing.
    pub fn run_pod(&self, name: &str) -> Result<Pod<'_>> {
        self.run_pod_in(name, NamespaceOption::of_the_node())
    }

    /// The same for a pod with a user namespace (`hostUsers: false`): IDs from 0 on are IDs of the
    /// node from `first` on. Needs [`crate::network`].
    pub fn run_pod_mapped(&self, name: &str, first: u32) -> Result<Pod<'_>> {
        self.run_pod_in(name, NamespaceOption::mapped(first))
    }

    fn run_pod_in(&self, name: &str, namespaces: NamespaceOption) -> Result<Pod<'_>> {
        static NEXT: AtomicU32 = AtomicU32::new(0);
        let number = NEXT.fetch_add(1, Ordering::Relaxed);
        let config = PodSandboxConfig {
            metadata: Some(PodSandboxMetadata {
                name: name.to_owned(),
                uid: format!("{name}-{}-{number}", std::process::id()),
                namespace: "default".to_owned(),
            }),
            linux: Some(LinuxPodSandboxConfig {
                security_context: Some(SecurityContext {
                    namespace_options: Some(namespaces.clone()),
                }),
            }),
        };
        let request = RunPodSandboxRequest {
            config: Some(config.clone()),
        };
        let method = "/runtime.v1.RuntimeService/RunPodSandbox";
        let answer: PodSandbox = self.call(method, request)?;
        Ok(Pod {
            cri: self,
            id: answer.pod_sandbox_id,
            config,
            namespaces,
            removed: false,
        })
    }

    fn call<Q, A>(&self, method: &'static str, request: Q) -> Result<A>
    where
        Q: prost::Message + 'static,
        A: prost::Message + Default + 'static,
    {
        let call = async {
            let mut client = Grpc::new(self.channel.clone());
            client.ready().await?;
            let path = PathAndQuery::from_static(method);
            let codec = ProstCodec::<Q, A>::default();
            let answer = client
                .unary(tonic::Request::new(request), path, codec)
                .await?;
            Ok::<A, anyhow::Error>(answer.into_inner())
        };
        self.runtime
            .block_on(async { tokio::time::timeout(LIMIT, call).await })
            .with_context(|| format!("{method}: no answer"))?
            .context(method)
    }
}

/// A running sandbox.
#[derive(Debug)]
pub struct Pod<'a> {
    cri: &'a Cri,
    id: String,
    config: PodSandboxConfig,
    namespaces: NamespaceOption,
    removed: bool,
}

impl<'a> Pod<'a> {
    /// Starts a container of an image that was pulled.
    pub fn start(&self, name: &str, image: &str, command: &[&str]) -> Result<Container<'a>> {
        let config = ContainerConfig {
            metadata: Some(ContainerMetadata {
                name: name.to_owned(),
            }),
            image: Some(ImageSpec::of(image)),
            command: command.iter().map(|&word| word.to_owned()).collect(),
            linux: Some(LinuxContainerConfig {
                security_context: Some(ContainerSecurityContext {
                    namespace_options: Some(self.namespaces.clone()),
                }),
            }),
        };
        let request = CreateContainerRequest {
            pod_sandbox_id: self.id.clone(),
            config: Some(config),
            sandbox_config: Some(self.config.clone()),
        };
        let created: ContainerName = self
            .cri
            .call("/runtime.v1.RuntimeService/CreateContainer", request)?;
        let started = ContainerName {
            container_id: created.container_id.clone(),
        };
        self.cri
            .call::<_, Nothing>("/runtime.v1.RuntimeService/StartContainer", started)?;
        Ok(Container {
            cri: self.cri,
            id: created.container_id,
        })
    }

    /// Removes the pod and reports errors. Drop does the same but ignores errors.
    pub fn remove(mut self) -> Result<()> {
        self.removed = true;
        self.end()
    }

    fn end(&self) -> Result<()> {
        let name = PodSandbox {
            pod_sandbox_id: self.id.clone(),
        };
        self.cri
            .call::<_, Nothing>("/runtime.v1.RuntimeService/StopPodSandbox", name.clone())?;
        self.cri
            .call::<_, Nothing>("/runtime.v1.RuntimeService/RemovePodSandbox", name)
            .map(drop)
    }
}

impl Drop for Pod<'_> {
    fn drop(&mut self) {
        if !self.removed {
            // The sandbox around the tests ends what this cannot.
            drop(self.end());
        }
    }
}

/// A running container of a pod. It ends with the pod.
#[derive(Debug)]
pub struct Container<'a> {
    cri: &'a Cri,
    id: String,
}

impl Container<'_> {
    /// Its ID in containerd.
    pub fn id(&self) -> &str {
        &self.id
    }

    /// Runs a command in the container and waits for its end.
    pub fn exec(&self, command: &[&str]) -> Result<Finished> {
        let request = ExecSyncRequest {
            container_id: self.id.clone(),
            cmd: command.iter().map(|&word| word.to_owned()).collect(),
            timeout: 0,
        };
        let answer: ExecSyncResponse = self
            .cri
            .call("/runtime.v1.RuntimeService/ExecSync", request)?;
        Ok(Finished {
            code: Some(answer.exit_code),
            stdout: String::from_utf8_lossy(&answer.stdout).into_owned(),
            stderr: String::from_utf8_lossy(&answer.stderr).into_owned(),
        })
    }
}
