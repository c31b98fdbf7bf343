//! Enrolment over real listeners: races, guesses, programs of this machine, hosts, a real (software) TPM, and removal.

use std::path::{Path, PathBuf};
use std::process::{Child, Command};
use std::sync::Arc;
use std::time::{Duration, Instant};

use audit::record::Record;
use base64::Engine as _;
use base64::prelude::BASE64_STANDARD;
use identity::entry::{HostCertificate, Pcrs, TpmState, UnixProgram};
use identity::{Limits, PeerClass, Requirements, SpiffeId};
use keys::Digest;
use management::control::Admission;
use rcgen::{BasicConstraints, CertificateParams, IsCa, Issuer, KeyPair};
use tokio::sync::Semaphore;
use tokio::task::JoinSet;
use wire::client::{Client, ClientError};
use wire::enrol::{At, REFUSED_AFTER, enrol, enrol_showing};
use wire::problem::Problem;
use wire::proofs::{EkKind, HostKey, Proofs, TpmTools};
use wire::tls::{Identity, WireError};

use crate::rotation::{Open, role};
use crate::world::operator;

/// Longer than the pause after which an entry may be tried again.
const TRY_PAUSE: Duration = Duration::from_millis(1_050);

impl Open {
    fn refusals(&self) -> Vec<(String, u32)> {
        self.world.control.record_refusals().unwrap();
        let records = self.world.records().into_iter();
        let refusal = |record| match record {
            Record::EnrolmentRefused { reason, count } => Some((reason, count)),
            _ => None,
        };
        records.filter_map(refusal).collect()
    }

    fn last_refusal(&self) -> String {
        self.refusals().last().unwrap().0.clone()
    }

    fn ticket(&self, id: &SpiffeId, requires: Requirements) -> String {
        let admission = Admission { requires, ..Admission::default() };
        let (_, ticket) = self.world.control.create_entry(id, admission, operator("owner").as_str()).unwrap();
        ticket.to_text().to_string()
    }

    /// Makes an entry with these demands, and enrols showing this.
    async fn tried(
        &self,
        requires: Requirements,
        at: impl Into<At>,
        proofs: Proofs,
    ) -> Result<Identity, WireError> {
        let (id, home) = (self.id("agent-7"), tempfile::tempdir().unwrap());
        let ticket = self.ticket(&id, requires);
        enrol_showing(at, self.members[0], &ticket, &id, &home.path().join("identity"), proofs).await
    }

    /// The same, which is refused for this reason; outside, as for any other.
    async fn refused(&self, requires: Requirements, at: impl Into<At>, proofs: Proofs, reason: &str) {
        let error = self.tried(requires, at, proofs).await.unwrap_err();
        assert_eq!(refusal(error), uniform());
        assert_eq!(self.last_refusal(), reason);
        // Records of one reason are a second apart at least.
        tokio::time::sleep(TRY_PAUSE).await;
    }
}

fn refusal(error: WireError) -> (u16, String, String) {
    let WireError::Enrolment(ClientError::Refused(Problem { status, code, detail, .. })) = error else {
        panic!("{error}")
    };
    (status, code, detail)
}

fn uniform() -> (u16, String, String) {
    (403, "enrolment_refused".into(), "the ticket is not good for this identity".into())
}

#[tokio::test(flavor = "multi_thread")]
async fn e01_of_a_thousand_newcomers_with_one_ticket_exactly_one_gets_in() {
    let open = Open::new(1).await;
    let id = open.id("agent-7");
    let ticket: Arc<str> = open.ticket(&id, Requirements::default()).into();
    let home = tempfile::tempdir().unwrap();
    // As many at once as the listener takes.
    let gate = Arc::new(Semaphore::new(300));
    let mut racing = JoinSet::new();
    for number in 0..1_000 {
        let (gate, ticket, id) = (gate.clone(), ticket.clone(), id.clone());
        let (at, members, directory) =
            (open.enrolment, open.members[0], home.path().join(number.to_string()));
        racing.spawn(async move {
            let _permit = gate.acquire().await.unwrap();
            enrol(at, members, &ticket, &id, &directory).await
        });
    }
    let (mut won, mut refused) = (0, 0);
    while let Some(raced) = racing.join_next().await {
        match raced.unwrap() {
            Ok(_) => won += 1,
            Err(error) => {
                assert_eq!(refusal(error), uniform());
                refused += 1;
            }
        }
    }
    assert_eq!((won, refused), (1, 999));
    assert_eq!(std::fs::read_dir(home.path()).unwrap().count(), 1);
    let enrolled =
        open.world.records().into_iter().filter(|record| matches!(record, Record::Enrolled { .. }));
    assert_eq!(enrolled.count(), 1);
}

