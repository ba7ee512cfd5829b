//! Runs the real program: checks its files, output, and exit codes.

mod bad_images;
mod building;
mod ci_page;
mod command_line;
mod durability;
mod endless;
mod exit_codes;
mod golden;
mod hostile;
mod indexes;
mod json_page;
mod layouts;
mod memory;
mod pages;
mod prefetches;
mod records;
mod registries;
mod schema;
mod seed;
mod shells;
mod site;
mod soci;
mod transports;
mod unusual;
mod verify;
mod ztocs;
