//! The bounded pool for inflate, hashing and file work, and the one way into it.
