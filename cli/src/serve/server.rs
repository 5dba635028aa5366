//! What all endpoints share.

use std::path::PathBuf;
use std::sync::Arc;

use serde_json::Value;

use super::catalog::{Catalog, Model};
use crate::serve::http::auth::Access;
use crate::serve::http::counts::Answers;
use crate::serve::llama_server::loader::Loader;

/// The server's state; a clone is the same server.
#[derive(Clone)]
pub struct Server(Arc<Shared>);

/// See [`Server`].
pub struct Shared {
    /// The models that there are.
    pub catalog: Catalog,
    /// The model that is loaded.
    pub loader: Arc<Loader>,
    /// Who may ask.
    pub access: Arc<Access>,
    /// The largest body of a request.
    pub body_bytes_max: usize,
    /// Where libhypura writes statistics.
    pub stats: PathBuf,
    /// What is counted.
    pub answers: Arc<Answers>,
}

impl std::ops::Deref for Server {
    type Target = Shared;

    fn deref(&self) -> &Shared {
        &self.0
    }
}

impl Server {
    /// A server of these parts.
    pub fn new(shared: Shared) -> Self {
        Self(Arc::new(shared))
    }

    /// All models. Headers may have to be read, which must not hold up others.
    pub async fn list(&self) -> Vec<Arc<Model>> {
        let server = self.clone();
        tokio::task::spawn_blocking(move || server.catalog.list()).await.unwrap_or_default()
    }

    /// The statistics of the loaded model, or null: nothing is loaded, or nothing is streamed.
    pub fn statistics(&self) -> Value {
        if self.loader.current().is_none() {
            return Value::Null;
        }
        std::fs::read(&self.stats).ok().and_then(|text| serde_json::from_slice(&text).ok()).unwrap_or_default()
    }
}
