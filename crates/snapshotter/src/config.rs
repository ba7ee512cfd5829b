//! Configuration: one struct per TOML table.
