//! What is asked of checkpoints, what they made of it, and how they differ.
//!
//! [`items`] reads a data set; [`scored`] is what one checkpoint made of one item; [`score_file`] keeps those, one file a
//! checkpoint, and [`pairs`] those of two that are served; [`comparison`] ranks checkpoints and finds where they differ;
//! [`report`] draws it. Nothing here knows HTTP or an engine: `passerelle score` runs the items, and whoever has the
//! files can compare.

pub mod bootstrap;
pub mod comparison;
pub mod divergence;
pub mod items;
pub mod metric;
pub mod pairs;
pub mod report;
pub mod score_file;
pub mod scored;
pub mod step;

pub use bootstrap::{Bounds, Interval, Resampling};
pub use comparison::{Comparison, ComparisonError, Options};
pub use items::{DataError, DataSet, Item, Task};
pub use metric::{Metric, Totals};
pub use pairs::{Kept, Pair, PairStore};
pub use score_file::{Header, ScoreFileError, ScoreReader, ScoreWriter};
pub use scored::{Answer, Continuation, Outcome, Scored, TokenScore, TokenScores};
