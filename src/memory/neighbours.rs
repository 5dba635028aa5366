//! Other processes of this user that stream: what they hold and what they could do with.
//!
//! Each has a file in a directory that only this user may enter, and holds a lock on it for as long as it lives, so
//! that what a killed process left behind is told from what is there. The contents are a line of numbers, which are
//! parsed as if they came from anybody. Where there is no such directory, a process knows of no other, and memory is
//! shared by pressure alone.

use std::fs::{File, OpenOptions};
use std::io::{self, Read};
use std::os::unix::fs::{FileExt, MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};

use super::Claim;
use crate::fnv::Fnv;
use crate::persist::{self, NameLock, lock};

/// More than a record has.
const RECORD_BYTES_MAX: usize = 512;

/// A process, as far as its memory for weights goes.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Neighbour {
    /// What limits its memory: only those with the same limit share it.
    pub(super) limited_by: String,
    /// What its models can do with memory.
    pub(super) claim: Claim,
    /// Bytes of their slots.
    pub(super) pool_bytes: u64,
    /// Of slots that are not touched: the system counts them as available.
    pub(super) untouched_bytes: u64,
}

impl Neighbour {
    fn to_line(&self) -> String {
        let Self { limited_by, claim, pool_bytes, untouched_bytes } = self;
        let limit = Fnv::of(limited_by.as_bytes());
        let text =
            format!("hypura-memory 1 {limit:016x} {} {} {pool_bytes} {untouched_bytes}", claim.least, claim.most);
        format!("{text} {:016x}\n", Fnv::of(text.as_bytes()))
    }

    /// `None` unless the line is whole, and about memory that is limited by the same.
    fn parse(line: &str, limited_by: &str) -> Option<Self> {
        let (text, check) = line.strip_suffix('\n')?.rsplit_once(' ')?;
        if u64::from_str_radix(check, 16).ok()? != Fnv::of(text.as_bytes()) {
            return None; // half written
        }
        let mut words = text.strip_prefix("hypura-memory 1 ")?.split(' ');
        if u64::from_str_radix(words.next()?, 16).ok()? != Fnv::of(limited_by.as_bytes()) {
            return None;
        }
        // No machine has this much; sums of such numbers cannot overflow.
        let mut number = || words.next()?.parse::<u64>().ok().filter(|number| *number < 1 << 56);
        let (least, most, pool_bytes, untouched_bytes) = (number()?, number()?, number()?, number()?);
        let claim = Claim { least, most: most.max(least) };
        Some(Self { limited_by: limited_by.to_owned(), claim, pool_bytes, untouched_bytes })
    }
}

/// This process's record, and the way to the others'.
#[derive(Debug)]
pub(super) struct Neighbourhood {
    directory: PathBuf,
    own: Option<(PathBuf, File, String)>,
}

impl Neighbourhood {
    /// Where this user's processes meet; `None` where there is no safe place.
    pub(super) fn of_user() -> Option<Self> {
        persist::runtime_directory().map(|directory| Self { directory, own: None })
    }

    /// The same in a directory of a test's own.
    #[cfg(test)]
    fn in_directory(directory: PathBuf) -> Option<Self> {
        persist::private_directory(directory).map(|directory| Self { directory, own: None })
    }

    /// Lets the others know.
    pub(super) fn publish(&mut self, own: &Neighbour) {
        let line = own.to_line();
        // One that another process took for a dead one's, before it was locked, is written anew.
        let is_gone = |file: &File| file.metadata().map_or(true, |status| status.nlink() == 0);
        if self.own.as_ref().is_some_and(|(_, file, _)| is_gone(file)) {
            self.own = None;
        }
        if self.own.is_none() {
            self.own = self.create().ok();
        }
        let Some((_, file, written)) = &mut self.own else { return };
        if *written != line && file.write_all_at(line.as_bytes(), 0).is_ok() {
            // A longer record was longer by its tail.
            let _ = file.set_len(line.len() as u64);
            *written = line;
        }
    }

    /// Takes our record back.
    pub(super) fn leave(&mut self) {
        if let Some((path, ..)) = self.own.take() {
            let _ = std::fs::remove_file(path);
        }
    }

    fn create(&self) -> io::Result<(PathBuf, File, String)> {
        static NUMBER: AtomicU64 = AtomicU64::new(0);
        let number = NUMBER.fetch_add(1, Ordering::Relaxed);
        let path = self.directory.join(format!("memory-{}-{number}", std::process::id()));
        let file = OpenOptions::new().write(true).create(true).truncate(true).mode(0o600).open(&path)?;
        if !lock(&file, libc::LOCK_EX | libc::LOCK_NB) {
            return Err(io::ErrorKind::WouldBlock.into());
        }
        Ok((path, file, String::new()))
    }

    /// The others whose memory is limited by the same.
    pub(super) fn others(&self, limited_by: &str) -> Vec<Neighbour> {
        let Ok(entries) = std::fs::read_dir(&self.directory) else { return Vec::new() };
        let own = self.own.as_ref().map(|(path, ..)| path);
        let paths = entries.filter_map(|entry| entry.ok().map(|entry| entry.path()));
        let is_record = |path: &PathBuf| {
            path.file_name().is_some_and(|name| name.as_encoded_bytes().starts_with(b"memory-")) && Some(path) != own
        };
        paths.filter(is_record).filter_map(|path| read_record(&path, limited_by)).collect()
    }

