//! A memory limit around a program: a cgroup, where this process may make one.

use std::path::{Path, PathBuf};

/// The cgroup; it is removed when this is dropped.
#[derive(Debug)]
pub struct MemoryLimit(PathBuf);

impl MemoryLimit {
    /// Makes a cgroup of version 1 or 2 whose processes get no more memory than this.
    ///
    /// # Errors
    /// A sentence when this process may not, or the kernel hides them.
    pub fn make(limit_bytes: u64) -> Result<Self, String> {
        Self::make_under(Path::new("/sys/fs/cgroup"), limit_bytes)
            .map_err(|error| format!("no memory limit can be set here ({error}); root can, on most systems"))
    }

    fn make_under(root: &Path, limit_bytes: u64) -> std::io::Result<Self> {
        let name = format!("hypura-bench-{}", std::process::id());
        let version_1 = root.join("memory");
        let (directory, limit, swap, no_swap) = if version_1.join("memory.limit_in_bytes").exists() {
            (version_1.join(name), "memory.limit_in_bytes", "memory.swappiness", "0")
        } else {
            let control = root.join("cgroup.subtree_control");
            if !std::fs::read_to_string(&control)?.split_whitespace().any(|controller| controller == "memory") {
                std::fs::write(&control, "+memory")?;
            }
            (root.join(name), "memory.max", "memory.swap.max", "0")
        };
        std::fs::create_dir(&directory)?;
        let made = Self(directory);
        std::fs::write(made.0.join(limit), limit_bytes.to_string())?;
        // Without swap the file may be missing.
        let _ = std::fs::write(made.0.join(swap), no_swap);
        Ok(made)
    }

    /// A command that runs another one within the limit: the program, and what comes before the other one's words.
    pub fn command(&self) -> (PathBuf, Vec<String>) {
        let script = "echo $$ > \"$0\" && exec \"$@\"".to_owned();
        ("/bin/sh".into(), vec!["-c".to_owned(), script, self.0.join("cgroup.procs").to_string_lossy().into_owned()])
    }
}

impl Drop for MemoryLimit {
    fn drop(&mut self) {
        // It fails while a process is in it, which none of ours is by then.
        let _ = std::fs::remove_dir(&self.0);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::scratch::Scratch;

    #[test]
    fn limits_are_written_where_each_version_wants_them() {
        let root = Scratch::make("cgroup").unwrap();
        assert!(MemoryLimit::make_under(root.path(), 1).is_err());
        std::fs::write(root.path().join("cgroup.subtree_control"), "cpu io").unwrap();
        let two = MemoryLimit::make_under(root.path(), 12345).unwrap();
        assert_eq!(std::fs::read_to_string(root.path().join("cgroup.subtree_control")).unwrap(), "+memory");
        assert_eq!(std::fs::read_to_string(two.0.join("memory.max")).unwrap(), "12345");
        assert!(two.command().1[2].ends_with("/cgroup.procs"));
        std::fs::create_dir(root.path().join("memory")).unwrap();
        std::fs::write(root.path().join("memory/memory.limit_in_bytes"), "").unwrap();
        let one = MemoryLimit::make_under(root.path(), 54321).unwrap();
        assert_eq!(std::fs::read_to_string(one.0.join("memory.limit_in_bytes")).unwrap(), "54321");
        assert!(one.0.starts_with(root.path().join("memory")));
    }
}
