//! The series about this process that clients of Prometheus report, from `/proc`.

use std::fs;

use prometheus::proto::MetricFamily;
use rustix::process::{Resource, getrlimit};

use super::definitions as all;
use super::figures::family;

/// Clock ticks per second in `/proc`; the same on every platform of this program.
const TICKS: f64 = 100.0;

/// The series that can be read.
pub(super) fn families() -> Vec<MetricFamily> {
    let mut families = Vec::new();
    let mut add = |definition, value| families.extend(family(definition, [(&[][..], value)]));
    if let Some(stat) = fs::read_to_string("/proc/self/stat")
        .ok()
        .as_deref()
        .and_then(Stat::parse)
    {
        add(&all::CPU_SECONDS, stat.ticks / TICKS);
        add(&all::VIRTUAL_MEMORY, stat.virtual_memory);
        if let Some(boot) = value("/proc/stat", "btime") {
            add(&all::START_TIME, boot + stat.started / TICKS);
        }
    }
    if let Some(kib) = value("/proc/self/status", "VmRSS:") {
        add(&all::RESIDENT_MEMORY, kib * 1024.0);
    }
    if let Ok(open) = fs::read_dir("/proc/self/fd") {
        add(&all::OPEN_FDS, open.count() as f64);
    }
    if let Some(most) = getrlimit(Resource::Nofile).current {
        add(&all::MAX_FDS, most as f64);
    }
    families
}

/// The number behind a key of a file of `/proc`.
fn value(file: &str, key: &str) -> Option<f64> {
    let text = fs::read_to_string(file).ok()?;
    let line = text.lines().find_map(|line| line.strip_prefix(key))?;
    line.split_whitespace().next()?.parse().ok()
}

/// Fields of `/proc/self/stat`.
#[derive(Debug, PartialEq)]
struct Stat {
    ticks: f64,
    started: f64,
    virtual_memory: f64,
}

impl Stat {
    fn parse(text: &str) -> Option<Self> {
        // The name of the program may contain spaces and parentheses. The state follows it.
        let (_, fields) = text.rsplit_once(')')?;
        let mut fields = fields
            .split_whitespace()
            .skip(11)
            .map(|field| field.parse().ok());
        let mut next = |skipped| fields.nth(skipped)?;
        let (user, system): (f64, f64) = (next(0)?, next(0)?);
        Some(Self {
            ticks: user + system,
            started: next(6)?,
            virtual_memory: next(0)?,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_fields_behind_the_name_are_found() {
        let text = "7 (a) b (c) S 1 2 3 4 5 6 7 8 9 10 250 50 0 0 20 0 9 0 1234 4096 77";
        let wanted = Stat {
            ticks: 300.0,
            started: 1234.0,
            virtual_memory: 4096.0,
        };
        assert_eq!(Stat::parse(text), Some(wanted));
        assert_eq!(Stat::parse("7 (a"), None);
    }

    #[test]
    fn this_process_has_every_series() {
        assert_eq!(families().len(), 6);
    }
}
