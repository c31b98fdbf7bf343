//! The table of permissions that follows from `policies/`, compared with `tests/permissions.txt`, so that a
//! change of policy is read as a change of lines.
//!
//! After a wanted change: `TRADER_BLESS=1 cargo test -p access --test permissions`, then read the difference.

use std::collections::BTreeSet;
use std::fmt::Write as _;

use access::policy::{GrantQuery, OperatorAction, OperatorQuery, PolicySet, SecretQuery, StandingAction};
use access::secret::SecretKind;
use access::vocabulary::{Action, Audience, Limits, TaskKind};

const SCHEMA: &str = include_str!("../../../policies/schema.cedarschema");
const FILES: [(&str, &str); 4] = [
    ("standing.cedar", include_str!("../../../policies/standing.cedar")),
    ("grants.cedar", include_str!("../../../policies/grants.cedar")),
    ("operators.cedar", include_str!("../../../policies/operators.cedar")),
    ("secrets.cedar", include_str!("../../../policies/secrets.cedar")),
];
const CLASSES: [&str; 7] = ["agents", "desk", "market", "news", "research", "ledger", "operators"];

/// Whether a grant can be had with everything that a grant of this action may carry and nothing against it.
fn grant(policies: &PolicySet, class: &str, task_kind: TaskKind, audience: Audience, action: Action) -> bool {
    let order = (action == Action::PlaceOrders).then_some(1);
    let limits = Limits {
        rows: Some(1),
        orders: order,
        notional: order.map(i64::from),
        order_notional: order.map(i64::from),
    };
    let query = GrantQuery {
        holder: "spiffe://trader.test/holder",
        class,
        quarantined: false,
        task: "task",
        task_kind,
        audience,
        actions: &BTreeSet::from([action]),
        portfolio: Some("core"),
        sources: &BTreeSet::new(),
        lifetime_s: 300,
        limits,
    };
    policies.grant(&query).allowed
}

fn table(policies: &PolicySet) -> String {
    let mut text =
        String::from("# What policies/ allows. All that is not listed is denied.\n\n# standing: who, what\n");
    for class in CLASSES {
        for action in StandingAction::ALL {
            if policies.standing("spiffe://trader.test/someone", class, *action).allowed {
                let _ = writeln!(text, "{class:<10} {action}");
            }
        }
    }
    text.push_str("\n# grants: task kind, who, where, what\n");
    let (mut allowed, mut denied) = (0, 0);
    for task_kind in TaskKind::ALL {
        for class in CLASSES {
            for audience in Audience::ALL {
                for action in Action::ALL {
                    if grant(policies, class, *task_kind, *audience, *action) {
                        allowed += 1;
                        let _ = writeln!(
                            text,
                            "{:<10} {class:<10} {:<10} {action}",
                            task_kind.as_str(),
                            audience.as_str()
                        );
                    } else {
                        denied += 1;
                    }
                }
            }
        }
    }
    let _ = writeln!(text, "# {allowed} allowed, {denied} denied\n\n# operators: what, how many people");
    for action in OperatorAction::ALL {
        let may = |proposer| {
            let query =
                OperatorQuery { operator: "spiffe://trader.test/a", action: *action, target: "x", proposer };
            policies.operator(query).allowed
        };
        let people =
            match (may(None) || may(Some("spiffe://trader.test/a")), may(Some("spiffe://trader.test/b"))) {
                (true, _) => "one",
                (false, true) => "two",
                (false, false) => "nobody",
            };
        let _ = writeln!(text, "{:<16} {people}", action.as_str());
    }
    text.push_str("\n# secrets: who, what, when\n");
    for class in CLASSES {
        for kind in SecretKind::ALL {
            for (when, is_holder, has_task) in [("stored for it", true, false), ("for its task", false, true)]
            {
                let query = SecretQuery {
                    asker: "spiffe://trader.test/someone",
                    class,
                    secret: "some",
                    kind: *kind,
                    is_holder,
                    has_task,
                };
                if policies.secret(query).allowed {
                    let _ = writeln!(text, "{class:<10} {:<10} {when}", kind.as_str());
                }
            }
        }
    }
    text
}

#[test]
fn the_table_of_permissions_is_the_one_that_was_reviewed() {
    let policies = PolicySet::load(SCHEMA, &FILES).unwrap();
    let found = table(&policies);
    if std::env::var_os("TRADER_BLESS").is_some() {
        std::fs::write(concat!(env!("CARGO_MANIFEST_DIR"), "/tests/permissions.txt"), &found).unwrap();
        return;
    }
    let reviewed = include_str!("permissions.txt");
    let new: Vec<_> = found.lines().filter(|line| !reviewed.lines().any(|old| old == *line)).collect();
    let gone: Vec<_> = reviewed.lines().filter(|line| !found.lines().any(|new| new == *line)).collect();
    assert!(
        found == reviewed,
        "the policies allow something else than tests/permissions.txt\nnew: {new:#?}\ngone: {gone:#?}"
    );
}
