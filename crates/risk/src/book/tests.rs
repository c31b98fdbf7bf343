//! Attacks on the book: each check is broken by itself, and no order of events breaks the reservations.

use proptest::prelude::*;

use super::*;
use crate::{Authorisation, KillLatch};

fn day(number: u8) -> Day {
    Day::new(2001, 1, number).unwrap()
}

fn symbol(text: &str) -> Symbol {
    text.parse().unwrap()
}

fn limits() -> Limits {
    Limits {
        quantity_max: Quantity::new(1_000),
        order_notional_max: Money::from_dollars(9_000).unwrap(),
        order_notional_bps_max: 1_000,
        collar_bps: 500,
        price_age_days_max: 7,
        position_bps_max: 2_000,
        messages_per_day_max: 20,
        buy_buffer_bps: 500,
        sell_credit_bps: 9_500,
    }
}

fn book() -> Book {
    let mut book = Book::new("core", limits(), Money::from_dollars(100_000).unwrap()).unwrap();
    book.on_day_close(day(1), &BTreeMap::from([(symbol("AAPL"), "10".parse().unwrap())])).unwrap();
    book
}

fn intent(id: &str, side: Side, quantity: i64) -> OrderIntent {
    OrderIntent {
        id: id.parse().unwrap(),
        portfolio: "core".to_owned(),
        symbol: symbol("AAPL"),
        side,
        quantity: Quantity::new(quantity),
        reference: "10".parse().unwrap(),
        day: day(1),
        forecast: None,
    }
}

fn fill(order: &str, side: Side, quantity: i64) -> Fill {
    Fill {
        id: format!("{order}.fill"),
        order: order.parse().unwrap(),
        portfolio: "core".to_owned(),
        symbol: symbol("AAPL"),
        side,
        quantity: Quantity::new(quantity),
        price: "10".parse().unwrap(),
        fee: Money::ZERO,
        day: day(2),
    }
}

/// What a well-meant task has; the attacks change one thing each.
struct Desk {
    kill: KillLatch,
    authorisation: Authorisation,
    tradable: BTreeSet<Symbol>,
    day: Day,
}

impl Desk {
    fn new() -> Self {
        let symbols = BTreeSet::from([symbol("AAPL")]);
        let notional_left = Money::from_dollars(50_000).unwrap();
        let authorisation =
            Authorisation { portfolio: "core".to_owned(), symbols: symbols.clone(), notional_left };
        Self { kill: KillLatch::open(), authorisation, tradable: symbols, day: day(1) }
    }

    fn ask(&self, book: &mut Book, intent: OrderIntent) -> Result<RiskApproved, Check> {
        let context = Context {
            kill: &self.kill,
            day: self.day,
            authorisation: &self.authorisation,
            tradable: &self.tradable,
        };
        book.approve(intent, &context).map_err(|rejected| {
            assert_eq!(
                rejected.checks.last().map(|last| (last.name, last.passed)),
                Some((rejected.reason, false))
            );
            rejected.reason
        })
    }
}

#[test]
fn an_order_within_all_limits_passes_every_check_in_order() {
    let mut book = book();
    let approved = Desk::new().ask(&mut book, intent("o", Side::Buy, 100)).unwrap();
    let names: Vec<&str> = approved.checks().iter().map(|check| check.name.as_str()).collect();
    assert_eq!(
        names,
        [
            "kill_latch",
            "permission",
            "instrument",
            "quantity",
            "notional",
            "price_collar",
            "position",
            "message_rate",
            "duplicate",
            "buying_power"
        ]
    );
    assert_eq!(approved.reserved(), Money::from_dollars(1_050).unwrap());
    assert_eq!(book.reserved(), Some(approved.reserved()));
}

#[test]
fn the_kill_latch_comes_first_and_a_new_day_does_not_release_it() {
    let (mut book, mut desk) = (book(), Desk::new());
    desk.kill.engage("drill");
    desk.kill.engage("another reason");
    assert_eq!(desk.kill.reason(), Some("drill"));
    assert_eq!(desk.ask(&mut book, intent("o", Side::Buy, i64::MAX)), Err(Check::KillLatch));
    book.on_day_close(day(2), &BTreeMap::new()).unwrap();
    desk.day = day(2);
    assert_eq!(
        desk.ask(&mut book, OrderIntent { day: day(2), ..intent("o", Side::Buy, 1) }),
        Err(Check::KillLatch)
    );
}

