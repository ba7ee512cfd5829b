//! Entries of a layer to the tree that unpacking would leave.
