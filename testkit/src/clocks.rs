//! Moves the clocks of a process, by a preloaded library.

use std::fs::File;
use std::os::unix::fs::FileExt;
use std::path::Path;
use std::process::Command;

use tempfile::TempDir;

/// Offsets between the clocks of a process and the right time. They apply to every process that is
/// started with [`Clocks::environment`].
pub struct Clocks {
    offsets: File,
    dir: TempDir,
}

#[derive(Clone, Copy)]
pub enum Clock {
    Wall,
    Monotonic,
    /// The clock that also counts the time for which the machine sleeps.
    Boot,
}

impl Clocks {
    pub fn compile() -> Self {
        let dir = TempDir::new().unwrap();
        let source = Path::new(env!("CARGO_MANIFEST_DIR")).join("src/clock.c");
        let mut cc = Command::new("cc");
        cc.args(["-shared", "-fPIC", "-o"]);
        cc.arg(dir.path().join("clock.so")).arg(source);
        assert!(cc.status().expect("a C compiler").success());
        let path = dir.path().join("offsets");
        std::fs::write(&path, [0; 24]).unwrap();
        let offsets = File::options().write(true).open(path).unwrap();
        Self { offsets, dir }
    }

    pub fn environment(&self) -> [(&'static str, String); 2] {
        let path = |name| self.dir.path().join(name).to_str().unwrap().to_owned();
        [
            ("LD_PRELOAD", path("clock.so")),
            ("CLOCK_OFFSET", path("offsets")),
        ]
    }

    /// Moves a clock by so many seconds from the right time.
    pub fn set(&self, clock: Clock, seconds: i64) {
        let at = clock as u64 * 8;
        self.offsets
            .write_all_at(&seconds.to_ne_bytes(), at)
            .unwrap();
    }
}