#[test]
fn an_order_outside_its_grant_is_refused_and_leaves_no_trace() {
    let attacks: [fn(&mut Desk, &mut OrderIntent); 5] = [
        |_, intent| intent.portfolio = "tech".to_owned(),
        |desk, intent| {
            desk.authorisation.portfolio = "tech".to_owned();
            intent.portfolio = "tech".to_owned();
        },
        |_, intent| intent.symbol = symbol("MSFT"),
        |_, intent| intent.day = day(2),
        |desk, intent| {
            desk.day = Day::new(2000, 12, 31).unwrap();
            intent.day = desk.day;
        },
    ];
    for attack in attacks {
        let (mut book, mut desk, mut order) = (book(), Desk::new(), intent("o", Side::Buy, 1));
        attack(&mut desk, &mut order);
        assert_eq!(desk.ask(&mut book, order.clone()), Err(Check::Permission));
        assert_eq!((book.seen(&order), book.messages(day(1))), (None, 0));
    }
}

#[test]
fn an_instrument_that_is_not_tradable_or_has_no_recent_close_is_refused() {
    let (mut book, mut desk) = (book(), Desk::new());
    desk.tradable.clear();
    assert_eq!(desk.ask(&mut book, intent("a", Side::Buy, 1)), Err(Check::Instrument));
    let mut desk = Desk::new();
    desk.authorisation.symbols.insert(symbol("NEW"));
    desk.tradable.insert(symbol("NEW"));
    let unknown = OrderIntent { symbol: symbol("NEW"), ..intent("b", Side::Buy, 1) };
    assert_eq!(desk.ask(&mut book, unknown), Err(Check::Instrument));
    desk.day = day(9);
    assert_eq!(
        desk.ask(&mut book, OrderIntent { day: day(9), ..intent("c", Side::Buy, 1) }),
        Err(Check::Instrument)
    );
}

#[test]
fn quantity_value_collar_and_position_are_limited() {
    let desk = Desk::new();
    for quantity in [0, -1, i64::MIN, 1_001, i64::MAX] {
        assert_eq!(
            desk.ask(&mut book(), intent("o", Side::Buy, quantity)),
            Err(Check::Quantity),
            "{quantity}"
        );
    }
    assert_eq!(desk.ask(&mut book(), intent("o", Side::Buy, 901)), Err(Check::Notional));
    let mut poor = Desk::new();
    poor.authorisation.notional_left = Money::from_dollars(500).unwrap();
    assert_eq!(poor.ask(&mut book(), intent("o", Side::Buy, 51)), Err(Check::Notional));
    for reference in ["10.51", "9.49", "0.000001"] {
        let far = OrderIntent { reference: reference.parse().unwrap(), ..intent("o", Side::Buy, 1) };
        assert_eq!(desk.ask(&mut book(), far), Err(Check::PriceCollar), "{reference}");
    }
    let mut book = book();
    desk.ask(&mut book, intent("a", Side::Buy, 900)).unwrap();
    desk.ask(&mut book, intent("b", Side::Buy, 899)).unwrap();
    assert_eq!(desk.ask(&mut book, intent("c", Side::Buy, 300)), Err(Check::Position));
    desk.ask(&mut book, intent("d", Side::Buy, 200)).unwrap();
}

#[test]
fn what_is_not_held_cannot_be_sold_and_not_twice() {
    let (mut book, desk) = (book(), Desk::new());
    assert_eq!(desk.ask(&mut book, intent("a", Side::Sell, 1)), Err(Check::Position));
    desk.ask(&mut book, intent("b", Side::Buy, 100)).unwrap();
    assert_eq!(desk.ask(&mut book, intent("c", Side::Sell, 100)), Err(Check::Position));
    book.on_fill(&fill("b", Side::Buy, 100)).unwrap();
    desk.ask(&mut book, intent("d", Side::Sell, 60)).unwrap();
    assert_eq!(desk.ask(&mut book, intent("e", Side::Sell, 41)), Err(Check::Position));
    desk.ask(&mut book, intent("f", Side::Sell, 40)).unwrap();
}

#[test]
fn refused_orders_count_as_messages_and_a_new_day_counts_anew() {
    let (mut book, mut desk) = (book(), Desk::new());
    for number in 0..20 {
        let _ = desk.ask(&mut book, intent(&format!("o{number}"), Side::Buy, 5_000));
    }
    assert_eq!(desk.ask(&mut book, intent("one-more", Side::Buy, 1)), Err(Check::MessageRate));
    desk.day = day(2);
    desk.ask(&mut book, OrderIntent { day: day(2), ..intent("next-day", Side::Buy, 1) }).unwrap();
}

#[test]
fn the_same_id_or_the_same_content_is_a_duplicate() {
    let (mut book, desk) = (book(), Desk::new());
    let order = intent("o", Side::Buy, 10);
    assert_eq!(book.seen(&order), None);
    desk.ask(&mut book, order.clone()).unwrap();
    assert_eq!(book.seen(&order), Some(Seen::Approved));
    assert_eq!(book.seen(&intent("o", Side::Buy, 11)), Some(Seen::Conflict));
    assert_eq!(desk.ask(&mut book, order), Err(Check::Duplicate));
    assert_eq!(desk.ask(&mut book, intent("o", Side::Buy, 11)), Err(Check::Duplicate));
    assert_eq!(desk.ask(&mut book, intent("p", Side::Buy, 10)), Err(Check::Duplicate));
    assert_eq!(book.reserved(), Some(Money::from_dollars(105).unwrap()));
    assert_eq!(book.seen(&intent("p", Side::Buy, 10)), Some(Seen::Rejected(Check::Duplicate)));
}

