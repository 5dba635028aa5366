//! `hypura serve`: Ollama's HTTP API in front of an unmodified llama-server.
//!
//! The way of a request: `auth` lets it pass, `request` reads it, `catalog` finds the model, `loader` loads it (`child`
//! is the process), `options` and `messages` translate, `upstream` and `sse` carry it to llama-server and back,
//! `generation` cuts the answer into pieces, `answer` puts them into Ollama's words.

mod catalog;
mod context;
pub(crate) mod errors;
mod gpu_memory;
mod http;
mod keep_alive;
pub(crate) mod llama_server;
mod model_names;
mod ollama;
mod prompt_cache;
mod server;
mod sessions;

use std::io::ErrorKind;
use std::net::SocketAddr;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use axum::Router;
use axum::middleware::from_fn_with_state;
use axum::routing::{any, get, post};
use tokio::net::TcpListener;
use tokio::signal::unix::{SignalKind, signal};
use tokio::sync::watch;

use catalog::{Catalog, Model};
use context::ContextPolicy;
use http::auth::Access;
pub use keep_alive::KeepAlive;
use llama_server::child::{self, Launch, Shown};
use llama_server::loader::{self, Loader};
use server::{Server, Shared};
use sessions::Sessions;

use crate::projector::Choice;
use crate::scratch::Scratch;

/// How to serve.
pub struct Settings {
    /// A model, or a directory of models.
    pub path: PathBuf,
    /// The address to listen on.
    pub host: String,
    /// The port; 0 takes a free one.
    pub port: u16,
    /// The context of one request, in tokens; `None` chooses by memory.
    pub context_tokens: Option<u32>,
    /// Requests that are computed at once.
    pub parallel: u32,
    /// How long an idle model stays; `None` decides by what is served.
    pub keep_alive: Option<KeepAlive>,
    /// Keys, of which a client must have one; none means that no key is needed.
    pub keys: Vec<String>,
    /// Web pages of other sites that may ask.
    pub origins: Vec<String>,
    /// The largest body of a request.
    pub body_bytes_max: usize,
    /// How long requests under way may take when the server is to stop.
    pub shutdown_patience: Duration,
    /// llama-server.
    pub program: PathBuf,
    /// Environment variables for it.
    pub environment: Vec<(String, String)>,
    /// More arguments for it.
    pub arguments: Vec<String>,
    /// Which projectors go with the models.
    pub projector: Choice,
    /// What `--ram` says; memory for weights and KV cache otherwise is what is available.
    pub ram_bytes: Option<u64>,
    /// Bytes of prompts that are kept on the drive from one load to the next.
    pub kept_prompt_bytes: u64,
    /// Whether its whole log is shown.
    pub verbose: bool,
}

/// Serves until it is told to stop.
///
/// # Errors
/// A sentence when serving cannot begin.
pub fn run(settings: Settings) -> Result<(), String> {
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .worker_threads(2) // they only pass bytes on; computing is llama-server's
        .enable_all()
        .build()
        .map_err(|error| format!("cannot start threads: {error}"))?;
    runtime.block_on(serve(settings))
}

