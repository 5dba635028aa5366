//! Finding llama.cpp's programs as this project builds them.

use std::path::{Path, PathBuf};

/// The program of a name: in the directory that the user names, else beside this program, in a checkout's
/// `build/llama/bin` above it, or on the search path.
///
/// # Errors
/// A sentence that says where it was looked for.
pub fn find(name: &str, directory: Option<&Path>) -> Result<PathBuf, String> {
    if let Some(directory) = directory {
        let program = directory.join(name);
        return match program.is_file() {
            true => Ok(program),
            false => {
                Err(format!("{name} is not in {}; 'make llama' puts it into build/llama/bin", directory.display()))
            }
        };
    }
    let own = std::env::current_exe().and_then(|program| program.canonicalize()).unwrap_or_default();
    let beside = own.parent().map(Path::to_owned);
    let checkouts = own.ancestors().map(|directory| directory.join("build/llama/bin"));
    let search_path = std::env::var_os("PATH").unwrap_or_default();
    let places: Vec<PathBuf> = beside.into_iter().chain(checkouts).chain(std::env::split_paths(&search_path)).collect();
    let found = places.iter().map(|directory| directory.join(name)).find(|program| program.is_file());
    found.ok_or_else(|| format!("{name} was not found: run 'make llama', or name its directory with --llama DIR"))
}
