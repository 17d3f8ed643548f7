//! A median with an interval that needs no assumption about how values are distributed.

/// A sample's median and the order statistics that hold the true median between them with at
/// least 95 % confidence.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Median {
    /// The sample's median.
    pub value: f64,
    /// Lower bound.
    pub low: f64,
    /// Upper bound.
    pub high: f64,
}

impl Median {
    /// The median of `sample`; `None` below six values, too few for 95 %.
    #[must_use]
    pub fn of(sample: &[f64]) -> Option<Self> {
        let mut sorted = sample.to_vec();
        sorted.sort_by(f64::total_cmp);
        let rank = lower_rank(sorted.len())?;
        let (low, high) = (*sorted.get(rank)?, *sorted.iter().rev().nth(rank)?);
        let middle = sorted.len() / 2;
        let upper = *sorted.get(middle)?;
        let value = match sorted.len() % 2 {
            0 => f64::midpoint(*sorted.get(middle - 1)?, upper),
            _ => upper,
        };
        Some(Self { value, low, high })
    }
}

/// The largest rank r (from 0) of which the r-th smallest and r-th largest of `count` values
/// enclose the true median with 95 % confidence: P(Binomial(count, 1/2) <= r) <= 2.5 %.
fn lower_rank(count: usize) -> Option<usize> {
    let trials = i32::try_from(count).ok()?;
    let mut probability = 0.5_f64.powi(trials);
    let mut cumulative = 0.0;
    for rank in 0..count {
        cumulative += probability;
        if cumulative > 0.025 {
            return rank.checked_sub(1);
        }
        let (done, left) = (rank + 1, count - rank);
        probability *= left as f64 / done as f64;
    }
    None
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn fifteen_values_are_bounded_by_the_fourth_from_either_end() {
        let sample: Vec<f64> = (1..=15).rev().map(f64::from).collect();
        let median = Median::of(&sample);
        assert_eq!(
            median,
            Some(Median {
                value: 8.0,
                low: 4.0,
                high: 12.0
            })
        );
    }

    #[test]
    fn an_even_sample_has_the_mean_of_its_middle_values() {
        let sample: Vec<f64> = (1..=10).map(f64::from).collect();
        assert_eq!(Median::of(&sample).map(|median| median.value), Some(5.5));
    }

    #[test]
    fn five_values_are_too_few() {
        assert_eq!(Median::of(&[1.0, 2.0, 3.0, 4.0, 5.0]), None);
        assert!(Median::of(&[1.0, 2.0, 3.0, 4.0, 5.0, 6.0]).is_some());
    }
}
