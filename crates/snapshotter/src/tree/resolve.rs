//! Resolves a path within one layer. Links are followed like in containerd's `RootPath`.
//!
//! Its rules differ from the kernel's. The target of a link is put before the rest of the path as
//! text, and the result is cleaned lexically. This repeats until a round meets no link. Where a
//! chain of links makes a difference, this module follows containerd. Where the outcome would
//! depend on the machine (a chain through an absolute link is looked up outside the layer), it
//! stops with an error.

use std::convert::Infallible;

use soci_erofs::{Image, Kind, NodeId};

/// Maximum number of links in one path.
const MAX_LINKS: u32 = 255;
/// Maximum number of links that the kernel follows in one lookup.
const MAX_KERNEL_LINKS: u32 = 40;

/// The kind of a node.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Look {
    Directory,
    Link(Vec<u8>),
    Other,
}

/// A tree that can be walked by name.
pub(super) trait Nodes {
    type Node: Copy;
    type Error;

    fn root(&self) -> Self::Node;
    fn child(&self, dir: Self::Node, name: &[u8]) -> Result<Option<Self::Node>, Self::Error>;
    fn look(&self, node: Self::Node) -> Result<Look, Self::Error>;
}

impl Nodes for Image {
    type Node = NodeId;
    type Error = Infallible;

    fn root(&self) -> NodeId {
        NodeId::ROOT
    }

    fn child(&self, dir: NodeId, name: &[u8]) -> Result<Option<NodeId>, Infallible> {
        Ok(Image::child(self, dir, name))
    }

    fn look(&self, node: NodeId) -> Result<Look, Infallible> {
        Ok(match self.kind(node) {
            Kind::Directory => Look::Directory,
            Kind::Symlink(target) => Look::Link(target.to_vec()),
            _ => Look::Other,
        })
    }
}

/// Why a path cannot be resolved.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Stop<E> {
    NotADirectory,
    TooManyLinks,
    Outside,
    TooMuchWork,
    Tree(E),
}

/// The number of steps left.
#[derive(Debug)]
pub(super) struct Effort(pub(super) u64);

impl Effort {
    pub(super) fn step<E>(&mut self, steps: u64) -> Result<(), Stop<E>> {
        self.0 = self.0.checked_sub(steps).ok_or(Stop::TooMuchWork)?;
        Ok(())
    }
}

/// The nonempty components of a path.
pub(super) fn components(path: &[u8]) -> impl DoubleEndedIterator<Item = &[u8]> {
    path.split(|&byte| byte == b'/')
        .filter(|part| !part.is_empty())
}

/// Cleans a path lexically: removes empty components and `.`, and resolves `..` where there is a
/// component to remove.
pub(super) fn clean(path: &[u8]) -> Vec<u8> {
    let rooted = path.first() == Some(&b'/');
    let mut parts: Vec<&[u8]> = Vec::new();
    for part in components(path) {
        match part {
            b"." => {}
            b".." => match parts.last() {
                Some(&last) if last != b".." => drop(parts.pop()),
                _ if rooted => {}
                _ => parts.push(part),
            },
            _ => parts.push(part),
        }
    }
    let text = parts.join(&b'/');
    match (rooted, text.is_empty()) {
        (true, _) => [b"/", text.as_slice()].concat(),
        (false, true) => b".".to_vec(),
        (false, false) => text,
    }
}

/// Joins two paths and cleans the result.
fn join(front: &[u8], back: &[u8]) -> Vec<u8> {
    if front.is_empty() {
        clean(back)
    } else {
        clean(&[front, b"/", back].concat())
    }
}

/// Follows every link of a path. The result is clean and absolute. Its existing part contains no
/// links.
pub(super) fn root_path<N: Nodes>(
    nodes: &N,
    path: &[u8],
    effort: &mut Effort,
) -> Result<Vec<u8>, Stop<N::Error>> {
    let mut path = path.to_vec();
    let mut walked = 0;
    loop {
        let before = walked;
        path = walk_links(nodes, &path, &mut walked, effort)?;
        if before == walked {
            return Ok(join(b"/", &path));
        }
    }
}

/// One round: follows each link that it meets once, from the start.
fn walk_links<N: Nodes>(
    nodes: &N,
    path: &[u8],
    walked: &mut u32,
    effort: &mut Effort,
) -> Result<Vec<u8>, Stop<N::Error>> {
    // For the first component of a relative path there is no base, so its target is kept as is.
    let mut at = (path.first() == Some(&b'/')).then(|| b"/".to_vec());
    for part in components(path) {
        let here = at
            .as_ref()
            .map_or_else(|| part.to_vec(), |at| join(at, part));
        let here = join(b"/", &here);
        effort.step(1 + here.len() as u64 / 16)?;
        at = Some(match (link_at(nodes, &here, walked, effort)?, at) {
            (None, _) => here,
            (Some(target), _) if target.first() == Some(&b'/') => target,
            (Some(target), Some(at)) => join(&at, &target),
            (Some(target), None) => target,
        });
    }
    Ok(at.unwrap_or_default())
}

/// The target of the link at a clean path, if there is one.
fn link_at<N: Nodes>(
    nodes: &N,
    path: &[u8],
    walked: &mut u32,
    effort: &mut Effort,
) -> Result<Option<Vec<u8>>, Stop<N::Error>> {
    if *walked > MAX_LINKS {
        return Err(Stop::TooManyLinks);
    }
    let found = find(nodes, path, effort)?;
    let Some(node) = found else { return Ok(None) };
    match nodes.look(node).map_err(Stop::Tree)? {
        Look::Link(target) => {
            *walked += 1;
            Ok(Some(target))
        }
        _ => Ok(None),
    }
}

