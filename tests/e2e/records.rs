//! The records of what `soci` built in containerd: lists, reading files through zTOCs, rebuilding,
//! and garbage collection.

use std::fs;
use std::os::unix::fs::PermissionsExt as _;

use anyhow::{Context, Result, ensure};
use soci_oci::Descriptor;
use soci_oci::media_type::OCI_MANIFEST;
use soci_store::containerd::Containerd;
use soci_store::{Labels, StoreError};
use soci_tests::image::noise;
use soci_tests::node::OVERLAYFS;
use soci_tests::tar::{directory, file, hardlink, symlink};
use soci_tests::{Image, Site};

const SPANS: [&str; 4] = ["--min-layer-size", "0", "--span-size", "65536"];

/// An image in containerd with two layers and small spans, and its name.
struct Made {
    site: Site,
    name: String,
    big: Vec<u8>,
}

impl Made {
    fn new() -> Result<Self> {
        let site = Site::oracle_only()?;
        let big = noise(7, 3 << 20);
        let image = Image::of(&[
            &[
                directory("data"),
                file("data/before", noise(1, 100_000)),
                file("data/big", big.clone()),
                file("data/after", noise(2, 100_000)),
                hardlink("data/same", "data/big"),
                symlink("data/loop", "data/loop"),
                symlink("data/relative", "big"),
                file("data/empty", ""),
            ],
            &[file("data/small", "small\n")],
        ])?;
        let name = site.publish_plain(&image, "app:1")?;
        site.node.pull(&name, OVERLAYFS)?;
        Ok(Self { site, name, big })
    }

    fn create(&self) -> Result<()> {
        let mut words = vec!["create"];
        words.extend(SPANS);
        words.push(&self.name);
        self.soci(&words).map(drop)
    }

    fn soci(&self, words: &[&str]) -> Result<String> {
        self.site.node.soci(words)?.succeed()
    }

    fn fails(&self, words: &[&str]) -> Result<String> {
        let finished = self.site.node.soci(words)?.finish()?;
        ensure!(finished.code == Some(1), "{words:?}: {}", finished.stdout);
        Ok(finished.stderr)
    }

    /// The lines of a list in quiet mode.
    fn digests(&self, words: &[&str]) -> Result<Vec<String>> {
        let said = self.soci(&[words, &["-q"]].concat())?;
        Ok(said.lines().map(str::to_owned).collect())
    }

    /// The blobs of these digests that are still in containerd.
    fn left(&self, digests: &[String]) -> Result<usize> {
        let listed = self.site.node.ctr(["content", "ls", "-q"])?.succeed()?;
        let is_there = |digest: &&String| listed.lines().any(|line| line == digest.as_str());
        Ok(digests.iter().filter(is_there).count())
    }

    fn forget_records(&self) -> Result<()> {
        let path = self.site.node.folder().join("soci-cli/artifacts.redb");
        fs::remove_file(path).context("the records")
    }
}

#[test]
fn an_index_is_listed_shown_and_removed() -> Result<()> {
    let made = Made::new()?;
    made.create()?;
    let listed = made.soci(&["index", "list"])?;
    let rows: Vec<&str> = listed.lines().collect();
    // Finch looks for the name in this output.
    ensure!(rows.len() == 2 && rows[1].contains(&made.name), "{listed}");
    ensure!(
        rows[1].contains("  v1  ") && rows[1].contains("s ago"),
        "{listed}"
    );
    let indexes = made.digests(&["index", "ls"])?;
    ensure!(
        made.digests(&["index", "ls", "--ref", &made.name])? == indexes,
        "{indexes:?}"
    );
    ensure!(made.digests(&["index", "ls", "--ref", &made.name, "-p", "linux/amd64"])? == indexes);
    let said = made.fails(&["index", "ls", "--ref", &made.name, "-p", "linux/s390x"])?;
    assert_eq!(
        said,
        "soci: image manifest for platform linux/s390x: not found\n"
    );
    let said = made.fails(&["index", "ls", "--ref", "nobody"])?;
    assert_eq!(said, "soci: image \"nobody\": not found\n");

    // Another name of the same image gets its own row.
    let other = made.site.reference("other:1");
    made.site
        .node
        .ctr(["images", "tag", &made.name, &other])?
        .succeed()?;
    let listed = made.soci(&["index", "list"])?;
    ensure!(
        listed.lines().count() == 3 && listed.contains(&other),
        "{listed}"
    );

    let shown = made.soci(&["index", "info", &indexes[0]])?;
    ensure!(
        shown.contains("\"com.amazon.soci.span-size\": \"65536\""),
        "{shown}"
    );

    made.soci(&["index", "rm", "--ref", &made.name])?;
    assert!(made.digests(&["index", "ls"])?.is_empty());
    assert_eq!(made.left(&indexes)?, 0);
    // Removing nothing is not an error.
    made.soci(&["index", "rm", "--ref", &made.name])?;

    made.create()?;
    let indexes = made.digests(&["index", "ls"])?;
    // A missing blob is not an error, and the record is removed.
    made.site
        .node
        .ctr(["content", "rm", &indexes[0]])?
        .succeed()?;
    made.soci(&["index", "rm", &indexes[0]])?;
    assert!(made.digests(&["index", "ls"])?.is_empty());
    assert_eq!(made.digests(&["ztoc", "ls"])?.len(), 2);
    made.soci(&["rebuild-db"])?;
    assert!(made.digests(&["index", "ls"])?.is_empty());
    Ok(())
}

