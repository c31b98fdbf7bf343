//! The Workload API as others meet it: stock clients of two languages, and those who mean no good.
//!
//! The certificates are real ones of a root and its authorities. The attackers speak to the socket by hand
//! where no client would say what they say.

#![expect(clippy::unwrap_used, reason = "a test stops at the first surprise")]
#![expect(clippy::panic, reason = "a test stops at the first surprise")]
#![expect(clippy::print_stdout, reason = "a test that is skipped says so")]

use std::fmt;
use std::io::{Read as _, Write as _};
use std::os::unix::fs::{FileTypeExt as _, PermissionsExt};
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::{Duration, Instant};

use agent::workload::{
    BUNDLE_MAX, CONNECTIONS_MAX, Callers, FIRST_REQUEST_TIMEOUT, MESSAGE_BYTES_MAX, SOCKET_NAME, STREAMS_MAX,
    Svid, WorkloadError, serve,
};
use hyper_util::rt::TokioIo;
use identity::{Authority, Leaf, PeerClass, Root, SpiffeId};
use keys::SigningKey;
use nix::sys::resource::{Resource, getrlimit, setrlimit};
use nix::unistd::geteuid;
use rcgen::PublicKeyData as _;
use spiffe::{TrustDomain, WorkloadApiClient, WorkloadApiError, X509Source};
use tempfile::TempDir;
use tokio::io::{AsyncBufReadExt as _, AsyncReadExt as _, BufReader, Join};
use tokio::process::{Child, ChildStdin, ChildStdout};
use tokio::sync::watch;
use tokio::task::JoinHandle;
use tokio::time::{sleep, timeout};
use tonic::codegen::http::Uri;
use tonic::codegen::http::uri::PathAndQuery;
use tonic::codegen::tokio_stream::{self, StreamExt as _};
use tonic::metadata::MetadataValue;
use tonic::transport::{Channel, Endpoint};
use tonic::{Code, Request, Status, Streaming};
use tonic_prost::ProstCodec;
use wire::journal::unix_ms;
use zeroize::Zeroizing;

const TRUST_DOMAIN: &str = "house.test";
const TTL_S: i64 = 3_600;
const PATIENCE: Duration = Duration::from_secs(20);
/// How long something takes that takes no time.
const MOMENT: Duration = Duration::from_secs(2);

const FETCH_SVID: &str = "/SpiffeWorkloadAPI/FetchX509SVID";
const FETCH_BUNDLES: &str = "/SpiffeWorkloadAPI/FetchX509Bundles";

/// The version of the Python client that this is tested with.
const PYTHON_CLIENT: &str = "spiffe==0.3.2";

/// Carries bytes between its standard streams and the socket: a caller that is another process, or another
/// user. Told to fork, it leaves the work to its child, and stays until it is killed.
const RELAY: &str = r#"
import os, signal, socket, sys, threading
peer = socket.socket(socket.AF_UNIX)
peer.connect(sys.argv[1])
if sys.argv[2] == "fork" and os.fork():
    while True: signal.pause()
def up():
    while data := os.read(0, 65536): peer.sendall(data)
threading.Thread(target=up, daemon=True).start()
while data := peer.recv(65536): os.write(1, data)
os._exit(0)
"#;

/// Makes identities.
struct House {
    agents: Authority,
    desk: Authority,
}

/// An identity and what a test wants to know of it.
struct Made {
    svid: Arc<Svid>,
    leaf: Vec<u8>,
    key: Vec<u8>,
    serial: u128,
    expires: i64,
}

impl House {
    fn new() -> Self {
        Self::of(TRUST_DOMAIN, 1)
    }

    fn of(trust_domain: &str, seed: u8) -> Self {
        let now = unix_ms() / 1_000;
        let root = Root::new(trust_domain, SigningKey::from_seed(&[seed; 32])).unwrap();
        let authority = |class, number: u8| {
            root.authority(class, SigningKey::from_seed(&[number; 32]), now, 86_400, [number; 16]).unwrap()
        };
        Self { agents: authority(PeerClass::Agents, seed + 1), desk: authority(PeerClass::Desk, seed + 2) }
    }

    /// An identity with a new key; the same serial number makes a test readable.
    fn make(&self, serial: u8, bundle: &[&Authority]) -> Made {
        let key = rcgen::KeyPair::generate().unwrap();
        let id = SpiffeId::agent(TRUST_DOMAIN, "one").unwrap();
        let now = unix_ms() / 1_000;
        let serial = [serial; 16];
        let leaf = self.agents.issue(&key.subject_public_key_info(), &id, 1, now, TTL_S, serial).unwrap();
        let svid = Svid::new(
            id.as_str(),
            vec![leaf.clone(), self.agents.certificate().to_vec()],
            Zeroizing::new(key.serialize_der()),
            bundle.iter().map(|authority| authority.certificate().to_vec()).collect(),
        );
        let expires = Leaf::parse(&leaf).unwrap().expires;
        let serial = u128::from_be_bytes(serial);
        Made { svid: Arc::new(svid.unwrap()), leaf, key: key.serialize_der(), serial, expires }
    }