async fn serve(settings: Settings) -> Result<(), String> {
    let scratch = Scratch::make("serve")?;
    let catalog = Catalog::open(&settings.path, settings.projector.clone())?;
    let keep_alive = settings.keep_alive.unwrap_or(match catalog.only() {
        // Loading is dear, and nothing else wants the memory.
        Some(_) => KeepAlive::Forever,
        None => KeepAlive::For(Duration::from_secs(300)),
    });
    let address = (settings.host.as_str(), settings.port);
    let listener = TcpListener::bind(address).await.map_err(|error| {
        let hint = match error.kind() {
            ErrorKind::AddrInUse => "another program has this port (Ollama itself?); --port takes another",
            ErrorKind::PermissionDenied => "ports below 1024 are the system's; --port takes another",
            _ => "--host is an address or a name of this machine; 0.0.0.0 is all of them",
        };
        format!("cannot listen on {}:{}: {error}; {hint}", settings.host, settings.port)
    })?;
    let address = listener.local_addr().map_err(|error| error.to_string())?;
    let stats = std::env::var_os("HYPURA_STATS").map_or_else(|| scratch.path().join("stats.json"), PathBuf::from);
    let access = Arc::new(Access::new(&settings.keys, settings.origins.clone(), address.ip().is_loopback()));
    let (body_bytes_max, patience) = (settings.body_bytes_max, settings.shutdown_patience);
    let contexts = ContextPolicy {
        chosen_tokens: settings.context_tokens,
        parallel: settings.parallel,
        memory_bytes: settings.ram_bytes.unwrap_or_else(|| hypura::hw::profile(&settings.path).memory.available_bytes),
    };
    let store = hypura::config::Config::from_environment().map_err(|error| error.to_string())?.store;
    let sessions = Sessions::open(store.directory(), settings.kept_prompt_bytes, &settings.arguments);
    let directory = sessions.as_ref().map(|sessions| sessions.directory().to_owned());
    let launch = make_launch(settings, stats.clone(), contexts.memory_bytes, directory);
    let loader = Loader::new(launch, contexts, keep_alive, sessions);
    let server = Server::new(Shared { catalog, loader, access, body_bytes_max, stats, answers: Arc::default() });

    child::warn_of_environment();
    announce(&server, address);
    let (stop, stopped) = watch::channel(false);
    let mut serving = tokio::spawn(listen(listener, router(server.clone()), stopped));
    let loading = load_only(&server);
    tokio::pin!(loading);
    let mut loading_failed = Ok(());
    tokio::select! {
        signalled = stop_signal() => signalled?,
        problem = &mut loading => loading_failed = Err(problem),
    }
    let _ = stop.send(true);
    if loading_failed.is_ok() {
        let ending = async {
            if tokio::time::timeout(patience, &mut serving).await.is_err() {
                eprintln!("hypura: some requests were not done within {} s", patience.as_secs());
            }
            server.loader.keep_prompts().await;
        };
        tokio::select! {
            () = ending => {}
            // Whoever asks twice is in a hurry.
            _ = stop_signal() => {}
        }
    }
    server.loader.stop().await;
    serving.abort();
    loading_failed
}

async fn listen(listener: TcpListener, router: Router, mut stopped: watch::Receiver<bool>) {
    let until_stopped = async move {
        // An error means that the other side is gone, which ends serving as well.
        let _ = stopped.wait_for(|stopped| *stopped).await;
    };
    if let Err(error) = axum::serve(listener, router).with_graceful_shutdown(until_stopped).await {
        eprintln!("hypura: serving ended: {error}");
    }
}

/// Loads the model when there is only one, so that the first request need not wait, and a model that cannot be loaded
/// shows at once. Returns only when that fails.
async fn load_only(server: &Server) -> String {
    if let Some(model) = server.catalog.only() {
        if let Err(error) = server.loader.acquire(&model, None, None).await {
            return error.message;
        }
    }
    std::future::pending().await
}

/// Waits for the request to stop: an interrupt from the terminal, or SIGTERM.
async fn stop_signal() -> Result<(), String> {
    let listen = |kind| signal(kind).map_err(|error| format!("signals cannot be received: {error}"));
    let (mut interrupt, mut terminate) = (listen(SignalKind::interrupt())?, listen(SignalKind::terminate())?);
    tokio::select! {
        _ = interrupt.recv() => {}
        _ = terminate.recv() => {}
    }
    Ok(())
}

fn announce(server: &Server, address: SocketAddr) {
    eprintln!(
        "hypura: serving {} at http://{address} (Ollama's API; OpenAI's at /v1; live page at /hypura)",
        server.catalog.place().display()
    );
    if !address.ip().is_loopback() && server.access.is_open() {
        eprintln!("hypura: warning: anyone who reaches {address} may use it; --api-key demands a key");
    }
}

