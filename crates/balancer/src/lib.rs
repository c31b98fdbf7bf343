//! The balancer: spreads connections over the units of a domain and carries their bytes through untouched.
//!
//! Owns: which backend gets a connection, and which backends are well. It terminates no TLS, holds no key,
//! reads no byte and adds none, so nobody need trust it: the worst that it can do is to break connections.
//!
//! INVARIANT: bytes arrive as they were sent, in order, or the connection ends. A route never holds more than
//! [`CONNECTIONS_MAX`] connections.

mod backend;
mod config;
mod relay;

use std::io;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use tokio::net::{TcpListener, TcpStream};
use tokio::sync::{Semaphore, watch};
use tokio::task::JoinSet;
use tokio::time::timeout;

use backend::Backends;
pub use config::{Config, RouteConfig};

/// Connections that a route carries at the same time; one more is closed at once.
pub const CONNECTIONS_MAX: usize = 1_024;
/// How long one backend may take to accept a connection.
pub const CONNECT_TIME_MAX: Duration = Duration::from_millis(500);
/// How long a connection may carry no byte in either direction.
pub const IDLE_TIME_MAX: Duration = Duration::from_secs(300);
/// How often each backend is asked whether it accepts connections.
pub const HEALTH_INTERVAL: Duration = Duration::from_millis(250);

/// Why the balancer couldn't start.
#[derive(Debug, thiserror::Error)]
pub enum BalancerError {
    /// The configuration file couldn't be read.
    #[error("the configuration could not be read")]
    Read(#[source] io::Error),
    /// The configuration isn't what it should be.
    #[error("the configuration is not valid: {0}")]
    Invalid(String),
    /// An address couldn't be listened on.
    #[error("route {route} could not listen on {listen}")]
    Listen {
        /// Name of the route.
        route: String,
        /// Its address.
        listen: SocketAddr,
        /// Why.
        #[source]
        source: io::Error,
    },
}

/// Routes that listen and wait to be run.
#[derive(Debug)]
pub struct Balancer {
    routes: Vec<(TcpListener, Arc<Route>)>,
}

#[derive(Debug)]
struct Route {
    name: String,
    backends: Backends,
    free: Arc<Semaphore>,
}

impl Balancer {
    /// Listens on the address of every route.
    ///
    /// # Errors
    /// [`BalancerError::Invalid`] or [`BalancerError::Listen`].
    pub async fn bind(routes: Vec<RouteConfig>) -> Result<Self, BalancerError> {
        config::check(&routes)?;
        let mut bound = Vec::with_capacity(routes.len());
        for route in routes {
            let listener = TcpListener::bind(route.listen).await.map_err(|source| BalancerError::Listen {
                route: route.name.clone(),
                listen: route.listen,
                source,
            })?;
            let route = Route {
                name: route.name,
                backends: Backends::new(&route.backends),
                free: Arc::new(Semaphore::new(CONNECTIONS_MAX)),
            };
            bound.push((listener, Arc::new(route)));
        }
        Ok(Self { routes: bound })
    }

    /// The addresses that are listened on, in the order of the routes.
    pub fn addresses(&self) -> impl Iterator<Item = SocketAddr> {
        self.routes.iter().filter_map(|(listener, _)| listener.local_addr().ok())
    }

    /// Carries connections until `stop` turns true or its sender is gone; then all end at once.
    pub async fn run(self, mut stop: watch::Receiver<bool>) {
        let mut work = JoinSet::new();
        for (listener, route) in self.routes {
            for index in 0..route.backends.count() {
                let route = Arc::clone(&route);
                work.spawn(async move { route.backends.check_for_ever(index, &route.name).await });
            }
            work.spawn(serve(listener, route));
        }
        // Fails only when the sender is gone.
        let _ = stop.wait_for(|stop| *stop).await;
        work.shutdown().await;
    }
}

/// Listens on the address of every route and carries connections until `stop` turns true or its sender is
/// gone.
///
/// # Errors
/// As [`Balancer::bind`].
pub async fn run(routes: Vec<RouteConfig>, stop: watch::Receiver<bool>) -> Result<(), BalancerError> {
    Balancer::bind(routes).await?.run(stop).await;
    Ok(())
}

async fn serve(listener: TcpListener, route: Arc<Route>) {
    // Dropped with this task, and every connection with it.
    let mut connections = JoinSet::new();
    loop {
        tokio::select! {
            accepted = listener.accept() => match accepted {
                Ok((client, _)) => match Arc::clone(&route.free).try_acquire_owned() {
                    Ok(place) => {
                        let route = Arc::clone(&route);
                        connections.spawn(async move {
                            carry(client, &route).await;
                            drop(place);
                        });
                    }
                    Err(_) => tracing::warn!(route = route.name, "full: a connection was closed"),
                },
                Err(error) => {
                    // No file descriptor is left, most likely: to try at once would only burn time.
                    tracing::warn!(route = route.name, %error, "accept failed");
                    tokio::time::sleep(Duration::from_millis(10)).await;
                }
            },
            Some(_) = connections.join_next() => {}
        }
    }
}

/// Carries one connection to a backend that takes it.
async fn carry(client: TcpStream, route: &Route) {
    for index in route.backends.order() {
        let Some(backend) = route.backends.get(index) else { continue };
        let _in_flight = backend.count_in();
        match timeout(CONNECT_TIME_MAX, TcpStream::connect(backend.address())).await {
            Ok(Ok(server)) => {
                relay::relay(client, server, IDLE_TIME_MAX).await;
                return;
            }
            Ok(Err(_)) | Err(_) => backend.failed(&route.name),
        }
    }
    tracing::warn!(route = route.name, "no backend takes connections");
}
