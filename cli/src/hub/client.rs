//! HTTP to the hub: where it is and what it wants to be told come from the variables that its own tools read.

use std::io::Read;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use serde_json::Value;
use ureq::http::{Response, StatusCode};
use ureq::{Agent, Body};

/// Speaks to the hub. Proxies are those of `HTTPS_PROXY`, `HTTP_PROXY`, `ALL_PROXY` and `NO_PROXY`.
#[derive(Debug)]
pub struct Client {
    agent: Agent,
    endpoint: String,
    token: Option<String>,
    received_bytes: AtomicU64,
}

/// A connection that says nothing for so long is given up.
const PATIENCE: Duration = Duration::from_secs(30);

impl Client {
    /// The hub that `HF_ENDPOINT` names, with the key of `HF_TOKEN` or of the file that `hf auth login` writes.
    pub fn from_environment() -> Self {
        let text = |name: &str| std::env::var(name).ok().filter(|value| !value.trim().is_empty());
        let endpoint = text("HF_ENDPOINT").unwrap_or_else(|| "https://huggingface.co".to_owned());
        let file = || super::cache::home().map(|home| home.join("token"));
        let written = || std::fs::read_to_string(file()?).ok().filter(|token| !token.trim().is_empty());
        let token = text("HF_TOKEN").or_else(written).map(|token| token.trim().to_owned());
        Self::new(&endpoint, token)
    }

    /// The hub at an address.
    pub fn new(endpoint: &str, token: Option<String>) -> Self {
        let agent = Agent::config_builder()
            .http_status_as_error(false)
            .timeout_connect(Some(PATIENCE))
            .timeout_recv_response(Some(PATIENCE))
            .timeout_per_read(Some(PATIENCE))
            .user_agent(concat!("hypura/", env!("CARGO_PKG_VERSION")))
            .build()
            .new_agent();
        let endpoint = endpoint.trim_end_matches('/').to_owned();
        Self { agent, endpoint, token, received_bytes: AtomicU64::new(0) }
    }

    /// An address below the hub's own.
    pub fn at(&self, path: &str) -> String {
        format!("{}/{path}", self.endpoint)
    }

    /// Bytes of bodies that were received so far.
    pub fn received_bytes(&self) -> u64 {
        self.received_bytes.load(Ordering::Relaxed)
    }

    /// JSON, and the address of the next page of it.
    ///
    /// # Errors
    /// A sentence that says what the hub answered and what to do.
    pub fn json(&self, url: &str) -> Result<(Value, Option<String>), String> {
        /// Lists of the largest repositories are far below it.
        const BYTES_MAX: u64 = 32 << 20;
        let response = self.get(url, None, true)?;
        let next = response.headers().get("link").and_then(|link| next_page(link.to_str().ok()?));
        let body = self.read(response, BYTES_MAX, url)?;
        let value = serde_json::from_slice(&body).map_err(|error| format!("{url} answered no JSON: {error}"))?;
        Ok((value, next))
    }

    /// Bytes of a file, from the first to before the last, as far as the file reaches; and the size of the file.
    ///
    /// # Errors
    /// A sentence, also when the server cannot give a part of a file.
    pub fn range(&self, url: &str, from: u64, to: u64) -> Result<(Vec<u8>, u64), String> {
        let response = self.get(url, Some((from, to)), true)?;
        if response.status() != StatusCode::PARTIAL_CONTENT {
            return Err(format!(
                "{url}: the server gives whole files only (it answered {} to a range)",
                response.status()
            ));
        }
        let total = response
            .headers()
            .get("content-range")
            .and_then(|range| range.to_str().ok()?.rsplit('/').next()?.parse().ok());
        let total = total.ok_or_else(|| format!("{url}: the server does not tell how large the file is"))?;
        Ok((self.read(response, to - from, url)?, total))
    }

    /// A header of the hub's own answer about a file, before it leads elsewhere.
    ///
    /// # Errors
    /// A sentence that says what the hub answered.
    pub fn header(&self, url: &str, name: &str) -> Result<Option<String>, String> {
        let response = self.get(url, Some((0, 1)), false)?;
        Ok(response.headers().get(name).and_then(|value| Some(value.to_str().ok()?.to_owned())))
    }

    fn get(&self, url: &str, range: Option<(u64, u64)>, follows: bool) -> Result<Response<Body>, String> {
        let mut request = self.agent.get(url);
        if let Some((from, to)) = range {
            request = request.header("range", format!("bytes={from}-{}", to.saturating_sub(1)));
        }
        // The key is for the hub alone; it is not sent on to where the hub leads either.
        if let Some(token) = self.token.as_ref().filter(|_| url.starts_with(&format!("{}/", self.endpoint))) {
            request = request.header("authorization", format!("Bearer {token}"));
        }
        let request = match follows {
            true => request,
            false => request.config().max_redirects(0).max_redirects_will_error(false).build(),
        };
        let response = request.call().map_err(|error| format!("cannot reach {url}: {error}"))?;
        let status = response.status();
        match status {
            _ if status.is_success() || (status.is_redirection() && !follows) => Ok(response),
            StatusCode::UNAUTHORIZED | StatusCode::FORBIDDEN => Err(format!(
                "{url}: {status}; a name that does not exist, or a model that wants a key: set HF_TOKEN, and accept its terms \
                 on its page"
            )),
            StatusCode::NOT_FOUND => Err(format!("{url}: not found; is the name right?")),
            _ => Err(format!("{url}: the server answered {status}")),
        }
    }

    fn read(&self, response: Response<Body>, bytes_max: u64, url: &str) -> Result<Vec<u8>, String> {
        let mut body = Vec::new();
        let read = response.into_body().into_reader().take(bytes_max).read_to_end(&mut body);
        self.received_bytes.fetch_add(body.len() as u64, Ordering::Relaxed);
        read.map(|_| body).map_err(|error| format!("{url} broke off: {error}"))
    }
}

/// The address of the next page in a `Link` header: `<ADDRESS>; rel="next"`.
fn next_page(link: &str) -> Option<String> {
    let (address, relation) = link.split_once('>')?;
    let is_next = relation.contains("rel=\"next\"");
    is_next.then(|| address.trim_start().strip_prefix('<').map(str::to_owned))?
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pages() {
        assert_eq!(next_page("<https://x/y?cursor=1>; rel=\"next\"").as_deref(), Some("https://x/y?cursor=1"));
        assert_eq!(next_page("<https://x/y>; rel=\"last\""), None);
        assert_eq!(next_page("nonsense"), None);
    }
}
