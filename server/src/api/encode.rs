//! The shared path of embeddings, rerank, score and classify. One request, in order:
//!
//! 1. tokenise, cut and frame the texts, off the async threads;
//! 2. check their lengths, or the error has both numbers;
//! 3. reserve for all texts: all limits or none;
//! 4. hand them to a replica, a bounded number at a time, so that a long list leaves room for others;
//! 5. settle what the lane counted, by dropping the [`Encoding`], on every way out.

use std::sync::Arc;

use passerelle_engine::{EncodeRequest, Usage};
use passerelle_models::{EmbeddingDescription, EncoderOutput};
use tokio::time::timeout;

use super::causes::not_an_encoder;
use super::errors::{ApiError, ErrorKind};
use super::fields::invalid;
use super::generate::{RequestContext, charge_to};
use super::lease::Lease;
use super::meter::PromptMeter;
use super::prepare::find_model;
use super::reserve::{Patience, reserve_with};
use super::routes::require;
use super::state::{AppState, ServedModel};
use super::wire::texts::{TextItem, Texts, Truncate};
use crate::gateway::{Account, Ask, Caller, Encoding, PrefixHint, ReplicaRefusal, Reservation};
use crate::text::{AddSpecialTokens, FramedText, SpecialTokens, TextFrame, TextModel};

/// Texts of one request that are in the lane at the same time.
const MAX_TEXTS_IN_FLIGHT: usize = 64;
const CUT_IT: &str = "Shorten it, or let its end be cut off with `truncate_prompt_tokens`.";

/// How an encoder is served.
#[derive(Debug)]
pub struct ServedEncoder {
    pub output: EncoderOutput,
}

/// A vector for each text, in their order.
#[derive(Debug)]
pub(crate) struct Encoded {
    pub(crate) vectors: Vec<Vec<f32>>,
    pub(crate) usage: Usage,
}

/// The model and how it is served, or the error that whoever asks a generator gets.
pub(crate) async fn find_encoder(
    state: &AppState,
    caller: &Caller,
    name: &str,
) -> Result<(Lease, Arc<ServedEncoder>), ApiError> {
    let model = find_model(state, caller, name).await?;
    let encoder = model.encoder.clone().ok_or_else(|| not_an_encoder(name))?;
    Ok((model, encoder))
}

/// Steps 1 to 5.
pub(crate) async fn encode(
    state: &AppState,
    context: &RequestContext,
    model: &Lease,
    texts: Texts,
) -> Result<Encoded, ApiError> {
    state.readiness().admit()?;
    require(&context.caller, context.scope)?;
    let mut attribution = texts.attribution.clone();
    context.sign(&mut attribution);
    let framed = frame(state, model, texts).await?;
    let tokens = framed.iter().map(|(_, text)| text.tokens.len()).sum::<usize>();
    let ask = Ask {
        class: context.class(None),
        attribution,
        ..Ask::new(&model.name, u32::try_from(tokens).unwrap_or(u32::MAX), 0)
    };
    let mut reservation = reserve_with(Patience::of(1, context.scope), state, &context.caller, &ask).await?;
    charge_to(context.origin.as_ref(), std::iter::once(&mut reservation));
    let mut running = Running::start(state, context, model, framed, reservation)?;
    let limit = context.time_allowed(state);
    match timeout(limit, running.all()).await {
        Ok(vectors) => Ok(Encoded { vectors: vectors?, usage: running.encoding.close() }),
        Err(_) => {
            let message = format!("The texts were not read within {} seconds.", limit.as_secs_f64());
            Err(ApiError::new(ErrorKind::RequestTimeout, message))
        }
    }
}

/// A request whose texts are being read. Dropping it cancels those that wait, settles and measures.
struct Running {
    encoding: Encoding,
    /// With what their caller calls them.
    left: std::vec::IntoIter<(String, EncodeRequest)>,
    meter: PromptMeter,
}

