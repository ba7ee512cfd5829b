//! The real program: what it writes, says and exits with.

mod bad_images;
mod building;
mod command_line;
mod durability;
mod endless;
mod golden;
mod hostile;
mod indexes;
mod layouts;
mod memory;
mod prefetches;
mod records;
mod registries;
mod seed;
mod shells;
mod site;
mod soci;
mod transports;
mod verify;
mod ztocs;
