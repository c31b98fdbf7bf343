//! The operator's policies: standing permissions, the issue of grants, and the rights of operators, in Cedar.
//!
//! Owns: loading and validating the files under `policies/`, and the queries that management puts to them. It
//! refuses to read files itself: it is handed their names and texts. A grant that was issued is not looked at
//! here again; from then on it is the guard's.
//!
//! INVARIANT: an evaluation error is a deny. Cedar skips a policy that errors, a `forbid` too; here the
//! decision is then a deny with reason `policy_error`, whatever the other policies say.

use std::collections::{BTreeSet, HashMap, HashSet};

use cedar_policy::{
    Authorizer, Context, Decision, Entities, EntityId, EntityTypeName, EntityUid, Policy, PolicyId, Request,
    RestrictedExpression, Schema, ValidationMode, Validator,
};
use keys::Digest;

use crate::secret::SecretKind;
use crate::vocabulary::{Action, Audience, Limits, TaskKind, words};

/// Longest policy file, and longest schema, in bytes.
pub const FILE_BYTES_MAX: usize = 64 * 1024;
/// Most policies in all files together.
pub const POLICIES_MAX: usize = 200;

/// The action of having a stored secret opened.
pub const OPEN_SECRET: &str = "open_secret";

/// Reason of a decision that some policy permits and none forbids.
pub const PERMITTED: &str = "permitted";
/// Reason of a decision that no policy permits.
pub const NOT_PERMITTED: &str = "not_permitted";
/// Reason of a decision that a policy forbids.
pub const FORBIDDEN: &str = "forbidden";
/// Reason of a decision that could not be made, so it is a deny. Deserves an alarm.
pub const POLICY_ERROR: &str = "policy_error";

/// What is wrong with a set of policy files.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum PolicyError {
    /// A file is longer than any policy file may be.
    #[error("{file} is longer than {FILE_BYTES_MAX} bytes")]
    TooLong {
        /// Name of the file.
        file: String,
    },
    /// More policies than may be.
    #[error("there are more than {POLICIES_MAX} policies")]
    TooMany,
    /// Two files have the same name.
    #[error("{file} is there twice")]
    DuplicateFile {
        /// Name of the file.
        file: String,
    },
    /// The schema is not valid, or one of the words that this program asks about is missing from it.
    #[error("the schema is not usable: {detail}")]
    Schema {
        /// What is wrong.
        detail: String,
    },
    /// A file is no Cedar.
    #[error("{file} is not readable: {detail}")]
    Syntax {
        /// Name of the file.
        file: String,
        /// What is wrong.
        detail: String,
    },
    /// A policy has no `@id`, so that a decision could not name it.
    #[error("policy number {number} in {file} has no @id")]
    NoId {
        /// Name of the file.
        file: String,
        /// Which policy of the file, from 1.
        number: usize,
    },
    /// Two policies have the same `@id`.
    #[error("policy {id} is there twice")]
    DuplicateId {
        /// The identifier.
        id: String,
    },
    /// Templates are not used.
    #[error("{file} holds a template, which is not used here")]
    Template {
        /// Name of the file.
        file: String,
    },
    /// A policy does not fit the schema, or could never apply.
    #[error("the policies do not fit the schema: {detail}")]
    Validation {
        /// What the validator says, one finding a line.
        detail: String,
    },
}

words! {
    /// What a part of the system may do without a grant.
    StandingAction {
        /// Say how it is, and ship its journal.
        ReportStatus = "report_status",
        /// Ask who it is to management, and renew its certificate.
        VerifyRole = "verify_role",
        /// Ask whether there is a task for it.
        CheckQueue = "check_queue",
        /// Follow the revocation feed; for guards, so never for an agent.
        HearRevocations = "hear_revocations",
    }
}

words! {
    /// What an operator may do.
    OperatorAction {
        /// See state, lists, records.
        ReadStatus = "read_status",
        /// Revoke an agent.
        RevokeAgent = "revoke_agent",
        /// Revoke a grant.
        RevokeGrant = "revoke_grant",
        /// Quarantine an agent.
        Quarantine = "quarantine",
        /// Stop everything.
        Kill = "kill",
        /// Make a ticket with which a node enrols.
        CreateTicket = "create_ticket",
        /// End a member's identity for good.
        RemoveAgent = "remove_agent",
        /// Ask members for new keys.
        RotateKeys = "rotate_keys",
        /// Publish a trust bundle that the root has signed: authorities that replace others.
        ReplaceAuthority = "replace_authority",
        /// Store a secret for the desk, or for agents that fetch from a source.
        PutSecret = "put_secret",
        /// Remove a stored secret.
        RemoveSecret = "remove_secret",
        /// Wrap a domain's secrets again, under a new version of its key.
        RewrapKeys = "rewrap_keys",
        /// Destroy versions of a domain's key, and with them what was sealed under them.
        DestroyKeys = "destroy_keys",
        /// Propose something that needs a second person.
        Propose = "propose",
        /// Approve another's proposal.
        Approve = "approve",
        /// Let a quarantined or revoked agent work again.
        ReinstateAgent = "reinstate_agent",
        /// Start again after everything was stopped.
        ClearKill = "clear_kill",
    }
}