impl Running {
    fn start(
        state: &AppState,
        context: &RequestContext,
        model: &ServedModel,
        texts: Vec<(String, FramedText)>,
        reservation: Reservation,
    ) -> Result<Self, ApiError> {
        let account = &context.caller.account;
        let requests = texts.into_iter().map(|(name, text)| (name, engine_request(state, account, text)));
        let mut left = requests.collect::<Vec<_>>().into_iter();
        let Some((name, first)) = left.next() else {
            reservation.withdraw();
            return Err(invalid("input", "must not be empty"));
        };
        let replica = match state.serving().router.pick(&model.name, PrefixHint::NONE, &[]) {
            Ok(replica) => replica,
            Err(error) => {
                reservation.withdraw();
                return Err(error.into());
            }
        };
        let encoding = Encoding::start(&replica, first, reservation).map_err(|not_started| {
            not_started.reservation.withdraw();
            refused(not_started.error, &name)
        })?;
        let meter = PromptMeter::new(state.clone(), &model.name, context.arrived);
        Ok(Self { encoding, left, meter })
    }

    /// Every vector, or the first error, which ends them all.
    async fn all(&mut self) -> Result<Vec<Vec<f32>>, ApiError> {
        let mut vectors = Vec::with_capacity(self.left.len() + 1);
        loop {
            self.fill().inspect_err(|error| {
                if error.is_our_fault() {
                    self.encoding.make_free();
                }
            })?;
            match self.encoding.next().await {
                Some(vector) => vectors.push(vector?),
                None => return Ok(vectors),
            }
        }
    }

    /// A full queue is waited for as long as a text of this request is in it.
    fn fill(&mut self) -> Result<(), ApiError> {
        while self.encoding.num_in_flight() < MAX_TEXTS_IN_FLIGHT
            && let Some((name, next)) = self.left.as_slice().first()
        {
            match self.encoding.push(next.clone()) {
                Ok(()) => drop(self.left.next()),
                Err(ReplicaRefusal::QueueFull) if self.encoding.num_in_flight() > 0 => return Ok(()),
                Err(error) => return Err(refused(error, name)),
            }
        }
        Ok(())
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        self.meter.ended(self.encoding.close());
    }
}

/// A lane may read less than the model does.
fn refused(error: ReplicaRefusal, name: &str) -> ApiError {
    match error {
        ReplicaRefusal::ExceedsContext(_) => ApiError::from(error).also(CUT_IT).param(name),
        error => error.into(),
    }
}

fn engine_request(state: &AppState, account: &Account, text: FramedText) -> EncodeRequest {
    let FramedText { tokens, second_text } = text;
    EncodeRequest { id: state.next_request_id(), tokens, second_text, share_key: account.share_key }
}

/// Steps 1 and 2. Each text with what its caller calls it.
async fn frame(state: &AppState, model: &Lease, texts: Texts) -> Result<Vec<(String, FramedText)>, ApiError> {
    let model = model.clone();
    state
        .text_work()
        .run(move || {
            let encoder = model.encoder.as_deref().ok_or_else(|| not_an_encoder(&model.name))?;
            let framing = Framing::new(&model, encoder, &texts)?;
            let apply = |(name, item): (String, &TextItem)| -> Result<(String, FramedText), ApiError> {
                let framed = framing.apply(item, &name)?;
                Ok((name, framed))
            };
            texts.names().into_iter().zip(&texts.items).map(apply).collect()
        })
        .await
}

/// What is done to each text of a request.
struct Framing<'a> {
    text: &'a TextModel,
    /// `None` where every text is token ids already: a tokenizer that frames nothing does not stand in their way.
    frame: Option<TextFrame>,
    prompt: &'a str,
    lower_case: bool,
    input_vocab_size: usize,
    /// The longest text that the model reads.
    longest: usize,
    /// Where documents are cut.
    document: Option<usize>,
    /// Where texts are cut.
    most: Option<usize>,
}

impl<'a> Framing<'a> {
    fn new(model: &'a ServedModel, encoder: &'a ServedEncoder, texts: &Texts) -> Result<Self, ApiError> {
        let longest = model.max_model_len;
        let is_written = |item: &TextItem| !matches!(item, TextItem::Tokens(_));
        let needs_frame = texts.add_special_tokens && texts.items.iter().any(is_written);
        let frame = needs_frame.then(|| TextFrame::of(&model.text.tokenizer)).transpose()?;
        let (prompt, lower_case) = match &encoder.output {
            EncoderOutput::Embedding(embedding) => {
                (prompt(embedding, texts.prompt_name.as_deref())?, embedding.lower_case)
            }
            EncoderOutput::Scores(_) if texts.prompt_name.is_some() => {
                return Err(invalid("prompt_name", "this model has no prompts"));
            }
            EncoderOutput::Scores(_) => ("", false),
        };
        Ok(Self {
            text: &model.text,
            frame,
            prompt,
            lower_case,
            input_vocab_size: model.input_vocab_size,
            longest,
            document: texts.max_document_tokens,
            most: match texts.truncate {
                Truncate::Never => None,
                Truncate::ToModel => Some(longest),
                Truncate::To(tokens) => Some(tokens.min(longest)),
            },
        })
    }

