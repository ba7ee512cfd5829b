//! Log lines as operators and tools of the reference know them.
