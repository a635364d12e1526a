//! Models that lie on partitions: what the gateway knows of them before their workers have come, and how it serves them
//! then.

use std::ops::ControlFlow;
use std::sync::Arc;

use anyhow::{Context, Result, ensure};
use passerelle::api::{AppState, ServedEncoder, ServedModel};
use passerelle::config::{ActivationDtype, Config, KvDtype, ModelConfig, PartitionConfig, WorkerPlace};
use passerelle::gateway::replica::{Replica, ReplicaId};
use passerelle::gateway::tariff::Price;
use passerelle::placement::Device;
use passerelle::text::{GrammarCompiler, TextModel};
use passerelle::workers::{OfferedModel, RemoteReplica, RemoteReplicaBounds, WorkerSlot, WorkersFrom};
use passerelle_engine::StepObserver;
use passerelle_models::{CheckpointFiles, EncoderOutput, ModelDigest};

use super::defaults;
use super::engines::{self, EngineFactory};
use super::hashes::KeptHashes;
use super::ledger::facts_of;
use super::models::{self, AnyDescription, find_files, wanted_of};
use super::text;
use super::trusted::Inspector;

/// The partitions of a configuration.
#[derive(Default)]
pub(super) struct Placed {
    pub(super) slots: Vec<Arc<WorkerSlot>>,
    models: Vec<PlacedModel>,
}

/// One model without its weights, which are its worker's.
struct PlacedModel {
    config: ModelConfig,
    files: CheckpointFiles,
    description: AnyDescription,
    /// Its workers may have no other checkpoint.
    digest: ModelDigest,
    text: Arc<TextModel>,
    replica: RemoteReplica,
    id: ReplicaId,
    /// The kind of its partition's device, as in tariffs.
    device: &'static str,
}

impl Placed {
    /// Everything about the models but their weights, of which it reads the digests alone. `first_id`: of their replicas.
    pub(super) fn read(config: &Config, factory: &EngineFactory, hashes: &KeptHashes, first_id: u32) -> Result<Self> {
        let inspector = Inspector::new(config)?;
        let mut placed = Self::default();
        for PartitionConfig { name, gpu_factor, .. } in &config.partitions {
            let lie_there = config.models.iter().filter(|model| model.partition.as_ref() == Some(name));
            let factor = gpu_factor.unwrap_or(config.ledger.gpu_factor);
            factory.metrics.hours().place(name.as_str(), factor, lie_there.map(|model| model.name.clone()));
        }
        for (partition, model) in config.partitions.iter().flat_map(|partition| {
            let lies_here = move |model: &&ModelConfig| model.partition.as_ref() == Some(&partition.name);
            config.models.iter().filter(lies_here).map(move |model| (partition, model))
        }) {
            let id = ReplicaId(first_id + placed.models.len() as u32);
            // What it proves is told to `hashes`, so that the digest is of what was signed.
            models::of_source(config, model, inspector.inspect(model, hashes))?;
            let read = PlacedModel::read((config, partition, model), (factory, hashes), id)
                .with_context(|| format!("model `{}` on partition `{}`", model.name, partition.name));
            placed.models.push(models::of_source(config, model, read)?);
        }
        placed.models.iter().for_each(|model| text::warn_of_none(&model.config.name, &model.text));
        placed.slots = config.partitions.iter().map(|partition| placed.slot(partition)).collect();
        Ok(placed)
    }

    pub(super) fn len(&self) -> usize {
        self.models.len()
    }

    /// Of every model, also before a worker has come for it.
    pub(super) fn replicas(&self) -> impl Iterator<Item = Arc<Replica>> {
        self.models.iter().map(PlacedModel::replica)
    }

    /// By model and device, as derived from its weights.
    pub(super) fn prices(&self) -> impl Iterator<Item = (String, &'static str, Price)> {
        let priced = |model: &PlacedModel| engines::price(model.description.model());
        self.models.iter().map(move |model| (model.config.name.clone(), model.device, priced(model)))
    }

