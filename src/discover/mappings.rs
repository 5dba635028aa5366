//! What a range of addresses is mapped from, as `/proc/self/maps` tells.

use std::ffi::OsStr;
use std::fs;
use std::ops::Range;
use std::os::unix::ffi::OsStrExt;
use std::path::PathBuf;

/// A place in a file.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Place {
    pub(super) path: PathBuf,
    pub(super) offset: u64,
}

/// The place in a file that a range of addresses shows, if all of it is a shared, read-only mapping of one file without
/// a gap.
pub(super) fn place_of(addresses: Range<u64>) -> Option<Place> {
    place_in(&fs::read("/proc/self/maps").ok()?, addresses)
}

fn place_in(maps: &[u8], addresses: Range<u64>) -> Option<Place> {
    let mut found: Option<Place> = None;
    let mut covered = addresses.start;
    for mapping in maps.split(|&byte| byte == b'\n').filter_map(Mapping::parse) {
        if mapping.addresses.end <= covered {
            continue;
        }
        if mapping.addresses.start > covered || !mapping.is_shared_and_read_only {
            return None;
        }
        let offset = mapping.offset + (covered - mapping.addresses.start);
        let path = PathBuf::from(OsStr::from_bytes(mapping.path));
        match &found {
            None => found = Some(Place { path, offset }),
            Some(place) if place.path == path && place.offset + (covered - addresses.start) == offset => {}
            Some(_) => return None,
        }
        covered = mapping.addresses.end;
        if covered >= addresses.end {
            return found;
        }
    }
    None
}

/// A line: `7f0c2a000000-7f0c2b000000 r--s 00000000 fe:00 393239    /models/a.gguf`.
struct Mapping<'a> {
    addresses: Range<u64>,
    is_shared_and_read_only: bool,
    offset: u64,
    path: &'a [u8],
}

impl<'a> Mapping<'a> {
    /// `None` for what is not mapped from a file that has a path.
    fn parse(line: &'a [u8]) -> Option<Self> {
        let path = &line[line.iter().position(|&byte| byte == b'/')?..];
        let mut words = std::str::from_utf8(&line[..line.len() - path.len()]).ok()?.split_ascii_whitespace();
        let hexadecimal = |text: &str| u64::from_str_radix(text, 16).ok();
        let (start, end) = words.next()?.split_once('-')?;
        let permissions = words.next()?;
        Some(Self {
            addresses: hexadecimal(start)?..hexadecimal(end)?,
            is_shared_and_read_only: permissions == "r--s",
            offset: hexadecimal(words.next()?)?,
            path,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const MAPS: &[u8] = b"1000-3000 r--s 00000000 fe:00 39    /models/a b.gguf\n\
        3000-4000 r--s 00002000 fe:00 39    /models/a b.gguf\n\
        4000-5000 r--s 00000000 fe:00 40    /models/c.gguf\n\
        6000-7000 rw-p 00000000 fe:00 39    /models/a b.gguf\n\
        8000-9000 rw-p 00000000 00:00 0     [heap]\n\
        a000-b000 r--s 00003000 fe:00 39    /models/a b.gguf (deleted)\n";

    fn place(addresses: Range<u64>) -> Option<(String, u64)> {
        place_in(MAPS, addresses).map(|place| (place.path.display().to_string(), place.offset))
    }

    #[test]
    fn a_range_is_where_its_mappings_say() {
        let a = |offset| Some(("/models/a b.gguf".to_owned(), offset));
        assert_eq!(place(0x1000..0x1001), a(0));
        assert_eq!(place(0x1234..0x2000), a(0x234));
        assert_eq!(place(0x2000..0x4000), a(0x1000), "over two mappings that continue each other");
        assert_eq!(place(0x3800..0x4001), None, "two files");
        assert_eq!(place(0x4800..0x5001), None, "a gap follows");
        assert_eq!(place(0x5800..0x6001), None, "a gap comes first");
        assert_eq!(place(0x6000..0x6001), None, "it may have been written to");
        assert_eq!(place(0x8000..0x8001), None, "no file");
        assert_eq!(place(0xa000..0xa001), Some(("/models/a b.gguf (deleted)".to_owned(), 0x3000)));
        assert_eq!(place(0xc000..0xc001), None, "nothing");
    }
}
