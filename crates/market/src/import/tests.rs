//! Attacks on the import: each bad row must be named, and cost nobody else.

use proptest::prelude::*;

use super::*;

const LONG: &str = "Symbol,Date,Open,High,Low,Close,Volume,Split\n";

fn symbol(text: &str) -> Symbol {
    text.parse().unwrap()
}

fn named(imported: &Imported) -> Vec<(u64, &'static str, &'static str)> {
    imported.findings.iter().map(|one| (one.row, one.fault.as_str(), one.action.as_str())).collect()
}

fn closes(imported: &Imported, of: &str) -> Vec<String> {
    imported.series.get(&symbol(of)).map_or(Vec::new(), |series| {
        series.bars.iter().map(|bar| format!("{} {}", bar.day, bar.close)).collect()
    })
}

/// A clean table of five days with one bad line put in at a place (0 = right after the header).
fn with_line(place: usize, line: &str) -> Imported {
    let mut lines: Vec<String> =
        (1..=5).map(|day| format!("A,2001-01-0{day},10,11,9,10.{day},100,")).collect();
    lines.insert(place, line.to_owned());
    read(&format!("{LONG}{}\n", lines.join("\n"))).unwrap()
}

#[test]
fn every_bad_row_is_refused_by_name_and_the_rest_is_imported() {
    let cases = [
        ("A,2001-01-06,10,11,9,-10,100,", "negative_price"),
        ("A,2001-01-06,-0.01,11,9,10,100,", "negative_price"),
        ("A,2001-01-06,10,11,9,0,100,", "zero_price"),
        ("A,2001-01-03,10,11,9,10,100,", "duplicate_day"),
        ("A,2000-12-31,10,11,9,10,100,", "out_of_order"),
        ("A,2001-01-06,10,11,9,,100,", "missing_field"),
        ("A,2001-01-06,10,11,9", "missing_field"),
        (",2001-01-06,10,11,9,10,100,", "missing_field"),
        ("A,,10,11,9,10,100,", "missing_field"),
        ("A,2001-01-06,1000,1100,900,1050,100,", "jump"),
        ("A,2001-01-06,0.1,0.1,0.1,0.1,100,", "jump"),
        ("A,2001-01-06,ten,11,9,10,100,", "not_a_number"),
        ("A,2001-01-06,10,11,9,NaN,100,", "not_a_number"),
        ("A,2001-01-06,10,11,9,99999999999999999999,100,", "not_a_number"),
        ("A,2001-02-30,10,11,9,10,100,", "not_a_day"),
        ("A,06/01/2001,10,11,9,10,100,", "not_a_day"),
        ("A,2001-01-06,10,9,11,10,100,", "high_below_low"),
        ("A,2001-01-06,10,11,9,10,-5,", "bad_volume"),
        ("A,2001-01-06,10,11,9,10,1.5,", "bad_volume"),
        ("a b,2001-01-06,10,11,9,10,100,", "bad_symbol"),
        ("../A,2001-01-06,10,11,9,10,100,", "bad_symbol"),
        ("A,2001-01-06,10,11,9,10,100,2:0", "bad_split"),
        ("A,2001-01-06,10,11,9,10,100,,extra", "extra_field"),
        ("A,2001-01-06,\"10,11,9,10,100,", "extra_field"),
    ];
    for (line, fault) in cases {
        let imported = with_line(5, line);
        assert_eq!(named(&imported), vec![(7, fault, "refused")], "{line}");
        assert_eq!(imported.bars, 5, "{line}");
        assert_eq!((imported.refused, imported.flagged), (1, 0), "{line}");
    }
}

#[test]
fn a_bad_row_in_the_middle_costs_none_of_its_neighbours() {
    for place in 0..=5 {
        for line in
            ["A,2001-01-03,10,11,9,-1,100,", "A,2999-12-31,10,11,9,10,100,", "A,1950-01-01,10,11,9,10,100,"]
        {
            let imported = with_line(place, line);
            let taken = imported.bars - u64::from(imported.refused == 0);
            assert_eq!(taken, 5, "{line} at {place}: {:?}", imported.findings);
        }
    }
    let imported = with_line(2, "A,2999-12-31,10,11,9,10,100,");
    assert_eq!(named(&imported), vec![(4, "out_of_order", "refused")]);
}

