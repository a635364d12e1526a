use crate::config::ScoreActivation;

/// What an encoder makes of each sequence of a batch: f32, row-major `[num_rows, width]`, in host memory.
#[derive(Debug, Clone, PartialEq)]
pub struct Vectors {
    width: usize,
    values: Vec<f32>,
}

impl Vectors {
    /// # Panics
    /// If `values` is not a whole number of rows.
    pub fn new(width: usize, values: Vec<f32>) -> Self {
        assert!(width > 0 && values.len().is_multiple_of(width), "vectors must be whole rows");
        Self { width, values }
    }

    pub fn num_rows(&self) -> usize {
        self.values.len() / self.width
    }

    pub fn width(&self) -> usize {
        self.width
    }

    pub fn row(&self, row: usize) -> &[f32] {
        &self.values[row * self.width..(row + 1) * self.width]
    }
}

/// Divides `vector` by its Euclidean length, summed in f64 by ascending element. A vector of zeros stays.
pub fn scale_to_unit_length(vector: &mut [f32]) {
    // The reference implementation's floor.
    const SHORTEST: f64 = 1e-12;
    let length = vector.iter().map(|&x| f64::from(x) * f64::from(x)).sum::<f64>().sqrt().max(SHORTEST);
    vector.iter_mut().for_each(|x| *x = (f64::from(*x) / length) as f32);
}

impl ScoreActivation {
    /// What a classifier's logits say.
    pub fn apply(self, logits: &[f32]) -> Vec<f32> {
        let logits = || logits.iter().map(|&logit| f64::from(logit));
        let scores: Vec<f64> = match self {
            Self::Identity => logits().collect(),
            Self::Sigmoid => logits().map(|logit| 1.0 / (1.0 + (-logit).exp())).collect(),
            Self::Softmax => {
                let greatest = logits().fold(f64::NEG_INFINITY, f64::max);
                let total: f64 = logits().map(|logit| (logit - greatest).exp()).sum();
                logits().map(|logit| (logit - greatest).exp() / total).collect()
            }
        };
        scores.into_iter().map(|score| score as f32).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn scores_are_probabilities_each_alone_or_all_together() {
        assert_eq!(ScoreActivation::Identity.apply(&[-2.5]), [-2.5]);
        assert_eq!(ScoreActivation::Sigmoid.apply(&[0.0, 200.0, -200.0])[..2], [0.5, 1.0]);
        let softmax = ScoreActivation::Softmax.apply(&[1000.0, 1000.0 - std::f32::consts::LN_2]);
        assert!((softmax[0] - 2.0 / 3.0).abs() < 1e-4 && (softmax.iter().sum::<f32>() - 1.0).abs() < 1e-6);
    }

    #[test]
    fn a_vector_is_scaled_to_length_one_and_zeros_stay() {
        let mut vector = [3.0, -4.0];
        scale_to_unit_length(&mut vector);
        assert_eq!(vector, [0.6, -0.8]);
        let mut zeros = [0.0; 3];
        scale_to_unit_length(&mut zeros);
        assert_eq!(zeros, [0.0; 3]);
    }
}