#[test]
fn buying_power_is_what_is_left_after_working_orders() {
    let rich = Limits { position_bps_max: 10_000, order_notional_bps_max: 10_000, ..limits() };
    let mut book = Book::new("core", rich, Money::from_dollars(10_000).unwrap()).unwrap();
    book.on_day_close(day(1), &BTreeMap::from([(symbol("AAPL"), "10".parse().unwrap())])).unwrap();
    let desk = Desk::new();
    desk.ask(&mut book, intent("a", Side::Buy, 800)).unwrap();
    // 10,000 less 8,400 held back leaves 1,600: 152 shares with their buffer, not 153.
    assert_eq!(desk.ask(&mut book, intent("b", Side::Buy, 153)), Err(Check::BuyingPower));
    desk.ask(&mut book, intent("c", Side::Buy, 152)).unwrap();
    book.on_ended(&"a".parse().unwrap()).unwrap();
    assert_eq!(book.reserved(), Some(Money::from_dollars(1_596).unwrap()));
    book.on_fill(&fill("c", Side::Buy, 152)).unwrap();
    assert_eq!(book.free_cash(), Some(Money::from_dollars(8_480).unwrap()));
    desk.ask(&mut book, intent("d", Side::Sell, 152)).unwrap();
    assert_eq!(book.free_cash(), Some(Money::from_dollars(8_480 + 1_444).unwrap()));
}

#[test]
fn a_fill_that_nobody_approved_is_an_error_and_changes_nothing() {
    let (mut book, desk) = (book(), Desk::new());
    let never = Err(RiskError::NeverApproved { order: "x".parse().unwrap() });
    assert_eq!(book.on_fill(&fill("x", Side::Buy, 1)), never);
    let _ = desk.ask(&mut book, intent("x", Side::Buy, 5_000));
    assert_eq!(book.on_fill(&fill("x", Side::Buy, 1)), never);
    desk.ask(&mut book, intent("o", Side::Buy, 10)).unwrap();
    let before = book.account().clone();
    for wrong in [fill("o", Side::Buy, 11), fill("o", Side::Sell, 10)] {
        assert!(matches!(book.on_fill(&wrong), Err(RiskError::Mismatch { .. })));
    }
    assert_eq!(*book.account(), before);
    assert_eq!(book.on_fill(&fill("o", Side::Buy, 10)), Ok(Applied::New));
    assert_eq!(book.on_fill(&fill("o", Side::Buy, 10)), Ok(Applied::Again));
    let other = Fill { id: "other".to_owned(), ..fill("o", Side::Buy, 10) };
    assert!(matches!(book.on_fill(&other), Err(RiskError::Mismatch { .. })));
    assert_eq!(book.account().held(&symbol("AAPL")), Quantity::new(10));
}

#[test]
fn a_split_keeps_equity_and_resizes_the_working_order_as_the_market_does() {
    let (mut book, desk) = (book(), Desk::new());
    desk.ask(&mut book, intent("a", Side::Buy, 101)).unwrap();
    book.on_fill(&fill("a", Side::Buy, 101)).unwrap();
    desk.ask(&mut book, intent("b", Side::Sell, 51)).unwrap();
    let before = book.equity().unwrap();
    let split = Split::new(day(2), 3, 2).unwrap();
    let effect = book.on_split(&symbol("AAPL"), &split).unwrap();
    assert_eq!(effect.after, Quantity::new(151));
    assert!((book.equity().unwrap().micros() - before.micros()).abs() < 10_000);
    assert_eq!(book.on_fill(&fill("b", Side::Sell, 76)), Ok(Applied::New));
    assert_eq!(book.working().count(), 0);
}

#[test]
fn limits_that_make_no_sense_are_refused() {
    let wrong = [Limits { collar_bps: -1, ..limits() }, Limits { sell_credit_bps: 10_001, ..limits() }];
    for one in wrong {
        assert!(matches!(Book::new("core", one, Money::ZERO), Err(RiskError::Limits { .. })));
    }
    assert!(Book::new("core", limits(), Money::from_micros(-1)).is_err());
}

