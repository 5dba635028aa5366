//! Our engines beside fio: the same file, block size, depth and mode, taken in turn; medians of several runs.
//!
//! `cargo bench --bench io -- [--seconds S] FILE` (or HYPURA_TEST_FILE; a FILE that does not exist is made, 4 GB of
//! it).
//! `-- --engine uring|threads --block BYTES --depth N FILE` reads with one engine and nothing else, to be traced.

use std::io::Write;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::Arc;
use std::time::Duration;

use hypura::io::{DirectFile, EngineKind, Limit, Tuning, destination, destination_bytes_min, measure, uring_available};

const FILE_BYTES: usize = 4 << 30;
const RUNS: usize = 5;

/// One run's result.
#[derive(Clone, Copy)]
struct Speed {
    bytes_per_second: f64,
    cpu_seconds_per_byte: f64,
}

struct Options {
    file: PathBuf,
    seconds: f64,
    engine: Option<EngineKind>,
    block_bytes: usize,
    depth: usize,
}

fn options() -> Result<Options, String> {
    let file = std::env::var_os("HYPURA_TEST_FILE").map(PathBuf::from).unwrap_or_default();
    let mut options = Options { file, seconds: 0.5, engine: None, block_bytes: 1 << 20, depth: 4 };
    let mut arguments = std::env::args().skip(1);
    while let Some(argument) = arguments.next() {
        let mut value = || arguments.next().ok_or(format!("{argument} needs a value"));
        let number = |text: String| text.parse::<f64>().map_err(|error| format!("{argument}: {error}"));
        match &*argument {
            "--bench" => {} // cargo's own
            "--seconds" => options.seconds = number(value()?)?,
            "--block" => options.block_bytes = number(value()?)? as usize,
            "--depth" => options.depth = number(value()?)? as usize,
            "--engine" => {
                options.engine = match &*value()? {
                    "uring" => Some(EngineKind::Uring),
                    "threads" => Some(EngineKind::Threads),
                    other => return Err(format!("there is no engine {other}")),
                };
            }
            _ => options.file = argument.into(),
        }
    }
    if options.file.as_os_str().is_empty() {
        return Err("name a file, as an argument or in HYPURA_TEST_FILE".to_owned());
    }
    Ok(options)
}

/// Writes a file that cannot be compressed and has no holes.
fn make(path: &Path) -> std::io::Result<()> {
    eprintln!("writing {} ...", path.display());
    let draft = path.with_extension("draft");
    let mut file = std::fs::File::create(&draft)?;
    let mut state = 0x9e37_79b9_7f4a_7c15u64;
    let mut block = vec![0u8; 4 << 20];
    for _ in 0..FILE_BYTES / block.len() {
        for word in block.chunks_exact_mut(8) {
            state ^= state << 13;
            state ^= state >> 7;
            state ^= state << 17;
            word.copy_from_slice(&state.to_le_bytes());
        }
        file.write_all(&block)?;
    }
    file.sync_all()?;
    std::fs::rename(draft, path)
}

fn ours(files: &Arc<[DirectFile]>, tuning: &Tuning, seconds: f64, seed: u64) -> Result<Speed, String> {
    // A few buffers over and over, as fio does it.
    let found = destination(destination_bytes_min(tuning)).and_then(|mut arena| {
        measure(files, tuning, Limit::counting(Duration::from_secs_f64(seconds)), seed, &mut arena)
    });
    let found = found.map_err(|error| error.to_string())?;
    Ok(Speed { bytes_per_second: found.bytes_per_second, cpu_seconds_per_byte: found.cpu_seconds_per_byte })
}

fn fio(file: &Path, tuning: &Tuning, seconds: f64, seed: u64) -> Result<Speed, String> {
    // Depth is requests of one job for io_uring, and jobs of one request each for system calls that block.
    let (engine, jobs, depth) = match tuning.engine {
        EngineKind::Uring => ("io_uring", 1, tuning.depth),
        EngineKind::Threads => ("psync", tuning.depth, 1),
    };
    let mut command = Command::new("fio");
    command.arg(format!("--filename={}", file.display()));
    command.args(["--name=read", "--rw=randread", "--readonly", "--time_based", "--group_reporting", "--thread"]);
    command.args(["--output-format=json", "--norandommap", "--randrepeat=0"]);
    command.args([format!("--direct={}", u8::from(tuning.direct)), format!("--ioengine={engine}")]);
    command.args([format!("--bs={}", tuning.block_bytes), format!("--randseed={seed}")]);
    command.args([format!("--iodepth={depth}"), format!("--numjobs={jobs}")]);
    command.arg(format!("--runtime={}ms", (seconds * 1000.0) as u64));
    let output = command.output().map_err(|error| format!("fio cannot be run: {error}"))?;
    let text = String::from_utf8_lossy(&output.stdout);
    let json: serde_json::Value = text
        .find('{')
        .and_then(|start| serde_json::from_str(&text[start..]).ok())
        .ok_or_else(|| format!("fio: {}", String::from_utf8_lossy(&output.stderr).trim()))?;
    let job = &json["jobs"][0];
    let number = |value: &serde_json::Value| value.as_f64().ok_or("fio's report lacks a number");
    let bytes_per_second = number(&job["read"]["bw_bytes"])?;
    // Per cent of one job's run time, which is the time of one processor, whatever the number of jobs.
    let percent = number(&job["usr_cpu"])? + number(&job["sys_cpu"])?;
    let busy_seconds = percent / 100.0 * number(&job["job_runtime"])? / 1000.0;
    Ok(Speed { bytes_per_second, cpu_seconds_per_byte: busy_seconds / number(&job["read"]["io_bytes"])? })
}

