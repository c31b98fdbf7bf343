//! The policy files of the project and the loader: what is refused at loading, and that each guardrail is
//! what stops its attack. The whole table of permissions is in `tests/permissions.txt` beside this crate's
//! sources.

use super::*;

const SCHEMA: &str = include_str!("../../../../policies/schema.cedarschema");
const FILES: [(&str, &str); 4] = [
    ("standing.cedar", include_str!("../../../../policies/standing.cedar")),
    ("grants.cedar", include_str!("../../../../policies/grants.cedar")),
    ("operators.cedar", include_str!("../../../../policies/operators.cedar")),
    ("secrets.cedar", include_str!("../../../../policies/secrets.cedar")),
];
const AGENT: &str = "spiffe://trader.test/agent/collector/1";
const ANNA: &str = "spiffe://trader.test/operator/anna";
const BEN: &str = "spiffe://trader.test/operator/ben";

fn ours() -> PolicySet {
    PolicySet::load(SCHEMA, &FILES).unwrap()
}

/// Our policies and one more file.
fn with(text: &str) -> Result<PolicySet, PolicyError> {
    let mut files = FILES.to_vec();
    files.push(("more.cedar", text));
    PolicySet::load(SCHEMA, &files)
}

/// Our policies without the one that has this identifier.
fn without(id: &str) -> PolicySet {
    let mark = format!("@id(\"{id}\")");
    let cut = FILES.map(|(name, text)| match text.split_once(&mark) {
        Some((before, rest)) => (name, format!("{before}{}", rest.split_once(';').unwrap().1)),
        None => (name, text.to_owned()),
    });
    let files = cut.each_ref().map(|(name, text)| (*name, text.as_str()));
    let policies = PolicySet::load(SCHEMA, &files).unwrap();
    assert_eq!(policies.ids().len() + 1, ours().ids().len(), "{id} is cut out");
    policies
}

struct Wish {
    class: &'static str,
    quarantined: bool,
    task_kind: TaskKind,
    audience: Audience,
    actions: BTreeSet<Action>,
    portfolio: Option<&'static str>,
    sources: BTreeSet<String>,
    lifetime_s: i64,
    limits: Limits,
}

fn orders() -> Wish {
    Wish {
        class: "agents",
        quarantined: false,
        task_kind: TaskKind::Rebalance,
        audience: Audience::Desk,
        actions: [Action::PlaceOrders].into(),
        portfolio: Some("core"),
        sources: BTreeSet::new(),
        lifetime_s: 300,
        limits: Limits { notional: Some(10), order_notional: Some(5), orders: Some(2), rows: Some(9) },
    }
}

fn reads() -> Wish {
    let limits = Limits { rows: Some(9), ..Limits::default() };
    Wish { audience: Audience::Market, actions: [Action::ReadBars].into(), limits, ..orders() }
}

impl Wish {
    fn put_to(&self, policies: &PolicySet) -> PolicyDecision {
        policies.grant(&GrantQuery {
            holder: AGENT,
            class: self.class,
            quarantined: self.quarantined,
            task: "task",
            task_kind: self.task_kind,
            audience: self.audience,
            actions: &self.actions,
            portfolio: self.portfolio,
            sources: &self.sources,
            lifetime_s: self.lifetime_s,
            limits: self.limits,
        })
    }
}

#[test]
fn an_agent_stands_with_exactly_three_permissions() {
    let policies = ours();
    let standing = StandingAction::ALL.iter().map(|word| word.as_str());
    let every = standing.chain(Action::ALL.iter().map(|word| word.as_str()));
    let every = every.chain(OperatorAction::ALL.iter().map(|word| word.as_str()));
    let resource = ("Management", "management");
    let allowed = every.filter(|word| policies.ask(("Agent", AGENT), word, resource, HashMap::new()).allowed);
    assert_eq!(allowed.collect::<Vec<_>>(), ["report_status", "verify_role", "check_queue"]);
    assert!(policies.standing(AGENT, "agents", StandingAction::CheckQueue).allowed);
    for class in ["", "agent", "Agents", "management", "operators", "units"] {
        assert!(!policies.standing(AGENT, class, StandingAction::CheckQueue).allowed, "{class:?}");
    }
}