#[test]
fn of_two_rows_that_changed_places_the_one_that_goes_back_is_refused() {
    let imported = read("Date,A\n2001-01-01,1\n2001-01-03,1\n2001-01-02,1\n2001-01-04,1\n").unwrap();
    assert_eq!(named(&imported), vec![(4, "out_of_order", "refused")]);
}

#[test]
fn a_hundredfold_first_price_does_not_cost_the_rows_after_it() {
    let imported =
        read("Date,A\n2001-01-01,1000\n2001-01-02,10\n2001-01-03,10.1\n2001-01-04,10.2\n").unwrap();
    assert_eq!(named(&imported), vec![(2, "jump", "refused")]);
    assert_eq!(imported.bars, 3);
}

#[test]
fn a_large_fall_is_flagged_and_taken() {
    let imported = read("Date,A\n2001-01-01,10\n2001-01-02,3.9\n2001-01-03,3.9\n").unwrap();
    assert_eq!(named(&imported), vec![(3, "jump", "flagged")]);
    assert_eq!(imported.bars, 3);
    let apple = read("Date,A\n2000-09-28,53.5\n2000-09-29,25.75\n").unwrap();
    assert_eq!((apple.bars, apple.findings.len()), (2, 0));
}

/// A table of the closes 75.01, 75.02, … one a day, with some of them replaced (by index).
fn around_75(count: usize, replaced: &[(usize, &str)]) -> Imported {
    let first: Day = "2001-01-01".parse().unwrap();
    let mut text = "Date,A\n".to_owned();
    for index in 0..count {
        let own = format!("75.{:02}", index % 100);
        let close = replaced.iter().find(|(at, _)| *at == index).map_or(own.as_str(), |(_, close)| close);
        text += &format!("{},{close}\n", first.plus_days(index as i64).unwrap());
    }
    read(&text).unwrap()
}

#[test]
fn a_price_that_lost_its_decimal_point_is_refused_and_costs_no_row_after_it() {
    for bad in ["7579.44", "4600", "750", "200", "7.5", "0.76", "0.001", "99999999"] {
        for at in [1, 2, 50, 97, 98] {
            let imported = around_75(100, &[(at, bad)]);
            assert_eq!(named(&imported), vec![(at as u64 + 2, "jump", "refused")], "{bad} at {at}");
            assert_eq!(imported.bars, 99, "{bad} at {at}");
        }
    }
    let detail = &around_75(9, &[(4, "7579.44")]).findings[0].detail;
    assert_eq!(detail, "close 7579.44 after 75.03, and the next ones are back where it was");
}

#[test]
fn up_to_three_bad_prices_in_succession_cost_only_themselves() {
    let bad = [(50, "7500"), (51, "7501.5"), (52, "0.75")];
    for length in 1..=3 {
        let imported = around_75(100, &bad[..length]);
        assert_eq!((imported.bars, imported.refused), (100 - length as u64, length as u64));
    }
    let imported = around_75(100, &[(50, "7500"), (51, "7501"), (52, "7502")]);
    assert_eq!((imported.bars, imported.refused), (97, 3));
}

#[test]
fn two_bad_prices_just_before_the_end_do_not_cost_the_last_row() {
    let imported = around_75(20, &[(17, "7500"), (18, "7501")]);
    assert_eq!(named(&imported), vec![(19, "jump", "refused"), (20, "jump", "refused")]);
    assert!(closes(&imported, "A").last().unwrap().ends_with(" 75.19"));
}

