//! `soci status`: shows what the daemon says about its images.

pub(crate) mod client;
mod show;

use std::io::{IsTerminal as _, stdout};
use std::time::Duration;

use anyhow::{Result, bail};
use soci_status::{Image, Status};

use crate::args;
use crate::output;

/// How often `--watch` asks.
const EVERY: Duration = Duration::from_secs(2);
/// Clears a terminal and moves its cursor to the top.
const CLEAR: &str = "\x1b[2J\x1b[H";

/// Runs the command.
pub(crate) async fn run(args: &args::Status) -> Result<()> {
    loop {
        let mut status = client::ask(&args.socket).await?;
        select(&mut status, &args.image)?;
        let text = match args.json {
            true if args.watch => serde_json::to_string(&status)? + "\n",
            true => serde_json::to_string_pretty(&status)? + "\n",
            false if args.image.is_empty() => show::all(&status),
            false => status.images.iter().map(show::one).collect(),
        };
        if !args.watch {
            output::print(&text);
            return Ok(());
        }
        let clear = if stdout().is_terminal() { CLEAR } else { "" };
        if output::try_print(&format!("{clear}{text}")).is_err() {
            // Nobody reads any more.
            return Ok(());
        }
        tokio::time::sleep(EVERY).await;
    }
}

/// Removes the other images. An empty name selects all.
pub(crate) fn select(status: &mut Status, name: &str) -> Result<()> {
    if name.is_empty() {
        return Ok(());
    }
    status.images.retain(|image| is_named(image, name));
    if status.images.is_empty() {
        bail!(
            "the daemon does not know an image {name}: it has no snapshot of it; `soci status` lists all images"
        );
    }
    Ok(())
}

fn is_named(image: &Image, name: &str) -> bool {
    let ends = |reference: &str| {
        let before = reference.strip_suffix(name);
        before.is_some_and(|before| before.is_empty() || before.ends_with('/'))
    };
    ends(&image.image) || image.manifest == name
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_image_has_several_names() {
        let image = Image {
            image: "registry.example/team/app:1".to_owned(),
            manifest: "sha256:12".to_owned(),
            ..Image::default()
        };
        for name in [
            "registry.example/team/app:1",
            "team/app:1",
            "app:1",
            "sha256:12",
        ] {
            assert!(is_named(&image, name), "{name}");
        }
        for name in ["pp:1", "app", "sha256:1", "other/team/app:1"] {
            assert!(!is_named(&image, name), "{name}");
        }
    }

    #[test]
    fn an_unknown_image_is_an_error() {
        let mut status = Status::default();
        assert!(select(&mut status, "").is_ok());
        let error = select(&mut status, "app:1").unwrap_err().to_string();
        assert!(error.contains("app:1"), "{error}");
    }
}