    fn identity(&self, serial: u8) -> Made {
        self.make(serial, &[&self.agents, &self.desk])
    }
}

/// A served socket.
struct Served {
    directory: TempDir,
    socket: PathBuf,
    svids: watch::Sender<Option<Arc<Svid>>>,
    stop: watch::Sender<bool>,
    serving: JoinHandle<Result<(), WorkloadError>>,
}

impl Served {
    async fn new(svid: Option<Arc<Svid>>, callers: Callers) -> Self {
        let directory = tempfile::tempdir().unwrap();
        let socket = directory.path().join("private").join(SOCKET_NAME);
        let (svids, fed) = watch::channel(svid);
        let (stop, stopped) = watch::channel(false);
        let path = socket.clone();
        let serving = tokio::spawn(async move { serve(&path, fed, callers, stopped).await });
        let begun = Instant::now();
        while UnixStream::connect(&socket).is_err() {
            assert!(begun.elapsed() < PATIENCE, "it does not serve");
            sleep(Duration::from_millis(5)).await;
        }
        Self { directory, socket, svids, stop, serving }
    }

    async fn with(made: &Made) -> Self {
        Self::new(Some(made.svid.clone()), Callers::own()).await
    }

    fn endpoint(&self) -> String {
        format!("unix://{}", self.socket.display())
    }

    async fn client(&self) -> WorkloadApiClient {
        WorkloadApiClient::connect_to(self.endpoint()).await.unwrap()
    }

    async fn channel(&self) -> Channel {
        Endpoint::from_shared(self.endpoint()).unwrap().connect().await.unwrap()
    }

    fn raw(&self) -> UnixStream {
        let stream = UnixStream::connect(&self.socket).unwrap();
        stream.set_read_timeout(Some(PATIENCE)).unwrap();
        stream
    }

    async fn end(self) {
        self.stop.send(true).unwrap();
        timeout(PATIENCE, self.serving).await.unwrap().unwrap().unwrap();
    }
}

/// A message of one field of bytes: as a request one that is as large as it likes, as a reply any of the two.
#[derive(Clone, PartialEq, prost::Message)]
#[prost(skip_debug)]
struct Bytes {
    #[prost(bytes = "vec", tag = "1")]
    bytes: Vec<u8>,
}

impl fmt::Debug for Bytes {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} bytes", self.bytes.len())
    }
}

fn request(header: Option<&'static str>, size: usize) -> Request<Bytes> {
    let mut request = Request::new(Bytes { bytes: vec![7; size] });
    if let Some(value) = header {
        request.metadata_mut().insert("workload.spiffe.io", MetadataValue::from_static(value));
    }
    request
}

async fn call(
    channel: &Channel,
    method: &'static str,
    request: Request<Bytes>,
) -> Result<Streaming<Bytes>, Status> {
    let mut client = tonic::client::Grpc::new(channel.clone());
    client.ready().await.map_err(|error| Status::unavailable(error.to_string()))?;
    let codec = ProstCodec::<Bytes, Bytes>::default();
    let reply = client.server_streaming(request, PathAndQuery::from_static(method), codec).await;
    reply.map(tonic::Response::into_inner)
}

/// The first message, or why there is none.
async fn first(channel: &Channel, method: &'static str, request: Request<Bytes>) -> Result<Bytes, Status> {
    let mut stream = timeout(PATIENCE, call(channel, method, request)).await.unwrap()?;
    timeout(PATIENCE, stream.message()).await.unwrap().map(Option::unwrap)
}

/// A stream that is open: its first message has come.
async fn open(channel: &Channel) -> Streaming<Bytes> {
    let mut stream = call(channel, FETCH_SVID, request(Some("true"), 0)).await.unwrap();
    timeout(PATIENCE, stream.message()).await.unwrap().unwrap().unwrap();
    stream
}

async fn fetch_code(channel: &Channel) -> Code {
    first(channel, FETCH_SVID, request(Some("true"), 0))
        .await
        .map_or_else(|status| status.code(), |_| Code::Ok)
}

/// Reads until the other side closes; fails when it does not.
fn read_out(stream: &mut UnixStream) -> Vec<u8> {
    let mut bytes = Vec::new();
    match stream.read_to_end(&mut bytes) {
        Ok(_) => {}
        Err(error) if error.kind() == std::io::ErrorKind::ConnectionReset => {}
        Err(error) => panic!("it was not closed: {error}"),
    }
    bytes
}

fn python() -> bool {
    let found = Command::new("python3").arg("--version").output().is_ok_and(|output| output.status.success());
    if !found {
        println!("skipped: there is no python3 here");
    }
    found
}

