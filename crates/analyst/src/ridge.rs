//! Ridge regression by the normal equations and a Cholesky factor.
//!
//! Owns: the arithmetic of the learned model. Sums run in the order of the rows and nothing is parallel, so
//! the same rows give the same bits. Source: Hoerl and Kennard 1970; the factorisation is the textbook one.
#![expect(
    clippy::indexing_slicing,
    reason = "square matrices of a constant size, indexed by loops up to that size"
)]

use crate::AnalystError;
use crate::features::{COUNT, Features};

/// The coefficients that minimise squared error plus `penalty` times the number of rows times their squared
/// length.
///
/// Features and targets are taken as centred: there is no intercept.
///
/// # Errors
/// [`AnalystError::Singular`] when there is no unique solution: no rows, a figure that is not finite, or a
/// penalty that is not positive.
pub fn fit(rows: &[(Features, f64)], penalty: f64) -> Result<Features, AnalystError> {
    let mut gram = [[0.0; COUNT]; COUNT];
    let mut moment = [0.0; COUNT];
    for (features, target) in rows {
        for i in 0..COUNT {
            moment[i] += features[i] * target;
            for j in 0..=i {
                gram[i][j] += features[i] * features[j];
            }
        }
    }
    for (i, row) in gram.iter_mut().enumerate() {
        row[i] += penalty * rows.len() as f64;
    }
    solve(&gram, &moment)
}

/// The model's answer for one stock.
#[must_use]
pub fn predict(coefficients: &Features, features: &Features) -> f64 {
    coefficients.iter().zip(features).map(|(coefficient, value)| coefficient * value).sum()
}

/// Solves `gram * x = moment` for a positive definite matrix of which only the lower triangle is read.
fn solve(gram: &[[f64; COUNT]; COUNT], moment: &Features) -> Result<Features, AnalystError> {
    let mut lower = [[0.0; COUNT]; COUNT];
    for i in 0..COUNT {
        for j in 0..=i {
            let known = lower[i].iter().zip(&lower[j]).take(j);
            let rest = known.fold(gram[i][j], |rest, (left, right)| rest - left * right);
            if i == j {
                if !rest.is_finite() || rest <= 0.0 {
                    return Err(AnalystError::Singular);
                }
                lower[i][i] = rest.sqrt();
            } else {
                lower[i][j] = rest / lower[j][j];
            }
        }
    }
    let mut solution = *moment;
    for i in 0..COUNT {
        for k in 0..i {
            solution[i] -= lower[i][k] * solution[k];
        }
        solution[i] /= lower[i][i];
    }
    for i in (0..COUNT).rev() {
        for k in i + 1..COUNT {
            solution[i] -= lower[k][i] * solution[k];
        }
        solution[i] /= lower[i][i];
    }
    if solution.iter().all(|value| value.is_finite()) { Ok(solution) } else { Err(AnalystError::Singular) }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Rows that look like noise but are the same every time.
    fn rows(count: u64, truth: &Features) -> Vec<(Features, f64)> {
        let mut state = 1_u64;
        (0..count)
            .map(|_| {
                let mut features = [0.0; COUNT];
                for value in &mut features {
                    state =
                        state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
                    *value = (state >> 40) as f64 / (1_u64 << 23) as f64 - 1.0;
                }
                (features, predict(truth, &features))
            })
            .collect()
    }

    #[test]
    fn a_linear_truth_is_found_again() {
        let truth = [0.5, -1.0, 2.0, 0.0, 0.25, -0.125, 3.0, 1.0, -2.0, 0.75];
        let found = fit(&rows(500, &truth), 1e-12).unwrap();
        for (found, truth) in found.iter().zip(truth) {
            assert!((found - truth).abs() < 1e-6);
        }
    }

    #[test]
    fn a_penalty_shrinks() {
        let truth = [1.0; COUNT];
        let free = fit(&rows(500, &truth), 1e-12).unwrap();
        let shrunk = fit(&rows(500, &truth), 1.0).unwrap();
        assert!(predict(&shrunk, &shrunk) < predict(&free, &free) / 4.0);
    }

    #[test]
    fn equations_without_an_answer_are_refused() {
        assert_eq!(fit(&[], 1.0), Err(AnalystError::Singular));
        assert_eq!(fit(&[([1.0; COUNT], 1.0)], 0.0), Err(AnalystError::Singular));
        assert_eq!(fit(&[([f64::NAN; COUNT], 1.0)], 1.0), Err(AnalystError::Singular));
        assert_eq!(fit(&[([1.0; COUNT], f64::INFINITY)], 1.0), Err(AnalystError::Singular));
    }
}
