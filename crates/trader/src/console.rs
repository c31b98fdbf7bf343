//! The console: one page in the browser that shows live how the system stands, and the same in numbers for other monitoring
//! systems, at `/metrics`.
//!
//! It is served by the supervisor to this machine only, reads and changes nothing, and asks management in the name of the
//! owner. Whoever opens it must know the token in the address that `trader up` printed; without it there is not even a page.

use std::convert::Infallible;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use http_body_util::Full;
use hyper::body::{Bytes, Incoming};
use hyper::header::{
    CACHE_CONTROL, CONTENT_SECURITY_POLICY, CONTENT_TYPE, HOST, HeaderName, REFERRER_POLICY,
};
use hyper::service::service_fn;
use hyper::{Method, Request, Response, StatusCode};
use hyper_util::rt::{TokioIo, TokioTimer};
use management::routes::AgentView;
use serde_json::Value;
use tokio::net::TcpListener;
use tokio::sync::Semaphore;
use tokio::task::AbortHandle;
use wire::layout::Layout;

use crate::metrics;
use crate::operator::Operator;
use crate::output::Failure;

/// Connections at once.
const CONNECTIONS_MAX: usize = 32;
/// How long a request's head may take.
const HEAD_TIMEOUT: Duration = Duration::from_secs(5);

const PAGE: &str = include_str!("../../../web/index.html");
const SCRIPT: &str = include_str!("../../../web/console.js");
const STYLE: &str = include_str!("../../../web/console.css");

/// What the page may ask for, and where management answers it.
const VIEWS: [(&str, &str); 5] = [
    ("/api/summary", "/v1/summary"),
    ("/api/equity", "/v1/equity"),
    ("/api/agents", "/v1/agents"),
    ("/api/events", "/v1/events"),
    ("/api/orders", "/v1/orders?limit=25"),
];

/// A console that is being served; dropping it ends it.
pub(crate) struct Console {
    address: SocketAddr,
    token: String,
    serving: AbortHandle,
}

impl Drop for Console {
    fn drop(&mut self) {
        self.serving.abort();
    }
}

struct Shared {
    operator: Operator,
    token: String,
    hosts: [String; 2],
}

impl Console {
    /// Serves the console on this machine.
    pub(crate) async fn start(layout: &Layout, port: u16) -> Result<Self, Failure> {
        let listener = TcpListener::bind(("127.0.0.1", port)).await.map_err(|error| {
            Failure::refused(format!(
                "the console cannot listen on port {port}: {error}; choose another with --console-port"
            ))
        })?;
        let address = listener.local_addr().map_err(Failure::broken)?;
        let mut bytes = [0_u8; 16];
        getrandom::fill(&mut bytes).map_err(Failure::broken)?;
        let token = keys::to_hex(&bytes);
        let shared = Arc::new(Shared {
            operator: Operator::connect(layout, "owner")?,
            token: token.clone(),
            hosts: [address.to_string(), format!("localhost:{}", address.port())],
        });
        let serving = tokio::spawn(serve(listener, shared)).abort_handle();
        Ok(Self { address, token, serving })
    }

    /// The address to open, with the token.
    pub(crate) fn url(&self) -> String {
        format!("http://{}/?token={}", self.address, self.token)
    }
}

async fn serve(listener: TcpListener, shared: Arc<Shared>) {
    let permits = Arc::new(Semaphore::new(CONNECTIONS_MAX));
    loop {
        let Ok((stream, _)) = listener.accept().await else { continue };
        let Ok(permit) = permits.clone().try_acquire_owned() else { continue };
        let shared = shared.clone();
        tokio::spawn(async move {
            let service = service_fn(move |request| answer(shared.clone(), request));
            let _ = hyper::server::conn::http1::Builder::new()
                .timer(TokioTimer::new())
                .header_read_timeout(HEAD_TIMEOUT)
                .serve_connection(TokioIo::new(stream), service)
                .await;
            drop(permit);
        });
    }
}

async fn answer(
    shared: Arc<Shared>,
    request: Request<Incoming>,
) -> Result<Response<Full<Bytes>>, Infallible> {
    // A page elsewhere that makes this browser ask here comes with another host name, or without the token.
    let host = request.headers().get(HOST).and_then(|host| host.to_str().ok()).unwrap_or_default();
    if !shared.hosts.iter().any(|ours| ours == host) || request.method() != Method::GET {
        return Ok(plain(StatusCode::FORBIDDEN, "text/plain", "not from here"));
    }
    let path = request.uri().path();
    match path {
        "/console.js" => return Ok(plain(StatusCode::OK, "text/javascript; charset=utf-8", SCRIPT)),
        "/console.css" => return Ok(plain(StatusCode::OK, "text/css; charset=utf-8", STYLE)),
        _ => {}
    }
    let shown = request
        .uri()
        .query()
        .and_then(|query| wire::guard::query_value(query, "token"))
        .or_else(|| request.headers().get("x-token").and_then(|token| token.to_str().ok()))
        .unwrap_or_default();
    if !keys::equal_in_constant_time(shown.as_bytes(), shared.token.as_bytes()) {
        return Ok(plain(StatusCode::FORBIDDEN, "text/plain", "open the address that `trader up` printed"));
    }
    if path == "/" {
        return Ok(plain(StatusCode::OK, "text/html; charset=utf-8", PAGE));
    }
    if path == "/metrics" {
        return Ok(metrics(&shared.operator).await);
    }
    let Some((_, upstream)) = VIEWS.iter().find(|(view, _)| *view == path) else {
        return Ok(plain(StatusCode::NOT_FOUND, "text/plain", "there is nothing here"));
    };
    Ok(match shared.operator.get::<Value>(upstream).await {
        Ok(value) => plain(StatusCode::OK, "application/json", &value.to_string()),
        Err(failure) => plain(StatusCode::SERVICE_UNAVAILABLE, "text/plain", failure.words()),
    })
}

/// What is counted, as text; nothing of it when a part cannot be had.
async fn metrics(operator: &Operator) -> Response<Full<Bytes>> {
    let asked = async {
        let summary = operator.get("/v1/summary").await?;
        let keys = operator.get("/v1/keys").await?;
        let agents: Vec<AgentView> = operator.get("/v1/agents").await?;
        Ok::<_, Failure>(metrics::text(&summary, &keys, &agents))
    };
    match asked.await {
        Ok(text) => plain(StatusCode::OK, metrics::KIND, &text),
        Err(failure) => plain(StatusCode::SERVICE_UNAVAILABLE, "text/plain", failure.words()),
    }
}

fn plain(status: StatusCode, kind: &str, body: &str) -> Response<Full<Bytes>> {
    let policy = "default-src 'none'; script-src 'self'; style-src 'self'; connect-src 'self'; base-uri 'none'; \
                  form-action 'none'; frame-ancestors 'none'";
    Response::builder()
        .status(status)
        .header(CONTENT_TYPE, kind)
        .header(CACHE_CONTROL, "no-store")
        .header(CONTENT_SECURITY_POLICY, policy)
        .header(REFERRER_POLICY, "no-referrer")
        .header(HeaderName::from_static("x-content-type-options"), "nosniff")
        .header(HeaderName::from_static("x-frame-options"), "DENY")
        .body(Full::new(Bytes::from(body.to_owned())))
        .unwrap_or_else(|_| Response::new(Full::new(Bytes::new())))
}
