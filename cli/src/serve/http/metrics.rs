//! `GET /metrics`: the counters of this server, of libhypura and of llama-server, as Prometheus reads them.

use std::fmt::Write;
use std::time::Duration;

use axum::body::Body;
use axum::extract::State;
use axum::http::{HeaderValue, Response, header};
use hypura::stats::{FIGURES, Figure};
use serde_json::Value;

use crate::serve::server::Server;

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
    for Figure { key, is_counter, help } in FIGURES {
        if let Some(value) = statistics[key].as_f64() {
            let (kind, suffix) = if *is_counter { ("counter", "_total") } else { ("gauge", "") };
            metric(text, &format!("hypura_{key}{suffix}"), kind, help, value);
        }
    }
}

fn metric(text: &mut String, name: &str, kind: &str, help: &str, value: impl std::fmt::Display) {
    // Writing to a String cannot fail.
    let _ = writeln!(text, "# HELP {name} {help}\n# TYPE {name} {kind}\n{name} {value}");
}
