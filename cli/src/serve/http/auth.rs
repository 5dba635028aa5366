//! Who may ask: API keys, CORS, and a check of the Host header against DNS rebinding.

use std::net::IpAddr;
use std::sync::Arc;

use axum::body::Body;
use axum::extract::State;
use axum::http::{HeaderMap, HeaderValue, Method, Request, Response, StatusCode, Uri, header};
use axum::middleware::Next;
use axum::response::IntoResponse;
use base64::Engine;
use base64::prelude::BASE64_STANDARD;
use sha2::{Digest, Sha256};

use crate::serve::errors::ApiError;

/// What is demanded of a request.
#[derive(Debug, Default)]
pub struct Access {
    /// Hashes of the keys; none means that no key is needed.
    keys: Vec<[u8; 32]>,
    /// Web pages that may ask, beside those of this machine: `https://example.org`, or `*` for all.
    origins: Vec<String>,
    /// Whether only this machine can reach the server. Then a request that names another host has been misled by a name
    /// that was made to point here.
    is_loopback: bool,
}

impl Access {
    /// Demands one of the keys, if there are any.
    pub fn new(keys: &[String], origins: Vec<String>, is_loopback: bool) -> Self {
        Self { keys: keys.iter().map(|key| hash(key)).collect(), origins, is_loopback }
    }

    /// Whether no key is needed.
    pub fn is_open(&self) -> bool {
        self.keys.is_empty()
    }

    fn has_key(&self, headers: &HeaderMap) -> bool {
        if self.keys.is_empty() {
            return true;
        }
        let text = |name: &str| headers.get(name).and_then(|value| value.to_str().ok());
        // As Anthropic's clients send it.
        if text("x-api-key").is_some_and(|given| self.keys.contains(&hash(given))) {
            return true;
        }
        let Some(value) = text("authorization") else { return false };
        let given = match value.split_once(' ') {
            Some((scheme, key)) if scheme.eq_ignore_ascii_case("bearer") => Some(key.trim().to_owned()),
            // What a browser sends after it has asked for a password: the live page works, too.
            Some((scheme, pair)) if scheme.eq_ignore_ascii_case("basic") => password(pair.trim()),
            _ => None,
        };
        // Hashes are compared, so that the time tells nothing about the key.
        given.is_some_and(|given| self.keys.contains(&hash(&given)))
    }

    fn allows_origin(&self, origin: &str) -> bool {
        let own = || origin.parse::<Uri>().ok().and_then(|uri| uri.host().map(is_this_machine)).unwrap_or(false);
        let is_program = || PROGRAMS.iter().any(|scheme| origin.to_ascii_lowercase().starts_with(scheme));
        let is_allowed = || self.origins.iter().any(|allowed| allowed == "*" || allowed.eq_ignore_ascii_case(origin));
        is_program() || own() || is_allowed()
    }

    fn allows_host(&self, headers: &HeaderMap) -> bool {
        if !self.is_loopback {
            return true;
        }
        let host = headers.get(header::HOST).and_then(|host| host.to_str().ok());
        let Some(authority) = host.and_then(|host| host.parse::<axum::http::uri::Authority>().ok()) else {
            return host.is_none();
        };
        is_near(authority.host(), &own_name())
    }
}

/// Lets a request pass or refuses it. `/` tells only that the server runs, and is open to all.
pub async fn check(State(access): State<Arc<Access>>, request: Request<Body>, next: Next) -> Response<Body> {
    if !access.allows_host(request.headers()) {
        return refuse(
            StatusCode::FORBIDDEN,
            request.uri().path(),
            "this server is for this machine; start it with --host to be reached by name",
        );
    }
    let origin = request.headers().get(header::ORIGIN).cloned();
    if let Some(origin) = &origin {
        if !origin.to_str().is_ok_and(|origin| access.allows_origin(origin)) {
            return refuse(
                StatusCode::FORBIDDEN,
                request.uri().path(),
                "pages of this origin may not ask; hypura serve --origin allows it",
            );
        }
    }
    // Browsers ask without a key whether they may ask.
    let is_preflight = request.method() == Method::OPTIONS && origin.is_some();
    let mut response = if is_preflight {
        let mut response = StatusCode::NO_CONTENT.into_response();
        let headers = response.headers_mut();
        headers.insert(header::ACCESS_CONTROL_ALLOW_METHODS, HeaderValue::from_static("GET, HEAD, POST, DELETE"));
        let asked = request.headers().get(header::ACCESS_CONTROL_REQUEST_HEADERS).cloned();
        headers.insert(header::ACCESS_CONTROL_ALLOW_HEADERS, asked.unwrap_or(HeaderValue::from_static("*")));
        response
    } else if request.uri().path() == "/" || access.has_key(request.headers()) {
        next.run(request).await
    } else {
        let mut response = refuse(
            StatusCode::UNAUTHORIZED,
            request.uri().path(),
            "a key is needed: send the header 'Authorization: Bearer KEY'",
        );
        response.headers_mut().insert(header::WWW_AUTHENTICATE, HeaderValue::from_static("Basic realm=\"hypura\""));
        response
    };
    if let Some(origin) = origin {
        response.headers_mut().insert(header::ACCESS_CONTROL_ALLOW_ORIGIN, origin);
        response.headers_mut().append(header::VARY, HeaderValue::from_static("origin"));
    }
    response
}

