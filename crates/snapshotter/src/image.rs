//! An image: discovery once per manifest, its layers opened.
