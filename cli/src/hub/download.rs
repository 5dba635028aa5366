//! Bringing a model into the cache: several parts of a file at once, gone on with where an earlier attempt ended, and
//! compared with its checksum before anybody can take it for the model.
//!
//! While it arrives, a file is `blobs/HASH.hypura-incomplete`, of its full size, and a list beside it tells which
//! pieces are there. Other programs of the hub keep theirs as `HASH.incomplete` and go on at its end, so the name must
//! be another.

use std::collections::HashSet;
use std::fs::File;
use std::io::{Read, Write};
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::sync::Mutex;
use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering};

use rustix::fs::{FlockOperation, flock};
use sha2::{Digest, Sha256};

use super::cache::{Repository, cannot_write, make_parent};
use super::client::Client;
use super::listing::{self, RemoteFile};

/// What is asked for at once.
const PIECE_BYTES: u64 = if cfg!(test) { 64 << 10 } else { 8 << 20 };

/// Pieces that are under way at once: one connection rarely fills a line.
const CONNECTIONS: usize = 4;

/// How often a piece is asked for before the download fails; what has arrived is kept.
const ATTEMPTS: usize = 3;

/// How a download goes.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Progress {
    /// Of a file so many bytes are here.
    Received {
        /// The file's checksum.
        hash: String,
        /// Its size.
        total: u64,
        /// What is here.
        completed: u64,
    },
    /// A file is here, and is compared with its checksum.
    Verifying,
}

/// Who is told, and may end it by answering no.
pub type Watcher<'a> = dyn Fn(Progress) -> bool + Sync + 'a;

/// Brings files into the cache and returns their paths there. Those that are there already are not asked for.
///
/// # Errors
/// A sentence when the server fails, the place is full, or a file is not what the hub promised.
pub fn download(
    client: &Client,
    hub: &Path,
    repository: &str,
    files: &[RemoteFile],
    watcher: &Watcher<'_>,
) -> Result<Vec<PathBuf>, String> {
    let first = files.first().ok_or("there is nothing to download")?;
    let commit = listing::commit(client, repository, &first.path)?;
    let cached = Repository::new(hub, repository);
    for file in files {
        if !cached.blob(&file.hash).exists() {
            let url = listing::address(client, repository, &commit, &file.path);
            Transfer { client, url, file, blob: cached.blob(&file.hash), watcher }.run()?;
        }
    }
    // Only when all are there: half a model is not offered to anybody.
    let paths = files.iter().map(|file| cached.link(&commit, &file.path, &file.hash)).collect();
    cached.set_main(&commit)?;
    paths
}

/// One file on its way.
struct Transfer<'a> {
    client: &'a Client,
    url: String,
    file: &'a RemoteFile,
    blob: PathBuf,
    watcher: &'a Watcher<'a>,
}