#[test]
fn a_permitted_grant_names_the_policies_that_permit_it() {
    let decision = orders().put_to(&ours());
    assert_eq!((decision.allowed, decision.reason.as_str()), (true, PERMITTED));
    assert_eq!(decision.policies, ["rebalance-places-orders"]);
}

#[test]
fn one_action_too_many_refuses_the_whole_grant_and_so_does_none() {
    let policies = ours();
    assert!(reads().put_to(&policies).allowed);
    let more = Wish { actions: [Action::ReadBars, Action::WriteBars].into(), ..reads() };
    let decision = more.put_to(&policies);
    assert_eq!((decision.allowed, decision.reason.as_str()), (false, NOT_PERMITTED));
    assert!(!Wish { actions: BTreeSet::new(), ..reads() }.put_to(&policies).allowed);
}

#[test]
fn a_grant_for_orders_needs_a_portfolio_a_number_and_two_sums() {
    let policies = ours();
    let with = |change: fn(&mut Wish)| {
        let mut wish = orders();
        change(&mut wish);
        wish.put_to(&policies).allowed
    };
    assert!(with(|_| {}));
    assert!(!with(|wish| wish.portfolio = None));
    assert!(!with(|wish| wish.limits.orders = None));
    assert!(!with(|wish| wish.limits.orders = Some(201)));
    assert!(!with(|wish| wish.limits.notional = None));
    assert!(!with(|wish| wish.limits.order_notional = None));
    assert!(!with(|wish| wish.limits.order_notional = Some(11)));
    assert!(!with(|wish| wish.class = "desk"));
    assert!(!with(|wish| wish.class = "market"));
    assert!(!with(|wish| wish.class = "nobody"));
}

#[test]
fn each_guardrail_stops_its_attack_and_nothing_else_does() {
    let attacks = [
        ("no-grant-in-quarantine", Wish { quarantined: true, ..orders() }),
        ("no-grant-beyond-15-minutes", Wish { lifetime_s: 901, ..orders() }),
        ("no-grant-beyond-15-minutes", Wish { lifetime_s: 0, ..orders() }),
        ("no-sources-but-to-collect", Wish { sources: ["prices".to_owned()].into(), ..reads() }),
        ("no-orders-but-at-the-desk", Wish { limits: orders().limits, ..reads() }),
    ];
    for (id, wish) in attacks {
        let decision = wish.put_to(&ours());
        assert_eq!((decision.reason.as_str(), decision.policies), (FORBIDDEN, vec![id.to_owned()]));
        assert!(wish.put_to(&without(id)).allowed, "{id} cut out");
    }
    let own = OperatorQuery {
        operator: ANNA,
        action: OperatorAction::ClearKill,
        target: "all",
        proposer: Some(ANNA),
    };
    assert_eq!(ours().operator(own).policies, ["nobody-approves-their-own"]);
    assert!(without("nobody-approves-their-own").operator(own).allowed);
}

