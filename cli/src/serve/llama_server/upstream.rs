//! Requests to llama-server. Each has a connection of its own, closed as soon as nobody wants the answer any more: that
//! is how llama-server learns that it can stop.

use std::net::SocketAddr;
use std::pin::Pin;
use std::task::{Context, Poll};

use axum::body::{Body, Bytes};
use axum::http::{HeaderValue, Method, Request, Response, StatusCode, header};
use futures_util::Stream;
use http_body_util::BodyExt;
use hyper::body::{Body as _, Frame, Incoming};
use hyper::client::conn::http1;
use hyper_util::rt::TokioIo;
use serde_json::Value;
use tokio::net::TcpStream;
use tokio::task::JoinHandle;

use super::failures::{Failures, Moment};
use super::sse::Events;
use crate::serve::errors::{ApiError, ApiResult};

/// Where a llama-server listens, and what it wants to be told.
#[derive(Clone, Debug)]
pub struct Upstream {
    address: SocketAddr,
    authorization: String,
    failures: Failures,
}

impl Upstream {
    /// The server at an address that wants a key, and whose log tells of failures.
    pub fn new(address: SocketAddr, key: &str, failures: Failures) -> Self {
        Self { address, authorization: format!("Bearer {key}"), failures }
    }

    /// Why it fails to compute, for those who pass its answers on themselves.
    pub fn failures(&self) -> &Failures {
        &self.failures
    }

    /// Sends a request and returns the response as soon as its head is there, whatever its status.
    ///
    /// # Errors
    /// When the server cannot be reached or hangs up.
    pub async fn send(&self, mut request: Request<Body>) -> ApiResult<Response<UpstreamBody>> {
        let gone = |error: &dyn std::fmt::Display| ApiError::upstream(format!("llama-server hung up: {error}"));
        let stream = TcpStream::connect(self.address).await.map_err(|error| gone(&error))?;
        // Tokens are small; waiting to fill a packet would delay each of them.
        let _ = stream.set_nodelay(true);
        let (mut sender, connection) = http1::handshake(TokioIo::new(stream)).await.map_err(|error| gone(&error))?;
        let task = Connection(tokio::spawn(async move {
            // A failure reaches whoever waits for the response or reads its body.
            let _ = connection.await;
        }));
        let headers = request.headers_mut();
        headers.insert(header::HOST, HeaderValue::from_static("localhost"));
        headers.insert(header::CONNECTION, HeaderValue::from_static("close"));
        if let Ok(authorization) = HeaderValue::from_str(&self.authorization) {
            headers.insert(header::AUTHORIZATION, authorization);
        }
        let response = sender.send_request(request).await.map_err(|error| gone(&error))?;
        Ok(response.map(|body| UpstreamBody { body, _connection: task }))
    }

    /// Sends JSON; an answer other than success is an error with llama-server's message.
    ///
    /// # Errors
    /// As [`Upstream::send`], and what llama-server refuses.
    pub async fn post(&self, path: &str, body: &Value) -> ApiResult<Response<UpstreamBody>> {
        self.post_at(self.failures.now(), path, body).await
    }

    async fn post_at(&self, began: Moment, path: &str, body: &Value) -> ApiResult<Response<UpstreamBody>> {
        let request = Request::builder()
            .method(Method::POST)
            .uri(path)
            .header(header::CONTENT_TYPE, "application/json")
            .body(Body::from(body.to_string()))
            .map_err(|error| ApiError::upstream(error.to_string()))?;
        let response = self.send(request).await?;
        if response.status().is_success() {
            return Ok(response);
        }
        let status = response.status();
        let body = collect(response.into_body()).await?;
        let error = ApiError::from_upstream(status, &serde_json::from_slice(&body).unwrap_or_default());
        Err(self.failures.explain(began, error).await)
    }

    /// Sends JSON and reads the answer, which is JSON.
    ///
    /// # Errors
    /// As [`Upstream::post`].
    pub async fn ask(&self, path: &str, body: &Value) -> ApiResult<Value> {
        let answer = collect(self.post(path, body).await?.into_body()).await?;
        serde_json::from_slice(&answer)
            .map_err(|error| ApiError::upstream(format!("llama-server's answer to {path} is no JSON: {error}")))
    }

    /// Sends JSON and reads the answer as events.
    ///
    /// # Errors
    /// As [`Upstream::post`].
    pub async fn events(&self, path: &str, body: &Value) -> ApiResult<Events> {
        let began = self.failures.now();
        let body = self.post_at(began, path, body).await?.into_body();
        Ok(Events::new(body, self.failures.clone(), began))
    }

    /// The text behind a path.
    ///
    /// # Errors
    /// As [`Upstream::send`], and any status but success.
    pub async fn get(&self, path: &str) -> ApiResult<Bytes> {
        let request = Request::get(path).body(Body::empty()).map_err(|error| ApiError::upstream(error.to_string()))?;
        let response = self.send(request).await?;
        let status = response.status();
        let body = collect(response.into_body()).await?;
        match status {
            StatusCode::OK => Ok(body),
            _ => Err(ApiError::from_upstream(status, &serde_json::from_slice(&body).unwrap_or_default())),
        }
    }
}

/// Reads a body to its end.
///
/// # Errors
/// When the connection breaks.
pub async fn collect(body: UpstreamBody) -> ApiResult<Bytes> {
    let collected = body.collect().await;
    let collected = collected.map_err(|error| ApiError::upstream(format!("llama-server hung up: {error}")))?;
    Ok(collected.to_bytes())
}

/// The task that moves a connection's bytes; the connection closes with it.
#[derive(Debug)]
struct Connection(JoinHandle<()>);

impl Drop for Connection {
    fn drop(&mut self) {
        self.0.abort();
    }
}

/// The body of a response. Dropping it closes the connection.
#[derive(Debug)]
pub struct UpstreamBody {
    body: Incoming,
    _connection: Connection,
}

impl hyper::body::Body for UpstreamBody {
    type Data = Bytes;
    type Error = hyper::Error;

    fn poll_frame(self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, hyper::Error>>> {
        Pin::new(&mut self.get_mut().body).poll_frame(context)
    }

    fn is_end_stream(&self) -> bool {
        self.body.is_end_stream()
    }
}

impl Stream for UpstreamBody {
    type Item = Result<Bytes, hyper::Error>;

    fn poll_next(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Option<Self::Item>> {
        loop {
            return match std::task::ready!(self.as_mut().poll_frame(context)) {
                Some(Ok(frame)) => match frame.into_data() {
                    Ok(data) => Poll::Ready(Some(Ok(data))),
                    Err(_trailers) => continue,
                },
                Some(Err(error)) => Poll::Ready(Some(Err(error))),
                None => Poll::Ready(None),
            };
        }
    }
}
