//! Works without containerd, on images in registries and on disk.
//!
//! [`convert`] reads an image from a [`Source`] and writes the converted image to a
//! [`Destination`]. [`create`] pushes indexes for an image in a registry. Layers of a registry are
//! indexed while they are downloaded, and each is read once. From registry to registry nothing is
//! stored on disk except zTOCs. An archive is written when its image is complete on disk, because
//! it has its members in a different order.
//!
//! The result is complete or absent: manifests and names are written last.

use std::fs::File;
use std::num::NonZeroUsize;
use std::path::PathBuf;
use std::sync::Arc;

use soci_oci::Descriptor;
use soci_oci::reference::ImageRef;
use soci_registry::Registry;
use soci_store::ContentStore;
use soci_store::registry::{RegistryStore, UPLOADS_AT_ONCE};

use crate::builder::{BuildContext, Note};
use crate::convert::{ConvertOptions, Converted};
use crate::reuse::ZtocSource;

mod archive;
mod copies;
mod create;
mod error;
mod fetch;
mod layout;
mod local;
mod observer;
mod place;
mod registry;
mod stop;

pub use create::{CreateRequest, create};
pub use error::{DiskError, Error, OutputError};
pub use local::{LocalImage, SourceError};
pub use observer::{ConversionObserver, Phase};

use archive::Out;
use observer::Recorder;

/// Layers to read from a registry concurrently, with one stream each. Other clients use the same
/// number.
pub const LAYERS_AT_ONCE: NonZeroUsize = NonZeroUsize::new(4).expect("four is not zero");

/// The annotation of an entry in a layout's index that contains the image's name.
const REF_NAME: &str = "org.opencontainers.image.ref.name";

/// An image in a registry, and the client to reach it with.
#[derive(Debug, Clone)]
pub struct RemoteImage {
    /// The client, with the credentials for the image's repository.
    pub registry: Registry,
    /// The name of the image.
    pub image: ImageRef,
}

/// The image to convert.
#[derive(Debug, Clone)]
#[non_exhaustive]
pub enum Source {
    /// An image in a registry. Its layers are streamed.
    Registry(RemoteImage),
    /// An image on disk.
    Local(LocalImage),
}

/// Where the converted image goes.
#[derive(Debug)]
#[non_exhaustive]
pub enum Destination {
    /// A tag in a registry. The reference must not contain a digest.
    Registry(RemoteImage),
    /// An OCI layout in a folder, which is created if it is missing. Other images of the layout
    /// stay. Other processes may add images at the same time.
    Layout {
        /// The path of the folder.
        path: PathBuf,
        /// The name of the image in the layout's index. It replaces an image with the same name.
        name: Option<String>,
    },
    /// An OCI layout in a folder that replaces what is there: the image, and everything else that
    /// the source layout contains. A folder with anything but a layout is not replaced.
    Folder(PathBuf),
    /// An uncompressed tar archive of an OCI layout. It replaces the file at once when it is
    /// complete; a pipe or device is written directly.
    Archive {
        /// The path of the archive.
        path: PathBuf,
        /// The name of the image in the layout's index.
        name: Option<String>,
    },
    /// The same archive, written to an open file such as standard output.
    Stream(File),
}

/// A conversion: see [`convert`].
#[derive(Debug)]
pub struct Request {
    /// The image to convert.
    pub source: Source,
    /// Where the converted image goes.
    pub destination: Destination,
    /// The platforms and the zTOCs. If `options.build.at_once` is `None`, [`LAYERS_AT_ONCE`] layers
    /// of a registry are read concurrently.
    pub options: ConvertOptions,
    /// Sources of existing zTOCs, in order of preference. If empty, all zTOCs are built. zTOCs are
    /// not compared with the layers, so trust everyone who can write to these sources.
    pub known: Vec<Arc<dyn ZtocSource>>,
    /// Further images whose blobs the destination's registry may mount instead of receiving them.
    /// Images in other registries are ignored. The source is always considered.
    pub mount_from: Vec<ImageRef>,
    /// Number of blobs to copy or upload concurrently, besides layers that are sent while they are
    /// indexed.
    pub copies: NonZeroUsize,
}

