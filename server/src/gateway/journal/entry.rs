//! One line of the ledger, and the chain that holds the lines together.

use std::fmt::Write as _;
use std::num::NonZeroU32;
use std::str::FromStr;
use std::sync::{Arc, Mutex, PoisonError};

use passerelle_engine::Usage;
use sha2::{Digest, Sha256};

use crate::gateway::account::AccountPath;
use crate::gateway::attribution::Attribution;
use crate::gateway::quota::UnixSeconds;
use crate::hex::hex;

/// Names a reservation, over restarts.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct EntryId(pub u64);

/// What is known when a reservation is taken. Never a prompt or an answer, never a secret.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Opening {
    pub id: EntryId,
    pub account: AccountPath,
    /// The public id of a key, or the name of a fixed one; empty at an open door.
    pub key: Arc<str>,
    /// Empty if no model runs.
    pub model: Arc<str>,
    /// Of the weights and everything else that decides what the model says.
    pub model_digest: Arc<str>,
    pub partition: Arc<str>,
    pub tariff: Arc<str>,
    pub binary: Arc<str>,
    pub at: UnixSeconds,
    pub prompt_tokens: u32,
    /// To the one prompt.
    pub answers: NonZeroU32,
    pub attribution: Attribution,
    /// The first entry of a request that has several: one for each of its prompts, and of the models that it compares.
    pub bill: Option<EntryId>,
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Settlement {
    pub at: UnixSeconds,
    pub used: Usage,
    /// By the tariff.
    pub billed_micros: u64,
    /// This request's share of the steps that ran it.
    pub measured_micros: u64,
    pub end: EntryEnd,
    /// By the gateway that ran it for this one; `None` for every other request.
    pub told: Option<Arc<Told>>,
    pub counts: Counts,
}

/// As how many requests an entry counts.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Counts {
    #[default]
    One,
    /// Another entry of the same reservation of another gateway is counted.
    None,
}

impl Counts {
    pub fn requests(self) -> u64 {
        match self {
            Self::One => 1,
            Self::None => 0,
        }
    }
}

/// What another gateway says of a request that it ran. Its word, written down beside what is billed here.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Told {
    pub model_digest: String,
    pub site: String,
    pub billed_micros: u64,
}

/// What was told of a request last, while it runs. Clones see the same: also whoever passes it on.
#[derive(Debug, Clone, Default)]
pub struct ToldSoFar(Arc<Mutex<Option<Arc<Told>>>>);

impl ToldSoFar {
    pub fn get(&self) -> Option<Arc<Told>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    pub fn set(&self, told: Told) {
        *self.0.lock().unwrap_or_else(PoisonError::into_inner) = Some(Arc::new(told));
    }
}

/// How a request ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum EntryEnd {
    /// A stop token or a stop string.
    Stop,
    /// Its `max_tokens`, or the context.
    Length,
    /// A budget was spent.
    Quota,
    /// The caller left, or the server ended it.
    #[default]
    Aborted,
    Failed,
    /// No model ran.
    Answered,
    /// The process died; settled by the next one at the last mark.
    Died,
}

/// A settled line.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Entry {
    /// In the order of settlement, from 1, without gaps.
    pub seq: u64,
    pub opening: Opening,
    pub settlement: Settlement,
}

/// The hash of each entry covers the one before it, so that none can be changed, added or taken out without changing all
/// that follow.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Chain(pub [u8; 32]);

/// Which part of an export's lines the chain covers.
#[derive(Debug, Clone, Copy)]
pub struct Covered {
    /// So many of the additions are not in the lines.
    without: usize,
}

impl Entry {
    pub const COLUMNS: &str = "seq,reservation,account,key,model,model_digest,partition,tariff,binary,opened_at,\
                               settled_at,input_tokens,cached_tokens,output_tokens,billed_gpu_us,measured_gpu_us,finish,\
                               answers,told_model_digest,told_site,told_billed_gpu_us,user,metadata,bill,\
                               asker_reservation,asker_account,requests";
    /// Those of earlier formats, and what the columns that each had added hold where they say nothing, the newest first. The
    /// chain does not cover what is not said, so that it goes on over entries from before.
    const ADDED: [(&str, &str); 4] = [
        (",asker_reservation,asker_account,requests", ",,,1"),
        (",bill", ","),
        (",user,metadata", ",,"),
        (",answers,told_model_digest,told_site,told_billed_gpu_us", ",1,,,"),
    ];

