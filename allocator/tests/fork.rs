//! A forked child has no reaper: there, drops do nothing and nothing waits. In a program of its own, since a fork copies
//! every lock as it is.

use tensorhold_allocator::{HostMemory, Pool, Request};

#[test]
fn drops_in_a_forked_child_do_nothing_and_wait_for_no_one() {
    let pool = Pool::new(HostMemory::new()).unwrap();
    let mut fragment = pool.place("t", Request::new(1000, 256)).unwrap();
    fragment.as_bytes_mut().unwrap().fill(7);
    let address = fragment.as_ptr();
    // SAFETY: the child calls nothing that needs another thread, or a lock that the reaper may have held, and leaves by `_exit`.
    let child = unsafe { libc::fork() };
    if child == 0 {
        drop(fragment);
        pool.trim();
        drop(pool);
        // SAFETY: M1: nothing was given back, or this ends the child with a signal.
        let unchanged = unsafe { address.read() } == 7;
        // SAFETY: ends the child without running the parent's exit handlers.
        unsafe { libc::_exit(if unchanged { 0 } else { 1 }) };
    }
    let mut status = -1;
    // SAFETY: `status` is valid for the write.
    assert_eq!(unsafe { libc::waitpid(child, &mut status, 0) }, child);
    assert!(
        libc::WIFEXITED(status) && libc::WEXITSTATUS(status) == 0,
        "the child ended with status {status}"
    );
    drop(fragment);
    pool.trim();
    assert_eq!(pool.stats().reserved_bytes, 0);
}
