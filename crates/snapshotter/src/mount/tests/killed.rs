//! `kill -9` of the mounting process at the worst moments.
//!
//! The test program starts itself again as that process, so that the process can be killed alone.

use super::*;

/// Environment variable with the directory for the started process.
const FOLDER: &str = "SOCI_TEST_MOUNTER_FOLDER";
/// Environment variable with the moment at which the process hangs.
const MOMENT: &str = "SOCI_TEST_MOUNTER_MOMENT";

/// Not a test: the process of the tests below. It hangs until it is killed.
#[test]
fn process_that_mounts_until_it_is_killed() {
    let Some(folder) = std::env::var_os(FOLDER).map(PathBuf::from) else {
        return;
    };
    let device = Device::start(&folder.join("device"), 2).unwrap();
    let looking = std::env::var(MOMENT).unwrap() == "looking";
    let thread = MountThread::start().unwrap();
    let mounter = chosen(Way::Loop).mounter(&folder, &thread);
    let size = std::fs::metadata(folder.join("data")).unwrap().len();
    device.add(Arc::new(Stuck {
        size,
        sized: looking,
    }));
    let image = LayerImage {
        meta: folder.join("meta"),
        patch: "plain".to_owned(),
        copy: 0,
        source: LayerSource {
            number: 2,
            file: device.path(2),
            supply: Supply::OnDemand,
        },
    };
    let at = folder.join("at");
    let hang = async {
        mounter.mount(&image, &at).await.unwrap();
        let file = at.join("file");
        std::fs::write(folder.join("hangs"), "").unwrap();
        thread.run(move || std::fs::read(file)).await
    };
    let runtime = tokio::runtime::Builder::new_current_thread()
        .build()
        .unwrap();
    drop(runtime.block_on(hang));
    unreachable!("no request is ever answered");
}

/// A file that answers no read and, unless `sized`, does not report its size either.
struct Stuck {
    size: u64,
    sized: bool,
}

impl DeviceFile for Stuck {
    fn number(&self) -> u64 {
        2
    }

    fn size(&self) -> u64 {
        if !self.sized {
            sleep_for_ever();
        }
        self.size
    }

    fn read(self: Arc<Self>, _offset: u64, _len: u32, done: ReadDone) {
        let _held = done;
        sleep_for_ever();
    }
}

fn sleep_for_ever() -> ! {
    loop {
        std::thread::sleep(Duration::from_secs(60));
    }
}

/// Starts the process, waits until it hangs, kills it, and checks what is left.
fn killed_at(moment: &str, hangs: impl Fn(&Path, Pid) -> bool) {
    let world = World::new(Layer::new(&[("file", 8192)]));
    world.device.stop();
    world.place("at");
    let mut process = Command::new(std::env::current_exe().unwrap())
        .args([
            "--exact",
            "mount::tests::killed::process_that_mounts_until_it_is_killed",
        ])
        .env(FOLDER, world.folder.path())
        .env(MOMENT, moment)
        .stdout(Stdio::null())
        .spawn()
        .unwrap();
    let killed = KillOnDrop(pid(&process), world.path("device"));
    until(|| hangs(world.folder.path(), killed.0));
    let start = Instant::now();
    process.kill().unwrap();
    until(|| process.try_wait().unwrap().is_some());
    assert!(
        start.elapsed() < Duration::from_secs(5),
        "took {:?}",
        start.elapsed()
    );
    // Its mounts can be removed without accessing them.
    wait(end_connection(&world.thread, &world.path("device"))).unwrap();
    wait(detach_all_under(&world.thread, world.folder.path())).unwrap();
    assert_eq!(world.table().under(world.folder.path()).len(), 0);
}

/// Kills the process on drop, even one that waits for its own mount.
struct KillOnDrop(Pid, PathBuf);

impl Drop for KillOnDrop {
    fn drop(&mut self) {
        if std::thread::panicking() {
            let _ = rustix::process::kill_process(self.0, Signal::KILL);
            let _ = rustix::mount::unmount(&self.1, UnmountFlags::FORCE);
        }
    }
}

/// Whether the mount thread of a process sleeps in the kernel below its FUSE mount.
fn waits_for_fuse(process: Pid) -> bool {
    let tasks = std::fs::read_dir(format!("/proc/{process}/task"))
        .into_iter()
        .flatten()
        .flatten();
    tasks.map(|task| task.path()).any(|task| {
        let file = |name| std::fs::read_to_string(task.join(name)).unwrap_or_default();
        let stack = file("wchan");
        file("comm").trim() == "mount" && !stack.contains("futex") && stack != "0"
    })
}

#[test]
fn a_process_killed_while_it_opens_the_device_of_a_mount_is_gone() {
    killed_at("mounting", |folder, process| {
        let mounted = MountTable::read()
            .unwrap()
            .top(&folder.join("device"))
            .is_some();
        mounted && waits_for_fuse(process)
    });
}

#[test]
fn a_process_killed_while_it_looks_below_its_own_mount_is_gone() {
    killed_at("looking", |folder, process| {
        folder.join("hangs").exists() && waits_for_fuse(process)
    });
}
