//! `--standalone`: works without containerd, on images in registries and on disk.

use std::io::{self, IsTerminal as _};
use std::os::fd::AsFd as _;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use anyhow::{Context as _, Result, anyhow, bail};
use soci_index::standalone::{
    self, CreateRequest, Destination, LocalImage, RemoteImage, Request, Source,
};
use soci_index::{ConvertOptions, Converted, CreateOptions, Creation, RepositoryZtocs, ZtocSource};
use soci_oci::reference::ImageRef;
use soci_registry::{Registry, Trace};
use soci_store::durable::folder_of;

use crate::access;
use crate::args::{self, Convert, Create, Format, Global};
use crate::convert::conclude;
use crate::output::{Progress, Reporter};
use crate::source;
use crate::transport::{self, Transport, hinted};

/// `soci convert --standalone`.
pub(crate) async fn convert_image(
    global: &Global,
    args: &Convert,
    options: &ConvertOptions,
) -> Result<()> {
    let is_beside = args.destination == Path::new("-");
    let reporter = Reporter::new(Progress::new(global.progress), args.json).beside(is_beside);
    let reporter = Arc::new(reporter);
    let job = Job::new(global, args, &reporter)?;
    let registry = job.registry.clone();
    let work = job.run(args, options);
    let result = access::uploading(global, registry.as_ref(), work).await;
    if let Ok(converted) = &result
        && converted.platforms.iter().all(|it| it.index.is_none())
    {
        reporter.line("no layer of the image is indexed; the copy is the image as it is");
    }
    conclude(args, result, &reporter)
}

/// `soci create --standalone`: stores the index in the repository of the image, as a referrer.
pub(crate) async fn create_index(
    global: &Global,
    args: &Create,
    options: &CreateOptions,
    reporter: &Arc<Reporter>,
) -> Result<Creation> {
    let Transport::Registry(image) = Transport::parse(&args.image)? else {
        let shown = args.image.display();
        let error = anyhow!("{shown}: --standalone needs docker://registry/repository:tag");
        return Err(hinted(error, &args.image));
    };
    let reuse = reused(&args.reuse_from)?;
    let trace = access::debugged(global, reporter.progress());
    let registry = reached(&args.registry, [Some(&image), None], &reuse, trace)?;
    let registry = registry.context("an image in a registry has a registry")?;
    let remote = RemoteImage {
        registry: registry.clone(),
        image,
    };
    let request = CreateRequest {
        known: known(Some(&registry), &reuse, args.ztocs.force),
        mount_from: reuse,
        ..CreateRequest::new(remote, options.clone())
    };
    let work = async {
        let mut creation = standalone::create(request, reporter.clone()).await?;
        match creation.failure.take() {
            Some(error) => Err(error.into()),
            None => Ok(creation),
        }
    };
    access::uploading(global, Some(&registry), work).await
}

/// Parses the images from `--reuse-from`.
fn reused(names: &[String]) -> Result<Vec<ImageRef>> {
    names.iter().map(|name| transport::image(name)).collect()
}

/// Creates a client, if any image is in a registry. The credentials in the flags apply to the first
/// image.
fn reached(
    flags: &args::RegistryAccess,
    sides: [Option<&ImageRef>; 2],
    reuse: &[ImageRef],
    trace: Option<Trace>,
) -> Result<Option<Registry>> {
    let images: Vec<&ImageRef> = sides.into_iter().flatten().chain(reuse).collect();
    if images.is_empty() {
        return Ok(None);
    }
    access::registry(flags, &images, trace).map(Some)
}

/// The images whose zTOCs are reused: those that the user named, and none with `force`. Images that
/// are only converted or replaced are not trusted, because anyone could have made their zTOCs.
fn known(registry: Option<&Registry>, reuse: &[ImageRef], force: bool) -> Vec<Arc<dyn ZtocSource>> {
    match registry {
        Some(registry) if !force && !reuse.is_empty() => {
            let known = RepositoryZtocs::new(registry.clone(), reuse.to_vec());
            vec![Arc::new(known)]
        }
        _ => Vec::new(),
    }
}

/// A conversion.
struct Job {
    from: Transport,
    to: Transport,
    registry: Option<Registry>,
    reuse: Vec<ImageRef>,
    reporter: Arc<Reporter>,
}

impl Job {
    fn new(global: &Global, args: &Convert, reporter: &Arc<Reporter>) -> Result<Self> {
        let from = Transport::parse(&args.image)?;
        let to = Transport::parse(&args.destination)?;
        check(&from, &to, args)?;
        let reuse = reused(&args.reuse_from)?;
        let sides = [to.image(), from.image()];
        let trace = access::debugged(global, reporter.progress());
        Ok(Self {
            registry: reached(&args.registry, sides, &reuse, trace)?,
            reuse,
            reporter: Arc::clone(reporter),
            from,
            to,
        })
    }