#[test]
fn stopping_takes_one_person_and_enabling_takes_two() {
    let policies = ours();
    let may = |action, proposer| {
        policies.operator(OperatorQuery { operator: ANNA, action, target: "x", proposer }).allowed
    };
    for action in OperatorAction::ALL {
        let needs_two = match action {
            OperatorAction::Approve | OperatorAction::ReinstateAgent | OperatorAction::ClearKill => true,
            OperatorAction::ReadStatus
            | OperatorAction::RevokeAgent
            | OperatorAction::RevokeGrant
            | OperatorAction::Quarantine
            | OperatorAction::Kill
            | OperatorAction::CreateTicket
            | OperatorAction::RemoveAgent
            | OperatorAction::RotateKeys
            | OperatorAction::ReplaceAuthority
            | OperatorAction::PutSecret
            | OperatorAction::RemoveSecret
            | OperatorAction::RewrapKeys
            | OperatorAction::DestroyKeys
            | OperatorAction::Propose => false,
        };
        assert_eq!(may(*action, None), !needs_two, "{action} alone");
        assert_eq!(may(*action, Some(ANNA)), !needs_two, "{action}, proposed by the same person");
        assert!(may(*action, Some(BEN)), "{action}, proposed by another");
    }
}

/// Everything that can be said for somebody who asks for a secret.
fn secret(policies: &PolicySet, class: &str, kind: SecretKind, is_holder: bool, has_task: bool) -> bool {
    let query = SecretQuery { asker: AGENT, class, secret: "some", kind, is_holder, has_task };
    policies.secret(query).allowed
}

#[test]
fn a_brokers_key_is_for_its_desk_alone_and_a_vendors_for_an_agents_task_alone() {
    let policies = ours();
    for class in ["agents", "desk", "market", "news", "research", "ledger", "operators", "management", ""] {
        for (is_holder, has_task) in [(false, false), (true, false), (false, true), (true, true)] {
            let broker = secret(&policies, class, SecretKind::Broker, is_holder, has_task);
            assert_eq!(broker, class == "desk" && is_holder, "broker for {class}");
            let vendor = secret(&policies, class, SecretKind::Vendor, is_holder, has_task);
            assert_eq!(vendor, class == "agents" && has_task, "vendor for {class}");
        }
    }
}

#[test]
fn the_guardrail_keeps_a_brokers_key_from_agents_whatever_else_is_permitted() {
    let careless = r#"@id("careless") permit (principal, action == Action::"open_secret", resource);"#;
    let policies = with(careless).unwrap();
    assert!(!secret(&policies, "agents", SecretKind::Broker, true, true));
    assert!(secret(&policies, "agents", SecretKind::Vendor, false, false), "what is careless is permitted");
    // Without the guardrail the same mistake hands it out.
    let mut files: Vec<(&str, String)> =
        FILES.iter().map(|(name, text)| (*name, (*text).to_owned())).collect();
    for (_, text) in &mut files {
        if let Some((before, rest)) = text.split_once("@id(\"broker-keys-only-to-the-desk\")") {
            *text = format!("{before}{}", rest.split_once(';').unwrap().1);
        }
    }
    files.push(("more.cedar", careless.to_owned()));
    let files: Vec<(&str, &str)> = files.iter().map(|(name, text)| (*name, text.as_str())).collect();
    let unguarded = PolicySet::load(SCHEMA, &files).unwrap();
    assert!(secret(&unguarded, "agents", SecretKind::Broker, true, true));
}

#[test]
fn a_policy_that_errors_denies_instead_of_being_skipped() {
    // Cedar's own answer would be to skip this `forbid`, and so to permit.
    let overflows = r#"@id("overflows")
        forbid (principal, action == Action::"place_orders", resource)
        when { context.lifetime_s * 9223372036854775807 == 0 };"#;
    let policies = with(overflows).unwrap();
    assert!(orders().put_to(&ours()).allowed);
    let decision = orders().put_to(&policies);
    assert_eq!((decision.allowed, decision.reason.as_str()), (false, POLICY_ERROR));
    let innocent = r#"@id("errs-elsewhere")
        permit (principal, action == Action::"place_orders", resource)
        when { context.lifetime_s * 9223372036854775807 == 0 };"#;
    assert_eq!(orders().put_to(&with(innocent).unwrap()).reason, POLICY_ERROR);
}

