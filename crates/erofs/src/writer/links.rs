//! Names in directories.

use super::{Image, ImageError, NONE, NodeId, layout};
use crate::format::MAX_NAME;

/// A name in a directory. Its child is [`NONE`] after removal; the slot is reused.
#[derive(Debug, Clone)]
pub(super) struct Link {
    dir: u32,
    pub(super) child: u32,
    name: u32,
    next: u32,
    name_len: u8,
}

impl Image {
    /// Adds a name for a node to a directory. A node that is not a directory can have many names.
    ///
    /// # Errors
    /// Fails if the name is invalid or already exists, if the parent is not a directory, or if the
    /// child is a directory that is already linked.
    ///
    /// # Panics
    /// If a node belongs to another image that has more nodes.
    pub fn link(&mut self, dir: NodeId, name: &[u8], child: NodeId) -> Result<(), ImageError> {
        check_name(name)?;
        if !self.is_dir(dir) {
            return Err(ImageError::NotADirectory(name.to_vec()));
        }
        if self.is_dir(child) && self.nodes[child.index()].extra != NONE {
            return Err(ImageError::DirectoryLinkedTwice(name.to_vec()));
        }
        let hash = self.index.hash(dir.0, name);
        match self.find(hash, dir, name) {
            Some(link) if self.links[link as usize].child != NONE => {
                return Err(ImageError::Duplicate(name.to_vec()));
            }
            Some(link) => self.links[link as usize].child = child.0,
            None => self.new_link(hash, dir, name, child)?,
        }
        if self.is_dir(child) {
            self.nodes[child.index()].extra = dir.0;
        }
        Ok(())
    }

    fn new_link(
        &mut self,
        hash: u32,
        dir: NodeId,
        name: &[u8],
        child: NodeId,
    ) -> Result<(), ImageError> {
        let id = u32::try_from(self.links.len()).unwrap_or(NONE);
        // The layout uses the last two numbers for `.` and `..`.
        if id >= layout::DOT {
            return Err(ImageError::TooMany("links"));
        }
        let offset = self.keep(name)?;
        let first = &mut self.nodes[dir.index()].place;
        let next = u32::try_from(*first).unwrap_or(NONE);
        *first = u64::from(id);
        let name_len = u8::try_from(name.len()).unwrap_or(u8::MAX);
        self.links.push(Link {
            dir: dir.0,
            child: child.0,
            name: offset,
            next,
            name_len,
        });
        self.index.insert(hash, id);
        Ok(())
    }

    /// Removes a name from a directory and returns its node.
    pub fn unlink(&mut self, dir: NodeId, name: &[u8]) -> Option<NodeId> {
        let link = self.find(self.index.hash(dir.0, name), dir, name)?;
        let child = std::mem::replace(&mut self.links[link as usize].child, NONE);
        if child == NONE {
            return None;
        }
        let child = NodeId(child);
        if self.is_dir(child) {
            self.nodes[child.index()].extra = NONE;
        }
        Some(child)
    }

    /// The node under a name in a directory.
    #[must_use]
    pub fn child(&self, dir: NodeId, name: &[u8]) -> Option<NodeId> {
        let link = self.find(self.index.hash(dir.0, name), dir, name)?;
        let child = self.links[link as usize].child;
        (child != NONE).then_some(NodeId(child))
    }

    fn find(&self, hash: u32, dir: NodeId, name: &[u8]) -> Option<u32> {
        self.index.find(hash, |id| {
            let link = &self.links[id as usize];
            link.dir == dir.0 && self.name(link) == name
        })
    }

    pub(super) fn name(&self, link: &Link) -> &[u8] {
        self.kept(link.name, usize::from(link.name_len))
    }

    /// Names and nodes in a directory, the most recently added first. Empty if the node is not a
    /// directory.
    ///
    /// # Panics
    /// If a node belongs to another image that has more nodes.
    pub fn children(&self, dir: NodeId) -> impl Iterator<Item = (&[u8], NodeId)> {
        self.links_of(dir).map(|id| {
            let link = &self.links[id as usize];
            (self.name(link), NodeId(link.child))
        })
    }

    pub(super) fn links_of(&self, dir: NodeId) -> impl Iterator<Item = u32> {
        let first = &self.nodes[dir.index()].place;
        let mut next = if self.is_dir(dir) {
            u32::try_from(*first).unwrap_or(NONE)
        } else {
            NONE
        };
        std::iter::from_fn(move || {
            let link = self.links.get(next as usize)?;
            Some(std::mem::replace(&mut next, link.next))
        })
        .filter(|&id| self.links[id as usize].child != NONE)
    }

    /// The parent of a directory: the root itself for the root, `None` if the directory is not
    /// linked.
    ///
    /// # Panics
    /// If a node belongs to another image that has more nodes.
    #[must_use]
    pub fn parent(&self, dir: NodeId) -> Option<NodeId> {
        let parent = self.nodes[dir.index()].extra;
        (self.is_dir(dir) && parent != NONE).then_some(NodeId(parent))
    }
}

fn check_name(name: &[u8]) -> Result<(), ImageError> {
    if name.len() > MAX_NAME {
        return Err(ImageError::NameTooLong(name.len()));
    }
    let special = matches!(name, b"" | b"." | b"..");
    if special || name.iter().any(|&byte| byte == 0 || byte == b'/') {
        return Err(ImageError::BadName(name.to_vec()));
    }
    Ok(())
}