#[tokio::test(flavor = "multi_thread")]
async fn e03_guesses_over_the_network_lock_the_entry_tell_nothing_and_leave_few_records() {
    let open = Open::new(1).await;
    let id = open.id("agent-7");
    let good = open.ticket(&id, Requirements::default());
    let parts: Vec<&str> = good.split('.').collect();
    let gate = Arc::new(Semaphore::new(300));
    let begun = Instant::now();
    let mut guessing = JoinSet::new();
    for number in 0..2_000_u32 {
        let mut guess = [0; 32];
        guess[..4].copy_from_slice(&number.to_le_bytes());
        let ticket = format!("{}.{}.{}", parts[0], keys::to_hex(&guess), parts[2]);
        // Every other one for a name that nobody made an entry for.
        let id = if number % 2 == 0 { id.clone() } else { open.id("agent-8") };
        let (gate, at, members) = (gate.clone(), open.enrolment, open.members[0]);
        guessing.spawn(async move {
            let _permit = gate.acquire().await.unwrap();
            let asked = Instant::now();
            let error = enrol(at, members, &ticket, &id, Path::new("/nowhere")).await.unwrap_err();
            (refusal(error), asked.elapsed())
        });
    }
    while let Some(guessed) = guessing.join_next().await {
        let (answer, took) = guessed.unwrap();
        assert_eq!(answer, uniform());
        assert!(took >= REFUSED_AFTER, "answered early: {took:?}");
    }
    let seconds = u32::try_from(begun.elapsed().as_secs()).unwrap() + 2;
    tokio::time::sleep(TRY_PAUSE).await;
    let refusals = open.refusals();
    let of =
        |reason: &str| refusals.iter().filter(|(why, _)| why == reason).map(|(_, count)| count).sum::<u32>();
    assert_eq!(refusals.iter().map(|(_, count)| count).sum::<u32>(), 2_000, "{refusals:?}");
    assert_eq!(of("ticket_unknown"), 1_000);
    assert!((1..=5).contains(&of("ticket_wrong")), "{refusals:?}");
    assert!(refusals.len() <= 5 * seconds as usize, "{} records in {seconds} s", refusals.len());
}

#[tokio::test]
async fn e03_five_wrong_secrets_a_second_apart_lock_an_entry_for_the_right_one() {
    let open = Open::new(1).await;
    let (id, home) = (open.id("agent-7"), tempfile::tempdir().unwrap());
    let good = open.ticket(&id, Requirements::default());
    let parts: Vec<&str> = good.split('.').collect();
    for guess in 0..5_u8 {
        let wrong = format!("{}.{}.{}", parts[0], keys::to_hex(&[guess; 32]), parts[2]);
        assert!(enrol(open.enrolment, open.members[0], &wrong, &id, home.path()).await.is_err());
        tokio::time::sleep(TRY_PAUSE).await;
    }
    assert!(enrol(open.enrolment, open.members[0], &good, &id, home.path()).await.is_err());
    assert_eq!(open.last_refusal(), "ticket_locked");
    assert_eq!(open.world.control.entries()[0].1.as_str(), "locked");
}

fn program(uid: u32, digest: String) -> Requirements {
    let unix = Some(UnixProgram { uid, executables: [digest].into() });
    Requirements { unix, ..Requirements::default() }
}