    async fn run(self, args: &Convert, options: &ConvertOptions) -> Result<Converted> {
        let source = self.source(args.follow_links).await?;
        let request = Request {
            options: options.clone(),
            known: known(self.registry.as_ref(), &self.reuse, args.ztocs.force),
            mount_from: self.reuse.clone(),
            ..Request::new(source, self.destination(args.format)?)
        };
        match standalone::convert(request, self.reporter).await {
            Ok(report) => Ok(report.converted),
            // `--strict` looks for this error.
            Err(standalone::Error::Convert(error)) => Err(error.into()),
            Err(error) => Err(error.into()),
        }
    }

    async fn source(&self, follow_links: bool) -> Result<Source> {
        Ok(Source::Local(match &self.from {
            Transport::Registry(image) => return Ok(Source::Registry(self.remote(image)?)),
            Transport::Path(path) => {
                source::open(path, follow_links).map_err(|error| hinted(error.into(), path))?
            }
            Transport::Folder { path, tag } => {
                let is_folder = path.is_dir() || !path.exists();
                if !is_folder {
                    bail!(
                        "{} is no folder; write oci-archive: for a tar",
                        path.display()
                    );
                }
                source::tagged(path, tag.as_deref(), follow_links)?
            }
            Transport::Archive { path, tag } => {
                if path.is_dir() {
                    bail!("{} is a folder; write oci: for a layout", path.display());
                }
                source::tagged(path, tag.as_deref(), false)?
            }
            Transport::DockerArchive { path, name } => {
                LocalImage::open_docker(path, name.as_deref()).await?
            }
            Transport::Pipe => source::piped(&spool_folder(&self.to)).await?,
        }))
    }

    fn destination(&self, format: Option<Format>) -> Result<Destination> {
        Ok(match self.to.clone() {
            Transport::Registry(image) => Destination::Registry(self.remote(&image)?),
            Transport::Folder { path, tag } => Destination::Layout { path, name: tag },
            Transport::Archive { path, tag } => Destination::Archive { path, name: tag },
            Transport::Path(path) => match format {
                Some(Format::Archive) | None => Destination::Archive { path, name: None },
                Some(Format::Folder) => Destination::Folder(path),
            },
            Transport::Pipe => {
                if io::stdout().is_terminal() {
                    bail!("an archive on a terminal is of no use; redirect standard output");
                }
                let file = io::stdout().as_fd().try_clone_to_owned();
                Destination::Stream(file.context("write to standard output")?.into())
            }
            Transport::DockerArchive { path, .. } => bail!("{} is only read", path.display()),
        })
    }

    fn remote(&self, image: &ImageRef) -> Result<RemoteImage> {
        let registry = self.registry.clone();
        Ok(RemoteImage {
            registry: registry.context("an image in a registry has a registry")?,
            image: image.clone(),
        })
    }
}

/// Refuses flags and notations that do not fit together.
fn check(from: &Transport, to: &Transport, args: &Convert) -> Result<()> {
    let written = args.destination.display();
    if let Transport::DockerArchive { .. } = to {
        bail!(
            "{written}: an archive of docker cannot hold an index; write oci-archive:PATH instead"
        );
    }
    let is_right = match (to, args.format) {
        (Transport::Path(_), _) | (_, None) => true,
        (Transport::Registry(_), Some(_)) => false,
        (Transport::Folder { .. }, Some(format)) => format == Format::Folder,
        (_, Some(format)) => format == Format::Archive,
    };
    if !is_right {
        bail!("{written}: --format is for a path and does not fit here; leave it out");
    }
    if let Transport::Path(path) = to
        && let Some(hint) = transport::hint(path)
    {
        tracing::warn!("{written} is written as a file or folder; {hint}");
    }
    if args.registry.password_stdin && *from == Transport::Pipe {
        bail!("standard input cannot be both the image and the password of --password-stdin");
    }
    match to.image() {
        Some(image) if image.digest().is_some() => {
            Err(standalone::Error::Pinned(Box::new(image.clone())).into())
        }
        _ => Ok(()),
    }
}

/// The folder for an archive from standard input: next to the result, where there should be space
/// for the image.
fn spool_folder(to: &Transport) -> PathBuf {
    match to {
        Transport::Folder { path, .. }
        | Transport::Archive { path, .. }
        | Transport::Path(path) => folder_of(path),
        Transport::Registry(_) | Transport::DockerArchive { .. } | Transport::Pipe => {
            std::env::temp_dir()
        }
    }
}
