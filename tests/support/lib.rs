//! What the tests over the built programs share.