fn router(server: Server) -> Router {
    use http::{auth, counts, health, live, metrics, openai};
    use ollama::{account, chat, embed, generate, models, pull, unsupported};
    let gone = || any(unsupported::unsupported);
    Router::new()
        .route("/", get(|| async { "Ollama is running" }))
        .route("/api/version", get(models::version))
        .route("/api/status", get(account::status))
        .route("/api/me", any(account::me))
        .route("/api/tags", get(models::tags))
        .route("/api/ps", get(models::ps))
        .route("/api/show", post(models::show))
        .route("/api/generate", post(generate::generate))
        .route("/api/chat", post(chat::chat))
        .route("/api/embed", post(embed::embed))
        .route("/api/embeddings", post(embed::embeddings))
        .route("/api/pull", post(pull::pull))
        .route("/api/push", gone())
        .route("/api/create", gone())
        .route("/api/copy", gone())
        .route("/api/delete", gone())
        .route("/api/blobs/{digest}", gone())
        .route("/v1/models", get(openai::models))
        .route("/v1/models/{*name}", get(openai::model))
        .route("/v1/{*path}", any(openai::pass))
        .route("/health", get(health::health))
        .route("/metrics", get(metrics::metrics))
        .route("/hypura", get(live::page))
        .route("/hypura/figures", get(live::figures))
        .fallback(unsupported::not_found)
        .method_not_allowed_fallback(unsupported::wrong_method)
        .layer(from_fn_with_state(Arc::clone(&server.access), auth::check))
        .route_layer(from_fn_with_state(Arc::clone(&server.answers), counts::count))
        .with_state(server)
}

/// How llama-server is started for a model.
fn make_launch(
    settings: Settings,
    stats: PathBuf,
    memory_bytes: u64,
    prompts: Option<PathBuf>,
) -> Box<loader::MakeLaunch> {
    Box::new(move |model: &Model, context_tokens: u32| {
        // Those of the model before.
        let _ = std::fs::remove_file(&stats);
        let mut arguments: Vec<String> = Vec::new();
        let mut push = |words: &[&str]| arguments.extend(words.iter().map(|&word| word.to_owned()));
        let total = (u64::from(context_tokens) * u64::from(settings.parallel)).to_string();
        push(&["--model", &model.path.to_string_lossy(), "--alias", &model.name]);
        push(&["--ctx-size", &total, "--parallel", &settings.parallel.to_string(), "--no-kv-unified"]);
        match &model.projector {
            // llama-server cannot shift what came from pictures.
            Some(projector) => push(&["--mmproj", &projector.path.to_string_lossy()]),
            // As Ollama: an answer goes on when its context is full.
            None => push(&["--context-shift"]),
        }
        // Ollama also ends what never ends by itself.
        push(&["--predict", &(u64::from(context_tokens) * 10).to_string()]);
        push(&["--jinja", "--metrics", "--no-ui", "--embeddings"]);
        if model.is_embedding() {
            // Such models look at a whole text at once, so a micro-batch must hold it.
            push(&["--batch-size", &context_tokens.to_string(), "--ubatch-size", &context_tokens.to_string()]);
        } else {
            // As Ollama does with models that are made for text: the state after the last token.
            push(&["--pooling", "last"]);
        }
        if let Some(directory) = &prompts {
            push(&["--slot-save-path", &directory.to_string_lossy()]);
        }
        if let Some(mebibytes) = prompt_cache::limit(model, memory_bytes, &settings.arguments) {
            push(&["--cache-ram", &mebibytes.to_string()]);
            eprintln!(
                "hypura: no more than {mebibytes} MiB for prompts that are kept (-- --cache-ram MIB sets another)"
            );
        }
        arguments.extend(settings.arguments.iter().cloned());
        let mut environment = settings.environment.clone();
        environment.push(("HYPURA_STATS".to_owned(), stats.to_string_lossy().into_owned()));
        let shown = if settings.verbose { Shown::All } else { Shown::Important };
        Launch { program: settings.program.clone(), arguments, environment, shown }
    })
}
