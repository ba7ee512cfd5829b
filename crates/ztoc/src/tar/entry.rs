//! From the headers of an entry to what the sink receives.

use super::header::{self, Header};
use super::{MAX_META, Policy, State, TarError, TarScanner, TarSink, padding_of, pax, sparse};
use crate::toc::{BLOCK, Entry, FileKind, SparseVersion};

impl TarScanner {
    /// Handles the complete payload of a meta header.
    pub(super) fn end_meta(&mut self, flag: u8) -> Result<(), TarError> {
        match flag {
            b'L' => header::cut_at_nul(&self.payload).clone_into(&mut self.pending.long_name),
            b'K' => header::cut_at_nul(&self.payload).clone_into(&mut self.pending.long_link),
            _ => {
                let parsed = self.pending.pax.parse(&mut self.payload);
                parsed.ok_or_else(|| self.invalid())?;
                if flag == b'g' {
                    // Go's reader also returns at a global header, which drops pending values.
                    self.pending.clear();
                    self.check_global()?;
                }
            }
        }
        self.go_to_padding();
        Ok(())
    }

    /// Checks the global header in the current block.
    fn check_global(&mut self) -> Result<(), TarError> {
        match self.policy {
            Policy::Unpack => {}
            Policy::Find => return Ok(()),
            Policy::Ztoc => {
                return Err(TarError::Unsupported {
                    flag: b'g',
                    name: Vec::new(),
                });
            }
        }
        let header = header::parse(&self.block).ok_or_else(|| self.invalid())?;
        header::name(&self.block, header.format, &mut self.name);
        if self.roots.is_changed_by(&self.name) {
            let name = self.name.clone();
            return Err(TarError::Global { name });
        }
        Ok(())
    }

    /// Handles an entry's own header and applies the pending values.
    pub(super) fn begin_entry(
        &mut self,
        mut header: Header,
        sink: &mut impl TarSink,
    ) -> Result<(), TarError> {
        header::name(&self.block, header.format, &mut self.name);
        header::cut_at_nul(header::LINKNAME.of(&self.block)).clone_into(&mut self.link);
        let pax = &self.pending.pax;
        let uname = pax
            .text(b"uname")
            .unwrap_or_else(|| header.uname(&self.block));
        uname.clone_into(&mut self.uname);
        let gname = pax
            .text(b"gname")
            .unwrap_or_else(|| header.gname(&self.block));
        gname.clone_into(&mut self.gname);
        self.pending
            .pax
            .apply(&mut header, &mut self.name, &mut self.link)
            .ok_or_else(|| self.invalid())?;
        if !self.pending.long_name.is_empty() {
            self.name.clone_from(&self.pending.long_name);
        }
        if !self.pending.long_link.is_empty() {
            self.link.clone_from(&self.pending.long_link);
        }
        if header.flag == 0 {
            header.flag = if self.name.ends_with(b"/") {
                b'5'
            } else {
                b'0'
            };
        }
        let stored = header.stored().ok_or_else(|| self.invalid())?;
        self.padding = padding_of(stored);
        match SparseVersion::of(|key| self.pending.pax.get(key)) {
            _ if header.flag == b'S' => {} // rejected below
            None => {}
            Some(_) if header.is_header_only() => return Err(self.invalid()),
            Some(version) => {
                if self.policy != Policy::Ztoc {
                    return Err(self.refused_sparse());
                }
                self.apply_sparse_names(&mut header)?;
                if version == SparseVersion::InData {
                    self.sparse = Some((header, stored, sparse::MapInData::default()));
                    self.state = State::SparseMap;
                    return Ok(());
                }
                let map = sparse::map_in_records(|key| self.pending.pax.get(key));
                self.check_map(map, header.size)?;
            }
        }
        self.emit(&header, stored, sink)
    }

