//! Routes around stored secrets and the keys of domains.

use std::sync::Arc;

use access::policy::OperatorAction;
use access::secret::{SecretKind, SecretName};
use axum::http::Method;
use axum::response::Response;
use serde::{Deserialize, Serialize};
use serde_json::json;
use wire::api::SecretRequest;
use wire::guard::{Needs, Operation, Pass, Touched, from_json, json as answer};
use wire::problem::Problem;
use wire::secrets::OPEN_PATH;

use super::{Shared, decide, process_name};
use crate::secrets::{Purpose, PurposeText};

/// Asks that a secret be opened for who asks.
pub(super) struct OpenSecret(SecretRequest);

impl Operation for OpenSecret {
    type State = Shared;
    const METHOD: Method = Method::POST;
    const PATH: &'static str = OPEN_PATH;
    const NEEDS: Needs = Needs::Secret;

    fn parse(_query: &str, body: &[u8]) -> Result<Self, Problem> {
        from_json(body).map(Self)
    }

    fn touched(&self, _state: &Shared) -> Touched {
        Touched { target: self.0.name.clone(), ..Touched::default() }
    }

    async fn run(self, state: Arc<Shared>, pass: Pass) -> Result<Response, Problem> {
        answer(&decide(&state.control, move |control| control.open_secret(&pass.peer, &self.0)).await?)
    }
}

/// To whom a secret is sealed that is to be stored.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct SealTo {
    /// Management's SPIFFE ID.
    pub recipient: String,
    /// Epoch of its identity.
    pub epoch: u32,
    /// Its key of the channel `control`, 64 hexadecimal digits.
    pub key: String,
}

/// Tells to whom a secret is to be sealed, so that not even the buffers of a connection hold it.
pub(super) struct ReadSealTo;

impl Operation for ReadSealTo {
    type State = Shared;
    const METHOD: Method = Method::GET;
    const PATH: &'static str = "/v1/secrets/key";
    const NEEDS: Needs = Needs::Operator(OperatorAction::ReadStatus);

    fn parse(_query: &str, _body: &[u8]) -> Result<Self, Problem> {
        Ok(Self)
    }

    fn touched(&self, _state: &Shared) -> Touched {
        Touched { target: Self::PATH.to_owned(), ..Touched::default() }
    }

    async fn run(self, state: Arc<Shared>, _pass: Pass) -> Result<Response, Problem> {
        let identity = state.control.own_identity()?;
        let (recipient, epoch) = (identity.id().to_string(), identity.epoch());
        answer(&SealTo { recipient, epoch, key: identity.own_keys().public().control })
    }
}

/// A secret to be stored.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct SecretBody {
    /// Name.
    pub name: SecretName,
    /// What it opens.
    pub kind: SecretKind,
    /// For whom: a desk by the name of its process or its SPIFFE ID, or the name of a source.
    pub holder: String,
    /// Number of the sealed message, which is part of what it was sealed for; random.
    pub sequence: u64,
    /// The secret under its name and version 0, sealed as [`SealTo`] says; see [`wire::secrets::heading`].
    pub sealed: String,
}

pub(super) struct PutSecret(SecretBody);

impl Operation for PutSecret {
    type State = Shared;
    const METHOD: Method = Method::POST;
    const PATH: &'static str = "/v1/secrets";
    const NEEDS: Needs = Needs::Operator(OperatorAction::PutSecret);

    fn parse(_query: &str, body: &[u8]) -> Result<Self, Problem> {
        from_json(body).map(Self)
    }

    fn touched(&self, _state: &Shared) -> Touched {
        let SecretBody { name, kind, holder, .. } = &self.0;
        Touched { target: format!("{name} ({kind} for {holder})"), ..Touched::default() }
    }

    async fn run(self, state: Arc<Shared>, pass: Pass) -> Result<Response, Problem> {
        let SecretBody { name, kind, holder, sequence, sealed } = self.0;
        let control = &state.control;
        let value = control.unseal_for_storing(&name, sequence, &sealed)?;
        let known = || {
            let state = control.state();
            let desk = state.registry.members().find(|member| process_name(&member.id) == holder);
            desk.map(|member| member.id.to_string())
        };
        let holder = match kind {
            SecretKind::Broker => known().unwrap_or(holder),
            SecretKind::Vendor => holder,
        };
        let purpose = Purpose::try_from(PurposeText { kind, holder })
            .map_err(|why| Problem::bad_request("bad_holder", &why.to_string()))?;
        let version = control.put_secret(&name, &purpose, &value, pass.peer.id.as_str())?;
        answer(&json!({ "name": name, "version": version }))
    }
}

/// Names a secret.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct SecretAim {
    /// Name.
    pub name: SecretName,
}

pub(super) struct RemoveSecret(SecretAim);