/// Connects through a relay process.
struct Relay(Option<Join<ChildStdout, ChildStdin>>);

impl Relay {
    fn start(socket: &Path, how: &str, uid: Option<u32>) -> (Child, Self) {
        let mut command = tokio::process::Command::new("python3");
        command.args(["-c", RELAY]).arg(socket).arg(how).current_dir("/").kill_on_drop(true);
        command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
        if let Some(uid) = uid {
            command.uid(uid).gid(uid);
        }
        let mut child = command.spawn().unwrap();
        let streams = tokio::io::join(child.stdout.take().unwrap(), child.stdin.take().unwrap());
        (child, Self(Some(streams)))
    }
}

impl tonic::codegen::Service<Uri> for Relay {
    type Response = TokioIo<Join<ChildStdout, ChildStdin>>;
    type Error = std::io::Error;
    type Future = std::future::Ready<Result<Self::Response, Self::Error>>;

    fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<Result<(), Self::Error>> {
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, _: Uri) -> Self::Future {
        let gone = || std::io::Error::from(std::io::ErrorKind::NotConnected);
        std::future::ready(self.0.take().map(TokioIo::new).ok_or_else(gone))
    }
}

async fn relayed(relay: Relay) -> Channel {
    Endpoint::from_static("http://relay.test").connect_with_connector(relay).await.unwrap()
}

