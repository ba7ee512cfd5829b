//! An image: discovery once per manifest, its layers opened.

pub(crate) mod verdict;
