//! Conversion of images in a layout on disk.

mod convert;
mod fuzz;
mod image;
mod push;
mod select;
