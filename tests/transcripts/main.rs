//! Transcripts of `soci` with a real containerd and a real registry; see `README.md` in this folder for which row of
//! the command line's contract is proven where.

mod fixture;

use std::fs;
use std::path::PathBuf;

use anyhow::Result;
use soci_tests::transcript::play;

use fixture::Fixture;

fn folder() -> PathBuf {
    soci_tests::process::repository().join("tests/transcripts")
}

macro_rules! transcripts {
    ($($name:ident)*) => {
        const NAMES: &[&str] = &[$(stringify!($name)),*];
        $(
            #[test]
            fn $name() -> Result<()> {
                let name = stringify!($name);
                let fixture = Fixture::new(name)?;
                play(&folder().join(format!("{name}.txt")), fixture.stage())
            }
        )*
    };
}

transcripts! {
    parsing
    help
    global
    convert
    standalone
    verify
    create
    push
    index
    ztoc
    prefetch
    rebuild_db
}

#[test]
fn every_transcript_is_played() {
    let entries = fs::read_dir(folder())
        .expect("list the transcripts")
        .flatten();
    let mut files: Vec<String> = entries
        .filter_map(|entry| entry.file_name().into_string().ok())
        .filter_map(|name| name.strip_suffix(".txt").map(str::to_owned))
        .collect();
    files.sort();
    let mut names = NAMES.to_vec();
    names.sort_unstable();
    assert_eq!(files, names);
}
