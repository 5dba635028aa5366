//! Which model is loaded: one at a time, loaded when it is asked for, kept as long as it was promised, and started again
//! when it dies.
//!
//! `gate` is held by whoever changes what is loaded, and by everyone who asks for it, in the order of arrival: while a
//! change waits for the requests that are under way, no new ones overtake it. `current` is locked for moments only.

use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::{Duration, Instant};

use axum::http::StatusCode;
use parking_lot::Mutex;
use serde_json::Value;
use tokio::sync::{Mutex as Gate, Notify, OwnedMutexGuard};

use super::child::{Child, Launch};
use super::upstream::Upstream;
use crate::serve::catalog::Model;
use crate::serve::context::ContextPolicy;
use crate::serve::errors::{ApiError, ApiResult};
use crate::serve::keep_alive::KeepAlive;
use crate::serve::sessions::{Key, Sessions};

/// Makes llama-server's arguments for a model and a context.
pub type MakeLaunch = dyn Fn(&Model, u32) -> Launch + Send + Sync;

/// Loads models.
pub struct Loader {
    make_launch: Box<MakeLaunch>,
    contexts: ContextPolicy,
    default_keep_alive: KeepAlive,
    sessions: Option<Sessions>,
    gate: Arc<Gate<()>>,
    current: Mutex<Option<Arc<Loaded>>>,
    /// The model that is being loaded, and since when.
    loading: Mutex<Option<(String, Instant)>>,
    /// Something that a waiter may care about has changed: a request ended, an expiry moved.
    changed: Notify,
    stopping: AtomicBool,
    starts: AtomicU64,
}

/// A model that is loaded.
pub struct Loaded {
    /// Which.
    pub model: Arc<Model>,
    /// What a single request may use, in tokens.
    pub context_tokens: u32,
    /// What it was loaded with: llama-server may have rounded it.
    loaded_tokens: u32,
    /// Its llama-server.
    pub upstream: Upstream,
    /// What llama-server says of itself and of the model: `/props`.
    pub properties: Value,
    /// What its prompts are kept under, if they are kept.
    key: Option<Key>,
    child: Child,
    usage: Mutex<Usage>,
}

#[derive(Debug)]
struct Usage {
    in_flight: usize,
    keep_alive: KeepAlive,
    idle_since: Instant,
    /// When a request last needed more than the default context.
    enlarged_until: Instant,
}

impl Loaded {
    /// When it will be unloaded if nobody asks for it, counted from now; `None` when never.
    pub fn expires_in(&self) -> Option<Duration> {
        let usage = self.usage.lock();
        match usage.keep_alive {
            KeepAlive::Forever => None,
            KeepAlive::For(duration) if usage.in_flight > 0 => Some(duration),
            KeepAlive::For(duration) => Some(duration.saturating_sub(usage.idle_since.elapsed())),
        }
    }

    /// Requests under way.
    pub fn in_flight(&self) -> usize {
        self.usage.lock().in_flight
    }

    /// The number of llama-server's process, while it runs.
    pub fn process_id(&self) -> Option<u32> {
        self.child.id()
    }
}

/// The right to use a loaded model: it stays loaded until this is dropped.
pub struct Lease {
    loaded: Arc<Loaded>,
    loader: Arc<Loader>,
    /// What the request had to wait for the model.
    pub load_duration: Duration,
}

impl std::ops::Deref for Lease {
    type Target = Loaded;

    fn deref(&self) -> &Loaded {
        &self.loaded
    }
}

impl Drop for Lease {
    fn drop(&mut self) {
        {
            let mut usage = self.loaded.usage.lock();
            usage.in_flight -= 1;
            usage.idle_since = Instant::now();
        }
        self.loader.changed.notify_waiters();
    }
}

impl Loader {
    /// A loader that has loaded nothing yet.
    pub fn new(
        make_launch: Box<MakeLaunch>,
        contexts: ContextPolicy,
        default_keep_alive: KeepAlive,
        sessions: Option<Sessions>,
    ) -> Arc<Self> {
        let loader = Arc::new(Self {
            make_launch,
            contexts,
            default_keep_alive,
            sessions,
            gate: Arc::default(),
            current: Mutex::new(None),
            loading: Mutex::new(None),
            changed: Notify::new(),
            stopping: AtomicBool::new(false),
            starts: AtomicU64::new(0),
        });
        tokio::spawn(Arc::clone(&loader).unload_expired());
        loader
    }