impl Transfer<'_> {
    fn run(&self) -> Result<(), String> {
        let part = beside(&self.blob, "hypura-incomplete");
        let list = beside(&self.blob, "hypura-pieces");
        make_parent(&part)?;
        let failed = |error: std::io::Error| cannot_write(&part, &error);
        let output = File::options().read(true).write(true).create(true).truncate(false).open(&part).map_err(failed)?;
        // Two programs that download the same would spoil it for each other.
        let locked = flock(&output, FlockOperation::NonBlockingLockExclusive);
        locked.map_err(|_| format!("{} is being downloaded by another program", part.display()))?;
        let here = match output.metadata().is_ok_and(|status| status.len() == self.file.size_bytes) {
            true => pieces_in(&list),
            false => HashSet::new(),
        };
        if here.is_empty() {
            // A list without its file is of no use.
            let _ = std::fs::remove_file(&list);
        }
        output.set_len(self.file.size_bytes).map_err(failed)?;
        let listed = File::options().append(true).create(true).open(&list).map_err(failed)?;
        self.fetch(&output, &listed, &here)?;
        (self.watcher)(Progress::Verifying);
        self.verify(&part)?;
        output.sync_all().map_err(failed)?;
        std::fs::rename(&part, &self.blob).map_err(failed)?;
        let _ = std::fs::remove_file(&list);
        Ok(())
    }

    fn fetch(&self, output: &File, list: &File, here: &HashSet<u64>) -> Result<(), String> {
        let count = self.file.size_bytes.div_ceil(PIECE_BYTES);
        let missing: Vec<u64> = (0..count).filter(|piece| !here.contains(piece)).collect();
        let arrived = here.iter().map(|piece| self.bytes_of(*piece)).sum();
        let (next, completed) = (AtomicUsize::new(0), AtomicU64::new(arrived));
        let (is_over, problem) = (AtomicBool::new(false), Mutex::new(None));
        self.report(arrived);
        std::thread::scope(|scope| {
            for _ in 0..CONNECTIONS.min(missing.len()) {
                scope.spawn(|| {
                    while !is_over.load(Ordering::Relaxed) {
                        let Some(&piece) = missing.get(next.fetch_add(1, Ordering::Relaxed)) else { break };
                        let done = self.fetch_piece(piece, output, list);
                        let bytes = self.bytes_of(piece);
                        let goes_on =
                            done.is_ok() && self.report(completed.fetch_add(bytes, Ordering::Relaxed) + bytes);
                        if !goes_on {
                            is_over.store(true, Ordering::Relaxed);
                            let told = done.err().unwrap_or_else(|| "the download was stopped".to_owned());
                            problem.lock().unwrap_or_else(|poisoned| poisoned.into_inner()).get_or_insert(told);
                        }
                    }
                });
            }
        });
        match problem.into_inner().unwrap_or_else(|poisoned| poisoned.into_inner()) {
            Some(problem) => Err(format!("{problem}; what has arrived is kept, and the next attempt goes on there")),
            None => Ok(()),
        }
    }

    fn fetch_piece(&self, piece: u64, output: &File, mut list: &File) -> Result<(), String> {
        let (from, length) = (piece * PIECE_BYTES, self.bytes_of(piece));
        let mut attempt = 1;
        let bytes = loop {
            match self.client.range(&self.url, from, from + length) {
                Ok((_, total)) if total != self.file.size_bytes => {
                    return Err(format!("{} has {total} bytes, {} were promised", self.url, self.file.size_bytes));
                }
                Ok((bytes, _)) if bytes.len() as u64 == length => break bytes,
                Ok(_) if attempt < ATTEMPTS => attempt += 1,
                Ok((bytes, _)) => {
                    return Err(format!("{} broke off after {} of {length} bytes", self.url, bytes.len()));
                }
                Err(_) if attempt < ATTEMPTS => attempt += 1,
                Err(problem) => return Err(problem),
            }
        };
        let failed = |error: std::io::Error| cannot_write(&self.blob, &error);
        output.write_all_at(&bytes, from).map_err(failed)?;
        // After the bytes: what the list names is there. The checksum at the end finds what a crash made of it.
        list.write_all(format!("{piece}\n").as_bytes()).map_err(failed)
    }

    fn verify(&self, part: &Path) -> Result<(), String> {
        if !self.file.is_sha256 {
            return Ok(());
        }
        let mut file = File::open(part).map_err(|error| format!("cannot read {}: {error}", part.display()))?;
        let (mut hash, mut buffer) = (Sha256::new(), vec![0; 1 << 20]);
        loop {
            match file.read(&mut buffer) {
                Ok(0) => break,
                Ok(count) => hash.update(&buffer[..count]),
                Err(error) => return Err(format!("cannot read {}: {error}", part.display())),
            }
        }
        let found: String = hash.finalize().iter().map(|byte| format!("{byte:02x}")).collect();
        if found == self.file.hash {
            return Ok(());
        }
        // Going on with it would never end well.
        let _ = std::fs::remove_file(beside(&self.blob, "hypura-pieces"));
        let _ = std::fs::remove_file(part);
        Err(format!(
            "{} arrived damaged: its checksum is {found}, {} was promised; try again",
            self.url, self.file.hash
        ))
    }

    fn bytes_of(&self, piece: u64) -> u64 {
        (self.file.size_bytes - piece * PIECE_BYTES).min(PIECE_BYTES)
    }

    fn report(&self, completed: u64) -> bool {
        let (hash, total) = (self.file.hash.clone(), self.file.size_bytes);
        (self.watcher)(Progress::Received { hash, total, completed })
    }
}

