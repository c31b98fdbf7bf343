//! SPIFFE IDs of the one strict form, and the class that follows from an id's path.
//!
//! An id is `spiffe://<trust domain>/<segment>/…`: lower case, no empty segment, no `.` or `..`, no percent
//! signs, at most 255 bytes (stricter than the SPIFFE-ID standard, section 2). One id has one spelling, so
//! ids are compared as text.
//!
//! INVARIANT: what [`SpiffeId::parse`] accepts is printed back byte for byte.

use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Serialize};

use crate::IdentityError;

const SCHEME: &str = "spiffe://";

/// Longest id, in bytes.
pub const ID_BYTES_MAX: usize = 255;

/// The name of a peer, the same on its certificate, in grants and in the log.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct SpiffeId {
    text: String,
    trust_domain_end: usize,
}

impl SpiffeId {
    /// Parses the one spelling.
    ///
    /// # Errors
    /// [`IdentityError::SpiffeId`] when the text is anything else.
    pub fn parse(text: &str) -> Result<Self, IdentityError> {
        if text.len() > ID_BYTES_MAX {
            return Err(IdentityError::SpiffeId("longer than 255 bytes"));
        }
        let rest =
            text.strip_prefix(SCHEME).ok_or(IdentityError::SpiffeId("it must begin with spiffe://"))?;
        let (trust_domain, path) = rest.split_once('/').ok_or(IdentityError::SpiffeId("it has no path"))?;
        check_segment(trust_domain)?;
        if trust_domain.split('.').any(str::is_empty) {
            return Err(IdentityError::SpiffeId("the trust domain has an empty label"));
        }
        path.split('/').try_for_each(check_segment)?;
        Ok(Self { text: text.to_owned(), trust_domain_end: SCHEME.len() + trust_domain.len() })
    }

    /// The id of management.
    ///
    /// # Errors
    /// [`IdentityError::SpiffeId`] when the trust domain is not well formed; the same for the functions that
    /// follow.
    pub fn management(trust_domain: &str) -> Result<Self, IdentityError> {
        Self::parse(&format!("{SCHEME}{trust_domain}/management"))
    }

    /// The id of an agent.
    ///
    /// # Errors
    /// As [`SpiffeId::management`].
    pub fn agent(trust_domain: &str, name: &str) -> Result<Self, IdentityError> {
        Self::parse(&format!("{SCHEME}{trust_domain}/agent/{name}")).and_then(one_of_a_class)
    }

    /// The id of the `number`th unit of a data domain.
    ///
    /// # Errors
    /// As [`SpiffeId::management`]; [`IdentityError::Class`] when there is no such domain.
    pub fn unit(trust_domain: &str, domain: &str, number: u32) -> Result<Self, IdentityError> {
        Self::parse(&format!("{SCHEME}{trust_domain}/unit/{domain}/{number}")).and_then(one_of_a_class)
    }

    /// The id of the `number`th desk.
    ///
    /// # Errors
    /// As [`SpiffeId::management`].
    pub fn desk(trust_domain: &str, number: u32) -> Result<Self, IdentityError> {
        Self::parse(&format!("{SCHEME}{trust_domain}/desk/{number}")).and_then(one_of_a_class)
    }

    /// The id of a person who operates the installation.
    ///
    /// # Errors
    /// As [`SpiffeId::management`].
    pub fn operator(trust_domain: &str, name: &str) -> Result<Self, IdentityError> {
        Self::parse(&format!("{SCHEME}{trust_domain}/operator/{name}")).and_then(one_of_a_class)
    }

    /// The whole id.
    #[must_use]
    pub fn as_str(&self) -> &str {
        &self.text
    }

    /// The installation that the id belongs to.
    #[must_use]
    pub fn trust_domain(&self) -> &str {
        self.text.get(SCHEME.len()..self.trust_domain_end).unwrap_or_default()
    }

    /// What follows the trust domain, with its leading slash.
    #[must_use]
    pub fn path(&self) -> &str {
        self.text.get(self.trust_domain_end..).unwrap_or_default()
    }