/// A question about a grant that is to be issued. All actions are asked about; one refusal refuses the grant.
#[derive(Debug, Clone)]
pub struct GrantQuery<'a> {
    /// SPIFFE ID of who would hold it.
    pub holder: &'a str,
    /// The holder's security domain: `agents` or `desk`.
    pub class: &'a str,
    /// Whether the holder is in quarantine.
    pub quarantined: bool,
    /// The task.
    pub task: &'a str,
    /// The task's kind.
    pub task_kind: TaskKind,
    /// Whom the grant would be shown to.
    pub audience: Audience,
    /// What it would let its holder do.
    pub actions: &'a BTreeSet<Action>,
    /// Portfolio, where it concerns one.
    pub portfolio: Option<&'a str>,
    /// Outside sources.
    pub sources: &'a BTreeSet<String>,
    /// How long it would live, in seconds.
    pub lifetime_s: i64,
    /// Limits in numbers.
    pub limits: Limits,
}

/// A question about an operator's action.
#[derive(Debug, Clone, Copy)]
pub struct OperatorQuery<'a> {
    /// SPIFFE ID of the operator.
    pub operator: &'a str,
    /// What is to be done.
    pub action: OperatorAction,
    /// To what.
    pub target: &'a str,
    /// SPIFFE ID of who proposed it, where there is a proposal.
    pub proposer: Option<&'a str>,
}

/// A question about a stored secret that a member asks to be given.
#[derive(Debug, Clone, Copy)]
pub struct SecretQuery<'a> {
    /// SPIFFE ID of who asks.
    pub asker: &'a str,
    /// The asker's security domain, as in its certificate.
    pub class: &'a str,
    /// The secret's name.
    pub secret: &'a str,
    /// What it opens.
    pub kind: SecretKind,
    /// Whether it is stored for the asker.
    pub is_holder: bool,
    /// Whether the asker has a task now that needs it.
    pub has_task: bool,
}

/// The answer to a question.
#[derive(Debug, Clone, PartialEq, Eq)]
#[must_use]
pub struct PolicyDecision {
    /// Whether it is allowed.
    pub allowed: bool,
    /// `@id`s of the policies that decided, in order. Empty when nothing permitted.
    pub policies: Vec<String>,
    /// [`PERMITTED`], [`NOT_PERMITTED`], [`FORBIDDEN`] or [`POLICY_ERROR`].
    pub reason: String,
}

impl PolicyDecision {
    fn error() -> Self {
        Self { allowed: false, policies: Vec::new(), reason: POLICY_ERROR.to_owned() }
    }
}

/// A validated set of policies.
pub struct PolicySet {
    schema: Schema,
    policies: cedar_policy::PolicySet,
    /// The actions and their groups. There are no other entities: a principal is its type and its id.
    entities: Entities,
    digest: Digest,
    ids: Vec<String>,
}

impl PolicySet {
    /// Loads policies from their texts, each with the name of its file.
    ///
    /// # Errors
    /// [`PolicyError`] for anything short of a set that validates strictly, without a warning, with every
    /// policy named.
    pub fn load(schema: &str, files: &[(&str, &str)]) -> Result<Self, PolicyError> {
        within_length("the schema", schema)?;
        let text = schema;
        let schema = match Schema::from_cedarschema_str(schema) {
            Ok((schema, _)) => schema,
            Err(error) => return Err(PolicyError::Schema { detail: error.to_string() }),
        };
        knows_every_word(&schema)?;
        let mut files = files.to_vec();
        files.sort_unstable();
        let mut policies = cedar_policy::PolicySet::new();
        let mut ids = Vec::new();
        let mut names = BTreeSet::new();
        for (file, text) in &files {
            within_length(file, text)?;
            if !names.insert(*file) {
                return Err(PolicyError::DuplicateFile { file: (*file).to_owned() });
            }
            for policy in parse(file, text)? {
                let id = policy.id().to_string();
                policies.add(policy).map_err(|_| PolicyError::DuplicateId { id: id.clone() })?;
                ids.push(id);
            }
        }
        if ids.len() > POLICIES_MAX {
            return Err(PolicyError::TooMany);
        }
        validate(&schema, &policies)?;
        let entities = schema.action_entities();
        let entities = entities.map_err(|error| PolicyError::Schema { detail: error.to_string() })?;
        ids.sort_unstable();
        Ok(Self { schema, policies, entities, digest: digest_of(text, &files), ids })
    }

