//! Extended attributes of the nodes: one arena of entries, and a list per node.

use super::{Image, ImageError, NONE, NodeId};
use crate::format::{
    MAX_XATTR_BODY, MAX_XATTR_NAME, MAX_XATTR_VALUE, XATTR_PREFIXES, xattr_entry_size,
};

/// Most attributes of one node. Common file systems hold far fewer (ext4: one block), and the limit
/// keeps a hostile archive from making the walk of the list expensive.
const MAX_XATTRS: usize = 1024;

/// An attribute in the arena: the number of its prefix; the rest of its name and its value are in
/// `bytes`.
#[derive(Debug, Clone)]
pub(super) struct Xattr {
    next: u32,
    name: u32,
    value: u32,
    value_len: u16,
    name_len: u8,
    pub(super) prefix: u8,
}

impl Image {
    /// Sets an extended attribute by its full name (`user.mime`), replacing an attribute with that
    /// name.
    ///
    /// # Errors
    /// [`ImageError::XattrName`] for a namespace that EROFS does not support, a name with a NUL, or
    /// an empty name after the prefix; [`ImageError::XattrTooLarge`].
    ///
    /// # Panics
    /// If a node belongs to another image that has more nodes.
    pub fn set_xattr(&mut self, node: NodeId, name: &[u8], value: &[u8]) -> Result<(), ImageError> {
        let bad_name = || ImageError::XattrName(name.to_vec());
        let too_large = || ImageError::XattrTooLarge {
            name: name.to_vec(),
            value: value.len(),
        };
        if name.len() > MAX_XATTR_NAME || name.contains(&0) {
            return Err(bad_name());
        }
        let (prefix, rest) = split(name).ok_or_else(bad_name)?;
        let value_len = u16::try_from(value.len()).map_err(|_| too_large())?;

        let mut body = xattr_entry_size(rest.len(), value.len());
        let mut count = 1;
        let mut there = None;
        for id in self.xattr_ids(node) {
            let xattr = &self.xattrs[id as usize];
            if xattr.prefix == prefix && self.xattr_name(xattr) == rest {
                there = Some(id);
            } else {
                body +=
                    xattr_entry_size(self.xattr_name(xattr).len(), self.xattr_value(xattr).len());
                count += 1;
            }
        }
        if body > MAX_XATTR_BODY || count > MAX_XATTRS {
            return Err(too_large());
        }

        let offset = self.keep(value)?;
        if let Some(id) = there {
            let xattr = &mut self.xattrs[id as usize];
            (xattr.value, xattr.value_len) = (offset, value_len);
            return Ok(());
        }
        let id = u32::try_from(self.xattrs.len()).unwrap_or(NONE);
        if id == NONE {
            return Err(ImageError::TooMany("extended attributes"));
        }
        let name = self.keep(rest)?;
        let name_len = u8::try_from(rest.len()).unwrap_or(u8::MAX);
        let next = std::mem::replace(&mut self.nodes[node.index()].xattrs, id);
        self.xattrs.push(Xattr {
            next,
            name,
            value: offset,
            value_len,
            name_len,
            prefix,
        });
        Ok(())
    }

    /// Removes an attribute from a node. Returns whether it existed.
    ///
    /// # Panics
    /// If a node belongs to another image that has more nodes.
    pub fn remove_xattr(&mut self, node: NodeId, name: &[u8]) -> bool {
        let Some((prefix, rest)) = split(name) else {
            return false;
        };
        let mut before = NONE;
        let mut at = self.nodes[node.index()].xattrs;
        while at != NONE {
            let xattr = &self.xattrs[at as usize];
            let next = xattr.next;
            if xattr.prefix == prefix && self.xattr_name(xattr) == rest {
                match before {
                    NONE => self.nodes[node.index()].xattrs = next,
                    before => self.xattrs[before as usize].next = next,
                }
                return true;
            }
            (before, at) = (at, next);
        }
        false
    }

    /// The value of an attribute by its full name.
    ///
    /// # Panics
    /// If a node belongs to another image that has more nodes.
    #[must_use]
    pub fn xattr(&self, node: NodeId, name: &[u8]) -> Option<&[u8]> {
        let (prefix, rest) = split(name)?;
        self.xattrs_of(node)
            .find(|xattr| xattr.prefix == prefix && self.xattr_name(xattr) == rest)
            .map(|xattr| self.xattr_value(xattr))
    }

    /// Full names and values of a node's attributes, the most recently added first.
    ///
    /// # Panics
    /// If a node belongs to another image that has more nodes.
    pub fn xattrs(&self, node: NodeId) -> impl Iterator<Item = (Vec<u8>, &[u8])> {
        self.xattrs_of(node).map(|xattr| {
            let prefix = XATTR_PREFIXES
                .iter()
                .find(|(number, _)| *number == xattr.prefix);
            let mut name = prefix.map(|(_, text)| text.to_vec()).unwrap_or_default();
            name.extend_from_slice(self.xattr_name(xattr));
            (name, self.xattr_value(xattr))
        })
    }

    /// Whether a node has any attributes.
    ///
    /// # Panics
    /// If a node belongs to another image that has more nodes.
    #[must_use]
    pub fn has_xattrs(&self, node: NodeId) -> bool {
        self.nodes[node.index()].xattrs != NONE
    }

    pub(super) fn xattrs_of(&self, node: NodeId) -> impl Iterator<Item = &Xattr> {
        self.xattr_ids(node).map(|id| &self.xattrs[id as usize])
    }

    fn xattr_ids(&self, node: NodeId) -> impl Iterator<Item = u32> {
        let mut next = self.nodes[node.index()].xattrs;
        std::iter::from_fn(move || {
            let xattr = self.xattrs.get(next as usize)?;
            Some(std::mem::replace(&mut next, xattr.next))
        })
    }

    /// Size of all attributes of a node in bytes, without the header.
    pub(super) fn xattr_body(&self, node: NodeId) -> usize {
        self.xattrs_of(node)
            .map(|xattr| xattr_entry_size(usize::from(xattr.name_len), xattr.value_len.into()))
            .sum()
    }

    /// The name after the prefix.
    pub(super) fn xattr_name(&self, xattr: &Xattr) -> &[u8] {
        self.kept(xattr.name, usize::from(xattr.name_len))
    }

    pub(super) fn xattr_value(&self, xattr: &Xattr) -> &[u8] {
        self.kept(xattr.value, usize::from(xattr.value_len))
    }
}

const _: () = assert!(
    MAX_XATTR_VALUE == u16::MAX as usize,
    "a value's length has 16 bits"
);

/// Splits a full name into the number of its prefix and the rest. The two ACL names are prefixes
/// without a rest; all others have one.
fn split(name: &[u8]) -> Option<(u8, &[u8])> {
    XATTR_PREFIXES.iter().find_map(|(number, prefix)| {
        let rest = name.strip_prefix(*prefix)?;
        let whole = !prefix.ends_with(b".");
        (whole == rest.is_empty()).then_some((*number, rest))
    })
}