#[test]
fn a_level_that_lasts_is_flagged_once_and_every_row_is_taken() {
    for factor in ["0.005", "0.05", "10", "99", "100", "5000"] {
        let level: Vec<(usize, String)> = (50..100)
            .map(|at| (at, format!("{:.4}", 75.0 * factor.parse::<f64>().unwrap() * (1.0 + at as f64 / 1e4))))
            .collect();
        let replaced: Vec<(usize, &str)> = level.iter().map(|(at, close)| (*at, close.as_str())).collect();
        let imported = around_75(100, &replaced);
        assert_eq!(named(&imported), vec![(52, "jump", "flagged")], "{factor}");
        assert_eq!(imported.bars, 100, "{factor}");
        // A row of the old level among the new ones is then the bad one.
        let mut mixed = replaced.clone();
        mixed.retain(|(at, _)| *at != 51);
        let imported = around_75(100, &mixed);
        let expected = vec![(52, "jump", "flagged"), (53, "jump", "refused")];
        assert_eq!((named(&imported), imported.bars), (expected, 99), "{factor}");
    }
}

#[test]
fn a_wild_week_of_real_prices_loses_no_row() {
    // GameStop, January and February 2021.
    let text = "Date,GME\n2021-01-22,65.01\n2021-01-25,76.79\n2021-01-26,147.98\n2021-01-27,347.51\n\
                2021-01-28,193.60\n2021-01-29,325.00\n2021-02-01,225.00\n2021-02-02,90.00\n2021-02-03,92.41\n";
    let imported = read(text).unwrap();
    assert_eq!((imported.bars, imported.refused), (9, 0), "{:?}", imported.findings);
    // A crash that recovers a little, as most do.
    let imported = read("Date,A\n2001-01-01,10\n2001-01-02,3.9\n2001-01-03,5.1\n2001-01-04,6\n").unwrap();
    assert_eq!((imported.bars, imported.refused), (4, 0), "{:?}", imported.findings);
}

#[test]
fn a_split_after_a_bad_price_does_not_hide_it() {
    let mut text = LONG.to_owned();
    for (day, close, split) in
        [(1, 80, ""), (2, 8000, ""), (3, 40, "2:1"), (4, 41, ""), (5, 20, "2:1"), (6, 20, "")]
    {
        text += &format!("A,2001-01-0{day},{close},{close},{close},{close},1,{split}\n");
    }
    let imported = read(&text).unwrap();
    assert_eq!((named(&imported), imported.bars), (vec![(3, "jump", "refused")], 5));
}

#[test]
fn a_bad_price_at_the_end_of_a_slice_does_not_cost_the_next_slice() {
    let known = |close: &str| {
        BTreeMap::from([(symbol("A"), ("2001-01-02".parse().unwrap(), close.parse().unwrap()))])
    };
    // The bad price was the last of its slice, where only its size speaks against it, and was taken.
    let ended = read("Date,A\n2001-01-01,75.8\n2001-01-02,7579.44\n").unwrap();
    assert_eq!(named(&ended), vec![(3, "jump", "flagged")]);
    for close in ["7579.44", "0.5"] {
        for next in
            ["2001-01-03,75.24\n2001-01-04,75.3\n", "2001-01-03,75.24\n2001-01-04,75.3\n2001-01-05,74\n"]
        {
            let imported = read_after(&format!("Date,A\n{next}"), &known(close)).unwrap();
            assert_eq!(named(&imported), vec![(2, "jump", "flagged")], "{close}");
            assert_eq!(imported.bars, next.lines().count() as u64, "{close}");
        }
    }
    // It was refused there: the next slice knows the good close before it.
    let imported = read_after("Date,A\n2001-01-03,75.24\n", &known("75.8")).unwrap();
    assert_eq!((imported.bars, imported.findings.len()), (1, 0));
}

#[test]
fn the_last_row_of_all_is_judged_by_its_size() {
    for (close, action) in [("740", "flagged"), ("7400", "flagged"), ("7600", "refused"), ("0.7", "refused")]
    {
        assert_eq!(named(&around_75(20, &[(19, close)])), vec![(21, "jump", action)], "{close}");
    }
}

