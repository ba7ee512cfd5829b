//! A layer: ensure a range of its data, read it.