#[test]
fn files_are_read_from_layers_through_their_ztocs() -> Result<()> {
    let made = Made::new()?;
    made.create()?;
    let ztocs = made.digests(&["ztoc", "ls", "--image-ref", &made.name])?;
    assert_eq!(ztocs.len(), 2);
    let mut all = made.digests(&["ztoc", "ls"])?;
    all.sort();
    let mut of_image = ztocs.clone();
    of_image.sort();
    assert_eq!(all, of_image);
    let line = ["ztoc", "ls", "--image-ref", &made.name, "--ztoc-digest"];
    let one = [&line[..], &[&ztocs[1]]].concat();
    assert_eq!(made.digests(&one)?, ztocs[1..]);
    let said = made.fails(&[&line[..], &["sha256:none"]].concat())?;
    assert_eq!(
        said,
        "soci: the specified ztoc doesn't exist or is not associated with the specified image\n"
    );

    let info: serde_json::Value = serde_json::from_str(&made.soci(&["ztoc", "info", &ztocs[0]])?)?;
    ensure!(
        info["num_spans"].as_u64() > Some(40),
        "{}",
        info["num_spans"]
    );
    assert_eq!(info["files"][0]["filename"], "data/");

    let small = ["ztoc", "get-file", &ztocs[1], "data/small"];
    assert_eq!(made.soci(&small)?, "small\n\n");
    assert_eq!(
        made.soci(&["ztoc", "get-file", &ztocs[0], "data/empty"])?,
        "\n"
    );
    let output = made.site.folder().join("out");
    let shown = output.to_str().context("a path")?;
    // Over an existing file, and by the name of a hard link.
    for name in ["data/big", "data/same"] {
        fs::write(&output, "old")?;
        made.soci(&["ztoc", "get-file", "-o", shown, &ztocs[0], name])?;
        ensure!(fs::read(&output)? == made.big, "{name} has other bytes");
    }
    assert_eq!(fs::metadata(&output)?.permissions().mode() & 0o777, 0o644);

    fs::write(&output, "old")?;
    for (name, message) in [
        ("nothing", "file nothing does not exist in metadata"),
        ("data", "file data does not exist in metadata"),
        ("data/relative", "file big does not exist in metadata"),
        (
            "data/loop",
            "file data/loop does not exist in metadata: its links lead in a circle",
        ),
    ] {
        let said = made.fails(&["ztoc", "get-file", "-o", shown, &ztocs[0], name])?;
        assert_eq!(said, format!("soci: {message}\n"));
    }
    assert_eq!(fs::read(&output)?, b"old");
    let said = made.fails(&[
        "ztoc",
        "get-file",
        "-o",
        "/nowhere/out",
        &ztocs[1],
        "data/small",
    ])?;
    assert_eq!(said, "soci: open /nowhere/out: no such file or directory\n");
    Ok(())
}

