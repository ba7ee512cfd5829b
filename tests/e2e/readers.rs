//! Processes that wait for bytes: many at once, with signals, and killed.

use std::fs;
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use rustix::process::{Pid, Signal, kill_process};
use serde_json::Value;
use soci_tests::image::noise;
use soci_tests::node::SOCI;
use soci_tests::site::NOTHING_BEHIND;
use soci_tests::tar::{Entry, file};
use soci_tests::{Image, Program, Site, View};

const FILES: u64 = 64;
const SIZE: usize = 200_000;

fn pulled(name: &str) -> Result<(Site, View)> {
    let site = Site::new(NOTHING_BEHIND)?;
    let entries: Vec<Entry> = (0..FILES)
        .map(|n| file(format!("f{n:02}"), noise(n + 1, SIZE)))
        .collect();
    let reference = site.publish(&Image::of(&[&entries])?, name)?;
    site.node.pull(&reference, SOCI)?;
    let view = site.node.view(&reference, SOCI)?;
    Ok((site, view))
}

#[test]
fn sixty_four_readers_wait_at_once_and_all_are_answered() -> Result<()> {
    let (site, view) = pulled("many:1")?;
    site.relay.cut();
    let readers: Vec<_> = (0..FILES)
        .map(|n| {
            let path = view.join(format!("f{n:02}"));
            std::thread::spawn(move || fs::read(path))
        })
        .collect();
    std::thread::sleep(Duration::from_secs(2));
    assert!(
        readers.iter().all(|reader| !reader.is_finished()),
        "all of them wait"
    );
    // The mount still answers other requests.
    assert_eq!(fs::read_dir(view.path())?.count() as u64, FILES);
    site.relay.restore();
    for (n, reader) in (0..FILES).zip(readers) {
        assert_eq!(
            reader.join().expect("no panic")?,
            noise(n + 1, SIZE),
            "file {n}"
        );
    }
    // The daemon reports what they waited for.
    let told = Program::ours("soci-snapshotter-grpc")?
        .args(["reads", "--json", "--root"])
        .args([site.node.root()])
        .succeed()?;
    let reads = told
        .lines()
        .map(serde_json::from_str::<Value>)
        .collect::<Result<Vec<_>, _>>()?;
    let waited = reads.iter().filter(|read| {
        read["took_us"]
            .as_u64()
            .is_some_and(|took| took > 1_900_000)
    });
    assert!(waited.count() as u64 >= FILES / 2, "{reads:#?}");
    let named = |read: &Value| {
        read["image"]
            .as_str()
            .is_some_and(|image| image.ends_with("many:1"))
    };
    assert!(reads.iter().all(named), "{reads:#?}");
    Ok(())
}

#[test]
fn signals_do_not_disturb_a_reader_that_waits() -> Result<()> {
    let (site, view) = pulled("signals:1")?;
    site.relay.cut();
    // dd prints its progress on SIGUSR1 and continues: a handler that runs and returns.
    let copy = site.folder().join("copy");
    let mut reader = Command::new("dd")
        .args(["bs=7000", "status=none"])
        .arg(argument("if=", &view.join("f07")))
        .arg(argument("of=", &copy))
        .stderr(Stdio::null())
        .spawn()
        .context("start dd")?;
    std::thread::sleep(Duration::from_millis(500));
    for signal in [
        Signal::USR1,
        Signal::CONT,
        Signal::WINCH,
        Signal::USR1,
        Signal::STOP,
        Signal::CONT,
        Signal::USR1,
    ] {
        kill_process(pid(&reader)?, signal)?;
        std::thread::sleep(Duration::from_millis(100));
    }
    assert!(reader.try_wait()?.is_none(), "it still waits");
    site.relay.restore();
    assert_eq!(ended(&mut reader, Duration::from_secs(30))?, Some(0));
    assert_eq!(fs::read(copy)?, noise(8, SIZE));
    Ok(())
}

#[test]
fn a_waiting_reader_is_killed_immediately_and_leaves_nothing() -> Result<()> {
    let (site, view) = pulled("killed:1")?;
    site.relay.cut();
    let mut readers = (0..8)
        .map(|n| {
            Command::new("cat")
                .arg(view.join(format!("f{n:02}")))
                .stdout(Stdio::null())
                .spawn()
                .context("start cat")
        })
        .collect::<Result<Vec<_>>>()?;
    std::thread::sleep(Duration::from_secs(1));
    for reader in &mut readers {
        kill_process(pid(reader)?, Signal::KILL)?;
        assert_eq!(
            ended(reader, Duration::from_secs(3))?,
            None,
            "ended by the signal"
        );
    }
    site.relay.restore();
    for n in 0..FILES {
        assert_eq!(
            fs::read(view.join(format!("f{n:02}")))?,
            noise(n + 1, SIZE),
            "file {n}"
        );
    }
    view.close()
}

fn argument(key: &str, path: &Path) -> String {
    format!("{key}{}", path.display())
}

fn pid(child: &Child) -> Result<Pid> {
    i32::try_from(child.id())
        .ok()
        .and_then(Pid::from_raw)
        .context("a process id")
}

/// The exit code of a child that must end within the limit; `None` if a signal ended it.
fn ended(child: &mut Child, limit: Duration) -> Result<Option<i32>> {
    let start = Instant::now();
    while start.elapsed() < limit {
        if let Some(status) = child.try_wait()? {
            return Ok(status.code());
        }
        std::thread::sleep(Duration::from_millis(10));
    }
    bail!("process {} does not end within {limit:?}", child.id())
}
