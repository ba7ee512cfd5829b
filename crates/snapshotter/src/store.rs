//! The layer store: the files of all layers.
