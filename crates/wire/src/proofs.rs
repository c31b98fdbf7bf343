//! What a newcomer can show besides its ticket: a host's certificate, and a TPM.
//!
//! Owns the host's key while it signs, and the calls of the TPM tools (`tpm2-tools`): the TPM itself is reached by them
//! alone. Decides nothing: whether it is enough is management's to say.

use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::Arc;

use base64::Engine as _;
use base64::prelude::BASE64_STANDARD;
use identity::attest::Evidence;
use identity::attest::challenge::{ChallengeReply, ChallengeRequest, binding};
use identity::attest::host::HostEvidence;
use identity::attest::tpm::{TpmEvidence, TpmPublics};
use identity::{KeySet, SpiffeId};
use rustls::SignatureScheme;
use rustls::sign::SigningKey;
use rustls_pki_types::pem::PemObject as _;
use rustls_pki_types::{CertificateDer, PrivateKeyDer};

use crate::files;
use crate::tls::{self, WireError};

/// How the challenge is signed, by the kind of the host's key.
const SCHEMES: [SignatureScheme; 3] =
    [SignatureScheme::ECDSA_NISTP256_SHA256, SignatureScheme::ED25519, SignatureScheme::RSA_PSS_SHA256];

/// What a newcomer shows besides its ticket; nothing, by default.
#[derive(Debug, Default)]
pub struct Proofs {
    /// The host's certificate and key.
    pub host: Option<HostKey>,
    /// The TPM.
    pub tpm: Option<TpmTools>,
}

impl Proofs {
    /// Whether there is nothing to show, and so no challenge to ask for.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.host.is_none() && self.tpm.is_none()
    }

    /// What to ask a challenge with. Blocks while the TPM makes its keys.
    ///
    /// # Errors
    /// [`WireError::Proof`] when the TPM tools fail.
    pub fn request(&self) -> Result<ChallengeRequest, WireError> {
        Ok(ChallengeRequest { tpm: self.tpm.as_ref().map(TpmTools::publics).transpose()? })
    }

    /// The evidence for a challenge. Blocks while the TPM signs.
    ///
    /// # Errors
    /// [`WireError::Proof`] when a key does not sign or the challenge is unreadable.
    pub fn show(
        &self,
        challenge: &ChallengeReply,
        id: &SpiffeId,
        keys: &KeySet,
    ) -> Result<Evidence, WireError> {
        let nonce = keys::from_hex(&challenge.nonce);
        let nonce = nonce.map_err(|_| WireError::Proof("the challenge is unreadable".to_owned()))?;
        let bound = binding(&nonce, id, keys);
        let host = self.host.as_ref().map(|host| host.sign(&bound)).transpose()?;
        let tpm = match (&self.tpm, &challenge.credential) {
            (None, _) => None,
            (Some(_), None) => return Err(WireError::Proof("management made no credential".to_owned())),
            (Some(tpm), Some(credential)) => {
                let evidence = tpm.prove(credential, &bound);
                let _ = std::fs::remove_dir_all(&tpm.directory);
                Some(evidence?)
            }
        };
        Ok(Evidence { host, tpm })
    }
}

/// A host's certificate and the key to it.
pub struct HostKey {
    chain: Vec<CertificateDer<'static>>,
    key: Arc<dyn SigningKey>,
}

impl std::fmt::Debug for HostKey {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "HostKey({} certificates)", self.chain.len())
    }
}

impl HostKey {
    /// Reads a certificate, with those between it and its root behind it, and its key, both PEM.
    ///
    /// # Errors
    /// [`WireError::Proof`] when they are unreadable, [`WireError::File`] when the key is open to others.
    pub fn load(certificates: &Path, key: &Path) -> Result<Self, WireError> {
        let unreadable = |path: &Path, what: &str| {
            WireError::Proof(format!("{}: no {what} in PEM can be read from it", path.display()))
        };
        let chain =
            CertificateDer::pem_file_iter(certificates).and_then(Iterator::collect::<Result<Vec<_>, _>>);
        let chain = chain.map_err(|_| unreadable(certificates, "certificate"))?;
        if chain.is_empty() {
            return Err(unreadable(certificates, "certificate"));
        }
        let text = zeroize::Zeroizing::new(files::read_private(key)?);
        let private = PrivateKeyDer::from_pem_slice(&text).map_err(|_| unreadable(key, "private key"))?;
        Self::new(chain, private)
    }

    /// A certificate, with those between it and its root behind it, and its key.
    ///
    /// # Errors
    /// [`WireError::Proof`] when the key is of no kind that can be used.
    pub fn new(chain: Vec<CertificateDer<'static>>, key: PrivateKeyDer<'static>) -> Result<Self, WireError> {
        let key = tls::provider(tls::Groups::HybridFirst).key_provider.load_private_key(key);
        let key = key.map_err(|error| WireError::Proof(format!("the host's key cannot be used: {error}")))?;
        Ok(Self { chain, key })
    }

