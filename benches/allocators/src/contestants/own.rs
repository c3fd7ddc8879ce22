//! tensorhold's policies over offsets, and its planned layouts.

use std::hint::black_box;
use std::time::Instant;

use tensorhold_allocator::Request;
use tensorhold_allocator::offsets::{self, Bump, Key, lay_out};

use super::{Contestant, GRANULE};
use crate::cases::median_of_times;
use crate::traces::Batch;

/// A contestant from a policy of `offsets`: they all have the same methods.
macro_rules! policy {
    ($policy:ident) => {
        pub(crate) struct $policy(offsets::$policy);

        impl Contestant for $policy {
            type Live = Key;

            fn name() -> String {
                concat!("tensorhold ", stringify!($policy)).into()
            }

            fn new(capacity: u64) -> Result<Self, String> {
                Ok(Self(offsets::$policy::new(capacity, GRANULE)))
            }

            #[inline]
            fn allocate(&mut self, size: u64) -> Option<(u64, Key)> {
                let placed = self.0.allocate(Request::new(size, GRANULE))?;
                Some((placed.offset, placed.key))
            }

            #[inline]
            fn free(&mut self, key: Key) {
                self.0.free(key).expect("a live key");
            }

            fn is_empty(&mut self) -> bool {
                self.0.is_empty() && self.0.largest_free() == self.0.capacity()
            }
        }
    };
}

policy!(BestFit);
policy!(Segregated);

/// How planned layouts place the batch: names, and nanoseconds for the whole of it.
pub(crate) fn planned(batch: &Batch) -> Result<Vec<(String, f64)>, String> {
    let requests: Vec<Request> = batch.sizes.iter().map(|&size| Request::new(size, GRANULE)).collect();
    let fits = |used: u64| if used == batch.bytes { Ok(()) } else { Err(format!("{used} bytes used")) };

    let laid_out = median_of_times(|| {
        let started = Instant::now();
        let layout = lay_out(black_box(&requests), None);
        let time = started.elapsed();
        let layout = layout.map_err(|error| error.to_string())?;
        fits(layout.regions.iter().map(|region| region.size).sum())?;
        let starts = layout.placements.iter().map(|placement| placement.offset);
        batch.check_apart(&starts.collect::<Vec<_>>())?;
        Ok(time)
    })?;

    let mut starts = Vec::with_capacity(requests.len());
    let bumped = median_of_times(|| {
        starts.clear();
        let started = Instant::now();
        let mut bump = Bump::new(batch.bytes);
        starts.extend(black_box(&requests).iter().map_while(|request| bump.place(*request)));
        let time = started.elapsed();
        fits(bump.used())?;
        batch.check_apart(&starts)?;
        Ok(time)
    })?;
    Ok(vec![("tensorhold lay_out".into(), laid_out), ("tensorhold Bump".into(), bumped)])
}