#[test]
fn a_split_explains_its_jump() {
    let imported =
        read(&format!("{LONG}A,2001-01-01,99,99,99,99,1,\nA,2001-01-02,9.9,9.9,9.9,9.9,1,10:1\n")).unwrap();
    assert_eq!((imported.bars, imported.findings.len()), (2, 0));
    assert_eq!(imported.series[&symbol("A")].splits[0].to_string(), "10:1");
}

#[test]
fn a_split_outlives_the_refusal_of_its_row() {
    let text =
        format!("{LONG}A,2001-01-01,99,99,99,99,1,\nA,2001-01-02,-1,9,9,9,1,10:1\nA,2001-01-03,9,9,9,9,1,\n");
    let imported = read(&text).unwrap();
    assert_eq!(named(&imported), vec![(3, "negative_price", "refused")]);
    assert_eq!(imported.series[&symbol("A")].splits.len(), 1);
    assert_eq!(closes(&imported, "A"), ["2001-01-01 99.00", "2001-01-03 9.00"]);
}

#[test]
fn an_empty_cell_is_silent_before_the_first_price_and_flagged_after() {
    let imported = read("Date,A,B\n2001-01-01,1,\n2001-01-02,,2\n2001-01-03,1,2\n").unwrap();
    assert_eq!(named(&imported), vec![(3, "missing_field", "flagged")]);
    assert_eq!(closes(&imported, "B"), ["2001-01-02 2.00", "2001-01-03 2.00"]);
    let known = BTreeMap::from([(symbol("B"), ("2000-12-31".parse().unwrap(), "2".parse().unwrap()))]);
    let imported = read_after("Date,A,B\n2001-01-01,1,\n", &known).unwrap();
    assert_eq!(named(&imported), vec![(2, "missing_field", "flagged")]);
}

#[test]
fn a_slice_is_judged_against_what_is_known() {
    let known = BTreeMap::from([(symbol("A"), ("2001-01-02".parse().unwrap(), "10".parse().unwrap()))]);
    let text = "Date,A\n2001-01-01,10\n2001-01-02,10\n2001-01-03,1000\n2001-01-04,10\n";
    let imported = read_after(text, &known).unwrap();
    assert_eq!(
        named(&imported),
        vec![(2, "out_of_order", "refused"), (3, "duplicate_day", "refused"), (4, "jump", "refused")]
    );
    assert_eq!(closes(&imported, "A"), ["2001-01-04 10.00"]);
}

#[test]
fn a_price_outside_the_range_and_an_empty_volume_are_flagged() {
    let imported = read(&format!("{LONG}A,2001-01-01,12,11,9,10,,\n")).unwrap();
    assert_eq!(named(&imported), vec![(2, "missing_field", "flagged"), (2, "outside_range", "flagged")]);
    assert_eq!(imported.bars, 1);
}

#[test]
fn columns_are_found_by_name_in_any_case_and_order() {
    let text = "\u{feff}\"close\",DATE,low,HIGH,open,ticker,Adj Close\r\n10,2001-01-01,9,11,10,A,5\r\n\r\n";
    let imported = read(text).unwrap();
    assert_eq!((imported.bars, imported.findings.len()), (1, 0));
    assert_eq!(imported.series[&symbol("A")].bars[0].high.to_string(), "11.00");
}

#[test]
fn an_unreadable_header_is_an_error_and_a_bad_column_is_not() {
    assert_eq!(read(""), Err(ImportError::NoHeader));
    assert_eq!(read("AAPL,MSFT\n"), Err(ImportError::Column { column: "date" }));
    assert_eq!(read("Date,date,A\n"), Err(ImportError::Column { column: "date" }));
    assert_eq!(read("Date,Open,High,Low,Close\n"), Err(ImportError::Column { column: "symbol" }));
    assert_eq!(read("Date,Symbol,Close\n"), Err(ImportError::Column { column: "open" }));
    assert_eq!(read("Date,lower\n"), Err(ImportError::NoSymbol));
    assert_eq!(read(&format!("Date{}", ",A".repeat(COLUMNS_MAX))), Err(ImportError::TooManyColumns));
    let imported = read("Date,A,A,b\n2001-01-01,1,2,3\n").unwrap();
    assert_eq!(named(&imported), vec![(1, "bad_symbol", "refused"), (1, "bad_symbol", "refused")]);
    assert_eq!(closes(&imported, "A"), ["2001-01-01 1.00"]);
}

