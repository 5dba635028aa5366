//! A hub for tests: its two calls, listing a repository and parts of files, on a port of the loopback interface.

use std::io::{BufRead, BufReader, Write};
use std::net::{TcpListener, TcpStream};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};

use serde_json::{Value, json};
use sha2::{Digest, Sha256};

/// A running hub with one repository, `o/r`.
pub struct TestHub {
    /// Its address.
    pub url: String,
    /// The commit that `main` is.
    pub commit: String,
    shared: Arc<Shared>,
}

struct Shared {
    files: Vec<(String, Vec<u8>)>,
    ranges: AtomicUsize,
    damages: AtomicBool,
}

const COMMIT: &str = "0123456789abcdef0123456789abcdef01234567";

impl TestHub {
    /// Starts one that offers these files.
    pub fn start(files: Vec<(String, Vec<u8>)>) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let url = format!("http://{}", listener.local_addr().unwrap());
        let shared = Arc::new(Shared { files, ranges: AtomicUsize::new(0), damages: AtomicBool::new(false) });
        let serving = Arc::clone(&shared);
        // It ends with the test's process.
        std::thread::spawn(move || {
            for stream in listener.incoming().flatten() {
                let shared = Arc::clone(&serving);
                std::thread::spawn(move || shared.serve(&stream));
            }
        });
        Self { url, commit: COMMIT.to_owned(), shared }
    }

    /// Parts of files that were asked for.
    pub fn ranges(&self) -> usize {
        self.shared.ranges.load(Ordering::Relaxed)
    }

    /// Sends wrong bytes from now on.
    pub fn damage(&self) {
        self.shared.damages.store(true, Ordering::Relaxed);
    }

    /// The checksum of a file.
    pub fn hash(&self, file: usize) -> String {
        hash(&self.shared.files[file].1)
    }
}

impl Shared {
    fn serve(&self, stream: &TcpStream) {
        let mut reader = BufReader::new(stream);
        while let Some((path, range)) = read_request(&mut reader) {
            let answer = self.answer(&path, range);
            let mut stream = stream;
            if stream.write_all(&answer).is_err() {
                return;
            }
        }
    }

    fn answer(&self, path: &str, range: Option<(usize, usize)>) -> Vec<u8> {
        if path.starts_with("/api/models/o/r/tree/main") {
            let list: Vec<Value> = self
                .files
                .iter()
                .map(|(path, content)| {
                    let lfs = json!({"oid": hash(content), "size": content.len()});
                    json!({"type": "file", "path": path, "size": content.len(), "oid": "1f", "lfs": lfs})
                })
                .collect();
            return response("200 OK", "", json!(list).to_string().as_bytes());
        }
        let name = path.strip_prefix("/o/r/resolve/").and_then(|rest| rest.split_once('/')).map(|(_, name)| name);
        let file = self.files.iter().find(|(path, _)| Some(path.as_str()) == name);
        let (Some((_, content)), Some((from, to))) = (file, range) else {
            return response("404 Not Found", "", b"");
        };
        let to = to.min(content.len());
        if to - from > 1 {
            self.ranges.fetch_add(1, Ordering::Relaxed);
        }
        let mut part = content[from..to].to_vec();
        if self.damages.load(Ordering::Relaxed) {
            part.iter_mut().for_each(|byte| *byte ^= 1);
        }
        let head = format!("content-range: bytes {from}-{}/{}\r\nx-repo-commit: {COMMIT}\r\n", to - 1, content.len());
        response("206 Partial Content", &head, &part)
    }
}

fn read_request(reader: &mut impl BufRead) -> Option<(String, Option<(usize, usize)>)> {
    let mut line = String::new();
    reader.read_line(&mut line).ok()?;
    let path = line.split(' ').nth(1)?.to_owned();
    let mut range = None;
    loop {
        let mut line = String::new();
        reader.read_line(&mut line).ok()?;
        let line = line.trim_end().to_ascii_lowercase();
        if line.is_empty() {
            return Some((path, range));
        }
        if let Some((from, to)) = line.strip_prefix("range: bytes=").and_then(|range| range.split_once('-')) {
            range = Some((from.parse().ok()?, to.parse::<usize>().ok()? + 1));
        }
    }
}

fn response(status: &str, head: &str, body: &[u8]) -> Vec<u8> {
    let head = format!("HTTP/1.1 {status}\r\ncontent-length: {}\r\n{head}\r\n", body.len());
    [head.as_bytes(), body].concat()
}

fn hash(content: &[u8]) -> String {
    Sha256::digest(content).iter().map(|byte| format!("{byte:02x}")).collect()
}