    fn sign(&self, bound: &[u8; 32]) -> Result<HostEvidence, WireError> {
        let signer = self.key.choose_scheme(&SCHEMES);
        let signer = signer.ok_or_else(|| {
            WireError::Proof("the host's key must be P-256, Ed25519, or RSA from 2048 bits".to_owned())
        })?;
        let signature = signer.sign(bound).map_err(|error| WireError::Proof(error.to_string()))?;
        let chain = self.chain.iter().map(|certificate| BASE64_STANDARD.encode(certificate)).collect();
        Ok(HostEvidence { chain, signature: BASE64_STANDARD.encode(signature) })
    }
}

/// Which of a TPM's endorsement keys.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub enum EkKind {
    /// RSA 2048, which every TPM has.
    #[default]
    Rsa,
    /// P-256.
    Ecc,
}

impl EkKind {
    fn as_str(self) -> &'static str {
        match self {
            Self::Rsa => "rsa",
            Self::Ecc => "ecc",
        }
    }
}

/// A TPM 2.0, through the TPM tools.
#[derive(Debug, Clone)]
pub struct TpmTools {
    /// How the tools reach it, such as `device:/dev/tpmrm0`.
    pub tcti: String,
    /// Which endorsement key.
    pub ek: EkKind,
    /// Which registers are quoted, such as `sha256:0,1,2,3,7`.
    pub registers: String,
    /// A private directory for the tools' files.
    pub directory: PathBuf,
}

impl TpmTools {
    fn run(&self, program: &str, arguments: &[&str]) -> Result<(), WireError> {
        let ran = Command::new(program)
            .args(arguments)
            .env("TPM2TOOLS_TCTI", &self.tcti)
            .env("TSS2_LOG", "all+NONE")
            .current_dir(&self.directory)
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(Stdio::piped())
            .output();
        let output = ran.map_err(|error| {
            WireError::Proof(format!(
                "{program} cannot be run ({error}); install it with: apt-get install tpm2-tools"
            ))
        })?;
        if output.status.success() {
            return Ok(());
        }
        let words = String::from_utf8_lossy(&output.stderr);
        let first = words.lines().next().unwrap_or_default();
        Err(WireError::Proof(format!("{program} failed with the TPM at {}: {first}", self.tcti)))
    }

    /// Without a resource manager a TPM has room for three keys: what was loaded is let go after each step.
    fn flush(&self) {
        let _ = self.run("tpm2_flushcontext", &["-t"]);
    }

    fn read(&self, name: &str) -> Result<Vec<u8>, WireError> {
        let path = self.directory.join(name);
        std::fs::read(&path).map_err(|error| WireError::Proof(format!("{}: {error}", path.display())))
    }

    /// Makes the endorsement key again, which is the same every time, and a new attestation key.
    fn publics(&self) -> Result<TpmPublics, WireError> {
        files::create_private_dir(&self.directory)?;
        self.flush();
        self.run("tpm2_createek", &["-c", "ek.ctx", "-G", self.ek.as_str(), "-u", "ek.pub"])?;
        self.flush();
        let key = ["-G", "ecc", "-g", "sha256", "-s", "ecdsa"];
        self.run("tpm2_createak", &[&["-C", "ek.ctx", "-c", "ak.ctx", "-u", "ak.pub"], &key[..]].concat())?;
        self.flush();
        let encode = |name| self.read(name).map(|bytes| BASE64_STANDARD.encode(bytes));
        Ok(TpmPublics { ek: encode("ek.pub")?, ak: encode("ak.pub")? })
    }

    /// Opens the credential, and quotes the registers for what the challenge is bound to.
    fn prove(&self, credential: &str, bound: &[u8; 32]) -> Result<TpmEvidence, WireError> {
        let unreadable = |_| WireError::Proof("the credential is unreadable".to_owned());
        let credential = BASE64_STANDARD.decode(credential).map_err(unreadable)?;
        files::write_private_atomic(&self.directory.join("credential"), &credential)?;
        self.run("tpm2_startauthsession", &["--policy-session", "-S", "session.ctx"])?;
        let opened = self.run("tpm2_policysecret", &["-S", "session.ctx", "-c", "e"]).and_then(|()| {
            let keys = ["-c", "ak.ctx", "-C", "ek.ctx", "-P", "session:session.ctx"];
            let files = ["-i", "credential", "-o", "secret"];
            self.run("tpm2_activatecredential", &[&keys[..], &files].concat())
        });
        let _ = self.run("tpm2_flushcontext", &["session.ctx"]);
        self.flush();
        opened?;
        let about = keys::to_hex(bound);
        let what = ["-c", "ak.ctx", "-l", &self.registers, "-q", &about, "-g", "sha256"];
        self.run("tpm2_quote", &[&what[..], &["-m", "quote", "-s", "signature"]].concat())?;
        self.flush();
        let evidence = TpmEvidence {
            secret: keys::to_hex(&self.read("secret")?),
            quote: BASE64_STANDARD.encode(self.read("quote")?),
            signature: BASE64_STANDARD.encode(self.read("signature")?),
        };
        Ok(evidence)
    }
}