    fn apply(&self, item: &TextItem, name: &str) -> Result<FramedText, ApiError> {
        let framed = match (item, &self.frame) {
            (TextItem::Tokens(tokens), _) => {
                self.check_ids(tokens, name)?;
                self.unframed(tokens.clone())
            }
            (TextItem::Text(text), Some(frame)) => frame.single(self.prompted(text)?, self.most),
            (TextItem::Text(text), None) => self.unframed(self.prompted(text)?),
            (TextItem::Document(text), Some(frame)) => frame.single(self.prompted_document(text)?, self.most),
            (TextItem::Document(text), None) => self.unframed(self.prompted_document(text)?),
            (TextItem::Pair(first, second), Some(frame)) => {
                frame.pair(&self.tokens(first)?, &self.cut(self.tokens(second)?), self.most)
            }
            (TextItem::Pair(..), None) => {
                return Err(invalid("add_special_tokens", "a pair of texts is told apart by them alone"));
            }
        };
        match framed.tokens.len() {
            0 => Err(invalid(name, "holds no token")),
            length if length > self.longest => Err(too_long(name, length, self.longest)),
            _ => Ok(framed),
        }
    }

    /// A document, as long as the request wants it at most.
    fn cut(&self, mut tokens: Vec<u32>) -> Vec<u32> {
        tokens.truncate(self.document.unwrap_or(usize::MAX));
        tokens
    }

    /// The same, after what is put before each text.
    fn prompted_document(&self, text: &str) -> Result<Vec<u32>, ApiError> {
        let mut tokens = self.prompted(text)?;
        if let Some(most) = self.document {
            tokens.truncate(self.tokens(self.prompt)?.len().saturating_add(most));
        }
        Ok(tokens)
    }

    fn unframed(&self, mut tokens: Vec<u32>) -> FramedText {
        tokens.truncate(self.most.unwrap_or(usize::MAX));
        FramedText { tokens, second_text: None }
    }

    fn prompted(&self, text: &str) -> Result<Vec<u32>, ApiError> {
        self.tokens(&format!("{}{text}", self.prompt))
    }

    /// What somebody wrote stays text, special tokens too.
    fn tokens(&self, text: &str) -> Result<Vec<u32>, ApiError> {
        let tokenizer = &self.text.tokenizer;
        let encode = |text: &str| tokenizer.encode(text, AddSpecialTokens::No, SpecialTokens::AsText);
        Ok(if self.lower_case { encode(&text.to_lowercase())? } else { encode(text)? })
    }

    fn check_ids(&self, tokens: &[u32], name: &str) -> Result<(), ApiError> {
        match tokens.iter().find(|&&id| id as usize >= self.input_vocab_size) {
            Some(id) => {
                let why = format!("token {id} is outside the model's vocabulary of {}", self.input_vocab_size);
                Err(invalid(name, why))
            }
            None => Ok(()),
        }
    }
}

/// What is put before a text.
fn prompt<'a>(embedding: &'a EmbeddingDescription, name: Option<&str>) -> Result<&'a str, ApiError> {
    let Some(name) = name.or(embedding.default_prompt.as_deref()) else { return Ok("") };
    embedding.prompts.get(name).map(String::as_str).ok_or_else(|| {
        let known: Vec<_> = embedding.prompts.keys().map(String::as_str).collect();
        let known = if known.is_empty() { "none".to_owned() } else { known.join(", ") };
        invalid("prompt_name", format!("the model's prompts are: {known}"))
    })
}

fn too_long(name: &str, length: usize, longest: usize) -> ApiError {
    let message = format!("This model reads at most {longest} tokens, and `{name}` has {length}. {CUT_IT}");
    ApiError::new(ErrorKind::ContextLengthExceeded, message).param(name)
}
