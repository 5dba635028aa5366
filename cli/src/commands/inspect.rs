//! `hypura inspect`.

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::process::ExitCode;

use clap::Args;
use hypura::forecast::{Lookup, Problem, Usage};
use serde_json::{Value, json};

use crate::format::{Table, bytes, bytes_or_none, percent};
use crate::model_file::ModelFile;
use crate::placement::{least_ram, problem_for};
use crate::{kv_cache, output};

const EXAMPLES: &str = "\
Examples:
  hypura inspect big-model.gguf
  hypura inspect model-00001-of-00003.gguf        all parts of a split model
  hypura inspect big-model.gguf --json | jq .roles
";

/// Show what a model is made of, and what of it could stream
///
/// Reads the header only, which takes no time however large the model is.
#[derive(Debug, Args)]
#[command(after_help = EXAMPLES)]
pub struct Inspect {
    /// A GGUF file; of a split model the first
    pub model: PathBuf,

    /// Print JSON
    #[arg(long)]
    pub json: bool,
}

/// Some of the tensors, added up.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
struct Sum {
    tensors: usize,
    bytes: u64,
    streamable_bytes: u64,
}

/// What the tensors add up to.
struct Sums {
    roles: BTreeMap<String, Sum>,
    /// By layer, then role; what is outside the layers has none.
    layers: BTreeMap<Option<u32>, BTreeMap<String, u64>>,
    /// Bytes that computing a token uses.
    used_bytes: u64,
}

impl Sums {
    fn of(problem: &Problem) -> Self {
        let mut sums = Self { roles: BTreeMap::new(), layers: BTreeMap::new(), used_bytes: 0 };
        let mut used = 0.0;
        for item in &problem.items {
            let role = sums.roles.entry(item.role.clone()).or_default();
            role.tensors += item.tensors.len();
            role.bytes += item.bytes();
            role.streamable_bytes += if item.streamable { item.bytes() } else { 0 };
            *sums.layers.entry(item.layer).or_default().entry(item.role.clone()).or_default() += item.bytes();
            used += match &item.usage {
                Usage::Lookup | Usage::Row(_) => 0.0,
                _ => item.used_bytes(),
            };
        }
        sums.used_bytes = used as u64;
        sums
    }

    fn streamable_bytes(&self) -> u64 {
        self.roles.values().map(|sum| sum.streamable_bytes).sum()
    }

    /// Roles, those with most bytes first.
    fn roles_by_size(&self) -> Vec<(&String, Sum)> {
        let mut roles: Vec<(&String, Sum)> = self.roles.iter().map(|(role, sum)| (role, *sum)).collect();
        roles.sort_by_key(|(_, sum)| std::cmp::Reverse(sum.bytes));
        roles
    }
}

/// Shows a model.
///
/// # Errors
/// When it cannot be read.
pub fn run(arguments: &Inspect) -> Result<ExitCode, String> {
    let model = ModelFile::open_named(&arguments.model)?;
    let profile = hypura::hw::profile(&arguments.model);
    let problem = problem_for(&model, &profile);
    let sums = Sums::of(&problem);
    if arguments.json {
        output::print_json(&to_json(&model, &problem, &sums))?;
    } else {
        output::print(&text(&model, &problem, &sums))?;
    }
    Ok(ExitCode::SUCCESS)
}

