//! The clocks of another process, which a library that it loads moves by whole seconds.

use std::fs::File;
use std::os::unix::fs::FileExt;
use std::path::Path;
use std::process::Command;

use tempfile::TempDir;

/// The clocks of the processes that are started with [`Clocks::environment`].
pub struct Clocks {
    offsets: File,
    dir: TempDir,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Clock {
    Wall,
    Monotonic,
    Boot,
}

impl Clocks {
    pub fn new() -> Self {
        let dir = TempDir::new().unwrap();
        let source = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/common/clock.c");
        let mut cc = Command::new("cc");
        cc.args(["-shared", "-fPIC", "-o"]);
        cc.arg(dir.path().join("clock.so")).arg(source);
        assert!(cc.status().expect("a C compiler").success());
        let path = dir.path().join("offset");
        std::fs::write(&path, [0; 24]).unwrap();
        let offsets = File::options().write(true).open(path).unwrap();
        Self { offsets, dir }
    }

    pub fn environment(&self) -> [(&'static str, String); 2] {
        let path = |name: &str| self.dir.path().join(name).to_str().unwrap().to_owned();
        [
            ("LD_PRELOAD", path("clock.so")),
            ("CLOCK_OFFSET", path("offset")),
        ]
    }

    pub fn set(&self, clock: Clock, seconds: i64) {
        let at = clock as u64 * 8;
        self.offsets
            .write_all_at(&seconds.to_ne_bytes(), at)
            .unwrap();
    }
}
