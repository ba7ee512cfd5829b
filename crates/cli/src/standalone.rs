//! Works without containerd, on images in registries and on disk.
//!
//! ```text
//! Transport ──► Input ──► convert ──► files: archive, folder, layout
//!                   └─── registry ──► RegistryTarget: blobs at once, manifests at the end, the tag last
//! ```
//!
//! From registry to registry nothing is stored on disk: layers are indexed while they are copied to
//! the target. For a file the image is downloaded first, because an archive has its members in a
//! different order.

use std::num::NonZeroUsize;
use std::path::Path;
use std::sync::Arc;

use anyhow::{Context as _, Result, anyhow, bail};
use soci_index::{
    ConvertOptions, Converted, CreateOptions, Creation, KnownZtocs, Means, RepositoryZtocs,
    convert, create,
};
use soci_oci::Descriptor;
use soci_oci::reference::ImageRef;
use soci_registry::{Registry, Trace};
use soci_store::registry::{RegistryStore, RegistryTarget, UPLOADS_AT_ONCE};
use soci_store::{ContentStore, Stacked};

use crate::access;
use crate::args::{self, Convert, Create, Format, Global};
use crate::convert::conclude;
use crate::output::{Progress, Teller};
use crate::source::Source;
use crate::transport::{self, Transport, hinted};

mod files;

/// Layers to read from a registry concurrently, with one stream each. Other clients use the same
/// number.
const AT_ONCE: NonZeroUsize = NonZeroUsize::new(4).expect("four is not zero");

/// `soci convert --standalone`.
pub(crate) async fn convert_image(
    global: &Global,
    args: &Convert,
    options: &ConvertOptions,
) -> Result<()> {
    let is_beside = args.destination == Path::new("-");
    let teller = Teller::new(Progress::new(global.progress), args.json).beside(is_beside);
    let teller = Arc::new(teller);
    let job = Job::new(global, args, options, &teller)?;
    let (registry, target) = (job.registry.as_ref(), job.target.as_ref());
    let result = access::uploading(global, registry, target, job.run(args.format)).await;
    if let Ok(converted) = &result
        && converted.platforms.iter().all(|it| it.index.is_none())
    {
        teller.line("no layer of the image is indexed; the copy is the image as it is");
    }
    conclude(args, result, &teller)
}

