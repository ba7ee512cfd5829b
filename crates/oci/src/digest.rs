//! See the package's essay.
