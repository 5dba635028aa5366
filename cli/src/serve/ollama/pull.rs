//! `POST /api/pull`: nothing to do for a model that is there; one of the Hugging Face hub is downloaded into its cache, and a
//! link to it is put into the directory that is served.

use std::collections::HashMap;
use std::path::{Path, PathBuf};
use std::sync::Mutex;

use axum::body::{Body, Bytes};
use axum::extract::State;
use axum::http::{HeaderValue, Response, StatusCode, header};
use serde::Deserialize;
use serde_json::{Value, json};
use tokio::sync::mpsc;

use crate::hub::cache;
use crate::hub::client::Client;
use crate::hub::download::{Progress, download};
use crate::hub::listing;
use crate::hub::source::Source;
use crate::hub::variants::Variants;
use crate::serve::errors::{ApiError, ApiResult, json_response};
use crate::serve::http::request;
use crate::serve::server::Server;

#[derive(Debug, Deserialize)]
struct PullRequest {
    #[serde(default)]
    model: String,
    /// The field's older name.
    #[serde(default)]
    name: String,
    #[serde(default)]
    stream: Option<bool>,
}

/// Answers in the steps that Ollama tells of.
pub async fn pull(State(server): State<Server>, body: Body) -> ApiResult<Response<Body>> {
    let request: PullRequest = request::read(body, server.body_bytes_max).await?;
    let name = if request.model.is_empty() { request.name } else { request.model };
    let (steps, lines) = mpsc::unbounded_channel();
    if server.catalog.find(&name).is_ok() {
        let _ = steps.send(json!({"status": "pulling manifest"}));
        let _ = steps.send(json!({"status": "success"}));
        // The answer ends when nobody can add to it.
        drop(steps);
    } else {
        let (repository, tag) = in_hub(&name)?;
        let directory = server.catalog.directory().map(Path::to_owned).ok_or_else(|| {
            let message = "pull is not supported by a server of one model; hypura serve DIR serves what is pulled";
            ApiError::new(StatusCode::NOT_IMPLEMENTED, message)
        })?;
        tokio::task::spawn_blocking(move || {
            let last = match bring(&repository, tag.as_deref(), &directory, &steps) {
                Ok(()) => json!({"status": "success"}),
                Err(problem) => json!({"error": problem}),
            };
            // Nobody may be listening any more.
            let _ = steps.send(last);
        });
    }
    answer(lines, request.stream != Some(false)).await
}

/// The repository and the tag that a name means; of Ollama's own registry there are none.
fn in_hub(name: &str) -> ApiResult<(String, Option<String>)> {
    match Source::parse(name) {
        Some(Source::Repository { repository, tag }) => Ok((repository, tag)),
        _ if name.is_empty() => Err(ApiError::bad_request("model is required")),
        _ => Err(ApiError::new(
            StatusCode::NOT_FOUND,
            format!(
                "model '{name}' is not here, and only models of the Hugging Face hub can be pulled: hf.co/OWNER/REPO:Q4_K_M"
            ),
        )),
    }
}

fn bring(
    repository: &str,
    tag: Option<&str>,
    directory: &Path,
    steps: &mpsc::UnboundedSender<Value>,
) -> Result<(), String> {
    let _ = steps.send(json!({"status": "pulling manifest"}));
    let client = Client::from_environment();
    let variants = Variants::of(&listing::files(&client, repository)?);
    let mut files = variants.choose(repository, tag)?.files.clone();
    files.extend(variants.projector().cloned());
    let told: Mutex<HashMap<String, u64>> = Mutex::default();
    let tell = |progress| {
        let line = match progress {
            Progress::Received { hash, total, completed } => {
                // Pieces of one file arrive in any order; what is told only grows.
                let mut told = told.lock().unwrap_or_else(|poisoned| poisoned.into_inner());
                let most = told.entry(hash.clone()).or_default();
                *most = completed.max(*most);
                let short = hash.get(..12).unwrap_or(&hash);
                json!({"status": format!("pulling {short}"), "digest": format!("sha256:{hash}"), "total": total, "completed": *most})
            }
            Progress::Verifying => json!({"status": "verifying sha256 digest"}),
        };
        // A client that hangs up ends the download; the next one goes on where it ended.
        steps.send(line).is_ok()
    };
    let paths = download(&client, &cache::hub()?, repository, &files, &tell)?;
    let _ = steps.send(json!({"status": "writing manifest"}));
    paths.iter().try_for_each(|path| link(path, repository, directory))
}

/// Puts a link into the directory that is served, unless the cache is in it.
fn link(path: &PathBuf, repository: &str, directory: &Path) -> Result<(), String> {
    let is_inside = directory.canonicalize().is_ok_and(|directory| path.starts_with(directory));
    if is_inside {
        return Ok(());
    }
    let place = directory.join(repository).join(path.file_name().unwrap_or_default());
    let failed = |error: std::io::Error| format!("cannot link {} to {}: {error}", place.display(), path.display());
    std::fs::create_dir_all(place.parent().unwrap_or(directory)).map_err(failed)?;
    // One of an older revision.
    let _ = std::fs::remove_file(&place);
    std::os::unix::fs::symlink(path, &place).map_err(failed)
}

/// The steps as lines, or the last of them alone.
async fn answer(mut lines: mpsc::UnboundedReceiver<Value>, streams: bool) -> ApiResult<Response<Body>> {
    if streams {
        let lines = async_stream::stream! {
            while let Some(line) = lines.recv().await {
                yield Ok::<_, std::convert::Infallible>(Bytes::from(format!("{line}\n")));
            }
        };
        let mut response = Response::new(Body::from_stream(lines));
        response.headers_mut().insert(header::CONTENT_TYPE, HeaderValue::from_static("application/x-ndjson"));
        return Ok(response);
    }
    let mut last = json!({"error": "the download ended without a word"});
    while let Some(line) = lines.recv().await {
        last = line;
    }
    match last["error"].as_str() {
        Some(problem) => Err(ApiError::upstream(problem)),
        None => Ok(json_response(StatusCode::OK, &last)),
    }
}