#[test]
fn a_finding_quotes_a_stranger_shortly_and_without_control_characters() {
    let imported = read(&format!("Date,A\n2001-01-01,\u{1b}[2J{}\n", "x".repeat(10_000))).unwrap();
    let detail = &imported.findings[0].detail;
    assert!(detail.len() < 100 && !detail.contains('\u{1b}'), "{detail}");
}

#[test]
fn findings_are_bounded_and_still_counted() {
    let text = format!("Date,A\n{}", "x,1\n".repeat(FINDINGS_MAX + 5));
    let imported = read(&text).unwrap();
    assert_eq!((imported.findings.len(), imported.refused), (FINDINGS_MAX, FINDINGS_MAX as u64 + 5));
}

/// Lines that look like a table often enough to reach the depths.
fn almost_a_table() -> impl Strategy<Value = String> {
    let field = prop_oneof![
        "(A|B|AAPL)",
        "200[0-2]-0[1-3]-[0-2][0-9]",
        "-?[0-9]{0,3}\\.?[0-9]{0,3}",
        "[0-9]:[0-9]",
        "[\"é,\\x00]{0,2}",
    ];
    let line = proptest::collection::vec(field, 0..10).prop_map(|fields| fields.join(","));
    let header = prop_oneof![Just("Date,A,B".to_owned()), Just(LONG.trim().to_owned())];
    (header, proptest::collection::vec(line, 0..20))
        .prop_map(|(header, lines)| format!("{header}\n{}", lines.join("\n")))
}

proptest! {
    #[test]
    fn no_text_panics_the_import(text in any::<String>()) {
        let _ = read(&text);
    }

    #[test]
    fn whatever_comes_out_is_in_order_and_above_zero(text in almost_a_table()) {
        let imported = read(&text).unwrap();
        for series in imported.series.values() {
            prop_assert!(series.bars.is_sorted_by(|a, b| a.day < b.day));
            prop_assert!(series.splits.is_sorted_by(|a, b| a.day() < b.day()));
            prop_assert!(series.bars.iter().all(|bar| bar.close.micros() > 0 && bar.low <= bar.high));
        }
    }

    /// Whatever single price is wrong, wherever it is: the rows around it come through.
    #[test]
    fn no_single_price_costs_another_row(at in 0_usize..40, micros in prop_oneof![
        1_i64..i64::MAX / 1_000_000,
        700_000_i64..800_000,
        1_000_000_i64..7_000_000_000,
        7_300_000_000_i64..7_700_000_000,
    ]) {
        let bad = Price::from_micros(micros).unwrap().to_string();
        let imported = around_75(40, &[(at, &bad)]);
        let good = imported.series[&symbol("A")].bars.iter().filter(|bar| {
            (74_000_000..77_000_000).contains(&bar.close.micros())
        });
        prop_assert!(good.count() >= 39, "{bad} at {at}: {:?}", imported.findings);
    }

    #[test]
    fn as_many_rows_as_possible_keep_their_place(days in proptest::collection::vec(1_u8..=9, 0..9)) {
        let days: Vec<Day> = days.iter().map(|day| Day::new(2001, 1, *day).unwrap()).collect();
        let kept = Order::of(&days).kept.iter().filter(|kept| **kept).count();
        let best = (0_u32..1 << days.len())
            .filter_map(|choice| {
                let is_chosen = |(i, _): &(usize, &Day)| choice >> i & 1 == 1;
                let chosen: Vec<Day> = days.iter().enumerate().filter(is_chosen).map(|(_, day)| *day).collect();
                chosen.is_sorted_by(|a, b| a < b).then_some(chosen.len())
            })
            .max();
        prop_assert_eq!(Some(kept), best);
    }
}
