//! Queue of log lines. Callers add a line and continue; one thread writes. If standard error is not
//! read, only that thread blocks.
//!
//! The queue has a limit in bytes. Lines beyond it are dropped, and a line reports how many.

use std::collections::VecDeque;
use std::io::Write;
use std::time::{Duration, Instant};

use crate::sync::{Condvar, Mutex};

/// Limit of queued lines in bytes: some thousand lines.
const MOST_BYTES: usize = 1 << 20;

#[derive(Debug, Default)]
struct State {
    lines: VecDeque<Vec<u8>>,
    bytes: usize,
    /// Number of lines dropped since the last accepted one.
    lost: u64,
    writing: bool,
}

/// The next item to write.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Taken {
    Line(Vec<u8>),
    /// This many lines were dropped.
    Lost(u64),
    /// No line arrived within the given time.
    Nothing,
}

/// See the module documentation.
#[derive(Debug)]
pub(super) struct Outlet {
    state: Mutex<State>,
    /// A line was added or written.
    changed: Condvar,
}

impl Outlet {
    pub(super) const fn new() -> Self {
        let state = State {
            lines: VecDeque::new(),
            bytes: 0,
            lost: 0,
            writing: false,
        };
        Self {
            state: Mutex::new(state),
            changed: Condvar::new(),
        }
    }

    /// Adds a line. Never waits.
    pub(super) fn put(&self, line: Vec<u8>) {
        let mut state = self.state.lock();
        if state.bytes + line.len() > MOST_BYTES {
            state.lost += 1;
            return;
        }
        state.bytes += line.len();
        state.lines.push_back(line);
        drop(state);
        self.changed.notify_all();
    }

    /// Waits for the next line, for at most `patience` if given.
    fn take(&self, patience: Option<Duration>) -> Taken {
        let mut state = self.state.lock();
        state.writing = false;
        self.changed.notify_all();
        loop {
            if let Some(line) = state.lines.pop_front() {
                state.bytes -= line.len();
                state.writing = true;
                return Taken::Line(line);
            }
            if state.lost > 0 {
                state.writing = true;
                return Taken::Lost(std::mem::take(&mut state.lost));
            }
            state = match patience {
                None => self.changed.wait(state),
                Some(patience) => {
                    let (state, late) = self.changed.wait_for(state, patience);
                    if late && state.lines.is_empty() && state.lost == 0 {
                        return Taken::Nothing;
                    }
                    state
                }
            };
        }
    }

    /// Writes lines indefinitely. Calls `between` after each line, or after the time that it last
    /// returned; it returns additional lines. `lost` formats the line that reports dropped ones.
    pub(super) fn write_to(
        &self,
        to: &mut dyn Write,
        lost: impl Fn(u64) -> Vec<u8>,
        mut between: impl FnMut() -> (Vec<Vec<u8>>, Option<Duration>),
    ) {
        let mut patience = None;
        loop {
            // Failures cannot be reported. One write per line, so that lines of two processes do
            // not mix.
            match self.take(patience) {
                Taken::Line(line) => drop(to.write_all(&line)),
                Taken::Lost(count) => drop(to.write_all(&lost(count))),
                Taken::Nothing => {}
            }
            let (more, next) = between();
            for line in more {
                drop(to.write_all(&line));
            }
            patience = next;
        }
    }

    /// Waits until everything is written. Returns false if that takes longer than `limit`.
    pub(super) fn flush(&self, limit: Duration) -> bool {
        let until = Instant::now() + limit;
        let mut state = self.state.lock();
        while state.writing || !state.lines.is_empty() || state.lost > 0 {
            let left = until.saturating_duration_since(Instant::now());
            if left.is_zero() {
                return false;
            }
            (state, _) = self.changed.wait_for(state, left);
        }
        true
    }
}

#[cfg(test)]
mod tests {
    use std::sync::mpsc;

    use super::*;
    use crate::sync::Arc;

    const LONG: Duration = Duration::from_secs(30);

    /// A writer that takes a line when allowed to, and reports it.
    struct Gate {
        open: mpsc::Receiver<()>,
        tell: mpsc::Sender<String>,
    }

    impl Write for Gate {
        fn write(&mut self, bytes: &[u8]) -> std::io::Result<usize> {
            // A dropped gate is open.
            let _ = self.open.recv();
            let line = String::from_utf8_lossy(bytes).into_owned();
            drop(self.tell.send(line));
            Ok(bytes.len())
        }

        fn flush(&mut self) -> std::io::Result<()> {
            Ok(())
        }
    }

    #[test]
    fn callers_do_not_wait_for_a_blocked_writer_and_dropped_lines_are_counted() {
        let outlet = Arc::new(Outlet::new());
        let (open, gate) = mpsc::channel();
        let (tell, told) = mpsc::channel();
        let writer = Arc::clone(&outlet);
        std::thread::spawn(move || {
            let mut to = Gate { open: gate, tell };
            let lost = |count| format!("{count} lost").into_bytes();
            writer.write_to(&mut to, lost, || (Vec::new(), None));
        });
        let line = |n: usize| format!("{n:0>1000}").into_bytes();
        let count = 3 * MOST_BYTES / 1000;
        outlet.put(line(0));
        // The writer blocks on the first line, so no line leaves the queue while others are added.
        while !outlet.state.lock().writing {
            std::thread::yield_now();
        }
        for n in 1..count {
            outlet.put(line(n));
        }
        assert!(
            !outlet.flush(Duration::from_millis(20)),
            "the writer is blocked"
        );
        drop(open);
        assert!(outlet.flush(LONG));
        outlet.put(b"after".to_vec());
        assert!(outlet.flush(LONG));
        let written: Vec<String> = told.try_iter().collect();
        let [lines @ .., lost, after] = &written[..] else {
            panic!("{written:?}")
        };
        assert_eq!(after, "after");
        let lines_lost = count - lines.len();
        assert_eq!(*lost, format!("{lines_lost} lost"));
        assert!(lines.len() >= MOST_BYTES / 1000, "{}", lines.len());
        for (n, written) in lines.iter().enumerate() {
            assert_eq!(written.as_bytes(), line(n), "in order");
        }
    }

    #[test]
    fn additional_lines_are_written_without_a_new_line() {
        let outlet = Arc::new(Outlet::new());
        let (open, gate) = mpsc::channel();
        drop(open);
        let (tell, told) = mpsc::channel();
        let writer = Arc::clone(&outlet);
        std::thread::spawn(move || {
            let mut to = Gate { open: gate, tell };
            let mut asked = 0;
            let between = move || {
                asked += 1;
                match asked {
                    1 => (Vec::new(), Some(Duration::from_millis(1))),
                    2 => (vec![b"late".to_vec()], None),
                    _ => (Vec::new(), None),
                }
            };
            writer.write_to(&mut to, |_| Vec::new(), between);
        });
        outlet.put(b"first".to_vec());
        let wait = || told.recv_timeout(LONG).unwrap();
        assert_eq!([wait(), wait()], ["first", "late"]);
    }
}
