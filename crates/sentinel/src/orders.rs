//! Every order from its approval to its fills, to see that nothing is sent or filled that was not approved.
//!
//! Owns a bounded book of orders. An order that is not in it, because it was never approved or is older than
//! the book reaches, counts as not approved: the rule fails loudly, never silently.

use std::collections::{BTreeMap, VecDeque};

use crate::config::Overfill;
use crate::finding::Rule;

/// The most fills of one order that are told apart; more count as new ones.
const FILLS_MAX: usize = 64;

#[derive(Debug, Default)]
struct Order {
    agent: String,
    task: String,
    /// Quantity and price that were decided on.
    quantity: i64,
    price: i64,
    approved: bool,
    sent: bool,
    /// Fills seen, so that one that is told twice counts once.
    fills: Vec<(String, i64, i64)>,
    filled: i64,
    notional: i128,
}

/// What is wrong with an order: the rule, whose order, in which task, what was expected and what was seen.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct Wrong {
    pub(crate) rule: Rule,
    pub(crate) agent: Option<String>,
    pub(crate) task: Option<String>,
    pub(crate) expected: String,
    pub(crate) seen: String,
}

/// The book.
#[derive(Debug, Default)]
pub(crate) struct Orders {
    orders: BTreeMap<String, Order>,
    oldest: VecDeque<String>,
}

/// A decision on an order.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Decided<'a> {
    pub(crate) order: &'a str,
    pub(crate) agent: &'a str,
    pub(crate) task: &'a str,
    pub(crate) quantity: i64,
    pub(crate) price: i64,
    pub(crate) approved: bool,
}

impl Orders {
    /// Notes a decision; answers whether it is news. The same decision told again, as after a crash, is none.
    /// An approval stands: what is decided later under the same id changes nothing of it.
    pub(crate) fn decided(&mut self, decided: Decided<'_>, orders_max: usize) -> bool {
        if let Some(order) = self.orders.get_mut(decided.order) {
            let same = (order.quantity, order.price) == (decided.quantity, decided.price);
            if !order.approved {
                order.approved = decided.approved;
                (order.quantity, order.price) = (decided.quantity, decided.price);
            }
            return !same;
        }
        while self.orders.len() >= orders_max {
            let Some(oldest) = self.oldest.pop_front() else { break };
            self.orders.remove(&oldest);
        }
        let Decided { agent, task, quantity, price, approved, .. } = decided;
        let order = Order {
            agent: agent.to_owned(),
            task: task.to_owned(),
            quantity,
            price,
            approved,
            ..Order::default()
        };
        self.orders.insert(decided.order.to_owned(), order);
        self.oldest.push_back(decided.order.to_owned());
        true
    }

    fn approved(&mut self, id: &str, event: &str) -> Result<&mut Order, Wrong> {
        let wrong = |agent, task| Wrong {
            rule: Rule::OrderNotApproved,
            agent,
            task,
            expected: format!("an approval of order {id} before anything else"),
            seen: format!("it was {event}"),
        };
        match self.orders.get_mut(id) {
            Some(order) if order.approved => Ok(order),
            Some(order) => Err(wrong(Some(order.agent.clone()), Some(order.task.clone()))),
            None => Err(wrong(None, None)),
        }
    }

    /// Notes that an order was sent.
    pub(crate) fn sent(&mut self, id: &str) -> Result<(), Wrong> {
        let order = self.approved(id, "sent")?;
        if std::mem::replace(&mut order.sent, true) {
            return Err(Wrong {
                rule: Rule::OrderSentTwice,
                agent: Some(order.agent.clone()),
                task: Some(order.task.clone()),
                expected: format!("order {id} sent once"),
                seen: "it was sent again".to_owned(),
            });
        }
        Ok(())
    }

    /// Notes a fill. Whether the order was sent is not asked: the broker's word may overtake the desk's after
    /// a crash.
    pub(crate) fn filled(
        &mut self,
        id: &str,
        fill: &str,
        quantity: i64,
        price: i64,
        config: &Overfill,
    ) -> Result<(), Wrong> {
        let order = self.approved(id, "filled")?;
        let told = (fill.to_owned(), quantity, price);
        if order.fills.contains(&told) {
            return Ok(());
        }
        if order.fills.len() < FILLS_MAX {
            order.fills.push(told);
        }
        // A fill of nothing or less takes nothing back from what was filled.
        order.filled = order.filled.saturating_add(quantity.max(0));
        order.notional =
            order.notional.saturating_add(i128::from(quantity.max(0)) * i128::from(price.max(0)));
        if order.filled <= order.quantity || is_split(order, config) {
            return Ok(());
        }
        Err(Wrong {
            rule: Rule::OrderOverfilled,
            agent: Some(order.agent.clone()),
            task: Some(order.task.clone()),
            expected: format!("at most {} shares of order {id}", order.quantity),
            seen: format!("{} shares were filled", order.filled),
        })
    }

    #[cfg(test)]
    pub(crate) fn len(&self) -> usize {
        self.orders.len().max(self.oldest.len())
    }
}

/// Whether more shares than approved are explained by a split in between: many more shares, for the same
/// money.
#[expect(clippy::cast_precision_loss, reason = "a ratio is compared with a tolerance of some per cent")]
fn is_split(order: &Order, config: &Overfill) -> bool {
    let shares = order.filled as f64 / (order.quantity as f64);
    let money = order.notional as f64 / (i128::from(order.quantity) * i128::from(order.price)) as f64;
    let tolerance = config.notional_ratio_max;
    shares >= config.split_ratio_min && money <= tolerance && money * tolerance >= 1.0
}
