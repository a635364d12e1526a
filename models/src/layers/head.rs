//! From the hidden states of a batch to one vector for each sequence: an embedding, or the logits of a classifier.

use candle_core::Tensor;

use super::linear::Linear;
use super::mlp::unlearned;
use super::names::ClassifierNames;
use super::norm::Norm;
use crate::config::{Bias, ClassifierSpec, DenseSpec, EncoderSpec, PipelineSpec, PipelineStep, Pooling};
use crate::ops::{self, Activation, Compute};
use crate::vectors::scale_to_unit_length;
use crate::weights::{CheckpointFiles, MatrixPart, TensorIndex, WeightLoader};
use crate::{EncoderInput, ModelError, Vectors, WeightDtype, unwatched};

#[derive(Debug)]
pub(super) enum Head {
    Embedding { pooling: Vec<Pooling>, steps: Vec<Step>, width: usize },
    Classifier(Box<Classifier>),
}

#[derive(Debug)]
pub(super) enum Step {
    Dense(Linear, Option<Activation>),
    Normalize,
}

#[derive(Debug)]
pub(super) struct Classifier {
    pooling: Pooling,
    dense: Linear,
    activation: Activation,
    norm: Option<Norm>,
    output: Linear,
    num_labels: usize,
}

impl Head {
    pub(super) fn load(
        loader: &mut WeightLoader<'_>,
        names: &ClassifierNames,
        spec: &EncoderSpec,
        pipeline: &PipelineSpec,
        files: &CheckpointFiles,
    ) -> Result<Self, ModelError> {
        if let Some(classifier) = &spec.classifier {
            let classifier = Classifier::load(loader, names, classifier, spec.hidden_size)?;
            return Ok(Self::Classifier(Box::new(classifier)));
        }
        let (compute, dtype) = (loader.compute(), loader.dtype());
        let mut width = pipeline.pooling.len() * spec.hidden_size;
        let mut steps = Vec::with_capacity(pipeline.steps.len());
        for step in &pipeline.steps {
            steps.push(match step {
                PipelineStep::Normalize => Step::Normalize,
                PipelineStep::Dense(dense) => {
                    let loaded = load_dense(files, dense, width, compute, dtype)?;
                    width = dense.out_features;
                    loaded
                }
            });
        }
        Ok(Self::Embedding { pooling: pipeline.pooling.clone(), steps, width })
    }

    /// Elements of the vector of a sequence.
    pub(super) fn width(&self) -> usize {
        match self {
            Self::Embedding { width, .. } => *width,
            Self::Classifier(classifier) => classifier.num_labels,
        }
    }

    /// `hidden [num_tokens, hidden_size]`, the sequences of `input` one after the other.
    pub(super) fn forward(
        &self,
        compute: &Compute,
        hidden: &Tensor,
        input: &EncoderInput,
    ) -> Result<Vectors, ModelError> {
        let (pooling, steps) = match self {
            Self::Classifier(classifier) => {
                let logits = classifier.forward(compute, hidden, input)?;
                return Ok(Vectors::new(classifier.num_labels, logits.flatten_all()?.to_vec1()?));
            }
            Self::Embedding { pooling, steps, .. } => (pooling, steps),
        };
        let pooled = pooling.iter().map(|&kind| pool(compute, hidden, input, kind));
        let mut vectors = Tensor::cat(&pooled.collect::<Result<Vec<_>, _>>()?, 1)?;
        for step in steps {
            vectors = match step {
                Step::Normalize => normalized(&vectors)?,
                Step::Dense(linear, None) => linear.forward(compute, &vectors)?,
                Step::Dense(linear, Some(kind)) => ops::activate(compute, &linear.forward(compute, &vectors)?, *kind)?,
            };
        }
        Ok(Vectors::new(self.width(), vectors.flatten_all()?.to_vec1()?))
    }

    pub(super) fn size_bytes(&self) -> usize {
        match self {
            Self::Classifier(classifier) => classifier.size_bytes(),
            Self::Embedding { steps, .. } => steps
                .iter()
                .map(|step| match step {
                    Step::Dense(linear, _) => linear.size_bytes(),
                    Step::Normalize => 0,
                })
                .sum(),
        }
    }
}

