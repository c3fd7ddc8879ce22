//! A reader through the page cache: in place if the CPU can write the target, else into the staging ring.

use super::buffered_read::ReadOutcome;
use super::context::ReadContext;
use super::job_queue::JobQueue;
use super::route::ReadRoute;
use super::staging_ring::StagingRing;
use super::stats::Stage;
use super::transform::{self, TransformScratch};
use crate::error::{Error, Result};
use crate::io::{BackendKind, Queue};

/// Takes jobs off the plan until none are left. Defers those that are not cached to direct readers.
pub(super) fn run(context: &ReadContext<'_>, job_queue: &JobQueue<'_>) -> Result<()> {
    let mut queue = context
        .engines
        .buffered
        .queue(1)
        .map_err(|error| context.queue_refused(BackendKind::Buffered, &error))?;
    let Some(mut scratch) = TransformScratch::open(context, job_queue)? else { return Ok(()) };
    match &context.ring {
        Some(ring) => {
            if let Err(error) = into_ring(context, job_queue, &mut *queue, ring, &mut scratch) {
                job_queue.fail(error);
            }
            // After the failure is recorded: readers that wait for this one's part of a slot then see it.
            ring.wake();
            Ok(())
        }
        None => in_place(context, job_queue, &mut *queue, &mut scratch),
    }
}

fn in_place(
    context: &ReadContext<'_>,
    job_queue: &JobQueue<'_>,
    queue: &mut dyn Queue,
    scratch: &mut TransformScratch,
) -> Result<()> {
    let mut timer = context.stage_totals.timer();
    while let Some((index, job, route)) = job_queue.next_buffered(&context.routes) {
        let to = context.scatter.address(job)?;
        // SAFETY: W1, P2: the job's span lies in a host-accessible region that the target keeps.
        match unsafe { transform::read(context, queue, job, to, route, scratch) }? {
            ReadOutcome::Complete => {
                job_queue.count(job, ReadRoute::Buffered);
                job_queue.landed(index);
            }
            ReadOutcome::NotCached => job_queue.defer(index),
        }
    }
    timer.lap(Stage::Read);
    Ok(())
}

fn into_ring(
    context: &ReadContext<'_>,
    job_queue: &JobQueue<'_>,
    queue: &mut dyn Queue,
    ring: &StagingRing<'_>,
    scratch: &mut TransformScratch,
) -> Result<()> {
    let mut timer = context.stage_totals.timer();
    loop {
        let claim = match ring.claim(job_queue, &context.routes) {
            Ok(Some(claim)) => claim,
            Ok(None) => break,
            Err(error @ Error::Memory(_)) => {
                job_queue.refuse(error);
                break;
            }
            Err(error) => return Err(error),
        };
        timer.lap(Stage::Wait);
        let job = &context.scatter.plan.jobs[claim.index];
        // SAFETY: G2: the place is as long as the bytes that the job leaves there, and this reader's until
        // the job is counted as complete.
        let outcome =
            unsafe { transform::read(context, queue, job, ring.start(&claim), claim.route, scratch) }?;
        match outcome {
            ReadOutcome::Complete => job_queue.count(job, claim.route),
            ReadOutcome::NotCached => job_queue.defer(claim.index),
        }
        timer.lap(Stage::Read);
        ring.complete(&claim, outcome == ReadOutcome::Complete)?;
        timer.lap(Stage::Send);
    }
    timer.lap(Stage::Wait);
    Ok(())
}