fn refuse(status: StatusCode, path: &str, message: &str) -> Response<Body> {
    ApiError::new(status, message).into_response_at(path)
}

fn hash(key: &str) -> [u8; 32] {
    Sha256::digest(key.as_bytes()).into()
}

/// Pages that belong to a program of this machine and not to a web site: browsers let no site claim such an origin.
const PROGRAMS: [&str; 5] = ["app://", "file://", "tauri://", "vscode-file://", "vscode-webview://"];

fn is_this_machine(host: &str) -> bool {
    let host = host.trim_start_matches('[').trim_end_matches(']');
    let is_name = host.eq_ignore_ascii_case("localhost") || host.to_ascii_lowercase().ends_with(".localhost");
    is_name || host.parse::<IpAddr>().is_ok_and(|address| address.is_loopback() || address.is_unspecified())
}

/// Whether a host's name or address can only lead to this machine or one near it: no web site can own it, so none can
/// have made it point here. Containers and other machines reach this one by such names, through a proxy or a forwarded
/// port.
fn is_near(host: &str, own_name: &str) -> bool {
    let lower = host.to_ascii_lowercase();
    let is_name = lower.ends_with(".local") || lower.ends_with(".internal") || lower == own_name.to_ascii_lowercase();
    let address = host.trim_start_matches('[').trim_end_matches(']').parse::<IpAddr>();
    is_this_machine(host)
        || is_name
        || address.is_ok_and(|address| match address {
            IpAddr::V4(address) => address.is_private(),
            IpAddr::V6(address) => address.is_unique_local(),
        })
}

fn own_name() -> String {
    rustix::system::uname().nodename().to_string_lossy().into_owned()
}

/// The password in base64 of `user:password`.
fn password(pair: &str) -> Option<String> {
    let pair = String::from_utf8(BASE64_STANDARD.decode(pair).ok()?).ok()?;
    Some(pair.split_once(':')?.1.to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn headers(pairs: &[(header::HeaderName, &str)]) -> HeaderMap {
        pairs.iter().map(|(name, value)| (name.clone(), value.parse().unwrap())).collect()
    }

    #[test]
    fn keys() {
        let access = Access::new(&["secret".to_owned()], Vec::new(), true);
        let has_key = |value: &str| access.has_key(&headers(&[(header::AUTHORIZATION, value)]));
        assert!(has_key("Bearer secret") && has_key("bearer secret"));
        // base64 of "x:secret" and "x:wrong"
        assert!(has_key("Basic eDpzZWNyZXQ=") && !has_key("Basic eDp3cm9uZw=="));
        assert!(!has_key("Bearer wrong") && !has_key("secret") && !has_key("Basic !"));
        let api_key = |value: &str| access.has_key(&headers(&[("x-api-key".parse().unwrap(), value)]));
        assert!(api_key("secret") && !api_key("wrong"));
        assert!(!access.has_key(&HeaderMap::new()) && Access::default().has_key(&HeaderMap::new()));
    }

    #[test]
    fn origins_and_hosts() {
        let access = Access::new(&[], vec!["https://example.org".to_owned()], true);
        for origin in [
            "http://localhost:3000",
            "http://127.0.0.1",
            "http://[::1]:80",
            "https://example.org",
            "http://0.0.0.0:8080",
            "app://obsidian.md",
            "tauri://localhost",
            "file://",
            "vscode-webview://1abc",
            "vscode-file://vscode-app",
        ] {
            assert!(access.allows_origin(origin), "{origin}");
        }
        for origin in [
            "https://evil.example",
            "http://localhost.evil.example",
            "null",
            "http://10.0.0.1",
            "chrome-extension://x",
            "xapp://y",
            "https://app.example",
        ] {
            assert!(!access.allows_origin(origin), "{origin}");
        }
        let host = |host: &str| access.allows_host(&headers(&[(header::HOST, host)]));
        for near in [
            "0.0.0.0:11434",
            "host.docker.internal:11434",
            "box.local",
            "gpu.internal:1",
            "192.168.1.7:11434",
            "10.1.2.3",
            "[fd00::1]:80",
        ] {
            assert!(host(near), "{near}");
        }
        assert!(is_near("Box", "box") && !is_near("box.example", "box"));
        for far in ["8.8.8.8", "local", "evil.local.example", "[2001:db8::1]"] {
            assert!(!host(far), "{far}");
        }
        assert!(host("localhost:11434") && host("127.0.0.1:11434") && host("[::1]:11434"));
        assert!(!host("evil.example") && !host("evil.example:11434") && !host("a b"));
        assert!(access.allows_host(&HeaderMap::new()));
    }
}