    /// SHA-256 over the schema and all files in the order of their names; the name of this policy set in
    /// grants and log.
    #[must_use]
    pub fn digest(&self) -> Digest {
        self.digest
    }

    /// The `@id` of every policy, in order.
    #[must_use]
    pub fn ids(&self) -> &[String] {
        &self.ids
    }

    /// Whether a part of the system may do something without a grant. `class` is its security domain, as in
    /// its certificate: `agents`, `desk`, or a data domain. Another is a deny.
    pub fn standing(&self, principal_id: &str, class: &str, action: StandingAction) -> PolicyDecision {
        let Some(principal) = principal(class, principal_id) else { return unknown_class() };
        self.ask(principal, action.as_str(), ("Management", "management"), HashMap::new())
    }

    /// Whether a grant may be issued.
    pub fn grant(&self, query: &GrantQuery<'_>) -> PolicyDecision {
        let Some(principal) = principal(query.class, query.holder) else { return unknown_class() };
        let Some(context) = grant_context(query) else { return PolicyDecision::error() };
        let resource = ("Audience", query.audience.as_str());
        let mut policies = BTreeSet::new();
        for action in query.actions {
            let decision = self.ask(principal, action.as_str(), resource, context.clone());
            if !decision.allowed {
                return decision;
            }
            policies.extend(decision.policies);
        }
        let (allowed, reason) =
            if query.actions.is_empty() { (false, NOT_PERMITTED) } else { (true, PERMITTED) };
        PolicyDecision { allowed, policies: policies.into_iter().collect(), reason: reason.to_owned() }
    }

    /// Whether an operator may do something.
    pub fn operator(&self, query: OperatorQuery<'_>) -> PolicyDecision {
        let mut context = HashMap::new();
        if let Some(proposer) = query.proposer {
            let Some(proposer) = uid("Operator", proposer) else { return PolicyDecision::error() };
            context.insert("proposer".to_owned(), RestrictedExpression::new_entity_uid(proposer));
        }
        self.ask(("Operator", query.operator), query.action.as_str(), ("Target", query.target), context)
    }

    /// Whether a member may have a stored secret opened for it.
    pub fn secret(&self, query: SecretQuery<'_>) -> PolicyDecision {
        let Some(principal) = principal(query.class, query.asker) else { return unknown_class() };
        let Some(kind) = uid("SecretKind", query.kind.as_str()) else { return PolicyDecision::error() };
        let context = HashMap::from([
            ("kind".to_owned(), RestrictedExpression::new_entity_uid(kind)),
            ("is_holder".to_owned(), RestrictedExpression::new_bool(query.is_holder)),
            ("has_task".to_owned(), RestrictedExpression::new_bool(query.has_task)),
        ]);
        self.ask(principal, OPEN_SECRET, ("Secret", query.secret), context)
    }

    /// Puts one question. Whatever goes wrong on the way is a deny.
    fn ask(
        &self,
        principal: (&str, &str),
        action: &str,
        resource: (&str, &str),
        context: HashMap<String, RestrictedExpression>,
    ) -> PolicyDecision {
        let uids = (uid(principal.0, principal.1), uid("Action", action), uid(resource.0, resource.1));
        let (Some(principal), Some(action), Some(resource)) = uids else { return PolicyDecision::error() };
        let Ok(context) = Context::from_pairs(context) else { return PolicyDecision::error() };
        // A question that does not fit the schema is one that no policy foresaw; an agent asking for a right
        // that only operators have ends here.
        let Ok(request) = Request::new(principal, action, resource, context, Some(&self.schema)) else {
            return PolicyDecision { allowed: false, policies: Vec::new(), reason: NOT_PERMITTED.to_owned() };
        };
        let response = Authorizer::new().is_authorized(&request, &self.policies, &self.entities);
        if response.diagnostics().errors().next().is_some() {
            return PolicyDecision::error();
        }
        let mut policies: Vec<String> = response.diagnostics().reason().map(ToString::to_string).collect();
        policies.sort_unstable();
        let (allowed, reason) = match response.decision() {
            Decision::Allow => (true, PERMITTED),
            Decision::Deny if policies.is_empty() => (false, NOT_PERMITTED),
            Decision::Deny => (false, FORBIDDEN),
        };
        PolicyDecision { allowed, policies, reason: reason.to_owned() }
    }
}

fn unknown_class() -> PolicyDecision {
    PolicyDecision { allowed: false, policies: Vec::new(), reason: NOT_PERMITTED.to_owned() }
}