fn beside(blob: &Path, suffix: &str) -> PathBuf {
    let mut name = blob.file_name().unwrap_or_default().to_owned();
    name.push(format!(".{suffix}"));
    blob.with_file_name(name)
}

fn pieces_in(list: &Path) -> HashSet<u64> {
    let text = std::fs::read_to_string(list).unwrap_or_default();
    // A line without its end was cut by a crash.
    text.split_inclusive('\n').filter_map(|line| line.strip_suffix('\n')?.parse().ok()).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::hub::test_hub::TestHub;
    use crate::scratch::Scratch;

    const CONTENT_BYTES: usize = (PIECE_BYTES as usize) * 2 + 12_345;

    fn content() -> Vec<u8> {
        (0..CONTENT_BYTES).map(|index| (index * 31 + index / 251) as u8).collect()
    }

    fn pull(hub: &TestHub, place: &Path, watcher: &Watcher<'_>) -> Result<Vec<PathBuf>, String> {
        let client = Client::new(&hub.url, None);
        let files = listing::files(&client, "o/r").unwrap();
        download(&client, place, "o/r", &files, watcher)
    }

    #[test]
    fn files_arrive_in_the_layout_of_the_cache() {
        let hub = TestHub::start(vec![("a.gguf".to_owned(), content()), ("UD/b.gguf".to_owned(), b"small".to_vec())]);
        let place = Scratch::make("pull").unwrap();
        let told = Mutex::new(Vec::new());
        let watch = |progress| {
            told.lock().unwrap().push(progress);
            true
        };
        let paths = pull(&hub, place.path(), &watch).unwrap();
        assert!(paths[0].ends_with(format!("models--o--r/snapshots/{}/a.gguf", hub.commit)), "{paths:?}");
        assert_eq!(std::fs::read(&paths[0]).unwrap(), content());
        assert_eq!(std::fs::read(&paths[1]).unwrap(), b"small");
        let main = std::fs::read_to_string(place.path().join("models--o--r/refs/main")).unwrap();
        assert_eq!(main, hub.commit);
        let blobs = std::fs::read_dir(place.path().join("models--o--r/blobs")).unwrap().count();
        assert_eq!(blobs, 2, "nothing is left beside the contents");
        let last =
            Progress::Received { hash: hub.hash(0), total: CONTENT_BYTES as u64, completed: CONTENT_BYTES as u64 };
        assert!(told.lock().unwrap().contains(&last) && told.lock().unwrap().contains(&Progress::Verifying));
        let before = hub.ranges();
        pull(&hub, place.path(), &watch).unwrap();
        assert_eq!(hub.ranges(), before, "what is there is not asked for again");
    }

    #[test]
    fn an_attempt_goes_on_where_the_last_one_ended() {
        let hub = TestHub::start(vec![("a.gguf".to_owned(), content())]);
        let place = Scratch::make("pull").unwrap();
        let stop = |progress| !matches!(progress, Progress::Received { completed, .. } if completed > 0);
        let problem = pull(&hub, place.path(), &stop).unwrap_err();
        assert!(problem.contains("stopped") && problem.contains("goes on"), "{problem}");
        let first = hub.ranges();
        let paths = pull(&hub, place.path(), &|_| true).unwrap();
        assert_eq!(std::fs::read(&paths[0]).unwrap(), content());
        assert!(hub.ranges() - first < 3, "not all three pieces again");
    }

    #[test]
    fn what_arrives_damaged_is_not_kept() {
        let hub = TestHub::start(vec![("a.gguf".to_owned(), content())]);
        hub.damage();
        let place = Scratch::make("pull").unwrap();
        let problem = pull(&hub, place.path(), &|_| true).unwrap_err();
        assert!(problem.contains("arrived damaged"), "{problem}");
        let blobs = std::fs::read_dir(place.path().join("models--o--r/blobs")).unwrap().count();
        assert_eq!(blobs, 0);
    }
}
