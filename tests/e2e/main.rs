//! The built programs with a real containerd, runc and a registry behind TLS. Each test has its own
//! node; see `soci_tests` for the parts. Run them with `make e2e` (or `make e2e T=part-of-a-name`).

mod check;
mod choice;
mod convert;
mod create;
mod deployments;
mod direct;
mod equality;
mod harness;
mod hung;
mod installer;
mod integrity;
mod keeper;
mod keychain;
mod loops;
mod mirrors;
mod nerdctl;
mod outage;
mod packages;
mod parallel;
mod pods;
mod power;
mod probes;
mod push;
mod readers;
mod records;
mod registries;
mod removal;
mod restart;
mod run;
mod scrub;
mod series;
mod space;
mod takeover;
mod trust;
mod ways;