    /// What is loaded.
    pub fn current(&self) -> Option<Arc<Loaded>> {
        self.current.lock().clone()
    }

    /// What is being loaded, and for how long by now.
    pub fn loading(&self) -> Option<(String, Duration)> {
        self.loading.lock().as_ref().map(|(name, since)| (name.clone(), since.elapsed()))
    }

    /// How often a llama-server has been started.
    pub fn starts(&self) -> u64 {
        self.starts.load(Ordering::Relaxed)
    }

    /// The context of a model when the request does not name one.
    pub fn default_context_tokens(&self, model: &Model) -> u32 {
        self.contexts.default_tokens(model)
    }

    /// Loads a model unless it is loaded, and keeps it at least until the lease is dropped.
    ///
    /// Only a context that is larger than the loaded one means loading again. When the caller gives up waiting, loading goes on: the
    /// next request will want the model, too.
    ///
    /// # Errors
    /// What llama-server says when it cannot load the model.
    pub async fn acquire(
        self: &Arc<Self>,
        model: &Arc<Model>,
        context_tokens: Option<u32>,
        keep_alive: Option<KeepAlive>,
    ) -> ApiResult<Lease> {
        let asked = Instant::now();
        let gate = Arc::clone(&self.gate).lock_owned().await;
        let keep_alive = keep_alive.unwrap_or(self.default_keep_alive);
        let needed = self.contexts.needed_tokens(model, context_tokens);
        if let Some(loaded) = self.current().filter(|loaded| loaded.serves(model, needed)) {
            if needed > self.contexts.default_tokens(model) {
                loaded.usage.lock().enlarged_until = Instant::now();
            }
            return Ok(self.lease(loaded, keep_alive, asked));
        }
        if self.current().is_some_and(|loaded| loaded.model.path == model.path && !loaded.model.is_same_file(model)) {
            eprintln!("hypura: {} holds something else now and is loaded anew", model.path.display());
        }
        let (loader, model) = (Arc::clone(self), Arc::clone(model));
        let switching = tokio::spawn(async move {
            let loaded = loader.switch(&gate, Some((model, context_tokens))).await?;
            // Before the gate opens, so that it cannot be unloaded in between.
            let lease = loaded.map(|loaded| loader.lease(loaded, keep_alive, asked));
            lease.ok_or_else(|| ApiError::upstream("no model was loaded"))
        });
        switching.await.map_err(|error| ApiError::upstream(format!("loading failed: {error}")))?
    }

    /// Unloads a model, if it is loaded, once its requests have ended.
    pub async fn unload(self: &Arc<Self>, model: &Model) {
        let gate = Arc::clone(&self.gate).lock_owned().await;
        if self.current().is_some_and(|loaded| loaded.model.path == model.path) {
            // Nothing is started, so nothing can fail.
            let _ = self.switch(&gate, None).await;
        }
    }

    /// Writes the prompts of what is loaded to the drive, for the next time.
    pub async fn keep_prompts(&self) {
        if let Some(loaded) = self.current() {
            self.keep_prompts_of(&loaded).await;
        }
    }

    async fn keep_prompts_of(&self, loaded: &Loaded) {
        // After a failure it is not known what the slots hold.
        let is_sound = !loaded.child.has_exited() && !loaded.child.has_failed() && !loaded.model.is_embedding();
        if let Some((sessions, key)) = self.sessions.as_ref().zip(loaded.key.as_ref()).filter(|_| is_sound) {
            sessions.save(key, &loaded.model, &loaded.upstream).await;
        }
    }

    /// Gives a llama-server that has just started the prompts that were kept. Whether it is fit for use after that.
    async fn restore_prompts(&self, child: &Child, key: Option<&Key>, properties: &Value) -> bool {
        let Some((sessions, key)) = self.sessions.as_ref().zip(key) else { return true };
        sessions.restore(key, &child.upstream(), properties["total_slots"].as_u64().unwrap_or(0)).await
    }

    /// Stops llama-server, and lets nothing be started any more. Requests under way are not waited for.
    pub async fn stop(&self) {
        self.stopping.store(true, Ordering::SeqCst);
        let current = self.current.lock().take();
        if let Some(loaded) = current {
            loaded.child.stop().await;
        }
    }

    fn lease(self: &Arc<Self>, loaded: Arc<Loaded>, keep_alive: KeepAlive, asked: Instant) -> Lease {
        {
            let mut usage = loaded.usage.lock();
            usage.in_flight += 1;
            usage.keep_alive = keep_alive;
        }
        Lease { loaded, loader: Arc::clone(self), load_duration: asked.elapsed() }
    }

