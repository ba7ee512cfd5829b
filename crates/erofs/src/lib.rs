//! soci-erofs.
