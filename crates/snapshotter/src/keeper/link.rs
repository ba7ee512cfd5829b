//! The link between keeper and worker: messages of one word with descriptors.
//!
//! A message consists of a word and the names of its descriptors, in order. The stream ends when
//! the process at the other end has ended, which has then closed all its descriptors.

use std::collections::BTreeMap;
use std::io::{self, IoSliceMut};
use std::mem::MaybeUninit;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use rustix::net::{
    AddressFamily, RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, SocketFlags, SocketType,
};

use crate::listen::{MOST_DESCRIPTORS, send};

/// Maximum length of a message in bytes.
const LONGEST: usize = 256;

/// One end of the link.
#[derive(Debug)]
pub(super) struct Link(OwnedFd);

/// A received message.
#[derive(Debug, Default)]
pub(super) struct Message {
    pub(super) word: String,
    pub(super) descriptors: BTreeMap<String, OwnedFd>,
}

impl Link {
    /// Creates both ends.
    pub(super) fn pair() -> io::Result<(Self, OwnedFd)> {
        // SEQPACKET preserves message boundaries.
        let kind = SocketType::SEQPACKET;
        let (ours, theirs) =
            rustix::net::socketpair(AddressFamily::UNIX, kind, SocketFlags::CLOEXEC, None)?;
        Ok((Self(ours), theirs))
    }

    /// Takes the end that this process has as standard input and replaces it with `/dev/null`, so
    /// that no copy is left even in a separate descriptor table.
    pub(super) fn of_stdin() -> io::Result<Self> {
        let ours = io::stdin().as_fd().try_clone_to_owned()?;
        rustix::stdio::dup2_stdin(std::fs::File::open("/dev/null")?)?;
        Ok(Self(ours))
    }

    /// Sends a word with named descriptors.
    pub(super) fn send(&self, word: &str, named: &[(&str, BorrowedFd<'_>)]) -> io::Result<()> {
        let names = named.iter().map(|(name, _)| *name);
        let text = [word].into_iter().chain(names).collect::<Vec<_>>();
        let descriptors: Vec<BorrowedFd<'_>> = named.iter().map(|(_, fd)| *fd).collect();
        send(&self.0, text.join(" ").as_bytes(), &descriptors)
    }

    /// Waits for the next message. `None` when the other end is closed.
    pub(super) fn receive(&self) -> io::Result<Option<Message>> {
        let mut bytes = [0; LONGEST];
        let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(MOST_DESCRIPTORS))];
        let mut control = RecvAncillaryBuffer::new(&mut space);
        let got = rustix::io::retry_on_intr(|| {
            let mut parts = [IoSliceMut::new(&mut bytes)];
            rustix::net::recvmsg(&self.0, &mut parts, &mut control, RecvFlags::CMSG_CLOEXEC)
        });
        let got = match got {
            // The other end closed without reading all messages.
            Err(rustix::io::Errno::CONNRESET) => return Ok(None),
            got => got?,
        };
        if got.bytes == 0 {
            return Ok(None);
        }
        let mut descriptors = Vec::new();
        for message in control.drain() {
            if let RecvAncillaryMessage::ScmRights(rights) = message {
                descriptors.extend(rights);
            }
        }
        let text = String::from_utf8_lossy(bytes.get(..got.bytes).unwrap_or_default());
        let mut words = text.split(' ').map(str::to_owned);
        let word = words.next().unwrap_or_default();
        let descriptors = words.zip(descriptors).collect();
        Ok(Some(Message { word, descriptors }))
    }
}

impl AsFd for Link {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.0.as_fd()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn words_and_descriptors_arrive_and_the_end_is_detected() {
        let (ours, theirs) = Link::pair().unwrap();
        let theirs = Link(theirs);
        let (read, write) = rustix::pipe::pipe().unwrap();
        ours.send("one", &[("write", write.as_fd()), ("read", read.as_fd())])
            .unwrap();
        ours.send("two", &[]).unwrap();
        let first = theirs.receive().unwrap().unwrap();
        assert_eq!(first.word, "one");
        rustix::io::write(&first.descriptors["write"], b"x").unwrap();
        assert_eq!(rustix::io::read(&read, &mut [0; 2]), Ok(1));
        assert_eq!(theirs.receive().unwrap().unwrap().word, "two");
        drop(ours);
        assert!(theirs.receive().unwrap().is_none());
        theirs.send("three", &[]).unwrap_err();
    }
}