impl Operation for RemoveSecret {
    type State = Shared;
    const METHOD: Method = Method::POST;
    const PATH: &'static str = "/v1/secrets/remove";
    const NEEDS: Needs = Needs::Operator(OperatorAction::RemoveSecret);

    fn parse(_query: &str, body: &[u8]) -> Result<Self, Problem> {
        from_json(body).map(Self)
    }

    fn touched(&self, _state: &Shared) -> Touched {
        Touched { target: self.0.name.to_string(), ..Touched::default() }
    }

    async fn run(self, state: Arc<Shared>, pass: Pass) -> Result<Response, Problem> {
        state.control.remove_secret(&self.0.name, pass.peer.id.as_str())?;
        answer(&json!({ "removed": self.0.name }))
    }
}

/// Tells what is stored, and nothing of its contents.
pub(super) struct ReadSecrets;

impl Operation for ReadSecrets {
    type State = Shared;
    const METHOD: Method = Method::GET;
    const PATH: &'static str = "/v1/secrets";
    const NEEDS: Needs = Needs::Operator(OperatorAction::ReadStatus);

    fn parse(_query: &str, _body: &[u8]) -> Result<Self, Problem> {
        Ok(Self)
    }

    fn touched(&self, _state: &Shared) -> Touched {
        Touched { target: Self::PATH.to_owned(), ..Touched::default() }
    }

    async fn run(self, state: Arc<Shared>, _pass: Pass) -> Result<Response, Problem> {
        answer(&state.control.secrets()?)
    }
}

/// Tells the versions of the domains' keys.
pub(super) struct ReadDomainKeys;

impl Operation for ReadDomainKeys {
    type State = Shared;
    const METHOD: Method = Method::GET;
    const PATH: &'static str = "/v1/keys/domains";
    const NEEDS: Needs = Needs::Operator(OperatorAction::ReadStatus);

    fn parse(_query: &str, _body: &[u8]) -> Result<Self, Problem> {
        Ok(Self)
    }

    fn touched(&self, _state: &Shared) -> Touched {
        Touched { target: Self::PATH.to_owned(), ..Touched::default() }
    }

    async fn run(self, state: Arc<Shared>, _pass: Pass) -> Result<Response, Problem> {
        answer(&state.control.domain_keys()?)
    }
}

/// Names the key of a domain.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct DomainAim {
    /// Domain.
    pub domain: String,
}

pub(super) struct RewrapKeys(DomainAim);

impl Operation for RewrapKeys {
    type State = Shared;
    const METHOD: Method = Method::POST;
    const PATH: &'static str = "/v1/keys/rewrap";
    const NEEDS: Needs = Needs::Operator(OperatorAction::RewrapKeys);

    fn parse(_query: &str, body: &[u8]) -> Result<Self, Problem> {
        from_json(body).map(Self)
    }

    fn touched(&self, _state: &Shared) -> Touched {
        Touched { target: self.0.domain.clone(), ..Touched::default() }
    }

    async fn run(self, state: Arc<Shared>, pass: Pass) -> Result<Response, Problem> {
        let domain = domain(&self.0.domain)?;
        let (active, rewrapped) = state.control.rewrap_domain(domain, pass.peer.id.as_str())?;
        answer(&json!({ "domain": domain, "active": active, "rewrapped": rewrapped }))
    }
}

/// Names what of a domain's key is to be destroyed.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct DestroyBody {
    /// Domain.
    pub domain: String,
    /// Version; none for all of them.
    pub version: Option<u32>,
}

pub(super) struct DestroyKeys(DestroyBody);

impl Operation for DestroyKeys {
    type State = Shared;
    const METHOD: Method = Method::POST;
    const PATH: &'static str = "/v1/keys/destroy";
    const NEEDS: Needs = Needs::Operator(OperatorAction::DestroyKeys);

    fn parse(_query: &str, body: &[u8]) -> Result<Self, Problem> {
        from_json(body).map(Self)
    }

    fn touched(&self, _state: &Shared) -> Touched {
        let version =
            self.0.version.map_or_else(|| "every version".to_owned(), |one| format!("version {one}"));
        Touched { target: format!("{}, {version}", self.0.domain), ..Touched::default() }
    }

    async fn run(self, state: Arc<Shared>, pass: Pass) -> Result<Response, Problem> {
        let domain = domain(&self.0.domain)?;
        let lost = state.control.destroy_key(domain, self.0.version, pass.peer.id.as_str())?;
        answer(&json!({ "domain": domain, "version": self.0.version, "secrets_lost": lost }))
    }
}

/// A domain that can have a key; its name becomes the name of a file.
fn domain(name: &str) -> Result<&'static str, Problem> {
    let known = identity::PeerClass::parse(name).map(identity::PeerClass::as_str);
    known.ok_or_else(|| Problem::bad_request("no_such_domain", "name a domain as `trader keys domains` does"))
}
