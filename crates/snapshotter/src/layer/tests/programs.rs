//! Layers that a program of `decompress_streams` decompresses.

use super::{whole::pull, *};

fn shell(script: &str, patience: Duration) -> Arc<Program> {
    let args = vec!["-c".to_owned(), script.to_owned()];
    let mut program = Program::new("/bin/sh".into(), args);
    program.be_patient_for(patience);
    Arc::new(program)
}

fn with(program: &Arc<Program>) -> Options {
    Options {
        whole: WholeOptions {
            programs: Programs {
                gzip: Some(Arc::clone(program)),
                zstd: None,
            },
            ..WholeOptions::default()
        },
        ..Options::default()
    }
}

/// Enough for a loaded machine.
const LONG: Duration = Duration::from_secs(60);

/// Pulls a layer several times with a script as program. Returns how often the script was started.
async fn pulled(script: &str, patience: Duration, made: &Made, times: usize) -> usize {
    let mut node = Node::new();
    let marks = node.root.path().join("marks");
    let script = format!("echo . >>{}; {script}", marks.display());
    let program = shell(&script, patience);
    pull_with(&mut node, &program, made, times).await;
    std::fs::read_to_string(marks)
        .unwrap_or_default()
        .lines()
        .count()
}

/// Pulls a layer several times with a program. The files are right every time.
async fn pull_with(node: &mut Node, program: &Arc<Program>, made: &Made, times: usize) {
    for time in 0..times {
        node.boot = format!("boot-{time}");
        let life = node.start_with(with(program), fetch::Options::default());
        let diff_id = Digest::sha256(&made.tar);
        let blob = Arc::new(MemoryBlob::new(made.layer.clone()));
        let layer = pull(&life, made, diff_id, blob).await.expect("pulled");
        let data = std::fs::read(layer.data_path()).expect("readable");
        assert_eq!(data, made.data(), "{program:?}");
        // The layer is pulled once more, with the same program.
        life.layers.remove(&layer.key()).await.expect("removed");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_program_decompresses_and_is_used_again() {
    let mut made = Made::new(Form::Members, 400, 16 << 10);
    assert_eq!(pulled("gzip -dc", LONG, &made, 2).await, 2);
    // It may complain.
    assert_eq!(
        pulled("echo careful >&2; gzip -dc", LONG, &made, 2).await,
        2
    );
    // No program for this format.
    made.layer = made.tar.clone();
    assert_eq!(pulled("gzip -dc", LONG, &made, 1).await, 0);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_program_that_fails_three_times_in_a_row_is_not_used_again() {
    let made = Made::new(Form::Members, 60, 16 << 10);
    for script in [
        // As programs that end with the first member, and without reading the rest.
        "gzip -dc | head -c 50000",
        "exit 0",
        // The right tar and an error.
        "gzip -dc; exit 3",
        "cat >/dev/null; echo no good >&2; exit 1",
        "kill -9 $$",
        "cat >/dev/null; echo garbage",
        "cat",
        "exec /nobody/has/this",
    ] {
        assert_eq!(pulled(script, LONG, &made, 4).await, 3, "{script}");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_program_that_hangs_costs_one_more_download() {
    // More than the pipe takes.
    let made = Made::new(Form::Members, 400, 16 << 10);
    // The script must get as far as its mark.
    let short = Duration::from_secs(4);
    let started = |script| pulled(script, short, &made, 1);
    let started = tokio::join!(
        started("exec sleep 1000"),
        started("cat >/dev/null; exec sleep 1000"),
        started("gzip -dc; exec >&-; exec sleep 1000"),
    );
    assert_eq!(started, (1, 1, 1));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_program_that_does_not_start_costs_nothing() {
    let made = Made::new(Form::Gzip, 40, 16 << 10);
    let program = Arc::new(Program::new("/nobody/has/this".into(), Vec::new()));
    pull_with(&mut Node::new(), &program, &made, 4).await;
    assert_eq!(program.failures(), 0);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_program_is_not_blamed_for_a_layer_that_nobody_can_use() {
    let made = Made::new(Form::Gzip, 40, 16 << 10);
    let node = Node::new();
    let program = shell("gzip -dc", LONG);
    let life = node.start_with(with(&program), fetch::Options::default());
    let blob = || Arc::new(MemoryBlob::new(made.layer.clone()));
    let error = pull(&life, &made, Digest::sha256(b"other"), blob()).await;
    let error = error.expect_err("the diff-ID is wrong");
    assert!(
        matches!(error, OpenError::Stream(StreamError::DiffId { .. })),
        "{error}"
    );
    assert_eq!(program.failures(), 0);
    let diff_id = Digest::sha256(&made.tar);
    pull(&life, &made, diff_id, blob()).await.expect("pulled");
    assert_eq!(program.failures(), 0);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_cancelled_pull_kills_the_program() {
    let made = Made::new(Form::Gzip, 90, 16 << 10);
    let node = Node::new();
    let mark = node.root.path().join("pid");
    let script = format!(
        "echo $$ >{0}.new; mv {0}.new {0}; exec sleep 1000",
        mark.display()
    );
    let life = node.start_with(with(&shell(&script, LONG)), fetch::Options::default());
    let blob = Arc::new(MemoryBlob::new(made.layer.clone()));
    let pulled = pull(&life, &made, Digest::sha256(&made.tar), blob);
    let started = async {
        loop {
            if let Ok(pid) = std::fs::read_to_string(&mark) {
                return pid.trim().to_owned();
            }
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    };
    let pid = tokio::select! {
        result = pulled => panic!("ended: {:?}", result.map(|layer| layer.number())),
        pid = started => pid,
    };
    let process = PathBuf::from(format!("/proc/{pid}"));
    let ends = async {
        while process.exists() {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    };
    tokio::time::timeout(LONG, ends).await.expect("killed");
}