    /// The columns as CSV, in one line. All but `user`, `metadata` and `asker_reservation` hold names, numbers or digests,
    /// without a comma or a quote.
    pub fn csv(&self) -> String {
        let Opening { id, account, key, model, model_digest, partition, tariff, binary, at, .. } = &self.opening;
        let Settlement { at: settled_at, used, billed_micros, measured_micros, end, told, counts } = &self.settlement;
        let Usage { prompt_tokens, cached_tokens, generated_tokens, .. } = used;
        let names = [account.as_str(), key, model, model_digest, partition, tariff, binary].map(plain);
        let mut line = format!("{},{},{}", self.seq, id.0, names.join(","));
        write!(line, ",{},{}", at.0, settled_at.0).expect("a string takes everything");
        write!(line, ",{prompt_tokens},{cached_tokens},{generated_tokens}").expect("a string takes everything");
        write!(line, ",{billed_micros},{measured_micros},{}", end.as_str()).expect("a string takes everything");
        write!(line, ",{}", self.opening.answers).expect("a string takes everything");
        match told.as_deref() {
            Some(Told { model_digest, site, billed_micros }) => {
                let (digest, site) = (plain(model_digest), plain(site));
                write!(line, ",{digest},{site},{billed_micros}").expect("a string takes everything");
            }
            None => line.push_str(",,,"),
        }
        let Attribution { user, metadata, asker } = &self.opening.attribution;
        let said = [user, metadata].map(|said| said.as_deref().map_or_else(String::new, quoted));
        let bill = self.opening.bill.map_or_else(String::new, |bill| bill.0.to_string());
        write!(line, ",{},{bill}", said.join(",")).expect("a string takes everything");
        let account = asker.as_ref().and_then(|asker| asker.account.as_ref()).map_or("", |account| account.as_str());
        let reservation = asker.as_ref().map_or_else(String::new, |asker| quoted(&asker.reservation));
        write!(line, ",{reservation},{},{}", plain(account), counts.requests()).expect("a string takes everything");
        line
    }

    /// How the chain reads an export with these columns, of this program or of an earlier one. `None`: no export has them.
    pub fn chaining(columns: &str) -> Option<Covered> {
        let mut known = Self::COLUMNS;
        for (without, (added, _)) in Self::ADDED.iter().enumerate() {
            if columns == known {
                return Some(Covered { without });
            }
            known = known.strip_suffix(added)?;
        }
        (columns == known).then_some(Covered { without: Self::ADDED.len() })
    }
}

impl Covered {
    /// In a line of [`Entry::csv`].
    pub const TODAY: Self = Self { without: 0 };

    /// The line without what the columns say that were added last, one addition after the other, as far as they say nothing.
    pub fn of(self, mut line: &str) -> &str {
        for (_, unsaid) in &Entry::ADDED[self.without..] {
            match line.strip_suffix(unsaid) {
                Some(shorter) => line = shorter,
                None => break,
            }
        }
        line
    }
}

impl Chain {
    #[must_use]
    pub fn then(self, line: &str) -> Self {
        Self(Sha256::new().chain_update(self.0).chain_update(line).finalize().into())
    }

    pub fn hex(self) -> String {
        hex(&self.0)
    }
}

/// Model names may hold what CSV means something by.
fn plain(name: &str) -> String {
    name.replace([',', '"', '\n', '\r'], "_")
}

/// A text of the caller's as CSV has it (RFC 4180). What a spreadsheet would take for a formula is told as text.
fn quoted(text: &str) -> String {
    let guard = if text.starts_with(['=', '+', '-', '@']) { "'" } else { "" };
    if text.contains([',', '"']) {
        format!("\"{guard}{}\"", text.replace('"', "\"\""))
    } else {
        format!("{guard}{text}")
    }
}

impl EntryEnd {
    const ALL: [Self; 7] =
        [Self::Stop, Self::Length, Self::Quota, Self::Aborted, Self::Failed, Self::Answered, Self::Died];

    pub fn as_str(self) -> &'static str {
        match self {
            Self::Stop => "stop",
            Self::Length => "length",
            Self::Quota => "quota",
            Self::Aborted => "aborted",
            Self::Failed => "failed",
            Self::Answered => "answered",
            Self::Died => "died",
        }
    }
}

impl FromStr for EntryEnd {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        Self::ALL.into_iter().find(|end| end.as_str() == text).ok_or_else(|| format!("'{text}' is no end of an entry"))
    }
}