#[tokio::test(flavor = "multi_thread")]
async fn the_stock_rust_client_fetches_the_identity_and_the_bundle() {
    let house = House::new();
    let made = house.identity(9);
    let served = Served::with(&made).await;
    let client = served.client().await;

    let svid = client.fetch_x509_svid().await.unwrap();
    assert_eq!(svid.spiffe_id().to_string(), "spiffe://house.test/agent/one");
    assert_eq!(svid.leaf().as_bytes(), made.leaf);
    assert_eq!(svid.private_key().as_bytes(), made.key);
    assert_eq!(svid.cert_chain().len(), 2);
    assert_eq!(svid.cert_chain().last().unwrap().as_bytes(), house.agents.certificate());
    assert!((made.expires - unix_ms() / 1_000 - TTL_S).abs() < 60);

    let domain = TrustDomain::new(TRUST_DOMAIN).unwrap();
    let bundles = client.fetch_x509_bundles().await.unwrap();
    let context = client.fetch_x509_context().await.unwrap();
    for set in [&bundles, context.bundle_set()] {
        let authorities = set.get(&domain).unwrap();
        let authorities: Vec<_> = authorities.authorities().iter().map(AsRef::as_ref).collect();
        assert_eq!(authorities, [house.agents.certificate(), house.desk.certificate()]);
    }
    served.end().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn the_stock_rust_source_is_told_of_a_rotation() {
    let house = House::new();
    let (old, new) = (house.identity(1), house.identity(2));
    let served = Served::with(&old).await;
    let source = X509Source::builder().endpoint(served.endpoint()).build().await.unwrap();
    let mut updates = source.updated();
    let mut stream = served.client().await.stream_x509_svids().await.unwrap();
    assert_eq!(source.svid().unwrap().leaf().as_bytes(), old.leaf);
    assert_eq!(stream.next().await.unwrap().unwrap().leaf().as_bytes(), old.leaf);

    served.svids.send_replace(Some(new.svid.clone()));
    timeout(PATIENCE, updates.changed()).await.unwrap().unwrap();
    assert_eq!(source.svid().unwrap().leaf().as_bytes(), new.leaf);
    let told = timeout(PATIENCE, stream.next()).await.unwrap().unwrap().unwrap();
    assert_eq!((told.leaf().as_bytes(), told.private_key().as_bytes()), (&new.leaf[..], &new.key[..]));

    source.shutdown().await;
    served.end().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_stream_of_bundles_hears_of_new_authorities_and_not_of_new_keys() {
    let house = House::new();
    let (old, rotated) = (house.identity(1), house.identity(2));
    let grown = house.make(3, &[&house.agents]);
    let served = Served::with(&old).await;
    let domain = TrustDomain::new(TRUST_DOMAIN).unwrap();
    let mut stream = served.client().await.stream_x509_bundles().await.unwrap();
    let count = |set: spiffe::X509BundleSet| set.get(&domain).unwrap().authorities().len();
    assert_eq!(count(stream.next().await.unwrap().unwrap()), 2);

    served.svids.send_replace(Some(rotated.svid.clone()));
    assert!(timeout(Duration::from_millis(300), stream.next()).await.is_err(), "told of nothing new");
    served.svids.send_replace(Some(grown.svid.clone()));
    assert_eq!(count(timeout(PATIENCE, stream.next()).await.unwrap().unwrap().unwrap()), 1);
    served.end().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn the_stock_python_client_fetches_the_identity_and_is_told_of_a_rotation() {
    if !python() {
        return;
    }
    let Some(interpreter) = tokio::task::spawn_blocking(python_client).await.unwrap() else { return };
    let house = House::new();
    let (old, new) = (house.identity(1), house.identity(2));
    let served = Served::with(&old).await;
    let mut client = tokio::process::Command::new(interpreter)
        .arg(Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/spiffe_client.py"))
        .arg(served.endpoint())
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .kill_on_drop(true)
        .spawn()
        .unwrap();
    let mut lines = BufReader::new(client.stdout.take().unwrap()).lines();
    // It fetched over a socket whose path it wrote into its requests: see `SOCKET_NAME`.
    for made in [&old, &new] {
        let line = timeout(PATIENCE * 2, lines.next_line()).await.unwrap().unwrap().unwrap();
        let told: serde_json::Value = serde_json::from_str(&line).unwrap();
        let expected = serde_json::json!({
            "id": "spiffe://house.test/agent/one", "serial": made.serial.to_string(), "chain": 2,
            "authorities": 2, "issued": true, "key_fits": true,
        });
        assert_eq!(told, expected);
        served.svids.send_replace(Some(new.svid.clone()));
    }
    assert!(timeout(PATIENCE, client.wait()).await.unwrap().unwrap().success());
    served.end().await;
}

/// The interpreter of a virtual environment with the Python client; `None`, with a word, where it cannot be
/// made.
fn python_client() -> Option<PathBuf> {
    let home = Path::new(env!("CARGO_TARGET_TMPDIR")).join(format!("python-{PYTHON_CLIENT}"));
    let interpreter = home.join("bin/python3");
    let made = home.join("complete");
    if made.exists() {
        return Some(interpreter);
    }
    let ran = |command: &mut Command| command.output().is_ok_and(|output| output.status.success());
    let pip = ["-m", "pip", "install", "--quiet", "--retries", "1", "--timeout", "20", PYTHON_CLIENT];
    if ran(Command::new("python3").args(["-m", "venv", "--clear"]).arg(&home))
        && ran(Command::new(&interpreter).args(pip))
    {
        std::fs::write(made, "").unwrap();
        return Some(interpreter);
    }
    println!("skipped: the Python client {PYTHON_CLIENT} cannot be installed here");
    None
}

#[tokio::test(flavor = "multi_thread")]
async fn the_leaf_verifies_against_the_bundle_and_not_against_anothers() {
    let openssl = |arguments: &[&Path]| Command::new("openssl").args(arguments).output();
    if openssl(&["version".as_ref()]).is_err() {
        println!("skipped: there is no openssl here");
        return;
    }
    let house = House::new();
    let served = Served::with(&house.identity(1)).await;
    let context = served.client().await.fetch_x509_context().await.unwrap();
    let directory = served.directory.path();
    let pem = |der: &[u8], name: &str| {
        let (from, to) = (directory.join("der"), directory.join(name));
        std::fs::write(&from, der).unwrap();
        let arguments =
            ["x509", "-inform", "DER", "-in", from.to_str().unwrap(), "-out", to.to_str().unwrap()];
        assert!(openssl(&arguments.map(Path::new)).unwrap().status.success());
        to
    };
    let leaf = pem(context.default_svid().unwrap().leaf().as_bytes(), "leaf");
    let bundle = context.bundle_set().get(&TrustDomain::new(TRUST_DOMAIN).unwrap()).unwrap();
    let anchors = directory.join("anchors");
    let authorities: Vec<_> = bundle
        .authorities()
        .iter()
        .map(|authority| std::fs::read_to_string(pem(authority.as_bytes(), "authority")).unwrap())
        .collect();
    std::fs::write(&anchors, authorities.concat()).unwrap();
    let other = pem(House::of(TRUST_DOMAIN, 50).agents.certificate(), "other");
    let verified = |anchors: &Path| {
        let arguments = ["verify", "-partial_chain", "-purpose", "sslclient", "-CAfile"].map(Path::new);
        openssl(&[&arguments[..], &[anchors, &leaf]].concat()).unwrap().status.success()
    };
    assert!(verified(&anchors));
    assert!(!verified(&other), "the same names and another key");
    served.end().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn without_an_identity_nobody_gets_one_and_it_can_be_taken_back() {
    let house = House::new();
    let made = house.identity(1);
    let served = Served::new(None, Callers::own()).await;
    let client = served.client().await;
    assert!(matches!(client.fetch_x509_svid().await, Err(WorkloadApiError::NoIdentityIssued)));
    assert!(matches!(client.fetch_x509_bundles().await, Err(WorkloadApiError::NoIdentityIssued)));

    served.svids.send_replace(Some(made.svid.clone()));
    let mut stream = client.stream_x509_svids().await.unwrap();
    assert_eq!(stream.next().await.unwrap().unwrap().leaf().as_bytes(), made.leaf);
    served.svids.send_replace(None);
    let ended = timeout(PATIENCE, stream.next()).await.unwrap().unwrap();
    assert!(matches!(ended, Err(WorkloadApiError::NoIdentityIssued)));
    assert!(stream.next().await.is_none());
    served.end().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn an_identity_whose_maker_is_gone_is_not_served() {
    let made = House::new().identity(1);
    let Served { directory: _directory, socket, svids, stop, serving } = Served::with(&made).await;
    let channel =
        Endpoint::from_shared(format!("unix://{}", socket.display())).unwrap().connect().await.unwrap();
    let mut stream = open(&channel).await;
    drop(svids);
    let ended = timeout(PATIENCE, stream.message()).await.unwrap();
    assert_eq!(ended.unwrap_err().code(), Code::Unavailable);
    assert_eq!(fetch_code(&channel).await, Code::Unavailable);
    // The end of whoever could stop it stops it too.
    drop(stop);
    timeout(PATIENCE, serving).await.unwrap().unwrap().unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn a_request_without_the_security_header_gets_nothing() {
    let served = Served::with(&House::new().identity(1)).await;
    let channel = served.channel().await;
    for header in [None, Some("True"), Some("1"), Some(""), Some("true, true")] {
        for method in [FETCH_SVID, FETCH_BUNDLES] {
            let refused = first(&channel, method, request(header, 0)).await.unwrap_err();
            assert_eq!(refused.code(), Code::InvalidArgument, "{header:?}");
        }
    }
    let mut twice = request(Some("true"), 0);
    twice.metadata_mut().append("workload.spiffe.io", MetadataValue::from_static("true"));
    assert_eq!(first(&channel, FETCH_SVID, twice).await.unwrap_err().code(), Code::InvalidArgument);
    assert_eq!(fetch_code(&channel).await, Code::Ok);
    served.end().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn bearer_tokens_and_unknown_methods_are_unimplemented() {
    let served = Served::with(&House::new().identity(1)).await;
    let channel = served.channel().await;
    for method in [
        "/SpiffeWorkloadAPI/FetchJWTSVID",
        "/SpiffeWorkloadAPI/FetchJWTBundles",
        "/SpiffeWorkloadAPI/ValidateJWTSVID",
        "/SpiffeWorkloadAPI/FetchX509SVID/",
        "/spiffeworkloadapi/fetchx509svid",
        "/grpc.reflection.v1.ServerReflection/ServerReflectionInfo",
        "/",
    ] {
        let refused = first(&channel, method, request(Some("true"), 0)).await.unwrap_err();
        assert_eq!(refused.code(), Code::Unimplemented, "{method}");
        assert_eq!(refused.message().contains("JWT"), method.contains("JWT"));
    }
    served.end().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_user_who_is_not_named_is_refused_whatever_he_asks() {
    let stranger = geteuid().as_raw().wrapping_add(1);
    for callers in [Callers::only([stranger]), Callers::only([])] {
        let served = Served::new(Some(House::new().identity(1).svid), callers).await;
        let channel = served.channel().await;
        for (method, header) in [(FETCH_SVID, Some("true")), (FETCH_BUNDLES, None), ("/", None)] {
            let refused = first(&channel, method, request(header, 0)).await.unwrap_err();
            assert_eq!(refused.code(), Code::PermissionDenied);
        }
        let refused = served.client().await.fetch_x509_svid().await;
        assert!(matches!(refused, Err(WorkloadApiError::PermissionDenied(_))));
        served.end().await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn another_user_cannot_reach_the_socket_and_is_refused_when_let_in() {
    const NOBODY: u32 = 65_534;
    if !geteuid().is_root() {
        println!("skipped: this test is run by the superuser only");
        return;
    }
    if !python() {
        return;
    }
    let served = Served::with(&House::new().identity(1)).await;
    let (mut child, relay) = Relay::start(&served.socket, "stay", Some(NOBODY));
    drop(relay);
    let mut said = String::new();
    child.stderr.take().unwrap().read_to_string(&mut said).await.unwrap();
    assert!(!child.wait().await.unwrap().success() && said.contains("PermissionError"), "{said}");

    let mode = |path: &Path, mode| std::fs::set_permissions(path, PermissionsExt::from_mode(mode)).unwrap();
    mode(served.directory.path(), 0o711);
    mode(served.socket.parent().unwrap(), 0o711);
    mode(&served.socket, 0o666);
    let (_child, relay) = Relay::start(&served.socket, "stay", Some(NOBODY));
    assert_eq!(fetch_code(&relayed(relay).await).await, Code::PermissionDenied);

    let named = Callers::only([NOBODY]);
    let second = served.socket.with_file_name("second.sock");
    let (stop, stopped) = watch::channel(false);
    mode(served.socket.parent().unwrap(), 0o700);
    let (fed, path) = (served.svids.subscribe(), second.clone());
    let serving = tokio::spawn(async move { serve(&path, fed, named, stopped).await });
    while !second.exists() || std::fs::metadata(&second).unwrap().permissions().mode() & 0o777 != 0o600 {
        sleep(Duration::from_millis(5)).await;
    }
    mode(served.socket.parent().unwrap(), 0o711);
    mode(&second, 0o666);
    let (_child, relay) = Relay::start(&second, "stay", Some(NOBODY));
    assert_eq!(fetch_code(&relayed(relay).await).await, Code::Ok, "a user who is named gets it");
    let channel = Endpoint::from_shared(format!("unix://{}", second.display())).unwrap();
    let superuser = fetch_code(&channel.connect().await.unwrap()).await;
    assert_eq!(superuser, Code::PermissionDenied, "and the superuser, who is not, does not");
    stop.send(true).unwrap();
    serving.await.unwrap().unwrap();
    served.end().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_connection_ends_with_the_process_that_opened_it() {
    if !python() {
        return;
    }
    let served = Served::with(&House::new().identity(1)).await;
    let probe = served.raw();
    if nix::sys::socket::getsockopt(&probe, nix::sys::socket::sockopt::PeerPidfd).is_err() {
        println!("skipped: this kernel does not say who opened a socket");
        return;
    }
    let (mut opener, relay) = Relay::start(&served.socket, "fork", None);
    let channel = relayed(relay).await;
    let mut stream = open(&channel).await;
    assert!(timeout(Duration::from_millis(300), stream.message()).await.is_err(), "it stays open");
    opener.kill().await.unwrap();
    let ended = timeout(MOMENT, stream.message()).await;
    assert!(matches!(ended, Ok(Ok(None) | Err(_))), "who inherited the connection keeps it");
    served.end().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_message_that_is_too_large_is_refused_and_others_go_on() {
    let served = Served::with(&House::new().identity(1)).await;
    let channel = served.channel().await;
    let mut other = open(&channel).await;
    for size in [MESSAGE_BYTES_MAX, 1024 * 1024] {
        let refused = first(&channel, FETCH_SVID, request(Some("true"), size)).await.unwrap_err();
        assert_eq!(refused.code(), Code::OutOfRange, "{refused}");
    }
    // Three bytes say which field it is and how long.
    let largest = request(Some("true"), MESSAGE_BYTES_MAX - 3);
    first(&channel, FETCH_SVID, largest).await.unwrap();
    assert!(timeout(Duration::from_millis(200), other.message()).await.is_err(), "it stays open");
    served.end().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_head_that_is_too_large_is_refused() {
    let served = Served::with(&House::new().identity(1)).await;
    let channel = served.channel().await;
    let mut fat = request(Some("true"), 0);
    fat.metadata_mut().insert("x-fat", "y".repeat(64 * 1024).parse().unwrap());
    assert!(first(&channel, FETCH_SVID, fat).await.is_err());
    assert_eq!(fetch_code(&served.channel().await).await, Code::Ok);
    served.end().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_connection_has_so_many_streams_and_no_more() {
    let served = Served::with(&House::new().identity(1)).await;
    let channel = served.channel().await;
    let mut streams = Vec::new();
    for _ in 0..STREAMS_MAX {
        streams.push(open(&channel).await);
    }
    assert!(timeout(Duration::from_millis(300), open(&channel)).await.is_err(), "one more waits");
    streams.pop();
    timeout(PATIENCE, open(&channel)).await.unwrap();
    served.end().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn connections_that_ask_for_nothing_give_way_and_those_that_ask_do_not() {
    let served = Served::with(&House::new().identity(1)).await;
    let mut working = Vec::new();
    for _ in 0..CONNECTIONS_MAX {
        let channel = served.channel().await;
        working.push((open(&channel).await, channel));
    }
    let refused = Endpoint::from_shared(served.endpoint()).unwrap().connect().await;
    if let Ok(channel) = refused {
        assert_ne!(fetch_code(&channel).await, Code::Ok, "one more is closed");
    }
    for (stream, _) in &mut working {
        assert!(timeout(Duration::from_millis(5), stream.message()).await.is_err(), "all stay open");
    }
    // One falls silent: its place is another's.
    drop(working.swap_remove(5).0);
    let begun = Instant::now();
    loop {
        let channel = Endpoint::from_shared(served.endpoint()).unwrap().connect().await;
        if let Ok(channel) = channel
            && fetch_code(&channel).await == Code::Ok
        {
            break;
        }
        assert!(begun.elapsed() < MOMENT, "the place is not given up");
        sleep(Duration::from_millis(20)).await;
    }
    served.end().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_thousand_idle_connections_stop_nobody() {
    const IDLE: usize = 1_000;
    let (_, hard) = getrlimit(Resource::RLIMIT_NOFILE).unwrap();
    let _ = setrlimit(Resource::RLIMIT_NOFILE, hard.min(8_192), hard);
    let served = Served::with(&House::new().identity(1)).await;
    let mut idle = Vec::new();
    for number in 0..IDLE {
        let Ok(stream) = UnixStream::connect(&served.socket) else {
            println!("skipped: this machine doesn't allow so many open files");
            return;
        };
        idle.push(stream);
        if number % 100 == 50 {
            let begun = Instant::now();
            let client = served.client().await;
            timeout(MOMENT, client.fetch_x509_svid()).await.unwrap().unwrap();
            assert!(begun.elapsed() < MOMENT);
        }
    }
    timeout(MOMENT, served.client().await.fetch_x509_svid()).await.unwrap().unwrap();
    let mut closed = 0;
    for stream in &mut idle {
        stream.set_nonblocking(true).unwrap();
        // What is there to read is the server's greeting, or the end.
        let mut bytes = [0; 4_096];
        while let Ok(count) = stream.read(&mut bytes) {
            if count == 0 {
                closed += 1;
                break;
            }
        }
    }
    assert!(closed >= IDLE - CONNECTIONS_MAX, "{closed} were closed");
    served.end().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn who_says_nothing_or_does_not_finish_is_closed_after_a_while() {
    const PREFACE: &[u8] = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n";
    let served = Served::with(&House::new().identity(1)).await;
    let silent =
        [&b""[..], &PREFACE[..5], PREFACE, &[PREFACE, &[0, 0, 0, 4, 0, 0, 0, 0, 0]].concat()].map(|sent| {
            let mut stream = served.raw();
            stream.write_all(sent).unwrap();
            tokio::task::spawn_blocking(move || {
                let begun = Instant::now();
                read_out(&mut stream);
                begun.elapsed()
            })
        });
    let channel = served.channel().await;
    let mut unfinished = tonic::client::Grpc::new(channel.clone());
    unfinished.ready().await.unwrap();
    let mut never = Request::new(tokio_stream::pending::<Bytes>());
    never.metadata_mut().insert("workload.spiffe.io", MetadataValue::from_static("true"));
    let codec = ProstCodec::<Bytes, Bytes>::default();
    let answer = unfinished.streaming(never, PathAndQuery::from_static(FETCH_SVID), codec);
    let status = timeout(PATIENCE, answer).await.unwrap().unwrap_err();
    assert_eq!(status.code(), Code::DeadlineExceeded, "{status}");
    for silent in silent {
        let took = silent.await.unwrap();
        assert!(took >= FIRST_REQUEST_TIMEOUT / 2 && took < FIRST_REQUEST_TIMEOUT * 2, "{took:?}");
    }
    served.end().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn what_is_no_grpc_gets_nothing() {
    let made = House::new().identity(1);
    let served = Served::with(&made).await;
    let garbage: Vec<u8> =
        (0..4_096u32).map(|number| (number.wrapping_mul(2_654_435_761) >> 24) as u8).collect();
    let http1 = format!("POST {FETCH_SVID} HTTP/1.1\r\nhost: x\r\nworkload.spiffe.io: true\r\n\r\n");
    let upgrade = "GET / HTTP/1.1\r\nhost: x\r\nconnection: upgrade, http2-settings\r\nupgrade: h2c\r\n\
                   http2-settings: AAMAAABkAAQAAP__\r\n\r\n";
    let tls = [0x16, 3, 1, 0, 200, 1, 0, 0, 196, 3, 3];
    for sent in [&garbage, http1.as_bytes(), upgrade.as_bytes(), &tls] {
        let mut stream = served.raw();
        let begun = Instant::now();
        let _ = stream.write_all(sent);
        stream.shutdown(std::net::Shutdown::Write).unwrap();
        let got = tokio::task::spawn_blocking(move || read_out(&mut stream)).await.unwrap();
        assert!(begun.elapsed() < MOMENT);
        assert!(got.len() < 200, "nothing but a greeting and a goodbye");
        assert!(!got.windows(16).any(|part| made.key.windows(16).any(|key| key == part)));
    }
    assert_eq!(fetch_code(&served.channel().await).await, Code::Ok);
    served.end().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn the_socket_is_private_and_goes_with_the_server() {
    let served = Served::with(&House::new().identity(1)).await;
    let mode = |path: &Path| std::fs::metadata(path).unwrap().permissions().mode() & 0o777;
    let begun = Instant::now();
    // A listener answers from when it is bound, an instant before its mode is set.
    while mode(&served.socket) != 0o600 {
        assert!(begun.elapsed() < MOMENT);
        sleep(Duration::from_millis(1)).await;
    }
    assert_eq!(mode(served.socket.parent().unwrap()), 0o700);
    let channel = served.channel().await;
    let mut stream = open(&channel).await;
    served.stop.send(true).unwrap();
    let ended = timeout(MOMENT, stream.message()).await.unwrap();
    assert_eq!(ended.unwrap_err().code(), Code::Unavailable, "clients ask again");
    timeout(MOMENT, served.serving).await.unwrap().unwrap().unwrap();
    assert!(!served.socket.exists());
}

#[tokio::test(flavor = "multi_thread")]
async fn the_dead_are_replaced_and_the_living_are_not() {
    let made = House::new().identity(1);
    let served = Served::with(&made).await;
    let again = |path: PathBuf| {
        let (fed, stopped) = (served.svids.subscribe(), served.stop.subscribe());
        async move { timeout(MOMENT, serve(&path, fed, Callers::own(), stopped)).await }
    };
    let taken = again(served.socket.clone()).await.unwrap();
    assert!(matches!(taken, Err(WorkloadError::Taken { .. })));
    assert_eq!(fetch_code(&served.channel().await).await, Code::Ok, "it is not disturbed");

    let dead = served.socket.with_file_name("dead.sock");
    drop(std::os::unix::net::UnixListener::bind(&dead).unwrap());
    assert!(std::fs::symlink_metadata(&dead).unwrap().file_type().is_socket());
    assert!(again(dead.clone()).await.is_err(), "it serves until its time is over");
    assert!(!dead.exists(), "and leaves nothing behind");

    let file = served.socket.with_file_name("file");
    std::fs::write(&file, "precious").unwrap();
    assert!(matches!(again(file.clone()).await.unwrap(), Err(WorkloadError::NotASocket { .. })));
    assert_eq!(std::fs::read(&file).unwrap(), b"precious");
    let link = served.socket.with_file_name("link");
    std::os::unix::fs::symlink(&file, &link).unwrap();
    assert!(matches!(again(link).await.unwrap(), Err(WorkloadError::NotASocket { .. })));

    let open = served.directory.path().join("open");
    std::fs::create_dir(&open).unwrap();
    std::fs::set_permissions(&open, PermissionsExt::from_mode(0o755)).unwrap();
    assert!(matches!(again(open.join("s")).await.unwrap(), Err(WorkloadError::Directory(_))));
    if geteuid().is_root() {
        let foreign = served.directory.path().join("foreign");
        std::fs::create_dir(&foreign).unwrap();
        std::fs::set_permissions(&foreign, PermissionsExt::from_mode(0o700)).unwrap();
        std::os::unix::fs::chown(&foreign, Some(65_534), None).unwrap();
        let refused = again(foreign.join("s")).await.unwrap();
        assert!(matches!(refused, Err(WorkloadError::ForeignDirectory { .. })));
    }
    served.end().await;
}

#[test]
fn an_identity_whose_parts_do_not_belong_together_cannot_be_made() {
    let (house, stranger) = (House::new(), House::of("elsewhere.test", 90));
    let made = house.identity(1);
    let id = "spiffe://house.test/agent/one";
    let agents = house.agents.certificate().to_vec();
    let chain = vec![made.leaf.clone(), agents.clone()];
    let new = |id: &str, chain: &[Vec<u8>], key: &[u8], bundle: &[Vec<u8>]| {
        Svid::new(id, chain.to_vec(), Zeroizing::new(key.to_vec()), bundle.to_vec())
    };
    let bundle = std::slice::from_ref(&agents);
    assert!(new(id, &chain, &made.key, bundle).is_ok());
    let elsewhere = stranger.agents.certificate().to_vec();
    for (refused, why) in [
        (new("spiffe://house.test/agent/two", &chain, &made.key, bundle), "another id"),
        (new("https://house.test/agent/one", &chain, &made.key, bundle), "no SPIFFE ID"),
        (new(id, &[], &made.key, bundle), "no leaf"),
        (new(id, bundle, &made.key, bundle), "an authority for a leaf"),
        (new(id, &[chain[0].clone(), chain[0].clone()], &made.key, bundle), "a leaf for an authority"),
        (new(id, &[chain.clone(), vec![agents.clone(); 3]].concat(), &made.key, bundle), "a long chain"),
        (new(id, &chain, &[], bundle), "no key"),
        (new(id, &chain, &[1; 5_000], bundle), "a large key"),
        (new(id, &chain, &made.key, &[]), "no bundle"),
        (new(id, &chain, &made.key, &vec![agents.clone(); BUNDLE_MAX + 1]), "a large bundle"),
        (new(id, &chain, &made.key, &[elsewhere]), "another trust domain"),
    ] {
        assert!(refused.is_err(), "{why}");
    }
    let printed = format!("{:?}", made.svid);
    assert_eq!(printed, "Svid(spiffe://house.test/agent/one, 2 authorities)");
}