    /// The class that follows from the path; `None` when no class has such a path.
    #[must_use]
    pub fn class(&self) -> Option<PeerClass> {
        PeerClass::of(self)
    }

    /// The last segment: an agent's or operator's name, a unit's or desk's number.
    #[must_use]
    pub fn name(&self) -> &str {
        self.text.rsplit('/').next().unwrap_or_default()
    }
}

impl fmt::Display for SpiffeId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.text)
    }
}

impl FromStr for SpiffeId {
    type Err = IdentityError;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        Self::parse(text)
    }
}

impl TryFrom<String> for SpiffeId {
    type Error = IdentityError;

    fn try_from(text: String) -> Result<Self, Self::Error> {
        Self::parse(&text)
    }
}

impl From<SpiffeId> for String {
    fn from(id: SpiffeId) -> Self {
        id.text
    }
}

/// Whether the text can be a trust domain: what stands between `spiffe://` and the first slash of an id.
#[must_use]
pub fn is_trust_domain(text: &str) -> bool {
    SpiffeId::management(text).is_ok_and(|id| id.trust_domain() == text)
}

fn check_segment(segment: &str) -> Result<(), IdentityError> {
    let allowed =
        |byte: u8| byte.is_ascii_lowercase() || byte.is_ascii_digit() || byte == b'.' || byte == b'-';
    match segment {
        "" => Err(IdentityError::SpiffeId("a segment is empty")),
        "." | ".." => Err(IdentityError::SpiffeId("a segment is . or ..")),
        _ if segment.bytes().all(allowed) => Ok(()),
        _ => Err(IdentityError::SpiffeId("only a-z, 0-9, '.' and '-' are allowed")),
    }
}

/// A name that holds a slash would be parsed as more segments; such an id is of no class and is refused here.
fn one_of_a_class(id: SpiffeId) -> Result<SpiffeId, IdentityError> {
    match PeerClass::of(&id) {
        Some(_) => Ok(id),
        None => Err(IdentityError::Class { id, class: "peers" }),
    }
}

/// A class of peers. Each has its own certificate authority; a listener accepts one class only.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum PeerClass {
    /// Management: `/management`.
    Management,
    /// Agents: `/agent/<name>`.
    Agents,
    /// People: `/operator/<name>`.
    Operators,
    /// The market-access gateway: `/desk/<n>`.
    Desk,
    /// Units of market data: `/unit/market/<n>`.
    Market,
    /// Units of news: `/unit/news/<n>`.
    News,
    /// Units of research: `/unit/research/<n>`.
    Research,
    /// Units of the ledger: `/unit/ledger/<n>`.
    Ledger,
}

impl PeerClass {
    /// Every class.
    pub const ALL: [Self; 8] = [
        Self::Management,
        Self::Agents,
        Self::Operators,
        Self::Desk,
        Self::Market,
        Self::News,
        Self::Research,
        Self::Ledger,
    ];

    /// The class's one spelling.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Management => "management",
            Self::Agents => "agents",
            Self::Operators => "operators",
            Self::Desk => "desk",
            Self::Market => "market",
            Self::News => "news",
            Self::Research => "research",
            Self::Ledger => "ledger",
        }
    }

    /// Parses the one spelling; anything else is `None`.
    #[must_use]
    pub fn parse(text: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|class| class.as_str() == text)
    }

    /// The class that an id's path says; `None` when no class has such a path.
    #[must_use]
    pub fn of(id: &SpiffeId) -> Option<Self> {
        let mut segments = id.path().split('/').skip(1);
        let shape = (segments.next()?, segments.next(), segments.next(), segments.next());
        match shape {
            ("management", None, None, None) => Some(Self::Management),
            ("agent", Some(_), None, None) => Some(Self::Agents),
            ("operator", Some(_), None, None) => Some(Self::Operators),
            ("desk", Some(number), None, None) if is_number(number) => Some(Self::Desk),
            ("unit", Some(domain), Some(number), None) if is_number(number) => match domain {
                "market" => Some(Self::Market),
                "news" => Some(Self::News),
                "research" => Some(Self::Research),
                "ledger" => Some(Self::Ledger),
                _ => None,
            },
            _ => None,
        }
    }
}

