//! What a process holds in the memory of GPUs, as far as the system tells: Linux of its open devices (AMD, Intel), NVIDIA's driver
//! by `nvidia-smi`. In a container the driver may know the process by another number; then it is not found.

use std::collections::HashMap;
use std::path::Path;
use std::process::Stdio;
use std::time::Duration;

use tokio::process::Command;

/// The bytes; 0 where nothing is known.
pub async fn held_by(process_id: u32) -> u64 {
    of_devices(Path::new(&format!("/proc/{process_id}/fdinfo"))) + of_nvidia(process_id).await
}

/// What the kernel tells of a process's open devices. The same device may be open several times, and tells the same each time.
fn of_devices(directory: &Path) -> u64 {
    let mut clients = HashMap::new();
    for entry in std::fs::read_dir(directory).into_iter().flatten().flatten() {
        let text = std::fs::read_to_string(entry.path()).unwrap_or_default();
        let value = |name: &str| text.lines().find_map(|line| Some(line.strip_prefix(name)?.trim().to_owned()));
        let place = (value("drm-pdev:"), value("drm-client-id:"));
        let kibibytes = value("drm-memory-vram:").or_else(|| value("drm-total-vram0:"));
        let kibibytes = kibibytes.and_then(|size| size.strip_suffix("KiB")?.trim().parse::<u64>().ok());
        clients.extend(kibibytes.map(|kibibytes| (place, kibibytes << 10)));
    }
    clients.values().sum()
}

async fn of_nvidia(process_id: u32) -> u64 {
    const PATIENCE: Duration = Duration::from_secs(2);
    let mut command = Command::new("nvidia-smi");
    command.args(["--query-compute-apps=pid,used_memory", "--format=csv,noheader,nounits"]);
    let output = command.stdin(Stdio::null()).stderr(Stdio::null()).kill_on_drop(true).output();
    match tokio::time::timeout(PATIENCE, output).await {
        Ok(Ok(output)) => sum_of(&String::from_utf8_lossy(&output.stdout), process_id),
        _ => 0,
    }
}

/// Adds up the lines `PROCESS, MEBIBYTES` of a process: one for each GPU.
fn sum_of(table: &str, process_id: u32) -> u64 {
    let rows = table.lines().filter_map(|line| line.split_once(','));
    let own = rows.filter(|(process, _)| process.trim().parse() == Ok(process_id));
    own.filter_map(|(_, mebibytes)| mebibytes.trim().parse::<u64>().ok()).map(|mebibytes| mebibytes << 20).sum()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::scratch::Scratch;

    #[test]
    fn nvidia_has_a_line_a_gpu() {
        assert_eq!(sum_of("7, 100\n71, 9\n7, 20\n7, [N/A]\n", 7), 120 << 20);
        assert_eq!(sum_of("No devices were found\n", 7), 0);
    }

    #[test]
    fn a_device_that_is_open_twice_counts_once() {
        let scratch = Scratch::make("fdinfo").unwrap();
        let write = |name: &str, text: &str| std::fs::write(scratch.path().join(name), text).unwrap();
        let device = |client: u32| {
            format!("pos:\t0\ndrm-pdev:\t0000:03:00.0\ndrm-client-id:\t{client}\ndrm-memory-vram:\t512 KiB\n")
        };
        write("3", &device(8));
        write("4", &device(8));
        write("5", &device(9));
        write("6", "pos:\t0\n");
        assert_eq!(of_devices(scratch.path()), 1 << 20);
    }
}