    /// Replaces what is loaded, with the gate held.
    async fn switch(
        self: &Arc<Self>,
        _gate: &OwnedMutexGuard<()>,
        wanted: Option<(Arc<Model>, Option<u32>)>,
    ) -> ApiResult<Option<Arc<Loaded>>> {
        if let Some(loaded) = self.current() {
            while loaded.in_flight() > 0 && !loaded.child.has_exited() {
                // The timeout covers an end between the look and the wait.
                let _ = tokio::time::timeout(Duration::from_millis(100), self.changed.notified()).await;
            }
            self.keep_prompts_of(&loaded).await;
            self.current.lock().take();
            loaded.child.stop().await;
        }
        let Some((model, context_tokens)) = wanted else { return Ok(None) };
        let loaded = self.start(model, context_tokens).await?;
        *self.current.lock() = Some(Arc::clone(&loaded));
        if self.stopping.load(Ordering::SeqCst) {
            // `stop` may have looked before this was there.
            self.stop().await;
            return Err(ApiError::new(StatusCode::SERVICE_UNAVAILABLE, "the server is being stopped"));
        }
        tokio::spawn(Arc::clone(self).restart_when_dead(Arc::clone(&loaded)));
        Ok(Some(loaded))
    }

    async fn start(&self, model: Arc<Model>, context_tokens: Option<u32>) -> ApiResult<Arc<Loaded>> {
        if self.stopping.load(Ordering::SeqCst) {
            return Err(ApiError::new(StatusCode::SERVICE_UNAVAILABLE, "the server is being stopped"));
        }
        *self.loading.lock() = Some((model.name.clone(), Instant::now()));
        let loaded = self.start_child(model, context_tokens).await;
        self.loading.lock().take();
        loaded
    }

    async fn start_child(&self, model: Arc<Model>, context_tokens: Option<u32>) -> ApiResult<Arc<Loaded>> {
        let reason = self.contexts.reason(&model, context_tokens);
        let loaded_tokens = self.contexts.loaded_tokens(&model, context_tokens);
        let launch = (self.make_launch)(&model, loaded_tokens);
        eprintln!("hypura: loading {} with a context of {loaded_tokens} tokens ({reason})", model.name);
        let began = Instant::now();
        // Another program may take the free port before llama-server does.
        const ATTEMPTS: usize = 3;
        let mut attempt = 0;
        let (child, properties, key) = loop {
            attempt += 1;
            let kept = self.sessions.as_ref().map(|sessions| (sessions, sessions.versions_of_files()));
            let child = Child::start(launch.clone()).await.map_err(ApiError::upstream)?;
            self.starts.fetch_add(1, Ordering::Relaxed);
            match child.ready().await {
                Ok(properties) => {
                    // What was written to while it loaded may be loaded or not.
                    let kept = kept.filter(|(sessions, versions)| *versions == sessions.versions_of_files());
                    let key =
                        kept.map(|(sessions, versions)| sessions.key(&model, loaded_tokens, &versions, &properties));
                    if attempt == ATTEMPTS || self.restore_prompts(&child, key.as_ref(), &properties).await {
                        break (child, properties, key);
                    }
                    child.stop().await;
                }
                Err(problem) if problem.contains("couldn't bind") && attempt < ATTEMPTS => {}
                Err(problem) => {
                    let what =
                        format!("model '{}' cannot be loaded with a context of {loaded_tokens} tokens", model.name);
                    return Err(ApiError::upstream(format!("{what}: {problem}")));
                }
            }
        };
        eprintln!("hypura: {} is loaded after {:.1} s", model.name, began.elapsed().as_secs_f64());
        let now = Instant::now();
        let usage = Usage { in_flight: 0, keep_alive: self.default_keep_alive, idle_since: now, enlarged_until: now };
        let usage = Mutex::new(usage);
        let upstream = child.upstream();
        let told =
            properties["default_generation_settings"]["n_ctx"].as_u64().and_then(|tokens| u32::try_from(tokens).ok());
        let context_tokens = told.unwrap_or(loaded_tokens);
        Ok(Arc::new(Loaded { model, context_tokens, loaded_tokens, upstream, properties, key, child, usage }))
    }

    /// Starts a model again whose llama-server ended by itself, unless it did so at once: then the next request tries.
    ///
    /// Boxed, because the new process gets a watcher made of this same code.
    fn restart_when_dead(self: Arc<Self>, loaded: Arc<Loaded>) -> Pin<Box<dyn Future<Output = ()> + Send>> {
        Box::pin(async move { self.watch(&loaded).await })
    }

