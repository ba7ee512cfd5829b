//! POSIX access control lists in the kernel's format: parsing, validation, chmod, inheritance, and
//! encoding.

const VERSION: u32 = 2;
/// The id of entries that have none.
const NO_ID: u32 = u32::MAX;

const USER_OBJ: u16 = 0x01;
const USER: u16 = 0x02;
const GROUP_OBJ: u16 = 0x04;
const GROUP: u16 = 0x08;
const MASK: u16 = 0x10;
const OTHER: u16 = 0x20;

/// Why a value is not a valid list.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum AclError {
    /// A different version. The kernel reports "not supported", and unpacking skips the attribute.
    Version,
    /// Any other error.
    Malformed,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct AclEntry {
    tag: u16,
    perm: u16,
    id: u32,
}

/// A parsed list.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Acl(Vec<AclEntry>);

impl Acl {
    /// Parses the value of an attribute. `None` if it has no entries, which removes a list.
    pub(super) fn parse(value: &[u8]) -> Result<Option<Self>, AclError> {
        if value.is_empty() {
            return Ok(None);
        }
        let (version, body) = value.split_first_chunk::<4>().ok_or(AclError::Malformed)?;
        if u32::from_le_bytes(*version) != VERSION {
            return Err(AclError::Version);
        }
        let (records, []) = body.as_chunks::<8>() else {
            return Err(AclError::Malformed);
        };
        if records.is_empty() {
            return Ok(None);
        }
        let entries = records.iter().map(|&[t0, t1, p0, p1, i0, i1, i2, i3]| {
            let tag = u16::from_le_bytes([t0, t1]);
            let id = u32::from_le_bytes([i0, i1, i2, i3]);
            let id = match tag {
                USER | GROUP if id == NO_ID => return Err(AclError::Malformed),
                USER | GROUP => id,
                USER_OBJ | GROUP_OBJ | MASK | OTHER => NO_ID,
                _ => return Err(AclError::Malformed),
            };
            Ok(AclEntry {
                tag,
                perm: u16::from_le_bytes([p0, p1]),
                id,
            })
        });
        Ok(Some(Self(entries.collect::<Result<_, _>>()?)))
    }

    /// Whether the kernel accepts the list: entries in order, and a mask if there are named
    /// entries.
    pub(super) fn is_valid(&self) -> bool {
        let mut next = USER_OBJ;
        let mut needs_mask = false;
        for entry in &self.0 {
            next = match (entry.tag, next) {
                _ if entry.perm > 7 => return false,
                (USER_OBJ, USER_OBJ) => USER,
                (USER, USER) => {
                    needs_mask = true;
                    USER
                }
                (GROUP_OBJ, USER) => GROUP,
                (GROUP, GROUP) => {
                    needs_mask = true;
                    GROUP
                }
                (MASK, GROUP) => OTHER,
                (OTHER, OTHER) => 0,
                (OTHER, GROUP) if !needs_mask => 0,
                _ => return false,
            };
        }
        next == 0
    }

    /// The value of the attribute.
    pub(super) fn to_value(&self) -> Vec<u8> {
        let mut value = VERSION.to_le_bytes().to_vec();
        for entry in &self.0 {
            value.extend_from_slice(&entry.tag.to_le_bytes());
            value.extend_from_slice(&entry.perm.to_le_bytes());
            value.extend_from_slice(&entry.id.to_le_bytes());
        }
        value
    }

    /// The mode bits that the list stands for, and whether they express all of it. In that case the
    /// list is not stored.
    pub(super) fn mode(&self, mode: u16) -> (u16, bool) {
        let mut bits = mode & !0o777;
        let mut group = 0;
        let mut mask = None;
        let mut same = true;
        for entry in &self.0 {
            match entry.tag {
                USER_OBJ => bits |= entry.perm << 6,
                GROUP_OBJ => group = entry.perm,
                OTHER => bits |= entry.perm,
                MASK => (mask, same) = (Some(entry.perm), false),
                _ => same = false,
            }
        }
        (bits | (mask.unwrap_or(group) << 3), same)
    }