#[test]
fn what_is_not_valid_named_and_bounded_is_not_loaded() {
    let refused = |text: &str| with(text).err().unwrap();
    let kill = r#"(principal, action == Action::"kill", resource)"#;
    assert!(matches!(refused("permit (principal"), PolicyError::Syntax { .. }));
    assert!(matches!(refused(&format!("permit {kill};")), PolicyError::NoId { number: 1, .. }));
    assert!(matches!(refused(&format!(r#"@id("") permit {kill};"#)), PolicyError::NoId { .. }));
    let twice = format!(r#"@id("operator-sees") permit {kill};"#);
    assert_eq!(refused(&twice), PolicyError::DuplicateId { id: "operator-sees".into() });
    let template = r#"@id("t") permit (principal == ?principal, action == Action::"kill", resource);"#;
    assert!(matches!(refused(template), PolicyError::Template { .. }));
    for wrong in [
        r#"@id("w") permit (principal, action == Action::"kil", resource);"#,
        r#"@id("w") permit (principal is Agnet, action, resource);"#,
        r#"@id("w") permit (principal, action == Action::"kill", resource) when { context.proposr == principal };"#,
        r#"@id("w") permit (principal, action == Action::"kill", resource) when { context.proposer == principal };"#,
        r#"@id("w") permit (principal, action == Action::"read_bars", resource) when { context.task_kind == "collect" };"#,
        r#"@id("w") permit (principal, action == Action::"read_bars", resource == Audience::"markets");"#,
        r#"@id("w") permit (principal is Unit, action == Action::"read_bars", resource);"#,
    ] {
        assert!(matches!(refused(wrong), PolicyError::Validation { .. }), "{wrong}: {:?}", refused(wrong));
    }
    assert!(matches!(refused(&" ".repeat(FILE_BYTES_MAX + 1)), PolicyError::TooLong { .. }));
    let many =
        (0..=POLICIES_MAX).map(|number| format!("@id(\"p{number}\") permit {kill};\n")).collect::<String>();
    assert_eq!(refused(&many), PolicyError::TooMany);
    let few =
        (0..POLICIES_MAX).map(|number| format!("@id(\"p{number}\") permit {kill};\n")).collect::<String>();
    assert_eq!(refused(&few), PolicyError::TooMany, "together with those of the other files");
    let mut files = FILES.to_vec();
    files.push(FILES[0]);
    assert!(matches!(PolicySet::load(SCHEMA, &files), Err(PolicyError::DuplicateFile { .. })));
}

#[test]
fn a_schema_that_lacks_one_of_our_words_is_refused() {
    let schema = SCHEMA.replace("approve, reinstate_agent, clear_kill\n", "approve, reinstate_agent\n");
    assert!(matches!(PolicySet::load(&schema, &[]), Err(PolicyError::Schema { .. })));
    assert!(matches!(PolicySet::load("entity", &[]), Err(PolicyError::Schema { .. })));
}

#[test]
fn without_policies_everything_is_denied() {
    let policies = PolicySet::load(SCHEMA, &[]).unwrap();
    assert!(!orders().put_to(&policies).allowed);
    assert!(!policies.standing(AGENT, "agents", StandingAction::ReportStatus).allowed);
    let kill = OperatorQuery { operator: ANNA, action: OperatorAction::Kill, target: "all", proposer: None };
    assert!(!policies.operator(kill).allowed);
}

#[test]
fn the_digest_is_of_names_and_texts_and_not_of_their_order() {
    let digest = |files: &[(&str, &str)]| PolicySet::load(SCHEMA, files).unwrap().digest();
    let mut turned = FILES;
    turned.reverse();
    assert_eq!(digest(&FILES), digest(&turned));
    assert_ne!(digest(&FILES), digest(&FILES[..2]));
    assert_ne!(digest(&FILES[..1]), digest(&[("another.cedar", FILES[0].1)]));
    let schema = format!("{SCHEMA}\n");
    assert_ne!(digest(&FILES), PolicySet::load(&schema, &FILES).unwrap().digest());
}