    /// Keeps others from being admitted at the same time, until it is dropped; `None` while another one does.
    pub(super) fn admission(&self) -> Option<NameLock> {
        NameLock::take(&self.directory, "admission")
    }
}

/// What a living process has written; what a dead one left behind is removed.
fn read_record(path: &Path, limited_by: &str) -> Option<Neighbour> {
    let file = OpenOptions::new().read(true).custom_flags(libc::O_NOFOLLOW | libc::O_NONBLOCK).open(path).ok()?;
    if lock(&file, libc::LOCK_SH | libc::LOCK_NB) {
        let _ = std::fs::remove_file(path);
        return None;
    }
    let mut bytes = Vec::with_capacity(RECORD_BYTES_MAX);
    file.take(RECORD_BYTES_MAX as u64).read_to_end(&mut bytes).ok()?;
    Neighbour::parse(std::str::from_utf8(&bytes).ok()?, limited_by)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::common::TestDirectory;

    fn neighbour(pool_bytes: u64) -> Neighbour {
        let claim = Claim { least: 10, most: 1000 };
        Neighbour { limited_by: "machine".to_owned(), claim, pool_bytes, untouched_bytes: 3 }
    }

    #[test]
    fn those_that_live_see_each_other_and_what_they_last_said() {
        let directory = TestDirectory::new();
        let place = directory.path().join("meeting");
        let mut one = Neighbourhood::in_directory(place.clone()).unwrap();
        let mut other = Neighbourhood::in_directory(place.clone()).unwrap();
        assert_eq!(one.others("machine"), []);
        one.publish(&neighbour(123_456_789));
        one.publish(&neighbour(500));
        other.publish(&neighbour(7));
        assert_eq!(other.others("machine"), [neighbour(500)]);
        assert_eq!(one.others("machine"), [neighbour(7)]);
        assert_eq!(one.others("cgroup /a"), [], "limited by something else");
        // Gone without a word: the lock goes with the process.
        drop(other);
        assert_eq!(one.others("machine"), []);
        assert_eq!(std::fs::read_dir(&place).unwrap().count(), 1, "what it left is removed");
        one.leave();
        assert_eq!(std::fs::read_dir(&place).unwrap().count(), 0);
    }

    #[test]
    fn a_record_that_somebody_removed_is_written_again() {
        let directory = TestDirectory::new();
        let place = directory.path().join("meeting");
        let mut one = Neighbourhood::in_directory(place.clone()).unwrap();
        let other = Neighbourhood::in_directory(place.clone()).unwrap();
        one.publish(&neighbour(1));
        std::fs::read_dir(&place).unwrap().for_each(|entry| std::fs::remove_file(entry.unwrap().path()).unwrap());
        one.publish(&neighbour(1));
        assert_eq!(other.others("machine"), [neighbour(1)]);
    }

    #[test]
    fn rubbish_is_nobody() {
        let line = neighbour(5).to_line();
        assert_eq!(Neighbour::parse(&line, "machine"), Some(neighbour(5)));
        for length in 0..line.len() {
            assert_eq!(Neighbour::parse(&line[..length], "machine"), None, "{length}");
        }
        let resealed = |text: &str| format!("{text} {:016x}\n", Fnv::of(text.as_bytes()));
        let limit = format!("{:016x}", Fnv::of(b"machine"));
        for numbers in ["1 2 3", "-1 2 3 4", "1 2 3 18446744073709551615", "a b c d", ""] {
            let line = resealed(&format!("hypura-memory 1 {limit} {numbers}"));
            assert_eq!(Neighbour::parse(&line, "machine"), None, "{numbers}");
        }
        assert_eq!(Neighbour::parse(&resealed("hypura-memory 2 0 1 2 3 4"), "machine"), None);
    }

    #[test]
    fn a_directory_that_others_may_write_to_is_not_used() {
        use std::os::unix::fs::PermissionsExt;
        let directory = TestDirectory::new();
        let open = directory.path().join("open");
        std::fs::create_dir(&open).unwrap();
        std::fs::set_permissions(&open, std::fs::Permissions::from_mode(0o777)).unwrap();
        assert!(Neighbourhood::in_directory(open.clone()).is_none());
        std::fs::set_permissions(&open, std::fs::Permissions::from_mode(0o700)).unwrap();
        let link = directory.path().join("link");
        std::os::unix::fs::symlink(&open, &link).unwrap();
        assert!(Neighbourhood::in_directory(link).is_none());
        assert!(Neighbourhood::in_directory(open).is_some());
    }

    #[test]
    fn one_is_admitted_at_a_time() {
        let directory = TestDirectory::new();
        let one = Neighbourhood::in_directory(directory.path().join("meeting")).unwrap();
        let held = one.admission().unwrap();
        assert!(one.admission().is_none());
        drop(held);
        assert!(one.admission().is_some());
    }
}
