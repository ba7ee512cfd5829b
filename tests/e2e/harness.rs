//! The oracle and the comparison itself, without our programs.

use anyhow::Result;
use soci_tests::node::OVERLAYFS;
use soci_tests::tar::{directory, file, hardlink, symlink, whiteout};
use soci_tests::{Image, Site, walk};

#[test]
fn containerd_alone_pulls_and_runs_an_image_of_the_test() -> Result<()> {
    let site = Site::oracle_only()?;
    let image = Image::runnable(&[&[file("hello", "from a layer\n")]])?;
    let reference = site.publish_plain(&image, "hello:1")?;
    site.node.pull(&reference, OVERLAYFS)?;
    let said = site
        .node
        .run(&reference, OVERLAYFS, "one", &["/bin/cat", "/hello"])?;
    assert_eq!(said.stdout, "from a layer\n", "{}", said.stderr);
    assert!(
        site.relay.delivered() > 0,
        "the pull went through the relay"
    );
    Ok(())
}

#[test]
fn two_views_of_the_oracle_are_equal_and_a_changed_one_is_not() -> Result<()> {
    let start = walk::now();
    let site = Site::oracle_only()?;
    let lower = [
        directory("d"),
        file("d/a", "1"),
        file("d/b", "2"),
        symlink("l", "d/a"),
        hardlink("h", "d/b"),
    ];
    let image = Image::of(&[&lower, &[whiteout("d/a")]])?;
    let other = Image::of(&[&lower, &[file("d/a", "3").mode(0o600)]])?;
    let views = [(&image, "one:1"), (&image, "two:1"), (&other, "other:1")]
        .map(|(image, name)| {
            let reference = site.publish_plain(image, name)?;
            site.node.pull(&reference, OVERLAYFS)?;
            site.node.view(&reference, OVERLAYFS)
        })
        .into_iter()
        .collect::<Result<Vec<_>>>()?;
    let none = walk::differences(views[0].path(), views[1].path(), start)?;
    assert!(none.is_empty(), "{none:#?}");
    let some = walk::differences(views[0].path(), views[2].path(), start)?;
    assert_eq!(some.len(), 1, "{some:#?}");
    assert!(some[0].starts_with("d/a: should not be there"), "{some:#?}");
    Ok(())
}