/// `soci create --standalone`: stores the index in the repository of the image, as a referrer.
pub(crate) async fn create_index(
    global: &Global,
    args: &Create,
    options: &CreateOptions,
    teller: &Arc<Teller>,
) -> Result<Creation> {
    let Transport::Registry(image) = Transport::parse(&args.image)? else {
        let shown = args.image.display();
        let error = anyhow!("{shown}: --standalone needs docker://registry/repository:tag");
        return Err(hinted(error, &args.image));
    };
    let reuse = reused(&args.reuse_from)?;
    let trace = access::debugged(global, teller.progress());
    let registry = reached(&args.registry, [Some(&image), None], &reuse, trace)?;
    let registry = registry.context("an image in a registry has a registry")?;
    let others: Vec<&ImageRef> = reuse.iter().collect();
    let target = RegistryTarget::new(registry.clone(), image.clone(), &others, UPLOADS_AT_ONCE);
    let work = async {
        let source = RegistryStore::new(registry.clone(), image.clone());
        let root = source.root().await?;
        let means = Means {
            source: Arc::new(source),
            store: Arc::new(target.clone()),
            known: known(Some(&registry), &reuse, args.ztocs.force),
            records: None,
            observer: teller.clone(),
        };
        let mut options = options.clone();
        options.build.at_once = Some(AT_ONCE);
        let mut creation = create(&means, &root, &options).await;
        for made in &creation.indexes {
            target.write_referrer(&made.index.digest).await?;
        }
        match creation.failure.take() {
            Some(error) => Err(error.into()),
            None => Ok(creation),
        }
    };
    access::uploading(global, Some(&registry), Some(&target), work).await
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
fn known(registry: Option<&Registry>, reuse: &[ImageRef], force: bool) -> Vec<Arc<dyn KnownZtocs>> {
    match registry {
        Some(registry) if !force && !reuse.is_empty() => {
            let known = RepositoryZtocs::new(registry.clone(), reuse.to_vec());
            vec![Arc::new(known)]
        }
        _ => Vec::new(),
    }
}

/// An image to read.
enum Input {
    Files(Source),
    Registry(RegistryStore),
}

/// A conversion.
struct Job {
    from: Transport,
    to: Transport,
    options: ConvertOptions,
    registry: Option<Registry>,
    /// The target, if it is in a registry.
    target: Option<RegistryTarget>,
    known: Vec<Arc<dyn KnownZtocs>>,
    teller: Arc<Teller>,
    /// Whether blobs of a layout may be links out of it.
    follow_links: bool,
}

impl Job {
    fn new(
        global: &Global,
        args: &Convert,
        options: &ConvertOptions,
        teller: &Arc<Teller>,
    ) -> Result<Self> {
        let from = Transport::parse(&args.image)?;
        let to = Transport::parse(&args.destination)?;
        let written = args.destination.display();
        if let Transport::DockerArchive { .. } = to {
            bail!(
                "{written}: an archive of docker cannot hold an index; write oci-archive:PATH instead"
            );
        }
        let is_right = match (&to, args.format) {
            (Transport::Path(_), _) | (_, None) => true,
            (Transport::Registry(_), Some(_)) => false,
            (Transport::Folder { .. }, Some(format)) => format == Format::Folder,
            (_, Some(format)) => format == Format::Archive,
        };
        if !is_right {
            bail!("{written}: --format is for a path and does not fit here; leave it out");
        }
        if let Transport::Path(path) = &to
            && let Some(hint) = transport::hint(path)
        {
            tracing::warn!("{written} is written as a file or folder; {hint}");
        }
        if args.registry.password_stdin && from == Transport::Pipe {
            bail!("standard input cannot be both the image and the password of --password-stdin");
        }
        if to.image().is_some_and(|image| image.digest().is_some()) {
            bail!("{written}: the copy gets a digest of its own; name a tag only");
        }
        let reuse = reused(&args.reuse_from)?;
        let sides = [to.image(), from.image()];
        let trace = access::debugged(global, teller.progress());
        let registry = reached(&args.registry, sides, &reuse, trace)?;
        let mut options = options.clone();
        if from.image().is_some() {
            options.build.at_once = Some(AT_ONCE);
        }
        let target = match (&registry, to.image()) {
            (Some(registry), Some(image)) => {
                let others: Vec<&ImageRef> = from.image().into_iter().chain(&reuse).collect();
                Some(RegistryTarget::new(
                    registry.clone(),
                    image.clone(),
                    &others,
                    UPLOADS_AT_ONCE,
                ))
            }
            _ => None,
        };
        Ok(Self {
            options,
            target,
            known: known(registry.as_ref(), &reuse, args.ztocs.force),
            registry,
            teller: Arc::clone(teller),
            follow_links: args.follow_links,
            from,
            to,
        })
    }

    async fn run(&self, format: Option<Format>) -> Result<Converted> {
        let (from, to) = (&self.from, &self.to);
        let input = self.open(from, to).await?;
        match to {
            Transport::Registry(_) => self.to_registry(input).await,
            Transport::Folder { path, tag } => {
                files::to_layout(self, input, path, tag.as_deref()).await
            }
            Transport::Archive { path, tag } => {
                let out = files::Out::at(path)?;
                files::to_archive(self, input, out, tag.as_deref()).await
            }
            Transport::Pipe => files::to_archive(self, input, files::Out::piped()?, None).await,
            Transport::Path(path) => match format {
                Some(Format::Archive) | None => {
                    // Like the reference, this opens the input before the output.
                    let out = files::Out::at(path)?;
                    files::to_archive(self, input, out, None).await
                }
                Some(Format::Folder) => files::to_folder(self, input, path).await,
            },
            Transport::DockerArchive { path, .. } => bail!("{} is only read", path.display()),
        }
    }

    async fn open(&self, from: &Transport, to: &Transport) -> Result<Input> {
        Ok(Input::Files(match from {
            Transport::Registry(image) => {
                return Ok(Input::Registry(RegistryStore::new(
                    self.client()?,
                    image.clone(),
                )));
            }
            Transport::Path(path) => {
                Source::open(path, self.follow_links).map_err(|error| hinted(error, path))?
            }
            Transport::Folder { path, tag } => {
                let is_folder = path.is_dir() || !path.exists();
                if !is_folder {
                    bail!(
                        "{} is no folder; write oci-archive: for a tar",
                        path.display()
                    );
                }
                Source::tagged(path, tag.as_deref(), self.follow_links)?
            }
            Transport::Archive { path, tag } => {
                if path.is_dir() {
                    bail!("{} is a folder; write oci: for a layout", path.display());
                }
                Source::tagged(path, tag.as_deref(), false)?
            }
            Transport::DockerArchive { path, name } => {
                Source::docker(path, name.as_deref()).await?
            }
            Transport::Pipe => Source::piped(&files::spool_folder(to)).await?,
        }))
    }

    fn client(&self) -> Result<Registry> {
        self.registry
            .clone()
            .context("an image in a registry has a registry")
    }

    /// Converts an image from `source` and writes new blobs to `store`.
    async fn convert(
        &self,
        source: Arc<dyn ContentStore>,
        store: Arc<dyn ContentStore>,
        root: &Descriptor,
    ) -> Result<Converted> {
        let means = Means {
            source,
            store,
            known: self.known.clone(),
            records: None,
            observer: self.teller.clone(),
        };
        Ok(convert(&means, root, &self.options).await?)
    }

    async fn to_registry(&self, input: Input) -> Result<Converted> {
        let target = self.target.as_ref();
        let target = target.context("a copy in a registry has a target")?;
        let new: Arc<dyn ContentStore> = Arc::new(target.clone());
        let (converted, source): (Converted, Arc<dyn ContentStore>) = match input {
            Input::Registry(source) => {
                let root = source.root().await?;
                let read = Arc::new(source.copying_to(target));
                (self.convert(read, new, &root).await?, Arc::new(source))
            }
            Input::Files(source) => {
                let root = source.root(new.as_ref()).await?;
                let read = Arc::new(Stacked {
                    upper: Arc::clone(&new),
                    lower: source.store(),
                });
                (self.convert(read, new, &root).await?, source.store())
            }
        };
        self.teller.progress().phase("copying", None);
        target.finish(source, &converted.image).await?;
        Ok(converted)
    }
}
