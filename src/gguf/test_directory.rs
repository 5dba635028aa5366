//! Directories for tests that need files.

use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU32, Ordering};

/// An empty directory of its own for one test, removed with its contents when dropped.
pub(crate) struct TestDirectory {
    path: PathBuf,
}

impl TestDirectory {
    /// Creates one; the process and a counter keep names apart.
    pub(crate) fn new() -> Self {
        static NEXT: AtomicU32 = AtomicU32::new(0);
        let number = NEXT.fetch_add(1, Ordering::Relaxed);
        let path = std::env::temp_dir().join(format!("hypura-test-{}-{number}", std::process::id()));
        std::fs::create_dir_all(&path).expect("a directory for temporary files");
        Self { path }
    }

    /// The directory.
    pub(crate) fn path(&self) -> &Path {
        &self.path
    }

    /// Writes a file at a relative path, with the directories that lead to it.
    pub(crate) fn write(&self, name: &str, contents: impl AsRef<[u8]>) -> PathBuf {
        let path = self.path.join(name);
        let parent = path.parent().expect("a joined path has a parent");
        std::fs::create_dir_all(parent).expect("a writable temporary directory");
        std::fs::write(&path, contents).expect("a writable temporary directory");
        path
    }
}

impl Drop for TestDirectory {
    fn drop(&mut self) {
        // Nothing depends on it; a leftover directory must not hide why a test failed.
        let _ = std::fs::remove_dir_all(&self.path);
    }
}