#[tokio::test]
async fn unix_only_the_named_program_of_the_named_user_gets_in_and_only_by_the_socket() {
    if !wire::listener::kernel_tells_programs() {
        eprintln!("skipped: this kernel does not tell programs; it needs Linux 6.5");
        return;
    }
    let open = Open::new(1).await;
    let home = tempfile::tempdir().unwrap();
    let at = open.at_socket(&home.path().join("enrolment.sock"));
    let uid = std::os::unix::fs::MetadataExt::uid(&std::fs::metadata("/proc/self").unwrap());
    let own = Digest::of(&std::fs::read("/proc/self/exe").unwrap()).to_string();
    let enrolled = open.tried(program(uid, own.clone()), at.clone(), Proofs::default()).await.unwrap();
    assert_eq!(enrolled.epoch(), 1);
    let attested = open.world.records().into_iter().find_map(|record| match record {
        Record::Attested { by, facts, .. } => Some((by, facts["unix.executable"].clone())),
        _ => None,
    });
    assert_eq!(attested, Some((vec!["ticket".to_owned(), "unix".to_owned()], own.clone())));
    let other = Digest::of(b"another program").to_string();
    open.refused(program(uid, other), at.clone(), Proofs::default(), "unix_program").await;
    open.refused(program(uid + 1, own.clone()), at.clone(), Proofs::default(), "unix_user").await;
    open.refused(program(uid, own), open.enrolment, Proofs::default(), "unix_missing").await;
}

/// An authority of hosts, and what it certified, in files as a person has them.
struct Hosts {
    root: String,
    directory: tempfile::TempDir,
    issuer: Issuer<'static, KeyPair>,
}

fn params(name: &str, ca: bool) -> CertificateParams {
    let mut params = CertificateParams::new(if ca { vec![] } else { vec![name.to_owned()] }).unwrap();
    params.is_ca = if ca { IsCa::Ca(BasicConstraints::Unconstrained) } else { IsCa::NoCa };
    params.distinguished_name.push(rcgen::DnType::CommonName, name);
    params
}

impl Hosts {
    fn new() -> Self {
        let key = KeyPair::generate().unwrap();
        let root = BASE64_STANDARD.encode(params("Hosts", true).self_signed(&key).unwrap().der());
        let issuer = Issuer::new(params("Hosts", true), key);
        Self { root, directory: tempfile::tempdir().unwrap(), issuer }
    }

    fn demands(&self, name: &str) -> Requirements {
        let host = Some(HostCertificate { roots: [self.root.clone()].into(), name: name.to_owned() });
        Requirements { host, ..Requirements::default() }
    }

    fn host(&self, name: &str, key: &KeyPair) -> Proofs {
        let certificate = params(name, false).signed_by(key, &self.issuer).unwrap();
        let file = |name: &str, text: &str| {
            let path = self.directory.path().join(name);
            wire::files::write_private_atomic(&path, text.as_bytes()).unwrap();
            path
        };
        let (certificate, key) =
            (file("host.pem", &certificate.pem()), file("host.key", &key.serialize_pem()));
        Proofs { host: Some(HostKey::load(&certificate, &key).unwrap()), ..Proofs::default() }
    }
}

#[tokio::test]
async fn x509pop_a_host_gets_in_with_its_certificate_and_not_with_anothers() {
    let open = Open::new(1).await;
    let (ours, theirs) = (Hosts::new(), Hosts::new());
    let own = KeyPair::generate().unwrap();
    let ed25519 = KeyPair::generate_for(&rcgen::PKCS_ED25519).unwrap();
    let rsa = KeyPair::generate_for(&rcgen::PKCS_RSA_SHA256).unwrap();
    for (epoch, key) in [(1, &own), (2, &ed25519), (3, &rsa)] {
        let proofs = ours.host("node-1.test", key);
        let enrolled = open.tried(ours.demands("node-1.test"), open.enrolment, proofs).await.unwrap();
        assert_eq!(enrolled.epoch(), epoch);
    }
    let demands = || ours.demands("node-1.test");
    open.refused(demands(), open.enrolment, theirs.host("node-1.test", &own), "host_chain").await;
    open.refused(demands(), open.enrolment, ours.host("node-2.test", &own), "host_name").await;
    open.refused(demands(), open.enrolment, Proofs::default(), "challenge_missing").await;
    let nothing = Requirements::default();
    open.refused(nothing, open.enrolment, ours.host("node-1.test", &own), "evidence_surplus").await;
}