impl Classifier {
    fn load(
        loader: &mut WeightLoader<'_>,
        names: &ClassifierNames,
        spec: &ClassifierSpec,
        hidden_size: usize,
    ) -> Result<Self, ModelError> {
        let num_labels = spec.labels.len();
        let part = |name: &str, rows| [MatrixPart::whole(name.to_owned(), rows)];
        Ok(Self {
            pooling: spec.pooling,
            dense: Linear::load(loader, hidden_size, &part(names.dense, hidden_size), spec.dense)?,
            activation: without_scalars(spec.activation)?,
            norm: spec.norm.map(|norm| Norm::load(loader, names.norm, hidden_size, norm)).transpose()?,
            output: Linear::load(loader, hidden_size, &part(names.output, num_labels), Bias::Present)?,
            num_labels,
        })
    }

    fn forward(&self, compute: &Compute, hidden: &Tensor, input: &EncoderInput) -> Result<Tensor, ModelError> {
        let pooled = pool(compute, hidden, input, self.pooling)?;
        let dense = ops::activate(compute, &self.dense.forward(compute, &pooled)?, self.activation)?;
        match &self.norm {
            Some(norm) => self.output.forward(compute, &norm.apply(compute, &dense)?),
            None => self.output.forward(compute, &dense),
        }
    }

    fn size_bytes(&self) -> usize {
        self.dense.size_bytes() + self.norm.as_ref().map_or(0, Norm::size_bytes) + self.output.size_bytes()
    }
}

/// `[num_sequences, hidden_size]`
fn pool(compute: &Compute, hidden: &Tensor, input: &EncoderInput, kind: Pooling) -> Result<Tensor, ModelError> {
    let starts = input.step().query_start();
    let kind = match kind {
        Pooling::First => return ops::gather_rows(compute, hidden, &starts[..starts.len() - 1]),
        Pooling::Last => {
            let last: Vec<usize> = starts[1..].iter().map(|end| end - 1).collect();
            return ops::gather_rows(compute, hidden, &last);
        }
        Pooling::Mean => ops::RowPool::Mean,
        Pooling::Max => ops::RowPool::Max,
        Pooling::MeanSqrtLen => ops::RowPool::MeanSqrtLen,
        Pooling::WeightedMean => ops::RowPool::WeightedMean,
    };
    ops::pool_rows(compute, hidden, starts, kind)
}

fn normalized(x: &Tensor) -> Result<Tensor, ModelError> {
    let (_, width) = x.dims2()?;
    let mut values: Vec<f32> = x.flatten_all()?.to_vec1()?;
    values.chunks_mut(width).for_each(scale_to_unit_length);
    Ok(Tensor::from_vec(values, x.dims(), x.device())?)
}

fn load_dense(
    files: &CheckpointFiles,
    spec: &DenseSpec,
    width: usize,
    compute: &Compute,
    dtype: WeightDtype,
) -> Result<Step, ModelError> {
    let folder = files.folder(&spec.folder);
    if spec.in_features != width {
        let problem = format!("{}, but vectors of {width} come from before", spec.in_features);
        return Err(ModelError::checkpoint(&folder.path_of("config.json"), "in_features", problem));
    }
    let mut watch = unwatched;
    let mut loader = WeightLoader::new(&folder, TensorIndex::of_module(&folder)?, compute, dtype, &mut watch);
    let part = [MatrixPart::whole("linear".to_owned(), spec.out_features)];
    let linear = Linear::load(&mut loader, spec.in_features, &part, spec.bias)?;
    loader.finish(|_| false)?;
    Ok(Step::Dense(linear, spec.activation.map(without_scalars).transpose()?))
}

fn without_scalars(activation: crate::config::Activation) -> Result<Activation, ModelError> {
    unlearned(activation).ok_or_else(|| ModelError::Input("a head whose activation has learned scalars".into()))
}
