//! Counting what is answered.

use std::collections::BTreeMap;
use std::sync::Arc;

use axum::body::Body;
use axum::extract::{MatchedPath, State};
use axum::http::{Request, Response};
use axum::middleware::Next;
use parking_lot::Mutex;

/// Answers, by path and status.
#[derive(Debug, Default)]
pub struct Answers {
    counts: Mutex<BTreeMap<(String, u16), u64>>,
}

impl Answers {
    /// Path, status and number of answers so far.
    pub fn counts(&self) -> Vec<((String, u16), u64)> {
        self.counts.lock().iter().map(|(kind, count)| (kind.clone(), *count)).collect()
    }
}

/// Counts an answer.
pub async fn count(State(answers): State<Arc<Answers>>, request: Request<Body>, next: Next) -> Response<Body> {
    // The pattern, not the path itself: of those there may be any number.
    let path = request.extensions().get::<MatchedPath>().map_or("other", MatchedPath::as_str).to_owned();
    let response = next.run(request).await;
    *answers.counts.lock().entry((path, response.status().as_u16())).or_default() += 1;
    response
}
