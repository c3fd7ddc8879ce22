//! Gives parts of regions, and empty regions, back to the memory.

use crate::books::{Pass, Region, UnusedPart};
use crate::core::PoolCore;

/// Gives back the parts of regions in which no fragment lies any more.
pub(super) fn give_back_parts(core: &PoolCore) {
    let unused = core.books().take_unused_parts();
    for UnusedPart { region, part, backing } in unused {
        let bytes = backing.bytes(part);
        // I1: the fragments that lay in it are free.
        let given_back = backing.give_back(part);
        core.books().end_part(region, bytes, given_back.is_err());
        if let Err(error) = given_back {
            tracing::error!(
                pool = core.config().name,
                %error,
                bytes,
                "a part of a region cannot be given back: it is lost"
            );
        }
    }
}

/// Releases empty regions: all of them in a pool that is closing, all but what the requests keep in a requested pass, else those
/// beyond what the pool retains.
pub(super) fn release_empty_regions(core: &PoolCore, pass: Pass) {
    let empty = {
        let mut books = core.books();
        let keep = match (core.is_closing(), books.passes.keep(pass)) {
            (true, _) => 0,
            (false, Some(keep)) => keep,
            (false, None) => core.config().retain_bytes,
        };
        books.take_empty_regions(keep)
    };
    let memory = &core.config().memory;
    for Region { raw, reserved, backing, .. } in empty {
        let released = match backing {
            Some(backing) if backing.is_lost() => Err("a part of it was not given back".into()),
            // SAFETY: the range came from this memory and is in the books no more. I1: it holds no live fragment. J2: its parts are gone,
            // and none is lost.
            Some(_) => memory.parted().and_then(|parted| unsafe { parted.release_range(raw) }),
            // SAFETY: the region came from this memory and is in the books no more. I1: it holds no live fragment, and
            // those it held were synchronized before their ranges were freed.
            None => unsafe { memory.release(raw) },
        };
        core.books().end_release(reserved, released.is_err());
        if let Err(error) = released {
            tracing::error!(
                pool = core.config().name,
                %error,
                bytes = reserved,
                "a region cannot be released: it is lost"
            );
        }
    }
}