/// The entity that stands for a member of a security domain.
fn principal<'a>(class: &str, id: &'a str) -> Option<(&'static str, &'a str)> {
    match class {
        "agents" => Some(("Agent", id)),
        "desk" => Some(("Desk", id)),
        "market" | "news" | "research" | "ledger" => Some(("Unit", id)),
        _ => None,
    }
}

fn uid(entity_type: &str, id: &str) -> Option<EntityUid> {
    let entity_type: EntityTypeName = entity_type.parse().ok()?;
    Some(EntityUid::from_type_name_and_id(entity_type, EntityId::new(id)))
}

fn grant_context(query: &GrantQuery<'_>) -> Option<HashMap<String, RestrictedExpression>> {
    let task_kind = uid("TaskKind", query.task_kind.as_str())?;
    let text = |text: &str| RestrictedExpression::new_string(text.to_owned());
    let sources = query.sources.iter().map(|source| text(source));
    let numbers = [
        ("notional", query.limits.notional),
        ("order_notional", query.limits.order_notional),
        ("orders", query.limits.orders.map(i64::from)),
        // More rows than Cedar can count are as many as it can.
        ("rows", query.limits.rows.map(|rows| i64::try_from(rows).unwrap_or(i64::MAX))),
    ];
    let mut context = HashMap::from([
        ("task".to_owned(), text(query.task)),
        ("task_kind".to_owned(), RestrictedExpression::new_entity_uid(task_kind)),
        ("quarantined".to_owned(), RestrictedExpression::new_bool(query.quarantined)),
        ("sources".to_owned(), RestrictedExpression::new_set(sources)),
        ("lifetime_s".to_owned(), RestrictedExpression::new_long(query.lifetime_s)),
    ]);
    if let Some(portfolio) = query.portfolio {
        context.insert("portfolio".to_owned(), text(portfolio));
    }
    for (name, number) in numbers {
        if let Some(number) = number {
            context.insert(name.to_owned(), RestrictedExpression::new_long(number));
        }
    }
    Some(context)
}

fn within_length(file: &str, text: &str) -> Result<(), PolicyError> {
    if text.len() > FILE_BYTES_MAX { Err(PolicyError::TooLong { file: file.to_owned() }) } else { Ok(()) }
}

/// A schema without one of our words would turn every question about it into a silent deny.
fn knows_every_word(schema: &Schema) -> Result<(), PolicyError> {
    let known: HashSet<String> = schema.actions().map(|action| action.id().unescaped().to_owned()).collect();
    let standing = StandingAction::ALL.iter().map(|word| word.as_str());
    let grants = Action::ALL.iter().map(|word| word.as_str());
    let operators = OperatorAction::ALL.iter().map(|word| word.as_str());
    match standing.chain(grants).chain(operators).find(|word| !known.contains(*word)) {
        Some(word) => Err(PolicyError::Schema { detail: format!("the action {word} is missing") }),
        None => Ok(()),
    }
}

/// The policies of one file, each under its `@id`.
fn parse(file: &str, text: &str) -> Result<Vec<Policy>, PolicyError> {
    let name = || file.to_owned();
    let parsed: cedar_policy::PolicySet =
        text.parse().map_err(|error| PolicyError::Syntax { file: name(), detail: format!("{error}") })?;
    if parsed.templates().next().is_some() {
        return Err(PolicyError::Template { file: name() });
    }
    if parsed.policies().nth(POLICIES_MAX).is_some() {
        return Err(PolicyError::TooMany);
    }
    let named = parsed.policies().zip(1..).map(|(policy, number)| match policy.annotation("id") {
        Some(id) if !id.is_empty() => Ok(policy.new_id(PolicyId::new(id))),
        _ => Err(PolicyError::NoId { file: name(), number }),
    });
    named.collect()
}

fn validate(schema: &Schema, policies: &cedar_policy::PolicySet) -> Result<(), PolicyError> {
    let result = Validator::new(schema.clone()).validate(policies, ValidationMode::Strict);
    if result.validation_passed_without_warnings() {
        return Ok(());
    }
    let errors = result.validation_errors().map(ToString::to_string);
    let warnings = result.validation_warnings().map(ToString::to_string);
    Err(PolicyError::Validation { detail: errors.chain(warnings).collect::<Vec<_>>().join("\n") })
}

/// Every text with its length in front, so that no two sets of files have the same bytes.
fn digest_of(schema: &str, files: &[(&str, &str)]) -> Digest {
    let mut bytes = Vec::new();
    let texts = files.iter().flat_map(|(name, text)| [*name, *text]);
    for text in std::iter::once(schema).chain(texts) {
        bytes.extend_from_slice(&(text.len() as u64).to_be_bytes());
        bytes.extend_from_slice(text.as_bytes());
    }
    Digest::of(&bytes)
}

#[cfg(test)]
mod tests;
