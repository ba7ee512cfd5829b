//! `soci prefetch record`: prints what containers of an image read first.

mod node;
mod run;

use std::fs::{self, File};
use std::io::Read as _;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context as _, Result, bail};
use soci_index::starts::{MAX_RECORD_BYTES, StartRecord};
use soci_status::Image;

use crate::args::PrefetchRecord;
use crate::output;
use crate::status::{client, select};

/// The longest time of `--within`: the daemon notes nothing later.
const MOST_WITHIN: Duration = Duration::from_secs(600);

/// Runs the command.
pub(crate) async fn run(args: &PrefetchRecord) -> Result<()> {
    if args.image.is_empty() {
        bail!("an image needs to be specified; `soci status` lists those of this machine");
    }
    if args.within > MOST_WITHIN {
        let minutes = MOST_WITHIN.as_secs() / 60;
        bail!("--within is too long: a start is recorded for {minutes} minutes at most");
    }
    let record = if args.run {
        run::run(args).await?
    } else {
        if !args.command.is_empty() {
            bail!("a command is only for --run");
        }
        let mut status = client::ask(&args.socket).await?;
        select(&mut status, &args.image)?;
        let manifest = manifest(&status.images, &args.image)?;
        client::starts(&args.socket, manifest).await?
    };
    write(record, args)
}

/// Reads a record for a build.
pub(crate) fn load(path: &Path) -> Result<Arc<StartRecord>> {
    let read = || -> Result<StartRecord> {
        let mut bytes = Vec::new();
        let file = File::open(path)?;
        file.take(MAX_RECORD_BYTES + 1).read_to_end(&mut bytes)?;
        if bytes.len() as u64 > MAX_RECORD_BYTES {
            bail!("it has more than {} MiB", MAX_RECORD_BYTES >> 20);
        }
        Ok(StartRecord::parse(&bytes)?)
    };
    let record = read().with_context(|| format!("--prefetch-record {}", path.display()));
    record.map(Arc::new)
}

/// The digest of the only manifest that has this name.
fn manifest<'i>(images: &'i [Image], name: &str) -> Result<&'i str> {
    let Some((first, others)) = images.split_first() else {
        bail!("the daemon does not know an image {name}");
    };
    if let Some(other) = others.iter().find(|it| it.manifest != first.manifest) {
        bail!(
            "{name} means several images, for example {} and {}; name one by its whole reference or its digest",
            first.image,
            other.image
        );
    }
    Ok(&first.manifest)
}

/// Writes what was read early enough.
fn write(mut record: StartRecord, args: &PrefetchRecord) -> Result<()> {
    let within = args.within.as_millis();
    record.keep_within(u64::try_from(within).unwrap_or(u64::MAX));
    if record.is_empty() {
        bail!(
            "nothing was recorded for {}: no container has read from it while it was loaded lazily. Remove the image, \
             start a container of it again, and repeat this command; `soci status {0}` says whether it is loaded lazily, \
             and [prefetch] record in the daemon's configuration must not be false",
            args.image
        );
    }
    let text = serde_json::to_string_pretty(&record)? + "\n";
    if args.output.as_os_str().is_empty() {
        output::try_print(&text).context("write to standard output")
    } else {
        write_file(&args.output, &text)
    }
}

fn write_file(path: &Path, text: &str) -> Result<()> {
    fs::write(path, text).with_context(|| format!("write {}", path.display()))
}

#[cfg(test)]
mod tests {
    use std::path::PathBuf;

    use super::*;

    #[tokio::test]
    async fn a_longer_time_than_is_recorded_is_refused() {
        let args = |within| PrefetchRecord {
            image: "app:1".to_owned(),
            command: Vec::new(),
            run: false,
            within,
            output: PathBuf::new(),
            socket: PathBuf::from("/none"),
        };
        let fails = async |within| run(&args(within)).await.unwrap_err().to_string();
        let why = fails(MOST_WITHIN + Duration::from_nanos(1)).await;
        assert!(why.contains("10 minutes at most"), "{why}");
        let why = fails(MOST_WITHIN).await;
        assert!(!why.contains("--within"), "{why}");
    }
}
