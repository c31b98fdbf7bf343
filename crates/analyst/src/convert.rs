//! The one door from floats to integers.
//!
//! Owns: rounding (half away from zero) and the range check. Every score leaves the analyst through here, so
//! that nothing with money in it ever sees a float.

use crate::AnalystError;

/// Greatest magnitude at which every integer is a float: 2^53.
const EXACT_MAX: f64 = 9_007_199_254_740_992.0;

/// `value * scale`, rounded half away from zero.
///
/// # Errors
/// [`AnalystError::OutOfRange`] when the product is not a number or beyond 2^53.
pub fn scaled(value: f64, scale: f64, what: &'static str) -> Result<i64, AnalystError> {
    let rounded = (value * scale).round();
    if !rounded.is_finite() || rounded.abs() > EXACT_MAX {
        return Err(AnalystError::OutOfRange { what });
    }
    // In range by the check above, and whole by the rounding: the cast changes nothing.
    Ok(rounded as i64)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rounding_is_half_away_from_zero_and_nothing_out_of_range_passes() {
        assert_eq!(scaled(0.000_000_5, 1e6, "x"), Ok(1));
        assert_eq!(scaled(-2.5, 1.0, "x"), Ok(-3));
        for value in [f64::NAN, f64::INFINITY, f64::NEG_INFINITY, 1e300] {
            assert_eq!(scaled(value, 1e6, "x"), Err(AnalystError::OutOfRange { what: "x" }));
        }
    }
}
