//! Carries the bytes of one connection both ways until one side ends, fails, or both fall silent for too
//! long.
//!
//! INVARIANT: no byte is looked at.

use std::io;
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::task::{Context, Poll};
use std::time::Duration;

use tokio::io::{AsyncRead, AsyncWrite, ReadBuf, copy_bidirectional};
use tokio::net::TcpStream;
use tokio::time::sleep;

/// A stream that counts how often bytes went through it.
struct Counted {
    stream: TcpStream,
    moved: Arc<AtomicU64>,
}

impl Counted {
    fn count<T>(&self, result: &Poll<io::Result<T>>) {
        if let Poll::Ready(Ok(_)) = result {
            self.moved.fetch_add(1, Ordering::Relaxed);
        }
    }
}

impl AsyncRead for Counted {
    fn poll_read(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        let result = Pin::new(&mut self.stream).poll_read(context, buffer);
        self.count(&result);
        result
    }
}

impl AsyncWrite for Counted {
    fn poll_write(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<io::Result<usize>> {
        let result = Pin::new(&mut self.stream).poll_write(context, bytes);
        self.count(&result);
        result
    }

    fn poll_flush(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_flush(context)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_shutdown(context)
    }
}

/// Carries bytes between two streams until both directions end, one fails, or nothing moves for the idle
/// time.
pub(crate) async fn relay(client: TcpStream, server: TcpStream, idle_time_max: Duration) {
    // Fails only on a connection that is gone, which the first read finds out too.
    let _ = (client.set_nodelay(true), server.set_nodelay(true));
    let moved = Arc::new(AtomicU64::new(0));
    let mut client = Counted { stream: client, moved: Arc::clone(&moved) };
    let mut server = Counted { stream: server, moved: Arc::clone(&moved) };
    tokio::select! {
        _ = copy_bidirectional(&mut client, &mut server) => {}
        () = silence(&moved, idle_time_max) => {}
    }
}

/// Returns when nothing has moved for the idle time (at the latest after twice that).
async fn silence(moved: &AtomicU64, idle_time_max: Duration) {
    loop {
        let before = moved.load(Ordering::Relaxed);
        sleep(idle_time_max).await;
        if moved.load(Ordering::Relaxed) == before {
            return;
        }
    }
}

#[cfg(test)]
mod tests {
    use tokio::io::AsyncReadExt as _;
    use tokio::net::TcpListener;

    use super::*;

    async fn pair() -> (TcpStream, TcpStream) {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let (near, far) = tokio::join!(TcpStream::connect(listener.local_addr().unwrap()), listener.accept());
        (near.unwrap(), far.unwrap().0)
    }

    #[tokio::test]
    async fn a_silent_connection_is_ended() {
        let (mut user, client) = pair().await;
        let (server, _unit) = pair().await;
        let relaying = tokio::spawn(relay(client, server, Duration::from_millis(20)));
        let mut rest = Vec::new();
        user.read_to_end(&mut rest).await.unwrap();
        relaying.await.unwrap();
        assert_eq!(rest, b"");
    }
}