impl Request {
    /// A request with default options that builds all zTOCs.
    #[must_use]
    pub fn new(source: Source, destination: Destination) -> Self {
        Self {
            source,
            destination,
            options: ConvertOptions::default(),
            known: Vec::new(),
            mount_from: Vec::new(),
            copies: UPLOADS_AT_ONCE,
        }
    }
}

/// What a conversion made.
#[derive(Debug, Clone)]
pub struct Report {
    /// The digests of the image and its indexes, and the outcome of each layer.
    pub converted: Converted,
    /// Warnings about the image in the order in which the observer received them, at most 1000.
    /// Warnings about its surroundings, such as a mirror that sends wrong bytes, are only logged.
    pub warnings: Vec<Note>,
}

/// Converts an image. Needs a multi-threaded runtime: layers are indexed on plain threads, which
/// use the runtime to read and store blobs.
///
/// The same image and options always give the same digests, whatever the source and destination.
///
/// # Cancellation
/// If the future is dropped, the destination stays as it was (see below), temporary files are
/// removed, and all uploads are aborted. The last step, the rename to the destination or the write
/// of its index, is not interrupted once it has begun. The drop waits up to 2 seconds for threads
/// that index layers.
///
/// Unfinished uploads stay in the registry, which removes them some day;
/// [`Registry::cancel_uploads`] removes them at once, after success or failure too. It applies to
/// all conversions that share a client, unless each has its own
/// [uploads](Registry::with_own_uploads).
///
/// # Errors
/// See [`Error`]. The destination then stays as it was, with three exceptions: a layout or registry
/// may have new blobs that nothing refers to, a registry may have new manifests without a tag, and
/// a pipe, device or stream may have a part of the archive. Missing parent folders may be created.
pub async fn convert(
    request: Request,
    observer: Arc<dyn ConversionObserver>,
) -> Result<Report, Error> {
    let recorder = Arc::new(Recorder::new(observer));
    let mut options = request.options;
    let mut mount_from: Vec<&ImageRef> = Vec::new();
    if let Source::Registry(from) = &request.source {
        options.build.at_once.get_or_insert(LAYERS_AT_ONCE);
        mount_from.push(&from.image);
    }
    mount_from.extend(&request.mount_from);
    let job = Job {
        options,
        known: request.known,
        copies: request.copies,
        observer: recorder.clone(),
    };
    let input = Input::of(&request.source);
    let converted = match request.destination {
        Destination::Registry(to) => registry::to_registry(&job, input, to, &mount_from).await?,
        Destination::Layout { path, name } => {
            layout::to_layout(&job, input, &path, name.as_deref()).await?
        }
        Destination::Folder(path) => layout::to_folder(&job, input, &path).await?,
        Destination::Archive { path, name } => {
            archive::to_archive(&job, input, Out::at(&path)?, name.as_deref()).await?
        }
        Destination::Stream(file) => {
            archive::to_archive(&job, input, Out::stream(file), None).await?
        }
    };
    Ok(Report {
        converted,
        warnings: recorder.warnings(),
    })
}

/// An image to read.
enum Input {
    Local(LocalImage),
    Registry(RegistryStore),
}

impl Input {
    fn of(source: &Source) -> Self {
        match source {
            Source::Registry(RemoteImage { registry, image }) => {
                Self::Registry(RegistryStore::new(registry.clone(), image.clone()))
            }
            Source::Local(image) => Self::Local(image.clone()),
        }
    }
}

/// What all destinations need.
struct Job {
    options: ConvertOptions,
    known: Vec<Arc<dyn ZtocSource>>,
    copies: NonZeroUsize,
    observer: Arc<Recorder>,
}

impl Job {
    /// Converts an image from `source` and writes new blobs to `store`.
    async fn convert(
        &self,
        source: Arc<dyn ContentStore>,
        store: Arc<dyn ContentStore>,
        root: &Descriptor,
    ) -> Result<Converted, Error> {
        let context = BuildContext {
            source,
            store,
            known: self.known.clone(),
            records: None,
            observer: self.observer.clone(),
        };
        Ok(crate::convert::convert(&context, root, &self.options).await?)
    }
}

/// Reports moved bytes.
fn counter(observer: &Arc<Recorder>) -> impl Fn(u64) + Clone + Send + Sync + use<> + 'static {
    let observer = Arc::clone(observer);
    move |bytes| observer.moved(bytes)
}
