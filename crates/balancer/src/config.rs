//! Which routes there are: read from a JSON file, and refused as a whole when anything in it is wrong.
//!
//! INVARIANT: a route has a name, an address of its own and at least one backend.

use std::collections::BTreeSet;
use std::net::SocketAddr;
use std::path::Path;

use serde::{Deserialize, Serialize};

use crate::BalancerError;

/// Routes, and backends of one route, at most.
const ENTRIES_MAX: usize = 64;
/// Size of a configuration file, in bytes.
const FILE_BYTES_MAX: u64 = 1 << 20;

/// One listening address and the backends behind it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct RouteConfig {
    /// Name, for the log: `market`.
    pub name: String,
    /// Where to listen.
    pub listen: SocketAddr,
    /// Where the units are.
    pub backends: Vec<SocketAddr>,
}

/// The configuration file: `{"routes": [{"name": …, "listen": …, "backends": […]}]}`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Config {
    /// The routes.
    pub routes: Vec<RouteConfig>,
}

impl Config {
    /// Reads and checks a configuration file.
    ///
    /// # Errors
    /// [`BalancerError::Read`] or [`BalancerError::Invalid`].
    pub fn read(path: &Path) -> Result<Self, BalancerError> {
        let length = std::fs::metadata(path).map_err(BalancerError::Read)?.len();
        if length > FILE_BYTES_MAX {
            return Err(BalancerError::Invalid(format!("it has more than {FILE_BYTES_MAX} bytes")));
        }
        let text = std::fs::read_to_string(path).map_err(BalancerError::Read)?;
        let config: Self =
            serde_json::from_str(&text).map_err(|error| BalancerError::Invalid(error.to_string()))?;
        check(&config.routes)?;
        Ok(config)
    }
}

pub(crate) fn check(routes: &[RouteConfig]) -> Result<(), BalancerError> {
    let invalid = |reason: String| Err(BalancerError::Invalid(reason));
    if routes.is_empty() || routes.len() > ENTRIES_MAX {
        return invalid(format!("there are 1 to {ENTRIES_MAX} routes"));
    }
    let mut taken = BTreeSet::new();
    for route in routes {
        if route.backends.is_empty() || route.backends.len() > ENTRIES_MAX {
            return invalid(format!("route {} has 1 to {ENTRIES_MAX} backends", route.name));
        }
        // Port 0 means any that is free.
        if route.listen.port() != 0 && !taken.insert(route.listen) {
            return invalid(format!("two routes listen on {}", route.listen));
        }
        if route.backends.contains(&route.listen) {
            return invalid(format!("route {} leads to itself", route.name));
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(text: &str) -> Result<Config, BalancerError> {
        let file = tempfile::NamedTempFile::new().unwrap();
        std::fs::write(file.path(), text).unwrap();
        Config::read(file.path())
    }

    #[test]
    fn a_good_file_is_read() {
        let config = read(
            r#"{"routes": [{"name": "market", "listen": "127.0.0.1:7000", "backends": ["127.0.0.1:7001", "127.0.0.1:7002"]}]}"#,
        );
        assert_eq!(config.unwrap().routes[0].backends.len(), 2);
    }

    #[test]
    fn anything_wrong_refuses_the_whole_file() {
        let route = r#"{"name": "a", "listen": "127.0.0.1:7000", "backends": ["127.0.0.1:7001"]}"#;
        for text in [
            String::new(),
            r#"{"routes": []}"#.into(),
            format!(r#"{{"routes": [{route}, {route}]}}"#),
            format!(r#"{{"routes": [{route}], "key": "secret"}}"#),
            format!(r#"{{"routes": [{}]}}"#, route.replace("7001", "7000")),
            format!(r#"{{"routes": [{}]}}"#, route.replace("\"127.0.0.1:7001\"", "")),
            format!(r#"{{"routes": [{}]}}"#, route.replace("127.0.0.1:7001", "somewhere")),
        ] {
            assert!(matches!(read(&text), Err(BalancerError::Invalid(_))), "{text}");
        }
        assert!(matches!(Config::read(Path::new("/nonexistent")), Err(BalancerError::Read(_))));
    }
}
