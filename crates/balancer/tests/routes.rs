//! Real connections through a real balancer, with backends that die.

#![allow(
    clippy::unwrap_used,
    clippy::panic,
    clippy::indexing_slicing,
    reason = "a test's helpers are test code too"
)]

use std::net::SocketAddr;
use std::time::{Duration, Instant};

use balancer::{Balancer, CONNECTIONS_MAX, RouteConfig};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::watch;
use tokio::task::JoinHandle;

/// A backend that says its name and then says everything back.
async fn backend(name: u8, at: SocketAddr) -> (SocketAddr, JoinHandle<()>) {
    let listener = TcpListener::bind(at).await.unwrap();
    let address = listener.local_addr().unwrap();
    let serving = tokio::spawn(async move {
        let mut connections = tokio::task::JoinSet::new();
        while let Ok((mut stream, _)) = listener.accept().await {
            connections.spawn(async move {
                if stream.write_all(&[name]).await.is_ok() {
                    let (mut reader, mut writer) = stream.split();
                    let _ = tokio::io::copy(&mut reader, &mut writer).await;
                }
            });
        }
    });
    (address, serving)
}

fn any() -> SocketAddr {
    "127.0.0.1:0".parse().unwrap()
}

async fn balance(backends: Vec<SocketAddr>) -> (SocketAddr, watch::Sender<bool>, JoinHandle<()>) {
    let route = RouteConfig { name: "test".into(), listen: any(), backends };
    let balancer = Balancer::bind(vec![route]).await.unwrap();
    let address = balancer.addresses().next().unwrap();
    let (stop, stopped) = watch::channel(false);
    (address, stop, tokio::spawn(balancer.run(stopped)))
}

async fn who_answers(address: SocketAddr) -> Option<u8> {
    TcpStream::connect(address).await.ok()?.read_u8().await.ok()
}

#[tokio::test]
async fn bytes_pass_untouched_both_ways() {
    let (backend, _serving) = backend(b'a', any()).await;
    let (address, _stop, _running) = balance(vec![backend]).await;
    let mut stream = TcpStream::connect(address).await.unwrap();
    assert_eq!(stream.read_u8().await.unwrap(), b'a');
    let sent: Vec<u8> =
        (0..1_000_003_u32).map(|number| (number.wrapping_mul(2_654_435_761) >> 24) as u8).collect();
    let (mut reader, mut writer) = stream.into_split();
    let expected = sent.clone();
    let writing = tokio::spawn(async move {
        writer.write_all(&sent).await.unwrap();
        writer.shutdown().await.unwrap();
    });
    let mut received = Vec::new();
    reader.read_to_end(&mut received).await.unwrap();
    writing.await.unwrap();
    assert!(received == expected, "{} bytes came back", received.len());
}

#[tokio::test]
async fn a_dead_backend_costs_nobody_a_connection_and_comes_back() {
    let (first, first_serving) = backend(b'a', any()).await;
    let (second, _second_serving) = backend(b'b', any()).await;
    let (address, _stop, _running) = balance(vec![first, second]).await;
    let mut seen = Vec::new();
    while !(seen.contains(&b'a') && seen.contains(&b'b')) {
        seen.push(who_answers(address).await.unwrap());
        assert!(seen.len() < 1_000, "only one of two backends gets connections");
    }
    first_serving.abort();
    let _ = first_serving.await;
    for _ in 0..50 {
        assert_eq!(who_answers(address).await, Some(b'b'));
    }
    let (_, _serving) = backend(b'a', first).await;
    let begun = Instant::now();
    while who_answers(address).await != Some(b'a') {
        assert!(begun.elapsed() < Duration::from_secs(10), "the backend never came back");
    }
}

#[tokio::test]
async fn with_no_backend_left_a_connection_is_closed() {
    let (backend, serving) = backend(b'a', any()).await;
    serving.abort();
    let _ = serving.await;
    let (address, _stop, _running) = balance(vec![backend]).await;
    assert_eq!(who_answers(address).await, None);
}

#[tokio::test]
async fn one_connection_too_many_is_closed_and_the_others_live() {
    let (backend, _serving) = backend(b'a', any()).await;
    let (address, _stop, _running) = balance(vec![backend]).await;
    let mut open = Vec::new();
    for _ in 0..CONNECTIONS_MAX {
        let mut stream = TcpStream::connect(address).await.unwrap();
        if stream.read_u8().await.is_err() {
            println!("skipped: this machine doesn't allow so many open files");
            return;
        }
        open.push(stream);
    }
    assert_eq!(who_answers(address).await, None);
    let first = &mut open[0];
    first.write_all(b"x").await.unwrap();
    assert_eq!(first.read_u8().await.unwrap(), b'x');
}

#[tokio::test]
async fn stopping_ends_every_connection() {
    let (backend, _serving) = backend(b'a', any()).await;
    let (address, stop, running) = balance(vec![backend]).await;
    let mut stream = TcpStream::connect(address).await.unwrap();
    assert_eq!(stream.read_u8().await.unwrap(), b'a');
    stop.send(true).unwrap();
    running.await.unwrap();
    assert!(stream.read_u8().await.is_err());
    assert!(TcpStream::connect(address).await.is_err());
}