    /// Applies the name and logical size of a sparse file, which have their own records.
    fn apply_sparse_names(&mut self, header: &mut Header) -> Result<(), TarError> {
        let record = |key: &str| {
            self.pending
                .pax
                .get(key.as_bytes())
                .filter(|v| !v.is_empty())
        };
        if let Some(name) = record("GNU.sparse.name") {
            name.clone_into(&mut self.name);
        }
        if let Some(size) = record("GNU.sparse.size").or_else(|| record("GNU.sparse.realsize")) {
            header.size = pax::parse_decimal(size).ok_or_else(|| self.invalid())?;
        }
        Ok(())
    }

    /// Handles a complete block of a sparse map before the content.
    pub(super) fn end_map_block(&mut self, sink: &mut impl TarSink) -> Result<(), TarError> {
        let Some((header, stored, mut map)) = self.sparse.take() else {
            return Err(self.invalid());
        };
        let Some(left) = stored.checked_sub(BLOCK) else {
            return Err(TarError::UnexpectedEof { offset: self.pos });
        };
        let progress = map.push(&self.block);
        if map.len() > MAX_META {
            let offset = self.block_start();
            return Err(TarError::FieldTooLong { offset });
        }
        match progress {
            sparse::Progress::More => {
                self.sparse = Some((header, left, map));
                Ok(())
            }
            sparse::Progress::Invalid => Err(self.invalid()),
            sparse::Progress::Done(map) => {
                self.check_map(Some(map), header.size)?;
                self.emit(&header, left, sink)
            }
        }
    }

    fn check_map(&self, map: Option<Vec<sparse::Extent>>, size: i64) -> Result<(), TarError> {
        match map {
            Some(map) if sparse::is_valid(&map, size) => Ok(()),
            _ => Err(self.invalid()),
        }
    }

    /// Reports the entry. Its content follows.
    fn emit(
        &mut self,
        header: &Header,
        stored: u64,
        sink: &mut impl TarSink,
    ) -> Result<(), TarError> {
        let kind = match header.flag {
            b'0' => FileKind::Regular,
            b'1' => FileKind::Hardlink,
            b'2' => FileKind::Symlink,
            b'3' => FileKind::Char,
            b'4' => FileKind::Block,
            b'5' => FileKind::Directory,
            b'6' => FileKind::Fifo,
            b'7' if self.policy == Policy::Find => FileKind::Regular,
            b'S' if self.policy == Policy::Find => return Err(self.refused_sparse()),
            _ if self.policy == Policy::Find => {
                self.end_entry(stored, false);
                return Ok(());
            }
            flag => {
                return Err(TarError::Unsupported {
                    flag,
                    name: self.name.clone(),
                });
            }
        };
        self.pending.pax.pack(&mut self.packed_pax);
        let entry = Entry {
            name: &self.name,
            kind,
            header_start: self.header_start,
            offset: self.pos,
            size: header.size.cast_unsigned(),
            link: &self.link,
            mode: header.mode,
            uid: header.uid,
            gid: header.gid,
            uname: &self.uname,
            gname: &self.gname,
            mtime: header.mtime,
            dev_major: header.dev_major,
            dev_minor: header.dev_minor,
            pax: crate::toc::Pax::packed(&self.packed_pax),
        };
        if self.policy == Policy::Unpack {
            self.roots.note(&entry);
        }
        sink.entry(&entry);
        self.entries = self.entries.saturating_add(1);
        self.end_entry(stored, true);
        Ok(())
    }

    /// Continues with the content of an entry whose header is complete.
    fn end_entry(&mut self, stored: u64, is_reported: bool) {
        self.pending.clear();
        let end = self.pos.saturating_add(stored);
        self.header_start = end.saturating_add(self.padding);
        self.state = State::Data {
            left: stored,
            is_reported,
        };
        if stored == 0 {
            self.go_to_padding();
        }
    }

    fn refused_sparse(&self) -> TarError {
        TarError::Sparse {
            name: self.name.clone(),
        }
    }
}
