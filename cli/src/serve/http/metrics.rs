//! `GET /metrics`: the counters of this server, of libhypura and of llama-server, as Prometheus reads them.

use std::fmt::Write;
use std::time::Duration;

use axum::body::Body;
use axum::extract::State;
use axum::http::{HeaderValue, Response, header};
use serde_json::Value;

use crate::serve::server::Server;

/// The name in the statistics, whether it only grows, and what it says.
const STATISTICS: [(&str, &str, &str); 13] = [
    ("tokens", "counter", "Tokens computed, prompts included."),
    ("read_bytes", "counter", "Bytes of weights read from the drive."),
    ("read_seconds", "counter", "Time with at least one read in flight."),
    ("stall_seconds", "counter", "Time that computing waited for weights."),
    ("expert_hits", "counter", "Experts that were in RAM when needed."),
    ("expert_misses", "counter", "Experts that had to be read first."),
    ("prefetch_issued", "counter", "Blocks read ahead of need."),
    ("prefetch_used", "counter", "Blocks read ahead that were needed later."),
    ("errors", "counter", "Failed reads and verifications."),
    ("model_bytes", "gauge", "Bytes of all weights of the model."),
    ("resident_bytes", "gauge", "Streamed weights that are in RAM now."),
    ("budget_bytes", "gauge", "What streamed weights may occupy."),
    ("predicted_tokens_per_second", "gauge", "The planner's prediction."),
];

/// `GET /metrics`.
pub async fn metrics(State(server): State<Server>) -> Response<Body> {
    let mut text = String::new();
    own(&server, &mut text);
    statistics(&server.statistics(), &mut text);
    if let Some(loaded) = server.loader.current() {
        // A llama-server that is busy reading a prompt answers late; scraping must not wait for it.
        const PATIENCE: Duration = Duration::from_secs(2);
        if let Ok(Ok(more)) = tokio::time::timeout(PATIENCE, loaded.upstream.get("/metrics")).await {
            text.push_str(&String::from_utf8_lossy(&more));
        }
    }
    let mut response = Response::new(Body::from(text));
    response
        .headers_mut()
        .insert(header::CONTENT_TYPE, HeaderValue::from_static("text/plain; version=0.0.4; charset=utf-8"));
    response
}

fn own(server: &Server, text: &mut String) {
    let loaded = server.loader.current();
    let in_flight = loaded.as_ref().map_or(0, |loaded| loaded.in_flight());
    metric(text, "hypura_model_loaded", "gauge", "Whether a model is loaded.", usize::from(loaded.is_some()));
    metric(text, "hypura_requests_in_flight", "gauge", "Requests that are using the model.", in_flight);
    metric(
        text,
        "hypura_llama_server_starts_total",
        "counter",
        "Times a llama-server was started.",
        server.loader.starts(),
    );
    let _ = writeln!(text, "# HELP hypura_http_answers_total Answers, by path and status.");
    let _ = writeln!(text, "# TYPE hypura_http_answers_total counter");
    for ((path, status), count) in server.answers.counts() {
        let _ = writeln!(text, "hypura_http_answers_total{{path=\"{path}\",status=\"{status}\"}} {count}");
    }
}

fn statistics(statistics: &Value, text: &mut String) {
    for (name, kind, help) in STATISTICS {
        if let Some(value) = statistics[name].as_f64() {
            let suffix = if kind == "counter" { "_total" } else { "" };
            metric(text, &format!("hypura_{name}{suffix}"), kind, help, value);
        }
    }
}

fn metric(text: &mut String, name: &str, kind: &str, help: &str, value: impl std::fmt::Display) {
    // Writing to a String cannot fail.
    let _ = writeln!(text, "# HELP {name} {help}\n# TYPE {name} {kind}\n{name} {value}");
}
