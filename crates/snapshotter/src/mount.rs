//! Ways to give a layer to the kernel.

pub mod table;
pub mod thread;