impl fmt::Display for PeerClass {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

/// A decimal number with one spelling: no sign, no leading zero.
fn is_number(text: &str) -> bool {
    text.parse::<u32>().is_ok_and(|number| number.to_string() == text)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn only_the_strict_form_is_an_id() {
        for text in [
            "spiffe://home.test/management",
            "spiffe://home.test/agent/agent-1",
            "spiffe://h/unit/market/1",
            "spiffe://home-1.test/a/b/c.d",
        ] {
            assert_eq!(SpiffeId::parse(text).unwrap().to_string(), text);
        }
        for text in [
            "",
            "spiffe://",
            "spiffe:///management",
            "spiffe://home.test",
            "spiffe://home.test/",
            "spiffe://home.test/agent/",
            "spiffe://home.test//agent",
            "spiffe://home.test/agent/../management",
            "spiffe://home.test/./management",
            "spiffe://Home.test/management",
            "spiffe://home..test/management",
            "spiffe://.home/management",
            "spiffe://home.test:80/management",
            "spiffe://user@home.test/management",
            "spiffe://home.test/agent/A",
            "spiffe://home.test/agent/a%2e",
            "spiffe://home.test/agent/a b",
            "spiffe://home.test/agent/a?x",
            "spiffe://home.test/agent/a#x",
            "spiffe://home.test/agent/ä",
            "spiffe://home.test/agent/a\0",
            "SPIFFE://home.test/management",
            "https://home.test/management",
            " spiffe://home.test/management",
        ] {
            assert!(SpiffeId::parse(text).is_err(), "{text:?} was accepted");
        }
        let longest = format!("spiffe://h/agent/{}", "a".repeat(ID_BYTES_MAX - 17));
        assert!(SpiffeId::parse(&longest).is_ok());
        assert!(SpiffeId::parse(&format!("{longest}a")).is_err());
    }

    #[test]
    fn the_class_follows_from_the_path_alone() {
        let class = |path: &str| SpiffeId::parse(&format!("spiffe://h{path}")).unwrap().class();
        assert_eq!(class("/management"), Some(PeerClass::Management));
        assert_eq!(class("/agent/agent-1"), Some(PeerClass::Agents));
        assert_eq!(class("/operator/ann"), Some(PeerClass::Operators));
        assert_eq!(class("/desk/1"), Some(PeerClass::Desk));
        assert_eq!(class("/unit/market/2"), Some(PeerClass::Market));
        assert_eq!(class("/unit/news/1"), Some(PeerClass::News));
        assert_eq!(class("/unit/research/1"), Some(PeerClass::Research));
        assert_eq!(class("/unit/ledger/1"), Some(PeerClass::Ledger));
        for path in [
            "/management/1",
            "/agent",
            "/agent/a/b",
            "/unit/market",
            "/unit/other/1",
            "/unit/market/one",
            "/unit/market/01",
            "/unit/market/1/2",
            "/desk/a",
            "/agents/a",
        ] {
            assert_eq!(class(path), None, "{path}");
        }
        for class in PeerClass::ALL {
            assert_eq!(PeerClass::parse(class.as_str()), Some(class));
        }
    }

    #[test]
    fn a_name_cannot_smuggle_a_segment_into_an_id() {
        assert!(SpiffeId::agent("h", "a/b").is_err());
        assert!(SpiffeId::agent("h/management#", "a").is_err());
        assert!(SpiffeId::unit("h", "other", 1).is_err());
        assert!(is_trust_domain("home.test"));
        assert!(!is_trust_domain("home/test"));
        assert!(!is_trust_domain(""));
    }

    proptest! {
        #[test]
        fn what_is_accepted_is_printed_back(text in "(spiffe://)?[a-z.%/A-Z\\PC-]{0,40}") {
            if let Ok(id) = SpiffeId::parse(&text) {
                prop_assert_eq!(id.to_string(), text.clone());
                prop_assert_eq!(format!("spiffe://{}{}", id.trust_domain(), id.path()), text);
            }
        }
    }
}
