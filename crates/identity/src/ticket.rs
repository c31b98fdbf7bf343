//! The one-time ticket in the hands of a newcomer.
//!
//! A ticket is 256 random bits and the root's public key: the bits prove the newcomer to management, the key
//! proves management to the newcomer. What management keeps of it is in [`crate::entry`].

use std::fmt;

use keys::VerifyingKey;
use zeroize::Zeroizing;

use crate::IdentityError;

const PREFIX: &str = "trader-ticket-1";

/// A ticket in the hands of a newcomer.
pub struct Ticket {
    secret: Zeroizing<[u8; 32]>,
    root: VerifyingKey,
}

impl Ticket {
    /// Makes a ticket from 32 random bytes.
    #[must_use]
    pub fn new(secret: [u8; 32], root: VerifyingKey) -> Self {
        Self { secret: Zeroizing::new(secret), root }
    }

    /// Parses `trader-ticket-1.<secret>.<root key>`, both of 64 hexadecimal digits.
    ///
    /// # Errors
    /// [`IdentityError::Ticket`] when the text is anything else. The text is not repeated in the error.
    pub fn parse(text: &str) -> Result<Self, IdentityError> {
        let mut parts = text.trim().split('.');
        let (Some(PREFIX), Some(secret), Some(root), None) =
            (parts.next(), parts.next(), parts.next(), parts.next())
        else {
            return Err(IdentityError::Ticket("it must be trader-ticket-1.<secret>.<root key>"));
        };
        let secret = keys::from_hex(secret).map_err(|_| IdentityError::Ticket("its secret is unreadable"))?;
        let root =
            VerifyingKey::from_hex(root).map_err(|_| IdentityError::Ticket("its root key is unreadable"))?;
        Ok(Self::new(secret, root))
    }

    /// The ticket as text. A secret: for the newcomer only.
    #[must_use]
    pub fn to_text(&self) -> Zeroizing<String> {
        let secret = Zeroizing::new(keys::to_hex(&*self.secret));
        Zeroizing::new(format!("{PREFIX}.{}.{}", secret.as_str(), self.root.to_hex()))
    }

    /// The secret that management checks.
    #[must_use]
    pub fn secret(&self) -> &[u8; 32] {
        &self.secret
    }

    /// The root that management must prove to stand under.
    #[must_use]
    pub fn root(&self) -> &VerifyingKey {
        &self.root
    }
}

impl fmt::Debug for Ticket {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Ticket(root {})", self.root.id())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ticket_and_text_are_the_same_thing_and_debug_tells_no_secret() {
        let root = keys::SigningKey::from_seed(&[1; 32]).verifying_key();
        let ticket = Ticket::new([7; 32], root);
        let again = Ticket::parse(&ticket.to_text()).unwrap();
        assert_eq!((again.secret(), again.root()), (ticket.secret(), ticket.root()));
        assert!(!format!("{ticket:?}").contains("0707"));
        let text = ticket.to_text();
        for wrong in ["", "trader-ticket-1", &text[1..], &text[..text.len() - 1], &format!("{}.x", *text)] {
            let error = Ticket::parse(wrong).unwrap_err();
            assert!(!error.to_string().contains("0707"));
        }
    }
}