#[test]
fn lost_records_are_rebuilt_from_what_containerd_has() -> Result<()> {
    let made = Made::new()?;
    made.create()?;
    let converted = made.site.reference("app:soci");
    let mut words = vec!["convert", "--prefetch-file", "data/small"];
    words.extend(SPANS);
    words.extend([made.name.as_str(), converted.as_str()]);
    made.soci(&words)?;
    let lists = || -> Result<[Vec<String>; 3]> {
        let mut lists = [
            made.digests(&["index", "ls"])?,
            made.digests(&["ztoc", "ls"])?,
            made.soci(&["prefetch", "ls"])?
                .lines()
                .filter_map(|line| line.split_whitespace().next())
                .map(str::to_owned)
                .collect(),
        ];
        lists.iter_mut().for_each(|list| list.sort());
        Ok(lists)
    };
    let before = lists()?;
    assert_eq!(before.each_ref().map(Vec::len), [2, 2, 2]);
    // Each zTOC once, although the version 2 index exists next to its image.
    assert_eq!(
        made.digests(&["ztoc", "ls", "--image-ref", &converted])?
            .len(),
        2
    );

    made.forget_records()?;
    made.soci(&["rebuild-db"])?;
    assert_eq!(lists()?, before);
    let listed = made.soci(&["index", "list"])?;
    ensure!(listed.contains(&made.name), "{listed}");
    ensure!(listed.contains(&converted), "{listed}");
    ensure!(
        listed.contains("  v1  ") && listed.contains("  v2  "),
        "{listed}"
    );

    // The second time there is nothing to do.
    made.soci(&["rebuild-db"])?;
    assert_eq!(lists()?, before);
    Ok(())
}

#[test]
fn artifacts_stay_with_their_image_and_go_with_it() -> Result<()> {
    let made = Made::new()?;
    made.create()?;
    let mut artifacts = made.digests(&["index", "ls"])?;
    artifacts.extend(made.digests(&["ztoc", "ls"])?);
    made.site
        .node
        .ctr(["content", "prune", "references"])?
        .succeed()?;
    assert_eq!(made.left(&artifacts)?, 3);

    made.site.node.remove_image(&made.name)?;
    assert_eq!(made.left(&artifacts)?, 0);
    // Until they are rebuilt, the records list what was built.
    let listed = made.soci(&["index", "list"])?;
    ensure!(
        listed.lines().count() == 2 && !listed.contains(&made.name),
        "{listed}"
    );
    made.soci(&["rebuild-db"])?;
    assert!(made.digests(&["index", "ls"])?.is_empty());
    assert!(made.digests(&["ztoc", "ls"])?.is_empty());
    Ok(())
}

#[test]
fn the_content_store_soci_keeps_what_containerd_would_not() -> Result<()> {
    let made = Made::new()?;
    let own = |words: &[&str]| made.soci(&[&["--content-store", "soci"], words].concat());
    let mut words = vec!["create"];
    words.extend(SPANS);
    words.push(&made.name);
    own(&words)?;
    let indexes = made.digests(&["index", "ls"])?;
    let ztocs = made.digests(&[
        "--content-store",
        "soci",
        "ztoc",
        "ls",
        "--image-ref",
        &made.name,
    ])?;
    assert_eq!((indexes.len(), ztocs.len()), (1, 2));
    assert_eq!(made.left(&indexes)?, 0);
    let index = fs::read_to_string(made.site.node.folder().join("soci-cli/content/index.json"))?;
    let kind = "\"artifactType\":\"application/vnd.amazon.soci.index.v1+json\"";
    ensure!(index.contains(kind), "{index}");
    ensure!(
        index.contains(&indexes[0]) && !index.contains(&ztocs[0]),
        "{index}"
    );
    let small = ["ztoc", "get-file", &ztocs[1], "data/small"];
    assert_eq!(own(&small)?, "small\n\n");

    made.forget_records()?;
    own(&["rebuild-db"])?;
    assert_eq!(made.digests(&["index", "ls"])?, indexes);
    ensure!(made.soci(&["index", "ls"])?.contains(&made.name));
    // The other store contains none of it.
    made.soci(&["rebuild-db"])?;
    assert!(made.digests(&["index", "ls"])?.is_empty());
    Ok(())
}

#[test]
fn labels_that_others_add_while_an_image_is_put_again_stay() -> Result<()> {
    let site = Site::oracle_only()?;
    let socket = site.node.containerd_socket();
    let address = socket.to_str().context("a path of text")?;
    let (name, target) = ("example.test/app:1", Descriptor::of(OCI_MANIFEST, b"{}"));
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .enable_all()
        .build()?;
    runtime.block_on(async {
        let containerd = Containerd::connect(address, "default", None).await?;
        containerd.put_image(name, &target, None).await?;
        let labels = async {
            for number in 0..300 {
                let labels = Labels::from([(format!("label-{number}"), "x".to_owned())]);
                containerd.label_image(name, &labels).await?;
            }
            Ok::<_, StoreError>(())
        };
        let puts = async {
            for _ in 0..300 {
                containerd.put_image(name, &target, None).await?;
            }
            Ok(())
        };
        tokio::try_join!(labels, puts)?;
        let kept = containerd.image(name).await?.labels.len();
        ensure!(kept == 300, "{kept} labels of 300 are left");
        Ok(())
    })
}