fn text(model: &ModelFile, problem: &Problem, sums: &Sums) -> String {
    let hyper = model.gguf.hyper_parameters();
    let files = model.gguf.files();
    let total = model.gguf.model_bytes();
    let mut text = format!("{}\n\n", model.headline());
    let mut fact = |name: &str, value: String| text.push_str(&format!("{name:<14}{value}\n"));
    let more = if files.len() > 1 { format!(" and {} more", files.len() - 1) } else { String::new() };
    fact("file", format!("{}{more}, {}", files[0].path.display(), bytes(model.size_bytes())));
    fact("trained on", format!("{} tokens of context", hyper.context_length));
    let types = model.bytes_by_type();
    let mut types: Vec<_> = types.into_iter().collect();
    types.sort_by_key(|(_, bytes)| std::cmp::Reverse(*bytes));
    let mix: Vec<String> =
        types.iter().map(|(name, part)| format!("{} {}", name.to_uppercase(), percent(*part, total))).collect();
    fact("quantisation", mix.join(", "));
    let kv = kv_cache::bytes_per_token(model);
    fact("KV cache", format!("{} a token, {} for 4096 (f16)", bytes(kv), bytes(kv.saturating_mul(4096))));
    fact("a token uses", format!("{} of weights", bytes(sums.used_bytes)));
    for (tensor, lookup) in tables(problem, model) {
        let Lookup { rows, row_bytes, read_bytes } = lookup;
        let plural = if rows == 1 { "row" } else { "rows" };
        let cost = format!("{} of reads while it is on the drive", bytes(read_bytes));
        let name = &model.gguf.tensors()[tensor].name;
        fact("and looks up", format!("{rows} {plural} of {} in {name}: {cost}", bytes(row_bytes)));
    }

    text.push('\n');
    let mut table = Table::new(&["role", "tensors", "size", "share", "could stream"]);
    for (role, sum) in sums.roles_by_size() {
        let cells = [
            role.clone(),
            sum.tensors.to_string(),
            bytes(sum.bytes),
            percent(sum.bytes, total),
            bytes_or_none(sum.streamable_bytes),
        ];
        table.row(cells.to_vec());
    }
    let streamable = sums.streamable_bytes();
    let count = model.gguf.tensors().len().to_string();
    table.row(vec!["all".to_owned(), count, bytes(total), "100%".to_owned(), bytes_or_none(streamable)]);
    text.push_str(&table.text());

    text.push_str(&format!("\n{}", layer_table(sums)));
    let least =
        least_ram(model).map_or(String::new(), |least| format!("; it runs with {} of RAM for weights", bytes(least)));
    text.push_str(&match streamable {
        0 => "\nNothing in it could stream: it runs only where it fits.\n".to_owned(),
        _ => format!("\n{} could stream ({}){least}.\n", bytes(streamable), percent(streamable, total)),
    });
    text
}

/// The tables that are looked up by the row, and what a token costs in each.
fn tables(problem: &Problem, model: &ModelFile) -> Vec<(usize, Lookup)> {
    let of_tables = problem.items.iter().filter(|item| matches!(item.usage, Usage::Row(_)));
    of_tables.flat_map(|item| &item.tensors).map(|&tensor| (tensor, Lookup::of(&model.gguf, tensor))).collect()
}

/// Sizes by layer; neighbours that are alike share a row.
fn layer_table(sums: &Sums) -> String {
    let roles: Vec<&String> = sums.roles_by_size().into_iter().map(|(role, _)| role).collect();
    let in_layers =
        |role: &&&String| sums.layers.iter().any(|(layer, parts)| layer.is_some() && parts.contains_key(**role));
    let roles: Vec<&String> = roles.iter().filter(in_layers).copied().collect();
    let header: Vec<&str> = ["layer", "size"].into_iter().chain(roles.iter().map(|role| role.as_str())).collect();
    let mut table = Table::new(&header);
    let layers: Vec<(u32, &BTreeMap<String, u64>)> =
        sums.layers.iter().filter_map(|(layer, parts)| Some(((*layer)?, parts))).collect();
    for alike in layers.chunk_by(|one, other| one.1 == other.1 && one.0 + 1 == other.0) {
        let (first, last) = (alike[0].0, alike[alike.len() - 1].0);
        let name = if first == last { first.to_string() } else { format!("{first} to {last}, each") };
        let parts = alike[0].1;
        let cells = roles.iter().map(|role| bytes_or_none(parts.get(*role).copied().unwrap_or(0)));
        table.row([name, bytes(parts.values().sum())].into_iter().chain(cells).collect());
    }
    table.text()
}

