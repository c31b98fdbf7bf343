//! No look-ahead: whatever happens after a day, everything computed for that day stays the same, to the bit.

#![expect(clippy::unwrap_used, reason = "a test may fail by panicking")]

use analyst::features::{self, LOOKBACK_DAYS};
use analyst::forecast::{Training, forecast};
use analyst::levels::Levels;
use market::{Day, Panel, Split, Symbol};
use proptest::prelude::*;

/// A training so short that a small panel suffices.
const BRIEF: Training = Training {
    window_days: 60,
    step_days: 5,
    horizon_days: 10,
    weeks_min: 2,
    penalty: 1.0,
    label_limit: 0.3,
};

/// More days than the brief training reads.
const DAYS: usize = LOOKBACK_DAYS + 120;

fn day(index: usize) -> Day {
    "1999-01-01".parse::<Day>().unwrap().plus_days(index as i64).unwrap()
}

fn symbol(index: usize) -> Symbol {
    format!("S{index}").parse().unwrap()
}

/// Random walks with holes, late listings and splits.
fn panel() -> impl Strategy<Value = Panel> {
    let column = (
        1_000_000_i64..500_000_000,
        prop::collection::vec((-40_i64..42, 0_u8..100), DAYS),
        prop::option::weighted(0.3, 0..DAYS),
        prop::collection::vec((0..DAYS, 1_u32..9, 1_u32..9), 0..4),
    );
    prop::collection::vec(column, 3..7).prop_map(|columns| {
        let mut panel = Panel { days: (0..DAYS).map(day).collect(), ..Panel::default() };
        for (index, (first, steps, listed, splits)) in columns.into_iter().enumerate() {
            let mut close = first;
            let column = steps.into_iter().enumerate().map(|(at, (step, luck))| {
                close = (close + close / 1_000 * step).max(1_000);
                let there = luck > 2 && listed.is_none_or(|listed| at >= listed);
                there.then_some(close)
            });
            panel.closes.push(column.collect());
            panel.symbols.push(symbol(index));
            for (at, numerator, denominator) in splits {
                panel
                    .splits
                    .extend(Split::new(day(at), numerator, denominator).ok().map(|one| (symbol(index), one)));
            }
        }
        panel
    })
}

/// The same panel up to a day, and another future: other closes, other splits, another number of days.
fn with_another_future(panel: &Panel, today: usize, future: &[Option<i64>], split: (u32, u32)) -> Panel {
    let mut other = panel.through(day(today));
    other.days.extend((1..=future.len()).map(|ahead| day(today + ahead)));
    for (index, column) in other.closes.iter_mut().enumerate() {
        column.extend(future.iter().map(|close| close.map(|close| close + index as i64)));
    }
    let later = Split::new(day(today + 1), split.0, split.1).ok();
    other.splits.extend(later.map(|one| (symbol(0), one)));
    other
}

fn bits(sections: &[Option<features::Features>]) -> Vec<Option<Vec<u64>>> {
    sections.iter().map(|row| row.map(|row| row.iter().map(|value| value.to_bits()).collect())).collect()
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(256))]

    #[test]
    fn no_feature_of_a_day_changes_when_any_data_after_it_changes(
        panel in panel(),
        today in LOOKBACK_DAYS - 2..DAYS,
        future in prop::collection::vec(prop::option::weighted(0.8, 1_i64..1_000_000_000_000), 0..40),
        split in (1_u32..1_000, 1_u32..1_000),
    ) {
        let other = with_another_future(&panel, today, &future, split);
        let end = day(DAYS * 2);
        let (known, changed) = (Levels::of(&panel, end).unwrap(), Levels::of(&other, end).unwrap());
        for index in [today, today - 1, (today + LOOKBACK_DAYS) / 2] {
            if index <= today {
                prop_assert_eq!(
                    bits(&features::cross_section(&known, index)),
                    bits(&features::cross_section(&changed, index))
                );
            }
        }
    }

    #[test]
    fn no_forecast_of_a_day_changes_when_any_data_after_it_changes(
        panel in panel(),
        today in LOOKBACK_DAYS + 40..DAYS,
        future in prop::collection::vec(prop::option::weighted(0.8, 1_i64..1_000_000_000_000), 0..40),
        split in (1_u32..1_000, 1_u32..1_000),
    ) {
        let other = with_another_future(&panel, today, &future, split);
        let known = forecast(&panel, day(today), &BRIEF);
        prop_assert_eq!(&known, &forecast(&other, day(today), &BRIEF));
        if let Ok(known) = known {
            prop_assert!(known.model.trained_through <= day(today));
            prop_assert_eq!(known.day, day(today));
        }
    }
}

#[test]
fn the_last_label_ends_on_the_day_of_the_forecast_at_the_latest_and_is_used() {
    let mut state = 7_u64;
    let mut panel = Panel { days: (0..DAYS).map(day).collect(), ..Panel::default() };
    for index in 0..4 {
        let mut close = 50_000_000_i64;
        panel.symbols.push(symbol(index));
        panel.closes.push(
            (0..DAYS)
                .map(|_| {
                    state =
                        state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
                    close += close / 100 * ((state >> 33) % 5) as i64 - close / 50;
                    Some(close)
                })
                .collect(),
        );
    }
    let today = DAYS - 1;
    let made = forecast(&panel, day(today), &BRIEF).unwrap();
    assert_eq!(made.model.trained_through, day(today));
    // A label that ends today counts: moving today's close changes the coefficients.
    let mut moved = panel.clone();
    moved.closes[0][today] = moved.closes[0][today].map(|close| close * 2);
    let other = forecast(&moved, day(today), &BRIEF).unwrap();
    assert_ne!(made.model.coefficients_ppb, other.model.coefficients_ppb);
    // A stock that has just been listed gets no score, and the others keep theirs.
    let mut young = panel;
    young.closes[3].iter_mut().take(200).for_each(|close| *close = None);
    let scores = forecast(&young, day(today), &BRIEF).unwrap().scores_ppm;
    assert_eq!(scores.keys().cloned().collect::<Vec<_>>(), [symbol(0), symbol(1), symbol(2)]);
}

#[test]
fn too_little_history_is_said_so() {
    let error = forecast(&Panel::default(), day(0), &Training::TEXTBOOK).unwrap_err();
    assert_eq!(error.to_string(), "too little history: 0 labelled weeks, 52 needed");
}