/// A TPM in software, with its state in a directory.
struct Swtpm {
    process: Child,
    tcti: String,
    directory: tempfile::TempDir,
}

impl Drop for Swtpm {
    fn drop(&mut self) {
        let _ = self.process.kill();
        let _ = self.process.wait();
    }
}

fn has(program: &str) -> bool {
    Command::new(program).arg("--version").output().is_ok()
}

impl Swtpm {
    /// Starts one, where swtpm and the TPM tools are installed.
    async fn new() -> Option<Self> {
        if !has("swtpm") || !has("tpm2_createek") {
            eprintln!(
                "skipped: swtpm or the TPM tools are not here; install them with: apt-get install swtpm tpm2-tools"
            );
            return None;
        }
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("tpm");
        let process = Command::new("swtpm")
            .args(["socket", "--tpm2", "--flags", "not-need-init,startup-clear", "--tpmstate"])
            .arg(format!("dir={}", directory.path().display()))
            .arg("--server")
            .arg(format!("type=unixio,path={}", path.display()))
            .arg("--ctrl")
            .arg(format!("type=unixio,path={}.ctrl", path.display()))
            .spawn()
            .unwrap();
        let tpm = Self { process, tcti: format!("swtpm:path={}", path.display()), directory };
        let waiting = Instant::now();
        while !(path.exists() && Path::new(&format!("{}.ctrl", path.display())).exists()) {
            assert!(waiting.elapsed() < Duration::from_secs(20), "swtpm does not come up");
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
        Some(tpm)
    }

    fn tool(&self, program: &str, arguments: &[&str]) {
        let mut tool = Command::new(program);
        tool.args(arguments).env("TPM2TOOLS_TCTI", &self.tcti).current_dir(self.directory.path());
        let output = tool.output().unwrap();
        assert!(output.status.success(), "{program}: {output:?}");
    }

    fn file(&self, name: &str) -> PathBuf {
        self.directory.path().join(name)
    }

    /// What an operator writes down of a machine: its endorsement key, and its registers as they are.
    fn state(&self, kind: &str) -> Requirements {
        self.tool("tpm2_createek", &["-c", "own.ctx", "-G", kind, "-u", "own.pub"]);
        self.tool("tpm2_flushcontext", &["-t"]);
        self.tool("tpm2_pcrread", &["-o", "values", "sha256:0,7"]);
        let digest = |name: &str| Digest::of(&std::fs::read(self.file(name)).unwrap()).to_string();
        let pcrs = Some(Pcrs { selection: [0, 7].into(), digest: digest("values") });
        Requirements { tpm: Some(TpmState { ek: digest("own.pub"), pcrs }), ..Requirements::default() }
    }

    fn shown(&self, ek: EkKind) -> Proofs {
        let (tcti, registers) = (self.tcti.clone(), "sha256:0,7".to_owned());
        let tpm = Some(TpmTools { tcti, ek, registers, directory: self.file("shown") });
        Proofs { tpm, ..Proofs::default() }
    }
}

#[tokio::test]
async fn e07_a_real_tpm_lets_its_machine_in_and_drift_and_another_tpm_do_not() {
    let (Some(tpm), Some(other)) = (Swtpm::new().await, Swtpm::new().await) else { return };
    let open = Open::new(1).await;
    for (epoch, kind, ek) in [(1, "rsa", EkKind::Rsa), (2, "ecc", EkKind::Ecc)] {
        let enrolled = open.tried(tpm.state(kind), open.enrolment, tpm.shown(ek)).await.unwrap();
        assert_eq!(enrolled.epoch(), epoch);
    }
    let demands = tpm.state("rsa");
    open.refused(demands.clone(), open.enrolment, other.shown(EkKind::Rsa), "tpm_ek").await;
    open.refused(demands.clone(), open.enrolment, tpm.shown(EkKind::Ecc), "tpm_ek").await;
    // The registers that were asked for, and no others.
    let mut fewer = tpm.shown(EkKind::Rsa);
    if let Some(tools) = &mut fewer.tpm {
        tools.registers = "sha256:0".to_owned();
    }
    open.refused(demands.clone(), open.enrolment, fewer, "tpm_pcrs").await;
    // The machine starts something else.
    tpm.tool("tpm2_pcrextend", &[&format!("7:sha256={}", "ab".repeat(32))]);
    open.refused(demands, open.enrolment, tpm.shown(EkKind::Rsa), "tpm_pcrs").await;
    // Written down anew, it is let in again; and all attestors together.
    let hosts = Hosts::new();
    let host = hosts.host("node-1.test", &KeyPair::generate().unwrap());
    let both = Requirements { host: hosts.demands("node-1.test").host, ..tpm.state("rsa") };
    let proofs = Proofs { host: host.host, ..tpm.shown(EkKind::Rsa) };
    assert_eq!(open.tried(both, open.enrolment, proofs).await.unwrap().epoch(), 3);
}

#[tokio::test]
async fn who_was_removed_is_out_for_good_and_comes_back_with_a_new_ticket_in_a_new_epoch() {
    let open = Open::new(1).await;
    let (home, control) = (tempfile::tempdir().unwrap(), &open.world.control);
    let (id, by) = (open.id("agent-7"), operator("owner").to_string());
    let client = |identity: Identity| {
        Client::new(Arc::new(identity), PeerClass::Management, None, open.members[0]).unwrap()
    };
    let first = client(open.enrol("agent-7", &home.path().join("first")).await);
    assert!(role(&first).await.is_ok());
    let waiting = open.ticket(&id, Requirements::default());
    control.remove_agent(&id, &by, "the node is sold").unwrap();
    let refused = role(&first).await.unwrap_err();
    assert_eq!(refused.problem().map(|problem| problem.code.as_str()), Some("agent_revoked"), "{refused}");
    let late = enrol(open.enrolment, open.members[0], &waiting, &id, &home.path().join("late")).await;
    assert_eq!(refusal(late.unwrap_err()), uniform());
    assert_eq!(open.last_refusal(), "ticket_unknown", "the ticket is void");
    assert!(control.remove_agent(&id, &by, "again").is_err());
    // The supervisor brings nobody back who was removed; a person does.
    let by_itself = Admission { keep_removed: true, ..Admission::default() };
    assert!(control.create_entry(&id, by_itself, &by).unwrap_err().to_string().starts_with("removed"));
    let again = open.enrol("agent-7", &home.path().join("again")).await;
    assert_eq!(again.epoch(), 2);
    assert!(role(&client(again)).await.is_ok());
    assert!(role(&first).await.is_err(), "the old epoch stays dead");
}

#[tokio::test]
async fn removing_is_no_way_round_the_two_people_of_a_quarantine() {
    let open = Open::new(1).await;
    let (home, control) = (tempfile::tempdir().unwrap(), &open.world.control);
    let (id, by) = (open.id("agent-7"), operator("owner").to_string());
    open.enrol("agent-7", &home.path().join("identity")).await;
    control.revoke_agent(&id, &by, "leaked").unwrap();
    control.remove_agent(&id, &by, "out of the way").unwrap();
    assert!(control.create_ticket(&id).unwrap_err().to_string().starts_with("quarantined"));
    let proposal = control.propose("reinstate_agent", id.as_str(), &by).unwrap();
    control.approve(&proposal.approval(), operator("second").as_str()).unwrap();
    assert!(control.create_ticket(&id).is_ok());
}

#[tokio::test]
async fn a_short_certificate_is_as_short_when_it_is_renewed() {
    let open = Open::new(1).await;
    let (id, home) = (open.id("agent-7"), tempfile::tempdir().unwrap());
    let limits = Limits { certificate_ttl_s: 600, ..Limits::default() };
    let admission = Admission { limits, ..Admission::default() };
    let (_, ticket) = open.world.control.create_entry(&id, admission, operator("owner").as_str()).unwrap();
    let directory = home.path().join("identity");
    let now = wire::journal::unix_ms() / 1_000;
    let first = enrol(open.enrolment, open.members[0], &ticket.to_text(), &id, &directory).await.unwrap();
    assert!((now + 590..=now + 660).contains(&first.expires()));
    let member = wire::renew::Membership::resume(&directory, open.members[0]).await.unwrap();
    member.renew(&mut |_| Ok(())).await.unwrap();
    assert!(member.credentials().current().expires() <= now + 660);
}