fn to_json(model: &ModelFile, problem: &Problem, sums: &Sums) -> Value {
    let hyper = model.gguf.hyper_parameters();
    let files = model.gguf.files();
    let experts = sums.roles.get("experts").copied().unwrap_or_default();
    let roles = sums.roles_by_size().into_iter().map(|(role, sum)| {
        json!({"role": role, "tensors": sum.tensors, "bytes": sum.bytes, "streamable_bytes": sum.streamable_bytes})
    });
    let layers = sums
        .layers
        .iter()
        .map(|(layer, parts)| json!({"layer": layer, "bytes": parts.values().sum::<u64>(), "bytes_by_role": parts}));
    json!({
        "name": model.title(),
        "fingerprint": model.gguf.fingerprint(),
        "files": files.iter().map(|file| json!({"path": file.path, "bytes": file.size_bytes})).collect::<Vec<_>>(),
        "file_bytes": model.size_bytes(),
        "weight_bytes": model.gguf.model_bytes(),
        "parameters": model.parameter_count(),
        "architecture": {
            "name": hyper.architecture,
            "layers": hyper.block_count,
            "embedding_length": hyper.embedding_length,
            "feed_forward_length": hyper.feed_forward_length,
            "context_length": hyper.context_length,
        },
        "experts": (hyper.expert_count > 0).then(|| json!({
            "count": hyper.expert_count, "used": hyper.expert_used_count, "bytes": experts.bytes,
        })),
        "quantization": {"name": model.quantization(), "bytes_by_type": model.bytes_by_type()},
        "kv_cache_bytes_per_token": kv_cache::bytes_per_token(model),
        "used_bytes_per_token": sums.used_bytes,
        "tables": tables(problem, model).into_iter().map(|(tensor, lookup)| json!({
            "name": model.gguf.tensors()[tensor].name,
            "bytes": model.gguf.tensors()[tensor].size_bytes,
            "row_bytes": lookup.row_bytes,
            "rows_per_token": lookup.rows,
            "read_bytes_per_token": lookup.read_bytes,
        })).collect::<Vec<_>>(),
        "streamable_bytes": sums.streamable_bytes(),
        "least_ram_bytes": least_ram(model).ok(),
        "roles": roles.collect::<Vec<_>>(),
        "layers": layers.collect::<Vec<_>>(),
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::test_gguf::{Pair, TestModel};

    #[test]
    fn a_mixture_in_figures() {
        let file = TestModel::mixture();
        let model = file.open();
        let problem = problem_for(&model, &hypura::hw::profile(&file.path));
        let sums = Sums::of(&problem);
        let json = to_json(&model, &problem, &sums);
        assert_eq!(json["experts"], json!({"count": 16, "used": 2, "bytes": 3 * 8 * 16 * 4 * 16}));
        let by_role: u64 = sums.roles.values().map(|sum| sum.bytes).sum();
        assert_eq!(by_role, model.gguf.model_bytes());
        // Everything but the embeddings and 14 experts.
        assert_eq!(json["used_bytes_per_token"], by_role - 3200 - 3 * 8 * 16 * 4 * 14);
        assert_eq!(json["streamable_bytes"], 24576 + 256 * 2 + 1024);
        assert_eq!(json["layers"][2]["layer"], 1);
        assert_eq!(json["layers"][2]["bytes_by_role"], json!({"attention": 256, "experts": 24576, "routers": 512}));
        let text = text(&model, &problem, &sums);
        assert!(text.contains("16 experts a layer of which 2 are used"), "{text}");
        assert!(text.contains("could stream ("), "{text}");
    }

    #[test]
    fn a_table_is_told_with_what_a_token_looks_up_in_it() {
        let file = TestModel::write(
            &[
                ("general.architecture", Pair::Text("test")),
                ("test.ple.ngram_size", Pair::Number(3)),
                ("test.ple.heads_per_ngram", Pair::Number(2)),
            ],
            &[
                ("token_embd.weight", &[8, 100]),
                ("output.weight", &[8, 100]),
                ("per_layer_token_embd.weight", &[32, 1000]),
            ],
        );
        let model = file.open();
        let problem = problem_for(&model, &hypura::hw::profile(&file.path));
        let sums = Sums::of(&problem);
        let json = to_json(&model, &problem, &sums);
        let table = json!({
            "name": "per_layer_token_embd.weight", "bytes": 128_000, "row_bytes": 128, "rows_per_token": 4,
            "read_bytes_per_token": 4 * (128 + 4095),
        });
        assert_eq!(json["tables"], json!([table]));
        assert_eq!(json["used_bytes_per_token"], 3200, "rows are no weights that a token computes on");
        let text = text(&model, &problem, &sums);
        assert!(text.contains("4 rows of 128 B in per_layer_token_embd.weight"), "{text}");
        assert!(text.lines().any(|line| line.starts_with("tables ")), "{text}");
    }

    #[test]
    fn layers_that_are_alike_share_a_row() {
        let parts = BTreeMap::from([("attention".to_owned(), 5_u64)]);
        let mut sums = Sums { roles: BTreeMap::new(), layers: BTreeMap::new(), used_bytes: 0 };
        sums.roles.insert("attention".to_owned(), Sum { tensors: 4, bytes: 20, streamable_bytes: 0 });
        sums.layers = [0, 1, 2, 5].map(|layer| (Some(layer), parts.clone())).into();
        let names: Vec<String> =
            layer_table(&sums).lines().map(|line| line.split("  ").next().unwrap_or_default().to_owned()).collect();
        assert_eq!(names, ["layer", "0 to 2, each", "5"]);
    }
}