    /// Applies chmod to the list: sets the owner, the mask (or the group if there is no mask), and
    /// the others.
    pub(super) fn chmod(&mut self, mode: u16) {
        let has_mask = self.0.iter().any(|entry| entry.tag == MASK);
        for entry in &mut self.0 {
            match entry.tag {
                USER_OBJ => entry.perm = (mode >> 6) & 7,
                MASK => entry.perm = (mode >> 3) & 7,
                GROUP_OBJ if !has_mask => entry.perm = (mode >> 3) & 7,
                OTHER => entry.perm = mode & 7,
                _ => {}
            }
        }
    }

    /// The access list of a node that is created with `mode` in a directory with this default list.
    pub(super) fn inherited(&self, mode: u16) -> Self {
        let mut list = self.clone();
        list.chmod(mode);
        for (entry, own) in list.0.iter_mut().zip(&self.0) {
            entry.perm &= own.perm;
        }
        list
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn acl(entries: &[(u16, u16, u32)]) -> Acl {
        Acl(entries
            .iter()
            .map(|&(tag, perm, id)| AclEntry { tag, perm, id })
            .collect())
    }

    fn named() -> Acl {
        acl(&[
            (USER_OBJ, 7, NO_ID),
            (USER, 6, 1000),
            (GROUP_OBJ, 5, NO_ID),
            (MASK, 7, NO_ID),
            (OTHER, 1, NO_ID),
        ])
    }

    #[test]
    fn encoding_round_trips_and_meaningless_ids_are_cleared() {
        let list = named();
        let mut value = list.to_value();
        assert_eq!(Acl::parse(&value), Ok(Some(list.clone())));
        value[8..12].copy_from_slice(&5u32.to_le_bytes());
        assert_eq!(Acl::parse(&value), Ok(Some(list)));
    }

    #[test]
    fn empty_and_malformed_values() {
        assert_eq!(Acl::parse(b""), Ok(None));
        assert_eq!(Acl::parse(&[2, 0, 0, 0]), Ok(None));
        assert_eq!(Acl::parse(&[3, 0, 0, 0]), Err(AclError::Version));
        assert_eq!(Acl::parse(&[2, 0, 0]), Err(AclError::Malformed));
        assert_eq!(Acl::parse(&[2, 0, 0, 0, 1]), Err(AclError::Malformed));
        let nobody = acl(&[(USER, 7, NO_ID)]).to_value();
        assert_eq!(Acl::parse(&nobody), Err(AclError::Malformed));
    }

    #[test]
    fn order_and_mask_are_checked() {
        assert!(named().is_valid());
        let three = acl(&[
            (USER_OBJ, 7, NO_ID),
            (GROUP_OBJ, 5, NO_ID),
            (OTHER, 1, NO_ID),
        ]);
        assert!(three.is_valid());
        let mut swapped = named();
        swapped.0.swap(0, 1);
        assert!(!swapped.is_valid());
        let mut no_mask = named();
        no_mask.0.remove(3);
        assert!(!no_mask.is_valid());
        let mut wide = named();
        wide.0[0].perm = 8;
        assert!(!wide.is_valid());
        assert!(!acl(&[(USER_OBJ, 7, NO_ID)]).is_valid());
    }

    #[test]
    fn the_mask_replaces_the_group_in_the_mode() {
        assert_eq!(named().mode(0o4000), (0o4771, false));
        let three = acl(&[
            (USER_OBJ, 7, NO_ID),
            (GROUP_OBJ, 5, NO_ID),
            (OTHER, 1, NO_ID),
        ]);
        assert_eq!(three.mode(0), (0o751, true));
    }

    #[test]
    fn chmod_rewrites_owner_mask_and_others() {
        let mut list = named();
        list.chmod(0o640);
        let wanted = acl(&[
            (USER_OBJ, 6, NO_ID),
            (USER, 6, 1000),
            (GROUP_OBJ, 5, NO_ID),
            (MASK, 4, NO_ID),
            (OTHER, 0, NO_ID),
        ]);
        assert_eq!(list, wanted);
    }

    #[test]
    fn an_inherited_list_grants_no_more_than_the_mode() {
        let wanted = acl(&[
            (USER_OBJ, 0, NO_ID),
            (USER, 6, 1000),
            (GROUP_OBJ, 5, NO_ID),
            (MASK, 0, NO_ID),
            (OTHER, 0, NO_ID),
        ]);
        assert_eq!(named().inherited(0), wanted);
    }
}