/// The node at a path. The last component is not followed, the others are followed as by the
/// kernel.
pub(super) fn find<N: Nodes>(
    nodes: &N,
    path: &[u8],
    effort: &mut Effort,
) -> Result<Option<N::Node>, Stop<N::Error>> {
    let mut above = vec![nodes.root()];
    let mut todo: Vec<Vec<u8>> = components(path).rev().map(<[u8]>::to_vec).collect();
    let mut links = 0;
    while let Some(part) = todo.pop() {
        effort.step(1)?;
        let dir = above[above.len() - 1];
        if nodes.look(dir).map_err(Stop::Tree)? != Look::Directory {
            return Err(Stop::NotADirectory);
        }
        match part.as_slice() {
            b"." => continue,
            b".." if above.len() == 1 => return Err(Stop::Outside),
            b".." => {
                above.pop();
                continue;
            }
            _ => {}
        }
        let Some(node) = nodes.child(dir, &part).map_err(Stop::Tree)? else {
            return Ok(None);
        };
        match nodes.look(node).map_err(Stop::Tree)? {
            Look::Link(target) if !todo.is_empty() => {
                links += 1;
                if links > MAX_KERNEL_LINKS {
                    return Err(Stop::TooManyLinks);
                }
                if target.first() == Some(&b'/') {
                    return Err(Stop::Outside);
                }
                effort.step(target.len() as u64)?;
                todo.extend(components(&target).rev().map(<[u8]>::to_vec));
            }
            _ => above.push(node),
        }
    }
    Ok(above.last().copied())
}

#[cfg(test)]
mod tests {
    use soci_erofs::{Attributes, Inode};

    use super::*;

    /// A tree of directories and links: `("a/b", None)` or `("a/l", Some("target"))`.
    fn tree(things: &[(&str, Option<&str>)]) -> Image {
        let mut image = Image::new(0, Attributes::default()).expect("image");
        for (path, target) in things {
            let (dir, name) = path.rsplit_once('/').unwrap_or(("", path));
            let dir = find(&image, dir.as_bytes(), &mut Effort(100))
                .expect("dir")
                .expect("exists");
            let kind = target.map_or(Kind::Directory, |target| Kind::Symlink(target.as_bytes()));
            let inode = Inode {
                kind,
                attributes: Attributes::default(),
            };
            let node = image.inode(&inode).expect("node");
            image.link(dir, name.as_bytes(), node).expect("link");
        }
        image
    }

    fn resolved(image: &Image, path: &str) -> Result<String, Stop<Infallible>> {
        root_path(image, path.as_bytes(), &mut Effort(1_000_000))
            .map(|path| String::from_utf8(path).expect("ascii"))
    }

    #[test]
    fn paths_are_cleaned_as_text() {
        for (path, wanted) in [
            ("", "."),
            ("a//b/./c/", "a/b/c"),
            ("a/../../b", "../b"),
            ("/a/../../b", "/b"),
            ("/..", "/"),
            ("a/..", "."),
        ] {
            assert_eq!(clean(path.as_bytes()), wanted.as_bytes(), "{path}");
        }
    }

    #[test]
    fn links_stay_inside_the_layer() {
        let image = tree(&[
            ("usr", None),
            ("usr/lib", None),
            ("lib", Some("usr/lib")),
            ("up", Some("../../../usr")),
            ("abs", Some("/usr/lib")),
            ("dangling", Some("no/where")),
        ]);
        assert_eq!(resolved(&image, "lib/x").as_deref(), Ok("/usr/lib/x"));
        assert_eq!(resolved(&image, "up/lib").as_deref(), Ok("/usr/lib"));
        assert_eq!(resolved(&image, "abs").as_deref(), Ok("/usr/lib"));
        assert_eq!(resolved(&image, "dangling/f").as_deref(), Ok("/no/where/f"));
        assert_eq!(resolved(&image, "../lib").as_deref(), Ok("/usr/lib"));
        assert_eq!(resolved(&image, "").as_deref(), Ok("/"));
    }

    #[test]
    fn a_target_after_two_links_is_joined_lexically() {
        // The kernel would resolve this to real/lib. containerd goes up from `u2` lexically.
        let image = tree(&[
            ("real", None),
            ("real/usr", None),
            ("real/usr/l", Some("../lib")),
            ("u2", Some("real/usr")),
            ("usr", Some("u2")),
        ]);
        assert_eq!(resolved(&image, "usr/l/f").as_deref(), Ok("/lib/f"));
        assert_eq!(resolved(&image, "u2/l/f").as_deref(), Ok("/real/lib/f"));
    }

    #[test]
    fn cycles_and_links_out_of_the_layer_stop() {
        let image = tree(&[
            ("a", Some("b")),
            ("b", Some("a")),
            ("c", Some("d")),
            ("d", Some("/etc")),
        ]);
        assert_eq!(resolved(&image, "a"), Err(Stop::TooManyLinks));
        assert_eq!(resolved(&image, "a/x"), Err(Stop::TooManyLinks));
        assert_eq!(resolved(&image, "c/x"), Err(Stop::Outside));
        assert_eq!(resolved(&image, "d/x").as_deref(), Ok("/etc/x"));
        let tired = root_path(&image, b"a/x", &mut Effort(3));
        assert_eq!(tired, Err(Stop::TooMuchWork));
    }
}