fn median(mut values: Vec<f64>) -> f64 {
    values.sort_by(f64::total_cmp);
    values[values.len() / 2]
}

fn medians(runs: &[Speed]) -> Speed {
    Speed {
        bytes_per_second: median(runs.iter().map(|run| run.bytes_per_second).collect()),
        cpu_seconds_per_byte: median(runs.iter().map(|run| run.cpu_seconds_per_byte).collect()),
    }
}

fn compare(options: &Options, files: &Arc<[DirectFile]>) -> Result<(), String> {
    let mut engines = vec![EngineKind::Threads];
    match uring_available() {
        Ok(()) => engines.push(EngineKind::Uring),
        Err(reason) => eprintln!("SKIPPED: io_uring: {reason}"),
    }
    let direct = files.iter().all(DirectFile::is_direct);
    println!(
        "{} reads, medians of {RUNS} runs of {} s each",
        if direct { "direct" } else { "buffered" },
        options.seconds
    );
    println!("block KiB  depth  engine   GB/s   fio GB/s   share   CPU s/GB   fio CPU s/GB");
    let mut seed = u64::from(std::process::id());
    for block_bytes in [256 << 10, 1 << 20, 4 << 20] {
        for depth in [4, 8] {
            let tunings: Vec<Tuning> = engines
                .iter()
                .map(|&engine| Tuning {
                    engine,
                    block_bytes,
                    depth,
                    direct,
                    bytes_per_second: None,
                    read_overhead_seconds: None,
                })
                .collect();
            let mut runs = vec![(Vec::new(), Vec::new()); tunings.len()];
            // In turn, so that a drive whose speed drifts drifts for all.
            for run in 0..RUNS {
                for (tuning, (our_runs, fio_runs)) in tunings.iter().zip(&mut runs) {
                    seed += 2;
                    // Whoever comes second may find a drive that is warm or throttled.
                    if run % 2 == 0 {
                        our_runs.push(ours(files, tuning, options.seconds, seed)?);
                        fio_runs.push(fio(&options.file, tuning, options.seconds, seed)?);
                    } else {
                        fio_runs.push(fio(&options.file, tuning, options.seconds, seed)?);
                        our_runs.push(ours(files, tuning, options.seconds, seed)?);
                    }
                }
            }
            for (tuning, (our_runs, fio_runs)) in tunings.iter().zip(&runs) {
                let (ours, fio) = (medians(our_runs), medians(fio_runs));
                println!(
                    "{:9} {:6}  {:7} {:6.2} {:10.2} {:6.0}% {:10.3} {:14.3}",
                    block_bytes >> 10,
                    depth,
                    if tuning.engine == EngineKind::Uring { "uring" } else { "threads" },
                    ours.bytes_per_second / 1e9,
                    fio.bytes_per_second / 1e9,
                    100.0 * ours.bytes_per_second / fio.bytes_per_second,
                    ours.cpu_seconds_per_byte * 1e9,
                    fio.cpu_seconds_per_byte * 1e9,
                );
            }
        }
    }
    Ok(())
}

fn run() -> Result<(), String> {
    let options = options()?;
    if !options.file.exists() {
        make(&options.file).map_err(|error| format!("{}: {error}", options.file.display()))?;
    }
    let file = DirectFile::open(&options.file, true).map_err(|error| error.to_string())?;
    let files: Arc<[DirectFile]> = Arc::from([file]);
    let Some(engine) = options.engine else { return compare(&options, &files) };
    let Options { block_bytes, depth, seconds, .. } = options;
    let tuning = Tuning {
        engine,
        block_bytes,
        depth,
        direct: files[0].is_direct(),
        bytes_per_second: None,
        read_overhead_seconds: None,
    };
    let speed = ours(&files, &tuning, seconds, u64::from(std::process::id()))?;
    let mib = speed.bytes_per_second * seconds / f64::from(1 << 20);
    println!("{tuning}: {mib:.0} MiB, {:.2} GB/s", speed.bytes_per_second / 1e9);
    Ok(())
}

fn main() {
    if let Err(error) = run() {
        eprintln!("{error}");
        std::process::exit(1);
    }
}
