//! What a load counts while it runs.

mod conversion_stats;
mod stage_timer;

pub(crate) use conversion_stats::ConversionStats;
pub(crate) use stage_timer::{Stage, StageTimer, StageTotals};
