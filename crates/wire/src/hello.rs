//! The first bytes of a connection: whether a whole ClientHello is there that does not offer TLS 1.3.
//!
//! The TLS library refuses such a hello as well, but for some of them (those of TLS 1.1 and older, which know no list of
//! signature algorithms) with an alert that speaks of something else. Whoever comes with an old version is to be told that.

/// How many bytes are looked at. A hello of an old version is far smaller.
pub(crate) const LOOKED_AT: usize = 4_096;

/// A fatal `protocol_version` alert.
pub(crate) const TOO_OLD: [u8; 7] = [0x15, 0x03, 0x01, 0x00, 0x02, 0x02, 70];

const HANDSHAKE: u8 = 22;
const CLIENT_HELLO: u8 = 1;
const SUPPORTED_VERSIONS: usize = 43;
const TLS13: [u8; 2] = [3, 4];

/// Whether a whole hello is there, and TLS 1.3 is not among what it offers (RFC 8446, sections 4.1.2 and 4.2.1). What cannot
/// be read is the TLS library's to refuse.
pub(crate) fn is_too_old(bytes: &[u8]) -> bool {
    offers_tls13(bytes) == Some(false)
}

fn offers_tls13(bytes: &[u8]) -> Option<bool> {
    let mut record = Reader(bytes);
    if record.take(1)? != [HANDSHAKE] {
        return None;
    }
    record.take(2)?;
    let mut message = record.vector(2)?;
    if message.take(1)? != [CLIENT_HELLO] {
        return None;
    }
    let mut hello = message.vector(3)?;
    hello.take(2 + 32)?;
    hello.vector(1)?;
    hello.vector(2)?;
    hello.vector(1)?;
    if hello.0.is_empty() {
        return Some(false);
    }
    let mut extensions = hello.vector(2)?;
    while !extensions.0.is_empty() {
        let kind = extensions.number(2)?;
        let mut content = extensions.vector(2)?;
        if kind == SUPPORTED_VERSIONS {
            return Some(content.vector(1)?.0.chunks(2).any(|version| version == TLS13));
        }
    }
    Some(false)
}

/// Reads from the front.
struct Reader<'a>(&'a [u8]);

impl<'a> Reader<'a> {
    fn take(&mut self, count: usize) -> Option<&'a [u8]> {
        let (taken, rest) = self.0.split_at_checked(count)?;
        self.0 = rest;
        Some(taken)
    }

    fn number(&mut self, bytes: usize) -> Option<usize> {
        Some(self.take(bytes)?.iter().fold(0, |number, byte| number << 8 | usize::from(*byte)))
    }

    /// What follows a length of so many bytes.
    fn vector(&mut self, length: usize) -> Option<Reader<'a>> {
        let count = self.number(length)?;
        self.take(count).map(Reader)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A hello with these extensions.
    fn hello(extensions: Option<&[u8]>) -> Vec<u8> {
        let mut body = vec![3, 3];
        body.extend([7; 32]);
        body.extend([0, 0, 2, 0x13, 0x01, 1, 0]);
        if let Some(extensions) = extensions {
            body.extend((extensions.len() as u16).to_be_bytes());
            body.extend(extensions);
        }
        let message = [&[1, 0], (body.len() as u16).to_be_bytes().as_slice(), &body].concat();
        [&[22, 3, 1], (message.len() as u16).to_be_bytes().as_slice(), &message].concat()
    }

    #[test]
    fn only_a_whole_hello_without_tls_1_3_is_too_old() {
        assert!(is_too_old(&hello(None)));
        assert!(is_too_old(&hello(Some(&[]))));
        assert!(is_too_old(&hello(Some(&[0, 10, 0, 2, 0, 0]))));
        assert!(is_too_old(&hello(Some(&[0, 43, 0, 3, 2, 3, 3]))));
        assert!(!is_too_old(&hello(Some(&[0, 10, 0, 2, 0, 0, 0, 43, 0, 5, 4, 3, 4, 3, 3]))));
        let whole = hello(None);
        for cut in 0..whole.len() {
            assert!(!is_too_old(&whole[..cut]), "cut at {cut}: the rest may still come");
        }
        for odd in [b"GET / HTTP/1.1\r\n\r\n".as_slice(), &[22; 600], &hello(Some(&[0, 43, 0, 9]))] {
            assert!(!is_too_old(odd));
        }
    }
}