    async fn watch(self: &Arc<Self>, loaded: &Arc<Loaded>) {
        const LIFE_MIN: Duration = Duration::from_secs(5);
        let began = Instant::now();
        let status = loaded.child.exited().await;
        let is_current =
            |current: &Option<Arc<Loaded>>| current.as_ref().is_some_and(|other| Arc::ptr_eq(other, loaded));
        if !is_current(&self.current.lock()) || self.stopping.load(Ordering::SeqCst) {
            return;
        }
        eprintln!(
            "hypura: llama-server of {} ended by itself ({status}): {}",
            loaded.model.name,
            loaded.child.last_words()
        );
        let gate = Arc::clone(&self.gate).lock_owned().await;
        // A request may have been faster.
        if !is_current(&self.current.lock()) {
            return;
        }
        self.current.lock().take();
        if began.elapsed() < LIFE_MIN {
            return;
        }
        let again = (Arc::clone(&loaded.model), None);
        if let Err(error) = self.switch(&gate, Some(again)).await {
            eprintln!("hypura: {}", error.message);
        }
    }

    /// Unloads what nobody has asked for as long as was promised.
    async fn unload_expired(self: Arc<Self>) {
        const FAR: Duration = Duration::from_secs(3600);
        loop {
            self.shrink_idle().await;
            let current = self.current();
            let left = current.as_ref().and_then(|loaded| loaded.expires_in()).unwrap_or(FAR);
            let expired = current.filter(|loaded| left.is_zero() && loaded.in_flight() == 0);
            let Some(loaded) = expired else {
                // Never asleep for long: an expiry may be moved nearer without our hearing of it.
                let nap = left.clamp(Duration::from_millis(20), Duration::from_millis(500));
                let _ = tokio::time::timeout(nap, self.changed.notified()).await;
                continue;
            };
            let gate = Arc::clone(&self.gate).lock_owned().await;
            let still = self.current().is_some_and(|current| Arc::ptr_eq(&current, &loaded));
            if still && loaded.in_flight() == 0 && loaded.expires_in().is_some_and(|left| left.is_zero()) {
                eprintln!("hypura: unloading {}, which is idle", loaded.model.name);
                let _ = self.switch(&gate, None).await;
            }
        }
    }
}

impl Loader {
    /// Goes back to the default context when nothing has needed a larger one for a while: its memory is better used for
    /// weights.
    async fn shrink_idle(self: &Arc<Self>) {
        let is_larger = |loaded: &Arc<Loaded>| {
            let default = self.contexts.default_tokens(&loaded.model);
            loaded.loaded_tokens > default && loaded.usage.lock().may_shrink(Instant::now())
        };
        let Some(loaded) = self.current().filter(is_larger) else { return };
        let gate = Arc::clone(&self.gate).lock_owned().await;
        if self.current().is_some_and(|current| Arc::ptr_eq(&current, &loaded) && is_larger(&current)) {
            eprintln!("hypura: {} goes back to its default context", loaded.model.name);
            if let Err(error) = self.switch(&gate, Some((Arc::clone(&loaded.model), None))).await {
                eprintln!("hypura: {}", error.message);
            }
        }
    }
}

impl Usage {
    /// Whether nothing is under way and nothing has needed a larger context for as long as Ollama keeps idle models.
    fn may_shrink(&self, now: Instant) -> bool {
        const PATIENCE: Duration = Duration::from_secs(300);
        self.in_flight == 0 && now.saturating_duration_since(self.enlarged_until) > PATIENCE
    }
}

impl Loaded {
    fn serves(&self, model: &Model, needed_tokens: u32) -> bool {
        // libhypura looks at more samples than we do, so after a failure the file has to be the very same.
        let is_same = match self.child.has_failed() {
            true => self.model.is_same_file(model),
            false => self.model.is_same_content(model),
        };
        is_same && needed_tokens <= self.loaded_tokens && !self.child.has_exited()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_large_context_is_kept_while_it_is_wanted() {
        let now = Instant::now();
        let usage =
            |in_flight| Usage { in_flight, keep_alive: KeepAlive::Forever, idle_since: now, enlarged_until: now };
        let later = now + Duration::from_secs(301);
        assert!(!usage(0).may_shrink(now) && usage(0).may_shrink(later) && !usage(1).may_shrink(later));
    }
}