proptest! {
    /// The book and the simulated market agree on what a split does to a resting order, so no fill is ever a surprise.
    #[test]
    fn whatever_was_approved_can_be_filled_and_equity_moves_by_slippage_and_fees_alone(
        steps in proptest::collection::vec((any::<bool>(), 1_i64..800, 0_u32..8, 1_u32..5), 1..20),
    ) {
        let model = engine::FillModel { slippage_bps: 10, fee_bps: 5, seed: 1 };
        let (mut market, mut book, mut desk) = (engine::PaperMarket::new(model).unwrap(), book(), Desk::new());
        let mut price: Price = "10".parse().unwrap();
        for (number, (buy, quantity, new, old)) in (2_u8..).zip(steps) {
            let today = day(number);
            let side = if buy { Side::Buy } else { Side::Sell };
            let wish =
                OrderIntent { day: desk.day, reference: price, ..intent(&format!("o{number}"), side, quantity) };
            if let Ok(approved) = desk.ask(&mut book, wish) {
                market.place(approved.intent()).unwrap();
            }
            let before = book.equity().unwrap();
            // A split that would leave a price below a cent doesn't happen.
            let sane = |split: &Split| split.adjust(price).is_some_and(|price| price.micros() >= 10_000);
            let split = Split::new(today, new, old).ok().filter(sane);
            let splits: Vec<(Symbol, Split)> = split.into_iter().map(|split| (symbol("AAPL"), split)).collect();
            for (of, split) in &splits {
                price = split.adjust(price).unwrap();
                book.on_split(of, split).unwrap();
            }
            let bars = BTreeMap::from([(symbol("AAPL"), market::Bar::from_close(today, price))]);
            let held = book.account().held(&symbol("AAPL")).shares();
            let (mut traded, mut shares) = (0, 0);
            for report in market.step(today, &bars, &splits).unwrap() {
                match report {
                    engine::Report::Filled(fill) => {
                        shares += fill.quantity.shares();
                        traded += fill.price.checked_mul(fill.quantity).unwrap().micros();
                        prop_assert_eq!(book.on_fill(&fill), Ok(Applied::New));
                    }
                    engine::Report::Expired { order, .. } => {
                        prop_assert_eq!(book.on_ended(&order), Ok(Applied::New));
                    }
                }
            }
            let after = book.on_day_close(today, &BTreeMap::from([(symbol("AAPL"), price)])).unwrap();
            let lost = before.micros() - after.micros();
            // At most 15 basis points of slippage and 5 of fee; a millionth per share for each rounding of a price.
            let rounding = held + shares + 10;
            prop_assert!((-rounding..=traded / 490 + rounding).contains(&lost), "{} of {}", lost, traded);
            prop_assert_eq!(book.reserved(), Some(Money::ZERO));
            prop_assert_eq!(book.working().count(), 0);
            desk.day = today;
        }
    }

    /// INVARIANT: reservations are never negative, equal the sum over working orders, and end with them; a
    /// book that is rebuilt from what was recorded equals the one that lived through it.
    #[test]
    fn no_order_of_events_breaks_the_reservations_and_a_rebuilt_book_is_the_same(
        events in proptest::collection::vec((0_u8..4, 0_u8..12, any::<bool>(), -2_i64..1_200), 0..60),
    ) {
        let (mut live, desk) = (book(), Desk::new());
        let mut rebuilt = book();
        let mut reserved: BTreeMap<OrderId, Money> = BTreeMap::new();
        for (kind, id, buy, quantity) in events {
            let (id, side) = (format!("o{id}"), if buy { Side::Buy } else { Side::Sell });
            let order: OrderId = id.parse().unwrap();
            match kind {
                0 | 1 => {
                    let wish = intent(&id, side, quantity);
                    match desk.ask(&mut live, wish.clone()) {
                        Ok(approved) => {
                            reserved.insert(order, approved.reserved());
                            rebuilt.readmit(&wish).unwrap();
                        }
                        Err(reason) => rebuilt.readmit_rejected(&wish, reason),
                    }
                }
                2 => {
                    let report = fill(&id, side, quantity);
                    let outcome = live.on_fill(&report);
                    prop_assert_eq!(&rebuilt.on_fill(&report), &outcome);
                    if outcome == Ok(Applied::New) && !live.working().any(|one| one.id == order) {
                        reserved.remove(&order);
                    }
                }
                _ => {
                    let outcome = live.on_ended(&order);
                    prop_assert_eq!(&rebuilt.on_ended(&order), &outcome);
                    reserved.remove(&order);
                }
            }
            let held_back = live.reserved().unwrap();
            let most = reserved.values().fold(0, |sum, one| sum + one.micros());
            prop_assert!(held_back >= Money::ZERO && held_back.micros() <= most);
            prop_assert_eq!(live.working().count(), reserved.len());
            prop_assert!(live.account().cash >= Money::ZERO, "what was held back was enough");
            prop_assert_eq!(rebuilt.reserved(), live.reserved());
            prop_assert_eq!(rebuilt.account(), live.account());
            prop_assert_eq!(rebuilt.messages(day(1)), live.messages(day(1)));
        }
    }
}
