//! Conversion of images in a layout on disk.

mod convert;
mod create;
mod downloads;
mod fuzz;
mod image;
mod mirror;
mod platforms;
mod push;
mod referrers;
mod reuse;
mod select;
mod standalone;
mod verify;
