//! The real program: what it writes, says and exits with.

mod command_line;
mod golden;
mod hostile;
mod layouts;
mod memory;
mod shells;
mod soci;
mod verify;
