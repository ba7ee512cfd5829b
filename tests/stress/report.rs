//! The report, on the terminal and in `target/soak.txt`.

use std::fmt::Write as _;
use std::fs;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use anyhow::{Context as _, Result, ensure};

use crate::Plan;
use crate::samples::{self, Sample};
use crate::slots::Slot;
use crate::world::{TOKEN_LIFE, World, lock};

/// Writes the report. Returns an error if the run fails.
pub(crate) fn conclude(
    world: &World,
    plan: &Plan,
    ran: Duration,
    samples: &[Sample],
) -> Result<()> {
    let counted = *lock(&world.counted);
    let mut wrongs = world.troubles();
    if counted.failed + counted.wrong > 0 {
        wrongs.push(format!(
            "{} reads failed, {} were wrong",
            counted.failed, counted.wrong
        ));
    }
    if counted.reads == 0 || counted.present == 0 {
        wrongs.push("nothing was read".into());
    }
    if ran > TOKEN_LIFE * 6 && world.registry.tokens().1 == 0 {
        wrongs.push("no token ran out".into());
    }
    let slowest = Duration::from_micros(counted.slowest_present);
    if slowest > plan.slowest {
        wrongs.push(format!(
            "a read of present bytes took {slowest:?}, more than {:?}",
            plan.slowest
        ));
    }
    wrongs.extend(samples::grown(samples));
    let text = text(world, plan, ran, samples, &counted, &wrongs);
    fs::write(plan.folder.join("soak.txt"), &text)?;
    show(&text);
    if !wrongs.is_empty() {
        keep_log(world, plan)?;
    }
    ensure!(wrongs.is_empty(), "{}", wrongs.join("\n"));
    Ok(())
}

/// Keeps the daemon's log, which explains the failure, because the node is removed with the test.
fn keep_log(world: &World, plan: &Plan) -> Result<()> {
    let log = world.node.folder().join("soci.log");
    fs::copy(&log, plan.folder.join("soak-daemon.log"))
        .with_context(|| format!("keep {}", log.display()))?;
    Ok(())
}

#[expect(clippy::print_stdout, reason = "the report is the result of the test")]
fn show(text: &str) {
    println!("{text}");
}

fn text(
    world: &World,
    plan: &Plan,
    ran: Duration,
    samples: &[Sample],
    counted: &Slot,
    wrongs: &[String],
) -> String {
    let mut text = String::new();
    let mut row = |name: &str, value: String| {
        let _ = writeln!(text, "{name:<42} {value}");
    };
    let events = &world.events;
    let seen = |count: &AtomicU64| count.load(Ordering::SeqCst).to_string();
    let milliseconds = |micros: u64| format!("{} ms", micros / 1000);
    row("seconds", ran.as_secs().to_string());
    row("seed", plan.seed.to_string());
    row("daemon", format!("{:?}", plan.keeping));
    row("kills of the worker", seen(&events.kills));
    row("keepers replaced", seen(&events.replaced));
    for build in &plan.builds {
        let name = format!("keepers started of {}", build.version);
        row(&name, seen(&build.started));
    }
    row("registry cut", seen(&events.cuts));
    row("registry slowed", seen(&events.slowed));
    row("registry restarted", seen(&events.restarts));
    row("token service refused all", seen(&events.tokenless_times));
    let (given, refused) = world.registry.tokens();
    row("tokens given", given.to_string());
    row("tokens that ran out in use", refused.to_string());
    row("disk filled", seen(&events.filled));
    row("memory limited", seen(&events.squeezed));
    row("images pulled, read and removed", seen(&events.lives));
    row(
        "calls broken by a kill, made again",
        seen(&events.calls_again),
    );
    row("reads", counted.reads.to_string());
    row("programs started", counted.programs.to_string());
    row("bytes compared", counted.bytes.to_string());
    row("reads failed", counted.failed.to_string());
    row("reads wrong", counted.wrong.to_string());
    row("reads tried again", counted.again.to_string());
    row("reads of present bytes", counted.present.to_string());
    let slowest = milliseconds(counted.slowest_present);
    row("slowest read of present bytes", slowest);
    row("slowest read", milliseconds(counted.slowest));
    row(
        "longest removal of an image",
        format!("{} ms", seen(&events.longest_removal)),
    );
    row(
        "longest replacement of a keeper",
        format!("{} ms", seen(&events.longest_replacement)),
    );
    text.push_str(&table(samples));
    let verdict = if wrongs.is_empty() {
        "passed".to_owned()
    } else {
        format!("NOT passed\n{}", wrongs.join("\n"))
    };
    let _ = writeln!(text, "\n{verdict}");
    text
}

fn table(samples: &[Sample]) -> String {
    let mut text = String::from("\nsecond  main kB  fds  worker kB  fds  loops  on FUSE  kept\n");
    for s in samples {
        let _ = writeln!(
            text,
            "{:>6} {:>8} {:>4} {:>10} {:>4} {:>6} {:>8} {:>5}",
            s.second,
            s.main_kilobytes,
            s.main_descriptors,
            s.worker_kilobytes,
            s.worker_descriptors,
            s.loops,
            s.lazy,
            s.kept
        );
    }
    text
}
