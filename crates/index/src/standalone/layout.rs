//! Writes a converted image to an OCI layout in a folder.

use std::path::Path;
use std::sync::Arc;

use soci_oci::manifest::MAX_DOCUMENT_BYTES;
use soci_oci::{Descriptor, ImageIndex, json};
use soci_store::durable::{sync_name, sync_names};
use soci_store::layout::{INDEX_NAME, LAYOUT_NAME, Layout, read_root_file};
use soci_store::{ContentStore, Stacked, blocking};

use super::copies::copy;
use super::error::{Error, OutputError};
use super::local::{Form, LocalImage};
use super::observer::{ConversionObserver, Phase};
use super::place::{Copier, NewFolder, lock};
use super::stop::{Stop, StopOnDrop};
use super::{Input, Job, REF_NAME, counter, fetch};
use crate::convert::Converted;

/// Writes a folder in the reference's way: everything that the source contains, and the new blobs.
pub(super) async fn to_folder(job: &Job, input: Input, path: &Path) -> Result<Converted, Error> {
    let output = NewFolder::create(path)?;
    let work = output.layout.clone();
    let (converted, rest) = match input {
        Input::Registry(source) => (fetch::convert(job, source, &work).await?, None),
        Input::Local(source) => {
            let store = stacked(&work, &source);
            let root = source.root(store.as_ref()).await?;
            let converted = job.convert(Arc::clone(&store), store, &root).await?;
            if let Form::Docker(_) = source.form {
                copy(job, source.store(), &work, &converted).await?;
                (converted, None)
            } else {
                (converted, Some(source))
            }
        }
    };
    job.observer.phase(Phase::Copying, None);
    let stop = StopOnDrop::default();
    let copier = Copier {
        stop: stop.flag(),
        count: Box::new(counter(&job.observer)),
    };
    let index = index_json(&converted.image, None);
    let copied = blocking(move || {
        if let Some(source) = rest {
            output.copy(&source.form, &copier)?;
        }
        still_needed(&copier.stop, output.layout.root())?;
        output.layout.write_index(&index)?;
        still_needed(&copier.stop, output.layout.root())?;
        output.finish()
    });
    copied.await?;
    Ok(converted)
}

/// Adds the image to a layout. Existing content stays, except an image with the same name. Other
/// processes may write to the layout at the same time.
pub(super) async fn to_layout(
    job: &Job,
    input: Input,
    path: &Path,
    name: Option<&str>,
) -> Result<Converted, Error> {
    let is_layout = path.join(LAYOUT_NAME).is_file();
    let (layout, new) = if is_layout {
        (Layout::create(path)?, None)
    } else {
        let new = NewFolder::create(path)?;
        (new.layout.clone(), Some(new))
    };
    let converted = match input {
        Input::Registry(source) => fetch::convert(job, source, &layout).await?,
        Input::Local(source) => {
            let store = stacked(&layout, &source);
            let root = source.root(store.as_ref()).await?;
            let converted = job.convert(Arc::clone(&store), store, &root).await?;
            copy(job, source.store(), &layout, &converted).await?;
            converted
        }
    };
    let (place, member) = (path.to_owned(), named(&converted.image, name));
    let stop = StopOnDrop::default();
    let flag = stop.flag();
    let done = blocking(move || {
        still_needed(&flag, &place)?;
        if let Some(new) = new {
            layout.write_index(&json::to_vec(&ImageIndex::new(vec![member.clone()])))?;
            still_needed(&flag, &place)?;
            if new.finish_or_join()? {
                return Ok(());
            }
        }
        enlist(&place, member, &flag)
    });
    done.await?;
    Ok(converted)
}

/// Fails if the image is no longer needed. Called before each step that changes the destination.
fn still_needed(stop: &Stop, path: &Path) -> Result<(), OutputError> {
    stop.check().map_err(|source| OutputError::Write {
        path: path.to_owned(),
        source,
    })
}

/// Adds an image to the index of an existing layout.
fn enlist(layout: &Path, member: Descriptor, stop: &Stop) -> Result<(), OutputError> {
    let _lock = lock(layout)?;
    let failed = |source| OutputError::Write {
        path: layout.to_owned(),
        source,
    };
    // Blobs must be durable before the index names them.
    sync_names(&layout.join("blobs")).map_err(failed)?;
    let bytes = read_root_file(layout, INDEX_NAME, MAX_DOCUMENT_BYTES)?;
    let index: ImageIndex = json::from_slice(&bytes).map_err(|source| OutputError::IndexJson {
        path: layout.to_owned(),
        source,
    })?;
    // Another process may have held the lock for long.
    still_needed(stop, layout)?;
    Layout::at(layout).write_index(&json::to_vec(&with(index, member)))?;
    sync_name(&layout.join(INDEX_NAME)).map_err(failed)
}

/// Adds an entry to the index, replacing one with the same name. Without a name, it only replaces
/// an entry for the same image.
fn with(mut index: ImageIndex, member: Descriptor) -> ImageIndex {
    let mut members = index.manifests.take().unwrap_or_default();
    let name = member.annotation(REF_NAME);
    members.retain(|old| {
        old.annotation(REF_NAME) != name || (name.is_none() && old.digest != member.digest)
    });
    members.push(member);
    index.manifests = Some(members);
    index
}

fn named(image: &Descriptor, name: Option<&str>) -> Descriptor {
    let mut member = image.clone();
    if let Some(name) = name {
        member
            .annotations
            .insert(REF_NAME.to_owned(), name.to_owned());
    }
    member
}

/// The index of a layout with one image.
pub(super) fn index_json(image: &Descriptor, name: Option<&str>) -> Vec<u8> {
    json::to_vec(&ImageIndex::new(vec![named(image, name)]))
}

/// Reads an image on disk, and writes new blobs to another layout.
pub(super) fn stacked(work: &Layout, source: &LocalImage) -> Arc<dyn ContentStore> {
    Arc::new(Stacked {
        upper: Arc::new(work.clone()),
        lower: source.store(),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_image_that_is_no_longer_needed_is_not_listed() {
        let folder = tempfile::tempdir().unwrap();
        let layout = Layout::create(folder.path()).unwrap();
        let index = folder.path().join(INDEX_NAME);
        layout.write_index(br#"{"manifests":[]}"#).unwrap();
        let before = std::fs::read(&index).unwrap();
        let member = Descriptor::of("image", b"image");
        let stop = StopOnDrop::default();
        let flag = stop.flag();
        drop(stop);
        enlist(folder.path(), member.clone(), &flag).unwrap_err();
        assert_eq!(std::fs::read(&index).unwrap(), before);
        let stop = StopOnDrop::default();
        enlist(folder.path(), member, &stop.flag()).unwrap();
        assert_ne!(std::fs::read(&index).unwrap(), before);
    }
}