    /// The models of a partition are served from now on, by the worker that has come.
    pub(super) fn serve(&self, partition: &str, state: &AppState) -> Result<()> {
        for model in self.models.iter().filter(|model| model.config.partition.as_deref() == Some(partition)) {
            let named = || format!("model `{}`", model.config.name);
            let offered = model.replica.offered().with_context(named)?;
            let served = model.served(&offered).with_context(named)?;
            let ledger = state.ledger();
            ledger.know(&model.config.name, facts_of(&served, &partition.into()));
            state.change_serving(|former| former.with_model(served, model.replica()));
        }
        Ok(())
    }

    fn slot(&self, partition: &PartitionConfig) -> Arc<WorkerSlot> {
        let lies_here = |model: &&PlacedModel| model.config.partition.as_ref() == Some(&partition.name);
        let replicas = self.models.iter().filter(lies_here).map(|model| model.replica.clone()).collect();
        let digests = self.models.iter().filter(lies_here).map(|model| (model.config.name.clone(), model.digest));
        let from = match partition.worker {
            WorkerPlace::Local => WorkersFrom::Here,
            WorkerPlace::Remote => WorkersFrom::Anywhere,
        };
        Arc::new(WorkerSlot::new(&partition.name, from, replicas).with_digests(digests))
    }
}

impl PlacedModel {
    fn read(
        (config, partition, model): (&Config, &PartitionConfig, &ModelConfig),
        (factory, hashes): (&EngineFactory, &KeptHashes),
        id: ReplicaId,
    ) -> Result<Self> {
        let files = find_files(&model.source, wanted_of(model), &config.hub)?;
        let text = Arc::new(text::load(model, &files, &config.hub)?);
        let digest = hashes.digest_of(&files, &|_| ControlFlow::Continue(()))?;
        let description = models::describe(model, &config.hub)?;
        let is_integers = model.kv_dtype == KvDtype::Int8 && matches!(description, AnyDescription::Generator(_));
        ensure!(
            !is_integers || partition.is.device == Device::Cpu,
            "kv_dtype = \"int8\": keys and values in int8 are for models on a CPU; on a GPU choose bf16 or f32"
        );
        ensure!(
            model.activation_dtype == ActivationDtype::Int16 || partition.is.device == Device::Cpu,
            "activation_dtype = \"int8\": activations in int8 are for models on a CPU; on a GPU choose int16, which rounds nothing there"
        );
        let bounds = RemoteReplicaBounds {
            longest_hand_over: config.workers.longest_hand_over,
            vector_len: vector_len(&description),
        };
        let observer: Arc<dyn StepObserver> = Arc::new(factory.metrics.engine(&model.name));
        let replica = RemoteReplica::new(model.name.as_str(), bounds, factory.clock(), observer);
        let device = kind_of_device(partition);
        Ok(Self { config: model.clone(), files, description, digest, text, replica, id, device })
    }

    fn replica(&self) -> Arc<Replica> {
        Arc::new(Replica::new(self.id, self.config.name.clone(), Box::new(self.replica.clone())))
    }

    fn served(&self, offered: &OfferedModel) -> Result<ServedModel> {
        let (eos_token_ids, encoder, defaults) = match &self.description {
            AnyDescription::Generator(is) => (is.eos_token_ids.clone(), None, defaults::read(&self.files)?),
            AnyDescription::Encoder(is) => {
                let encoder = ServedEncoder { output: is.output.clone() };
                (Vec::new(), Some(Arc::new(encoder)), Default::default())
            }
        };
        Ok(ServedModel {
            name: self.config.name.clone(),
            text: Arc::clone(&self.text),
            grammars: Arc::new(GrammarCompiler::new(self.text.tokenizer.clone(), eos_token_ids.clone())),
            max_model_len: offered.max_model_len,
            input_vocab_size: offered.input_vocab_size,
            eos_token_ids,
            defaults,
            encoder,
            digest: offered.digest,
            fingerprint: offered.fingerprint.clone(),
        })
    }
}

/// As in tariffs.
pub(super) fn kind_of_device(partition: &PartitionConfig) -> &'static str {
    if partition.is.device == Device::Cpu { "cpu" } else { "cuda" }
}

/// Numbers that a text is answered with.
fn vector_len(description: &AnyDescription) -> usize {
    match description {
        AnyDescription::Generator(_) => 0,
        AnyDescription::Encoder(is) => match &is.output {
            EncoderOutput::Embedding(embedding) => embedding.dimensions,
            EncoderOutput::Scores(scores) => scores.labels.len(),
        },
    }
}
